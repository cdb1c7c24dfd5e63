//! The search of the model: breadth first, every state once, with what it covered printed, and the way to a violation.
//!
//! Bounded are the unkind events on one path and, as a guard, depth and states; `RHIZOME_MODEL=deep` asks for more of them
//! (use a release build). Each test prints how deep it went, how many states it saw, whether they were all that there are
//! within the bounds, and which events it met in which phase.

use std::collections::{BTreeMap, HashSet};

use rhizome_core::rotation::{Mode, Outcome, Phase, invariants};

use crate::model::{Bounds, Broken, Event, Model};

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
    violation: Option<(String, Vec<Event>)>,
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
                let lower = next.store.facts.bundle.sequence < model.store.facts.bundle.sequence;
                let verdict = if lower { Err("the bundle's sequence fell".to_owned()) } else { next.check() };
                if let Err(cause) = verdict {
                    found.violation = Some((cause, path(&trail, number)));
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
    depth: 200,
    states: 400_000,
    broken: None,
};

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
    holds("compromised", &Bounds { mode: Mode::Compromised, subs: 1, ..QUICK }, FORWARD);
    holds("compromised, two", &Bounds { mode: Mode::Compromised, unkind: 0, ..QUICK }, FORWARD);
}

#[test]
fn three_subscribers_change_none_of_it() {
    holds("three", &Bounds { subs: 3, unkind: 0, ..QUICK }, FORWARD);
}

#[test]
fn without_a_cross_certificate_the_gates_alone_keep_every_pair() {
    holds("without a bridge", &Bounds { bridge: false, ..QUICK }, FORWARD);
}

fn is_caught(broken: Broken, bounds: &Bounds) {
    let found = search(&Bounds { broken: Some(broken), ..*bounds });
    let (cause, path) = found.violation.unwrap_or_else(|| panic!("{broken:?} was not caught"));
    println!("{broken:?} caught: {cause}, after {} events: {path:?}", path.len());
}

#[test]
fn a_gate_that_does_not_wait_for_acknowledgements_is_caught() {
    is_caught(Broken::Acknowledgements, &QUICK);
    is_caught(Broken::Acknowledgements, &Bounds { bridge: false, ..QUICK });
}

#[test]
fn a_gate_that_does_not_look_at_the_ledger_is_caught() {
    is_caught(Broken::Presented, &QUICK);
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
            } else if model.decide(&bounds).is_some() {
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
