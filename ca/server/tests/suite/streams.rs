//! Streams that stay open: what still holds on them when the world changes.

use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::bundle_admin_service_client::BundleAdminServiceClient;
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::bundle_service_client::BundleServiceClient;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::ca::v1::sign_certificates_response::Outcome;
use rhizome_proto::ca::v1::watch_bundle_request::Message;
use rhizome_proto::node::v1 as node;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_x509::{KeyAlgorithm, RequestKey, create_csr};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::{Holder, Node, TestServer, attributes, refusal, renew, sign};

fn request(correlation: u64) -> ca::SignCertificatesRequest {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let certificate = ca::CertificateRequest {
        csr: Some(Csr::CsrDer(create_csr(&key).unwrap().into())),
        attributes: attributes(&[("namespace", "shop"), ("service_account", "web")]),
        ..Default::default()
    };
    ca::SignCertificatesRequest { correlation, certificate: Some(certificate) }
}

type Signing = (mpsc::Sender<ca::SignCertificatesRequest>, Streaming<ca::SignCertificatesResponse>);

async fn signing(vm: &Node) -> Signing {
    let (sender, requests) = mpsc::channel(4);
    sender.send(request(1)).await.unwrap();
    let mut client = CertificateServiceClient::new(vm.channel.clone());
    let answers = client.sign_certificates(ReceiverStream::new(requests)).await.unwrap().into_inner();
    (sender, answers)
}

fn issued(answer: ca::SignCertificatesResponse) -> ca::IssuedCertificate {
    match answer.outcome {
        Some(Outcome::Issued(issued)) => issued,
        other => panic!("not issued: {other:?}"),
    }
}

async fn ban(server: &TestServer, id: &str) {
    let request = admin::BanNodeRequest { id: id.into(), reason: "stolen".into() };
    NodeAdminServiceClient::new(server.local().await).ban_node(request).await.unwrap();
}

#[tokio::test]
async fn a_ban_ends_an_open_stream_of_requests_at_the_next_one() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let (requests, mut answers) = signing(&vm).await;
    issued(answers.message().await.unwrap().unwrap());
    ban(&server, &vm.id).await;
    requests.send(request(2)).await.unwrap();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unauthenticated);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_carries_the_bundle_once_and_a_bad_item_does_not_end_it() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let (requests, mut answers) = signing(&vm).await;
    assert!(issued(answers.message().await.unwrap().unwrap()).bundle.is_some());
    let mut bad = request(2);
    bad.certificate.as_mut().unwrap().csr = Some(Csr::CsrDer(vec![0x30, 0x00].into()));
    requests.send(bad).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(answer.correlation, 2);
    assert!(matches!(answer.outcome, Some(Outcome::Problem(problem)) if problem.code.starts_with("csr_")));
    requests.send(request(3)).await.unwrap();
    assert!(issued(answers.message().await.unwrap().unwrap()).bundle.is_none(), "it has been told");
    server.stop().await;
}

/// A stream of bundles, and the first one.
pub(crate) async fn watching(
    vm: &Node,
) -> (mpsc::Sender<ca::WatchBundleRequest>, Streaming<ca::WatchBundleResponse>, ca::Bundle) {
    let (sender, requests) = mpsc::channel(4);
    let opening = ca::WatchBundleOpening { trust_domain: String::new(), known_sequence: 0 };
    sender.send(ca::WatchBundleRequest { message: Some(Message::Opening(opening)) }).await.unwrap();
    let mut client = BundleServiceClient::new(vm.channel.clone());
    let mut answers = client.watch_bundle(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let bundle = answers.message().await.unwrap().unwrap().bundle.unwrap();
    (sender, answers, bundle)
}

pub(crate) fn acknowledgement(sequence: u64, digest: &[u8]) -> ca::WatchBundleRequest {
    let digest = digest.to_vec().into();
    let message = Message::Acknowledgement(ca::BundleAcknowledgement { sequence, digest });
    ca::WatchBundleRequest { message: Some(message) }
}

#[tokio::test]
async fn an_acknowledgement_counts_for_the_published_bundle_and_a_ban_ends_the_stream() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let (requests, mut answers, bundle) = watching(&vm).await;
    requests.send(acknowledgement(bundle.sequence, &bundle.digest)).await.unwrap();
    let mut admins = BundleAdminServiceClient::new(server.local().await);
    let known = loop {
        let shown = admins.show_bundle(admin::ShowBundleRequest::default()).await.unwrap().into_inner();
        if let Some(subscriber) = shown.subscribers.into_iter().next() {
            break subscriber;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(
        (known.name.as_str(), known.behind, known.connected),
        ("node:prod/join_token/vm-1", false, true)
    );
    assert_eq!(known.acknowledged_digest, bundle.digest);
    ban(&server, &vm.id).await;
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unauthenticated);
    server.stop().await;
}

#[tokio::test]
async fn an_acknowledgement_of_another_bundle_is_refused() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    for (ahead, digest) in [(0, vec![7; 32]), (1, Vec::new()), (0, vec![1; 3])] {
        let (requests, mut answers, bundle) = watching(&vm).await;
        let digest = if digest.is_empty() { bundle.digest.to_vec() } else { digest };
        requests.send(acknowledgement(bundle.sequence + ahead, &digest)).await.unwrap();
        assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    }
    let mut admins = BundleAdminServiceClient::new(server.local().await);
    let shown = admins.show_bundle(admin::ShowBundleRequest::default()).await;
    assert_eq!(shown.unwrap().into_inner().subscriber_count, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_that_was_replaced_twice_speaks_for_nobody() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let old = server.connect(Some(&vm.holder)).await;
    let mut holder = vm.holder;
    for _ in 0..2 {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let channel = server.connect(Some(&holder)).await;
        let issued = renew(&channel, &key).await.unwrap();
        holder = Holder { key, issued };
    }
    assert_eq!(refusal(sign(&old, "shop", "web").await).0, Code::Unauthenticated);
    let newest = server.connect(Some(&holder)).await;
    sign(&newest, "shop", "web").await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_change_of_rules_follows_as_a_delta_and_a_cursor_resumes() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let (requests, mut answers, first) = syncing(&vm, 0).await;
    assert!(first.full && first.cursor > 0 && first.bundle.is_some());
    assert_eq!(first.upserts.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["default-ns-sa"]);

    let mut rules = RuleServiceClient::new(server.local().await);
    rules.put_rule(put("web", "prod")).await.unwrap();
    let delta = answers.message().await.unwrap().unwrap();
    assert!(!delta.full && delta.bundle.is_none() && delta.cursor > first.cursor);
    assert_eq!(delta.upserts.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["web"]);

    rules.put_rule(put("web", "elsewhere")).await.unwrap();
    let delta = answers.message().await.unwrap().unwrap();
    assert_eq!((delta.upserts.len(), delta.removed_rules.as_slice()), (0, &["web".to_owned()][..]));
    drop(requests);

    let (_requests, _answers, resumed) = syncing(&vm, first.cursor).await;
    assert!(!resumed.full, "this process remembers that far back");
    assert_eq!(resumed.removed_rules, ["web"]);
    let (_requests, _answers, future) = syncing(&vm, u64::MAX).await;
    assert!(future.full, "a cursor from a future that this store does not know");
    server.stop().await;
}

async fn syncing(
    vm: &Node,
    cursor: u64,
) -> (mpsc::Sender<node::SyncRequest>, Streaming<node::SyncResponse>, node::SyncResponse) {
    let (sender, requests) = mpsc::channel(4);
    let hello = node::sync_request::Message::Hello(node::Hello { cursor, agent_version: "1.0.0".into() });
    sender.send(node::SyncRequest { message: Some(hello) }).await.unwrap();
    let mut client = NodeServiceClient::new(vm.channel.clone());
    let mut answers = client.sync(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    (sender, answers, first)
}

/// A rule for workloads in `cluster`; the nodes of the test belong to `prod`.
fn put(name: &str, cluster: &str) -> admin::PutRuleRequest {
    let condition = |attribute: &str, value: &str| ca::Condition {
        attribute: attribute.into(),
        values: vec![value.into()],
    };
    let rule = ca::GrantRule {
        name: name.into(),
        conditions: vec![condition("cluster", cluster), condition("namespace", "*")],
        identity: "/web/{namespace}".into(),
        ..Default::default()
    };
    admin::PutRuleRequest { rule: Some(rule), dry_run: false, expected_version: None }
}

#[tokio::test]
async fn retries_in_flight_together_get_one_certificate() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let mut asked = request(0).certificate.unwrap();
    asked.request_id = "retry-1".into();
    let calls = (0..32).map(|_| {
        let mut client = CertificateServiceClient::new(vm.channel.clone());
        let request = ca::SignCertificateRequest { certificate: Some(asked.clone()) };
        async move { client.sign_certificate(request).await.unwrap().into_inner().issued.unwrap().serial }
    });
    let serials: std::collections::BTreeSet<String> =
        futures::future::join_all(calls).await.into_iter().collect();
    assert_eq!(serials.len(), 1);
    server.stop().await;
}
