//! A rehearsal: one whole handshake between two ends in memory, each of which shows a certificate and judges the other's.
//!
//! Laws: both ends are configured as live ones are, by the same functions; each proves that it holds its key; nothing goes
//! over a network, and nothing is left behind. Not here: which certificates are shown to whom, and what follows from it.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use rhizome_id::{SpiffeId, Timestamp};
use rhizome_x509::TrustAnchors;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConnection, OtherError, ServerConnection};
use zeroize::Zeroizing;

use crate::client::{ExpectedServer, client_config};
use crate::error::TlsError;
use crate::identity::{ClientIdentity, ServingIdentity};
use crate::server::{ClientTrust, ServerTls};

/// Flights until a handshake has ended; TLS 1.3 needs three.
const MOST_FLIGHTS: usize = 16;
/// A name that says nothing: servers are known by their SPIFFE IDs.
const ANY_NAME: &str = "localhost";

/// What one end shows, and whom it trusts.
#[derive(Clone, Copy)]
pub struct RehearsedEnd<'e> {
    /// Its chain in DER, leaf first and without the root.
    pub chain_der: &'e [Vec<u8>],
    /// The leaf's private key in PKCS#8 DER.
    pub key_pkcs8_der: &'e [u8],
    /// Who it is.
    pub spiffe_id: &'e SpiffeId,
    /// The anchors it judges the other end by.
    pub trusts: &'e Arc<TrustAnchors>,
}

impl fmt::Debug for RehearsedEnd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RehearsedEnd").field("spiffe_id", self.spiffe_id).finish_non_exhaustive()
    }
}

/// Why a rehearsal did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RehearsalError {
    /// The client does not accept the server's certificate.
    #[error("as a client: {cause}")]
    ClientRefuses {
        /// Why.
        cause: String,
    },
    /// The server does not accept the client's certificate.
    #[error("as a server: {cause}")]
    ServerRefuses {
        /// Why.
        cause: String,
    },
    /// One of the ends cannot be set up, or does not speak: a fault of ours, which says nothing about certificates.
    #[error("the rehearsal could not be held: {cause}")]
    Bug {
        /// What went wrong.
        cause: String,
    },
}

/// Lets `client` connect to `server`, both in memory, at `now`.
///
/// # Errors
/// [`RehearsalError`], naming the end that refused.
pub fn rehearse(
    server: RehearsedEnd<'_>,
    client: RehearsedEnd<'_>,
    now: Timestamp,
) -> Result<(), RehearsalError> {
    let evidence = Arc::new(OnceLock::new());
    let identity = ServingIdentity::new(server.chain_der, server.key_pkcs8_der).map_err(bug)?;
    let trust = Fixed { anchors: Arc::clone(server.trusts), now };
    let tls = ServerTls::new(Arc::new(identity), Arc::new(trust));
    let config = tls.config_into(Some(Arc::clone(&evidence))).map_err(bug)?;
    let mut serving = ServerConnection::new(config).map_err(bug)?;

    let identity =
        ClientIdentity::new(client.chain_der.to_vec(), Zeroizing::new(client.key_pkcs8_der.to_vec()));
    let identity = Some(identity.map_err(bug)?);
    let expected = ExpectedServer::Exact(server.spiffe_id.clone());
    let config = client_config(Arc::clone(client.trusts), identity, expected, Arc::new(move || now));
    let name = ServerName::try_from(ANY_NAME).map_err(bug)?;
    let mut calling = ClientConnection::new(Arc::new(config.map_err(bug)?), name).map_err(bug)?;

    for _ in 0..MOST_FLIGHTS {
        if !calling.is_handshaking() && !serving.is_handshaking() {
            break;
        }
        carry(&mut calling, &mut serving).map_err(bug)?;
        let refuses = |it| RehearsalError::ServerRefuses { cause: reason(&it) };
        serving.process_new_packets().map_err(refuses)?;
        carry(&mut serving, &mut calling).map_err(bug)?;
        let refuses = |it| RehearsalError::ClientRefuses { cause: reason(&it) };
        calling.process_new_packets().map_err(refuses)?;
    }
    if calling.is_handshaking() || serving.is_handshaking() {
        return Err(bug("it does not end"));
    }
    // A server lets whoever shows nothing finish, too.
    match evidence.get() {
        Some(peer) if peer.spiffe_id == *client.spiffe_id => Ok(()),
        Some(_) | None => Err(bug(TlsError::Evidence)),
    }
}

/// Brings what one end has written to the other.
fn carry<A, B>(
    from: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<A>>,
    to: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<B>>,
) -> io::Result<()> {
    let mut flight = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut flight)?;
    }
    let mut rest = flight.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest)?;
    }
    Ok(())
}

fn bug(cause: impl fmt::Display) -> RehearsalError {
    RehearsalError::Bug { cause: cause.to_string() }
}

/// The reason that one of our verifiers gave.
fn reason(error: &rustls::Error) -> String {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) = error {
        return reason.to_string();
    }
    error.to_string()
}

/// A bundle and a time that do not change.
struct Fixed {
    anchors: Arc<TrustAnchors>,
    now: Timestamp,
}

impl ClientTrust for Fixed {
    fn anchors(&self) -> Arc<TrustAnchors> {
        Arc::clone(&self.anchors)
    }

    fn now(&self) -> Timestamp {
        self.now
    }
}

#[cfg(test)]
#[path = "rehearsal_tests.rs"]
mod tests;
