//! What is known of the world: what the store and the key ring hold, and what those who depend on the roots have said.
//!
//! Laws: a [`World`] is one reading of the facts and of the evidence; nothing here is remembered from an earlier one. What
//! is not known is not there, and counts as not acknowledged. A subscriber matters until its last certificate has
//! expired, with an allowance for clocks that differ.
//! Not here: how a reading is made (by whoever drives the machine, `rhizome_server`), what follows from it (`gate`, the parent).
//! Sources: ca/docs/rotation.md, Evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rhizome_id::{AuthorityId, Digest, Timestamp};
use serde::{Deserialize, Serialize};

use crate::limits::{FEDERATION_OLD_AFTER_HINTS, PUBLISHER_ALLOWANCE_SECONDS, ROTATION_SKEW_SECONDS};

/// One reading of everything that a step looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct World {
    /// What the store and the key ring hold.
    pub facts: Facts,
    /// Who depends on the roots, each once.
    pub subscribers: Vec<Subscriber>,
    /// What probes found since the phase began.
    pub probes: Vec<Probe>,
}

/// What the store and the key ring hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Every root on record.
    pub roots: BTreeMap<AuthorityId, RootFact>,
    /// Root keys that this server can sign with, by the name of their authority: those in its ring and, for a root on
    /// record, with that record's public key. Two rings may hold a key of one name each; the recorded one alone is the
    /// root's. Of those that nothing due depends on ([`super::keys_that_matter`]), it may be silent.
    pub keys: BTreeSet<AuthorityId>,
    /// The published bundle.
    pub bundle: BundleFact,
    /// Issuers of all replicas that sign, or may.
    pub issuers: Vec<IssuerFact>,
    /// The root under which a share of the certificates is issued beside the active one.
    pub canary: Option<AuthorityId>,
    /// When the store was last put back from a backup, if it ever was.
    pub restored: Option<Timestamp>,
    /// How many entries of the ledger this release cannot read: each may be a certificate that nobody counts.
    pub unreadable: u32,
}

/// A root on record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RootFact {
    /// Its last second.
    pub not_after: Timestamp,
    /// Whether issuers are made under it.
    pub active: bool,
    /// Whether it was given up for good.
    pub tainted: bool,
    /// The certificate of its key by the other root, if one was made.
    pub cross: Option<CrossFact>,
}

/// A cross-certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CrossFact {
    /// The root that signed it.
    pub by: AuthorityId,
    /// Its last second.
    pub not_after: Timestamp,
    /// Whether chains below the root carry it.
    pub carried: bool,
}

/// The published bundle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BundleFact {
    /// Its sequence.
    pub sequence: u64,
    /// Its digest.
    pub digest: Digest,
    /// The roots in it.
    pub anchors: BTreeSet<AuthorityId>,
    /// How often followers without a stream look, in seconds.
    pub refresh_hint: i64,
}

impl Default for BundleFact {
    fn default() -> Self {
        Self { sequence: 0, digest: Digest::ZERO, anchors: BTreeSet::new(), refresh_hint: 0 }
    }
}

/// An issuer of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IssuerFact {
    /// Whose.
    pub replica: String,
    /// The root above it.
    pub root: AuthorityId,
    /// Since when it signs, for one that signs; for one that does not any more, since when its successor does.
    pub since: Timestamp,
    /// Whether it signs.
    pub active: bool,
    /// Its last second.
    pub not_after: Timestamp,
}

/// What a subscriber is; it decides what counts as evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriberKind {
    /// An agent: acknowledges on its stream, and reports what it serves.
    Agent,
    /// A Rhizome below this one: reports for everything below it.
    Subordinate,
    /// A client without a stream: what went out with its certificates ([`super::holdings::lowest`]).
    OneShot,
    /// Whoever writes the bundle into a cluster's objects.
    Publisher,
    /// Another trust domain.
    Federated,
    /// A server of this authority.
    Replica,
}

impl SubscriberKind {
    /// Every kind, in the order of lists.
    pub const ALL: [Self; 6] =
        [Self::Agent, Self::Subordinate, Self::OneShot, Self::Publisher, Self::Federated, Self::Replica];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Subordinate => "subordinate",
            Self::OneShot => "one_shot",
            Self::Publisher => "publisher",
            Self::Federated => "federated",
            Self::Replica => "replica",
        }
    }
}

impl SubscriberKind {
    /// Whether it is told to renew, and does ([`crate::renewals`]).
    pub(super) const fn obeys_orders(self) -> bool {
        matches!(self, Self::Agent | Self::Subordinate)
    }
}

impl fmt::Display for SubscriberKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whatever verifies or presents on behalf of workloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subscriber {
    /// Its name: the stable text of a principal, or of a trust domain.
    pub name: String,
    /// What it is.
    pub kind: SubscriberKind,
    /// Where it is; empty for what is in no cluster.
    pub cluster: String,
    /// The bundle it has in force, or the lowest that it may have. A subordinate: the lowest of its subtree.
    pub holds: Option<Held>,
    /// What it presents, by root ([`super::holdings::presented`]). A subordinate: its whole subtree.
    pub presents: Vec<Presented>,
    /// The last second of the last certificate issued to it; `None`: it matters for ever.
    pub until: Option<Timestamp>,
    /// When it was last heard of, by whichever server.
    pub last_contact: Option<Timestamp>,
    /// Whether it is within reach: some server, not only this one, heard of it within
    /// [`crate::limits::WITHIN_REACH_SECONDS`].
    pub connected: bool,
    /// Who below it lags behind, by name; for a subordinate.
    pub behind: Vec<String>,
    /// How many certificates it presents, all in all.
    pub workloads: u32,
}

/// A bundle in somebody's hands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// Its sequence.
    pub sequence: u64,
    /// Its digest, where it was said.
    pub digest: Option<Digest>,
    /// Since when.
    pub at: Timestamp,
}

/// Certificates that somebody presents, or may present, and that were issued under one root.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Presented {
    /// The root.
    pub root: AuthorityId,
    /// How many.
    pub count: u32,
    /// The last second of the last of them.
    pub until: Timestamp,
}

/// What a probe found: a handshake, or a verification as in one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Who presented what to whom.
    pub direction: Direction,
    /// When.
    pub at: Timestamp,
    /// What went wrong; `None`: nothing.
    pub failure: Option<String>,
}

/// The two directions of a probe: certificates of either root, shown to who may hold the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// A certificate under the new root was shown.
    NewToOld,
    /// A certificate under the old root was shown.
    OldToNew,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewToOld => "new root's certificate shown to a holder of the old root",
            Self::OldToNew => "old root's certificate shown to a holder of the new root",
        })
    }
}

/// The bundle that is waited for: the first of its phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Published {
    /// Its sequence.
    pub sequence: u64,
    /// Its digest.
    pub digest: Digest,
    /// When it was published.
    pub at: Timestamp,
}

impl Subscriber {
    /// Whether it matters at `now`: until its last certificate has expired by its own clock, which may be slow.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| !gone(until, now))
    }

    /// When it stops mattering by itself; `None`: never.
    pub fn matters_until(&self) -> Option<Timestamp> {
        self.until.map(|until| until.plus(ROTATION_SKEW_SECONDS))
    }

    /// Whether it has the bundle that is waited for in force at `now`.
    pub fn has(&self, wanted: &Published, bundle: &BundleFact, now: Timestamp) -> bool {
        let hints_passed = || {
            let patience = bundle.refresh_hint.saturating_mul(FEDERATION_OLD_AFTER_HINTS);
            now.since(wanted.at) >= patience.saturating_add(ROTATION_SKEW_SECONDS)
        };
        let Some(held) = &self.holds else { return self.kind == SubscriberKind::Federated && hints_passed() };
        // A sequence beyond the published one is from a time that this store does not remember.
        let enough = (wanted.sequence..=bundle.sequence).contains(&held.sequence);
        // Nor is what is called like one of ours, but is another, ours. Of those in between the digest is not known any
        // more; whoever said one takes the newest soon.
        let ours = |it: Digest| {
            (held.sequence == wanted.sequence && it == wanted.digest)
                || (held.sequence == bundle.sequence && it == bundle.digest)
        };
        let same = held.digest.is_none_or(ours);
        match self.kind {
            SubscriberKind::Agent | SubscriberKind::OneShot | SubscriberKind::Replica => enough && same,
            SubscriberKind::Subordinate => enough && same && self.behind.is_empty(),
            // Which server wrote down when it was said, and by which clock, is not known.
            SubscriberKind::Publisher => {
                let allowance = PUBLISHER_ALLOWANCE_SECONDS.saturating_add(ROTATION_SKEW_SECONDS);
                enough && same && now.since(held.at) >= allowance
            }
            SubscriberKind::Federated => (enough && same) || hints_passed(),
        }
    }

    /// What it presents under `root` and what may still be valid at `now`.
    pub fn presents_under(&self, root: &AuthorityId, now: Timestamp) -> Option<&Presented> {
        self.presents.iter().find(|it| it.root == *root && it.count > 0 && !gone(it.until, now))
    }
}

/// Whether what is valid until `until` has expired for everybody, slow clocks included.
pub fn gone(until: Timestamp, now: Timestamp) -> bool {
    now.since(until) > ROTATION_SKEW_SECONDS
}

impl Facts {
    /// The root that issuers are made under, if there is one.
    pub fn active_root(&self) -> Option<&AuthorityId> {
        self.roots.iter().find(|(_, root)| root.active).map(|(id, _)| id)
    }

    /// Whether chains below `root` can also reach `other` at `now`: there is a cross-certificate, carried already or not.
    pub fn is_bridged(&self, root: &AuthorityId, other: &AuthorityId, now: Timestamp) -> bool {
        let cross = self.roots.get(root).and_then(|it| it.cross.as_ref());
        cross.is_some_and(|it| it.by == *other && it.not_after >= now)
    }
}
