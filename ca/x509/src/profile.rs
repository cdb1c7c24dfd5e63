//! The certificates we make: leaf, serving certificate, root and intermediate, each field set by us.
//!
//! Laws: no field is inherited from a library's defaults; the encoder runs with a key that only keeps the bytes; what it
//! kept is linted, and what was linted is what [`Linted`] holds. Equal arguments give equal bytes.
//! Not here: which names and lifetimes someone may have (`rhizome-core`), signing (`rhizome-keys`).
//! Sources: RFC 5280 §4, X509-SVID §2 to §4; the profile that OpenSSL, GnuTLS, NSS, Java, Go and webpki all accept.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rhizome_id::{AuthorityId, Serial, SpiffeId, Timestamp, TrustDomain};
use time::OffsetDateTime;
use x509_parser::x509::X509Name;

use crate::certificate::CaCertificate;
use crate::crl::CrlError;
use crate::der;
use crate::issuer::{Issuer, IssuerError, IssuerNames};
use crate::key::{KeyAlgorithm, PublicKey, SigningAlgorithm};
use crate::lint::{self, Expected, Kind, LintError};
use crate::names::DnsName;
use crate::tbs::Linted;

mod cross;

pub use cross::{CrossSpec, prepare_cross};

/// A workload's or node's certificate: empty subject, one SPIFFE ID, both TLS usages.
#[derive(Debug, Clone, Copy)]
pub struct LeafSpec<'a> {
    /// Who it names; must have a path (X509-SVID §2).
    pub spiffe_id: &'a SpiffeId,
    /// DNS names beside the SPIFFE ID; usually none.
    pub dns_names: &'a [DnsName],
    /// The requester's key.
    pub public_key: &'a PublicKey,
    /// Unique for this issuer.
    pub serial: Serial,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity (inclusive, RFC 5280 §4.1.2.5).
    pub not_after: Timestamp,
}

/// Builds and lints a leaf.
///
/// # Errors
/// [`PrepareError::Lint`] naming the rule the certificate would break, such as a lifetime beyond that of a CA above.
pub fn prepare_leaf(spec: &LeafSpec<'_>, issuer: &Issuer) -> Result<Linted, PrepareError> {
    let LeafSpec { spiffe_id, dns_names, public_key, serial, not_before, not_after } = *spec;
    prepare_server(
        &ServerSpec { spiffe_id, dns_names, ip_addresses: &[], public_key, serial, not_before, not_after },
        issuer,
    )
}

/// A serving certificate of the authority itself: a leaf that may also carry IP addresses.
#[derive(Debug, Clone, Copy)]
pub struct ServerSpec<'a> {
    /// The server's own SPIFFE ID.
    pub spiffe_id: &'a SpiffeId,
    /// The DNS names clients connect to.
    pub dns_names: &'a [DnsName],
    /// The IP addresses clients connect to.
    pub ip_addresses: &'a [IpAddr],
    /// The server's key.
    pub public_key: &'a PublicKey,
    /// Unique for this issuer.
    pub serial: Serial,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity (inclusive).
    pub not_after: Timestamp,
}

/// Builds and lints a serving certificate.
///
/// # Errors
/// As for [`prepare_leaf`].
pub fn prepare_server(spec: &ServerSpec<'_>, issuer: &Issuer) -> Result<Linted, PrepareError> {
    let ServerSpec { spiffe_id, dns_names, ip_addresses, public_key, serial, not_before, not_after } = *spec;
    let mut names = Vec::with_capacity(1 + dns_names.len() + ip_addresses.len());
    names.push(uri(spiffe_id)?);
    for name in dns_names {
        names.push(SanType::DnsName(name.as_str().try_into().map_err(PrepareError::encoder)?));
    }
    names.extend(ip_addresses.iter().copied().map(SanType::IpAddress));

    let mut params = common_params(serial, not_before, not_after, public_key)?;
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;

    let tbs = encode(&params, public_key, issuer.names().params(), issuer.algorithm())?;
    let certificate = issuer.certificate();
    let passed = lint::lint(
        &tbs,
        &Expected {
            kind: Kind::Leaf,
            serial: &serial,
            algorithm: issuer.algorithm(),
            issuer_name: certificate.subject_der(),
            issuer_key_id: Some(certificate.key_identifier()),
            not_before,
            not_after,
            window: (issuer.not_before_limit(), issuer.not_after_limit()),
            subject: lint::EMPTY_NAME,
            public_key,
            authority_keys: issuer.authority_keys(),
            authority_id: issuer.authority_id(),
            spiffe_id,
            dns_names,
            ip_addresses,
        },
    )?;
    Ok(Linted::new(tbs, issuer.algorithm(), issuer.key(), (serial, not_before, not_after), passed))
}

/// A self-signed root.
#[derive(Debug, Clone, Copy)]
pub struct RootSpec<'a> {
    /// The trust domain it is the root of.
    pub trust_domain: &'a TrustDomain,
    /// The key generation; part of the subject, so that no two roots ever share one.
    pub generation: &'a AuthorityId,
    /// The root's key.
    pub public_key: &'a PublicKey,
    /// What it signs with; must belong to the key.
    pub algorithm: SigningAlgorithm,
    /// The serial number.
    pub serial: Serial,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity (inclusive).
    pub not_after: Timestamp,
}

/// Builds and lints a root certificate, to be signed by its own key.
///
/// # Errors
/// [`PrepareError`] when the algorithm does not belong to the key, or a rule is broken.
pub fn prepare_root(spec: &RootSpec<'_>) -> Result<Linted, PrepareError> {
    let RootSpec { trust_domain, generation, public_key, algorithm, serial, not_before, not_after } = *spec;
    check_key(public_key, algorithm)?;
    let spiffe_id = SpiffeId::of_trust_domain(trust_domain);
    let subject = AuthoritySubject::new(trust_domain, "root", generation);
    let mut params = common_params(serial, not_before, not_after, public_key)?;
    set_authority_fields(&mut params, subject.name(), &spiffe_id, BasicConstraints::Unconstrained)?;
    // RFC 5280 §4.2.1.1: a self-signed certificate may leave the authority key identifier out.
    params.use_authority_key_identifier_extension = false;

    let tbs = encode(&params, public_key, &params, algorithm)?;
    let passed = lint::lint(
        &tbs,
        &Expected {
            kind: Kind::Root,
            serial: &serial,
            algorithm,
            issuer_name: &subject.der(),
            issuer_key_id: None,
            not_before,
            not_after,
            window: (Timestamp::EPOCH, Timestamp::MAX),
            subject: &subject.der(),
            public_key,
            authority_keys: &[],
            authority_id: None,
            spiffe_id: &spiffe_id,
            dns_names: &[],
            ip_addresses: &[],
        },
    )?;
    Ok(Linted::new(tbs, algorithm, Arc::new(public_key.clone()), (serial, not_before, not_after), passed))
}

/// Whose intermediate it is. Part of its subject, so that whoever has the root alone tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntermediateRole {
    /// Of the Rhizome that has the root: it signs the certificates of that Rhizome's servers, too.
    Own,
    /// Of a cluster with a Rhizome of its own, below that one.
    Cluster,
}

impl IntermediateRole {
    const fn word(self) -> &'static str {
        match self {
            Self::Own => "issuer",
            Self::Cluster => "cluster-issuer",
        }
    }
}

/// An intermediate that signs leaves: path length 0.
#[derive(Debug, Clone, Copy)]
pub struct IntermediateSpec<'a> {
    /// Whose it is.
    pub role: IntermediateRole,
    /// The trust domain it issues for.
    pub trust_domain: &'a TrustDomain,
    /// The key generation; part of the subject.
    pub generation: &'a AuthorityId,
    /// The intermediate's key.
    pub public_key: &'a PublicKey,
    /// What it will sign leaves with; must belong to its key.
    pub algorithm: SigningAlgorithm,
    /// The serial number, unique for the certificate above.
    pub serial: Serial,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity (inclusive).
    pub not_after: Timestamp,
}

/// Builds and lints an intermediate under `issuer`, which signs with `issuer_algorithm`.
///
/// # Errors
/// [`PrepareError`] when an algorithm does not belong to its key, the issuer may not have a CA below it, or a rule is
/// broken.
pub fn prepare_intermediate(
    spec: &IntermediateSpec<'_>,
    issuer: &CaCertificate,
    issuer_algorithm: SigningAlgorithm,
) -> Result<Linted, PrepareError> {
    let IntermediateSpec {
        role,
        trust_domain,
        generation,
        public_key,
        algorithm,
        serial,
        not_before,
        not_after,
    } = *spec;
    check_key(public_key, algorithm)?;
    check_key(issuer.public_key(), issuer_algorithm)?;
    if issuer.path_len() == Some(0) {
        return Err(IssuerError::PathLength { subject: issuer.subject().to_owned() }.into());
    }
    let spiffe_id = SpiffeId::of_trust_domain(trust_domain);
    let subject = AuthoritySubject::new(trust_domain, role.word(), generation);
    let mut params = common_params(serial, not_before, not_after, public_key)?;
    set_authority_fields(&mut params, subject.name(), &spiffe_id, BasicConstraints::Constrained(0))?;
    params.use_authority_key_identifier_extension = true;

    let names = IssuerNames::of(issuer)?;
    let tbs = encode(&params, public_key, names.params(), issuer_algorithm)?;
    let passed = lint::lint(
        &tbs,
        &Expected {
            kind: Kind::Intermediate,
            serial: &serial,
            algorithm: issuer_algorithm,
            issuer_name: issuer.subject_der(),
            issuer_key_id: Some(issuer.key_identifier()),
            not_before,
            not_after,
            window: (issuer.not_before(), issuer.not_after()),
            subject: &subject.der(),
            public_key,
            authority_keys: &[issuer.public_key().digest()],
            authority_id: issuer.spiffe_id(),
            spiffe_id: &spiffe_id,
            dns_names: &[],
            ip_addresses: &[],
        },
    )?;
    let facts = (serial, not_before, not_after);
    Ok(Linted::new(tbs, issuer_algorithm, issuer.shared_public_key(), facts, passed))
}

/// Every field of rcgen's parameters that does not depend on the profile, and safe values for those that do.
fn common_params(
    serial: Serial,
    not_before: Timestamp,
    not_after: Timestamp,
    public_key: &PublicKey,
) -> Result<CertificateParams, PrepareError> {
    let mut params = CertificateParams::default();
    params.not_before = date_time(not_before)?;
    params.not_after = date_time(not_after)?;
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.name_constraints = None;
    params.crl_distribution_points = Vec::new();
    params.custom_extensions = Vec::new();
    params.key_identifier_method = KeyIdMethod::PreSpecified(public_key.key_identifier().to_vec());
    Ok(params)
}

fn set_authority_fields(
    params: &mut CertificateParams,
    subject: DistinguishedName,
    spiffe_id: &SpiffeId,
    constraints: BasicConstraints,
) -> Result<(), PrepareError> {
    params.distinguished_name = subject;
    params.subject_alt_names = vec![uri(spiffe_id)?];
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = Vec::new();
    Ok(())
}

/// `O = <trust domain>, CN = Rhizome <role> <generation>`.
pub(crate) struct AuthoritySubject {
    organization: String,
    common_name: String,
}

impl AuthoritySubject {
    pub(crate) fn new(trust_domain: &TrustDomain, role: &str, generation: &AuthorityId) -> Self {
        Self {
            organization: trust_domain.as_str().to_owned(),
            common_name: format!("Rhizome {role} {generation}"),
        }
    }

    fn name(&self) -> DistinguishedName {
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, self.organization.as_str());
        name.push(DnType::CommonName, self.common_name.as_str());
        name
    }

    /// The same in DER, written by us: what the lint compares with.
    pub(crate) fn der(&self) -> Vec<u8> {
        let attribute = |oid: &[u8], value: &str| {
            let (oid, value) =
                (der::encode(der::OID, &[oid]), der::encode(der::UTF8_STRING, &[value.as_bytes()]));
            der::encode(der::SET, &[&der::encode(der::SEQUENCE, &[&oid, &value])])
        };
        // id-at-organizationName and id-at-commonName (X.520 §6.4.1, §6.2.2).
        let parts =
            [attribute(b"\x55\x04\x0a", &self.organization), attribute(b"\x55\x04\x03", &self.common_name)];
        der::encode(der::SEQUENCE, &[&parts.concat()])
    }
}

/// Whether `name` is that of an issuer of the Rhizome that has the root of `trust_domain`: byte for byte.
pub(crate) fn is_own_issuer(name: &X509Name<'_>, trust_domain: &TrustDomain) -> bool {
    let common_name = name.iter_common_name().next().and_then(|it| it.as_str().ok());
    let generation = common_name.and_then(|it| it.rsplit(' ').next()?.parse::<AuthorityId>().ok());
    let role = IntermediateRole::Own.word();
    generation.is_some_and(|it| AuthoritySubject::new(trust_domain, role, &it).der() == name.as_raw())
}

fn uri(spiffe_id: &SpiffeId) -> Result<SanType, PrepareError> {
    Ok(SanType::URI(spiffe_id.as_str().try_into().map_err(PrepareError::encoder)?))
}

pub(crate) fn date_time(instant: Timestamp) -> Result<OffsetDateTime, PrepareError> {
    OffsetDateTime::from_unix_timestamp(instant.unix())
        .map_err(|error| PrepareError::Encoder(error.to_string()))
}

pub(crate) fn check_key(key: &PublicKey, algorithm: SigningAlgorithm) -> Result<(), PrepareError> {
    if key.algorithm() == algorithm.key_algorithm() {
        Ok(())
    } else {
        Err(PrepareError::AlgorithmMismatch { key: key.algorithm(), algorithm })
    }
}

/// Runs the encoder and keeps the bytes it wants signed.
pub(crate) fn encode(
    params: &CertificateParams,
    public_key: &PublicKey,
    issuer: &CertificateParams,
    algorithm: SigningAlgorithm,
) -> Result<Vec<u8>, PrepareError> {
    let capture = Capture::new(algorithm);
    let issuer = rcgen::Issuer::from_params(issuer, &capture);
    params.signed_by(&Subject(public_key), &issuer).map_err(PrepareError::encoder)?;
    drop(issuer);
    Ok(capture.into_bytes())
}

/// A signing key that signs nothing: it keeps the bytes that the encoder hands it.
pub(crate) struct Capture {
    algorithm: &'static SignatureAlgorithm,
    tbs: RefCell<Vec<u8>>,
}

impl Capture {
    pub(crate) fn new(algorithm: SigningAlgorithm) -> Self {
        Self { algorithm: encoder_algorithm(algorithm.key_algorithm()), tbs: RefCell::new(Vec::new()) }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.tbs.into_inner()
    }
}

impl PublicKeyData for Capture {
    fn der_bytes(&self) -> &[u8] {
        &[]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for Capture {
    fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.tbs.replace(tbs.to_vec());
        Ok(Vec::new())
    }
}

/// A subject's key as the encoder wants it.
struct Subject<'a>(&'a PublicKey);

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.bits()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        encoder_algorithm(self.0.algorithm())
    }
}

pub(crate) const fn encoder_algorithm(key: KeyAlgorithm) -> &'static SignatureAlgorithm {
    match key {
        KeyAlgorithm::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyAlgorithm::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyAlgorithm::Rsa { .. } => &rcgen::PKCS_RSA_SHA256,
        KeyAlgorithm::Ed25519 => &rcgen::PKCS_ED25519,
    }
}

/// Why a certificate was not prepared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The certificate would break a rule.
    #[error("the certificate would break a rule: {0}")]
    Lint(#[from] LintError),
    /// The issuer cannot issue this.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// The algorithm does not belong to the key.
    #[error("{algorithm} cannot be used with a key of kind {key}")]
    AlgorithmMismatch {
        /// The key.
        key: KeyAlgorithm,
        /// The algorithm asked for.
        algorithm: SigningAlgorithm,
    },
    /// The revocation list would break a rule.
    #[error("the revocation list would break a rule: {0}")]
    Crl(#[from] CrlError),
    /// The encoder refused: a fault of ours.
    #[error("the encoder refused: {0}")]
    Encoder(String),
}

impl PrepareError {
    #[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
    pub(crate) fn encoder(error: rcgen::Error) -> Self {
        Self::Encoder(error.to_string())
    }
}

#[cfg(test)]
mod tests;
