//! How a verb ends: the exit codes of `rhizome`, and failures with a stable code and a sentence.
//!
//! Laws: each code has one meaning and keeps it. Not here: showing them (`output`).

use tonic::{Code, Status};

use super::config::ConfigError;
use crate::observe::AskError;
use crate::socket::SocketError;
use crate::{BootstrapError, NodeError, StartError};

/// What `--help` says about exit codes.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done
  1  failed
  2  not understood: the command line, the configuration, or a join string
  3  not found
  4  denied: a join token is refused, no identity is granted, or the agent does not answer to this user
  5  unavailable: the server or the agent cannot be reached; try again
  6  a check failed: something is wrong, or expired";

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed for a reason without a code of its own.
    Failed,
    /// The command line, the configuration or a join string is not valid.
    Usage,
    /// What was asked about does not exist.
    NotFound,
    /// Not allowed.
    Denied,
    /// The server or the agent cannot be reached.
    Unavailable,
    /// A check failed.
    CheckFailed,
}

impl Exit {
    /// The process exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Unavailable => 5,
            Self::CheckFailed => 6,
        }
    }
}

/// Why a verb did not do what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// Stable, for programs.
    pub(super) code: &'static str,
    pub(super) message: String,
    /// What to do, where the sentence does not say it already.
    pub(super) hint: Option<String>,
}

impl Failure {
    #[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
    pub(super) fn new(exit: Exit, code: &'static str, cause: impl ToString) -> Self {
        Self { exit, code, message: cause.to_string(), hint: None }
    }

    pub(super) fn failed(cause: impl ToString) -> Self {
        Self::new(Exit::Failed, "failed", cause)
    }
}

impl From<BootstrapError> for Failure {
    fn from(error: BootstrapError) -> Self {
        let (exit, code) = match &error {
            BootstrapError::Join(rhizome_tls::JoinError::Connect(_)) | BootstrapError::Connect(_) => {
                (Exit::Unavailable, "unavailable")
            }
            BootstrapError::Join(rhizome_tls::JoinError::Call(status)) => meaning(status),
            BootstrapError::Join(_) => (Exit::Denied, "wrong_authority"),
            BootstrapError::Node(NodeError::Call(status)) => meaning(status),
            BootstrapError::Node(_) | BootstrapError::Tls(_) => (Exit::Failed, "failed"),
        };
        Self::new(exit, code, error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let code = match &error {
            StartError::State(_) => "state",
            StartError::NeverJoined(_) => "never_joined",
        };
        Self::new(Exit::Failed, code, error)
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        Self::new(Exit::Failed, "socket", error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, "configuration", error)
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let (exit, code) = match &error {
            AskError::Nobody { .. } => (Exit::Unavailable, "no_agent"),
            AskError::Stranger { .. } => (Exit::Denied, "denied"),
            AskError::Refused(refused) if refused.code == "not_found" => (Exit::NotFound, "not_found"),
            AskError::Refused(_) => (Exit::Unavailable, "unavailable"),
            AskError::Answer(_) => (Exit::Failed, "answer"),
        };
        Self::new(exit, code, error)
    }
}

fn meaning(status: &Status) -> (Exit, &'static str) {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => (Exit::Denied, "denied"),
        Code::NotFound => (Exit::NotFound, "not_found"),
        Code::InvalidArgument => (Exit::Usage, "invalid_argument"),
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => {
            (Exit::Unavailable, "unavailable")
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => (Exit::Failed, "failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_ones_that_help_documents() {
        let all = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::NotFound,
            Exit::Denied,
            Exit::Unavailable,
            Exit::CheckFailed,
        ];
        for (number, exit) in (0u8..).zip(all) {
            assert_eq!(exit.code(), number);
            assert!(EXIT_CODES_HELP.contains(&format!("\n  {number}  ")), "{number}");
        }
    }
}
