//! Several servers over one store, as their callers see them.

use std::sync::Arc;
use std::time::Duration;

use rhizome_core::clock::ManualClock;
use rhizome_core::ports::Store;
use rhizome_keys::MemoryKeyRing;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_server::{Ports, Running, Settings, SystemEntropy};
use rhizome_store::cluster::Cluster;
use rhizome_store::{PostgresOptions, PostgresStore, verify_ledger};
use rhizome_x509::{Bundle, KeyAlgorithm, RequestKey};
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{Holder, TestServer, attest, bundle_at, connect, refusal, settings, sign, token_for};

/// Long enough for a busy machine; whoever waits longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again until `done` says so: when a replica has taken in what another wrote, it tells only its own followers.
async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let wait = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn a_node_of_one_replica_is_known_to_the_other_and_chains_to_the_same_root() {
    let one = TestServer::start_first_of_many().await;
    let two = one.another("r2").await;
    let vm = one.join("vm-1").await;
    let here = sign(&vm.channel, "shop", "cart").await.unwrap();
    let there = connect(two.address(), &one.bundle().await, &one.clock, Some(&vm.holder)).await;
    until("r2 knows the node", async || sign(&there, "shop", "cart").await.is_ok()).await;
    let other = sign(&there, "shop", "cart").await.unwrap();
    assert_ne!(here.chain_der[1], other.chain_der[1], "each replica issues by its own key");
    assert_eq!(one.bundle().await.digest(), two.bundle().await.digest());
    two.stop().await;
    one.stop().await;
}

#[tokio::test]
async fn a_join_token_is_redeemed_once_over_all_replicas() {
    let one = TestServer::start_first_of_many().await;
    let two = one.another("r2").await;
    for round in 0..10 {
        let token = one.create_token(&format!("vm-{round}")).await.secret;
        let (key, rival) = (new_key(), new_key());
        let (first, second) = (one.connect(None).await, two.connect(None).await);
        let outcomes = tokio::join!(attest(first, &token, &key), attest(second, &token, &rival));
        let won = usize::from(outcomes.0.is_ok()) + usize::from(outcomes.1.is_ok());
        assert_eq!(won, 1, "round {round}: {outcomes:?}");
    }
    two.stop().await;
    one.stop().await;
}

fn new_key() -> RequestKey {
    RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()
}

#[tokio::test]
async fn a_ban_at_one_replica_ends_the_node_at_the_other() {
    let one = TestServer::start_first_of_many().await;
    let two = one.another("r2").await;
    let vm = one.join("vm-1").await;
    let there = connect(two.address(), &one.bundle().await, &one.clock, Some(&vm.holder)).await;
    until("r2 knows the node", async || sign(&there, "shop", "cart").await.is_ok()).await;
    let ban = admin::BanNodeRequest { id: vm.id.clone(), reason: "stolen".into() };
    NodeAdminServiceClient::new(one.local().await).ban_node(ban).await.unwrap();
    // Not after a while: what is committed before the certificate's own record counts.
    let (code, told) = refusal(sign(&there, "shop", "cart").await);
    assert!(matches!(code, Code::PermissionDenied | Code::Unauthenticated | Code::Aborted), "{code}: {told}");
    two.stop().await;
    one.stop().await;
}

#[tokio::test]
async fn the_others_go_on_when_one_replica_stops_and_it_comes_back_as_itself() {
    let one = TestServer::start_first_of_many().await;
    let two = one.another("r2").await;
    let vm = two.join("vm-1").await;
    let bundle = one.bundle().await;
    let issuer = |chain: &rhizome_proto::ca::v1::IssuedCertificate| chain.chain_der[1].to_vec();
    let back = one.another("r3").await;
    one.stop().await;
    let issued = sign(&vm.channel, "shop", "cart").await.unwrap();
    let three = reach(&back, &bundle, &vm.holder).await;
    until("r3 knows the node", async || sign(&three, "shop", "cart").await.is_ok()).await;
    assert_ne!(issuer(&sign(&three, "shop", "cart").await.unwrap()), issuer(&issued));
    back.stop().await;
    // Under its own name again, with the issuer that it had.
    let again = two.another("r3").await;
    let channel = reach(&again, &bundle, &vm.holder).await;
    until("r3 serves again", async || sign(&channel, "shop", "cart").await.is_ok()).await;
    again.stop().await;
    two.stop().await;
}

async fn reach(server: &TestServer, bundle: &Bundle, holder: &Holder) -> Channel {
    connect(server.address(), bundle, &server.clock, Some(holder)).await
}

/// A server over PostgreSQL.
struct OverPostgres {
    running: Running,
    store: Arc<PostgresStore>,
    scratch: TempDir,
}

impl OverPostgres {
    async fn start(
        address: &str,
        replica: &str,
        keys: &Arc<MemoryKeyRing>,
        clock: &Arc<ManualClock>,
    ) -> Self {
        let options = PostgresOptions::new(address, Arc::new(SystemEntropy::default())).unwrap();
        let opening = tokio::task::spawn_blocking(move || PostgresStore::open(options));
        let store = Arc::new(opening.await.unwrap().unwrap());
        let scratch = TempDir::new().unwrap();
        let settings = settings(scratch.path().join("admin.sock"));
        let ports = Ports {
            store: Arc::<PostgresStore>::clone(&store),
            keys: Arc::<MemoryKeyRing>::clone(keys),
            clock: Arc::<ManualClock>::clone(clock),
            entropy: Arc::new(SystemEntropy::default()),
        };
        let settings = Settings { replica: replica.parse().unwrap(), ..settings };
        let running = rhizome_server::start(settings, ports).await.unwrap();
        Self { running, store, scratch }
    }

    async fn local(&self) -> Channel {
        let socket = self.scratch.path().join("admin.sock");
        rhizome_tls::connect(&format!("unix://{}", socket.display()), None).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_over_postgresql_start_at_once_live_through_its_crash_and_the_end_of_one() {
    let Some(cluster) = Cluster::start() else { return };
    let address = cluster.database();
    let clock = Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap()));
    let keys = Arc::new(MemoryKeyRing::new());
    let (one, two) = tokio::join!(
        OverPostgres::start(&address, "r1", &keys, &clock),
        OverPostgres::start(&address, "r2", &keys, &clock)
    );
    let bundle = bundle_at(one.local().await).await;
    assert_eq!(bundle.anchors().len(), 1, "two roots were made");
    // A token of one, redeemed at the other.
    let token = TokenServiceClient::new(one.local().await).create_token(token_for("vm-1")).await.unwrap();
    let key = new_key();
    let nobody = connect(two.running.address(), &bundle, &clock, None).await;
    let identity = attest(nobody, &token.into_inner().secret, &key).await.unwrap().identity.unwrap();
    let vm = Holder { key, issued: identity };
    let here = connect(one.running.address(), &bundle, &clock, Some(&vm)).await;
    let there = connect(two.running.address(), &bundle, &clock, Some(&vm)).await;
    until("r1 knows the node", async || sign(&here, "shop", "cart").await.is_ok()).await;
    for crash in [true, false] {
        if crash {
            cluster.crash()
        } else {
            cluster.stop()
        }
        for channel in [&here, &there] {
            let (code, told) = refusal(sign(channel, "shop", "cart").await);
            assert_eq!(code, Code::Unavailable, "{told}");
        }
        cluster.start_again();
        until("r1 issues again", async || sign(&here, "shop", "cart").await.is_ok()).await;
        until("r2 issues again", async || sign(&there, "shop", "cart").await.is_ok()).await;
    }
    one.running.stop().await;
    for _ in 0..10 {
        sign(&there, "shop", "cart").await.unwrap();
    }
    verify_ledger(&*two.store).await.unwrap();
    two.store.check_integrity().await.unwrap();
    two.running.stop().await;
}
