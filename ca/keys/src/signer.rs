//! One private key, ready to sign.
//!
//! Laws: it was proved against its public key when it was made or loaded; a key for certificates signs [`ToBeSigned`], a
//! key for tokens [`TokenToBeSigned`], each of its own algorithm, and nothing else; P-256 signs on the spot (25 µs), P-384 on the
//! blocking pool (635 µs, ca/docs/performance.md).
//! Sources: RFC 5480 §2, RFC 5958.

use std::sync::Arc;

use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRingError};
use rhizome_id::KeyId;
use rhizome_jwt::TokenToBeSigned;
use rhizome_x509::{PublicKey, Signature, SigningAlgorithm, ToBeSigned, probe_for};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair,
};
use zeroize::Zeroizing;

use crate::random;

/// A proved private key. It has neither `Debug` nor `Clone`.
pub(crate) struct Signer {
    info: KeyInfo,
    pair: EcdsaKeyPair,
}

/// Why bytes are not a usable key. Never holds key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Defect {
    #[error("not a PKCS#8 key of its algorithm")]
    Malformed,
    #[error("its public key is refused: {0}")]
    PublicKey(#[from] rhizome_x509::KeyError),
    #[error("it does not belong to its public key")]
    Proof,
    #[error("the key could not be used: the system gives no randomness")]
    Randomness,
}

/// A new private key in PKCS#8 DER.
pub(crate) fn generate_pkcs8(algorithm: SigningAlgorithm) -> Result<Zeroizing<Vec<u8>>, Defect> {
    let document = EcdsaKeyPair::generate_pkcs8(curve(algorithm), random::system())
        .map_err(|_unspecified| Defect::Randomness)?;
    Ok(Zeroizing::new(document.as_ref().to_vec()))
}

/// A key from elsewhere, which must not be called as one that is there already.
pub(crate) fn adopted(
    existing: Option<&KeyInfo>,
    id: &KeyId,
    purpose: KeyPurpose,
    algorithm: SigningAlgorithm,
    pkcs8: &[u8],
) -> Result<Signer, KeyRingError> {
    if let Some(existing) = existing {
        return Err(mismatch(existing, "a key of that name is there already".to_owned()));
    }
    Signer::prove(id.clone(), purpose, algorithm, pkcs8)
        .map_err(|defect| KeyRingError::Mismatch { id: id.clone(), cause: defect.to_string() })
}

impl Signer {
    /// Takes up a private key in PKCS#8 DER and proves it.
    pub(crate) fn prove(
        id: KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
        pkcs8: &[u8],
    ) -> Result<Self, Defect> {
        let pair = EcdsaKeyPair::from_pkcs8(curve(algorithm), pkcs8, random::system())
            .map_err(|_rejected| Defect::Malformed)?;
        let public_key = PublicKey::from_spki_der(&spki(algorithm, pair.public_key().as_ref()))?;
        let signer = Self { info: KeyInfo { id, purpose, algorithm, public_key }, pair };
        let probe = probe_for(algorithm);
        let signature = signer.sign_here(probe.as_bytes())?;
        let public_key = &signer.info.public_key;
        public_key.verify(probe.as_bytes(), &signature, algorithm).map_err(|_invalid| Defect::Proof)?;
        Ok(signer)
    }

    pub(crate) const fn info(&self) -> &KeyInfo {
        &self.info
    }

    /// Errors unless this key is for `purpose` and of `algorithm`.
    pub(crate) fn expect(
        &self,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<(), KeyRingError> {
        expect(&self.info, purpose, algorithm)
    }

    pub(crate) async fn sign(self: Arc<Self>, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        may_sign(&self.info, Wanted::Certificate, message.algorithm())?;
        self.sign_bytes(message.as_bytes()).await
    }

    pub(crate) async fn sign_token(
        self: Arc<Self>,
        token: &TokenToBeSigned,
    ) -> Result<Signature, KeyRingError> {
        may_sign(&self.info, Wanted::Token, token.algorithm())?;
        self.sign_bytes(token.as_bytes()).await
    }

    async fn sign_bytes(self: Arc<Self>, bytes: &[u8]) -> Result<Signature, KeyRingError> {
        let signed = match self.info.algorithm {
            SigningAlgorithm::EcdsaP256Sha256 => self.sign_here(bytes),
            SigningAlgorithm::EcdsaP384Sha384 => {
                let bytes = bytes.to_vec();
                tokio::task::spawn_blocking(move || self.sign_here(&bytes))
                    .await
                    .map_err(|stopped| unavailable(&stopped))?
            }
        };
        signed.map_err(|defect| unavailable(&defect))
    }

    fn sign_here(&self, message: &[u8]) -> Result<Signature, Defect> {
        let signature =
            self.pair.sign(random::system(), message).map_err(|_unspecified| Defect::Randomness)?;
        Ok(Signature::in_process(signature.as_ref().to_vec()))
    }
}

/// What is to be signed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Certificate,
    Token,
}

/// Errors unless the key is for `purpose` and of `algorithm`.
pub(crate) fn expect(
    info: &KeyInfo,
    purpose: KeyPurpose,
    algorithm: SigningAlgorithm,
) -> Result<(), KeyRingError> {
    if (info.purpose, info.algorithm) == (purpose, algorithm) {
        return Ok(());
    }
    let (found, wanted) = (info.purpose.as_str(), purpose.as_str());
    let found_algorithm = info.algorithm;
    let cause = format!("it is a {found_algorithm} {found} key, asked for was a {algorithm} {wanted} key");
    Err(mismatch(info, cause))
}

/// Errors unless the key is for what is wanted, and of the algorithm that the bytes are for.
pub(crate) fn may_sign(
    info: &KeyInfo,
    wanted: Wanted,
    algorithm: SigningAlgorithm,
) -> Result<(), KeyRingError> {
    match (info.purpose, wanted) {
        (KeyPurpose::Root | KeyPurpose::Issuer, Wanted::Certificate) | (KeyPurpose::Jwt, Wanted::Token) => {}
        (KeyPurpose::Jwt, Wanted::Certificate) => {
            return Err(mismatch(info, "a key for tokens signs no certificate".to_owned()));
        }
        (KeyPurpose::Root | KeyPurpose::Issuer, Wanted::Token) => {
            return Err(mismatch(info, "a key for certificates signs no token".to_owned()));
        }
    }
    if algorithm == info.algorithm {
        return Ok(());
    }
    Err(mismatch(info, format!("the bytes are for {algorithm}, the key is for {}", info.algorithm)))
}

pub(crate) fn mismatch(info: &KeyInfo, cause: String) -> KeyRingError {
    KeyRingError::Mismatch { id: info.id.clone(), cause }
}

pub(crate) fn unavailable(cause: &dyn std::fmt::Display) -> KeyRingError {
    KeyRingError::Unavailable { cause: cause.to_string() }
}

/// Runs work that blocks where it keeps nothing else waiting.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeyRingError> + Send + 'static,
) -> Result<T, KeyRingError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(stopped) => Err(unavailable(&stopped)),
    }
}

fn curve(algorithm: SigningAlgorithm) -> &'static EcdsaSigningAlgorithm {
    match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
        SigningAlgorithm::EcdsaP384Sha384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
    }
}

/// SubjectPublicKeyInfo of an uncompressed point. [`PublicKey`] checks the result.
pub(crate) fn spki(algorithm: SigningAlgorithm, point: &[u8]) -> Vec<u8> {
    let header = match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => SPKI_P256,
        SigningAlgorithm::EcdsaP384Sha384 => SPKI_P384,
    };
    [header, point].concat()
}

/// SEQUENCE { SEQUENCE { id-ecPublicKey, secp256r1 }, BIT STRING of 65 bytes } up to the point (RFC 5480 §2).
const SPKI_P256: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
/// SEQUENCE { SEQUENCE { id-ecPublicKey, secp384r1 }, BIT STRING of 97 bytes } up to the point (RFC 5480 §2).
const SPKI_P384: &[u8] =
    b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00";
