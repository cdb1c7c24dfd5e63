//! Rows to values and back: the one place that knows columns.
//!
//! Laws: `previous` and `hash` come from storage, never from computing, so that tampering is seen; a document whose
//! checksum does not hold is reported, never given out.
//! Not here: when to read or write.

use rhizome_core::documents::{Document, DocumentKey, Kind, Version};
use rhizome_core::ledger::{Head, Position, Record};
use rhizome_core::ports::StoreError;
use rhizome_id::{Digest, SerialCounter};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::{corrupt, translate};
use crate::rules::{bug, checksum};

/// What the writer keeps in memory: the end of the chain, the last version, and the highest counter recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) head: Head,
    pub(super) version: Version,
    pub(super) highest: Option<SerialCounter>,
}

/// Reads the state, and checks that the ledger ends where the stored head says.
pub(super) fn state(connection: &Connection) -> Result<State, StoreError> {
    let (head, version) = stored_head(connection)?;
    let sql = "SELECT position, previous, hash, counter, body FROM ledger ORDER BY position DESC LIMIT 1";
    let last = optional(connection, sql, [], record)?;
    let end = last.as_ref().map_or(Head::EMPTY, Record::head);
    if end != head {
        let (expected, found) = (head.position.0, end.position.0);
        return Err(corrupt(format!(
            "the ledger ends at record {found} ({}), but its head should be record {expected} ({}); \
             the tail was cut off or replaced",
            end.hash, head.hash
        )));
    }
    let highest: Option<i64> = connection
        .query_row("SELECT max(counter) FROM ledger WHERE counter IS NOT NULL", [], |row| row.get(0))
        .map_err(translate)?;
    Ok(State { head, version, highest: highest.map(counter).transpose()? })
}

/// The head as it is stored, and the last version.
pub(super) fn stored_head(connection: &Connection) -> Result<(Head, Version), StoreError> {
    let sql = "SELECT position, hash, version FROM head WHERE one = 1";
    let found = optional(connection, sql, [], |row| {
        let position = Position(unsigned(row.get(0).map_err(translate)?)?);
        let hash = digest(row, 1)?;
        Ok((Head { position, hash }, Version(unsigned(row.get(2).map_err(translate)?)?)))
    })?;
    found.ok_or_else(|| corrupt("the stored head is missing".to_owned()))
}

pub(super) fn put_state(connection: &Connection, state: &State) -> Result<(), StoreError> {
    let sql = "UPDATE head SET position = ?1, hash = ?2, version = ?3 WHERE one = 1";
    let mut statement = connection.prepare_cached(sql).map_err(translate)?;
    let position = signed(state.head.position.0)?;
    let changed = statement.execute(params![position, state.head.hash.as_bytes(), signed(state.version.0)?]);
    match changed.map_err(translate)? {
        1 => Ok(()),
        _ => Err(corrupt("the stored head is missing".to_owned())),
    }
}

/// The version of a document, if it exists.
pub(super) fn version_of(connection: &Connection, key: &DocumentKey) -> Result<Option<Version>, StoreError> {
    let sql = "SELECT version FROM documents WHERE kind = ?1 AND id = ?2";
    optional(connection, sql, params![key.kind.as_str(), key.id], |row| {
        Ok(Version(unsigned(row.get(0).map_err(translate)?)?))
    })
}

pub(super) fn put_document(
    connection: &Connection,
    key: &DocumentKey,
    version: Version,
    body: &str,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO documents (kind, id, version, body, checksum) VALUES (?1, ?2, ?3, ?4, ?5)
               ON CONFLICT (kind, id) DO UPDATE
               SET version = excluded.version, body = excluded.body, checksum = excluded.checksum";
    let mut statement = connection.prepare_cached(sql).map_err(translate)?;
    let checksum = checksum(key.kind.as_str(), &key.id, version, body);
    let written =
        statement.execute(params![key.kind.as_str(), key.id, signed(version.0)?, body, checksum.as_bytes()]);
    written.map(|_rows| ()).map_err(translate)
}

pub(super) fn delete_document(connection: &Connection, key: &DocumentKey) -> Result<(), StoreError> {
    let sql = "DELETE FROM documents WHERE kind = ?1 AND id = ?2";
    let mut statement = connection.prepare_cached(sql).map_err(translate)?;
    statement.execute(params![key.kind.as_str(), key.id]).map(|_rows| ()).map_err(translate)
}

pub(super) fn put_record(connection: &Connection, record: &Record) -> Result<(), StoreError> {
    let sql = "INSERT INTO ledger (position, previous, hash, counter, body) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut statement = connection.prepare_cached(sql).map_err(translate)?;
    let position = signed(record.position.0)?;
    let counter = record.counter.map(|counter| signed(counter.value())).transpose()?;
    let (previous, hash) = (record.previous.as_bytes(), record.hash.as_bytes());
    statement.execute(params![position, previous, hash, counter, &*record.body]).map_err(translate)?;
    Ok(())
}

pub(super) fn is_recorded(connection: &Connection, counter: SerialCounter) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM ledger WHERE counter = ?1";
    Ok(optional(connection, sql, params![signed(counter.value())?], |_row| Ok(()))?.is_some())
}

/// The first counter that nobody was given yet.
pub(super) fn next_serial(connection: &Connection) -> Result<u64, StoreError> {
    let sql = "SELECT next FROM counters WHERE name = 'serial'";
    let found = optional(connection, sql, [], |row| unsigned(row.get(0).map_err(translate)?))?;
    found.ok_or_else(|| corrupt("the stored serial counter is missing".to_owned()))
}

pub(super) fn put_next_serial(connection: &Connection, next: u64) -> Result<(), StoreError> {
    let sql = "UPDATE counters SET next = ?1 WHERE name = 'serial'";
    let mut statement = connection.prepare_cached(sql).map_err(translate)?;
    statement.execute(params![signed(next)?]).map(|_rows| ()).map_err(translate)
}

/// A row of `position, previous, hash, counter, body`.
pub(super) fn record(row: &Row<'_>) -> Result<Record, StoreError> {
    let position = Position(unsigned(row.get(0).map_err(translate)?)?);
    let number: Option<i64> = row.get(3).map_err(translate)?;
    Ok(Record {
        position,
        previous: digest(row, 1)?,
        hash: digest(row, 2)?,
        counter: number.map(counter).transpose()?,
        body: text(row, 4)?.into(),
    })
}

/// A row of `id, version, body, checksum` of `kind`.
pub(super) fn document(row: &Row<'_>, kind: Kind) -> Result<Document, StoreError> {
    let version = Version(unsigned(row.get(1).map_err(translate)?)?);
    let (id, body) = (text(row, 0)?, text(row, 2)?);
    if checksum(kind.as_str(), id, version, body) != digest(row, 3)? {
        return Err(corrupt(format!("the stored {} {id} does not give its checksum", kind.as_str())));
    }
    Ok(Document { key: DocumentKey::new(kind, id), version, body: body.into() })
}

/// Runs a query that finds at most one row.
pub(super) fn optional<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
    read: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(translate)?;
    let found = statement.query_row(parameters, |row| Ok(read(row))).optional();
    found.map_err(translate)?.transpose()
}

pub(super) fn signed(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_above| bug(format!("{value} does not fit a column")))
}

fn unsigned(value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_negative| corrupt(format!("a stored number is negative: {value}")))
}

fn counter(value: i64) -> Result<SerialCounter, StoreError> {
    let found = SerialCounter::new(unsigned(value)?);
    found.ok_or_else(|| corrupt(format!("a stored serial counter is above 2^56: {value}")))
}

fn digest(row: &Row<'_>, column: usize) -> Result<Digest, StoreError> {
    row.get(column).map(Digest::from_bytes).map_err(translate)
}

fn text<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r str, StoreError> {
    let value = row.get_ref(column).map_err(translate)?;
    value.as_str().map_err(|cause| corrupt(format!("a stored text cannot be read: {cause}")))
}
