//! The model check: every order of events that two replicas, two clusters and their subscribers can meet, breadth first.
//!
//! What can happen: a replica looks, and performs what it decided, then or much later, or never (a crash between any two
//! effects, a lost answer of the store); it takes over from the other at any moment. Bundles arrive late or not at all,
//! acknowledgements and reports are lost or come late, answers to renewals are lost; subscribers expire and join;
//! administrators start, abort and exempt at any moment.
//! What is left out: time (soak and settling are 0; the simulation has them), and reports that arrive after a later
//! renewal of the same subscriber (`settle_seconds` is there for them).
//! Not here: the search itself, and its bounds (`search`).

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rhizome_core::rotation::evidence::{
    Direction, Held, Presented, Probe, Subscriber, SubscriberKind, World,
};
use rhizome_core::rotation::invariants::{self, Leaf, Verdict, Verifier};
use rhizome_core::rotation::{
    Canary, Choices, Effect, Exemption, Heading, Input, Mode, Order, Phase, Rotation, SelfTest, Step, canary,
    step,
};
use rhizome_id::{AuthorityId, Timestamp};

use crate::store::{Seen, Store, id};

const NOW: i64 = 2_000_000_000;
const NAMES: [&str; 3] = ["agent:a/1", "agent:b/1", "client:1"];

fn now() -> Timestamp {
    Timestamp::from_unix(NOW)
}

/// What a replica is about to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pending {
    Move(Seen, Box<Rotation>),
    Perform(Seen, Effect),
    Follow(AuthorityId),
}

/// A subscriber as it is, and as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sub {
    /// The root of its certificate, and every root that its chain reaches; `None`: it is not there.
    leaf: Option<(AuthorityId, BTreeSet<AuthorityId>)>,
    sequence: u64,
    trusts: BTreeSet<AuthorityId>,
    /// Known: the bundle it acknowledged, and the roots of certificates that the ledger does not know to be gone.
    acknowledged: Option<u64>,
    recorded: BTreeSet<AuthorityId>,
    /// An acknowledgement with its report, on its way.
    on_its_way: Option<(u64, AuthorityId)>,
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
    Expire(usize),
    Join(usize, usize),
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
            Self::Expire(_) => "expire",
            Self::Join(..) => "join",
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
    pub(crate) depth: usize,
    pub(crate) states: usize,
    pub(crate) broken: Option<Broken>,
}

/// Gates broken on purpose: what the machine is told is not what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Everybody has acknowledged, whether or not they did.
    Acknowledgements,
    /// Nobody presents anything old.
    Presented,
}

impl Model {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let mut store = Store::founded("old", 2, now());
        if !bounds.bridge {
            store.facts.keys.clear();
        }
        let old: BTreeSet<AuthorityId> = [id("old")].into();
        let sub = Sub {
            leaf: Some((id("old"), old.clone())),
            sequence: 1,
            trusts: old.clone(),
            acknowledged: Some(1),
            recorded: old,
            on_its_way: None,
        };
        Self {
            store: Arc::new(store),
            pending: [None, None],
            subs: vec![sub; bounds.subs],
            unkind: bounds.unkind,
            aborts: bounds.aborts,
            exemptions: bounds.exemptions,
            probed: 0,
        }
    }

    /// What the machine is shown.
    fn world(&self, broken: Option<Broken>) -> World {
        let far = now().plus(3_600);
        let bundle = &self.store.facts.bundle;
        let subscribers = self.subs.iter().enumerate().filter(|(_, sub)| !sub.recorded.is_empty());
        let subscribers = subscribers.map(|(number, sub)| {
            let acknowledged = match broken {
                Some(Broken::Acknowledgements) => Some(bundle.sequence),
                _ => sub.acknowledged,
            };
            let presents = |root: &AuthorityId| Presented { root: root.clone(), count: 1, until: far };
            let shown = sub.recorded.iter().filter(|_| broken != Some(Broken::Presented));
            Subscriber {
                name: NAMES[number].to_owned(),
                kind: SubscriberKind::Agent,
                cluster: NAMES[number].to_owned(),
                holds: acknowledged.map(|sequence| Held { sequence, digest: None, at: now() }),
                presents: shown.map(presents).collect(),
                until: Some(far),
                last_contact: None,
                connected: sub.on_its_way.is_some() || sub.leaf.is_some(),
                behind: Vec::new(),
                workloads: 1,
            }
        });
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
        World { facts: self.store.facts.clone(), subscribers: subscribers.collect(), probes }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.store.rotation.as_ref().map_or(Phase::Stable, |it| it.phase)
    }

    fn look(&self, broken: Option<Broken>) -> Step {
        step(self.store.rotation.as_ref(), Input::Look(&self.world(broken)), now()).unwrap()
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
        let idle = |it: &Effect| matches!(it, Effect::OrderRenewals { .. } | Effect::WakeAt(_));
        let looks = self.pending.iter().any(Option::is_none) && {
            let step = self.look(bounds.broken);
            step.moved.is_some() || !step.effects.iter().all(idle)
        };
        for (replica, pending) in self.pending.iter().enumerate() {
            if pending.is_some() {
                events.push(Event::Perform(replica));
                if self.unkind > 0 {
                    events.push(Event::Crash(replica));
                }
                continue;
            }
            if looks {
                events.push(Event::Look(replica));
            }
            if self.store.issues_under(replica) != active && active.is_some() {
                events.push(Event::Follow(replica));
            } else if self.unkind > 0 && self.phase() != Phase::Stable {
                events.push(Event::RenewIssuer(replica));
            }
        }
        for (number, sub) in self.subs.iter().enumerate() {
            self.events_of(number, sub, &mut events);
        }
        let rotation = self.store.rotation.as_ref();
        if rotation.is_some_and(|it| it.phase != Phase::Stable) {
            if self.aborts > 0 {
                events.push(Event::Abort);
            }
            if self.phase() == Phase::Canary && self.probed == 0 {
                events.push(Event::Probe(true));
                if self.unkind > 0 {
                    events.push(Event::Probe(false));
                }
            }
            if bounds.mode == Mode::Compromised && matches!(self.phase(), Phase::Distributing | Phase::Active)
            {
                events.push(Event::AcceptLoss);
            }
        }
        events
    }

    fn events_of(&self, number: usize, sub: &Sub, events: &mut Vec<Event>) {
        let rotating = self.phase() != Phase::Stable;
        if let Some((root, reaches)) = &sub.leaf {
            if sub.sequence < self.store.facts.bundle.sequence {
                events.push(Event::Deliver(number));
            }
            match &sub.on_its_way {
                None if sub.acknowledged != Some(sub.sequence) || sub.recorded.len() > 1 => {
                    events.push(Event::Report(number));
                }
                None => {}
                Some(_) => {
                    events.push(Event::ReportArrives(number));
                    if self.unkind > 0 {
                        events.push(Event::ReportIsLost(number));
                    }
                }
            }
            for replica in 0..2 {
                let other =
                    |it: &AuthorityId| it != root || self.store.reaches(it).into_keys().ne(reaches.clone());
                if self.store.issues_under(replica).is_some_and(other) {
                    events.push(Event::Renew(number, replica));
                    if self.unkind > 0 {
                        events.push(Event::RenewalAnswerIsLost(number, replica));
                    }
                }
            }
            if self.unkind > 0 && rotating {
                events.push(Event::Expire(number));
            }
            if self.exemptions > 0 && rotating {
                events.push(Event::Exempt(number));
            }
        } else {
            events.extend((0..2).map(|replica| Event::Join(number, replica)));
        }
    }

    /// The model after `event`; `None` when nothing came of it.
    pub(crate) fn after(&self, event: &Event, bounds: &Bounds) -> Option<Self> {
        let mut next = self.clone();
        match event {
            Event::Start => next.command(bounds, start(bounds))?,
            Event::Look(replica) => next.pending[*replica] = Some(next.decide(bounds)?),
            Event::Perform(replica) => next.perform(*replica),
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
                    subscriber: NAMES[*number].to_owned(),
                    reason: "it is being repaired".to_owned(),
                    approver: "admin:alice".to_owned(),
                    expires_at: now().plus(60),
                };
                next.command(bounds, Order::Exempt(exemption))?;
            }
            Event::AcceptLoss => next.accept_loss(bounds)?,
            Event::Deliver(_)
            | Event::Report(_)
            | Event::ReportArrives(_)
            | Event::ReportIsLost(_)
            | Event::Renew(..)
            | Event::RenewalAnswerIsLost(..)
            | Event::Expire(_)
            | Event::Join(..) => next.subscriber(event)?,
        }
        next.forget_what_comes_to_nothing();
        Some(next)
    }

    /// What a replica is still about to do, and what will be a conflict, is the same as nothing.
    fn forget_what_comes_to_nothing(&mut self) {
        let store = Arc::clone(&self.store);
        for pending in &mut self.pending {
            let comes_to_nothing = match pending {
                None => false,
                Some(Pending::Perform(_, Effect::MakeKey { root, .. })) => store.facts.keys.contains(root),
                Some(Pending::Perform(_, Effect::DestroyKey { root, .. })) => {
                    !store.facts.keys.contains(root)
                }
                Some(Pending::Move(seen, _) | Pending::Perform(seen, _)) => *seen != store.seen(),
                Some(Pending::Follow(root)) => store.facts.active_root() != Some(&*root),
            };
            if comes_to_nothing {
                *pending = None;
            }
        }
    }

    /// Whether it has ended, and nobody is about to do anything.
    fn is_over(&self) -> bool {
        let ended = self.store.rotation.as_ref().filter(|it| it.outcome.is_some());
        let swept = ended.and_then(Rotation::dead).is_some_and(|it| !self.store.facts.keys.contains(it));
        swept && self.pending.iter().all(Option::is_none)
    }

    pub(crate) fn decide(&self, bounds: &Bounds) -> Option<Pending> {
        let seen = self.store.seen();
        let Step { moved, effects } = self.look(bounds.broken);
        if let Some(moved) = moved {
            return Some(Pending::Move(seen, moved));
        }
        let effect = effects.into_iter().next()?;
        Some(Pending::Perform(seen, effect))
    }

    /// A conflict leaves everything as it is: the replica looks again.
    fn perform(&mut self, replica: usize) {
        let pending = self.pending[replica].take();
        let outcome = match pending {
            None => Ok(()),
            Some(Pending::Move(seen, next)) => {
                let begins = self.store.rotation.as_ref().is_some_and(|it| it.phase == Phase::Distributing)
                    && matches!(next.phase, Phase::Canary | Phase::Active)
                    && next.heading == Heading::Forward;
                let given_up = self.store.given_up.clone();
                let excused =
                    |number: usize| next.exempts(NAMES[number], now()) || given_up.contains(NAMES[number]);
                let have = |(number, sub): (usize, &Sub)| {
                    sub.leaf.is_none() || sub.trusts.contains(&next.new) || excused(number)
                };
                // What truly is, not what the machine was told.
                let passed = begins && self.subs.iter().enumerate().all(have);
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
                Arc::make_mut(&mut self.store).perform(&seen, &effect, now())
            }
            Some(Pending::Follow(root)) => Arc::make_mut(&mut self.store).follow(replica, &root, now()),
        };
        // Somebody else was faster: nothing happened.
        drop(outcome);
    }

    fn command(&mut self, bounds: &Bounds, order: Order) -> Option<()> {
        let world = self.world(bounds.broken);
        let rotation = self.store.rotation.as_ref();
        let seen = rotation.map(|it| (&it.name, it.version));
        let input = Input::Command { by: "admin:alice", seen, order, world: &world };
        let moved = step(rotation, input, now()).ok()?.moved?;
        let store = Arc::make_mut(&mut self.store);
        let seen = store.seen();
        store.store(&seen, plain(*moved)).ok()
    }

    fn accept_loss(&mut self, bounds: &Bounds) -> Option<()> {
        let world = self.world(bounds.broken);
        let gate = rhizome_core::rotation::gate::of(self.store.rotation.as_ref()?, &world, now());
        let loss = gate.loss()?;
        self.command(bounds, Order::Advance { accept: Some(loss.digest) })?;
        Arc::make_mut(&mut self.store).given_up.extend(loss.subscribers);
        Some(())
    }

    fn subscriber(&mut self, event: &Event) -> Option<()> {
        let store = Arc::clone(&self.store);
        let bundle = &store.facts.bundle;
        let leaf = |replica: usize| {
            let root = store.issues_under(replica)?.clone();
            let reaches = store.reaches(&root).into_keys().collect();
            Some((root, reaches))
        };
        match event {
            Event::Deliver(number) => self.subs[*number].takes(bundle.sequence, &bundle.anchors),
            Event::Report(number) => {
                let sub = &mut self.subs[*number];
                sub.on_its_way = sub.leaf.as_ref().map(|(root, _)| (sub.sequence, root.clone()));
            }
            Event::ReportArrives(number) => {
                let sub = &mut self.subs[*number];
                let (sequence, root) = sub.on_its_way.take()?;
                sub.acknowledged = Some(sequence);
                sub.recorded = [root].into();
            }
            Event::ReportIsLost(number) => {
                self.subs[*number].on_its_way = None;
                self.unkind -= 1;
            }
            Event::Renew(number, replica) => {
                let (leaf, sub) = (leaf(*replica)?, &mut self.subs[*number]);
                sub.recorded.insert(leaf.0.clone());
                sub.leaf = Some(leaf);
                sub.on_its_way = None;
                sub.takes(bundle.sequence, &bundle.anchors);
            }
            Event::RenewalAnswerIsLost(number, replica) => {
                let (leaf, sub) = (leaf(*replica)?, &mut self.subs[*number]);
                sub.recorded.insert(leaf.0);
                sub.on_its_way = None;
                self.unkind -= 1;
            }
            Event::Expire(number) => {
                let sub = &mut self.subs[*number];
                sub.leaf = None;
                sub.recorded.clear();
                sub.on_its_way = None;
                self.unkind -= 1;
            }
            Event::Join(number, replica) => {
                let (leaf, sub) = (leaf(*replica)?, &mut self.subs[*number]);
                sub.recorded = [leaf.0.clone()].into();
                sub.leaf = Some(leaf);
                // In one answer.
                sub.sequence = bundle.sequence;
                sub.trusts.clone_from(&bundle.anchors);
                sub.acknowledged = None;
            }
            _ => return None,
        }
        Some(())
    }

    pub(crate) fn check(&self) -> Verdict {
        let end = Timestamp::from_unix(crate::store::ROOT_END);
        let present =
            self.subs.iter().zip(NAMES).filter_map(|(sub, name)| Some((sub, name, sub.leaf.as_ref()?)));
        let leaves: Vec<Leaf> = present
            .clone()
            .map(|(_, name, (root, reaches))| Leaf {
                holder: name.to_owned(),
                serial: 0,
                not_after: now().plus(3_600),
                root: root.clone(),
                reaches: reaches.iter().map(|it| (it.clone(), end)).collect(),
                chain_ends: vec![end],
            })
            .collect();
        let verifiers: Vec<Verifier> = present
            .map(|(sub, name, _)| Verifier {
                name: name.to_owned(),
                trusts: sub.trusts.clone(),
                sequence: sub.sequence,
                clock: now(),
            })
            .collect();
        let rotation = self.store.rotation.as_ref();
        let excused = self.store.excused();
        invariants::every_live_leaf_reaches_an_unexpired_root_in_every_live_subscribers_bundle(
            &leaves, &verifiers, &excused,
        )?;
        let facts = &self.store.facts;
        invariants::nothing_signs_before_its_root_passed_distributing(&leaves, &self.store.passed)?;
        let active = facts.roots.iter().filter(|(_, it)| it.active).map(|_| "root");
        let issuers = facts.issuers.iter().filter(|it| it.active).map(|it| it.replica.as_str());
        invariants::at_most_one_authority_of_a_kind_is_active(active.chain(issuers))?;
        invariants::a_tainted_authority_never_returns(&self.store.tainted, facts.active_root())?;
        let made = self.store.made.iter().map(|(rotation, root)| (rotation, root));
        invariants::two_replicas_never_both_make_a_key_for_one_rotation(made)?;
        if let Some(rotation) = rotation {
            invariants::abort_restores_trust_byte_for_byte(
                rotation,
                &rotation.before,
                &facts.bundle.anchors,
            )?;
        }
        Ok(())
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

impl Sub {
    fn takes(&mut self, sequence: u64, anchors: &BTreeSet<AuthorityId>) {
        if sequence > self.sequence {
            self.sequence = sequence;
            self.trusts.clone_from(anchors);
        }
    }
}

/// The record without its memory of the way, which makes no difference to what comes.
fn plain(rotation: Rotation) -> Rotation {
    Rotation { last: None, ..rotation }
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
    }
}
