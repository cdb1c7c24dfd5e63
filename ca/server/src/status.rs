//! Errors to the wire: the only file that names `tonic::Status`.
//!
//! Laws: the match is exhaustive, so a new error must choose its answer here. What a caller reads about who it is
//! never says why it was not believed; the exact reason goes to the log under the same code. Every answer carries the
//! stable code in metadata `rhizome-code`, and a retry delay where retrying helps. A golden table in the tests holds
//! error, gRPC code and public sentence.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use rhizome_core::issuance::IssuanceError;
use rhizome_core::ports::StoreError;
use rhizome_proto::ca::v1::Problem;
use rhizome_proto::{METADATA_CODE, METADATA_RETRY_AFTER_MS};
use tonic::{Code, Response, Status};

use crate::error::{ApiError, IssueError};

/// What every unary method answers.
pub(crate) type Answer<T> = Result<Response<T>, Status>;
/// What every streaming method answers with.
pub(crate) type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;
/// A stream of requests that ended with a fault of the connection; there is nobody left to answer.
pub(crate) type Broken = Status;

/// An error as a caller may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Public {
    pub(crate) grpc: Code,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
}

impl Public {
    fn new(grpc: Code, code: &'static str, message: impl Into<String>) -> Self {
        Self { grpc, code, message: message.into(), retry_after: None }
    }

    fn retry(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }
}

/// The public face of an error.
pub(crate) fn public(error: &ApiError) -> Public {
    match error {
        ApiError::Issue(cause) => of_issue(cause),
        ApiError::Store(cause) => of_store(cause),
        ApiError::Auth(_) => unauthenticated(),
        ApiError::Token(_) | ApiError::NoSuchToken { .. } => Public::new(
            Code::Unauthenticated,
            "join_token_refused",
            "the join token was refused; create a new one with `rhizome token create`, the server's log says why",
        ),
        ApiError::Renew(_) => Public::new(
            Code::PermissionDenied,
            "renewal_refused",
            "the node may not renew; join again with a new token, the server's log says why",
        ),
        ApiError::BannedNode { .. } => {
            Public::new(Code::PermissionDenied, "node_banned", "this node is banned; ask an administrator")
        }
        ApiError::Forbidden { .. } => Public::new(Code::PermissionDenied, "forbidden", error.to_string()),
        ApiError::Limited { retry_after, .. } => {
            let message = format!("too many requests; retry after {} ms", retry_after.as_millis());
            Public::new(Code::ResourceExhausted, "limited", message).retry(*retry_after)
        }
        ApiError::Invalid { .. } => Public::new(Code::InvalidArgument, "invalid_argument", error.to_string()),
        ApiError::NotFound { .. } => Public::new(Code::NotFound, "not_found", error.to_string()),
        ApiError::Conflict { .. } => Public::new(Code::FailedPrecondition, "conflict", error.to_string()),
        ApiError::NoSuchMethod { .. } => Public::new(Code::Unimplemented, "no_such_method", error.to_string()),
        ApiError::Stopping => Public::new(Code::Unavailable, "stopping", "the server is stopping; connect again")
            .retry(Duration::from_secs(1)),
        ApiError::Bug(_) => bug(),
    }
}

fn of_issue(error: &IssueError) -> Public {
    match error {
        IssueError::Csr(cause) => Public::new(Code::InvalidArgument, cause.code(), error.to_string()),
        IssueError::Denied(denial) => Public::new(Code::PermissionDenied, denial.code(), denial.to_string()),
        IssueError::RequestIdReused { .. } => {
            Public::new(Code::AlreadyExists, "request_id_reused", error.to_string())
        }
        IssueError::NoAuthority => unavailable("no_authority", "the authority is starting", Duration::from_secs(1)),
        IssueError::ClockWentBack { .. } => unavailable(
            "clock_went_back",
            "the server's clock went back; it issues again when the clock is right",
            Duration::from_secs(30),
        ),
        IssueError::NoEntropy => unavailable("no_entropy", "the server cannot issue now", Duration::from_secs(5)),
        IssueError::Issuance(IssuanceError::ChainNotValid { .. }) => unavailable(
            "authority_not_valid",
            "the issuing authority is not valid now; the server's log says what to do",
            Duration::from_secs(30),
        ),
        IssueError::Issuance(
            IssuanceError::Prepare(_) | IssuanceError::WrongReceipt | IssuanceError::Seal(_),
        ) => bug(),
        IssueError::Store(cause) => of_store(cause),
        IssueError::Keys(_) => {
            unavailable("keys_unavailable", "the signing key cannot be used now", Duration::from_secs(5))
        }
    }
}

fn of_store(error: &StoreError) -> Public {
    match error {
        StoreError::Conflict { .. } => {
            Public::new(Code::Aborted, "conflict", "somebody else changed the same thing; read it again and retry")
        }
        StoreError::Unavailable { retry_after, .. } => {
            unavailable("store_unavailable", "the ledger cannot be written now", *retry_after)
        }
        StoreError::Full { .. } => {
            unavailable("store_full", "the server's disk is full; nothing is issued", Duration::from_secs(30))
        }
        StoreError::Exists { .. } => Public::new(Code::AlreadyExists, "exists", error.to_string()),
        StoreError::Corrupt { .. } | StoreError::Newer { .. } | StoreError::Bug { .. } => bug(),
    }
}

fn unavailable(code: &'static str, message: &str, retry_after: Duration) -> Public {
    let text = format!("{message}; retry after {} ms", retry_after.as_millis());
    Public::new(Code::Unavailable, code, text).retry(retry_after)
}

fn unauthenticated() -> Public {
    Public::new(
        Code::Unauthenticated,
        "unauthenticated",
        "the caller is not authenticated; the server's log says why",
    )
}

fn bug() -> Public {
    Public::new(Code::Internal, "internal", "an internal fault; the server's log has the details")
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let public = public(&error);
        match public.grpc {
            Code::Internal => tracing::error!(code = public.code, cause = %error, "request failed"),
            Code::Unauthenticated | Code::Unavailable => {
                tracing::warn!(code = public.code, cause = %error, "request refused");
            }
            _ => tracing::debug!(code = public.code, cause = %error, "request refused"),
        }
        let mut status = Self::new(public.grpc, public.message);
        let metadata = status.metadata_mut();
        if let Ok(value) = public.code.parse() {
            metadata.insert(METADATA_CODE, value);
        }
        if let Some(after) = public.retry_after
            && let Ok(value) = after.as_millis().to_string().parse()
        {
            metadata.insert(METADATA_RETRY_AFTER_MS, value);
        }
        status
    }
}

impl From<IssueError> for Status {
    fn from(error: IssueError) -> Self {
        ApiError::from(error).into()
    }
}

/// An error as an item of a pipelined stream, which goes on.
pub(crate) fn problem(error: &ApiError) -> Problem {
    let public = public(error);
    Problem {
        code: public.code.to_owned(),
        message: public.message,
        retry_after_ms: public.retry_after.map_or(0, |it| i64::try_from(it.as_millis()).unwrap_or(i64::MAX)),
        grpc_code: u32::try_from(i32::from(public.grpc)).unwrap_or(2),
    }
}

/// An error as a whole HTTP answer, for refusals before any handler runs.
pub(crate) fn refusal<B: Default>(error: ApiError) -> tonic::codegen::http::Response<B> {
    Status::from(error).into_http()
}
