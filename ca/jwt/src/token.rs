//! Tokens on their way out: from checked facts to bytes to be signed to a JWT-SVID.
//!
//! Laws: a [`TokenToBeSigned`] is made in this crate only, from facts that passed every check, and becomes at most one
//! token; header and claims are exactly ours (`alg`, `kid`, `typ`; `aud`, `exp`, `iat`, `iss` where there is one, `jti`, `sub`) and written in
//! one way; a token never outlives the key that signs it; what [`prepare`] makes, [`crate::validate`] reads.
//! Not here: who may have it, for how long, by which key (`rhizome-core`). Sources: JWT-SVID §2–§5, RFC 7515 §5.1.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rhizome_id::{Digest, SpiffeId, Timestamp};
use rhizome_x509::{JwtKey, Provenance, Signature, SigningAlgorithm};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::algorithm::{JwsAlgorithm, fixed_form};
use crate::validate::MAX_TOKEN_BYTES;

/// Most audiences of one token we make. One is best: each can present the token to the others (JWT-SVID §7.2).
pub const MAX_AUDIENCES: usize = 16;

/// Longest audience of a token we make, in bytes.
pub const MAX_AUDIENCE_BYTES: usize = 256;

/// Longest `jti` of a token we make, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// The facts of a token, decided elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtSpec {
    /// Whose token it is (`sub`).
    pub spiffe_id: SpiffeId,
    /// Whom it is meant for (`aud`): written in this order, without repeats, always as a list.
    pub audiences: Vec<String>,
    /// When it is made (`iat`).
    pub issued_at: Timestamp,
    /// The first second at which it is not valid any more (`exp`, RFC 7519 §4.1.4).
    pub expires_at: Timestamp,
    /// Its name, unique among all tokens of the authority (`jti`).
    pub jti: String,
    /// The address by which relying parties of OpenID Connect find the key (`iss`); none is written without one.
    pub issuer: Option<String>,
    /// The public half of the key that will sign it: gives `alg` and `kid`, and bounds `exp`.
    pub key: JwtKey,
}

/// Checks the facts of a token and writes down the bytes that are to be signed. The same facts give the same bytes.
///
/// # Errors
/// [`PrepareError`] naming the first fact that is not one of a JWT-SVID of ours.
pub fn prepare(mut spec: JwtSpec) -> Result<TokenToBeSigned, PrepareError> {
    let algorithm = SigningAlgorithm::of_key(spec.key.public_key().algorithm()).ok_or(PrepareError::Key)?;
    spec.audiences = checked_audiences(spec.audiences)?;
    if spec.spiffe_id.path().is_empty() {
        return Err(PrepareError::NotAWorkload { id: spec.spiffe_id });
    }
    let jti = 1..=MAX_NAME_BYTES;
    if !jti.contains(&spec.jti.len()) || !spec.jti.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(PrepareError::Jti);
    }
    if spec.expires_at <= spec.issued_at {
        return Err(PrepareError::Lifetime { issued_at: spec.issued_at, expires_at: spec.expires_at });
    }
    if spec.key.not_after() < spec.expires_at {
        let key_ends = spec.key.not_after();
        return Err(PrepareError::OutlivesKey { expires_at: spec.expires_at, key_ends });
    }
    let header = Header { alg: JwsAlgorithm::of(algorithm).name(), kid: spec.key.kid(), typ: "JWT" };
    let claims = Claims {
        aud: &spec.audiences,
        exp: spec.expires_at.unix(),
        iat: spec.issued_at.unix(),
        iss: spec.issuer.as_deref(),
        jti: &spec.jti,
        sub: spec.spiffe_id.as_str(),
    };
    let input = format!("{}.{}", encode(&header)?, encode(&claims)?);
    // The signature in base64: 86 bytes for P-256, 128 for P-384, and the dot before it.
    if input.len().saturating_add(129) > MAX_TOKEN_BYTES {
        return Err(PrepareError::TooLarge { bytes: input.len() });
    }
    Ok(TokenToBeSigned { input, algorithm, spec: Some(spec) })
}

/// Fixed bytes that a key for tokens signs, to prove that it belongs to its public key. They have no dot in them, so
/// the signature is worth nothing as a token's, and [`TokenToBeSigned::seal`] refuses.
pub fn probe_for(algorithm: SigningAlgorithm) -> TokenToBeSigned {
    let input = "rhizome: proof that a private key belongs to its public key; not a token".to_owned();
    TokenToBeSigned { input, algorithm, spec: None }
}

/// Bytes that a key for tokens may sign. There is no way to make one from bytes of one's own, and one becomes at most
/// one token:
///
/// ```compile_fail,E0451
/// let algorithm = rhizome_x509::SigningAlgorithm::EcdsaP256Sha256;
/// let forged = rhizome_jwt::TokenToBeSigned { input: "e30.e30".to_owned(), algorithm, spec: None };
/// ```
///
/// ```compile_fail,E0599
/// fn twice(token: rhizome_jwt::TokenToBeSigned) -> (rhizome_jwt::TokenToBeSigned, rhizome_jwt::TokenToBeSigned) {
///     (token.clone(), token)
/// }
/// ```
pub struct TokenToBeSigned {
    input: String,
    algorithm: SigningAlgorithm,
    /// None in the probe.
    spec: Option<JwtSpec>,
}

impl TokenToBeSigned {
    /// The JWS signing input (RFC 7515 §5.1, step 8).
    pub fn as_bytes(&self) -> &[u8] {
        self.input.as_bytes()
    }

    /// What to sign it with.
    pub const fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// SHA-256 of [`TokenToBeSigned::as_bytes`]: what the ledger records before anything is signed.
    pub fn digest(&self) -> Digest {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.as_bytes());
        let bytes = <[u8; 32]>::try_from(digest.as_ref());
        // SHA-256 has 32 bytes, so the fallback is never taken.
        bytes.map_or(Digest::ZERO, Digest::from_bytes)
    }

    /// Puts the token together from a signature in DER, which is turned into the fixed form of JOSE (RFC 7518 §3.4).
    ///
    /// An external signature is always verified with the key. One from this process is verified for one token in 64
    /// (by a byte of its digest): its key was proved at load, as for certificates.
    ///
    /// # Errors
    /// [`SealError`] when the signature is not an `ECDSA-Sig-Value` in DER for the algorithm or does not verify, and
    /// for the probe.
    #[expect(clippy::needless_pass_by_value, reason = "a signature is used up with what it signed")]
    pub fn seal(self, signature: Signature) -> Result<JwtSvid, SealError> {
        let fixed = fixed_form(signature.as_bytes(), self.algorithm).ok_or(SealError::Malformed)?;
        let digest = self.digest();
        let Self { input, algorithm, spec } = self;
        let spec = spec.ok_or(SealError::Probe)?;
        let [.., last] = digest.as_bytes();
        if signature.provenance() == Provenance::External || last & 0x3f == 0 {
            let key = spec.key.public_key();
            if !JwsAlgorithm::of(algorithm).verifies(key, input.as_bytes(), &fixed) {
                return Err(SealError::Signature);
            }
        }
        let mut token = Zeroizing::new(String::with_capacity(input.len().saturating_add(129)));
        token.push_str(&input);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(fixed, &mut token);
        Ok(JwtSvid { token, spec })
    }
}

/// Says how much there is and by what it is to be signed; never the bytes, which miss being a token by a signature.
impl fmt::Debug for TokenToBeSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, algorithm, spec: _ } = self;
        write!(f, "TokenToBeSigned({} bytes, {algorithm})", input.len())
    }
}

/// A signed token: a bearer secret, wiped from memory when dropped. It has neither `Clone` nor `PartialEq`.
///
/// ```compile_fail,E0277
/// fn shown(svid: rhizome_jwt::JwtSvid) -> String {
///     format!("{svid}")
/// }
/// ```
pub struct JwtSvid {
    token: Zeroizing<String>,
    spec: JwtSpec,
}

impl JwtSvid {
    /// The token in JWS compact form (RFC 7515 §3.1). Whoever sees it can use it: send it, do not log it.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whose token it is.
    pub const fn spiffe_id(&self) -> &SpiffeId {
        &self.spec.spiffe_id
    }

    /// Whom it is meant for.
    pub fn audiences(&self) -> &[String] {
        &self.spec.audiences
    }

    /// When it was made.
    pub const fn issued_at(&self) -> Timestamp {
        self.spec.issued_at
    }

    /// The first second at which it is not valid any more.
    pub const fn expires_at(&self) -> Timestamp {
        self.spec.expires_at
    }

    /// Its name.
    pub fn jti(&self) -> &str {
        &self.spec.jti
    }

    /// The name of the key that signed it.
    pub fn kid(&self) -> &str {
        self.spec.key.kid()
    }
}

/// Says whose token it is and which; never the token.
impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _, spec } = self;
        write!(f, "JwtSvid({}, jti {}, until {})", spec.spiffe_id, spec.jti, spec.expires_at)
    }
}

/// Why a token is not prepared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// No audience (JWT-SVID §3.2).
    #[error("a JWT-SVID needs at least one audience")]
    NoAudience,
    /// More than [`MAX_AUDIENCES`] after repeats are dropped.
    #[error("{count} audiences; the limit is 16")]
    TooManyAudiences {
        /// How many.
        count: usize,
    },
    /// An audience that is empty, longer than [`MAX_AUDIENCE_BYTES`] or holds control characters.
    #[error("an audience has 1 to 256 bytes without control characters")]
    Audience,
    /// The identity of a trust domain: no workload has it.
    #[error("{id} is the identity of a trust domain; a JWT-SVID is for a workload")]
    NotAWorkload {
        /// The identity.
        id: SpiffeId,
    },
    /// A `jti` that is empty, longer than [`MAX_NAME_BYTES`] or not of printable ASCII.
    #[error("a jti has 1 to 128 bytes of printable ASCII without spaces")]
    Jti,
    /// It would expire before or when it is made.
    #[error("a token made at {issued_at} cannot expire at {expires_at}")]
    Lifetime {
        /// When it would be made.
        issued_at: Timestamp,
        /// When it would expire.
        expires_at: Timestamp,
    },
    /// It would be valid longer than its key.
    #[error("a token until {expires_at} would outlive its key, which ends at {key_ends}")]
    OutlivesKey {
        /// When it would expire.
        expires_at: Timestamp,
        /// The last second of the key.
        key_ends: Timestamp,
    },
    /// An authority signs with P-256 or P-384 only.
    #[error("an authority signs tokens with P-256 or P-384")]
    Key,
    /// The token would be larger than [`crate::MAX_TOKEN_BYTES`].
    #[error("the token would have more than {bytes} bytes; the limit is 16384")]
    TooLarge {
        /// Bytes before the signature.
        bytes: usize,
    },
    /// Never seen: strings and integers can be written as JSON.
    #[error("the token could not be written as JSON")]
    Json,
}

/// Why a token was not sealed: always a fault of the key ring, never of the requester.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not an `ECDSA-Sig-Value` in DER for the algorithm.
    #[error("the key ring gave a signature that is not an ECDSA-Sig-Value in DER for the key's curve")]
    Malformed,
    /// It does not verify.
    #[error("the key ring's signature does not belong to the key and the prepared token")]
    Signature,
    /// The probe is no token.
    #[error("the probe of a key is not a token")]
    Probe,
}

fn checked_audiences(audiences: Vec<String>) -> Result<Vec<String>, PrepareError> {
    let mut checked: Vec<String> = Vec::new();
    for audience in audiences {
        if audience.is_empty() || audience.len() > MAX_AUDIENCE_BYTES || audience.contains(char::is_control) {
            return Err(PrepareError::Audience);
        }
        if checked.contains(&audience) {
            continue;
        }
        checked.push(audience);
        if checked.len() > MAX_AUDIENCES {
            return Err(PrepareError::TooManyAudiences { count: checked.len() });
        }
    }
    if checked.is_empty() { Err(PrepareError::NoAudience) } else { Ok(checked) }
}

fn encode(part: &impl Serialize) -> Result<String, PrepareError> {
    let json = serde_json::to_vec(part).map_err(|_impossible| PrepareError::Json)?;
    Ok(URL_SAFE_NO_PAD.encode(json))
}

/// In the order they are written.
#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    kid: &'a str,
    typ: &'static str,
}

/// In the order they are written.
#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a [String],
    exp: i64,
    iat: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    jti: &'a str,
    sub: &'a str,
}

#[cfg(test)]
mod tests;
