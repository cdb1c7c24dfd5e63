//! The search of the model: breadth first, every state once, with what it covered printed, and the way to a violation.
//!
//! Bounded are the unkind events on one path and, as a guard, depth and states; `RHIZOME_MODEL=deep` asks for more of them
//! (use a release build). Each test prints how deep it went, how many states it saw, whether they were all that there are
//! within the bounds, which events it met in which phase, and which invariants never had anything to say there.
//! Laws: each thing that is broken on purpose is caught by the invariant that is named for it, with no other one asked.

use std::collections::{BTreeMap, HashSet};

use rhizome_core::rotation::{Mode, Outcome, Phase, invariants};

use crate::broken::{Broken, Found as Verdict, Law, Names};
use crate::model::{Bounds, Event, Model};

/// What a search found.
#[derive(Debug, Default)]
struct Found {
    states: usize,
    transitions: usize,
    depth: usize,
    /// Whether every state within the bounds was seen.
    whole: bool,
    covered: BTreeMap<(Phase, &'static str), usize>,
    outcomes: BTreeMap<Option<Outcome>, usize>,
    asked: BTreeMap<Law, usize>,
    violation: Option<(Law, String, Vec<Event>)>,
}

fn search(bounds: &Bounds) -> Found {
    let mut found = Found { whole: true, ..Found::default() };
    let first = Model::new(bounds);
    let mut seen = HashSet::from([first.fingerprint()]);
    // Every state with the event that led to it and where it came from, for the path to a violation.
    let mut trail: Vec<(Option<usize>, Option<Event>)> = vec![(None, None)];
    let mut layer = vec![(0usize, first)];
    while !layer.is_empty() && found.depth < bounds.depth {
        let mut next_layer = Vec::new();
        for (at, model) in layer {
            for event in model.events(bounds) {
                let Some(next) = model.after(&event, bounds) else { continue };
                found.transitions += 1;
                *found.covered.entry((model.phase(), event.kind())).or_default() += 1;
                if !seen.insert(next.fingerprint()) {
                    continue;
                }
                trail.push((Some(at), Some(event)));
                let number = trail.len() - 1;
                if let Err((law, cause)) = verdict(&model, &next, bounds, &mut found.asked) {
                    found.violation = Some((law, cause, path(&trail, number)));
                    found.states = seen.len();
                    return found;
                }
                let outcome = next.store.rotation.as_ref().and_then(|it| it.outcome);
                *found.outcomes.entry(outcome).or_default() += 1;
                next_layer.push((number, next));
                if seen.len() >= bounds.states {
                    found.whole = false;
                    found.states = seen.len();
                    return found;
                }
            }
        }
        layer = next_layer;
        found.depth += 1;
    }
    found.whole &= found.depth < bounds.depth;
    found.states = seen.len();
    found
}

/// Asks what two states after one another must keep, and then what each must.
fn verdict(before: &Model, after: &Model, bounds: &Bounds, asked: &mut BTreeMap<Law, usize>) -> Verdict {
    let sequence = |model: &Model| model.store.facts.bundle.sequence;
    if sequence(before) != sequence(after) && bounds.only.is_none_or(|it| it == Law::I9) {
        *asked.entry(Law::I9).or_default() += 1;
        let (before, after) = (sequence(before), sequence(after));
        invariants::bundle_sequences_only_grow("the authority", before, after).of(Law::I9)?;
    }
    after.check(bounds, asked)
}

fn path(trail: &[(Option<usize>, Option<Event>)], mut at: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while let (Some(before), Some(event)) = &trail[at] {
        events.push(event.clone());
        at = *before;
    }
    events.reverse();
    events
}

fn print(name: &str, found: &Found) {
    let Found { states, transitions, depth, whole, .. } = found;
    println!("{name}: {states} states, {transitions} transitions, depth {depth}, whole: {whole}");
    println!("  ends: {:?}", found.outcomes);
    let never: Vec<Law> = Law::ALL.into_iter().filter(|it| !found.asked.contains_key(it)).collect();
    println!("  asked: {:?}, never asked: {never:?}", found.asked);
    for phase in Phase::ALL {
        let row = found.covered.iter().filter(|((at, _), _)| *at == phase);
        let row: Vec<String> = row.map(|((_, event), count)| format!("{event} {count}")).collect();
        println!("  {phase}: {}", row.join(", "));
    }
}

const QUICK: Bounds = Bounds {
    subs: 2,
    unkind: 1,
    aborts: 0,
    exemptions: 0,
    mode: Mode::Planned,
    canary: false,
    bridge: true,
    reverse: true,
    rings: 1,
    away: false,
    one_shots: false,
    forked: false,
    depth: 200,
    states: 400_000,
    broken: None,
    only: None,
};
const UNBRIDGED: Bounds = Bounds { bridge: false, ..QUICK };
const COMPROMISED: Bounds = Bounds { mode: Mode::Compromised, away: true, ..QUICK };

fn is_deep() -> bool {
    #[expect(clippy::disallowed_methods, reason = "the one switch of this test")]
    let asked = std::env::var("RHIZOME_MODEL");
    asked.is_ok_and(|it| it == "deep")
}

fn holds(name: &str, bounds: &Bounds, phases: &[Phase]) {
    let (unkind, subs) = (bounds.unkind + 1, bounds.subs.max(2));
    let deep = Bounds { unkind, subs, states: 20_000_000, ..*bounds };
    let found = search(if is_deep() { &deep } else { bounds });
    print(name, &found);
    assert_eq!(found.violation, None);
    for phase in phases {
        assert!(found.covered.keys().any(|(at, _)| at == phase), "{phase} was never reached");
    }
}

const FORWARD: &[Phase] =
    &[Phase::Staged, Phase::Distributing, Phase::Active, Phase::Untrusting, Phase::Retired, Phase::Stable];

#[test]
fn in_every_order_of_events_every_pair_can_authenticate() {
    holds("rotation", &QUICK, FORWARD);
}

#[test]
fn an_abort_at_any_moment_harms_nobody() {
    holds("abort", &Bounds { aborts: 1, subs: 1, ..QUICK }, FORWARD);
    holds("abort without a bridge", &Bounds { aborts: 1, unkind: 0, ..UNBRIDGED }, FORWARD);
    let neither = Bounds { aborts: 1, unkind: 0, reverse: false, ..UNBRIDGED };
    holds("abort without a bridge in either direction", &neither, FORWARD);
}

#[test]
fn an_exemption_excuses_whom_it_names_and_nobody_else() {
    holds("exemption", &Bounds { exemptions: 1, unkind: 0, ..QUICK }, FORWARD);
}

#[test]
fn a_canary_changes_none_of_it() {
    let bounds = Bounds { canary: true, aborts: 1, unkind: 0, subs: 1, ..QUICK };
    holds("canary", &bounds, &[Phase::Canary, Phase::Active, Phase::Retired]);
}

#[test]
fn in_compromised_mode_only_those_break_whose_loss_was_accepted() {
    holds("compromised", &Bounds { subs: 1, ..COMPROMISED }, FORWARD);
    holds("compromised without a bridge", &Bounds { subs: 1, bridge: false, ..COMPROMISED }, FORWARD);
    let aborts = Bounds { aborts: 1, unkind: 0, ..COMPROMISED };
    holds("compromised and aborted", &aborts, FORWARD);
}

#[test]
fn three_subscribers_change_none_of_it() {
    holds("three", &Bounds { subs: 3, unkind: 0, ..QUICK }, FORWARD);
}

#[test]
fn without_a_cross_certificate_the_gates_alone_keep_every_pair() {
    holds("without a bridge", &UNBRIDGED, FORWARD);
}

#[test]
fn replicas_with_a_key_ring_each_make_one_root() {
    holds("a ring each", &Bounds { rings: 2, subs: 1, ..QUICK }, FORWARD);
    holds("a ring each, aborted", &Bounds { rings: 2, subs: 0, aborts: 1, ..QUICK }, FORWARD);
}

#[test]
fn a_caller_that_is_two_processes_is_waited_for_as_both() {
    holds("one caller, two processes", &Bounds { one_shots: true, ..QUICK }, FORWARD);
    let bounds = Bounds { one_shots: true, unkind: 0, aborts: 1, ..UNBRIDGED };
    holds("one caller, two processes, without a bridge", &bounds, FORWARD);
}

#[test]
fn whoever_has_a_bundle_of_another_history_is_waited_for() {
    holds("another history", &Bounds { forked: true, ..UNBRIDGED }, FORWARD);
}

/// Breaks it on purpose, asks one invariant alone, and expects that to notice.
fn is_caught(broken: Broken, by: Law, bounds: &Bounds) {
    let bounds = Bounds { broken: Some(broken), only: Some(by), ..*bounds };
    let found = search(&bounds);
    let (law, cause, path) =
        found.violation.unwrap_or_else(|| panic!("{broken:?} was not caught in {} states", found.states));
    println!("{broken:?} caught by {law:?}: {cause}, after {} events: {path:?}", path.len());
    let mended = search(&Bounds { broken: None, states: found.states, ..bounds });
    assert_eq!(mended.violation, None, "it is what was broken that is caught");
}

#[test]
fn a_gate_that_does_not_wait_for_acknowledgements_is_caught() {
    // With a bridge no pair breaks by it alone: whoever renews has the newest bundle in the same answer.
    is_caught(Broken::Acknowledgements, Law::I1, &UNBRIDGED);
    is_caught(Broken::Acknowledgements, Law::I2, &QUICK);
}

#[test]
fn a_gate_that_does_not_look_at_the_ledger_is_caught() {
    is_caught(Broken::Presented, Law::I1, &QUICK);
}

#[test]
fn gates_that_are_skipped_on_the_way_back_are_caught() {
    let bounds = Bounds { aborts: 1, unkind: 0, reverse: false, ..UNBRIDGED };
    is_caught(Broken::GoesBackBlindly, Law::I1, &bounds);
    is_caught(Broken::BuriesEarly, Law::I1, &bounds);
}

#[test]
fn a_digest_that_is_not_looked_at_is_caught() {
    is_caught(Broken::IgnoresDigests, Law::I1, &Bounds { forked: true, unkind: 0, ..UNBRIDGED });
}

#[test]
fn a_caller_whose_newest_bundle_speaks_for_all_its_processes_is_caught() {
    is_caught(Broken::CountsTheNewest, Law::I1, &Bounds { one_shots: true, unkind: 0, ..UNBRIDGED });
}

#[test]
fn those_who_break_unnamed_are_caught() {
    is_caught(Broken::AsksNobody, Law::I1, &Bounds { bridge: false, ..COMPROMISED });
}

#[test]
fn a_bridge_that_comes_after_whoever_needs_it_is_caught() {
    is_caught(Broken::CarriesLate, Law::I1, &COMPROMISED);
}

#[test]
fn an_issuer_below_a_root_that_signs_no_more_is_caught() {
    is_caught(Broken::FollowsBlindly, Law::I1, &Bounds { aborts: 1, unkind: 0, subs: 1, ..QUICK });
}

#[test]
fn two_keys_of_one_rotation_are_caught() {
    is_caught(Broken::SignsOver, Law::I8, &Bounds { rings: 2, subs: 0, ..QUICK });
}

#[test]
fn two_roots_that_are_active_are_caught() {
    is_caught(Broken::ActivatesBeside, Law::I3, &Bounds { subs: 0, ..QUICK });
}

#[test]
fn a_tainted_root_that_signs_again_is_caught() {
    is_caught(Broken::Forgives, Law::I7, &Bounds { aborts: 1, subs: 0, ..COMPROMISED });
}

#[test]
fn a_bundle_that_is_not_what_it_was_is_caught() {
    is_caught(Broken::LeavesTheNewRoot, Law::I10, &Bounds { aborts: 1, subs: 0, ..QUICK });
}

#[test]
fn killed_between_any_two_effects_and_restarted_it_reaches_the_same_state() {
    let bounds = Bounds { subs: 0, unkind: 0, ..QUICK };
    let begun = Model::new(&bounds).after(&Event::Start, &bounds).unwrap();
    let run = |killed: Option<usize>| {
        let (mut model, mut effects) = (begun.clone(), 0);
        loop {
            // Whoever was killed forgets what it was about to do; the other one goes on.
            let replica = usize::from(killed.is_some_and(|at| effects >= at));
            if model.store.issues_under(replica) != model.store.facts.active_root() {
                model = model.after(&Event::Follow(replica), &bounds).unwrap();
            } else if model.store.issues_under(1 - replica) != model.store.facts.active_root() {
                model = model.after(&Event::Follow(1 - replica), &bounds).unwrap();
                model = model.after(&Event::Perform(1 - replica), &bounds).unwrap();
                continue;
            } else if model.decide(replica, &bounds).is_some() {
                model = model.after(&Event::Look(replica), &bounds).unwrap();
            } else {
                return (model, effects);
            }
            if killed == Some(effects) {
                model.pending[0] = None;
                effects += 1;
                continue;
            }
            model = model.after(&Event::Perform(replica), &bounds).unwrap();
            effects += 1;
        }
    };
    let (end, effects) = run(None);
    println!("{effects} effects and moves from start to end");
    assert_eq!(end.store.rotation.as_ref().unwrap().outcome, Some(Outcome::Rotated));
    assert!(effects > 15);
    invariants::killed_between_any_two_effects_and_restarted_it_reaches_the_same_state(run).unwrap();
}
