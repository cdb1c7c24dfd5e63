//! Growth: what a certificate costs with more ledger behind it and more rules around it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::authority::{Authority, AuthorityKind};
use rhizome_core::documents::{Kind, Transaction};
use rhizome_core::ledger::{Entry, Event, Issuance, Profile};
use rhizome_core::ports::Store as _;
use rhizome_core::rules::{Rule, RuleDraft};
use rhizome_id::{Digest, ReplicaNumber, Serial, SerialCounter, Timestamp};
use rhizome_store::SqliteStore;

use crate::load::{Load, Mode};
use crate::raw;
use crate::server::{CLUSTER, Server, today};

const LOAD: Load = Load { mode: Mode::Unary, connections: 2, in_flight: 64, pace: None };
/// Things written in one transaction while filling.
const BATCH: usize = 500;

pub(crate) async fn with_ledger_rows(sizes: &[usize], each: Duration) {
    for rows in sizes {
        let mut server = filled(move |database| fill_ledger(database, *rows));
        server.join();
        print!("{rows:>9} ledger rows: ");
        LOAD.run(&server, each).await.print(&raw::measure());
    }
}

pub(crate) async fn with_rules(sizes: &[usize], each: Duration) {
    for rules in sizes {
        let mut server = filled(move |database| fill_rules(database, *rules));
        server.join();
        print!("{rules:>9} rules:       ");
        LOAD.run(&server, each).await.print(&raw::measure());
    }
}

/// A server whose database was filled; the filling runs on a runtime of its own, outside of ours.
pub(crate) fn filled(fill: impl FnOnce(&Path) + Send) -> Server {
    std::thread::scope(|scope| scope.spawn(|| Server::filled(fill)).join().expect("a filled server"))
}

fn in_store<F: Future<Output = ()>>(database: &Path, work: impl FnOnce(Arc<SqliteStore>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = SqliteStore::open(database, rhizome_store::Options::default()).expect("the store");
        work(Arc::new(store)).await;
    });
}

fn fill_ledger(database: &Path, rows: usize) {
    let now = Timestamp::from_unix(1_700_000_000);
    in_store(database, async |store| fill(&store, rows, now, |serial, _number| issuance(serial, now)).await);
}

/// Certificates that are alive, issued in turns to as many nodes, which are called as those of a fleet.
pub(crate) fn fill_with_living(database: &Path, rows: usize, nodes: usize) {
    let now = today();
    in_store(database, async |store| {
        let authorities = store.documents(Kind::Authority, None, BATCH).await.expect("authorities");
        let authorities = authorities.iter().map(|it| it.read::<Authority>().expect("an authority").value);
        let issuer = authorities.into_iter().find(|it| it.kind == AuthorityKind::Issuer).expect("an issuer");
        let living = |serial, number: usize| Issuance {
            issuer: issuer.id.clone(),
            key: issuer.key.clone(),
            caller: format!("node:{CLUSTER}/join_token/sim-{:05}", number % nodes),
            ..issuance(serial, now)
        };
        fill(&store, rows, now, living).await;
    });
}

async fn fill(
    store: &SqliteStore,
    rows: usize,
    now: Timestamp,
    issuance: impl Fn(Serial, usize) -> Issuance,
) {
    let replica = ReplicaNumber::new(0).expect("a replica");
    let mut written = 0;
    while written < rows {
        let count = BATCH.min(rows - written);
        let first = store.reserve_serials(u32::try_from(count).expect("few"), now).await.expect("serials");
        let mut transaction = Transaction::named("fill");
        for offset in 0..count {
            let counter = SerialCounter::new(first.value() + offset as u64).expect("a counter");
            let serial = Serial::compose(replica, counter, [7; Serial::RANDOM_BYTES]);
            let event = Event::Issued(issuance(serial, written + offset));
            transaction = transaction.record(Entry::new(now, &event));
        }
        store.commit(transaction).await.expect("a commit");
        written += count;
    }
}

fn issuance(serial: Serial, now: Timestamp) -> Issuance {
    Issuance {
        profile: Profile::Workload,
        spiffe_id: "spiffe://bench.test/ns/default/sa/web".parse().expect("an ID"),
        dns_names: Vec::new(),
        serial,
        not_before: now,
        not_after: now.plus(3_599),
        public_key: Digest::ZERO,
        tbs: Digest::ZERO,
        issuer: "issuer-1".parse().expect("a name"),
        key: "issuer-1".parse().expect("a name"),
        caller: "node:bench/join_token/n1".to_owned(),
        rule: Some("default-ns-sa".to_owned()),
        request: None,
        bundle: 1,
        attributes: vec!["namespace=default".to_owned(), "service_account=web".to_owned()],
    }
}

fn fill_rules(database: &Path, rules: usize) {
    in_store(database, async |store| {
        let numbers: Vec<usize> = (0..rules).collect();
        for batch in numbers.chunks(BATCH) {
            let put = |transaction: Transaction, number: &usize| transaction.put(&rule(*number));
            store.commit(batch.iter().fold(Transaction::named("fill"), put)).await.expect("a commit");
        }
    });
}

fn rule(number: usize) -> Rule {
    let text = format!(
        r#"{{"name":"rule-{number}","when":{{"namespace":["team-{number}"],"service_account":["*"]}},
            "identity":"/team/{number}/{{service_account}}"}}"#
    );
    let draft: RuleDraft = serde_json::from_str(&text).expect("a draft");
    Rule::new(draft).expect("a rule")
}
