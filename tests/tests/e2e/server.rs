//! A real server in a process of its own, on loopback, with everything it keeps in a scratch directory.
//!
//! Laws: it is ready when its log says so, and no test sleeps for it; it is killed when the value is dropped; its log
//! is part of every failure. Not here: servers in the test's own process (those belong to `rhizome-server`).

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{must, said};

/// A debug build on a busy machine founds its authority and listens well within this.
const START_LIMIT: Duration = Duration::from_secs(60);

/// One running server.
pub(crate) struct Server {
    child: Child,
    address: String,
    log: Receiver<String>,
    scratch: TempDir,
}

/// The program under test: `RHIZOME_BIN`, or else built now, so that it is never older than its sources.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("RHIZOME_BIN") {
            return path.into();
        }
        must(Command::new(env!("CARGO")).args(["build", "--package", "rhizome", "--bin", "rhizome"]));
        let this = std::env::current_exe().unwrap();
        let profile = this.parent().and_then(Path::parent).expect("target/<profile>/deps/<this>");
        profile.join("rhizome")
    })
}

/// The program, with no variable of the caller's environment that it would heed.
pub(crate) fn rhizome() -> Command {
    let mut command = Command::new(binary());
    command.env_remove("RHIZOME_SERVER").env_remove("RHIZOME_IDENTITY").stdin(Stdio::null());
    command
}

impl Server {
    /// Starts a server for the trust domain `example.test` and waits until it is ready.
    pub(crate) fn start() -> Self {
        let scratch = TempDir::new().unwrap();
        fs::create_dir(scratch.path().join("data")).unwrap();
        let config = configuration(scratch.path());
        let file = scratch.path().join("rhizome.yaml");
        fs::write(&file, config).unwrap();
        let mut command = rhizome();
        command.arg("server").arg("--config").arg(&file).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (sender, log) = channel();
        // Ends with the child: its standard error closes.
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // Owns the child from here on, so that a failure below ends it.
        let mut server = Self { child, address: String::new(), log, scratch };
        server.address = server.wait_until_ready();
        server
    }

    /// The address in the log line that says it is ready.
    fn wait_until_ready(&self) -> String {
        let mut said = Vec::new();
        loop {
            match self.log.recv_timeout(START_LIMIT) {
                Ok(line) => {
                    let event: Value = serde_json::from_str(&line).unwrap_or_default();
                    if event["message"] == "ready" {
                        return event["address"].as_str().expect("an address").to_owned();
                    }
                    said.push(line);
                }
                Err(fault) => panic!("the server is not ready ({fault}): {}", said.join("\n")),
            }
        }
    }

    /// `https://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A directory that lives as long as the server.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The administrators' socket, as a server address.
    pub(crate) fn admin_url(&self) -> String {
        format!("unix://{}", admin_socket(self.scratch()).display())
    }

    /// A verb for administrators, on the local socket.
    pub(crate) fn admin(&self, words: &[&str]) -> Command {
        let mut command = rhizome();
        command.args(words).arg("--server").arg(self.admin_url());
        command
    }

    /// Joins a node that may vouch for the namespace `default`; the directory of its identity.
    pub(crate) fn join_node(&self, name: &str) -> PathBuf {
        let words =
            ["token", "create", "--cluster", "dev", "--namespace", "default", "--quiet", "--node", name];
        let join_string = line(&must(&mut self.admin(&words)));
        let directory = self.scratch().join(name);
        must(rhizome().args(["node", "join", &join_string]).arg("--out").arg(&directory));
        directory
    }

    /// `cert request` as a node, into `out`: `key.pem`, `chain.pem` and `bundle.pem`.
    pub(crate) fn request_certificate(&self, node: &Path, account: &str, out: &Path) -> Command {
        let mut command = rhizome();
        command.args(["cert", "request", "--namespace", "default", "--service-account", account]);
        command.arg("--server").arg(self.url()).arg("--identity").arg(node).arg("--out").arg(out);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after this.
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let rest: Vec<String> = self.log.try_iter().collect();
            println!("the server's log since it was ready:\n{}", rest.join("\n"));
        }
    }
}

/// The first line that a program printed.
pub(crate) fn line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or_else(|| panic!("nothing was printed: {}", said(output))).to_owned()
}

fn admin_socket(scratch: &Path) -> PathBuf {
    scratch.join("admin.sock")
}

fn configuration(scratch: &Path) -> String {
    let at = scratch.display();
    format!(
        "trust_domain: example.test\nreplica: r1\nlisten: 127.0.0.1:0\ndata: {at}/data\n\
         admin:\n  socket: {socket}\nkeys:\n  sealing_key_file: {at}/sealing.key\n\
         log:\n  format: json\n  level: info\n",
        socket = admin_socket(scratch).display()
    )
}
