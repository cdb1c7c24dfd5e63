//! Callers of the server's gRPC doors, in the test's own process: nodes, administrators, nobody.
//!
//! Laws: what a caller gets is what came over the wire; a refusal is told by its stable code. Here too: what is needed
//! to look at the certificates themselves.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rhizome_id::{Digest, Serial, Timestamp, Ttl};
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::bundle_service_client::BundleServiceClient;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::node::v1 as node;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::{METADATA_CODE, METADATA_RETRY_AFTER_MS};
use rhizome_tls::{ExpectedServer, IdentityDir, StoredIdentity};
use rhizome_x509::{Bundle, CaCertificate, KeyAlgorithm, RequestKey, TrustAnchors, create_csr, inspect};
use ring::digest::{SHA256, digest};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::server::Server;

/// For the test's own tasks: two threads, so that callers press while the test waits.
pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A refusal as its caller sees it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The stable code; empty when the transport refused.
    pub(crate) code: String,
    pub(crate) grpc: Code,
    pub(crate) message: String,
    pub(crate) retry_after_ms: Option<u64>,
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} [{}] {:?}, retry {:?}", self.grpc, self.code, self.message, self.retry_after_ms)
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let word = |key: &str| status.metadata().get(key).and_then(|it| it.to_str().ok()).map(str::to_owned);
        Self {
            code: word(METADATA_CODE).unwrap_or_default(),
            grpc: status.code(),
            retry_after_ms: word(METADATA_RETRY_AFTER_MS).and_then(|text| text.parse().ok()),
            message: status.message().to_owned(),
        }
    }
}

impl From<ca::Problem> for Refusal {
    fn from(problem: ca::Problem) -> Self {
        let retry = u64::try_from(problem.retry_after_ms).unwrap();
        Self {
            code: problem.code,
            grpc: Code::from_i32(problem.grpc_code.try_into().unwrap()),
            retry_after_ms: (retry > 0).then_some(retry),
            message: problem.message,
        }
    }
}

pub(crate) type Answer<T> = Result<T, Refusal>;

/// A channel on the administrators' socket.
pub(crate) async fn local(server: &Server) -> Channel {
    rhizome_tls::connect(&server.admin_url(), None).await.unwrap()
}

/// A channel to the mTLS door that presents the identity in a directory.
pub(crate) async fn identified(server: &Server, directory: &Path) -> Channel {
    let stored = IdentityDir::new(directory).load().unwrap();
    connect(server, stored.bundle.clone(), Some(stored)).await
}

/// A channel to the mTLS door that presents nothing.
pub(crate) async fn anonymous(server: &Server) -> Channel {
    let mut client = BundleServiceClient::new(local(server).await);
    let bundle =
        client.get_bundle(ca::GetBundleRequest::default()).await.unwrap().into_inner().bundle.unwrap();
    let anchors = bundle.anchors_der.iter().map(|der| CaCertificate::parse(der).unwrap()).collect();
    let hint = Ttl::from_seconds(bundle.refresh_hint_seconds).unwrap();
    let domain = bundle.trust_domain.parse().unwrap();
    connect(server, Bundle::new(domain, bundle.sequence, hint, anchors).unwrap(), None).await
}

async fn connect(server: &Server, bundle: Bundle, stored: Option<StoredIdentity>) -> Channel {
    let anchors = Arc::new(TrustAnchors::from_bundle(&bundle));
    let expected = ExpectedServer::ServerOf(bundle.trust_domain().clone());
    let identity = stored.map(|it| it.identity);
    let tls = rhizome_tls::client_config(anchors, identity, expected, Arc::new(now)).unwrap();
    rhizome_tls::connect(server.address(), Some(Arc::new(tls))).await.unwrap()
}

#[expect(clippy::disallowed_methods, reason = "certificates of a real server are judged by the real time")]
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_unix(since.as_secs().try_into().unwrap())
}

pub(crate) fn new_key() -> RequestKey {
    RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()
}

/// A request for a new key, DER.
pub(crate) fn new_csr() -> Bytes {
    create_csr(&new_key()).unwrap().into()
}

/// What node `default` may have: a certificate for `/ns/default/sa/web`.
pub(crate) fn workload(csr_der: Bytes) -> ca::CertificateRequest {
    ca::CertificateRequest {
        csr: Some(Csr::CsrDer(csr_der)),
        attributes: attributes(&[("namespace", "default"), ("service_account", "web")]),
        ..ca::CertificateRequest::default()
    }
}

pub(crate) fn attributes(pairs: &[(&str, &str)]) -> Vec<ca::Attribute> {
    let pair = |(name, value): &(&str, &str)| ca::Attribute { name: (*name).into(), value: (*value).into() };
    pairs.iter().map(pair).collect()
}

pub(crate) async fn sign(
    channel: &Channel,
    request: ca::CertificateRequest,
) -> Answer<ca::IssuedCertificate> {
    let request = ca::SignCertificateRequest { certificate: Some(request) };
    let answer = CertificateServiceClient::new(channel.clone()).sign_certificate(request).await?;
    Ok(answer.into_inner().issued.unwrap())
}

/// The secret of a new join token for the node `name`.
pub(crate) async fn token(administrator: &Channel, name: &str, ttl_seconds: i64) -> Answer<String> {
    let request = admin::CreateTokenRequest {
        cluster: "dev".to_owned(),
        node: name.to_owned(),
        scope: Some(admin::Scope { all_namespaces: false, namespaces: vec!["default".to_owned()] }),
        ttl_seconds,
    };
    let answer = TokenServiceClient::new(administrator.clone()).create_token(request).await?;
    Ok(answer.into_inner().secret)
}

/// Joins with a token.
pub(crate) async fn attest(channel: &Channel, token: &str, csr_der: Bytes) -> Answer<ca::IssuedCertificate> {
    let evidence = node::JoinTokenEvidence { token: token.to_owned() };
    let evidence = Some(node::attest_request::Evidence::JoinToken(evidence));
    let request = node::AttestRequest { csr_der, evidence };
    let answer = NodeServiceClient::new(channel.clone()).attest(request).await?;
    Ok(answer.into_inner().identity.unwrap())
}

/// A certificate as a caller keeps it, to be found again in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) serial: Serial,
    /// SHA-256 of the to-be-signed bytes.
    pub(crate) tbs: Digest,
}

impl Seen {
    /// From the certificate alone, not from what the answer says about it.
    pub(crate) fn of(issued: &ca::IssuedCertificate) -> Self {
        let der = &issued.chain_der[0];
        let serial = Serial::from_bytes(&inspect(der).unwrap().serial).unwrap();
        assert_eq!(serial.to_string(), issued.serial, "the answer and its certificate agree");
        let hash = digest(&SHA256, to_be_signed(der));
        Self { serial, tbs: Digest::from_bytes(hash.as_ref().try_into().unwrap()) }
    }
}

/// The first element inside the SEQUENCE `der`, with its header (RFC 5280 §4.1).
fn to_be_signed(der: &[u8]) -> &[u8] {
    let inside = &der[element(der).0..];
    let (header, content) = element(inside);
    &inside[..header + content]
}

/// Bytes of the header and of the content of the element that `der` begins with.
fn element(der: &[u8]) -> (usize, usize) {
    match usize::from(der[1]) {
        short @ 0..=0x7f => (2, short),
        long => {
            let digits = &der[2..2 + (long & 0x7f)];
            let content = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
            (2 + digits.len(), content)
        }
    }
}
