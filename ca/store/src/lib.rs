//! Where state and the ledger live: SQLite, PostgreSQL and memory behind one conformance suite.
//!
//! Laws: a commit is whole or nothing, and durable when it returns; what is true of one backend is true of all,
//! because [`conformance`] says so; no byte of a damaged file makes a store panic; a store never decides.
//! Not here: what the documents and entries mean (`rhizome_core`), when to write them (`rhizome_server`), the
//! semantic marks of a restore, such as revoked tokens and a raised bundle sequence (the `restore` command writes them
//! as ordinary transactions).
//! Sources: ADR 0003; ca/docs/performance.md, The floor (why serials are not indexed and commits are gathered).

mod answers;
#[cfg(feature = "testing")]
pub mod cluster;
pub mod conformance;
mod faulty;
mod history;
mod limits;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
mod requests;
mod rules;
mod sqlite;
mod verify;

pub use faulty::{FaultyStore, HeldCommit, Moment};
pub use limits::{MAX_DOCUMENT_BYTES, MAX_ENTRY_BYTES, MAX_ID_BYTES, MAX_TRANSACTION_PARTS};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::{
    DEFAULT_SCHEMA, Imported, PostgresOptions, PostgresOptionsError, PostgresPassword, PostgresStore,
    Progress, check_address, check_schema, is_over_tcp,
};
pub use requests::Statistics;
pub use sqlite::{Options, SqliteStore};
pub use verify::verify_ledger;
