//! A server that can be stopped and started again, agents that join it, and waiting that ends as soon as it can.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rhizome_agent::holdings::{Identities, NotYet, View};
use rhizome_agent::{Agent, Status, SystemEntropy};
use rhizome_core::attributes::Attributes;
use rhizome_core::authority::RotationPolicy;
use rhizome_core::clock::ManualClock;
use rhizome_core::documents::{DocumentKey, Kind, Transaction};
use rhizome_core::policy::{PolicyLimits, TtlLimits};
use rhizome_core::ports::{Clock, KeyInfo, KeyPurpose, KeyRing, KeyRingError, Store};
use rhizome_core::state::{BundleRecord, Subscriber};
use rhizome_id::{KeyId, Timestamp, Ttl};
use rhizome_jwt::TokenToBeSigned;
use rhizome_keys::MemoryKeyRing;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::authority_service_client::AuthorityServiceClient;
use rhizome_proto::admin::v1::certificate_admin_service_client::CertificateAdminServiceClient;
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use rhizome_proto::admin::v1::revoke_certificates_request::Target;
use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_server::{DoorLimits, Ports, Running, Settings};
use rhizome_store::MemoryStore;
use rhizome_tls::JoinString;
use rhizome_x509::{CaCertificate, Signature, SigningAlgorithm, ToBeSigned};
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::transport::Channel;

/// Long enough for a busy machine; whoever waits longer waits for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Where the node's certificate lives when nobody says otherwise.
const NODE_TTL: Ttl = Ttl::hours(3);

/// The authority of `example.test`: its state outlives its server.
pub(crate) struct Authority {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: MemoryStore,
    pub(crate) keys: Arc<Jam>,
    scratch: TempDir,
    jwt_key_ttl: Ttl,
    listen: SocketAddr,
    running: Option<Running>,
}

impl Authority {
    pub(crate) async fn start() -> Self {
        Self::start_at("2026-03-01T12:00:00Z".parse().unwrap()).await
    }

    pub(crate) async fn start_at(now: Timestamp) -> Self {
        Self::start_with(now, Ttl::hours(7 * 24)).await
    }

    pub(crate) async fn start_with_jwt_keys_of(ttl: Ttl) -> Self {
        Self::start_with("2026-03-01T12:00:00Z".parse().unwrap(), ttl).await
    }

    async fn start_with(now: Timestamp, jwt_key_ttl: Ttl) -> Self {
        let mut authority = Self {
            clock: Arc::new(ManualClock::new(now)),
            store: MemoryStore::new(),
            keys: Arc::default(),
            scratch: TempDir::new().unwrap(),
            jwt_key_ttl,
            listen: "127.0.0.1:0".parse().unwrap(),
            running: None,
        };
        authority.start_server().await;
        authority
    }

    /// Starts the server, at the address that it had before.
    pub(crate) async fn start_server(&mut self) {
        let ports = Ports {
            store: Arc::new(self.store.clone()),
            keys: Arc::<Jam>::clone(&self.keys),
            clock: Arc::<ManualClock>::clone(&self.clock),
            entropy: Arc::new(rhizome_server::SystemEntropy::default()),
        };
        let running = rhizome_server::start(self.settings(), ports).await.unwrap();
        self.listen = running.address();
        self.running = Some(running);
    }

    pub(crate) async fn stop_server(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    fn socket(&self) -> PathBuf {
        self.scratch.path().join("admin.sock")
    }

    fn settings(&self) -> Settings {
        let (domain, replica) = ("example.test".parse().unwrap(), "r1".parse().unwrap());
        let usual = Settings::new(domain, replica, self.listen);
        Settings {
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            admin_socket: Some(self.socket()),
            policy: PolicyLimits {
                node: TtlLimits { default: NODE_TTL, max: NODE_TTL },
                ..PolicyLimits::default()
            },
            rotation: RotationPolicy { jwt_key_ttl: self.jwt_key_ttl, ..usual.rotation },
            token_ttl: Ttl::hours(1),
            limits: DoorLimits { per_source_per_second: 10_000, ..DoorLimits::default() },
            workers: 1,
            ..usual
        }
    }

    /// A channel on the administrators' socket: role security, by user id.
    async fn local(&self) -> Channel {
        rhizome_tls::connect(&format!("unix://{}", self.socket().display()), None).await.unwrap()
    }

    /// The bundle as it is stored.
    pub(crate) async fn bundle(&self) -> BundleRecord {
        let documents = self.store.documents(Kind::Bundle, None, 10).await.unwrap();
        documents[0].read::<BundleRecord>().unwrap().value
    }

    /// Publishes another bundle; the server must not be running.
    pub(crate) async fn publish(&self, sequence: u64, anchors: Vec<CaCertificate>) {
        assert!(self.running.is_none());
        let record = BundleRecord { sequence, anchors, ..self.bundle().await };
        self.store.commit(Transaction::named("publish").put(&record)).await.unwrap();
    }

    /// The bundle that the node acknowledged last.
    pub(crate) async fn acknowledged(&self, node: &str) -> Option<u64> {
        let key = DocumentKey::new(Kind::Subscriber, format!("node:prod/join_token/{node}"));
        let document = self.store.document(&key).await.unwrap()?;
        Some(document.read::<Subscriber>().unwrap().value.sequence)
    }

    /// Waits until the node has acknowledged that bundle.
    pub(crate) async fn acknowledges(&self, node: &str, sequence: u64) {
        let wait = async {
            while self.acknowledged(node).await != Some(sequence) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the node acknowledges");
    }

    /// A join string for `prod/join_token/NODE`, which may vouch for every namespace; other addresses come first.
    pub(crate) async fn join_string(&self, node: &str, first: &[&str]) -> JoinString {
        let request = admin::CreateTokenRequest {
            cluster: "prod".to_owned(),
            node: node.to_owned(),
            scope: Some(admin::Scope { all_namespaces: true, namespaces: Vec::new() }),
            ttl_seconds: 0,
        };
        let answer =
            TokenServiceClient::new(self.local().await).create_token(request).await.unwrap().into_inner();
        let addresses = first.iter().map(|it| (*it).to_owned()).chain([self.listen.to_string()]).collect();
        let pins = self.bundle().await.anchors.iter().map(CaCertificate::fingerprint).collect();
        JoinString::new(addresses, "example.test".parse().unwrap(), pins, answer.secret).unwrap()
    }

    pub(crate) async fn revoke(&self, serial: &str) {
        self.revoke_all(Target::Serial(serial.to_owned())).await;
    }

    /// Revokes all that is meant, and tells the serials.
    pub(crate) async fn revoke_all(&self, target: Target) -> Vec<String> {
        let request = admin::RevokeCertificatesRequest {
            target: Some(target),
            reason: "test".to_owned(),
            dry_run: false,
        };
        let mut client = CertificateAdminServiceClient::new(self.local().await);
        client.revoke_certificates(request).await.unwrap().into_inner().serials
    }

    /// Puts a new issuer to work at once.
    pub(crate) async fn rotate(&self) {
        let request = admin::RotateIssuerRequest { reason: "test".to_owned(), ..Default::default() };
        AuthorityServiceClient::new(self.local().await).rotate_issuer(request).await.unwrap();
    }

    /// Orders every node to renew within that many seconds, once the plan is as wanted.
    pub(crate) async fn order_renewal(
        &self,
        window_seconds: i64,
        wanted: impl Fn(&admin::RenewNodesResponse) -> bool,
    ) -> admin::RenewNodesResponse {
        let mut client = NodeAdminServiceClient::new(self.local().await);
        let request = |dry_run| admin::RenewNodesRequest {
            target: Some(admin::renew_nodes_request::Target::All(admin::AllNodes {})),
            window_seconds,
            reason: "test".to_owned(),
            dry_run,
        };
        let planned = async {
            while !wanted(&client.renew_nodes(request(true)).await.unwrap().into_inner()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, planned).await.expect("the plan is as wanted");
        client.renew_nodes(request(false)).await.unwrap().into_inner()
    }

    pub(crate) async fn ban(&self, node: &str) {
        let id = format!("prod/join_token/{node}");
        let request = admin::BanNodeRequest { id, reason: "test".to_owned() };
        NodeAdminServiceClient::new(self.local().await).ban_node(request).await.unwrap();
    }

    pub(crate) async fn evict(&self, node: &str) {
        let id = format!("prod/join_token/{node}");
        let request = admin::EvictNodeRequest { id, reason: "test".to_owned() };
        NodeAdminServiceClient::new(self.local().await).evict_node(request).await.unwrap();
    }

    /// Lets everyone of that Unix user be `/unix/NAME`.
    pub(crate) async fn put_rule(&self, name: &str, uid: &str) {
        let condition = ca::Condition { attribute: "unix.uid".to_owned(), values: vec![uid.to_owned()] };
        let rule = ca::GrantRule {
            name: name.to_owned(),
            conditions: vec![condition],
            identity: format!("/unix/{name}"),
            ..ca::GrantRule::default()
        };
        let request = admin::PutRuleRequest { rule: Some(rule), dry_run: false, expected_version: None };
        RuleServiceClient::new(self.local().await).put_rule(request).await.unwrap();
    }

    pub(crate) async fn delete_rule(&self, name: &str) {
        let request =
            admin::DeleteRuleRequest { name: name.to_owned(), dry_run: false, expected_version: None };
        RuleServiceClient::new(self.local().await).delete_rule(request).await.unwrap();
    }
}

/// Keys in memory; the ring does not answer for certificates of one identity, while a test says so.
#[derive(Default)]
pub(crate) struct Jam {
    keys: MemoryKeyRing,
    /// A part of the identity.
    pub(crate) of: Mutex<Option<String>>,
}

#[async_trait]
impl KeyRing for Jam {
    async fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        self.keys.generate(id, purpose, algorithm).await
    }

    async fn key(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError> {
        self.keys.key(id).await
    }

    async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        if let Some(of) = &*self.of.lock().unwrap()
            && message.as_bytes().windows(of.len()).any(|part| part == of.as_bytes())
        {
            return Err(KeyRingError::Unavailable { cause: "jammed".to_owned() });
        }
        self.keys.sign(id, message).await
    }

    async fn sign_token(&self, id: &KeyId, token: &TokenToBeSigned) -> Result<Signature, KeyRingError> {
        self.keys.sign_token(id, token).await
    }

    async fn keys(&self) -> Result<Vec<KeyInfo>, KeyRingError> {
        self.keys.keys().await
    }

    async fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError> {
        self.keys.destroy(id).await
    }
}

/// A machine: a state directory with at most one agent at work in it.
pub(crate) struct Machine {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) folder: TempDir,
}

impl Machine {
    /// A machine that never joined.
    pub(crate) fn new(authority: &Authority) -> Self {
        Self { clock: Arc::clone(&authority.clock), folder: TempDir::new().unwrap() }
    }

    /// A machine that has joined as `node`.
    pub(crate) async fn joined(authority: &Authority, node: &str) -> Self {
        let machine = Self::new(authority);
        let join = authority.join_string(node, &[]).await;
        rhizome_agent::join(&machine.state(), &join, &machine.clock()).await.unwrap();
        machine
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::<ManualClock>::clone(&self.clock)
    }

    pub(crate) fn start(&self, join: Option<JoinString>) -> Agent {
        let ports = rhizome_agent::Ports { clock: self.clock(), entropy: Arc::new(SystemEntropy::default()) };
        rhizome_agent::start(rhizome_agent::Settings { state: self.state(), join }, ports).unwrap()
    }

    /// Sets the clock forward and says so.
    pub(crate) fn advance(&self, agent: &Agent, seconds: i64) {
        self.clock.advance(seconds);
        agent.nudge();
    }
}

pub(crate) type Seen = watch::Receiver<Result<Arc<View>, NotYet>>;

pub(crate) fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    Attributes::from_pairs(pairs.iter().map(|(name, value)| (name.parse().unwrap(), *value))).unwrap()
}

/// The service account `web` of namespace `shop`.
pub(crate) fn web() -> Attributes {
    attributes(&[("namespace", "shop"), ("service_account", "web")])
}

pub(crate) fn follow_web(agent: &Agent) -> Seen {
    agent.identities().follow(web())
}

/// Waits until what is seen is as wanted.
pub(crate) async fn wait<T: Clone>(seen: &mut watch::Receiver<T>, wanted: impl Fn(&T) -> bool) -> T {
    let found = tokio::time::timeout(PATIENCE, seen.wait_for(|value| wanted(value))).await;
    found.expect("it comes in time").unwrap().clone()
}

/// Waits for a view with an identity.
pub(crate) async fn view(seen: &mut Seen) -> Arc<View> {
    wait(seen, |seen| seen.as_ref().is_ok_and(|view| !view.svids.is_empty())).await.unwrap()
}

/// Whether a view has no identity: it is on its way, and the workload is not denied.
pub(crate) fn is_awaited(seen: &Result<Arc<View>, NotYet>) -> bool {
    seen.as_ref().is_ok_and(|view| view.svids.is_empty())
}

/// Waits for a view whose first certificate is another one.
pub(crate) async fn renewed(seen: &mut Seen, before: &str) -> Arc<View> {
    let other = |view: &Arc<View>| view.svids.first().is_some_and(|svid| svid.serial != before);
    wait(seen, |seen| seen.as_ref().is_ok_and(other)).await.unwrap()
}

pub(crate) async fn status(agent: &Agent, wanted: impl Fn(&Status) -> bool) -> Status {
    wait(&mut agent.status(), wanted).await
}
