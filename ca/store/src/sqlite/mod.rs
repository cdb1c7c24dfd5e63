//! The embedded store: one SQLite file.
//!
//! Laws: one server at a time; commits are durable (`synchronous=FULL`) and gathered by one writer thread; reads run
//! beside it. A file that is damaged, foreign or newer is refused, in words that say what to do.
//! Here: opening, and the port. The files are in `place`, the schema in `schema`, group commit in `writer`, columns in
//! `rows`, new files, backup and restore in `copy`, errors in `error`.
//! Not here: what is stored. Put the database on a local disk: write-ahead logging and `flock` need one.
//! Sources: sqlite.org/wal.html; ca/docs/performance.md, The floor.

mod copy;
mod error;
mod place;
mod reader;
mod rows;
mod schema;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use rhizome_core::documents::{Document, DocumentKey, Kind, Transaction};
use rhizome_core::ledger::{Head, Position, Record};
use rhizome_core::ports::{Committed, Store, StoreError};
use rhizome_id::{SerialCounter, Timestamp};
use rusqlite::{Connection, params};
use tokio::task;

use self::error::translate;
use self::place::{Place, failed};
use self::reader::Readers;
use self::writer::Writer;
use crate::limits::BUSY_TIMEOUT;
use crate::requests::{Counts, Queue, Statistics};
use crate::rules::bug;

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for a lock that another process, such as a shell on the database, holds. Default: 5 s.
    pub busy_timeout: Duration,
    /// The most pages of 4096 bytes the database may have; beyond them commits report [`StoreError::Full`].
    /// Default: as many as the disk holds.
    pub max_pages: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self { busy_timeout: BUSY_TIMEOUT, max_pages: None }
    }
}

/// A store in one SQLite file. Dropping it finishes what was asked, closes the file and gives up its lock.
#[derive(Debug)]
pub struct SqliteStore {
    place: Place,
    options: Options,
    readers: Readers,
    requests: Queue,
    writer: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

impl SqliteStore {
    /// Opens the database at `path`, or makes it; brings an older schema up to date. Blocks: call it before serving,
    /// or on a thread that may block. Within the process and on the host, one store at a time has a path open.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when another server has it open or the directory will not do,
    /// [`StoreError::Newer`] when a newer release wrote it, [`StoreError::Corrupt`] when it is no database of ours,
    /// is damaged, or its ledger does not end at its head.
    pub fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        Self::open_place(Place::claim(path)?, options)
    }

    /// Puts the backup `from` at `to`, which must not exist, and opens it. Every page and the whole ledger are
    /// verified first; serials start behind `now`, so none that was given out after the backup is given out again.
    /// What else a restore must do (revoke outstanding tokens, raise the bundle's sequence) is the caller's, by
    /// ordinary transactions, before serving. Blocks, for about as long as reading the backup twice takes.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when `to` exists; otherwise as [`Self::open`]. Nothing is left at `to` then.
    pub fn restore(from: &Path, to: &Path, now: Timestamp, options: Options) -> Result<Self, StoreError> {
        Self::open_place(copy::restore(from, to, now, &options)?, options)
    }

    /// What it has written since it was opened.
    pub fn statistics(&self) -> Statistics {
        self.counts.statistics(&self.requests)
    }

    fn open_place(place: Place, options: Options) -> Result<Self, StoreError> {
        if !place.is_taken()? {
            copy::initialise(&place, &options)?;
        }
        place.secure()?;
        let connection = schema::open_writer(place.path(), &options)?;
        let state = rows::state(&connection)?;
        let counts = Arc::new(Counts::default());
        let writer = Writer::new(connection, state, Arc::clone(&counts));
        let (requests, receiver) = Queue::new();
        let thread = thread::Builder::new().name("rhizome-store".to_owned());
        let writer = thread.spawn(move || writer.run(receiver));
        let writer = writer.map_err(|cause| failed("start a writer for", place.path(), &cause))?;
        let readers = Readers::new(place.path().to_owned(), options.clone());
        Ok(Self { place, options, readers, requests, writer: Some(writer), counts })
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.requests.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    /// As the port says. A caller that goes away after the transaction was queued does not undo it.
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        self.requests.commit(transaction).await
    }

    async fn document(&self, key: &DocumentKey) -> Result<Option<Document>, StoreError> {
        let key = key.clone();
        let sql = "SELECT id, version, body, checksum FROM documents WHERE kind = ?1 AND id = ?2";
        let query = move |connection: &Connection| {
            let named = params![key.kind.as_str(), key.id];
            rows::optional(connection, sql, named, |row| rows::document(row, key.kind))
        };
        self.readers.read(query).await
    }

    async fn documents(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        // No id is empty (`rules`), so everything comes after the empty one.
        let after = after.unwrap_or_default().to_owned();
        let sql = "SELECT id, version, body, checksum FROM documents
                   WHERE kind = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        let query = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(sql).map_err(translate)?;
            let mut found =
                statement.query(params![kind.as_str(), after, at_most(limit)]).map_err(translate)?;
            let mut page = Vec::new();
            while let Some(row) = found.next().map_err(translate)? {
                page.push(rows::document(row, kind)?);
            }
            Ok(page)
        };
        self.readers.read(query).await
    }

    async fn records(&self, from: Position, limit: usize) -> Result<Vec<Record>, StoreError> {
        let sql = "SELECT position, previous, hash, counter, body FROM ledger
                   WHERE position >= ?1 ORDER BY position LIMIT ?2";
        let query = move |connection: &Connection| {
            let mut statement = connection.prepare_cached(sql).map_err(translate)?;
            let from = i64::try_from(from.0).unwrap_or(i64::MAX);
            let mut found = statement.query(params![from, at_most(limit)]).map_err(translate)?;
            let mut page = Vec::new();
            while let Some(row) = found.next().map_err(translate)? {
                page.push(rows::record(row)?);
            }
            Ok(page)
        };
        self.readers.read(query).await
    }

    async fn record_of_serial(&self, counter: SerialCounter) -> Result<Option<Record>, StoreError> {
        let sql = "SELECT position, previous, hash, counter, body FROM ledger WHERE counter = ?1";
        let query = move |connection: &Connection| {
            rows::optional(connection, sql, params![rows::signed(counter.value())?], rows::record)
        };
        self.readers.read(query).await
    }

    async fn head(&self) -> Result<Head, StoreError> {
        self.readers.read(|connection| rows::stored_head(connection).map(|(head, _version)| head)).await
    }

    async fn reserve_serials(&self, count: u32, now: Timestamp) -> Result<SerialCounter, StoreError> {
        self.requests.reserve(count, now).await
    }

    /// As the port says, with mode 0600. The copy is one plain file, checked and synced before this returns; open it
    /// with [`SqliteStore::restore`].
    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let (from, to, options) = (self.place.path().to_owned(), to.to_owned(), self.options.clone());
        let work = task::spawn_blocking(move || copy::backup(&from, &to, &options));
        work.await.map_err(|lost| bug(format!("a backup stopped: {lost}")))?
    }

    async fn check_integrity(&self) -> Result<(), StoreError> {
        let (path, options) = (self.place.path().to_owned(), self.options.clone());
        let work = task::spawn_blocking(move || {
            let connection = schema::open_reader(&path, &options)?;
            copy::check(&connection)
        });
        work.await.map_err(|lost| bug(format!("a check stopped: {lost}")))?
    }
}

/// `LIMIT` as SQLite wants it. Memory is taken by what is found, not by what is asked.
fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
