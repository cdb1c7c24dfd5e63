//! Trust bundles: the roots of one trust domain and its keys for JWTs, with the sequence number of their last change.
//!
//! Laws: a [`Bundle`] has at least one anchor, but for a foreign one that is for JWT-SVIDs alone; its anchors are sorted by fingerprint and there once, its JWT keys by
//! `kid`, so equal contents give equal bytes and digests; bundles of different trust domains are never merged. One bad
//! entry in a SPIFFE document never spoils the others; nothing usable in it makes the document refused.
//! Not here: fetching (`rhizome-server`), refusing older sequences (`rhizome-core`).
//! Sources: SPIFFE Trust Domain and Bundle §4, X509-SVID §6, JWT-SVID §6.

use std::collections::BTreeMap;

use rhizome_id::{Digest, Timestamp, TrustDomain, Ttl};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::jwk::{Entry, Jwk, read_entry};
use crate::certificate::CaCertificate;
use crate::der;

pub use jwt_key::{JwtKey, JwtKeyError};

mod jwk;
mod jwt_key;

/// The roots of one trust domain and its keys for JWT-SVIDs. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    sequence: u64,
    refresh_hint: Ttl,
    anchors: Vec<CaCertificate>,
    jwt_keys: Vec<JwtKey>,
}

impl Bundle {
    /// Most anchors in a bundle: a rotation needs two, a federation of old roots a few; peers try each.
    pub const MAX_ANCHORS: usize = 64;

    /// Most keys for JWT-SVIDs in a bundle: a rotation needs two for each replica.
    pub const MAX_JWT_KEYS: usize = 64;

    /// Largest SPIFFE document read, in bytes: 64 anchors of RSA-4096 and as many keys in JSON with room to spare.
    pub const MAX_JSON_BYTES: usize = 1024 * 1024;

    /// Puts a bundle without JWT keys together: sorts the anchors by fingerprint and drops repeats.
    ///
    /// # Errors
    /// [`BundleError::Empty`] without anchors (TB §4.1.3: it would make every SVID invalid), or
    /// [`BundleError::TooManyAnchors`].
    pub fn new(
        trust_domain: TrustDomain,
        sequence: u64,
        refresh_hint: Ttl,
        mut anchors: Vec<CaCertificate>,
    ) -> Result<Self, BundleError> {
        anchors.sort_by_key(CaCertificate::fingerprint);
        anchors.dedup();
        if anchors.is_empty() {
            return Err(BundleError::Empty);
        }
        if anchors.len() > Self::MAX_ANCHORS {
            return Err(BundleError::TooManyAnchors { count: anchors.len() });
        }
        Ok(Self { trust_domain, sequence, refresh_hint, anchors, jwt_keys: Vec::new() })
    }

    /// A bundle of a foreign trust domain, which may have no anchors when it has JWT keys (TB §4.1.3: it is empty when
    /// nothing in it can be used). Our own is made with [`Bundle::new`].
    ///
    /// # Errors
    /// [`BundleError::Empty`] when there is neither; otherwise as [`Bundle::new`] and [`Bundle::with_jwt_keys`].
    pub fn foreign(
        trust_domain: TrustDomain,
        sequence: u64,
        refresh_hint: Ttl,
        anchors: Vec<CaCertificate>,
        jwt_keys: Vec<JwtKey>,
    ) -> Result<Self, BundleError> {
        if anchors.is_empty() && !jwt_keys.is_empty() {
            return Self { trust_domain, sequence, refresh_hint, anchors, jwt_keys: Vec::new() }
                .with_jwt_keys(jwt_keys);
        }
        Self::new(trust_domain, sequence, refresh_hint, anchors)?.with_jwt_keys(jwt_keys)
    }

    /// The same bundle without the anchors that have expired at `now` (some verifiers do not look at an anchor's end).
    ///
    /// # Errors
    /// [`BundleError::Empty`] when nothing is left.
    pub fn pruned(&self, now: Timestamp) -> Result<Self, BundleError> {
        let live = self.anchors.iter().filter(|anchor| now <= anchor.not_after()).cloned().collect();
        let Self { trust_domain, sequence, refresh_hint, anchors: _, jwt_keys } = self.clone();
        Self::foreign(trust_domain, sequence, refresh_hint, live, jwt_keys)
    }

    /// The same bundle with these JWT keys instead of its own: sorts them by `kid` and drops repeats.
    ///
    /// # Errors
    /// [`BundleError::TooManyJwtKeys`], or [`BundleError::RepeatedKid`] when two different keys have one name.
    pub fn with_jwt_keys(self, mut jwt_keys: Vec<JwtKey>) -> Result<Self, BundleError> {
        jwt_keys.sort_by(|one, other| one.kid().cmp(other.kid()));
        jwt_keys.dedup();
        if jwt_keys.len() > Self::MAX_JWT_KEYS {
            return Err(BundleError::TooManyJwtKeys { count: jwt_keys.len() });
        }
        let twice = jwt_keys.iter().zip(jwt_keys.iter().skip(1)).find(|(one, next)| one.kid() == next.kid());
        if let Some((key, _)) = twice {
            return Err(BundleError::RepeatedKid { kid: key.kid().to_owned() });
        }
        Ok(Self { jwt_keys, ..self })
    }

    /// The trust domain whose certificates the anchors verify.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Grows with every change of the contents (TB §4.1.1).
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How often consumers should look for a change (TB §4.1.2).
    pub const fn refresh_hint(&self) -> Ttl {
        self.refresh_hint
    }

    /// The anchors, sorted by fingerprint; empty only in a foreign bundle that is for JWT-SVIDs alone.
    pub fn anchors(&self) -> &[CaCertificate] {
        &self.anchors
    }

    /// The keys for JWT-SVIDs, sorted by `kid`; at most 64.
    pub fn jwt_keys(&self) -> &[JwtKey] {
        &self.jwt_keys
    }

    /// The keys that verify anything at `now`.
    pub fn live_jwt_keys(&self, now: Timestamp) -> impl Iterator<Item = &JwtKey> {
        self.jwt_keys.iter().filter(move |key| key.is_live(now))
    }

    /// SHA-256 over the trust domain, the sequence and each anchor's DER, each preceded by its length as eight bytes;
    /// then, when there are JWT keys, `jwt-svid` and for each its `kid`, its SubjectPublicKeyInfo in DER and its last
    /// second as eight bytes, in the same manner. A bundle without JWT keys has the digest it always had.
    pub fn digest(&self) -> Digest {
        let mut text = Vec::new();
        let mut add = |part: &[u8]| {
            text.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            text.extend_from_slice(part);
        };
        add(self.trust_domain.as_str().as_bytes());
        add(&self.sequence.to_be_bytes());
        self.anchors.iter().for_each(|anchor| add(anchor.der()));
        if !self.jwt_keys.is_empty() {
            // No anchor has eight bytes, so this is never read as one.
            add(b"jwt-svid");
        }
        for key in &self.jwt_keys {
            add(key.kid().as_bytes());
            add(key.public_key().spki_der());
            add(&key.not_after().unix().to_be_bytes());
        }
        der::sha256(&text)
    }

    /// The anchors in PEM, one after the other, each with one newline at its end.
    pub fn to_pem(&self) -> String {
        self.anchors.iter().map(CaCertificate::pem).collect()
    }

    /// The anchors in DER, one after the other: what the SPIFFE Workload API carries.
    pub fn to_der(&self) -> Vec<u8> {
        self.anchors.iter().flat_map(|anchor| anchor.der().iter().copied()).collect()
    }

    /// The SPIFFE document (TB §4): a JWK set with one `x509-svid` entry per anchor and one `jwt-svid` entry per JWT key.
    pub fn to_spiffe_json(&self) -> String {
        let anchors = self.anchors.iter().map(Jwk::of_anchor);
        let document = Document {
            keys: anchors.chain(self.jwt_keys.iter().map(Jwk::of_jwt_key)).collect(),
            spiffe_sequence: self.sequence,
            spiffe_refresh_hint: self.refresh_hint.seconds(),
        };
        // Strings and integers only, so writing cannot fail.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// The JWT keys that are live at `now` as the SPIFFE Workload API carries them: a JWK set of nothing else, without
    /// `use` and SPIFFE's own members; `keys` is there also when it is empty, as SPIRE's
    /// agent answers.
    pub fn to_jwks_json(&self, now: Timestamp) -> String {
        let set = KeySet { keys: self.live_jwt_keys(now).map(Jwk::of_jwt_key_without_use).collect() };
        // Strings only, so writing cannot fail.
        serde_json::to_string(&set).unwrap_or_default()
    }

    /// The JWT keys that are live at `now` as OpenID Connect's discovery points to them: a JWK set whose entries say that
    /// they verify signatures (`use` is `sig`) and by which algorithm.
    pub fn to_oidc_jwks_json(&self, now: Timestamp) -> String {
        let set = KeySet { keys: self.live_jwt_keys(now).map(Jwk::of_oidc_key).collect() };
        // Strings only, so writing cannot fail.
        serde_json::to_string(&set).unwrap_or_default()
    }

    /// Reads a SPIFFE document of `trust_domain`; see [`SpiffeDocument::parse`].
    ///
    /// # Errors
    /// As for [`SpiffeDocument::parse`].
    pub fn from_spiffe_json(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        SpiffeDocument::parse(trust_domain, text).map(|document| document.bundle)
    }
}

/// A SPIFFE document as it was read: the bundle, and how much of it was of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpiffeDocument {
    /// The anchors for X.509 and the keys for JWTs. How long a key signs is not said, so [`JwtKey::not_after`] is
    /// [`Timestamp::MAX`].
    pub bundle: Bundle,
    /// Entries ignored because they were unknown or malformed; worth a metric. Keys for WITs do not count.
    pub ignored: usize,
}

impl SpiffeDocument {
    /// Used when the document gives no refresh hint: 5 minutes, as deployed consumers do.
    const DEFAULT_REFRESH_SECONDS: i64 = 300;

    /// Reads a SPIFFE document (TB §4). Unknown members are allowed. An entry with an unknown `kty` or `use`, or one
    /// that holds no certificate or key we accept, is ignored and counted (TB §4.2.1, §4.2.2), and so is a JWT key with
    /// the `kid` of one before it; a missing sequence reads as 0.
    ///
    /// # Errors
    /// [`BundleError`] when the text is too large, not such a document, or holds no usable anchor and no usable JWT key.
    pub fn parse(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        if text.len() > Bundle::MAX_JSON_BYTES {
            return Err(BundleError::TooLarge { bytes: text.len() });
        }
        let raw: RawDocument =
            serde_json::from_str(text).map_err(|error| BundleError::Malformed(error.to_string()))?;
        let mut anchors = Vec::new();
        let mut jwt_keys: BTreeMap<String, JwtKey> = BTreeMap::new();
        let mut ignored = 0usize;
        for entry in &raw.keys {
            match read_entry(entry) {
                Entry::Anchor(anchor) => anchors.push(anchor),
                Entry::JwtKey(key) if !jwt_keys.contains_key(key.kid()) => {
                    jwt_keys.insert(key.kid().to_owned(), key);
                }
                Entry::OtherUse => {}
                Entry::JwtKey(_) | Entry::Ignored => ignored = ignored.saturating_add(1),
            }
            if anchors.len() > Bundle::MAX_ANCHORS {
                return Err(BundleError::TooManyAnchors { count: anchors.len() });
            }
            if jwt_keys.len() > Bundle::MAX_JWT_KEYS {
                return Err(BundleError::TooManyJwtKeys { count: jwt_keys.len() });
            }
        }
        let seconds = raw.spiffe_refresh_hint.unwrap_or(Self::DEFAULT_REFRESH_SECONDS);
        let refresh_hint = Ttl::from_seconds(seconds.clamp(1, Ttl::MAX.seconds())).unwrap_or(Ttl::MAX);
        let jwt_keys = jwt_keys.into_values().collect();
        let sequence = raw.spiffe_sequence.unwrap_or(0);
        let bundle = Bundle::foreign(trust_domain, sequence, refresh_hint, anchors, jwt_keys)?;
        Ok(Self { bundle, ignored })
    }
}

#[derive(Deserialize)]
struct RawDocument {
    keys: Vec<Value>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<i64>,
}

#[derive(Serialize)]
struct Document<'a> {
    keys: Vec<Jwk<'a>>,
    spiffe_sequence: u64,
    spiffe_refresh_hint: i64,
}

#[derive(Serialize)]
struct KeySet<'a> {
    keys: Vec<Jwk<'a>>,
}

/// Why there is no bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// No anchor, or none that is usable.
    #[error(
        "the bundle has no usable anchor; every certificate of the trust domain would be invalid (TB §4.1.3)"
    )]
    Empty,
    /// More than [`Bundle::MAX_ANCHORS`].
    #[error("the bundle has {count} anchors or more; the limit is 64")]
    TooManyAnchors {
        /// Anchors counted when the limit was passed.
        count: usize,
    },
    /// More than [`Bundle::MAX_JWT_KEYS`].
    #[error("the bundle has {count} JWT keys or more; the limit is 64")]
    TooManyJwtKeys {
        /// Keys counted when the limit was passed.
        count: usize,
    },
    /// Two different keys have one name.
    #[error("the bundle has two JWT keys called `{kid}`")]
    RepeatedKid {
        /// The name.
        kid: String,
    },
    /// More than [`Bundle::MAX_JSON_BYTES`].
    #[error("the bundle document has {bytes} bytes; the limit is 1048576")]
    TooLarge {
        /// Bytes found.
        bytes: usize,
    },
    /// Not a SPIFFE document.
    #[error("not a SPIFFE bundle document: {0}")]
    Malformed(String),
}

#[cfg(test)]
mod tests;
