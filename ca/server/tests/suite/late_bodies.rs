//! Headers that come in good time, and a body that comes when their sender is somebody no more.
//!
//! Laws: the headers are with the server before the ban, since calls of one connection begin in their order and a later
//! one is answered before the ban is asked for.
//! Sources: RFC 9113 §8.1; ca/docs/attacks.md §1.3.

use prost::Message;
use rhizome_proto::METADATA_CODE;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::admin_identity_service_client::AdminIdentityServiceClient;
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::node::v1 as node;
use rhizome_server::{METHODS, Needed};
use rhizome_x509::{KeyAlgorithm, RequestKey, create_csr};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use crate::support::{TestServer, admin_request, attributes, sign, token_for};

/// A call whose headers are sent and whose body waits.
struct Late {
    body: oneshot::Sender<()>,
    answer: JoinHandle<Result<(), Status>>,
}

impl Late {
    /// Sends the body, which is what the server has waited for.
    async fn finish(self) -> Result<(), Status> {
        self.body.send(()).unwrap();
        self.answer.await.unwrap()
    }
}

/// Calls the unary method at `path`, without its body yet.
async fn begin<M>(channel: &Channel, path: &'static str, message: M) -> Late
where
    M: Message + 'static,
{
    let (body, waited) = oneshot::channel();
    let late = futures::stream::once(async move {
        waited.await.unwrap();
        message
    });
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test's own task, which it waits for")]
    let answer = tokio::spawn(async move {
        // Nobody reads the answer, only that there is one.
        let codec: ProstCodec<M, ()> = ProstCodec::default();
        let path = PathAndQuery::from_static(path);
        client.client_streaming(Request::new(late), path, codec).await.map(drop)
    });
    // Answered after the headers above were read; also gives the task its turn.
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
    Late { body, answer }
}

fn csr() -> bytes::Bytes {
    create_csr(&RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()).unwrap().into()
}

async fn late_certificate(channel: &Channel) -> Late {
    let certificate = ca::CertificateRequest {
        csr: Some(Csr::CsrDer(csr())),
        attributes: attributes(&[("namespace", "shop"), ("service_account", "late")]),
        ..Default::default()
    };
    let request = ca::SignCertificateRequest { certificate: Some(certificate) };
    begin(channel, "/rhizome.ca.v1.CertificateService/SignCertificate", request).await
}

async fn late_token(channel: &Channel) -> Late {
    let request = ca::SignJwtSvidRequest {
        attributes: attributes(&[("namespace", "shop"), ("service_account", "late")]),
        audiences: vec!["late".to_owned()],
        ..Default::default()
    };
    begin(channel, "/rhizome.ca.v1.JwtService/SignJwtSvid", request).await
}

fn is_nobody(outcome: Result<(), Status>) {
    let status = outcome.unwrap_err();
    let code = status.metadata().get(METADATA_CODE).and_then(|it| it.to_str().ok());
    assert_eq!((status.code(), code), (Code::Unauthenticated, Some("unauthenticated")), "{status:?}");
}

#[tokio::test]
async fn a_node_that_is_banned_between_its_headers_and_its_body_gets_nothing() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    sign(&vm.channel, "shop", "web").await.unwrap();
    let renewal = node::RenewRequest { csr_der: csr() };
    let calls = [
        late_certificate(&vm.channel).await,
        late_token(&vm.channel).await,
        begin(&vm.channel, "/rhizome.node.v1.NodeService/Renew", renewal).await,
    ];
    let request = admin::BanNodeRequest { id: vm.id.clone(), reason: "stolen".into() };
    NodeAdminServiceClient::new(server.local().await).ban_node(request).await.unwrap();
    let before = server.ledger().await.len();
    for call in calls {
        is_nobody(call.finish().await);
    }
    let ledger = server.ledger().await;
    assert!(ledger[before..].iter().all(|line| !line.contains("issued")), "{:?}", &ledger[before..]);
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_comes_late_from_somebody_in_good_standing_is_served() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    for call in [late_certificate(&vm.channel).await, late_token(&vm.channel).await] {
        call.finish().await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn an_administrator_who_is_removed_between_headers_and_body_changes_nothing() {
    let server = TestServer::start().await;
    let (_alice, channel) = server.admin("alice", admin::Role::Security).await;
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let accomplice = admin_request("mallory", admin::Role::Security, &key);
    let rule = admin::DeleteRuleRequest { name: "default-ns-sa".into(), ..Default::default() };
    let calls = [
        begin(&channel, "/rhizome.admin.v1.TokenService/CreateToken", token_for("vm-9")).await,
        begin(&channel, "/rhizome.admin.v1.RuleService/DeleteRule", rule).await,
        begin(&channel, "/rhizome.admin.v1.AdminIdentityService/IssueAdminCertificate", accomplice).await,
    ];
    let request = admin::RemoveAdminRequest { name: "alice".into(), reason: "left".into() };
    AdminIdentityServiceClient::new(server.local().await).remove_admin(request).await.unwrap();
    let before = server.everything_stored().await;
    for call in calls {
        is_nobody(call.finish().await);
    }
    assert_eq!(server.everything_stored().await, before);
    let rules = admin::ListRulesRequest::default();
    let rules = RuleServiceClient::new(server.local().await).list_rules(rules).await.unwrap().into_inner();
    assert_eq!(rules.rules.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn no_administrators_method_answers_who_was_removed_before_the_body_came() {
    let server = TestServer::start().await;
    let (_alice, channel) = server.admin("alice", admin::Role::Security).await;
    let mut calls = Vec::new();
    for (path, needed) in METHODS {
        if matches!(needed, Needed::Role(_)) && path.starts_with("/rhizome.") {
            calls.push((path, begin(&channel, path, ()).await));
        }
    }
    assert!(calls.len() > 25, "{}", calls.len());
    let request = admin::RemoveAdminRequest { name: "alice".into(), reason: "left".into() };
    AdminIdentityServiceClient::new(server.local().await).remove_admin(request).await.unwrap();
    for (path, call) in calls {
        let status = call.finish().await.expect_err(path);
        assert_eq!(status.code(), Code::Unauthenticated, "{path}: {status:?}");
    }
    server.stop().await;
}
