//! What a connection proves about the other end, read once when it is made.
//!
//! Laws: a certificate stands here only after the TLS handshake verified it against the bundle of that moment; what
//! may have changed since (expiry, revocation, ban) is asked again for every request by `gate`. Peer credentials of
//! a Unix socket come from the kernel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rhizome_core::caller::AttestedCaller;
use rhizome_id::{Digest, Serial, SpiffeId, Timestamp};

/// The other end of a connection.
#[derive(Debug)]
pub(crate) enum Peer {
    /// Over TCP and TLS.
    Remote {
        /// Its address.
        source: SocketAddr,
        /// The certificate it proved to hold, if it presented one.
        certificate: Option<PeerCertificate>,
    },
    /// On the administrators' Unix socket.
    Local {
        /// User id of the process, from the kernel.
        uid: u32,
    },
}

/// A client certificate that the handshake verified.
#[derive(Debug)]
pub(crate) struct PeerCertificate {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) serial: Serial,
    pub(crate) not_after: Timestamp,
    /// SHA-256 of the key that its signature was verified with.
    pub(crate) issuer_key: Digest,
    /// The audit text of its principal, made once for each connection: the key of its token bucket.
    pub(crate) name: String,
    /// Who that is, as the state last looked at knew it: asked again only when the state has changed.
    pub(crate) judged: ArcSwapOption<Judged>,
}

/// A caller, and the state that knew it.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) caller: Arc<AttestedCaller>,
    pub(crate) revision: u64,
}

/// What every request of a connection carries.
pub(crate) type PeerInfo = Arc<Peer>;

impl Peer {
    /// The address to count against before there is an identity.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        match self {
            Self::Remote { source, .. } => Some(source.ip()),
            Self::Local { .. } => None,
        }
    }
}
