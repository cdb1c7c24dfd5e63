//! How long a workload waits for its first identity when its agent has just been started.

use std::time::Duration;

use crate::agent::Sizes;
use crate::agent::machine::Machine;
use crate::agent::rules;
use crate::figures::{Waits, heading, now, show};
use crate::server::{Program, Server};
use crate::workload::{Identities, identity};

/// Starts that fail take so long to be noticed.
const PATIENCE: Duration = Duration::from_secs(20);
const IDENTITY: &str = "/bench/start";

pub(crate) async fn run(sizes: &Sizes) {
    heading("agent: start to first identity (from the spawn of the process to the message at the workload)");
    let server = Server::launch(Program::Rhizome);
    let admin = server.admin().await;
    let uid = rustix::process::geteuid().as_raw().to_string();
    rules::put(&admin, "start", "unix.uid", &uid, IDENTITY).await;
    let machine = Machine::joined(&server.join_string(admin, "start").await);

    let up = waits(sizes.starts, || {
        machine.forget();
        first_identity(&machine)
    });
    show("start, CA up, nothing sealed", &figure(&up), "≤ 300 ms", &up.to_string());
    let again = waits(sizes.starts, || first_identity(&machine));
    show("start, CA up, state sealed", &figure(&again), "–", &again.to_string());
    drop(server);
    let down = waits(sizes.starts, || first_identity(&machine));
    show("start, CA down, state sealed", &figure(&down), "≤ 100 ms", &down.to_string());
    let bytes = std::env::current_exe().and_then(|it| it.metadata()).map_or(0, |it| it.len());
    println!("in each: SHA-256 of the workload's executable, {:.1} MiB", bytes as f64 / f64::from(1 << 20));
}

fn waits(count: usize, one: impl FnMut() -> Duration) -> Waits {
    std::iter::repeat_with(one).take(count).collect()
}

fn figure(waits: &Waits) -> String {
    format!("{:.1} ms", waits.at(0.5))
}

/// Starts the agent and ends it again, so that it seals what it holds.
fn first_identity(machine: &Machine) -> Duration {
    let (mut agent, start) = machine.start();
    let mut identities = Identities::open(&machine.socket(), || start.elapsed() > PATIENCE);
    let message = identities.next().expect("an identity");
    let took = now().duration_since(start);
    assert!(identity(&message, IDENTITY).is_some(), "another identity");
    // Nobody drives this client any more: left open, its connection would keep the agent until the drain is over.
    drop(identities);
    agent.terminate();
    took
}
