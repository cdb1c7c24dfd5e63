//! What SQLite's errors mean to a caller. The only place that decides it.
//!
//! Laws: no room is [`StoreError::Full`], damage is [`StoreError::Corrupt`], what may pass by itself is
//! [`StoreError::Unavailable`], and everything that correct code never sees is [`StoreError::Bug`].
//! Sources: sqlite.org/rescode.html.

use rhizome_core::ports::StoreError;
use rusqlite::ErrorCode;

use super::place::unavailable;
use crate::rules::bug;

/// Translates what SQLite says.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(super) fn translate(error: rusqlite::Error) -> StoreError {
    let cause = error.to_string();
    if is_unreadable(&error) {
        return StoreError::Corrupt { cause: format!("a stored value is not what it should be: {cause}") };
    }
    let Some(code) = error.sqlite_error_code() else {
        return bug(cause);
    };
    if code == ErrorCode::DiskFull {
        return StoreError::Full { cause };
    }
    if matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) {
        return StoreError::Corrupt { cause };
    }
    if matches!(code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) {
        return unavailable(format!("another process has locked the database: {cause}"));
    }
    let passing = matches!(
        code,
        ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::OutOfMemory
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OperationInterrupted
    );
    if passing { unavailable(cause) } else { bug(cause) }
}

/// A value that our schema cannot hold was found: bytes changed on disk, or somebody edited the database.
fn is_unreadable(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::QueryReturnedNoRows
    )
}

/// What is stored cannot be right.
pub(super) const fn corrupt(cause: String) -> StoreError {
    StoreError::Corrupt { cause }
}
