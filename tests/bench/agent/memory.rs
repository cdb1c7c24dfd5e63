//! How much memory the agent takes: idle, and with as many workloads as a large machine has, each of another user, each
//! with an identity and an open stream of its own.

use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::agent::Sizes;
use crate::agent::machine::Machine;
use crate::agent::rules;
use crate::figures::{heading, show};
use crate::process::Memory;
use crate::server::{Program, Server};
use crate::workload;

/// The first of the users, none of whom exists.
const FIRST_UID: u32 = 200_000;
/// Workloads that start at the same time.
const AT_ONCE: usize = 50;
/// Until everything that was begun is done: sealing, reports, buffers given back.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) async fn run(sizes: &Sizes) {
    heading("agent: memory (resident, of the real program; of it its own, and pages of its file)");
    let server = Server::launch(Program::Rhizome);
    let admin = server.admin().await;
    rules::put(&admin, "every-user", "unix.uid", "*", "/unix/{unix.uid}").await;
    let machine = Machine::joined(&server.join_string(admin, "memory").await);
    let (agent, _start) = machine.start();
    tokio::time::sleep(SETTLE).await;
    let idle = agent.memory();
    show("memory, idle", &figure(&idle), "≤ 12 MB", &raw(&idle));
    if !rustix::process::geteuid().is_root() {
        println!("memory with {} identities: SKIPPED, needs root to be as many users", sizes.identities);
        return;
    }
    let program = public_copy(&machine.path("workload"));
    let mut workloads = Workloads(Vec::new());
    let numbers: Vec<u32> = (FIRST_UID..).take(sizes.identities).collect();
    for batch in numbers.chunks(AT_ONCE) {
        let first = workloads.0.len();
        for uid in batch {
            workloads.start(&program, &machine.socket(), *uid);
        }
        workloads.0[first..].iter_mut().for_each(|(_, output)| workload::wait_until_served(output));
    }
    tokio::time::sleep(SETTLE).await;
    let busy = agent.memory();
    let what = format!("memory, {} identities and open streams", sizes.identities);
    let each = (busy.rss - idle.rss) * 1024.0 / sizes.identities as f64;
    let detail = format!("{}; {each:.1} KiB each; {} descriptors", raw(&busy), agent.descriptors());
    show(&what, &figure(&busy), "≤ 60 MB (of 1 000)", &detail);
}

fn figure(memory: &Memory) -> String {
    // The targets are in decimal megabytes.
    format!("{:.1} MB", memory.rss * 1.048_576)
}

fn raw(memory: &Memory) -> String {
    format!("VmRSS {:.1} MiB = own {:.1} + file {:.1}", memory.rss, memory.anonymous, memory.file)
}

/// A copy of this program that every user may run.
fn public_copy(to: &Path) -> std::path::PathBuf {
    fs::copy(std::env::current_exe().expect("this program's path"), to).expect("a copy");
    fs::set_permissions(to, Permissions::from_mode(0o755)).expect("a mode");
    to.to_owned()
}

/// Processes that hold a stream each, and what they say.
struct Workloads(Vec<(Child, std::process::ChildStdout)>);

impl Workloads {
    fn start(&mut self, program: &Path, socket: &Path, uid: u32) {
        let mut command = Command::new(program);
        command.arg(workload::VERB).arg(socket).uid(uid).gid(uid).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a workload");
        let output = child.stdout.take().expect("piped");
        self.0.push((child, output));
    }
}

impl Drop for Workloads {
    fn drop(&mut self) {
        for (child, output) in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
            drop(output.read_to_end(&mut Vec::new()));
        }
    }
}
