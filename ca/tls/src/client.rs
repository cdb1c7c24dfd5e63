//! The client's end: which server is the right one.
//!
//! Laws: a server is known by its SPIFFE ID, verified against the anchors given, never by its host name or address;
//! every handshake is a full one (no resumption), so that the check is made every time; an identity with which to
//! answer is used only if the server asks. Not here: reaching the server (`connect`).
//! Sources: X509-SVID §5, RFC 8446 §2.2; SPIFFE-ID §2.

use std::fmt;
use std::sync::Arc;

use rhizome_id::{Digest, SpiffeId, Timestamp, TrustDomain};
use rhizome_x509::{LeafFacts, PeerError, PeerUsage, TrustAnchors, inspect, verify_peer};
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme, SupportedProtocolVersion};

use crate::error::{PresentedAuthority, ServerRefusal, TlsError, into_rustls};
use crate::identity::ClientIdentity;
use crate::provider::{ALPN_H2, VERSIONS, provider};

/// First segments of a server's path: `/rhizome/server/NAME` is reserved, so that no rule can grant it to a workload.
const SERVER_PATH: [&str; 2] = ["rhizome", "server"];

/// Which server a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedServer {
    /// Any Rhizome server of this trust domain: `spiffe://TD/rhizome/server/NAME`.
    ServerOf(TrustDomain),
    /// Any Rhizome server of this trust domain whose certificate was signed by an issuer of the Rhizome that has the root,
    /// which the root said in its name, or by one of these keys (SHA-256 of their SubjectPublicKeyInfo), for issuers that
    /// were imported: whoever else has an issuer below the root could make such a server up.
    IssuedBy(TrustDomain, Vec<Digest>),
    /// This one.
    Exact(SpiffeId),
}

impl ExpectedServer {
    /// Whether `id` is a server that is wanted.
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(wanted) => id == wanted,
            Self::ServerOf(domain) | Self::IssuedBy(domain, _) => {
                let mut segments = id.segments();
                let reserved = SERVER_PATH.into_iter().all(|wanted| segments.next() == Some(wanted));
                id.is_member_of(domain) && reserved && segments.count() == 1
            }
        }
    }
}

impl fmt::Display for ExpectedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerOf(domain) => write!(f, "a server of {domain} (spiffe://{domain}/rhizome/server/…)"),
            Self::IssuedBy(domain, _) => {
                write!(f, "a server of {domain} with a certificate of that Rhizome's own issuers")
            }
            Self::Exact(id) => write!(f, "{id}"),
        }
    }
}

/// A configuration that accepts `expected` as verified against `anchors` at the time `clock` gives, and nobody else.
/// It presents `identity` when there is one. The host name that is connected to says nothing about who answers, and is
/// used for routing (SNI) only.
///
/// # Errors
/// [`TlsError::Identity`] when the identity cannot be presented.
pub fn client_config(
    anchors: Arc<TrustAnchors>,
    identity: Option<ClientIdentity>,
    expected: ExpectedServer,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
) -> Result<ClientConfig, TlsError> {
    client_config_of(VERSIONS, anchors, identity, expected, clock)
}

pub(crate) fn client_config_of(
    versions: &[&'static SupportedProtocolVersion],
    anchors: Arc<TrustAnchors>,
    identity: Option<ClientIdentity>,
    expected: ExpectedServer,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(ServerVerifier { anchors, expected, clock });
    let presented = identity.map(|identity| identity.certified()).transpose()?;
    config(verifier, presented, versions)
}

/// A configuration that accepts **whoever answers**. For two purposes: fetching the bundle at the first join, and the
/// first bundle of a foreign trust domain, when there is nothing yet to verify a server by.
///
/// That is safe only because what is fetched proves itself: the join string, or the relationship, carries the fingerprint
/// of the root, and the caller must compare it with what it got, over a connection that carried no secret; then it
/// connects anew with [`client_config`], or verifies by that root what the endpoint had presented. Whoever sends a token, a key or a request over a connection made with this configuration gives it
/// to whoever sits in between. It presents no identity.
///
/// # Errors
/// [`TlsError::Configuration`] when rustls refuses the configuration, which is a fault of ours.
pub(crate) fn danger_unverified_client_config() -> Result<ClientConfig, TlsError> {
    config(Arc::new(DangerAcceptsAnyone), None, VERSIONS)
}

fn config(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<CertifiedKey>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(Presents(Arc::new(identity)))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // A resumed session would skip the check of the server (RFC 8446 §2.2).
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

struct Presents(Arc<CertifiedKey>);

impl fmt::Debug for Presents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presents").finish_non_exhaustive()
    }
}

impl ResolvesClientCert for Presents {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_fits| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

struct ServerVerifier {
    anchors: Arc<TrustAnchors>,
    expected: ExpectedServer,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl ServerVerifier {
    fn verify(&self, leaf: &[u8], above: &[&[u8]]) -> Result<(), ServerRefusal> {
        let now = (self.clock)();
        let peer = verify_peer(leaf, above, &self.anchors, PeerUsage::Server, now)
            .map_err(|error| self.explain(error, leaf, above, now))?;
        let issued = match &self.expected {
            ExpectedServer::IssuedBy(_, issuers) => {
                peer.issuer_is_own || issuers.contains(&peer.issuer_key_digest)
            }
            ExpectedServer::ServerOf(_) | ExpectedServer::Exact(_) => true,
        };
        if issued && self.expected.accepts(&peer.spiffe_id) {
            return Ok(());
        }
        Err(self.wrong_identity(peer.spiffe_id))
    }

    fn wrong_identity(&self, found: SpiffeId) -> ServerRefusal {
        ServerRefusal::WrongIdentity { expected: self.expected.to_string(), found }
    }

    fn unknown_authority(&self, top: Option<LeafFacts>, leaf_only: bool, error: PeerError) -> ServerRefusal {
        let Some(top) = top else {
            return ServerRefusal::Certificate(error);
        };
        ServerRefusal::UnknownAuthority {
            trust_domain: self.anchors.trust_domain().clone(),
            authority: if leaf_only {
                PresentedAuthority::LeafOnly(top.fingerprint)
            } else {
                PresentedAuthority::Intermediate(top.fingerprint)
            },
            issuer: top.issuer,
        }
    }

    /// Says more than the error alone: with both clocks, or with the names and fingerprints of what was presented.
    fn explain(&self, error: PeerError, leaf: &[u8], above: &[&[u8]], now: Timestamp) -> ServerRefusal {
        let mut chain = std::iter::once(&leaf).chain(above).filter_map(|der| inspect(der).ok());
        match error {
            PeerError::TrustDomain { found } => self.wrong_identity(found),
            PeerError::NoLiveAnchor => {
                ServerRefusal::AnchorsExpired { trust_domain: self.anchors.trust_domain().clone(), now }
            }
            PeerError::Expired => match chain.find(|certificate| certificate.not_after < now) {
                Some(certificate) => ServerRefusal::Expired {
                    not_after: certificate.not_after,
                    subject: name_of(certificate),
                    now,
                },
                None => ServerRefusal::Certificate(error),
            },
            PeerError::NotYetValid => match chain.find(|certificate| certificate.not_before > now) {
                Some(certificate) => ServerRefusal::NotYetValid {
                    not_before: certificate.not_before,
                    subject: name_of(certificate),
                    now,
                },
                None => ServerRefusal::Certificate(error),
            },
            // A root that was made anew under its old name looks like a bad signature, and is another root.
            PeerError::UnknownIssuer => self.unknown_authority(chain.next_back(), above.is_empty(), error),
            PeerError::Path(ref text) if text.contains("InvalidSignature") => {
                self.unknown_authority(chain.next_back(), above.is_empty(), error)
            }
            PeerError::ChainTooLong { .. }
            | PeerError::Leaf(_)
            | PeerError::Intermediate(_)
            | PeerError::NotCa(_)
            | PeerError::Key(_)
            | PeerError::CaAsLeaf
            | PeerError::KeyUsage
            | PeerError::UriCount { .. }
            | PeerError::SpiffeId(_)
            | PeerError::NoPath
            | PeerError::DnsName
            | PeerError::Usage
            | PeerError::Path(_) => ServerRefusal::Certificate(error),
        }
    }
}

fn name_of(certificate: LeafFacts) -> String {
    match certificate.spiffe_id {
        Some(id) if !certificate.is_ca => id.to_string(),
        Some(_) | None => certificate.subject,
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _system_time: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let above: Vec<&[u8]> = intermediates.iter().map(AsRef::as_ref).collect();
        self.verify(end_entity, &above).map_err(into_rustls)?;
        Ok(ServerCertVerified::assertion())
    }

    crate::provider::checks_handshake_signatures!();
}

/// Asks nothing about the certificate; the handshake's signature is still checked, so that at least whoever answered
/// holds the key of what it showed.
#[derive(Debug)]
struct DangerAcceptsAnyone;

impl ServerCertVerifier for DangerAcceptsAnyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _system_time: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    crate::provider::checks_handshake_signatures!();
}
