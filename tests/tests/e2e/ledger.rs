//! The ledger of a stopped server, read from its store: what was promised to callers must stand there.
//!
//! Not here: the chain itself (`rhizome_core::ledger`), which is verified with the product's own walk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rhizome_core::ledger::{Event, Head, Issuance, Position};
use rhizome_core::ports::Store;
use rhizome_id::{Digest, SerialCounter};
use rhizome_server::SystemEntropy;
use rhizome_store::{Options, PostgresOptions, PostgresStore, SqliteStore, verify_ledger};

use crate::client::Seen;

/// A whole ledger whose chain verifies.
pub(crate) struct Ledger {
    pub(crate) head: Head,
    pub(crate) issued: BTreeMap<SerialCounter, Issuance>,
    /// Serial counters that stand in more than one issuance.
    pub(crate) doubled: Vec<SerialCounter>,
    hashes: Vec<Digest>,
}

impl Ledger {
    /// Reads the database of a server that has stopped, and verifies its pages and its chain.
    pub(crate) fn read(database: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = SqliteStore::open(database, Options::default()).unwrap();
            store.check_integrity().await.unwrap();
            Self::of(&store).await
        })
    }

    /// The same of a database in PostgreSQL, at this address.
    pub(crate) fn read_postgres(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = PostgresOptions::new(address, Arc::new(SystemEntropy::default())).unwrap();
            let opening = tokio::task::spawn_blocking(move || PostgresStore::open(options));
            let store = opening.await.unwrap().unwrap();
            store.check_integrity().await.unwrap();
            Self::of(&store).await
        })
    }

    async fn of(store: &impl Store) -> Self {
        let head = verify_ledger(store).await.unwrap();
        let mut ledger = Self { head, issued: BTreeMap::new(), doubled: Vec::new(), hashes: Vec::new() };
        loop {
            let from = Position(u64::try_from(ledger.hashes.len()).unwrap() + 1);
            let page = store.records(from, 1_000).await.unwrap();
            if page.is_empty() {
                return ledger;
            }
            for record in page {
                ledger.hashes.push(record.hash);
                let (_, event) = record.read().unwrap();
                if let Event::Issued(issuance) = event {
                    let counter = issuance.serial.counter();
                    if ledger.issued.insert(counter, issuance).is_some() {
                        ledger.doubled.push(counter);
                    }
                }
            }
        }
    }

    /// Those of `seen` that do not stand in it exactly as they were seen.
    pub(crate) fn lost<'a>(&self, seen: impl IntoIterator<Item = &'a Seen>) -> Vec<Seen> {
        let stands = |it: &Seen| {
            let issuance = self.issued.get(&it.serial.counter());
            issuance.is_some_and(|issuance| issuance.serial == it.serial && issuance.tbs == it.tbs)
        };
        seen.into_iter().filter(|it| !stands(it)).copied().collect()
    }

    /// Whether this chain goes on from a head that was seen earlier.
    pub(crate) fn contains(&self, head: Head) -> bool {
        let at = usize::try_from(head.position.0).unwrap();
        at == 0 || self.hashes.get(at - 1) == Some(&head.hash)
    }
}
