//! Nodes as administrators handle them.

use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::NodeState;
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_proto::node::v1 as node;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::node::v1::sync_request::Message;
use rhizome_x509::{KeyAlgorithm, RequestKey};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{Holder, Node, TestServer, attest, refusal, renew, sign, token_for};

async fn ban(client: &mut NodeAdminServiceClient<Channel>, id: &str) -> wire::Node {
    let request = wire::BanNodeRequest { id: id.into(), reason: "stolen laptop".into() };
    client.ban_node(request).await.unwrap().into_inner().node.unwrap()
}

async fn evict(client: &mut NodeAdminServiceClient<Channel>, id: &str) -> wire::Node {
    let request = wire::EvictNodeRequest { id: id.into(), reason: "gone".into() };
    client.evict_node(request).await.unwrap().into_inner().node.unwrap()
}

/// A sync stream whose greeting was answered.
async fn sync(node: &Node) -> (mpsc::Sender<node::SyncRequest>, tonic::Streaming<node::SyncResponse>) {
    let (sender, requests) = mpsc::channel(4);
    let hello = node::Hello { cursor: 0, agent_version: "1.2.3".into() };
    sender.send(node::SyncRequest { message: Some(Message::Hello(hello)) }).await.unwrap();
    let answers = NodeServiceClient::new(node.channel.clone()).sync(ReceiverStream::new(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    (sender, answers)
}

#[tokio::test]
async fn a_banned_node_is_nobody_at_once_on_every_connection_and_its_name_stays_taken() {
    let server = TestServer::start().await;
    let mut client = NodeAdminServiceClient::new(server.local().await);
    let vm = server.join("vm-1").await;
    let waiting = server.create_token("vm-1").await.secret;
    let (_requests, mut answers) = sync(&vm).await;
    sign(&vm.channel, "shop", "web").await.unwrap();

    let banned = ban(&mut client, &vm.id).await;
    assert_eq!(banned.state(), NodeState::Banned);
    assert_eq!(banned.ban_reason, "stolen laptop");
    assert!(banned.banned_by.starts_with("local:uid="));
    assert_eq!(refusal(sign(&vm.channel, "shop", "web").await).0, Code::Unauthenticated);
    let anew = server.connect(Some(&vm.holder)).await;
    assert_eq!(refusal(renew(&anew, &vm.holder.key).await).0, Code::Unauthenticated);
    loop {
        match answers.message().await {
            Ok(Some(_before_the_ban)) => {}
            Ok(None) => panic!("the stream should end with a refusal"),
            Err(status) => break assert_ne!(status.code(), Code::Ok),
        }
    }

    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let (code, message) = refusal(attest(server.connect(None).await, &waiting, &key).await);
    assert_eq!(code, Code::PermissionDenied, "{message}");
    let mut tokens = TokenServiceClient::new(server.local().await);
    let (code, message) = refusal(tokens.create_token(token_for("vm-1")).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(message.contains("rhizome node evict"), "{message}");

    server.clock.advance(60);
    let again = client.ban_node(wire::BanNodeRequest { id: vm.id.clone(), reason: "again".into() }).await;
    let again = again.unwrap().into_inner().node.unwrap();
    assert_eq!(
        (again.banned_at, &again.ban_reason),
        (banned.banned_at, &banned.ban_reason),
        "the first ban stands"
    );
    server.recorded(&["node.ban", &vm.id, "stolen laptop"]).await;
    server.recorded(&["certificate.revoke", &vm.holder.issued.serial]).await;
    server.stop().await;
}

#[tokio::test]
async fn an_evicted_node_may_join_anew_and_no_certificate_of_its_earlier_life_works_again() {
    let server = TestServer::start().await;
    let mut client = NodeAdminServiceClient::new(server.local().await);
    let vm = server.join("vm-1").await;
    let mut lives = vec![Holder { key: vm.holder.key, issued: vm.holder.issued }];
    for _ in 0..3 {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let channel = server.connect(lives.last()).await;
        let issued = renew(&channel, &key).await.unwrap();
        lives.push(Holder { key, issued });
    }
    let open = server.connect(lives.last()).await;
    ban(&mut client, &vm.id).await;
    let gone = evict(&mut client, &vm.id).await;
    assert_eq!((gone.state(), gone.renewals), (NodeState::Banned, 3), "the answer shows it as it last was");
    let request = wire::GetNodeRequest { id: vm.id.clone() };
    assert_eq!(refusal(client.get_node(request).await).0, Code::NotFound);
    assert_eq!(refusal(sign(&open, "shop", "web").await).0, Code::Unauthenticated);

    let anew = server.join("vm-1").await;
    sign(&anew.channel, "shop", "web").await.unwrap();
    for holder in &lives {
        let channel = server.connect(Some(holder)).await;
        assert_eq!(refusal(sign(&channel, "shop", "web").await).0, Code::Unauthenticated);
    }
    assert_eq!(
        refusal(attest(server.connect(None).await, &vm.token, &lives[0].key).await).0,
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn a_node_that_renews_without_pause_cannot_hold_up_its_ban_or_its_eviction() {
    let server = TestServer::start().await;
    let client = NodeAdminServiceClient::new(server.local().await);
    let vm = server.join("vm-1").await;
    let next = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let renewals = futures::future::join_all((0..64).map(|_| renew(&vm.channel, &next)));
    let mut banning = client.clone();
    let (outcomes, banned) = tokio::join!(renewals, ban(&mut banning, &vm.id));
    assert_eq!(banned.state(), NodeState::Banned);
    let mut issued: Vec<_> = outcomes.into_iter().filter_map(Result::ok).collect();
    evict(&mut banning, &vm.id).await;

    let vm = server.join("vm-1").await;
    let renewals = futures::future::join_all((0..64).map(|_| renew(&vm.channel, &next)));
    let (outcomes, _evicted) = tokio::join!(renewals, evict(&mut banning, &vm.id));
    issued.extend(outcomes.into_iter().filter_map(Result::ok));
    server.join("vm-1").await;
    for issued in issued {
        let key = RequestKey::from_pkcs8_der(&next.pkcs8_der()).unwrap();
        let channel = server.connect(Some(&Holder { key, issued })).await;
        assert_eq!(refusal(sign(&channel, "shop", "web").await).0, Code::Unauthenticated);
    }
}

#[tokio::test]
async fn nodes_are_listed_by_id_with_what_is_known_of_them_now() {
    let server = TestServer::start().await;
    let mut client = NodeAdminServiceClient::new(server.local().await);
    let vm = server.join("vm-1").await;
    server.join("vm-2").await;
    server.join("a.b").await;
    let (_requests, _answers) = sync(&vm).await;
    let mut ids = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = wire::ListNodesRequest { page_size: 2, page_token, cluster: "prod".into() };
        let page = client.list_nodes(request).await.unwrap().into_inner();
        ids.extend(page.nodes.iter().map(|it| it.id.clone()));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(ids, ["prod/join_token/a.b", "prod/join_token/vm-1", "prod/join_token/vm-2"]);
    let other = wire::ListNodesRequest { cluster: "test".into(), ..wire::ListNodesRequest::default() };
    assert!(client.list_nodes(other).await.unwrap().into_inner().nodes.is_empty());

    let request = wire::GetNodeRequest { id: vm.id.clone() };
    let node = client.get_node(request.clone()).await.unwrap().into_inner().node.unwrap();
    assert_eq!(node.spiffe_id, "spiffe://example.test/rhizome/node/prod/join_token/vm-1");
    assert_eq!(
        (node.state(), node.connected, node.agent_version.as_str()),
        (NodeState::Active, true, "1.2.3")
    );
    assert_eq!(node.serial, vm.holder.issued.serial);
    assert_eq!(node.scope.unwrap().namespaces, ["pay", "shop"]);
    server.clock.set(rhizome_id::Timestamp::from_unix(node.not_after.unwrap().seconds));
    let node = client.get_node(request.clone()).await.unwrap().into_inner().node.unwrap();
    assert_eq!(node.state(), NodeState::Active, "the last second counts");
    server.clock.advance(1);
    let node = client.get_node(request).await.unwrap().into_inner().node.unwrap();
    assert_eq!(node.state(), NodeState::Expired);
    for page_token in ["x", "prod/tpm/vm-1", "prod/join_token/", "prod/join_token/a/b"] {
        let request =
            wire::ListNodesRequest { page_token: page_token.into(), ..wire::ListNodesRequest::default() };
        assert_eq!(refusal(client.list_nodes(request).await).0, Code::InvalidArgument, "{page_token}");
    }
}

#[tokio::test]
async fn a_ban_needs_a_reason_and_a_node() {
    let server = TestServer::start().await;
    let mut client = NodeAdminServiceClient::new(server.local().await);
    let id = server.join("vm-1").await.id;
    for reason in [String::new(), "  ".into(), "x".repeat(1_025)] {
        let request = wire::BanNodeRequest { id: id.clone(), reason };
        assert_eq!(refusal(client.ban_node(request).await).0, Code::InvalidArgument);
    }
    let unknown = wire::BanNodeRequest { id: "prod/join_token/vm-9".into(), reason: "x".into() };
    let (code, message) = refusal(client.ban_node(unknown).await);
    assert_eq!((code, message.as_str()), (Code::NotFound, "there is no node `prod/join_token/vm-9`"));
}
