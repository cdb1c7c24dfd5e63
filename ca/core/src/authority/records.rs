//! Authorities as they are stored: roots and issuers with their certificates, and the keys of JWT-SVIDs.
//!
//! Laws: unknown fields are ignored (schema N and N−1). Not here: what becomes of them, and when (the parent).

use std::fmt;

use rhizome_id::{AuthorityId, KeyId, ReplicaName, Timestamp};
use rhizome_x509::{CaCertificate, JwtKey, SigningAlgorithm};
use serde::{Deserialize, Serialize};

/// What an authority is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityKind {
    /// Trusted by verifiers; signs issuers. One for all replicas.
    Root,
    /// Signs leaves. Each replica has its own.
    Issuer,
    /// Signs JWT-SVIDs and nothing else. Each replica has its own (ADR 0010).
    Jwt,
}

/// Where an authority stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityState {
    /// It exists and does not sign yet.
    Prepared,
    /// It signs.
    Active,
    /// It signs no more; what it signed is still valid.
    Old,
    /// It must not be trusted any more. There is no way back.
    Tainted,
}

impl fmt::Display for AuthorityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Issuer => "issuer",
            Self::Jwt => "jwt",
        })
    }
}

impl fmt::Display for AuthorityState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
            Self::Tainted => "tainted",
        })
    }
}

/// A signing authority as it is stored. JSON, the certificate as base64 DER; unknown fields are ignored (schema N
/// and N−1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Its name, never used again.
    pub id: AuthorityId,
    /// What it is for.
    pub kind: AuthorityKind,
    /// The replica that signs with it; for a root, the one that made it.
    pub replica: ReplicaName,
    /// Its key in the key ring.
    pub key: KeyId,
    /// How it signs.
    pub algorithm: SigningAlgorithm,
    /// Its certificate.
    pub certificate: CaCertificate,
    /// Who signed its certificate; `None` for a root that signed itself.
    pub issuer: Option<AuthorityId>,
    /// Where it stands.
    pub state: AuthorityState,
    /// When it was made.
    pub prepared_at: Timestamp,
    /// When it began to sign.
    pub activated_at: Option<Timestamp>,
}

/// A key that signs JWT-SVIDs, as it is stored. It has no certificate: verifiers know it from the bundle, in which it
/// stands from the moment of this record until the record goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwtAuthority {
    /// Its name, never used again; also the `kid` of its tokens.
    pub id: AuthorityId,
    /// The replica that signs with it.
    pub replica: ReplicaName,
    /// Its key in the key ring.
    pub key: KeyId,
    /// How it signs.
    pub algorithm: SigningAlgorithm,
    /// What the bundle says of it: no token outlives its last second.
    pub jwt_key: JwtKey,
    /// From when on it may sign.
    pub not_before: Timestamp,
    /// Sequence of the first bundle that holds it.
    pub published: u64,
    /// Where it stands.
    pub state: AuthorityState,
    /// When it was made and published.
    pub prepared_at: Timestamp,
    /// When it began to sign.
    pub activated_at: Option<Timestamp>,
}

impl JwtAuthority {
    /// The record once the key is not to be trusted any more; `None` when it says so already. Whoever stores it takes
    /// the key out of the bundle in the same transaction.
    pub fn tainted(&self) -> Option<Self> {
        let known = self.state == AuthorityState::Tainted;
        (!known).then(|| Self { state: AuthorityState::Tainted, ..self.clone() })
    }
}

/// Every authority on record, of all replicas. Names are unique over both lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Roots and issuers.
    pub certifying: Vec<Authority>,
    /// Keys for JWT-SVIDs.
    pub jwt: Vec<JwtAuthority>,
    /// The lowest bundle sequence that a live follower of the bundle has acknowledged; `None` when nobody follows it.
    pub acknowledged: Option<u64>,
}
