//! The client's half: a key of one's own and the request for a certificate.
//!
//! Laws: the private key is never printed, copied or compared, and is wiped from memory when dropped; the request names
//! nothing (empty subject, no extensions), because nothing in it would be believed.
//! Not here: authorities' keys (`rhizome-keys`), where the key is kept. Sources: RFC 2986 §4, RFC 5958 §2.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, IsCa, PublicKeyData, SignatureAlgorithm, SigningKey};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair,
};
use zeroize::Zeroizing;

use crate::key::{KeyAlgorithm, KeyError, PublicKey};
use crate::profile::encoder_algorithm;

/// A requester's private key: P-256, or P-384 where asked.
pub struct RequestKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
    public_key: PublicKey,
    random: SystemRandom,
}

impl RequestKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`RequestError::UnsupportedAlgorithm`] for anything but P-256 and P-384; [`RequestError::Entropy`] when the
    /// operating system gives no randomness.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, RequestError> {
        let curve = signing_curve(algorithm).ok_or(RequestError::UnsupportedAlgorithm { algorithm })?;
        let document = EcdsaKeyPair::generate_pkcs8(curve, &system_random())
            .map_err(|_unspecified| RequestError::Entropy)?;
        Self::from_pkcs8_der(document.as_ref())
    }

    /// Takes up a key made earlier: PKCS#8 in DER (RFC 5958), P-256 or P-384, with the public key in it.
    ///
    /// # Errors
    /// [`RequestError::Key`] when it is not such a key.
    pub fn from_pkcs8_der(pkcs8: &[u8]) -> Result<Self, RequestError> {
        let random = system_random();
        let (algorithm, pair) = [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384]
            .into_iter()
            .find_map(|algorithm| {
                let pair = EcdsaKeyPair::from_pkcs8(signing_curve(algorithm)?, pkcs8, &random).ok()?;
                Some((algorithm, pair))
            })
            .ok_or(RequestError::Key)?;
        Ok(Self {
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            public_key: PublicKey::from_ec_point(algorithm, pair.public_key().as_ref())?,
            pair,
            random,
        })
    }

    /// The private key as PKCS#8 in DER: for the TLS stack, or for a sealed file. Wiped when dropped.
    pub fn pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }

    /// The public half.
    pub const fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

/// Says which key it is, by its public half; never more.
impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pkcs8: _, pair: _, public_key, random: _ } = self;
        write!(f, "RequestKey({public_key:?})")
    }
}

/// Makes a certificate request in DER, signed with `key`: empty subject, no attributes.
///
/// # Errors
/// [`RequestError`] when signing fails.
pub fn create_csr(key: &RequestKey) -> Result<Vec<u8>, RequestError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::NoCa;
    let request = params
        .serialize_request(&Requester(key))
        .map_err(|error| RequestError::Encoder(error.to_string()))?;
    Ok(request.der().to_vec())
}

/// The key as the encoder wants it.
struct Requester<'a>(&'a RequestKey);

impl PublicKeyData for Requester<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key.bits()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        encoder_algorithm(self.0.public_key.algorithm())
    }
}

impl SigningKey for Requester<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let RequestKey { pair, random, .. } = self.0;
        let signature = pair.sign(random, message).map_err(|_unspecified| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

pub(crate) const fn signing_curve(algorithm: KeyAlgorithm) -> Option<&'static EcdsaSigningAlgorithm> {
    match algorithm {
        KeyAlgorithm::EcdsaP256 => Some(&ECDSA_P256_SHA256_ASN1_SIGNING),
        KeyAlgorithm::EcdsaP384 => Some(&ECDSA_P384_SHA384_ASN1_SIGNING),
        KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ed25519 => None,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "ring takes its own source only; a private key is no replayable value"
)]
pub(crate) fn system_random() -> SystemRandom {
    SystemRandom::new()
}

/// Why there is no key or request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Keys of this kind are not made here.
    #[error("keys of kind {algorithm} are not made here; use P-256")]
    UnsupportedAlgorithm {
        /// The kind asked for.
        algorithm: KeyAlgorithm,
    },
    /// No randomness.
    #[error("the operating system gave no randomness")]
    Entropy,
    /// Not a private key in PKCS#8.
    #[error("not a P-256 or P-384 private key as PKCS#8 in DER with its public key")]
    Key,
    /// The public half is refused.
    #[error("the public half of the key is refused: {0}")]
    PublicKey(#[from] KeyError),
    /// The encoder, or the signature, failed.
    #[error("the request could not be encoded: {0}")]
    Encoder(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csr::VerifiedCsr;
    use crate::der;

    #[test]
    fn a_request_verifies_and_gives_back_the_key() {
        for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384] {
            let key = RequestKey::generate(algorithm).unwrap();
            let csr = create_csr(&key).unwrap();
            assert_eq!(VerifiedCsr::parse(&csr).unwrap().public_key(), key.public_key());
        }
    }

    #[test]
    fn a_key_survives_its_pkcs8_form_and_is_not_printed() {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let again = RequestKey::from_pkcs8_der(&key.pkcs8_der()).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        let text = format!("{key:?}");
        assert!(text.contains(&key.public_key().digest().to_string()));
        assert!(!text.contains(&hex::encode(&key.pkcs8_der()[36..68])), "the scalar is not shown");
    }

    #[test]
    fn keys_that_clients_do_not_make_are_refused() {
        for algorithm in [KeyAlgorithm::Rsa { bits: 2048 }, KeyAlgorithm::Ed25519] {
            let refused = RequestKey::generate(algorithm).err();
            assert_eq!(refused, Some(RequestError::UnsupportedAlgorithm { algorithm }));
        }
        assert_eq!(RequestKey::from_pkcs8_der(b"junk").err(), Some(RequestError::Key));
    }

    #[test]
    fn a_request_names_nothing() {
        let csr = create_csr(&RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()).unwrap();
        // The subject is an empty SEQUENCE right after the version, and the attributes are an empty [0].
        let info = der::Reader::new(&csr).enter(der::SEQUENCE).unwrap().value(der::SEQUENCE).unwrap();
        assert!(info.starts_with(&[0x02, 0x01, 0x00, 0x30, 0x00]));
        assert!(info.ends_with(&[0xa0, 0x00]));
    }
}
