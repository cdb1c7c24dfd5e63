//! Many seeds of the simulation, shared out over the cores, and what they covered.
//!
//! `RHIZOME_SIM_SEEDS=N` runs N seeds, `RHIZOME_SIM_SEED=S` replays one and prints its events. A failure names its seed.

use std::collections::BTreeMap;

use rhizome_core::rotation::{Heading, Outcome, Phase};

use crate::broken::{Broken, Law};
use crate::parts::{AGENTS, BEGIN, Kind, SERVERS};
use crate::simulation::Sim;

/// Seeds of a run when nothing else is asked for.
const SEEDS: u64 = 48;
/// Seeds in which something broken on purpose must be caught.
const BROKEN_SEEDS: u64 = 100;

fn run(kind: Kind, events: usize, verbose: bool) -> Result<Sim, (Law, String)> {
    let mut sim = Sim::new(kind, verbose);
    let mut result = Ok(());
    for agent in 0..AGENTS {
        let begin = |sim: &mut Sim| {
            sim.ask(agent, agent % SERVERS);
            sim.land()
        };
        result = result.and_then(|()| sim.step(begin));
    }
    for _ in 0..events {
        result = result.and_then(|()| sim.step(Sim::event));
    }
    match result.and_then(|()| sim.heal()) {
        Ok(()) => Ok(sim),
        Err((law, cause)) => {
            Err((law, format!("seed {}, {} s in: {law:?}: {cause}", kind.seed, sim.now - BEGIN)))
        }
    }
}

/// What a number of runs covered.
#[derive(Default)]
struct Found {
    covered: BTreeMap<(Phase, Heading), BTreeMap<&'static str, usize>>,
    ends: BTreeMap<Option<Outcome>, usize>,
    asked: BTreeMap<Law, usize>,
    events: usize,
}

impl Found {
    fn and(mut self, other: Self) -> Self {
        for (place, row) in other.covered {
            for (what, times) in row {
                *self.covered.entry(place).or_default().entry(what).or_default() += times;
            }
        }
        for (end, times) in other.ends {
            *self.ends.entry(end).or_default() += times;
        }
        for (law, times) in other.asked {
            *self.asked.entry(law).or_default() += times;
        }
        self.events += other.events;
        self
    }
}

fn runs(seeds: impl Iterator<Item = u64>, verbose: bool) -> Found {
    seeds.fold(Found::default(), |found, seed| {
        let sim = run(Kind::of(seed), 600, verbose).unwrap_or_else(|(_, cause)| {
            panic!("{cause}\nreplay: RHIZOME_SIM_SEED={seed} cargo test -p rhizome-core --test rotation whatever_fails")
        });
        let end = sim.db.store.rotation.as_ref().and_then(|it| it.outcome);
        let events = sim.covered.values().flat_map(BTreeMap::values).sum();
        found.and(Found { covered: sim.covered, ends: [(end, 1)].into(), asked: sim.asked, events })
    })
}

#[expect(clippy::disallowed_methods, reason = "the two switches of this test")]
fn switch(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|it| it.parse().expect("a number"))
}

#[test]
fn whatever_fails_every_pair_can_authenticate_and_the_rotation_comes_to_its_end() {
    let (first, count) = match switch("RHIZOME_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, switch("RHIZOME_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    // Seeds know nothing of each other: every core takes its share of them.
    let workers = std::thread::available_parallelism().map_or(1, |it| u64::try_from(it.get()).unwrap());
    let shares: Vec<Found> = std::thread::scope(|scope| {
        let share = |worker| {
            scope.spawn(move || {
                runs((first + worker..first + count).step_by(usize::try_from(workers).unwrap()), count == 1)
            })
        };
        let running: Vec<_> = (0..workers).map(share).collect();
        running
            .into_iter()
            .map(|it| it.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause)))
            .collect()
    });
    let Found { covered, ends, asked, events } = shares.into_iter().fold(Found::default(), Found::and);
    println!("{count} seeds, {events} events, ends: {ends:?}");
    let never: Vec<Law> = Law::ALL.into_iter().filter(|it| !asked.contains_key(it)).collect();
    println!("  asked: {asked:?}, never asked: {never:?}");
    for ((phase, heading), row) in &covered {
        let row: Vec<String> = row.iter().map(|(what, times)| format!("{what} {times}")).collect();
        println!("  {phase} {heading:?}: {}", row.join(", "));
    }
    if count >= SEEDS {
        let places = Phase::ALL.iter().filter(|it| covered.contains_key(&(**it, Heading::Forward))).count();
        assert_eq!(places, Phase::ALL.len(), "every phase was reached");
        assert_eq!(never, [], "every invariant had something to say");
    }
    // An abort of one that trusts the new root alone already is rare.
    if count >= 1_000 {
        for back in [Phase::Active, Phase::Distributing, Phase::Staged] {
            assert!(covered.contains_key(&(back, Heading::Back)), "{back} was never passed on the way back");
        }
    }
}

/// Breaks it on purpose, asks one invariant alone, and expects that to notice.
fn is_caught(broken: Broken, by: Law) {
    let kind = |seed| Kind { broken: Some(broken), only: Some(by), ..Kind::of(seed) };
    let caught = (0..BROKEN_SEEDS).find_map(|seed| run(kind(seed), 600, false).err().map(|it| (seed, it)));
    let (seed, (law, cause)) = caught.unwrap_or_else(|| panic!("{broken:?} was not caught"));
    assert_eq!(law, by);
    println!("{broken:?} caught: {cause}");
    let mended = run(Kind { only: Some(by), ..Kind::of(seed) }, 600, false);
    assert!(mended.is_ok(), "it is what was broken that is caught");
}

#[test]
fn a_sequence_that_goes_on_from_the_backups_is_caught() {
    is_caught(Broken::RestoresTheSequence, Law::I9);
}

#[test]
fn serials_that_go_on_from_the_backups_are_caught() {
    is_caught(Broken::RestoresTheSerials, Law::I5);
}

#[test]
fn a_certificate_that_outlives_its_issuer_is_caught() {
    is_caught(Broken::OutlivesItsIssuer, Law::I4);
}
