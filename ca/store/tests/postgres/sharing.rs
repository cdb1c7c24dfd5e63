//! Several servers over one database.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::changes::Changes;
use rhizome_core::documents::{Kind, Transaction, Version};
use rhizome_core::ledger::Position;
use rhizome_core::ports::{Store, StoreError};
use rhizome_id::Timestamp;
use rhizome_store::conformance::issued;
use rhizome_store::verify_ledger;
use tokio::task::JoinSet;

use crate::support::{cluster, is_here, key, name_of, open, writing};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_servers_that_write_at_once_make_one_chain_and_share_no_serial() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let stores: Vec<_> = (0..3).map(|_| Arc::new(open(&place))).collect();
    let mut lanes = JoinSet::new();
    for lane in 0..30_usize {
        let store = Arc::clone(&stores[lane % stores.len()]);
        lanes.spawn(async move {
            let mut told = Vec::new();
            for round in 0..10 {
                let first = store.reserve_serials(3, Timestamp::from_unix(1_000)).await.unwrap().value();
                for number in first..first + 3 {
                    let both = writing(&format!("{lane}-{round}-{number}"), "{}").record(issued(number));
                    let committed = store.commit(both).await.unwrap();
                    told.push((committed.receipts[0].position.0, committed.version.0, number));
                }
            }
            told
        });
    }
    let told: Vec<_> = lanes.join_all().await.into_iter().flatten().collect();
    let distinct = |of: fn(&(u64, u64, u64)) -> u64| told.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(told.len(), 900);
    assert_eq!((distinct(|it| it.0), distinct(|it| it.1), distinct(|it| it.2)), (900, 900, 900));
    for store in &stores {
        assert_eq!(verify_ledger(&**store).await.unwrap().position, Position(900));
        store.check_integrity().await.unwrap();
        assert_eq!(store.documents(Kind::Rule, None, usize::MAX).await.unwrap().len(), 900);
    }
    let batches: u64 = stores.iter().map(|store| store.statistics().batches).sum();
    assert!(batches < 1_200, "{batches} transactions for 1200 requests: nothing was gathered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_servers_that_race_for_one_document_exactly_one_wins_every_round() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let stores = [Arc::new(open(&place)), Arc::new(open(&place))];
    let mut version = stores[0].commit(writing("token", "0")).await.unwrap().version;
    for round in 0..40 {
        let mut racers = JoinSet::new();
        for store in stores.iter().cycle().take(6) {
            let (store, redeem) =
                (Arc::clone(store), writing("token", "1").require_unchanged(key("token"), version));
            racers.spawn(async move { store.commit(redeem).await });
        }
        let outcomes = racers.join_all().await;
        let won: Vec<_> = outcomes.iter().flatten().collect();
        assert_eq!(won.len(), 1, "round {round}: {outcomes:?}");
        version = won[0].version;
        let lost = outcomes.iter().filter(|it| matches!(it, Err(StoreError::Conflict { .. })));
        assert_eq!(lost.count(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_that_open_an_empty_database_at_once_make_one_schema() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let opened: Vec<_> = std::thread::scope(|scope| {
        let opening: Vec<_> = (0..6).map(|_| scope.spawn(|| open(&place))).collect();
        opening.into_iter().map(|it| it.join().unwrap()).collect()
    });
    for (number, store) in (0..).zip(&opened) {
        store.commit(Transaction::named("test").record(issued(number))).await.unwrap();
    }
    assert_eq!(verify_ledger(&opened[0]).await.unwrap().position, Position(6));
    let rows = cluster().sql(name_of(&place), "SELECT count(*) FROM rhizome.refinery_schema_history");
    assert_eq!(rows, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_hears_of_every_change_of_another_also_after_its_connections_were_cut() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let (writer, reader) = (open(&place), open(&place));
    let (mut known, mut seen) = (Version(0), 0);
    for round in 0..30_u64 {
        if round % 10 == 5 {
            let name = name_of(&place);
            let cut =
                format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
            cluster().sql("postgres", &cut);
        }
        // With a record, so that a lost answer is found out.
        let wrote = writer.commit(writing(&round.to_string(), "{}").record(issued(round))).await.unwrap();
        while known < wrote.version {
            let woken = tokio::time::timeout(Duration::from_secs(60), reader.wait_for_change(known)).await;
            assert!(woken.is_ok(), "round {round}: nobody was woken");
            let found = reader.changes(known, 100).await.unwrap();
            let Changes::These { changed, through, .. } = found else { panic!("forgotten") };
            seen += changed.len();
            known = through;
        }
    }
    assert_eq!(seen, 30);
}

#[tokio::test]
async fn a_server_that_is_never_started_anew_forgets_tombstones_too() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let store = open(&place);
    store.commit(writing("a", "1")).await.unwrap();
    store.commit(Transaction::named("test").delete(key("a"))).await.unwrap();
    let counted =
        || cluster().sql(name_of(&place), "SELECT count(*) FROM rhizome.documents WHERE body IS NULL");
    assert_eq!(counted(), "1");
    let wait = async {
        while counted() != "0" {
            cluster().sql(name_of(&place), "UPDATE rhizome.head SET version = version + 200000");
            store.commit(writing("b", "1")).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), wait).await.is_ok(), "it is kept for ever");
    assert_eq!(store.changes(Version(1), 9).await, Ok(Changes::Forgotten));
}

#[tokio::test]
async fn who_was_away_for_too_long_is_told_to_read_everything_anew() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    {
        let store = open(&place);
        store.commit(writing("a", "1")).await.unwrap();
        store.commit(Transaction::named("test").delete(key("a"))).await.unwrap();
        store.commit(writing("b", "1")).await.unwrap();
    }
    cluster().sql(name_of(&place), "UPDATE rhizome.head SET version = 200000");
    let store = open(&place);
    assert_eq!(store.changes(Version(1), 9).await, Ok(Changes::Forgotten));
    let kept = store.changes(Version(100_000), 9).await.unwrap();
    assert_eq!(kept, Changes::These { changed: Vec::new(), through: Version(200_000), more: false });
    assert!(store.document(&key("b")).await.unwrap().is_some());
    store.check_integrity().await.unwrap();
}
