//! The history of a schema: which migrations a database has seen, and whether they are ours.
//!
//! Laws: refinery panics on an instant or a checksum that it cannot read, so it is never shown one; a migration that is
//! not, byte for byte, the one this release knows is damage or somebody else's database.
//! Not here: reading the table, running migrations (the backends).

use refinery::{Migration, Runner};
use rhizome_core::ports::StoreError;
use rhizome_id::Timestamp;

/// One row of refinery's table: version, name, instant, checksum.
pub(crate) type Applied = (i64, String, String, String);

/// Where a database stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// At this release's newest version, or before it: the last version applied.
    At(i32),
    /// Beyond what this release knows.
    Beyond {
        /// Its newest version.
        found: i64,
        /// The newest this release knows.
        known: i32,
    },
}

/// Compares the rows of a history, by ascending version, with the migrations of `known`. `None`: there are none.
///
/// # Errors
/// [`StoreError::Corrupt`] when the history is not one that our releases write.
pub(crate) fn standing(known: &Runner, history: Vec<Applied>) -> Result<Option<Standing>, StoreError> {
    let mut last = None;
    for (version, name, applied_on, checksum) in history {
        let migration = known.get_migrations().iter().find(|ours| i64::from(ours.version()) == version);
        let Some(ours) = migration else {
            return Ok(Some(Standing::Beyond { found: version, known: newest(known) }));
        };
        let whole = ours.name() == name
            && ours.checksum().to_string() == checksum
            && applied_on.parse::<Timestamp>().is_ok();
        if !whole {
            let cause = format!("migration {version} ({name}) is not the one this release knows");
            return Err(StoreError::Corrupt { cause });
        }
        last = Some(Standing::At(ours.version()));
    }
    Ok(last)
}

/// The newest version of `known`.
pub(crate) fn newest(known: &Runner) -> i32 {
    known.get_migrations().iter().map(Migration::version).max().unwrap_or(0)
}
