//! Tests of the slot machine for the keys of JWT-SVIDs.

use rhizome_x509::{JwtKey, SigningAlgorithm};

use super::*;

fn key(id: &str, state: AuthorityState, from: i64, to: i64) -> Stored {
    Stored { kind: AuthorityKind::Jwt, ..stored(id, None, state, from, to) }
}

/// A root, an issuer that has long to live, and these JWT keys, all of them published.
fn jwt_world(keys: Vec<Stored>) -> World {
    let issuer = stored("i1", Some("root"), AuthorityState::Active, START, START + 3_650 * DAY);
    let bundle = keys.iter().map(|it| it.id.clone()).collect();
    World { jwt: true, bundle, ..root_and([vec![issuer], keys].concat()) }
}

#[test]
fn there_is_no_jwt_key_before_there_is_a_bundle_to_publish_it_in() {
    let waiting = stored("root", None, AuthorityState::Prepared, START, START + 900 * DAY);
    let world = World { jwt: true, ..World::new(policy(900, DAY), vec![waiting]) };
    let makes =
        |world: &World| world.step(at(START)).iter().any(|it| matches!(it, Effect::MakeJwtKey { .. }));
    assert!(!makes(&world));
    let mut founded = world;
    founded.settle(at(START));
    let active = founded.active(AuthorityKind::Jwt).unwrap();
    assert_eq!(active.not_after.since(active.not_before) + 1, Ttl::hours(7 * 24).seconds());
}

#[test]
fn jwt_keys_follow_the_thresholds_of_every_other_authority() {
    let world = jwt_world(vec![key("k1", AuthorityState::Active, START, START + 6 * DAY - 1)]);
    let half = prepare_at(at(START), at(START + 6 * DAY - 1));
    assert_eq!(half, at(START + 3 * DAY - 1));
    assert_eq!(world.step(half.minus(1)), [Effect::WakeAt(half)]);
    assert_eq!(world.step(half), [Effect::MakeJwtKey { reason: Reason::SuccessorDue }]);
    let next = key("k2", AuthorityState::Prepared, START + 3 * DAY, START + 9 * DAY);
    let world = jwt_world(vec![key("k1", AuthorityState::Active, START, START + 6 * DAY - 1), next]);
    let sixth = activate_at(at(START), at(START + 6 * DAY - 1));
    assert_eq!(sixth, at(START + 5 * DAY - 1));
    assert_eq!(world.step(sixth.minus(1)), [Effect::WakeAt(sixth)]);
    let activate = Effect::Activate { id: "k2".parse().unwrap(), reason: Reason::ActivationDue };
    assert_eq!(world.step(sixth), [activate]);
}

#[test]
fn a_jwt_key_waits_for_followers_but_not_for_ever() {
    let end = START + 6 * DAY;
    let keys = vec![
        key("k1", AuthorityState::Active, START, end),
        key("k2", AuthorityState::Prepared, START + 3 * DAY, START + 9 * DAY),
    ];
    let mut world = World { silent: true, ..jwt_world(keys) };
    let due = activate_at(at(START), at(end));
    let latest = due.plus(at(end).since(due) / 2);
    assert_eq!(world.step(due), [Effect::WakeAt(latest)]);
    assert!(matches!(world.step(latest).as_slice(), [Effect::Activate { .. }]));
    world.silent = false;
    assert!(matches!(world.step(due).as_slice(), [Effect::Activate { .. }]), "acknowledged: at once");

    let alone = vec![key("k1", AuthorityState::Prepared, START, end)];
    let mut world = World { silent: true, ..jwt_world(alone) };
    let latest = at(START + ACKNOWLEDGE_PATIENCE_SECONDS);
    assert_eq!(world.step(at(START)), [Effect::WakeAt(latest)]);
    assert!(matches!(world.step(latest).as_slice(), [Effect::Activate { .. }]));
    assert!(
        matches!(world.step(at(START - 1)).as_slice(), [Effect::Activate { .. }]),
        "a clock that went back"
    );
    world.silent = false;
    assert!(matches!(world.step(at(START)).as_slice(), [Effect::Activate { .. }]));
}

#[test]
fn a_key_is_known_when_the_slowest_live_follower_has_acknowledged_its_bundle() {
    let public = rhizome_x509::RequestKey::generate(rhizome_x509::KeyAlgorithm::EcdsaP256).unwrap();
    let authority = JwtAuthority {
        id: "jwt-1".parse().unwrap(),
        replica: replica(),
        key: "jwt-1".parse().unwrap(),
        algorithm: SigningAlgorithm::EcdsaP256Sha256,
        jwt_key: JwtKey::new("jwt-1".into(), public.public_key().clone(), at(START + DAY)).unwrap(),
        not_before: at(START),
        published: 7,
        state: AuthorityState::Prepared,
        prepared_at: at(START),
        activated_at: None,
    };
    for (acknowledged, known) in [(None, true), (Some(6), false), (Some(7), true), (Some(8), true)] {
        assert_eq!(Slot::of_jwt(&authority, acknowledged).is_known, known, "{acknowledged:?}");
    }
}

#[test]
fn an_old_jwt_key_is_forgotten_only_when_no_token_of_it_can_be_valid() {
    let end = START + 6 * DAY;
    let mut world = jwt_world(vec![
        key("k1", AuthorityState::Old, START, end),
        key("k2", AuthorityState::Active, START + 5 * DAY, START + 11 * DAY),
    ]);
    assert_eq!(world.step(at(end)), [Effect::WakeAt(at(end + 1))]);
    let forget = Effect::Forget { id: "k1".parse().unwrap(), reason: Reason::Expired };
    assert_eq!(world.step(at(end + 1)), [forget]);
    world.settle(at(end + 1));
    assert_eq!(world.bundle, ["k2".parse().unwrap()]);
}

#[test]
fn a_tainted_jwt_key_never_returns_and_another_takes_its_place() {
    let mut world = jwt_world(vec![
        key("k1", AuthorityState::Tainted, START, START + 6 * DAY),
        key("k2", AuthorityState::Old, START, START + 6 * DAY),
    ]);
    for (id, reason) in [("k1", Reason::NothingActive), ("k2", Reason::NothingActive)] {
        let before = world.clone();
        world.transit(&Effect::Activate { id: id.parse().unwrap(), reason }, at(START + DAY));
        assert_eq!(world, before, "{id}");
    }
    assert_eq!(world.step(at(START + DAY)), [Effect::MakeJwtKey { reason: Reason::NothingActive }]);
    world.settle(at(START + DAY));
    let active = world.active(AuthorityKind::Jwt).unwrap();
    assert!(active.id.as_str() != "k1" && active.id.as_str() != "k2");
}

#[test]
fn jwt_keys_do_not_mind_what_becomes_of_the_root() {
    let mut world = jwt_world(vec![key("k1", AuthorityState::Active, START, START + 6 * DAY)]);
    world.stored[0].state = AuthorityState::Tainted;
    let touched = |effect: &Effect| matches!(effect, Effect::Retire { id, .. } if id.as_str() == "k1");
    assert!(!world.step(at(START + DAY)).iter().any(touched));
    world.settle(at(START + DAY));
    assert_eq!(world.active(AuthorityKind::Jwt).unwrap().id.as_str(), "k1");
}
