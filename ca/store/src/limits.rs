//! Every number that bounds a store, with its reason.
//!
//! Laws: a limit is a constant here, never a literal in a condition. Not here: limits of decisions
//! (`rhizome_core::limits`). Sources: given per constant.

use std::time::Duration;

/// Bytes of a document's id, as `rhizome_core::documents::DocumentKey::id` promises. An id may be a SPIFFE ID's path
/// or a node's triple, each well below this.
pub const MAX_ID_BYTES: usize = 512;

/// Bytes of a document's body. The largest is a bundle: 100 anchors of 1.5 KB in base64 are 200 KB.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Bytes of a ledger entry's body. An issuance is about 450 bytes; 64 attributes of 256 bytes make 20 KB.
pub const MAX_ENTRY_BYTES: usize = 1 << 16;

/// Requirements, writes and entries of one transaction, together: an import of rules in one stroke stays below it.
pub const MAX_TRANSACTION_PARTS: usize = 10_000;

/// Requests that wait for the writer; further ones wait at the door. Four full batches: enough to keep the writer
/// busy through its longest sync, little enough (about 1 MB) to be no memory risk.
pub(crate) const QUEUE: usize = 1_024;

/// Requests in one durable write. ca/docs/performance.md, The floor: a row costs 4.6 µs in batches of 64 and
/// 2.7 µs in batches of 256; beyond that nothing is gained and everybody waits longer.
pub(crate) const BATCH_REQUESTS: usize = 256;

/// Bytes of bodies after which a batch is closed: SQLite's default WAL checkpoint is at 4 MB.
pub(crate) const BATCH_BYTES: usize = 1 << 20;

/// Read-only connections. Reads are administrators' lists and start-up; the hot path reads a snapshot in memory.
pub(crate) const READERS: usize = 2;

/// How long a connection waits for a lock that another process holds. Only a person with a shell on the database
/// ever holds one.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// When a caller may try again after the store could not answer.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bytes to which the write-ahead log is cut back after a long reader, such as a backup, let it grow.
pub(crate) const WAL_KEPT_BYTES: i64 = 64 << 20;

/// Pages (4 KiB) in the write-ahead log before they are copied into the database: 16 MiB, so that a page that many
/// batches touch, such as the last of an index, is copied once for all of them.
pub(crate) const CHECKPOINT_PAGES: i64 = 4_096;

/// Records read at once while a ledger is walked: about 0.5 MB.
pub(crate) const WALK_PAGE: usize = 1_024;

/// How long a connection to PostgreSQL may take to come up: several round trips and a TLS handshake.
#[cfg(feature = "postgres")]
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The same with everything that a session is set to.
#[cfg(feature = "postgres")]
pub(crate) const SESSION_TIMEOUT: Duration = Duration::from_secs(8);

/// Silence after which a TCP connection is probed, how often, and how long sent bytes may stay unanswered: a database
/// that was cut off is noticed in about ten seconds.
#[cfg(feature = "postgres")]
pub(crate) const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
#[cfg(feature = "postgres")]
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
#[cfg(feature = "postgres")]
pub(crate) const TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest a statement runs in PostgreSQL, in ordinary work; and how long its answer is awaited.
#[cfg(feature = "postgres")]
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
#[cfg(feature = "postgres")]
pub(crate) const STATEMENT_PATIENCE: Duration = Duration::from_secs(12);

/// The longest wait for the head row: another server's whole batch, and what is left of one that died in it.
#[cfg(feature = "postgres")]
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a transaction may rest between two statements; ours never do. A server that was stopped in the middle of
/// one holds the others up for no longer.
#[cfg(feature = "postgres")]
pub(crate) const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(3);

/// How long a migration, and a whole check, may take.
#[cfg(feature = "postgres")]
pub(crate) const LONG_STATEMENT: Duration = Duration::from_secs(600);

/// Sessions that read. Reads are administrators' lists, changes of other servers and start-up.
#[cfg(feature = "postgres")]
pub(crate) const POSTGRES_READERS: usize = 3;

/// Pauses between tries to reach a database that is away: from the first to the longest.
#[cfg(feature = "postgres")]
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(100);
#[cfg(feature = "postgres")]
pub(crate) const BACKOFF_LONGEST: Duration = Duration::from_secs(5);

/// Versions for which tombstones are kept: whoever is further behind reads everything anew, which is then no more work.
#[cfg(feature = "postgres")]
pub(crate) const TOMBSTONES_KEPT: u64 = 100_000;
/// Versions after which a running server forgets tombstones again: a tenth more than is kept, at most.
#[cfg(feature = "postgres")]
pub(crate) const FORGET_EACH: u64 = 10_000;
