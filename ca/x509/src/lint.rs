//! The lint: our own reading of the exact bytes that are about to be signed.
//!
//! Laws: it shares no code with the encoder; it compares every field with what was asked for, byte for byte where DER
//! allows one form only; what it does not know it refuses. Generic validators let pass two URI names, missing
//! basicConstraints, tiny serials, leaves that outlive their CA, and critical flags in the wrong place: this does not.
//! Not here: certificates of others (`verify.rs`). Sources: RFC 5280 §4, X509-SVID §2 to §4; clauses at the lines.

use std::fmt;
use std::net::IpAddr;

use rhizome_id::{Digest, Serial, SpiffeId, Timestamp};
use time::{Date, Month, PrimitiveDateTime, Time};

use crate::der::{self, DerError, Reader};
use crate::key::{PublicKey, SigningAlgorithm};
use crate::names::DnsName;

/// Proof that [`lint`] ran and found nothing.
#[derive(Debug)]
pub(crate) struct Passed(());

/// What a certificate must say.
pub(crate) struct Expected<'a> {
    pub(crate) kind: Kind,
    pub(crate) serial: &'a Serial,
    pub(crate) algorithm: SigningAlgorithm,
    /// The issuer's subject in DER.
    pub(crate) issuer_name: &'a [u8],
    /// `None`: no authority key identifier.
    pub(crate) issuer_key_id: Option<&'a [u8]>,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// The latest NotBefore and the earliest NotAfter above.
    pub(crate) window: (Timestamp, Timestamp),
    /// The subject in DER.
    pub(crate) subject: &'a [u8],
    pub(crate) public_key: &'a PublicKey,
    /// Keys of the CAs above.
    pub(crate) authority_keys: &'a [Digest],
    /// The ID of the trust domain, if the issuer names it.
    pub(crate) authority_id: Option<&'a SpiffeId>,
    pub(crate) spiffe_id: &'a SpiffeId,
    pub(crate) dns_names: &'a [DnsName],
    pub(crate) ip_addresses: &'a [IpAddr],
}

/// The profiles.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Leaf,
    Intermediate,
    /// A root's key, certified by another root.
    Cross,
    Root,
}

/// Reads a TBSCertificate and compares it with what was asked for.
pub(crate) fn lint(tbs: &[u8], expected: &Expected<'_>) -> Result<Passed, LintError> {
    use CertificateField as Field;
    let mut outer = Reader::new(tbs);
    let mut fields = outer.enter(der::SEQUENCE).map_err(unreadable(Field::Certificate))?;
    outer.finish().map_err(unreadable(Field::Certificate))?;

    // RFC 5280 §4.1.2.1: version 3 is the INTEGER 2.
    if fields.value(der::CONTEXT_0).map_err(unreadable(Field::Version))? != [der::INTEGER, 1, 2] {
        return Err(LintError::Version);
    }
    check_serial(fields.value(der::INTEGER).map_err(unreadable(Field::Serial))?, expected.serial)?;
    let algorithm = fields.element(der::SEQUENCE).map_err(unreadable(Field::SignatureAlgorithm))?;
    if algorithm.raw != expected.algorithm.identifier() {
        return Err(LintError::SignatureAlgorithm);
    }
    let issuer = fields.element(der::SEQUENCE).map_err(unreadable(Field::Issuer))?;
    // RFC 5280 §4.1.2.4: never empty; equal to the issuer's subject, byte for byte.
    if issuer.value.is_empty() || issuer.raw != expected.issuer_name {
        return Err(LintError::IssuerName);
    }
    check_validity(fields.enter(der::SEQUENCE).map_err(unreadable(Field::Validity))?, expected)?;
    let subject = fields.element(der::SEQUENCE).map_err(unreadable(Field::Subject))?;
    check_subject(subject.raw, expected)?;
    let key = fields.element(der::SEQUENCE).map_err(unreadable(Field::PublicKey))?;
    check_key(key.raw, expected)?;
    check_spiffe_id(expected)?;
    // Unique identifiers ([1], [2]) would stand here and fail the tag (RFC 5280 §4.1.2.8).
    let mut wrapper = fields.enter(der::CONTEXT_3).map_err(unreadable(Field::Extensions))?;
    fields.finish().map_err(unreadable(Field::Certificate))?;
    let extensions = wrapper.enter(der::SEQUENCE).map_err(unreadable(Field::Extensions))?;
    wrapper.finish().map_err(unreadable(Field::Extensions))?;
    check_extensions(extensions, expected)?;
    Ok(Passed(()))
}

/// RFC 5280 §4.1.2.2: positive, at most 20 octets; ours have at least 16, most of them random.
fn check_serial(content: &[u8], expected: &Serial) -> Result<(), LintError> {
    if !(16..=20).contains(&content.len()) || content.first().is_none_or(|first| !(1..=0x7f).contains(first))
    {
        return Err(LintError::SerialShape { bytes: content.len() });
    }
    if content != expected.as_bytes() {
        return Err(LintError::SerialMismatch);
    }
    Ok(())
}

fn check_validity(mut validity: Reader<'_>, expected: &Expected<'_>) -> Result<(), LintError> {
    let not_before = read_time(&mut validity)?;
    let not_after = read_time(&mut validity)?;
    validity.finish().map_err(unreadable(CertificateField::Validity))?;
    if (not_before, not_after) != (expected.not_before, expected.not_after) {
        return Err(LintError::ValidityMismatch);
    }
    if not_before > not_after {
        return Err(LintError::ValidityReversed);
    }
    let (earliest, latest) = expected.window;
    if not_before < earliest {
        return Err(LintError::PrecedesAuthority { limit: earliest });
    }
    if not_after > latest {
        return Err(LintError::OutlivesAuthority { limit: latest });
    }
    Ok(())
}

/// RFC 5280 §4.1.2.5: UTCTime until 2049, GeneralizedTime from 2050, both in seconds and with `Z`.
pub(crate) fn read_time(reader: &mut Reader<'_>) -> Result<Timestamp, LintError> {
    let element = reader.any().map_err(unreadable(CertificateField::Validity))?;
    let (century, digits) = match (element.tag, element.value) {
        (der::UTC_TIME, [digits @ .., b'Z']) if digits.len() == 12 => (0, digits),
        (der::GENERALIZED_TIME, [digits @ .., b'Z']) if digits.len() == 14 => {
            let (century, rest) = digits.split_at_checked(2).ok_or(LintError::TimeForm)?;
            (i32::from(two_digits(century)?), rest)
        }
        _ => return Err(LintError::TimeForm),
    };
    let mut pairs = digits.chunks_exact(2).map(two_digits);
    let mut next = || pairs.next().unwrap_or(Err(LintError::TimeForm));
    let year_in_century = i32::from(next()?);
    let year = match (element.tag, year_in_century) {
        (der::UTC_TIME, 50..) => 1900_i32.saturating_add(year_in_century),
        (der::UTC_TIME, _) => 2000_i32.saturating_add(year_in_century),
        _ => century.saturating_mul(100).saturating_add(year_in_century),
    };
    if element.tag == der::GENERALIZED_TIME && year < 2050 {
        return Err(LintError::TimeForm);
    }
    let read = |month: u8, day, hour, minute, second| {
        let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
        let time = Time::from_hms(hour, minute, second).ok()?;
        Some(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
    };
    let seconds = read(next()?, next()?, next()?, next()?, next()?).ok_or(LintError::TimeForm)?;
    let instant = Timestamp::from_unix(seconds);
    if instant.unix() == seconds { Ok(instant) } else { Err(LintError::TimeForm) }
}

fn two_digits(pair: &[u8]) -> Result<u8, LintError> {
    match pair {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Ok((tens - b'0') * 10 + (ones - b'0')),
        _ => Err(LintError::TimeForm),
    }
}

fn check_subject(raw: &[u8], expected: &Expected<'_>) -> Result<(), LintError> {
    let is_empty = raw == EMPTY_NAME;
    match expected.kind {
        // RFC 5280 §4.1.2.6: a CA's subject is never empty; and it is unique, so it is not its issuer's.
        Kind::Root | Kind::Cross | Kind::Intermediate if is_empty => return Err(LintError::EmptySubject),
        Kind::Cross | Kind::Intermediate if raw == expected.issuer_name => {
            return Err(LintError::SubjectIsIssuer);
        }
        Kind::Root if raw != expected.issuer_name => return Err(LintError::IssuerName),
        Kind::Root | Kind::Cross | Kind::Intermediate | Kind::Leaf => {}
    }
    if raw == expected.subject { Ok(()) } else { Err(LintError::SubjectMismatch) }
}

fn check_key(raw: &[u8], expected: &Expected<'_>) -> Result<(), LintError> {
    if raw != expected.public_key.spki_der() {
        return Err(LintError::PublicKeyMismatch);
    }
    if expected.authority_keys.contains(&expected.public_key.digest()) {
        return Err(LintError::KeyOfAuthority);
    }
    Ok(())
}

/// X509-SVID §2 and §3.2: a leaf's ID has a path, a CA's has none; both in the issuer's trust domain.
fn check_spiffe_id(expected: &Expected<'_>) -> Result<(), LintError> {
    let id = expected.spiffe_id;
    if (expected.kind == Kind::Leaf) == id.path().is_empty() {
        return Err(LintError::IdPath);
    }
    let authority = expected.authority_id.map(SpiffeId::as_str);
    let domain = id.as_str().strip_suffix(id.path());
    if authority.is_some() && authority != domain {
        return Err(LintError::ForeignTrustDomain);
    }
    Ok(())
}

fn check_extensions(mut extensions: Reader<'_>, expected: &Expected<'_>) -> Result<(), LintError> {
    use CertificateField as Field;
    let is_leaf = expected.kind == Kind::Leaf;
    let mut seen = [
        (Field::SubjectAltName, true, false),
        (Field::BasicConstraints, true, false),
        (Field::KeyUsage, true, false),
        (Field::ExtendedKeyUsage, is_leaf, false),
        (Field::SubjectKeyId, true, false),
        (Field::AuthorityKeyId, expected.issuer_key_id.is_some(), false),
    ];
    while !extensions.is_empty() {
        let extension = der::extension(&mut extensions).map_err(unreadable(Field::Extensions))?;
        let (field, must_be_critical) = match extension.oid {
            // RFC 5280 §4.2.1.6: critical exactly if the subject is empty.
            b"\x55\x1d\x11" => (Field::SubjectAltName, expected.subject == EMPTY_NAME),
            b"\x55\x1d\x13" => (Field::BasicConstraints, true),
            b"\x55\x1d\x0f" => (Field::KeyUsage, true),
            b"\x55\x1d\x25" => (Field::ExtendedKeyUsage, false),
            b"\x55\x1d\x0e" => (Field::SubjectKeyId, false),
            b"\x55\x1d\x23" => (Field::AuthorityKeyId, false),
            b"\x55\x1d\x1e" => return Err(LintError::NameConstraints),
            other => {
                return Err(LintError::UnknownExtension { oid: der::oid_text(other) });
            }
        };
        for (name, wanted, found) in &mut seen {
            if *name == field {
                if *found {
                    return Err(LintError::DuplicateExtension { field });
                }
                if !*wanted {
                    return Err(LintError::UnwantedExtension { field });
                }
                *found = true;
            }
        }
        if extension.critical != must_be_critical {
            return Err(LintError::Criticality { field });
        }
        check_extension(field, extension.value, expected)?;
    }
    match seen.iter().find(|(_, wanted, found)| *wanted && !*found) {
        Some((field, _, _)) => Err(LintError::MissingExtension { field: *field }),
        None => Ok(()),
    }
}

/// Compares one extension's value with the one form DER allows for what was asked.
fn check_extension(field: CertificateField, value: &[u8], expected: &Expected<'_>) -> Result<(), LintError> {
    use CertificateField as Field;
    let is_leaf = expected.kind == Kind::Leaf;
    match field {
        Field::SubjectAltName => return check_names(value, expected),
        Field::BasicConstraints => {
            let wanted: &[u8] = match expected.kind {
                // cA has the default FALSE, which DER leaves out (RFC 5280 §4.2.1.9, X.690 §11.5).
                Kind::Leaf => b"\x30\x00",
                Kind::Root => b"\x30\x03\x01\x01\xff",
                Kind::Intermediate => b"\x30\x06\x01\x01\xff\x02\x01\x00",
                Kind::Cross => b"\x30\x06\x01\x01\xff\x02\x01\x01",
            };
            if value != wanted {
                return Err(LintError::BasicConstraints);
            }
        }
        Field::KeyUsage => {
            // X509-SVID §4.3: digitalSignature; for CAs keyCertSign and cRLSign. Nothing else, for any kind of key.
            let wanted: &[u8] = if is_leaf { b"\x03\x02\x07\x80" } else { b"\x03\x02\x01\x06" };
            if value != wanted {
                return Err(LintError::KeyUsage);
            }
        }
        Field::ExtendedKeyUsage => {
            if value != SERVER_AND_CLIENT_AUTH {
                return Err(LintError::ExtendedKeyUsage);
            }
        }
        Field::SubjectKeyId => {
            let read = Reader::new(value).value(der::OCTET_STRING);
            if value.len() != 22 || read != Ok(&expected.public_key.key_identifier()) {
                return Err(LintError::SubjectKeyId);
            }
        }
        Field::AuthorityKeyId => check_authority_key_id(value, expected)?,
        Field::Certificate
        | Field::Version
        | Field::Serial
        | Field::SignatureAlgorithm
        | Field::Issuer
        | Field::Validity
        | Field::Subject
        | Field::PublicKey
        | Field::Extensions => return Err(LintError::Unreadable { field }),
    }
    Ok(())
}

/// RFC 5280 §4.2.1.1, keyIdentifier only: issuer and serial would tie leaves to one certificate of the CA and so
/// block cross-signing.
fn check_authority_key_id(value: &[u8], expected: &Expected<'_>) -> Result<(), LintError> {
    let read = || {
        let mut outer = Reader::new(value);
        let mut inner = outer.enter(der::SEQUENCE).ok()?;
        let id = inner.value(0x80).ok()?;
        inner.finish().and_then(|()| outer.finish()).ok()?;
        Some(id)
    };
    match read() {
        Some(id) if Some(id) == expected.issuer_key_id => Ok(()),
        _ => Err(LintError::AuthorityKeyId),
    }
}

/// X509-SVID §2: exactly one URI, the SPIFFE ID; then the DNS names and addresses asked for, in order, and no more.
fn check_names(value: &[u8], expected: &Expected<'_>) -> Result<(), LintError> {
    let field = CertificateField::SubjectAltName;
    let mut outer = Reader::new(value);
    let names = outer.enter(der::SEQUENCE).map_err(unreadable(field))?;
    outer.finish().map_err(unreadable(field))?;

    let mut count = 0u32;
    let mut rest = names;
    while !rest.is_empty() {
        let name = rest.any().map_err(unreadable(field))?;
        if name.tag == URI {
            count = count.saturating_add(1);
            if count == 1 && name.value != expected.spiffe_id.as_str().as_bytes() {
                return Err(LintError::UriMismatch);
            }
        }
    }
    if count != 1 {
        return Err(LintError::UriCount { count });
    }
    let mut rest = names;
    let mut is_next = |tag: u8, wanted: &[u8]| rest.value(tag) == Ok(wanted);
    let uri = is_next(URI, expected.spiffe_id.as_str().as_bytes());
    let dns = expected.dns_names.iter().all(|name| is_next(DNS, name.as_str().as_bytes()));
    let ip = expected.ip_addresses.iter().all(|address| match address {
        IpAddr::V4(v4) => is_next(IP, &v4.octets()),
        IpAddr::V6(v6) => is_next(IP, &v6.octets()),
    });
    if uri && dns && ip && rest.is_empty() { Ok(()) } else { Err(LintError::Names) }
}

fn unreadable(field: CertificateField) -> impl Fn(DerError) -> LintError {
    move |_error| LintError::Unreadable { field }
}

/// An empty Name.
pub(crate) const EMPTY_NAME: &[u8] = &[der::SEQUENCE, 0];
/// GeneralName tags (RFC 5280 §4.2.1.6).
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;
/// id-kp-serverAuth and id-kp-clientAuth (RFC 5280 §4.2.1.12, X509-SVID §4.4).
const SERVER_AND_CLIENT_AUTH: &[u8] =
    b"\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02";

/// The parts of a certificate that a refusal can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateField {
    /// The whole.
    Certificate,
    /// The version.
    Version,
    /// The serial number.
    Serial,
    /// The signature algorithm.
    SignatureAlgorithm,
    /// The issuer's name.
    Issuer,
    /// NotBefore and NotAfter.
    Validity,
    /// The subject.
    Subject,
    /// The subject's public key.
    PublicKey,
    /// The list of extensions.
    Extensions,
    /// subjectAltName.
    SubjectAltName,
    /// basicConstraints.
    BasicConstraints,
    /// keyUsage.
    KeyUsage,
    /// extKeyUsage.
    ExtendedKeyUsage,
    /// subjectKeyIdentifier.
    SubjectKeyId,
    /// authorityKeyIdentifier.
    AuthorityKeyId,
}

impl fmt::Display for CertificateField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "the certificate",
            Self::Version => "the version",
            Self::Serial => "the serial number",
            Self::SignatureAlgorithm => "the signature algorithm",
            Self::Issuer => "the issuer",
            Self::Validity => "the validity",
            Self::Subject => "the subject",
            Self::PublicKey => "the public key",
            Self::Extensions => "the extensions",
            Self::SubjectAltName => "subjectAltName",
            Self::BasicConstraints => "basicConstraints",
            Self::KeyUsage => "keyUsage",
            Self::ExtendedKeyUsage => "extKeyUsage",
            Self::SubjectKeyId => "subjectKeyIdentifier",
            Self::AuthorityKeyId => "authorityKeyIdentifier",
        })
    }
}

/// The rule a certificate would break. Each is a defect of what was asked for, or of the encoder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LintError {
    /// A part is absent, not DER, or something is left over in it.
    #[error("{field} cannot be read as DER, or bytes are left over in it")]
    Unreadable {
        /// The part.
        field: CertificateField,
    },
    /// Not version 3.
    #[error("the version is not 3")]
    Version,
    /// The serial is negative, zero, shorter than 16 or longer than 20 bytes.
    #[error("the serial number has {bytes} bytes or is not positive; 16 to 20 bytes are needed")]
    SerialShape {
        /// Bytes found.
        bytes: usize,
    },
    /// Another serial than was asked for.
    #[error("the serial number is not the one asked for")]
    SerialMismatch,
    /// Not the algorithm of the issuer's key.
    #[error("the signature algorithm is not that of the issuer's key")]
    SignatureAlgorithm,
    /// The issuer's name is empty or not byte for byte the issuer's subject.
    #[error("the issuer's name is not, byte for byte, the subject of the issuing certificate")]
    IssuerName,
    /// A time that is not UTCTime until 2049 or GeneralizedTime from 2050.
    #[error("a time is not UTCTime (until 2049) or GeneralizedTime (from 2050) in whole seconds with Z")]
    TimeForm,
    /// Other instants than were asked for.
    #[error("the validity is not the one asked for")]
    ValidityMismatch,
    /// NotBefore lies after NotAfter.
    #[error("NotBefore lies after NotAfter")]
    ValidityReversed,
    /// It would start before a CA above it.
    #[error("it would be valid before a CA above it, which starts at {limit}")]
    PrecedesAuthority {
        /// The latest NotBefore above.
        limit: Timestamp,
    },
    /// It would outlive a CA above it.
    #[error("it would outlive a CA above it, which ends at {limit}")]
    OutlivesAuthority {
        /// The earliest NotAfter above.
        limit: Timestamp,
    },
    /// A CA without a subject.
    #[error("the subject of a CA is empty")]
    EmptySubject,
    /// An intermediate named like its issuer.
    #[error("the subject of an intermediate is that of its issuer")]
    SubjectIsIssuer,
    /// Another subject than was asked for.
    #[error("the subject is not the one asked for")]
    SubjectMismatch,
    /// Another key than was asked for.
    #[error("the public key is not the one asked for")]
    PublicKeyMismatch,
    /// The key of a CA above.
    #[error("the public key is that of a CA above it")]
    KeyOfAuthority,
    /// A leaf's ID without a path, or a CA's with one.
    #[error("the SPIFFE ID of a leaf needs a path, and that of a CA must have none")]
    IdPath,
    /// The ID lies in another trust domain than the issuer's.
    #[error("the SPIFFE ID is not in the issuer's trust domain")]
    ForeignTrustDomain,
    /// An extension outside the profile.
    #[error("extension {oid} is not part of the profile")]
    UnknownExtension {
        /// Its OID in dots.
        oid: String,
    },
    /// Name constraints.
    #[error("name constraints make rustls, and others, refuse every SPIFFE ID below")]
    NameConstraints,
    /// An extension that is twice there.
    #[error("{field} is there twice")]
    DuplicateExtension {
        /// Which.
        field: CertificateField,
    },
    /// An extension that this profile must not have.
    #[error("{field} does not belong into this kind of certificate")]
    UnwantedExtension {
        /// Which.
        field: CertificateField,
    },
    /// An extension that this profile must have.
    #[error("{field} is missing")]
    MissingExtension {
        /// Which.
        field: CertificateField,
    },
    /// Critical where it must not be, or the reverse.
    #[error("{field} is critical and must not be, or is not and must be")]
    Criticality {
        /// Which.
        field: CertificateField,
    },
    /// Not exactly one URI name.
    #[error("there are {count} URI names; exactly one is allowed (X509-SVID §2)")]
    UriCount {
        /// URIs found.
        count: u32,
    },
    /// The URI is not the SPIFFE ID asked for.
    #[error("the URI name is not the SPIFFE ID asked for")]
    UriMismatch,
    /// The other names are not the ones asked for.
    #[error("the DNS names and addresses are not the ones asked for")]
    Names,
    /// basicConstraints of another profile.
    #[error("basicConstraints are not those of the profile")]
    BasicConstraints,
    /// keyUsage of another profile.
    #[error("keyUsage is not that of the profile")]
    KeyUsage,
    /// Not serverAuth and clientAuth.
    #[error("extKeyUsage is not serverAuth and clientAuth")]
    ExtendedKeyUsage,
    /// Not derived from the subject's key.
    #[error("subjectKeyIdentifier is not derived from the subject's key")]
    SubjectKeyId,
    /// Not the issuer's key identifier alone.
    #[error("authorityKeyIdentifier is not the issuer's key identifier alone")]
    AuthorityKeyId,
}

#[cfg(test)]
mod tests;
