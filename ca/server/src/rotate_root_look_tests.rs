//! Tests of when the change of the root is looked at, where nothing runs but what the test calls.

use rhizome_core::clock::ManualClock;
use rhizome_core::documents::Transaction;
use rhizome_core::ports::{Clock as _, Store as _};
use rhizome_core::rotation::{Choices, Heading, Mode, Order, Restore};
use rhizome_keys::MemoryKeyRing;
use rhizome_store::{FaultyStore, MemoryStore, Moment};

use super::*;
use crate::settings::{Ports, Settings};
use crate::spawn::Spawner;
use crate::system::SystemEntropy;

/// What outlives an authority's process.
struct World {
    clock: Arc<ManualClock>,
    store: Arc<FaultyStore<MemoryStore>>,
    ring: Arc<MemoryKeyRing>,
}

impl World {
    fn new() -> Self {
        Self {
            clock: Arc::new(ManualClock::new("2026-03-01T12:00:00Z".parse().unwrap())),
            store: Arc::new(FaultyStore::new(MemoryStore::new())),
            ring: Arc::default(),
        }
    }

    /// An authority that is founded and left alone.
    async fn authority(&self) -> Arc<Ca> {
        let (domain, replica) = ("example.test".parse().unwrap(), "r1".parse().unwrap());
        let settings =
            Settings { workers: 1, ..Settings::new(domain, replica, "127.0.0.1:0".parse().unwrap()) };
        let ports = Ports {
            store: Arc::<FaultyStore<MemoryStore>>::clone(&self.store),
            keys: Arc::<MemoryKeyRing>::clone(&self.ring),
            clock: Arc::<ManualClock>::clone(&self.clock),
            entropy: Arc::new(SystemEntropy::default()),
        };
        let (ca, _refusals) = Ca::load(settings, ports, Spawner::default()).await.unwrap();
        ca.found().await.unwrap();
        ca
    }
}

async fn start(ca: &Arc<Ca>, choices: Choices) -> Arc<Rotation> {
    let (name, new) = ("rotation-1".parse().unwrap(), "root-2".parse().unwrap());
    let order = Order::Start { name, new, mode: Mode::Planned, choices, reason: "yearly".into() };
    ca.command_root("admin:ann", "", None, order).await.unwrap().unwrap()
}

fn manual() -> Choices {
    Choices { manual: true, ..Choices::default() }
}

/// It waits for a word that nobody has said, with both roots distributed.
async fn distribute(ca: &Arc<Ca>) -> Arc<Rotation> {
    let staged = start(ca, manual()).await;
    let order = Order::Advance { accept: None };
    ca.command_root("admin:ann", "", Some((&staged.name, staged.version)), order).await.unwrap().unwrap()
}

fn unreadable() -> StoreError {
    StoreError::Unavailable { cause: "the disk is slow".to_owned(), retry_after: Duration::from_secs(1) }
}

fn phase(ca: &Ca) -> Phase {
    ca.state().rotation().unwrap().value.phase
}

#[tokio::test]
async fn a_start_in_mid_rotation_waits_for_no_ledger_and_no_phase_is_left_before_it_is_read() {
    let world = World::new();
    let held = distribute(&world.authority().await).await;
    assert_eq!(held.phase, Phase::Distributing);

    world.store.fail_pages(Some(unreadable()));
    let ca = world.authority().await;
    ca.prepare_root().await.unwrap();
    assert!(matches!(ca.keep_root().await, Err(ApiError::Store(StoreError::Unavailable { .. }))));
    let advance = || {
        ca.command_root("admin:ann", "", Some((&held.name, held.version)), Order::Advance { accept: None })
    };
    assert!(matches!(advance().await, Err(ApiError::Store(StoreError::Unavailable { .. }))));
    assert_eq!(phase(&ca), Phase::Distributing, "nobody is done whom nobody knows");

    world.store.fail_pages(None);
    advance().await.unwrap();
    assert_eq!(phase(&ca), Phase::Active);
}

#[tokio::test]
async fn a_restored_server_carries_its_bridge_before_it_issues_though_its_ledger_is_unread() {
    let world = World::new();
    let held = distribute(&world.authority().await).await;
    let carried = |ca: &Ca| {
        let root = ca.state().authorities().get(&held.old).cloned().unwrap();
        root.value.cross.as_ref().unwrap().carried
    };
    let restore = Restore { restored_at: world.clock.now() };
    world.store.commit(Transaction::named("restore").put(&restore)).await.unwrap();

    world.store.fail_pages(Some(unreadable()));
    let ca = world.authority().await;
    assert!(!carried(&ca));
    // The first attempt comes to nothing: the start waits for the next.
    world.store.fail_commit(1, Moment::Before);
    ca.prepare_root().await.unwrap();
    assert!(carried(&ca));
    assert!(ca.state().rotation().unwrap().value.rewound);

    world.store.fail_pages(None);
    ca.keep_root().await.unwrap();
    let gate = ca.root_reading(ca.state().rotation().map(|it| Arc::clone(&it.value)), world.clock.now());
    let gate = gate.await.unwrap().gate.clone().unwrap();
    assert!(gate.waits.iter().any(|it| it.to_string().contains("restored ledger does not know")), "{gate:?}");
}

#[tokio::test]
async fn whoever_asks_within_a_second_is_shown_one_reading_and_after_a_command_another() {
    let world = World::new();
    let ca = world.authority().await;
    let held = distribute(&ca).await;
    let shown = |rotation: Arc<Rotation>| ca.root_reading(Some(rotation), world.clock.now());
    let mut one = shown(Arc::clone(&held)).await.unwrap();
    // The second may pass between two calls, but hardly between each of many.
    let mut shared = 0;
    for _ in 0..1_000 {
        let next = shown(Arc::clone(&held)).await.unwrap();
        shared += u32::from(Arc::ptr_eq(&one, &next));
        one = next;
    }
    assert!(shared > 0);
    let order = Order::Advance { accept: None };
    let next =
        ca.command_root("admin:ann", "", Some((&held.name, held.version)), order).await.unwrap().unwrap();
    let other = shown(next).await.unwrap();
    assert!(!Arc::ptr_eq(&one, &other));
    world.clock.advance(2);
    let later = shown(Arc::clone(&ca.state().rotation().unwrap().value)).await.unwrap();
    assert!(!Arc::ptr_eq(&other, &later), "what depends on the time is not older than the time");
}

#[tokio::test]
async fn gauges_tell_of_nobody_once_the_change_has_ended() {
    let world = World::new();
    let ca = world.authority().await;
    let issuer = Arc::clone(ca.state().issuer().unwrap());
    let _serving = ca.own_leaf(&issuer, None).await.unwrap();
    let held = start(&ca, Choices { settle_seconds: 0, ..Choices::default() }).await;
    assert_eq!(held.phase, Phase::Active);
    let blockers = || {
        let gauge = |kind: &SubscriberKind| {
            ca.metrics.rotation.blockers.get_or_create(&ByKind { kind: kind.as_str() }).get()
        };
        SubscriberKind::ALL.iter().map(gauge).sum::<i64>()
    };
    let text = || ca.metrics.render();
    assert_eq!(blockers(), 1, "this server presents a certificate below the old root");
    assert!(text().contains("bundle_ack_ratio{cluster=\"\"} 0"), "{}", text());

    let seen = ca.state().rotation().map(|it| Arc::clone(&it.value)).unwrap();
    ca.command_root("admin:ann", "", Some((&seen.name, seen.version)), Order::Abort).await.unwrap();
    let ended = ca.state().rotation().map(|it| Arc::clone(&it.value)).unwrap();
    assert_eq!((ended.phase, ended.heading), (Phase::Stable, Heading::Back));
    assert_eq!(blockers(), 0);
    assert!(!text().contains("bundle_ack_ratio{"), "{}", text());
}
