//! JWT-SVIDs as nodes ask for them, and the keys that sign them as years pass.
//!
//! Sources: JWT-SVID §2 to §4, ADR 0011, ca/docs/attacks.md §2 (1, 3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhizome_core::authority::RotationPolicy;
use rhizome_core::clock::ManualClock;
use rhizome_core::documents::{Document, Kind};
use rhizome_core::ports::{Clock, Store, StoreError};
use rhizome_core::state::BundleRecord;
use rhizome_id::{Timestamp, TrustDomain, Ttl};
use rhizome_jwt::{JwtError, ValidatedJwt};
use rhizome_keys::MemoryKeyRing;
use rhizome_proto::METADATA_CODE;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::authority_service_client::AuthorityServiceClient;
use rhizome_proto::admin::v1::bundle_admin_service_client::BundleAdminServiceClient;
use rhizome_proto::admin::v1::ledger_service_client::LedgerServiceClient;
use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::admin::v1::server_service_client::ServerServiceClient;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::jwt_service_client::JwtServiceClient;
use rhizome_server::{Ports, Running, Settings, SystemEntropy};
use rhizome_store::{FaultyStore, MemoryStore, Moment};
use rhizome_x509::{Bundle, JwtKey, KeyAlgorithm, RequestKey};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::streams::{acknowledgement, watching};
use crate::support::{
    Holder, PATIENCE, TestServer, attest, attributes, connect, refusal, renew, settings, sign, token_for,
};

const AUDIENCE: &str = "spiffe://example.test/ns/shop/sa/db";

fn ask(namespace: &str, account: &str) -> ca::SignJwtSvidRequest {
    ca::SignJwtSvidRequest {
        attributes: attributes(&[("namespace", namespace), ("service_account", account)]),
        audiences: vec![AUDIENCE.to_owned()],
        ..ca::SignJwtSvidRequest::default()
    }
}

async fn token(channel: &Channel, request: ca::SignJwtSvidRequest) -> Result<ca::JwtSvid, Status> {
    let answer = JwtServiceClient::new(channel.clone()).sign_jwt_svid(request).await?;
    Ok(answer.into_inner().jwt_svid.unwrap())
}

fn validated(svid: &ca::JwtSvid, keys: &[JwtKey], now: Timestamp) -> Result<ValidatedJwt, JwtError> {
    let domain: TrustDomain = "example.test".parse().unwrap();
    rhizome_jwt::validate(&svid.token, AUDIENCE, |asked| (*asked == domain).then_some(keys), now)
}

fn seconds(at: Option<prost_types::Timestamp>) -> i64 {
    at.unwrap().seconds
}

async fn jwt_authorities(server: &TestServer) -> Vec<admin::Authority> {
    let mut client = AuthorityServiceClient::new(server.local().await);
    let all = client.list_authorities(admin::ListAuthoritiesRequest::default()).await.unwrap().into_inner();
    all.authorities.into_iter().filter(|it| it.kind() == admin::AuthorityKind::Jwt).collect()
}

#[tokio::test]
async fn a_node_gets_a_token_for_its_workload_and_the_bundle_validates_it() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let svid = token(&node.channel, ask("shop", "web")).await.unwrap();
    assert_eq!(svid.spiffe_id, "spiffe://example.test/ns/shop/sa/web");
    assert_eq!(seconds(svid.issued_at), server.now().unix());
    assert_eq!(seconds(svid.expires_at), server.now().unix() + 300, "5 minutes when nobody says otherwise");
    assert!(svid.jti.len() == 40 && svid.jti.bytes().all(|it| it.is_ascii_hexdigit()), "{}", svid.jti);

    let bundle = server.bundle().await;
    let known: Vec<&str> = bundle.jwt_keys().iter().map(JwtKey::kid).collect();
    assert_eq!(known, [svid.kid.as_str()]);
    let claims = validated(&svid, bundle.jwt_keys(), server.now()).unwrap();
    assert_eq!(claims.spiffe_id().to_string(), svid.spiffe_id);
    assert!(validated(&svid, &[], server.now()).is_err(), "without its key it is worth nothing");
    let end = server.now().plus(300 + 61);
    assert!(validated(&svid, bundle.jwt_keys(), end).is_err(), "nor after its end");
    assert!(bundle.to_spiffe_json().contains("\"use\":\"jwt-svid\""));
    assert!(bundle.to_jwks_json(server.now()).contains(&svid.kid));
}

#[tokio::test]
async fn every_token_is_in_the_ledger_and_none_is_in_it_as_a_whole() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let first = token(&node.channel, ask("shop", "web")).await.unwrap();
    let second = token(&node.channel, ask("shop", "web")).await.unwrap();
    assert!(first.jti != second.jti && first.token != second.token, "no two tokens are one");
    for svid in [&first, &second] {
        let parts =
            ["jwt_issued", &svid.jti, &svid.spiffe_id, &svid.kid, AUDIENCE, "node:prod/join_token/vm-1"];
        let line = server.recorded(&parts).await;
        let input = svid.token.rsplit_once('.').unwrap().0;
        let digest = ring::digest::digest(&ring::digest::SHA256, input.as_bytes());
        assert!(line.contains(&hex::encode(digest.as_ref())), "the hash of what was signed: {line}");
    }
    let stored = server.everything_stored().await;
    for secret in [&first.token, &second.token] {
        let (input, signature) = secret.rsplit_once('.').unwrap();
        assert!(!stored.contains(input) && !stored.contains(signature));
    }
    let request = admin::ListEntriesRequest { kinds: vec!["jwt_issued".into()], ..Default::default() };
    let mut ledger = LedgerServiceClient::new(server.local().await);
    let listed = ledger.list_entries(request).await.unwrap().into_inner().entries;
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0].actor, "node:prod/join_token/vm-1");
    let mut walk = ledger.verify_ledger(admin::VerifyLedgerRequest::default()).await.unwrap().into_inner();
    while let Some(progress) = walk.message().await.unwrap() {
        assert_eq!(progress.fault, "");
    }
}

type Refused = Vec<(&'static str, ca::SignJwtSvidRequest, Code, &'static str)>;

fn changed(change: fn(&mut ca::SignJwtSvidRequest)) -> ca::SignJwtSvidRequest {
    let mut request = ask("shop", "web");
    change(&mut request);
    request
}

fn many(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("a{n}")).collect()
}

fn denied() -> Refused {
    vec![
        ("another namespace", ask("bank", "web"), Code::PermissionDenied, "out_of_scope"),
        (
            "no rule",
            changed(|it| it.attributes = attributes(&[("namespace", "shop")])),
            Code::PermissionDenied,
            "no_rule",
        ),
        (
            "another identity",
            changed(|it| it.spiffe_id = "spiffe://example.test/ns/pay/sa/web".into()),
            Code::PermissionDenied,
            "not_granted",
        ),
        (
            "a reserved identity",
            changed(|it| it.spiffe_id = "spiffe://example.test/rhizome/admin/alice".into()),
            Code::PermissionDenied,
            "reserved",
        ),
        (
            "an attribute that only attestation states",
            changed(|it| it.attributes.extend(attributes(&[("cluster", "prod")]))),
            Code::PermissionDenied,
            "out_of_scope",
        ),
    ]
}

fn malformed() -> Refused {
    vec![
        ("no audience", changed(|it| it.audiences.clear()), Code::InvalidArgument, "invalid_argument"),
        (
            "an empty audience",
            changed(|it| it.audiences.push(String::new())),
            Code::InvalidArgument,
            "invalid_argument",
        ),
        (
            "too many audiences",
            ca::SignJwtSvidRequest { audiences: many(17), ..ask("shop", "web") },
            Code::InvalidArgument,
            "invalid_argument",
        ),
        (
            "an audience that is too long",
            changed(|it| it.audiences = vec!["a".repeat(257)]),
            Code::InvalidArgument,
            "invalid_argument",
        ),
        (
            "an audience with a line break",
            changed(|it| it.audiences = vec!["a\r\nb".into()]),
            Code::InvalidArgument,
            "invalid_argument",
        ),
        (
            "a lifetime below zero",
            changed(|it| it.ttl_seconds = -1),
            Code::InvalidArgument,
            "invalid_argument",
        ),
        ("no identity", changed(|it| it.spiffe_id = "web".into()), Code::InvalidArgument, "invalid_argument"),
    ]
}

#[tokio::test]
async fn what_a_node_may_not_have_as_a_certificate_it_may_not_have_as_a_token() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let table = denied().into_iter().chain(malformed());
    let before = server.ledger().await.iter().filter(|line| line.contains("jwt_issued")).count();
    for (what, request, grpc, code) in table {
        let status = token(&node.channel, request).await.unwrap_err();
        let found = status.metadata().get(METADATA_CODE).and_then(|it| it.to_str().ok()).unwrap_or_default();
        assert_eq!((status.code(), found), (grpc, code), "{what}: {}", status.message());
    }
    let after = server.ledger().await.iter().filter(|line| line.contains("jwt_issued")).count();
    assert_eq!(before, after, "a refusal is no intent");
    server.recorded(&["refused", "jwt.sign", "out_of_scope", "node:prod/join_token/vm-1"]).await;
    let most = ca::SignJwtSvidRequest { audiences: many(16), ..ask("shop", "web") };
    token(&node.channel, most).await.unwrap();
}

#[tokio::test]
async fn only_nodes_get_tokens() {
    let server = TestServer::start().await;
    let (_sara, security) = server.admin("sara", admin::Role::Security).await;
    let (anonymous, local) = (server.connect(None).await, server.local().await);
    for (channel, code) in [
        (&anonymous, Code::Unauthenticated),
        (&security, Code::PermissionDenied),
        (&local, Code::PermissionDenied),
    ] {
        assert_eq!(refusal(token(channel, ask("shop", "web")).await).0, code);
    }
}

#[tokio::test]
async fn lifetimes_are_held_to_policy_rule_and_key() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let lives = async |ttl_seconds: i64| {
        let request = ca::SignJwtSvidRequest { ttl_seconds, ..ask("shop", "web") };
        let svid = token(&node.channel, request).await.unwrap();
        seconds(svid.expires_at) - seconds(svid.issued_at)
    };
    for (asked, got) in [(0, 300), (1, 1), (60, 60), (3_600, 3_600), (3_601, 3_600), (86_400, 3_600)] {
        assert_eq!(lives(asked).await, got, "asked for {asked}");
    }
    let rule = ca::GrantRule {
        name: "brief".into(),
        conditions: vec![
            ca::Condition { attribute: "namespace".into(), values: vec!["*".into()] },
            ca::Condition { attribute: "service_account".into(), values: vec!["web".into()] },
        ],
        identity: "/ns/{namespace}/sa/{service_account}".into(),
        ttl_seconds: 120,
        ..ca::GrantRule::default()
    };
    let request = admin::PutRuleRequest { rule: Some(rule), ..admin::PutRuleRequest::default() };
    RuleServiceClient::new(server.local().await).put_rule(request).await.unwrap();
    for (asked, got) in [(0, 120), (60, 60), (3_600, 120)] {
        assert_eq!(lives(asked).await, got, "a rule bounds tokens too; asked for {asked}");
    }
}

#[tokio::test]
async fn a_banned_node_gets_no_token() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    token(&node.channel, ask("shop", "web")).await.unwrap();
    let request = admin::BanNodeRequest { id: node.id.clone(), reason: "stolen".into() };
    let mut nodes = admin::node_admin_service_client::NodeAdminServiceClient::new(server.local().await);
    nodes.ban_node(request).await.unwrap();
    assert_eq!(refusal(token(&node.channel, ask("shop", "web")).await).0, Code::Unauthenticated);
}

#[tokio::test]
async fn authorities_and_checks_show_the_jwt_key() {
    let server = TestServer::start().await;
    let listed = jwt_authorities(&server).await;
    let [key] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((key.state(), key.replica.as_str()), (admin::AuthorityState::Active, "r1"));
    assert_eq!((key.certificate_der.len(), key.next_step.as_str()), (0, "its successor is made"));
    let bundle = server.bundle().await;
    let [published] = bundle.jwt_keys() else { panic!("one key") };
    assert_eq!(key.id, published.kid());
    assert_eq!(&*key.public_key_der, published.public_key().spki_der());
    assert_eq!(seconds(key.not_after), published.not_after().unix());
    let mut checks = ServerServiceClient::new(server.local().await);
    let checks = checks.run_checks(admin::RunChecksRequest::default()).await.unwrap().into_inner().checks;
    for name in ["authority.jwt.expiry", "authority.jwt.key"] {
        let check = checks.iter().find(|check| check.name == name).unwrap();
        assert!(check.ok, "{check:?}");
    }
}

#[tokio::test]
async fn a_tainted_key_leaves_the_bundle_and_never_signs_again() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let mut client = AuthorityServiceClient::new(server.local().await);
    let before = server.bundle().await;
    let svid = token(&node.channel, ask("shop", "web")).await.unwrap();
    let taint =
        |dry_run| admin::TaintJwtKeyRequest { id: svid.kid.clone(), reason: "copied".into(), dry_run };
    let stored = server.everything_stored().await;
    let dry = client.taint_jwt_key(taint(true)).await.unwrap().into_inner();
    assert!(!dry.applied && dry.steps.len() == 3, "{:?}", dry.steps);
    assert_eq!(server.everything_stored().await, stored, "a dry run changes nothing");

    let done = client.taint_jwt_key(taint(false)).await.unwrap().into_inner();
    assert!(done.applied && done.bundle_sequence > before.sequence());
    let after = server.bundle().await;
    assert!(after.sequence() > before.sequence());
    assert!(validated(&svid, after.jwt_keys(), server.now()).is_err(), "its tokens are refused");
    let next = token(&node.channel, ask("shop", "web")).await.unwrap();
    assert_ne!(next.kid, svid.kid);
    validated(&next, after.jwt_keys(), server.now()).unwrap();
    server.recorded(&["authority.taint", &svid.kid, "copied", "local:uid="]).await;
    let states: BTreeMap<String, admin::AuthorityState> =
        jwt_authorities(&server).await.into_iter().map(|it| (it.id.clone(), it.state())).collect();
    assert_eq!(states[&svid.kid], admin::AuthorityState::Tainted);
    client.taint_jwt_key(taint(false)).await.unwrap();
    assert_eq!(server.bundle().await, after, "tainting again changes nothing");
    let unknown = admin::TaintJwtKeyRequest { id: "jwt-none".into(), ..taint(false) };
    assert_eq!(refusal(client.taint_jwt_key(unknown).await).0, Code::NotFound);
    let silent = admin::TaintJwtKeyRequest { reason: " ".into(), ..taint(false) };
    assert_eq!(refusal(client.taint_jwt_key(silent).await).0, Code::InvalidArgument);
    sign(&node.channel, "shop", "web").await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_tainted_while_the_entry_is_written_signs_nothing() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let svid = token(&node.channel, ask("shop", "web")).await.unwrap();
    for moment in [Moment::Before, Moment::After] {
        let kid =
            jwt_authorities(&server).await.into_iter().find(|it| it.state() == admin::AuthorityState::Active);
        let mut held = server.store.hold_commit(1, moment);
        let channel = node.channel.clone();
        #[expect(clippy::disallowed_methods, reason = "a test's own task, which it waits for")]
        let call = tokio::spawn(async move { token(&channel, ask("shop", "web")).await });
        assert!(held.reached().await);
        let taint =
            admin::TaintJwtKeyRequest { id: kid.unwrap().id, reason: "copied".into(), dry_run: false };
        AuthorityServiceClient::new(server.local().await).taint_jwt_key(taint).await.unwrap();
        drop(held);
        let status = call.await.unwrap().unwrap_err();
        let found = status.metadata().get(METADATA_CODE).and_then(|it| it.to_str().ok());
        assert_eq!((status.code(), found), (Code::Unavailable, Some("key_tainted")), "{moment:?}");
        server.recorded(&["signing_failed", "tainted"]).await;
    }
    let next = token(&node.channel, ask("shop", "web")).await.unwrap();
    assert_ne!(next.kid, svid.kid);
    server.stop().await;
}

/// Waits until the server knows that its only follower holds the bundle of that sequence.
async fn acknowledged(server: &TestServer, sequence: u64) {
    let mut admins = BundleAdminServiceClient::new(server.local().await);
    let known = async {
        loop {
            let shown = admins.show_bundle(admin::ShowBundleRequest::default()).await.unwrap().into_inner();
            if shown.subscribers.first().is_some_and(|it| it.acknowledged_sequence == sequence) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.unwrap();
}

#[tokio::test]
async fn a_new_key_signs_once_live_followers_hold_it_or_were_waited_for_long_enough() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    let (acknowledgements, mut bundles, bundle) = watching(&vm).await;
    acknowledgements.send(acknowledgement(bundle.sequence, &bundle.digest)).await.unwrap();
    acknowledged(&server, bundle.sequence).await;
    let mut authorities = AuthorityServiceClient::new(server.local().await);
    // Tainting what is tainted already only looks at what is due.
    let mut taint = async |kid: &str| {
        let request = admin::TaintJwtKeyRequest { id: kid.into(), reason: "copied".into(), dry_run: false };
        authorities.taint_jwt_key(request).await.unwrap();
    };
    let waits = async || {
        let states: Vec<_> = jwt_authorities(&server).await.iter().map(admin::Authority::state).collect();
        assert!(states.contains(&admin::AuthorityState::Prepared), "{states:?}");
        assert!(!states.contains(&admin::AuthorityState::Active), "{states:?}");
        assert_eq!(refusal(token(&vm.channel, ask("shop", "web")).await).0, Code::Unavailable);
    };

    let first = token(&vm.channel, ask("shop", "web")).await.unwrap();
    taint(&first.kid).await;
    waits().await;
    server.clock.advance(299);
    taint(&first.kid).await;
    waits().await;
    // The follower says that it holds the key: the wait is over at once.
    let published = loop {
        let bundle = bundles.message().await.unwrap().unwrap().bundle.unwrap();
        if bundle.sequence == server.bundle().await.sequence() {
            break bundle;
        }
    };
    acknowledgements.send(acknowledgement(published.sequence, &published.digest)).await.unwrap();
    acknowledged(&server, published.sequence).await;
    taint(&first.kid).await;
    let second = token(&vm.channel, ask("shop", "web")).await.unwrap();
    assert_ne!(second.kid, first.kid);
    assert!(published.jwt_keys.iter().any(|key| key.kid == second.kid), "what it acknowledged has the key");

    // It says nothing any more: five minutes, and the next key signs all the same.
    taint(&second.kid).await;
    waits().await;
    server.clock.advance(299);
    taint(&second.kid).await;
    waits().await;
    server.clock.advance(1);
    taint(&second.kid).await;
    let third = token(&vm.channel, ask("shop", "web")).await.unwrap();
    assert!(![&first.kid, &second.kid].contains(&&third.kid));
    server.stop().await;
}

/// A server on a store and keys that outlive it.
struct Years {
    store: Arc<FaultyStore<MemoryStore>>,
    keys: Arc<MemoryKeyRing>,
    clock: Arc<ManualClock>,
    scratch: tempfile::TempDir,
}

impl Years {
    fn new() -> Self {
        Self {
            store: Arc::new(FaultyStore::new(MemoryStore::new())),
            keys: Arc::new(MemoryKeyRing::new()),
            clock: Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap())),
            scratch: tempfile::TempDir::new().unwrap(),
        }
    }

    async fn start(&self) -> Running {
        let usual = settings(self.scratch.path().join("admin.sock"));
        let settings = Settings {
            rotation: RotationPolicy { jwt_key_ttl: Ttl::hours(12), ..usual.rotation },
            believe_clock: true,
            ..usual
        };
        let ports = Ports {
            store: Arc::<FaultyStore<MemoryStore>>::clone(&self.store),
            keys: Arc::<MemoryKeyRing>::clone(&self.keys),
            clock: Arc::<ManualClock>::clone(&self.clock),
            entropy: Arc::new(SystemEntropy::default()),
        };
        rhizome_server::start(settings, ports).await.unwrap()
    }

    async fn local(&self) -> Channel {
        let socket = self.scratch.path().join("admin.sock");
        rhizome_tls::connect(&format!("unix://{}", socket.display()), None).await.unwrap()
    }

    async fn bundle(&self) -> Bundle {
        let documents: Vec<Document> = self.store.documents(Kind::Bundle, None, 10).await.unwrap();
        Bundle::try_from(documents.first().unwrap().read::<BundleRecord>().unwrap().value).unwrap()
    }
}

impl Years {
    /// A TLS channel to `running` that presents what `holder` holds, or nothing.
    async fn connect(&self, running: &Running, holder: Option<&Holder>) -> Channel {
        connect(running.address(), &self.bundle().await, &self.clock, holder).await
    }

    async fn join(&self, running: &Running) -> Holder {
        let mut tokens = TokenServiceClient::new(self.local().await);
        let secret = tokens.create_token(token_for("vm-1")).await.unwrap().into_inner().secret;
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let answer = attest(self.connect(running, None).await, &secret, &key).await.unwrap();
        Holder { key, issued: answer.identity.unwrap() }
    }
}

#[tokio::test]
async fn through_rotations_and_restarts_every_token_validates_for_its_whole_life() {
    const HOUR: i64 = 3_600;
    let years = Years::new();
    let mut running = years.start().await;
    let mut holder = years.join(&running).await;
    let mut tokens: Vec<ca::JwtSvid> = Vec::new();
    let (mut before, mut kids, mut jtis) = (years.bundle().await, BTreeSet::new(), BTreeSet::new());
    for hour in 0..60 {
        let channel = years.connect(&running, Some(&holder)).await;
        if hour % 8 == 7 {
            let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
            let issued = renew(&channel, &key).await.unwrap();
            holder = Holder { key, issued };
        }
        let request = ca::SignJwtSvidRequest { ttl_seconds: HOUR, ..ask("shop", "web") };
        let svid = token(&channel, request).await.unwrap();
        assert!(
            before.jwt_keys().iter().any(|key| key.kid() == svid.kid),
            "published an hour before it signs"
        );
        kids.insert(svid.kid.clone());
        assert!(jtis.insert(svid.jti.clone()), "a jti is used once, over restarts too");
        tokens.push(svid);
        before = years.bundle().await;

        // What a follower holds the whole hour long validates it to its last second.
        let now = years.clock.now();
        for svid in tokens.iter().filter(|svid| seconds(svid.expires_at) > now.unix()) {
            let last = Timestamp::from_unix(seconds(svid.expires_at) - 1);
            validated(svid, before.jwt_keys(), now).unwrap();
            validated(svid, before.jwt_keys(), last).unwrap();
        }
        drop(channel);
        running.stop().await;
        years.clock.advance(HOUR - 1);
        running = years.start().await;
        let after = years.bundle().await;
        // Nothing is forgotten here: after each restart the clock has not been steady for hours.
        assert!(after.sequence() >= before.sequence(), "{after:?}");
        let now = years.clock.now();
        for svid in tokens.iter().filter(|svid| seconds(svid.expires_at) > now.unix()) {
            validated(svid, after.jwt_keys(), now).unwrap();
        }
        years.clock.advance(1);
    }
    assert!((8..=12).contains(&kids.len()), "a key of twelve hours is replaced every six: {}", kids.len());
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_signed() {
    let years = Years::new();
    let running = years.start().await;
    let holder = years.join(&running).await;
    let channel = years.connect(&running, Some(&holder)).await;
    token(&channel, ask("shop", "web")).await.unwrap();
    let full = StoreError::Full { cause: "no space left".into() };
    for (moment, error, code) in
        [(Moment::Before, full.clone(), "store_full"), (Moment::After, full, "store_full")]
    {
        years.store.fail_commit_with(1, moment, error);
        let status = token(&channel, ask("shop", "web")).await.unwrap_err();
        let found = status.metadata().get(METADATA_CODE).and_then(|it| it.to_str().ok());
        assert_eq!((status.code(), found), (Code::Unavailable, Some(code)), "{moment:?}");
    }
    years.store.fail_commit(1, Moment::Before);
    let status = token(&channel, ask("shop", "web")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    token(&channel, ask("shop", "web")).await.unwrap();
    running.stop().await;
}
