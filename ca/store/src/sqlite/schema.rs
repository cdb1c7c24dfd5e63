//! Connections and the schema: what a Rhizome database is, and how it comes to be.
//!
//! Laws: a file of another application is never touched; a newer schema is refused before anything is written;
//! migrations are append-only, embedded, and applied together in one transaction, so a killed upgrade leaves the old
//! schema. Every commit is synced (`synchronous=FULL`) before it is answered.
//! Not here: file modes and the lock (`place`).
//! Sources: sqlite.org/pragma.html; ca/docs/CONTRIBUTING.md, a migration.

use std::path::Path;

use refinery::Runner;
use rhizome_core::ports::StoreError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::error::{corrupt, translate};
use super::{Options, place::unavailable};
use crate::history::{Applied, Standing, newest, standing};
use crate::limits::{CHECKPOINT_PAGES, WAL_KEPT_BYTES};
use crate::rules::bug;

/// `RHZM` in ASCII: what `file` and SQLite show as the application of our databases.
const APPLICATION_ID: i32 = 0x5248_5a4d;

/// Makes an empty file a database of ours, without a schema yet.
pub(super) fn claim_empty(path: &Path, options: &Options) -> Result<(), StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, options)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(translate)
}

/// A connection that writes to a database of ours, which is brought to this release's schema if need be.
pub(super) fn open_writer(path: &Path, options: &Options) -> Result<Connection, StoreError> {
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, options)?;
    refuse_foreign(&connection, path)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(translate)?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(unavailable(format!("{} lies on a file system without shared memory", path.display())));
    }
    connection.pragma_update(None, "synchronous", "FULL").map_err(translate)?;
    connection
        .pragma_update_and_check(None, "journal_size_limit", WAL_KEPT_BYTES, |_row| Ok(()))
        .map_err(translate)?;
    connection
        .pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT_PAGES, |_row| Ok(()))
        .map_err(translate)?;
    if let Some(pages) = options.max_pages {
        connection
            .pragma_update_and_check(None, "max_page_count", pages, |_row| Ok(()))
            .map_err(translate)?;
    }
    migrate(&mut connection)?;
    defend(&connection)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// A connection that only reads, and only a database of ours whose schema this release knows.
pub(super) fn open_reader(path: &Path, options: &Options) -> Result<Connection, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY, options)?;
    refuse_foreign(&connection, path)?;
    applied(&connection)?;
    defend(&connection)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// A bare connection to a file that exists; nothing is known about its content.
pub(super) fn connect(path: &Path, flags: OpenFlags, options: &Options) -> Result<Connection, StoreError> {
    // One thread at a time uses a connection, so SQLite's own mutexes are not needed. No SQLITE_OPEN_URI: a path is
    // a path.
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|cause| unavailable(format!("cannot open {}: {cause}", path.display())))?;
    connection.busy_timeout(options.busy_timeout).map_err(translate)?;
    // Damaged cells are reported instead of followed.
    connection.pragma_update(None, "cell_size_check", "ON").map_err(translate)?;
    connection.pragma_update(None, "trusted_schema", "OFF").map_err(translate)?;
    Ok(connection)
}

/// Whether the schema's version is this release's, older (`Some` below it), or absent in a fresh file.
///
/// # Errors
/// [`StoreError::Newer`], or [`StoreError::Corrupt`] when the history is not the one this release would write.
pub(super) fn applied(connection: &Connection) -> Result<Option<i32>, StoreError> {
    let known = runner();
    let sql = "SELECT version, name, applied_on, checksum FROM refinery_schema_history ORDER BY version";
    if !has_history(connection)? {
        return Ok(None);
    }
    let mut statement = connection.prepare(sql).map_err(translate)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
    let history: Vec<Applied> = rows.and_then(Iterator::collect).map_err(translate)?;
    match standing(&known, history)? {
        None => Ok(None),
        Some(Standing::At(version)) => Ok(Some(version)),
        Some(Standing::Beyond { found, known }) => Err(StoreError::Newer { found, known: i64::from(known) }),
    }
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found = applied(connection)?;
    let runner = runner();
    if found == Some(newest(&runner)) {
        return Ok(());
    }
    // Grouped: refinery would otherwise record a migration in another transaction than the one that applies it.
    let report = runner.set_grouped(true).run(connection).map_err(|cause| migration_failed(&cause))?;
    for migration in report.applied_migrations() {
        tracing::info!(%migration, "applied a migration");
    }
    Ok(())
}

fn migration_failed(cause: &refinery::Error) -> StoreError {
    use std::error::Error as _;

    let mut source = cause.source();
    while let Some(inner) = source {
        if let Some(rusqlite::Error::SqliteFailure(code, text)) = inner.downcast_ref() {
            return translate(rusqlite::Error::SqliteFailure(*code, text.clone()));
        }
        source = inner.source();
    }
    bug(format!("a migration failed: {cause}"))
}

fn runner() -> Runner {
    embedded::migrations::runner()
}

fn has_history(connection: &Connection) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'refinery_schema_history'";
    Ok(connection.query_row(sql, [], |_row| Ok(())).optional().map_err(translate)?.is_some())
}

fn refuse_foreign(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let found: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(translate)?;
    if found == APPLICATION_ID {
        return Ok(());
    }
    Err(corrupt(format!("{} is not a Rhizome database", path.display())))
}

/// Nothing that comes by way of SQL may write the schema or the file's bytes.
fn defend(connection: &Connection) -> Result<(), StoreError> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).map(|_on| ()).map_err(translate)
}

/// More than the statements this crate has.
const STATEMENTS: usize = 32;

mod embedded {
    refinery::embed_migrations!("migrations");
}
