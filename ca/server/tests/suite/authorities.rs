//! Authorities as administrators see and rotate them.

use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::authority_service_client::AuthorityServiceClient;
use rhizome_proto::admin::v1::{AuthorityKind, AuthorityState};
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{TestServer, refusal, sign};

async fn list(client: &mut AuthorityServiceClient<Channel>) -> Vec<wire::Authority> {
    let request = wire::ListAuthoritiesRequest::default();
    client.list_authorities(request).await.unwrap().into_inner().authorities
}

fn rotate(dry_run: bool) -> wire::RotateIssuerRequest {
    wire::RotateIssuerRequest { replica: String::new(), reason: "suspected copy".into(), dry_run }
}

#[tokio::test]
async fn authorities_are_listed_roots_first_with_their_next_step() {
    let server = TestServer::start().await;
    let mut client = AuthorityServiceClient::new(server.local().await);
    let all = list(&mut client).await;
    let kinds: Vec<_> = all.iter().map(|it| (it.kind(), it.state())).collect();
    assert_eq!(
        kinds,
        [
            (AuthorityKind::Root, AuthorityState::Active),
            (AuthorityKind::Issuer, AuthorityState::Active),
            (AuthorityKind::Jwt, AuthorityState::Active)
        ]
    );
    let (root, issuer) = (&all[0], &all[1]);
    assert_eq!((root.issuer_id.as_str(), issuer.issuer_id.as_str()), ("", root.id.as_str()));
    assert_eq!((issuer.replica.as_str(), issuer.algorithm.as_str()), ("r1", "ecdsa-p256"));
    assert_eq!(root.fingerprint, server.bundle().await.anchors()[0].fingerprint().as_bytes().as_slice());
    assert_eq!(issuer.next_step, "its successor is made");
    let (from, to) = (issuer.not_before.unwrap().seconds, issuer.not_after.unwrap().seconds);
    assert_eq!(issuer.next_step_at.unwrap().seconds, to - (to - from + 1) / 2);

    let first = wire::ListAuthoritiesRequest { page_size: 1, page_token: String::new() };
    let page = client.list_authorities(first).await.unwrap().into_inner();
    assert_eq!((page.authorities.len(), page.next_page_token.as_str()), (1, root.id.as_str()));
    let second = wire::ListAuthoritiesRequest { page_size: 1, page_token: page.next_page_token };
    let page = client.list_authorities(second).await.unwrap().into_inner();
    assert_eq!((&page.authorities[0].id, &page.next_page_token), (&issuer.id, &issuer.id));
    let third = wire::ListAuthoritiesRequest { page_size: 1, page_token: page.next_page_token };
    let page = client.list_authorities(third).await.unwrap().into_inner();
    assert_eq!((page.authorities[0].kind(), page.next_page_token.as_str()), (AuthorityKind::Jwt, ""));
    for page_token in ["a b", "issuer-that-is-gone"] {
        let request = wire::ListAuthoritiesRequest { page_size: 0, page_token: page_token.into() };
        assert_eq!(refusal(client.list_authorities(request).await).0, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_dry_run_of_a_rotation_says_the_steps_and_takes_none() {
    let server = TestServer::start().await;
    let mut client = AuthorityServiceClient::new(server.local().await);
    let before = server.everything_stored().await;
    let answer = client.rotate_issuer(rotate(true)).await.unwrap().into_inner();
    assert!(!answer.applied && answer.active.is_none());
    assert_eq!(answer.steps.len(), 4, "{:?}", answer.steps);
    assert_eq!(server.everything_stored().await, before);
}

#[tokio::test]
async fn after_a_rotation_by_hand_the_new_issuer_signs_and_what_the_old_one_signed_stays_valid() {
    let server = TestServer::start().await;
    let (_alice, channel) = server.admin("alice", wire::Role::Security).await;
    let mut client = AuthorityServiceClient::new(channel);
    let node = server.join("vm-1").await;
    let old = list(&mut client).await.remove(1);
    let before = sign(&node.channel, "shop", "web").await.unwrap();
    server.clock.advance(60);

    let answer = client.rotate_issuer(rotate(false)).await.unwrap().into_inner();
    let active = answer.active.unwrap();
    assert!(answer.applied && active.id != old.id);
    assert_eq!(active.state(), AuthorityState::Active);
    let all = list(&mut client).await;
    let states: Vec<_> = all.iter().map(|it| (it.id.as_str(), it.state())).collect();
    assert_eq!(
        states[1..3],
        [(active.id.as_str(), AuthorityState::Active), (old.id.as_str(), AuthorityState::Old)]
    );
    assert_eq!(all[2].next_step, "its key is destroyed");

    let anew = server.connect(Some(&node.holder)).await;
    let after = sign(&anew, "shop", "web").await.unwrap();
    assert_eq!(after.chain_der[1], active.certificate_der);
    assert_ne!(after.chain_der[1], before.chain_der[1]);
    server.recorded(&["authority.rotate", "admin:alice", "suspected copy", &active.id]).await;
    server.recorded(&["authority.prepare", "admin:alice rotates by hand", &active.id]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_rotation_needs_a_reason_and_is_asked_of_the_replica_itself() {
    let server = TestServer::start().await;
    let mut client = AuthorityServiceClient::new(server.local().await);
    let silent = wire::RotateIssuerRequest { reason: " ".into(), ..rotate(true) };
    assert_eq!(refusal(client.rotate_issuer(silent).await).0, Code::InvalidArgument);
    let elsewhere = wire::RotateIssuerRequest { replica: "r2".into(), ..rotate(true) };
    let (code, message) = refusal(client.rotate_issuer(elsewhere).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("this is r1"), "{message}");
    let here = wire::RotateIssuerRequest { replica: "r1".into(), ..rotate(true) };
    client.rotate_issuer(here).await.unwrap();
}
