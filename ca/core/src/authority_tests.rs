//! Tests of the slot machine: a simulated year, crashes between effects, and single steps.

use proptest::prelude::*;

use super::*;

#[path = "authority_jwt_tests.rs"]
mod jwt;

const DAY: i64 = 86_400;
const START: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(seconds)
}

fn policy(root_days: i64, issuer_seconds: i64) -> RotationPolicy {
    RotationPolicy {
        root_ttl: Ttl::from_seconds(root_days * DAY).unwrap(),
        issuer_ttl: Ttl::from_seconds(issuer_seconds).unwrap(),
        jwt_key_ttl: Ttl::hours(7 * 24),
        first_root: FirstRoot::Make,
        jwt_keys: true,
    }
}

fn replica() -> ReplicaName {
    "r1".parse().unwrap()
}

/// What a slot borrows from: an authority without its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    id: AuthorityId,
    kind: AuthorityKind,
    replica: ReplicaName,
    issuer: Option<AuthorityId>,
    state: AuthorityState,
    not_before: Timestamp,
    not_after: Timestamp,
    prepared_at: Timestamp,
    activated_at: Option<Timestamp>,
}

fn stored(id: &str, issuer: Option<&str>, state: AuthorityState, from: i64, to: i64) -> Stored {
    let active = state == AuthorityState::Active;
    Stored {
        id: id.parse().unwrap(),
        kind: if issuer.is_some() { AuthorityKind::Issuer } else { AuthorityKind::Root },
        replica: replica(),
        issuer: issuer.map(|id| id.parse().unwrap()),
        state,
        not_before: at(from),
        not_after: at(to),
        prepared_at: at(from),
        activated_at: active.then(|| at(from)),
    }
}

impl Stored {
    fn slot(&self) -> Slot<'_> {
        Slot {
            id: &self.id,
            kind: self.kind,
            replica: &self.replica,
            issuer: self.issuer.as_ref(),
            custody: Custody::Here,
            state: self.state,
            not_before: self.not_before,
            not_after: self.not_after,
            prepared_at: self.prepared_at,
            activated_at: self.activated_at,
            is_known: true,
            canary: false,
        }
    }
}

/// The store and whoever performs effects.
#[derive(Clone, Debug, PartialEq, Eq)]
struct World {
    stored: Vec<Stored>,
    made: u32,
    policy: RotationPolicy,
    /// Whether JWT keys are kept in order too.
    jwt: bool,
    /// The JWT keys in the bundle.
    bundle: Vec<AuthorityId>,
    /// Whether a follower of the bundle acknowledges nothing.
    silent: bool,
}

impl World {
    fn new(policy: RotationPolicy, stored: Vec<Stored>) -> Self {
        Self { stored, made: 0, policy, jwt: false, bundle: Vec::new(), silent: false }
    }

    fn with_jwt(policy: RotationPolicy) -> Self {
        Self { jwt: true, ..Self::new(policy, Vec::new()) }
    }

    fn slots(&self) -> Vec<Slot<'_>> {
        let known = |slot: Slot<'_>| slot.kind != AuthorityKind::Jwt || !self.silent;
        self.stored.iter().map(|it| Slot { is_known: known(it.slot()), ..it.slot() }).collect()
    }

    fn step(&self, now: Timestamp) -> Vec<Effect> {
        let (slots, mut plan) = (self.slots(), Plan::default());
        plan_certifying(&slots, &replica(), now, &self.policy, &mut plan);
        if self.jwt {
            plan_jwt(&slots, &replica(), now, &self.policy, &mut plan);
        }
        plan.due(now)
    }

    /// Performs one effect as the shell does: only if it is still due, and in one transaction.
    fn perform(&mut self, effect: &Effect, now: Timestamp) {
        if !self.step(now).contains(effect) {
            return;
        }
        match effect {
            Effect::MakeRoot { .. } => {
                let life = root_validity(now, &self.policy).unwrap();
                self.make(AuthorityKind::Root, None, life, now);
            }
            Effect::MakeIssuer { .. } => {
                let root = self.active(AuthorityKind::Root).unwrap().clone();
                let life = validity(now, self.policy.issuer_ttl, root.not_before, root.not_after).unwrap();
                self.make(AuthorityKind::Issuer, Some(root.id), life, now);
            }
            Effect::MakeJwtKey { .. } => {
                let life = jwt_validity(now, &self.policy).unwrap();
                self.make(AuthorityKind::Jwt, None, life, now);
                // In the same transaction.
                self.bundle.push(self.stored.last().unwrap().id.clone());
            }
            Effect::MakeCanary { .. } => panic!("no root is a canary's"),
            Effect::AskForIssuer { .. }
            | Effect::Activate { .. }
            | Effect::Retire { .. }
            | Effect::Forget { .. }
            | Effect::WakeAt(_) => {
                self.transit(effect, now);
            }
        }
    }

    fn transit(&mut self, effect: &Effect, now: Timestamp) {
        let slots = self.slots();
        let moves: Vec<_> =
            transitions(effect, &slots).into_iter().map(|(id, state)| (id.clone(), state)).collect();
        for (id, state) in moves {
            match state {
                None => {
                    self.stored.retain(|it| it.id != id);
                    self.bundle.retain(|published| *published != id);
                }
                Some(state) => {
                    let it = self.stored.iter_mut().find(|it| it.id == id).unwrap();
                    let signs = it.kind == AuthorityKind::Jwt && state == AuthorityState::Active;
                    assert!(!signs || self.bundle.contains(&id), "{id} is published before it signs");
                    it.state = state;
                    if state == AuthorityState::Active {
                        it.activated_at = Some(now);
                    }
                }
            }
        }
    }

    fn make(&mut self, kind: AuthorityKind, issuer: Option<AuthorityId>, life: Validity, now: Timestamp) {
        self.made += 1;
        self.stored.push(Stored {
            id: format!("{kind}-{:04}", self.made).parse().unwrap(),
            kind,
            replica: replica(),
            issuer,
            state: AuthorityState::Prepared,
            not_before: life.not_before,
            not_after: life.not_after,
            prepared_at: now,
            activated_at: None,
        });
    }

    fn active(&self, kind: AuthorityKind) -> Option<&Stored> {
        self.stored.iter().find(|it| it.kind == kind && it.state == AuthorityState::Active)
    }

    /// Steps and performs until there is nothing to do now; returns when to come back.
    fn settle(&mut self, now: Timestamp) -> Option<Timestamp> {
        for _ in 0..32 {
            let effects = self.step(now);
            match effects.as_slice() {
                [] => return None,
                [Effect::WakeAt(at)] => {
                    assert!(*at > now, "waking in the past would spin");
                    return Some(*at);
                }
                effects => {
                    assert!(!effects.iter().any(|it| matches!(it, Effect::WakeAt(_))), "WakeAt comes alone");
                    for effect in effects {
                        self.perform(effect, now);
                        self.at_most_one_active_per_kind_and_replica();
                        self.no_issuer_outlives_its_root();
                    }
                }
            }
        }
        panic!("it never settles: {self:?}");
    }

    fn at_most_one_active_per_kind_and_replica(&self) {
        for kind in [AuthorityKind::Root, AuthorityKind::Issuer, AuthorityKind::Jwt] {
            let active =
                self.stored.iter().filter(|it| it.kind == kind && it.state == AuthorityState::Active);
            assert!(active.count() <= 1, "{self:?}");
        }
    }

    fn no_issuer_outlives_its_root(&self) {
        for issuer in self.stored.iter().filter(|it| it.kind == AuthorityKind::Issuer) {
            if let Some(root) = self.stored.iter().find(|it| Some(&it.id) == issuer.issuer.as_ref()) {
                assert!(issuer.not_after <= root.not_after);
                assert!(issuer.not_before >= root.not_before);
            }
        }
    }

    fn crash_anywhere_and_twice_anything_ends_here_too(&self, now: Timestamp) {
        let mut straight = self.clone();
        straight.settle(now);
        let effects = self.step(now);
        for done in 0..=effects.len() {
            let mut crashed = self.clone();
            for effect in effects.iter().take(done) {
                crashed.perform(effect, now);
                let once = crashed.clone();
                crashed.perform(effect, now);
                crashed.transit(effect, now);
                assert_eq!(crashed, once, "{effect:?} twice");
            }
            crashed.settle(now);
            assert_eq!(crashed, straight, "crash after {done} of {effects:?}");
        }
    }
}

fn root_and(rest: Vec<Stored>) -> World {
    let mut all = vec![stored("root", None, AuthorityState::Active, START, START + 3_650 * DAY)];
    all.extend(rest);
    World::new(policy(3_650, 30 * DAY), all)
}

#[test]
fn a_fresh_authority_makes_and_activates_a_root_and_an_issuer() {
    let mut world = World::new(policy(3_650, 30 * DAY), Vec::new());
    let now = at(START);
    let first = Effect::MakeRoot { reason: Reason::FirstRoot };
    assert_eq!(world.step(now), [first]);
    let wake = world.settle(now).unwrap();
    assert_eq!(world.stored.len(), 2);
    let issuer = world.active(AuthorityKind::Issuer).unwrap();
    assert_eq!(wake, prepare_at(issuer.not_before, issuer.not_after));
    assert_eq!(issuer.issuer.as_ref().unwrap().as_str(), "root-0001");
}

#[test]
fn thresholds_are_fractions_of_life_with_caps() {
    let (start, year) = (at(START), at(START + 365 * DAY));
    assert_eq!(prepare_at(start, year), year.minus(30 * DAY));
    assert_eq!(activate_at(start, year), year.minus(7 * DAY));
    let end = at(START + 12 * 3_600 - 1);
    assert_eq!(prepare_at(start, end), end.minus(6 * 3_600));
    assert_eq!(activate_at(start, end), end.minus(2 * 3_600));
}

#[test]
fn a_successor_waits_until_the_activation_threshold() {
    let world = root_and(vec![
        stored("i1", Some("root"), AuthorityState::Active, START, START + 30 * DAY - 1),
        stored("i2", Some("root"), AuthorityState::Prepared, START + 15 * DAY, START + 45 * DAY),
    ]);
    let due = activate_at(at(START), at(START + 30 * DAY - 1));
    assert_eq!(world.step(due.minus(1)), [Effect::WakeAt(due)]);
    let activate = Effect::Activate { id: "i2".parse().unwrap(), reason: Reason::ActivationDue };
    assert_eq!(world.step(due), [activate]);
}

#[test]
fn towards_the_end_of_the_root_no_pointless_successors_are_made() {
    let root = stored("root", None, AuthorityState::Active, START, START + 10 * DAY);
    let mut world = World::new(policy(10, 30 * DAY), vec![root]);
    let mut now = at(START);
    while let Some(wake) = world.settle(now) {
        now = wake;
    }
    assert_eq!(world.made, 1, "one issuer, as long as the root");
    assert_eq!(now, at(START + 10 * DAY + 1));
    assert!(world.active(AuthorityKind::Issuer).is_none());
}

#[test]
fn time_alone_never_touches_a_root() {
    let ended = stored("root", None, AuthorityState::Active, START, START + 10 * DAY);
    let waiting = stored("next", None, AuthorityState::Prepared, START, START + 900 * DAY);
    let tainted = stored("bad", None, AuthorityState::Tainted, START, START + 10 * DAY);
    for roots in [
        vec![ended.clone()],
        vec![ended.clone(), waiting.clone()],
        vec![tainted.clone(), waiting],
        vec![tainted, ended],
    ] {
        for now in [START - 400 * DAY, START + 11 * DAY, START + 400 * DAY] {
            let world = World::new(policy(10, DAY), roots.clone());
            let acts = world.step(at(now)).into_iter().any(|it| !matches!(it, Effect::WakeAt(_)));
            assert!(!acts, "{now} {roots:?}: {:?}", world.step(at(now)));
        }
    }
}

#[test]
fn a_tainted_authority_never_returns_and_its_issuers_retire() {
    let mut world = root_and(vec![
        stored("i1", Some("root"), AuthorityState::Active, START, START + 30 * DAY),
        stored("i2", Some("root"), AuthorityState::Tainted, START, START + 40 * DAY),
    ]);
    world.stored[0].state = AuthorityState::Tainted;
    let now = at(START + DAY);
    let retire = Effect::Retire { id: "i1".parse().unwrap(), reason: Reason::RootUnusable };
    assert_eq!(world.step(now), [retire]);
    world.settle(now);
    for id in ["root", "i2"] {
        for effect in [
            Effect::Activate { id: id.parse().unwrap(), reason: Reason::NothingActive },
            Effect::Retire { id: id.parse().unwrap(), reason: Reason::NothingActive },
        ] {
            let before = world.clone();
            world.transit(&effect, now);
            assert_eq!(world, before, "{effect:?}");
        }
    }
    world.settle(at(START + 50 * DAY));
    assert!(world.active(AuthorityKind::Issuer).is_none());
}

#[test]
fn another_active_root_gets_its_own_issuer_while_the_old_one_serves_on() {
    let mut world =
        root_and(vec![stored("i1", Some("root"), AuthorityState::Active, START, START + 30 * DAY)]);
    world.stored[0].state = AuthorityState::Old;
    let now = at(START + DAY);
    assert!(!world.step(now).iter().any(|it| matches!(it, Effect::Retire { .. })));
    world.stored.push(stored("new", None, AuthorityState::Active, START, START + 3_000 * DAY));
    let make = Effect::MakeIssuer { reason: Reason::RootChanged };
    assert_eq!(world.step(now), [make]);
    world.settle(now);
    let issuer = world.active(AuthorityKind::Issuer).unwrap();
    assert_eq!(issuer.issuer.as_ref().unwrap().as_str(), "new");
}

#[test]
fn a_successor_prepared_under_the_old_root_is_not_activated_under_the_new_one() {
    let mut world = root_and(vec![
        stored("i1", Some("root"), AuthorityState::Active, START, START + 30 * DAY),
        stored("i2", Some("root"), AuthorityState::Prepared, START, START + 40 * DAY),
        stored("new", None, AuthorityState::Active, START, START + 3_000 * DAY),
    ]);
    world.stored[0].state = AuthorityState::Old;
    let now = at(START + DAY);
    let retire = Effect::Retire { id: "i2".parse().unwrap(), reason: Reason::RootChanged };
    assert!(world.step(now).contains(&retire), "{:?}", world.step(now));
    world.settle(now);
    let issuer = world.active(AuthorityKind::Issuer).unwrap();
    assert_eq!(issuer.issuer.as_ref().unwrap().as_str(), "new");
}

#[test]
fn an_issuer_that_would_outlive_its_root_serves_no_more() {
    let end = START + 3_650 * DAY;
    for (not_after, serves) in [(end, true), (end + 1, false)] {
        let world = root_and(vec![stored("i1", Some("root"), AuthorityState::Active, START, not_after)]);
        let retire = Effect::Retire { id: "i1".parse().unwrap(), reason: Reason::RootUnusable };
        assert_eq!(!world.step(at(START + DAY)).contains(&retire), serves);
    }
}

#[test]
fn after_the_policy_was_shortened_no_successor_is_made_that_would_end_first() {
    let end = START + 300 * DAY;
    let mut world = root_and(vec![stored("i1", Some("root"), AuthorityState::Active, START, end)]);
    world.policy = policy(3_650, 2 * DAY);
    let threshold = prepare_at(at(START), at(end));
    let worth_it = at(end + 1).minus(2 * DAY - 60 - 1);
    assert!(worth_it > threshold);
    assert_eq!(world.step(threshold), [Effect::WakeAt(worth_it)]);
    world.settle(worth_it);
    let issuer = world.active(AuthorityKind::Issuer).unwrap();
    assert!(issuer.not_after > at(end), "{issuer:?}");
}

#[test]
fn a_race_that_made_two_ends_with_one() {
    let twin = |id, state| stored(id, Some("root"), state, START, START + 30 * DAY);
    let mut world = root_and(vec![
        twin("i1", AuthorityState::Active),
        twin("i2", AuthorityState::Active),
        twin("i3", AuthorityState::Prepared),
        twin("i4", AuthorityState::Prepared),
    ]);
    world.stored[2].activated_at = Some(at(START + 5));
    for effect in world.step(at(START + DAY)) {
        world.perform(&effect, at(START + DAY));
    }
    let states: Vec<_> = world.stored.iter().skip(1).map(|it| it.state).collect();
    let expected =
        [AuthorityState::Old, AuthorityState::Active, AuthorityState::Prepared, AuthorityState::Old];
    assert_eq!(states, expected);
}

#[test]
fn issuers_of_other_replicas_are_left_to_them() {
    let mut world = root_and(vec![stored("i1", Some("root"), AuthorityState::Active, START, START + DAY)]);
    world.stored[1].replica = "r2".parse().unwrap();
    let effects = world.step(at(START + 5 * DAY));
    let make = Effect::MakeIssuer { reason: Reason::NothingActive };
    assert_eq!(effects, [make]);
}

#[test]
fn a_clock_that_steps_back_retires_nothing() {
    let world = root_and(vec![stored("i1", Some("root"), AuthorityState::Active, START, START + 30 * DAY)]);
    assert_eq!(world.step(at(START - DAY)), [Effect::WakeAt(at(START))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn through_a_year_of_random_ticks_there_is_always_an_active_issuer_while_the_root_lives(
        root_days in 30i64..800, issuer_seconds in 2 * DAY..90 * DAY, jwt_seconds in 2 * DAY..60 * DAY, seed: u64,
    ) {
        let jwt_key_ttl = Ttl::from_seconds(jwt_seconds).unwrap();
        let mut world = World::with_jwt(RotationPolicy { jwt_key_ttl, ..policy(root_days, issuer_seconds) });
        // Ticks come often enough to fall between two thresholds: a twelfth of the shorter life, at most 3 days.
        let widest = u64::try_from((issuer_seconds.min(jwt_seconds) / 12).min(3 * DAY)).unwrap();
        let mut tokens: Vec<(AuthorityId, Timestamp)> = Vec::new();
        let (mut now, mut state) = (at(START), seed | 1);
        world.settle(now);
        let root_end = world.active(AuthorityKind::Root).unwrap().not_after;
        while now < at(START + 366 * DAY) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            now = now.plus(i64::try_from(1 + (state >> 33) % widest).unwrap());
            if now <= root_end {
                let issuer = world.active(AuthorityKind::Issuer).unwrap();
                prop_assert!(issuer.not_before <= now && now <= issuer.not_after, "before the tick at {now}");
            }
            let key = world.active(AuthorityKind::Jwt).unwrap();
            prop_assert!(key.not_before <= now && now <= key.not_after, "a JWT key signs, root or not, at {now}");
            prop_assert_eq!(world.step(now), world.step(now));
            if !matches!(world.step(now).as_slice(), [] | [Effect::WakeAt(_)]) {
                world.crash_anywhere_and_twice_anything_ends_here_too(now);
            }
            world.settle(now);
            tokens.retain(|(_, expires_at)| now < *expires_at);
            for (id, _) in &tokens {
                prop_assert!(world.bundle.contains(id), "{id} is known until the last token it signed has expired");
            }
            let key = world.active(AuthorityKind::Jwt).unwrap();
            let longest = now.plus(i64::try_from(widest).unwrap() * 2);
            tokens.push((key.id.clone(), longest.min(key.not_after)));
            prop_assert!(world.stored.len() <= 10, "old ones are forgotten: {:?}", world.stored.len());
        }
        let root = world.active(AuthorityKind::Root).unwrap();
        prop_assert_eq!(root.not_after, root_end, "time alone never touches a root");
    }

    #[test]
    fn coming_back_at_each_wake_up_is_enough(root_days in 5i64..200, issuer_seconds in 600i64..90 * DAY) {
        let mut world = World::new(policy(root_days, issuer_seconds), Vec::new());
        let mut now = at(START);
        let mut steps = 0;
        while let Some(wake) = world.settle(now) {
            let root = world.active(AuthorityKind::Root).unwrap();
            if now <= root.not_after {
                let issuer = world.active(AuthorityKind::Issuer).unwrap();
                let next = wake.minus(1).min(root.not_after);
                prop_assert!(now <= issuer.not_after && next <= issuer.not_after);
            }
            now = wake;
            steps += 1;
            if steps > 2_000 {
                break;
            }
        }
        let root = world.active(AuthorityKind::Root).unwrap();
        prop_assert!(steps > 2_000 || now > root.not_after);
    }
}
