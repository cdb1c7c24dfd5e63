//! Tests of authorities in practice, where nothing runs but what the test calls.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rhizome_core::authority::JwtAuthority;
use rhizome_core::clock::ManualClock;
use rhizome_core::ports::{KeyRing, KeyRingError, Store};
use rhizome_core::state::Revocation;
use rhizome_id::{ReplicaNumber, Serial, SerialCounter};
use rhizome_jwt::TokenToBeSigned;
use rhizome_keys::MemoryKeyRing;
use rhizome_proto::admin::v1::Check;
use rhizome_store::{FaultyStore, MemoryStore, Moment};
use rhizome_x509::{RevocationCode, Signature, SigningAlgorithm, ToBeSigned};
use tokio::sync::oneshot;

use super::*;
use crate::settings::{Ports, Settings};
use crate::spawn::Spawner;
use crate::system::SystemEntropy;

const DAY: i64 = 86_400;

/// A key ring that can be made to wait before it makes a key, to sign what nobody asked for, and to destroy nothing.
#[derive(Default)]
struct Ring {
    keys: MemoryKeyRing,
    waits: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
    lies: AtomicBool,
    keeps: AtomicBool,
}

#[tonic::async_trait]
impl KeyRing for Ring {
    async fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        let waits = self.waits.lock().unwrap().take();
        if let Some((reached, go)) = waits {
            reached.send(()).unwrap();
            go.await.unwrap();
        }
        self.keys.generate(id, purpose, algorithm).await
    }

    async fn key(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError> {
        self.keys.key(id).await
    }

    async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        let signature = self.keys.sign(id, message).await?;
        let lies = self.lies.load(Ordering::Relaxed);
        Ok(if lies { Signature::external(vec![7; 70]) } else { signature })
    }

    async fn sign_token(&self, id: &KeyId, token: &TokenToBeSigned) -> Result<Signature, KeyRingError> {
        self.keys.sign_token(id, token).await
    }

    async fn keys(&self) -> Result<Vec<KeyInfo>, KeyRingError> {
        self.keys.keys().await
    }

    async fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError> {
        if self.keeps.load(Ordering::Relaxed) {
            return Err(KeyRingError::Unavailable { cause: "no token of that label is there".to_owned() });
        }
        self.keys.destroy(id).await
    }
}

/// What outlives an authority's process.
struct World {
    clock: Arc<ManualClock>,
    store: Arc<FaultyStore<MemoryStore>>,
    ring: Arc<Ring>,
}

impl World {
    fn new() -> Self {
        Self {
            clock: Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap())),
            store: Arc::new(FaultyStore::new(MemoryStore::new())),
            ring: Arc::default(),
        }
    }

    /// An authority that is founded and left alone.
    async fn authority(&self) -> Arc<Ca> {
        let (domain, replica) = ("example.test".parse().unwrap(), "r1".parse().unwrap());
        let settings =
            Settings { workers: 1, ..Settings::new(domain, replica, "127.0.0.1:0".parse().unwrap()) };
        let ports = Ports {
            store: Arc::<FaultyStore<MemoryStore>>::clone(&self.store),
            keys: Arc::<Ring>::clone(&self.ring),
            clock: Arc::<ManualClock>::clone(&self.clock),
            entropy: Arc::new(SystemEntropy::default()),
        };
        let (ca, _refusals) = Ca::load(settings, ports, Spawner::default()).await.unwrap();
        ca.found().await.unwrap();
        ca
    }

    async fn key_names(&self) -> Vec<String> {
        self.ring.keys().await.unwrap().into_iter().map(|it| it.id.to_string()).collect()
    }

    async fn stored_jwt_keys(&self) -> Vec<JwtAuthority> {
        let documents = self.store.documents(Kind::JwtAuthority, None, 1_000).await.unwrap();
        documents.iter().map(|it| it.read::<JwtAuthority>().unwrap().value).collect()
    }

    async fn lists_recorded_of(&self, issuer: &AuthorityId) -> usize {
        let records = self.store.records(rhizome_core::ledger::Position(1), 100_000).await.unwrap();
        let of = |body: &str| body.contains("crl.sign") && body.contains(issuer.as_str());
        records.iter().filter(|it| of(&it.body)).count()
    }
}

/// A task of the test, which it waits for.
fn apart<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    #[expect(clippy::disallowed_methods, reason = "a test's own task, which it waits for")]
    tokio::spawn(call)
}

async fn check(ca: &Arc<Ca>, name: &str) -> Check {
    let checks = ca.checks(None).await;
    let worst = checks.iter().filter(|it| it.name == name).min_by_key(|it| it.ok);
    worst.unwrap().clone()
}

fn serial(counter: u64) -> Serial {
    let counter = SerialCounter::new(counter).unwrap();
    Serial::compose(ReplicaNumber::new(1).unwrap(), counter, [7; Serial::RANDOM_BYTES])
}

async fn revoke(ca: &Arc<Ca>, counter: u64, issuer: &AuthorityId) {
    let revocation = Revocation {
        serial: serial(counter),
        reason: "test".to_owned(),
        by: "test".to_owned(),
        at: ca.ports.clock.now(),
        not_after: ca.ports.clock.now().plus(DAY),
        spiffe_id: "spiffe://example.test/web".parse().unwrap(),
        holder: "node:a/join_token/b".to_owned(),
        issuer: Some(issuer.clone()),
        code: RevocationCode::Unspecified,
    };
    ca.commit(Transaction::named("revoke").put(&revocation)).await.unwrap();
}

fn lists(ca: &Ca, issuer: &AuthorityId, counter: u64) -> bool {
    ca.state().crls()[issuer].value.crl.revoked().iter().any(|it| it.serial == serial(counter))
}

fn issuer(ca: &Ca) -> AuthorityId {
    ca.state().issuer().unwrap().id.clone()
}

#[tokio::test]
async fn an_old_issuer_without_its_key_holds_up_neither_lists_nor_rotations_nor_the_start() {
    let world = World::new();
    let ca = world.authority().await;
    let old = issuer(&ca);
    world.clock.advance(DAY);
    let young = ca.rotate_issuer_now("test", "test").await.unwrap();
    assert!(old < young, "the list of the old one is due first");
    world.ring.destroy(&ca.state().authorities()[&old].value.key).await.unwrap();

    revoke(&ca, 10, &old).await;
    revoke(&ca, 11, &young).await;
    let before = world.lists_recorded_of(&old).await;
    for _ in 0..3 {
        assert!(ca.sign_crls_or_say().await);
    }
    assert!(lists(&ca, &young, 11) && !lists(&ca, &old, 10));
    assert_eq!(world.lists_recorded_of(&old).await, before, "nothing is recorded that cannot be signed");
    assert_eq!(
        ca.signing_crls.lock().await.keys().collect::<Vec<_>>(),
        [&old],
        "it waits before it tries again"
    );
    let key = check(&ca, "authority.issuer.key").await;
    assert!(!key.ok && key.summary.contains(old.as_str()), "{key:?}");
    let current = check(&ca, "crl.current").await;
    assert!(!current.ok && current.summary.contains(&format!("{old} of replica r1")), "{current:?}");

    world.clock.advance(60);
    let next = ca.rotate_issuer_now("test", "again").await.unwrap();
    assert_eq!(issuer(&ca), next);
    world.clock.advance(60);
    let anew = world.authority().await;
    assert_eq!(issuer(&anew), next, "it starts again");
    // And what rotates by time does so, past half of the life of that one.
    world.clock.advance(26 * DAY);
    let ca = world.authority().await;
    ca.keep_authorities().await.unwrap();
    assert_ne!(issuer(&ca), next);
}

#[tokio::test]
async fn a_list_with_a_refused_signature_stops_issuing() {
    let world = World::new();
    let ca = world.authority().await;
    revoke(&ca, 10, &issuer(&ca)).await;
    world.ring.lies.store(true, Ordering::Relaxed);
    ca.check_not_halted().unwrap();
    assert!(ca.sign_crls_or_say().await);
    assert!(matches!(ca.check_not_halted(), Err(IssueError::Halted)));
    assert!(!lists(&ca, &issuer(&ca), 10));
}

#[tokio::test]
async fn a_jwt_key_of_a_future_that_was_taken_back_is_noticed_and_replaced() {
    let world = World::new();
    let ca = world.authority().await;
    world.clock.step(8 * DAY);
    ca.now().unwrap();
    world.clock.advance(300);
    ca.now().unwrap();
    ca.keep_authorities().await.unwrap();
    let future = ca.state().jwt_key().unwrap().id.clone();
    world.clock.step(-8 * DAY);
    let now = ca.now().unwrap();
    assert!(ca.state().jwt_key().unwrap().not_before > now, "it was replaced in the future");
    let noticed = check(&ca, "authority.jwt.expiry").await;
    assert!(!noticed.ok && noticed.summary.contains("clock"), "{noticed:?}");

    ca.keep_authorities().await.unwrap();
    let state = ca.state();
    let key = state.jwt_key().unwrap();
    assert!(key.id != future && key.not_before <= now);
    assert!(check(&ca, "authority.jwt.expiry").await.ok);
    ca.keep_authorities().await.unwrap();
    assert_eq!(ca.state().jwt_key().unwrap().id, key.id, "once");
}

#[tokio::test]
async fn a_rotation_by_hand_is_not_undone_by_one_by_time_while_a_successor_waits() {
    let world = World::new();
    let ca = world.authority().await;
    world.clock.advance(16 * DAY);
    ca.keep_authorities().await.unwrap();
    let prepared = |ca: &Ca| {
        let state = ca.state();
        let waits = |it: &Authority| it.kind == AuthorityKind::Issuer && it.state == AuthorityState::Prepared;
        state.authorities().values().filter(|it| waits(&it.value)).count()
    };
    assert_eq!(prepared(&ca), 1);
    // Its certificate, its record, its list: held before the last.
    let mut held = world.store.hold_commit(3, Moment::Before);
    let by_hand = apart({
        let ca = Arc::clone(&ca);
        async move { ca.rotate_issuer_now("test", "suspected copy").await }
    });
    assert!(held.reached().await);
    assert_eq!(prepared(&ca), 2);
    let by_time = apart({
        let ca = Arc::clone(&ca);
        async move { ca.keep_authorities().await }
    });
    // Whatever it can do, it does now.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    drop(held);
    let made = by_hand.await.unwrap().unwrap();
    by_time.await.unwrap().unwrap();
    assert_eq!(issuer(&ca), made);
}

#[tokio::test]
async fn a_jwt_key_is_known_only_with_the_first_bundle_that_holds_it() {
    let world = World::new();
    let ca = world.authority().await;
    let (reached, is_reached) = oneshot::channel();
    let (go, waits) = oneshot::channel();
    *world.ring.waits.lock().unwrap() = Some((reached, waits));
    let making = apart({
        let ca = Arc::clone(&ca);
        async move { ca.make_jwt_key(ca.now().unwrap(), "test").await }
    });
    is_reached.await.unwrap();
    let before: Vec<AuthorityId> = ca.state().jwt_authorities().keys().cloned().collect();
    ca.taint_jwt_key(&before[0], "test", "the bundle changes meanwhile").await.unwrap();
    let others: Vec<AuthorityId> = ca.state().jwt_authorities().keys().cloned().collect();
    go.send(()).unwrap();
    making.await.unwrap().unwrap();
    let state = ca.state();
    let made = state.jwt_authorities().values().find(|it| !others.contains(&it.value.id)).unwrap();
    assert_eq!(made.value.published, state.bundle().unwrap().value.bundle.sequence());
}

#[tokio::test]
async fn a_jwt_key_that_comes_to_nothing_is_destroyed_and_one_in_doubt_is_used_again() {
    let world = World::new();
    let ca = world.authority().await;
    let now = ca.now().unwrap();
    let founded = world.key_names().await;
    for error in
        [StoreError::Full { cause: "no space left".into() }, StoreError::Corrupt { cause: "a page".into() }]
    {
        world.store.fail_commit_with(1, Moment::Before, error);
        ca.make_jwt_key(now, "test").await.unwrap_err();
        assert_eq!(world.key_names().await, founded, "nobody will ever name it");
    }
    world.store.fail_commit(1, Moment::Before);
    ca.make_jwt_key(now, "test").await.unwrap_err();
    let with_one = world.key_names().await;
    assert_eq!(with_one.len(), founded.len() + 1, "its record may be stored");
    ca.make_jwt_key(now, "test").await.unwrap();
    assert_eq!(world.key_names().await, with_one, "it was not, and the key is used");

    world.store.fail_commit(1, Moment::After);
    ca.make_jwt_key(now, "test").await.unwrap_err();
    // It was stored after all: seen at once or met as a conflict, either is well.
    drop(ca.make_jwt_key(now, "test").await);
    let names = world.key_names().await;
    let stored = world.stored_jwt_keys().await;
    assert!(stored.iter().all(|it| names.contains(&it.key.to_string())), "no record is without its key");
    let tokens = names.iter().filter(|it| it.starts_with("jwt-")).count();
    assert_eq!(tokens, stored.len(), "and no key without a record");
}

#[tokio::test]
async fn an_issuer_whose_record_cannot_be_stored_leaves_no_key_behind_and_one_that_was_stored_after_all_keeps_it()
 {
    let full = || StoreError::Full { cause: "no space left".to_owned() };
    // The first commit of an issuer is the entry of its certificate, the second its record.
    for (moment, error) in [(Moment::Before, None), (Moment::Before, Some(full())), (Moment::After, None)] {
        let world = World::new();
        let ca = world.authority().await;
        let before = world.key_names().await;
        match error.clone() {
            Some(error) => world.store.fail_commit_with(2, moment, error),
            None => world.store.fail_commit(2, moment),
        }
        ca.rotate_issuer_now("admin:alice", "test").await.unwrap_err();
        ca.keep_authorities().await.unwrap();
        let authorities = world.store.documents(Kind::Authority, None, 100).await.unwrap();
        let key_of = |it: &rhizome_core::documents::Document| it.read::<Authority>().unwrap().value.key;
        let mut named: Vec<String> = authorities.iter().map(|it| key_of(it).to_string()).collect();
        named.extend(world.stored_jwt_keys().await.iter().map(|it| it.key.to_string()));
        let (mut kept, stored_after_all) = (world.key_names().await, matches!(moment, Moment::After));
        named.sort();
        kept.sort();
        assert_eq!(kept, named, "{moment:?} {error:?}");
        assert_eq!(kept.len(), before.len() + usize::from(stored_after_all), "{moment:?} {error:?}");
    }
}

#[tokio::test]
async fn the_key_of_an_authority_that_is_over_is_destroyed_once_its_ring_answers_again() {
    let world = World::new();
    let ca = world.authority().await;
    let old = issuer(&ca);
    let key = ca.state().authorities()[&old].value.key.to_string();
    world.clock.advance(DAY);
    ca.rotate_issuer_now("test", "test").await.unwrap();
    // Past its end, in a process that knows no other time.
    world.clock.advance(400 * DAY);
    let ca = world.authority().await;
    world.ring.keeps.store(true, Ordering::Relaxed);
    let forget = Effect::Forget { id: old.clone(), reason: authority::Reason::Expired };
    ca.perform(&forget, ca.now().unwrap()).await.unwrap();
    assert!(!ca.state().authorities().contains_key(&old), "nobody relies on it any more");
    ca.keep_authorities().await.unwrap();
    assert!(world.key_names().await.contains(&key));

    world.ring.keeps.store(false, Ordering::Relaxed);
    ca.keep_authorities().await.unwrap();
    assert!(!world.key_names().await.contains(&key));
}
