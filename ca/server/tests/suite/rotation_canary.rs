//! The canary of a change of the root over the doors: a share below the new root that everybody accepts, its end, and the
//! way back.

use rhizome_proto::admin::v1 as admin;
use rhizome_proto::ca::v1::IssuedCertificate;
use rhizome_x509::{Bundle, PeerUsage, TrustAnchors, inspect, verify_peer};
use tonic::Code;
use tonic::transport::Channel;

use crate::rotation::{Client, Follower, choices, client, is, until};
use crate::support::{Node, PATIENCE, TestServer, connect, sign};

/// The window of the canary in these stories.
const WINDOW: i64 = 120;

/// A rotation whose canary is the namespace `shop`.
async fn start(client: &mut Client) -> admin::Rotation {
    let canary = admin::RotationCanary {
        percent: 0,
        namespaces: vec!["shop".into()],
        seconds: Some(u64::try_from(WINDOW).unwrap()),
    };
    // A report says nothing of what was signed in the same second.
    let choices = Some(admin::RotationChoices { canary: Some(canary), settle_seconds: Some(1), ..choices() });
    let request = admin::StartRotationRequest { choices, reason: "a new root".into() };
    client.start_rotation(request).await.unwrap().into_inner().rotation.unwrap()
}

/// A node that follows, and a rotation that has come to its canary and was probed.
async fn in_canary(server: &TestServer) -> (Channel, Follower, Client, admin::Rotation) {
    let Node { holder, channel, .. } = server.join("vm-1").await;
    let vm = Follower::open(server, holder).await;
    let mut client = client(server).await;
    start(&mut client).await;
    let probed = until(&mut client, "probed in its canary", |it| {
        it.phase() == admin::RotationPhase::Canary && it.canary.as_ref().is_some_and(|it| it.probes > 0)
    });
    let probed = probed.await;
    (channel, vm, client, probed)
}

fn accepted_by(bundle: &Bundle, issued: &IssuedCertificate, server: &TestServer) -> bool {
    let anchors = TrustAnchors::from_bundle(bundle);
    let sent: Vec<&[u8]> = issued.chain_der.iter().skip(1).map(|der| &der[..]).collect();
    let judge =
        |usage| verify_peer(issued.chain_der.first().unwrap(), &sent, &anchors, usage, server.now()).is_ok();
    judge(PeerUsage::Client) && judge(PeerUsage::Server)
}

fn issuer_of(issued: &IssuedCertificate) -> Vec<u8> {
    inspect(issued.chain_der.first().unwrap()).unwrap().issuer_key_id.unwrap()
}

#[tokio::test]
async fn a_canary_issues_its_share_below_the_new_root_and_whoever_holds_either_bundle_accepts_it() {
    let server = TestServer::start().await;
    let before = server.bundle().await;
    let (channel, vm, mut client, probed) = in_canary(&server).await;
    let status = probed.canary.clone().unwrap();
    assert_eq!((status.replicas.as_slice(), status.failure.as_str()), (["r1".to_owned()].as_slice(), ""));
    assert!(probed.waits.iter().all(|it| it.starts_with("the canary, until")), "both directions: {probed:?}");
    assert_eq!((status.certificates, status.holders), (0, 0), "what probes show is nobody's");

    let (share, other) =
        (sign(&channel, "shop", "cart").await.unwrap(), sign(&channel, "pay", "till").await.unwrap());
    assert_eq!(share.chain_der.len(), 3, "leaf, issuer, and the new root certified by the old one");
    assert_eq!(other.chain_der.len(), 2);
    let again = sign(&channel, "shop", "cart").await.unwrap();
    assert_eq!(issuer_of(&again), issuer_of(&share), "nobody goes back and forth");
    let both = server.bundle().await;
    for issued in [&share, &other] {
        assert!(accepted_by(&before, issued, &server) && accepted_by(&both, issued, &server));
    }
    // What is shown may be a second old.
    let counted =
        |it: &admin::Rotation| it.canary.as_ref().is_some_and(|it| (it.certificates, it.holders) == (2, 1));
    until(&mut client, "counted with both certificates", counted).await;
    let serving = sign(&channel, "pay", "till").await.unwrap();
    assert_eq!(issuer_of(&serving), issuer_of(&other), "the regular issuer goes on");

    server.clock.advance(WINDOW + 1);
    let active = until(&mut client, "active", is(admin::RotationPhase::Active)).await;
    assert_eq!(active.canary.unwrap().failure, "");
    server.clock.advance(2);
    let vm = vm.renew(&server).await;
    assert_eq!(issuer_of(&vm.holder.issued), issuer_of(&share), "the canary's issuer is the regular one now");
    until(&mut client, "untrusting", is(admin::RotationPhase::Untrusting)).await;
    server.clock.advance(61);
    until(&mut client, "rotated", |it| it.outcome == "rotated").await;
    let record = server.recorded(&["rotation.move", "canary -> active", "failed: 0"]).await;
    assert!(!record.contains("probes: 0"), "{record}");
    server.stop().await;
}

#[tokio::test]
async fn an_abort_from_the_canary_reissues_from_the_old_root_and_restores_trust_byte_for_byte() {
    let server = TestServer::start().await;
    let before = server.bundle().await;
    let (channel, vm, mut client, probed) = in_canary(&server).await;
    let share = sign(&channel, "shop", "cart").await.unwrap();
    assert_eq!(share.chain_der.len(), 3);
    let seen = Some(admin::SeenRotation { name: probed.name.clone(), version: probed.version });
    let abort = admin::AbortRotationRequest { seen, reason: "second thoughts".into() };
    let aborted = client.abort_rotation(abort).await.unwrap().into_inner().rotation.unwrap();
    assert!(aborted.back, "{aborted:?}");
    let regular = sign(&channel, "shop", "cart").await.unwrap();
    assert_ne!(
        issuer_of(&regular),
        issuer_of(&share),
        "at once the share is issued below the old root again"
    );

    let waits = |it: &admin::Rotation| it.blockers.iter().any(|it| it.name == "node:prod/join_token/vm-1");
    let held_up = until(&mut client, "waiting for what is below the new root", waits).await;
    assert!(held_up.blockers[0].why.contains("presents 1 certificates"), "{held_up:?}");
    server.clock.advance(2);
    let _vm = vm.renew(&server).await;
    until(&mut client, "aborted", |it| it.outcome == "aborted").await;
    let after = server.bundle().await;
    assert_eq!(after.to_der(), before.to_der(), "trust is what it was, byte for byte");
    let back = sign(&channel, "shop", "cart").await.unwrap();
    assert_eq!((back.chain_der.len(), issuer_of(&back)), (2, issuer_of(&regular)));
    assert!(accepted_by(&before, &back, &server));
    let authorities = server.everything_stored().await;
    assert!(!authorities.contains(r#""canary":true"#), "nothing is left of it");
    server.stop().await;
}

#[tokio::test]
async fn each_server_has_a_canary_of_its_own_and_a_canary_outlives_the_server_that_led_it() {
    let one = TestServer::start_first_of_many().await;
    let two = one.another("r2").await;
    let (_channel, vm, mut client, _probed) = in_canary(&one).await;
    let everywhere = |it: &admin::Rotation| {
        it.canary.as_ref().is_some_and(|it| it.replicas == ["r1", "r2"] && it.replicas_without.is_empty())
    };
    until(&mut client, "a canary of both servers", everywhere).await;
    let bundle = one.bundle().await;
    let reach =
        async |server: &TestServer| connect(server.address(), &bundle, &server.clock, Some(&vm.holder)).await;
    let share = |channel: Channel| async move {
        let signed = async {
            loop {
                match sign(&channel, "shop", "cart").await {
                    Ok(issued) if issued.chain_der.len() == 3 => return issued,
                    Ok(_) | Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, signed).await.unwrap()
    };
    let (first, second) = (share(reach(&one).await).await, share(reach(&two).await).await);
    assert_ne!(issuer_of(&first), issuer_of(&second), "each replica issues by its own key");

    one.stop().await;
    let mut client = crate::rotation::client(&two).await;
    until(&mut client, "probed by the other", |it| it.canary.as_ref().is_some_and(|it| it.probes > 0)).await;
    let back = two.another("r1").await;
    let again = share(reach(&back).await).await;
    assert_eq!(issuer_of(&again), issuer_of(&first), "the first one comes back with the issuer that it had");
    back.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_share_of_nobody_everybody_or_both_kinds_is_refused_before_anything_happens() {
    let server = TestServer::start().await;
    let mut client = client(&server).await;
    let shares: [(u32, &[&str]); 6] =
        [(0, &[]), (100, &[]), (5, &["shop"]), (0, &[""]), (0, &["a/b"]), (256, &[])];
    for (percent, namespaces) in shares {
        let namespaces = namespaces.iter().map(|it| (*it).to_owned()).collect();
        let canary = Some(admin::RotationCanary { percent, namespaces, seconds: None });
        let choices = Some(admin::RotationChoices { canary, ..choices() });
        let request = admin::StartRotationRequest { choices, reason: "a new root".into() };
        let refused = client.start_rotation(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let none = client.get_rotation(admin::GetRotationRequest {}).await.unwrap().into_inner();
    assert_eq!(none.rotation, None);
    let canary = Some(admin::RotationCanary { percent: 5, namespaces: Vec::new(), seconds: None });
    let choices = Some(admin::RotationChoices { canary, ..choices() });
    let plan = client.plan_rotation(admin::PlanRotationRequest { choices }).await.unwrap().into_inner();
    let chosen = plan.choices.unwrap().canary.unwrap();
    assert_eq!((chosen.percent, chosen.seconds), (5, Some(1_800)));
    server.stop().await;
}
