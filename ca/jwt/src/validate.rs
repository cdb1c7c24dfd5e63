//! Tokens on their way in: the one place that decides whether a JWT-SVID is believed.
//!
//! Laws: size before parsing, algorithm before claims, signature before belief; only keys of the trust domain in `sub`
//! verify (JWT-SVID §6.2); each required claim is a field of a struct, and a claim of the wrong type refuses the token,
//! whether it is required or not; no header but `alg`, `kid` and `typ` (so no `crit`, `jwk`, `jku`, `x5c`, `b64`).
//! Not here: replay (a `jti` is not remembered), which claims a caller may see (`rhizome-agent`).
//! Sources: JWT-SVID §2–§6 and Appendix A, RFC 7515 §5.2, RFC 7519 §4.1 and §7.2, RFC 8725 §3.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rhizome_id::{SpiffeId, Timestamp, TrustDomain};
use rhizome_x509::JwtKey;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::algorithm::JwsAlgorithm;
use crate::json;

/// Largest token read, in bytes: what servers of HTTP take as one header, doubled.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// How far a clock may be behind the issuer's, in seconds: for `nbf` and `iat`. `exp` gets none, because every second
/// of it is one in which a stolen token is good (RFC 7519 §4.1.4 and §4.1.5 allow "usually no more than a few minutes").
pub const LEEWAY_SECONDS: i64 = 60;

/// Most keys tried for a token that names none.
const MAX_KEYS_TRIED: usize = 64;

/// Validates a JWT-SVID for `audience` at `now` (JWT-SVID §4 and Appendix A). `keys_of` gives the keys of a trust
/// domain: those of its bundle for the use `jwt-svid` and no others; `None` when the trust domain is not known.
///
/// # Errors
/// [`JwtError`] with the first reason found. Its text may be told to the caller: it holds nothing that was not in the
/// token or the question, and no more than a few words of those.
pub fn validate<'k>(
    token: &str,
    audience: &str,
    keys_of: impl FnOnce(&TrustDomain) -> Option<&'k [JwtKey]>,
    now: Timestamp,
) -> Result<ValidatedJwt, JwtError> {
    // 1. Nothing is parsed before its size is known.
    if token.len() > MAX_TOKEN_BYTES {
        return Err(JwtError::TooLarge { bytes: token.len() });
    }
    // 2. JWS compact serialisation: three parts, none empty (RFC 7515 §3.1).
    let (input, signature) = token.rsplit_once('.').ok_or(JwtError::Form)?;
    let (header, claims) = input.split_once('.').ok_or(JwtError::Form)?;
    if claims.contains('.') || [header, claims, signature].contains(&"") {
        return Err(JwtError::Form);
    }
    // 3. The header, and in it the algorithm, before anything else is looked at (JWT-SVID §2.1).
    let header = Header::read(&decode(header, "header")?)?;
    let algorithm =
        JwsAlgorithm::named(&header.alg).ok_or_else(|| JwtError::Algorithm { name: excerpt(&header.alg) })?;
    if let Some(typ) = header.typ.as_deref().filter(|typ| !matches!(*typ, "JWT" | "JOSE")) {
        return Err(JwtError::Type { typ: excerpt(typ) });
    }
    // 4. The claims, read whole. Not believed yet: `sub` only says whose keys to try.
    let (registered, claims) = Registered::read(&decode(claims, "claims")?)?;
    let Registered { sub, aud, exp, nbf, iat, jti, .. } = registered;
    let audiences = read_audiences(aud)?;
    // 5. The signature, by a live key of that trust domain, of the right kind.
    let domain = sub.trust_domain();
    let Some(keys) = keys_of(&domain) else {
        return Err(JwtError::UnknownTrustDomain { domain });
    };
    let signature = decode(signature, "signature")?;
    verify(keys, header.kid.as_deref(), algorithm, input.as_bytes(), &signature, now)?;
    // 6. Whether it is for us, and for now.
    if exp.0 <= now {
        return Err(JwtError::Expired { at: exp.0 });
    }
    if let Some(at) = [nbf, iat].into_iter().flatten().map(|date| date.0).max()
        && now.plus(LEEWAY_SECONDS) < at
    {
        return Err(JwtError::NotYet { at });
    }
    if !audiences.iter().any(|meant| meant == audience) {
        return Err(JwtError::Audience { wanted: excerpt(audience) });
    }
    Ok(ValidatedJwt {
        spiffe_id: sub,
        audiences,
        expires_at: exp.0,
        issued_at: iat.map(|at| at.0),
        jti,
        claims,
    })
}

/// What a token says, after its signature, times and audience were checked. Made by [`validate`] only.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedJwt {
    spiffe_id: SpiffeId,
    audiences: Vec<String>,
    expires_at: Timestamp,
    issued_at: Option<Timestamp>,
    jti: Option<String>,
    claims: Map<String, Value>,
}

impl ValidatedJwt {
    /// Whose token it is (`sub`).
    pub const fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// Whom it is meant for (`aud`), a single one as a list of one.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The first second at which it is not valid any more (`exp`).
    pub const fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// When it was made (`iat`), if it says.
    pub const fn issued_at(&self) -> Option<Timestamp> {
        self.issued_at
    }

    /// Its name (`jti`), if it has one.
    pub fn jti(&self) -> Option<&str> {
        self.jti.as_deref()
    }

    /// All claims as they were signed; `aud` may be a string here, see [`ValidatedJwt::audiences`].
    pub const fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// Why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// More than [`MAX_TOKEN_BYTES`].
    #[error("the token has {bytes} bytes; the limit is 16384")]
    TooLarge {
        /// Bytes found.
        bytes: usize,
    },
    /// Not three non-empty parts.
    #[error("the token is not a JWS in compact form: three parts with a dot between them (JWT-SVID §5.1)")]
    Form,
    /// A part is not canonical base64url without padding.
    #[error("the {part} of the token is not base64url without padding (RFC 7515 §2)")]
    Encoding {
        /// Which part.
        part: &'static str,
    },
    /// Not an object with `alg`, perhaps `kid` and `typ`, each once and a string, and nothing else.
    #[error("the header of the token is refused: {reason} (JWT-SVID §2)")]
    Header {
        /// Why.
        reason: String,
    },
    /// An algorithm that is never accepted.
    #[error("the algorithm {name:?} is not accepted; use ES256, ES384, or RS or PS with 256, 384 or 512")]
    Algorithm {
        /// Its name, shortened.
        name: String,
    },
    /// A `typ` other than `JWT` and `JOSE`.
    #[error("the type {typ:?} is not accepted; a JWT-SVID has JWT, JOSE or none (JWT-SVID §2.3)")]
    Type {
        /// The type, shortened.
        typ: String,
    },
    /// Not an object with `sub`, `aud` and `exp`, each member once and of its type.
    #[error("the claims of the token are refused: {reason} (JWT-SVID §3)")]
    Claims {
        /// Why.
        reason: String,
    },
    /// There is no bundle for the trust domain of `sub`.
    #[error("there is no bundle for the trust domain {domain}")]
    UnknownTrustDomain {
        /// The trust domain.
        domain: TrustDomain,
    },
    /// The bundle of the trust domain has no live key of that name.
    #[error("the trust domain has no live JWT key {kid:?}")]
    UnknownKey {
        /// The name, shortened.
        kid: String,
    },
    /// The key of that name is of another kind than the algorithm.
    #[error("the algorithm does not belong to the kind of key that the token names")]
    KeyMismatch,
    /// The signature is not by the key named, or by none of the trust domain's.
    #[error("the signature of the token does not verify")]
    Signature,
    /// `exp` has come.
    #[error("the token expired at {at}")]
    Expired {
        /// The first second at which it was not valid any more.
        at: Timestamp,
    },
    /// `nbf` or `iat` lies more than [`LEEWAY_SECONDS`] ahead.
    #[error("the token is not valid before {at}")]
    NotYet {
        /// The later of both.
        at: Timestamp,
    },
    /// It is meant for others.
    #[error("the token is not meant for the audience {wanted:?}")]
    Audience {
        /// Who asked, shortened.
        wanted: String,
    },
}

impl JwtError {
    /// A stable name for metrics and logs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "jwt_too_large",
            Self::Form => "jwt_form",
            Self::Encoding { .. } => "jwt_encoding",
            Self::Header { .. } => "jwt_header",
            Self::Algorithm { .. } => "jwt_algorithm",
            Self::Type { .. } => "jwt_type",
            Self::Claims { .. } => "jwt_claims",
            Self::UnknownTrustDomain { .. } => "jwt_trust_domain",
            Self::UnknownKey { .. } => "jwt_key_unknown",
            Self::KeyMismatch => "jwt_key_mismatch",
            Self::Signature => "jwt_signature",
            Self::Expired { .. } => "jwt_expired",
            Self::NotYet { .. } => "jwt_not_yet",
            Self::Audience { .. } => "jwt_audience",
        }
    }
}

/// Tries the live keys named `kid`, or all of them when the token names none.
fn verify(
    keys: &[JwtKey],
    kid: Option<&str>,
    algorithm: JwsAlgorithm,
    input: &[u8],
    signature: &[u8],
    now: Timestamp,
) -> Result<(), JwtError> {
    let live = keys.iter().take(MAX_KEYS_TRIED).filter(|key| key.is_live(now));
    let named: Vec<&JwtKey> = live.filter(|key| kid.is_none_or(|kid| key.kid() == kid)).collect();
    if let Some(kid) = kid {
        if named.is_empty() {
            return Err(JwtError::UnknownKey { kid: excerpt(kid) });
        }
        if !named.iter().any(|key| algorithm.fits(key.public_key().algorithm())) {
            return Err(JwtError::KeyMismatch);
        }
    }
    let verified = named.iter().any(|key| algorithm.verifies(key.public_key(), input, signature));
    if verified { Ok(()) } else { Err(JwtError::Signature) }
}

/// Base64url as RFC 7515 §2 has it: no padding, no bits left over, no other characters.
fn decode(part: &str, name: &'static str) -> Result<Vec<u8>, JwtError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_malformed| JwtError::Encoding { part: name })
}

/// Every header there may be (JWT-SVID §2).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "present")]
    kid: Option<String>,
    #[serde(default, deserialize_with = "present")]
    typ: Option<String>,
}

impl Header {
    fn read(text: &[u8]) -> Result<Self, JwtError> {
        let refuse = |error: serde_json::Error| JwtError::Header { reason: excerpt(&error.to_string()) };
        let members = json::object(text).map_err(refuse)?;
        serde_json::from_value(Value::Object(members)).map_err(refuse)
    }
}

/// The registered claims (RFC 7519 §4.1): the required ones are no options, and the others have their types.
#[derive(Deserialize)]
struct Registered {
    sub: SpiffeId,
    aud: Value,
    exp: NumericDate,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<NumericDate>,
    #[serde(default, deserialize_with = "present")]
    iat: Option<NumericDate>,
    #[serde(default, deserialize_with = "present")]
    jti: Option<String>,
    #[expect(dead_code, reason = "read for its type only")]
    #[serde(default, deserialize_with = "present")]
    iss: Option<String>,
}

impl Registered {
    /// The registered claims, and all of them.
    fn read(text: &[u8]) -> Result<(Self, Map<String, Value>), JwtError> {
        let refuse = |error: serde_json::Error| JwtError::Claims { reason: excerpt(&error.to_string()) };
        let members = json::object(text).map_err(refuse)?;
        let read: Self = serde_json::from_value(Value::Object(members.clone())).map_err(refuse)?;
        if read.sub.path().is_empty() {
            return Err(JwtError::Claims { reason: "`sub` is a trust domain, not a workload".to_owned() });
        }
        Ok((read, members))
    }
}

/// One string, or a list of strings that is not empty (RFC 7519 §4.1.3, JWT-SVID §3.2).
fn read_audiences(value: Value) -> Result<Vec<String>, JwtError> {
    let refuse = || JwtError::Claims {
        reason: "`aud` is not a string or a list of strings with one at least".to_owned(),
    };
    let audiences: Vec<String> = match value {
        Value::String(one) => vec![one],
        list @ Value::Array(_) => serde_json::from_value(list).map_err(|_not_strings| refuse())?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return Err(refuse()),
    };
    if audiences.is_empty() || audiences.iter().any(String::is_empty) { Err(refuse()) } else { Ok(audiences) }
}

/// Whole seconds since the epoch (RFC 7519 §2), within the years that our instants can name. Fractions are refused.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "i64")]
struct NumericDate(Timestamp);

impl TryFrom<i64> for NumericDate {
    type Error = &'static str;

    fn try_from(seconds: i64) -> Result<Self, Self::Error> {
        let at = Timestamp::from_unix(seconds);
        if at.unix() == seconds { Ok(Self(at)) } else { Err("an instant outside the years 1970 to 9999") }
    }
}

/// A member that is there has a value: `null` is not the same as absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// The beginning of something a stranger wrote, fit for a log line.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 120;
    text.chars().take(LONGEST).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests;
