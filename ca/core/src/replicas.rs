//! Replicas: the servers that share one store, who of them is there, and who does what only one may do.
//!
//! Laws: nobody's wall clock is compared with anybody's: a replica lives as long as its record is seen to change, by
//! the steady clock of whoever looks. The lease is a document that is written when it changes hands and at no other
//! time, so its version is the fencing token: a transaction that requires it unchanged cannot be committed by whoever
//! lost it, however late, however long it slept. A replica that comes back under its name with another session is
//! another holder. Deciding is pure; the shell reads, writes and waits (`rhizome_server::replicas`).
//! Not here: what the holder of the lease does. Sources: Kleppmann, "How to do distributed locking" (fencing);
//! kubernetes/client-go `tools/leaderelection` (a record that does not change, measured by the observer's own clock).

use std::collections::BTreeMap;

use rhizome_id::{ReplicaName, ReplicaNumber};
use serde::{Deserialize, Serialize};

use crate::documents::{DocumentKey, Kind, Stored, Transaction, Version, Versioned};

/// Seconds between two signs of life.
pub const BEAT_SECONDS: i64 = 2;

/// Seconds without a sign of life after which a replica counts as gone: five signs missed, so that a pause of the
/// database's failover does not move the lease.
pub const PATIENCE_SECONDS: i64 = 10;

/// How the ids of replicas' records begin.
pub const REPLICA_PREFIX: &str = "replica/";

/// A server of the trust domain, as a document that it rewrites as a sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Its name.
    pub name: ReplicaName,
    /// Its number in serials, its own for ever.
    pub number: ReplicaNumber,
    /// Random, another one for every start.
    pub session: String,
    /// Signs of life given in this session.
    pub beats: u64,
    /// It has said good-bye.
    #[serde(default)]
    pub stopped: bool,
}

impl Stored for ReplicaRecord {
    const KIND: Kind = Kind::Setting;

    fn id(&self) -> String {
        format!("{REPLICA_PREFIX}{}", self.name)
    }
}

/// Who has a number, as a document: two replicas never choose one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberRecord {
    /// The number.
    pub number: ReplicaNumber,
    /// Whose.
    pub name: ReplicaName,
}

impl Stored for NumberRecord {
    const KIND: Kind = Kind::Setting;

    fn id(&self) -> String {
        format!("replica-number/{}", self.number.value())
    }
}

/// Who may do what only one may do: rotate roots, and keep house.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whoever has it.
    pub holder: ReplicaName,
    /// In which session.
    pub session: String,
}

impl Lease {
    /// The one lease there is.
    pub fn key() -> DocumentKey {
        DocumentKey::new(Kind::Setting, "lease/authority")
    }
}

impl Stored for Lease {
    const KIND: Kind = Kind::Setting;

    fn id(&self) -> String {
        Self::key().id
    }
}

/// The right to do what only one may do, as long as the lease has not changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence(Version);

impl Fence {
    /// Adds to `transaction` that it counts only while the lease is what it was.
    #[must_use]
    pub fn around(self, transaction: Transaction) -> Transaction {
        transaction.require_unchanged(Lease::key(), self.0)
    }

    /// The version of the lease: whoever acts under it must know the store at least up to there.
    pub const fn version(self) -> Version {
        self.0
    }
}

/// Watches the others' signs of life.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    seen: BTreeMap<ReplicaName, Sight>,
}

#[derive(Clone, Debug)]
struct Sight {
    record: Versioned<ReplicaRecord>,
    /// Steady second at which this version was first seen.
    since: i64,
}

impl Watch {
    /// Takes in all records as they are stored, at `now` on the steady clock. A replica without a record is gone.
    pub fn look(&mut self, records: Vec<Versioned<ReplicaRecord>>, now: i64) {
        let mut before = std::mem::take(&mut self.seen);
        for record in records {
            let known = before.remove(&record.value.name).filter(|it| it.record.version == record.version);
            let since = known.map_or(now, |it| it.since);
            self.seen.insert(record.value.name.clone(), Sight { record, since });
        }
    }

    /// Whether `name` gave a sign of life of late.
    pub fn is_alive(&self, name: &ReplicaName, now: i64) -> bool {
        self.seen.get(name).is_some_and(|sight| sight.is_alive(now))
    }

    /// How many replicas are there, whoever looks among them.
    pub fn alive(&self, now: i64) -> usize {
        self.seen.values().filter(|sight| sight.is_alive(now)).count()
    }

    fn holds(&self, lease: &Lease, now: i64) -> bool {
        let holder = self.seen.get(&lease.holder);
        holder.is_some_and(|it| it.record.value.session == lease.session && it.is_alive(now))
    }
}

impl Sight {
    const fn is_alive(&self, now: i64) -> bool {
        !self.record.value.stopped && now.saturating_sub(self.since) < PATIENCE_SECONDS
    }
}

/// What to do about the lease.
#[derive(Clone, Debug)]
pub enum Move {
    /// It is ours.
    Hold(Fence),
    /// Somebody else has it.
    Leave,
    /// Nobody who lives has it: commit this; whoever succeeds has it, at the version of the commit.
    Take(Box<Transaction>),
}

/// What replica `me` in `session` does about the `lease` as it is stored.
pub fn decide(
    lease: Option<&Versioned<Lease>>,
    watch: &Watch,
    (me, session): (&ReplicaName, &str),
    now: i64,
) -> Move {
    let mine = Lease { holder: me.clone(), session: session.to_owned() };
    let take = Transaction::named("take the lease").put(&mine);
    match lease {
        None => Move::Take(Box::new(take.require_absent(Lease::key()))),
        Some(held) if held.value == mine => Move::Hold(Fence(held.version)),
        Some(held) if watch.holds(&held.value, now) => Move::Leave,
        Some(held) => Move::Take(Box::new(take.require_unchanged(Lease::key(), held.version))),
    }
}

/// The fence of a lease that was taken by a commit at `version`.
pub const fn taken(version: Version) -> Fence {
    Fence(version)
}

/// The smallest number that nobody has; `None` when all 16,384 are taken.
pub fn free_number(taken: &[NumberRecord]) -> Option<ReplicaNumber> {
    let used: std::collections::BTreeSet<u16> = taken.iter().map(|it| it.number.value()).collect();
    (0..=u16::MAX).filter(|number| !used.contains(number)).find_map(ReplicaNumber::new)
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
