//! What a certificate costs with PostgreSQL as the store, beside the embedded one.
//!
//! Laws: both servers are the real program with full durability (SQLite with synchronous=FULL; PostgreSQL as its package
//! configures it, fsync and synchronous_commit on) and run on this machine in the same run, in turns, so that a clock
//! that changes its speed does not favour one. The ratio is of the server's CPU time; the database's own processes
//! share the machine, which is why certificates a second are printed, too, and why those are not a ratio of anything.

use std::time::Duration;

use rhizome_store::cluster::Cluster;

use crate::load::{Load, Mode};
use crate::raw;
use crate::server::Server;

const LOADS: [Load; 3] = [
    Load { mode: Mode::Stream, connections: 2, in_flight: 64, pace: None },
    Load { mode: Mode::Unary, connections: 2, in_flight: 64, pace: None },
    Load { mode: Mode::Unary, connections: 1, in_flight: 1, pace: None },
];

pub(crate) async fn beside_the_embedded_store(each: Duration) {
    let Some(cluster) = Cluster::start() else { return };
    let embedded = Server::start(|_database| {});
    let shared = Server::over_postgres(&cluster.database());
    let raw = raw::measure();
    println!(
        "server:            idle {:.1} MiB embedded, {:.1} MiB over PostgreSQL",
        embedded.memory_mib(),
        shared.memory_mib()
    );
    for load in LOADS {
        let mut cpu = [0.0; 2];
        for (place, (store, server)) in [("embedded", &embedded), ("PostgreSQL", &shared)].iter().enumerate()
        {
            print!("{store:>10}, ");
            let outcome = load.run(server, each).await;
            outcome.print(&raw);
            cpu[place] = outcome.cpu_per_certificate;
        }
        let [embedded, shared] = cpu;
        println!("PostgreSQL to embedded: {:.2}  ({load})", shared / embedded);
    }
}
