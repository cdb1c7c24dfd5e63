//! Clauses about documents and transactions.

use std::sync::Arc;

use rhizome_core::documents::{Document, DocumentKey, Kind, Transaction, Version, Write};
use rhizome_core::ledger::Head;
use rhizome_core::ports::{Store, StoreError};
use tokio::task::JoinSet;

use super::{Backend, body_of, changed, issued, key, put, recording, version_of, writing};
use crate::limits::{MAX_DOCUMENT_BYTES, MAX_ID_BYTES, MAX_TRANSACTION_PARTS};

pub(super) async fn a_transaction_happens_whole_or_not_at_all<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let whole = Transaction { entries: vec![changed("a")], ..writing(vec![put("a", "1"), put("b", "2")]) };
    let committed = store.commit(whole.clone()).await.unwrap();
    assert_eq!(version_of(&store, "a").await, Some(committed.version));
    assert_eq!(version_of(&store, "b").await, Some(committed.version));
    assert_eq!(committed.receipts.len(), 1);
    let head = store.head().await.unwrap();

    // The last requirement fails: neither writes nor entries happen.
    let refused = whole.require_unchanged(key("a"), committed.version).require_absent(key("b"));
    let refused = Transaction { writes: vec![put("a", "9"), Write::Delete(key("b"))], ..refused };
    assert_eq!(store.commit(refused).await, Err(StoreError::Conflict { key: key("b") }));
    assert_eq!(body_of(&store, "a").await.as_deref(), Some("1"));
    assert_eq!(body_of(&store, "b").await.as_deref(), Some("2"));
    assert_eq!(store.head().await, Ok(head));
}

pub(super) async fn a_failed_requirement_names_its_document_and_changes_nothing<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let first = store.commit(writing(vec![put("a", "1")])).await.unwrap().version;
    let second = store.commit(writing(vec![put("a", "2")])).await.unwrap().version;
    let conflict = Err(StoreError::Conflict { key: key("a") });
    let ask = |transaction: Transaction| Transaction { writes: vec![put("a", "3")], ..transaction };
    let named = Transaction::named("try");
    assert_eq!(store.commit(ask(named.clone().require_absent(key("a")))).await, conflict);
    assert_eq!(store.commit(ask(named.clone().require_unchanged(key("a"), first))).await, conflict);
    let absent = StoreError::Conflict { key: key("z") };
    assert_eq!(store.commit(ask(named.clone().require_unchanged(key("z"), first))).await, Err(absent));
    assert_eq!(version_of(&store, "a").await, Some(second));
    // The same id of another kind is another document.
    let other = named.require_absent(DocumentKey::new(Kind::Token, "a")).require_unchanged(key("a"), second);
    store.commit(ask(other)).await.unwrap();
    assert_eq!(body_of(&store, "a").await.as_deref(), Some("3"));
}

pub(super) async fn versions_grow_over_the_whole_store_and_never_come_back<B: Backend>(backend: &B) {
    let place = backend.place();
    let mut last = Version(0);
    {
        let store = backend.open(&place);
        for writes in [vec![put("a", "1")], vec![put("b", "1")], vec![put("a", "1")]] {
            let version = store.commit(writing(writes)).await.unwrap().version;
            assert!(version > last, "{version:?} after {last:?}");
            last = version;
        }
        // An unchanged store stays where it is.
        assert_eq!(store.commit(recording(vec![changed("x")])).await.unwrap().version, last);
        store.commit(writing(vec![Write::Delete(key("a"))])).await.unwrap();
    }
    let store = backend.open(&place);
    let again = store.commit(writing(vec![put("a", "1")])).await.unwrap().version;
    assert!(again > last, "a document that was deleted came back at an old version");
}

pub(super) async fn documents_are_paged_in_the_byte_order_of_their_ids<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let mut ids = ["b", "a", "A", "a/b", "a-b", "ä", "~", "a\u{0}b", " ", "aa"];
    store.commit(writing(ids.iter().map(|id| put(id, "{}")).collect())).await.unwrap();
    let other = Write::Put(DocumentKey::new(Kind::Node, "aaa"), "{}".into());
    store.commit(writing(vec![other])).await.unwrap();
    ids.sort_unstable();
    for limit in [1, 3, ids.len(), usize::MAX] {
        let mut seen: Vec<String> = Vec::new();
        loop {
            let page = store.documents(Kind::Rule, seen.last().map(String::as_str), limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            seen.extend(page.into_iter().map(|document| document.key.id));
        }
        assert_eq!(seen, ids, "pages of {limit}");
    }
    assert!(store.documents(Kind::Rule, None, 0).await.unwrap().is_empty());
    assert!(store.documents(Kind::Token, None, 9).await.unwrap().is_empty());
    // A page may start behind an id that is gone.
    let behind = store.documents(Kind::Rule, Some("a0"), 1).await.unwrap();
    assert_eq!(behind[0].key.id, "aa");
}

pub(super) async fn deleting_what_is_not_there_changes_nothing<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    store.commit(writing(vec![put("a", "1")])).await.unwrap();
    store.commit(writing(vec![Write::Delete(key("z"))])).await.unwrap();
    store.commit(writing(vec![Write::Delete(key("a"))])).await.unwrap();
    store.commit(writing(vec![Write::Delete(key("a"))])).await.unwrap();
    assert_eq!(store.document(&key("a")).await, Ok(None));
    assert!(store.documents(Kind::Rule, None, 9).await.unwrap().is_empty());
}

pub(super) async fn of_a_hundred_racing_commits_with_one_requirement_exactly_one_wins<B: Backend>(
    backend: &B,
) {
    let place = backend.place();
    let store = Arc::new(backend.open(&place));
    let version = store.commit(writing(vec![put("token", "0")])).await.unwrap().version;
    let mut racers = JoinSet::new();
    for number in 0..100_u64 {
        let store = Arc::clone(&store);
        racers.spawn(async move {
            let once = Transaction::named("redeem").require_unchanged(key("token"), version);
            let body = format!("{number}");
            store
                .commit(Transaction { writes: vec![put("token", &body)], ..once.record(issued(number)) })
                .await
        });
    }
    let outcomes = racers.join_all().await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 99));
    assert!(lost.into_iter().all(|outcome| outcome == Err(StoreError::Conflict { key: key("token") })));
    let winner = won.into_iter().next().unwrap().unwrap();
    let record = store.record_of_serial(winner.receipts[0].counter.unwrap()).await.unwrap().unwrap();
    let body = body_of(&*store, "token").await.unwrap();
    assert_eq!(record.counter.unwrap().value().to_string(), *body, "the record and the document differ");
    assert_eq!(store.head().await, Ok(record.head()));
}

pub(super) async fn a_refused_transaction_does_not_hurt_those_committed_beside_it<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = Arc::new(backend.open(&place));
    store.commit(recording(vec![issued(1_000)])).await.unwrap();
    store.commit(writing(vec![put("taken", "0")])).await.unwrap();
    let mut racers = JoinSet::new();
    for number in 0..300_u64 {
        let store = Arc::clone(&store);
        racers.spawn(async move {
            let id = format!("{number}");
            let transaction = writing(vec![put(&id, "0")]);
            let outcome = match number % 3 {
                0 => store.commit(transaction.require_absent(key("taken"))).await,
                // Its serial is in the ledger already.
                1 => store.commit(transaction.record(issued(number)).record(issued(1_000))).await,
                _ => store.commit(transaction.record(issued(number))).await,
            };
            (number, outcome)
        });
    }
    for (number, outcome) in racers.join_all().await {
        let stored = version_of(&*store, &number.to_string()).await;
        match (number % 3, outcome) {
            (0, Err(StoreError::Conflict { .. })) | (1, Err(StoreError::Bug { .. })) => {
                assert_eq!(stored, None)
            }
            (2, Ok(committed)) => assert_eq!(stored, Some(committed.version)),
            (_, other) => panic!("transaction {number}: {other:?}"),
        }
    }
    assert_eq!(crate::verify_ledger(&*store).await.unwrap().position.0, 101);
}

pub(super) async fn later_writes_of_one_transaction_win<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    // Requirements speak of the state before the transaction.
    let twice = writing(vec![put("a", "1"), put("a", "2"), put("b", "1"), Write::Delete(key("b"))]);
    store.commit(twice.require_absent(key("a"))).await.unwrap();
    assert_eq!(body_of(&store, "a").await.as_deref(), Some("2"));
    assert_eq!(body_of(&store, "b").await, None);
}

pub(super) async fn ids_are_one_to_512_bytes<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let longest = "x".repeat(MAX_ID_BYTES);
    store.commit(writing(vec![put(&longest, "1"), put("x", "1")])).await.unwrap();
    assert_eq!(body_of(&store, &longest).await.as_deref(), Some("1"));
    for id in [String::new(), "x".repeat(MAX_ID_BYTES + 1)] {
        for refused in [
            writing(vec![put("fine", "1"), put(&id, "1")]),
            writing(vec![Write::Delete(key(&id))]),
            Transaction::named("look").require_absent(key(&id)),
        ] {
            assert!(matches!(store.commit(refused).await, Err(StoreError::Bug { .. })));
        }
    }
    assert_eq!(body_of(&store, "fine").await, None);
}

pub(super) async fn bodies_that_are_no_json_or_too_large_are_refused<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let largest = format!("\"{}\"", "x".repeat(MAX_DOCUMENT_BYTES - 2));
    store.commit(writing(vec![put("a", &largest)])).await.unwrap();
    let larger = format!("\"{}\"", "x".repeat(MAX_DOCUMENT_BYTES - 1));
    for body in ["", "{", "nul", "{} {}", "'a'", &larger] {
        let refused = writing(vec![put("b", body)]);
        assert!(matches!(store.commit(refused).await, Err(StoreError::Bug { .. })));
    }
    let many = vec![Write::Delete(key("a")); MAX_TRANSACTION_PARTS + 1];
    assert!(matches!(store.commit(writing(many)).await, Err(StoreError::Bug { .. })));
    assert_eq!(body_of(&store, "a").await.as_deref(), Some(&*largest));
    assert_eq!(body_of(&store, "b").await, None);
}

pub(super) async fn everything_is_there_after_reopening<B: Backend>(backend: &B) {
    let place = backend.place();
    let (before, head) = {
        let store = backend.open(&place);
        assert_eq!(store.head().await, Ok(Head::EMPTY));
        for kind in Kind::ALL {
            let write = Write::Put(DocumentKey::new(kind, "ünïcode \"quoted\""), "{\"a\":[1,null]}".into());
            store.commit(writing(vec![write]).record(changed(kind.as_str()))).await.unwrap();
        }
        (all(&store).await, store.head().await.unwrap())
    };
    let store = backend.open(&place);
    assert_eq!(all(&store).await, before);
    assert_eq!(store.head().await, Ok(head));
}

async fn all(store: &impl Store) -> Vec<Document> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        found.extend(store.documents(kind, None, 9).await.unwrap());
    }
    assert_eq!(found.len(), Kind::ALL.len());
    found
}
