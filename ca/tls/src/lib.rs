//! TLS as both ends of Rhizome speak it: peers verified by SPIFFE ID against the current bundle.
//!
//! Laws: a peer's certificate is judged by `rhizome_x509::verify_peer` alone, anchor expiry included, against the
//! bundle that is current at that handshake; every handshake is a full one, because a resumed session would skip that
//! judgement; the ring provider is always passed explicitly, never taken from the process; outside, a refusal is one
//! TLS alert, inside, it is a typed reason. Not here: what a verified peer may do (`rhizome_core::policy`), listeners
//! and their limits (`rhizome-server`).
//! Sources: X509-SVID §5, RFC 8446 §2.2 and §4.4.2.4.

mod client;
mod connect;
mod endpoint;
mod error;
mod identity;
mod identity_dir;
mod join;
mod join_string;
mod provider;
mod rehearsal;
mod server;
#[cfg(test)]
mod support;

pub use client::{ExpectedServer, client_config};
pub use connect::{ConnectError, Dialled, Stream, cause_of, connect, dial};
pub use endpoint::{
    EndpointConnection, EndpointError, EndpointTls, EndpointTrust, WebRoots, secure_endpoint,
};
pub use error::{IdentityError, PresentedAuthority, ServerRefusal, TlsError};
pub use identity::{ClientIdentity, ServingIdentity};
pub use identity_dir::{IdentityDir, IdentityDirError, StoredIdentity};
pub use join::{JoinError, discover, pinned};
pub use join_string::{
    JoinString, JoinStringError, MAX_ADDRESSES, MAX_BYTES as MAX_JOIN_STRING_BYTES, MAX_ISSUERS, MAX_ROOTS,
    is_address,
};
pub use rehearsal::{RehearsalError, RehearsedEnd, rehearse};
pub use server::{AcceptError, Accepted, ClientTrust, ServerTls};
