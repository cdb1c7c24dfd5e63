//! Certificate signing requests: a key, and the proof that the requester holds its private half.
//!
//! Laws: a request contributes a public key and nothing else. What else it asks for is read, and ignored where that is
//! harmless: subject, names, key usage, extended key usage, key identifier. It is refused if it asks to be a CA, holds
//! something unknown, doubled or unreadable, or leaves bytes over anywhere.
//! Not here: what goes into the certificate (`profile.rs`). Sources: RFC 2986 §4, RFC 2985 §5.4.2, RFC 5280 §4.2.1.

use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, SubjectAlternativeName};
use x509_parser::prelude::FromDer;

use crate::der::{self, DerError, Reader};
use crate::key::{KeyError, PublicKey, SignatureError};
use crate::pem_text;

pub use crate::pem_text::PemError;

/// Largest request read, in bytes of DER: one with an RSA-4096 key and 16 names has about 3 KiB; Istio caps at 16 KiB
/// of PEM too.
pub const MAX_CSR_DER_BYTES: usize = 16 * 1024;

/// Most names a request may ask for, although all of them are ignored.
const MAX_NAMES: usize = 16;

/// Most extensions a request may hold: more than the kinds we know would be doubled anyway.
const MAX_EXTENSIONS: usize = 8;

/// A request whose signature was verified with the key in it. Only the key can be taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCsr {
    public_key: PublicKey,
}

impl VerifiedCsr {
    /// Reads a request in DER, checks the key, and verifies the signature, once and last.
    ///
    /// # Errors
    /// [`CsrError`] naming the first thing refused.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR_DER_BYTES {
            return Err(CsrError::TooLarge { bytes: der.len(), limit: MAX_CSR_DER_BYTES });
        }
        let mut outer = Reader::new(der);
        let mut request = outer.enter(der::SEQUENCE).map_err(malformed("the request"))?;
        if let Err(DerError::Trailing(bytes)) = outer.finish() {
            return Err(CsrError::TrailingData { bytes });
        }
        let info = request.element(der::SEQUENCE).map_err(malformed("certificationRequestInfo"))?;
        let identifier = request.element(der::SEQUENCE).map_err(malformed("signatureAlgorithm"))?;
        let signature = request.bits().map_err(malformed("the signature"))?;
        request.finish().map_err(malformed("the request"))?;

        let public_key = read_info(info.value)?;
        public_key.verify_by_identifier(identifier.raw, info.raw, signature).map_err(
            |error| match error {
                SignatureError::Invalid => CsrError::BadSignature,
                SignatureError::WrongKey | SignatureError::UnsupportedAlgorithm => {
                    CsrError::UnsupportedSignature {
                        oid: Reader::new(identifier.value)
                            .value(der::OID)
                            .map(der::oid_text)
                            .unwrap_or_default(),
                    }
                }
            },
        )?;
        Ok(Self { public_key })
    }

    /// Reads a request in PEM: exactly one block labelled `CERTIFICATE REQUEST` (or `NEW CERTIFICATE REQUEST`), no
    /// headers, nothing around it but white space at the end.
    ///
    /// # Errors
    /// [`CsrError`]: `Pem` for the armour, the rest as for [`VerifiedCsr::parse`].
    pub fn parse_pem(text: &str) -> Result<Self, CsrError> {
        // Base64 takes 4 bytes for 3, line ends and the frame a little more.
        let limit = MAX_CSR_DER_BYTES * 3 / 2;
        if text.len() > limit {
            return Err(CsrError::TooLarge { bytes: text.len(), limit });
        }
        Self::parse(&pem_text::decode_one(text, &["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"])?)
    }

    /// The key whose private half the requester has proved to hold.
    pub const fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The key, taken out.
    pub fn into_public_key(self) -> PublicKey {
        self.public_key
    }
}

/// Reads a CertificationRequestInfo (RFC 2986 §4.1) for its key.
fn read_info(content: &[u8]) -> Result<PublicKey, CsrError> {
    let mut info = Reader::new(content);
    if info.value(der::INTEGER).map_err(malformed("the version"))? != [0] {
        return Err(CsrError::Malformed { what: "the version" });
    }
    let subject = info.value(der::SEQUENCE).map_err(malformed("the subject"))?;
    check_name(subject).map_err(malformed("the subject"))?;
    let key = info.element(der::SEQUENCE).map_err(malformed("subjectPublicKeyInfo"))?;
    let public_key = PublicKey::from_spki_der(key.raw).map_err(CsrError::of_key)?;
    let mut attributes = info.enter(der::CONTEXT_0).map_err(malformed("the attributes"))?;
    info.finish().map_err(malformed("certificationRequestInfo"))?;

    let mut seen = false;
    while !attributes.is_empty() {
        let mut attribute = attributes.enter(der::SEQUENCE).map_err(malformed("an attribute"))?;
        let oid = attribute.value(der::OID).map_err(malformed("an attribute"))?;
        if oid != EXTENSION_REQUEST {
            return Err(CsrError::UnsupportedAttribute { oid: der::oid_text(oid) });
        }
        if seen {
            return Err(CsrError::DuplicateAttribute { oid: der::oid_text(oid) });
        }
        seen = true;
        let mut values = attribute.enter(der::SET).map_err(malformed("extensionRequest"))?;
        attribute.finish().map_err(malformed("extensionRequest"))?;
        let extensions = values.enter(der::SEQUENCE).map_err(malformed("extensionRequest"))?;
        values.finish().map_err(malformed("extensionRequest"))?;
        check_extensions(extensions)?;
    }
    Ok(public_key)
}

/// A Name (RFC 5280 §4.1.2.4) is ignored, but must be one: generic parsers skip what they cannot read in it.
fn check_name(content: &[u8]) -> Result<(), DerError> {
    let mut name = Reader::new(content);
    while !name.is_empty() {
        let mut relative = name.enter(der::SET)?;
        // X.501 §9.3: a RelativeDistinguishedName has at least one attribute.
        loop {
            let mut attribute = relative.enter(der::SEQUENCE)?;
            attribute.value(der::OID)?;
            attribute.any()?;
            attribute.finish()?;
            if relative.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

fn check_extensions(mut extensions: Reader<'_>) -> Result<(), CsrError> {
    let mut seen: Vec<&[u8]> = Vec::new();
    while !extensions.is_empty() {
        let extension = der::extension(&mut extensions).map_err(malformed("an extension"))?;
        if seen.contains(&extension.oid) {
            return Err(CsrError::DuplicateExtension { oid: der::oid_text(extension.oid) });
        }
        seen.push(extension.oid);
        if seen.len() > MAX_EXTENSIONS {
            return Err(CsrError::Malformed { what: "the number of extensions" });
        }
        check_extension(&extension)?;
    }
    Ok(())
}

/// Every extension is read, so that nothing odd passes unseen; none of them has an effect.
fn check_extension(extension: &der::Extension<'_>) -> Result<(), CsrError> {
    let mut value = Reader::new(extension.value);
    match extension.oid {
        SUBJECT_ALT_NAME => check_names(extension.value)?,
        KEY_USAGE => {
            let bits = value.value(der::BIT_STRING).map_err(malformed("keyUsage"))?;
            let (&[unused @ 0..=7, first] | &[unused @ 0..=7, first, _]) = bits else {
                return Err(CsrError::Malformed { what: "keyUsage" });
            };
            // Bits 5 and 6 from the left: keyCertSign and cRLSign (RFC 5280 §4.2.1.3).
            if first & 0b0000_0110 != 0 {
                return Err(CsrError::RequestsCa);
            }
            if bits.last().is_some_and(|last| last.trailing_zeros() < u32::from(unused)) {
                return Err(CsrError::Malformed { what: "keyUsage" });
            }
            value.finish().map_err(malformed("keyUsage"))?;
        }
        EXTENDED_KEY_USAGE => {
            let parsed = ExtendedKeyUsage::from_der(extension.value);
            value.any().and_then(|_| value.finish()).map_err(malformed("extKeyUsage"))?;
            if parsed.is_err() {
                return Err(CsrError::Malformed { what: "extKeyUsage" });
            }
        }
        BASIC_CONSTRAINTS => {
            let mut inner = value.enter(der::SEQUENCE).map_err(malformed("basicConstraints"))?;
            value.finish().map_err(malformed("basicConstraints"))?;
            // Go writes CA:FALSE as an empty SEQUENCE; others spell the default out.
            let is_ca = inner.next_tag() == Some(der::BOOLEAN)
                && inner.boolean().map_err(malformed("basicConstraints"))?;
            if is_ca || !inner.is_empty() {
                return Err(CsrError::RequestsCa);
            }
        }
        SUBJECT_KEY_ID => {
            value.value(der::OCTET_STRING).map_err(malformed("subjectKeyIdentifier"))?;
            value.finish().map_err(malformed("subjectKeyIdentifier"))?;
        }
        other => {
            return Err(CsrError::UnsupportedExtension { oid: der::oid_text(other) });
        }
    }
    Ok(())
}

/// Names are ignored, but must be names: Istio agents send their SPIFFE ID here, Linkerd proxies a DNS name.
fn check_names(value: &[u8]) -> Result<(), CsrError> {
    let unreadable = CsrError::Malformed { what: "subjectAltName" };
    let mut outer = Reader::new(value);
    let mut inner = outer.enter(der::SEQUENCE).map_err(malformed("subjectAltName"))?;
    outer.finish().map_err(malformed("subjectAltName"))?;
    let mut count = 0usize;
    while !inner.is_empty() {
        inner.any().map_err(malformed("subjectAltName"))?;
        count = count.saturating_add(1);
    }
    if count > MAX_NAMES {
        return Err(CsrError::TooManyNames { count, limit: MAX_NAMES });
    }
    let Ok((_, names)) = SubjectAlternativeName::from_der(value) else {
        return Err(unreadable);
    };
    let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let readable = |name: &GeneralName<'_>| match name {
        GeneralName::URI(text) | GeneralName::DNSName(text) | GeneralName::RFC822Name(text) => {
            printable(text)
        }
        GeneralName::IPAddress(bytes) => matches!(bytes.len(), 4 | 16),
        GeneralName::Invalid(..) => false,
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_) => true,
    };
    if names.general_names.is_empty() || !names.general_names.iter().all(readable) {
        return Err(unreadable);
    }
    Ok(())
}

/// Why a request is refused. All are the requester's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than the limit.
    #[error("the request has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not a certification request in DER.
    #[error("the request is not a PKCS#10 request in DER: cannot read {what}")]
    Malformed {
        /// The part that could not be read.
        what: &'static str,
    },
    /// Bytes follow the request.
    #[error("{bytes} bytes follow the request")]
    TrailingData {
        /// How many.
        bytes: usize,
    },
    /// The armour is wrong.
    #[error("the request's PEM is refused: {0}")]
    Pem(#[from] PemError),
    /// The key is of an accepted kind but too weak, or defective.
    #[error("the key in the request is refused: {0}")]
    WeakKey(#[source] KeyError),
    /// The key is of a kind that is not accepted.
    #[error("the key in the request is refused: {0}")]
    UnsupportedKey(#[source] KeyError),
    /// The signature algorithm is unknown, uses SHA-1, or does not belong to the key.
    #[error("the request is signed with {oid}, which is not accepted for its key; use SHA-256 or SHA-384")]
    UnsupportedSignature {
        /// The algorithm's OID in dots.
        oid: String,
    },
    /// The signature does not verify with the key in the request.
    #[error("the request's signature does not verify with the key in it")]
    BadSignature,
    /// It asks for CA:TRUE, a path length, keyCertSign or cRLSign.
    #[error("the request asks for a CA certificate; only leaves are issued on request")]
    RequestsCa,
    /// An attribute other than extensionRequest.
    #[error("the request holds attribute {oid}; only extensionRequest is understood")]
    UnsupportedAttribute {
        /// Its OID in dots.
        oid: String,
    },
    /// extensionRequest appears twice.
    #[error("the request holds attribute {oid} twice")]
    DuplicateAttribute {
        /// Its OID in dots.
        oid: String,
    },
    /// An extension that is not understood.
    #[error("the request asks for extension {oid}, which is not understood")]
    UnsupportedExtension {
        /// Its OID in dots.
        oid: String,
    },
    /// An extension appears twice.
    #[error("the request asks for extension {oid} twice")]
    DuplicateExtension {
        /// Its OID in dots.
        oid: String,
    },
    /// More names than anyone needs.
    #[error("the request asks for {count} names; the limit is {limit}")]
    TooManyNames {
        /// Names found.
        count: usize,
        /// Names allowed.
        limit: usize,
    },
}

impl CsrError {
    /// A stable name for metrics and audit records.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "csr_too_large",
            Self::Malformed { .. } => "csr_malformed",
            Self::TrailingData { .. } => "csr_trailing_data",
            Self::Pem(_) => "csr_pem",
            Self::WeakKey(_) => "csr_weak_key",
            Self::UnsupportedKey(_) => "csr_unsupported_key",
            Self::UnsupportedSignature { .. } => "csr_unsupported_signature",
            Self::BadSignature => "csr_bad_signature",
            Self::RequestsCa => "csr_requests_ca",
            Self::UnsupportedAttribute { .. } => "csr_unsupported_attribute",
            Self::DuplicateAttribute { .. } => "csr_duplicate_attribute",
            Self::UnsupportedExtension { .. } => "csr_unsupported_extension",
            Self::DuplicateExtension { .. } => "csr_duplicate_extension",
            Self::TooManyNames { .. } => "csr_too_many_names",
        }
    }

    fn of_key(error: KeyError) -> Self {
        match error {
            KeyError::Malformed | KeyError::TrailingData { .. } => {
                Self::Malformed { what: "subjectPublicKeyInfo" }
            }
            KeyError::Unsupported { .. } => Self::UnsupportedKey(error),
            KeyError::RsaSize { .. }
            | KeyError::RsaExponent
            | KeyError::RsaModulusEven
            | KeyError::Roca
            | KeyError::PointNotOnCurve
            | KeyError::PointForm
            | KeyError::SmallOrderPoint => Self::WeakKey(error),
        }
    }
}

fn malformed(what: &'static str) -> impl Fn(DerError) -> CsrError {
    move |_error| CsrError::Malformed { what }
}

/// pkcs-9-at-extensionRequest, 1.2.840.113549.1.9.14 (RFC 2985 §5.4.2).
const EXTENSION_REQUEST: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e";
const SUBJECT_KEY_ID: &[u8] = b"\x55\x1d\x0e";
const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
const SUBJECT_ALT_NAME: &[u8] = b"\x55\x1d\x11";
const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
const EXTENDED_KEY_USAGE: &[u8] = b"\x55\x1d\x25";

#[cfg(test)]
mod tests;
