//! Authorities as they are stored: roots and issuers with their certificates, and the keys of JWT-SVIDs.
//!
//! Laws: unknown fields are ignored (schema N and N−1). Not here: what becomes of them, and when (the parent).

use std::fmt;

use rhizome_id::{AuthorityId, KeyId, ReplicaName, Timestamp, Ttl};
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

/// How long new authorities live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationPolicy {
    /// Roots.
    pub root_ttl: Ttl,
    /// Issuers; never beyond their root.
    pub issuer_ttl: Ttl,
    /// Keys for JWT-SVIDs.
    pub jwt_key_ttl: Ttl,
    /// Where the very first root comes from.
    pub first_root: FirstRoot,
    /// Whether keys for JWT-SVIDs are made: not where the bundle is another Rhizome's.
    pub jwt_keys: bool,
}

/// Where the very first root comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstRoot {
    /// It is made here.
    #[default]
    Make,
    /// It is brought here: its key is elsewhere.
    Await,
}

/// Where the private key of an authority is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Custody {
    /// In the key ring of these servers.
    #[default]
    Here,
    /// Anywhere else: what it signs comes from there, and no server of ours can make it.
    Elsewhere,
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
    /// When it ceased to sign. Older releases stored none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Timestamp>,
    /// Where its key is. Releases that do not know of this look for it in vain, and sign nothing with it.
    #[serde(default)]
    pub custody: Custody,
    /// Of one that was imported: the certificates above it that are no authorities here, nearest first. A root's end with
    /// the one that verifiers trust; an issuer's end below its root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub above: Vec<CaCertificate>,
    /// For a root, while it is changed for another: its key, certified by that other root. Older releases stored none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross: Option<Cross>,
    /// For a root that is not active yet: whether each replica has an issuer below it, beside the one below the active root,
    /// and issues a share with it. Older releases stored none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub canary: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_false(it: &bool) -> bool {
    !*it
}

impl Authority {
    /// Of a root: whether a share is issued below it before it is active.
    pub fn is_canary(&self) -> bool {
        self.kind == AuthorityKind::Root && self.state == AuthorityState::Prepared && self.canary
    }

    /// Of a root: what verifiers trust, which is its own certificate unless it was imported as an intermediate.
    pub fn anchor(&self) -> &CaCertificate {
        self.above.last().unwrap_or(&self.certificate)
    }

    /// Of a root: the certificates between its issuers and its anchor, nearest first; they are served with every leaf.
    pub fn served(&self) -> impl Iterator<Item = &CaCertificate> {
        let between = self.above.split_last().map(|(_anchor, between)| between);
        between.map(|between| std::iter::once(&self.certificate).chain(between)).into_iter().flatten()
    }

    /// The first and the last second in which it and everything above it are valid.
    pub fn window(&self) -> (Timestamp, Timestamp) {
        let whole = || std::iter::once(&self.certificate).chain(&self.above);
        let from = whole().map(CaCertificate::not_before).max().unwrap_or(Timestamp::MAX);
        (from, whole().map(CaCertificate::not_after).min().unwrap_or(Timestamp::EPOCH))
    }
}

/// A root's key, certified by another root: what chains below it carry, so that holders of the other root alone accept
/// them too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cross {
    /// The root that certified it.
    pub by: AuthorityId,
    /// The certificate.
    pub certificate: CaCertificate,
    /// Whether chains carry it.
    pub carried: bool,
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
