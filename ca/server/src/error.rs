//! Everything that can go wrong at a door, as values. One file, `status.rs`, turns them into answers.
//!
//! Laws: every variant says whose fault it is; what the caller may read and what only the log may read are told apart
//! in `status.rs`, nowhere else.

use std::time::Duration;

use rhizome_core::caller::Role;
use rhizome_core::clusters::ClusterRefusal;
use rhizome_core::issuance::IssuanceError;
use rhizome_core::issuance::jwt::TokenIssuanceError;
use rhizome_core::nodes::RenewError;
use rhizome_core::policy::Denial;
use rhizome_core::ports::{KeyRingError, StoreError};
use rhizome_core::rotation::Refusal;
use rhizome_core::tokens::TokenError;
use rhizome_id::Timestamp;
use rhizome_x509::CsrError;

use crate::upstream::UpstreamError;

/// Why a certificate or a token was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The CSR gives no usable key.
    #[error("the CSR was refused: {0}")]
    Csr(#[from] CsrError),
    /// Policy says no.
    #[error("denied: {0}")]
    Denied(#[from] Denial),
    /// The request id was used for another key.
    #[error(
        "request id `{id}` was used with another key or for another identity; choose a new id for a new request"
    )]
    RequestIdReused {
        /// The id.
        id: String,
    },
    /// The caller was banned, evicted, removed or revoked while its request was being recorded.
    #[error("the caller lost its standing while the request was recorded: {0}")]
    CallerGone(#[source] AuthError),
    /// What the rules grant changed while the request was being recorded.
    #[error("what the rules grant changed while the request was recorded; ask again")]
    PolicyChanged,
    /// The key was taken out of service while the request was being recorded.
    #[error("the key was tainted while the request was recorded; ask again")]
    KeyTainted,
    /// Keys for tokens stand in the bundle of the Rhizome above, which signs with its own.
    #[error("this Rhizome is below another one, which alone gives JWT-SVIDs")]
    TokensAbove,
    /// There is no active authority yet.
    #[error("no authority is active yet")]
    NoAuthority,
    /// The clock went back.
    #[error("the server's clock says {now}, but the ledger was written at {seen}")]
    ClockWentBack {
        /// The clock.
        now: Timestamp,
        /// The newest instant known.
        seen: Timestamp,
    },
    /// A signature did not fit what was linted, or another server took the name; nothing more is issued.
    #[error(
        "issuing has stopped, because a signature was refused or another server took this one's name; see the log, and restart"
    )]
    Halted,
    /// The operating system gives no randomness.
    #[error("no randomness from the operating system")]
    NoEntropy,
    /// Preparing, recording or sealing failed.
    #[error(transparent)]
    Issuance(#[from] IssuanceError),
    /// Preparing, recording or sealing a token failed.
    #[error(transparent)]
    Token(#[from] TokenIssuanceError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key ring failed.
    #[error(transparent)]
    Keys(#[from] KeyRingError),
}

/// Why a caller is nobody to us. Opaque outside, exact in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No client certificate and no local socket.
    #[error("no client certificate was presented")]
    NoCredential,
    /// The certificate has expired since the connection was made.
    #[error("the client certificate of {id} expired at {not_after}; the server's clock says {now}")]
    Expired {
        /// Its SPIFFE ID.
        id: String,
        /// Its last second.
        not_after: Timestamp,
        /// The server's clock.
        now: Timestamp,
    },
    /// The certificate was revoked.
    #[error("the client certificate of {id}, serial {serial}, is revoked")]
    Revoked {
        /// Its SPIFFE ID.
        id: String,
        /// Its serial.
        serial: String,
    },
    /// The certificate is not one this authority gives to nodes, administrators or servers.
    #[error("{id} is not the identity of a node or an administrator")]
    NotAPrincipal {
        /// The SPIFFE ID.
        id: String,
    },
    /// The node or administrator is not on record (any more).
    #[error("{who} is not on record; it was evicted, removed or never joined")]
    Unknown {
        /// The principal.
        who: String,
    },
    /// The node is banned.
    #[error("{who} is banned: {reason}")]
    Banned {
        /// The principal.
        who: String,
        /// Why it was banned.
        reason: String,
    },
    /// The certificate was issued by another Rhizome of this trust domain, which speaks for its own callers alone.
    #[error("the client certificate of {id} was not issued by an issuer of this authority")]
    ForeignIssuer {
        /// Its SPIFFE ID.
        id: String,
    },
    /// The node has renewed twice since: whoever presents this holds an old copy.
    #[error("{who} presented certificate {serial}, which it has long replaced; its key may have been copied")]
    Superseded {
        /// The principal.
        who: String,
        /// The certificate's serial.
        serial: String,
    },
    /// Two credentials that could disagree.
    #[error("more than one credential: {what}")]
    TwoCredentials {
        /// Which.
        what: &'static str,
    },
    /// The local user has no role.
    #[error("local user {uid} has no role on this socket")]
    LocalUser {
        /// User id.
        uid: u32,
    },
}

/// Everything a door can answer instead of what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Issuing failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// We do not know the caller.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A join token was refused.
    #[error("join token refused: {0}")]
    Token(#[from] TokenError),
    /// There is no such join token.
    #[error("join token refused: there is no token {id}")]
    NoSuchToken {
        /// Public handle of the secret that was sent.
        id: String,
    },
    /// A node may not renew.
    #[error("renewal refused: {0}")]
    Renew(#[from] RenewError),
    /// A node that is banned tried to join again.
    #[error("node {id} is banned; an administrator can evict it to let it join again")]
    BannedNode {
        /// The node.
        id: String,
    },
    /// A cluster's Rhizome asks for what the cluster may not have.
    #[error("refused: {0}")]
    Cluster(#[from] ClusterRefusal),
    /// A node that is no cluster's Rhizome asks for what only those may.
    #[error("{who} is not the Rhizome of a cluster")]
    NotACluster {
        /// The principal.
        who: String,
    },
    /// The caller's role is too low, or it is no administrator.
    #[error("{caller} may not call {method}; it needs {needed}")]
    Forbidden {
        /// The principal.
        caller: String,
        /// The method's path.
        method: String,
        /// What would be enough.
        needed: Needed,
    },
    /// Too many requests.
    #[error("too many requests from {who}; retry after {} ms", retry_after.as_millis())]
    Limited {
        /// The principal or address.
        who: String,
        /// When the next request fits.
        retry_after: Duration,
    },
    /// A field of the request is not valid.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// No such thing.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// Its kind.
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// Somebody else changed it, or it exists already.
    #[error("{what} `{name}` {problem}")]
    Conflict {
        /// Its kind.
        what: &'static str,
        /// Its name.
        name: String,
        /// What is the matter, and what to do.
        problem: &'static str,
    },
    /// A command about the change of the root.
    #[error(transparent)]
    Rotation(#[from] Refusal),
    /// No such method.
    #[error("there is no method {method}")]
    NoSuchMethod {
        /// The path.
        method: String,
    },
    /// Nothing comes from the Rhizome above.
    #[error(transparent)]
    Upstream(Box<UpstreamError>),
    /// The store failed outside of issuing.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// A fault of ours.
    #[error("bug: {0}")]
    Bug(String),
}

impl From<UpstreamError> for ApiError {
    fn from(cause: UpstreamError) -> Self {
        if let UpstreamError::Own(ours) = cause { *ours } else { Self::Upstream(Box::new(cause)) }
    }
}

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// Anybody.
    Nobody,
    /// A node with a certificate.
    Node,
    /// An administrator of at least this role.
    Role(Role),
}

impl std::fmt::Display for Needed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("nothing"),
            Self::Node => f.write_str("a node's certificate"),
            Self::Role(role) => write!(f, "the role {role}"),
        }
    }
}
