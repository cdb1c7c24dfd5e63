//! The authority leaves are issued under: its certificate, the chain above it, and what they allow.
//!
//! Laws: an [`Issuer`] is a verified chain from the signing certificate to the root: names, key identifiers and
//! signatures match, path lengths allow it, no name constraints (they make webpki refuse every leaf with a URI name).
//! Its limits are those of the tightest certificate on the chain.
//! Not here: its private key, and when it is used. Sources: RFC 5280 §6.1, certificate practice of X509-SVID §4.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyIdMethod};
use rhizome_id::{Digest, SpiffeId, Timestamp};
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::certificate::CaCertificate;
use crate::key::{KeyAlgorithm, PublicKey, SignatureError, SigningAlgorithm};

/// Most CA certificates below the root: peers accept four certificates in a chain, one is the leaf.
pub const MAX_CHAIN_ABOVE_LEAF: usize = 3;

/// What leaves are issued under. Made once per authority and shared.
#[derive(Debug)]
pub struct Issuer {
    signer: CaCertificate,
    root: CaCertificate,
    chain_der: Vec<Arc<[u8]>>,
    names: IssuerNames,
    algorithm: SigningAlgorithm,
    not_before: Timestamp,
    not_after: Timestamp,
    /// Digests of every key on the chain: no leaf may carry one of them.
    authority_keys: Vec<Digest>,
}

impl Issuer {
    /// Takes the chain that leaves are served with (the signing certificate first, then those above it, without the
    /// root) and the root it ends in. Verifies it once.
    ///
    /// # Errors
    /// [`IssuerError`] when the chain is empty or too long, does not hold together, or cannot sign leaves.
    pub fn new(chain: Vec<CaCertificate>, root: CaCertificate) -> Result<Self, IssuerError> {
        if chain.len() > MAX_CHAIN_ABOVE_LEAF {
            return Err(IssuerError::ChainTooLong { length: chain.len() });
        }
        let signer = chain.first().cloned().ok_or(IssuerError::EmptyChain)?;
        let chain_der = chain.iter().map(CaCertificate::shared_der).collect();
        let mut path = chain;
        path.push(root.clone());
        for (below, (certificate, above)) in path.iter().zip(path.iter().skip(1)).enumerate() {
            check_link(certificate, above, below)?;
        }
        for certificate in &path {
            if certificate.has_name_constraints() {
                return Err(IssuerError::NameConstraints { subject: certificate.subject().to_owned() });
            }
        }
        let algorithm = signing_algorithm(&signer)?;
        Ok(Self {
            names: IssuerNames::of(&signer)?,
            chain_der,
            algorithm,
            not_before: path.iter().map(CaCertificate::not_before).max().unwrap_or(Timestamp::MAX),
            not_after: path.iter().map(CaCertificate::not_after).min().unwrap_or(Timestamp::EPOCH),
            authority_keys: path.iter().map(|certificate| certificate.public_key().digest()).collect(),
            signer,
            root,
        })
    }

    /// The signing certificate.
    pub const fn certificate(&self) -> &CaCertificate {
        &self.signer
    }

    /// The root the chain ends in.
    pub const fn root(&self) -> &CaCertificate {
        &self.root
    }

    /// The certificates served after a leaf, in DER: the signing certificate and those above it, without the root.
    pub fn chain_der(&self) -> &[Arc<[u8]>] {
        &self.chain_der
    }

    /// The earliest NotAfter on the whole chain, root included: no leaf may live longer.
    pub const fn not_after_limit(&self) -> Timestamp {
        self.not_after
    }

    /// The latest NotBefore on the whole chain, root included: no leaf may start earlier.
    pub const fn not_before_limit(&self) -> Timestamp {
        self.not_before
    }

    /// What it signs with.
    pub const fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    pub(crate) const fn names(&self) -> &IssuerNames {
        &self.names
    }

    pub(crate) fn key(&self) -> Arc<PublicKey> {
        self.signer.shared_public_key()
    }

    pub(crate) fn authority_keys(&self) -> &[Digest] {
        &self.authority_keys
    }

    /// The trust domain's own ID, if the signing certificate names it.
    pub(crate) fn authority_id(&self) -> Option<&SpiffeId> {
        self.signer.spiffe_id()
    }
}

/// The algorithm a CA certificate's key signs with.
pub(crate) fn signing_algorithm(certificate: &CaCertificate) -> Result<SigningAlgorithm, IssuerError> {
    let key = certificate.public_key().algorithm();
    SigningAlgorithm::of_key(key).ok_or(IssuerError::UnsupportedKey { key })
}

/// `below` CA certificates stand between `certificate` and a leaf, so one more stands below `above`.
fn check_link(certificate: &CaCertificate, above: &CaCertificate, below: usize) -> Result<(), IssuerError> {
    let subject = || certificate.subject().to_owned();
    certificate
        .check_issued_by(above)
        .map_err(|cause| IssuerError::BrokenLink { subject: subject(), cause })?;
    let allowed = |limit: Option<u32>, needed: usize| {
        limit.is_none_or(|limit| usize::try_from(limit).is_ok_and(|limit| limit >= needed))
    };
    if !allowed(certificate.path_len(), below) || !allowed(above.path_len(), below.saturating_add(1)) {
        return Err(IssuerError::PathLength { subject: subject() });
    }
    Ok(())
}

/// An issuer's name and key identifier in the form rcgen writes them. Made once: certificates carry them byte for byte.
#[derive(Debug)]
pub(crate) struct IssuerNames(CertificateParams);

impl IssuerNames {
    /// # Errors
    /// [`IssuerError::Subject`] if rcgen could not write the name back as it is.
    pub(crate) fn of(certificate: &CaCertificate) -> Result<Self, IssuerError> {
        let refused = || IssuerError::Subject { subject: certificate.subject().to_owned() };
        let (_rest, name) = X509Name::from_der(certificate.subject_der()).map_err(|_unreadable| refused())?;
        let mut written = DistinguishedName::new();
        for relative in name.iter_rdn() {
            let mut attributes = relative.iter();
            let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
                return Err(refused());
            };
            let kind =
                DnType::from_oid(&attribute.attr_type().iter().ok_or_else(refused)?.collect::<Vec<u64>>());
            // rcgen keeps one value per attribute type; a second one would vanish.
            if written.get(&kind).is_some() {
                return Err(refused());
            }
            written.push(kind, dn_value(attribute).ok_or_else(refused)?);
        }
        Ok(Self::new(written, certificate.key_identifier()))
    }

    pub(crate) fn new(name: DistinguishedName, key_identifier: &[u8]) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_identifier.to_vec());
        Self(params)
    }

    pub(crate) const fn params(&self) -> &CertificateParams {
        &self.0
    }
}

fn dn_value(attribute: &AttributeTypeAndValue<'_>) -> Option<DnValue> {
    let value = attribute.attr_value();
    let text = || std::str::from_utf8(value.data).ok();
    match value.header.tag() {
        Tag::Utf8String => Some(DnValue::Utf8String(text()?.to_owned())),
        Tag::PrintableString => Some(DnValue::PrintableString(text()?.try_into().ok()?)),
        Tag::Ia5String => Some(DnValue::Ia5String(text()?.try_into().ok()?)),
        _ => None,
    }
}

/// Why certificates do not make an issuer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// No certificate was given.
    #[error("the chain is empty; the first certificate is the one that signs")]
    EmptyChain,
    /// More than [`MAX_CHAIN_ABOVE_LEAF`] certificates.
    #[error("the chain has {length} certificates below the root; the limit is 3")]
    ChainTooLong {
        /// Certificates found.
        length: usize,
    },
    /// A certificate was not issued by the next one.
    #[error("`{subject}` was not issued by the next certificate: {cause}")]
    BrokenLink {
        /// The lower certificate's subject.
        subject: String,
        /// What does not match.
        #[source]
        cause: SignatureError,
    },
    /// A path length does not allow this chain.
    #[error("the path length of `{subject}`, or of its issuer, does not allow this chain")]
    PathLength {
        /// The lower certificate's subject.
        subject: String,
    },
    /// Name constraints: webpki and others refuse leaves with URI names under them.
    #[error(
        "`{subject}` has name constraints; leaves with SPIFFE IDs under it would be refused by rustls and others"
    )]
    NameConstraints {
        /// Its subject.
        subject: String,
    },
    /// The key is not one that authorities sign with.
    #[error("an authority signs with P-256 or P-384, not with {key}")]
    UnsupportedKey {
        /// The key found.
        key: KeyAlgorithm,
    },
    /// The subject cannot be written back byte for byte.
    #[error(
        "the subject `{subject}` has attributes we cannot write back unchanged; use single UTF8String attributes"
    )]
    Subject {
        /// The subject.
        subject: String,
    },
}

#[cfg(test)]
mod tests;
