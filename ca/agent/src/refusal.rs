//! Why a local caller gets nothing, and how it is told: the only file of the sockets that makes a `tonic::Status`.
//!
//! Laws: the match is exhaustive. The caller reads the texts that deployed clients know and lean on; the exact reason
//! goes to the log, where the administrator is.
//! Sources: SPIFFE Workload Endpoint §6, Workload API §5.2, §6.2.1; the behaviours listed in the reference for clients.

use std::pin::Pin;

use futures::Stream;
use tonic::{Code, Response, Status};

/// What every unary method answers.
pub(crate) type Answer<T> = Result<Response<T>, Status>;
/// What every streaming method answers with.
pub(crate) type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;
/// One message of such a stream.
pub(crate) type Item<T> = Result<T, Status>;

/// Why a caller gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The request did not say that it means the Workload API.
    #[error("security header missing from request")]
    NoHeader,
    /// No rule grants this caller anything. Mid-stream: what it was given is redacted.
    #[error("no identity issued")]
    NoIdentity,
    /// What the caller is could not be found out.
    #[error("workload attestation failed")]
    Attestation,
    /// The process has ended or is no longer what it was.
    #[error("the process that connected has ended or changed; connect again")]
    NotTheCaller,
    /// There is nothing to give yet.
    #[error("the agent has no identity for this workload yet; try again")]
    Starting,
    /// The authority gives no token at the moment, and none is kept.
    #[error("no token can be had from the authority at the moment; try again")]
    Away,
    /// Too many streams are open.
    #[error("too many streams are open; try again later")]
    Busy,
    /// The agent stops.
    #[error("the agent is stopping; connect again")]
    Stopping,
    /// The caller did not read or did not answer in time.
    #[error("the caller did not {0} in time")]
    Slow(&'static str),
    /// The request makes no sense.
    #[error("{0}")]
    Malformed(String),
    /// A profile that is not offered.
    #[error("{0} is not offered by this agent")]
    NotOffered(&'static str),
    /// None of the secrets asked for may or can be served.
    #[error("none of the secrets can be served: {0}")]
    NoSecret(String),
    /// A fault of ours.
    #[error("internal error")]
    Bug,
}

impl Refusal {
    const fn code(&self) -> Code {
        match self {
            Self::NoHeader | Self::Malformed(_) => Code::InvalidArgument,
            Self::NoIdentity | Self::NotTheCaller | Self::NoSecret(_) => Code::PermissionDenied,
            Self::Attestation | Self::Starting | Self::Away | Self::Busy | Self::Stopping | Self::Slow(_) => {
                Code::Unavailable
            }
            Self::NotOffered(_) => Code::Unimplemented,
            Self::Bug => Code::Internal,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}
