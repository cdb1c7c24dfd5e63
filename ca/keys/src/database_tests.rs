//! The ring in the database, on the store in memory, with other replicas and with faults.

use rhizome_store::{FaultyStore, MemoryStore, Moment};

use super::*;
use crate::{SealingKey, conformance};

const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;

type Faulty = Arc<FaultyStore<MemoryStore>>;

fn sealing_key(last: u8) -> SealingKey {
    SealingKey::from_text(&format!("{}{last:02x}", "00".repeat(31))).unwrap()
}

fn id(name: &str) -> KeyId {
    name.parse().unwrap()
}

fn database() -> Faulty {
    Arc::new(FaultyStore::new(MemoryStore::new()))
}

async fn open(store: &Faulty) -> DatabaseKeyRing {
    DatabaseKeyRing::open(Arc::<FaultyStore<MemoryStore>>::clone(store), sealing_key(1)).await.unwrap()
}

async fn document(store: &Faulty, name: &str) -> Document {
    store.document(&document_key(&id(name))).await.unwrap().unwrap()
}

/// Puts `body` in the place of the document `name`.
async fn plant(store: &Faulty, name: &str, body: &str) {
    let mut transaction = Transaction::named("plant");
    transaction.writes.push(Write::Put(document_key(&id(name)), body.into()));
    store.commit(transaction).await.unwrap();
}

#[tokio::test]
async fn the_ring_in_the_database_keeps_every_promise_of_the_port() {
    conformance::suite(|| async { open(&database()).await }).await;
}

#[tokio::test]
async fn keys_in_the_database_survive_reopening() {
    let store = database();
    conformance::survives_reopening(|| open(&store)).await;
}

#[tokio::test]
async fn two_replicas_that_make_one_key_at_once_get_the_same_one() {
    let store = database();
    let (slow, fast) = (open(&store).await, open(&store).await);
    let mut held = store.hold_commit(1, Moment::Before);
    let (wanted, purpose) = (id("root-1"), KeyPurpose::Root);
    let (late, early) = tokio::join!(slow.generate(&wanted, purpose, P256), async {
        assert!(held.reached().await, "the slow replica has made its key and is about to write it");
        let early = fast.generate(&wanted, purpose, P256).await;
        drop(held);
        early
    });
    assert_eq!(late.unwrap(), early.unwrap(), "the first one written is the key of both");
    assert_eq!(slow.keys().await.unwrap(), fast.keys().await.unwrap());
}

#[tokio::test]
async fn another_replica_signs_with_a_root_that_this_one_made_and_no_more_once_it_is_destroyed() {
    let store = database();
    let (one, other) = (open(&store).await, open(&store).await);
    let made = one.generate(&id("root-1"), KeyPurpose::Root, P256).await.unwrap();
    let probe = rhizome_x509::probe();
    let signature = other.sign(&made.id, &probe).await.unwrap();
    made.public_key.verify(probe.as_bytes(), &signature, P256).unwrap();
    one.destroy(&made.id).await.unwrap();
    assert!(matches!(other.sign(&made.id, &probe).await, Err(KeyRingError::NotFound { .. })));
}

#[tokio::test]
async fn an_issuer_signs_from_memory_while_the_database_is_away_and_a_root_does_not() {
    let store = database();
    let ring = open(&store).await;
    let issuer = ring.generate(&id("issuer-1"), KeyPurpose::Issuer, P256).await.unwrap();
    let root = ring.generate(&id("root-1"), KeyPurpose::Root, P256).await.unwrap();
    let probe = rhizome_x509::probe();
    ring.sign(&issuer.id, &probe).await.unwrap();
    let away = StoreError::Unavailable {
        cause: "pulled".to_owned(),
        retry_after: std::time::Duration::from_secs(1),
    };
    store.fail_reads(Some(away));
    assert!(ring.sign(&issuer.id, &probe).await.is_ok());
    let refused = ring.sign(&root.id, &probe).await.unwrap_err();
    assert!(matches!(refused, KeyRingError::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains("the database that holds the keys"), "{refused}");
    assert!(matches!(ring.key(&issuer.id).await, Err(KeyRingError::Unavailable { .. })), "asking asks");
}

#[tokio::test]
async fn a_key_whose_writing_failed_with_unknown_outcome_is_found_by_the_next_try() {
    let store = database();
    let ring = open(&store).await;
    let lost = StoreError::Bug { cause: "the answer was lost".to_owned() };
    store.fail_commit_with(1, Moment::After, lost);
    let (wanted, purpose) = (id("k"), KeyPurpose::Issuer);
    assert!(ring.generate(&wanted, purpose, P256).await.is_err());
    let written = ring.keys().await.unwrap();
    assert_eq!(ring.generate(&wanted, purpose, P256).await.unwrap(), written[0]);
}

#[tokio::test]
async fn the_wrong_sealing_key_opens_nothing_and_says_so_at_the_start() {
    let store = database();
    open(&store).await.generate(&id("root-1"), KeyPurpose::Root, P256).await.unwrap();
    let opened = DatabaseKeyRing::open(store, sealing_key(2)).await;
    let said = opened.err().unwrap().to_string();
    assert!(said.contains(&sealing_key(1).name()) && said.contains(&sealing_key(2).name()), "{said}");
}

#[tokio::test]
async fn a_document_put_in_the_place_of_another_key_or_altered_is_refused() {
    let store = database();
    let ring = open(&store).await;
    for name in ["a", "b"] {
        ring.generate(&id(name), KeyPurpose::Issuer, P256).await.unwrap();
    }
    let honest = document(&store, "a").await.body.to_string();
    let purposed = honest.replace("\"purpose\": \"issuer\"", "\"purpose\": \"root\"");
    assert_ne!(honest, purposed);
    for planted in [honest.clone(), purposed, honest.replace("\"id\": \"a\"", "\"id\": \"b\"")] {
        plant(&store, "b", &planted).await;
        let refused = open_again(&store).await.err().unwrap();
        assert!(matches!(refused, KeyRingError::Corrupt { ref id, .. } if id.as_str() == "b"), "{refused}");
    }
}

async fn open_again(store: &Faulty) -> Result<DatabaseKeyRing, KeyRingError> {
    DatabaseKeyRing::open(Arc::<FaultyStore<MemoryStore>>::clone(store), sealing_key(1)).await
}

#[tokio::test]
async fn changing_the_sealing_key_keeps_every_key_and_leaves_the_old_sealing_key_useless() {
    let store = database();
    let before = open(&store).await;
    for (name, purpose) in [("root-1", KeyPurpose::Root), ("issuer-1", KeyPurpose::Issuer)] {
        before.generate(&id(name), purpose, P256).await.unwrap();
    }
    let keys = before.keys().await.unwrap();
    let both = Arc::new(SealingKeys::from(sealing_key(2)).opening(sealing_key(1)));
    let changed = DatabaseKeyRing::open(Arc::<FaultyStore<MemoryStore>>::clone(&store), both).await.unwrap();
    assert_eq!(changed.keys().await.unwrap(), keys);
    assert!(matches!(open_again(&store).await, Err(KeyRingError::Sealed { .. })));
    let alone = DatabaseKeyRing::open(store, sealing_key(2)).await.unwrap();
    assert_eq!(alone.keys().await.unwrap(), keys);
}

#[tokio::test]
async fn nothing_in_the_database_says_a_byte_of_a_key() {
    let store = database();
    let ring = open(&store).await;
    ring.generate(&id("k"), KeyPurpose::Root, P256).await.unwrap();
    let body = document(&store, "k").await.body;
    assert!(body.contains("\"sealed\"") && !body.contains("danger_unsealed"), "{body}");
    assert!(!format!("{ring:?}").contains("sealed"), "{ring:?}");
}
