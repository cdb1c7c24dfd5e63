//! The server's end: who may complete a handshake, and the evidence it leaves behind.
//!
//! Laws: a client certificate is optional, but one that does not verify against the bundle that is current at that
//! moment fails the handshake; the [`VerifiedPeer`] of a connection is the one its handshake produced, and only after
//! the client proved that it holds the key; no session is ever resumed (no tickets, no session storage), because a
//! resumed session skips the check; a handshake has a deadline. Outside, a refusal is one TLS alert; inside,
//! [`AcceptError`] has the reason.
//! Not here: listeners, limits on connections, what the peer may do.
//! Sources: RFC 8446 §2.2, §4.3.2, §4.4.2.4; ca/docs/attacks.md §1.1 "a resumed session skips the current trust check".

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rhizome_id::Timestamp;
use rhizome_x509::{PeerError, PeerUsage, TrustAnchors, VerifiedPeer, verify_peer};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{DistinguishedName, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::{TlsError, into_rustls, reason_in};
use crate::identity::ServingIdentity;
use crate::provider::{ALPN_H2, VERSIONS, provider};

/// Whom a server trusts now. Asked at every handshake, so that a change of the bundle holds from the next one on.
pub trait ClientTrust: Send + Sync + 'static {
    /// The anchors of the current bundle.
    fn anchors(&self) -> Arc<TrustAnchors>;

    /// The time by which certificates are judged.
    fn now(&self) -> Timestamp;
}

/// A server's TLS: what it presents and whom it trusts, both as they are at each handshake.
#[derive(Clone)]
pub struct ServerTls {
    identity: Arc<ServingIdentity>,
    trust: Arc<dyn ClientTrust>,
}

/// A finished handshake.
pub struct Accepted<IO> {
    /// The connection.
    pub stream: TlsStream<IO>,
    /// Who is at the other end, when it presented a certificate; verified in this very handshake.
    pub client: Option<VerifiedPeer>,
}

impl ServerTls {
    /// Presents `identity` and trusts whom `trust` names.
    pub fn new(identity: Arc<ServingIdentity>, trust: Arc<dyn ClientTrust>) -> Self {
        Self { identity, trust }
    }

    /// The configuration for a caller that runs the handshake itself. Prefer [`ServerTls::accept`]: it also hands
    /// over the verified peer.
    ///
    /// # Errors
    /// [`TlsError`] when rustls refuses the configuration, which is a fault of ours.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.config_into(None)
    }

    /// Runs one handshake, within `deadline`.
    ///
    /// # Errors
    /// [`AcceptError`], with the precise reason for the log; the client sees only an alert.
    pub async fn accept<IO>(&self, io: IO, deadline: Duration) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        // A configuration for each connection (a few allocations beside a handshake's 335 µs): its verifier has a
        // place of its own for the evidence, so that nothing is verified twice and nobody gets another's peer.
        let evidence = Arc::new(OnceLock::new());
        let config = self.config_into(Some(Arc::clone(&evidence)))?;
        let handshake = TlsAcceptor::from(config).accept(io);
        let stream = match tokio::time::timeout(deadline, handshake).await {
            Ok(result) => result.map_err(AcceptError::from)?,
            Err(_elapsed) => return Err(AcceptError::TimedOut { deadline }),
        };
        // The handshake is complete: the client has signed it with the certificate's key (RFC 8446 §4.4.3).
        let presented = stream.get_ref().1.peer_certificates().is_some();
        match (presented, evidence.get().cloned()) {
            (false, None) => Ok(Accepted { stream, client: None }),
            (true, Some(client)) => Ok(Accepted { stream, client: Some(client) }),
            (true, None) | (false, Some(_)) => Err(AcceptError::Bug(TlsError::Evidence)),
        }
    }

    pub(crate) fn config_into(&self, evidence: Option<Evidence>) -> Result<Arc<ServerConfig>, TlsError> {
        let verifier = Arc::new(ClientVerifier { trust: Arc::clone(&self.trust), evidence });
        let presented: Arc<dyn ResolvesServerCert> = self.identity.clone();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(presented);
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // A resumed session would skip the check of the client against the current bundle (RFC 8446 §2.2).
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }
}

/// Why a handshake did not finish. The text is for the log; the client saw an alert at most.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The client's certificate does not verify.
    #[error("the client's certificate is refused: {0}")]
    ClientRefused(#[source] PeerError),
    /// Too slow.
    #[error("the handshake did not finish within {deadline:?}")]
    TimedOut {
        /// The limit.
        deadline: Duration,
    },
    /// The bytes were not an acceptable handshake, or the connection broke.
    #[error("the handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// A fault of ours.
    #[error(transparent)]
    Bug(#[from] TlsError),
}

impl AcceptError {
    /// A stable word for metrics and the log.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ClientRefused(_) => "tls_client_refused",
            Self::TimedOut { .. } => "tls_timed_out",
            Self::Handshake(_) => "tls_handshake_failed",
            Self::Bug(_) => "tls_bug",
        }
    }
}

impl From<io::Error> for AcceptError {
    fn from(error: io::Error) -> Self {
        match reason_in::<PeerError>(&error) {
            Some(refusal) => Self::ClientRefused(refusal.clone()),
            None => Self::Handshake(error),
        }
    }
}

/// Where a handshake's verifier leaves the peer it verified.
pub(crate) type Evidence = Arc<OnceLock<VerifiedPeer>>;

struct ClientVerifier {
    trust: Arc<dyn ClientTrust>,
    evidence: Option<Evidence>,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false // Some calls (the bundle, joining with a token) are for clients without a certificate.
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // Names of our CAs are nobody's business before a handshake (RFC 8446 §4.2.4: optional).
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _system_time: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let above: Vec<&[u8]> = intermediates.iter().map(AsRef::as_ref).collect();
        let (anchors, now) = (self.trust.anchors(), self.trust.now());
        let peer = verify_peer(end_entity, &above, &anchors, PeerUsage::Client, now).map_err(into_rustls)?;
        if let Some(evidence) = &self.evidence {
            evidence.set(peer).map_err(|_second| into_rustls(TlsError::Evidence))?;
        }
        Ok(ClientCertVerified::assertion())
    }

    crate::provider::checks_handshake_signatures!();
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
