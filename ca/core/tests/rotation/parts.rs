//! What the simulation is made of: servers, agents, what is durable, what is under way, and the dice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhizome_core::rotation::evidence::{Held, SubscriberKind};
use rhizome_core::rotation::holdings::{Issued, Report};
use rhizome_core::rotation::invariants::Leaf;
use rhizome_core::rotation::{Effect, Mode, Rotation};
use rhizome_id::{AuthorityId, Timestamp};

use crate::broken::{Broken, Law};
use crate::store::{ROOT_END, Seen, Store};

pub(crate) const BEGIN: i64 = 2_000_000_000;
pub(crate) const LIFE: i64 = 3_600;
pub(crate) const ISSUER_LIFE: i64 = 5_400;
pub(crate) const SKEW: i64 = 600;
pub(crate) const SERVERS: usize = 3;
pub(crate) const AGENTS: usize = 7;
/// The first of the agents that are processes of one caller without a stream.
pub(crate) const PROCESSES: usize = 5;
/// The longest that an issuance takes, and that a server signs by one reading.
pub(crate) const FLIGHT: i64 = 30;
pub(crate) const FRESH: i64 = 20;
/// Serials that a server reserves at once.
pub(crate) const BLOCK: u64 = 4;

/// What kind of world a seed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) seed: u64,
    pub(crate) mode: Mode,
    /// Whether the old root's key is at hand.
    pub(crate) bridge: bool,
    /// Whether each server has a key ring of its own.
    pub(crate) own_rings: bool,
    /// When the first root ends, in seconds after the beginning.
    pub(crate) ends: Option<i64>,
    pub(crate) broken: Option<Broken>,
    /// The one invariant that is asked; `None`: all of them.
    pub(crate) only: Option<Law>,
}

impl Kind {
    /// Of eight seeds two have no bridge, two a compromised root, one of them neither; and one a root that ends soon.
    pub(crate) fn of(seed: u64) -> Self {
        let compromised = matches!(seed % 8, 5 | 6);
        Self {
            seed,
            mode: if compromised { Mode::Compromised } else { Mode::Planned },
            bridge: !matches!(seed % 8, 3 | 6),
            own_rings: seed % 3 == 1,
            ends: (seed % 8 == 7).then(|| 3_500 + i64::try_from(seed % 97).unwrap() * 100),
            broken: None,
            only: None,
        }
    }

    pub(crate) fn end(&self) -> Timestamp {
        at(self.ends.map_or(ROOT_END, |it| BEGIN + it))
    }

    /// Why no backup is put back in it: which root may sign without a bridge, and who is lost that nobody knows of, cannot
    /// be said.
    pub(crate) fn restores(&self) -> bool {
        self.bridge && self.mode == Mode::Planned && self.ends.is_none()
    }
}

/// Random numbers that depend on the seed alone (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(sides).unwrap()).unwrap()
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.roll(chances) == 0
    }

    pub(crate) fn between(&mut self, from: i64, to: i64) -> i64 {
        from + i64::try_from(self.roll(usize::try_from(to - from + 1).unwrap())).unwrap()
    }
}

/// Everything durable: what a backup holds.
#[derive(Clone)]
pub(crate) struct Db {
    pub(crate) store: Arc<Store>,
    pub(crate) ledger: Vec<Entry>,
    pub(crate) acknowledged: BTreeMap<usize, Held>,
    pub(crate) reports: BTreeMap<usize, Report>,
    pub(crate) next_serial: u64,
}

/// A line of the ledger; all processes of a caller are the first of them.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) caller: usize,
    pub(crate) issued: Issued,
}

#[derive(Clone)]
pub(crate) enum Pending {
    Move(Seen, Box<Rotation>),
    Perform(Seen, Effect),
    Follow(AuthorityId),
}

pub(crate) struct Server {
    pub(crate) skew: i64,
    /// What it read last, and when by the world's time.
    pub(crate) view: Option<(Arc<Store>, i64)>,
    pub(crate) pending: Option<Pending>,
    pub(crate) cut_off_until: i64,
    /// Serials that it has reserved: the next, and the one after the last.
    pub(crate) serials: (u64, u64),
}

pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) cluster: &'static str,
    pub(crate) kind: SubscriberKind,
    pub(crate) skew: i64,
    pub(crate) leaf: Option<Leaf>,
    pub(crate) sequence: u64,
    pub(crate) trusts: BTreeSet<AuthorityId>,
    pub(crate) cut_off_until: i64,
    /// When any server last heard of it, by the world's time.
    pub(crate) heard_of: i64,
}

/// An issuance under way.
pub(crate) struct Flight {
    pub(crate) server: usize,
    pub(crate) agent: usize,
    pub(crate) root: AuthorityId,
    pub(crate) issuer_end: Timestamp,
    pub(crate) reaches: BTreeMap<AuthorityId, Timestamp>,
    pub(crate) bundle: (u64, BTreeSet<AuthorityId>),
    pub(crate) began: i64,
}

impl Agent {
    pub(crate) fn takes(&mut self, sequence: u64, anchors: &BTreeSet<AuthorityId>) {
        if sequence > self.sequence {
            self.sequence = sequence;
            self.trusts.clone_from(anchors);
        }
    }
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(seconds)
}

/// The one whose name a process issues in.
pub(crate) fn caller(agent: usize) -> usize {
    agent.min(PROCESSES)
}
