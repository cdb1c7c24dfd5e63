//! Tests of imports and ceremonies with faults in between, where nothing runs but what the test calls.

use rhizome_core::authority::FirstRoot::{Await, Make};
use rhizome_core::clock::ManualClock;
use rhizome_core::ports::{KeyRing, Store, StoreError};
use rhizome_id::{ReplicaNumber, Serial, SerialCounter, TrustDomain};
use rhizome_keys::MemoryKeyRing;
use rhizome_store::{FaultyStore, MemoryStore, Moment};
use rhizome_x509::{KeyAlgorithm, RequestKey, RootSpec, Signature, SigningAlgorithm, prepare_root};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use super::*;
use crate::system::SystemEntropy;

const DAY: i64 = 86_400;

/// What outlives the processes of one machine.
struct Machine {
    clock: Arc<ManualClock>,
    store: Arc<FaultyStore<MemoryStore>>,
    ring: Arc<MemoryKeyRing>,
    replica: &'static str,
    first_root: FirstRoot,
}

impl Machine {
    fn new(first_root: FirstRoot) -> Self {
        Self::over(MemoryStore::new(), "r1", first_root)
    }

    fn over(store: MemoryStore, replica: &'static str, first_root: FirstRoot) -> Self {
        Self {
            clock: Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap())),
            store: Arc::new(FaultyStore::new(store)),
            ring: Arc::default(),
            replica,
            first_root,
        }
    }

    fn settings(&self) -> Settings {
        let mut settings =
            Settings::new(domain(), self.replica.parse().unwrap(), "127.0.0.1:0".parse().unwrap());
        settings.rotation.first_root = self.first_root;
        settings
    }

    fn ports(&self) -> Ports {
        Ports {
            store: Arc::<FaultyStore<MemoryStore>>::clone(&self.store),
            keys: Arc::<MemoryKeyRing>::clone(&self.ring),
            clock: Arc::<ManualClock>::clone(&self.clock),
            entropy: Arc::new(SystemEntropy::default()),
        }
    }

    async fn adopt(&self, foreign: &Foreign, key: OfferedKey) -> Result<Adopted, OfflineError> {
        adopt(self.settings(), self.ports(), &foreign.offer(&key), key).await
    }

    async fn request(&self, wanted: Wanted) -> Result<Request, OfflineError> {
        Ok(request(self.settings(), self.ports(), wanted, None).await?.paper)
    }

    async fn sign(&self, request: &Request) -> Result<Answer, OfflineError> {
        sign(self.settings(), self.ports(), request, Digest::ZERO).await
    }

    async fn take_in(&self, answer: &Answer) -> Result<Adopted, OfflineError> {
        take_in(self.settings(), self.ports(), answer).await
    }

    /// A server over what the machine has.
    async fn server(&self) -> Result<Arc<Ca>, ApiError> {
        let (ca, _refusals) = Ca::load(self.settings(), self.ports(), Spawner::default()).await?;
        ca.found().await?;
        Ok(ca)
    }

    async fn keys(&self) -> Vec<String> {
        self.ring.keys().await.unwrap().into_iter().map(|it| it.id.to_string()).collect()
    }

    async fn authorities(&self) -> usize {
        self.store.documents(rhizome_core::documents::Kind::Authority, None, 100).await.unwrap().len()
    }
}

fn domain() -> TrustDomain {
    "example.test".parse().unwrap()
}

/// A root as another CA has it.
struct Foreign {
    certificate: CaCertificate,
    key: RequestKey,
}

impl Foreign {
    fn new() -> Self {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let linted = prepare_root(&RootSpec {
            trust_domain: &domain(),
            generation: &"foreign".parse().unwrap(),
            public_key: key.public_key(),
            algorithm: SigningAlgorithm::EcdsaP256Sha256,
            serial: Serial::compose(
                ReplicaNumber::new(1).unwrap(),
                SerialCounter::new(1).unwrap(),
                [7; Serial::RANDOM_BYTES],
            ),
            not_before: "2026-01-01T00:00:00Z".parse().unwrap(),
            not_after: "2036-01-01T00:00:00Z".parse().unwrap(),
        })
        .unwrap();
        #[expect(clippy::disallowed_methods, reason = "ring takes its own source only")]
        let random = ring::rand::SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
        let signature = pair.sign(&random, linted.to_be_signed().as_bytes()).unwrap();
        let certificate = linted.seal(Signature::external(signature.as_ref().to_vec())).unwrap();
        Self { certificate: CaCertificate::parse(certificate.der()).unwrap(), key }
    }

    fn given(&self) -> OfferedKey {
        OfferedKey::Given(self.key.pkcs8_der())
    }

    fn offer(&self, key: &OfferedKey) -> Offer {
        Offer {
            certificate: self.certificate.clone(),
            between: Vec::new(),
            roots: Vec::new(),
            with_key: !matches!(key, OfferedKey::None),
        }
    }
}

fn issuer(ca: &Ca) -> AuthorityId {
    ca.state().issuer().unwrap().id.clone()
}

#[tokio::test]
async fn a_server_takes_up_a_root_that_was_imported_and_rotates_issuers_under_it() {
    let (machine, foreign) = (Machine::new(Make), Foreign::new());
    let adopted = machine.adopt(&foreign, foreign.given()).await.unwrap();
    assert_eq!((adopted.part, &adopted.anchor), (Part::SignsIssuers, &foreign.certificate));
    let ca = machine.server().await.unwrap();
    assert_eq!(ca.bundle().unwrap().bundle.anchors(), std::slice::from_ref(&foreign.certificate));
    assert_eq!(ca.state().issuer().unwrap().issuer.root(), &foreign.certificate);
    let first = issuer(&ca);
    machine.clock.advance(26 * DAY);
    machine.server().await.unwrap().keep_authorities().await.unwrap();
    assert_ne!(issuer(&machine.server().await.unwrap()), first, "half of its life is over");
}

#[tokio::test]
async fn a_key_that_does_not_belong_to_the_certificate_is_not_kept() {
    let (machine, foreign, other) = (Machine::new(Make), Foreign::new(), Foreign::new());
    let refused = machine.adopt(&foreign, other.given()).await;
    assert!(matches!(refused, Err(OfflineError::OtherKey(_))), "{refused:?}");
    assert!(machine.keys().await.is_empty() && machine.authorities().await == 0);
    let refused = machine.adopt(&foreign, OfferedKey::InRing("none".parse().unwrap())).await;
    assert!(matches!(refused, Err(OfflineError::Keys(KeyRingError::NotFound { .. }))), "{refused:?}");
}

#[tokio::test]
async fn an_import_that_is_cut_off_leaves_one_key_at_most_and_goes_on_with_it() {
    let foreign = Foreign::new();
    let away = || StoreError::Unavailable { cause: "away".into(), retry_after: std::time::Duration::ZERO };
    let full = StoreError::Full { cause: "no space left".into() };
    for (moment, error, kept) in
        [(Moment::Before, full, 0), (Moment::Before, away(), 0), (Moment::After, away(), 1)]
    {
        let machine = Machine::new(Make);
        drop(machine.request(Wanted::Root).await.unwrap());
        machine.store.fail_commit_with(1, moment, error);
        machine.adopt(&foreign, foreign.given()).await.unwrap_err();
        assert_eq!((machine.keys().await.len(), machine.authorities().await), (kept, kept));
        match machine.adopt(&foreign, foreign.given()).await {
            Err(OfflineError::NotEmpty(_)) if kept == 1 => {}
            adopted => drop(adopted.unwrap()),
        }
        assert_eq!((machine.keys().await.len(), machine.authorities().await), (1, 1));
        machine.server().await.unwrap();
    }
    // Killed in between: the key is there, and no record.
    let machine = Machine::new(Make);
    let (id, algorithm) = ("root-of-before".parse().unwrap(), SigningAlgorithm::EcdsaP256Sha256);
    machine.ring.import(&id, KeyPurpose::Root, algorithm, &foreign.key.pkcs8_der()).await.unwrap();
    machine.adopt(&foreign, foreign.given()).await.unwrap();
    assert_eq!(machine.keys().await, ["root-of-before"]);
    machine.server().await.unwrap();
}

#[tokio::test]
async fn of_two_imports_over_one_database_one_is_refused() {
    let store = MemoryStore::shared();
    let (one, two) = (Machine::over(store.clone(), "r1", Make), Machine::over(store, "r2", Make));
    let (foreign, other) = (Foreign::new(), Foreign::new());
    one.adopt(&foreign, foreign.given()).await.unwrap();
    let refused = two.adopt(&other, other.given()).await;
    assert!(matches!(refused, Err(OfflineError::NotEmpty(_))), "{refused:?}");
    assert!(two.keys().await.is_empty());
}

#[tokio::test]
async fn an_import_that_waited_for_another_one_finds_its_authority() {
    let store = MemoryStore::shared();
    let (one, two) = (Machine::over(store.clone(), "r1", Make), Machine::over(store, "r2", Make));
    let (foreign, other) = (Foreign::new(), Foreign::new());
    let (first, _refusals) = Ca::load(one.settings(), one.ports(), Spawner::default()).await.unwrap();
    first.found_once(true).await.unwrap();
    first.await_right().await.unwrap();
    let importing = async {
        let id = "root-first".parse().unwrap();
        adopt_as(&first, &foreign.offer(&foreign.given()), foreign.given(), id).await.unwrap();
        first.say_good_bye().await;
    };
    // The second one looks first, and waits for the right that the first one has.
    let (refused, ()) = tokio::join!(two.adopt(&other, other.given()), importing);
    assert!(matches!(refused, Err(OfflineError::NotEmpty(_))), "{refused:?}");
    assert_eq!((two.keys().await.len(), two.authorities().await), (0, 1));
}

#[tokio::test]
async fn a_server_that_keeps_no_root_key_takes_none_makes_none_and_uses_none() {
    let (machine, foreign) = (Machine::new(Await), Foreign::new());
    let refused = machine.adopt(&foreign, foreign.given()).await;
    assert!(matches!(refused, Err(OfflineError::KeyMustStayAway)), "{refused:?}");
    let paper = machine.request(Wanted::Root).await.unwrap();
    let refused = machine.sign(&paper).await;
    assert!(matches!(refused, Err(OfflineError::KeyMustStayAway)), "{refused:?}");
    assert!(machine.keys().await.is_empty());
    // One that had its root's key so far says so, and does not go on with it.
    let mut machine = Machine::new(Make);
    drop(machine.server().await.unwrap());
    machine.first_root = Await;
    let refused = machine.server().await.err().unwrap().to_string();
    assert!(refused.contains("has its key here"), "{refused}");
}

#[tokio::test]
async fn a_ceremony_brings_a_root_and_issuers_to_a_server_that_has_no_root_key() {
    let (server, offline) = (Machine::new(Await), Machine::new(Make));
    let nothing = server.server().await.err().unwrap().to_string();
    assert!(nothing.contains("rhizome root ceremony"), "{nothing}");
    let early = server.request(Wanted::Issuer).await;
    assert!(matches!(early, Err(OfflineError::NoRoot(_))), "{early:?}");

    let paper = server.request(Wanted::Root).await.unwrap();
    let answer = offline.sign(&paper).await.unwrap();
    assert_eq!(offline.sign(&paper).await.unwrap(), answer, "the same paper again gets the same answer");
    server.take_in(&answer).await.unwrap();
    assert!(server.keys().await.is_empty(), "the root's key is elsewhere");
    let again = server.request(Wanted::Root).await;
    assert!(matches!(again, Err(OfflineError::NotEmpty(_))), "{again:?}");
    let second = offline.sign(&Request { id: "root-other".parse().unwrap(), ..paper.clone() }).await;
    assert!(matches!(second, Err(OfflineError::NotEmpty(_))), "one root for one machine: {second:?}");
    let without = server.server().await.err().unwrap().to_string();
    assert!(without.contains("rhizome root ceremony"), "{without}");

    let paper = server.request(Wanted::Issuer).await.unwrap();
    let answer = offline.sign(&paper).await.unwrap();
    server.take_in(&answer).await.unwrap();
    server.take_in(&answer).await.unwrap();
    assert_eq!(server.authorities().await, 2, "the same answer twice changes nothing");
    let ca = server.server().await.unwrap();
    assert_eq!(issuer(&ca), paper.id);
    assert_eq!(ca.bundle().unwrap().bundle.anchors().len(), 1);
    let by_hand = ca.rotate_issuer_now("test", "test").await.unwrap_err().to_string();
    assert!(by_hand.contains("rhizome root ceremony"), "{by_hand}");
    let at_root = offline.request(Wanted::Issuer).await;
    assert!(matches!(at_root, Err(OfflineError::KeyIsHere)), "{at_root:?}");
}

#[tokio::test]
async fn the_next_issuer_is_asked_for_long_before_the_end_and_signs_when_it_is_due() {
    let (server, offline) = (Machine::new(Await), Machine::new(Make));
    for wanted in [Wanted::Root, Wanted::Issuer] {
        let paper = server.request(wanted).await.unwrap();
        server.take_in(&offline.sign(&paper).await.unwrap()).await.unwrap();
    }
    let due = async |ca: &Arc<Ca>| {
        let checks = ca.checks(None).await;
        !checks.iter().find(|it| it.name == "authority.issuer.request").unwrap().ok
    };
    let ca = server.server().await.unwrap();
    let (first, until) = (issuer(&ca), ca.state().issuer().unwrap().issuer.not_after_limit());
    assert!(!due(&ca).await);
    let life = until.since(ca.now().unwrap());
    for machine in [&server, &offline] {
        machine.clock.advance(life / 2 + DAY);
    }
    let ca = server.server().await.unwrap();
    assert!(due(&ca).await, "half of its life is over");

    let paper = server.request(Wanted::Issuer).await.unwrap();
    server.take_in(&offline.sign(&paper).await.unwrap()).await.unwrap();
    let ca = server.server().await.unwrap();
    assert!(!due(&ca).await);
    assert_eq!(issuer(&ca), first, "it waits for its turn");
    server.clock.advance(life / 3);
    assert_eq!(issuer(&server.server().await.unwrap()), paper.id);
}

#[tokio::test]
async fn answers_that_do_not_belong_here_are_refused_and_change_nothing() {
    let (server, offline) = (Machine::new(Await), Machine::new(Make));
    let paper = server.request(Wanted::Root).await.unwrap();
    server.take_in(&offline.sign(&paper).await.unwrap()).await.unwrap();
    let paper = server.request(Wanted::Issuer).await.unwrap();
    let answer = offline.sign(&paper).await.unwrap();

    // Another machine's root; another key; another server's request.
    let stranger = Machine::new(Make);
    let root = stranger.sign(&Machine::new(Await).request(Wanted::Root).await.unwrap()).await.unwrap();
    let refused = stranger.sign(&paper).await;
    assert!(matches!(refused, Err(OfflineError::OtherRoot { .. })), "{refused:?}");
    let refused = server.take_in(&root).await;
    assert!(matches!(refused, Err(OfflineError::NotEmpty(_))), "{refused:?}");
    let astray = Answer { id: "issuer-other".parse().unwrap(), ..answer.clone() };
    let refused = server.take_in(&astray).await;
    assert!(matches!(refused, Err(OfflineError::Keys(KeyRingError::NotFound { .. }))), "{refused:?}");
    let second = server.request(Wanted::Issuer).await.unwrap();
    let elsewhere = Answer { replica: "r2".parse().unwrap(), ..answer.clone() };
    let refused = server.take_in(&elsewhere).await;
    assert!(matches!(refused, Err(OfflineError::OtherReplica(_))), "{refused:?}");
    let longer = Request { lifetime: Ttl::hours(24 * 365 * 20), ..paper.clone() };
    let refused = offline.sign(&longer).await;
    assert!(matches!(refused, Err(OfflineError::TooLong { .. })), "{refused:?}");
    let swapped = Answer { id: second.id, ..answer.clone() };
    let refused = server.take_in(&swapped).await;
    assert!(matches!(refused, Err(OfflineError::OtherKey(_))), "{refused:?}");
    let forged = Answer { certificate_sha256: Digest::ZERO, ..answer.clone() };
    assert!(matches!(server.take_in(&forged).await, Err(OfflineError::Paper(_))));
    assert_eq!(server.authorities().await, 1);
    // Too late.
    server.clock.advance(2 * 365 * DAY);
    let refused = server.take_in(&answer).await;
    assert!(matches!(refused, Err(OfflineError::Adoption(AdoptionError::Expired { .. }))), "{refused:?}");
}
