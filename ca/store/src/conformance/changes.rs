//! Clauses about what others wrote. A store with one owner has nothing to tell.

use std::sync::Arc;

use rhizome_core::changes::{Changed, Changes};
use rhizome_core::documents::{Version, Write};
use rhizome_core::ports::Store;

use super::{Backend, changed, key, put, recording, writing};

async fn all(store: &impl Store, mut since: Version, limit: usize) -> (Vec<Changed>, Version) {
    let mut found = Vec::new();
    loop {
        let Changes::These { changed, through, more } = store.changes(since, limit).await.unwrap() else {
            panic!("forgotten")
        };
        assert!(changed.iter().all(|it| since < it.version && it.version <= through));
        found.extend(changed);
        since = through;
        if !more {
            return (found, through);
        }
    }
}

pub(super) async fn everything_after_a_version_is_told_once_in_order_and_deletions_too<B: Backend>(
    backend: &B,
) {
    let place = backend.place();
    let store = backend.open(&place);
    if !store.is_shared() {
        assert_eq!(all(&store, Version(7), 1).await, (Vec::new(), Version(7)));
        return;
    }
    assert_eq!(all(&store, Version(0), 9).await.0, []);
    let first =
        store.commit(writing(vec![put("a", "1"), put("b", "1"), put("c", "1")])).await.unwrap().version;
    let second = store.commit(writing(vec![put("a", "2"), Write::Delete(key("z"))])).await.unwrap().version;
    let third = store.commit(writing(vec![Write::Delete(key("b"))])).await.unwrap().version;
    store.commit(recording(vec![changed("x")])).await.unwrap();
    assert_eq!(store.newest_version().await, Ok(third));
    let told =
        |id: &str, version, body: Option<&str>| Changed { key: key(id), version, body: body.map(Into::into) };
    let expected = [told("c", first, Some("1")), told("a", second, Some("2")), told("b", third, None)];
    for limit in [1, 2, 3, 99] {
        assert_eq!(all(&store, Version(0), limit).await, (expected.to_vec(), third), "pages of {limit}");
    }
    assert_eq!(all(&store, first, 9).await.0, expected[1..]);
    assert_eq!(all(&store, third, 9).await, (Vec::new(), third));
    // Beyond the newest there was something that is gone: whoever knows it starts anew.
    assert_eq!(store.changes(Version(third.0 + 1), 9).await, Ok(Changes::Forgotten));
    // What came back is no tombstone any more. Writes of one transaction are never parted.
    store.commit(writing(vec![put("b", "3"), put("d", "3"), put("e", "3")])).await.unwrap();
    let (found, _) = all(&store, third, 1).await;
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|it| it.body.as_deref() == Some("3")));
}

pub(super) async fn whoever_waits_is_woken_by_a_newer_version<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = Arc::new(backend.open(&place));
    if !store.is_shared() {
        return;
    }
    let mut known = Version(0);
    for round in 0..5 {
        let committed = store.commit(writing(vec![put("a", &round.to_string())])).await.unwrap();
        let woken =
            tokio::time::timeout(std::time::Duration::from_secs(60), store.wait_for_change(known)).await;
        assert!(woken.is_ok(), "nobody was woken");
        known = committed.version;
    }
}
