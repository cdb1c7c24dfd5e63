//! A store in memory: for tests, simulations and `rhizome dev --ephemeral`.
//!
//! Laws: the same semantics as every other backend, proved by the conformance suite; a clone is the same store, so
//! "reopening" it keeps what was committed. Not here: durability. [`Store::backup`] is refused: there is no file
//! format for what nobody keeps.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rhizome_core::changes::{Changed, Changes};
use rhizome_core::documents::{Document, DocumentKey, Kind, Transaction, Version, Write};
use rhizome_core::ledger::{Entry, Head, Position, Receipt, Record};
use rhizome_core::ports::{Committed, Store, StoreError};
use rhizome_id::{SerialCounter, Timestamp};
use tokio::sync::watch;

use crate::limits::RETRY_AFTER;
use crate::rules;

/// A store in memory. Clones share their content.
#[derive(Debug)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    /// The newest version, for whoever waits.
    versions: Arc<watch::Sender<u64>>,
    shared: bool,
}

impl Clone for MemoryStore {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), versions: Arc::clone(&self.versions), shared: self.shared }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        let (versions, _) = watch::channel(0);
        Self { state: Arc::default(), versions: Arc::new(versions), shared: false }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store whose clones are for several servers at once.
    pub fn shared() -> Self {
        Self { shared: true, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code below panics between its first and last change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct State {
    documents: BTreeMap<DocumentKey, (Version, Arc<str>)>,
    tombstones: BTreeMap<DocumentKey, Version>,
    version: u64,
    records: Vec<Record>,
    by_counter: BTreeMap<SerialCounter, usize>,
    next_serial: u64,
}

impl State {
    fn head(&self) -> Head {
        self.records.last().map_or(Head::EMPTY, Record::head)
    }

    fn document(&self, key: &DocumentKey) -> Option<Document> {
        let (version, body) = self.documents.get(key)?;
        Some(Document { key: key.clone(), version: *version, body: Arc::clone(body) })
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<Committed, StoreError> {
        let version_of = |key| self.documents.get(key).map(|(version, _)| *version);
        if let Some(failed) = transaction.requirements.iter().find(|r| !r.holds(version_of(r.key()))) {
            return Err(StoreError::Conflict { key: failed.key().clone() });
        }
        let mut counters = transaction.entries.iter().filter_map(Entry::counter);
        if let Some(twice) = counters.find(|counter| self.by_counter.contains_key(counter)) {
            return Err(rules::used_serial(twice));
        }
        // Nothing below fails.
        self.version = self.version.saturating_add(u64::from(!transaction.writes.is_empty()));
        let version = Version(self.version);
        for write in &transaction.writes {
            match write {
                Write::Put(key, body) => {
                    self.tombstones.remove(key);
                    self.documents.insert(key.clone(), (version, Arc::clone(body)));
                }
                Write::Delete(key) => {
                    if self.documents.remove(key).is_some() {
                        self.tombstones.insert(key.clone(), version);
                    }
                }
            }
        }
        let mut receipts = Vec::with_capacity(transaction.entries.len());
        for entry in &transaction.entries {
            let record = self.head().link(entry);
            receipts.push(Receipt::assertion(&record));
            if let Some(counter) = record.counter {
                self.by_counter.insert(counter, self.records.len());
            }
            self.records.push(record);
        }
        Ok(Committed { version, receipts })
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        rules::check(&transaction)?;
        let committed = self.state().apply(&transaction)?;
        self.versions.send_if_modified(|newest| {
            let newer = committed.version.0 > *newest;
            *newest = committed.version.0.max(*newest);
            newer
        });
        Ok(committed)
    }

    async fn document(&self, key: &DocumentKey) -> Result<Option<Document>, StoreError> {
        Ok(self.state().document(key))
    }

    async fn documents(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        let state = self.state();
        let from = Bound::Excluded(DocumentKey::new(kind, after.unwrap_or_default()));
        let of_kind = state.documents.range((from, Bound::Unbounded)).take_while(|(key, _)| key.kind == kind);
        let page = of_kind.take(limit).map(|(key, (version, body))| Document {
            key: key.clone(),
            version: *version,
            body: Arc::clone(body),
        });
        Ok(page.collect())
    }

    async fn records(&self, from: Position, limit: usize) -> Result<Vec<Record>, StoreError> {
        let skipped = usize::try_from(from.0.saturating_sub(1)).unwrap_or(usize::MAX);
        Ok(self.state().records.iter().skip(skipped).take(limit).cloned().collect())
    }

    async fn record_of_serial(&self, counter: SerialCounter) -> Result<Option<Record>, StoreError> {
        let state = self.state();
        Ok(state.by_counter.get(&counter).and_then(|index| state.records.get(*index)).cloned())
    }

    async fn head(&self) -> Result<Head, StoreError> {
        Ok(self.state().head())
    }

    async fn reserve_serials(&self, count: u32, now: Timestamp) -> Result<SerialCounter, StoreError> {
        let mut state = self.state();
        let highest = state.by_counter.keys().next_back().copied();
        let block = rules::reserve(state.next_serial, highest, count, now)?;
        state.next_serial = block.next;
        Ok(block.first)
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    async fn newest_version(&self) -> Result<Version, StoreError> {
        Ok(Version(self.state().version))
    }

    async fn changes(&self, since: Version, limit: usize) -> Result<Changes, StoreError> {
        let state = self.state();
        if !self.shared {
            return Ok(Changes::These { changed: Vec::new(), through: since, more: false });
        }
        if since.0 > state.version {
            return Ok(Changes::Forgotten);
        }
        let written = state.documents.iter().map(|(key, (version, body))| (key, *version, Some(body)));
        let deleted = state.tombstones.iter().map(|(key, version)| (key, *version, None));
        let mut changed: Vec<Changed> = written
            .chain(deleted)
            .filter(|(_, version, _)| *version > since)
            .map(|(key, version, body)| Changed { key: key.clone(), version, body: body.cloned() })
            .collect();
        changed.sort_by(|a, b| (a.version, &a.key).cmp(&(b.version, &b.key)));
        let cut = changed.get(limit.saturating_sub(1)).map(|it| it.version);
        let kept = cut.map_or(changed.len(), |version| changed.partition_point(|it| it.version <= version));
        let more = kept < changed.len();
        changed.truncate(kept);
        let through = changed.last().filter(|_| more).map_or(Version(state.version), |it| it.version);
        Ok(Changes::These { changed, through, more })
    }

    async fn wait_for_change(&self, known: Version) {
        // The sender lives as long as this.
        let _gone = self.versions.subscribe().wait_for(|newest| *newest > known.0).await.map(drop);
    }

    /// Always refused with [`StoreError::Unavailable`]: what lives in memory has no copy.
    async fn backup(&self, _to: &Path) -> Result<(), StoreError> {
        let cause = "a store in memory cannot be backed up".to_owned();
        Err(StoreError::Unavailable { cause, retry_after: RETRY_AFTER })
    }

    async fn check_integrity(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
