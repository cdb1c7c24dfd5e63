//! The files of a database: who may read them, who has them open, backups and what is put back.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::documents::{DocumentKey, Kind, Transaction, Write};
use rhizome_core::ports::{Store, StoreError};
use rhizome_id::Timestamp;
use rhizome_store::conformance::issued;
use rhizome_store::{MemoryStore, Options, SqliteStore, verify_ledger};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinSet;

fn at(directory: &TempDir) -> PathBuf {
    directory.path().join("rhizome.db")
}

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, Options { busy_timeout: Duration::from_millis(20), max_pages: None })
}

fn transaction(number: u64) -> Transaction {
    let write = Write::Put(DocumentKey::new(Kind::Rule, number.to_string()), "{}".into());
    Transaction { writes: vec![write], ..Transaction::named("test").record(issued(number)) }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn only_the_owner_may_read_the_database_and_what_lies_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    let backup = directory.path().join("backup.db");
    {
        let store = open(&path).unwrap();
        store.commit(transaction(1)).await.unwrap();
        store.head().await.unwrap();
        store.backup(&backup).await.unwrap();
        let mut names = Vec::new();
        for entry in fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort_unstable();
        assert_eq!(names, ["backup.db", "rhizome.db", "rhizome.db-shm", "rhizome.db-wal", "rhizome.db.lock"]);
    }
    // A mode that somebody widened is narrowed at the next start.
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    drop(open(&path).unwrap());
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn a_directory_that_will_not_do_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |path: &Path| match open(path) {
        Err(StoreError::Unavailable { cause, .. }) => cause,
        other => panic!("{other:?}"),
    };
    assert!(refused(&directory.path().join("absent/rhizome.db")).contains("absent"));
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    assert!(refused(&at(&directory)).contains("chmod o-w"));
    assert!(!at(&directory).exists());
    // As /tmp is: others cannot replace what is ours.
    fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).unwrap();
    drop(open(&at(&directory)).unwrap());
}

#[test]
fn a_second_server_on_the_same_file_is_refused_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    let first = open(&path).unwrap();
    let Err(StoreError::Unavailable { cause, .. }) = open(&path) else { panic!("a second store was opened") };
    assert!(cause.contains("in use by another server"), "{cause}");
    drop(first);
    drop(open(&path).unwrap());
}

#[test]
fn files_of_other_applications_are_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    let refused = || matches!(open(&path), Err(StoreError::Corrupt { .. }));
    fs::write(&path, "this is no database, but it is long enough to look like one".repeat(99)).unwrap();
    let before = fs::read(&path).unwrap();
    assert!(refused());
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::remove_file(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(other);
    let before = fs::read(&path).unwrap();
    assert!(refused());
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_database_of_a_newer_release_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    drop(open(&path).unwrap());
    let newer = Connection::open(&path).unwrap();
    newer
        .execute_batch(
            "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
             VALUES (2, 'later', '2027-01-01T00:00:00Z', '1')",
        )
        .unwrap();
    drop(newer);
    let before = fs::read(&path).unwrap();
    assert_eq!(open(&path).unwrap_err(), StoreError::Newer { found: 2, known: 1 });
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_history_that_this_release_would_not_write_is_refused_without_a_panic() {
    for damage in ["checksum = 'x'", "checksum = '1'", "applied_on = 'x'", "name = 'x'", "version = -1"] {
        let directory = tempfile::tempdir().unwrap();
        let path = at(&directory);
        drop(open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(&format!("UPDATE refinery_schema_history SET {damage}")).unwrap();
        drop(connection);
        let refused = open(&path).unwrap_err();
        assert!(
            matches!(refused, StoreError::Corrupt { .. } | StoreError::Newer { .. }),
            "{damage}: {refused}"
        );
    }
}

#[test]
fn a_killed_first_start_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    fs::write(directory.path().join("rhizome.db.new"), "half").unwrap();
    drop(open(&path).unwrap());
    let left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "rhizome.db.new"), "{left:?}");
}

#[test]
fn an_emptied_database_is_damage_and_not_a_fresh_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = at(&directory);
    drop(open(&path).unwrap());
    fs::write(&path, "").unwrap();
    let Err(StoreError::Corrupt { cause }) = open(&path) else {
        panic!("an empty file was taken for a new one")
    };
    assert!(cause.contains("emptied"), "{cause}");
}

#[tokio::test]
async fn the_log_of_a_lost_database_is_never_written_into_another() {
    let directory = tempfile::tempdir().unwrap();
    let (path, backup) = (at(&directory), directory.path().join("backup.db"));
    let store = open(&path).unwrap();
    store.commit(transaction(1)).await.unwrap();
    store.backup(&backup).await.unwrap();
    let log = fs::read(directory.path().join("rhizome.db-wal")).unwrap();
    drop(store);
    fs::remove_file(&path).unwrap();
    fs::write(directory.path().join("rhizome.db-wal"), log).unwrap();
    assert!(matches!(open(&path), Err(StoreError::Corrupt { .. })));
    let restored = SqliteStore::restore(&backup, &path, Timestamp::EPOCH, Options::default());
    assert!(matches!(restored, Err(StoreError::Corrupt { .. })));
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_taken_while_commits_go_on_is_one_consistent_state() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&at(&directory)).unwrap());
    let mut committers = JoinSet::new();
    for lane in 0..8_u64 {
        let store = Arc::clone(&store);
        committers.spawn(async move {
            for number in 0..40_u64 {
                store.commit(transaction(lane * 1_000 + number)).await.unwrap();
            }
        });
    }
    let mut backups = Vec::new();
    while !committers.is_empty() {
        let to = directory.path().join(format!("backup-{}", backups.len()));
        let floor = store.head().await.unwrap();
        store.backup(&to).await.unwrap();
        backups.push((to, floor));
        while committers.try_join_next().is_some() {}
    }
    for (number, (from, floor)) in backups.iter().enumerate() {
        let to = directory.path().join(format!("restored-{number}"));
        let restored = SqliteStore::restore(from, &to, Timestamp::EPOCH, Options::default()).unwrap();
        let head = verify_ledger(&restored).await.unwrap();
        assert!(head.position >= floor.position);
        // Each transaction wrote one document and one record.
        let documents = restored.documents(Kind::Rule, None, usize::MAX).await.unwrap();
        assert_eq!(documents.len(), usize::try_from(head.position.0).unwrap());
    }
}

#[tokio::test]
async fn a_backup_never_replaces_a_file_and_leaves_nothing_when_it_fails() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&at(&directory)).unwrap();
    store.commit(transaction(1)).await.unwrap();
    let to = directory.path().join("backup.db");
    fs::write(&to, "precious").unwrap();
    assert!(matches!(store.backup(&to).await, Err(StoreError::Exists { .. })));
    assert_eq!(fs::read(&to).unwrap(), b"precious");
    let absent = directory.path().join("absent/backup.db");
    assert!(matches!(store.backup(&absent).await, Err(StoreError::Unavailable { .. })));
    assert!(!absent.exists());
    let memory = MemoryStore::new().backup(&to).await;
    assert!(matches!(memory, Err(StoreError::Unavailable { .. })));
}

#[tokio::test]
async fn a_backup_is_one_plain_file_that_can_be_read_from_a_read_only_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&at(&directory)).unwrap();
    store.commit(transaction(1)).await.unwrap();
    let to = directory.path().join("backup.db");
    store.backup(&to).await.unwrap();
    let bytes = fs::read(&to).unwrap();
    // File format versions 1: a rollback journal, not a write-ahead log (sqlite.org/fileformat.html §1.3.3).
    assert_eq!(bytes[18..20], [1, 1]);
    for suffix in ["-wal", "-shm", "-journal"] {
        assert!(!directory.path().join(format!("backup.db{suffix}")).exists());
    }
}

#[tokio::test]
async fn a_restored_store_has_everything_and_gives_no_serial_out_again() {
    let directory = tempfile::tempdir().unwrap();
    let (path, backup) = (at(&directory), directory.path().join("backup.db"));
    let now = Timestamp::from_unix(1_000);
    let (head, after_backup) = {
        let store = open(&path).unwrap();
        store.commit(transaction(1)).await.unwrap();
        store.reserve_serials(10, now).await.unwrap();
        store.backup(&backup).await.unwrap();
        (store.head().await.unwrap(), store.reserve_serials(10, now).await.unwrap())
    };
    let to = directory.path().join("restored.db");
    let later = Timestamp::from_unix(2_000);
    let restored = SqliteStore::restore(&backup, &to, later, Options::default()).unwrap();
    assert_eq!(verify_ledger(&restored).await, Ok(head));
    assert_eq!(mode(&to), 0o600);
    assert!(restored.document(&DocumentKey::new(Kind::Rule, "1")).await.unwrap().is_some());
    // Even if the clock is wrong by then.
    let fresh = restored.reserve_serials(1, now).await.unwrap();
    assert!(fresh.value() > after_backup.value() + 10);
    restored.commit(transaction(2)).await.unwrap();
    restored.check_integrity().await.unwrap();
}

#[tokio::test]
async fn a_restore_never_replaces_a_file_and_leaves_nothing_when_it_fails() {
    let directory = tempfile::tempdir().unwrap();
    let (path, backup) = (at(&directory), directory.path().join("backup.db"));
    let store = open(&path).unwrap();
    store.commit(Transaction { entries: vec![issued(1), issued(2)], ..transaction(3) }).await.unwrap();
    store.backup(&backup).await.unwrap();
    let restore =
        |from: &Path, to: &Path| SqliteStore::restore(from, to, Timestamp::EPOCH, Options::default());
    // A running server's database.
    assert!(matches!(restore(&backup, &path), Err(StoreError::Unavailable { .. })));
    drop(store);
    assert!(matches!(restore(&backup, &path), Err(StoreError::Exists { .. })));

    let to = directory.path().join("restored.db");
    assert!(restore(&directory.path().join("absent"), &to).is_err());
    let whole = fs::read(&backup).unwrap();
    fs::write(&backup, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(restore(&backup, &to), Err(StoreError::Corrupt { .. })));
    for tampering in [
        "DELETE FROM ledger WHERE position = 2",
        "DELETE FROM ledger WHERE position = 1",
        "UPDATE ledger SET body = replace(body, 'shop', 'ship') WHERE position = 1",
        "UPDATE documents SET body = '[]'",
        "DELETE FROM head",
        "DELETE FROM counters",
    ] {
        fs::write(&backup, &whole).unwrap();
        Connection::open(&backup).unwrap().execute_batch(tampering).unwrap();
        let refused = restore(&backup, &to);
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{tampering}: {refused:?}");
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(
            !left.iter().any(|name| name == "restored.db" || name == "restored.db.restoring"),
            "{left:?}"
        );
    }
    fs::write(&backup, &whole).unwrap();
    // What a killed restore left is no obstacle.
    fs::write(directory.path().join("restored.db.restoring"), "half").unwrap();
    drop(restore(&backup, &to).unwrap());
}
