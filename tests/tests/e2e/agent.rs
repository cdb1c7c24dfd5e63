//! A real agent in a process of its own, joined to a real server by a real join string.
//!
//! Laws: it serves when its socket accepts; its state outlives it, so that it can be started again.
//! Not here: agents in the test's own process (those belong to `rhizome-agent`).

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::process::Process;
use crate::server::{Server, binary};
use crate::support::must;

/// One agent.
pub(crate) struct Agent {
    process: Process,
    folder: PathBuf,
}

/// The agent's program: beside that of the server where that is given, or else built now.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if std::env::var_os("RHIZOME_BIN").is_none() {
            must(Command::new(env!("CARGO")).args(["build", "--package", "rhizome-agent", "--bins"]));
        }
        binary().with_file_name("rhizome-agent")
    })
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(program());
    command.env_remove("RHIZOME_AGENT_STATE").env("NO_COLOR", "1");
    command.arg("--state").arg(folder.join("state"));
    command
}

impl Agent {
    /// Joins as the node `name` and serves.
    pub(crate) fn join(server: &Server, name: &str) -> Self {
        Self::join_of(server, "dev", name)
    }

    /// Joins as the node `name` of `cluster` and serves.
    pub(crate) fn join_of(server: &Server, cluster: &str, name: &str) -> Self {
        let folder = server.scratch().join(name);
        must(command(&folder).args(["join", &server.join_string_of(cluster, name, &[])]));
        Self { process: run(&folder), folder }
    }

    /// Where workloads find it.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.folder)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the state that it has left behind.
    pub(crate) fn start_again(&mut self) {
        self.kill();
        self.process = run(&self.folder);
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("run/agent.sock")
}

fn run(folder: &Path) -> Process {
    let socket = socket(folder);
    let mut process =
        Process::start("agent", command(folder).arg("run").arg("--socket").arg(&socket), folder);
    process.wait_for("its socket", || match UnixStream::connect(&socket) {
        Ok(_accepted) => Ok(()),
        Err(fault) => Err(format!("{}: {fault}", socket.display())),
    });
    process
}

/// Puts a rule that gives `identity`, a path such as `/web`, to what runs `executable` as the user of this test.
pub(crate) fn grant(server: &Server, name: &str, executable: &Path, identity: &str, ttl: &str) {
    let user = format!("unix.uid={}", rustix::process::geteuid().as_raw());
    let path = format!("unix.path={}", executable.display());
    let words = ["rule", "put", "--name", name, "--when", &user, "--when", &path];
    must(server.admin(&words).args(["--grant", identity, "--ttl", ttl, "--yes"]));
}
