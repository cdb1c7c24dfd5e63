//! A machine: the real agent program, with a state directory and a socket that every user may reach.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rhizome_tls::JoinString;
use tempfile::TempDir;

use crate::figures::now;
use crate::process::Process;
use crate::server::{pass_on, program};

pub(crate) struct Machine {
    scratch: TempDir,
}

impl Machine {
    /// A machine that has joined.
    pub(crate) fn joined(join: &JoinString) -> Self {
        let scratch = TempDir::new().expect("a scratch directory");
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).expect("a mode");
        let machine = Self { scratch };
        let text = join.encode().expect("a join string");
        let joined = machine.agent(&["join", &text]).output().expect("the agent's program");
        assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        copy(&machine.path("state"), &machine.path("joined"));
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run").join("agent.sock")
    }

    /// Puts the state back to what it was after joining: no identity of a workload in it.
    pub(crate) fn forget(&self) {
        fs::remove_dir_all(self.path("state")).expect("the state");
        copy(&self.path("joined"), &self.path("state"));
    }

    /// Starts the agent, and says when that was.
    pub(crate) fn start(&self) -> (Process, Instant) {
        let mut command = self.agent(&["run", "--socket"]);
        command.arg(self.socket()).args(["--log-level", "error"]).stderr(Stdio::piped());
        let start = now();
        let mut process = Process::spawn(&mut command);
        pass_on("agent", &mut process);
        (process, start)
    }

    fn agent(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("rhizome-agent", "rhizome-agent"));
        command.arg("--state").arg(self.path("state")).args(words);
        command
    }
}

/// Copies a directory of directories and files, with their modes.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    fs::set_permissions(to, from.metadata().expect("a directory").permissions()).expect("a mode");
    for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}
