//! Federation: trust in foreign trust domains, each by its own bundle, fetched from where it publishes it.
//!
//! Laws: a foreign bundle is never merged with ours or with another; what one domain publishes touches that domain
//! alone. Everything about a relationship was stated by somebody: domain, address, profile and endpoint identity are
//! never inferred from one another (FED §7.2). What is fetched is judged before it counts ([`judge`]): never an older
//! sequence, never another content under the same one, never without the fingerprint that the first fetch was told to
//! find. What is refused leaves the bundle that is held as it was.
//! Not here: fetching and its deadlines (`rhizome_server`), which workload gets which bundle (`rules`, the agent).
//! Sources: SPIFFE Federation §3–§7, SPIFFE Trust Domain and Bundle §4; ca/docs/federation.md; ADR 0018.

use std::collections::BTreeMap;

use rhizome_id::{Digest, SpiffeId, Timestamp, TrustDomain, Ttl};
use rhizome_x509::{Bundle, BundleError, CaCertificate, JwtKey};
use serde::{Deserialize, Serialize};

use crate::documents::{Kind, Stored};
use crate::limits::FEDERATION_MAX_REFRESH;

mod address;
mod judgement;
mod schedule;
mod url;

pub use address::not_public;
pub use judgement::{Judged, Refusal, by_hand, judge};
pub use schedule::{Outlook, after_failure, after_success, outlook};
pub use url::{EndpointUrl, RedirectError, UrlError};

/// How a bundle endpoint proves that it speaks for its trust domain (FED §5.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "profile", rename_all = "snake_case")]
pub enum EndpointProfile {
    /// By a certificate of the public Web PKI for the host name.
    HttpsWeb,
    /// By an X509-SVID.
    HttpsSpiffe {
        /// Exactly this identity, verified against the bundle of its trust domain.
        endpoint_id: SpiffeId,
    },
}

/// A relationship with a foreign trust domain, as a document. Made by an administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relationship {
    /// The foreign trust domain.
    pub trust_domain: TrustDomain,
    /// Where it publishes its bundle.
    pub url: EndpointUrl,
    /// How that endpoint proves itself.
    #[serde(flatten)]
    pub profile: EndpointProfile,
    /// SHA-256 of a root that the first bundle fetched must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_fetch: Option<Digest>,
    /// Whether the endpoint's own host may have an address that is not public. A redirect to another host never may.
    #[serde(default)]
    pub private_addresses: bool,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}

impl Relationship {
    /// Checks the relationship as a whole; `has_bundle` says that a bundle comes with it.
    ///
    /// # Errors
    /// [`RelationshipError`].
    pub fn check(&self, own: &TrustDomain, has_bundle: bool) -> Result<(), RelationshipError> {
        if self.trust_domain == *own {
            return Err(RelationshipError::Own { trust_domain: own.clone() });
        }
        match &self.profile {
            EndpointProfile::HttpsWeb => Ok(()),
            EndpointProfile::HttpsSpiffe { endpoint_id } if endpoint_id.path().is_empty() => {
                Err(RelationshipError::NoPath { endpoint_id: endpoint_id.clone() })
            }
            EndpointProfile::HttpsSpiffe { endpoint_id } => {
                let serves_itself = endpoint_id.is_member_of(&self.trust_domain);
                if serves_itself && self.first_fetch.is_none() && !has_bundle {
                    return Err(RelationshipError::NothingToBeginWith);
                }
                Ok(())
            }
        }
    }
}

/// Why a relationship makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationshipError {
    /// With oneself.
    #[error("{trust_domain} is this authority's own trust domain; federation is with others")]
    Own {
        /// The trust domain.
        trust_domain: TrustDomain,
    },
    /// An endpoint has an identity with a path.
    #[error("{endpoint_id} is the identity of a trust domain; name the endpoint's own, with a path")]
    NoPath {
        /// The identity given.
        endpoint_id: SpiffeId,
    },
    /// The first fetch could not be told from an impostor's.
    #[error(
        "nothing says how the first bundle is to be known: the endpoint proves itself by the very bundle that is \
         fetched; give the fingerprint of one of its roots, or the bundle itself"
    )]
    NothingToBeginWith,
}

/// Who put a foreign bundle in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It was fetched.
    Endpoint,
    /// An administrator gave it.
    Hand {
        /// Who.
        by: String,
    },
}

/// A foreign bundle that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBundle {
    /// As its domain counts; 0 when it does not.
    pub sequence: u64,
    /// How often to look for a change.
    pub refresh_hint: Ttl,
    /// The roots, without those that had expired.
    pub anchors: Vec<CaCertificate>,
    /// The keys for JWT-SVIDs.
    pub jwt_keys: Vec<JwtKey>,
    /// Digest of the bundle as it was offered, with expired roots: tells the same content from another.
    pub offered: Digest,
    /// Since when it is in force.
    pub since: Timestamp,
    /// Who put it in force.
    pub origin: Origin,
}

impl HeldBundle {
    /// The bundle, as one of `trust_domain`.
    ///
    /// # Errors
    /// [`BundleError`]; not for what [`judge`] let through.
    pub fn bundle(&self, trust_domain: TrustDomain) -> Result<Bundle, BundleError> {
        let (anchors, keys) = (self.anchors.clone(), self.jwt_keys.clone());
        Bundle::foreign(trust_domain, self.sequence, self.refresh_hint, anchors, keys)
    }

    /// Whether `other` gives verifiers the same: the same sequence, roots and keys.
    pub fn verifies_as(&self, other: &Self) -> bool {
        self.sequence == other.sequence && self.anchors == other.anchors && self.jwt_keys == other.jwt_keys
    }
}

/// Why the last fetch brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// A stable word.
    pub code: String,
    /// For people.
    pub detail: String,
    /// Since when it is this trouble.
    pub since: Timestamp,
    /// Whether the endpoint answered and its answer was refused, which is worth an alarm.
    #[serde(default)]
    pub refused: bool,
}

/// How fetching goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchState {
    /// When to fetch next; absent: now.
    #[serde(default)]
    pub next: Option<Timestamp>,
    /// When it was last tried.
    #[serde(default)]
    pub tried_at: Option<Timestamp>,
    /// When it last succeeded.
    #[serde(default)]
    pub succeeded_at: Option<Timestamp>,
    /// Tries that failed since then.
    #[serde(default)]
    pub failures: u32,
    /// Why the last one failed.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// Entries of the last document that were of no use.
    #[serde(default)]
    pub ignored: u64,
}

/// The bundle of a foreign trust domain and how fetching it goes, as a document. Written by the fetcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignRecord {
    /// Whose.
    pub trust_domain: TrustDomain,
    /// What is in force, if anything is.
    #[serde(default)]
    pub bundle: Option<HeldBundle>,
    /// How fetching goes.
    #[serde(default)]
    pub fetch: FetchState,
}

impl ForeignRecord {
    /// Nothing held, nothing tried.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, bundle: None, fetch: FetchState::default() }
    }

    /// Whether a fetch is due at `now`. An instant beyond the longest interval was set by a clock that was wrong.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let longest = FEDERATION_MAX_REFRESH.seconds();
        self.fetch.next.is_none_or(|next| now >= next || next.since(now) > longest)
    }

    /// After a fetch whose answer was judged; the second value says whether verifiers get another bundle than before.
    /// `draw` is 64 random bits.
    #[must_use]
    pub fn fetched(&self, judged: Judged, now: Timestamp, draw: u64) -> (Self, bool) {
        let Judged { mut bundle, ignored } = judged;
        let changed = self.bundle.as_ref().is_none_or(|held| !held.verifies_as(&bundle));
        if let Some(held) = self.bundle.as_ref().filter(|_| !changed) {
            bundle.since = held.since;
            bundle.origin = held.origin.clone();
        }
        let fetch = FetchState {
            next: Some(after_success(bundle.refresh_hint, now, draw)),
            tried_at: Some(now),
            succeeded_at: Some(now),
            failures: 0,
            trouble: None,
            ignored,
        };
        (Self { trust_domain: self.trust_domain.clone(), bundle: Some(bundle), fetch }, changed)
    }

    /// After a fetch that brought nothing; the second value says whether it is another trouble than before. What is held
    /// stays. `draw` is 64 random bits.
    #[must_use]
    pub fn failed(&self, trouble: Trouble, now: Timestamp, draw: u64) -> (Self, bool) {
        let before = self.fetch.trouble.as_ref().filter(|it| it.code == trouble.code);
        let (new, since) = (before.is_none(), before.map_or(now, |it| it.since));
        let failures = self.fetch.failures.saturating_add(1);
        let hint = self.bundle.as_ref().map(|held| held.refresh_hint);
        let fetch = FetchState {
            next: Some(after_failure(hint, failures, now, draw)),
            tried_at: Some(now),
            failures,
            trouble: Some(Trouble { since, ..trouble }),
            ..self.fetch.clone()
        };
        (Self { fetch, ..self.clone() }, new)
    }

    /// With a bundle that an administrator gave; the endpoint is asked at once.
    #[must_use]
    pub fn given(&self, judged: Judged) -> Self {
        let Judged { bundle, ignored } = judged;
        let fetch = FetchState { next: None, failures: 0, trouble: None, ignored, ..self.fetch.clone() };
        Self { trust_domain: self.trust_domain.clone(), bundle: Some(bundle), fetch }
    }
}

/// A foreign bundle as a node says that it is in force for its workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAs {
    /// Its sequence.
    pub sequence: u64,
    /// Its digest.
    pub digest: Digest,
}

/// Which foreign bundles a node has in force, as a document: what it last said, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignHolder {
    /// The stable text of its principal.
    pub principal: String,
    /// By trust domain.
    pub held: BTreeMap<TrustDomain, HeldAs>,
    /// When it said so.
    pub at: Timestamp,
}

impl Stored for Relationship {
    const KIND: Kind = Kind::Federation;

    fn id(&self) -> String {
        self.trust_domain.to_string()
    }
}

impl Stored for ForeignRecord {
    const KIND: Kind = Kind::ForeignBundle;

    fn id(&self) -> String {
        self.trust_domain.to_string()
    }
}

impl Stored for ForeignHolder {
    const KIND: Kind = Kind::ForeignHolder;

    fn id(&self) -> String {
        self.principal.clone()
    }
}

#[cfg(test)]
#[path = "federation_tests.rs"]
mod tests;
