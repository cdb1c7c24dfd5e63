//! A cluster's own Rhizome below another one: both in this process, with real connections between them.

use std::path::Path;

use rhizome_core::clock::ManualClock;
use rhizome_core::ports::Clock as _;
use rhizome_id::ClusterName;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::authority_service_client::AuthorityServiceClient;
use rhizome_proto::admin::v1::cluster_service_client::ClusterServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::jwt_service_client::JwtServiceClient;
use rhizome_tls::JoinString;
use rhizome_x509::{PeerUsage, TrustAnchors, verify_peer};
use tempfile::TempDir;
use tonic::Code;

use crate::support::{Above, PATIENCE, TestServer, attributes, refusal, sign};

/// A root's Rhizome with a cluster that may issue for the namespace `shop`, and what its Rhizome joins with.
async fn root() -> (TestServer, Above, TempDir) {
    let root = TestServer::start().await;
    let (above, scratch) = adding(&root).await;
    (root, above, scratch)
}

async fn adding(root: &TestServer) -> (Above, TempDir) {
    let scope = admin::ClusterScope {
        namespaces: vec!["shop".to_owned()],
        max_ttl_seconds: 3_600,
        intermediate_ttl_seconds: 86_400,
        ..admin::ClusterScope::default()
    };
    let request =
        admin::AddClusterRequest { name: "prod".to_owned(), scope: Some(scope), token_ttl_seconds: 0 };
    let mut client = ClusterServiceClient::new(root.local().await);
    let answer = client.add_cluster(request).await.unwrap().into_inner();
    let digests = root.bundle().await.anchors().iter().map(|it| it.fingerprint()).collect();
    let domain = answer.trust_domain.parse().unwrap();
    let join = JoinString::new(answer.addresses, domain, digests, answer.secret).unwrap();
    let issuers = answer.issuer_key_digests.iter().map(|it| digest(it)).collect();
    let scratch = TempDir::new().unwrap();
    let cluster: ClusterName = "prod".parse().unwrap();
    let servers = join.addresses().to_vec();
    let join = join.for_cluster(cluster.clone(), issuers);
    let identity = scratch.path().join("upstream");
    (Above { join: Some((join, cluster)), servers, identity }, scratch)
}

async fn shown(root: &TestServer) -> admin::Cluster {
    let request = admin::GetClusterRequest { name: "prod".to_owned() };
    let mut client = ClusterServiceClient::new(root.local().await);
    client.get_cluster(request).await.unwrap().into_inner().cluster.unwrap()
}

/// Waits until the root knows of the cluster what is wanted.
async fn until(root: &TestServer, wanted: impl Fn(&admin::Cluster) -> bool) -> admin::Cluster {
    let wait = async {
        loop {
            let cluster = shown(root).await;
            if wanted(&cluster) {
                return cluster;
            }
            tokio::task::yield_now().await;
        }
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(cluster) => cluster,
        Err(_late) => panic!("the root knows {:?}", shown(root).await),
    }
}

fn digest(bytes: &[u8]) -> rhizome_id::Digest {
    rhizome_id::Digest::from_bytes(bytes.try_into().unwrap())
}

fn verifies(issued: &ca::IssuedCertificate, by: &TestServer, bundle: &rhizome_x509::Bundle) {
    let (leaf, above) = issued.chain_der.split_first().unwrap();
    let above: Vec<&[u8]> = above.iter().map(AsRef::as_ref).collect();
    let anchors = TrustAnchors::from_bundle(bundle);
    verify_peer(leaf, &above, &anchors, PeerUsage::Client, by.now()).unwrap();
}

#[tokio::test]
async fn a_cluster_s_own_rhizome_issues_below_the_root_and_the_root_sees_everybody_below_it() {
    let (root, above, _scratch) = root().await;
    let below = root.below(&above).await;
    let bundle = root.bundle().await;
    assert_eq!(below.bundle().await.digest(), bundle.digest(), "the root's bundle, sequence and all");

    let node = below.join("vm-1").await;
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    assert_eq!(issued.chain_der.len(), 2, "leaf and intermediate");
    verifies(&issued, &root, &bundle);
    let own = root.join("vm-1").await;
    verifies(&sign(&own.channel, "shop", "web").await.unwrap(), &below, &below.bundle().await);

    let cluster = until(&root, |it| it.counts.iter().any(|it| it.kind == "agent" && it.count == 1)).await;
    assert!(cluster.connected);
    assert_eq!(cluster.bundle_sequence, bundle.sequence());
    assert_eq!(cluster.behind, ["node:prod/join_token/vm-1"], "it has no stream, and acknowledged nothing");
    let read = until(&root, |it| it.ledger_last > 0 && it.ledger_read_to == it.ledger_last).await;
    assert_eq!(read.alarm_count, 0, "{:?}", read.alarms);
    assert!(read.intermediates[0].issued_count >= 3, "its server, its node and the workload");

    // A node of the one is nobody to the other.
    let (code, _) = refusal(sign(&root.connect(Some(&node.holder)).await, "shop", "web").await);
    assert_eq!(code, Code::Unauthenticated);
    below.stop().await;
    root.stop().await;
}

#[tokio::test]
async fn what_a_cluster_issues_outside_its_scope_is_an_alarm_at_the_root() {
    let (root, above, _scratch) = root().await;
    let below = root.below(&above).await;
    let node = below.join("vm-1").await;
    sign(&node.channel, "pay", "ledger").await.unwrap();
    let cluster = until(&root, |it| it.alarm_count > 0).await;
    assert_eq!(cluster.alarms[0].subject, "spiffe://example.test/ns/pay/sa/ledger");
    root.recorded(&["cluster.alarm", "prod", "ns/pay/sa/ledger"]).await;
    below.stop().await;
    root.stop().await;
}

#[tokio::test]
async fn a_new_bundle_flows_down_with_the_root_s_sequence() {
    let (root, above, _scratch) = root().await;
    let below = root.below(&above).await;
    let before = root.bundle().await;
    let mut client = AuthorityServiceClient::new(root.local().await);
    let id = before.jwt_keys()[0].kid().to_owned();
    let request = admin::TaintJwtKeyRequest { id, reason: "lost".to_owned(), dry_run: false };
    client.taint_jwt_key(request).await.unwrap();
    let after = root.bundle().await;
    assert!(after.sequence() > before.sequence());
    let cluster = until(&root, |it| it.bundle_sequence == after.sequence()).await;
    assert!(cluster.connected);
    assert_eq!(below.bundle().await.digest(), after.digest());
    below.stop().await;
    root.stop().await;
}

#[tokio::test]
async fn an_intermediate_is_renewed_at_half_of_its_life() {
    let (root, above, _scratch) = root().await;
    let below = root.below(&above).await;
    assert_eq!(shown(&root).await.intermediates.len(), 1);
    root.clock.advance(43_200);
    let cluster = until(&root, |it| it.intermediates.len() == 2).await;
    let ends: Vec<_> = cluster.intermediates.iter().map(|it| it.not_after.unwrap().seconds).collect();
    assert!(ends[1] - ends[0] > 40_000, "{ends:?}");
    below.stop().await;
    root.stop().await;
}

#[tokio::test]
async fn while_the_root_is_away_a_cluster_starts_and_issues_until_its_intermediate_ends() {
    let (root, above, _scratch) = root().await;
    let below = root.below(&above).await;
    let bundle = root.bundle().await;
    root.stop().await;
    let below = below.again(&above).await;
    let node = below.join("vm-1").await;
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    verifies(&issued, &below, &bundle);
    // An hour before the end a leaf still lives, and not beyond it.
    below.clock.advance(86_400 - 1_800);
    let renewed = crate::support::renew(&node.channel, &node.holder.key).await;
    drop(renewed);
    let late = sign(&node.channel, "shop", "web").await;
    if let Ok(late) = late {
        let end = late.not_after.unwrap().seconds;
        assert!(end < below.now().plus(1_800).unix(), "not beyond the intermediate");
    }
    below.stop().await;
}

#[tokio::test]
async fn a_join_string_is_used_once_and_another_root_is_not_believed() {
    let (root, above, scratch) = root().await;
    let below = root.below(&above).await;
    let other = Above { identity: scratch.path().join("other"), ..above.clone() };
    let refused = root.try_below(&other, &root.clock).await.err().unwrap().to_string();
    assert!(refused.contains("join string was refused") && refused.contains("cluster add"), "{refused}");

    let (join, cluster) = above.join.clone().unwrap();
    let pins = vec![rhizome_id::Digest::from_bytes([7; 32])];
    let domain = join.trust_domain().clone();
    let wrong = JoinString::new(join.addresses().to_vec(), domain, pins, join.token().to_owned()).unwrap();
    let wrong = wrong.for_cluster(cluster.clone(), join.issuer_sha256().to_vec());
    let wrong = Above {
        join: Some((wrong, cluster.clone())),
        identity: scratch.path().join("wrong"),
        ..above.clone()
    };
    let refused = root.try_below(&wrong, &root.clock).await.err().unwrap().to_string();
    assert!(refused.contains("not the pinned ones"), "{refused}");

    // Another issuer below the same root poses as the root's server: it gets no token.
    let domain = join.trust_domain().clone();
    let roots = join.root_sha256().to_vec();
    let address = vec![below.address().to_string()];
    let posing = JoinString::new(address, domain, roots, join.token().to_owned()).unwrap();
    let posing = posing.for_cluster(cluster.clone(), join.issuer_sha256().to_vec());
    let posing =
        Above { join: Some((posing, cluster)), identity: scratch.path().join("posing"), ..above.clone() };
    let refused = root.try_below(&posing, &root.clock).await.err().unwrap().to_string();
    assert!(refused.contains("own issuers"), "{refused}");

    let nothing = Above { join: None, identity: scratch.path().join("nothing"), ..above };
    let refused = root.try_below(&nothing, &root.clock).await.err().unwrap().to_string();
    assert!(refused.contains("holds no identity"), "{refused}");
    below.stop().await;
    root.stop().await;
}

#[tokio::test]
async fn a_suspended_cluster_goes_on_with_what_it_holds_and_comes_back_when_it_is_let_in() {
    let (root, above, _scratch) = root().await;
    let below = root.below(&above).await;
    let node = below.join("vm-1").await;
    let mut client = ClusterServiceClient::new(root.local().await);
    let (name, reason) = ("prod".to_owned(), "a look at it".to_owned());
    let request = admin::SuspendClusterRequest { name: name.clone(), reason: reason.clone() };
    client.suspend_cluster(request).await.unwrap();
    sign(&node.channel, "shop", "web").await.unwrap();
    let seen = shown(&root).await.ledger_read_to;
    client.resume_cluster(admin::ResumeClusterRequest { name, reason }).await.unwrap();
    until(&root, |it| it.ledger_read_to > seen).await;
    below.stop().await;
    root.stop().await;
}

#[tokio::test]
async fn a_cluster_s_clock_may_be_ten_minutes_off() {
    for skew in [-590, 590] {
        let root = TestServer::start().await;
        // The root has been running for a while.
        root.clock.advance(7_200);
        let (above, _scratch) = adding(&root).await;
        let clock = std::sync::Arc::new(ManualClock::new(root.clock.now().plus(skew)));
        let below = root.try_below(&above, &clock).await.unwrap();
        let node = below.join("vm-1").await;
        sign(&node.channel, "shop", "web").await.unwrap();
        below.stop().await;
        root.stop().await;
    }
}

#[tokio::test]
async fn a_cluster_s_own_rhizome_gives_no_tokens_and_has_no_clusters_below_it() {
    let (root, above, _scratch) = root().await;
    let below = root.below(&above).await;
    let node = below.join("vm-1").await;
    let request = ca::SignJwtSvidRequest {
        attributes: attributes(&[("namespace", "shop"), ("service_account", "web")]),
        audiences: vec!["spiffe://example.test/db".to_owned()],
        ..ca::SignJwtSvidRequest::default()
    };
    let (code, message) = refusal(JwtServiceClient::new(node.channel.clone()).sign_jwt_svid(request).await);
    assert_eq!((code, message.contains("below another")), (Code::FailedPrecondition, true), "{message}");

    let scope = admin::ClusterScope { all_namespaces: true, ..admin::ClusterScope::default() };
    let request = admin::AddClusterRequest { name: "x".to_owned(), scope: Some(scope), token_ttl_seconds: 0 };
    let mut client = ClusterServiceClient::new(below.local().await);
    let (code, message) = refusal(client.add_cluster(request).await);
    assert_eq!((code, message.contains("below another")), (Code::FailedPrecondition, true), "{message}");
    below.stop().await;
    root.stop().await;
}

#[tokio::test]
async fn the_identity_and_its_key_are_kept_from_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let (root, above, _scratch) = root().await;
    let below = root.below(&above).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&above.identity), 0o700);
    assert_eq!(mode(&above.identity.join("key.pem")), 0o600);
    assert!(!above.identity.join("key.pending.der").exists(), "it is certified");
    below.stop().await;
    root.stop().await;
}
