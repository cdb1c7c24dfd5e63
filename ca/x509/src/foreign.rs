//! What another CA leaves behind: its certificates and its private key in PEM files, read to be taken over.
//!
//! Laws: a private key is read only together with the certificate it must belong to, and comes out in the one form that
//! key rings take; it is wiped, and no error holds any of it. Not here: whether the CA may be taken over
//! (`rhizome_core::adoption`), where its key goes (`rhizome-keys`).
//! Sources: RFC 7468, RFC 5915 §3 (SEC 1 keys), RFC 5958 §2 and RFC 5208 §5 (PKCS#8), RFC 5480 §2.1.1.

use ring::rand::SecureRandom;
use ring::signature::EcdsaKeyPair;
use zeroize::Zeroizing;

use crate::certificate::{CaCertificate, CaCertificateError};
use crate::der::{self, Reader};
use crate::issuer::{IssuerError, IssuerNames};
use crate::key::{PublicKey, SigningAlgorithm};
use crate::request::{signing_curve, system_random};

/// Most certificates in one file: a chain is at most four long, and a file of roots holds those of one mesh.
const MAX_CERTIFICATES: usize = 16;
/// Largest PEM file, in bytes: sixteen certificates with large keys.
pub const MAX_PEM_BYTES: usize = 256 * 1024;

const EC_PUBLIC_KEY: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
const SECP256R1: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
const SECP384R1: &[u8] = b"\x2b\x81\x04\x00\x22";
const CONTEXT_1: u8 = 0xa1;

/// The CA certificates of a PEM file, in its order; other text around them is ignored, other blocks are refused.
///
/// # Errors
/// [`ForeignError`] naming the block that will not do.
pub fn ca_certificates_from_pem(text: &str) -> Result<Vec<CaCertificate>, ForeignError> {
    if text.len() > MAX_PEM_BYTES {
        return Err(ForeignError::TooLarge);
    }
    let blocks = pem::parse_many(text).map_err(|_malformed| ForeignError::NotPem)?;
    if blocks.is_empty() {
        return Err(ForeignError::NoBlock { wanted: "CERTIFICATE" });
    }
    if blocks.len() > MAX_CERTIFICATES {
        return Err(ForeignError::TooMany { found: blocks.len() });
    }
    let read = |(at, block): (usize, &pem::Pem)| match block.tag() {
        "CERTIFICATE" => CaCertificate::parse(block.contents())
            .map_err(|cause| ForeignError::Certificate { number: at.saturating_add(1), cause }),
        other => Err(ForeignError::OtherBlock { found: other.chars().take(40).collect() }),
    };
    blocks.iter().enumerate().map(read).collect()
}

/// The private key of a CA in a PEM file, as PKCS#8 in DER with the public key in it, once it is shown to belong to
/// `certificate`. The file holds it as `PRIVATE KEY` (PKCS#8) or as `EC PRIVATE KEY` (SEC 1), not encrypted.
///
/// # Errors
/// [`ForeignError::OtherKey`] when it does not belong to the certificate; [`ForeignError::Encrypted`],
/// [`ForeignError::Unsupported`] and others say what else will not do.
pub fn ca_key_from_pem(text: &str, certificate: &CaCertificate) -> Result<Zeroizing<Vec<u8>>, ForeignError> {
    if text.len() > MAX_PEM_BYTES {
        return Err(ForeignError::TooLarge);
    }
    let key = certificate.public_key();
    let unsupported = || ForeignError::Unsupported { found: key.algorithm().to_string() };
    let algorithm = SigningAlgorithm::of_key(key.algorithm()).ok_or_else(unsupported)?;
    let scalar = scalar(text, algorithm)?;
    let pkcs8 = pkcs8(algorithm, &scalar, key);
    let curve = signing_curve(key.algorithm()).ok_or_else(unsupported)?;
    let random: &dyn SecureRandom = &system_random();
    EcdsaKeyPair::from_pkcs8(curve, &pkcs8, random).map_err(|_inconsistent| ForeignError::OtherKey)?;
    Ok(pkcs8)
}

/// Whether certificates can be signed in the name of this one: its key is one that authorities sign with, and its
/// subject can be written back as it is.
///
/// # Errors
/// [`IssuerError`].
pub fn check_signs(certificate: &CaCertificate) -> Result<SigningAlgorithm, IssuerError> {
    let key = certificate.public_key().algorithm();
    let algorithm = SigningAlgorithm::of_key(key).ok_or(IssuerError::UnsupportedKey { key })?;
    IssuerNames::of(certificate)?;
    Ok(algorithm)
}

/// The secret number, as wide as the curve.
fn scalar(text: &str, algorithm: SigningAlgorithm) -> Result<Zeroizing<Vec<u8>>, ForeignError> {
    let blocks = pem::parse_many(text).map_err(|_malformed| ForeignError::NotPem)?;
    for block in blocks {
        let (tag, headers) = (block.tag().to_owned(), block.headers().iter().next().is_some());
        let content = Zeroizing::new(block.into_contents());
        match tag.as_str() {
            // Written before the key by `openssl ecparam -genkey`.
            "EC PARAMETERS" => {}
            "ENCRYPTED PRIVATE KEY" => return Err(ForeignError::Encrypted),
            "EC PRIVATE KEY" | "RSA PRIVATE KEY" if headers => return Err(ForeignError::Encrypted),
            "RSA PRIVATE KEY" => return Err(ForeignError::Unsupported { found: "RSA".to_owned() }),
            "EC PRIVATE KEY" => return sec1(&content, algorithm),
            "PRIVATE KEY" => return from_pkcs8(&content, algorithm),
            other => return Err(ForeignError::OtherBlock { found: other.chars().take(40).collect() }),
        }
    }
    Err(ForeignError::NoBlock { wanted: "PRIVATE KEY" })
}

fn sec1(content: &[u8], algorithm: SigningAlgorithm) -> Result<Zeroizing<Vec<u8>>, ForeignError> {
    let width = width(algorithm);
    let read = || {
        let mut fields = Reader::new(content).enter(der::SEQUENCE).ok()?;
        (fields.value(der::INTEGER).ok()? == [1]).then_some(())?;
        let number = fields.value(der::OCTET_STRING).ok()?;
        let missing = width.checked_sub(number.len())?;
        let mut whole = Zeroizing::new(Vec::with_capacity(width));
        whole.resize(missing, 0);
        whole.extend_from_slice(number);
        Some(whole)
    };
    read().ok_or(ForeignError::Malformed)
}

fn from_pkcs8(content: &[u8], algorithm: SigningAlgorithm) -> Result<Zeroizing<Vec<u8>>, ForeignError> {
    let read = || {
        let mut fields = Reader::new(content).enter(der::SEQUENCE).ok()?;
        let version = fields.value(der::INTEGER).ok()?;
        matches!(version, [0 | 1]).then_some(())?;
        let mut identifier = fields.enter(der::SEQUENCE).ok()?;
        let kind = identifier.value(der::OID).ok()?;
        Some((kind, fields.value(der::OCTET_STRING).ok()?))
    };
    let (kind, inner) = read().ok_or(ForeignError::Malformed)?;
    if kind != EC_PUBLIC_KEY {
        return Err(ForeignError::Unsupported { found: "not one of an elliptic curve".to_owned() });
    }
    sec1(inner, algorithm)
}

/// The form that `ring` takes: PKCS#8 version 1, with the public key inside.
fn pkcs8(algorithm: SigningAlgorithm, scalar: &[u8], key: &PublicKey) -> Zeroizing<Vec<u8>> {
    let curve = match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => SECP256R1,
        SigningAlgorithm::EcdsaP384Sha384 => SECP384R1,
    };
    let identifier = der::encode(
        der::SEQUENCE,
        &[&der::encode(der::OID, &[EC_PUBLIC_KEY]), &der::encode(der::OID, &[curve])],
    );
    let bits = der::encode(der::BIT_STRING, &[&[0], key.bits()]);
    let one = der::encode(der::INTEGER, &[&[1]]);
    let number = Zeroizing::new(der::encode(der::OCTET_STRING, &[scalar]));
    let public = der::encode(CONTEXT_1, &[&bits]);
    let inner = Zeroizing::new(der::encode(der::SEQUENCE, &[&one, &number, &public]));
    let wrapped = Zeroizing::new(der::encode(der::OCTET_STRING, &[&inner]));
    let zero = der::encode(der::INTEGER, &[&[0]]);
    Zeroizing::new(der::encode(der::SEQUENCE, &[&zero, &identifier, &wrapped]))
}

const fn width(algorithm: SigningAlgorithm) -> usize {
    match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => 32,
        SigningAlgorithm::EcdsaP384Sha384 => 48,
    }
}

/// Why what another CA left behind cannot be read. Never holds any of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    /// More than [`MAX_PEM_BYTES`].
    #[error("the file has more than 256 KiB; no certificates or key are that large")]
    TooLarge,
    /// No PEM, or damaged.
    #[error("the file is no PEM, or a block in it is damaged or cut off")]
    NotPem,
    /// No block of the kind.
    #[error("the file has no block `{wanted}`")]
    NoBlock {
        /// Its label.
        wanted: &'static str,
    },
    /// A block of another kind.
    #[error("a block `{found}` stands in the file, where it does not belong")]
    OtherBlock {
        /// Its label.
        found: String,
    },
    /// More certificates than a file may hold.
    #[error("the file has {found} certificates; the limit is 16")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// A certificate will not do.
    #[error("certificate {number} of the file is refused: {cause}")]
    Certificate {
        /// Which, from 1.
        number: usize,
        /// Why.
        #[source]
        cause: CaCertificateError,
    },
    /// The key needs a passphrase.
    #[error(
        "the private key is encrypted; write it out in the clear for the import: openssl pkey -in KEY -out PLAIN"
    )]
    Encrypted,
    /// A key that authorities do not sign with.
    #[error(
        "an authority here signs with P-256 or P-384, and this key is {found}; keep the root and let it sign an issuer \
         of ours instead: `rhizome root ceremony`"
    )]
    Unsupported {
        /// What it is.
        found: String,
    },
    /// Not a private key.
    #[error("the private key is malformed, or of another curve than the certificate's key")]
    Malformed,
    /// It belongs to another certificate.
    #[error("the private key does not belong to the certificate")]
    OtherKey,
}
