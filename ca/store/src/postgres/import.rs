//! A whole store taken in: how an authority moves from the embedded database to PostgreSQL.
//!
//! Laws: all of it or nothing, in one transaction; only into a schema that holds nothing; every record is verified
//! against the one before it on its way, and is stored byte for byte; documents keep their versions; no serial that was
//! ever given out is given out again. An import that was finished already is found to be, and changes nothing.
//! Not here: taking the old database out of service, the ledger's note about it (`rhizome store migrate`).

use std::num::Saturating;

use rhizome_core::documents::{Document, Kind, Version};
use rhizome_core::ledger::{Head, Position, Record, Verifier};
use rhizome_core::ports::{Store, StoreError};
use rhizome_id::Timestamp;
use tokio_postgres::types::{ToSql, Type};

use super::PostgresStore;
use super::error::translate;
use super::link::Session;
use super::rows::{self, HEAD, signed};
use crate::limits::WALK_PAGE;
use crate::rules::{bug, checksum};
use crate::verify::corrupt as broken;

/// How far an import has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Records copied.
    pub records: u64,
    /// Records there are.
    pub of: u64,
}

/// What an import did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The end of the ledger, in both stores.
    pub head: Head,
    /// Documents copied.
    pub documents: u64,
    /// It had been finished before.
    pub already: bool,
}

impl PostgresStore {
    /// Copies everything from `source`, which nobody else may write to meanwhile, into this store, which must be empty.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when something else is stored here, [`StoreError::Corrupt`] when the ledger of `source`
    /// does not hold; nothing is changed then.
    pub async fn import(
        &self,
        source: &dyn Store,
        now: Timestamp,
        mut told: impl FnMut(Progress) + Send,
    ) -> Result<Imported, StoreError> {
        let end = source.head().await?;
        let session = self.link.open().await?;
        let client = &session.client;
        let begin = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
                     BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
        client.batch_execute(begin).await.map_err(translate)?;
        let locked = client.query_typed(&format!("{HEAD} FOR UPDATE"), &[]).await.map_err(translate)?;
        let here = rows::head(&locked)?;
        if here.end == end && end != Head::EMPTY {
            return Ok(Imported { head: end, documents: 0, already: true });
        }
        if here.end != Head::EMPTY || here.version != Version(0) {
            return Err(StoreError::Exists { path: self.place() });
        }
        let next = source.reserve_serials(1, now).await?.value().saturating_add(1);
        let (documents, version) = copy_documents(&session, source).await?;
        let highest = copy_records(&session, source, end, &mut told).await?;
        let (position, hash) = (signed(end.position.0)?, end.hash.as_bytes().as_slice());
        let (version, next) = (signed(version.0)?, signed(next)?);
        let moved = "UPDATE head SET position = $1, hash = $2, version = $3, next_serial = $4, highest = $5";
        let values: [(&(dyn ToSql + Sync), Type); 5] = [
            (&position, Type::INT8),
            (&hash, Type::BYTEA),
            (&version, Type::INT8),
            (&next, Type::INT8),
            (&highest, Type::INT8),
        ];
        client.execute_typed(moved, &values).await.map_err(translate)?;
        client.batch_execute("COMMIT").await.map_err(translate)?;
        Ok(Imported { head: end, documents, already: false })
    }
}

async fn copy_documents(session: &Session, source: &dyn Store) -> Result<(u64, Version), StoreError> {
    let (mut count, mut newest) = (Saturating(0_u64), Version(0));
    for kind in Kind::ALL {
        let mut after: Option<String> = None;
        loop {
            let page = source.documents(kind, after.as_deref(), WALK_PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.id.clone());
            newest = page.iter().map(|it| it.version).fold(newest, Version::max);
            count += u64::try_from(page.len()).unwrap_or(u64::MAX);
            put_documents(session, &page).await?;
        }
    }
    // Deletions counted, too: no version of the old store comes again.
    Ok((count.0, Version(newest.0.saturating_add(VERSIONS_LEFT_FREE))))
}

/// The last versions of the old store may have been deletions, which leave nothing behind there.
const VERSIONS_LEFT_FREE: u64 = 1 << 20;

async fn put_documents(session: &Session, page: &[Document]) -> Result<(), StoreError> {
    let kinds: Vec<&str> = page.iter().map(|it| it.key.kind.as_str()).collect();
    let ids: Vec<&[u8]> = page.iter().map(|it| it.key.id.as_bytes()).collect();
    let versions: Vec<i64> = page.iter().map(|it| signed(it.version.0)).collect::<Result<_, _>>()?;
    let bodies: Vec<&str> = page.iter().map(|it| &*it.body).collect();
    let sum = |it: &Document| checksum(it.key.kind.as_str(), &it.key.id, it.version, &it.body);
    let sums: Vec<Vec<u8>> = page.iter().map(|it| sum(it).as_bytes().to_vec()).collect();
    let sql = "INSERT INTO documents (kind, id, version, body, checksum) \
               SELECT * FROM unnest($1::text[], $2::bytea[], $3::int8[], $4::text[], $5::bytea[])";
    let put = session.client.execute(sql, &[&kinds, &ids, &versions, &bodies, &sums]).await;
    put.map(drop_count).map_err(translate)
}

/// Gives the highest counter.
async fn copy_records(
    session: &Session,
    source: &dyn Store,
    end: Head,
    told: &mut (impl FnMut(Progress) + Send),
) -> Result<Option<i64>, StoreError> {
    let mut verifier = Verifier::default();
    let mut highest = None;
    while verifier.head().position < end.position {
        let at = verifier.head().position.0;
        let page = source.records(Position(at.saturating_add(1)), WALK_PAGE).await?;
        if page.is_empty() {
            break; // `finish` names what is missing.
        }
        page.iter().try_for_each(|record| verifier.check(record)).map_err(broken)?;
        highest = highest.max(put_records(session, &page).await?);
        told(Progress { records: verifier.head().position.0, of: end.position.0 });
    }
    verifier.finish(end).map_err(broken)?;
    Ok(highest)
}

async fn put_records(session: &Session, page: &[Record]) -> Result<Option<i64>, StoreError> {
    let positions: Vec<i64> = page.iter().map(|it| signed(it.position.0)).collect::<Result<_, _>>()?;
    let previous: Vec<&[u8]> = page.iter().map(|it| it.previous.as_bytes().as_slice()).collect();
    let hashes: Vec<&[u8]> = page.iter().map(|it| it.hash.as_bytes().as_slice()).collect();
    let counters: Vec<Option<i64>> = page
        .iter()
        .map(|it| it.counter.map(|counter| signed(counter.value())).transpose())
        .collect::<Result<_, _>>()?;
    let bodies: Vec<&str> = page.iter().map(|it| &*it.body).collect();
    let sql = "INSERT INTO ledger (position, previous, hash, counter, body) \
               SELECT * FROM unnest($1::int8[], $2::bytea[], $3::bytea[], $4::int8[], $5::text[])";
    let put = session.client.execute(sql, &[&positions, &previous, &hashes, &counters, &bodies]).await;
    match put.map_err(translate)? {
        0 => Err(bug("records were not stored".to_owned())),
        _ => Ok(counters.into_iter().flatten().max()),
    }
}

const fn drop_count(_rows: u64) {}
