//! Join tokens as administrators handle them.

use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::JoinTokenState;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_x509::{KeyAlgorithm, RequestKey};
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{TestServer, attest, refusal, token_for};

async fn list(client: &mut TokenServiceClient<Channel>, include_ended: bool) -> Vec<wire::JoinToken> {
    let request = wire::ListTokensRequest { include_ended, ..wire::ListTokensRequest::default() };
    client.list_tokens(request).await.unwrap().into_inner().tokens
}

#[tokio::test]
async fn a_token_comes_with_all_that_a_machine_needs_to_join_and_its_secret_is_nowhere_else() {
    let server = TestServer::start().await;
    let answer = server.create_token("vm-1").await;
    let token = answer.token.unwrap();
    assert_eq!((token.cluster.as_str(), token.node.as_str()), ("prod", "vm-1"));
    assert_eq!(token.state(), JoinTokenState::Unused);
    assert_eq!(token.expires_at.unwrap().seconds, server.now().plus(3_600).unix());
    assert!(token.created_by.starts_with("local:uid="), "{}", token.created_by);
    assert_eq!(answer.trust_domain, "example.test");
    assert_eq!(answer.addresses, [server.address().to_string()]);
    let roots: Vec<_> =
        server.bundle().await.anchors().iter().map(|it| it.fingerprint().as_bytes().to_vec()).collect();
    assert_eq!(answer.root_digests, roots);

    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    attest(server.connect(None).await, &answer.secret, &key).await.unwrap();
    let stored = server.everything_stored().await;
    assert!(stored.contains(&token.id), "the handle is recorded");
    assert!(!stored.contains(&answer.secret), "the secret is not");
    server.recorded(&["token.create", &token.id, &token.created_by, "pay, shop"]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_token_says_what_its_node_may_vouch_for_and_lives_no_longer_than_the_settings_allow() {
    let server = TestServer::start().await;
    let mut client = TokenServiceClient::new(server.local().await);
    let scope = |all_namespaces, namespaces: &[&str]| {
        Some(wire::Scope { all_namespaces, namespaces: namespaces.iter().map(ToString::to_string).collect() })
    };
    let refused = [
        (wire::CreateTokenRequest { scope: None, ..token_for("vm-1") }, "scope"),
        (wire::CreateTokenRequest { scope: scope(true, &["shop"]), ..token_for("vm-1") }, "scope"),
        (wire::CreateTokenRequest { scope: scope(false, &["*"]), ..token_for("vm-1") }, "scope"),
        (wire::CreateTokenRequest { scope: scope(false, &[""]), ..token_for("vm-1") }, "scope"),
        (wire::CreateTokenRequest { ttl_seconds: 86_401, ..token_for("vm-1") }, "ttl_seconds"),
        (wire::CreateTokenRequest { ttl_seconds: -1, ..token_for("vm-1") }, "ttl_seconds"),
        (wire::CreateTokenRequest { cluster: "a b".into(), ..token_for("vm-1") }, "cluster"),
    ];
    for (request, field) in refused {
        let (code, message) = refusal(client.create_token(request).await);
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.starts_with(field), "{message}");
    }
    let nothing = wire::CreateTokenRequest { scope: scope(false, &[]), ..token_for("") };
    let token = client.create_token(nothing).await.unwrap().into_inner().token.unwrap();
    assert_eq!(token.node, format!("node-{}", token.id), "a node without a name is called by its token");
    assert_eq!(token.scope, scope(false, &[]));
    let longest = wire::CreateTokenRequest { ttl_seconds: 86_400, ..token_for("vm-2") };
    client.create_token(longest).await.unwrap();
}

#[tokio::test]
async fn tokens_are_listed_newest_first_page_by_page_and_ended_ones_only_on_request() {
    let server = TestServer::start().await;
    let mut client = TokenServiceClient::new(server.local().await);
    for name in ["vm-1", "vm-2", "vm-3"] {
        server.create_token(name).await;
        server.clock.advance(1);
    }
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = wire::ListTokensRequest { page_size: 1, page_token, include_ended: false };
        let page = client.list_tokens(request).await.unwrap().into_inner();
        names.extend(page.tokens.into_iter().map(|it| it.node));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["vm-3", "vm-2", "vm-1"]);
    server.join("vm-4").await;
    server.clock.advance(3_598);
    let left: Vec<_> = list(&mut client, false).await.into_iter().map(|it| it.node).collect();
    assert_eq!(left, ["vm-3"], "two have expired and one was used");
    let all = list(&mut client, true).await;
    let states: Vec<_> = all.iter().map(|it| (it.node.as_str(), it.state())).collect();
    let expected = [
        ("vm-4", JoinTokenState::Used),
        ("vm-3", JoinTokenState::Unused),
        ("vm-2", JoinTokenState::Expired),
        ("vm-1", JoinTokenState::Expired),
    ];
    assert_eq!(states, expected);
    for page_token in ["x", "1.", ".ab", "1.a b"] {
        let request =
            wire::ListTokensRequest { page_token: page_token.into(), ..wire::ListTokensRequest::default() };
        let (code, message) = refusal(client.list_tokens(request).await);
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.contains("next_page_token"), "{message}");
    }
}

#[tokio::test]
async fn a_revoked_token_joins_nothing_and_revoking_again_changes_nothing() {
    let server = TestServer::start().await;
    let mut client = TokenServiceClient::new(server.local().await);
    let created = server.create_token("vm-1").await;
    let id = created.token.unwrap().id;
    let revoke = wire::RevokeTokenRequest { id: id.clone() };
    let first = client.revoke_token(revoke.clone()).await.unwrap().into_inner().token.unwrap();
    assert_eq!(first.state(), JoinTokenState::Revoked);
    assert!(first.revoked_by.starts_with("local:uid="));
    server.clock.advance(5);
    let again = client.revoke_token(revoke).await.unwrap().into_inner().token.unwrap();
    assert_eq!(again, first);
    let revocations = server.ledger().await.iter().filter(|line| line.contains("token.revoke")).count();
    assert_eq!(revocations, 1);

    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let (code, message) = refusal(attest(server.connect(None).await, &created.secret, &key).await);
    assert_eq!(code, Code::Unauthenticated, "{message}");
    let unknown = wire::RevokeTokenRequest { id: "0123456789abcdef".into() };
    let (code, message) = refusal(client.revoke_token(unknown).await);
    assert_eq!((code, message.as_str()), (Code::NotFound, "there is no join token `0123456789abcdef`"));
}

#[tokio::test]
async fn revoking_a_used_token_ends_the_retries_of_its_key() {
    let server = TestServer::start().await;
    let mut client = TokenServiceClient::new(server.local().await);
    let vm = server.join("vm-1").await;
    attest(server.connect(None).await, &vm.token, &vm.holder.key).await.unwrap();
    let used = list(&mut client, true).await.remove(0);
    assert_eq!(used.state(), JoinTokenState::Used);
    let answer = client.revoke_token(wire::RevokeTokenRequest { id: used.id.clone() }).await.unwrap();
    assert_eq!(answer.into_inner().token.unwrap().state(), JoinTokenState::Revoked);
    let (code, message) = refusal(attest(server.connect(None).await, &vm.token, &vm.holder.key).await);
    assert_eq!(code, Code::Unauthenticated, "{message}");
}
