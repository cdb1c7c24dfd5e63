//! A change of the root under a fleet: how long it takes until everybody has acknowledged both roots, and what the
//! machine's looks cost with a long ledger behind them.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::rotation_service_client::RotationServiceClient;
use tonic::transport::Channel;

use crate::agent::fleet::{Fleet, Heard, enroll};
use crate::agent::{Sizes, subscribers};
use crate::figures::{Waits, heading, now, show};
use crate::growth;
use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(120);
/// Looks that are measured, and what lies between two of them: more than the machine's pace.
const LOOKS: usize = 10;
const BETWEEN: Duration = Duration::from_millis(2_100);
/// How often somebody asks whether the next phase has come.
const ASK_EVERY: Duration = Duration::from_millis(50);

type Client = RotationServiceClient<Channel>;

pub(crate) async fn run(sizes: &Sizes) {
    heading("a change of the root (simulated agents; the real server, its ledger filled)");
    let (rows, fleet) = (sizes.rows, sizes.fleet);
    let mut server = growth::filled(move |database| growth::fill_with_living(database, rows, fleet));
    let mut client = RotationServiceClient::new(server.admin().await);
    let before = server.memory_mib();
    let start = now();
    plan(&mut client).await;
    let first = start.elapsed();
    let what = format!("rotation: the first plan, {rows} ledger rows");
    let raw = format!("{before:.1} MiB before, {:.1} after it", server.memory_mib());
    show(&what, &format!("{:.2} s", first.as_secs_f64()), "–", &raw);

    let nodes = enroll(&server, fleet).await;
    let mut fleet = Fleet::assemble(&server, &nodes).await;
    distribute(&server, &mut client, &mut fleet, nodes.len()).await;
    let looks = looks(&server).await;
    let what = format!("rotation: a look at {} agents, {rows} rows", nodes.len());
    show(&what, &format!("{:.1} ms", looks.at(0.5)), "≤ 50 ms", &looks.to_string());
    let (cpu, asked) = (server.cpu_seconds(), now());
    tokio::time::sleep(BETWEEN.saturating_mul(LOOKS as u32)).await;
    let share = (server.cpu_seconds() - cpu) / asked.elapsed().as_secs_f64() * 100.0;
    let raw = format!("{:.1} MiB", server.memory_mib());
    show("rotation: server CPU while a phase waits", &format!("{share:.1} %"), "–", &raw);

    drop(fleet);
    let doors = server.restart();
    show("rotation: restart in the midst of it, until doors open", &millis(doors), "–", "");
    let start = now();
    let mut client = RotationServiceClient::new(server.admin().await);
    get(&mut client).await;
    show("rotation: and until its status is known", &millis(start.elapsed()), "–", "the ledger is read");
}

fn millis(took: Duration) -> String {
    format!("{:.0} ms", took.as_secs_f64() * 1e3)
}

/// Begins, and waits until everybody has acknowledged both roots and the new one signs.
async fn distribute(server: &Server, client: &mut Client, fleet: &mut Fleet, count: usize) {
    let admin = server.admin().await;
    let first = subscribers::sequence(&admin).await;
    let everybody = subscribers::all_hold(&admin, first, count, PATIENCE).await;
    assert!(everybody.is_some(), "not everybody acknowledges the first bundle");
    let memory = server.memory_mib();
    let (cpu, start) = (server.cpu_seconds(), now());
    let request = admin::StartRotationRequest { choices: None, reason: "measured".to_owned() };
    client.start_rotation(request).await.expect("a change of the root");
    let answered = start.elapsed();
    let heard = fleet.hear(count, PATIENCE, |it| *it == Heard::Bundle(first + 1)).await;
    let heard: Waits = heard.into_iter().map(|at| at.duration_since(start)).collect();
    let held = subscribers::all_hold(&admin, first + 1, count, PATIENCE).await;
    let Some(held) = held else {
        println!("not everybody acknowledged: {:?}", get(client).await);
        return;
    };
    let took = held.duration_since(start);
    let spent = server.cpu_seconds() - cpu;
    let what = format!("rotation: both roots acknowledged by {count} agents");
    let raw = format!("of which {} until they are published; heard: {heard}", millis(answered));
    show(&what, &format!("{:.2} s", took.as_secs_f64()), "≤ 5 s (of 10 000)", &raw);
    let raw = format!("{memory:.1} MiB before, {:.1} after", server.memory_mib());
    show("rotation: server CPU for that", &format!("{spent:.2} s"), "–", &raw);
    while get(client).await.phase() < admin::RotationPhase::Active {
        assert!(start.elapsed() < PATIENCE, "the new root never signs: {:?}", get(client).await);
        tokio::time::sleep(ASK_EVERY).await;
    }
    let signs = start.elapsed();
    let raw = format!("server CPU {:.2} s", server.cpu_seconds() - cpu);
    show("rotation: until the new root signs", &format!("{:.2} s", signs.as_secs_f64()), "–", &raw);
}

async fn plan(client: &mut Client) {
    client.plan_rotation(admin::PlanRotationRequest::default()).await.expect("a plan");
}

async fn get(client: &mut Client) -> admin::Rotation {
    let answer = client.get_rotation(admin::GetRotationRequest {}).await.expect("a status");
    answer.into_inner().rotation.expect("a rotation")
}

/// How long the machine's looks took, as it says itself.
async fn looks(server: &Server) -> Waits {
    let mut found = Vec::new();
    for _ in 0..LOOKS {
        tokio::time::sleep(BETWEEN).await;
        found.push(look(server));
    }
    found.into_iter().collect()
}

fn look(server: &Server) -> Duration {
    let mut stream = std::net::TcpStream::connect(server.web_address()).expect("metrics");
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let value = text.lines().find_map(|line| line.strip_prefix("rhizome_rotation_look_seconds "));
    Duration::from_secs_f64(value.and_then(|it| it.parse().ok()).expect("the gauge"))
}
