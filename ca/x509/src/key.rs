//! Public keys: which are accepted from requesters and peers, and which sign.
//!
//! Laws: a [`PublicKey`] is in canonical DER, of an accepted algorithm and size, on its curve, and free of the known
//! defects that can be seen from outside (ROCA, small or even exponents, points of small order).
//! Not here: lists of compromised keys. Sources: RFC 5280 §4.1.2.7, RFC 5480 §2, RFC 8410 §4, RFC 8017 §A.1.1.

use std::fmt;

use rhizome_id::Digest;
use ring::signature as ring_signature;
use serde::{Deserialize, Serialize};

use crate::der::{self, DerError, Reader};
use crate::signature::Signature;

mod curve;
mod edwards;
mod rsa;

/// A public key that passed every check, as its SubjectPublicKeyInfo in DER.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: Vec<u8>,
    /// Where the subjectPublicKey bits start in `spki`.
    bits_at: usize,
    algorithm: KeyAlgorithm,
    digest: Digest,
}

impl PublicKey {
    /// Reads and checks a SubjectPublicKeyInfo in DER (RFC 5280 §4.1).
    ///
    /// # Errors
    /// [`KeyError`] for anything but P-256, P-384, RSA of 2048 to 4096 bits with an odd exponent of at least 65537,
    /// and Ed25519; for a point that is not on its curve, a compressed point, a modulus with the ROCA fingerprint,
    /// encodings that are not DER, and bytes after the structure.
    pub fn from_spki_der(spki: &[u8]) -> Result<Self, KeyError> {
        let mut outer = Reader::new(spki);
        let mut inner = outer.enter(der::SEQUENCE)?;
        outer.finish().map_err(KeyError::after)?;
        let identifier = inner.value(der::SEQUENCE)?;
        let bits = inner.bits()?;
        inner.finish()?;
        let algorithm = match identifier {
            EC_P256 => curve::check_p256(bits).map(|()| KeyAlgorithm::EcdsaP256)?,
            EC_P384 => curve::check_p384(bits).map(|()| KeyAlgorithm::EcdsaP384)?,
            RSA => KeyAlgorithm::Rsa { bits: rsa::check(bits)? },
            ED25519 => edwards::check(bits).map(|()| KeyAlgorithm::Ed25519)?,
            other => return Err(KeyError::unsupported(other)),
        };
        Ok(Self {
            spki: spki.to_vec(),
            bits_at: spki.len().saturating_sub(bits.len()),
            algorithm,
            digest: der::sha256(spki),
        })
    }

    /// From a point on one of the curves, in uncompressed form.
    pub(crate) fn from_ec_point(algorithm: KeyAlgorithm, point: &[u8]) -> Result<Self, KeyError> {
        let identifier = match algorithm {
            KeyAlgorithm::EcdsaP256 => EC_P256,
            KeyAlgorithm::EcdsaP384 => EC_P384,
            KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ed25519 => return Err(KeyError::Malformed),
        };
        let identifier = der::encode(der::SEQUENCE, &[identifier]);
        let bits = der::encode(der::BIT_STRING, &[&[0], point]);
        Self::from_spki_der(&der::encode(der::SEQUENCE, &[&identifier, &bits]))
    }

    /// From the numbers of an RSA key, big-endian; leading zeros do not count.
    pub(crate) fn from_rsa_numbers(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyError> {
        let identifier = der::encode(der::SEQUENCE, &[RSA]);
        let bits = der::encode(der::BIT_STRING, &[&[0], &rsa::encode(modulus, exponent)]);
        Self::from_spki_der(&der::encode(der::SEQUENCE, &[&identifier, &bits]))
    }

    /// The SubjectPublicKeyInfo in DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// Algorithm and size.
    pub const fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// SHA-256 of the SubjectPublicKeyInfo in DER: the name of this key.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The subject key identifier written into certificates: the first 20 bytes of [`PublicKey::digest`], which is what
    /// rcgen derives by default (RFC 7093 §2 leaves the method to the authority).
    pub fn key_identifier(&self) -> [u8; 20] {
        let mut identifier = [0; 20];
        for (to, from) in identifier.iter_mut().zip(self.digest.as_bytes()) {
            *to = *from;
        }
        identifier
    }

    /// Verifies an authority's signature over `message`.
    ///
    /// # Errors
    /// [`SignatureError`] when it does not verify, or `algorithm` does not belong to this kind of key.
    pub fn verify(
        &self,
        message: &[u8],
        signature: &Signature,
        algorithm: SigningAlgorithm,
    ) -> Result<(), SignatureError> {
        if SigningAlgorithm::of_key(self.algorithm) != Some(algorithm) {
            return Err(SignatureError::WrongKey);
        }
        self.verify_by_identifier(algorithm.identifier(), message, signature.as_bytes())
    }

    /// Verifies a signature whose AlgorithmIdentifier (DER, with its SEQUENCE header) came with it. SHA-1 is never
    /// accepted, and neither is an algorithm that does not belong to the key.
    pub(crate) fn verify_by_identifier(
        &self,
        identifier: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        let accepted: &'static dyn ring_signature::VerificationAlgorithm = match (self.algorithm, identifier)
        {
            (KeyAlgorithm::EcdsaP256, ECDSA_SHA256) => &ring_signature::ECDSA_P256_SHA256_ASN1,
            (KeyAlgorithm::EcdsaP256, ECDSA_SHA384) => &ring_signature::ECDSA_P256_SHA384_ASN1,
            (KeyAlgorithm::EcdsaP384, ECDSA_SHA256) => &ring_signature::ECDSA_P384_SHA256_ASN1,
            (KeyAlgorithm::EcdsaP384, ECDSA_SHA384) => &ring_signature::ECDSA_P384_SHA384_ASN1,
            (KeyAlgorithm::Rsa { .. }, RSA_SHA256) => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
            (KeyAlgorithm::Rsa { .. }, RSA_SHA384) => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
            (KeyAlgorithm::Rsa { .. }, RSA_SHA512) => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
            (KeyAlgorithm::Ed25519, ED25519_SIGNATURE) => &ring_signature::ED25519,
            _ => return Err(SignatureError::UnsupportedAlgorithm),
        };
        ring_signature::UnparsedPublicKey::new(accepted, self.bits())
            .verify(message, signature)
            .map_err(|_unspecified| SignatureError::Invalid)
    }

    /// The numbers a JWK shows (RFC 7518 §6, RFC 8037 §2), big-endian.
    pub(crate) fn numbers(&self) -> KeyNumbers<'_> {
        let point = |name, half| {
            let coordinates = self.bits().get(1..).unwrap_or_default();
            let (x, y) = coordinates.split_at_checked(half).unwrap_or_default();
            KeyNumbers::Ec { curve: name, x, y }
        };
        match self.algorithm {
            KeyAlgorithm::EcdsaP256 => point("P-256", 32),
            KeyAlgorithm::EcdsaP384 => point("P-384", 48),
            KeyAlgorithm::Rsa { .. } => {
                let (modulus, exponent) = rsa::numbers(self.bits()).unwrap_or_default();
                KeyNumbers::Rsa { modulus, exponent }
            }
            KeyAlgorithm::Ed25519 => KeyNumbers::Ed25519 { x: self.bits() },
        }
    }

    /// The content of subjectPublicKey: an uncompressed point, an RSAPublicKey in DER (RFC 8017 §A.1.1), or the 32 bytes
    /// of Ed25519. What verifiers of raw signatures take.
    pub fn bits(&self) -> &[u8] {
        self.spki.get(self.bits_at..).unwrap_or_default()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, sha256 {})", self.algorithm, self.digest)
    }
}

/// Keys accepted from requesters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256: what our own clients use.
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// RSA; Istio agents ask for 2048 bits by default. Never generated here.
    Rsa {
        /// Bits of the modulus: 2048 to 4096.
        bits: u32,
    },
    /// Ed25519.
    Ed25519,
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EcdsaP256 => f.write_str("ECDSA P-256"),
            Self::EcdsaP384 => f.write_str("ECDSA P-384"),
            Self::Rsa { bits } => write!(f, "RSA {bits}"),
            Self::Ed25519 => f.write_str("Ed25519"),
        }
    }
}

/// The numbers of a key as a JWK shows them.
pub(crate) enum KeyNumbers<'a> {
    Ec { curve: &'static str, x: &'a [u8], y: &'a [u8] },
    Rsa { modulus: &'a [u8], exponent: &'a [u8] },
    Ed25519 { x: &'a [u8] },
}

/// What an authority signs with. P-256 unless something else is asked for: a P-384 signature costs 25 times as much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SigningAlgorithm {
    /// ecdsa-with-SHA256 with a P-256 key (RFC 5758 §3.2).
    #[default]
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256Sha256,
    /// ecdsa-with-SHA384 with a P-384 key (RFC 5758 §3.2).
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384Sha384,
}

impl SigningAlgorithm {
    /// The algorithm an authority with this kind of key signs with; `None` for keys that authorities do not use.
    pub const fn of_key(key: KeyAlgorithm) -> Option<Self> {
        match key {
            KeyAlgorithm::EcdsaP256 => Some(Self::EcdsaP256Sha256),
            KeyAlgorithm::EcdsaP384 => Some(Self::EcdsaP384Sha384),
            KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ed25519 => None,
        }
    }

    /// The kind of key this algorithm needs.
    pub const fn key_algorithm(self) -> KeyAlgorithm {
        match self {
            Self::EcdsaP256Sha256 => KeyAlgorithm::EcdsaP256,
            Self::EcdsaP384Sha384 => KeyAlgorithm::EcdsaP384,
        }
    }

    /// The AlgorithmIdentifier in DER, with its header.
    pub(crate) const fn identifier(self) -> &'static [u8] {
        match self {
            Self::EcdsaP256Sha256 => ECDSA_SHA256,
            Self::EcdsaP384Sha384 => ECDSA_SHA384,
        }
    }
}

impl fmt::Display for SigningAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaP256Sha256 => "ecdsa-p256",
            Self::EcdsaP384Sha384 => "ecdsa-p384",
        })
    }
}

/// Why a public key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a SubjectPublicKeyInfo in DER.
    #[error("the public key is not a SubjectPublicKeyInfo in DER")]
    Malformed,
    /// Bytes follow the structure.
    #[error("{bytes} bytes follow the public key")]
    TrailingData {
        /// How many.
        bytes: usize,
    },
    /// Another algorithm or curve, or parameters that do not belong to it.
    #[error(
        "the key algorithm {oid} or its parameters are not accepted; use P-256, P-384, RSA 2048 to 4096 or Ed25519"
    )]
    Unsupported {
        /// The algorithm's OID in dots.
        oid: String,
    },
    /// An RSA modulus outside 2048 to 4096 bits (NIST SP 800-57 part 1 §5.6; the upper bound caps verification cost).
    #[error("the RSA modulus has {bits} bits; 2048 to 4096 are accepted")]
    RsaSize {
        /// Bits found.
        bits: u64,
    },
    /// An RSA exponent that is even, below 65537 or above 2^33 − 1 (FIPS 186-5 §5.4; ring's upper bound).
    #[error("the RSA public exponent is not an odd number of at least 65537 and at most 33 bits")]
    RsaExponent,
    /// An even RSA modulus: not a product of two odd primes.
    #[error("the RSA modulus is even")]
    RsaModulusEven,
    /// The modulus has the fingerprint of CVE-2017-15361.
    #[error(
        "the RSA modulus has the ROCA fingerprint (CVE-2017-15361); make a new key on another device or library"
    )]
    Roca,
    /// The point is not on the curve, or a coordinate is not reduced.
    #[error("the point is not on the curve")]
    PointNotOnCurve,
    /// A compressed, hybrid or infinite point, or one of the wrong length (RFC 5480 §2.2).
    #[error("the point is not in uncompressed form")]
    PointForm,
    /// An Ed25519 key of small order: anyone can sign for it.
    #[error("the Ed25519 key is a point of small order")]
    SmallOrderPoint,
}

impl KeyError {
    /// A stable name for metrics and audit records.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "key_malformed",
            Self::TrailingData { .. } => "key_trailing_data",
            Self::Unsupported { .. } => "key_unsupported",
            Self::RsaSize { .. } => "key_rsa_size",
            Self::RsaExponent => "key_rsa_exponent",
            Self::RsaModulusEven => "key_rsa_even",
            Self::Roca => "key_roca",
            Self::PointNotOnCurve => "key_not_on_curve",
            Self::PointForm => "key_point_form",
            Self::SmallOrderPoint => "key_small_order",
        }
    }

    fn unsupported(identifier: &[u8]) -> Self {
        match Reader::new(identifier).value(der::OID) {
            Ok(oid) => Self::Unsupported { oid: der::oid_text(oid) },
            Err(_) => Self::Malformed,
        }
    }

    fn after(error: DerError) -> Self {
        match error {
            DerError::Trailing(bytes) => Self::TrailingData { bytes },
            DerError::Truncated | DerError::Length | DerError::Tag => Self::Malformed,
        }
    }
}

impl From<DerError> for KeyError {
    fn from(_: DerError) -> Self {
        Self::Malformed
    }
}

/// Why a signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It does not verify.
    #[error("the signature does not verify")]
    Invalid,
    /// The algorithm does not belong to the key.
    #[error("the signature algorithm does not belong to this kind of key")]
    WrongKey,
    /// The algorithm is unknown, uses SHA-1, or does not belong to the key.
    #[error("the signature algorithm is not accepted for this kind of key")]
    UnsupportedAlgorithm,
}

// AlgorithmIdentifiers. Of keys: the content of the SEQUENCE.
/// id-ecPublicKey, secp256r1 (RFC 5480 §2.1.1).
const EC_P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
/// id-ecPublicKey, secp384r1 (RFC 5480 §2.1.1).
const EC_P384: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";
/// rsaEncryption, NULL (RFC 3279 §2.3.1: the parameters must be NULL).
const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
/// id-Ed25519, no parameters (RFC 8410 §3).
const ED25519: &[u8] = b"\x06\x03\x2b\x65\x70";
// Of signatures: with the header.
/// ecdsa-with-SHA256 (RFC 5758 §3.2: no parameters).
const ECDSA_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// ecdsa-with-SHA384 (RFC 5758 §3.2: no parameters).
const ECDSA_SHA384: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03";
/// sha256WithRSAEncryption, NULL (RFC 4055 §5).
const RSA_SHA256: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00";
/// sha384WithRSAEncryption, NULL (RFC 4055 §5).
const RSA_SHA384: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00";
/// sha512WithRSAEncryption, NULL (RFC 4055 §5).
const RSA_SHA512: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00";
/// id-Ed25519 as a signature (RFC 8410 §6).
const ED25519_SIGNATURE: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70";

#[cfg(test)]
mod tests;
