//! What the simulation is made of: servers, agents, what is durable, what is under way, and the dice.

use std::collections::{BTreeMap, BTreeSet};

use rhizome_core::rotation::evidence::{Held, SubscriberKind};
use rhizome_core::rotation::invariants::Leaf;
use rhizome_core::rotation::{Effect, Rotation};
use rhizome_id::{AuthorityId, Timestamp};

use crate::store::{Seen, Store};

pub(crate) const BEGIN: i64 = 2_000_000_000;
pub(crate) const LIFE: i64 = 3_600;
pub(crate) const SKEW: i64 = 600;
pub(crate) const SERVERS: usize = 3;
pub(crate) const AGENTS: usize = 6;
/// The longest that an issuance takes, and that a server signs by one reading.
pub(crate) const FLIGHT: i64 = 30;
pub(crate) const FRESH: i64 = 20;

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
    pub(crate) store: Store,
    pub(crate) ledger: Vec<Entry>,
    pub(crate) acknowledged: BTreeMap<usize, Held>,
    pub(crate) reports: BTreeMap<usize, (BTreeSet<AuthorityId>, Timestamp)>,
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) holder: usize,
    pub(crate) root: AuthorityId,
    pub(crate) not_after: Timestamp,
    pub(crate) at: Timestamp,
}

pub(crate) enum Pending {
    Move(Seen, Box<Rotation>),
    Perform(Seen, Effect),
    Follow(AuthorityId),
}

pub(crate) struct Server {
    pub(crate) skew: i64,
    /// What it read last, and when by the world's time.
    pub(crate) view: Option<(Store, i64)>,
    pub(crate) pending: Option<Pending>,
    pub(crate) cut_off_until: i64,
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
}

/// An issuance under way.
pub(crate) struct Flight {
    pub(crate) server: usize,
    pub(crate) agent: usize,
    pub(crate) root: AuthorityId,
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

pub(crate) fn excuses(rotation: &Rotation, name: &str) -> bool {
    rotation.exemptions.iter().any(|it| it.subscriber == name)
}
