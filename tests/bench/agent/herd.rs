//! A whole fleet that restarts at the same moment: every agent connects, says hello, hears everything and asks for one
//! certificate, every second one for its node and the others for a workload. And what a fleet costs that just stays.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rhizome_proto::ca::v1::IssuedCertificate;
use rhizome_proto::node::v1::RenewRequest;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::agent::Sizes;
use crate::agent::fleet::{Fleet, Following, Node, certificate, csr, enroll, new_key};
use crate::figures::{Waits, heading, now, show, spawn};
use crate::server::{Program, Server, today};

/// Whoever has no certificate by then has starved.
const PATIENCE: Duration = Duration::from_secs(120);
/// For as long the fleet does nothing.
const QUIET: Duration = Duration::from_secs(20);
/// The pace of an agent that cannot connect (`rhizome_agent::renewal::reconnect_after`).
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What is left of a workload's certificate of one hour when it is renewed at the latest, at 60 % of its life.
const LEFT: Duration = Duration::from_secs(24 * 60);

pub(crate) async fn run(sizes: &Sizes) {
    heading("a fleet (simulated agents; the real server)");
    let server = Server::launch(Program::Rhizome);
    let empty = server.memory_mib();
    let nodes = enroll(&server, sizes.fleet).await;
    let enrolled = server.memory_mib();
    let fleet = Fleet::assemble(&server, &nodes).await;
    // Until buffers of the handshakes are given back: nothing tells when.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let connected = server.memory_mib();
    let each = (connected - enrolled) * 1024.0 / nodes.len() as f64;
    let raw =
        format!("{empty:.1} MiB empty, {enrolled:.1} with {} nodes, {connected:.1} connected", nodes.len());
    show("server memory, per connected agent", &format!("{each:.1} KiB"), "≤ 48 KB", &raw);
    let cpu = server.cpu_seconds();
    tokio::time::sleep(QUIET).await;
    let share = (server.cpu_seconds() - cpu) / QUIET.as_secs_f64() * 100.0;
    show(
        "server CPU, nothing happens",
        &format!("{share:.2} %"),
        "–",
        &format!("of one core, over {QUIET:?}"),
    );
    drop(fleet);
    restart_all(&server, nodes).await;
}

/// How an agent fared.
struct Fared {
    /// Until it was connected, until it had heard everything, until it had its certificate.
    steps: [Duration; 3],
    failures: Vec<String>,
    expired: bool,
}

async fn restart_all(server: &Server, nodes: Vec<Node>) {
    let count = nodes.len();
    let wishes: Vec<Bytes> = nodes.iter().map(|_| csr(&new_key())).collect();
    let (cpu, zero) = (server.cpu_seconds(), now());
    let restarted = nodes.into_iter().zip(wishes).map(|(node, wish)| {
        let address = server.address();
        spawn(async move { tokio::time::timeout(PATIENCE, restart(&node, &address, &wish, zero)).await })
    });
    let mut restarted: FuturesUnordered<_> = restarted.collect();
    let (mut fared, mut kept, mut peak) = (Vec::new(), Vec::new(), 0f64);
    while let Some(outcome) = restarted.next().await {
        if let Ok((how, connection)) = outcome.expect("a simulated agent") {
            fared.push(how);
            kept.push(connection);
            if fared.len().is_multiple_of(100) {
                peak = peak.max(server.memory_mib());
            }
        }
    }
    let (cpu, took) = (server.cpu_seconds() - cpu, zero.elapsed());
    let step = |at: usize| fared.iter().map(|it| it.steps[at]).collect::<Waits>();
    let served = step(2);
    let starved = count - fared.len();
    let expired = fared.iter().filter(|it| it.expired).count();
    let failures: BTreeMap<&str, usize> =
        fared.iter().flat_map(|it| &it.failures).fold(BTreeMap::new(), |mut tally, cause| {
            *tally.entry(cause.as_str()).or_default() += 1;
            tally
        });
    let what = format!("herd: {count} agents restart, wait for a certificate");
    let target = format!("p99 ≤ {} s", LEFT.as_secs());
    show(&what, &format!("p99 {:.2} s", served.at(0.99) / 1e3), &target, &served.to_string());
    show("herd: starved", &starved.to_string(), "0", &format!("no certificate after {PATIENCE:?}"));
    show("herd: identities expired meanwhile", &expired.to_string(), "0", "");
    println!("until connected: {}", step(0));
    println!("until everything was heard: {}", step(1));
    println!(
        "all of it: {:.2} s; server CPU {cpu:.2} s, {:.2} ms each; server memory at most {peak:.1} MiB",
        took.as_secs_f64(),
        cpu * 1e3 / count as f64
    );
    failures.iter().for_each(|(cause, times)| println!("attempts that failed, {times} times: {cause}"));
}

/// From nothing to a certificate, with as many attempts as it takes.
async fn restart(node: &Node, address: &str, wish: &Bytes, zero: Instant) -> (Fared, (Channel, Following)) {
    let mut failures = Vec::new();
    loop {
        match attempt(node, address, wish, zero).await {
            Ok((steps, issued, channel, following)) => {
                let end = issued.not_after.map_or(0, |at| at.seconds);
                let expired = end < today().unix() || steps[2] > LEFT;
                return (Fared { steps, failures, expired }, (channel, following));
            }
            Err(cause) => failures.push(without_port(&cause)),
        }
        tokio::time::sleep(wait_before(failures.len(), node.number)).await;
    }
}

type Served = ([Duration; 3], IssuedCertificate, Channel, Following);

async fn attempt(node: &Node, address: &str, wish: &Bytes, zero: Instant) -> Result<Served, String> {
    let failed = |status: Status| rhizome_tls::cause_of(&status);
    let channel = node.connect(address).await.map_err(|cause| cause.to_string())?;
    let connected = zero.elapsed();
    let (following, _everything) = Following::begin(channel.clone()).await.map_err(failed)?;
    let heard = zero.elapsed();
    let issued = if node.number.is_multiple_of(2) {
        let request = RenewRequest { csr_der: wish.clone() };
        let answer = NodeServiceClient::new(channel.clone()).renew(request).await.map_err(failed)?;
        answer.into_inner().identity.ok_or("no certificate")?
    } else {
        certificate(channel.clone(), wish.clone()).await.map_err(failed)?
    };
    Ok(([connected, heard, zero.elapsed()], issued, channel, following))
}

/// Doubling, with half of it spread over the agents.
fn wait_before(failures: usize, number: usize) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let ceiling = doubled.min(LONGEST_WAIT);
    // The golden ratio's multiples spread evenly.
    let share = (number as f64 * 0.618_033_988_75 + failures as f64 * 0.414_213_562_37).fract();
    ceiling.mul_f64(0.5 + share / 2.0)
}

/// The sentence without the server's port, so that equal causes are counted together.
fn without_port(cause: &str) -> String {
    cause.chars().filter(|it| !it.is_ascii_digit()).collect()
}
