//! The change of the root over the doors: a plan, a gate that names who was stopped, an exemption, an abort that restores
//! trust byte for byte, and a whole rotation.

use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::bundle_admin_service_client::BundleAdminServiceClient;
use rhizome_proto::admin::v1::rotation_service_client::RotationServiceClient;
use rhizome_proto::ca::v1::BundleAcknowledgement;
use rhizome_proto::node::v1 as wire;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::node::v1::sync_request::Message;
use rhizome_x509::{RequestKey, TrustAnchors, inspect};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{Holder, Node, PATIENCE, TestServer};

pub(crate) type Client = RotationServiceClient<Channel>;

pub(crate) async fn client(server: &TestServer) -> Client {
    RotationServiceClient::new(server.local().await)
}

pub(crate) fn choices() -> admin::RotationChoices {
    admin::RotationChoices {
        soak_seconds: Some(60),
        settle_seconds: Some(0),
        window_seconds: Some(60),
        ..admin::RotationChoices::default()
    }
}

pub(crate) async fn start(client: &mut Client) -> admin::Rotation {
    let request = admin::StartRotationRequest { choices: Some(choices()), reason: "a new root".into() };
    client.start_rotation(request).await.unwrap().into_inner().rotation.unwrap()
}

pub(crate) async fn current(client: &mut Client) -> admin::Rotation {
    client.get_rotation(admin::GetRotationRequest {}).await.unwrap().into_inner().rotation.unwrap()
}

/// Waits until the rotation is as `wanted` says; the server looks by itself.
pub(crate) async fn until(
    client: &mut Client,
    what: &str,
    wanted: impl Fn(&admin::Rotation) -> bool,
) -> admin::Rotation {
    let waited = tokio::time::timeout(PATIENCE, async {
        let mut stream = client.watch_rotation(admin::WatchRotationRequest {}).await.unwrap().into_inner();
        let mut last = None;
        while let Some(answer) = stream.message().await.unwrap() {
            let rotation = answer.rotation.unwrap();
            if wanted(&rotation) {
                return rotation;
            }
            last = Some(rotation);
        }
        panic!("it ended before it was {what}: {last:?}");
    });
    match waited.await {
        Ok(rotation) => rotation,
        Err(_) => panic!("it never was {what}: {:?}", current(client).await),
    }
}

/// A node that follows: it acknowledges every bundle that it is told of, and reports what it presents.
pub(crate) struct Follower {
    pub(crate) holder: Holder,
    follows: tokio::task::JoinHandle<()>,
}

impl Follower {
    pub(crate) async fn open(server: &TestServer, holder: Holder) -> Self {
        let channel = server.connect(Some(&holder)).await;
        let (sender, requests) = mpsc::channel(8);
        let hello = wire::Hello { cursor: 0, agent_version: String::new() };
        say(&sender, Message::Hello(hello)).await;
        let answers = NodeServiceClient::new(channel).sync(ReceiverStream::new(requests)).await;
        let mut answers = answers.unwrap().into_inner();
        let leaf = inspect(holder.issued.chain_der.first().unwrap()).unwrap();
        let issuer = wire::ServedIssuer {
            authority_key_id: leaf.issuer_key_id.unwrap().into(),
            count: 1,
            earliest_not_after: None,
        };
        say(&sender, Message::ServedIssuers(wire::ServedIssuers { issuers: vec![issuer], with_own: true }))
            .await;
        #[expect(clippy::disallowed_methods, reason = "a node of the test's own, which ends with its stream")]
        let follows = tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                if let Some(bundle) = answer.bundle {
                    let (sequence, digest) = (bundle.sequence, bundle.digest.clone());
                    let acknowledgement = BundleAcknowledgement { sequence, digest };
                    say(&sender, Message::BundleAcknowledgement(acknowledgement)).await;
                }
            }
        });
        Self { holder, follows }
    }

    /// Renews the node's certificate and opens a new stream with it, as an agent does.
    pub(crate) async fn renew(self, server: &TestServer) -> Self {
        let channel = server.connect(Some(&self.holder)).await;
        let key = RequestKey::generate(rhizome_x509::KeyAlgorithm::EcdsaP256).unwrap();
        let csr_der = rhizome_x509::create_csr(&key).unwrap().into();
        let answer = NodeServiceClient::new(channel).renew(wire::RenewRequest { csr_der }).await;
        let issued = answer.unwrap().into_inner().identity.unwrap();
        self.follows.abort();
        Self::open(server, Holder { key, issued }).await
    }
}

async fn say(sender: &mpsc::Sender<wire::SyncRequest>, message: Message) {
    // A stream that has ended hears nothing.
    drop(sender.send(wire::SyncRequest { message: Some(message) }).await);
}

pub(crate) fn is(phase: admin::RotationPhase) -> impl Fn(&admin::Rotation) -> bool {
    move |rotation| rotation.phase() == phase
}

#[tokio::test]
async fn a_plan_changes_nothing_and_says_who_is_away() {
    let server = TestServer::start().await;
    server.join("vm-1").await;
    let before = server.bundle().await;
    let mut client = client(&server).await;
    let request = admin::PlanRotationRequest { choices: Some(choices()) };
    let plan = client.plan_rotation(request).await.unwrap().into_inner();
    assert_eq!(
        plan.blockers.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
        ["node:prod/join_token/vm-1"]
    );
    assert!(
        plan.places.iter().any(|it| (it.cluster.as_str(), it.kind.as_str()) == ("prod", "agent")),
        "{plan:?}"
    );
    assert_eq!(server.bundle().await.digest(), before.digest());
    let none = client.get_rotation(admin::GetRotationRequest {}).await.unwrap().into_inner();
    assert_eq!(none.rotation, None);
    server.stop().await;
}

#[tokio::test]
async fn a_gate_names_the_node_that_was_stopped_and_an_abort_restores_trust_byte_for_byte() {
    let server = TestServer::start().await;
    let Node { holder, .. } = server.join("here").await;
    server.join("stopped").await;
    let before = server.bundle().await;
    let here = Follower::open(&server, holder).await;
    let mut client = client(&server).await;
    start(&mut client).await;
    until(&mut client, "distributing", is(admin::RotationPhase::Distributing)).await;
    let stopped = |rotation: &admin::Rotation| {
        rotation.blockers.iter().map(|it| it.name.as_str()).collect::<Vec<_>>()
            == ["node:prod/join_token/stopped"]
    };
    let held_up = until(&mut client, "held up by one node", stopped).await;
    assert!(held_up.blockers[0].why.contains("has not acknowledged bundle"), "{held_up:?}");
    assert_eq!(server.bundle().await.anchors().len(), 2, "both roots are distributed");

    let seen = |rotation: &admin::Rotation| {
        Some(admin::SeenRotation { name: rotation.name.clone(), version: rotation.version })
    };
    let advance = admin::AdvanceRotationRequest { seen: seen(&held_up), accept_loss: String::new() };
    let refused = client.advance_rotation(advance).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("node:prod/join_token/stopped"), "{refused}");

    let exempt = admin::ExemptSubscriberRequest {
        seen: seen(&held_up),
        subscriber: "node:prod/join_token/stopped".into(),
        reason: "it is in repair".into(),
        seconds: 3_600,
    };
    let once = client.exempt_subscriber(exempt.clone()).await.unwrap().into_inner().rotation.unwrap();
    let twice = client.exempt_subscriber(exempt.clone()).await.unwrap_err();
    assert_eq!(twice.code(), Code::FailedPrecondition, "somebody acts on what they saw before: {twice}");
    let now = current(&mut client).await;
    if now.phase() == admin::RotationPhase::Distributing {
        let again = admin::ExemptSubscriberRequest { seen: seen(&now), ..exempt };
        let again = client.exempt_subscriber(again).await.unwrap().into_inner().rotation.unwrap();
        assert_eq!(again.exemptions, once.exemptions, "whoever says it twice has said it once");
    }
    until(&mut client, "active", is(admin::RotationPhase::Active)).await;
    let renewed = here.renew(&server).await;
    assert_eq!(
        renewed.holder.issued.chain_der.len(),
        3,
        "leaf, issuer, and the new root certified by the old one"
    );

    let blind = admin::AbortRotationRequest { seen: None, reason: "second thoughts".into() };
    let blind = client.abort_rotation(blind).await.unwrap_err();
    assert_eq!(blind.code(), Code::FailedPrecondition, "nobody takes back what they have not seen: {blind}");
    let abort = admin::AbortRotationRequest {
        seen: seen(&current(&mut client).await),
        reason: "second thoughts".into(),
    };
    client.abort_rotation(abort.clone()).await.unwrap();
    let held_up =
        |it: &admin::Rotation| it.back && it.blockers.iter().any(|it| it.name == "node:prod/join_token/here");
    let held_up = until(&mut client, "waiting for what is below the new root", held_up).await;
    assert!(held_up.blockers[0].why.contains("presents 1 certificates"), "{held_up:?}");
    let _back = renewed.renew(&server).await;
    let ended = until(&mut client, "aborted", |it| it.outcome == "aborted").await;
    let after = server.bundle().await;
    assert_eq!(after.to_der(), before.to_der(), "trust is what it was, byte for byte");
    assert!(after.sequence() > before.sequence());
    let again = client.abort_rotation(abort).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{ended:?}");
    assert_eq!((ended.started_by.split(':').next(), ended.reason.as_str()), (Some("local"), "a new root"));
    let aborted = server.recorded(&["rotation.move", "; why: second thoughts"]).await;
    assert!(aborted.contains(&format!(r#""by":"{}""#, ended.started_by)), "a principal alone: {aborted}");
    server.stop().await;
}

#[tokio::test]
async fn a_whole_rotation_waits_for_every_certificate_and_leaves_the_new_root_alone() {
    let server = TestServer::start().await;
    let Node { holder, .. } = server.join("vm-1").await;
    let before = server.bundle().await;
    let vm = Follower::open(&server, holder).await;
    let mut client = client(&server).await;
    let begun = start(&mut client).await;
    until(&mut client, "distributing", is(admin::RotationPhase::Distributing)).await;
    let active = until(&mut client, "active", is(admin::RotationPhase::Active)).await;
    let request = admin::ListDependentsRequest { root: active.old.clone() };
    let dependents = client.list_dependents(request).await.unwrap().into_inner();
    assert!(dependents.dependents.iter().any(|it| it.name == "node:prod/join_token/vm-1"), "{dependents:?}");

    let vm_presents = |it: &admin::Rotation| {
        let vm = it.blockers.iter().find(|it| it.name == "node:prod/join_token/vm-1");
        vm.is_some_and(|it| it.why.contains(" presents 1 certificates under root-"))
    };
    let held_up = until(&mut client, "held up by a certificate below the old root", vm_presents).await;
    assert_eq!((held_up.phase(), held_up.gate_open), (admin::RotationPhase::Active, false));

    let vm = vm.renew(&server).await;
    let untrusting = until(&mut client, "untrusting", is(admin::RotationPhase::Untrusting)).await;
    assert!(untrusting.waits.iter().any(|it| it.contains("soak")), "{untrusting:?}");
    server.clock.advance(61);
    let ended = until(&mut client, "rotated", |it| it.outcome == "rotated").await;
    let after = server.bundle().await;
    assert_eq!(after.anchors().len(), 1);
    assert_ne!(after.to_der(), before.to_der());
    assert_eq!(ended.new, begun.new);

    // Whoever holds the new root alone accepts this server, and is accepted.
    let vm = vm.renew(&server).await;
    assert_eq!(vm.holder.issued.chain_der.len(), 2, "the bridge is gone");
    let anchors = TrustAnchors::from_bundle(&after);
    let sent: Vec<&[u8]> = vm.holder.issued.chain_der.iter().skip(1).map(|der| &der[..]).collect();
    let usage = rhizome_x509::PeerUsage::Client;
    rhizome_x509::verify_peer(&vm.holder.issued.chain_der[0], &sent, &anchors, usage, server.now()).unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_loss_that_was_named_is_accepted_when_some_of_it_has_gone_meanwhile() {
    let server = TestServer::start().await;
    for name in ["a", "b"] {
        server.join(name).await;
    }
    let mut client = client(&server).await;
    let choices = admin::RotationChoices { mode: admin::RotationMode::Compromised.into(), ..choices() };
    let request = admin::StartRotationRequest { choices: Some(choices), reason: "stolen".into() };
    client.start_rotation(request).await.unwrap();
    let asks = |it: &admin::Rotation| it.phase() == admin::RotationPhase::Active && it.loss_count == 2;
    let named = until(&mut client, "asking", asks).await;
    assert_eq!(named.losses, ["node:prod/join_token/a", "node:prod/join_token/b"]);
    let seen = |rotation: &admin::Rotation| {
        Some(admin::SeenRotation { name: rotation.name.clone(), version: rotation.version })
    };
    let exempt = admin::ExemptSubscriberRequest {
        seen: seen(&named),
        subscriber: "node:prod/join_token/a".into(),
        reason: "it is switched off".into(),
        seconds: 3_600,
    };
    let fewer = client.exempt_subscriber(exempt).await.unwrap().into_inner().rotation.unwrap();
    assert_eq!(fewer.losses, ["node:prod/join_token/b"]);
    assert_ne!(fewer.loss_digest, named.loss_digest);
    let advance = |accept_loss: &str| admin::AdvanceRotationRequest {
        seen: seen(&fewer),
        accept_loss: accept_loss.into(),
    };
    let other = client.advance_rotation(advance(&"0".repeat(64))).await.unwrap_err();
    assert!(other.message().contains("node:prod/join_token/b"), "{other}");
    let accepted = client.advance_rotation(advance(&named.loss_digest)).await.unwrap().into_inner();
    let accepted = accepted.rotation.unwrap().accepted;
    assert!(accepted.contains("given up: 1 (node:prod/join_token/b)"), "{accepted}");
    assert!(accepted.contains(&named.loss_digest), "{accepted}");
    server.stop().await;
}

#[tokio::test]
async fn a_server_knows_whom_another_one_over_the_same_store_reaches() {
    let one = TestServer::start_first_of_many().await;
    let two = one.another("r2").await;
    let Node { holder, .. } = two.join("vm-1").await;
    let _vm = Follower::open(&two, holder).await;
    let mut bundles = BundleAdminServiceClient::new(one.local().await);
    let acknowledged = async {
        loop {
            let shown = bundles.show_bundle(admin::ShowBundleRequest::default()).await.unwrap().into_inner();
            if shown.subscribers.first().is_some_and(|it| it.acknowledged_sequence > 0) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, acknowledged).await.unwrap();

    let mut client = client(&one).await;
    let choices = Some(admin::RotationChoices { manual: true, ..choices() });
    let plan = admin::PlanRotationRequest { choices: choices.clone() };
    let away = client.plan_rotation(plan.clone()).await.unwrap().into_inner();
    let of = |plan: &admin::PlanRotationResponse, kind: &str| {
        plan.blockers.iter().filter(|it| it.kind == kind).map(|it| it.why.clone()).collect::<Vec<_>>()
    };
    assert_eq!(of(&away, "agent"), ["is not connected to this server"], "nothing is under way: {away:?}");
    assert!(away.warnings.iter().any(|it| it.contains("of this server alone")), "{away:?}");
    assert_eq!(
        of(&away, "replica").len(),
        1,
        "the other server's own certificate counts for a day: {away:?}"
    );
    assert!(away.least_seconds > 80_000 && away.blocker_count == 2, "{away:?}");
    let request = admin::StartRotationRequest { choices, reason: "a new root".into() };
    client.start_rotation(request).await.unwrap();
    let within_reach = async {
        while !of(&client.plan_rotation(plan.clone()).await.unwrap().into_inner(), "agent").is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, within_reach).await.unwrap();
    two.stop().await;
    one.stop().await;
}
