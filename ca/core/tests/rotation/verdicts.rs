//! What servers make of ledger and reports in the simulation, what is asked after each event, and how it must end.

use rhizome_core::limits::WITHIN_REACH_SECONDS;
use rhizome_core::rotation::evidence::{Direction, Probe, Subscriber, SubscriberKind, World};
use rhizome_core::rotation::invariants::{self, Leaf, Verdict, Verifier};
use rhizome_core::rotation::{Choices, Mode, Phase, gate, holdings};
use rhizome_id::Timestamp;

use crate::broken::{Broken, Found, Law, Names};
use crate::parts::{AGENTS, BEGIN, PROCESSES, SERVERS, at};
use crate::simulation::Sim;
use crate::store::Store;

/// Events that came to nothing, and changed nothing.
const IDLE: [&str; 7] = [
    "nothing to decide",
    "nothing to do",
    "nothing to perform",
    "nothing is said",
    "nothing under way",
    "nothing to administer",
    "unavailable",
];

impl Sim {
    pub(crate) fn presents(&self, agent: usize) -> bool {
        self.agents[agent].leaf.as_ref().is_some_and(|leaf| leaf.not_after >= self.agent_clock(agent))
    }

    pub(crate) fn is_within_reach(&self, agent: usize) -> bool {
        self.now - self.agents[agent].heard_of <= WITHIN_REACH_SECONDS
    }

    /// Whether somebody said that it may break.
    pub(crate) fn is_excused(&self, agent: usize) -> bool {
        self.lost.contains(&agent) || self.db.store.excused().contains(self.agents[agent].name.as_str())
    }

    /// What a server makes of ledger, acknowledgements and reports.
    pub(crate) fn world(&self, server: usize, store: &Store, now: Timestamp) -> World {
        let fallback = Choices::default();
        let choices = store.rotation.as_ref().map_or(&fallback, |it| &it.choices);
        let mut subscribers = Vec::new();
        for (number, agent) in self.agents.iter().enumerate().take(PROCESSES + 1) {
            let issued = || self.db.ledger.iter().filter(|it| it.caller == number).map(|it| &it.issued);
            let Some(until) = issued().map(|it| it.until).max() else { continue };
            let report = self.db.reports.get(&number);
            let one_shot = agent.kind == SubscriberKind::OneShot;
            let holds = if one_shot {
                holdings::lowest(issued(), now)
            } else {
                self.db.acknowledged.get(&number).cloned()
            };
            subscribers.push(Subscriber {
                name: agent.name.clone(),
                kind: agent.kind,
                cluster: agent.cluster.to_owned(),
                holds,
                presents: holdings::presented(issued(), report, &store.facts.roots, choices, now),
                until: Some(until),
                last_contact: Some(at(agent.heard_of)),
                connected: !one_shot && self.is_within_reach(number),
                behind: Vec::new(),
                workloads: 1,
            });
        }
        let probe = |direction| Probe { direction, at: now, failure: None };
        let probes = vec![probe(Direction::NewToOld), probe(Direction::OldToNew)];
        let world = World { facts: store.facts(server), subscribers, probes };
        Broken::world(self.kind.broken, store.rotation.as_ref(), world)
    }

    fn question(&mut self, law: Law, says_something: bool, verdict: impl FnOnce(&Self) -> Verdict) -> Found {
        if self.kind.only.is_some_and(|only| only != law) || !says_something {
            return Ok(());
        }
        *self.asked.entry(law).or_default() += 1;
        verdict(self).of(law)
    }

    fn check(&mut self) -> Found {
        let presenting = || (0..AGENTS).filter(|number| self.presents(*number));
        let leaves: Vec<Leaf> = presenting().filter_map(|number| self.agents[number].leaf.clone()).collect();
        let excused = presenting().filter(|it| self.is_excused(*it)).map(|it| self.agents[it].name.clone());
        let excused: Vec<String> = excused.collect();
        let verifiers = presenting().map(|number| Verifier {
            name: self.agents[number].name.clone(),
            trusts: self.agents[number].trusts.clone(),
            sequence: self.agents[number].sequence,
            clock: self.agent_clock(number),
        });
        let verifiers: Vec<Verifier> = verifiers.collect();
        let there = !leaves.is_empty();
        self.question(Law::I1, there, |_| {
            invariants::every_live_leaf_reaches_an_unexpired_root_in_every_live_subscribers_bundle(
                &leaves,
                &verifiers,
                &excused.iter().map(String::as_str).collect(),
            )
        })?;
        self.question(Law::I2, there, |sim| {
            invariants::nothing_signs_before_its_root_passed_distributing(&leaves, &sim.db.store.passed)
        })?;
        self.question(Law::I3, true, |sim| {
            let facts = &sim.db.store.facts;
            let active = facts.roots.values().filter(|it| it.active).map(|_| "root");
            let issuers = facts.issuers.iter().filter(|it| it.active).map(|it| it.replica.as_str());
            invariants::at_most_one_authority_of_a_kind_is_active(active.chain(issuers))
        })?;
        self.question(Law::I4, there, |_| invariants::no_leaf_outlives_any_authority_of_its_chain(&leaves))?;
        // Whether it was issued twice is found when it is issued: asking about all of them each time takes too long.
        self.question(Law::I5, there, |sim| {
            invariants::serials_are_unique(sim.twice.iter().chain(&sim.twice).copied())
        })?;
        self.question(Law::I7, !self.db.store.tainted.is_empty(), |sim| {
            let store = &sim.db.store;
            invariants::a_tainted_authority_never_returns(&store.tainted, store.facts.active_root())
        })?;
        self.question(Law::I8, !self.db.store.made.is_empty(), |sim| {
            let made = sim.db.store.made.iter().map(|(rotation, root, key)| (rotation, (root, *key)));
            invariants::two_replicas_never_both_make_a_key_for_one_rotation(made)
        })?;
        let ended = self.db.store.rotation.as_ref().is_some_and(|it| it.outcome.is_some());
        self.question(Law::I10, ended, |sim| {
            let store = &sim.db.store;
            let abort =
                |it| invariants::abort_restores_trust_byte_for_byte(it, &store.before, &store.anchors());
            store.rotation.as_ref().map_or(Ok(()), abort)
        })
    }

    pub(crate) fn step(&mut self, event: impl FnOnce(&mut Self) -> &'static str) -> Found {
        let (place, sequence) = (self.place(), self.db.store.facts.bundle.sequence);
        let held: [u64; AGENTS] = std::array::from_fn(|it| self.agents[it].sequence);
        let what = event(self);
        *self.covered.entry(place).or_default().entry(what).or_default() += 1;
        if self.verbose {
            println!("{} {:?} {what}", self.now - BEGIN, self.place());
        }
        // Nothing has changed by an event that came to nothing.
        if IDLE.contains(&what) {
            return Ok(());
        }
        for (number, before) in held.into_iter().enumerate() {
            let after = self.agents[number].sequence;
            self.question(Law::I9, before != after, |sim| {
                invariants::bundle_sequences_only_grow(&sim.agents[number].name, before, after)
            })?;
        }
        let after = self.db.store.facts.bundle.sequence;
        self.question(Law::I9, sequence != after, |_| {
            invariants::bundle_sequences_only_grow("the authority", sequence, after)
        })?;
        self.check()
    }

    /// The faults stop; whatever is under way must come to its end.
    pub(crate) fn heal(&mut self) -> Found {
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
            if self.kind.mode == Mode::Compromised && self.place().0 != Phase::Stable {
                self.step(|sim| sim.administer(0, 0))?;
            }
        }
        if self.kind.broken.is_some() {
            // What is broken may come to no end: that is not what is looked for.
            return Ok(());
        }
        let rotation = self.db.store.rotation.as_ref().unwrap();
        let world = self.world(0, &self.db.store, at(self.now));
        let gate = gate::of(rotation, &world, at(self.now));
        panic!("seed {}: {rotation:?} came to no end: {gate:?}", self.kind.seed)
    }
}
