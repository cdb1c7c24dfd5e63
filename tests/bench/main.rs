//! The benchmark: how close issuing is to the speed of the raw cryptography, and whether it stays so as things grow.
//!
//! Laws: the server is the real program in a process of its own, with full durability (SQLite, synchronous=FULL) and
//! real mTLS; what raw verify and sign cost is measured in the same run, before and after, on the same machine; every
//! ratio is printed with the numbers it came from. Nothing here passes or fails: figures are for reading.
//! Usage: `cargo run --release -p rhizome-tests --bin bench -- [--seconds 5] [--quick]`

#![expect(
    clippy::expect_used,
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first surprise, and its figures are approximate anyway"
)]

mod growth;
mod load;
mod raw;
mod server;

use std::time::Duration;

use load::{Load, Mode};
use server::Server;

const USAGE: &str = "bench [--seconds N] [--quick]\n\
    --seconds N  how long each measurement runs (5)\n\
    --quick      leave out growth with rules and ledger rows, and memory";

/// What the command line says.
struct Options {
    each: Duration,
    quick: bool,
}

fn main() {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run(&options));
}

fn options() -> Option<Options> {
    let mut options = Options { each: Duration::from_secs(5), quick: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => options.each = Duration::from_secs(words.next()?.parse().ok()?),
            "--quick" => options.quick = true,
            _ => return None,
        }
    }
    Some(options)
}

async fn run(options: &Options) {
    machine();
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
