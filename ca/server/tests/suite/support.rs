//! A server in the test's own process, and those who call it: administrators, nodes, nobody.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::clock::ManualClock;
use rhizome_core::documents::Kind;
use rhizome_core::ledger::Position;
use rhizome_core::ports::{Clock, Store};
use rhizome_id::{Timestamp, Ttl};
use rhizome_keys::MemoryKeyRing;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::admin_identity_service_client::AdminIdentityServiceClient;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::bundle_service_client::BundleServiceClient;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::node::v1 as node;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
pub(crate) use rhizome_server::UpstreamSettings as Above;
use rhizome_server::{DoorLimits, Ports, Running, Settings, StartError, SystemEntropy};
use rhizome_store::{FaultyStore, MemoryStore};
use rhizome_tls::{ClientIdentity, ExpectedServer};
use rhizome_x509::{Bundle, CaCertificate, JwtKey, KeyAlgorithm, RequestKey, TrustAnchors, create_csr};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Long enough for a busy machine; whoever waits longer waits for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server of `example.test`, replica `r1`.
pub(crate) struct TestServer {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Arc<FaultyStore<MemoryStore>>,
    keys: Arc<MemoryKeyRing>,
    running: Running,
    socket: PathBuf,
    _scratch: TempDir,
}

/// A node that joined.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) holder: Holder,
    pub(crate) channel: Channel,
}

/// A key and the certificate for it.
pub(crate) struct Holder {
    pub(crate) key: RequestKey,
    pub(crate) issued: ca::IssuedCertificate,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_as_usual| {}).await
    }

    /// With settings that differ from the usual ones.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::first(MemoryStore::new(), change).await
    }

    /// The first of several servers over one store.
    pub(crate) async fn start_first_of_many() -> Self {
        Self::first(MemoryStore::shared(), |_as_usual| {}).await
    }

    /// Another server over the store of this one, which must be [`Self::start_first_of_many`]'s.
    pub(crate) async fn another(&self, replica: &str) -> Self {
        let store = self.store.inner().clone();
        let named = |settings: &mut Settings| settings.replica = replica.parse().unwrap();
        Self::over(store, Arc::clone(&self.keys), Arc::clone(&self.clock), named).await
    }

    async fn first(store: MemoryStore, change: impl FnOnce(&mut Settings)) -> Self {
        let clock = Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap()));
        Self::over(store, Arc::new(MemoryKeyRing::new()), clock, change).await
    }

    async fn over(
        store: MemoryStore,
        keys: Arc<MemoryKeyRing>,
        clock: Arc<ManualClock>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Self::try_over(store, keys, clock, change).await.unwrap()
    }

    async fn try_over(
        store: MemoryStore,
        keys: Arc<MemoryKeyRing>,
        clock: Arc<ManualClock>,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Self, StartError> {
        let scratch = TempDir::new().unwrap();
        let socket = scratch.path().join("admin.sock");
        let store = Arc::new(FaultyStore::new(store));
        let ports = Ports {
            store: Arc::<FaultyStore<MemoryStore>>::clone(&store),
            keys: Arc::<MemoryKeyRing>::clone(&keys),
            clock: Arc::<ManualClock>::clone(&clock),
            entropy: Arc::new(SystemEntropy::default()),
        };
        let mut settings = settings(socket.clone());
        change(&mut settings);
        let running = rhizome_server::start(settings, ports).await?;
        Ok(Self { clock, store, keys, running, socket, _scratch: scratch })
    }

    /// A cluster's own Rhizome below this one, with its clock.
    pub(crate) async fn below(&self, above: &Above) -> Self {
        self.try_below(above, &self.clock).await.unwrap()
    }

    /// The same by a clock of its own; it may be refused.
    pub(crate) async fn try_below(
        &self,
        above: &Above,
        clock: &Arc<ManualClock>,
    ) -> Result<Self, StartError> {
        let (above, keys) = (above.clone(), Arc::new(MemoryKeyRing::new()));
        let change = |settings: &mut Settings| *settings = settings.clone().below(above);
        Self::try_over(MemoryStore::new(), keys, Arc::clone(clock), change).await
    }

    /// Stops, and starts again on what is stored.
    pub(crate) async fn again(self, above: &Above) -> Self {
        let (store, keys) = (self.store.inner().clone(), Arc::clone(&self.keys));
        let (clock, above) = (Arc::clone(&self.clock), above.clone());
        self.stop().await;
        let change = |settings: &mut Settings| *settings = settings.clone().below(above);
        Self::over(store, keys, clock, change).await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.address()
    }

    /// Where the bundle endpoint is; there must be one.
    pub(crate) fn federation_address(&self) -> SocketAddr {
        self.running.federation_address().unwrap()
    }

    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The administrators' socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// A channel on the administrators' socket: role security, by user id.
    pub(crate) async fn local(&self) -> Channel {
        rhizome_tls::connect(&format!("unix://{}", self.socket.display()), None).await.unwrap()
    }

    pub(crate) async fn bundle(&self) -> Bundle {
        bundle_at(self.local().await).await
    }

    /// A TLS channel that presents what `holder` holds, or nothing.
    pub(crate) async fn connect(&self, holder: Option<&Holder>) -> Channel {
        connect(self.address(), &self.bundle().await, &self.clock, holder).await
    }

    pub(crate) async fn create_token(&self, node: &str) -> admin::CreateTokenResponse {
        let mut client = TokenServiceClient::new(self.local().await);
        client.create_token(token_for(node)).await.unwrap().into_inner()
    }

    /// Joins node `prod/join_token/NAME`, which may vouch for the namespaces `shop` and `pay`.
    pub(crate) async fn join(&self, name: &str) -> Node {
        let token = self.create_token(name).await.secret;
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let answer = attest(self.connect(None).await, &token, &key).await.unwrap();
        let holder = Holder { key, issued: answer.identity.unwrap() };
        let channel = self.connect(Some(&holder)).await;
        Node { id: answer.node_id, token, holder, channel }
    }

    /// An administrator of that name and role.
    pub(crate) async fn admin(&self, name: &str, role: admin::Role) -> (Holder, Channel) {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let mut client = AdminIdentityServiceClient::new(self.local().await);
        let answer =
            client.issue_admin_certificate(admin_request(name, role, &key)).await.unwrap().into_inner();
        let holder = Holder { key, issued: answer.issued.unwrap() };
        let channel = self.connect(Some(&holder)).await;
        (holder, channel)
    }

    /// Every record of the ledger, one JSON object in a line.
    pub(crate) async fn ledger(&self) -> Vec<String> {
        let records = self.store.records(Position(1), 100_000).await.unwrap();
        records.iter().map(|record| record.body.to_string()).collect()
    }

    /// Everything that is stored, as text.
    pub(crate) async fn everything_stored(&self) -> String {
        let mut all = self.ledger().await;
        for kind in Kind::ALL {
            let documents = self.store.documents(kind, None, 100_000).await.unwrap();
            all.extend(documents.iter().map(|it| format!("{} {}", it.key, it.body)));
        }
        all.join("\n")
    }

    /// Waits until the ledger has a record that holds all of `parts`: refusals reach it a moment after the answer.
    pub(crate) async fn recorded(&self, parts: &[&str]) -> String {
        let wait = async {
            loop {
                let found =
                    self.ledger().await.into_iter().find(|line| parts.iter().all(|part| line.contains(part)));
                if let Some(found) = found {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, wait).await;
        found.unwrap_or_else(|_late| panic!("no record holds {parts:?}"))
    }
}

/// The bundle as the server behind `channel` shows it.
pub(crate) async fn bundle_at(channel: Channel) -> Bundle {
    let mut client = BundleServiceClient::new(channel);
    let answer = client.get_bundle(ca::GetBundleRequest::default()).await.unwrap().into_inner();
    let bundle = answer.bundle.unwrap();
    let anchors = bundle.anchors_der.iter().map(|der| CaCertificate::parse(der).unwrap()).collect();
    let hint = Ttl::from_seconds(bundle.refresh_hint_seconds).unwrap();
    let key = |sent: &ca::JwtKey| {
        let not_after = Timestamp::from_unix(sent.not_after.unwrap().seconds);
        JwtKey::from_spki_der(sent.kid.clone(), &sent.public_key_der, not_after).unwrap()
    };
    let keys = bundle.jwt_keys.iter().map(key).collect();
    let domain = bundle.trust_domain.parse().unwrap();
    let read = Bundle::new(domain, bundle.sequence, hint, anchors).unwrap().with_jwt_keys(keys).unwrap();
    assert_eq!(read.digest().as_bytes().as_slice(), &*bundle.digest, "the digest covers all of it");
    read
}

/// A TLS channel to a server of `bundle`'s trust domain that presents what `holder` holds, or nothing.
pub(crate) async fn connect(
    address: SocketAddr,
    bundle: &Bundle,
    clock: &Arc<ManualClock>,
    holder: Option<&Holder>,
) -> Channel {
    let anchors = Arc::new(TrustAnchors::from_bundle(bundle));
    let identity = holder.map(|holder| {
        let chain = holder.issued.chain_der.iter().map(|der| der.to_vec()).collect();
        ClientIdentity::new(chain, holder.key.pkcs8_der()).unwrap()
    });
    let clock = Arc::clone(clock);
    let expected = ExpectedServer::ServerOf(bundle.trust_domain().clone());
    let tls = rhizome_tls::client_config(anchors, identity, expected, Arc::new(move || clock.now()));
    rhizome_tls::connect(&address.to_string(), Some(Arc::new(tls.unwrap()))).await.unwrap()
}

/// A server of `example.test`, replica `r1`, on loopback.
pub(crate) fn settings(socket: PathBuf) -> Settings {
    let (domain, replica) = ("example.test".parse().unwrap(), "r1".parse().unwrap());
    Settings {
        ip_addresses: vec!["127.0.0.1".parse().unwrap()],
        admin_socket: Some(socket),
        token_ttl: Ttl::hours(1),
        limits: DoorLimits { per_source_per_second: 10_000, ..DoorLimits::default() },
        workers: 2,
        ..Settings::new(domain, replica, "127.0.0.1:0".parse().unwrap())
    }
}

pub(crate) fn token_for(node: &str) -> admin::CreateTokenRequest {
    let namespaces = vec!["shop".to_owned(), "pay".to_owned()];
    admin::CreateTokenRequest {
        cluster: "prod".to_owned(),
        node: node.to_owned(),
        scope: Some(admin::Scope { all_namespaces: false, namespaces }),
        ttl_seconds: 0,
    }
}

pub(crate) fn admin_request(
    name: &str,
    role: admin::Role,
    key: &RequestKey,
) -> admin::IssueAdminCertificateRequest {
    let csr_der = create_csr(key).unwrap().into();
    admin::IssueAdminCertificateRequest { name: name.to_owned(), role: role.into(), csr_der, ttl_seconds: 0 }
}

pub(crate) async fn attest(
    channel: Channel,
    token: &str,
    key: &RequestKey,
) -> Result<node::AttestResponse, Status> {
    let evidence = node::JoinTokenEvidence { token: token.to_owned() };
    let request = node::AttestRequest {
        csr_der: create_csr(key).unwrap().into(),
        evidence: Some(node::attest_request::Evidence::JoinToken(evidence)),
    };
    NodeServiceClient::new(channel).attest(request).await.map(tonic::Response::into_inner)
}

pub(crate) async fn renew(channel: &Channel, key: &RequestKey) -> Result<ca::IssuedCertificate, Status> {
    let request = node::RenewRequest { csr_der: create_csr(key).unwrap().into() };
    let answer = NodeServiceClient::new(channel.clone()).renew(request).await?;
    Ok(answer.into_inner().identity.unwrap())
}

/// A workload's certificate, asked for by the node behind `channel`.
pub(crate) async fn sign(
    channel: &Channel,
    namespace: &str,
    account: &str,
) -> Result<ca::IssuedCertificate, Status> {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    sign_for(channel, &key, namespace, account).await
}

/// The same with the key that it is for.
pub(crate) async fn sign_with_key(
    channel: &Channel,
    namespace: &str,
    account: &str,
) -> (RequestKey, ca::IssuedCertificate) {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let issued = sign_for(channel, &key, namespace, account).await.unwrap();
    (key, issued)
}

async fn sign_for(
    channel: &Channel,
    key: &RequestKey,
    namespace: &str,
    account: &str,
) -> Result<ca::IssuedCertificate, Status> {
    let certificate = ca::CertificateRequest {
        csr: Some(ca::certificate_request::Csr::CsrDer(create_csr(key).unwrap().into())),
        attributes: attributes(&[("namespace", namespace), ("service_account", account)]),
        ..ca::CertificateRequest::default()
    };
    let request = ca::SignCertificateRequest { certificate: Some(certificate) };
    let answer = CertificateServiceClient::new(channel.clone()).sign_certificate(request).await?;
    Ok(answer.into_inner().issued.unwrap())
}

pub(crate) fn attributes(pairs: &[(&str, &str)]) -> Vec<ca::Attribute> {
    let pair = |(name, value): &(&str, &str)| ca::Attribute { name: (*name).into(), value: (*value).into() };
    pairs.iter().map(pair).collect()
}

/// The code of a refusal and what it says.
pub(crate) fn refusal<T>(outcome: Result<T, Status>) -> (Code, String) {
    match outcome {
        Ok(_) => panic!("this should have been refused"),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}
