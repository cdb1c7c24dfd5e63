//! Rows to values and back: the one place that knows columns.
//!
//! Laws: `previous` and `hash` come from storage, never from computing, so that tampering is seen; a document whose
//! checksum does not hold is reported, never given out.
//! Not here: when to read or write.

use std::sync::Arc;

use rhizome_core::changes::{Changed, Changes};
use rhizome_core::documents::{Document, DocumentKey, Kind, Version};
use rhizome_core::ledger::{self, Position, Record};
use rhizome_core::ports::StoreError;
use rhizome_id::{Digest, SerialCounter};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use super::batch::Head;
use super::error::{corrupt, translate};
use crate::rules::{bug, checksum};

/// Columns of [`head`].
pub(super) const HEAD: &str = "SELECT position, hash, version, next_serial, highest FROM head WHERE one = 1";

/// Columns of [`record`].
pub(super) const RECORD: &str = "SELECT position, previous, hash, counter, body FROM ledger";

/// Columns of [`document`].
pub(super) const DOCUMENT: &str = "SELECT kind, id, version, body, checksum FROM documents";

/// The head row.
pub(super) fn head(rows: &[Row]) -> Result<Head, StoreError> {
    let row = rows.first().ok_or_else(|| corrupt("the stored head is missing".to_owned()))?;
    let position = Position(unsigned(get(row, 0)?)?);
    let highest: Option<i64> = get(row, 4)?;
    Ok(Head {
        end: ledger::Head { position, hash: digest(row, 1)? },
        version: Version(unsigned(get(row, 2)?)?),
        next_serial: unsigned(get(row, 3)?)?,
        highest: highest.map(counter).transpose()?,
    })
}

/// A row of [`RECORD`].
pub(super) fn record(row: &Row) -> Result<Record, StoreError> {
    let number: Option<i64> = get(row, 3)?;
    let body: &str = get(row, 4)?;
    Ok(Record {
        position: Position(unsigned(get(row, 0)?)?),
        previous: digest(row, 1)?,
        hash: digest(row, 2)?,
        counter: number.map(counter).transpose()?,
        body: body.into(),
    })
}

/// A document as it is stored, alive or deleted.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: DocumentKey,
    pub(super) version: Version,
    pub(super) body: Option<Arc<str>>,
}

/// A row of [`DOCUMENT`]; `None` for a kind that a newer release added, which is kept and not read.
pub(super) fn document(row: &Row) -> Result<Option<Found>, StoreError> {
    let name: &str = get(row, 0)?;
    let Some(kind) = Kind::from_name(name) else { return Ok(None) };
    let id: &[u8] = get(row, 1)?;
    let id = str::from_utf8(id).map_err(|_bytes| corrupt(format!("an id of kind {name} is not UTF-8")))?;
    let version = Version(unsigned(get(row, 2)?)?);
    let body: Option<&str> = get(row, 3)?;
    if checksum(name, id, version, body.unwrap_or_default()) != digest(row, 4)? {
        return Err(corrupt(format!("the stored {name} {id} does not give its checksum")));
    }
    Ok(Some(Found { key: DocumentKey::new(kind, id), version, body: body.map(Into::into) }))
}

/// The living documents among `rows`.
pub(super) fn living(rows: &[Row]) -> Result<Vec<Document>, StoreError> {
    let mut documents = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(Found { key, version, body: Some(body) }) = document(row)? {
            documents.push(Document { key, version, body });
        }
    }
    Ok(documents)
}

/// Rows of a document each, with the newest version of all and the last one that was forgotten; or one without a
/// document, when nothing changed after `since`.
pub(super) fn changes(rows: &[Row], since: Version, limit: i64) -> Result<Changes, StoreError> {
    let first = rows.first().ok_or_else(|| corrupt("the stored head is missing".to_owned()))?;
    let (newest, forgotten) = (unsigned(get(first, 5)?)?, unsigned(get(first, 6)?)?);
    // Beyond the newest: commits were lost, in a failover or with a dump that was put back.
    if since.0 < forgotten || since.0 > newest {
        return Ok(Changes::Forgotten);
    }
    let mut changed = Vec::with_capacity(rows.len());
    let (mut last, mut count) = (since, 0_i64);
    for row in rows {
        let Some(version) = get::<Option<i64>>(row, 2)? else { break };
        (last, count) = (Version(unsigned(version)?), count.saturating_add(1));
        if let Some(Found { key, version, body }) = document(row)? {
            changed.push(Changed { key, version, body });
        }
    }
    let more = count >= limit && last.0 < newest;
    let through = if more { last } else { Version(newest) };
    Ok(Changes::These { changed, through, more })
}

/// Key and version of a row of `kind, id, version`.
pub(super) fn version(row: &Row) -> Result<Option<(DocumentKey, Version)>, StoreError> {
    let name: &str = get(row, 0)?;
    let id: &[u8] = get(row, 1)?;
    let id = str::from_utf8(id).map_err(|_bytes| corrupt(format!("an id of kind {name} is not UTF-8")))?;
    let version = Version(unsigned(get(row, 2)?)?);
    Ok(Kind::from_name(name).map(|kind| (DocumentKey::new(kind, id), version)))
}

pub(super) fn get<'r, T: FromSql<'r>>(row: &'r Row, column: usize) -> Result<T, StoreError> {
    row.try_get(column).map_err(translate)
}

pub(super) fn signed(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_above| bug(format!("{value} does not fit a column")))
}

pub(super) fn unsigned(value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_negative| corrupt(format!("a stored number is negative: {value}")))
}

pub(super) fn counter(value: i64) -> Result<SerialCounter, StoreError> {
    let found = SerialCounter::new(unsigned(value)?);
    found.ok_or_else(|| corrupt(format!("a stored serial counter is above 2^56: {value}")))
}

fn digest(row: &Row, column: usize) -> Result<Digest, StoreError> {
    let bytes: &[u8] = get(row, column)?;
    let bytes = <[u8; 32]>::try_from(bytes);
    let bytes = bytes.map_err(|_length| corrupt("a stored value is no SHA-256 digest".to_owned()))?;
    Ok(Digest::from_bytes(bytes))
}
