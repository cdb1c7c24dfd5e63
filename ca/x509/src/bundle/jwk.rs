//! The entries of a SPIFFE document: JWKs, written and read.
//!
//! Laws: an entry that cannot be used is ignored, never fatal; what is written is read back as it was, but for the
//! lifetime of JWT keys, which a JWK does not say.
//! Sources: SPIFFE Trust Domain and Bundle §4.2, X509-SVID §6, JWT-SVID §6, RFC 7517 §4, RFC 7518 §6.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rhizome_id::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::JwtKey;
use crate::certificate::CaCertificate;
use crate::key::{KeyAlgorithm, KeyNumbers, PublicKey};

const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";
const WIT_SVID: &str = "wit-svid";
/// RFC 7517 §4.2.
const SIGNATURE: &str = "sig";

/// What an entry of a document is to us.
pub(super) enum Entry {
    Anchor(CaCertificate),
    JwtKey(JwtKey),
    /// For a use that we know and have no use for.
    OtherUse,
    /// Unknown or malformed.
    Ignored,
}

pub(super) fn read_entry(entry: &Value) -> Entry {
    let member = |name: &str| entry.get(name).and_then(Value::as_str);
    if !matches!(member("kty"), Some("EC" | "RSA" | "OKP")) {
        return Entry::Ignored;
    }
    match member("use") {
        Some(X509_SVID) => read_anchor(entry).map_or(Entry::Ignored, Entry::Anchor),
        Some(JWT_SVID) => read_jwt_key(entry).map_or(Entry::Ignored, Entry::JwtKey),
        Some(WIT_SVID) => Entry::OtherUse,
        _ => Entry::Ignored,
    }
}

/// X509-SVID §6.2: the first value of `x5c` only.
fn read_anchor(entry: &Value) -> Option<CaCertificate> {
    let certificate = entry.get("x5c").and_then(|list| list.get(0)).and_then(Value::as_str)?;
    CaCertificate::parse(&STANDARD.decode(certificate).ok()?).ok()
}

/// JWT-SVID §6.1: `kid` is required. A document does not say how long a key signs.
fn read_jwt_key(entry: &Value) -> Option<JwtKey> {
    let member = |name: &str| entry.get(name).and_then(Value::as_str);
    let number = |name: &str| member(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let point = |algorithm, bytes: usize| {
        // RFC 7518 §6.2.1.2: the full size of a coordinate, leading zeros included.
        let (x, y) = (number("x")?, number("y")?);
        if x.len() != bytes || y.len() != bytes {
            return None;
        }
        PublicKey::from_ec_point(algorithm, &[&[4], x.as_slice(), &y].concat()).ok()
    };
    let key = match (member("kty")?, member("crv")) {
        ("EC", Some("P-256")) => point(KeyAlgorithm::EcdsaP256, 32)?,
        ("EC", Some("P-384")) => point(KeyAlgorithm::EcdsaP384, 48)?,
        ("RSA", _) => PublicKey::from_rsa_numbers(&number("n")?, &number("e")?).ok()?,
        _ => return None,
    };
    JwtKey::new(member("kid")?.to_owned(), key, Timestamp::MAX).ok()
}

/// One entry: the members of its `kty` as in any JWK, and what its use asks for.
#[derive(Serialize)]
pub(super) struct Jwk<'a> {
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    purpose: Option<&'static str>,
    kty: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<&'static str>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    x5c: Option<[String; 1]>,
}

impl<'a> Jwk<'a> {
    /// An anchor: no `kid` (X509-SVID §6.1).
    pub(super) fn of_anchor(anchor: &CaCertificate) -> Self {
        let base = Self::of_key(anchor.public_key());
        Self { purpose: Some(X509_SVID), x5c: Some([STANDARD.encode(anchor.der())]), ..base }
    }

    /// A key for JWT-SVIDs (JWT-SVID §6.1).
    pub(super) fn of_jwt_key(key: &'a JwtKey) -> Self {
        Self { purpose: Some(JWT_SVID), ..Self::of_jwt_key_without_use(key) }
    }

    /// The same as the Workload API carries it, where the use goes without saying, as from SPIRE's agent.
    pub(super) fn of_jwt_key_without_use(key: &'a JwtKey) -> Self {
        Self { kid: Some(key.kid()), ..Self::of_key(key.public_key()) }
    }

    /// The same as relying parties of OpenID Connect want it: they know nothing of SPIFFE's uses.
    pub(super) fn of_oidc_key(key: &'a JwtKey) -> Self {
        let alg = match key.public_key().algorithm() {
            KeyAlgorithm::EcdsaP256 => Some("ES256"),
            KeyAlgorithm::EcdsaP384 => Some("ES384"),
            KeyAlgorithm::Rsa { .. } => Some("RS256"),
            KeyAlgorithm::Ed25519 => None,
        };
        Self { purpose: Some(SIGNATURE), alg, ..Self::of_jwt_key_without_use(key) }
    }

    pub(super) fn of_key(key: &PublicKey) -> Self {
        let number = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
        let base = Self {
            purpose: None,
            kty: "",
            kid: None,
            alg: None,
            crv: None,
            x: None,
            y: None,
            n: None,
            e: None,
            x5c: None,
        };
        match key.numbers() {
            KeyNumbers::Ec { curve, x, y } => {
                Self { kty: "EC", crv: Some(curve), x: number(x), y: number(y), ..base }
            }
            KeyNumbers::Rsa { modulus, exponent } => {
                Self { kty: "RSA", n: number(modulus), e: number(exponent), ..base }
            }
            KeyNumbers::Ed25519 { x } => Self { kty: "OKP", crv: Some("Ed25519"), x: number(x), ..base },
        }
    }
}
