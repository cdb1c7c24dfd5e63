//! A clock that jumps back: nothing is issued beyond two minutes, and all goes on when it is right again. One that jumps
//! ahead: not believed until the step has lasted, and forgotten when it is taken back.
//!
//! Sources: ca/docs/attacks.md §2 (21).

use std::path::PathBuf;
use std::sync::Arc;

use rhizome_core::clock::ManualClock;
use rhizome_core::ports::Store as _;
use rhizome_keys::MemoryKeyRing;
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::server_service_client::ServerServiceClient;
use rhizome_proto::{METADATA_CODE, METADATA_RETRY_AFTER_MS};
use rhizome_server::{Ports, Running, Settings, StartError, SystemEntropy};
use rhizome_store::MemoryStore;
use rhizome_x509::{KeyAlgorithm, RequestKey};
use tonic::{Code, Status};

use crate::support::{TestServer, attest, renew, settings, sign};

/// A refusal for now, with the delay after which to try again.
fn is_stopped<T: std::fmt::Debug>(outcome: Result<T, Status>) {
    let status = outcome.unwrap_err();
    let code = status.metadata().get(METADATA_CODE).and_then(|it| it.to_str().ok());
    assert_eq!((status.code(), code), (Code::Unavailable, Some("clock_went_back")), "{}", status.message());
    let delay = status.metadata().get(METADATA_RETRY_AFTER_MS).unwrap();
    assert!(delay.to_str().unwrap().parse::<u64>().unwrap() > 0);
}

async fn check_of_the_clock(server: &TestServer) -> wire::Check {
    let mut client = ServerServiceClient::new(server.local().await);
    let checks = client.run_checks(wire::RunChecksRequest::default()).await.unwrap().into_inner().checks;
    checks.into_iter().find(|check| check.name == "server.clock").unwrap()
}

#[tokio::test]
async fn two_minutes_back_are_borne_and_a_second_more_stops_every_way_to_a_certificate() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let token = server.create_token("vm-2").await.secret;
    let key = || RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    server.clock.advance(600);
    sign(&node.channel, "shop", "web").await.unwrap();
    let right = server.now();

    server.clock.advance(-120);
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    assert!(issued.not_before.unwrap().seconds <= server.now().unix());

    server.clock.advance(-1);
    let before = server.everything_stored().await;
    is_stopped(sign(&node.channel, "shop", "web").await);
    is_stopped(renew(&node.channel, &key()).await);
    is_stopped(attest(server.connect(None).await, &token, &key()).await);
    let check = check_of_the_clock(&server).await;
    assert!(!check.ok && check.summary.contains("121s") && check.remedy.contains("clock"), "{check:?}");
    assert_eq!(server.everything_stored().await, before, "nothing was recorded, the token is whole");

    server.clock.set(right);
    sign(&node.channel, "shop", "web").await.unwrap();
    renew(&node.channel, &key()).await.unwrap();
    attest(server.connect(None).await, &token, &key()).await.unwrap();
    assert!(check_of_the_clock(&server).await.ok);
    server.stop().await;
}

#[tokio::test]
async fn refusals_do_not_move_the_newest_instant_back() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    // Past the youth of the authority, which would be a reason of its own.
    let right = server.clock.advance(600);
    sign(&node.channel, "shop", "web").await.unwrap();
    // A clock that creeps back over the border by small steps, asked at each of them.
    for _ in 0..6 {
        server.clock.advance(-20);
        sign(&node.channel, "shop", "web").await.unwrap();
    }
    for _ in 0..3 {
        server.clock.advance(-20);
        is_stopped(sign(&node.channel, "shop", "web").await);
    }
    server.clock.set(right);
    sign(&node.channel, "shop", "web").await.unwrap();
}

/// A server on a store and keys that outlive it.
async fn start(
    store: &MemoryStore,
    keys: &Arc<MemoryKeyRing>,
    clock: &Arc<ManualClock>,
) -> Result<Running, StartError> {
    start_as(store, keys, clock, false).await
}

async fn start_as(
    store: &MemoryStore,
    keys: &Arc<MemoryKeyRing>,
    clock: &Arc<ManualClock>,
    believe_clock: bool,
) -> Result<Running, StartError> {
    let usual = settings(PathBuf::new());
    let settings = Settings { admin_socket: None, believe_clock, ..usual };
    let ports = Ports {
        store: Arc::new(store.clone()),
        keys: Arc::<MemoryKeyRing>::clone(keys),
        clock: Arc::<ManualClock>::clone(clock),
        entropy: Arc::new(SystemEntropy::default()),
    };
    rhizome_server::start(settings, ports).await
}

#[tokio::test]
async fn a_clock_before_the_ledger_keeps_the_server_from_starting() {
    let (store, keys) = (MemoryStore::new(), Arc::new(MemoryKeyRing::new()));
    let clock = Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap()));
    start(&store, &keys, &clock).await.unwrap().stop().await;
    // Past the youth of the authority, which would be a reason of its own; each start issues a serving certificate.
    let right = clock.advance(600);
    start(&store, &keys, &clock).await.unwrap().stop().await;

    clock.advance(-121);
    let before = store.head().await.unwrap();
    let refused = start(&store, &keys, &clock).await.unwrap_err().to_string();
    assert!(refused.contains("clock") && refused.contains(&right.to_string()), "{refused}");
    assert_eq!(store.head().await.unwrap(), before, "nothing was recorded");

    clock.advance(1);
    start(&store, &keys, &clock).await.unwrap().stop().await;
    clock.set(right);
    start(&store, &keys, &clock).await.unwrap().stop().await;
}

fn begins(issued: &rhizome_proto::ca::v1::IssuedCertificate) -> i64 {
    issued.not_before.unwrap().seconds
}

#[tokio::test]
async fn a_clock_that_jumps_twenty_years_ahead_and_comes_back_leaves_no_trace() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let right = server.clock.advance(600);
    let years = 20 * 365 * 86_400;
    server.clock.step(years);
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    assert!(begins(&issued) <= right.unix(), "time goes on as before");
    let check = check_of_the_clock(&server).await;
    assert!(!check.ok && check.summary.contains("ahead") && check.remedy.contains("restart"), "{check:?}");

    server.clock.step(-years);
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    assert!(begins(&issued) <= right.unix());
    assert!(check_of_the_clock(&server).await.ok);
    let ahead = right.plus(years).to_string();
    assert!(!server.everything_stored().await.contains(&ahead[..8]), "nothing is from the future");
    server.stop().await;
}

#[tokio::test]
async fn a_jump_ahead_that_lasts_is_believed_and_its_return_too_without_a_restart() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let right = server.clock.advance(600);
    // Within the life of the node's certificate.
    let hours = 6 * 3_600;
    server.clock.step(hours);
    sign(&node.channel, "shop", "web").await.unwrap();
    server.clock.advance(300);
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    assert!(begins(&issued) > right.unix() + 3_600, "it has lasted five minutes");
    assert!(check_of_the_clock(&server).await.ok);

    server.clock.step(-hours);
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    assert!(begins(&issued) <= right.unix() + 300, "and issuing goes on when it is taken back");
    server.recorded(&["clock.believe"]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_ledger_from_the_future_is_overruled_by_the_operator_once() {
    let (store, keys) = (MemoryStore::new(), Arc::new(MemoryKeyRing::new()));
    let clock = Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap()));
    start(&store, &keys, &clock).await.unwrap().stop().await;
    clock.advance(86_400);
    start(&store, &keys, &clock).await.unwrap().stop().await;
    clock.advance(-80_000);
    start(&store, &keys, &clock).await.unwrap_err();
    start_as(&store, &keys, &clock, true).await.unwrap().stop().await;
    start(&store, &keys, &clock).await.unwrap().stop().await;
}
