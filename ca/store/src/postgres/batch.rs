//! A batch: what becomes of many requests that are written in one transaction.
//!
//! Laws: a function of its arguments; the caller holds the lock of the head row, so nothing it was told changes before
//! it commits. Requests are served in their order and each sees what those before it did; one that cannot be applied
//! changes nothing and hurts nobody else. The last write of a document wins.
//! Not here: SQL (`writer`, `rows`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhizome_core::documents::{DocumentKey, Requirement, Transaction, Version, Write};
use rhizome_core::ledger::{self, Entry, Record};
use rhizome_core::ports::StoreError;
use rhizome_id::{SerialCounter, Timestamp};

use crate::answers::Outcome;
use crate::requests::{Request, Work};
use crate::rules;

/// The head row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) end: ledger::Head,
    pub(super) version: Version,
    pub(super) next_serial: u64,
    pub(super) highest: Option<SerialCounter>,
}

/// What is stored about that which a batch speaks of.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Documents that exist, of those the batch asked for.
    pub(super) versions: BTreeMap<DocumentKey, Version>,
    /// Counters of the batch that the ledger has already; `None` when nobody looked, and the ledger's own index is
    /// relied on.
    pub(super) recorded: Option<BTreeSet<SerialCounter>>,
}

/// A document as a batch leaves it; a body of `None` is a tombstone.
pub(super) type Written = BTreeMap<DocumentKey, (Version, Option<Arc<str>>)>;

/// What is to be written, and what everybody is told once it is durable.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) after: Head,
    pub(super) written: Written,
    pub(super) outcomes: Vec<Outcome>,
}

impl Plan {
    /// Records to append, in their order.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.outcomes.iter().flat_map(|outcome| match outcome {
            Outcome::Applied { records, .. } => records.as_slice(),
            Outcome::Reserved(_) | Outcome::Refused(_) => &[],
        })
    }
}

/// Documents whose version the batch depends on.
pub(super) fn keys(batch: &[Request]) -> BTreeSet<&DocumentKey> {
    let transactions = batch.iter().filter_map(transaction);
    let keys = transactions.flat_map(|transaction| {
        let deleted = transaction.writes.iter().filter(|write| matches!(write, Write::Delete(_)));
        transaction.requirements.iter().map(Requirement::key).chain(deleted.map(Write::key))
    });
    keys.collect()
}

/// Counters the batch would record.
pub(super) fn counters(batch: &[Request]) -> impl Iterator<Item = SerialCounter> {
    batch.iter().filter_map(transaction).flat_map(|it| it.entries.iter().filter_map(Entry::counter))
}

const fn transaction(request: &Request) -> Option<&Transaction> {
    match &request.work {
        Work::Commit(transaction) => Some(transaction),
        Work::Reserve { .. } => None,
    }
}

/// Decides what becomes of every request of the batch.
pub(super) fn plan(before: Head, known: Known, batch: &[Request]) -> Plan {
    let mut planning = Planning { after: before, known, written: Written::new() };
    let outcomes = batch.iter().map(|request| match &request.work {
        Work::Commit(transaction) => planning.apply(transaction),
        Work::Reserve { count, now } => planning.reserve(*count, *now),
    });
    let outcomes = outcomes.collect();
    Plan { after: planning.after, written: planning.written, outcomes }
}

struct Planning {
    after: Head,
    known: Known,
    written: Written,
}

impl Planning {
    fn version_of(&self, key: &DocumentKey) -> Option<Version> {
        match self.written.get(key) {
            Some((version, Some(_))) => Some(*version),
            Some((_, None)) => None,
            None => self.known.versions.get(key).copied(),
        }
    }

    fn apply(&mut self, transaction: &Transaction) -> Outcome {
        let failed = transaction.requirements.iter().find(|it| !it.holds(self.version_of(it.key())));
        if let Some(failed) = failed {
            return Outcome::Refused(StoreError::Conflict { key: failed.key().clone() });
        }
        if let Some(recorded) = &mut self.known.recorded {
            let counters = transaction.entries.iter().filter_map(Entry::counter);
            if let Some(twice) = counters.clone().find(|counter| recorded.contains(counter)) {
                return Outcome::Refused(rules::used_serial(twice));
            }
            recorded.extend(counters);
        }
        if !transaction.writes.is_empty() {
            self.after.version = Version(self.after.version.0.saturating_add(1));
        }
        for write in &transaction.writes {
            self.write(write);
        }
        let mut records = Vec::with_capacity(transaction.entries.len());
        for entry in &transaction.entries {
            let record = self.after.end.link(entry);
            self.after.end = record.head();
            records.push(record);
        }
        self.after.highest = rules::highest(self.after.highest, &records);
        Outcome::Applied { version: self.after.version, records }
    }

    fn write(&mut self, write: &Write) {
        let version = self.after.version;
        match write {
            Write::Put(key, body) => {
                self.written.insert(key.clone(), (version, Some(Arc::clone(body))));
            }
            // What was never there leaves no tombstone.
            Write::Delete(key) if self.version_of(key).is_none() => {}
            Write::Delete(key) => {
                self.written.insert(key.clone(), (version, None));
            }
        }
    }

    fn reserve(&mut self, count: u32, now: Timestamp) -> Outcome {
        match rules::reserve(self.after.next_serial, self.after.highest, count, now) {
            Ok(block) => {
                self.after.next_serial = block.next;
                Outcome::Reserved(block.first)
            }
            Err(refused) => Outcome::Refused(refused),
        }
    }
}
