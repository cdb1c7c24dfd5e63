//! Clauses about the ledger.

use std::sync::Arc;

use rhizome_core::documents::Transaction;
use rhizome_core::ledger::{Entry, Event, Head, Position, Receipt};
use rhizome_core::ports::{Store, StoreError};
use rhizome_id::Timestamp;
use tokio::task::JoinSet;

use super::{Backend, changed, counter, issued, put, recording, writing};
use crate::limits::MAX_ENTRY_BYTES;
use crate::verify_ledger;

pub(super) async fn an_empty_ledger_has_the_empty_head<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    assert_eq!(store.head().await, Ok(Head::EMPTY));
    assert_eq!(verify_ledger(&store).await, Ok(Head::EMPTY));
    assert!(store.records(Position(0), 9).await.unwrap().is_empty());
}

pub(super) async fn records_are_linked_from_the_first_to_the_head<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let mut expected = Head::EMPTY;
    for subject in ["a", "b", "c"] {
        let entry = changed(subject);
        store.commit(recording(vec![entry.clone()])).await.unwrap();
        let record = expected.link(&entry);
        expected = record.head();
        assert_eq!(store.records(record.position, 9).await, Ok(vec![record]));
        assert_eq!(store.head().await, Ok(expected));
    }
    assert_eq!(verify_ledger(&store).await, Ok(expected));
}

pub(super) async fn receipts_come_in_the_order_of_entries_and_match_the_records<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    store.commit(recording(vec![changed("before")])).await.unwrap();
    let entries = vec![issued(30), changed("a"), issued(10), issued(20), changed("b")];
    let receipts = store.commit(recording(entries.clone())).await.unwrap().receipts;
    let records = store.records(Position(2), 99).await.unwrap();
    assert_eq!(receipts, records.iter().map(Receipt::assertion).collect::<Vec<_>>());
    let bodies = |entries: &[Entry]| entries.iter().map(|entry| Arc::clone(entry.body())).collect::<Vec<_>>();
    assert_eq!(records.into_iter().map(|record| record.body).collect::<Vec<_>>(), bodies(&entries));
    let counters = receipts.iter().map(|receipt| receipt.counter).collect::<Vec<_>>();
    assert_eq!(counters, [Some(counter(30)), None, Some(counter(10)), Some(counter(20)), None]);
}

pub(super) async fn racing_entries_make_one_chain<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = Arc::new(backend.open(&place));
    let mut racers = JoinSet::new();
    for number in 0..500_u64 {
        let store = Arc::clone(&store);
        racers.spawn(async move { store.commit(recording(vec![issued(number), changed("x")])).await });
    }
    let mut positions = Vec::new();
    for committed in racers.join_all().await {
        let receipts = committed.unwrap().receipts;
        // The entries of one transaction stand together.
        assert_eq!(receipts[0].position.0 + 1, receipts[1].position.0);
        positions.extend(receipts.iter().map(|receipt| receipt.position.0));
    }
    positions.sort_unstable();
    assert_eq!(positions, (1..=1_000).collect::<Vec<_>>());
    assert_eq!(verify_ledger(&*store).await.unwrap().position, Position(1_000));
}

pub(super) async fn records_are_paged_by_position<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    store.commit(recording((0..10).map(|n| changed(&n.to_string())).collect())).await.unwrap();
    let positions = async |from, limit| {
        let page = store.records(Position(from), limit).await.unwrap();
        page.iter().map(|record| record.position.0).collect::<Vec<_>>()
    };
    assert_eq!(positions(0, 3).await, [1, 2, 3]);
    assert_eq!(positions(1, 3).await, [1, 2, 3]);
    assert_eq!(positions(9, 3).await, [9, 10]);
    assert_eq!(positions(1, usize::MAX).await.len(), 10);
    assert!(positions(11, 3).await.is_empty());
    assert!(positions(u64::MAX, 3).await.is_empty());
    assert!(positions(1, 0).await.is_empty());
}

pub(super) async fn an_issuance_is_found_by_its_counter_and_nothing_else_is<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let entries = vec![changed("a"), issued(0), issued(5), issued((1 << 56) - 1)];
    let receipts = store.commit(recording(entries)).await.unwrap().receipts;
    for receipt in &receipts[1..] {
        let found = store.record_of_serial(receipt.counter.unwrap()).await.unwrap().unwrap();
        assert_eq!(Receipt::assertion(&found), *receipt);
        let (_, event) = found.read().unwrap();
        assert!(
            matches!(event, Event::Issued(issuance) if Some(issuance.serial.counter()) == receipt.counter)
        );
    }
    for absent in [1, 4, 6, 1 << 20] {
        assert_eq!(store.record_of_serial(counter(absent)).await, Ok(None));
    }
}

pub(super) async fn a_serial_is_recorded_once<B: Backend>(backend: &B) {
    let place = backend.place();
    {
        let store = backend.open(&place);
        store.commit(recording(vec![issued(5), issued(9)])).await.unwrap();
    }
    let store = backend.open(&place);
    let head = store.head().await.unwrap();
    for entries in
        [vec![issued(5)], vec![issued(9)], vec![issued(11), issued(11)], vec![issued(12), issued(9)]]
    {
        let refused = Transaction { entries, ..writing(vec![put("a", "1")]) };
        assert!(matches!(store.commit(refused).await, Err(StoreError::Bug { .. })));
    }
    assert_eq!(store.head().await, Ok(head));
    assert_eq!(super::body_of(&store, "a").await, None);
    // Counters between the recorded ones may still come: replicas finish out of order.
    store.commit(recording(vec![issued(7), issued(6), issued(12)])).await.unwrap();
    assert_eq!(verify_ledger(&store).await.unwrap().position, Position(5));
}

pub(super) async fn entries_too_large_are_refused<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let sized = |detail: usize| {
        let (by, action, subject) = (String::new(), String::new(), String::new());
        let detail = "x".repeat(detail);
        Entry::new(Timestamp::EPOCH, &Event::Changed { by, action, subject, detail })
    };
    let frame = sized(1).body().len() - 1;
    let largest = sized(MAX_ENTRY_BYTES - frame);
    assert_eq!(largest.body().len(), MAX_ENTRY_BYTES);
    store.commit(recording(vec![largest])).await.unwrap();
    let larger = recording(vec![sized(MAX_ENTRY_BYTES - frame + 1)]);
    assert!(matches!(store.commit(larger).await, Err(StoreError::Bug { .. })));
    assert_eq!(store.head().await.unwrap().position, Position(1));
}

pub(super) async fn the_chain_goes_on_after_reopening<B: Backend>(backend: &B) {
    let place = backend.place();
    for round in 1..=3_u64 {
        let store = backend.open(&place);
        let receipts = store.commit(recording(vec![issued(round)])).await.unwrap().receipts;
        assert_eq!(receipts[0].position, Position(round));
        assert_eq!(verify_ledger(&store).await, store.head().await);
    }
}
