//! Tests of replicas, where nothing runs but what the test calls.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rhizome_core::authority::AuthorityKind;
use rhizome_core::clock::ManualClock;
use rhizome_core::ledger::{Entry, Event};
use rhizome_core::ports::{Clock as _, KeyRing};
use rhizome_core::replicas::PATIENCE_SECONDS;
use rhizome_core::rules::Rule;
use rhizome_keys::{MemoryKeyRing, RoutedKeyRing};
use rhizome_store::{FaultyStore, MemoryStore, Moment};

use super::*;
use crate::settings::Settings;
use crate::spawn::Spawner;
use crate::system::SystemEntropy;

/// What replicas share.
struct Mesh {
    clock: Arc<ManualClock>,
    store: MemoryStore,
    /// The root's.
    ring: Arc<MemoryKeyRing>,
    own_rings: Mutex<BTreeMap<String, Arc<MemoryKeyRing>>>,
}

/// A replica, and the faults of its way to the store.
struct Replica {
    ca: Arc<Ca>,
    store: Arc<FaultyStore<MemoryStore>>,
}

impl Mesh {
    fn new() -> Self {
        Self {
            clock: Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap())),
            store: MemoryStore::shared(),
            ring: Arc::new(MemoryKeyRing::new()),
            own_rings: Mutex::default(),
        }
    }

    /// Where the server of that name keeps the keys that are its own.
    fn own_ring(&self, name: &str) -> Arc<MemoryKeyRing> {
        let mut rings = self.own_rings.lock().unwrap();
        Arc::clone(rings.entry(name.to_owned()).or_default())
    }

    async fn load(&self, name: &str) -> Result<Replica, ApiError> {
        let settings = Settings::new(
            "example.test".parse().unwrap(),
            name.parse().unwrap(),
            "127.0.0.1:0".parse().unwrap(),
        );
        let store = Arc::new(FaultyStore::new(self.store.clone()));
        let ports = Ports {
            store: Arc::<FaultyStore<MemoryStore>>::clone(&store),
            keys: Arc::new(RoutedKeyRing::new(Arc::<MemoryKeyRing>::clone(&self.ring), self.own_ring(name))),
            clock: Arc::<ManualClock>::clone(&self.clock),
            entropy: Arc::new(SystemEntropy::default()),
        };
        let (ca, _refusals) = Ca::load(settings, ports, Spawner::default()).await?;
        Ok(Replica { ca, store })
    }

    /// A replica that has found its place.
    async fn replica(&self, name: &str) -> Replica {
        let replica = self.load(name).await.unwrap();
        replica.ca.found().await.unwrap();
        replica
    }

    async fn keys_of_roots(&self) -> usize {
        self.ring.keys().await.unwrap().iter().filter(|it| it.id.to_string().starts_with("root")).count()
    }

    /// Time goes on without a sign of life of anybody but `alive`.
    async fn outlast(&self, alive: &Replica) {
        for _ in 0..=PATIENCE_SECONDS {
            self.clock.advance(1);
            alive.ca.stand().await.unwrap();
        }
    }
}

fn rule(name: &str) -> Rule {
    let text = serde_json::to_string(&Rule::built_in()).unwrap();
    serde_json::from_str(&text.replace("default-ns-sa", name)).unwrap()
}

fn putting(name: &str) -> Transaction {
    Transaction::named("test").put(&rule(name))
}

fn record(ca: &Arc<Ca>) -> Transaction {
    let event = Event::Changed {
        by: "test".to_owned(),
        action: "test".to_owned(),
        subject: "test".to_owned(),
        detail: String::new(),
    };
    Transaction::named("test").record(Entry::new(ca.ports.clock.now(), &event))
}

fn knows(ca: &Arc<Ca>, name: &str) -> bool {
    ca.state().rules().keys().any(|known| known.to_string() == name)
}

fn is_conflict<T>(outcome: &Result<T, StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Conflict { key }) if *key == Lease::key())
}

#[tokio::test]
async fn replicas_that_start_at_once_make_one_root_and_an_issuer_each() {
    let mesh = Mesh::new();
    let (one, two, three) = tokio::join!(mesh.replica("r1"), mesh.replica("r2"), mesh.replica("r3"));
    let all = [&one, &two, &three];
    assert_eq!(mesh.keys_of_roots().await, 1, "somebody made a second root");
    for replica in all {
        replica.ca.catch_up().await.unwrap();
    }
    let state = one.ca.state();
    let of = |kind| state.authorities().values().filter(|it| it.value.kind == kind).count();
    assert_eq!((of(AuthorityKind::Root), of(AuthorityKind::Issuer)), (1, 3));
    let issuers = all.map(|it| it.ca.state().issuer().unwrap().id.to_string());
    assert!(issuers[0] != issuers[1] && issuers[1] != issuers[2] && issuers[0] != issuers[2], "{issuers:?}");
    let numbers = all.map(|it| it.ca.standing.as_ref().unwrap().number().value());
    assert_eq!(numbers.iter().copied().collect::<std::collections::BTreeSet<_>>().len(), 3, "{numbers:?}");
    assert_eq!(all.iter().filter(|it| it.ca.right().is_some()).count(), 1, "one has the lease");
    let digest = |it: &Replica| it.ca.bundle().unwrap().bundle.digest();
    assert!(all.iter().all(|it| digest(it) == digest(&one)), "they show different bundles");
}

#[tokio::test]
async fn what_one_replica_committed_counts_before_another_signs() {
    let mesh = Mesh::new();
    let (one, two) = (mesh.replica("r1").await, mesh.replica("r2").await);
    one.ca.commit(putting("later")).await.unwrap();
    assert!(!knows(&two.ca, "later"), "nothing follows by itself here");
    // A record of its own, as before every signature.
    two.ca.commit(record(&two.ca)).await.unwrap();
    assert!(knows(&two.ca, "later"), "it would have signed on an old state");
    let deleted = Transaction::named("test").delete(rule("later").key());
    two.ca.commit(deleted).await.unwrap();
    one.ca.commit(record(&one.ca)).await.unwrap();
    assert!(!knows(&one.ca, "later"), "a deletion went unseen");
    // Both at once, many times: nobody is left behind.
    for round in 0..50 {
        let (left, right) = (format!("left-{round}"), format!("right-{round}"));
        let (a, b) = tokio::join!(one.ca.commit(putting(&left)), two.ca.commit(putting(&right)));
        a.unwrap();
        b.unwrap();
        one.ca.commit(record(&one.ca)).await.unwrap();
        two.ca.commit(record(&two.ca)).await.unwrap();
        for ca in [&one.ca, &two.ca] {
            assert!(knows(ca, &left) && knows(ca, &right), "round {round}");
        }
    }
}

#[tokio::test]
async fn a_replica_that_cannot_see_what_others_wrote_commits_nothing_it_would_sign_for() {
    let mesh = Mesh::new();
    let (one, two) = (mesh.replica("r1").await, mesh.replica("r2").await);
    one.ca.commit(putting("later")).await.unwrap();
    two.store.fail_reads(Some(StoreError::Full { cause: "a test made it fail".to_owned() }));
    assert!(two.ca.commit(record(&two.ca)).await.is_err());
    two.store.fail_reads(None);
    two.ca.commit(record(&two.ca)).await.unwrap();
    assert!(knows(&two.ca, "later"));
}

#[tokio::test]
async fn a_replica_that_lost_its_lease_commits_nothing_under_it_and_the_other_goes_on() {
    let mesh = Mesh::new();
    let (one, two) = (mesh.replica("r1").await, mesh.replica("r2").await);
    assert!(one.ca.right().is_some() && two.ca.right().is_none());
    let early = two.ca.fenced(putting("early"));
    assert!(matches!(early, Err(ApiError::Store(StoreError::Conflict { key })) if key == Lease::key()));
    // r1 sleeps; everything it prepared before it fell asleep is refused when it wakes.
    let prepared = one.ca.fenced(putting("prepared")).unwrap();
    mesh.outlast(&two).await;
    assert!(two.ca.right().is_some(), "nobody took the lease");
    assert!(one.ca.right().is_some(), "it does not know yet");
    assert!(is_conflict(&one.ca.commit(prepared).await));
    assert!(is_conflict(&one.ca.commit(one.ca.fenced(putting("again")).unwrap()).await));
    two.ca.commit(two.ca.fenced(putting("fine")).unwrap()).await.unwrap();
    one.ca.stand().await.unwrap();
    assert!(one.ca.right().is_none(), "it knows now");
    assert!(knows(&one.ca, "fine") && !knows(&one.ca, "prepared") && !knows(&one.ca, "again"));
}

#[tokio::test]
async fn a_root_that_was_begun_under_a_lost_lease_is_not_stored_and_leaves_no_key() {
    let mesh = Mesh::new();
    let one = mesh.load("r1").await.unwrap();
    one.ca.stand().await.unwrap();
    let two = mesh.load("r2").await.unwrap();
    let right = one.ca.right();
    assert!(right.is_some());
    mesh.outlast(&two).await;
    // r1 still believes that it has the lease.
    one.ca.keep_authorities().await.unwrap();
    assert_eq!(mesh.keys_of_roots().await, 0, "it made a root although it lost its lease");
    assert!(one.ca.right().is_none());
    two.ca.found().await.unwrap();
    one.ca.found().await.unwrap();
    assert_eq!(mesh.keys_of_roots().await, 1);
}

#[tokio::test]
async fn a_replica_that_says_good_bye_hands_the_lease_over_at_once() {
    let mesh = Mesh::new();
    let (one, two) = (mesh.replica("r1").await, mesh.replica("r2").await);
    two.ca.stand().await.unwrap();
    assert!(two.ca.right().is_none());
    one.ca.say_good_bye().await;
    two.ca.stand().await.unwrap();
    assert!(two.ca.right().is_some());
    // And comes back under its own number, without waiting.
    let number = one.ca.standing.as_ref().unwrap().number();
    drop(one);
    let again = mesh.replica("r1").await;
    assert_eq!(again.ca.standing.as_ref().unwrap().number(), number);
    assert!(again.ca.right().is_none());
}

#[tokio::test]
async fn two_servers_of_one_name_never_issue_both() {
    let mesh = Mesh::new();
    let one = mesh.replica("r1").await;
    // It lives: the second is refused.
    let beating = async {
        loop {
            // What `beat` does in a server, only more often; nothing waits for it.
            tokio::time::sleep(BEAT / 4).await;
            one.ca.stand().await.unwrap();
        }
    };
    let refused = tokio::select! {
        outcome = mesh.load("r1") => outcome.map(drop),
        () = beating => unreachable!(),
    };
    assert!(matches!(refused, Err(ApiError::Conflict { what: "replica", .. })), "{refused:?}");
    // It sleeps: the second takes its name, and it issues nothing when it wakes.
    let second = mesh.replica("r1").await;
    assert!(one.ca.stand().await.is_err());
    assert!(one.ca.check_not_halted().is_err() && one.ca.right().is_none());
    second.ca.stand().await.unwrap();
    assert!(second.ca.check_not_halted().is_ok());
}

#[tokio::test]
async fn a_sign_of_life_of_unknown_outcome_costs_nobody_its_name() {
    let mesh = Mesh::new();
    let one = mesh.replica("r1").await;
    for moment in [Moment::Before, Moment::After] {
        one.store.fail_commit(1, moment);
        assert!(one.ca.stand().await.is_err());
        one.ca.stand().await.unwrap();
        one.ca.stand().await.unwrap();
        assert!(one.ca.right().is_some() && one.ca.check_not_halted().is_ok());
    }
}

#[tokio::test]
async fn only_the_replica_with_the_lease_keeps_house_and_signs_lists_of_the_gone() {
    let mesh = Mesh::new();
    let (one, two) = (mesh.replica("r1").await, mesh.replica("r2").await);
    one.ca.catch_up().await.unwrap();
    let of = |replica: &Replica| replica.ca.state().issuer().unwrap().id.clone();
    one.ca.stand().await.unwrap();
    assert!(one.ca.signs_list_of(&of(&one)) && two.ca.signs_list_of(&of(&two)));
    assert!(!one.ca.signs_list_of(&of(&two)), "its owner lives");
    assert!(!two.ca.signs_list_of(&of(&one)), "it has no lease");
    mesh.outlast(&one).await;
    assert!(one.ca.signs_list_of(&of(&two)), "nobody would sign it");
}

#[tokio::test]
async fn a_server_judges_its_own_issuers_and_keys_and_forgets_those_of_servers_that_are_gone() {
    let mesh = Mesh::new();
    let (one, gone) = (mesh.replica("r1").await, mesh.replica("r2").await);
    one.ca.catch_up().await.unwrap();
    let issuer = gone.ca.state().issuer().unwrap().id.clone();
    let of_gone = || one.ca.state().authorities().contains_key(&issuer);
    assert!(of_gone());
    let failing = async || {
        let checks = one.ca.checks(None).await;
        let failing = checks.into_iter().filter(|it| !it.ok && it.name.starts_with("authority."));
        failing.map(|it| it.summary).collect::<Vec<_>>()
    };
    assert_eq!(failing().await, [""; 0], "its keys are where only it reaches them");
    drop(gone);

    // Long after its issuer's end, in a process that knows no other time.
    mesh.clock.advance(60 * 86_400);
    drop(one);
    let one = mesh.load("r1").await.unwrap();
    let ended = one.ca.ended_in_state(mesh.clock.now());
    let named = |kind| ended.iter().any(|(key, _)| *key == DocumentKey::new(kind, issuer.to_string()));
    assert!(named(Kind::Authority) && named(Kind::Crl), "{ended:?}");
    let own = one.ca.state().authorities().keys().filter(|id| **id != issuer).cloned().collect::<Vec<_>>();
    assert!(own.iter().all(|id| !ended.iter().any(|(key, _)| key.id == id.as_str())), "{ended:?}");
}

#[tokio::test]
async fn one_server_of_several_fetches_the_bundles_of_foreign_domains() {
    let mesh = Mesh::new();
    let (one, two) = (mesh.replica("r1").await, mesh.replica("r2").await);
    let domain = "partner.test".parse().unwrap();
    assert!(one.ca.is_ours_to_fetch(&domain) && !two.ca.is_ours_to_fetch(&domain));
    mesh.outlast(&two).await;
    assert!(two.ca.is_ours_to_fetch(&domain), "its successor does");
}
