//! Tests of probes: who is said to have refused whom, and how long a failure stands.

use rhizome_core::rotation::{Canary, Choices, Order, Outcome, SelfTest, canary};
use rhizome_keys::MemoryKeyRing;
use rhizome_store::MemoryStore;

use super::*;
use crate::{Ports, Running, Settings, SystemClock, SystemEntropy};

async fn server() -> Running {
    let (domain, replica) = ("example.test".parse().unwrap(), "r1".parse().unwrap());
    let settings = Settings { workers: 1, ..Settings::new(domain, replica, "127.0.0.1:0".parse().unwrap()) };
    let ports = Ports {
        store: Arc::new(MemoryStore::new()),
        keys: Arc::new(MemoryKeyRing::new()),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy::default()),
    };
    crate::start(settings, ports).await.unwrap()
}

async fn shown(server: &Running) -> (Shown, Arc<TrustAnchors>) {
    let state = server.ca().state();
    let name: RequestId = format!("{PROBE}1").parse().unwrap();
    let leaf = server.ca().own_leaf(state.issuer().unwrap(), Some(&name)).await.unwrap();
    assert!(is_probe(leaf.0.issuance()), "nobody presents it");
    (Shown::of(leaf), Arc::clone(&state.bundle().unwrap().value.anchors))
}

#[tokio::test]
async fn a_probe_names_the_direction_that_failed() {
    let (one, other) = (server().await, server().await);
    let ((new, trusts_new), (old, trusts_old)) = (shown(&one).await, shown(&other).await);
    let now = one.ca().now().unwrap();
    let failures = |below_new, below_old, holders: &[(&str, Arc<TrustAnchors>)]| {
        let round = judge(below_new, below_old, holders, now).unwrap();
        round.into_iter().map(|it| (it.direction, it.failure)).collect::<Vec<_>>()
    };
    // Both below the one root that is trusted: nothing fails.
    let one_root = [("both roots", Arc::clone(&trusts_new)), ("the old root alone", Arc::clone(&trusts_new))];
    let well = failures(&new, &new, &one_root);
    assert_eq!(well, [(Direction::NewToOld, None), (Direction::OldToNew, None)]);

    // Two trust domains' roots of one name: whoever holds the one refuses what is below the other.
    let found = failures(&new, &old, &[("both roots", Arc::clone(&trusts_old))]);
    assert!(found[0].1.as_ref().unwrap().contains("a holder of both roots, as a"), "{found:?}");
    assert_eq!(found[1].1, None, "who holds the old root accepts what is below it: {found:?}");
    let found = failures(&new, &old, &[("both roots", Arc::clone(&trusts_new))]);
    assert_eq!(found[0].1, None, "{found:?}");
    assert!(found[1].1.as_ref().unwrap().contains("a holder of both roots, as a"), "{found:?}");
    one.stop().await;
    other.stop().await;
}

fn rotation(since: i64) -> Rotation {
    let share = canary::Share::Percent(5);
    let choices = Choices { canary: Some(Canary { share, window_seconds: 60 }), ..Choices::default() };
    let at = Timestamp::from_unix(since);
    let text = serde_json::json!({
        "name": "rotation-1", "version": 1, "mode": "planned", "phase": "canary", "heading": "forward", "old": "old",
        "new": "new", "choices": choices, "started_by": "admin:alice", "started_at": at, "since": at, "before": ["old"],
        "self_test": SelfTest::Passed, "exemptions": [], "rewound": false,
    });
    serde_json::from_value(text).unwrap()
}

#[test]
fn probes_are_of_one_phase_and_a_failure_stands_until_the_same_direction_succeeds() {
    let (probes, now) = (Probes::default(), Timestamp::from_unix(1_000));
    let probe =
        |direction, failure: Option<&str>| Probe { direction, at: now, failure: failure.map(Into::into) };
    let first = rotation(900);
    assert!(probes.is_due(&first, now));
    assert!(
        !probes.is_due(&first, now.plus(EVERY_SECONDS - 1)) && probes.is_due(&first, now.plus(EVERY_SECONDS))
    );
    probes.note(vec![probe(Direction::NewToOld, Some("unknown issuer")), probe(Direction::OldToNew, None)]);
    let fails = |rotation| probes.of(rotation).iter().filter(|it| it.failure.is_some()).count();
    probes.note(vec![probe(Direction::OldToNew, None)]);
    assert_eq!((fails(&first), probes.of(&first).len()), (1, 3));
    probes.note(vec![probe(Direction::NewToOld, None)]);
    assert_eq!((fails(&first), probes.of(&first).len()), (0, 3));
    let later = rotation(950);
    assert_eq!(probes.of(&later), [], "of another phase nothing is known");
    assert!(probes.is_due(&later, now), "and it is looked at once");
    assert_eq!(probes.of(&first), []);
}

#[tokio::test]
async fn a_probe_that_fails_takes_the_rotation_back_by_itself_and_the_ledger_says_why() {
    let server = server().await;
    let ca = server.ca();
    let before = ca.state().bundle().unwrap().value.bundle.to_der();
    let share = canary::Share::Namespaces(["shop".to_owned()].into());
    let canary = Some(Canary { share, window_seconds: 3_600 });
    let choices = Choices { canary, settle_seconds: 0, ..Choices::default() };
    let (name, new) = ("rotation-1".parse().unwrap(), "root-1".parse().unwrap());
    ca.command_root(
        "admin:alice",
        "a new root",
        None,
        Order::Start { name, new, mode: Mode::Planned, choices, reason: "a new root".into() },
    )
    .await
    .unwrap();
    let mut changes = ca.changes();
    let mut until = async |wanted: &dyn Fn(&Rotation) -> bool| {
        while !ca.state().rotation().is_some_and(|it| wanted(&it.value)) {
            changes.changed().await.unwrap();
        }
    };
    let patience = std::time::Duration::from_secs(60);
    until(&|it| it.phase == Phase::Canary).await;
    while ca.state().rotation().is_none_or(|it| ca.root.probes.of(&it.value).is_empty()) {
        ca.keep_root().await.unwrap();
    }
    let canary = ca.state().canary().cloned().unwrap();
    assert!(canary.takes(&"spiffe://example.test/ns/shop/sa/web".parse().unwrap()));

    let (at, failure) = (ca.now().unwrap(), Some("no live anchor".to_owned()));
    ca.root.probes.note(vec![Probe { direction: Direction::NewToOld, at, failure }]);
    ca.keep_root().await.unwrap();
    assert!(ca.state().canary().is_none(), "the share is issued below the old root again");
    let ended = until(&|it| it.outcome == Some(Outcome::Aborted));
    tokio::time::timeout(patience, ended).await.unwrap();
    assert_eq!(ca.state().bundle().unwrap().value.bundle.to_der(), before, "trust is what it was");
    let records = ca.ports.store.records(rhizome_core::ledger::Position(1), 1_000).await.unwrap();
    let why = records.iter().find(|it| it.body.contains("canary -> distributing")).unwrap();
    assert!(why.body.contains("no live anchor"), "{}", why.body);
    server.stop().await;
}
