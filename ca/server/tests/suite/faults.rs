//! What happens while a commit takes its time, when the store fails at every call in turn, and to those who hurry.
//!
//! Laws: a commit is held where the test wants it, and the test waits until it has come there.
//! Sources: ca/docs/attacks.md §1.3, §1.4; CVE-2023-44487.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use rhizome_core::ports::StoreError;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::bundle_admin_service_client::BundleAdminServiceClient;
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::bundle_service_client::BundleServiceClient;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::ca::v1::watch_bundle_request::Message;
use rhizome_store::Moment;
use rhizome_x509::{KeyAlgorithm, RequestKey, create_csr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Node, TestServer, attest, attributes, refusal, renew, sign};

/// A call that runs while the test does something else.
fn apart<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    #[expect(clippy::disallowed_methods, reason = "a test's own task, which it waits for")]
    tokio::spawn(call)
}

fn signing(vm: &Node) -> tokio::task::JoinHandle<Result<ca::IssuedCertificate, Status>> {
    let channel = vm.channel.clone();
    apart(async move { sign(&channel, "shop", "web").await })
}

async fn delete_the_rule(server: &TestServer) {
    let request = admin::DeleteRuleRequest { name: "default-ns-sa".into(), ..Default::default() };
    RuleServiceClient::new(server.local().await).delete_rule(request).await.unwrap();
}

#[tokio::test]
async fn a_rule_that_is_deleted_while_the_entry_is_written_gets_nothing_signed() {
    for moment in [Moment::Before, Moment::After] {
        let server = TestServer::start().await;
        let vm = server.join("vm-1").await;
        let mut held = server.store.hold_commit(1, moment);
        let call = signing(&vm);
        assert!(held.reached().await);
        delete_the_rule(&server).await;
        drop(held);
        assert_eq!(refusal(call.await.unwrap()).0, Code::PermissionDenied);
        server.recorded(&["signing_failed", "no rule"]).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_is_banned_or_evicted_while_the_entry_is_written_gets_nothing_signed() {
    for evict in [false, true] {
        let server = TestServer::start().await;
        let vm = server.join("vm-1").await;
        let mut held = server.store.hold_commit(1, Moment::After);
        let call = signing(&vm);
        assert!(held.reached().await);
        let mut nodes = NodeAdminServiceClient::new(server.local().await);
        if evict {
            let request = admin::EvictNodeRequest { id: vm.id.clone(), reason: "gone".into() };
            nodes.evict_node(request).await.unwrap();
        } else {
            let request = admin::BanNodeRequest { id: vm.id.clone(), reason: "stolen".into() };
            nodes.ban_node(request).await.unwrap();
        }
        drop(held);
        assert_eq!(refusal(call.await.unwrap()).0, Code::Unauthenticated);
        server.recorded(&["signing_failed"]).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_change_that_concerns_nobody_here_takes_nothing_from_a_request_under_way() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let mut held = server.store.hold_commit(1, Moment::After);
    let call = signing(&vm);
    assert!(held.reached().await);
    server.join("vm-2").await;
    drop(held);
    call.await.unwrap().unwrap();
    server.stop().await;
}

/// A stream of the bundle.
struct Watch {
    requests: mpsc::Sender<ca::WatchBundleRequest>,
    answers: Streaming<ca::WatchBundleResponse>,
    bundle: ca::Bundle,
}

impl Watch {
    async fn open(node: &Node) -> Self {
        let (requests, outgoing) = mpsc::channel(4);
        let opening = ca::WatchBundleOpening { trust_domain: String::new(), known_sequence: 0 };
        requests.send(ca::WatchBundleRequest { message: Some(Message::Opening(opening)) }).await.unwrap();
        let mut client = BundleServiceClient::new(node.channel.clone());
        let mut answers = client.watch_bundle(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let bundle = answers.message().await.unwrap().unwrap().bundle.unwrap();
        Self { requests, answers, bundle }
    }

    async fn acknowledge(&self) {
        let ca::Bundle { sequence, digest, .. } = self.bundle.clone();
        let message = Message::Acknowledgement(ca::BundleAcknowledgement { sequence, digest });
        self.requests.send(ca::WatchBundleRequest { message: Some(message) }).await.unwrap();
    }
}

async fn subscribers(server: &TestServer) -> u64 {
    let mut bundles = BundleAdminServiceClient::new(server.local().await);
    let shown = bundles.show_bundle(admin::ShowBundleRequest::default()).await.unwrap();
    shown.into_inner().subscriber_count
}

#[tokio::test]
async fn an_acknowledgement_of_a_node_that_was_evicted_meanwhile_leaves_nothing_behind() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let mut watch = Watch::open(&vm).await;
    let mut held = server.store.hold_commit(1, Moment::Before);
    watch.acknowledge().await;
    assert!(held.reached().await);
    let request = admin::EvictNodeRequest { id: vm.id.clone(), reason: "gone".into() };
    NodeAdminServiceClient::new(server.local().await).evict_node(request).await.unwrap();
    drop(held);
    assert_eq!(watch.answers.message().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(subscribers(&server).await, 0);
    server.stop().await;
}

#[tokio::test]
async fn acknowledgements_that_are_written_together_fail_each_by_itself() {
    let server = TestServer::start().await;
    let mut nodes = Vec::new();
    for number in 1..=9 {
        nodes.push(server.join(&format!("vm-{number}")).await);
    }
    let watches = join_all(nodes.iter().map(Watch::open)).await;
    // While the first one is being written, the others gather; then the second write is held, and one of them goes.
    let mut first = server.store.hold_commit(1, Moment::Before);
    let mut second = server.store.hold_commit(2, Moment::Before);
    watches[0].acknowledge().await;
    assert!(first.reached().await);
    for watch in &watches[1..] {
        watch.acknowledge().await;
    }
    drop(first);
    assert!(second.reached().await);
    let request = admin::EvictNodeRequest { id: nodes[4].id.clone(), reason: "gone".into() };
    NodeAdminServiceClient::new(server.local().await).evict_node(request).await.unwrap();
    drop(second);
    for (number, mut watch) in watches.into_iter().enumerate() {
        drop(watch.requests);
        let ended = watch.answers.message().await;
        match number {
            4 => assert_eq!(ended.unwrap_err().code(), Code::Unauthenticated),
            _ => assert!(ended.unwrap().is_none(), "{number}: it ends when everything it said was heard"),
        }
    }
    assert_eq!(subscribers(&server).await, 8);
    server.stop().await;
}

fn named(id: &str, csr_der: &[u8]) -> ca::SignCertificateRequest {
    let certificate = ca::CertificateRequest {
        csr: Some(Csr::CsrDer(csr_der.to_vec().into())),
        attributes: attributes(&[("namespace", "shop"), ("service_account", "web")]),
        request_id: id.to_owned(),
        ..Default::default()
    };
    ca::SignCertificateRequest { certificate: Some(certificate) }
}

async fn ask(channel: Channel, request: ca::SignCertificateRequest) -> Result<String, Status> {
    let answer = CertificateServiceClient::new(channel).sign_certificate(request).await?;
    Ok(answer.into_inner().issued.unwrap().serial)
}

#[tokio::test]
async fn a_caller_that_goes_away_during_the_commit_finds_its_certificate_under_the_same_request_id() {
    for moment in [Moment::Before, Moment::After] {
        let server = TestServer::start().await;
        let vm = server.join("vm-1").await;
        let csr = create_csr(&RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()).unwrap();
        let issued = || async { server.ledger().await.iter().filter(|it| it.contains("going-away")).count() };
        let mut held = server.store.hold_commit(1, moment);
        let call = apart(ask(vm.channel.clone(), named("going-away", &csr)));
        assert!(held.reached().await);
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        drop(held);
        let serial = ask(vm.channel.clone(), named("going-away", &csr)).await.unwrap();
        assert_eq!(ask(vm.channel.clone(), named("going-away", &csr)).await.unwrap(), serial);
        assert_eq!(issued().await, 1, "one entry, one certificate");
        server.recorded(&[&serial]).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn whichever_commit_of_an_issuance_fails_no_certificate_is_seen_that_is_not_recorded() {
    let server = TestServer::start().await;
    let mut vm = server.join("vm-1").await;
    let mut seen = Vec::new();
    for moment in [Moment::Before, Moment::After] {
        // Every issuance has one commit; the second of the plan is the try that follows.
        for nth in [1, 2] {
            let before = server.store.commits();
            server.store.fail_commit(nth, moment);
            let (first, second) =
                (sign(&vm.channel, "shop", "web").await, sign(&vm.channel, "shop", "web").await);
            assert_eq!((first.is_ok(), second.is_ok()), (nth == 2, nth == 1));
            assert_eq!(server.store.commits(), before + 2, "one commit for each");
            seen.extend(first.into_iter().chain(second).map(|issued| issued.serial));

            server.store.fail_commit(1, moment);
            let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
            assert_eq!(refusal(renew(&vm.channel, &key).await).0, Code::Unavailable);
            let issued = renewed(&vm, &key).await;
            seen.push(issued.serial.clone());
            vm.holder = crate::support::Holder { key, issued };
            vm.channel = server.connect(Some(&vm.holder)).await;

            let token = server.create_token(&format!("vm-{moment:?}-{nth}").to_lowercase()).await.secret;
            let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
            server.store.fail_commit(1, moment);
            assert_eq!(refusal(attest(server.connect(None).await, &token, &key).await).0, Code::Unavailable);
            let joined = attest(server.connect(None).await, &token, &key).await.unwrap();
            seen.push(joined.identity.unwrap().serial);
        }
    }
    let ledger = server.ledger().await;
    for serial in &seen {
        assert!(ledger.iter().any(|line| line.contains(serial)), "{serial} is not recorded");
    }
    assert_eq!(seen.len(), 12);
    server.stop().await;
}

/// Tries again while the server still reads back what became of the commit that failed.
async fn renewed(vm: &Node, key: &RequestKey) -> ca::IssuedCertificate {
    loop {
        match renew(&vm.channel, key).await {
            Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
            outcome => return outcome.unwrap(),
        }
    }
}

async fn health(channel: &Channel) -> ServingStatus {
    let request = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn the_health_probe_answers_while_every_commit_stands_still() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let mut held: Vec<_> = (1..=200).map(|nth| server.store.hold_commit(nth, Moment::Before)).collect();
    let calls: Vec<_> = held.iter().map(|_| signing(&vm)).collect();
    for commit in &mut held {
        assert!(commit.reached().await);
    }
    let probe = server.connect(None).await;
    assert_eq!(health(&probe).await, ServingStatus::Serving);
    assert_eq!(
        health(&vm.channel).await,
        ServingStatus::Serving,
        "on a connection that is full of calls, too"
    );
    drop(held);
    for call in join_all(calls).await {
        call.unwrap().unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn watchers_of_health_are_told_when_it_stops_issuing_and_when_it_issues_again() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let (_holder, viewer) = server.admin("vera", admin::Role::Viewer).await;
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(viewer.clone()).watch(request).await.unwrap().into_inner();
    let mut told = async || watch.message().await.unwrap().unwrap().status();
    assert_eq!(told().await, ServingStatus::Serving);
    // The disk is full: nothing can be recorded, so nothing is issued; nor does a probe find room meanwhile.
    (1..=100).for_each(|nth| server.store.fail_reservation(nth, Moment::Before));
    server.store.fail_commit_with(1, Moment::Before, StoreError::Full { cause: "no space left".into() });
    sign(&vm.channel, "shop", "web").await.unwrap_err();
    assert_eq!(health(&vm.channel).await, ServingStatus::NotServing);
    assert_eq!(told().await, ServingStatus::NotServing);
    // There is room again: a durable write shows it, by whomever.
    sign(&vm.channel, "shop", "web").await.unwrap();
    assert_eq!(health(&vm.channel).await, ServingStatus::Serving);
    assert_eq!(told().await, ServingStatus::Serving);
    // A clock that goes back, and comes back.
    server.clock.set(server.now().minus(600));
    assert_eq!(told().await, ServingStatus::NotServing);
    server.clock.advance(600);
    assert_eq!(told().await, ServingStatus::Serving);
    server.stop().await;
}

#[tokio::test]
async fn the_health_probe_answers_while_the_server_is_saturated() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let enough = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let (channel, enough) = (vm.channel.clone(), Arc::clone(&enough));
            apart(async move {
                let mut issued = 0;
                while !enough.load(Ordering::Relaxed) {
                    sign(&channel, "shop", "web").await.unwrap();
                    issued += 1;
                }
                issued
            })
        })
        .collect();
    for _ in 0..50 {
        // A connection of its own for each, as kubelets and load balancers do it.
        assert_eq!(health(&server.connect(None).await).await, ServingStatus::Serving);
    }
    enough.store(true, Ordering::Relaxed);
    let issued: u32 = join_all(callers).await.into_iter().map(Result::unwrap).sum();
    assert!(issued > 0);
    server.stop().await;
}

/// What a server says to who overdoes it (RFC 9113 §7).
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// HTTP/2 frames (RFC 9113 §4.1): length, type, flags, stream, payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a gRPC call, without Huffman coding and without a dynamic table (RFC 7541 §6).
fn call_of(path: &str) -> Vec<u8> {
    let literal =
        |name: &[u8], value: &str| [name, &[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    // `:method POST`, `:scheme http`, then `:path`, `:authority` and `content-type` by their static index.
    let mut block = vec![0x83, 0x86];
    block.extend(literal(&[0x04], path));
    block.extend(literal(&[0x01], "localhost"));
    block.extend(literal(&[0x0f, 0x10], "application/grpc"));
    block
}

/// The error code of the GOAWAY frame among `bytes`, if there is one.
fn goodbye(mut bytes: &[u8]) -> Option<u32> {
    while let Some((&[a, b, c, kind, _flags, ..], rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
        let (payload, rest) = rest.split_at_checked(length)?;
        if kind == 7 {
            let (_last_stream, code) = payload.split_first_chunk::<4>()?;
            return Some(u32::from_be_bytes(*code.first_chunk()?));
        }
        bytes = rest;
    }
    None
}

#[tokio::test]
async fn a_connection_that_resets_its_calls_without_end_is_closed_and_others_are_served() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    attack.extend(frame(4, 0, 0, &[]));
    let block = call_of("/grpc.health.v1.Health/Check");
    for stream in (1..10_000).step_by(2) {
        attack.extend(frame(1, 0x4, stream, &block));
        attack.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
    }
    let connection = tokio::net::UnixStream::connect(server.socket()).await.unwrap();
    let (mut from, mut to) = connection.into_split();
    // The server may close before it has read everything: that is what is wanted.
    let sent = apart(async move { drop(to.write_all(&attack).await) });
    let mut answer = Vec::new();
    drop(from.read_to_end(&mut answer).await);
    sent.await.unwrap();
    assert_eq!(goodbye(&answer), Some(ENHANCE_YOUR_CALM));
    sign(&vm.channel, "shop", "web").await.unwrap();
    assert_eq!(health(&server.local().await).await, ServingStatus::Serving);
    server.stop().await;
}
