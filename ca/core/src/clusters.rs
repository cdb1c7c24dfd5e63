//! Clusters: which Rhizome below this one may have an intermediate, for what, and what it did outside of that.
//!
//! Laws: a cluster is a decision of an administrator; its Rhizome is asked after it at every intermediate, so narrowing
//! and withdrawing need no message to it. Nothing in an X.509 certificate could hold it within its scope (verifiers
//! refuse name constraints on URIs), so what it records is read and judged here, certificate by certificate; the chain
//! of its ledger shows that nothing was taken back. An intermediate never outlives what is above it.
//! Not here: signing and the wire (`rhizome_server::clusters`), what the subordinate does (`rhizome_server::upstream`).
//! Sources: ca/docs/clusters.md; ADR 0019; RFC 5280 §4.2.1.9 (path length) and §4.2.1.10 (name constraints).

use std::fmt;
use std::str::FromStr;

use rhizome_id::{AuthorityId, ClusterName, Digest, NodeName, Serial, SpiffeId, Timestamp, TrustDomain, Ttl};
use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::caller::{AttestationMethod, NamespaceScope, Principal, some};
use crate::documents::{Kind, Stored};
use crate::limits::{
    CLUSTER_BACKDATE_SECONDS, CLUSTER_GRANTS, CLUSTER_IDENTITIES, CLUSTER_INTERMEDIATE_MAX_TTL,
    CLUSTER_INTERMEDIATE_MIN_TTL, CLUSTER_NAMESPACES, ROTATION_SKEW_SECONDS,
};
use crate::renewal::{Validity, validity_backdated};

mod below;
mod judgement;
mod report;

pub use below::{
    AboveError, Accepted, Bridge, RootChange, Signing, accept_intermediate, judge_bundle, mirror_roots,
};
pub use judgement::{Alarm, Continued, Outside, continue_ledger, outside_scope};
pub use report::{
    ClusterReport, HeldBelow, Outlook, PresentedBelow, Reported, ServedIssuer, own_report, subscriber,
};

/// What a cluster's Rhizome may issue for.
///
/// A later *restriction* must arrive as a new variant of something here, which older code refuses to read, never as a new
/// field, which it would ignore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterScope {
    /// Identities `spiffe://TD/ns/NAMESPACE/…` of these namespaces.
    pub namespaces: NamespaceScope,
    /// Other identities.
    #[serde(default)]
    pub identities: Vec<IdentityPattern>,
    /// The longest lifetime of a workload's certificate or token.
    pub max_ttl: Ttl,
}

/// An identity, or with `/*` at its end every identity below a path. Never reserved ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdentityPattern(String);

/// Why a text is no pattern for identities.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no pattern for identities: write spiffe://TD/PATH, or spiffe://TD/PATH/* for all below it"
)]
pub struct PatternError {
    text: String,
}

impl IdentityPattern {
    /// Whether it speaks of `id`. Compared byte for byte.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self.0.strip_suffix('*') {
            // The slash stays: `/a/*` speaks of `/a/b` and not of `/ab`.
            Some(below) => id.as_str().len() > below.len() && id.as_str().starts_with(below),
            None => id.as_str() == self.0,
        }
    }

    fn base(&self) -> &str {
        self.0.strip_suffix("/*").unwrap_or(&self.0)
    }
}

impl FromStr for IdentityPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = Self(text.to_owned());
        match pattern.base().parse::<SpiffeId>() {
            // A whole trust domain is said by naming it: `spiffe://TD/*`.
            Ok(id) if !id.path().is_empty() || text.ends_with("/*") => Ok(pattern),
            Ok(_) | Err(_) => Err(PatternError { text: text.chars().take(200).collect() }),
        }
    }
}

impl TryFrom<String> for IdentityPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IdentityPattern> for String {
    fn from(pattern: IdentityPattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a scope makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// It allows nothing.
    #[error("it allows nothing: name namespaces or identities, or say all namespaces")]
    Nothing,
    /// Too much to look through.
    #[error(
        "it has {namespaces} namespaces and {identities} identities; the limits are {CLUSTER_NAMESPACES} and \
         {CLUSTER_IDENTITIES}"
    )]
    TooMany {
        /// Namespaces found.
        namespaces: usize,
        /// Identities found.
        identities: usize,
    },
    /// It names identities of others.
    #[error("`{pattern}` is not of this trust domain")]
    Foreign {
        /// Which.
        pattern: IdentityPattern,
    },
    /// It names what is reserved.
    #[error("`{pattern}` is reserved: a cluster's Rhizome has the identities that it needs there anyway")]
    Reserved {
        /// Which.
        pattern: IdentityPattern,
    },
    /// A lifetime of intermediates beyond the limits.
    #[error(
        "an intermediate lives from {} to {} s",
        CLUSTER_INTERMEDIATE_MIN_TTL.seconds(),
        CLUSTER_INTERMEDIATE_MAX_TTL.seconds()
    )]
    Lifetime,
    /// An intermediate would end before what it signs.
    #[error(
        "an intermediate of {intermediate} s cannot sign certificates of {leaf} s and be renewed in time: it must live at \
         least twice as long"
    )]
    TooShort {
        /// Lifetime of the intermediate, in seconds.
        intermediate: i64,
        /// Longest lifetime of a certificate, in seconds.
        leaf: i64,
    },
}

impl ClusterScope {
    /// Whether this makes sense in `domain`, for intermediates of `intermediate_ttl`.
    ///
    /// # Errors
    /// [`ScopeError`].
    pub fn check(&self, domain: &TrustDomain, intermediate_ttl: Ttl) -> Result<(), ScopeError> {
        let namespaces = match &self.namespaces {
            NamespaceScope::All => None,
            NamespaceScope::Only(names) => Some(names.len()),
        };
        let identities = self.identities.len();
        if namespaces == Some(0) && identities == 0 {
            return Err(ScopeError::Nothing);
        }
        let named = namespaces.unwrap_or(0);
        if named > CLUSTER_NAMESPACES || identities > CLUSTER_IDENTITIES {
            return Err(ScopeError::TooMany { namespaces: named, identities });
        }
        for pattern in &self.identities {
            let id: Option<SpiffeId> = pattern.base().parse().ok();
            let id = id.filter(|id| id.is_member_of(domain));
            let id = id.ok_or_else(|| ScopeError::Foreign { pattern: pattern.clone() })?;
            if crate::template::is_reserved(&id) {
                return Err(ScopeError::Reserved { pattern: pattern.clone() });
            }
        }
        if intermediate_ttl < CLUSTER_INTERMEDIATE_MIN_TTL || intermediate_ttl > CLUSTER_INTERMEDIATE_MAX_TTL
        {
            return Err(ScopeError::Lifetime);
        }
        let (intermediate, leaf) = (intermediate_ttl.seconds(), self.max_ttl.seconds());
        if intermediate < leaf.saturating_mul(2) {
            return Err(ScopeError::TooShort { intermediate, leaf });
        }
        Ok(())
    }

    /// Whether a workload may have `id`.
    pub fn allows(&self, id: &SpiffeId) -> bool {
        if crate::template::is_reserved(id) {
            return false;
        }
        let mut segments = id.segments();
        let namespace = match (segments.next(), segments.next()) {
            (Some("ns"), Some(namespace)) => Some(namespace),
            _ => None,
        };
        namespace.is_some_and(|namespace| self.namespaces.allows(namespace))
            || self.identities.iter().any(|pattern| pattern.matches(id))
    }
}

impl fmt::Display for ClusterScope {
    /// In words, for the ledger and for whoever asked for more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.namespaces)?;
        if !self.identities.is_empty() {
            write!(f, ", identities {}", some(self.identities.iter().map(|it| it.0.as_str())))?;
        }
        write!(f, ", certificates of at most {} s", self.max_ttl.seconds())
    }
}

/// Whether a cluster's Rhizome may go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterState {
    /// It may.
    Active,
    /// It gets nothing until it is let in again.
    Suspended(Ended),
    /// It gets nothing any more. The record stays until nothing of what it was granted is valid.
    Removed(Ended),
}

/// Who ended something, when and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// The principal's audit text of whoever did it.
    pub by: String,
    /// Why, in words.
    pub reason: String,
}

/// An intermediate that a cluster's Rhizome was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Its name: part of its subject, and what the cluster's ledger calls the issuer.
    pub id: AuthorityId,
    /// The root of ours that signed it.
    pub root: AuthorityId,
    /// Its serial number.
    pub serial: Serial,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub public_key: Digest,
    /// Its subject key identifier in hexadecimal: what certificates below it carry.
    pub key_id: String,
    /// When it was granted.
    pub granted_at: Timestamp,
    /// Its last second.
    pub not_after: Timestamp,
}

/// A cluster with a Rhizome of its own, as a document. JSON; unknown fields are ignored (schema N and N−1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// The node as which its Rhizome calls: `NAME/join_token/NODE`. Made for it; no other token may name it.
    pub node: NodeName,
    /// What it may issue for.
    pub scope: ClusterScope,
    /// The longest lifetime of its intermediates.
    pub intermediate_ttl: Ttl,
    /// Whether it may go on.
    pub state: ClusterState,
    /// The principal's audit text of whoever added it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Its intermediates that may still be valid.
    #[serde(default)]
    pub granted: Vec<Granted>,
}

impl Stored for Cluster {
    const KIND: Kind = Kind::Cluster;

    fn id(&self) -> String {
        self.name.to_string()
    }
}

/// What a cluster's Rhizome asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntermediateWish {
    /// SHA-256 of the SubjectPublicKeyInfo whose private key it showed to have.
    pub public_key: Digest,
    /// A lifetime; `None`: what its scope gives.
    pub ttl: Option<Ttl>,
}

/// Why an intermediate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterRefusal {
    /// An administrator suspended it.
    #[error("cluster {name} was suspended at {at}: {reason}")]
    Suspended {
        /// Which.
        name: ClusterName,
        /// Since when.
        at: Timestamp,
        /// Why.
        reason: String,
    },
    /// An administrator removed it.
    #[error("cluster {name} was removed at {at}: {reason}")]
    Removed {
        /// Which.
        name: ClusterName,
        /// Since when.
        at: Timestamp,
        /// Why.
        reason: String,
    },
    /// It asks for more than it may have.
    #[error("cluster {name} asked for an intermediate of {asked} s; it may have {allowed} s at most")]
    TooLong {
        /// Which.
        name: ClusterName,
        /// Seconds asked for.
        asked: i64,
        /// Seconds allowed.
        allowed: i64,
    },
    /// The key is somebody's already.
    #[error(
        "cluster {name} asked for an intermediate for a key that {whose} has; it must make one of its own"
    )]
    KnownKey {
        /// Which.
        name: ClusterName,
        /// Whose key it is.
        whose: String,
    },
    /// It has as many as it may.
    #[error(
        "cluster {name} has {granted} intermediates that live, which is the limit; the next one ends at {until}"
    )]
    TooMany {
        /// Which.
        name: ClusterName,
        /// How many live.
        granted: usize,
        /// When the first of them ends.
        until: Timestamp,
    },
    /// Nothing can be valid now below the root.
    #[error("the root is valid from {from} to {until}, and the clock says {now}")]
    RootNotValid {
        /// From.
        from: Timestamp,
        /// To.
        until: Timestamp,
        /// Now.
        now: Timestamp,
    },
}

impl ClusterRefusal {
    /// The stable code for metric and audit.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Suspended { .. } => "cluster_suspended",
            Self::Removed { .. } => "cluster_removed",
            Self::TooLong { .. } | Self::KnownKey { .. } | Self::TooMany { .. } => "beyond_cluster_scope",
            Self::RootNotValid { .. } => "root_not_valid",
        }
    }
}

impl Cluster {
    /// Who its Rhizome is as a caller.
    pub fn principal(&self) -> Principal {
        let (cluster, name) = (self.name.clone(), self.node.clone());
        Principal::Node { cluster, method: AttestationMethod::JoinToken, name }
    }

    /// The id of its node's record: `CLUSTER/METHOD/NAME`.
    pub fn node_id(&self) -> String {
        format!("{}/{}/{}", self.name, AttestationMethod::JoinToken, self.node)
    }

    /// Whether it may have anything now.
    ///
    /// # Errors
    /// [`ClusterRefusal::Suspended`] or [`ClusterRefusal::Removed`].
    pub fn check_active(&self) -> Result<(), ClusterRefusal> {
        let name = self.name.clone();
        match &self.state {
            ClusterState::Active => Ok(()),
            ClusterState::Suspended(Ended { at, by: _, reason }) => {
                Err(ClusterRefusal::Suspended { name, at: *at, reason: reason.clone() })
            }
            ClusterState::Removed(Ended { at, by: _, reason }) => {
                Err(ClusterRefusal::Removed { name, at: *at, reason: reason.clone() })
            }
        }
    }

    /// Whether it may have an intermediate at `now` under `root`, and of which validity. `others` are all clusters,
    /// `authorities` ours: their keys are not for it.
    ///
    /// # Errors
    /// [`ClusterRefusal`], which says what would be allowed.
    pub fn may_have_intermediate<'a>(
        &self,
        wish: &IntermediateWish,
        root: (Timestamp, Timestamp),
        others: impl IntoIterator<Item = &'a Self>,
        authorities: impl IntoIterator<Item = &'a Authority>,
        now: Timestamp,
    ) -> Result<Validity, ClusterRefusal> {
        self.check_active()?;
        let known = |whose: String| Err(ClusterRefusal::KnownKey { name: self.name.clone(), whose });
        if let Some(ours) =
            authorities.into_iter().find(|it| it.certificate.public_key().digest() == wish.public_key)
        {
            return known(format!("authority {}", ours.id));
        }
        let theirs = others
            .into_iter()
            .filter(|other| other.name != self.name)
            .find(|other| other.granted.iter().any(|granted| granted.public_key == wish.public_key));
        if let Some(other) = theirs {
            return known(format!("cluster {}", other.name));
        }
        let living = || {
            let other_key = |it: &&Granted| it.public_key != wish.public_key && it.not_after >= now;
            self.granted.iter().filter(other_key)
        };
        if let (CLUSTER_GRANTS.., Some(until)) = (living().count(), living().map(|it| it.not_after).min()) {
            return Err(ClusterRefusal::TooMany {
                name: self.name.clone(),
                granted: living().count(),
                until,
            });
        }
        let (asked, allowed) = (wish.ttl.unwrap_or(self.intermediate_ttl), self.intermediate_ttl);
        if asked > allowed {
            let (name, asked, allowed) = (self.name.clone(), asked.seconds(), allowed.seconds());
            return Err(ClusterRefusal::TooLong { name, asked, allowed });
        }
        let (from, until) = root;
        // The cluster's clock may be slow, and it must not wait for its own intermediate.
        let found = validity_backdated(CLUSTER_BACKDATE_SECONDS, now, asked, from, until);
        found.ok_or(ClusterRefusal::RootNotValid { from, until, now })
    }

    /// The record once `granted` is on its way; what has long ended is forgotten, and what was granted for the same key
    /// before, whose answer was lost.
    #[must_use]
    pub fn granting(&self, granted: Granted, now: Timestamp) -> Self {
        let kept = self.granted.iter().filter(|it| now.since(it.not_after) <= ROTATION_SKEW_SECONDS);
        let key = granted.public_key;
        let kept = kept.filter(move |it| it.public_key != key);
        Self { granted: kept.cloned().chain([granted]).collect(), ..self.clone() }
    }

    /// The last second in which anything that it was granted is valid; `None` when it was granted nothing.
    pub fn matters_until(&self) -> Option<Timestamp> {
        self.granted.iter().map(|it| it.not_after).max()
    }

    /// The record suspended. Suspending twice keeps the first record, and what was removed stays removed.
    #[must_use]
    pub fn suspended(&self, ended: Ended) -> Self {
        let state = match &self.state {
            ClusterState::Active => ClusterState::Suspended(ended),
            first @ (ClusterState::Suspended(_) | ClusterState::Removed(_)) => first.clone(),
        };
        Self { state, ..self.clone() }
    }

    /// The record removed. Removing twice keeps the first record.
    #[must_use]
    pub fn removed(&self, ended: Ended) -> Self {
        let state = match &self.state {
            ClusterState::Active | ClusterState::Suspended(_) => ClusterState::Removed(ended),
            first @ ClusterState::Removed(_) => first.clone(),
        };
        Self { state, ..self.clone() }
    }

    /// The record let in again; `None` when it was not suspended.
    pub fn resumed(&self) -> Option<Self> {
        match self.state {
            ClusterState::Suspended(_) => Some(Self { state: ClusterState::Active, ..self.clone() }),
            ClusterState::Active | ClusterState::Removed(_) => None,
        }
    }
}

#[cfg(test)]
#[path = "clusters_tests.rs"]
mod tests;
