//! Damage, a full disk, and other processes: what a store says, and that it goes on afterwards.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::documents::{DocumentKey, Kind, Transaction, Write};
use rhizome_core::ledger::{Entry, Position};
use rhizome_core::ports::{Store, StoreError};
use rhizome_id::{SerialCounter, Timestamp};
use rhizome_store::conformance::issued;
use rhizome_store::{FaultyStore, MemoryStore, Moment, Options, SqliteStore, verify_ledger};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinSet;

fn at(directory: &TempDir) -> PathBuf {
    directory.path().join("rhizome.db")
}

fn options(max_pages: Option<u32>) -> Options {
    Options { busy_timeout: Duration::from_millis(20), max_pages }
}

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, options(None))
}

fn key(id: &str) -> DocumentKey {
    DocumentKey::new(Kind::Rule, id)
}

fn writing(id: &str, bytes: usize) -> Transaction {
    let body = format!("\"{}\"", "x".repeat(bytes));
    Transaction { writes: vec![Write::Put(key(id), body.into())], ..Transaction::named("test") }
}

fn recording(entries: Vec<Entry>) -> Transaction {
    Transaction { entries, ..Transaction::named("test") }
}

/// Twenty documents and a hundred issuances, closed.
async fn filled(path: &Path) {
    let store = open(path).unwrap();
    for number in 0..20_u64 {
        let entries = (number * 5..number * 5 + 5).map(issued).collect();
        store.commit(Transaction { entries, ..writing(&number.to_string(), 300) }).await.unwrap();
    }
}

/// Whether anything at all about the database is found to be wrong.
async fn inspect(path: &Path) -> Result<(), StoreError> {
    let store = open(path)?;
    store.check_integrity().await?;
    verify_ledger(&store).await?;
    for kind in Kind::ALL {
        store.documents(kind, None, usize::MAX).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_flipped_byte_is_reported_or_harmless_and_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    filled(&path).await;
    inspect(&path).await.unwrap();
    let whole = fs::read(&path).unwrap();
    let (mut reported, mut tried) = (0, 0);
    // A prime step: every page is hit at other offsets.
    for offset in (0..whole.len()).step_by(487) {
        let mut damaged = whole.clone();
        damaged[offset] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        tried += 1;
        match inspect(&path).await {
            Err(error) => {
                reported += 1;
                assert!(
                    !matches!(error, StoreError::Full { .. } | StoreError::Exists { .. }),
                    "{offset}: {error}"
                );
            }
            // Free space within a page: nothing that was stored has changed.
            Ok(()) => {
                assert_eq!(contents(&path), contents_of(&whole, &directory), "byte {offset} went unseen")
            }
        }
    }
    assert!(tried > 200 && reported * 2 > tried, "{reported} of {tried} flipped bytes were reported");
}

/// Everything stored, as SQLite shows it.
fn contents(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut all = Vec::new();
    for (table, columns) in [
        ("documents", "kind || id || version || body || hex(checksum)"),
        ("ledger", "position || hex(previous) || hex(hash) || coalesce(counter, '') || body"),
        ("head", "position || hex(hash) || version"),
    ] {
        let mut rows = connection.prepare(&format!("SELECT {columns} FROM {table}")).unwrap();
        all.extend(rows.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap));
    }
    all
}

fn contents_of(whole: &[u8], directory: &TempDir) -> Vec<String> {
    let copy = directory.path().join("whole.db");
    fs::write(&copy, whole).unwrap();
    contents(&copy)
}

#[tokio::test]
async fn every_tampering_with_rows_is_reported() {
    for (tampering, told) in [
        ("DELETE FROM ledger WHERE position = 100", "head should be record 100"),
        ("DELETE FROM ledger WHERE position > 50", "head should be record 100"),
        ("DELETE FROM ledger", "head should be record 100"),
        ("UPDATE head SET position = 99", "head should be record 99"),
        ("UPDATE head SET hash = zeroblob(32)", "head should be"),
        ("UPDATE head SET hash = zeroblob(31)", "stored value"),
        ("UPDATE head SET version = -1", "negative"),
        ("DELETE FROM head", "head is missing"),
        ("DELETE FROM counters", "counter is missing"),
        ("DELETE FROM ledger WHERE position = 50", "ledger record 51"),
        ("UPDATE ledger SET body = replace(body, 'shop', 'ship') WHERE position = 50", "ledger record 50"),
        ("UPDATE ledger SET hash = zeroblob(32) WHERE position = 50", "ledger record 50"),
        ("UPDATE ledger SET previous = zeroblob(32) WHERE position = 50", "ledger record 50"),
        ("UPDATE ledger SET counter = 1000 WHERE position = 50", "ledger record 50"),
        ("UPDATE ledger SET counter = NULL WHERE position = 50", "ledger record 50"),
        ("UPDATE ledger SET counter = -1 WHERE position = 50", "negative"),
        ("UPDATE ledger SET position = 101 WHERE position = 1", "head should be record 100"),
        ("UPDATE documents SET body = '[]' WHERE id = '7'", "rule 7"),
        ("UPDATE documents SET version = 1 WHERE id = '7'", "rule 7"),
        ("UPDATE documents SET id = 'x' WHERE id = '7'", "rule x"),
        ("UPDATE documents SET kind = 'token' WHERE id = '7'", "token 7"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = at(&directory);
        filled(&path).await;
        Connection::open(&path).unwrap().execute_batch(tampering).unwrap();
        match inspect(&path).await {
            Err(StoreError::Corrupt { cause }) => assert!(cause.contains(told), "{tampering}: {cause}"),
            other => panic!("{tampering}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_database_cut_short_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    filled(&path).await;
    let whole = fs::read(&path).unwrap();
    for kept in [1, 99, 100, 4_096, 4_097, whole.len() / 2, whole.len() - 4_096, whole.len() - 1] {
        fs::write(&path, &whole[..kept]).unwrap();
        assert!(inspect(&path).await.is_err(), "{kept} bytes of {}", whole.len());
    }
}

#[tokio::test]
async fn a_full_disk_is_reported_and_nothing_is_half_made_and_it_goes_on_when_room_returns() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&at(&directory), options(Some(64))).unwrap();
    goes_on_after_a_full_disk(store).await;
}

/// The same on a real disk, with a server on top, is told in `tests/tests/e2e/disk.rs`.
async fn goes_on_after_a_full_disk(store: SqliteStore) {
    let mut stored = 0_u64;
    let refused = loop {
        let filling = writing(&format!("filling-{stored}"), 20_000).record(issued(stored));
        match store.commit(filling).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
    // Everybody in a batch that does not fit is told.
    let store = Arc::new(store);
    let mut crowd = JoinSet::new();
    for number in 0..20_u64 {
        let store = Arc::clone(&store);
        let many = writing(&format!("crowd-{number}"), 100_000).record(issued(1_000 + number));
        crowd.spawn(async move { store.commit(many).await });
    }
    assert!(crowd.join_all().await.iter().all(|told| matches!(told, Err(StoreError::Full { .. }))));
    // Nothing is half-made.
    assert_eq!(store.head().await.unwrap().position, Position(stored));
    assert_eq!(verify_ledger(&*store).await, store.head().await);
    let documents = store.documents(Kind::Rule, None, usize::MAX).await.unwrap();
    assert_eq!(documents.len(), usize::try_from(stored).unwrap());
    // Room returns.
    store.commit(Transaction::named("free").delete(key("filling-0"))).await.unwrap();
    store.commit(writing("again", 10_000).record(issued(5_000))).await.unwrap();
    assert_eq!(verify_ledger(&*store).await.unwrap().position, Position(stored + 1));
    store.check_integrity().await.unwrap();
    assert!(store.statistics().failed_batches >= 2);
}

#[tokio::test]
async fn a_lock_held_by_a_shell_is_named_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    let store = open(&path).unwrap();
    let shell = Connection::open(&path).unwrap();
    shell.execute_batch("BEGIN IMMEDIATE").unwrap();
    let now = Timestamp::EPOCH;
    for refused in
        [store.commit(writing("a", 1)).await.map(drop), store.reserve_serials(1, now).await.map(drop)]
    {
        let Err(StoreError::Unavailable { cause, .. }) = refused else { panic!("{refused:?}") };
        assert!(cause.contains("another process has locked the database"), "{cause}");
    }
    // Reads go on.
    assert_eq!(store.document(&key("a")).await, Ok(None));
    shell.execute_batch("ROLLBACK").unwrap();
    store.commit(writing("a", 1)).await.unwrap();
}

#[tokio::test]
async fn what_was_queued_is_finished_when_the_store_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&at(&directory)).unwrap();
    {
        // Sent, and then given up by its caller.
        let mut forgotten = std::pin::pin!(store.commit(writing("a", 1)));
        let sent = futures_poll_once(forgotten.as_mut()).await;
        assert!(sent.is_none());
    }
    drop(store);
    let store = open(&at(&directory)).unwrap();
    assert!(store.document(&key("a")).await.unwrap().is_some());
}

async fn futures_poll_once<T>(
    mut future: std::pin::Pin<&mut (impl Future<Output = T> + ?Sized)>,
) -> Option<T> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_faulty_store_fails_the_nth_commit_before_or_after_it_happened() {
    let store = FaultyStore::new(MemoryStore::new());
    store.fail_commit(2, Moment::Before);
    let full = StoreError::Full { cause: "test".to_owned() };
    store.fail_commit_with(3, Moment::After, full.clone());
    let mut told = Vec::new();
    for number in 1..=4 {
        told.push(
            store.commit(recording(vec![issued(number)])).await.map(|committed| committed.receipts.len()),
        );
    }
    assert_eq!((&told[0], &told[2], &told[3]), (&Ok(1), &Err(full), &Ok(1)));
    assert!(matches!(told[1], Err(StoreError::Unavailable { .. })));
    let found = |number| store.record_of_serial(SerialCounter::new(number).unwrap());
    assert!(found(2).await.unwrap().is_none());
    assert!(found(3).await.unwrap().is_some(), "it happened, though the caller was not told");
    assert_eq!(store.commits(), 4);
}

#[tokio::test]
async fn a_faulty_store_wastes_serials_rather_than_repeat_them() {
    let store = FaultyStore::new(MemoryStore::new());
    let now = Timestamp::from_unix(1);
    let first = store.reserve_serials(10, now).await.unwrap();
    store.fail_reservation(1, Moment::After);
    assert!(store.reserve_serials(10, now).await.is_err());
    assert_eq!(store.reserve_serials(10, now).await.unwrap().value(), first.value() + 20);
    store.fail_reads(Some(StoreError::Corrupt { cause: "test".to_owned() }));
    assert!(store.head().await.is_err() && store.check_integrity().await.is_err());
    store.fail_reads(None);
    assert!(store.head().await.is_ok());
}
