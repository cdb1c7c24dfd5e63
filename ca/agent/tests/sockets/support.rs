//! What the tests share: identities that the test decides, a served socket, clients.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::BoxFuture;
use rhizome_agent::holdings::{Awaited, Identities, NotYet, Standing, Svid, View};
use rhizome_agent::socket::{Doors, DoorsSettings, Socket, serve};
use rhizome_agent::tokens::{NoToken, Token, TokenWish, Tokens};
use rhizome_agent::{Spawner, SystemClock};
use rhizome_core::attributes::Attributes;
use rhizome_id::{ReplicaNumber, Serial, SerialCounter, Timestamp, TrustDomain, Ttl};
use rhizome_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use rhizome_x509::{
    Bundle, CaCertificate, JwtKey, KeyAlgorithm, RequestKey, RootSpec, Signature, SigningAlgorithm,
    prepare_root,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use zeroize::Zeroizing;

/// Longer than anything here takes; whoever waits that long waits for ever.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const WEB: &str = "spiffe://example.org/ns/prod/sa/web";

pub(crate) fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// A self-signed root.
#[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
pub(crate) fn root(name: &str) -> CaCertificate {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let counter = SerialCounter::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap();
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
    let linted = prepare_root(&RootSpec {
        trust_domain: &domain(name),
        generation: &"one".parse().unwrap(),
        public_key: key.public_key(),
        algorithm: SigningAlgorithm::EcdsaP256Sha256,
        serial: Serial::compose(ReplicaNumber::new(1).unwrap(), counter, [7; Serial::RANDOM_BYTES]),
        not_before: Timestamp::from_unix(1_700_000_000),
        not_after: Timestamp::from_unix(1_900_000_000),
    });
    let linted = linted.unwrap();
    let signature = pair.sign(&random, linted.to_be_signed().as_bytes()).unwrap();
    let sealed = linted.seal(Signature::external(signature.as_ref().to_vec())).unwrap();
    CaCertificate::parse(sealed.der()).unwrap()
}

pub(crate) fn bundle(name: &str, sequence: u64, root: &CaCertificate) -> (TrustDomain, Arc<Bundle>) {
    let bundle = Bundle::new(domain(name), sequence, Ttl::hours(1), vec![root.clone()]).unwrap();
    (domain(name), Arc::new(bundle))
}

pub(crate) fn svid(id: &str, leaf: &str, hint: &str) -> Arc<Svid> {
    Arc::new(Svid {
        spiffe_id: id.parse().unwrap(),
        chain_der: vec![leaf.as_bytes().to_vec(), b"+intermediate".to_vec()],
        key_pkcs8_der: b"private key".to_vec().into(),
        not_before: Timestamp::from_unix(0),
        not_after: Timestamp::from_unix(4_000_000_000),
        renew_at: Timestamp::from_unix(2_000_000_000),
        serial: "01".to_owned(),
        hint: hint.to_owned(),
    })
}

/// A key that signs tokens.
pub(crate) struct TokenKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pub(crate) public: JwtKey,
}

impl TokenKey {
    pub(crate) fn new(kid: &str) -> Self {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let public = JwtKey::new(kid.to_owned(), key.public_key().clone(), Timestamp::MAX).unwrap();
        Self { pkcs8: key.pkcs8_der(), public }
    }

    /// A token with these claims.
    #[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
    pub(crate) fn token(&self, claims: &serde_json::Value) -> String {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let header = serde_json::json!({ "alg": "ES256", "kid": self.public.kid() });
        let input =
            format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.pkcs8, &random).unwrap();
        let signature = pair.sign(&random, input.as_bytes()).unwrap();
        format!("{input}.{}", encode(signature.as_ref()))
    }
}

/// Tokens that a test decides: by the path of the identity; the wishes are noted.
#[derive(Default)]
pub(crate) struct FakeTokens {
    pub(crate) refusals: Mutex<BTreeMap<String, NoToken>>,
    pub(crate) wishes: Mutex<Vec<TokenWish>>,
    /// Nothing is answered while somebody holds it.
    pub(crate) gate: Arc<tokio::sync::Mutex<()>>,
}

impl Tokens for FakeTokens {
    fn token(&self, wish: TokenWish) -> BoxFuture<'static, Result<Arc<Token>, NoToken>> {
        self.wishes.lock().unwrap().push(wish.clone());
        let refusal = self.refusals.lock().unwrap().get(wish.spiffe_id.path()).cloned();
        let gate = Arc::clone(&self.gate);
        Box::pin(async move {
            drop(gate.lock().await);
            let life = (Timestamp::from_unix(0), Timestamp::from_unix(300));
            let text = format!("token of {} for {}", wish.spiffe_id, wish.audiences.join(" and "));
            let token = Token::new(text.into(), wish.spiffe_id, wish.audiences, life);
            refusal.map_or(Ok(Arc::new(token)), Err)
        })
    }
}

pub(crate) type Value = Result<Arc<View>, NotYet>;

/// Identities that a test decides: the same for every caller, whose attributes are noted.
pub(crate) struct Fake {
    domain: TrustDomain,
    value: watch::Sender<Value>,
    pub(crate) asked: Mutex<Vec<Attributes>>,
    next: AtomicU64,
    pub(crate) standings: watch::Sender<BTreeMap<u64, Standing>>,
    pub(crate) tokens: Mutex<Option<Arc<FakeTokens>>>,
    pub(crate) ready: watch::Sender<bool>,
}

impl Fake {
    pub(crate) fn set(&self, value: Value) {
        drop(self.value.send_replace(value));
    }

    /// Waits until the streams stand as `wanted` says.
    pub(crate) async fn until(&self, wanted: impl Fn(&BTreeMap<u64, Standing>) -> bool) {
        let mut standings = self.standings.subscribe();
        let waited = tokio::time::timeout(DEADLINE, standings.wait_for(|it| wanted(it))).await;
        assert!(waited.is_ok(), "streams stand at {:?}", self.standings.borrow());
    }

    /// Waits until some stream was given the view of this version.
    pub(crate) async fn until_given(&self, version: u64) {
        let given = |it: &Standing| matches!(it, Standing::Given(given) | Standing::GivenUntil(given, _) if *given == version);
        self.until(|all| all.values().any(given)).await;
    }

    pub(crate) async fn until_all_gone(&self) {
        self.until(|all| !all.is_empty() && all.values().all(|it| *it == Standing::Gone)).await;
    }
}

impl Identities for Fake {
    fn follow(&self, attributes: Attributes) -> watch::Receiver<Value> {
        self.asked.lock().unwrap().push(attributes);
        self.value.subscribe()
    }

    fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    fn tokens(&self) -> Option<Arc<dyn Tokens>> {
        let tokens = self.tokens.lock().unwrap().clone()?;
        Some(tokens)
    }

    fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    fn open(&self) -> u64 {
        let subscriber = self.next.fetch_add(1, Ordering::Relaxed);
        self.stands(subscriber, Standing::Taking);
        subscriber
    }

    fn stands(&self, subscriber: u64, standing: Standing) {
        self.standings.send_modify(|all| {
            all.insert(subscriber, standing);
        });
    }
}

/// A socket that is served.
pub(crate) struct Host {
    folder: tempfile::TempDir,
    pub(crate) identities: Arc<Fake>,
    pub(crate) doors: Arc<Doors>,
    pub(crate) spawner: Spawner,
    pub(crate) roots: [CaCertificate; 2],
    pub(crate) token_keys: [TokenKey; 2],
}

impl Host {
    /// Serves at once, with the settings that `adjust` leaves.
    pub(crate) fn serving(adjust: impl FnOnce(&mut DoorsSettings)) -> Self {
        let host = Self::idle(adjust);
        host.serve(host.bind());
        host
    }

    pub(crate) fn idle(adjust: impl FnOnce(&mut DoorsSettings)) -> Self {
        let identities = Arc::new(Fake {
            domain: domain("example.org"),
            value: watch::Sender::new(Err(NotYet::Starting)),
            asked: Mutex::default(),
            next: AtomicU64::new(1),
            standings: watch::Sender::default(),
            tokens: Mutex::new(Some(Arc::default())),
            ready: watch::Sender::new(true),
        });
        let mut settings = DoorsSettings::default();
        // The test program is large and its digest nobody's concern here; one test turns it on.
        settings.unix.hash_executables = false;
        adjust(&mut settings);
        let spawner = Spawner::default();
        let followed = Arc::clone(&identities);
        let doors = Doors::new(followed, Arc::new(SystemClock), spawner.clone(), settings);
        let roots = [root("example.org"), root("other.example")];
        let token_keys = [TokenKey::new("own"), TokenKey::new("foreign")];
        Self { folder: tempfile::tempdir().unwrap(), identities, doors, spawner, roots, token_keys }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    pub(crate) fn bind(&self) -> Socket {
        Socket::bind(&self.path()).unwrap()
    }

    pub(crate) fn serve(&self, socket: Socket) {
        let doors = Arc::clone(&self.doors);
        self.spawner.spawn("serve", async move { serve(doors, socket).await.unwrap() });
    }

    /// One identity with this leaf, both bundles.
    pub(crate) fn view(&self, version: u64, leaf: &str) -> Value {
        self.view_of(version, vec![svid(WEB, leaf, "")])
    }

    pub(crate) fn view_of(&self, version: u64, svids: Vec<Arc<Svid>>) -> Value {
        let bundles = [
            bundle("example.org", version, &self.roots[0]),
            bundle("other.example", version, &self.roots[1]),
        ];
        Ok(Arc::new(View {
            svids,
            bundles: bundles.into(),
            awaited: Awaited::default(),
            crls: Arc::default(),
            version,
        }))
    }

    /// These identities and both bundles; the default identity and these others are on their way.
    pub(crate) fn awaiting(&self, version: u64, svids: Vec<Arc<Svid>>, awaited: &[&str]) -> Value {
        let view = self.view_of(version, svids)?;
        let identities = awaited.iter().map(|id| id.parse().unwrap()).collect();
        Ok(Arc::new(View {
            svids: view.svids.clone(),
            bundles: view.bundles.clone(),
            awaited: Awaited { identities, default: true },
            crls: Arc::default(),
            version,
        }))
    }

    /// One identity; the bundles carry these keys for tokens.
    pub(crate) fn view_with_keys(&self, version: u64, own: Vec<JwtKey>, foreign: Vec<JwtKey>) -> Value {
        let carrying = |name, root, keys| {
            let (domain, bundle) = bundle(name, version, root);
            (domain, Arc::new(Bundle::clone(&bundle).with_jwt_keys(keys).unwrap()))
        };
        let bundles = [
            carrying("example.org", &self.roots[0], own),
            carrying("other.example", &self.roots[1], foreign),
        ];
        Ok(Arc::new(View {
            svids: vec![svid(WEB, "leaf", "")],
            bundles: bundles.into(),
            awaited: Awaited::default(),
            crls: Arc::default(),
            version,
        }))
    }

    /// Where the test decides about tokens.
    pub(crate) fn tokens(&self) -> Arc<FakeTokens> {
        self.identities.tokens.lock().unwrap().clone().unwrap()
    }

    pub(crate) async fn channel(&self) -> Channel {
        channel(&self.path()).await
    }

    pub(crate) async fn workload_api(&self) -> Client {
        SpiffeWorkloadApiClient::with_interceptor(self.channel().await, add_header)
    }
}

type AddHeader = fn(Request<()>) -> Result<Request<()>, Status>;
pub(crate) type Client = SpiffeWorkloadApiClient<InterceptedService<Channel, AddHeader>>;

fn add_header(mut request: Request<()>) -> Result<Request<()>, Status> {
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    Ok(request)
}

pub(crate) async fn channel(path: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap()
}

/// What comes within the deadline.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it comes within the deadline")
}
