//! The writer: one thread, one connection, and one durable write for everything that waits.
//!
//! Laws: requests are served in the order in which they came; each sees what those before it in the batch did; one
//! that cannot be applied changes nothing and hurts nobody else. Everything that depends on what is stored is checked
//! before the first change of a transaction, so a statement that fails afterwards is the disk's fault, and the whole
//! batch fails with it. Nobody is answered before the commit is on disk. After a failure the state is read again
//! from the database, for it may have happened or not.
//! Not here: reads, and how a caller lives with an unknown outcome.
//! Sources: ca/docs/performance.md (a batch, not a timer).

use std::sync::Arc;

use rhizome_core::documents::{Transaction, Version, Write};
use rhizome_core::ledger::Entry;
use rhizome_core::ports::StoreError;
use rhizome_id::Timestamp;
use rusqlite::Connection;
use tokio::sync::mpsc;

use super::error::translate;
use super::rows::{self, State};
use crate::answers::{Answers, Outcome};
use crate::requests::{Counts, Request, Work, gather};
use crate::rules;

pub(super) struct Writer {
    connection: Connection,
    /// `None` after a failure: to be read again.
    state: Option<State>,
    counts: Arc<Counts>,
}

impl Writer {
    pub(super) const fn new(connection: Connection, state: State, counts: Arc<Counts>) -> Self {
        Self { connection, state: Some(state), counts }
    }

    /// Serves until every sender is gone and the queue is empty.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            // On a busy machine, let whoever is about to ask do so: each durable write then carries more. On an idle
            // one this returns at once.
            std::thread::yield_now();
            let batch = gather(first, &mut requests);
            self.serve(batch);
        }
    }

    fn serve(&mut self, batch: Vec<Request>) {
        self.counts.begun(&batch);
        let mut answers = Answers::default();
        match self.write(&batch) {
            Ok(outcomes) => {
                for (request, outcome) in batch.into_iter().zip(outcomes) {
                    answers.add(request, outcome);
                }
            }
            Err(error) => {
                self.counts.failed();
                tracing::error!(%error, requests = batch.len(), "a durable write failed");
                self.abandon();
                for request in batch {
                    answers.add(request, Outcome::Refused(error.clone()));
                }
            }
        }
        answers.send();
    }

    /// Applies what can be applied in one SQL transaction. `Err`: none of it, or its fate is unknown.
    fn write(&mut self, batch: &[Request]) -> Result<Vec<Outcome>, StoreError> {
        execute(&self.connection, "BEGIN IMMEDIATE")?;
        let before = match self.state {
            Some(state) => state,
            None => rows::state(&self.connection)?,
        };
        let mut state = before;
        let mut outcomes = Vec::with_capacity(batch.len());
        for request in batch {
            outcomes.push(match &request.work {
                Work::Commit(transaction) => apply(&self.connection, &mut state, transaction)?,
                Work::Reserve { count, now } => reserve(&self.connection, &state, *count, *now)?,
            });
        }
        if state != before {
            rows::put_state(&self.connection, &state)?;
        }
        execute(&self.connection, "COMMIT")?;
        self.state = Some(state);
        Ok(outcomes)
    }

    fn abandon(&mut self) {
        self.state = None;
        // SQLite rolls back by itself after most errors of the disk.
        if !self.connection.is_autocommit()
            && let Err(cause) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%cause, "a failed write could not be rolled back");
        }
    }
}

/// `Err` only when a statement failed, and with it the batch.
fn apply(
    connection: &Connection,
    state: &mut State,
    transaction: &Transaction,
) -> Result<Outcome, StoreError> {
    for requirement in &transaction.requirements {
        if !requirement.holds(rows::version_of(connection, requirement.key())?) {
            return Ok(Outcome::Refused(StoreError::Conflict { key: requirement.key().clone() }));
        }
    }
    for counter in transaction.entries.iter().filter_map(Entry::counter) {
        // Counters nearly ascend: most need no look into the index.
        if state.highest.is_some_and(|highest| counter <= highest) && rows::is_recorded(connection, counter)?
        {
            return Ok(Outcome::Refused(rules::used_serial(counter)));
        }
    }
    let mut after = *state;
    if !transaction.writes.is_empty() {
        after.version = Version(state.version.0.saturating_add(1));
    }
    for write in &transaction.writes {
        match write {
            Write::Put(key, body) => rows::put_document(connection, key, after.version, body)?,
            Write::Delete(key) => rows::delete_document(connection, key)?,
        }
    }
    let mut records = Vec::with_capacity(transaction.entries.len());
    for entry in &transaction.entries {
        let record = after.head.link(entry);
        rows::put_record(connection, &record)?;
        after.head = record.head();
        records.push(record);
    }
    after.highest = rules::highest(after.highest, &records);
    *state = after;
    Ok(Outcome::Applied { version: after.version, records })
}

fn reserve(
    connection: &Connection,
    state: &State,
    count: u32,
    now: Timestamp,
) -> Result<Outcome, StoreError> {
    match rules::reserve(rows::next_serial(connection)?, state.highest, count, now) {
        Ok(block) => {
            rows::put_next_serial(connection, block.next)?;
            Ok(Outcome::Reserved(block.first))
        }
        Err(refused) => Ok(Outcome::Refused(refused)),
    }
}

fn execute(connection: &Connection, sql: &str) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(translate)?;
    statement.execute([]).map(|_rows| ()).map_err(translate)
}
