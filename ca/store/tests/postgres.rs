//! PostgreSQL keeps every promise, and what happens when it is away, is shared, or is damaged.

#![cfg(feature = "testing")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking, their helpers too"
)]

#[path = "postgres/faults.rs"]
mod faults;
#[path = "postgres/sharing.rs"]
mod sharing;
#[path = "postgres/support.rs"]
mod support;

use rhizome_store::PostgresStore;
use rhizome_store::conformance::{Backend, suite};

use support::{cluster, open};

struct Postgres;

impl Backend for Postgres {
    type Place = String;
    type Store = PostgresStore;

    fn place(&self) -> String {
        cluster().database()
    }

    fn open(&self, place: &String) -> PostgresStore {
        open(place)
    }
}

#[tokio::test]
async fn the_postgresql_store_conforms_on_one_thread() {
    if support::is_here() {
        suite(Postgres).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_postgresql_store_conforms_on_many_threads() {
    if support::is_here() {
        suite(Postgres).await;
    }
}
