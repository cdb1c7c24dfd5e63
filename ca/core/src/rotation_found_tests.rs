//! What a review and the simulation found in the rotation machine, each as the scenario that showed it.

use rhizome_id::Digest;

use super::evidence::{self, CrossFact, Held, IssuerFact, Presented, Subscriber, SubscriberKind};
use super::gate::{Wait, Why};
use super::tests::{
    asked, before, begun, both, held, id, ids, in_phase, later, looked, now, ordered, start, subscriber,
};
use super::*;
use crate::limits::ROTATION_SKEW_SECONDS;

/// Found by a review: with a bridge nobody breaks before the old root leaves the bundle, but nobody asked whether there is
/// one.
#[test]
fn without_a_bridge_a_compromised_rotation_names_those_that_break_before_the_new_root_signs() {
    for phase in [Phase::Distributing, Phase::Canary] {
        let rotation = in_phase(phase, Mode::Compromised);
        let choices = Choices { unbridged: true, ..rotation.choices.clone() };
        let rotation = Rotation { choices, ..rotation };
        let away = Subscriber { connected: false, ..subscriber("node:away", SubscriberKind::Agent) };
        let mut world = World { subscribers: vec![away], ..both() };
        world.facts.keys = ids(&["new"]);
        let probe = |direction| evidence::Probe { direction, at: now(), failure: None };
        world.probes = vec![probe(evidence::Direction::NewToOld), probe(evidence::Direction::OldToNew)];
        if phase == Phase::Canary {
            world.facts.canary = Some(id("new"));
            world.facts.roots.get_mut(&id("new")).unwrap().cross.as_mut().unwrap().carried = true;
        }
        let bridged = looked(&rotation, &world).moved.unwrap();
        assert_eq!(bridged.phase, Phase::Active, "with the bridge they do not break yet");
        world.facts.roots.get_mut(&id("new")).unwrap().cross.as_mut().unwrap().not_after = now().minus(1);
        assert_eq!(
            looked(&rotation, &world).moved,
            None,
            "{phase}: a bridge that has expired carries nobody"
        );
        assert_eq!(asked(&rotation, &world).subscribers, ["node:away"]);
        world.facts.roots.get_mut(&id("new")).unwrap().cross = None;
        let loss = asked(&rotation, &world);
        assert_eq!(loss.subscribers, ["node:away"]);
        let accept = Order::Advance { accept: Some(Consent::to(loss.digest)) };
        assert_eq!(ordered(Some(&rotation), accept, &world).unwrap().moved.unwrap().phase, Phase::Active);
    }
}

/// Found by a review: one record for each of those who break made a document that no store takes.
#[test]
fn the_record_of_a_rotation_fits_into_its_document_however_many_are_given_up_or_exempted() {
    let rotation = in_phase(Phase::Active, Mode::Compromised);
    let mut world = both();
    world.facts.roots.get_mut(&id("old")).unwrap().active = false;
    let new = world.facts.roots.get_mut(&id("new")).unwrap();
    new.active = true;
    new.cross.as_mut().unwrap().carried = true;
    world.facts.issuers.clear();
    let name = |number: usize| format!("node:{number:0>200}");
    let away = |number| Subscriber { connected: false, ..subscriber(&name(number), SubscriberKind::Agent) };
    world.subscribers = (0..100_000).map(away).collect();
    let loss = asked(&rotation, &world);
    assert_eq!((loss.subscribers.len(), loss.workloads), (100_000, 200_000));
    let accept = Order::Advance { accept: Some(Consent::to(loss.digest)) };
    let mut moved = *ordered(Some(&rotation), accept, &world).unwrap().moved.unwrap();
    for number in 0..EXEMPTIONS + 1 {
        let exemption = Exemption {
            subscriber: name(number),
            reason: "\"".repeat(ROTATION_REASON_BYTES),
            approver: name(0),
            expires_at: later(60),
        };
        match ordered(Some(&moved), Order::Exempt(exemption), &world) {
            Ok(step) => moved = *step.moved.unwrap(),
            Err(refused) => assert!(number == EXEMPTIONS, "{refused}"),
        }
    }
    assert_eq!(moved.exemptions.len(), EXEMPTIONS);
    let bytes = serde_json::to_string(&moved).unwrap().len();
    assert!(bytes < 1 << 20, "{bytes} bytes of one mebibyte");
}

/// Found by a review: nobody waited for those who join with the bundle of a server that has not seen the newest.
#[test]
fn without_a_bridge_the_other_root_signs_only_after_issuances_under_way_have_ended() {
    for (phase, heading, signs) in
        [(Phase::Distributing, Heading::Forward, "new"), (Phase::Active, Heading::Back, "old")]
    {
        let rotation = in_phase(phase, Mode::Planned);
        let choices = Choices { settle_seconds: 100, unbridged: true, ..rotation.choices.clone() };
        let rotation = Rotation { choices, heading, ..rotation };
        let mut world = both();
        assert_eq!(gate::of(&rotation, &world, now()).waits, [], "with the bridge nobody breaks");
        world.facts.roots.get_mut(&id(signs)).unwrap().cross = None;
        world.facts.keys.clear();
        let gate = gate::of(&rotation, &world, now());
        assert!(matches!(gate.waits.as_slice(), [Wait::Until { at, .. }] if *at == later(90)), "{gate:?}");
        assert!(gate::of(&rotation, &world, later(90)).is_open(), "{phase}");
    }
}

/// Found by a review: a server without the old key went on without a bridge, and said nothing.
#[test]
fn a_rotation_without_a_bridge_is_one_that_somebody_chose() {
    let mut world = before();
    world.facts.keys.clear();
    let refused = ordered(None, start(Mode::Planned, Choices::default()), &world).unwrap_err();
    assert_eq!(refused, Refusal::NoBridge { root: id("old") });
    assert!(!plan::plan(&world, Mode::Planned, &Choices::default(), "server:r1", now()).bridge);
    let choices = Choices { unbridged: true, ..Choices::default() };
    let chosen = *ordered(None, start(Mode::Planned, choices), &world).unwrap().moved.unwrap();
    let staged = begun(Mode::Planned);
    let mut world = both();
    world.facts.bundle.anchors = ids(&["old"]);
    world.facts.keys.clear();
    world.facts.roots.values_mut().for_each(|it| it.cross = None);
    let tested = |it: &Rotation| Rotation { self_test: Some(SelfTest::Passed), ..it.clone() };
    assert!(gate::of(&tested(&chosen), &world, now()).is_open());
    let gate = gate::of(&tested(&staged), &world, now());
    let bridge = |root, by| Wait::Bridge { root: id(root), by: id(by) };
    assert_eq!(gate.waits, [bridge("new", "old"), bridge("old", "new")], "other servers make them");
    for (here, root) in [("old", "new"), ("new", "old")] {
        world.facts.keys = ids(&[here]);
        let effects = looked(&tested(&staged), &world).effects;
        let expected = Effect::CrossCertify { root: id(root), by: id(here), reason: Reason::Bridging };
        assert_eq!(effects, [expected], "each makes what it has the key for");
    }
}

/// Found by a review: the digest was asked for at the newest sequence only, and a JWT key is a sequence, too.
#[test]
fn an_acknowledgement_of_another_history_counts_at_no_sequence() {
    let rotation = in_phase(Phase::Distributing, Mode::Planned);
    let digest = |byte| Digest::from_bytes([byte; 32]);
    let rotation = Rotation {
        published: Some(Published { sequence: 5, digest: digest(5), at: now().minus(10) }),
        ..rotation
    };
    let mut world = both();
    world.facts.bundle.sequence = 7;
    world.facts.bundle.digest = digest(7);
    let counts = |sequence, digest| {
        let holds = Some(Held { sequence, digest, at: now() });
        let subscribers = vec![Subscriber { holds, ..subscriber("node:a", SubscriberKind::Agent) }];
        gate::of(&rotation, &World { subscribers, ..world.clone() }, now()).is_open()
    };
    for (sequence, said, expected) in [
        (5, Some(digest(5)), true),
        (5, Some(digest(9)), false),
        (6, Some(digest(9)), false),
        (7, Some(digest(9)), false),
        (7, Some(digest(7)), true),
        (6, None, true),
        (4, None, false),
        (8, None, false),
    ] {
        assert_eq!(counts(sequence, said), expected, "{sequence} {said:?}");
    }
}

/// Found by a review: aborted after a restore, the new root was deleted at once though some may trust it alone.
#[test]
fn after_a_restore_an_abort_asks_everybody_before_the_new_root_goes() {
    for (phase, leads_to) in [
        (Phase::Staged, Phase::Distributing),
        (Phase::Distributing, Phase::Distributing),
        (Phase::Canary, Phase::Active),
        (Phase::Active, Phase::Active),
    ] {
        let rotation = in_phase(phase, Mode::Planned);
        let mut world = both();
        world.facts.restored = Some(now());
        world.subscribers = vec![subscriber("node:away", SubscriberKind::Agent)];
        // Whether or not a server has looked since.
        let aborted = *ordered(Some(&rotation), Order::Abort, &world).unwrap().moved.unwrap();
        let noticed = *looked(&rotation, &world).moved.unwrap();
        let later = *ordered(Some(&noticed), Order::Abort, &world).unwrap().moved.unwrap();
        for aborted in [aborted, later] {
            assert_eq!((aborted.phase, aborted.heading), (leads_to, Heading::Back), "{phase}");
            assert!(aborted.rewound && aborted.published.is_none());
            assert_eq!(aborted.trusted(), [&id("old"), &id("new")].into());
            let published = Rotation { published: rotation.published, ..aborted };
            let gate = gate::of(&published, &world, now());
            assert!(matches!(gate.blockers[0].why, Why::NotAcknowledged { .. }), "{phase}: {gate:?}");
        }
        let compromised = in_phase(phase, Mode::Compromised);
        let refused = ordered(Some(&compromised), Order::Abort, &world).unwrap_err();
        assert_eq!(refused.code(), "rotation_tainted", "{phase}: the taint is not in the backup either");
    }
}

/// Found by a review: what was staged in secret when the backup was made may be all that somebody trusts today.
#[test]
fn a_staged_rotation_that_was_put_back_distributes_both_roots_and_bridges_the_old_one() {
    let staged = begun(Mode::Planned);
    let mut world = both();
    world.facts.restored = Some(now());
    world.facts.bundle.anchors = ids(&["old"]);
    world.facts.roots.get_mut(&id("old")).unwrap().cross = None;
    let mut rotation = *looked(&staged, &world).moved.unwrap();
    assert_eq!((rotation.phase, rotation.published), (Phase::Distributing, None));
    let mut effects = Vec::new();
    for _ in 0..4 {
        let effect = looked(&rotation, &world).effects.remove(0);
        let old = world.facts.roots.get_mut(&id("old")).unwrap();
        match &effect {
            Effect::Publish { .. } => {
                world.facts.bundle.anchors = ids(&["old", "new"]);
                rotation = rotation.with_published(5, Digest::ZERO, now());
            }
            Effect::CrossCertify { root, by, .. } => {
                assert_eq!((root, by), (&id("old"), &id("new")));
                old.cross = Some(CrossFact { by: by.clone(), not_after: later(9_000), carried: false });
            }
            Effect::SelfTest { .. } => {
                let input = Input::SelfTested { rotation: &rotation.name, verdict: SelfTest::Passed };
                rotation = *step(Some(&rotation), input, now()).unwrap().moved.unwrap();
            }
            Effect::Carry { root, .. } => {
                assert_eq!(root, &id("old"));
                old.cross.as_mut().unwrap().carried = true;
            }
            Effect::MakeKey { .. }
            | Effect::SelfSign { .. }
            | Effect::Activate { .. }
            | Effect::SetCanary { .. }
            | Effect::Taint { .. }
            | Effect::Uncross { .. }
            | Effect::DeleteRecord { .. }
            | Effect::DestroyKey { .. }
            | Effect::OrderRenewals { .. }
            | Effect::WakeAt(_) => panic!("{effect:?}"),
        }
        effects.push(effect);
    }
    assert!(matches!(effects[0], Effect::Publish { reason: Reason::Restored, .. }), "{effects:?}");
    assert!(matches!(looked(&rotation, &world).effects.as_slice(), [Effect::WakeAt(_)]));
    let before_it_began = Rotation { restored: Some(now()), ..begun(Mode::Planned) };
    assert_eq!(looked(&before_it_began, &world).moved, None, "it is not staged for that");
}

/// Found by a review: bridged certificates were waived on the way back, and their revocations went with their root.
#[test]
fn an_abort_waits_for_every_certificate_below_the_new_root_and_orders_their_renewal() {
    let rotation = Rotation { heading: Heading::Back, ..in_phase(Phase::Distributing, Mode::Planned) };
    let mut world = both();
    world.facts.roots.values_mut().for_each(|it| it.cross.as_mut().unwrap().carried = true);
    let presents = vec![Presented { root: id("new"), count: 1, until: later(600) }];
    world.subscribers = vec![Subscriber { presents, ..subscriber("node:a", SubscriberKind::Agent) }];
    let step = looked(&rotation, &world);
    assert_eq!(step.moved, None);
    assert_eq!(
        step.effects[0],
        Effect::OrderRenewals { root: id("new"), whom: vec!["node:a".into()], reason: Reason::Aborting }
    );
    world.subscribers[0].presents.clear();
    assert_eq!(looked(&rotation, &world).moved.unwrap().phase, Phase::Staged);
}

/// Found by a review: near the old root's end an abort waited for somebody until there was nothing left to come back to.
#[test]
fn there_is_no_way_back_to_a_root_that_ends_before_everybody_is_back() {
    let rotation = in_phase(Phase::Active, Mode::Planned);
    let mut world = both();
    let needed = rotation.choices.longest_seconds + rotation.choices.settle_seconds;
    world.facts.roots.get_mut(&id("old")).unwrap().not_after = later(needed);
    let abort = |world: &World| ordered(Some(&rotation), Order::Abort, world);
    assert_eq!(abort(&world).unwrap_err().code(), "rotation_too_late");
    world.facts.roots.get_mut(&id("old")).unwrap().not_after = later(needed + 1);
    assert_eq!(abort(&world).unwrap().moved.unwrap().heading, Heading::Back);
    let distributing = in_phase(Phase::Distributing, Mode::Planned);
    world.facts.roots.get_mut(&id("old")).unwrap().not_after = later(60);
    let back = ordered(Some(&distributing), Order::Abort, &world).unwrap().moved.unwrap();
    assert_eq!(back.phase, Phase::Staged, "this takes no time");
}

/// Found by a review: without its record the old root was published again and again.
#[test]
fn a_rotation_whose_old_root_has_ended_goes_on_without_it() {
    for (phase, heading) in [
        (Phase::Active, Heading::Back),
        (Phase::Distributing, Heading::Back),
        (Phase::Active, Heading::Forward),
        (Phase::Distributing, Heading::Forward),
    ] {
        let rotation = Rotation { heading, ..in_phase(phase, Mode::Planned) };
        let mut expired = both();
        expired.facts.roots.get_mut(&id("old")).unwrap().not_after = now().minus(ROTATION_SKEW_SECONDS + 1);
        let mut forgotten = both();
        forgotten.facts.roots.remove(&id("old"));
        forgotten.facts.bundle.anchors.remove(&id("old"));
        for world in [expired, forgotten] {
            let turned = looked(&rotation, &world).moved.unwrap();
            assert_eq!((turned.phase, turned.heading, turned.mode), (phase, Heading::Forward, Mode::Expired));
            assert_eq!(turned.trusted(), [&id("new")].into());
            let again = looked(&turned, &world);
            assert_eq!(again.moved, None);
            let Some(Effect::Publish { with, .. }) = again.effects.first() else { panic!("{again:?}") };
            assert_eq!(with, &ids(&["new"]));
        }
    }
}

/// Found by the simulation: whoever joined after the backup was made holds up no gate, because nobody knows of it.
#[test]
fn after_a_restore_every_gate_waits_for_those_whom_the_ledger_has_forgotten() {
    let longest = 7_200;
    for phase in [Phase::Distributing, Phase::Canary, Phase::Active, Phase::Untrusting] {
        let rotation = in_phase(phase, Mode::Planned);
        let choices = Choices { longest_seconds: longest, ..rotation.choices.clone() };
        let mut world = both();
        world.facts.restored = Some(now());
        let rotation = Rotation { choices, ..rotation };
        let restored = step(Some(&rotation), Input::Look(&world), now()).unwrap().moved.unwrap();
        assert_eq!(
            (restored.restored, restored.published),
            (Some(now()), None),
            "its bundle is published again"
        );
        let waits = |at| {
            let forgotten =
                |it: &Wait| matches!(it, Wait::Until { what, .. } if what.contains("does not know"));
            gate::of(&restored, &world, at).waits.iter().any(forgotten)
        };
        assert!(
            waits(later(longest + 2 * ROTATION_SKEW_SECONDS - 1))
                && !waits(later(longest + 2 * ROTATION_SKEW_SECONDS))
        );
    }
}

/// Found by the simulation: a rotation begun soon after a restore forgot about it.
#[test]
fn a_rotation_begun_after_a_restore_remembers_it() {
    let mut world = before();
    world.facts.restored = Some(now().minus(60));
    let begun = ordered(None, start(Mode::Planned, Choices::default()), &world).unwrap().moved.unwrap();
    assert_eq!(begun.restored, world.facts.restored);
    assert_eq!(step(Some(&begun), Input::Look(&world), now()).unwrap().moved, None, "it knows already");
}

/// The new root signs, through the bridge, and nobody signs below the old one.
fn signs_below_the_new() -> World {
    let mut world = both();
    world.facts.roots.get_mut(&id("old")).unwrap().active = false;
    let new = world.facts.roots.get_mut(&id("new")).unwrap();
    new.active = true;
    new.cross.as_mut().unwrap().carried = true;
    world.facts.issuers[0].root = id("new");
    world
}

fn below_the_old(name: &str, kind: SubscriberKind, certificates: u32) -> Subscriber {
    let presents = vec![Presented { root: id("old"), count: certificates, until: later(600) }];
    Subscriber { holds: held(5, 1), presents, workloads: certificates, ..subscriber(name, kind) }
}

/// Found by a review: each renewal, report or expiry between the look and the word made another digest, so on a busy day no
/// loss could ever be accepted.
#[test]
fn whoever_accepts_a_loss_accepts_what_is_left_of_it_and_nobody_besides() {
    let rotation = in_phase(Phase::Active, Mode::Compromised);
    let agent = |name, certificates| below_the_old(name, SubscriberKind::Agent, certificates);
    let with = |subscribers| World { subscribers, ..signs_below_the_new() };
    let seen = asked(&rotation, &with(vec![agent("node:a", 3), agent("node:b", 1)]));
    let accepts = |subscribers, names: &[&str]| {
        let names = names.iter().map(|it| (*it).to_owned()).collect();
        let accept = Some(Consent { digest: seen.digest, names });
        ordered(Some(&rotation), Order::Advance { accept }, &with(subscribers))
    };
    let renewed = accepts(vec![agent("node:a", 1), agent("node:b", 1)], &[]).unwrap().moved.unwrap();
    assert_eq!(renewed.phase, Phase::Untrusting, "one of them has renewed some: they are the same");
    let fewer = accepts(vec![agent("node:b", 1)], &["node:a", "node:b"]).unwrap().moved.unwrap();
    let accepted = fewer.accepted.unwrap();
    assert_eq!((accepted.digest, accepted.count), (seen.digest, 1), "what was named, and who truly breaks");
    let forgotten = accepts(vec![agent("node:b", 1)], &[]).unwrap_err();
    assert_eq!(forgotten.code(), "rotation_needs_consent", "nobody knows any more who was named");
    let besides = accepts(vec![agent("node:b", 1), agent("node:c", 1)], &["node:a", "node:b"]).unwrap_err();
    assert!(besides.to_string().contains("node:c"), "{besides}");
}

/// Found by a review: one forgotten certificate of somebody who hears no orders had everybody ordered, window after window.
#[test]
fn only_those_who_are_waited_for_and_can_be_told_are_ordered_to_renew() {
    let rotation = in_phase(Phase::Active, Mode::Planned);
    let mut world = World {
        subscribers: vec![
            below_the_old("node:b", SubscriberKind::Agent, 1),
            below_the_old("cluster:c", SubscriberKind::Subordinate, 9),
            below_the_old("node:a", SubscriberKind::Agent, 2),
            below_the_old("admin:alice", SubscriberKind::OneShot, 1),
            below_the_old("server:r2", SubscriberKind::Replica, 1),
        ],
        ..signs_below_the_new()
    };
    let exemption = |name: &str| Exemption {
        subscriber: name.into(),
        reason: "in repair".into(),
        approver: "admin:alice".into(),
        expires_at: later(60),
    };
    let rotation = Rotation { exemptions: vec![exemption("node:b")], ..rotation };
    let ordered = |world: &World| match looked(&rotation, world).effects.into_iter().next() {
        Some(Effect::OrderRenewals { whom, .. }) => whom,
        _ => Vec::new(),
    };
    assert_eq!(ordered(&world), ["cluster:c", "node:a"]);
    world.subscribers.retain(|it| it.name != "node:a" && it.name != "cluster:c");
    assert_eq!(ordered(&world), [""; 0], "they wait until it expires, and nobody is bothered");
}

/// Found by a review: a retry after a lost answer was a new exemption with a later end.
#[test]
fn an_exemption_that_is_said_again_is_done_already() {
    let rotation = in_phase(Phase::Active, Mode::Planned);
    let agent = below_the_old("node:a", SubscriberKind::Agent, 1);
    let world = World { subscribers: vec![agent], ..signs_below_the_new() };
    let exempt = |rotation: &Rotation, reason: &str, until, approver: &str| {
        let exemption = Exemption {
            subscriber: "node:a".into(),
            reason: reason.into(),
            approver: approver.into(),
            expires_at: later(until),
        };
        ordered(Some(rotation), Order::Exempt(exemption), &world).unwrap().moved
    };
    let once = *exempt(&rotation, "in repair", 600, "admin:alice").unwrap();
    assert_eq!(exempt(&once, "in repair", 600, "admin:alice"), None);
    assert_eq!(exempt(&once, "in repair", 590, "admin:bob"), None, "whoever says it");
    let longer = *exempt(&once, "in repair", 601, "admin:alice").unwrap();
    assert_eq!(longer.exemptions.len(), 1, "the later end takes the place of the earlier one");
    assert!(exempt(&longer, "out of reach", 601, "admin:alice").is_some(), "another reason is another word");
}

/// Found by the simulation: a server that was late with the plan of the one that was aborted destroyed the new one's key.
#[test]
fn a_rotation_takes_no_name_of_the_one_that_has_ended() {
    for outcome in [Outcome::Rotated, Outcome::Aborted] {
        let ended = Rotation { outcome: Some(outcome), ..in_phase(Phase::Stable, Mode::Planned) };
        let again = |name: &str, new: &str| {
            let (name, new) = (name.parse().unwrap(), id(new));
            let (mode, choices) = (Mode::Planned, Choices::default());
            let order = Order::Start { name, new, mode, choices, reason: "again".into() };
            ordered(Some(&ended), order, &before())
        };
        assert_eq!(again("rotation-1", "newer").unwrap_err().code(), "rotation_name_used");
        assert_eq!(
            again("rotation-2", "new").unwrap_err().code(),
            "rotation_name_taken",
            "its key may come back"
        );
        let next = *again("rotation-2", "newer").unwrap().moved.unwrap();
        assert_eq!((next.reason.as_str(), next.started_by.as_str()), ("again", "admin:alice"));
    }
}

/// An issuance may be under way when an issuer stops: whoever gets it is known only when it has ended, and presents what
/// reaches the old root alone.
#[test]
fn active_is_left_only_when_the_settling_time_after_the_last_issuer_has_passed() {
    let rotation = in_phase(Phase::Active, Mode::Planned);
    let choices = Choices { settle_seconds: 1_260, ..rotation.choices.clone() };
    let rotation = Rotation { choices, ..rotation };
    let mut world = signs_below_the_new();
    let stopped = |seconds| IssuerFact {
        replica: "r2".into(),
        root: id("old"),
        since: later(seconds),
        active: false,
        not_after: later(90_000),
    };
    let leaves = |world: &World, seconds| {
        let step = step(Some(&rotation), Input::Look(world), later(seconds)).unwrap();
        step.moved.map(|it| it.phase)
    };
    assert_eq!(leaves(&world, 1_259), None, "counted from when it began to sign");
    assert_eq!(leaves(&world, 1_260), Some(Phase::Untrusting));
    world.facts.issuers.push(stopped(100));
    assert_eq!(leaves(&world, 1_359), None, "and from when the last issuer below the old root stopped");
    let wait = gate::of(&rotation, &world, later(1_359)).waits;
    let expected = Wait::Until { at: later(1_360), what: "issuances under way" };
    assert_eq!(wait, [expected]);
    assert_eq!(leaves(&world, 1_360), Some(Phase::Untrusting));
    world.facts.issuers[1].not_after = later(100);
    let gone = 100 + ROTATION_SKEW_SECONDS + 1;
    assert_eq!(
        leaves(&world, gone.max(1_260)),
        Some(Phase::Untrusting),
        "an issuer that has ended issued nothing"
    );
}

/// Found by a review: what a newer release had issued was a certificate that nobody counted.
#[test]
fn nothing_is_left_on_the_word_of_a_server_that_cannot_read_the_whole_ledger() {
    for (phase, heading) in [
        (Phase::Distributing, Heading::Forward),
        (Phase::Active, Heading::Forward),
        (Phase::Untrusting, Heading::Forward),
        (Phase::Distributing, Heading::Back),
    ] {
        let rotation = Rotation { heading, ..in_phase(phase, Mode::Planned) };
        let mut world = World { subscribers: Vec::new(), ..signs_below_the_new() };
        world.facts.issuers.clear();
        world.facts.unreadable = 2;
        let gate = gate::of(&rotation, &world, later(100_000));
        assert_eq!(gate.waits, [Wait::Unreadable { count: 2 }], "{phase}");
        assert!(gate.waits[0].to_string().contains("2 entries of the ledger"));
        world.facts.unreadable = 0;
        assert!(gate::of(&rotation, &world, later(100_000)).is_open(), "{phase}");
    }
}

/// Found by a review: the plan said half an hour, and the rotation waited a day for certificates that nobody had named.
#[test]
fn the_plan_names_those_who_have_no_stream_and_waits_until_their_certificates_have_expired() {
    let below = |name: &str, kind, until: i64| {
        let presents = vec![Presented { root: id("old"), count: 1, until: later(until) }];
        Subscriber { presents, until: Some(later(until)), ..subscriber(name, kind) }
    };
    let mut world = before();
    world.subscribers = vec![
        below("node:a", SubscriberKind::Agent, 90_000),
        below("server:r1", SubscriberKind::Replica, 80_000),
        below("server:r2", SubscriberKind::Replica, 70_000),
        below("admin:alice", SubscriberKind::OneShot, 60_000),
    ];
    let choices = Choices { soak_seconds: 100, settle_seconds: 10, window_seconds: 60, ..Choices::default() };
    let planned = |mode, choices: &Choices| plan::plan(&world, mode, choices, "server:r1", now());
    let plan = planned(Mode::Planned, &choices);
    let mut names: Vec<_> = plan.absent.iter().map(|it| (it.name.as_str(), it.obeys)).collect();
    names.sort_unstable();
    assert_eq!(names, [("admin:alice", false), ("server:r2", false)], "this server renews its own at once");
    assert_eq!(plan.seconds, 70_000 + ROTATION_SKEW_SECONDS + 100);
    assert_eq!(plan.latest, Some(later(70_000 + ROTATION_SKEW_SECONDS)));
    let patient = Choices { until_expiry: true, ..choices.clone() };
    assert_eq!(planned(Mode::Planned, &patient).seconds, 90_000 + ROTATION_SKEW_SECONDS + 100);
    assert_eq!(
        planned(Mode::Compromised, &choices).seconds,
        70,
        "who is out of reach is given up, and no soak"
    );
}

/// Found when the server got its canary: a probe that failed held up the gate, and the share that it was about went on being
/// issued until somebody looked.
#[test]
fn a_probe_that_fails_leads_back_and_says_why() {
    let choices = Choices { canary: Some(canary_of_everybody()), manual: true, ..Choices::default() };
    let rotation = Rotation { choices, ..in_phase(Phase::Canary, Mode::Planned) };
    let probe = |at, failure: Option<&str>| evidence::Probe {
        direction: evidence::Direction::NewToOld,
        at,
        failure: failure.map(ToOwned::to_owned),
    };
    let world = |probes| {
        let mut world = World { probes, ..both() };
        world.facts.canary = Some(id("new"));
        world.facts.roots.get_mut(&id("new")).unwrap().cross.as_mut().unwrap().carried = true;
        world
    };
    let earlier = world(vec![probe(rotation.since.minus(1), Some("of another time"))]);
    assert!(looked(&rotation, &earlier).moved.is_none(), "what was before this phase says nothing");
    let fails = world(vec![probe(now(), None), probe(now(), Some("unknown issuer"))]);
    let back = looked(&rotation, &fails).moved.unwrap();
    assert_eq!((back.phase, back.heading), (Phase::Distributing, Heading::Back));
    let passage = back.last.clone().unwrap();
    assert_eq!(passage.probes, (2, 1));
    assert!(passage.by.contains("unknown issuer"), "{}", passage.by);
    let tainted = Rotation { mode: Mode::Compromised, ..rotation };
    assert!(looked(&tainted, &fails).moved.is_none(), "there is no way back to what is in wrong hands");
}

fn canary_of_everybody() -> Canary {
    Canary { share: canary::Share::Percent(99), window_seconds: 60 }
}
