//! TLS of bundle endpoints, at both ends: another domain's that we fetch from, and ours that others fetch from.
//!
//! Laws: an endpoint is believed by exactly one of three: the public Web PKI and its host name (FED §5.2.1), exactly one
//! SPIFFE ID verified against the bundle that is given (§5.2.2), or, for a first fetch that is pinned, by
//! [`EndpointConnection::verify`] after the bundle came, and before anything of it counts. Our own endpoint asks nobody
//! for a certificate (§5.1). Every handshake is a full one and has a deadline. Connecting is the caller's: it chooses the
//! address.
//! Not here: requests and answers (`rhizome-server`), what a bundle may say (`rhizome-core`).
//! Sources: SPIFFE Federation §5, RFC 6125, RFC 8446; ADR 0018 (whose roots).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rhizome_id::{SpiffeId, Timestamp};
use rhizome_x509::{PeerUsage, TrustAnchors, verify_peer};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::{ExpectedServer, client_config, danger_unverified_client_config};
use crate::connect::Stream;
use crate::error::{IdentityError, ServerRefusal, TlsError, reason_in};
use crate::identity::{ServingIdentity, certified_with};
use crate::provider::{VERSIONS, provider};
use crate::server::AcceptError;

/// HTTP/1.1 (RFC 7301 §6): one question, one answer.
const ALPN_HTTP: &[u8] = b"http/1.1";

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Whom the public Web PKI trusts.
#[derive(Clone, Debug)]
pub struct WebRoots(Arc<RootCertStore>);

impl WebRoots {
    /// Mozilla's list, as it was when this release was built.
    pub fn public() -> Self {
        Self(Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }))
    }

    /// The certificates of a PEM file, and no others.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] when it holds none, or one that cannot be used.
    pub fn from_pem(pem: &[u8]) -> Result<Self, IdentityError> {
        let unusable = |cause: String| IdentityError::Certificate { cause };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(IdentityError::EmptyChain);
        }
        Ok(Self(Arc::new(roots)))
    }
}

/// How an endpoint is to be believed.
#[derive(Clone, Debug)]
pub enum EndpointTrust {
    /// By the public Web PKI and the host name.
    Web(WebRoots),
    /// By exactly this identity, verified against these anchors.
    Spiffe {
        /// The anchors of the endpoint's trust domain.
        anchors: Arc<TrustAnchors>,
        /// The endpoint.
        id: SpiffeId,
    },
    /// By nothing yet: [`EndpointConnection::verify`] must follow before what it said counts.
    Pinned,
}

/// A connection to an endpoint, after the handshake.
pub struct EndpointConnection {
    /// The connection.
    pub stream: Box<dyn Stream>,
    /// What it presented, leaf first, in DER; it holds the leaf's key.
    pub chain_der: Vec<Vec<u8>>,
}

impl EndpointConnection {
    /// Whether a chain that an endpoint presented is that of `id`, by `anchors` at `now`.
    ///
    /// # Errors
    /// Why not.
    pub fn verify(
        chain_der: &[Vec<u8>],
        id: &SpiffeId,
        anchors: &TrustAnchors,
        now: Timestamp,
    ) -> Result<(), ServerRefusal> {
        let above: Vec<&[u8]> = chain_der.iter().skip(1).map(Vec::as_slice).collect();
        let leaf = chain_der.first().map(Vec::as_slice).unwrap_or_default();
        let peer = verify_peer(leaf, &above, anchors, PeerUsage::Server, now);
        let peer = peer.map_err(ServerRefusal::Certificate)?;
        if peer.spiffe_id == *id {
            return Ok(());
        }
        Err(ServerRefusal::WrongIdentity { expected: id.to_string(), found: peer.spiffe_id })
    }
}

impl fmt::Debug for EndpointConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointConnection")
            .field("certificates", &self.chain_der.len())
            .finish_non_exhaustive()
    }
}

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The host cannot be in a certificate.
    #[error("`{0}` is neither a host name nor an address")]
    Host(String),
    /// It is not who it should be.
    #[error("the endpoint is not to be trusted: {0}")]
    Refused(String),
    /// No TLS as we speak it.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// Too slow.
    #[error("the TLS handshake did not finish within {0:?}")]
    TimedOut(Duration),
    /// A fault of ours.
    #[error(transparent)]
    Bug(#[from] TlsError),
}

/// Speaks TLS over `io` to the endpoint at `host` (a name, or an address without brackets), within `deadline`.
///
/// # Errors
/// [`EndpointError`]; with [`EndpointError::Refused`] somebody answered, and is not the endpoint.
pub async fn secure_endpoint(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    trust: &EndpointTrust,
    clock: Clock,
    deadline: Duration,
) -> Result<EndpointConnection, EndpointError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_odd| EndpointError::Host(host.to_owned()))?;
    let mut config = match trust {
        EndpointTrust::Web(roots) => web_config(roots, clock)?,
        EndpointTrust::Spiffe { anchors, id } => {
            client_config(Arc::clone(anchors), None, ExpectedServer::Exact(id.clone()), clock)?
        }
        EndpointTrust::Pinned => danger_unverified_client_config()?,
    };
    config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, io);
    match tokio::time::timeout(deadline, handshake).await {
        Ok(Ok(stream)) => {
            let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let chain_der = presented.iter().map(|der| der.to_vec()).collect();
            Ok(EndpointConnection { stream: Box::new(stream), chain_der })
        }
        Ok(Err(error)) => Err(why(&error)),
        Err(_elapsed) => Err(EndpointError::TimedOut(deadline)),
    }
}

fn why(error: &io::Error) -> EndpointError {
    if let Some(refusal) = reason_in::<ServerRefusal>(error) {
        return EndpointError::Refused(refusal.to_string());
    }
    let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match rustls {
        Some(rustls::Error::InvalidCertificate(_)) => EndpointError::Refused(error.to_string()),
        Some(_) | None => EndpointError::Handshake(error.to_string()),
    }
}

fn web_config(roots: &WebRoots, clock: Clock) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(OurTime(clock)));
    let mut config = builder
        .with_protocol_versions(VERSIONS)?
        .with_root_certificates(Arc::clone(&roots.0))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The time by which this server judges everything else, too.
struct OurTime(Clock);

impl fmt::Debug for OurTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OurTime")
    }
}

impl TimeProvider for OurTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from((self.0)().unix()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// The server's end of our own endpoint: it presents `identity` and asks for nothing.
#[derive(Clone, Debug)]
pub struct EndpointTls(Arc<ServerConfig>);

impl EndpointTls {
    /// Presents what `identity` holds at each handshake.
    ///
    /// # Errors
    /// [`TlsError`] when rustls refuses the configuration, which is a fault of ours.
    pub fn new(identity: Arc<ServingIdentity>) -> Result<Self, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .with_no_client_auth()
            .with_cert_resolver(identity);
        config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self(Arc::new(config)))
    }

    /// Runs one handshake, within `deadline`.
    ///
    /// # Errors
    /// [`AcceptError`], for the log.
    pub async fn accept<IO>(&self, io: IO, deadline: Duration) -> Result<TlsStream<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = TlsAcceptor::from(Arc::clone(&self.0)).accept(io);
        match tokio::time::timeout(deadline, handshake).await {
            Ok(result) => result.map_err(AcceptError::from),
            Err(_elapsed) => Err(AcceptError::TimedOut { deadline }),
        }
    }
}

impl ServingIdentity {
    /// From a chain in PEM, leaf first, and the leaf's private key in PEM: PKCS#8, SEC1 or PKCS#1.
    ///
    /// # Errors
    /// As [`ServingIdentity::new`].
    pub fn from_pem(chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, IdentityError> {
        Ok(Self::of(read_pem(chain_pem, key_pem)?))
    }

    /// As [`ServingIdentity::set`], from PEM.
    ///
    /// # Errors
    /// As [`ServingIdentity::from_pem`]; the identity served so far stays.
    pub fn set_pem(&self, chain_pem: &[u8], key_pem: &[u8]) -> Result<(), IdentityError> {
        self.replace(read_pem(chain_pem, key_pem)?);
        Ok(())
    }
}

fn read_pem(chain_pem: &[u8], key_pem: &[u8]) -> Result<rustls::sign::CertifiedKey, IdentityError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain_pem).collect();
    let chain = chain.map_err(|error| IdentityError::Certificate { cause: error.to_string() })?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_says_nothing_useful| IdentityError::Key)?;
    certified_with(chain, &key)
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
