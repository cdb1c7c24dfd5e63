//! A public key that verifies JWT-SVIDs: what a bundle carries beside its anchors.
//!
//! Laws: a [`JwtKey`] has a name (`kid`) and is of an algorithm that JWT-SVIDs may be signed with; no private part is
//! ever near it. Not here: tokens (`rhizome-jwt`), which key signs (`rhizome-core`).
//! Sources: JWT-SVID §2.1 and §6, RFC 7517 §4.5.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rhizome_id::Timestamp;
use serde::{Deserialize, Serialize};

use crate::key::{KeyAlgorithm, KeyError, PublicKey};

/// A public key for JWT-SVIDs. Serialised with the key as base64 of its SubjectPublicKeyInfo in DER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct JwtKey {
    kid: String,
    public_key: PublicKey,
    not_after: Timestamp,
}

impl JwtKey {
    /// Longest `kid`, in bytes: our own have about 22, SPIRE's 32, the thumbprints of RFC 7638 43.
    pub const MAX_KID_BYTES: usize = 256;

    /// Puts a key together.
    ///
    /// # Errors
    /// [`JwtKeyError`] for a `kid` that is empty, longer than [`JwtKey::MAX_KID_BYTES`] or holds control characters,
    /// and for a key of an algorithm that no JWT-SVID is signed with (JWT-SVID §2.1).
    pub fn new(kid: String, public_key: PublicKey, not_after: Timestamp) -> Result<Self, JwtKeyError> {
        if kid.is_empty() || kid.len() > Self::MAX_KID_BYTES || kid.chars().any(char::is_control) {
            return Err(JwtKeyError::Kid);
        }
        match public_key.algorithm() {
            KeyAlgorithm::EcdsaP256 | KeyAlgorithm::EcdsaP384 | KeyAlgorithm::Rsa { .. } => {}
            found @ KeyAlgorithm::Ed25519 => return Err(JwtKeyError::Algorithm { found }),
        }
        Ok(Self { kid, public_key, not_after })
    }

    /// As [`JwtKey::new`], from the SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// [`JwtKeyError`], also for a key that [`PublicKey::from_spki_der`] refuses.
    pub fn from_spki_der(kid: String, spki: &[u8], not_after: Timestamp) -> Result<Self, JwtKeyError> {
        Self::new(kid, PublicKey::from_spki_der(spki)?, not_after)
    }

    /// The name that tokens give for the key that signed them.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key.
    pub const fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The last second at which a token signed by it may be valid. [`Timestamp::MAX`] when nobody said.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether it verifies anything at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        now <= self.not_after
    }
}

/// Why something is no key for JWT-SVIDs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtKeyError {
    /// The name.
    #[error("the kid of a JWT key has 1 to 256 bytes without control characters")]
    Kid,
    /// JWT-SVID §2.1 knows RSA and ECDSA only.
    #[error("JWT-SVIDs are not signed with {found} keys")]
    Algorithm {
        /// The key's algorithm.
        found: KeyAlgorithm,
    },
    /// The key itself.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// In stored form: not base64.
    #[error("the JWT key is not base64")]
    Base64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    kid: String,
    public_key: String,
    not_after: Timestamp,
}

impl TryFrom<Stored> for JwtKey {
    type Error = JwtKeyError;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        let spki = STANDARD.decode(stored.public_key).map_err(|_malformed| JwtKeyError::Base64)?;
        Self::from_spki_der(stored.kid, &spki, stored.not_after)
    }
}

impl From<JwtKey> for Stored {
    fn from(key: JwtKey) -> Self {
        let public_key = STANDARD.encode(key.public_key.spki_der());
        Self { kid: key.kid, public_key, not_after: key.not_after }
    }
}
