//! Many seeds of the simulation, shared out over the cores, and what they covered.
//!
//! `RHIZOME_SIM_SEEDS=N` runs N seeds, `RHIZOME_SIM_SEED=S` replays one and prints its events. A failure names its seed.

use std::collections::BTreeMap;

use rhizome_core::rotation::{Heading, Outcome, Phase};

use crate::parts::{AGENTS, BEGIN, SERVERS};
use crate::simulation::Sim;

fn run(seed: u64, events: usize, verbose: bool) -> Result<Sim, String> {
    let mut sim = Sim::new(seed, verbose);
    let told = |sim: &Sim, cause| format!("seed {seed}, {} s in: {cause}", sim.now - BEGIN);
    for agent in 0..AGENTS {
        let begin = |sim: &mut Sim| {
            sim.ask(agent, agent % SERVERS);
            sim.land()
        };
        sim.step(begin).map_err(|cause| told(&sim, cause))?;
    }
    for _ in 0..events {
        sim.step(Sim::event).map_err(|cause| told(&sim, cause))?;
    }
    sim.heal().map_err(|cause| told(&sim, cause))?;
    Ok(sim)
}

/// What a number of runs covered.
#[derive(Default)]
struct Found {
    covered: BTreeMap<(Phase, Heading), BTreeMap<&'static str, usize>>,
    ends: BTreeMap<Option<Outcome>, usize>,
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
        self.events += other.events;
        self
    }
}

fn runs(seeds: impl Iterator<Item = u64>, verbose: bool) -> Found {
    seeds.fold(Found::default(), |found, seed| {
        let sim = run(seed, 600, verbose).unwrap_or_else(|cause| {
            panic!("{cause}\nreplay: RHIZOME_SIM_SEED={seed} cargo test -p rhizome-core --test rotation whatever_fails")
        });
        let end = sim.db.store.rotation.as_ref().and_then(|it| it.outcome);
        let events = sim.covered.values().flat_map(BTreeMap::values).sum();
        found.and(Found { covered: sim.covered, ends: [(end, 1)].into(), events })
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
        None => (0, switch("RHIZOME_SIM_SEEDS").unwrap_or(300)),
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
    let Found { covered, ends, events } = shares.into_iter().fold(Found::default(), Found::and);
    println!("{count} seeds, {events} events, ends: {ends:?}");
    for ((phase, heading), row) in &covered {
        let row: Vec<String> = row.iter().map(|(what, times)| format!("{what} {times}")).collect();
        println!("  {phase} {heading:?}: {}", row.join(", "));
    }
    if count >= 300 {
        let places = Phase::ALL.iter().filter(|it| covered.contains_key(&(**it, Heading::Forward))).count();
        assert_eq!(places, Phase::ALL.len(), "every phase was reached");
        for back in [Phase::Active, Phase::Distributing, Phase::Staged] {
            assert!(covered.contains_key(&(back, Heading::Back)), "{back} was never passed on the way back");
        }
    }
}
