//! What is stored of a rotation, and what its phase demands of the world.
//!
//! Laws: unknown fields are ignored (schema N and N−1). Which roots are trusted and which one signs depends on the phase
//! alone, and on the outcome once it has ended. The record stays small however many subscribers there are: of lists that
//! grow with them it keeps a number, a digest and the first few names. Not here: how it changes (the parent).

use std::collections::BTreeSet;
use std::fmt;

use rhizome_id::{AuthorityId, Digest, RotationName, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Canary, Published};
use crate::documents::{DocumentKey, Kind, Stored};
use crate::limits::{
    NODE_MAX_TTL, ROTATION_RENEWALS_PER_SECOND, ROTATION_SETTLE_SECONDS, ROTATION_SOAK_SECONDS,
    ROTATION_WINDOW_SECONDS,
};

/// Where a change of the root stands. What the world has to look like depends on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// One root signs; no change is under way.
    Stable,
    /// The new key and root exist and are being tested; nothing outside knows.
    Staged,
    /// Both roots are in the bundle; the old one signs.
    Distributing,
    /// As before, and a share of what is issued is issued under the new root.
    Canary,
    /// Both roots are in the bundle; the new one signs, and chains reach the old one too.
    Active,
    /// Only the new root is in the bundle; the old key is kept.
    Untrusting,
    /// The old key is destroyed, and chains end in the new root alone.
    Retired,
}

/// When the store was last put back from a backup. It is written with the ledger's record of that, so that a server knows
/// it before it has read the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// When.
    pub restored_at: Timestamp,
}

impl Restore {
    /// Its one key.
    pub fn key() -> DocumentKey {
        DocumentKey::new(Kind::Setting, "restore")
    }
}

impl Stored for Restore {
    const KIND: Kind = Kind::Setting;

    fn id(&self) -> String {
        Self::key().id
    }
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 7] = [
        Self::Stable,
        Self::Staged,
        Self::Distributing,
        Self::Canary,
        Self::Active,
        Self::Untrusting,
        Self::Retired,
    ];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Staged => "staged",
            Self::Distributing => "distributing",
            Self::Canary => "canary",
            Self::Active => "active",
            Self::Untrusting => "untrusting",
            Self::Retired => "retired",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heading {
    /// Towards the new root.
    Forward,
    /// Back to the old one: it was aborted.
    Back,
}

/// What kind of change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// On a working day: nobody breaks.
    Planned,
    /// The old root is in wrong hands and must go, even if somebody breaks; who, is asked before.
    Compromised,
    /// The old root has expired: nothing works any more that could break.
    Expired,
}

/// How a rotation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new root took the old one's place.
    Rotated,
    /// Everything is as it was before.
    Aborted,
}

/// What whoever starts a rotation chooses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Choices {
    /// Which share is issued under the new root first; `None`: no canary.
    pub canary: Option<Canary>,
    /// Whether each phase is left only at somebody's word, besides the evidence.
    pub manual: bool,
    /// Whether a certificate counts until it has expired, even when its holder reports that it has another one.
    pub until_expiry: bool,
    /// How long only the new root is trusted before the old key is destroyed, in seconds.
    pub soak_seconds: i64,
    /// How long to wait after the last issuer changed, in seconds.
    pub settle_seconds: i64,
    /// The longest that any certificate lives, in seconds: for so long a ledger that was put back from a backup may not know
    /// one.
    pub longest_seconds: i64,
    /// Over how long ordered renewals are spread, in seconds; longer when the rate demands it.
    pub window_seconds: i64,
    /// Renewals a second at most.
    pub renewals_per_second: u32,
    /// Whether to go without cross-certificates where no server has the old root's key: then the gates alone keep every
    /// pair.
    pub unbridged: bool,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            canary: None,
            manual: false,
            until_expiry: false,
            soak_seconds: ROTATION_SOAK_SECONDS,
            settle_seconds: ROTATION_SETTLE_SECONDS,
            longest_seconds: NODE_MAX_TTL.seconds(),
            window_seconds: ROTATION_WINDOW_SECONDS,
            renewals_per_second: ROTATION_RENEWALS_PER_SECOND,
            unbridged: false,
        }
    }
}

/// Somebody who does not hold up a gate, by an administrator's word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Exemption {
    /// Whom: the name of a subscriber.
    pub subscriber: String,
    /// Why.
    pub reason: String,
    /// By whom.
    pub approver: String,
    /// Until when it holds (inclusive).
    pub expires_at: Timestamp,
}

/// A list of subscribers that may be too long to be stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Names {
    /// How many.
    pub count: u32,
    /// SHA-256 over all of them, in order, a line each.
    pub digest: Digest,
    /// The first of them.
    pub first: Vec<String>,
}

/// A loss that an administrator accepted: those break, and nobody waits for them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Accepted {
    /// Which: the digest of [`super::gate::Loss`] as it was named to whoever accepted it. Those below may be fewer than
    /// that named: some were done meanwhile.
    pub digest: Digest,
    /// How many subscribers.
    pub count: u32,
    /// How many certificates they present.
    pub workloads: u32,
    /// The first of them, in order of names.
    pub first: Vec<String>,
    /// The phase that was left with it.
    pub from: Phase,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
}

/// What the self-test of a new root found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelfTest {
    /// A leaf was signed below it, and verified.
    Passed,
    /// It was not.
    Failed {
        /// Why.
        cause: String,
    },
}

/// How the last phase was left: what the ledger's record of it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Passage {
    /// The phase that was left.
    pub from: Phase,
    /// When.
    pub at: Timestamp,
    /// By whose word; the machine itself, when the gate alone decided.
    pub by: String,
    /// SHA-256 over the names, sequences and digests of those who had acknowledged, in order.
    pub acknowledged: Digest,
    /// How many they were.
    pub count: u32,
    /// Who was exempted and would have held it up.
    pub exempted: Names,
    /// The loss with which it was left, if it was with one.
    pub accepted: Option<Accepted>,
    /// What probes had found: how many, and failures.
    pub probes: (u32, u32),
}

/// A change of the root, as it is stored: one document for each trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rotation {
    /// Its name, never used again.
    pub name: RotationName,
    /// Grows with every change of this record: commands name the one they have seen.
    pub version: u64,
    /// What kind of change it is.
    pub mode: Mode,
    /// Where it stands.
    pub phase: Phase,
    /// Which way it goes.
    pub heading: Heading,
    /// How it ended, once it is [`Phase::Stable`] again.
    pub outcome: Option<Outcome>,
    /// The root that goes.
    pub old: AuthorityId,
    /// The root that comes; named before it exists, so that nobody makes two.
    pub new: AuthorityId,
    /// What was chosen.
    pub choices: Choices,
    /// By whom it was started: the stable text of a principal.
    pub started_by: String,
    /// Why, in one line; older releases kept it in `started_by`.
    #[serde(default)]
    pub reason: String,
    /// When.
    pub started_at: Timestamp,
    /// When it entered its phase.
    pub since: Timestamp,
    /// The roots in the bundle before: what an abort restores.
    pub before: BTreeSet<AuthorityId>,
    /// The first bundle of this phase, once it is published.
    pub published: Option<Published>,
    /// What the self-test found.
    pub self_test: Option<SelfTest>,
    /// Who does not hold up gates.
    pub exemptions: Vec<Exemption>,
    /// The last loss that was accepted.
    pub accepted: Option<Accepted>,
    /// When the store was last put back from a backup, also before it began: then the ledger may not know every certificate.
    pub restored: Option<Timestamp>,
    /// Whether the store was put back while it was under way: then nobody knows how far it had come, and old chains carry
    /// their cross-certificate too.
    pub rewound: bool,
    /// How the last phase was left.
    pub last: Option<Passage>,
}

impl Rotation {
    /// The roots that the bundle of this phase holds, of the two.
    pub fn trusted(&self) -> BTreeSet<&AuthorityId> {
        // An expired anchor is accepted by some verifiers and refused by others: it is in no bundle.
        let old = Some(&self.old).filter(|_| self.mode != Mode::Expired);
        match self.phase {
            Phase::Stable if self.outcome == Some(Outcome::Rotated) => [&self.new].into(),
            Phase::Stable | Phase::Staged => [&self.old].into(),
            Phase::Distributing | Phase::Canary | Phase::Active => {
                old.into_iter().chain([&self.new]).collect()
            }
            Phase::Untrusting | Phase::Retired => [&self.new].into(),
        }
    }

    /// The root that issuers are made under in this phase.
    pub fn signs(&self) -> &AuthorityId {
        match self.phase {
            Phase::Stable if self.outcome == Some(Outcome::Rotated) => &self.new,
            Phase::Stable | Phase::Staged | Phase::Distributing | Phase::Canary => &self.old,
            Phase::Active | Phase::Untrusting | Phase::Retired => &self.new,
        }
    }

    /// The root that nobody needs once it has ended.
    pub fn dead(&self) -> Option<&AuthorityId> {
        match self.outcome? {
            Outcome::Rotated => Some(&self.old),
            Outcome::Aborted => Some(&self.new),
        }
    }

    /// The record once the first bundle of this phase is published, to be stored in the same transaction as the bundle.
    #[must_use]
    pub fn with_published(&self, sequence: u64, digest: Digest, now: Timestamp) -> Self {
        self.changed(|next| next.published = Some(Published { sequence, digest, at: now }))
    }

    /// Whether `subscriber` holds up no gate at `now`.
    pub fn exempts(&self, subscriber: &str, now: Timestamp) -> bool {
        self.exemptions.iter().any(|it| it.subscriber == subscriber && now <= it.expires_at)
    }
}
