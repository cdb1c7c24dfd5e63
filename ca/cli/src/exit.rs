//! How a verb ends: exit codes that scripts can rely on, and failures that say what to do.
//!
//! Laws: each code has one meaning and keeps it; every failure has a sentence for people and a stable code for
//! programs. Not here: the codes themselves that the server gives (`rhizome_server::status`).
//! Sources: the gRPC status codes; sysexits is not followed, its numbers say little to a script.

use std::error::Error as _;

use rhizome_proto::{METADATA_CODE, METADATA_RETRY_AFTER_MS};
use tonic::{Code, Status};

/// What `--help` says about exit codes.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done
  1  failed
  2  not understood: the command line, an input file, or an argument that the server refused
  3  not found
  4  denied: not authenticated, or not allowed
  5  unavailable: the server cannot be reached or is overloaded; try again
  6  a check or a fetch failed: something expires soon or is wrong already";

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed for a reason without a code of its own.
    Failed,
    /// The command line, an input file or an argument is not valid.
    Usage,
    /// What was asked for does not exist.
    NotFound,
    /// Not authenticated, or not allowed.
    Denied,
    /// The server cannot be reached or is overloaded.
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    exit: Exit,
    code: String,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure with its exit code, a stable machine code and one sentence for people.
    pub fn new(exit: Exit, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { exit, code: code.into(), message: message.into(), hint: None }
    }

    /// The command line or an input file is not valid.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    /// A file could not be read or written.
    pub fn file(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(Exit::Failed, "file", format!("cannot {doing} {}: {error}", path.display()))
    }

    /// The server's answer lacks something that the protocol promises.
    pub fn protocol(what: &str) -> Self {
        Self::new(Exit::Failed, "protocol", format!("the server's answer makes no sense: {what}"))
            .hint("compare the versions of this program and of the server")
    }

    /// The same failure with advice on what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// How the process ends.
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// The stable machine code.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The sentence for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The advice, if there is any.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let (exit, fallback, hint) = meaning(status.code());
        let text = |key| status.metadata().get(key).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // A status with a cause was made here, not by the server: the call never got there, or its answer never came.
        let message = match status.message() {
            _transport if status.source().is_some() => rhizome_tls::cause_of(&status),
            "" => fallback.replace('_', " "),
            said => said.to_owned(),
        };
        let code = text(METADATA_CODE).unwrap_or_else(|| fallback.to_owned());
        let hint = hint.or_else(|| hint_for(&code));
        let failure = Self::new(exit, code, message);
        let wait: Option<u64> = text(METADATA_RETRY_AFTER_MS).and_then(|digits| digits.parse().ok());
        match (wait, hint) {
            (Some(milliseconds), _) => {
                failure.hint(format!("try again in {} s", milliseconds.div_ceil(1000).max(1)))
            }
            (None, Some(hint)) => failure.hint(hint),
            (None, None) => failure,
        }
    }
}

/// What to do about a refusal whose sentence does not say it already. Codes of policy are those of
/// `rhizome_core::policy::DenialReason`; the others are the server's.
fn hint_for(code: &str) -> Option<&'static str> {
    match code {
        "forbidden" => Some("ask an administrator with that role"),
        "no_rule" | "not_granted" | "ambiguous" | "out_of_scope" | "reserved" | "dns_not_granted"
        | "template" => Some("an administrator sees why with `rhizome explain`"),
        _other => None,
    }
}

const fn meaning(code: Code) -> (Exit, &'static str, Option<&'static str>) {
    match code {
        Code::Ok => (Exit::Failed, "ok", None),
        Code::InvalidArgument => (Exit::Usage, "invalid_argument", None),
        Code::OutOfRange => (Exit::Usage, "out_of_range", None),
        Code::NotFound => (Exit::NotFound, "not_found", None),
        Code::PermissionDenied => (Exit::Denied, "permission_denied", None),
        Code::Unauthenticated => (
            Exit::Denied,
            "unauthenticated",
            Some(
                "check that the identity given by --identity has not expired, or use the local socket on the server",
            ),
        ),
        Code::Unavailable => {
            (Exit::Unavailable, "unavailable", Some("check that the server runs and that --server names it"))
        }
        Code::DeadlineExceeded => (Exit::Unavailable, "deadline_exceeded", Some("try again")),
        Code::ResourceExhausted => (Exit::Unavailable, "resource_exhausted", Some("try again later")),
        Code::Unimplemented => (
            Exit::Failed,
            "unimplemented",
            Some(
                "the server does not know this call: compare the versions of this program and of the server",
            ),
        ),
        Code::AlreadyExists => (Exit::Failed, "already_exists", None),
        Code::FailedPrecondition => (Exit::Failed, "failed_precondition", None),
        Code::Aborted => (
            Exit::Failed,
            "aborted",
            Some("it was changed by someone else meanwhile: look at it again, then repeat"),
        ),
        Code::Cancelled => (Exit::Failed, "cancelled", None),
        Code::Internal => (Exit::Failed, "internal", Some("see the server's log")),
        Code::DataLoss => (Exit::Failed, "data_loss", Some("see the server's log")),
        Code::Unknown => (Exit::Failed, "unknown", Some("see the server's log")),
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

    #[test]
    fn a_refusal_by_the_server_keeps_its_stable_code_and_its_sentence() {
        let mut status = Status::permission_denied("no rule grants this");
        status.metadata_mut().insert(METADATA_CODE, "no_rule".parse().unwrap());
        let failure = Failure::from(status);
        assert_eq!(
            (failure.exit(), failure.code(), failure.message()),
            (Exit::Denied, "no_rule", "no rule grants this")
        );
        assert!(failure.advice().unwrap().contains("rhizome explain"));
    }

    #[test]
    fn advice_to_find_a_higher_role_is_given_only_where_the_role_is_what_lacks() {
        let advice = |code: &'static str| {
            let mut status = Status::permission_denied("no");
            status.metadata_mut().insert(METADATA_CODE, code.parse().unwrap());
            Failure::from(status).advice().map(str::to_owned)
        };
        assert!(advice("forbidden").unwrap().contains("role"));
        assert_eq!(advice("node_banned"), None);
        assert_eq!(advice("renewal_refused"), None);
        assert!(!advice("out_of_scope").unwrap().contains("role"));
    }

    #[test]
    fn an_overloaded_server_says_when_to_come_back() {
        let mut status = Status::resource_exhausted("too many requests");
        status.metadata_mut().insert(METADATA_RETRY_AFTER_MS, "1500".parse().unwrap());
        let failure = Failure::from(status);
        assert_eq!((failure.exit(), failure.advice()), (Exit::Unavailable, Some("try again in 2 s")));
    }

    #[test]
    fn a_status_without_a_sentence_still_says_something() {
        assert_eq!(Failure::from(Status::not_found("")).message(), "not found");
    }
}
