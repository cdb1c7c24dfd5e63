//! What PostgreSQL's errors mean to a caller. The only place that decides it.
//!
//! Laws: no room is [`StoreError::Full`], damage is [`StoreError::Corrupt`], what may pass by itself or is mended in
//! PostgreSQL is [`StoreError::Unavailable`] with the remedy, and everything that correct code never sees is
//! [`StoreError::Bug`]. No value of a row and no password gets into a text: of what the server says, its message and
//! code are taken, never its detail.
//! Sources: postgresql.org/docs/15/errcodes-appendix.html.

use std::error::Error as _;
use std::time::Duration;

use rhizome_core::ports::StoreError;
use tokio_postgres::error::SqlState;

use crate::limits::RETRY_AFTER;
use crate::rules::bug;

/// Translates what the client library says.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(super) fn translate(error: tokio_postgres::Error) -> StoreError {
    let cause = describe(&error);
    if let Some(code) = error.code() {
        return of_code(code, cause);
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if inner.is::<std::io::Error>() {
            return unavailable(cause);
        }
        source = inner.source();
    }
    // A column that is not what our schema says was changed by somebody else.
    if error.to_string().contains("deserializing column") {
        return StoreError::Corrupt { cause: format!("a stored value is not what it should be: {cause}") };
    }
    let ours =
        ["serializing parameter", "invalid column", "parameters but got", "unexpected number of columns"];
    if ours.iter().any(|ours| cause.contains(ours)) { bug(cause) } else { unavailable(cause) }
}

fn of_code(code: &SqlState, cause: String) -> StoreError {
    if *code == SqlState::DISK_FULL {
        return StoreError::Full { cause };
    }
    if *code == SqlState::DATA_CORRUPTED || *code == SqlState::INDEX_CORRUPTED {
        return StoreError::Corrupt { cause };
    }
    if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        return unavailable(format!("{cause}: this is a standby; name the primary, or all of them"));
    }
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return unavailable(format!(
            "{cause}; the role must own its schema: see ca/docs/operations.md, PostgreSQL"
        ));
    }
    if *code == SqlState::UNDEFINED_TABLE {
        return StoreError::Corrupt { cause: format!("a table is missing: {cause}") };
    }
    let class = code.code().get(..2).unwrap_or_default();
    match class {
        // Connection, authentication, no such database, rollback, resources, operator, system.
        "08" | "28" | "3D" | "40" | "53" | "55" | "57" | "58" | "25" => unavailable(cause),
        _ => bug(cause),
    }
}

/// What went wrong, with its causes, in one line.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("PostgreSQL says: {} ({})", said.message(), said.code().code());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// The store cannot answer now.
pub(super) const fn unavailable(cause: String) -> StoreError {
    unavailable_for(cause, RETRY_AFTER)
}

/// The store cannot answer before `retry_after` has passed.
pub(super) const fn unavailable_for(cause: String, retry_after: Duration) -> StoreError {
    StoreError::Unavailable { cause, retry_after }
}

/// What is stored cannot be right.
pub(super) const fn corrupt(cause: String) -> StoreError {
    StoreError::Corrupt { cause }
}
