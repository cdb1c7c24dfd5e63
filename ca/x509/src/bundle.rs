//! Trust bundles: the roots of one trust domain, with the sequence number of their last change.
//!
//! Laws: a [`Bundle`] has at least one anchor; its anchors are sorted by fingerprint and there once, so equal contents
//! give equal bytes and digests; bundles of different trust domains are never merged. One bad entry in a SPIFFE document
//! never spoils the others; nothing usable in it makes the document refused.
//! Not here: fetching (`rhizome-server`), refusing older sequences (`rhizome-core`), keys for JWTs.
//! Sources: SPIFFE Trust Domain and Bundle §4, X509-SVID §6, RFC 7517 §4, RFC 7518 §6.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rhizome_id::{Digest, Timestamp, TrustDomain, Ttl};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::certificate::CaCertificate;
use crate::der;
use crate::key::{KeyNumbers, PublicKey};

/// The roots of one trust domain. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    sequence: u64,
    refresh_hint: Ttl,
    anchors: Vec<CaCertificate>,
}

impl Bundle {
    /// Most anchors in a bundle: a rotation needs two, a federation of old roots a few; peers try each.
    pub const MAX_ANCHORS: usize = 64;

    /// Largest SPIFFE document read, in bytes: 64 anchors of RSA-4096 in JSON with room to spare.
    pub const MAX_JSON_BYTES: usize = 1024 * 1024;

    /// Puts a bundle together: sorts the anchors by fingerprint and drops repeats.
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
        Ok(Self { trust_domain, sequence, refresh_hint, anchors })
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

    /// The anchors, sorted by fingerprint; never empty.
    pub fn anchors(&self) -> &[CaCertificate] {
        &self.anchors
    }

    /// The anchors that are valid at `now`. Not every verifier enforces an anchor's expiry, so those who publish do.
    pub fn live_anchors(&self, now: Timestamp) -> impl Iterator<Item = &CaCertificate> {
        self.anchors.iter().filter(move |anchor| anchor.not_before() <= now && now <= anchor.not_after())
    }

    /// SHA-256 over the trust domain, the sequence and each anchor's DER, each preceded by its length as eight bytes.
    pub fn digest(&self) -> Digest {
        let sequence = self.sequence.to_be_bytes();
        let parts = [self.trust_domain.as_str().as_bytes(), &sequence];
        let mut text = Vec::new();
        for part in parts.into_iter().chain(self.anchors.iter().map(CaCertificate::der)) {
            text.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            text.extend_from_slice(part);
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

    /// The SPIFFE document (TB §4): a JWK set with one `x509-svid` entry per anchor.
    pub fn to_spiffe_json(&self) -> String {
        let document = Document {
            keys: self.anchors.iter().map(Jwk::of).collect(),
            spiffe_sequence: self.sequence,
            spiffe_refresh_hint: self.refresh_hint.seconds(),
        };
        // Strings and integers only, so writing cannot fail.
        serde_json::to_string(&document).unwrap_or_default()
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
    /// The anchors for X.509.
    pub bundle: Bundle,
    /// Entries ignored because they were unknown or malformed; worth a metric. Keys for JWTs and WITs do not count.
    pub ignored: usize,
}

impl SpiffeDocument {
    /// Used when the document gives no refresh hint: 5 minutes, as deployed consumers do.
    const DEFAULT_REFRESH_SECONDS: i64 = 300;

    /// Reads a SPIFFE document (TB §4). Unknown members are allowed. An entry with an unknown `kty` or `use`, or one
    /// that holds no certificate we accept, is ignored and counted (TB §4.2.1, §4.2.2); a missing sequence reads as 0.
    ///
    /// # Errors
    /// [`BundleError`] when the text is too large, not such a document, or holds no usable anchor.
    pub fn parse(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        if text.len() > Bundle::MAX_JSON_BYTES {
            return Err(BundleError::TooLarge { bytes: text.len() });
        }
        let raw: RawDocument =
            serde_json::from_str(text).map_err(|error| BundleError::Malformed(error.to_string()))?;
        let mut anchors = Vec::new();
        let mut ignored = 0usize;
        for entry in &raw.keys {
            match read_entry(entry) {
                Entry::Anchor(anchor) => anchors.push(anchor),
                Entry::OtherUse => {}
                Entry::Ignored => ignored = ignored.saturating_add(1),
            }
            if anchors.len() > Bundle::MAX_ANCHORS {
                return Err(BundleError::TooManyAnchors { count: anchors.len() });
            }
        }
        let seconds = raw.spiffe_refresh_hint.unwrap_or(Self::DEFAULT_REFRESH_SECONDS);
        let refresh_hint = Ttl::from_seconds(seconds.clamp(1, Ttl::MAX.seconds())).unwrap_or(Ttl::MAX);
        let bundle = Bundle::new(trust_domain, raw.spiffe_sequence.unwrap_or(0), refresh_hint, anchors)?;
        Ok(Self { bundle, ignored })
    }
}

#[derive(Deserialize)]
struct RawDocument {
    keys: Vec<Value>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<i64>,
}

enum Entry {
    Anchor(CaCertificate),
    OtherUse,
    Ignored,
}

fn read_entry(entry: &Value) -> Entry {
    let member = |name: &str| entry.get(name).and_then(Value::as_str);
    if !matches!(member("kty"), Some("EC" | "RSA" | "OKP")) {
        return Entry::Ignored;
    }
    match member("use") {
        Some("x509-svid") => {}
        Some("jwt-svid" | "wit-svid") => return Entry::OtherUse,
        _ => return Entry::Ignored,
    }
    // X509-SVID §6.2: the first value only.
    let certificate = entry.get("x5c").and_then(|list| list.get(0)).and_then(Value::as_str);
    let anchor = certificate
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|der| CaCertificate::parse(&der).ok());
    anchor.map_or(Entry::Ignored, Entry::Anchor)
}

#[derive(Serialize)]
struct Document {
    keys: Vec<Jwk>,
    spiffe_sequence: u64,
    spiffe_refresh_hint: i64,
}

/// An entry for an anchor: no `kid` (X509-SVID §6.1), members of its `kty` as in any JWK.
#[derive(Serialize)]
struct Jwk {
    #[serde(rename = "use")]
    purpose: &'static str,
    kty: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    x5c: [String; 1],
}

impl Jwk {
    fn of(anchor: &CaCertificate) -> Self {
        let base = Self {
            purpose: "x509-svid",
            kty: "",
            crv: None,
            x: None,
            y: None,
            n: None,
            e: None,
            x5c: [STANDARD.encode(anchor.der())],
        };
        base.with_numbers(anchor.public_key())
    }

    fn with_numbers(self, key: &PublicKey) -> Self {
        let number = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
        match key.numbers() {
            KeyNumbers::Ec { curve, x, y } => {
                Self { kty: "EC", crv: Some(curve), x: number(x), y: number(y), ..self }
            }
            KeyNumbers::Rsa { modulus, exponent } => {
                Self { kty: "RSA", n: number(modulus), e: number(exponent), ..self }
            }
            KeyNumbers::Ed25519 { x } => Self { kty: "OKP", crv: Some("Ed25519"), x: number(x), ..self },
        }
    }
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
