//! Killed at any moment: what a caller was told is there, nothing is there twice, and the chain holds.
//! Sources: ca/docs/attacks.md §2 (1, 2, 22).

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking, their helpers too"
)]
#![expect(clippy::disallowed_methods, reason = "the killed child finds its database by the environment")]

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Arc;

use rhizome_core::documents::{DocumentKey, Kind, Transaction, Write};
use rhizome_core::ledger::{Event, Position, Receipt, Verifier};
use rhizome_core::ports::Store;
use rhizome_id::{SerialCounter, Timestamp};
use rhizome_store::conformance::issued;
use rhizome_store::{Options, SqliteStore};
use tokio::task::JoinSet;

const DATABASE: &str = "RHIZOME_TEST_CRASH_DATABASE";
const ROUNDS: u64 = 12;

#[tokio::test]
async fn every_receipt_of_a_killed_server_is_in_the_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rhizome.db");
    let mut told = Vec::new();
    for round in 0..ROUNDS {
        // From the first receipt to a few batches later; the child is in the midst of the next when it is killed.
        let patience = 1 + (round * 7_919) % 600;
        told.extend(receipts_of_a_killed_child(&path, patience));
        check(&path, &told).await;
    }
    let counters: BTreeSet<_> = told.iter().map(|line| line.counter).collect();
    assert_eq!(counters.len(), told.len(), "a serial was given out twice");
}

struct Line {
    position: u64,
    hash: String,
    counter: u64,
}

fn receipts_of_a_killed_child(path: &Path, patience: u64) -> Vec<Line> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "commits_until_it_is_killed", "--ignored", "--nocapture"])
        .env(DATABASE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut told = Vec::new();
    for _ in 0..patience {
        told.push(next_line(&mut lines).expect("the child ended before it was killed"));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had printed by then counts as told, too.
    while let Some(line) = next_line(&mut lines) {
        told.push(line);
    }
    told
}

/// The next whole receipt; `None` at the end, where a line may be cut off.
fn next_line(lines: &mut BufReader<ChildStdout>) -> Option<Line> {
    loop {
        let mut text = String::new();
        lines.read_line(&mut text).unwrap();
        if !text.ends_with('\n') {
            return None;
        }
        // The test harness prints lines of its own, one of them without an end.
        let Some((_, fields)) = text.split_once("receipt ") else {
            continue;
        };
        let fields: Vec<_> = fields.split_whitespace().collect();
        let [position, hash, counter] = fields[..] else { panic!("{text}") };
        return Some(Line {
            position: position.parse().unwrap(),
            hash: hash.to_owned(),
            counter: counter.parse().unwrap(),
        });
    }
}

async fn check(path: &Path, told: &[Line]) {
    let store = SqliteStore::open(path, Options::default()).unwrap();
    store.check_integrity().await.unwrap();
    let records = store.records(Position(1), usize::MAX).await.unwrap();
    let mut verifier = Verifier::default();
    records.iter().try_for_each(|record| verifier.check(record)).unwrap();
    let head = verifier.finish(store.head().await.unwrap()).unwrap();
    let mut counters = BTreeSet::new();
    assert!(records.iter().filter_map(|record| record.counter).all(|counter| counters.insert(counter)));
    for line in told {
        let record = &records[usize::try_from(line.position).unwrap() - 1];
        assert_eq!(record.position, Position(line.position));
        assert_eq!(record.hash.to_string(), line.hash, "what was told is not what is stored");
        assert_eq!(record.counter.map(SerialCounter::value), Some(line.counter));
    }
    // A transaction is whole: each wrote one document named as its serial, and one record.
    let documents = store.documents(Kind::Node, None, usize::MAX).await.unwrap();
    assert_eq!(documents.len(), usize::try_from(head.position.0).unwrap());
    for record in &records {
        let (_, Event::Issued(issuance)) = record.read().unwrap() else { panic!("{record:?}") };
        let id = issuance.serial.counter().value().to_string();
        assert!(documents.iter().any(|document| document.key.id == id), "record {id} without its document");
    }
}

#[tokio::test]
#[ignore = "the child of the test above; on its own it does nothing"]
async fn commits_until_it_is_killed() {
    let Ok(path) = env::var(DATABASE) else { return };
    let store = Arc::new(SqliteStore::open(Path::new(&path), Options::default()).unwrap());
    let mut lanes = JoinSet::new();
    for _ in 0..16 {
        let store = Arc::clone(&store);
        lanes.spawn(async move {
            loop {
                let first = store.reserve_serials(4, Timestamp::from_unix(1_000)).await.unwrap();
                for number in first.value()..first.value() + 4 {
                    let key = DocumentKey::new(Kind::Node, number.to_string());
                    let write = Write::Put(key, "{}".into());
                    let both = Transaction { writes: vec![write], ..Transaction::named("issue") };
                    let committed = store.commit(both.record(issued(number))).await.unwrap();
                    print(&committed.receipts[0]);
                }
            }
        });
    }
    lanes.join_all().await;
}

fn print(receipt: &Receipt) {
    let (position, counter) = (receipt.position.0, receipt.counter.unwrap().value());
    let mut out = std::io::stdout().lock();
    writeln!(out, "receipt {position} {} {counter}", receipt.hash).unwrap();
    out.flush().unwrap();
}
