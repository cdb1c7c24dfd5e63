//! Peers: is this chain a live X509-SVID of our trust domain, and whose?
//!
//! Laws: cost is bounded before anything is verified (sizes, chain length, keys); path validation is webpki's; on top
//! of it, what webpki leaves out: expired anchors are no anchors, CA certificates need keyCertSign, and the leaf is an
//! X509-SVID with exactly one SPIFFE ID, with a path, in the trust domain of the bundle.
//! Not here: what the peer may do, revocation, live TLS. Sources: X509-SVID §5, RFC 5280 §6.

use std::time::Duration;

use rhizome_id::{Digest, SpiffeId, SpiffeIdError, Timestamp, TrustDomain};
use rustls_pki_types::{CertificateDer, Der, TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::bundle::Bundle;
use crate::certificate::{CaCertificate, CaCertificateError, CaExtensions};
use crate::der;
use crate::inspect::{self, InspectError};
use crate::key::{KeyError, PublicKey};
use crate::profile::is_own_issuer;

/// Most certificates a peer may send, leaf included: two are usual, three during a rotation.
pub const MAX_PEER_CHAIN: usize = 4;

/// Which side of the connection the peer is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerUsage {
    /// It connected to us: clientAuth.
    Client,
    /// We connected to it: serverAuth.
    Server,
}

/// A peer whose certificate was verified. Made by [`verify_peer`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedPeer {
    /// Who it is.
    pub spiffe_id: SpiffeId,
    /// The content octets of its certificate's serial number.
    pub serial: Vec<u8>,
    /// First second of its certificate's validity.
    pub not_before: Timestamp,
    /// Last second of its certificate's validity.
    pub not_after: Timestamp,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub public_key_digest: Digest,
    /// SHA-256 of its certificate.
    pub fingerprint: Digest,
    /// SHA-256 of the SubjectPublicKeyInfo that its signature was verified with: who issued it.
    pub issuer_key_digest: Digest,
    /// Whether whoever issued it is an issuer of the Rhizome that has the root, and not of a cluster below it. The names in
    /// a chain are followed up to the anchor (RFC 5280 §6.1.3), so only the root can have said so.
    pub issuer_is_own: bool,
}

/// The anchors of a bundle, ready to verify with. Made once per bundle and shared.
#[derive(Debug, Clone)]
pub struct TrustAnchors {
    trust_domain: TrustDomain,
    anchors: Vec<TrustAnchor<'static>>,
    validity: Vec<(Timestamp, Timestamp)>,
}

impl TrustAnchors {
    /// Takes the anchors out of a bundle.
    pub fn from_bundle(bundle: &Bundle) -> Self {
        // CaCertificate::parse asked webpki already, so none is dropped here.
        let read = |anchor: &CaCertificate| {
            let der = CertificateDer::from(anchor.der());
            let read = webpki::anchor_from_trusted_cert(&der).ok()?.to_owned();
            Some((read, (anchor.not_before(), anchor.not_after())))
        };
        let (anchors, validity) = bundle.anchors().iter().filter_map(read).unzip();
        Self { trust_domain: bundle.trust_domain().clone(), anchors, validity }
    }

    /// The trust domain whose peers they verify.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    fn live(&self, now: Timestamp) -> Vec<TrustAnchor<'_>> {
        let is_live = |(from, until): &(Timestamp, Timestamp)| *from <= now && now <= *until;
        let both = self.anchors.iter().zip(&self.validity);
        both.filter(|(_, validity)| is_live(validity)).map(|(anchor, _)| borrow(anchor)).collect()
    }
}

fn borrow<'a>(anchor: &'a TrustAnchor<'_>) -> TrustAnchor<'a> {
    TrustAnchor {
        subject: Der::from_slice(&anchor.subject),
        subject_public_key_info: Der::from_slice(&anchor.subject_public_key_info),
        name_constraints: anchor.name_constraints.as_deref().map(Der::from_slice),
    }
}

/// Verifies a peer's chain: `leaf` and the `intermediates` it sent, in DER, at `now`.
///
/// # Errors
/// [`PeerError`] naming the first rule broken. Callers answer the peer with one opaque sentence; this is for the log.
pub fn verify_peer(
    leaf: &[u8],
    intermediates: &[&[u8]],
    anchors: &TrustAnchors,
    usage: PeerUsage,
    now: Timestamp,
) -> Result<VerifiedPeer, PeerError> {
    // 1. Bound the cost.
    let length = intermediates.len().saturating_add(1);
    if length > MAX_PEER_CHAIN {
        return Err(PeerError::ChainTooLong { length });
    }
    for intermediate in intermediates {
        let parsed = inspect::parse(intermediate).map_err(PeerError::Intermediate)?;
        CaExtensions::read(&parsed).map_err(PeerError::NotCa)?;
        PublicKey::from_spki_der(parsed.public_key().raw).map_err(PeerError::Key)?;
    }
    let parsed = inspect::parse(leaf).map_err(PeerError::Leaf)?;
    let public_key = PublicKey::from_spki_der(parsed.public_key().raw).map_err(PeerError::Key)?;

    // 2. Is the leaf an X509-SVID of this trust domain?
    let spiffe_id = check_svid(&parsed)?;
    if !spiffe_id.is_member_of(&anchors.trust_domain) {
        return Err(PeerError::TrustDomain { found: spiffe_id });
    }

    // 3. Does it chain to a live anchor?
    let live = anchors.live(now);
    if live.is_empty() {
        return Err(PeerError::NoLiveAnchor);
    }
    let leaf_der = CertificateDer::from(leaf);
    let intermediates: Vec<CertificateDer<'_>> =
        intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(now.unix().unsigned_abs()));
    let usage = match usage {
        PeerUsage::Client => KeyUsage::client_auth(),
        PeerUsage::Server => KeyUsage::server_auth(),
    };
    let issuer_key_digest = EndEntityCert::try_from(&leaf_der)
        .and_then(|end| {
            end.verify_for_usage(ALL_VERIFICATION_ALGS, &live, &intermediates, at, usage, None, None)
                .map(|path| issuer_key(&path))
        })
        .map_err(PeerError::of_path)?;

    Ok(VerifiedPeer {
        spiffe_id,
        serial: parsed.raw_serial().to_vec(),
        not_before: inspect::instant(parsed.validity().not_before),
        not_after: inspect::instant(parsed.validity().not_after),
        public_key_digest: public_key.digest(),
        fingerprint: der::sha256(leaf),
        issuer_key_digest,
        issuer_is_own: is_own_issuer(parsed.issuer(), &anchors.trust_domain),
    })
}

/// SHA-256 of the key that the leaf's signature was verified with.
fn issuer_key(path: &VerifiedPath<'_>) -> Digest {
    match path.intermediate_certificates().next() {
        Some(issuer) => der::sha256(&issuer.subject_public_key_info()),
        None => der::sha256(&der::encode(der::SEQUENCE, &[path.anchor().subject_public_key_info.as_ref()])),
    }
}

/// X509-SVID §5.2 with §2, §4.1 and §4.3: one URI name, a SPIFFE ID with a path; not a CA; key usage as it must be.
fn check_svid(leaf: &X509Certificate<'_>) -> Result<SpiffeId, PeerError> {
    let mut uris = Vec::new();
    let mut has_key_usage = false;
    for extension in leaf.extensions() {
        let parsed = extension.parsed_extension();
        if let ParsedExtension::SubjectAlternativeName(names) = parsed {
            for name in &names.general_names {
                if let GeneralName::URI(uri) = name {
                    uris.push(*uri);
                } else if let GeneralName::DNSName(dns) = name {
                    check_dns(dns)?;
                }
            }
        } else if let ParsedExtension::BasicConstraints(constraints) = parsed {
            if constraints.ca {
                return Err(PeerError::CaAsLeaf);
            }
        } else if let ParsedExtension::KeyUsage(usage) = parsed {
            has_key_usage = extension.critical && usage.digital_signature();
            if usage.key_cert_sign() || usage.crl_sign() {
                return Err(PeerError::CaAsLeaf);
            }
        }
    }
    if !has_key_usage {
        return Err(PeerError::KeyUsage);
    }
    let [uri] = uris.as_slice() else {
        return Err(PeerError::UriCount { count: uris.len() });
    };
    let id: SpiffeId = uri.parse().map_err(PeerError::SpiffeId)?;
    if id.path().is_empty() {
        return Err(PeerError::NoPath);
    }
    Ok(id)
}

/// A DNS name with bytes that no DNS name has (NUL, `/`, `:`) is an attempt to be read differently elsewhere.
fn check_dns(name: &str) -> Result<(), PeerError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'*');
    if name.bytes().all(allowed) { Ok(()) } else { Err(PeerError::DnsName) }
}

/// Why a peer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// More than [`MAX_PEER_CHAIN`] certificates.
    #[error("the peer sent {length} certificates; the limit is 4")]
    ChainTooLong {
        /// Certificates found.
        length: usize,
    },
    /// The leaf cannot be read.
    #[error("the peer's certificate is refused: {0}")]
    Leaf(#[source] InspectError),
    /// An intermediate cannot be read.
    #[error("an intermediate certificate is refused: {0}")]
    Intermediate(#[source] InspectError),
    /// An intermediate is not a CA certificate.
    #[error("an intermediate certificate is refused: {0}")]
    NotCa(#[source] CaCertificateError),
    /// A key on the chain is not accepted.
    #[error("a key on the chain is refused: {0}")]
    Key(#[source] KeyError),
    /// The leaf is a CA, or may sign as one (X509-SVID §3.2, §4.3).
    #[error("the peer presents a CA certificate as its own")]
    CaAsLeaf,
    /// keyUsage is absent, not critical, or lacks digitalSignature (X509-SVID §4.3).
    #[error("keyUsage must be present, critical, and say digitalSignature")]
    KeyUsage,
    /// Not exactly one URI name (X509-SVID §2).
    #[error("the certificate has {count} URI names; an X509-SVID has exactly one")]
    UriCount {
        /// URIs found.
        count: usize,
    },
    /// The URI is not a SPIFFE ID.
    #[error("the URI name is not a SPIFFE ID: {0}")]
    SpiffeId(#[source] SpiffeIdError),
    /// The SPIFFE ID has no path: that is an authority's, not a workload's.
    #[error("the SPIFFE ID has no path; only signing certificates carry such an ID")]
    NoPath,
    /// A DNS name with bytes outside letters, digits, `-`, `.`, `_` and `*`.
    #[error("a DNS name holds bytes that no DNS name has")]
    DnsName,
    /// The SPIFFE ID lies in another trust domain than the bundle's.
    #[error("{found} is not in the trust domain of the bundle")]
    TrustDomain {
        /// The ID found.
        found: SpiffeId,
    },
    /// Every anchor of the bundle is expired, or none is valid yet.
    #[error("no anchor of the bundle is valid now")]
    NoLiveAnchor,
    /// A certificate on the chain is expired.
    #[error("a certificate on the chain is expired")]
    Expired,
    /// A certificate on the chain is not valid yet.
    #[error("a certificate on the chain is not valid yet; compare the clocks")]
    NotYetValid,
    /// No chain leads to an anchor.
    #[error("no chain leads to a live anchor of the bundle")]
    UnknownIssuer,
    /// extKeyUsage does not hold the usage.
    #[error("extKeyUsage does not allow this usage")]
    Usage,
    /// Anything else path validation refuses.
    #[error("the chain is refused: {0}")]
    Path(String),
}

impl PeerError {
    /// A stable name for metrics and audit records.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ChainTooLong { .. } => "peer_chain_too_long",
            Self::Leaf(_) => "peer_leaf_unreadable",
            Self::Intermediate(_) => "peer_intermediate_unreadable",
            Self::NotCa(_) => "peer_intermediate_not_ca",
            Self::Key(_) => "peer_key",
            Self::CaAsLeaf => "peer_ca_as_leaf",
            Self::KeyUsage => "peer_key_usage",
            Self::UriCount { .. } => "peer_uri_count",
            Self::SpiffeId(_) => "peer_spiffe_id",
            Self::NoPath => "peer_no_path",
            Self::DnsName => "peer_dns_name",
            Self::TrustDomain { .. } => "peer_trust_domain",
            Self::NoLiveAnchor => "peer_no_live_anchor",
            Self::Expired => "peer_expired",
            Self::NotYetValid => "peer_not_yet_valid",
            Self::UnknownIssuer => "peer_unknown_issuer",
            Self::Usage => "peer_usage",
            Self::Path(_) => "peer_path",
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
    fn of_path(error: webpki::Error) -> Self {
        if matches!(error, webpki::Error::CertExpired { .. }) {
            Self::Expired
        } else if matches!(error, webpki::Error::CertNotValidYet { .. }) {
            Self::NotYetValid
        } else if matches!(error, webpki::Error::UnknownIssuer) {
            Self::UnknownIssuer
        } else if matches!(
            error,
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension
        ) {
            Self::Usage
        } else {
            Self::Path(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests;
