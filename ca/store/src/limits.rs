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
