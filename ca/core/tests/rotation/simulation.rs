//! The simulation: lists of events drawn from a seed, over servers, a store that fails, agents, partitions, clocks that are
//! off by up to ten minutes, lost requests and lost answers, backups put back, joiners. The invariants are asked after every
//! event; at the end the faults stop, and the rotation must come to its end.
//!
//! Failures that it knows: a server is cut off from the store, or crashes with something decided; a commit fails, or its
//! outcome is unknown; an agent is cut off; a request or an answer is lost; a backup of this rotation is put back by
//! `rhizome restore`; an issuance takes up to half a minute, by an issuer that was replaced meanwhile.
//! What is no failure here: a backup from before the rotation, or from before a key was destroyed (the roots in it are
//! not those of the world any more; `rhizome restore` says so); a server that acts on a reading older than twenty seconds
//! (it reads again before it signs); reports that take longer than a minute.
//! Not here: running many seeds, and what they covered (`seeds`).

use std::collections::{BTreeMap, BTreeSet};

use rhizome_core::rotation::evidence::{
    Direction, Held, Presented, Probe, Subscriber, SubscriberKind, World,
};
use rhizome_core::rotation::invariants::{self, Leaf, Verdict, Verifier};
use rhizome_core::rotation::{
    Canary, Choices, Effect, Exemption, Heading, Input, Mode, Order, Phase, Rotation, SelfTest, canary, step,
};
use rhizome_id::{AuthorityId, Timestamp};

use crate::parts::{
    AGENTS, Agent, BEGIN, Db, Dice, Entry, FLIGHT, FRESH, Flight, LIFE, Pending, SERVERS, SKEW, Server, at,
    excuses,
};
use crate::store::{ROOT_END, Seen, Store, digest, id};

pub(crate) struct Sim {
    dice: Dice,
    pub(crate) now: i64,
    pub(crate) db: Db,
    backups: Vec<Db>,
    servers: Vec<Server>,
    agents: Vec<Agent>,
    flights: Vec<Flight>,
    down_until: i64,
    serials: Vec<u64>,
    healed: bool,
    verbose: bool,
    pub(crate) covered: BTreeMap<(Phase, Heading), BTreeMap<&'static str, usize>>,
}

impl Sim {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1));
        let store = Store::founded("old", SERVERS, at(BEGIN));
        let servers = (0..SERVERS).map(|number| Server {
            skew: if number == 2 { dice.between(-SKEW, SKEW) } else { dice.between(-5, 5) },
            view: None,
            pending: None,
            cut_off_until: 0,
        });
        let servers: Vec<_> = servers.collect();
        let agents = (0..AGENTS).map(|number| Agent {
            name: if number == 5 { "client:5".to_owned() } else { format!("agent:{number}") },
            cluster: if number % 2 == 0 { "a" } else { "b" },
            kind: if number == 5 { SubscriberKind::OneShot } else { SubscriberKind::Agent },
            skew: dice.between(-SKEW, SKEW),
            leaf: None,
            sequence: 0,
            trusts: BTreeSet::new(),
            cut_off_until: 0,
        });
        let agents: Vec<_> = agents.collect();
        let (acknowledged, reports) = (BTreeMap::new(), BTreeMap::new());
        Self {
            dice,
            now: BEGIN,
            db: Db { store, ledger: Vec::new(), acknowledged, reports },
            backups: Vec::new(),
            servers,
            agents,
            flights: Vec::new(),
            down_until: 0,
            serials: Vec::new(),
            healed: false,
            verbose,
            covered: BTreeMap::new(),
        }
    }

    fn clock(&self, server: usize) -> Timestamp {
        at(self.now + self.servers[server].skew)
    }

    fn agent_clock(&self, agent: usize) -> Timestamp {
        at(self.now + self.agents[agent].skew)
    }

    fn place(&self) -> (Phase, Heading) {
        self.db.store.rotation.as_ref().map_or((Phase::Stable, Heading::Forward), |it| (it.phase, it.heading))
    }

    fn store_answers(&self, server: usize) -> bool {
        self.now >= self.down_until && self.now >= self.servers[server].cut_off_until
    }

    /// Reads the store anew, if it answers.
    fn refresh(&mut self, server: usize) -> bool {
        if !self.store_answers(server) {
            return false;
        }
        self.servers[server].view = Some((self.db.store.clone(), self.now));
        true
    }

    /// One random event.
    pub(crate) fn event(&mut self) -> &'static str {
        let (server, agent) = (self.dice.roll(SERVERS), self.dice.roll(AGENTS));
        match self.dice.roll(100) {
            0..12 => {
                self.now += self.dice.between(1, 120);
                "time passes"
            }
            12..40 => self.act(server),
            40..44 => self.decide(server),
            44..64 => self.contact(agent, server),
            64..78 => self.ask(agent, server),
            78..90 => self.land(),
            90 => {
                self.servers[server].cut_off_until = self.now + self.dice.between(1, 900);
                "a server is cut off"
            }
            91 => {
                self.down_until = self.now + self.dice.between(1, 200);
                "the store fails"
            }
            92 => {
                self.agents[agent].cut_off_until = self.now + self.dice.between(1, 5_000);
                "an agent is cut off"
            }
            93 => self.crash(server),
            94 => {
                self.backups.push(self.db.clone());
                "backup"
            }
            95 => self.restore(),
            _ => self.administer(agent, server),
        }
    }

    /// A server looks, and performs at once what it decides; or performs what it decided before.
    fn act(&mut self, server: usize) -> &'static str {
        if self.servers[server].pending.is_none() {
            let what = self.decide(server);
            if self.servers[server].pending.is_none() {
                return what;
            }
        }
        self.perform(server)
    }

    fn decide(&mut self, server: usize) -> &'static str {
        if self.servers[server].pending.is_some() || !self.refresh(server) {
            return "nothing to decide";
        }
        let (store, _) = self.servers[server].view.clone().unwrap();
        let active = store.facts.active_root().cloned();
        if let Some(root) = active.filter(|it| store.issues_under(server) != Some(it)) {
            self.servers[server].pending = Some(Pending::Follow(root));
            return "follow";
        }
        let world = self.world(&store, self.clock(server));
        let found = step(store.rotation.as_ref(), Input::Look(&world), self.clock(server)).unwrap();
        let idle = |it: &Effect| matches!(it, Effect::OrderRenewals { .. } | Effect::WakeAt(_));
        self.servers[server].pending = match found.moved {
            Some(moved) => Some(Pending::Move(store.seen(), moved)),
            None => found
                .effects
                .into_iter()
                .find(|it| !idle(it))
                .map(|effect| Pending::Perform(store.seen(), effect)),
        };
        "look"
    }

    fn perform(&mut self, server: usize) -> &'static str {
        let Some(pending) = self.servers[server].pending.take() else { return "nothing to perform" };
        // The key ring needs no store.
        let is_key =
            matches!(&pending, Pending::Perform(_, Effect::MakeKey { .. } | Effect::DestroyKey { .. }));
        if !is_key && !self.store_answers(server) {
            return "a commit fails";
        }
        let unknown = self.dice.one_in(12) && !self.healed;
        if unknown && self.dice.one_in(2) {
            self.servers[server].view = None;
            return "a commit fails, unknown";
        }
        let now = self.clock(server);
        let outcome = match pending {
            Pending::Move(seen, next) => self.store(&seen, *next),
            Pending::Perform(seen, Effect::SelfTest { .. }) => {
                let input =
                    Input::SelfTested { rotation: &seen.as_ref().unwrap().0, verdict: SelfTest::Passed };
                let found = step(self.db.store.rotation.as_ref(), input, now).unwrap();
                found.moved.map_or(Ok(()), |next| self.db.store.store(&seen, *next))
            }
            Pending::Perform(seen, effect) => self.db.store.perform(&seen, &effect, now),
            Pending::Follow(root) => self.db.store.follow(server, &root, now),
        };
        self.servers[server].view = None;
        match (outcome, unknown) {
            (Err(_), _) => "conflict",
            (Ok(()), true) => "performed, unknown",
            (Ok(()), false) => "performed",
        }
    }

    /// Stores a move, and notes whether every live agent truly holds the new root when `distributing` is left.
    fn store(&mut self, seen: &Seen, next: Rotation) -> Result<(), crate::store::Conflict> {
        let leaves = self.place() == (Phase::Distributing, Heading::Forward)
            && matches!(next.phase, Phase::Canary | Phase::Active);
        let have = |number: usize| {
            let agent = &self.agents[number];
            !self.presents(number) || agent.trusts.contains(&next.new) || excuses(&next, &agent.name)
        };
        let passed = leaves && (0..AGENTS).all(have);
        let root = next.new.clone();
        let outcome = self.db.store.store(seen, next);
        if passed && outcome.is_ok() {
            self.db.store.passed.insert(root);
        }
        outcome
    }

    fn presents(&self, agent: usize) -> bool {
        self.agents[agent].leaf.as_ref().is_some_and(|leaf| leaf.not_after >= self.agent_clock(agent))
    }

    /// What a server makes of ledger, acknowledgements and reports.
    fn world(&self, store: &Store, now: Timestamp) -> World {
        let mut subscribers = Vec::new();
        for (number, agent) in self.agents.iter().enumerate() {
            let entries = || self.db.ledger.iter().filter(|it| it.holder == number);
            let Some(until) = entries().map(|it| it.not_after).max() else { continue };
            let report = self.db.reports.get(&number);
            let superseded = |entry: &&Entry| {
                report.is_some_and(|(roots, at)| {
                    at.since(entry.at) >= 2 * SKEW + 60 && !roots.contains(&entry.root)
                })
            };
            let mut presents: BTreeMap<&AuthorityId, Timestamp> = BTreeMap::new();
            for entry in entries().filter(|it| !superseded(it)) {
                let until = presents.entry(&entry.root).or_insert(entry.not_after);
                *until = entry.not_after.max(*until);
            }
            let presents = presents.into_iter();
            subscribers.push(Subscriber {
                name: agent.name.clone(),
                kind: agent.kind,
                cluster: agent.cluster.to_owned(),
                holds: self.db.acknowledged.get(&number).cloned(),
                presents: presents
                    .map(|(root, until)| Presented { root: root.clone(), count: 1, until })
                    .collect(),
                until: Some(until),
                last_contact: None,
                connected: self.now >= agent.cut_off_until,
                behind: Vec::new(),
                workloads: 1,
            });
        }
        let probe = |direction| Probe { direction, at: now, failure: None };
        let probes = vec![probe(Direction::NewToOld), probe(Direction::OldToNew)];
        World { facts: store.facts.clone(), subscribers, probes }
    }

    /// An agent's stream: it says what it holds and serves, and is told the bundle.
    fn contact(&mut self, agent: usize, server: usize) -> &'static str {
        let there = self.presents(agent) && self.agents[agent].kind == SubscriberKind::Agent;
        if !there || self.now < self.agents[agent].cut_off_until || self.lost() {
            return "a stream says nothing";
        }
        if self.store_answers(server) {
            let it = &self.agents[agent];
            let digest = Some(digest(it.sequence, &it.trusts));
            let held = Held { sequence: it.sequence, digest, at: self.clock(server) };
            let roots = it.leaf.iter().map(|leaf| leaf.root.clone()).collect();
            self.db.acknowledged.insert(agent, held);
            self.db.reports.insert(agent, (roots, self.clock(server)));
        }
        if self.lost() || (self.servers[server].view.is_none() && !self.refresh(server)) {
            return "acknowledged, the answer is lost";
        }
        let bundle = &self.servers[server].view.as_ref().unwrap().0.facts.bundle;
        self.agents[agent].takes(bundle.sequence, &bundle.anchors);
        "acknowledged"
    }

    fn lost(&mut self) -> bool {
        self.dice.one_in(8) && !self.healed
    }

    /// An agent asks for a certificate; the server prepares it by what it read.
    pub(crate) fn ask(&mut self, agent: usize, server: usize) -> &'static str {
        if self.now < self.agents[agent].cut_off_until || self.lost() {
            return "a request is lost";
        }
        let stale = self.servers[server].view.as_ref().is_none_or(|(_, read)| self.now - read > FRESH);
        if stale && !self.refresh(server) {
            return "unavailable";
        }
        let (store, _) = self.servers[server].view.as_ref().unwrap();
        let taken = store.facts.canary.as_ref().filter(|_| agent == 0);
        let Some(root) = taken.or_else(|| store.issues_under(server)).cloned() else { return "no issuer" };
        let bundle = (store.facts.bundle.sequence, store.facts.bundle.anchors.clone());
        let reaches = store.reaches(&root);
        self.flights.push(Flight { server, agent, root, reaches, bundle, began: self.now });
        "asked"
    }

    /// An issuance comes to its end: written to the ledger, signed, answered.
    pub(crate) fn land(&mut self) -> &'static str {
        let now = self.now;
        self.flights.retain(|it| now - it.began <= FLIGHT);
        if self.flights.is_empty() {
            return "nothing under way";
        }
        let number = self.dice.roll(self.flights.len());
        let flight = self.flights.remove(number);
        if !self.store_answers(flight.server) {
            return "unavailable";
        }
        let at = self.clock(flight.server);
        let not_after = at.plus(LIFE);
        let serial = u64::try_from(self.serials.len()).unwrap();
        self.serials.push(serial);
        self.db.ledger.push(Entry { holder: flight.agent, root: flight.root.clone(), not_after, at });
        let agent = &mut self.agents[flight.agent];
        if agent.kind == SubscriberKind::OneShot {
            // Its evidence is what goes out with its newest certificate; an answer that is lost leaves it with the one
            // before, which the bundle's growth makes no worse.
            let digest = Some(digest(flight.bundle.0, &flight.bundle.1));
            self.db.acknowledged.insert(flight.agent, Held { sequence: flight.bundle.0, digest, at });
        }
        let lost = self.lost() && self.agents[flight.agent].kind == SubscriberKind::Agent;
        if lost {
            return "issued, the answer is lost";
        }
        let agent = &mut self.agents[flight.agent];
        agent.takes(flight.bundle.0, &flight.bundle.1);
        agent.leaf = Some(Leaf {
            holder: agent.name.clone(),
            serial,
            not_after,
            root: flight.root,
            reaches: flight.reaches,
            chain_ends: vec![Timestamp::from_unix(ROOT_END)],
        });
        "issued"
    }

    fn crash(&mut self, server: usize) -> &'static str {
        self.servers[server].pending = None;
        self.servers[server].view = None;
        self.flights.retain(|it| it.server != server);
        "a server crashes"
    }

    /// `rhizome restore`: every server is stopped, and starts with what the backup holds.
    fn restore(&mut self) -> &'static str {
        if self.backups.is_empty() {
            return "no backup";
        }
        let number = self.dice.roll(self.backups.len());
        let mut backup = self.backups[number].clone();
        let (then, today) = (&backup.store, &self.db.store);
        let name = |store: &Store| store.rotation.as_ref().map(|it| it.name.clone());
        let roots = |store: &Store| store.facts.roots.keys().cloned().collect::<BTreeSet<_>>();
        let same = name(then).is_some() && name(then) == name(today) && roots(then) == roots(today);
        let keys_there = roots(then).is_subset(&today.facts.keys);
        let under_way = |store: &Store| store.rotation.as_ref().is_some_and(|it| it.phase != Phase::Stable);
        if !same || !keys_there || roots(then).len() < 2 || !under_way(then) || !under_way(today) {
            return "no backup of these roots";
        }
        backup.store.facts.keys.clone_from(&today.facts.keys);
        backup.store.passed.extend(today.passed.clone());
        backup.store.made.extend(today.made.clone());
        backup.store.facts.restored = Some(at(self.now));
        let bundle = &mut backup.store.facts.bundle;
        bundle.sequence = (bundle.sequence + 1).max(u64::try_from(self.now).unwrap());
        bundle.digest = digest(bundle.sequence, &bundle.anchors);
        let (before, after) = (self.db.store.facts.bundle.sequence, bundle.sequence);
        if after <= before {
            return "restored twice in a second";
        }
        self.db = backup;
        for server in 0..SERVERS {
            self.crash(server);
        }
        // Before a server opens its doors it does what is due: the record says that it was restored, and old chains carry
        // their bridge, before anything is issued.
        self.down_until = 0;
        self.servers[0].cut_off_until = 0;
        loop {
            self.decide(0);
            match &self.servers[0].pending {
                None => break,
                // What was staged is distributed at once; otherwise no phase is left before the doors open.
                Some(Pending::Move(_, next))
                    if next.phase != self.place().0 && self.place().0 != Phase::Staged =>
                {
                    break;
                }
                Some(_) => self.perform(0),
            };
        }
        self.crash(0);
        "restored"
    }

    fn administer(&mut self, agent: usize, server: usize) -> &'static str {
        let order = match (self.place().0, self.dice.roll(12)) {
            (Phase::Stable, _) => {
                let rounds = self.db.store.made.len();
                if rounds >= 2 || self.db.ledger.len() < AGENTS {
                    return "nothing to administer";
                }
                let share = canary::Share::Percent(10);
                Order::Start {
                    name: format!("rotation-{rounds}").parse().unwrap(),
                    new: id(&format!("new{rounds}")),
                    mode: Mode::Planned,
                    choices: Choices {
                        canary: self.dice.one_in(2).then_some(Canary { share, window_seconds: 60 }),
                        soak_seconds: 300,
                        longest_seconds: LIFE,
                        ..Choices::default()
                    },
                }
            }
            (_, 0) => Order::Abort,
            (_, 1) => Order::Exempt(Exemption {
                subscriber: self.agents[agent].name.clone(),
                reason: "it is being repaired".to_owned(),
                approver: "admin:alice".to_owned(),
                expires_at: self.clock(server).plus(600),
            }),
            _ => return "nothing to administer",
        };
        if !self.refresh(server) {
            return "unavailable";
        }
        let what = match &order {
            Order::Start { .. } => "start",
            Order::Abort => "abort",
            Order::Exempt(_) | Order::Advance { .. } => "exempt",
        };
        let (store, _) = self.servers[server].view.clone().unwrap();
        let world = self.world(&store, self.clock(server));
        let seen = store.rotation.as_ref().map(|it| (&it.name, it.version));
        let input = Input::Command { by: "admin:alice", seen, order, world: &world };
        match step(store.rotation.as_ref(), input, self.clock(server)).map(|it| it.moved) {
            Ok(Some(next)) => match self.store(&store.seen(), *next) {
                Ok(()) => what,
                Err(_) => "conflict",
            },
            Ok(None) => "done already",
            Err(_) => "refused",
        }
    }

    fn check(&self, sequence_before: u64) -> Verdict {
        let presenting = (0..AGENTS).filter(|number| self.presents(*number));
        let leaves: Vec<Leaf> =
            presenting.clone().filter_map(|number| self.agents[number].leaf.clone()).collect();
        let verifiers = presenting.map(|number| Verifier {
            name: self.agents[number].name.clone(),
            trusts: self.agents[number].trusts.clone(),
            sequence: self.agents[number].sequence,
            clock: self.agent_clock(number),
        });
        let verifiers: Vec<Verifier> = verifiers.collect();
        let rotation = self.db.store.rotation.as_ref();
        let excused = self.db.store.excused();
        invariants::every_live_leaf_reaches_an_unexpired_root_in_every_live_subscribers_bundle(
            &leaves, &verifiers, &excused,
        )?;
        let facts = &self.db.store.facts;
        invariants::nothing_signs_before_its_root_passed_distributing(&leaves, &self.db.store.passed)?;
        let active = facts.roots.iter().filter(|(_, it)| it.active).map(|_| "root");
        let issuers = facts.issuers.iter().filter(|it| it.active).map(|it| it.replica.as_str());
        invariants::at_most_one_authority_of_a_kind_is_active(active.chain(issuers))?;
        invariants::no_leaf_outlives_any_authority_of_its_chain(&leaves)?;
        invariants::serials_are_unique(self.serials.iter().rev().take(50).copied())?;
        invariants::a_tainted_authority_never_returns(&self.db.store.tainted, facts.active_root())?;
        let made = self.db.store.made.iter().map(|(rotation, root)| (rotation, root));
        invariants::two_replicas_never_both_make_a_key_for_one_rotation(made)?;
        invariants::bundle_sequences_only_grow("the authority", sequence_before, facts.bundle.sequence)?;
        match rotation {
            Some(it) => invariants::abort_restores_trust_byte_for_byte(it, &it.before, &facts.bundle.anchors),
            None => Ok(()),
        }
    }

    pub(crate) fn step(&mut self, event: impl FnOnce(&mut Self) -> &'static str) -> Verdict {
        let (place, sequence) = (self.place(), self.db.store.facts.bundle.sequence);
        let held: Vec<u64> = self.agents.iter().map(|it| it.sequence).collect();
        let what = event(self);
        *self.covered.entry(place).or_default().entry(what).or_default() += 1;
        if self.verbose {
            println!("{} {:?} {what}", self.now - BEGIN, self.place());
        }
        for (agent, before) in self.agents.iter().zip(held) {
            invariants::bundle_sequences_only_grow(&agent.name, before, agent.sequence)?;
        }
        self.check(sequence)
    }

    /// The faults stop; whatever is under way must come to its end.
    pub(crate) fn heal(&mut self) -> Verdict {
        self.healed = true;
        self.down_until = 0;
        self.servers.iter_mut().for_each(|it| it.cut_off_until = 0);
        self.agents.iter_mut().for_each(|it| it.cut_off_until = 0);
        for _ in 0..2_000 {
            if self.place().0 == Phase::Stable && self.servers.iter().all(|it| it.pending.is_none()) {
                return Ok(());
            }
            self.step(|sim| {
                sim.now += 20;
                "time passes"
            })?;
            for server in 0..SERVERS {
                self.step(|sim| sim.act(server))?;
            }
            for agent in 0..AGENTS {
                let server = self.dice.roll(SERVERS);
                self.step(|sim| sim.contact(agent, server))?;
                if self.dice.one_in(10) {
                    self.step(|sim| sim.ask(agent, server))?;
                    self.step(Self::land)?;
                }
            }
        }
        let rotation = self.db.store.rotation.as_ref().unwrap();
        let world = self.world(&self.db.store, at(self.now));
        let gate = rhizome_core::rotation::gate::of(rotation, &world, at(self.now));
        Err(format!("{rotation:?} came to no end: {gate:?}"))
    }
}
