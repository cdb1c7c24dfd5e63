//! Explanations: the decision that would be made, and why.

use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::explain_request::Caller;
use rhizome_proto::admin::v1::explain_response::Decision;
use rhizome_proto::admin::v1::explain_service_client::ExplainServiceClient;
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use tonic::Code;

use crate::support::{TestServer, attributes, refusal, sign};

fn about(caller: Caller, pairs: &[(&str, &str)]) -> wire::ExplainRequest {
    wire::ExplainRequest {
        caller: Some(caller),
        attributes: attributes(pairs),
        ..wire::ExplainRequest::default()
    }
}

fn granted(answer: wire::ExplainResponse) -> wire::GrantSummary {
    match answer.decision {
        Some(Decision::Granted(grant)) => grant,
        other => panic!("this should be granted: {other:?}"),
    }
}

fn denied(answer: &wire::ExplainResponse) -> &wire::DenialSummary {
    match &answer.decision {
        Some(Decision::Denied(denial)) => denial,
        other => panic!("this should be denied: {other:?}"),
    }
}

#[tokio::test]
async fn a_grant_is_explained_as_the_node_would_get_it_and_nothing_is_issued() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let mut client = ExplainServiceClient::new(server.local().await);
    let before = server.everything_stored().await;
    let workload = [("namespace", "shop"), ("service_account", "web")];
    let request =
        wire::ExplainRequest { ttl_seconds: 100 * 3_600, ..about(Caller::NodeId(node.id), &workload) };
    let answer = client.explain(request).await.unwrap().into_inner();
    assert_eq!(answer.matched, ["default-ns-sa"]);
    let grant = granted(answer);
    assert_eq!(server.everything_stored().await, before);
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    assert_eq!((&grant.spiffe_id, &grant.rule), (&issued.spiffe_id, &issued.rule));
    assert_eq!((grant.ttl_seconds, grant.ttl_clamped), (24 * 3_600, true));
}

#[tokio::test]
async fn a_denial_says_which_rules_came_near_and_what_they_lack() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let mut client = ExplainServiceClient::new(server.local().await);
    let half = about(Caller::NodeId(node.id.clone()), &[("namespace", "shop")]);
    let answer = client.explain(half).await.unwrap().into_inner();
    assert_eq!(denied(&answer).code, "no_rule");
    assert_eq!(answer.near[0].rule, "default-ns-sa");
    assert_eq!(answer.near[0].unmet[0].attribute, "service_account");
    assert_eq!(answer.near[0].unmet[0].wanted, ["*"]);

    let foreign = about(Caller::NodeId(node.id), &[("namespace", "bank"), ("service_account", "web")]);
    let answer = client.explain(foreign).await.unwrap().into_inner();
    assert_eq!(denied(&answer).code, "out_of_scope", "{answer:?}");
}

#[tokio::test]
async fn any_principal_can_be_asked_about() {
    let server = TestServer::start().await;
    server.join("vm-1").await;
    let mut client = ExplainServiceClient::new(server.local().await);
    let bank = [("namespace", "bank"), ("service_account", "web")];
    for (principal, code) in [
        ("node:prod/join_token/vm-1", Some("out_of_scope")),
        ("node:prod/join_token/not-yet-there", None),
        ("admin:alice", Some("wrong_caller")),
        ("local:uid=0(root)", Some("wrong_caller")),
        ("server:r1", Some("wrong_caller")),
        ("token:0123456789abcdef", Some("wrong_caller")),
    ] {
        let answer =
            client.explain(about(Caller::Principal(principal.into()), &bank)).await.unwrap().into_inner();
        match code {
            Some(code) => assert_eq!(denied(&answer).code, code, "{principal}"),
            None => assert_eq!(granted(answer).spiffe_id, "spiffe://example.test/ns/bank/sa/web"),
        }
    }
    let mut nodes = NodeAdminServiceClient::new(server.local().await);
    let ban = wire::BanNodeRequest { id: "prod/join_token/vm-1".into(), reason: "x".into() };
    nodes.ban_node(ban).await.unwrap();
    let banned = about(Caller::NodeId("prod/join_token/vm-1".into()), &bank);
    assert_eq!(denied(&client.explain(banned).await.unwrap().into_inner()).code, "node_banned");
}

#[tokio::test]
async fn a_question_about_nobody_is_refused() {
    let server = TestServer::start().await;
    let mut client = ExplainServiceClient::new(server.local().await);
    let nobody = wire::ExplainRequest::default();
    assert_eq!(refusal(client.explain(nobody).await).0, Code::InvalidArgument);
    let unknown = about(Caller::NodeId("prod/join_token/vm-9".into()), &[]);
    assert_eq!(refusal(client.explain(unknown).await).0, Code::NotFound);
    for text in
        ["", "alice", "person:alice", "node:prod/vm-1", "node:prod/tpm/vm-1", "local:root", "admin:a b"]
    {
        let request = about(Caller::Principal(text.into()), &[]);
        assert_eq!(refusal(client.explain(request).await).0, Code::InvalidArgument, "{text}");
    }
}
