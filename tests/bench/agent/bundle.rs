//! How long it takes until a bundle is acknowledged by a whole fleet.

use std::time::Duration;

use crate::agent::fleet::{Fleet, Heard, enroll};
use crate::agent::{Sizes, subscribers};
use crate::figures::{Waits, heading, now, show};
use crate::republish::republish;
use crate::server::{Program, Server};

const PATIENCE: Duration = Duration::from_secs(60);
const ROUNDS: usize = 5;

pub(crate) async fn run(sizes: &Sizes) {
    heading("a bundle pushed to a fleet (simulated agents; the server that republishes)");
    let server = Server::launch(Program::Republishing);
    let admin = server.admin().await;
    let nodes = enroll(&server, sizes.fleet).await;
    let mut fleet = Fleet::assemble(&server, &nodes).await;
    let first = subscribers::sequence(&admin).await;
    let everybody = subscribers::all_hold(&admin, first, nodes.len(), PATIENCE).await;
    assert!(everybody.is_some(), "not everybody acknowledges the first bundle");
    let mut all = Vec::new();
    for round in 1..=ROUNDS {
        let next = subscribers::sequence(&admin).await + 1;
        let (cpu, start) = (server.cpu_seconds(), now());
        republish(admin.clone()).await;
        let heard = fleet.hear(nodes.len(), PATIENCE, |it| *it == Heard::Bundle(next)).await;
        let waits: Waits = heard.into_iter().map(|at| at.duration_since(start)).collect();
        let held = subscribers::all_hold(&admin, next, nodes.len(), PATIENCE).await;
        let cpu = server.cpu_seconds() - cpu;
        let Some(held) = held else {
            let behind = subscribers::show(&admin).await.behind_count;
            println!("round {round}: {behind} never acknowledged; heard: {waits}");
            continue;
        };
        let took = held.duration_since(start);
        println!(
            "round {round}: acknowledged by all after {:.2} s; heard: {waits}; server CPU {cpu:.2} s",
            took.as_secs_f64()
        );
        all.push(took);
    }
    let all: Waits = all.into_iter().collect();
    let what = format!("bundle: acknowledged by {} agents", nodes.len());
    show(&what, &format!("{:.2} s", all.at(0.5) / 1e3), "≤ 5 s (of 10 000)", &all.to_string());
}
