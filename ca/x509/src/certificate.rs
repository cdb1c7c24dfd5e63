//! Certificates: the ones we sealed, and the CA certificates we build on and trust.
//!
//! Laws: a [`CaCertificate`] is one CA certificate in DER: CA:TRUE critical, keyCertSign, a non-empty subject, a
//! subject key identifier, a key we accept, no critical extension we do not know. Whether it is trusted is said by
//! where it stands (a [`crate::Bundle`], an [`crate::Issuer`]), not by this type.
//! Sources: RFC 5280 §4.1 and §4.2.1, X509-SVID §3 and §4.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rhizome_id::{Digest, Serial, SpiffeId, Timestamp};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::der::{self, Reader};
use crate::inspect::{self, InspectError};
use crate::key::{KeyError, PublicKey, SignatureError};
use crate::pem_text;

/// Largest certificate read, in bytes: ten times one with a 2048-byte SPIFFE ID and an RSA-4096 key would still fit.
pub const MAX_CERTIFICATE_DER_BYTES: usize = 16 * 1024;

/// A certificate this process sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    serial: Serial,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Certificate {
    pub(crate) const fn sealed(
        der: Vec<u8>,
        serial: Serial,
        not_before: Timestamp,
        not_after: Timestamp,
    ) -> Self {
        Self { der, serial, not_before, not_after }
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate in PEM, with one newline at its end.
    pub fn pem(&self) -> String {
        pem_text::encode(pem_text::CERTIFICATE, &self.der)
    }

    /// SHA-256 of the DER.
    pub fn fingerprint(&self) -> Digest {
        der::sha256(&self.der)
    }

    /// The serial number.
    pub const fn serial(&self) -> Serial {
        self.serial
    }

    /// First second of validity.
    pub const fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Last second of validity.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate(serial {}, {} to {})", self.serial, self.not_before, self.not_after)
    }
}

/// A CA certificate, parsed and checked. Cheap to clone; equal if its DER is; serialised as base64 of the DER.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CaCertificate(Arc<Ca>);

struct Ca {
    der: Arc<[u8]>,
    fingerprint: Digest,
    public_key: Arc<PublicKey>,
    subject: String,
    subject_der: Vec<u8>,
    issuer_der: Vec<u8>,
    not_before: Timestamp,
    not_after: Timestamp,
    extensions: CaExtensions,
}

impl CaCertificate {
    /// Reads a CA certificate in DER.
    ///
    /// # Errors
    /// [`CaCertificateError`] naming the first rule it breaks.
    pub fn parse(der: &[u8]) -> Result<Self, CaCertificateError> {
        let certificate = inspect::parse(der)?;
        let extensions = CaExtensions::read(&certificate)?;
        if extensions.key_identifier.is_empty() {
            return Err(CaCertificateError::NoSubjectKeyId);
        }
        // RFC 5280 §4.1.2.6: a CA's subject is never empty.
        if certificate.subject().iter().next().is_none() {
            return Err(CaCertificateError::EmptySubject);
        }
        // The verifier must be able to read it too, so that no anchor of a bundle is dropped later.
        webpki::anchor_from_trusted_cert(&CertificateDer::from(der))
            .map_err(|_unreadable| InspectError::Malformed)?;
        Ok(Self(Arc::new(Ca {
            der: Arc::from(der),
            fingerprint: der::sha256(der),
            public_key: Arc::new(PublicKey::from_spki_der(certificate.public_key().raw)?),
            subject: certificate.subject().to_string(),
            subject_der: certificate.subject().as_raw().to_vec(),
            issuer_der: certificate.issuer().as_raw().to_vec(),
            not_before: inspect::instant(certificate.validity().not_before),
            not_after: inspect::instant(certificate.validity().not_after),
            extensions,
        })))
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The certificate in DER, shared.
    pub fn shared_der(&self) -> Arc<[u8]> {
        Arc::clone(&self.0.der)
    }

    /// The certificate in PEM, with one newline at its end.
    pub fn pem(&self) -> String {
        pem_text::encode(pem_text::CERTIFICATE, &self.0.der)
    }

    /// SHA-256 of the DER.
    pub fn fingerprint(&self) -> Digest {
        self.0.fingerprint
    }

    /// The CA's key.
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    pub(crate) fn shared_public_key(&self) -> Arc<PublicKey> {
        Arc::clone(&self.0.public_key)
    }

    /// The subject key identifier; never empty.
    pub fn key_identifier(&self) -> &[u8] {
        &self.0.extensions.key_identifier
    }

    /// The subject, in the manner of RFC 4514, for people.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// The subject in DER: what its certificates carry as issuer, byte for byte.
    pub(crate) fn subject_der(&self) -> &[u8] {
        &self.0.subject_der
    }

    /// First second of validity.
    pub fn not_before(&self) -> Timestamp {
        self.0.not_before
    }

    /// Last second of validity.
    pub fn not_after(&self) -> Timestamp {
        self.0.not_after
    }

    /// How many CA certificates may stand between this one and a leaf; `None` if unbounded.
    pub fn path_len(&self) -> Option<u32> {
        self.0.extensions.path_len
    }

    /// The one SPIFFE ID among its names, if it has one; a signing certificate's has no path (X509-SVID §3.2).
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.0.extensions.spiffe_id.as_ref()
    }

    /// Whether subject and issuer are the same and, where both are given, the key identifiers too. The signature is
    /// not verified: a trust anchor is trusted for where it came from.
    pub fn is_self_signed(&self) -> bool {
        let Ca { subject_der, issuer_der, extensions, .. } = &*self.0;
        let same_key = |id: &Vec<u8>| *id == extensions.key_identifier;
        subject_der == issuer_der && extensions.issuer_key_identifier.as_ref().is_none_or(same_key)
    }

    /// Whether its keyUsage allows it to sign revocation lists (RFC 5280 §4.2.1.3, §6.3.3 (f)).
    pub fn may_sign_crls(&self) -> bool {
        self.0.extensions.signs_crls
    }

    /// Whether it has an extended key usage that lacks serverAuth or clientAuth: verifiers allow below it what it allows
    /// itself (RFC 5280 §4.2.1.12 leaves that to them; OpenSSL, Go and webpki do it).
    pub fn narrows_usages(&self) -> bool {
        self.0.extensions.narrows_usages
    }

    /// Whether it constrains names: webpki and others refuse leaves with URI names under such a one.
    pub fn has_name_constraints(&self) -> bool {
        self.0.extensions.name_constraints
    }

    /// Whether it was issued by `issuer`: names and key identifiers match, and the signature verifies.
    pub fn is_issued_by(&self, issuer: &Self) -> bool {
        self.check_issued_by(issuer).is_ok()
    }

    /// Names and key identifiers match, and the signature verifies with `issuer`'s key (RFC 5280 §6.1.3 (a)).
    pub(crate) fn check_issued_by(&self, issuer: &Self) -> Result<(), SignatureError> {
        let wanted = self.0.extensions.issuer_key_identifier.as_deref();
        if self.0.issuer_der != issuer.0.subject_der || wanted.is_some_and(|id| id != issuer.key_identifier())
        {
            return Err(SignatureError::WrongKey);
        }
        let parts = || {
            let mut inner = Reader::new(&self.0.der).enter(der::SEQUENCE).ok()?;
            let tbs = inner.element(der::SEQUENCE).ok()?.raw;
            Some((tbs, inner.element(der::SEQUENCE).ok()?.raw, inner.bits().ok()?))
        };
        let (tbs, identifier, signature) = parts().ok_or(SignatureError::Invalid)?;
        issuer.public_key().verify_by_identifier(identifier, tbs, signature)
    }
}

impl TryFrom<Certificate> for CaCertificate {
    type Error = CaCertificateError;

    fn try_from(certificate: Certificate) -> Result<Self, Self::Error> {
        Self::parse(certificate.der())
    }
}

impl TryFrom<String> for CaCertificate {
    type Error = CaCertificateError;

    fn try_from(base64: String) -> Result<Self, Self::Error> {
        let der = STANDARD.decode(base64).map_err(|_malformed| CaCertificateError::Base64)?;
        Self::parse(&der)
    }
}

impl From<CaCertificate> for String {
    fn from(certificate: CaCertificate) -> Self {
        STANDARD.encode(certificate.der())
    }
}

impl PartialEq for CaCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.der == other.0.der
    }
}

impl Eq for CaCertificate {}

impl fmt::Debug for CaCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaCertificate({}, sha256 {})", self.0.subject, self.0.fingerprint)
    }
}

/// What the extensions of a CA certificate say, once they are found to be those of a CA.
#[derive(Default)]
pub(crate) struct CaExtensions {
    path_len: Option<u32>,
    /// Empty if there is none.
    key_identifier: Vec<u8>,
    issuer_key_identifier: Option<Vec<u8>>,
    spiffe_id: Option<SpiffeId>,
    name_constraints: bool,
    signs_crls: bool,
    narrows_usages: bool,
}

impl CaExtensions {
    /// X509-SVID §4.1 and §4.3, RFC 5280 §4.2.1.3 and §4.2.1.9.
    pub(crate) fn read(certificate: &X509Certificate<'_>) -> Result<Self, CaCertificateError> {
        let mut found = Self::default();
        let (mut is_ca, mut may_sign) = (false, false);
        for extension in certificate.extensions() {
            let parsed = extension.parsed_extension();
            if let ParsedExtension::BasicConstraints(constraints) = parsed {
                is_ca = constraints.ca && extension.critical;
                found.path_len = constraints.path_len_constraint;
            } else if let ParsedExtension::KeyUsage(usage) = parsed {
                may_sign = usage.key_cert_sign();
                found.signs_crls = usage.crl_sign();
            } else if let ParsedExtension::ExtendedKeyUsage(usage) = parsed {
                found.narrows_usages = !(usage.server_auth && usage.client_auth);
            } else if let ParsedExtension::SubjectKeyIdentifier(id) = parsed {
                found.key_identifier = id.0.to_vec();
            } else if let ParsedExtension::AuthorityKeyIdentifier(id) = parsed {
                found.issuer_key_identifier = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            } else if let ParsedExtension::SubjectAlternativeName(names) = parsed {
                found.spiffe_id = only_spiffe_id(&names.general_names);
            } else if let ParsedExtension::NameConstraints(_) = parsed {
                found.name_constraints = true;
            } else if extension.critical {
                return Err(CaCertificateError::UnknownCriticalExtension {
                    oid: extension.oid.to_id_string(),
                });
            }
        }
        if !is_ca {
            return Err(CaCertificateError::NotCa);
        }
        if !may_sign {
            return Err(CaCertificateError::NoKeyCertSign);
        }
        Ok(found)
    }
}

fn only_spiffe_id(names: &[GeneralName<'_>]) -> Option<SpiffeId> {
    let mut uris =
        names.iter().filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
    let first = uris.next()?;
    if uris.next().is_some() { None } else { first.parse().ok() }
}

/// Why a certificate is not one a CA can build on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaCertificateError {
    /// Not readable as a certificate.
    #[error(transparent)]
    Unreadable(#[from] InspectError),
    /// The key is not accepted.
    #[error("the CA's key is not accepted: {0}")]
    Key(#[from] KeyError),
    /// basicConstraints are absent, not critical, or do not say CA:TRUE.
    #[error("not a CA certificate: basicConstraints must be critical and say CA:TRUE")]
    NotCa,
    /// keyUsage is absent or lacks keyCertSign.
    #[error("keyUsage does not allow it to sign certificates (keyCertSign)")]
    NoKeyCertSign,
    /// The subject is empty.
    #[error("the subject is empty; a CA needs one (RFC 5280 §4.1.2.6)")]
    EmptySubject,
    /// There is no subject key identifier.
    #[error("there is no subject key identifier; a CA needs one (RFC 5280 §4.2.1.2)")]
    NoSubjectKeyId,
    /// A critical extension we do not know.
    #[error("critical extension {oid} is not known here")]
    UnknownCriticalExtension {
        /// Its OID in dots.
        oid: String,
    },
    /// The stored text is not base64.
    #[error("not the base64 text of a certificate")]
    Base64,
}
