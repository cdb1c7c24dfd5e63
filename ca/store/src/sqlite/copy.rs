//! Whole files: a new database, a backup while commits go on, and a backup put back into place.
//!
//! Laws: a copy is one consistent state; it is synced and checked before it counts; what is not finished is removed.
//! A database appears at its place whole: a new one with its schema, a restored one after every page and the whole
//! ledger were verified. So a file that is empty is damage, never a fresh start.
//! Not here: the marks that a restore leaves in the state (revoked tokens, a raised bundle sequence); their
//! transactions belong to the `restore` command.
//! Sources: sqlite.org/backup.html; ca/docs/attacks.md §2 (22).

use std::path::Path;

use rhizome_core::documents::Kind;
use rhizome_core::ledger::{Head, Verifier};
use rhizome_core::ports::StoreError;
use rhizome_id::Timestamp;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, params};

use super::error::{corrupt, translate};
use super::place::{self, Place, Unfinished};
use super::{Options, rows, schema};
use crate::rules;
use crate::verify::corrupt as broken;

/// Copies the database at `from` to `to`, which must not exist.
pub(super) fn backup(from: &Path, to: &Path, options: &Options) -> Result<(), StoreError> {
    let source = schema::open_reader(from, options)?;
    let unfinished = Unfinished::create(to)?;
    {
        let mut copy = schema::connect(to, OpenFlags::SQLITE_OPEN_READ_WRITE, options)?;
        copy_pages(&source, &mut copy)?;
        to_one_file(&copy)?;
        check_pages(&copy, "quick_check")?;
    }
    unfinished.keep()
}

/// Makes an empty database at `place`, where there is none. A killed first start leaves nothing there.
pub(super) fn initialise(place: &Place, options: &Options) -> Result<(), StoreError> {
    let path = place::with_suffix(place.path(), ".new");
    place::remove_database(&path); // Left by a first start that was killed; we hold the lock.
    let unfinished = Unfinished::create(&path)?;
    schema::claim_empty(&path, options)?;
    to_one_file(&schema::open_writer(&path, options)?)?;
    unfinished.keep_as(place)
}

/// Puts the backup `from` at `to`, which must not exist, and gives the place, still locked.
pub(super) fn restore(
    from: &Path,
    to: &Path,
    now: Timestamp,
    options: &Options,
) -> Result<Place, StoreError> {
    let place = Place::claim(to)?;
    if place.is_taken()? {
        return Err(StoreError::Exists { path: to.display().to_string() });
    }
    let incoming = place::with_suffix(to, ".restoring");
    place::remove_database(&incoming); // Left by a restore that was killed; we hold the lock.
    let unfinished = Unfinished::create(&incoming)?;
    {
        let source = schema::open_reader(from, options)?;
        let mut copy = schema::connect(&incoming, OpenFlags::SQLITE_OPEN_READ_WRITE, options)?;
        copy_pages(&source, &mut copy)?;
    }
    {
        let copy = schema::open_writer(&incoming, options)?;
        check(&copy)?;
        verify_chain(&copy)?;
        raise_serials(&copy, now)?;
        to_one_file(&copy)?;
    }
    unfinished.keep_as(&place)?;
    Ok(place)
}

/// Reads every page, every index and every document's checksum.
pub(super) fn check(connection: &Connection) -> Result<(), StoreError> {
    // One read transaction: the head and the last record are compared while commits go on.
    let snapshot = connection.unchecked_transaction().map_err(translate)?;
    check_pages(&snapshot, "integrity_check")?;
    rows::state(&snapshot)?;
    rows::next_serial(&snapshot)?;
    check_documents(&snapshot)
}

/// Leaves the write-ahead log: one plain file, that can be renamed and be read from a read-only disk.
fn to_one_file(connection: &Connection) -> Result<(), StoreError> {
    let set = connection.pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get(0));
    let mode: String = set.map_err(translate)?;
    if mode.eq_ignore_ascii_case("delete") {
        return Ok(());
    }
    Err(place::unavailable(format!("a copy is still in journal mode {mode}")))
}

fn copy_pages(from: &Connection, to: &mut Connection) -> Result<(), StoreError> {
    let copying = Backup::new(from, to).map_err(translate)?;
    // All pages in one step: one read transaction, so one consistent state, and commits go on beside it.
    let reached = copying.step(-1).map_err(translate)?;
    if reached == StepResult::Done {
        return Ok(());
    }
    Err(place::unavailable(format!("the database could not be copied: {reached:?}")))
}

fn check_pages(connection: &Connection, pragma: &str) -> Result<(), StoreError> {
    let sql = format!("PRAGMA {pragma}(1)");
    let found: String = connection.query_row(&sql, [], |row| row.get(0)).map_err(translate)?;
    if found == "ok" { Ok(()) } else { Err(corrupt(found)) }
}

fn check_documents(connection: &Connection) -> Result<(), StoreError> {
    let mut statement =
        connection.prepare("SELECT id, version, body, checksum, kind FROM documents").map_err(translate)?;
    let mut found = statement.query([]).map_err(translate)?;
    while let Some(row) = found.next().map_err(translate)? {
        let name: String = row.get(4).map_err(translate)?;
        // A kind that a newer release added is none of ours: it is kept, and not read.
        if let Some(kind) = Kind::from_name(&name) {
            rows::document(row, kind)?;
        }
    }
    Ok(())
}

fn verify_chain(connection: &Connection) -> Result<Head, StoreError> {
    let (head, _version) = rows::stored_head(connection)?;
    let mut verifier = Verifier::default();
    let sql = "SELECT position, previous, hash, counter, body FROM ledger ORDER BY position";
    let mut statement = connection.prepare(sql).map_err(translate)?;
    let mut found = statement.query([]).map_err(translate)?;
    while let Some(row) = found.next().map_err(translate)? {
        verifier.check(&rows::record(row)?).map_err(broken)?;
    }
    verifier.finish(head).map_err(broken)
}

/// The serials that were given out after the backup was taken are never given out again, whatever the clock says
/// later.
fn raise_serials(connection: &Connection, now: Timestamp) -> Result<(), StoreError> {
    let state = rows::state(connection)?;
    let block = rules::reserve(rows::next_serial(connection)?, state.highest, 1, now)?;
    let sql = "UPDATE counters SET next = max(next, ?1) WHERE name = 'serial'";
    connection.execute(sql, params![rows::signed(block.next)?]).map(|_rows| ()).map_err(translate)
}
