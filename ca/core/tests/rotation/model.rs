//! The model check: every order of events that two replicas, two clusters and their subscribers can meet, breadth first.
//!
//! What can happen: a replica looks, and performs what it decided, then or much later, or never (a crash between any two
//! effects, a lost answer of the store); it takes over from the other at any moment; it has a key ring of its own, or shares
//! one. Bundles arrive late or not at all, acknowledgements and reports are lost or come late, answers to renewals are lost;
//! subscribers are out of reach, expire and join; one caller is two processes; somebody acknowledges what another history
//! published; administrators start, abort, exempt and give up at any moment.
//! What is left out: time (soak and settling are 0; the simulation has them), serials and lifetimes, and reports that arrive
//! after a later renewal of the same subscriber (`settle_seconds` is there for them).
//! Not here: the search itself, and its bounds (`search`); what events do to subscribers (`subs`).

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rhizome_core::rotation::evidence::{
    Direction, Held, Presented, Probe, Subscriber, SubscriberKind, World,
};
use rhizome_core::rotation::gate::{self, Consent, Loss};
use rhizome_core::rotation::invariants::{self, Leaf, Verifier};
use rhizome_core::rotation::{
    Canary, Choices, Effect, Exemption, Facts, Heading, Input, Mode, Order, Phase, Rotation, SelfTest, Step,
    canary, holdings, keys_that_matter, on_facts, step,
};
use rhizome_id::{AuthorityId, Timestamp};

use crate::broken::{Broken, Found, Law, Names};
use crate::store::{ROOT_END, Seen, Store, digest, id};
use crate::subs::Sub;

const NOW: i64 = 2_000_000_000;
const NAMES: [&str; 3] = ["agent:a/1", "agent:b/1", "agent:b/2"];
/// The caller that is two processes.
const CALLER: &str = "client:1";

pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix(NOW)
}

/// What a replica is about to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pending {
    Move(Seen, Box<Rotation>),
    Perform(Seen, Effect),
    Follow(AuthorityId),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Model {
    pub(crate) store: Arc<Store>,
    pub(crate) pending: [Option<Pending>; 2],
    pub(crate) subs: Vec<Sub>,
    /// Unkind events, aborts and exemptions that may still come.
    pub(crate) unkind: u8,
    pub(crate) aborts: u8,
    pub(crate) exemptions: u8,
    pub(crate) probed: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Event {
    Start,
    Look(usize),
    Perform(usize),
    Crash(usize),
    Follow(usize),
    RenewIssuer(usize),
    Deliver(usize),
    Report(usize),
    ReportArrives(usize),
    ReportIsLost(usize),
    Renew(usize, usize),
    RenewalAnswerIsLost(usize, usize),
    OlderExpire(usize),
    Expire(usize),
    Join(usize, usize),
    Leave(usize),
    Return(usize),
    Probe(bool),
    Abort,
    Exempt(usize),
    AcceptLoss,
}

impl Event {
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Look(_) => "look",
            Self::Perform(_) => "perform",
            Self::Crash(_) => "crash",
            Self::Follow(_) => "follow",
            Self::RenewIssuer(_) => "renew issuer",
            Self::Deliver(_) => "deliver",
            Self::Report(_) => "report",
            Self::ReportArrives(_) => "report arrives",
            Self::ReportIsLost(_) => "report lost",
            Self::Renew(..) => "renew",
            Self::RenewalAnswerIsLost(..) => "answer lost",
            Self::OlderExpire(_) => "older expire",
            Self::Expire(_) => "expire",
            Self::Join(..) => "join",
            Self::Leave(_) => "out of reach",
            Self::Return(_) => "within reach",
            Self::Probe(true) => "probe passes",
            Self::Probe(false) => "probe fails",
            Self::Abort => "abort",
            Self::Exempt(_) => "exempt",
            Self::AcceptLoss => "accept loss",
        }
    }
}

/// How large the search is, and what is broken on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) subs: usize,
    pub(crate) unkind: u8,
    pub(crate) aborts: u8,
    pub(crate) exemptions: u8,
    pub(crate) mode: Mode,
    pub(crate) canary: bool,
    /// Whether the old root's key is at hand, so that it can certify the new one.
    pub(crate) bridge: bool,
    /// Whether the new root's key is at hand, so that it can certify the old one.
    pub(crate) reverse: bool,
    /// Key rings: one that is shared, or one each.
    pub(crate) rings: usize,
    /// Whether subscribers may be out of reach.
    pub(crate) away: bool,
    /// Whether all subscribers are processes of one caller without a stream.
    pub(crate) one_shots: bool,
    /// Whether the first subscriber has a bundle of another history.
    pub(crate) forked: bool,
    pub(crate) depth: usize,
    pub(crate) states: usize,
    pub(crate) broken: Option<Broken>,
    /// The one invariant that is asked; `None`: all of them.
    pub(crate) only: Option<Law>,
}

impl Bounds {
    pub(crate) fn name(&self, number: usize) -> &'static str {
        if self.one_shots { CALLER } else { NAMES[number] }
    }
}

impl Model {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let mut store = Store::founded("old", 2, bounds.rings, now(), Timestamp::from_unix(ROOT_END));
        if !bounds.bridge {
            store.rings.iter_mut().for_each(BTreeMap::clear);
        }
        let mut subs = vec![Sub::founded(&id("old"), bounds.one_shots); bounds.subs];
        if bounds.forked {
            // Its bundle has the number that the rotation's first will have, and other anchors.
            subs[0].sequence = 2;
            subs[0].acknowledged = Some((2, digest(2, &subs[0].trusts)));
        }
        Self {
            store: Arc::new(store),
            pending: [None, None],
            subs,
            unkind: bounds.unkind,
            aborts: bounds.aborts,
            exemptions: bounds.exemptions,
            probed: 0,
        }
    }

    /// What the machine is shown at a replica.
    fn world(&self, replica: usize, bounds: &Bounds) -> World {
        let subscribers = if bounds.one_shots {
            self.caller(bounds).into_iter().collect()
        } else {
            let known = self.subs.iter().enumerate().filter(|(_, sub)| !sub.recorded.is_empty());
            known.map(|(number, sub)| agent(NAMES[number], sub)).collect()
        };
        let probe = |direction, failed: bool| Probe {
            direction,
            at: now(),
            failure: failed.then(|| "it failed".to_owned()),
        };
        let probes = match self.probed {
            0 => Vec::new(),
            1 => vec![probe(Direction::NewToOld, false), probe(Direction::OldToNew, false)],
            _ => vec![probe(Direction::NewToOld, true)],
        };
        let mut facts = self.store.facts(replica);
        if !bounds.reverse {
            facts.keys.retain(|it| it.as_str() != "new" || !facts.roots.contains_key(it));
        }
        let world = World { facts, subscribers, probes };
        Broken::world(bounds.broken, self.store.rotation.as_ref(), world)
    }

    /// The caller that all subscribers are processes of, as the ledger shows it.
    fn caller(&self, bounds: &Bounds) -> Option<Subscriber> {
        let far = now().plus(3_600);
        let issued: Vec<holdings::Issued> = self
            .subs
            .iter()
            .flat_map(|it| &it.recorded)
            .map(|(root, bundle)| holdings::Issued {
                root: Some(root.clone()),
                bundle: *bundle,
                own: false,
                last_at: now(),
                until: far,
                count: 1,
            })
            .collect();
        let newest = issued.iter().max_by_key(|it| it.bundle)?;
        let choices = Choices::default();
        let holds = match bounds.broken {
            Some(Broken::CountsTheNewest) => Some(Held { sequence: newest.bundle, digest: None, at: now() }),
            _ => holdings::lowest(&issued, now()),
        };
        Some(Subscriber {
            kind: SubscriberKind::OneShot,
            holds,
            presents: holdings::presented(&issued, None, &self.store.facts.roots, &choices, now()),
            connected: false,
            ..agent(CALLER, &self.subs[0])
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        self.store.rotation.as_ref().map_or(Phase::Stable, |it| it.phase)
    }

    fn look(&self, replica: usize, bounds: &Bounds) -> Step {
        let world = self.world(replica, bounds);
        if let Some(rotation) = &self.store.rotation {
            // A shell asks its key ring for no others.
            let asked = keys_that_matter(rotation, &world.facts, now());
            let keys = world.facts.keys.iter().filter(|it| asked.contains(it)).cloned().collect();
            let fewer = Facts { keys, ..world.facts.clone() };
            assert_eq!(
                on_facts(rotation, &fewer, now()),
                on_facts(rotation, &world.facts, now()),
                "{asked:?}"
            );
        }
        step(self.store.rotation.as_ref(), Input::Look(&world), now()).unwrap()
    }

    pub(crate) fn events(&self, bounds: &Bounds) -> Vec<Event> {
        let mut events = Vec::new();
        if self.is_over() {
            return events;
        }
        if self.store.rotation.is_none() {
            events.push(Event::Start);
        }
        let active = self.store.facts.active_root();
        for (replica, pending) in self.pending.iter().enumerate() {
            if pending.is_some() {
                events.push(Event::Perform(replica));
                if self.unkind > 0 {
                    events.push(Event::Crash(replica));
                }
                continue;
            }
            if self.decide(replica, bounds).is_some() {
                events.push(Event::Look(replica));
            }
            if self.store.issues_under(replica) != active && active.is_some() {
                events.push(Event::Follow(replica));
            } else if self.unkind > 0 && self.phase() != Phase::Stable {
                events.push(Event::RenewIssuer(replica));
            }
        }
        for (number, sub) in self.subs.iter().enumerate() {
            sub.events(number, self, bounds, &mut events);
        }
        if self.phase() != Phase::Stable {
            self.words(bounds, &mut events);
        }
        events
    }

    /// What administrators and probes can say.
    fn words(&self, bounds: &Bounds, events: &mut Vec<Event>) {
        if self.aborts > 0 {
            events.push(Event::Abort);
        }
        if self.phase() == Phase::Canary && self.probed == 0 {
            events.push(Event::Probe(true));
            if self.unkind > 0 {
                events.push(Event::Probe(false));
            }
        }
        if bounds.mode == Mode::Compromised && self.loss(bounds).is_some() {
            events.push(Event::AcceptLoss);
        }
    }

    /// The model after `event`; `None` when nothing came of it.
    pub(crate) fn after(&self, event: &Event, bounds: &Bounds) -> Option<Self> {
        let mut next = self.clone();
        match event {
            Event::Start => next.command(bounds, start(bounds))?,
            Event::Look(replica) => next.pending[*replica] = Some(next.decide(*replica, bounds)?),
            Event::Perform(replica) => next.perform(*replica, bounds),
            Event::Crash(replica) => {
                next.pending[*replica] = None;
                next.unkind -= 1;
            }
            Event::RenewIssuer(replica) => {
                next.unkind -= 1;
                next.pending[*replica] = Some(Pending::Follow(next.store.facts.active_root()?.clone()));
            }
            Event::Follow(replica) => {
                next.pending[*replica] = Some(Pending::Follow(next.store.facts.active_root()?.clone()));
            }
            Event::Probe(passes) => {
                next.probed = if *passes { 1 } else { 2 };
                next.unkind -= u8::from(!passes);
            }
            Event::Abort => {
                next.aborts -= 1;
                next.command(bounds, Order::Abort)?;
            }
            Event::Exempt(number) => {
                next.exemptions -= 1;
                let exemption = Exemption {
                    subscriber: bounds.name(*number).to_owned(),
                    reason: "it is being repaired".to_owned(),
                    approver: "admin:alice".to_owned(),
                    expires_at: now().plus(60),
                };
                next.command(bounds, Order::Exempt(exemption))?;
            }
            Event::AcceptLoss => {
                let loss = next.loss(bounds)?;
                next.command(bounds, Order::Advance { accept: Some(Consent::to(loss.digest)) })?;
                Arc::make_mut(&mut next.store).given_up.extend(loss.subscribers);
            }
            Event::Deliver(number)
            | Event::Report(number)
            | Event::ReportArrives(number)
            | Event::ReportIsLost(number)
            | Event::Renew(number, _)
            | Event::RenewalAnswerIsLost(number, _)
            | Event::OlderExpire(number)
            | Event::Expire(number)
            | Event::Join(number, _)
            | Event::Leave(number)
            | Event::Return(number) => {
                let store = Arc::clone(&next.store);
                next.unkind -= u8::from(Sub::is_unkind(event));
                next.subs[*number].meets(event, &store)?;
            }
        }
        next.forget_what_comes_to_nothing(bounds);
        Some(next)
    }

    /// What a replica is still about to do, and what will be a conflict, is the same as nothing.
    fn forget_what_comes_to_nothing(&mut self, bounds: &Bounds) {
        let store = Arc::clone(&self.store);
        let blindly = bounds.broken == Some(Broken::FollowsBlindly);
        for (replica, pending) in self.pending.iter_mut().enumerate() {
            let ring = &store.rings[replica.min(bounds.rings - 1)];
            let comes_to_nothing = match pending {
                None => false,
                Some(Pending::Perform(_, Effect::MakeKey { root, .. })) => ring.contains_key(root),
                Some(Pending::Perform(_, Effect::DestroyKey { root, .. })) => !ring.contains_key(root),
                Some(Pending::Move(seen, _) | Pending::Perform(seen, _)) => *seen != store.seen(),
                Some(Pending::Follow(root)) => store.facts.active_root() != Some(&*root) && !blindly,
            };
            if comes_to_nothing {
                *pending = None;
            }
        }
    }

    /// Whether it has ended, and nobody is about to do anything.
    fn is_over(&self) -> bool {
        let ended = self.store.rotation.as_ref().filter(|it| it.outcome.is_some());
        let swept = ended.and_then(Rotation::dead).is_some_and(|it| !self.store.has_key(it));
        swept && self.pending.iter().all(Option::is_none)
    }

    pub(crate) fn decide(&self, replica: usize, bounds: &Bounds) -> Option<Pending> {
        let seen = self.store.seen();
        let Step { moved, effects } = self.look(replica, bounds);
        if let Some(moved) = moved {
            return Some(Pending::Move(seen, moved));
        }
        let idle = |it: &Effect| matches!(it, Effect::OrderRenewals { .. } | Effect::WakeAt(_));
        let mut effect = effects.into_iter().find(|it| !idle(it))?;
        if bounds.broken == Some(Broken::CarriesLate)
            && let (Effect::Carry { reason, .. }, Some(rotation)) = (&effect, &self.store.rotation)
            && self.store.facts.active_root() != Some(rotation.signs())
        {
            effect = Effect::Activate { root: rotation.signs().clone(), reason: *reason };
        }
        Some(Pending::Perform(seen, effect))
    }

    /// A conflict leaves everything as it is: the replica looks again.
    fn perform(&mut self, replica: usize, bounds: &Bounds) {
        let pending = self.pending[replica].take();
        let end = Timestamp::from_unix(ROOT_END);
        let outcome = match pending {
            None => Ok(()),
            Some(Pending::Move(seen, next)) => {
                let begins = self.store.rotation.as_ref().is_some_and(|it| it.phase == Phase::Distributing)
                    && matches!(next.phase, Phase::Canary | Phase::Active)
                    && next.heading == Heading::Forward;
                // What truly is, not what the machine was told.
                let passed = begins && self.has_passed(&next, bounds);
                let (store, root) = (Arc::make_mut(&mut self.store), next.new.clone());
                let outcome = store.store(&seen, plain(*next));
                if passed && outcome.is_ok() {
                    store.passed.insert(root);
                }
                outcome
            }
            Some(Pending::Perform(seen, Effect::SelfTest { .. })) if seen == self.store.seen() => {
                let store = Arc::make_mut(&mut self.store);
                let name = seen.map(|(name, _)| name).unwrap();
                let input = Input::SelfTested { rotation: &name, verdict: SelfTest::Passed };
                let moved = step(store.rotation.as_ref(), input, now()).unwrap().moved;
                moved.map_or(Ok(()), |moved| store.store(&store.seen(), *moved))
            }
            Some(Pending::Perform(seen, effect)) => {
                let store = Arc::make_mut(&mut self.store);
                store.perform(replica, &seen, &effect, now(), bounds.broken)
            }
            Some(Pending::Follow(root)) => {
                Arc::make_mut(&mut self.store).follow(replica, &root, now(), end, bounds.broken)
            }
        };
        // Somebody else was faster: nothing happened.
        drop(outcome);
    }

    /// Whether everybody who is to be waited for has the new root.
    fn has_passed(&self, rotation: &Rotation, bounds: &Bounds) -> bool {
        let excused = |name| rotation.exempts(name, now()) || self.store.given_up.contains(name);
        // Those out of reach when it was decided are not waited for then; they may be back by now.
        let compromised = bounds.mode == Mode::Compromised;
        self.subs.iter().enumerate().all(|(number, sub)| {
            let has = sub.leaf.is_none() || sub.trusts.contains(&rotation.new);
            has || compromised || excused(bounds.name(number))
        })
    }

    fn command(&mut self, bounds: &Bounds, order: Order) -> Option<()> {
        let mut world = self.world(0, bounds);
        let mut told = self.store.rotation.clone();
        Broken::forgives(bounds.broken, &mut world, told.as_mut());
        let seen = told.as_ref().map(|it| (&it.name, it.version));
        let input = Input::Command { by: "admin:alice", seen, order, world: &world };
        let moved = step(told.as_ref(), input, now()).ok()?.moved?;
        let passed = self.phase() == Phase::Distributing
            && moved.phase != Phase::Distributing
            && moved.heading == Heading::Forward;
        let store = Arc::make_mut(&mut self.store);
        let seen = store.seen();
        if passed {
            store.passed.insert(moved.new.clone());
        }
        store.store(&seen, plain(*moved)).ok()
    }

    fn loss(&self, bounds: &Bounds) -> Option<Loss> {
        gate::of(self.store.rotation.as_ref()?, &self.world(0, bounds), now()).loss()
    }

    /// Asks every invariant, or the one that is chosen; `asked` counts how often one had something to say.
    pub(crate) fn check(&self, bounds: &Bounds, asked: &mut BTreeMap<Law, usize>) -> Found {
        let end = Timestamp::from_unix(ROOT_END);
        let present =
            self.subs.iter().enumerate().filter_map(|(at, sub)| Some((sub, at, sub.leaf.as_ref()?)));
        let leaves: Vec<Leaf> = present
            .clone()
            .map(|(_, at, leaf)| Leaf {
                holder: bounds.name(at).to_owned(),
                serial: 0,
                not_after: now().plus(3_600),
                root: leaf.root.clone(),
                reaches: leaf.reaches.iter().map(|it| (it.clone(), end)).collect(),
                chain_ends: vec![end],
            })
            .collect();
        let verifiers: Vec<Verifier> = present
            .map(|(sub, at, _)| Verifier {
                name: bounds.name(at).to_owned(),
                trusts: sub.trusts.clone(),
                sequence: sub.sequence,
                clock: now(),
            })
            .collect();
        let (rotation, facts) = (self.store.rotation.as_ref(), &self.store.facts);
        let mut ask = |law: Law, says_something: bool, verdict: &dyn Fn() -> invariants::Verdict| {
            if bounds.only.is_some_and(|only| only != law) || !says_something {
                return Ok(());
            }
            *asked.entry(law).or_default() += 1;
            verdict().of(law)
        };
        ask(Law::I1, !leaves.is_empty(), &|| {
            invariants::every_live_leaf_reaches_an_unexpired_root_in_every_live_subscribers_bundle(
                &leaves,
                &verifiers,
                &self.store.excused(),
            )
        })?;
        ask(Law::I2, !leaves.is_empty(), &|| {
            invariants::nothing_signs_before_its_root_passed_distributing(&leaves, &self.store.passed)
        })?;
        ask(Law::I3, true, &|| {
            let active = facts.roots.values().filter(|it| it.active).map(|_| "root");
            let issuers = facts.issuers.iter().filter(|it| it.active).map(|it| it.replica.as_str());
            invariants::at_most_one_authority_of_a_kind_is_active(active.chain(issuers))
        })?;
        ask(Law::I7, !self.store.tainted.is_empty(), &|| {
            invariants::a_tainted_authority_never_returns(&self.store.tainted, facts.active_root())
        })?;
        ask(Law::I8, !self.store.made.is_empty(), &|| {
            let made = self.store.made.iter().map(|(rotation, root, key)| (rotation, (root, *key)));
            invariants::two_replicas_never_both_make_a_key_for_one_rotation(made)
        })?;
        let ended = rotation.filter(|it| it.outcome.is_some());
        ask(Law::I10, ended.is_some(), &|| {
            let (before, now) = (&self.store.before, self.store.anchors());
            ended.map_or(Ok(()), |it| invariants::abort_restores_trust_byte_for_byte(it, before, &now))
        })
    }

    pub(crate) fn fingerprint(&self) -> u128 {
        let mut halves = [0u64; 2];
        for (salt, half) in halves.iter_mut().enumerate() {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            self.hash(&mut hasher);
            *half = hasher.finish();
        }
        u128::from(halves[0]) << 64 | u128::from(halves[1])
    }
}

/// An agent as the store knows it.
fn agent(name: &str, sub: &Sub) -> Subscriber {
    let far = now().plus(3_600);
    let roots: BTreeSet<&AuthorityId> = sub.recorded.iter().map(|(root, _)| root).collect();
    let presents = |root: &AuthorityId| Presented { root: root.clone(), count: 1, until: far };
    let held = |(sequence, digest)| Held { sequence, digest: Some(digest), at: now() };
    Subscriber {
        name: name.to_owned(),
        kind: SubscriberKind::Agent,
        cluster: name.split('/').next().unwrap_or_default().to_owned(),
        holds: sub.acknowledged.map(held),
        presents: roots.into_iter().map(presents).collect(),
        until: Some(far),
        last_contact: None,
        connected: !sub.away,
        behind: Vec::new(),
        workloads: 1,
    }
}

/// The record without its memory of the way, which makes no difference to what comes.
fn plain(rotation: Rotation) -> Rotation {
    Rotation { last: None, accepted: None, ..rotation }
}

fn start(bounds: &Bounds) -> Order {
    let share = canary::Share::Percent(5);
    Order::Start {
        name: "rotation-1".parse().unwrap(),
        new: id("new"),
        mode: bounds.mode,
        choices: Choices {
            canary: bounds.canary.then_some(Canary { share, window_seconds: 0 }),
            soak_seconds: 0,
            settle_seconds: 0,
            unbridged: !bounds.bridge,
            ..Choices::default()
        },
        reason: String::new(),
    }
}
