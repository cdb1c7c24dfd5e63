//! The benchmark: how close issuing is to the speed of the raw cryptography, and whether it stays so as things grow.
//!
//! Laws: the server is the real program in a process of its own, with full durability (SQLite, synchronous=FULL) and
//! real mTLS; what raw verify and sign cost is measured in the same run, before and after, on the same machine; every
//! ratio is printed with the numbers it came from. Nothing here passes or fails: figures are for reading.
//! Usage: `cargo run --release -p rhizome-tests --bin bench -- [--seconds 5] [--quick] [--only PART,PART]`

#![expect(
    clippy::expect_used,
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first surprise, and its figures are approximate anyway"
)]

mod agent;
mod figures;
mod growth;
mod load;
mod postgres;
mod process;
mod raw;
mod republish;
mod server;
mod workload;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use agent::Sizes;
use load::{Load, Mode};
use server::Server;

const USAGE: &str = "bench [--seconds N] [--quick] [--only PART[,PART…]]\n\
    --seconds N   how long each measurement of load runs (5)\n\
    --quick       small: leaves out growth and memory of the server, and shrinks the fleets\n\
    --only PARTS  ca: load, growth and memory of the server\n\
    \x20             postgres: the same load over PostgreSQL as over the embedded store\n\
    \x20             start: agent from its start to the first identity\n\
    \x20             memory: of the agent; as root with 1,000 users\n\
    \x20             change: a rule, a revocation, a bundle, until in force at 1,000 agents\n\
    \x20             bundle: pushed to 10,000 agents\n\
    \x20             herd: 10,000 agents stay, then restart at once\n\
    \x20             rotation: both roots distributed to 10,000 agents, with 1,000,000 ledger rows\n\
    \x20             agent: all of these from start to rotation";

/// The parts that `agent` stands for.
const AGENT: [&str; 6] = ["start", "memory", "change", "bundle", "herd", "rotation"];
const CA: &str = "ca";
const POSTGRES: &str = "postgres";

/// What the command line says.
struct Options {
    each: Duration,
    quick: bool,
    parts: BTreeSet<String>,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.as_slice() {
        // What this program is told by itself.
        [verb, socket] if verb == workload::VERB => return workload::hold(Path::new(socket)),
        [verb, config] if verb == republish::VERB => return republish::serve(Path::new(config)),
        _as_people_use_it => {}
    }
    let Some(options) = options(words) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    make_room();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run(&options));
}

fn options(words: Vec<String>) -> Option<Options> {
    let every = || AGENT.into_iter().chain([CA, POSTGRES]).map(str::to_owned).collect();
    let mut options = Options { each: Duration::from_secs(5), quick: false, parts: every() };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => options.each = Duration::from_secs(words.next()?.parse().ok()?),
            "--quick" => options.quick = true,
            "--only" => {
                let wanted = words.next()?.replace("agent", &AGENT.join(","));
                options.parts = wanted.split(',').map(str::to_owned).collect();
            }
            _ => return None,
        }
    }
    options.parts.is_subset(&every()).then_some(options)
}

/// Room for as many connections as the machine allows: a fleet is in this one process, and what it starts inherits it.
fn make_room() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let given = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: given.maximum, maximum: given.maximum };
    setrlimit(Resource::Nofile, wanted).expect("a soft limit may be as high as the hard one");
}

async fn run(options: &Options) {
    machine();
    let sizes = if options.quick { Sizes::QUICK } else { Sizes::FULL };
    let wanted = |part: &str| options.parts.contains(part);
    if wanted(CA) {
        ca(options).await;
    }
    if wanted(POSTGRES) {
        postgres::beside_the_embedded_store(options.each).await;
    }
    if wanted("start") {
        agent::start(&sizes).await;
    }
    if wanted("memory") {
        agent::memory(&sizes).await;
    }
    if wanted("change") {
        agent::change(&sizes).await;
    }
    if wanted("bundle") {
        agent::bundle(&sizes).await;
    }
    if wanted("herd") {
        agent::herd(&sizes).await;
    }
    if wanted("rotation") {
        agent::rotation(&sizes).await;
    }
}

async fn ca(options: &Options) {
    let raw = raw::measure();
    println!(
        "raw, one thread:   verify {:.1} µs + sign {:.1} µs = {:.1} µs",
        raw.verify,
        raw.sign,
        raw.both()
    );

    let server = Server::start(|_database| {});
    println!("server:            idle {:.1} MiB", server.memory_mib());
    let mut ratios = Vec::new();
    for (mode, connections, in_flight) in
        [(Mode::Stream, 2, 64), (Mode::Unary, 2, 64), (Mode::Unary, 8, 32), (Mode::Unary, 1, 1)]
    {
        let load = Load { mode, connections, in_flight, pace: None };
        let outcome = load.run(&server, options.each).await;
        outcome.print(&raw);
        ratios.push((outcome.cpu_per_certificate, outcome.per_second, load));
    }
    // Single calls: a stream has no pace but its caller's.
    let unary = ratios.iter().filter(|(_, _, load)| load.mode == Mode::Unary);
    let busiest = unary.max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((_, saturation, load)) = busiest {
        let pace = Some(saturation * 0.7);
        let paced = Load { pace, ..*load }.run(&server, options.each).await;
        println!("at 70 % of saturation:");
        paced.print(&raw);
    }
    let again = raw::measure();
    println!(
        "raw, again:        verify {:.1} µs + sign {:.1} µs = {:.1} µs",
        again.verify,
        again.sign,
        again.both()
    );
    let busy = raw::measure_among_busy();
    println!(
        "raw, all cores busy: verify {:.1} µs + sign {:.1} µs = {:.1} µs",
        busy.verify,
        busy.sign,
        busy.both()
    );
    let base = f64::midpoint(raw.both(), again.both());
    for (cpu, _, load) in &ratios {
        let (idle, loaded) = (cpu / base, cpu / busy.both());
        println!("ratio to raw:      {idle:.2} idle, {loaded:.2} all cores busy  ({load}; target 1.35)");
    }
    if !options.quick {
        load::memory_per_connection(&server, 1_000).await;
        drop(server);
        growth::with_ledger_rows(&[1_000, 100_000, 1_000_000], options.each).await;
        growth::with_rules(&[1_000, 100_000], options.each).await;
    }
}

fn machine() {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("machine:           {cores} cores of {}", model.trim_start_matches([' ', '\t', ':']));
}
