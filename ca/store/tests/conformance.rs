//! Every backend keeps every promise.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

use rhizome_store::conformance::{Backend, suite};
use rhizome_store::{FaultyStore, MemoryStore, Options, SqliteStore};
use tempfile::TempDir;

struct Memory;

impl Backend for Memory {
    type Place = MemoryStore;
    type Store = MemoryStore;

    fn place(&self) -> MemoryStore {
        MemoryStore::new()
    }

    fn open(&self, place: &MemoryStore) -> MemoryStore {
        place.clone()
    }
}

struct Sqlite;

impl Backend for Sqlite {
    type Place = TempDir;
    type Store = SqliteStore;

    fn place(&self) -> TempDir {
        tempfile::tempdir().unwrap()
    }

    fn open(&self, place: &TempDir) -> SqliteStore {
        SqliteStore::open(&place.path().join("rhizome.db"), Options::default()).unwrap()
    }
}

struct Harmless;

impl Backend for Harmless {
    type Place = MemoryStore;
    type Store = FaultyStore<MemoryStore>;

    fn place(&self) -> MemoryStore {
        MemoryStore::new()
    }

    fn open(&self, place: &MemoryStore) -> FaultyStore<MemoryStore> {
        FaultyStore::new(place.clone())
    }
}

struct Shared;

impl Backend for Shared {
    type Place = MemoryStore;
    type Store = MemoryStore;

    fn place(&self) -> MemoryStore {
        MemoryStore::shared()
    }

    fn open(&self, place: &MemoryStore) -> MemoryStore {
        place.clone()
    }
}

#[tokio::test]
async fn the_memory_store_conforms() {
    suite(Memory).await;
    suite(Shared).await;
}

#[tokio::test]
async fn the_sqlite_store_conforms_on_one_thread() {
    suite(Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_sqlite_store_conforms_on_many_threads() {
    suite(Sqlite).await;
}

#[tokio::test]
async fn a_faulty_store_without_faults_conforms() {
    suite(Harmless).await;
}
