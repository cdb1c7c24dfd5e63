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
//! Not here: what is made of ledger and reports, what is asked after an event, and how it ends (`verdicts`); running many
//! seeds, and what they covered (`seeds`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhizome_core::rotation::evidence::{Held, SubscriberKind};
use rhizome_core::rotation::gate::Consent;
use rhizome_core::rotation::holdings::{Issued, Report};
use rhizome_core::rotation::invariants::Leaf;
use rhizome_core::rotation::{
    Canary, Choices, Effect, Exemption, Heading, Input, Mode, Order, Phase, Rotation, SelfTest, canary, gate,
    step,
};
use rhizome_id::Timestamp;

use crate::broken::{Broken, Law};
use crate::parts::{
    AGENTS, Agent, BEGIN, BLOCK, Db, Dice, Entry, FLIGHT, FRESH, Flight, ISSUER_LIFE, Kind, LIFE, PROCESSES,
    Pending, SERVERS, SKEW, Server, at, caller,
};
use crate::store::{Conflict, Seen, Store, digest, id};

pub(crate) struct Sim {
    pub(crate) kind: Kind,
    pub(crate) dice: Dice,
    pub(crate) now: i64,
    pub(crate) db: Db,
    backups: Vec<Db>,
    pub(crate) servers: Vec<Server>,
    pub(crate) agents: Vec<Agent>,
    flights: Vec<Flight>,
    pub(crate) down_until: i64,
    /// Every serial that was ever issued, and one that was twice.
    serials: BTreeSet<u64>,
    pub(crate) twice: Option<u64>,
    /// Rotations that were started: each has names of its own.
    started: usize,
    /// Agents that were exempted or given up in an earlier rotation and have not come back since.
    pub(crate) lost: BTreeSet<usize>,
    pub(crate) healed: bool,
    pub(crate) verbose: bool,
    pub(crate) covered: BTreeMap<(Phase, Heading), BTreeMap<&'static str, usize>>,
    pub(crate) asked: BTreeMap<Law, usize>,
}

impl Sim {
    pub(crate) fn new(kind: Kind, verbose: bool) -> Self {
        let mut dice = Dice(kind.seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1));
        let rings = if kind.own_rings { SERVERS } else { 1 };
        let mut store = Store::founded("old", SERVERS, rings, at(BEGIN), kind.end());
        if !kind.bridge {
            store.rings.iter_mut().for_each(BTreeMap::clear);
        }
        let servers = (0..SERVERS).map(|number| Server {
            skew: if number == 2 { dice.between(-SKEW, SKEW) } else { dice.between(-5, 5) },
            view: None,
            pending: None,
            cut_off_until: 0,
            serials: (0, 0),
        });
        let servers: Vec<_> = servers.collect();
        let agents = (0..AGENTS).map(|number| {
            let process = number >= PROCESSES;
            Agent {
                name: if process { "client:5".to_owned() } else { format!("agent:{number}") },
                cluster: if number % 2 == 0 { "a" } else { "b" },
                kind: if process { SubscriberKind::OneShot } else { SubscriberKind::Agent },
                skew: dice.between(-SKEW, SKEW),
                leaf: None,
                sequence: 0,
                trusts: BTreeSet::new(),
                cut_off_until: 0,
                heard_of: 0,
            }
        });
        let agents: Vec<_> = agents.collect();
        let (acknowledged, reports) = (BTreeMap::new(), BTreeMap::new());
        Self {
            kind,
            dice,
            now: BEGIN,
            db: Db { store: Arc::new(store), ledger: Vec::new(), acknowledged, reports, next_serial: 1 },
            backups: Vec::new(),
            servers,
            agents,
            flights: Vec::new(),
            down_until: 0,
            serials: BTreeSet::new(),
            twice: None,
            started: 0,
            lost: BTreeSet::new(),
            healed: false,
            verbose,
            covered: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    pub(crate) fn clock(&self, server: usize) -> Timestamp {
        at(self.now + self.servers[server].skew)
    }

    pub(crate) fn agent_clock(&self, agent: usize) -> Timestamp {
        at(self.now + self.agents[agent].skew)
    }

    pub(crate) fn place(&self) -> (Phase, Heading) {
        self.db.store.rotation.as_ref().map_or((Phase::Stable, Heading::Forward), |it| (it.phase, it.heading))
    }

    fn store_answers(&self, server: usize) -> bool {
        self.now >= self.down_until && self.now >= self.servers[server].cut_off_until
    }

    fn store_mut(&mut self) -> &mut Store {
        Arc::make_mut(&mut self.db.store)
    }

    /// Reads the store anew, if it answers.
    fn refresh(&mut self, server: usize) -> bool {
        if !self.store_answers(server) {
            return false;
        }
        self.servers[server].view = Some((Arc::clone(&self.db.store), self.now));
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
    pub(crate) fn act(&mut self, server: usize) -> &'static str {
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
        let now = self.clock(server);
        let fresh = store.issuer(server).map(|it| (&it.root, it.not_after.since(now) > ISSUER_LIFE / 2));
        let usable = |root: &rhizome_id::AuthorityId| store.facts.roots[root].not_after > now;
        if let Some(root) = store.facts.active_root().filter(|it| fresh != Some((*it, true)) && usable(it)) {
            let moves = fresh.is_none_or(|(it, _)| it != root);
            let long = store.facts.roots[root].not_after.since(now) > ISSUER_LIFE / 2;
            if moves || long {
                self.servers[server].pending = Some(Pending::Follow(root.clone()));
                return "follow";
            }
        }
        let world = self.world(server, &store, now);
        let told = store.rotation.as_ref();
        let found = step(told, Input::Look(&world), now).unwrap();
        let idle = |it: &Effect| matches!(it, Effect::OrderRenewals { .. } | Effect::WakeAt(_));
        self.servers[server].pending = match found.moved {
            Some(moved) => Some(Pending::Move(store.seen(), moved)),
            None => {
                let effect = found.effects.into_iter().find(|it| !idle(it));
                effect.map(|effect| Pending::Perform(store.seen(), effect))
            }
        };
        if self.servers[server].pending.is_some() { "look" } else { "nothing to do" }
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
        let (now, broken) = (self.clock(server), self.kind.broken);
        let outcome = match pending {
            Pending::Move(seen, next) => self.store(&seen, *next),
            Pending::Perform(seen, Effect::SelfTest { .. }) => {
                let rotation = &seen.as_ref().unwrap().0;
                let input = Input::SelfTested { rotation, verdict: SelfTest::Passed };
                let found = step(self.db.store.rotation.as_ref(), input, now).unwrap();
                found.moved.map_or(Ok(()), |next| self.store_mut().store(&seen, *next))
            }
            Pending::Perform(seen, effect) => self.store_mut().perform(server, &seen, &effect, now, broken),
            Pending::Follow(root) => {
                self.store_mut().follow(server, &root, now, now.plus(ISSUER_LIFE), broken)
            }
        };
        self.servers[server].view = None;
        match (outcome, unknown) {
            (Err(_), _) => "conflict",
            (Ok(()), true) => "performed, unknown",
            (Ok(()), false) => "performed",
        }
    }

    /// Stores a move, and notes whether everybody who is to be waited for truly holds the new root when `distributing` is
    /// left.
    fn store(&mut self, seen: &Seen, next: Rotation) -> Result<(), Conflict> {
        let leaves = self.place() == (Phase::Distributing, Heading::Forward)
            && matches!(next.phase, Phase::Canary | Phase::Active);
        let compromised = next.mode == Mode::Compromised;
        let have = |number: usize| {
            let agent = &self.agents[number];
            let excused = next.exemptions.iter().any(|it| it.subscriber == agent.name);
            // Those out of reach when it was decided are not waited for then; they may be back by now.
            let has = !self.presents(number) || agent.trusts.contains(&next.new);
            has || excused || compromised || self.is_excused(number)
        };
        let passed = leaves && (0..AGENTS).all(have);
        let root = next.new.clone();
        let outcome = self.store_mut().store(seen, next);
        if passed && outcome.is_ok() {
            self.store_mut().passed.insert(root);
        }
        outcome
    }

    /// An agent's stream: it says what it holds and serves, and is told the bundle.
    pub(crate) fn contact(&mut self, agent: usize, server: usize) -> &'static str {
        let there = self.presents(agent) && self.agents[agent].kind == SubscriberKind::Agent;
        if !there || self.now < self.agents[agent].cut_off_until || self.is_lost() {
            return "nothing is said";
        }
        if self.store_answers(server) {
            let clock = self.clock(server);
            let it = &mut self.agents[agent];
            it.heard_of = self.now;
            let digest = Some(digest(it.sequence, &it.trusts));
            let held = Held { sequence: it.sequence, digest, at: clock };
            let roots = it.leaf.iter().map(|leaf| leaf.root.clone()).collect();
            self.db.acknowledged.insert(agent, held);
            self.db.reports.insert(agent, Report { roots, unknown: false, with_own: true, at: clock });
        }
        if self.is_lost() || (self.servers[server].view.is_none() && !self.refresh(server)) {
            return "acknowledged, the answer is lost";
        }
        let bundle = &self.servers[server].view.as_ref().unwrap().0.facts.bundle;
        self.agents[agent].takes(bundle.sequence, &bundle.anchors);
        "acknowledged"
    }

    fn is_lost(&mut self) -> bool {
        self.dice.one_in(8) && !self.healed
    }

    /// An agent asks for a certificate; the server prepares it by what it read.
    pub(crate) fn ask(&mut self, agent: usize, server: usize) -> &'static str {
        if self.now < self.agents[agent].cut_off_until || self.is_lost() {
            return "a request is lost";
        }
        let stale = self.servers[server].view.as_ref().is_none_or(|(_, read)| self.now - read > FRESH);
        if stale && !self.refresh(server) {
            return "unavailable";
        }
        let (store, _) = self.servers[server].view.as_ref().unwrap();
        let Some(issuer) = store.issuer(server).filter(|it| it.not_after > self.clock(server)) else {
            return "no issuer";
        };
        let share = store.facts.canary.as_ref().filter(|_| agent == 0);
        let root = share.unwrap_or(&issuer.root).clone();
        let bundle = (store.facts.bundle.sequence, store.facts.bundle.anchors.clone());
        let (issuer_end, reaches) = (issuer.not_after, store.reaches(&root));
        self.flights.push(Flight { server, agent, root, issuer_end, reaches, bundle, began: self.now });
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
        let clamped = self.kind.broken != Some(Broken::OutlivesItsIssuer);
        let not_after = if clamped { at.plus(LIFE).min(flight.issuer_end) } else { at.plus(LIFE) };
        if not_after <= at {
            return "no issuer";
        }
        let serial = self.serial(flight.server);
        let issued = Issued {
            root: Some(flight.root.clone()),
            bundle: flight.bundle.0,
            own: false,
            last_at: at,
            until: not_after,
            count: 1,
        };
        // What is long gone by every clock is read by nobody any more.
        self.db.ledger.retain(|it| now - it.issued.until.unix() < 4 * SKEW);
        self.db.ledger.push(Entry { caller: caller(flight.agent), issued });
        if self.is_lost() {
            return "issued, the answer is lost";
        }
        self.lost.remove(&flight.agent);
        let root_end = flight.reaches.get(&flight.root).copied().unwrap_or(flight.issuer_end);
        let agent = &mut self.agents[flight.agent];
        agent.takes(flight.bundle.0, &flight.bundle.1);
        agent.leaf = Some(Leaf {
            holder: agent.name.clone(),
            serial,
            not_after,
            root: flight.root,
            reaches: flight.reaches,
            chain_ends: vec![flight.issuer_end, root_end],
        });
        "issued"
    }

    /// The next serial of a server; it reserves a block of them when it has none left.
    fn serial(&mut self, server: usize) -> u64 {
        let block = &mut self.servers[server].serials;
        if block.0 == block.1 {
            *block = (self.db.next_serial, self.db.next_serial + BLOCK);
            self.db.next_serial += BLOCK;
        }
        let serial = block.0;
        block.0 += 1;
        if !self.serials.insert(serial) {
            self.twice = Some(serial);
        }
        serial
    }

    fn crash(&mut self, server: usize) -> &'static str {
        self.servers[server].pending = None;
        self.servers[server].view = None;
        self.servers[server].serials = (0, 0);
        self.flights.retain(|it| it.server != server);
        "a server crashes"
    }

    /// `rhizome restore`: every server is stopped, and starts with what the backup holds.
    fn restore(&mut self) -> &'static str {
        if self.backups.is_empty() || !self.kind.restores() {
            return "no backup";
        }
        let number = self.dice.roll(self.backups.len());
        let mut backup = self.backups[number].clone();
        let (then, today) = (Arc::make_mut(&mut backup.store), &self.db.store);
        let name = |store: &Store| store.rotation.as_ref().map(|it| it.name.clone());
        let roots = |store: &Store| store.facts.roots.keys().cloned().collect::<BTreeSet<_>>();
        let same = name(then).is_some() && name(then) == name(today) && roots(then) == roots(today);
        let keys_there = roots(then).iter().all(|it| today.has_key(it));
        let under_way = |store: &Store| store.rotation.as_ref().is_some_and(|it| it.phase != Phase::Stable);
        if !same || !keys_there || roots(then).len() < 2 || !under_way(then) || !under_way(today) {
            return "no backup of these roots";
        }
        // It takes a while.
        self.now += 5;
        then.keep_what_is_no_backup(today);
        then.facts.restored = Some(at(self.now));
        let raised = |broken, number: u64, above: i64| {
            if self.kind.broken == Some(broken) { number } else { number.max(u64::try_from(above).unwrap()) }
        };
        let bundle = &mut then.facts.bundle;
        bundle.sequence = raised(Broken::RestoresTheSequence, bundle.sequence + 1, self.now);
        bundle.digest = digest(bundle.sequence, &bundle.anchors);
        backup.next_serial =
            raised(Broken::RestoresTheSerials, backup.next_serial, (self.now - BEGIN) * 1_000_000);
        self.db = backup;
        for server in 0..SERVERS {
            self.crash(server);
        }
        // Before a server opens its doors it does what is due: the record says that it was restored, and old chains carry
        // their bridge, before anything is issued.
        self.down_until = 0;
        self.servers.iter_mut().for_each(|it| it.cut_off_until = 0);
        while (0..SERVERS).any(|server| self.opens(server)) {}
        for server in 0..SERVERS {
            self.crash(server);
        }
        "restored"
    }

    /// Does one thing that is due before doors open; nothing that waits for evidence is.
    fn opens(&mut self, server: usize) -> bool {
        self.decide(server);
        let place = self.place().0;
        let due = match &self.servers[server].pending {
            None | Some(Pending::Follow(_)) => false,
            Some(Pending::Perform(..)) => true,
            // What was staged is distributed at once; otherwise no phase is left before the doors open.
            Some(Pending::Move(_, next)) => next.phase == place || place == Phase::Staged,
        };
        if !due {
            self.servers[server].pending = None;
            return false;
        }
        !matches!(self.perform(server), "conflict")
    }

    pub(crate) fn administer(&mut self, agent: usize, server: usize) -> &'static str {
        if !self.refresh(server) {
            return "unavailable";
        }
        let (store, _) = self.servers[server].view.clone().unwrap();
        let now = self.clock(server);
        let world = self.world(server, &store, now);
        let told = store.rotation.as_ref();
        let loss = || told.and_then(|it| gate::of(it, &world, now).loss());
        let mut given_up = Vec::new();
        let (what, order) = match (self.place().0, self.dice.roll(12)) {
            (Phase::Stable, _) => match self.start(&store, now) {
                Some(order) => ("start", order),
                None => return "nothing to administer",
            },
            (_, 0) if !self.healed => ("abort", Order::Abort),
            (_, 1) if !self.healed => (
                "exempt",
                Order::Exempt(Exemption {
                    subscriber: self.agents[agent].name.clone(),
                    reason: "it is being repaired".to_owned(),
                    approver: "admin:alice".to_owned(),
                    expires_at: now.plus(600),
                }),
            ),
            (_, 2..6) if self.kind.mode == Mode::Compromised => match loss() {
                Some(loss) => {
                    given_up = loss.subscribers;
                    ("accept loss", Order::Advance { accept: Some(Consent::to(loss.digest)) })
                }
                None => return "nothing to administer",
            },
            _ => return "nothing to administer",
        };
        let seen = told.map(|it| (&it.name, it.version));
        let input = Input::Command { by: "admin:alice", seen, order, world: &world };
        let Ok(moved) = step(told, input, now).map(|it| it.moved) else { return "refused" };
        let Some(next) = moved else { return "done already" };
        if what == "start" {
            let excused: Vec<usize> = (0..AGENTS).filter(|it| self.is_excused(*it)).collect();
            self.lost.extend(excused);
        }
        let before = self.db.store.given_up.clone();
        self.store_mut().given_up.extend(given_up);
        match self.store(&store.seen(), *next) {
            Ok(()) => {
                self.started += usize::from(what == "start");
                what
            }
            Err(_) => {
                self.store_mut().given_up = before;
                "conflict"
            }
        }
    }

    fn start(&mut self, store: &Store, now: Timestamp) -> Option<Order> {
        let rounds = self.started;
        if rounds >= 2 || self.db.ledger.len() < AGENTS {
            return None;
        }
        let share = canary::Share::Percent(10);
        let end = store.facts.active_root().map(|it| store.facts.roots[it].not_after)?;
        Some(Order::Start {
            name: format!("rotation-{rounds}").parse().unwrap(),
            new: id(&format!("new{rounds}")),
            mode: if now.since(end) > 2 * SKEW { Mode::Expired } else { self.kind.mode },
            choices: Choices {
                canary: self.dice.one_in(2).then_some(Canary { share, window_seconds: 60 }),
                soak_seconds: 300,
                longest_seconds: LIFE,
                unbridged: !self.kind.bridge,
                ..Choices::default()
            },
            reason: String::new(),
        })
    }
}
