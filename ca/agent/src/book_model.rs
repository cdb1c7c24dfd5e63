//! The book against a model of the streams that follow it: whatever happens in whatever order, no bundle is acknowledged
//! that somebody who still has a valid certificate does not have, and none waits for an identity that cannot be had.
//!
//! `RHIZOME_SEED` runs one seed alone; a failure names its seed.

use super::*;
use crate::testing::{at, attributes, bundle, entitlement, node, root, rule, svid, valid};

/// A generator that gives the same numbers for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(sides).unwrap()).unwrap()
    }
}

/// One open stream, as the sockets have it.
struct Stream {
    number: u64,
    seen: watch::Receiver<Seen>,
    /// Whether it is given bundles only with identities.
    identities: bool,
    /// Identities that it was given last, the default one first, and the last second of the last of them.
    given: Vec<String>,
    until: Timestamp,
    version: u64,
    /// The bundle that its workload has; `None` when it never had one, or was told to drop it.
    holds: Option<u64>,
}

impl Stream {
    /// Takes what there is, as the Workload API does.
    fn take(&mut self, book: &mut Book) {
        let seen = self.seen.borrow_and_update().clone();
        let standing = match seen {
            Err(NotYet::Denied(_)) => {
                self.given.clear();
                self.holds = None;
                Standing::Nothing
            }
            Err(NotYet::Starting) => self.waits(),
            Ok(view) => {
                let first = self.given.first();
                let stays = || view.svids.iter().any(|svid| Some(&svid.spiffe_id.to_string()) == first);
                if !self.identities || view.default_svid().is_some() || stays() {
                    let sequence = view.bundles.values().next().unwrap().sequence();
                    self.holds = Some(sequence);
                    self.version = view.version;
                    if view.default_svid().is_some() {
                        self.given = view.svids.iter().map(|svid| svid.spiffe_id.to_string()).collect();
                    }
                    self.until = view.svids.iter().map(|svid| svid.not_after).max().unwrap_or_else(|| at(-1));
                }
                self.waits()
            }
        };
        book.stands(self.number, standing);
    }

    fn waits(&self) -> Standing {
        match (self.holds, self.identities) {
            (None, _) => Standing::Nothing,
            (Some(_), true) => Standing::GivenUntil(self.version, self.until),
            (Some(_), false) => Standing::Given(self.version),
        }
    }

    /// Whether it holds an older bundle than `sequence`, and somebody accepts what it presents.
    fn lives_behind(&self, sequence: u64, now: Timestamp) -> bool {
        self.holds.is_some_and(|held| held < sequence) && (!self.identities || self.until >= now)
    }
}

struct World {
    book: Book,
    dice: Dice,
    now: i64,
    streams: Vec<Stream>,
    sequence: u64,
    cursor: u64,
    serial: u64,
    anchors: Vec<rhizome_x509::CaCertificate>,
}

const PATHS: [&str; 3] = ["/any", "/web", "/api"];
const RULES: [(&str, &str, &str); 3] =
    [("all", "*", "/any"), ("web", "1000", "/web"), ("api", "2000", "/api")];

impl World {
    fn new(seed: u64, anchors: Vec<rhizome_x509::CaCertificate>) -> Self {
        let mut book = Book::new("example.org".parse().unwrap());
        book.set_node(node(), at(0));
        let rules = RULES.map(|(name, uid, path)| valid(rule(name, ("unix.uid", uid), path)));
        let change = RuleChange { full: true, upserts: rules.to_vec(), removed: Vec::new(), cursor: 1 };
        book.apply(change, at(0));
        let dice = Dice(seed);
        Self { book, dice, now: 0, streams: Vec::new(), sequence: 0, cursor: 1, serial: 0, anchors }
    }

    fn now(&self) -> Timestamp {
        at(self.now)
    }

    fn happen(&mut self) {
        let now = self.now();
        let path = PATHS[self.dice.roll(PATHS.len())];
        match self.dice.roll(14) {
            0 => self.publish(),
            1 if self.streams.len() < 6 => self.open(),
            2 if !self.streams.is_empty() => {
                let gone = self.streams.swap_remove(self.dice.roll(self.streams.len()));
                self.book.stands(gone.number, Standing::Gone);
            }
            3 => self.now += i64::try_from(self.dice.roll(1_500)).unwrap(),
            4 => {
                let held: Vec<String> = self.book.svids().map(|it| it.serial.clone()).collect();
                if !held.is_empty() {
                    let serial = held[self.dice.roll(held.len())].clone();
                    self.book.stop(&[serial], now);
                }
            }
            5 => {
                let denied = Failure::Denied("out of scope".to_owned());
                self.book.failed(&entitlement(path), denied, now, 7);
            }
            6 => {
                let (name, uid, path) = RULES[self.dice.roll(RULES.len())];
                self.cursor += 1;
                let mut change = RuleChange { cursor: self.cursor, ..RuleChange::default() };
                if self.dice.roll(2) == 0 {
                    change.removed.push(name.parse().unwrap());
                } else {
                    change.upserts.push(valid(rule(name, ("unix.uid", uid), path)));
                }
                self.book.apply(change, now);
            }
            7 | 8 => {
                self.serial += 1;
                let issued = svid(path, &format!("{:02}", self.serial), now);
                self.book.issued(&entitlement(path), issued, now);
            }
            _ => {
                if !self.streams.is_empty() {
                    let which = self.dice.roll(self.streams.len());
                    self.streams[which].take(&mut self.book);
                }
            }
        }
        self.book.tick(self.now());
    }

    fn publish(&mut self) {
        self.sequence += 1;
        let anchor = &self.anchors[self.dice.roll(self.anchors.len())];
        let offered = self.book.offer(bundle(self.sequence, &[anchor]), self.now());
        assert_eq!(offered, Offered::InForce);
        self.book.set_sealed(self.sequence);
    }

    fn open(&mut self) {
        let uid = ["1000", "2000", "3000"][self.dice.roll(3)];
        let number = self.book.open();
        let seen = self.book.follow(attributes(&[("unix.uid", uid)]), self.now());
        let (identities, until) = (self.dice.roll(2) == 0, at(-1));
        let given = Vec::new();
        self.streams.push(Stream { number, seen, identities, given, until, version: 0, holds: None });
    }

    /// What must hold whatever happened.
    fn check(&mut self) {
        let now = self.now();
        for stream in &self.streams {
            let seen = stream.seen.borrow();
            if let Ok(view) = &*seen {
                let shown = view.bundles.values().next().unwrap().sequence();
                assert_eq!(shown, self.sequence, "a bundle waited for an identity");
                assert!(view.svids.iter().all(|svid| svid.not_after >= now));
                assert!(!view.svids.is_empty() || !view.awaited.identities.is_empty());
            }
            if self.sequence > 0 && matches!(&*seen, Err(NotYet::Starting)) {
                panic!("rules and bundle are known, and somebody is told neither yes nor no");
            }
        }
        if let Some((acknowledged, _)) = self.book.acknowledgeable(now) {
            let behind = self.streams.iter().filter(|it| it.lives_behind(acknowledged, now)).count();
            assert_eq!(behind, 0, "bundle {acknowledged} is not everywhere");
        }
    }

    /// Everybody takes what there is; then nothing is left to wait for but what still has a valid certificate.
    fn settle(&mut self) {
        for stream in &mut self.streams {
            stream.take(&mut self.book);
        }
        self.check();
        let now = self.now();
        let acknowledged = |book: &Book, now| book.acknowledgeable(now).map(|(sequence, _)| sequence);
        let behind: Vec<Timestamp> =
            self.streams.iter().filter(|it| it.lives_behind(self.sequence, now)).map(|it| it.until).collect();
        let expected = (self.sequence > 0).then_some(self.sequence);
        match behind.iter().max() {
            None => assert_eq!(acknowledged(&self.book, now), expected),
            Some(last) => {
                assert_eq!(acknowledged(&self.book, now), None);
                assert_eq!(acknowledged(&self.book, last.plus(1)), expected, "no longer than that");
                assert!(
                    self.book.expires_next(now).is_some_and(|at| at <= last.plus(1)),
                    "somebody looks again"
                );
            }
        }
    }
}

#[test]
fn no_order_of_events_acknowledges_too_early_or_waits_for_what_cannot_be_had() {
    let anchors: Vec<_> = ["a", "b", "c"].map(root).to_vec();
    #[expect(clippy::disallowed_methods, reason = "a failing seed is replayed by hand")]
    let only = std::env::var("RHIZOME_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    for seed in only.map_or(0..600, |seed| seed..seed + 1) {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(seed, anchors.clone());
            for step in 0..120 {
                world.happen();
                world.check();
                if step % 40 == 39 {
                    world.settle();
                }
            }
        });
        assert!(std::panic::catch_unwind(run).is_ok(), "RHIZOME_SEED={seed}");
    }
}
