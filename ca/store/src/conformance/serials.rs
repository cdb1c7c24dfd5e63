//! Clauses about serial counters.

use std::collections::BTreeSet;
use std::sync::Arc;

use rhizome_core::ports::{Store, StoreError};
use rhizome_id::{SerialCounter, Timestamp};
use tokio::task::JoinSet;

use super::{Backend, counter, issued, recording};

pub(super) async fn blocks_never_overlap<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = Arc::new(backend.open(&place));
    let mut racers = JoinSet::new();
    for count in 1..=50_u32 {
        let store = Arc::clone(&store);
        racers.spawn(async move {
            let first = store.reserve_serials(count, Timestamp::from_unix(5)).await.unwrap().value();
            (first, first + u64::from(count))
        });
    }
    let mut blocks = racers.join_all().await;
    blocks.sort_unstable();
    assert!(blocks.windows(2).all(|pair| pair[0].1 <= pair[1].0), "blocks overlap: {blocks:?}");
}

pub(super) async fn serials_never_repeat_across_reopening<B: Backend>(backend: &B) {
    let place = backend.place();
    let mut seen = BTreeSet::new();
    // The clock goes back between two starts.
    for now in [3, 3, 2, 1, 4, 0, -7] {
        let store = backend.open(&place);
        for count in [1, 10, 100] {
            let first = store.reserve_serials(count, Timestamp::from_unix(now)).await.unwrap().value();
            let fresh = (first..first + u64::from(count)).all(|number| seen.insert(number));
            assert!(fresh, "a serial was given out twice, at {first} and {count} after it");
        }
    }
}

pub(super) async fn a_block_starts_no_lower_than_the_clock<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let first = store.reserve_serials(10, Timestamp::from_unix(1_800_000_000)).await.unwrap();
    assert_eq!(first.value(), 1_800_000_000 << 20);
    let next = store.reserve_serials(10, Timestamp::from_unix(1_700_000_000)).await.unwrap();
    assert_eq!(next.value(), (1_800_000_000 << 20) + 10);
    let later = store.reserve_serials(10, Timestamp::from_unix(1_800_000_001)).await.unwrap();
    assert_eq!(later.value(), 1_800_000_001 << 20);
}

pub(super) async fn a_block_starts_behind_every_recorded_serial<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    store.commit(recording(vec![issued(9 << 20), issued(3)])).await.unwrap();
    let first = store.reserve_serials(1, Timestamp::from_unix(1)).await.unwrap();
    assert_eq!(first.value(), (9 << 20) + 1);
}

pub(super) async fn blocks_that_do_not_fit_or_are_empty_are_refused<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let refused = |outcome: Result<SerialCounter, StoreError>| matches!(outcome, Err(StoreError::Bug { .. }));
    assert!(refused(store.reserve_serials(0, Timestamp::EPOCH).await));
    assert!(refused(store.reserve_serials(1, Timestamp::MAX).await));
    // A refusal uses nothing up.
    assert_eq!(store.reserve_serials(1, Timestamp::from_unix(1)).await, Ok(counter(1 << 20)));
    store.commit(recording(vec![issued(SerialCounter::MAX.value() - 1)])).await.unwrap();
    assert!(refused(store.reserve_serials(2, Timestamp::EPOCH).await));
    assert_eq!(store.reserve_serials(1, Timestamp::EPOCH).await, Ok(SerialCounter::MAX));
    assert!(refused(store.reserve_serials(1, Timestamp::EPOCH).await));
}
