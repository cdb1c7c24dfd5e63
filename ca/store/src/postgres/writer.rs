//! The writer: one task, one session, and one transaction for everything that waits.
//!
//! Laws: every transaction that writes locks the head row first, so that many servers write one chain, one count of
//! versions and one count of serials, and none ever acts on what another has changed; two round trips make a batch,
//! the second with the commit in it. Nobody is answered before the commit is durable. When the answer to a commit is
//! lost, the next session waits for that transaction to end (its lock says so) and looks whether it happened; only
//! when it cannot look either is the outcome unknown. What surely did not happen is tried once more.
//! Not here: what becomes of a request (`batch`), how a caller lives with an unknown outcome.
//! Sources: ca/docs/performance.md (a batch, not a timer); postgresql.org/docs/15/transaction-iso.html §13.2.1.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{OptionFuture, join4, join5, try_join_all};
use rhizome_core::documents::{DocumentKey, Version};
use rhizome_core::ports::StoreError;
use tokio::sync::mpsc;
use tokio::task;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row, Statement};

use super::batch::{self, Head, Known, Plan};
use super::error::{corrupt, translate, unavailable};
use super::link::{Link, Session};
use super::rows::{self, signed};
use super::schema;
use crate::answers::{Answers, Outcome};
use crate::limits::{SESSION_TIMEOUT, STATEMENT_PATIENCE};
use crate::requests::{Counts, Request, gather};
use crate::rules::{bug, checksum};

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

const STATEMENTS: [&str; 7] = [
    "SELECT position, hash, version, next_serial, highest, floor FROM head WHERE one = 1 FOR UPDATE",
    "SELECT d.kind, d.id, d.version FROM documents d \
     JOIN unnest($1::text[], $2::bytea[]) AS asked (kind, id) ON d.kind = asked.kind AND d.id = asked.id \
     WHERE d.body IS NOT NULL",
    "SELECT counter FROM ledger WHERE counter = ANY ($1::int8[])",
    "INSERT INTO documents (kind, id, version, body, checksum) \
     SELECT * FROM unnest($1::text[], $2::bytea[], $3::int8[], $4::text[], $5::bytea[]) \
     ON CONFLICT (kind, id) DO UPDATE \
     SET version = excluded.version, body = excluded.body, checksum = excluded.checksum",
    "INSERT INTO ledger (position, previous, hash, counter, body) \
     SELECT * FROM unnest($1::int8[], $2::bytea[], $3::bytea[], $4::int8[], $5::text[])",
    "UPDATE head SET position = $1, hash = $2, version = $3, next_serial = $4, highest = $5 WHERE one = 1",
    "SELECT pg_notify($1, '')",
];

/// A session with everything prepared.
#[derive(Debug)]
struct Prepared {
    session: Session,
    head: Statement,
    versions: Statement,
    recorded: Statement,
    put_documents: Statement,
    put_records: Statement,
    put_head: Statement,
    notify: Statement,
}

pub(super) struct Writer {
    link: Arc<Link>,
    prepared: Option<Prepared>,
    counts: Arc<Counts>,
}

/// Why a batch was not answered.
enum Fault {
    /// Nothing happened. Whether another try may succeed.
    Nothing(StoreError, bool),
    /// The ledger's index refused a serial; nothing happened.
    UsedSerial,
    /// The answer to the commit was lost.
    Unknown(StoreError, Box<Plan>),
}

/// What became of a transaction whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It was committed.
    Happened,
    /// It was not, and never will be.
    Nothing,
    /// It has ended, and nobody can tell how; whoever reads now sees how.
    Ended,
    /// It may not have ended.
    Open,
}

impl Writer {
    pub(super) const fn new(link: Arc<Link>, counts: Arc<Counts>) -> Self {
        Self { link, prepared: None, counts }
    }

    /// Serves until every sender is gone and the queue is empty.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.recv().await {
            // Let whoever is about to ask do so: each durable write then carries more.
            task::yield_now().await;
            let batch = gather(first, &mut requests);
            self.serve(batch).await;
        }
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        self.counts.begun(&batch);
        let mut answers = Answers::default();
        match self.write(&batch).await {
            Ok(outcomes) => {
                for (request, outcome) in batch.into_iter().zip(outcomes) {
                    answers.add(request, outcome);
                }
            }
            Err(error) => {
                self.counts.failed();
                tracing::error!(%error, requests = batch.len(), "a durable write failed");
                for request in batch {
                    answers.add(request, Outcome::Refused(error.clone()));
                }
            }
        }
        answers.send();
    }

    /// Applies what can be applied in one SQL transaction. `Err`: none of it, or its fate is unknown.
    async fn write(&mut self, batch: &[Request]) -> Result<Vec<Outcome>, StoreError> {
        let (mut again, mut careful) = (true, false);
        loop {
            let link = Arc::clone(&self.link);
            let attempt = self.prepared().await?.attempt(&link, batch, careful);
            let Ok(outcome) = timeout(STATEMENT_PATIENCE, attempt).await else {
                self.prepared = None;
                link.unsettle();
                return Err(unavailable("the database did not answer in time".to_owned()));
            };
            match outcome {
                Ok(plan) => return Ok(plan.outcomes),
                Err(Fault::UsedSerial) if !careful => careful = true,
                Err(Fault::UsedSerial) => return Err(bug("a serial is in the ledger and is not".to_owned())),
                Err(Fault::Nothing(error, may)) => {
                    self.prepared = None;
                    if !(may && again) {
                        return Err(error);
                    }
                    again = false;
                }
                Err(Fault::Unknown(error, plan)) => {
                    self.prepared = None;
                    match self.find_out(&plan).await {
                        Fate::Happened => return Ok(plan.outcomes),
                        Fate::Nothing if again => again = false,
                        Fate::Nothing | Fate::Ended => return Err(unknown(&error)),
                        Fate::Open => {
                            link.unsettle();
                            return Err(unknown(&error));
                        }
                    }
                }
            }
        }
    }

    async fn prepared(&mut self) -> Result<&Prepared, StoreError> {
        if self.prepared.as_ref().is_some_and(|it| it.session.client.is_closed()) {
            self.prepared = None;
        }
        match &mut self.prepared {
            Some(prepared) => Ok(prepared),
            none => {
                let session = self.link.open().await?;
                let preparing = timeout(SESSION_TIMEOUT, Prepared::of(session)).await;
                let late = || Err(unavailable("no answer from the database".to_owned()));
                Ok(none.insert(preparing.unwrap_or_else(|_late| late())?))
            }
        }
    }

    /// What became of the transaction of `plan`.
    async fn find_out(&mut self, plan: &Plan) -> Fate {
        let fate = match self.prepared().await {
            Ok(prepared) => match timeout(STATEMENT_PATIENCE, prepared.fate_of(plan)).await {
                Ok(Ok(fate)) => fate,
                Ok(Err(_)) | Err(_) => Fate::Open,
            },
            Err(_away) => Fate::Open,
        };
        tracing::warn!(?fate, "the answer to a commit was lost; the database was asked what became of it");
        if fate == Fate::Open {
            self.prepared = None;
        }
        fate
    }
}

impl Prepared {
    async fn of(session: Session) -> Result<Self, StoreError> {
        let preparing = STATEMENTS.iter().map(|sql| session.client.prepare(sql));
        let statements = try_join_all(preparing).await.map_err(translate)?;
        let [head, versions, recorded, put_documents, put_records, put_head, notify] =
            <[Statement; 7]>::try_from(statements)
                .map_err(|_count| bug("statements were lost".to_owned()))?;
        Ok(Self { session, head, versions, recorded, put_documents, put_records, put_head, notify })
    }

    async fn attempt(&self, link: &Link, batch: &[Request], careful: bool) -> Result<Box<Plan>, Fault> {
        let (before, known) =
            self.look(batch, careful).await.map_err(|error| Fault::Nothing(error, self.is_lost()))?;
        // The lock is ours: whatever was on its way has ended.
        link.settle();
        let plan = Box::new(batch::plan(before, known, batch));
        if plan.after == before && plan.written.is_empty() {
            // Everything was refused, or asked for nothing.
            let rolled_back = self.session.client.batch_execute("ROLLBACK").await;
            rolled_back.map_err(|error| Fault::Nothing(translate(error), true))?;
            return Ok(plan);
        }
        self.put(link, plan).await
    }

    fn is_lost(&self) -> bool {
        self.session.client.is_closed()
    }

    /// The first round trip: begins, locks, and reads what the batch depends on.
    async fn look(&self, batch: &[Request], careful: bool) -> Result<(Head, Known), StoreError> {
        let client = &self.session.client;
        let keys = batch::keys(batch);
        let (kinds, ids): (Vec<_>, Vec<_>) =
            keys.iter().map(|key| (key.kind.as_str(), key.id.as_bytes())).unzip();
        let counters: Result<Vec<i64>, _> = batch::counters(batch).map(|it| signed(it.value())).collect();
        let counters = counters?;
        let asked: [&(dyn ToSql + Sync); 2] = [&kinds, &ids];
        let numbers: [&(dyn ToSql + Sync); 1] = [&counters];
        // Polled in this order, so sent in this order; each sees what was committed before the lock was had.
        let (begun, head, versions, recorded) = join4(
            client.batch_execute(BEGIN),
            client.query(&self.head, &[]),
            OptionFuture::from((!keys.is_empty()).then(|| client.query(&self.versions, &asked))),
            OptionFuture::from(careful.then(|| client.query(&self.recorded, &numbers))),
        )
        .await;
        begun.map_err(translate)?;
        let found = head.map_err(translate)?;
        let head = rows::head(&found)?;
        for row in &found {
            schema::check_floor(rows::get(row, 5)?)?;
        }
        let mut known = Known::default();
        if let Some(found) = versions {
            known.versions = versions_of(&found.map_err(translate)?)?;
        }
        if let Some(found) = recorded {
            let found = found.map_err(translate)?;
            let counters = found.iter().map(|row| rows::counter(rows::get(row, 0)?));
            known.recorded = Some(counters.collect::<Result<_, _>>()?);
        }
        Ok((head, known))
    }

    /// The second round trip: writes and commits.
    async fn put(&self, link: &Link, plan: Box<Plan>) -> Result<Box<Plan>, Fault> {
        let columns = Columns::of(&plan).map_err(|error| Fault::Nothing(error, false))?;
        let client = &self.session.client;
        let channel = link.channel();
        let (documents, records, head) = (columns.documents(), columns.records(), columns.head());
        let notify: [&(dyn ToSql + Sync); 1] = [&channel];
        let has_documents = !columns.kinds.is_empty();
        let has_records = !columns.positions.is_empty();
        let (wrote, appended, moved, notified, committed) = join5(
            OptionFuture::from(has_documents.then(|| client.execute(&self.put_documents, &documents))),
            OptionFuture::from(has_records.then(|| client.execute(&self.put_records, &records))),
            client.execute(&self.put_head, &head),
            OptionFuture::from(has_documents.then(|| client.execute(&self.notify, &notify))),
            client.batch_execute("COMMIT"),
        )
        .await;
        if let Err(lost) = committed {
            return Err(Fault::Unknown(translate(lost), plan));
        }
        // The commit was answered. Had a statement failed before it, it has rolled everything back.
        let is_there = matches!(moved, Ok(1));
        // In their order: the first to fail says why, those after it only that one did.
        let outcomes = [wrote, appended, Some(moved), notified].into_iter().flatten();
        if let Some(error) = outcomes.filter_map(Result::err).next() {
            return Err(self.refused(error));
        }
        if is_there { Ok(plan) } else { Err(Fault::Nothing(missing(), false)) }
    }

    fn refused(&self, error: Error) -> Fault {
        let index = error.as_db_error().and_then(|said| said.constraint());
        if index == Some("ledger_by_counter") {
            return Fault::UsedSerial;
        }
        Fault::Nothing(translate(error), self.is_lost())
    }

    /// What became of the transaction of `plan`. The lock of the head row is had only when it has ended.
    async fn fate_of(&self, plan: &Plan) -> Result<Fate, StoreError> {
        let client = &self.session.client;
        client.batch_execute(BEGIN).await.map_err(translate)?;
        let head = rows::head(&client.query(&self.head, &[]).await.map_err(translate)?)?;
        let answer = if plan.records().next().is_some() {
            let position = signed(plan.after.end.position.0)?;
            let sql = "SELECT hash FROM ledger WHERE position = $1";
            let found = client.query_typed(sql, &[(&position, Type::INT8)]).await.map_err(translate)?;
            let hash: Option<&[u8]> = found.first().map(|row| rows::get(row, 0)).transpose()?;
            let ours = hash == Some(plan.after.end.hash.as_bytes().as_slice());
            if ours { Fate::Happened } else { Fate::Nothing }
        } else if head.version < plan.after.version {
            Fate::Nothing
        } else {
            Fate::Ended
        };
        client.batch_execute("COMMIT").await.map_err(translate)?;
        Ok(answer)
    }
}

/// Whoever is told anything else may take it that nothing happened.
fn unknown(error: &StoreError) -> StoreError {
    if matches!(error, StoreError::Unavailable { .. }) {
        error.clone()
    } else {
        unavailable(error.to_string())
    }
}

fn missing() -> StoreError {
    corrupt("the stored head is missing".to_owned())
}

fn versions_of(found: &[Row]) -> Result<BTreeMap<DocumentKey, Version>, StoreError> {
    let mut versions = BTreeMap::new();
    for row in found {
        versions.extend(rows::version(row)?);
    }
    Ok(versions)
}

/// What a plan writes, column by column, as `unnest` wants it.
struct Columns<'p> {
    kinds: Vec<&'p str>,
    ids: Vec<&'p [u8]>,
    versions: Vec<i64>,
    bodies: Vec<Option<&'p str>>,
    checksums: Vec<Vec<u8>>,
    positions: Vec<i64>,
    previous: Vec<&'p [u8]>,
    hashes: Vec<&'p [u8]>,
    counters: Vec<Option<i64>>,
    records: Vec<&'p str>,
    position: i64,
    hash: &'p [u8],
    version: i64,
    next_serial: i64,
    highest: Option<i64>,
}

impl<'p> Columns<'p> {
    fn of(plan: &'p Plan) -> Result<Self, StoreError> {
        let after = &plan.after;
        let mut columns = Self {
            kinds: Vec::new(),
            ids: Vec::new(),
            versions: Vec::new(),
            bodies: Vec::new(),
            checksums: Vec::new(),
            positions: Vec::new(),
            previous: Vec::new(),
            hashes: Vec::new(),
            counters: Vec::new(),
            records: Vec::new(),
            position: signed(after.end.position.0)?,
            hash: after.end.hash.as_bytes(),
            version: signed(after.version.0)?,
            next_serial: signed(after.next_serial)?,
            highest: after.highest.map(|it| signed(it.value())).transpose()?,
        };
        for (key, (version, body)) in &plan.written {
            let kind = key.kind.as_str();
            columns.kinds.push(kind);
            columns.ids.push(key.id.as_bytes());
            columns.versions.push(signed(version.0)?);
            columns.bodies.push(body.as_deref());
            let checksum = checksum(kind, &key.id, *version, body.as_deref().unwrap_or_default());
            columns.checksums.push(checksum.as_bytes().to_vec());
        }
        for record in plan.records() {
            columns.positions.push(signed(record.position.0)?);
            columns.previous.push(record.previous.as_bytes());
            columns.hashes.push(record.hash.as_bytes());
            columns.counters.push(record.counter.map(|it| signed(it.value())).transpose()?);
            columns.records.push(&record.body);
        }
        Ok(columns)
    }

    fn documents(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.kinds, &self.ids, &self.versions, &self.bodies, &self.checksums]
    }

    fn records(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.positions, &self.previous, &self.hashes, &self.counters, &self.records]
    }

    fn head(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.position, &self.hash, &self.version, &self.next_serial, &self.highest]
    }
}
