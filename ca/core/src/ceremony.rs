//! The papers of a ceremony: what a server asks of a root whose key is elsewhere, and what it gets.
//!
//! Laws: both are made to be read by people before anything is signed; unknown fields are refused, since nobody reviewed
//! them; every digest in them is checked by whoever reads them, and the answer names the digest of the request it
//! answers. A request carries a public key and a proof that its key ring has the private one.
//! Not here: their form in files (`rhizome`), signing and storing (`rhizome_server`).

use rhizome_id::{AuthorityId, Digest, ReplicaName, Timestamp, TrustDomain, Ttl};
use rhizome_x509::{CaCertificate, PublicKey, Signature, SigningAlgorithm, probe_for};
use serde::{Deserialize, Serialize};

/// The format of both papers.
pub const VERSION: u32 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// A new root, with a key that is made where it is signed.
    Root,
    /// A certificate for an issuer, whose key the server has made.
    Issuer,
}

/// What a server asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked for.
    pub wanted: Wanted,
    /// For which trust domain.
    pub trust_domain: TrustDomain,
    /// By which replica.
    pub replica: ReplicaName,
    /// The name of the new authority; part of the certificate's subject.
    pub id: AuthorityId,
    /// How it will sign.
    pub algorithm: SigningAlgorithm,
    /// How long it is to live.
    pub lifetime: Ttl,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// For an issuer: its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RequestedKey>,
    /// For an issuer: SHA-256 of the root's certificate it is to be under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_sha256: Option<Digest>,
}

/// The key of an issuer that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestedKey {
    /// SubjectPublicKeyInfo, hexadecimal of DER.
    pub spki: String,
    /// SHA-256 of that DER.
    pub sha256: Digest,
    /// Signature of the fixed probe, hexadecimal of DER: the server's ring has the private key.
    pub proof: String,
}

/// What the root's side gives back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// What was asked for.
    pub wanted: Wanted,
    /// By which replica.
    pub replica: ReplicaName,
    /// SHA-256 of the request's file, as it was signed.
    pub request_sha256: Digest,
    /// The name of the new authority, as it was asked for.
    pub id: AuthorityId,
    /// SHA-256 of the certificate.
    pub certificate_sha256: Digest,
    /// The certificate, base64 of DER.
    pub certificate: CaCertificate,
}

/// Why a paper is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PaperError {
    /// A newer format.
    #[error("the paper is in format {found}, this program knows {VERSION}; upgrade it")]
    Version {
        /// The format found.
        found: u32,
    },
    /// Another trust domain's.
    #[error("the paper is of the trust domain {found}; the configuration says another")]
    OtherTrustDomain {
        /// Whose.
        found: TrustDomain,
    },
    /// Fields are missing, or do not go together.
    #[error("the paper does not fit together: {0}")]
    Unfit(&'static str),
}

impl RequestedKey {
    /// The key `public_key`, whose ring signed the probe.
    pub fn new(public_key: &PublicKey, proof: &Signature) -> Self {
        Self {
            spki: hex::encode(public_key.spki_der()),
            sha256: public_key.digest(),
            proof: hex::encode(proof.as_bytes()),
        }
    }

    /// The key, once it is shown that it belongs to its digest, and that somebody has the private part.
    ///
    /// # Errors
    /// [`PaperError::Unfit`].
    pub fn check(&self, algorithm: SigningAlgorithm) -> Result<PublicKey, PaperError> {
        let bytes = |text: &str| hex::decode(text).map_err(|_not_hex| PaperError::Unfit("not hexadecimal"));
        let key = PublicKey::from_spki_der(&bytes(&self.spki)?)
            .map_err(|_refused| PaperError::Unfit("the key is refused"))?;
        if key.digest() != self.sha256 {
            return Err(PaperError::Unfit("the key has another digest than is written beside it"));
        }
        if SigningAlgorithm::of_key(key.algorithm()) != Some(algorithm) {
            return Err(PaperError::Unfit("the key is of another algorithm"));
        }
        let proof = Signature::external(bytes(&self.proof)?);
        key.verify(probe_for(algorithm).as_bytes(), &proof, algorithm)
            .map_err(|_invalid| PaperError::Unfit("the proof was not made with the key"))?;
        Ok(key)
    }
}

impl Request {
    /// Whether this may be signed in `domain`; for an issuer, its key.
    ///
    /// # Errors
    /// [`PaperError`].
    pub fn check(&self, domain: &TrustDomain) -> Result<Option<PublicKey>, PaperError> {
        check_form(self.version)?;
        if self.trust_domain != *domain {
            return Err(PaperError::OtherTrustDomain { found: self.trust_domain.clone() });
        }
        match (self.wanted, &self.key, &self.root_sha256) {
            (Wanted::Root, None, None) => Ok(None),
            (Wanted::Issuer, Some(key), Some(_)) => key.check(self.algorithm).map(Some),
            (Wanted::Root, ..) => Err(PaperError::Unfit("a root's key is made where it is signed")),
            (Wanted::Issuer, ..) => Err(PaperError::Unfit("an issuer needs `key` and `root_sha256`")),
        }
    }
}

impl Answer {
    /// Whether this holds together.
    ///
    /// # Errors
    /// [`PaperError`].
    pub fn check(&self) -> Result<(), PaperError> {
        check_form(self.version)?;
        if self.certificate.fingerprint() != self.certificate_sha256 {
            return Err(PaperError::Unfit("the certificate has another digest than is written beside it"));
        }
        Ok(())
    }
}

const fn check_form(version: u32) -> Result<(), PaperError> {
    if version == VERSION { Ok(()) } else { Err(PaperError::Version { found: version }) }
}

/// SHA-256 of a paper's bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.as_ref().try_into().map_or(Digest::ZERO, Digest::from_bytes)
}
