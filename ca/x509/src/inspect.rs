//! What a certificate says, for people and for the checks on peers.
//!
//! Laws: reads, never judges trust; but an extension that is doubled or cannot be read is refused, never skipped.
//! Not here: whether to believe it (`verify.rs`). Sources: RFC 5280 §4.1 and §4.2, X509-SVID §5.

use rhizome_id::{Digest, SpiffeId, Timestamp};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::certificate::MAX_CERTIFICATE_DER_BYTES;
use crate::der::{self, Reader};
use crate::key::{KeyAlgorithm, PublicKey};

/// Reads a certificate in DER, whoever issued it.
///
/// # Errors
/// [`InspectError`] when it is larger than 16 KiB, is not one certificate in DER, has bytes after it, or carries an
/// extension twice or one that cannot be read.
pub fn inspect(der: &[u8]) -> Result<LeafFacts, InspectError> {
    let certificate = parse(der)?;
    let mut facts = LeafFacts {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: certificate.raw_serial().to_vec(),
        not_before: instant(certificate.validity().not_before),
        not_after: instant(certificate.validity().not_after),
        key_algorithm: PublicKey::from_spki_der(certificate.public_key().raw).ok().map(|key| key.algorithm()),
        public_key_digest: der::sha256(certificate.public_key().raw),
        fingerprint: der::sha256(der),
        spiffe_id: None,
        uris: Vec::new(),
        dns_names: Vec::new(),
        is_ca: false,
        subject_key_id: None,
        issuer_key_id: None,
    };
    for extension in certificate.extensions() {
        facts.read(extension.parsed_extension());
    }
    if let [only] = facts.uris.as_slice() {
        facts.spiffe_id = only.parse().ok();
    }
    Ok(facts)
}

/// What a certificate says; nothing here is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeafFacts {
    /// The SPIFFE ID: present if there is exactly one URI SAN and it is a SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// All URI SANs.
    pub uris: Vec<String>,
    /// All DNS SANs.
    pub dns_names: Vec<String>,
    /// The content octets of the serial number.
    pub serial: Vec<u8>,
    /// The subject, in the manner of RFC 4514; empty for leaves of this authority.
    pub subject: String,
    /// The issuer, in the manner of RFC 4514.
    pub issuer: String,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity.
    pub not_after: Timestamp,
    /// Whether basicConstraints say that it is a CA.
    pub is_ca: bool,
    /// The subject key identifier.
    pub subject_key_id: Option<Vec<u8>>,
    /// The issuer's key identifier.
    pub issuer_key_id: Option<Vec<u8>>,
    /// The kind of key, if it is one we would accept.
    pub key_algorithm: Option<KeyAlgorithm>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub public_key_digest: Digest,
    /// SHA-256 of the certificate.
    pub fingerprint: Digest,
}

impl LeafFacts {
    fn read(&mut self, extension: &ParsedExtension<'_>) {
        if let ParsedExtension::SubjectAlternativeName(names) = extension {
            for name in &names.general_names {
                if let GeneralName::URI(uri) = name {
                    self.uris.push((*uri).to_owned());
                } else if let GeneralName::DNSName(dns) = name {
                    self.dns_names.push((*dns).to_owned());
                }
            }
        } else if let ParsedExtension::BasicConstraints(constraints) = extension {
            self.is_ca = constraints.ca;
        } else if let ParsedExtension::SubjectKeyIdentifier(id) = extension {
            self.subject_key_id = Some(id.0.to_vec());
        } else if let ParsedExtension::AuthorityKeyIdentifier(id) = extension {
            self.issuer_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
        }
    }
}

/// Cuts apart certificates in DER that follow each other with nothing in between: how the SPIFFE Workload API carries a
/// chain or a bundle (§5.2.1). What is inside them is not looked at.
///
/// # Errors
/// [`InspectError::Malformed`] when it is anything else.
pub fn split_certificates(der: &[u8]) -> Result<Vec<Vec<u8>>, InspectError> {
    let mut rest = Reader::new(der);
    let mut found = Vec::new();
    while !rest.is_empty() {
        let one = rest.element(der::SEQUENCE).map_err(|_not_der| InspectError::Malformed)?;
        found.push(one.raw.to_vec());
    }
    Ok(found)
}

/// Why a certificate cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// Larger than [`MAX_CERTIFICATE_DER_BYTES`].
    #[error("the certificate has {bytes} bytes; the limit is 16384")]
    TooLarge {
        /// Bytes found.
        bytes: usize,
    },
    /// Not a certificate in DER.
    #[error("not a certificate in DER")]
    Malformed,
    /// Bytes follow the certificate.
    #[error("{bytes} bytes follow the certificate")]
    TrailingData {
        /// How many.
        bytes: usize,
    },
    /// The algorithm inside the signed part is not the one outside (RFC 5280 §4.1.1.2).
    #[error("the signature algorithm inside the certificate differs from the one outside")]
    AlgorithmMismatch,
    /// An extension appears twice (RFC 5280 §4.2).
    #[error("extension {oid} appears twice")]
    DuplicateExtension {
        /// Its OID in dots.
        oid: String,
    },
    /// An extension we know cannot be read (X509-SVID §5).
    #[error("extension {oid} cannot be read")]
    UnreadableExtension {
        /// Its OID in dots.
        oid: String,
    },
}

/// Parses one certificate and refuses what x509-parser lets pass: bytes left over, extensions that are doubled or
/// unreadable.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, InspectError> {
    if der.len() > MAX_CERTIFICATE_DER_BYTES {
        return Err(InspectError::TooLarge { bytes: der.len() });
    }
    check_frame(der)?;
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_malformed| InspectError::Malformed)?;
    if !rest.is_empty() {
        return Err(InspectError::TrailingData { bytes: rest.len() });
    }
    if certificate.tbs_certificate.signature != certificate.signature_algorithm {
        return Err(InspectError::AlgorithmMismatch);
    }
    let extensions = certificate.extensions();
    for (at, extension) in extensions.iter().enumerate() {
        if extensions.iter().take(at).any(|earlier| earlier.oid == extension.oid) {
            return Err(InspectError::DuplicateExtension { oid: extension.oid.to_id_string() });
        }
        let unreadable = || InspectError::UnreadableExtension { oid: extension.oid.to_id_string() };
        // The parser ignores bytes after the value's one element; DER does not.
        let mut value = Reader::new(extension.value);
        if extension.parsed_extension().error().is_some() || value.any().is_err() || !value.is_empty() {
            return Err(unreadable());
        }
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            let invalid = |name: &GeneralName<'_>| matches!(name, GeneralName::Invalid(..));
            if names.general_names.is_empty() || names.general_names.iter().any(invalid) {
                return Err(unreadable());
            }
        }
    }
    Ok(certificate)
}

/// The outermost frame, strictly: three elements, nothing inside or outside left over (RFC 5280 §4.1.1).
fn check_frame(der: &[u8]) -> Result<(), InspectError> {
    let malformed = |_error: der::DerError| InspectError::Malformed;
    let mut outer = Reader::new(der);
    let mut inner = outer.enter(der::SEQUENCE).map_err(malformed)?;
    if let Err(der::DerError::Trailing(bytes)) = outer.finish() {
        return Err(InspectError::TrailingData { bytes });
    }
    inner.value(der::SEQUENCE).map_err(malformed)?;
    inner.value(der::SEQUENCE).map_err(malformed)?;
    inner.bits().map_err(malformed)?;
    inner.finish().map_err(malformed)
}

pub(crate) fn instant(time: x509_parser::time::ASN1Time) -> Timestamp {
    Timestamp::from_unix(time.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_follow_each_other_are_cut_apart_and_nothing_else_is() {
        let (one, two) = ([0x30, 0x02, 0x05, 0x00], [0x30, 0x00]);
        assert_eq!(split_certificates(&[&one[..], &two].concat()), Ok(vec![one.to_vec(), two.to_vec()]));
        assert_eq!(split_certificates(&[]), Ok(Vec::new()));
        for bad in [&one[..3], &[0x31, 0x00], &[0x30, 0x00, 0x00], &[0x30, 0x80, 0x00, 0x00]] {
            assert_eq!(split_certificates(bad), Err(InspectError::Malformed), "{bad:02x?}");
        }
    }
}
