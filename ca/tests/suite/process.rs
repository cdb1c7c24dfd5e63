//! The binary as a process that never outlives its test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::Value;

/// Runs the binary to its end.
pub(crate) fn rhizome(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
    command.args(arguments).env_remove("RHIZOME_SERVER").env_remove("RHIZOME_IDENTITY");
    command.stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A directory with a configuration for a server on loopback.
pub(crate) struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    /// `more` is appended to the configuration.
    pub(crate) fn new(more: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("rhz").tempdir().unwrap();
        let home = Self { directory };
        std::fs::create_dir(home.data()).unwrap();
        let text = format!(
            "trust_domain: example.org\nlisten: 127.0.0.1:0\ndata: {}\nadmin: {{socket: {}}}\nkeys: {{sealing_key_file: {}}}\n{more}",
            home.data().display(),
            home.path("admin.sock").display(),
            home.path("sealing.key").display(),
        );
        std::fs::write(home.path("rhizome.yaml"), text).unwrap();
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn config(&self) -> String {
        self.text("rhizome.yaml")
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs an administrators' verb against the server, and gives its JSON.
    pub(crate) fn admin(&self, arguments: &[&str]) -> (Output, Value) {
        let server = format!("unix://{}", self.path("admin.sock").display());
        let output = rhizome(&[&["--server", &server, "--output", "json"], arguments].concat());
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output, json)
    }

    /// Starts the server and waits until it says that it is ready.
    pub(crate) fn serve(&self) -> Server {
        self.serve_by(Command::new(env!("CARGO_BIN_EXE_rhizome")))
    }

    /// As [`Self::serve`], by a command that ends with running the binary in its own place.
    pub(crate) fn serve_by(&self, mut command: Command) -> Server {
        command.args(["server", "--config", &self.config()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = Vec::new();
        let ready = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready: {lines:#?}");
            let json: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if json["message"] == "ready" {
                break json;
            }
            lines.push(line);
        };
        Server { child, ready, log, lines }
    }
}

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    /// What it said when it was ready.
    pub(crate) ready: Value,
    /// What it said before.
    pub(crate) lines: Vec<String>,
    log: BufReader<std::process::ChildStderr>,
}

impl Server {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The next line of the log that says `part`.
    pub(crate) fn hears(&mut self, part: &str) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "it ended without saying {part}");
            if line.contains(part) {
                return serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            }
        }
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
