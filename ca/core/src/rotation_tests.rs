//! Tests of the rotation machine: single steps, refusals, and gates by kind of subscriber.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rhizome_id::Digest;

use super::evidence::{
    BundleFact, CrossFact, Facts, Held, IssuerFact, Presented, RootFact, Subscriber, SubscriberKind,
};
use super::gate::{Wait, Why};
use super::*;
use crate::limits::{PUBLISHER_ALLOWANCE_SECONDS, ROTATION_SKEW_SECONDS};

const NOW: i64 = 2_000_000_000;

pub(super) fn now() -> Timestamp {
    Timestamp::from_unix(NOW)
}

pub(super) fn later(seconds: i64) -> Timestamp {
    now().plus(seconds)
}

pub(super) fn id(text: &str) -> AuthorityId {
    text.parse().unwrap()
}

pub(super) fn root(active: bool) -> RootFact {
    RootFact { not_after: later(1_000_000), active, tainted: false, cross: None }
}

pub(super) fn ids(names: &[&str]) -> BTreeSet<AuthorityId> {
    names.iter().map(|it| id(it)).collect()
}

/// A world with one root.
pub(super) fn before() -> World {
    let bundle = BundleFact { sequence: 4, digest: Digest::ZERO, anchors: ids(&["old"]), refresh_hint: 300 };
    let issuer = IssuerFact {
        replica: "r1".into(),
        root: id("old"),
        since: now(),
        active: true,
        not_after: later(9_000),
    };
    let facts = Facts {
        roots: [(id("old"), root(true))].into(),
        keys: ids(&["old"]),
        bundle,
        issuers: vec![issuer],
        canary: None,
        restored: None,
        unreadable: 0,
    };
    World { facts, subscribers: Vec::new(), probes: Vec::new() }
}

/// A world with both roots, bridged, and both in bundle 5.
pub(super) fn both() -> World {
    let mut world = before();
    let cross = |by| Some(CrossFact { by: id(by), not_after: later(900_000), carried: false });
    world.facts.roots.insert(id("new"), RootFact { cross: cross("old"), ..root(false) });
    world.facts.roots.get_mut(&id("old")).unwrap().cross = cross("new");
    world.facts.keys = ids(&["old", "new"]);
    world.facts.bundle.sequence = 5;
    world.facts.bundle.anchors = ids(&["old", "new"]);
    world
}

pub(super) fn start(mode: Mode, choices: Choices) -> Order {
    Order::Start {
        name: "rotation-1".parse().unwrap(),
        new: id("new"),
        mode,
        choices,
        reason: "yearly".into(),
    }
}

pub(super) fn ordered(rotation: Option<&Rotation>, order: Order, world: &World) -> Result<Step, Refusal> {
    let seen = rotation.map(|it| (&it.name, it.version));
    step(rotation, Input::Command { by: "admin:alice", seen, order, world }, now())
}

pub(super) fn looked(rotation: &Rotation, world: &World) -> Step {
    step(Some(rotation), Input::Look(world), now()).unwrap()
}

/// The loss that `advance` asks about.
pub(super) fn asked(rotation: &Rotation, world: &World) -> gate::Loss {
    match ordered(Some(rotation), Order::Advance { accept: None }, world) {
        Err(Refusal::NeedsConsent { loss }) => *loss,
        other => panic!("nobody was asked: {other:?}"),
    }
}

pub(super) fn begun(mode: Mode) -> Rotation {
    let choices = Choices { settle_seconds: 0, ..Choices::default() };
    *ordered(None, start(mode, choices), &before()).unwrap().moved.unwrap()
}

pub(super) fn in_phase(phase: Phase, mode: Mode) -> Rotation {
    let published = Some(Published { sequence: 5, digest: Digest::ZERO, at: now().minus(10) });
    Rotation { phase, published, self_test: Some(SelfTest::Passed), ..begun(mode) }
}

pub(super) fn subscriber(name: &str, kind: SubscriberKind) -> Subscriber {
    Subscriber {
        name: name.into(),
        kind,
        cluster: "prod".into(),
        holds: None,
        presents: Vec::new(),
        until: Some(later(3_600)),
        last_contact: Some(now().minus(50)),
        connected: true,
        behind: Vec::new(),
        workloads: 2,
    }
}

pub(super) fn held(sequence: u64, age: i64) -> Option<Held> {
    Some(Held { sequence, digest: Some(Digest::ZERO), at: now().minus(age) })
}

pub(super) fn gate_with(rotation: &Rotation, subscribers: Vec<Subscriber>) -> Gate {
    gate::of(rotation, &World { subscribers, ..both() }, now())
}

#[test]
fn a_rotation_starts_from_the_active_root_and_remembers_the_bundle() {
    let rotation = begun(Mode::Planned);
    assert_eq!((rotation.phase, &rotation.old, &rotation.new), (Phase::Staged, &id("old"), &id("new")));
    assert_eq!(rotation.before, ids(&["old"]));
    let again = ordered(Some(&rotation), start(Mode::Planned, Choices::default()), &before()).unwrap();
    assert_eq!(again, Step::default(), "starting the same one twice changes nothing");
    let other = Order::Start {
        name: "rotation-2".parse().unwrap(),
        new: id("newer"),
        mode: Mode::Planned,
        choices: Choices::default(),
        reason: String::new(),
    };
    let refused = ordered(Some(&rotation), other, &before()).unwrap_err();
    assert_eq!(refused.code(), "rotation_in_progress");
}

#[test]
fn nonsense_is_refused_with_what_is_wrong() {
    let with = |choices| ordered(None, start(Mode::Planned, choices), &before()).unwrap_err().to_string();
    assert_eq!(with(Choices { soak_seconds: -1, ..Choices::default() }), "a duration is negative");
    assert!(with(Choices { renewals_per_second: 0, ..Choices::default() }).contains("renewal a second"));
    let canary = Canary { share: canary::Share::Percent(100), window_seconds: 1 };
    assert!(with(Choices { canary: Some(canary), ..Choices::default() }).contains("1 to 99"));
    let canary = Some(Canary { share: canary::Share::Percent(5), window_seconds: 1 });
    let mut ended = before();
    ended.facts.roots.get_mut(&id("old")).unwrap().not_after = now().minus(2 * ROTATION_SKEW_SECONDS);
    let refused = ordered(None, start(Mode::Expired, Choices { canary, ..Choices::default() }), &ended);
    assert!(refused.unwrap_err().to_string().contains("nothing is left"));
    let expired = ordered(None, start(Mode::Expired, Choices::default()), &before()).unwrap_err();
    assert_eq!(expired.code(), "rotation_root_not_expired");
    let mut world = before();
    world.facts.roots.get_mut(&id("old")).unwrap().not_after = now().minus(1);
    let refused = ordered(None, start(Mode::Planned, Choices::default()), &world).unwrap_err();
    assert_eq!(refused.code(), "rotation_root_expired");
    world.facts.roots.clear();
    assert_eq!(ordered(None, start(Mode::Planned, Choices::default()), &world).unwrap_err(), Refusal::NoRoot);
    assert_eq!(ordered(None, Order::Abort, &before()).unwrap_err(), Refusal::NoneUnderWay);
}

#[test]
fn commands_name_the_version_they_have_seen() {
    let rotation = begun(Mode::Planned);
    let world = before();
    let stale = Input::Command {
        by: "admin:bob",
        seen: Some((&rotation.name, rotation.version + 1)),
        order: Order::Abort,
        world: &world,
    };
    assert_eq!(step(Some(&rotation), stale, now()).unwrap_err().code(), "rotation_changed");
    let fresh = Input::Command {
        by: "admin:bob",
        seen: Some((&rotation.name, rotation.version)),
        order: Order::Abort,
        world: &world,
    };
    let aborted = step(Some(&rotation), fresh, now()).unwrap().moved.unwrap();
    for order in [Order::Abort, Order::Advance { accept: None }] {
        let blind = Input::Command { by: "admin:bob", seen: None, order, world: &world };
        let refused = step(Some(&rotation), blind, now()).unwrap_err();
        assert_eq!(refused.code(), "rotation_changed", "whoever saw none advances none");
    }
    assert_eq!((aborted.phase, aborted.heading), (Phase::Staged, Heading::Back));
    assert_eq!(
        ordered(Some(&aborted), Order::Abort, &world).unwrap(),
        Step::default(),
        "twice changes nothing"
    );
}

#[test]
fn a_failed_self_test_keeps_the_root_from_everybody_until_it_is_tried_again() {
    let world = both();
    let staged = Rotation { self_test: None, ..begun(Mode::Planned) };
    let effect = step(Some(&staged), Input::Look(&world), now()).unwrap().effects;
    assert!(matches!(effect.as_slice(), [Effect::SelfTest { .. }]), "{effect:?}");
    let verdict = SelfTest::Failed { cause: "the signature is wrong".into() };
    let input = Input::SelfTested { rotation: &staged.name, verdict };
    let failed = step(Some(&staged), input, now()).unwrap().moved.unwrap();
    let look = step(Some(&failed), Input::Look(&world), now()).unwrap();
    assert_eq!((look.moved, look.effects), (None, Vec::new()));
    let gate = gate::of(&failed, &world, now());
    assert!(matches!(gate.waits.as_slice(), [Wait::SelfTest { failure: Some(_) }]));
    let retried = ordered(Some(&failed), Order::Advance { accept: None }, &world).unwrap().moved.unwrap();
    assert_eq!(retried.self_test, None);
}

#[test]
fn each_kind_of_subscriber_has_its_own_evidence() {
    let rotation = in_phase(Phase::Distributing, Mode::Planned);
    let blocks = |it: Subscriber| !gate_with(&rotation, vec![it]).is_open();
    let with = |kind, holds| Subscriber { holds, ..subscriber("it", kind) };
    for kind in [SubscriberKind::Agent, SubscriberKind::OneShot, SubscriberKind::Subordinate] {
        assert!(blocks(with(kind, None)), "{kind}: nothing is known");
        assert!(blocks(with(kind, held(4, 1))), "{kind}: the bundle before");
        assert!(blocks(with(kind, held(6, 1))), "{kind}: one that this store does not know");
        assert!(!blocks(with(kind, held(5, 1))), "{kind}");
    }
    let other = Held { digest: Some(Digest::from_bytes([9; 32])), ..held(5, 1).unwrap() };
    assert!(blocks(with(SubscriberKind::Agent, Some(other))), "the same sequence with another content");
    let subordinate = with(SubscriberKind::Subordinate, held(5, 1));
    let behind = Subscriber { behind: vec!["agent:far/1".into()], ..subordinate };
    let gate = gate_with(&rotation, vec![behind.clone()]);
    assert!(gate.blockers[0].to_string().contains("behind: agent:far/1"), "{}", gate.blockers[0]);
    let allowance = PUBLISHER_ALLOWANCE_SECONDS + ROTATION_SKEW_SECONDS;
    assert!(blocks(with(SubscriberKind::Publisher, held(5, allowance - 1))));
    assert!(!blocks(with(SubscriberKind::Publisher, held(5, allowance))));
    let patience = 3 * 300 + ROTATION_SKEW_SECONDS;
    let published = |age| Some(Published { sequence: 5, digest: Digest::ZERO, at: now().minus(age) });
    let federated = |age| {
        let rotation = Rotation { published: published(age), ..rotation.clone() };
        let it = Subscriber { until: None, ..with(SubscriberKind::Federated, None) };
        gate_with(&rotation, vec![it]).is_open()
    };
    assert!(!federated(patience - 1) && federated(patience));
}

#[test]
fn whoever_is_unknown_or_offline_blocks_until_it_acknowledges_expires_or_is_exempted() {
    let rotation = in_phase(Phase::Distributing, Mode::Planned);
    let offline =
        Subscriber { connected: false, holds: held(4, 5_000), ..subscriber("node:a", SubscriberKind::Agent) };
    let gate = gate_with(&rotation, vec![offline.clone()]);
    let blocker = &gate.blockers[0];
    assert_eq!(blocker.until, Some(later(3_600 + ROTATION_SKEW_SECONDS)), "when it stops mattering");
    assert_eq!(blocker.last_contact, Some(now().minus(50)));
    let text = "node:a has bundle 4, not yet 5, last heard of at 2033-05-18T03:32:30Z, matters until";
    assert!(blocker.to_string().starts_with(text), "{blocker}");
    let expired = Subscriber { until: Some(now().minus(ROTATION_SKEW_SECONDS + 1)), ..offline.clone() };
    assert!(gate_with(&rotation, vec![expired]).is_open());

    let world = World { subscribers: vec![offline], ..both() };
    let exemption = Exemption {
        subscriber: "node:a".into(),
        reason: "in repair".into(),
        approver: "admin:alice".into(),
        expires_at: later(60),
    };
    let exempted = ordered(Some(&rotation), Order::Exempt(exemption.clone()), &world).unwrap().moved.unwrap();
    let gate = gate::of(&exempted, &world, now());
    assert!(gate.is_open() && gate.exempted == ["node:a"]);
    let left = looked(&exempted, &world).moved.unwrap().last.unwrap();
    assert_eq!((left.exempted.count, left.exempted.first.as_slice()), (1, ["node:a".to_owned()].as_slice()));
    assert!(!gate::of(&exempted, &world, later(61)).is_open(), "an exemption ends");
    let again = ordered(Some(&exempted), Order::Exempt(exemption.clone()), &world).unwrap();
    assert_eq!(again, Step::default(), "twice changes nothing");
    for bad in [
        Exemption { reason: " ".into(), ..exemption.clone() },
        Exemption { reason: "two\nlines".into(), ..exemption.clone() },
        Exemption { expires_at: now(), ..exemption.clone() },
        Exemption { subscriber: "node:b".into(), ..exemption },
    ] {
        let refused = ordered(Some(&rotation), Order::Exempt(bad), &world).unwrap_err();
        assert_eq!(refused.code(), "rotation_bad_exemption");
    }
}

#[test]
fn active_waits_for_the_last_certificate_and_the_last_issuer_of_the_old_root() {
    let rotation = in_phase(Phase::Active, Mode::Planned);
    let mut world = both();
    world.facts.roots.get_mut(&id("old")).unwrap().active = false;
    let new = world.facts.roots.get_mut(&id("new")).unwrap();
    new.active = true;
    new.cross.as_mut().unwrap().carried = true;
    let presents = Presented { root: id("old"), count: 3, until: later(600) };
    let agent = Subscriber {
        holds: held(5, 1),
        presents: vec![presents],
        ..subscriber("node:a", SubscriberKind::Agent)
    };
    world.subscribers = vec![agent];
    let gate = gate::of(&rotation, &world, now());
    let why: Vec<&Why> = gate.blockers.iter().map(|it| &it.why).collect();
    assert!(why.contains(&&Why::Presents { count: 3, root: id("old") }), "{why:?}");
    assert!(why.contains(&&Why::Signs { root: id("old") }), "{why:?}");
    assert_eq!(gate::who_depends_on(&id("old"), &world, now()).count(), 1);
    let effects = step(Some(&rotation), Input::Look(&world), now()).unwrap().effects;
    assert!(matches!(effects.first(), Some(Effect::OrderRenewals { .. })), "{effects:?}");
    world.subscribers[0].presents.clear();
    world.facts.issuers[0].root = id("new");
    let moved = step(Some(&rotation), Input::Look(&world), now()).unwrap().moved.unwrap();
    assert_eq!((moved.phase, moved.published), (Phase::Untrusting, None));
    assert_eq!(moved.last.unwrap().count, 1);
}

#[test]
fn a_rotation_by_hand_leaves_a_phase_only_at_a_word() {
    let rotation = in_phase(Phase::Distributing, Mode::Planned);
    let choices = Choices { manual: true, ..rotation.choices.clone() };
    let rotation = Rotation { choices, ..rotation };
    let world = both();
    assert_eq!(step(Some(&rotation), Input::Look(&world), now()).unwrap().moved, None);
    let moved = ordered(Some(&rotation), Order::Advance { accept: None }, &world).unwrap().moved.unwrap();
    assert_eq!((moved.phase, moved.last.unwrap().by.as_str()), (Phase::Active, "admin:alice"));
    let blocked = World { subscribers: vec![subscriber("node:a", SubscriberKind::Agent)], ..world };
    let refused = ordered(Some(&rotation), Order::Advance { accept: None }, &blocked).unwrap_err();
    assert!(refused.to_string().contains("node:a has not acknowledged bundle 5"), "{refused}");
}

#[test]
fn a_compromised_root_goes_at_the_price_of_those_that_were_named() {
    let rotation = in_phase(Phase::Active, Mode::Compromised);
    let mut world = both();
    world.facts.roots.get_mut(&id("old")).unwrap().active = false;
    let new = world.facts.roots.get_mut(&id("new")).unwrap();
    new.active = true;
    new.cross.as_mut().unwrap().carried = true;
    world.facts.issuers[0].root = id("new");
    let presents = vec![Presented { root: id("old"), count: 3, until: later(600) }];
    let away = Subscriber { connected: false, presents, ..subscriber("node:away", SubscriberKind::Agent) };
    world.subscribers = vec![away];
    let advance = |accept: Option<Digest>| {
        let accept = accept.map(Consent::to);
        ordered(Some(&rotation), Order::Advance { accept }, &world)
    };
    let loss = asked(&rotation, &world);
    assert_eq!((loss.workloads, loss.subscribers.as_slice()), (2, ["node:away".to_owned()].as_slice()));
    assert!(advance(Some(Digest::ZERO)).is_err(), "another loss than the one named");
    let moved = advance(Some(loss.digest)).unwrap().moved.unwrap();
    assert_eq!(moved.phase, Phase::Untrusting);
    let accepted = moved.accepted.clone().unwrap();
    assert_eq!((accepted.digest, accepted.count, accepted.workloads), (loss.digest, 1, 2));
    assert_eq!(moved.last.clone().unwrap().accepted, Some(accepted));
    let untrusting = Rotation { published: rotation.published, ..(*moved).clone() };
    assert!(gate::of(&untrusting, &world, now()).is_open(), "whoever is away is not waited for");
    assert_eq!(ordered(Some(&moved), Order::Abort, &world).unwrap_err().code(), "rotation_tainted");
    assert_eq!(ordered(Some(&rotation), Order::Abort, &world).unwrap_err().code(), "rotation_tainted");
}

#[test]
fn an_expired_root_is_left_behind_without_waiting_for_anybody() {
    let mut world = before();
    let clocks = ROTATION_SKEW_SECONDS;
    world.facts.roots.get_mut(&id("old")).unwrap().not_after = now().minus(clocks);
    let refused = ordered(None, start(Mode::Expired, Choices::default()), &world).unwrap_err();
    assert_eq!(refused.code(), "rotation_root_not_expired", "for somebody's clock it is still valid");
    world.facts.roots.get_mut(&id("old")).unwrap().not_after = now().minus(clocks + 1);
    let rotation = *ordered(None, start(Mode::Expired, Choices::default()), &world).unwrap().moved.unwrap();
    world.facts.roots.insert(id("new"), root(false));
    world.facts.keys.insert(id("new"));
    let effects = step(Some(&rotation), Input::Look(&world), now()).unwrap().effects;
    assert!(
        matches!(effects.as_slice(), [Effect::SelfTest { .. }]),
        "no bridge to what has expired: {effects:?}"
    );
    let distributing = Rotation { phase: Phase::Distributing, ..rotation };
    let effects = step(Some(&distributing), Input::Look(&world), now()).unwrap().effects;
    let [Effect::Publish { with, without, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((with, without), (&ids(&["new"]), &ids(&["old"])), "an expired anchor is in no bundle");
    assert_eq!(
        ordered(Some(&distributing), Order::Abort, &world).unwrap_err().code(),
        "rotation_irreversible"
    );
}

#[test]
fn a_dead_key_that_comes_back_late_is_destroyed_again() {
    let ended = Rotation { phase: Phase::Stable, outcome: Some(Outcome::Aborted), ..begun(Mode::Planned) };
    let mut world = before();
    assert_eq!(step(Some(&ended), Input::Look(&world), now()).unwrap(), Step::default());
    world.facts.keys.insert(id("new"));
    let effects = step(Some(&ended), Input::Look(&world), now()).unwrap().effects;
    assert!(matches!(effects.as_slice(), [Effect::DestroyKey { .. }]));
}

#[test]
fn the_plan_says_who_is_there_who_is_away_and_how_long_it_takes() {
    let mut world = before();
    let away = Subscriber { connected: false, ..subscriber("node:away", SubscriberKind::Agent) };
    world.subscribers = vec![
        subscriber("node:a", SubscriberKind::Agent),
        away,
        subscriber("client:1", SubscriberKind::OneShot),
    ];
    let choices = Choices { soak_seconds: 100, settle_seconds: 10, window_seconds: 60, ..Choices::default() };
    let plan = plan::plan(&world, Mode::Planned, &choices, "server:r1", now());
    assert_eq!(plan.subscribers[&("prod".to_owned(), SubscriberKind::Agent)], 2);
    assert_eq!((plan.renewals, plan.renewals_per_second, plan.seconds), (6, 1, 170));
    assert_eq!(plan.absent.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["node:away"]);
    assert_eq!(plan.latest, Some(later(3_600 + ROTATION_SKEW_SECONDS)));
    assert!(
        plan::is_close_to_its_end(later(299), 100, now())
            && !plan::is_close_to_its_end(later(300), 100, now())
    );
}

#[test]
fn a_stored_record_reads_back_and_ignores_fields_of_a_newer_schema() {
    let rotation = in_phase(Phase::Active, Mode::Planned);
    let json = serde_json::to_string(&rotation).unwrap();
    assert_eq!(serde_json::from_str::<Rotation>(&json).unwrap(), rotation);
    let newer = json.replacen('{', r#"{"from_schema_n_plus_1":[1],"#, 1);
    assert_eq!(serde_json::from_str::<Rotation>(&newer).unwrap(), rotation);
}

proptest! {
    /// A gate only ever opens by more evidence: what one more acknowledgement shuts would be a gate on hearsay.
    #[test]
    fn more_evidence_never_shuts_a_gate(held_now in 0u64..7, held_later in 5u64..6, presents: bool, connected: bool) {
        for phase in Phase::ALL {
            let rotation = in_phase(phase, Mode::Planned);
            let presented = Presented { root: id("old"), count: 1, until: later(60) };
            let with = |sequence, presents: bool| Subscriber {
                holds: held(sequence, 1),
                presents: presents.then(|| presented.clone()).into_iter().collect(),
                connected,
                ..subscriber("node:a", SubscriberKind::Agent)
            };
            let less = gate_with(&rotation, vec![with(held_now, presents)]);
            let more = gate_with(&rotation, vec![with(held_later, false)]);
            prop_assert!(!less.is_open() || more.is_open(), "{phase}");
            prop_assert!(more.blockers.len() <= less.blockers.len());
        }
    }

    /// A step is a function: asked twice it says the same, and it never both moves and acts.
    #[test]
    fn a_step_either_moves_or_acts_and_always_says_the_same(
        phase in proptest::sample::select(Phase::ALL.to_vec()), back: bool, staged: bool, published: bool, carried: bool,
    ) {
        let mut world = if staged { both() } else { before() };
        if let Some(new) = world.facts.roots.get_mut(&id("new")) {
            new.cross.as_mut().unwrap().carried = carried;
        }
        let rotation = in_phase(phase, Mode::Planned);
        let heading = if back { Heading::Back } else { Heading::Forward };
        let rotation = Rotation { heading, published: rotation.published.filter(|_| published), ..rotation };
        let first = step(Some(&rotation), Input::Look(&world), now()).unwrap();
        prop_assert_eq!(&first, &step(Some(&rotation), Input::Look(&world), now()).unwrap());
        prop_assert!(first.moved.is_none() || first.effects.is_empty());
        if let Some(moved) = first.moved {
            prop_assert_eq!(moved.version, rotation.version + 1);
        }
    }
}
