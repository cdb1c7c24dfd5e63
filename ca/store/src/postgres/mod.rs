//! The store of many servers: one PostgreSQL database.
//!
//! Laws: any number of servers have it open and write one chain; commits are durable (`synchronous_commit` is never
//! off) and gathered by one writer in each server; reads run beside it. A database that is away is reported at once and
//! found again without anybody's hand. What is foreign, damaged or too new is refused, in words that say what to do.
//! Here: opening, and the port. The address is in `options`, dialling in `link`, the schema in `schema`, what becomes of
//! a batch in `batch`, writing it in `writer`, columns in `rows`, errors in `error`.
//! Not here: what is stored; copies of the database (`pg_dump`, and the operator's own ways).
//! Sources: ADR 0015; ca/docs/performance.md, The floor.

mod backoff;
mod batch;
mod error;
mod import;
mod link;
mod listener;
mod options;
mod readers;
mod rows;
mod schema;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use rhizome_core::changes::Changes;
use rhizome_core::documents::{Document, DocumentKey, Kind, Transaction, Version};
use rhizome_core::ledger::{Head, Position, Record};
use rhizome_core::ports::{Committed, Store, StoreError};
use rhizome_id::{SerialCounter, Timestamp};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_postgres::types::Type;

use self::error::{corrupt, translate, unavailable};
use self::link::Link;
use self::readers::{Parameter, Readers};
use self::rows::{DOCUMENT, HEAD, RECORD};
use self::writer::Writer;
use crate::limits::{LONG_STATEMENT, WALK_PAGE};
use crate::requests::{Counts, Queue, Request, Statistics};
use crate::rules::bug;

pub use self::import::{Imported, Progress};
pub use self::options::{
    DEFAULT_SCHEMA, PostgresOptions, PostgresOptionsError, PostgresPassword, check_address, check_schema,
    is_over_tcp,
};

/// A store in one schema of a PostgreSQL database. Dropping it finishes what was asked.
#[derive(Debug)]
pub struct PostgresStore {
    link: Arc<Link>,
    readers: Readers,
    requests: Queue,
    newest: watch::Receiver<u64>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

impl PostgresStore {
    /// Opens the database, makes the schema where there is none, and brings an older one up to date. Blocks: call it
    /// before serving, or on a thread that may block.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database does not answer or will not do, [`StoreError::Newer`] when a newer
    /// release left this one behind, [`StoreError::Corrupt`] when the schema is not ours, is damaged, or its ledger does
    /// not end at its head.
    pub fn open(options: PostgresOptions) -> Result<Self, StoreError> {
        options.check().map_err(|cause| unavailable(cause.to_string()))?;
        let counts = Arc::new(Counts::default());
        let (requests, receiver) = Queue::new();
        let (ready, opened) = blocking::sync_channel(1);
        let (heard, newest) = watch::channel(0);
        let counting = Arc::clone(&counts);
        let thread = thread::Builder::new().name("rhizome-store".to_owned());
        let thread = thread.spawn(move || run(options, counting, (receiver, heard), &ready));
        let thread = thread.map_err(|cause| unavailable(format!("no thread for the store: {cause}")))?;
        let link = opened.recv().map_err(|_gone| bug("the store's thread stopped".to_owned()))??;
        let readers = Readers::new(Arc::clone(&link));
        Ok(Self { link, readers, requests, newest, thread: Some(thread), counts })
    }

    /// What it has written since it was opened.
    pub fn statistics(&self) -> Statistics {
        self.counts.statistics(&self.requests)
    }

    /// Where it is, without anything secret.
    pub fn place(&self) -> String {
        self.link.options().to_string()
    }
}

/// The store's thread: a runtime of its own for every connection and the writer, so that neither a busy server nor one
/// that stops holds them up.
fn run(
    options: PostgresOptions,
    counts: Arc<Counts>,
    (requests, heard): (mpsc::Receiver<Request>, watch::Sender<u64>),
    ready: &blocking::SyncSender<Result<Arc<Link>, StoreError>>,
) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            return drop(ready.send(Err(unavailable(format!("no runtime for the store: {cause}")))));
        }
    };
    runtime.block_on(async move {
        let link = Arc::new(Link::new(options, Handle::current()));
        let prepared = timeout(LONG_STATEMENT, prepare(&link)).await;
        let late = || Err(unavailable("the database did not answer in time".to_owned()));
        let prepared = prepared.unwrap_or_else(|_late| late());
        let failed = prepared.is_err();
        drop(ready.send(prepared.map(|()| Arc::clone(&link))));
        if failed {
            return;
        }
        // Ends when the writer does, and with the runtime.
        let listening = Handle::current().spawn(listener::listen(Arc::clone(&link), heard));
        Writer::new(link, counts).run(requests).await;
        listening.abort();
    });
}

async fn prepare(link: &Link) -> Result<(), StoreError> {
    let mut session = link.open().await?;
    schema::prepare(&mut session, &link.options().schema).await?;
    let forgotten = listener::forget(&session).await?;
    if forgotten > 0 {
        tracing::info!(forgotten, "tombstones were forgotten");
    }
    Ok(())
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.requests.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

#[async_trait]
impl Store for PostgresStore {
    /// As the port says. A caller that goes away after the transaction was queued does not undo it.
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        self.requests.commit(transaction).await
    }

    async fn document(&self, key: &DocumentKey) -> Result<Option<Document>, StoreError> {
        let sql = format!("{DOCUMENT} WHERE kind = $1 AND id = $2 AND body IS NOT NULL");
        let (kind, id) = (key.kind.as_str(), key.id.as_bytes());
        let found = self.readers.query(&sql, &[(&kind, Type::TEXT), (&id, Type::BYTEA)]).await?;
        Ok(rows::living(&found)?.into_iter().next())
    }

    async fn documents(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        // No id is empty (`rules`), so everything comes after the empty one.
        let sql = format!("{DOCUMENT} WHERE kind = $1 AND id > $2 AND body IS NOT NULL ORDER BY id LIMIT $3");
        let (kind, after, limit) = (kind.as_str(), after.unwrap_or_default().as_bytes(), at_most(limit));
        let asked: [Parameter<'_>; 3] = [(&kind, Type::TEXT), (&after, Type::BYTEA), (&limit, Type::INT8)];
        rows::living(&self.readers.query(&sql, &asked).await?)
    }

    async fn records(&self, from: Position, limit: usize) -> Result<Vec<Record>, StoreError> {
        let sql = format!("{RECORD} WHERE position >= $1 ORDER BY position LIMIT $2");
        let (from, limit) = (i64::try_from(from.0).unwrap_or(i64::MAX), at_most(limit));
        let found = self.readers.query(&sql, &[(&from, Type::INT8), (&limit, Type::INT8)]).await?;
        found.iter().map(rows::record).collect()
    }

    async fn record_of_serial(&self, counter: SerialCounter) -> Result<Option<Record>, StoreError> {
        let sql = format!("{RECORD} WHERE counter = $1");
        let counter = rows::signed(counter.value())?;
        let found = self.readers.query(&sql, &[(&counter, Type::INT8)]).await?;
        found.first().map(rows::record).transpose()
    }

    async fn head(&self) -> Result<Head, StoreError> {
        Ok(rows::head(&self.readers.query(HEAD, &[]).await?)?.end)
    }

    async fn reserve_serials(&self, count: u32, now: Timestamp) -> Result<SerialCounter, StoreError> {
        self.requests.reserve(count, now).await
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn newest_version(&self) -> Result<Version, StoreError> {
        Ok(rows::head(&self.readers.query(HEAD, &[]).await?)?.version)
    }

    async fn changes(&self, since: Version, limit: usize) -> Result<Changes, StoreError> {
        // One statement, so one consistent state; all rows of the last version come along.
        let sql = "SELECT d.kind, d.id, d.version, d.body, d.checksum, h.version, h.forgotten FROM head h \
                   LEFT JOIN LATERAL (SELECT * FROM documents WHERE version > $1 \
                   ORDER BY version FETCH FIRST $2 ROWS WITH TIES) d ON true \
                   WHERE h.one = 1 ORDER BY d.version, d.kind, d.id";
        let (from, limit) = (rows::signed(since.0)?, at_most(limit.max(1)));
        let found = self.readers.query(sql, &[(&from, Type::INT8), (&limit, Type::INT8)]).await?;
        rows::changes(&found, since, limit)
    }

    async fn wait_for_change(&self, known: Version) {
        if self.newest.clone().wait_for(|newest| *newest > known.0).await.is_err() {
            // The store is closing; nobody hears anything any more.
            std::future::pending::<()>().await;
        }
    }

    /// Always refused with [`StoreError::Unsupported`]: PostgreSQL's own tools copy a database better than we could.
    async fn backup(&self, _to: &Path) -> Result<(), StoreError> {
        let schema = &self.link.options().schema;
        let remedy = format!(
            "the state is in PostgreSQL, which has its own backups: take one with `pg_dump --format=custom --schema={schema}`, \
             or archive its log; see ca/docs/operations.md, PostgreSQL"
        );
        Err(StoreError::Unsupported { remedy })
    }

    async fn check_integrity(&self) -> Result<(), StoreError> {
        let session = self.link.open().await?;
        let client = &session.client;
        let (long, schema) = (LONG_STATEMENT.as_millis(), &self.link.options().schema);
        // One snapshot: the head and the last record are compared while commits go on.
        let begin = format!(
            "SET statement_timeout = {long}; SET idle_in_transaction_session_timeout = {long}; \
             BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        );
        client.batch_execute(&begin).await.map_err(translate)?;
        let head = schema::state(client).await?;
        // Reads every byte; pages that changed on disk are seen when the cluster has data checksums.
        let sql = "SELECT count(*), coalesce(sum(hashtext(body)::int8), 0)::int8, max(counter) FROM ledger";
        let found = client.query_typed_one(sql, &[]).await.map_err(translate)?;
        let (count, highest): (i64, Option<i64>) = (rows::get(&found, 0)?, rows::get(&found, 2)?);
        if rows::unsigned(count)? != head.end.position.0 {
            let expected = head.end.position.0;
            return Err(corrupt(format!("{schema}.ledger has {count} records; its head says {expected}")));
        }
        if highest.map(rows::counter).transpose()? != head.highest {
            return Err(corrupt(format!("{schema}.head does not know the highest serial of the ledger")));
        }
        check_documents(client).await?;
        client.batch_execute("COMMIT").await.map_err(translate)
    }
}

async fn check_documents(client: &tokio_postgres::Client) -> Result<(), StoreError> {
    let sql = format!("{DOCUMENT} WHERE (kind, id) > ($1, $2) ORDER BY kind, id LIMIT $3");
    let (mut kind, mut id) = (String::new(), Vec::<u8>::new());
    let limit = at_most(WALK_PAGE);
    loop {
        let asked: [Parameter<'_>; 3] = [(&kind, Type::TEXT), (&id, Type::BYTEA), (&limit, Type::INT8)];
        let page = client.query_typed(&sql, &asked).await.map_err(translate)?;
        page.iter().try_for_each(|row| rows::document(row).map(drop))?;
        let Some(last) = page.last() else { return Ok(()) };
        (kind, id) = (rows::get(last, 0)?, rows::get(last, 1)?);
    }
}

/// `LIMIT` as PostgreSQL wants it. Memory is taken by what is found, not by what is asked.
fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
