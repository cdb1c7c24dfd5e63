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
use rhizome_core::issuance::jwt::TokenIssuanceError;
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

/// Bytes of a public sentence, as `problem.proto` promises; some repeat what the caller sent.
const MESSAGE_BYTES: usize = 1024;

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
        Self { grpc, code, message: shortened(message.into()), retry_after: None }
    }

    fn retry(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }
}

fn shortened(mut text: String) -> String {
    const MORE: char = '…';
    if text.len() > MESSAGE_BYTES {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES - MORE.len_utf8()));
        text.push(MORE);
    }
    text
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
        ApiError::Cluster(refused) => Public::new(Code::PermissionDenied, refused.code(), error.to_string()),
        ApiError::NotACluster { .. } => Public::new(
            Code::PermissionDenied,
            "not_a_cluster",
            "only the Rhizome of a cluster may call this; join with what `rhizome cluster add` printed",
        ),
        ApiError::Forbidden { .. } => Public::new(Code::PermissionDenied, "forbidden", error.to_string()),
        ApiError::Limited { retry_after, .. } => {
            let message = format!("too many requests; retry after {} ms", retry_after.as_millis());
            Public::new(Code::ResourceExhausted, "limited", message).retry(*retry_after)
        }
        ApiError::Invalid { .. } => Public::new(Code::InvalidArgument, "invalid_argument", error.to_string()),
        ApiError::NotFound { .. } => Public::new(Code::NotFound, "not_found", error.to_string()),
        ApiError::Conflict { .. } => Public::new(Code::FailedPrecondition, "conflict", error.to_string()),
        ApiError::Rotation(refusal) => {
            Public::new(Code::FailedPrecondition, refusal.code(), refusal.to_string())
        }
        ApiError::NoSuchMethod { .. } => {
            Public::new(Code::Unimplemented, "no_such_method", error.to_string())
        }
        ApiError::Upstream(_) => unavailable(
            "upstream",
            "the Rhizome above does not answer; the server's log says why",
            Duration::from_secs(5),
        ),
        ApiError::Stopping => {
            Public::new(Code::Unavailable, "stopping", "the server is stopping; connect again")
                .retry(Duration::from_secs(1))
        }
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
        IssueError::CallerGone(_) => unauthenticated(),
        IssueError::PolicyChanged => Public::new(Code::Aborted, "policy_changed", error.to_string()),
        IssueError::KeyTainted => {
            unavailable("key_tainted", "the signing key was just replaced", Duration::from_secs(1))
        }
        IssueError::TokensAbove => Public::new(Code::FailedPrecondition, "tokens_above", error.to_string()),
        IssueError::NoAuthority => {
            unavailable("no_authority", "the authority is starting", Duration::from_secs(1))
        }
        IssueError::ClockWentBack { .. } => unavailable(
            "clock_went_back",
            "the server's clock went back; it issues again when the clock is right",
            Duration::from_secs(30),
        ),
        IssueError::Halted => unavailable(
            "issuing_halted",
            "the server has stopped issuing; its log says what to do",
            Duration::from_secs(30),
        ),
        IssueError::NoEntropy => {
            unavailable("no_entropy", "the server cannot issue now", Duration::from_secs(5))
        }
        IssueError::Issuance(IssuanceError::ChainNotValid { .. }) => unavailable(
            "authority_not_valid",
            "the issuing authority is not valid now; the server's log says what to do",
            Duration::from_secs(30),
        ),
        IssueError::Issuance(
            IssuanceError::Prepare(_)
            | IssuanceError::WrongGrant
            | IssuanceError::WrongReceipt
            | IssuanceError::Seal(_),
        ) => bug(),
        IssueError::Token(TokenIssuanceError::KeyNotValid { .. }) => unavailable(
            "jwt_key_not_valid",
            "the key for tokens is not valid now; the server's log says what to do",
            Duration::from_secs(30),
        ),
        IssueError::Token(
            TokenIssuanceError::Prepare(_)
            | TokenIssuanceError::WrongGrant
            | TokenIssuanceError::WrongReceipt
            | TokenIssuanceError::Seal(_),
        ) => bug(),
        IssueError::Store(cause) => of_store(cause),
        IssueError::Keys(_) => {
            unavailable("keys_unavailable", "the signing key cannot be used now", Duration::from_secs(5))
        }
    }
}

fn of_store(error: &StoreError) -> Public {
    match error {
        StoreError::Conflict { .. } => Public::new(
            Code::Aborted,
            "conflict",
            "somebody else changed the same thing; read it again and retry",
        ),
        StoreError::Unavailable { retry_after, .. } => {
            unavailable("store_unavailable", "the ledger cannot be written now", *retry_after)
        }
        StoreError::Full { .. } => {
            unavailable("store_full", "the server's disk is full; nothing is issued", Duration::from_secs(30))
        }
        StoreError::Exists { .. } => Public::new(Code::AlreadyExists, "exists", error.to_string()),
        StoreError::Unsupported { .. } => {
            Public::new(Code::FailedPrecondition, "unsupported", error.to_string())
        }
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
        if public.grpc == Code::Internal {
            tracing::error!(code = public.code, cause = %error, "request failed");
        } else if matches!(public.grpc, Code::Unauthenticated | Code::Unavailable) {
            tracing::warn!(code = public.code, cause = %error, "request refused");
        } else {
            tracing::debug!(code = public.code, cause = %error, "request refused");
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

/// What another Rhizome's error means to this one as its client.
pub(crate) enum Refusal {
    /// It does not know the caller, in its words.
    Unknown(String),
    /// It knows the caller, and does not do that, in its words.
    Denied(String),
    /// It did not answer, or cannot now: why.
    NoAnswer(String),
}

/// Reads another Rhizome's error.
pub(crate) fn heard(status: &Status) -> Refusal {
    let code = status.code();
    if code == Code::Unauthenticated {
        Refusal::Unknown(status.message().to_owned())
    } else if matches!(code, Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition) {
        Refusal::Denied(status.message().to_owned())
    } else {
        Refusal::NoAnswer(rhizome_tls::cause_of(status))
    }
}

#[cfg(test)]
mod tests {
    use rhizome_core::caller::Role;
    use rhizome_core::clusters::ClusterRefusal;
    use rhizome_core::documents::{DocumentKey, Kind};
    use rhizome_core::nodes::RenewError;
    use rhizome_core::policy::{Denial, DenialReason};
    use rhizome_core::ports::KeyRingError;
    use rhizome_core::tokens::TokenError;
    use rhizome_id::Timestamp;
    use rhizome_x509::CsrError;

    use super::*;
    use crate::error::{AuthError, Needed};
    use crate::upstream::UpstreamError;

    /// What can be wrong with a token.
    fn token_errors() -> Vec<ApiError> {
        let at = Timestamp::from_unix(1_000);
        vec![
            IssueError::Token(TokenIssuanceError::WrongReceipt).into(),
            IssueError::Token(TokenIssuanceError::KeyNotValid {
                id: "jwt-1".parse().unwrap(),
                not_before: at,
                not_after: at,
                now: at,
            })
            .into(),
        ]
    }

    /// One error of every shape that has an answer of its own.
    fn errors() -> Vec<ApiError> {
        let at = Timestamp::from_unix(1_000);
        let second = Duration::from_secs(1);
        let key = DocumentKey::new(Kind::Rule, "web");
        let text = || "detail for the log".to_owned();
        let cluster = || "east".parse().unwrap();
        let serial = |digit: &str| format!("4{}", digit.repeat(39)).parse().unwrap();
        vec![
            IssueError::Csr(CsrError::BadSignature).into(),
            IssueError::Csr(CsrError::RequestsCa).into(),
            IssueError::Denied(Denial::from(DenialReason::NoRule)).into(),
            IssueError::Denied(Denial::from(DenialReason::WrongCaller)).into(),
            IssueError::RequestIdReused { id: "r-1".to_owned() }.into(),
            IssueError::CallerGone(AuthError::Unknown { who: text() }).into(),
            IssueError::PolicyChanged.into(),
            IssueError::KeyTainted.into(),
            IssueError::TokensAbove.into(),
            IssueError::NoAuthority.into(),
            IssueError::ClockWentBack { now: at, seen: at }.into(),
            IssueError::NoEntropy.into(),
            IssueError::Halted.into(),
            IssueError::Issuance(IssuanceError::WrongReceipt).into(),
            IssueError::Issuance(IssuanceError::ChainNotValid {
                not_before: at,
                not_after: at,
                now: at,
                remedy: "",
            })
            .into(),
            IssueError::Keys(KeyRingError::Unavailable { cause: text() }).into(),
            StoreError::Conflict { key }.into(),
            StoreError::Unavailable { cause: text(), retry_after: second }.into(),
            StoreError::Full { cause: text() }.into(),
            StoreError::Corrupt { cause: text() }.into(),
            StoreError::Newer { found: 2, known: 1 }.into(),
            StoreError::Exists { path: "/backup".to_owned() }.into(),
            StoreError::Unsupported { remedy: "what to do instead".to_owned() }.into(),
            StoreError::Bug { cause: text() }.into(),
            AuthError::NoCredential.into(),
            AuthError::Banned { who: "node:a/join_token/b".to_owned(), reason: text() }.into(),
            AuthError::Revoked { id: "spiffe://td/a".to_owned(), serial: "40".to_owned() }.into(),
            TokenError::Used.into(),
            TokenError::Expired { at }.into(),
            ApiError::NoSuchToken { id: "ab".to_owned() },
            RenewError::Stale { node: "n".to_owned(), presented: serial("1"), newest: serial("2") }.into(),
            ApiError::BannedNode { id: "a/join_token/b".to_owned() },
            ClusterRefusal::Suspended { name: cluster(), at, reason: "audit".to_owned() }.into(),
            ClusterRefusal::TooLong { name: cluster(), asked: 7_200, allowed: 3_600 }.into(),
            ApiError::NotACluster { who: "node:a/join_token/b".to_owned() },
            ApiError::Forbidden {
                caller: "admin:alice".to_owned(),
                method: "/rhizome.admin.v1.RuleService/PutRule".to_owned(),
                needed: Needed::Role(Role::Operator),
            },
            ApiError::Limited { who: "192.0.2.1".to_owned(), retry_after: second },
            ApiError::Invalid { field: "reason", problem: "say why".to_owned() },
            ApiError::NotFound { what: "rule", name: "web".to_owned() },
            ApiError::Conflict { what: "rule", name: "web".to_owned(), problem: "exists already" },
            ApiError::Rotation(rhizome_core::rotation::Refusal::NoneUnderWay),
            ApiError::NoSuchMethod { method: "/a/b".to_owned() },
            ApiError::Upstream(Box::new(UpstreamError::Refused(text()))),
            ApiError::Stopping,
            ApiError::Bug(text()),
        ]
    }

    #[test]
    fn every_error_has_the_answer_that_the_golden_table_says() {
        let line = |error: &ApiError| {
            let public = public(error);
            let retry =
                public.retry_after.map_or(String::new(), |it| format!(" (retry {} ms)", it.as_millis()));
            format!("{:?} | {} | {}{retry}\n", public.grpc, public.code, public.message)
        };
        let table: String = errors().iter().chain(&token_errors()).map(line).collect();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/status.txt");
        #[expect(clippy::disallowed_methods, reason = "the one variable that rewrites golden files")]
        if std::env::var("RHIZOME_BLESS").is_ok() {
            std::fs::write(golden, &table).unwrap();
        }
        assert_eq!(table, std::fs::read_to_string(golden).unwrap(), "RHIZOME_BLESS=1 rewrites the table");
    }

    #[test]
    fn who_is_not_believed_never_learns_why() {
        let auth = [
            AuthError::NoCredential,
            AuthError::Unknown { who: "node:a".to_owned() },
            AuthError::Banned { who: "node:a".to_owned(), reason: "stolen".to_owned() },
            AuthError::LocalUser { uid: 1_000 },
        ];
        let sentences: std::collections::BTreeSet<String> =
            auth.into_iter().map(|error| public(&ApiError::Auth(error)).message).collect();
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        let tokens = [ApiError::Token(TokenError::Used), ApiError::NoSuchToken { id: "ab".to_owned() }];
        let sentences: std::collections::BTreeSet<String> =
            tokens.iter().map(|it| public(it).message).collect();
        assert_eq!(sentences.len(), 1, "{sentences:?}");
    }

    #[test]
    fn what_only_the_log_may_read_is_in_no_answer() {
        for error in errors().into_iter().chain(token_errors()) {
            assert!(!public(&error).message.contains("detail for the log"), "{error}");
        }
    }
}
