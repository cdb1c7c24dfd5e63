//! A fleet of simulated agents: each with a node certificate of its own, a real mTLS connection and a real sync stream,
//! many in one process. Of an agent they are what the server sees, without disk and workloads: what is heard counts as
//! applied, and a bundle is acknowledged at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::ca::v1::{
    Attribute, BundleAcknowledgement, CertificateRequest, IssuedCertificate, SignCertificateRequest,
};
use rhizome_proto::node::v1::attest_request::Evidence;
use rhizome_proto::node::v1::directive::Order;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::node::v1::sync_request::Message;
use rhizome_proto::node::v1::{AttestRequest, Hello, JoinTokenEvidence, SyncRequest, SyncResponse};
use rhizome_tls::{ClientIdentity, ExpectedServer, client_config, discover};
use rhizome_x509::{Bundle, KeyAlgorithm, RequestKey, TrustAnchors, create_csr};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::figures::{now, spawn};
use crate::server::{Server, today};

/// Tokens made at the same time: below what one connection may have in flight.
const TOKENS_AT_ONCE: usize = 128;
/// Joins at the same time.
const JOINS_AT_ONCE: usize = 64;
/// Joins over one connection, which without a certificate lives for a minute.
const JOINS_EACH: usize = 500;
/// Agents that connect at the same time when nothing is measured.
const CONNECTING: usize = 64;

/// An agent's identity and how it connects.
pub(crate) struct Node {
    pub(crate) number: usize,
    tls: Arc<rustls::ClientConfig>,
}

/// What an agent heard, and when.
pub(crate) struct Event {
    pub(crate) at: Instant,
    pub(crate) heard: Heard,
}

#[derive(PartialEq, Eq)]
pub(crate) enum Heard {
    Bundle(u64),
    Rule(String),
    Stop(String),
    /// The stream ended.
    Lost(String),
}

/// Agents that are connected and follow.
pub(crate) struct Fleet {
    pub(crate) members: Vec<Member>,
    events: mpsc::UnboundedReceiver<Event>,
}

pub(crate) struct Member {
    channel: Channel,
    task: JoinHandle<()>,
}

/// Joins as many nodes.
pub(crate) async fn enroll(server: &Server, count: usize) -> Vec<Node> {
    let admin = server.admin().await;
    let make = |number: usize| {
        let admin = admin.clone();
        async move { server.join_string(admin, &format!("sim-{number:05}")).await }
    };
    let joins: Vec<_> = stream::iter(0..count).map(make).buffered(TOKENS_AT_ONCE).collect().await;
    let Some(first) = joins.first() else { return Vec::new() };
    let (_address, bundle) = discover(first).await.expect("the bundle");
    let mut nodes = Vec::new();
    for chunk in joins.chunks(JOINS_EACH) {
        let config = client_config(anchors(&bundle), None, server_of(&bundle), Arc::new(today));
        let config = Arc::new(config.expect("a configuration"));
        let channel = rhizome_tls::connect(&server.address(), Some(config)).await.expect("a connection");
        let join = |join: &rhizome_tls::JoinString| {
            let (channel, token) = (channel.clone(), join.token().to_owned());
            async move { attest(channel, token).await }
        };
        let joined = stream::iter(chunk.iter().map(join)).buffered(JOINS_AT_ONCE);
        let joined: Vec<(RequestKey, IssuedCertificate)> = joined.collect().await;
        for (key, issued) in joined {
            let chain = issued.chain_der.iter().map(|der| der.to_vec()).collect();
            let identity = ClientIdentity::new(chain, key.pkcs8_der()).expect("an identity");
            let config = client_config(anchors(&bundle), Some(identity), server_of(&bundle), Arc::new(today));
            nodes.push(Node { number: nodes.len(), tls: Arc::new(config.expect("a configuration")) });
        }
    }
    nodes
}

fn anchors(bundle: &Bundle) -> Arc<TrustAnchors> {
    Arc::new(TrustAnchors::from_bundle(bundle))
}

fn server_of(bundle: &Bundle) -> ExpectedServer {
    ExpectedServer::ServerOf(bundle.trust_domain().clone())
}

async fn attest(channel: Channel, token: String) -> (RequestKey, IssuedCertificate) {
    let key = new_key();
    let evidence = Some(Evidence::JoinToken(JoinTokenEvidence { token }));
    let request = AttestRequest { evidence, csr_der: csr(&key) };
    let answer = NodeServiceClient::new(channel).attest(request).await.expect("a node's certificate");
    (key, answer.into_inner().identity.expect("an identity"))
}

pub(crate) fn new_key() -> RequestKey {
    RequestKey::generate(KeyAlgorithm::EcdsaP256).expect("a key")
}

pub(crate) fn csr(key: &RequestKey) -> Bytes {
    create_csr(key).expect("a CSR").into()
}

/// Asks for the certificate of a workload.
pub(crate) async fn certificate(channel: Channel, csr: Bytes) -> Result<IssuedCertificate, Status> {
    let attribute = |name: &str, value: &str| Attribute { name: name.to_owned(), value: value.to_owned() };
    let certificate = CertificateRequest {
        csr: Some(Csr::CsrDer(csr)),
        attributes: vec![attribute("namespace", "default"), attribute("service_account", "web")],
        ..CertificateRequest::default()
    };
    let request = SignCertificateRequest { certificate: Some(certificate) };
    let answer = CertificateServiceClient::new(channel).sign_certificate(request).await?;
    answer.into_inner().issued.ok_or_else(|| Status::internal("no certificate"))
}

impl Node {
    pub(crate) async fn connect(&self, address: &str) -> Result<Channel, rhizome_tls::ConnectError> {
        rhizome_tls::connect(address, Some(Arc::clone(&self.tls))).await
    }
}

/// A sync stream from which the first answer has come.
pub(crate) struct Following {
    requests: mpsc::Sender<SyncRequest>,
    answers: Streaming<SyncResponse>,
}

impl Following {
    /// Says hello, and takes the first answer.
    pub(crate) async fn begin(channel: Channel) -> Result<(Self, SyncResponse), Status> {
        let (requests, outgoing) = mpsc::channel(4);
        let hello = Hello { cursor: 0, agent_version: "simulated".to_owned() };
        let ended = |_closed| Status::unavailable("the stream was closed");
        requests.send(SyncRequest { message: Some(Message::Hello(hello)) }).await.map_err(ended)?;
        let answers = NodeServiceClient::new(channel).sync(ReceiverStream::new(outgoing)).await?;
        let mut following = Self { requests, answers: answers.into_inner() };
        let first = following.next().await?;
        Ok((following, first))
    }

    async fn next(&mut self) -> Result<SyncResponse, Status> {
        self.answers.message().await?.ok_or_else(|| Status::unavailable("the server ended the stream"))
    }

    async fn acknowledge(&self, sequence: u64, digest: Bytes) {
        let acknowledgement = BundleAcknowledgement { sequence, digest };
        let message = Some(Message::BundleAcknowledgement(acknowledgement));
        // A stream that has ended shows where it is read.
        drop(self.requests.send(SyncRequest { message }).await);
    }

    async fn follow(mut self, first: SyncResponse, events: mpsc::UnboundedSender<Event>) {
        let mut answer = Ok(first);
        loop {
            let at = now();
            let tell = |heard| drop(events.send(Event { at, heard }));
            let said = match answer {
                Ok(said) => said,
                Err(status) => return tell(Heard::Lost(rhizome_tls::cause_of(&status))),
            };
            if let Some(bundle) = said.bundle {
                tell(Heard::Bundle(bundle.sequence));
                self.acknowledge(bundle.sequence, bundle.digest).await;
            }
            said.upserts.into_iter().for_each(|rule| tell(Heard::Rule(rule.name)));
            for order in said.directives.into_iter().filter_map(|directive| directive.order) {
                if let Order::StopServing(order) = order {
                    order.serials.into_iter().for_each(|serial| tell(Heard::Stop(serial)));
                }
            }
            answer = self.next().await;
        }
    }
}

impl Fleet {
    /// Connects everybody, a few at a time, and waits until each has had its first answer.
    pub(crate) async fn assemble(server: &Server, nodes: &[Node]) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let address = server.address();
        let connect = |node: &Node| {
            let (connected, sender) = (node.tls.clone(), sender.clone());
            let (node, address) = (Node { number: node.number, tls: connected }, address.clone());
            async move {
                let channel = node.connect(&address).await.expect("a connection");
                let (following, first) = Following::begin(channel.clone()).await.expect("a sync stream");
                Member { channel, task: spawn(following.follow(first, sender)) }
            }
        };
        let connecting = stream::iter(nodes.iter().map(connect)).buffered(CONNECTING);
        Self { members: connecting.collect().await, events }
    }

    /// Waits until `count` of what is `wanted` was heard; when each was. Fewer when patience ends before.
    pub(crate) async fn hear(
        &mut self,
        count: usize,
        patience: Duration,
        wanted: impl Fn(&Heard) -> bool,
    ) -> Vec<Instant> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut heard = Vec::new();
        while heard.len() < count {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) if wanted(&event.heard) => heard.push(event.at),
                Ok(Some(Event { heard: Heard::Lost(cause), .. })) => println!("a stream was lost: {cause}"),
                Ok(Some(_of_no_concern)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        heard
    }
}

impl Member {
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}
