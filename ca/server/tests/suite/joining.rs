//! Joining and renewing, when several want the same.

use rhizome_x509::{KeyAlgorithm, RequestKey};
use tonic::Code;

use crate::support::{Holder, TestServer, attest, refusal, renew, sign};

fn key() -> RequestKey {
    RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()
}

#[tokio::test]
async fn of_a_hundred_racing_uses_of_one_token_exactly_one_wins_and_only_its_key_may_ask_again() {
    let server = TestServer::start().await;
    let secret = server.create_token("vm-1").await.secret;
    let mut channels = Vec::new();
    for _ in 0..4 {
        channels.push(server.connect(None).await);
    }
    let racers = (0..100).zip(channels.iter().cycle()).map(|(_, channel)| {
        let (channel, secret) = (channel.clone(), secret.clone());
        async move {
            let key = key();
            (attest(channel, &secret, &key).await, key)
        }
    });
    let mut winners = Vec::new();
    for (outcome, key) in futures::future::join_all(racers).await {
        match outcome {
            Ok(answer) => winners.push((answer, key)),
            Err(status) => assert_eq!(status.code(), Code::Unauthenticated, "{}", status.message()),
        }
    }
    assert_eq!(winners.len(), 1);
    let (answer, winner) = winners.remove(0);
    let issued = server.ledger().await.iter().filter(|line| line.contains("\"profile\":\"node\"")).count();
    assert_eq!(issued, 1, "the ledger knows of one certificate");

    let again = attest(channels.remove(0), &secret, &winner).await.unwrap();
    assert_eq!(again.node_id, answer.node_id);
    let late = attest(server.connect(None).await, &secret, &key()).await;
    assert_eq!(refusal(late).0, Code::Unauthenticated);
    let holder = Holder { key: winner, issued: again.identity.unwrap() };
    sign(&server.connect(Some(&holder)).await, "shop", "web").await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_token_ends_at_its_expiry() {
    let server = TestServer::start().await;
    let secret = server.create_token("vm-1").await.secret;
    server.clock.advance(3_600);
    let (code, message) = refusal(attest(server.connect(None).await, &secret, &key()).await);
    assert_eq!(code, Code::Unauthenticated, "{message}");
    assert!(message.contains("rhizome token create"), "{message}");
}

#[tokio::test]
async fn a_lost_answer_to_a_renewal_may_be_asked_for_again_with_the_same_key() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let next = key();
    renew(&node.channel, &next).await.unwrap();
    let issued = renew(&node.channel, &next).await.unwrap();
    let renewed = server.connect(Some(&Holder { key: next, issued })).await;
    renew(&renewed, &key()).await.unwrap();
}

#[tokio::test]
async fn a_copied_key_is_found_out_when_both_holders_renew() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let thief = server.connect(Some(&node.holder)).await;
    renew(&thief, &key()).await.unwrap();
    let (code, message) = refusal(renew(&node.channel, &key()).await);
    assert_eq!(code, Code::PermissionDenied, "{message}");
    let alarm = server.recorded(&["node_clone_detected", "node:prod/join_token/vm-1"]).await;
    assert!(alarm.contains(&node.holder.issued.serial), "{alarm}");
}
