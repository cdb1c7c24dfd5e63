//! A real server in a process of its own, on loopback, with everything it keeps in a scratch directory.
//!
//! Laws: it is ready when its log says so, and no test sleeps for it; it is killed when the value is dropped; its log
//! is part of every failure, and a panic in that log is one, in whatever story.
//! Not here: servers in the test's own process (those belong to `rhizome-server`); calls over gRPC (`client`).

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{must, said};

/// A debug build on a busy machine founds its authority and listens well within this.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Lines of a log that a failure shows.
const LOG_SHOWN: usize = 40;

/// Where a server keeps everything, with its configuration.
pub(crate) struct Home {
    directory: TempDir,
    data: PathBuf,
    /// Further variables of the server's environment.
    environment: Vec<(&'static str, PathBuf)>,
}

/// One running server.
pub(crate) struct Server {
    child: Child,
    address: String,
    log: Receiver<String>,
    /// What was read of the log so far.
    heard: Vec<String>,
    home: Home,
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

impl Home {
    /// For the trust domain `example.test`; `more` is appended to the configuration.
    pub(crate) fn new(more: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let data = directory.path().join("data");
        fs::create_dir(&data).unwrap();
        Self::on(directory, data, more)
    }

    /// With its data in a directory that is there already.
    pub(crate) fn on(directory: TempDir, data: PathBuf, more: &str) -> Self {
        let home = Self { directory, data, environment: Vec::new() };
        fs::write(home.config(), configuration(home.path(), &home.data, more)).unwrap();
        home
    }

    /// On a port of the caller's choice, which it then has after a restart, too.
    pub(crate) fn listening_on(self, port: u16) -> Self {
        let text = fs::read_to_string(self.config()).unwrap();
        fs::write(self.config(), text.replace("listen: 127.0.0.1:0", &format!("listen: 127.0.0.1:{port}")))
            .unwrap();
        self
    }

    /// With further lines in the section `keys` of its configuration, and a variable in its environment.
    pub(crate) fn with_keys(mut self, lines: &str, variable: Option<(&'static str, PathBuf)>) -> Self {
        let text = fs::read_to_string(self.config()).unwrap();
        fs::write(self.config(), text.replace("keys:\n", &format!("keys:\n{lines}"))).unwrap();
        self.environment.extend(variable);
        self
    }

    /// Under another name, for several servers over one database.
    pub(crate) fn named(self, replica: &str) -> Self {
        let text = fs::read_to_string(self.config()).unwrap();
        fs::write(self.config(), text.replace("replica: r1", &format!("replica: {replica}"))).unwrap();
        self
    }

    /// For another trust domain.
    pub(crate) fn of(self, domain: &str) -> Self {
        let text = fs::read_to_string(self.config()).unwrap();
        let own = format!("trust_domain: {domain}");
        fs::write(self.config(), text.replace("trust_domain: example.test", &own)).unwrap();
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("rhizome.yaml")
    }

    /// The directory of the database and of the sealed keys.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.data.join("rhizome.db")
    }

    /// The server as a command, for tests about how it starts.
    pub(crate) fn command(&self) -> Command {
        let mut command = rhizome();
        command.arg("server").arg("--config").arg(self.config()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the server and kills it once its log has this many lines: those, and whether it was ready by then.
    pub(crate) fn killed_after_lines(&self, count: usize) -> (Vec<String>, bool) {
        let (mut child, log) = spawn(self);
        let said: Vec<String> = log.iter().take(count).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let ready = said.iter().any(|line| line.contains("\"message\":\"ready\""));
        (said, ready)
    }

    /// A copy of everything that a stopped server has left behind, at another place.
    pub(crate) fn copy(&self, more: &str) -> Self {
        let home = Self::new(more);
        must(Command::new("cp").arg("-a").arg(self.data().join(".")).arg(home.data()));
        fs::copy(self.path().join("sealing.key"), home.path().join("sealing.key")).unwrap();
        home
    }

    /// Starts the server, which may refuse: then with what code it ended, and its log.
    pub(crate) fn try_serve(self) -> Result<Server, (Option<i32>, String)> {
        let (mut child, log) = spawn(&self);
        let mut heard = Vec::new();
        while let Ok(line) = log.recv_timeout(START_LIMIT) {
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            heard.push(line);
            if event["message"] == "ready" {
                let address = event["address"].as_str().expect("an address").to_owned();
                return Ok(Server { child, address, log, heard, home: self });
            }
        }
        // The log has ended, so the process is about to; or it hangs, and is ended here.
        let refused =
            child.try_wait().unwrap().or_else(|| log.recv().is_err().then(|| child.wait().unwrap()));
        drop(child.kill());
        Err((refused.and_then(|status| status.code()), heard.join("\n")))
    }

    /// Starts the server and waits until it is ready.
    pub(crate) fn serve(self) -> Server {
        let (child, log) = spawn(&self);
        // Owns the child from here on, so that a failure below ends it.
        let mut server = Server { child, address: String::new(), log, heard: Vec::new(), home: self };
        server.wait_until_ready();
        server
    }
}

fn spawn(home: &Home) -> (Child, Receiver<String>) {
    let mut child = home.command().spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let (sender, log) = channel();
    // Ends with the child: its standard error closes.
    thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    (child, log)
}

impl Server {
    /// Starts a server for the trust domain `example.test` and waits until it is ready.
    pub(crate) fn start() -> Self {
        Home::new("").serve()
    }

    fn wait_until_ready(&mut self) {
        let event = self.hears(|event| event["message"] == "ready");
        self.address = event["address"].as_str().expect("an address").to_owned();
    }

    /// The first event of the log, from here on, that is `wanted`.
    pub(crate) fn hears(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            match self.log.recv_timeout(START_LIMIT) {
                Ok(line) => {
                    let event: Value = serde_json::from_str(&line).unwrap_or_default();
                    self.heard.push(line);
                    if wanted(&event) {
                        return event;
                    }
                }
                Err(fault) => panic!("the server never said it ({fault}): {}", self.heard.join("\n")),
            }
        }
    }

    /// SIGKILL from any thread, without a detour; [`Server::kill`] has to follow.
    pub(crate) fn killer(&self) -> impl FnOnce() + Send + 'static {
        let process = Pid::from_child(&self.child);
        // Not reaped before `kill`, so the number is still this child's.
        move || kill_process(process, Signal::KILL).unwrap()
    }

    /// SIGKILL: it gets no chance to do anything more.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits until it has drained.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        must(Command::new("kill").args(["-TERM", &self.id().to_string()]));
        self.child.wait().unwrap()
    }

    /// Starts it again on what it has left behind.
    pub(crate) fn start_again(&mut self) {
        self.heard.extend(self.log.iter());
        (self.child, self.log) = spawn(&self.home);
        self.wait_until_ready();
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// `https://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A directory that lives as long as the server.
    pub(crate) fn scratch(&self) -> &Path {
        self.home.path()
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

    /// A join string for a node that may vouch for the namespace `default`.
    pub(crate) fn join_string(&self, name: &str, more: &[&str]) -> String {
        self.join_string_of("dev", name, more)
    }

    /// The same for a node of `cluster`.
    pub(crate) fn join_string_of(&self, cluster: &str, name: &str, more: &[&str]) -> String {
        let words =
            ["token", "create", "--cluster", cluster, "--namespace", "default", "--quiet", "--node", name];
        line(&must(self.admin(&words).args(more)))
    }

    /// Joins a node that may vouch for the namespace `default`; the directory of its identity.
    pub(crate) fn join_node(&self, name: &str) -> PathBuf {
        let directory = self.scratch().join(name);
        must(&mut join(&self.join_string(name, &[]), &directory));
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
        // It may have ended by itself; either way it is gone after this, and its log has an end.
        drop(self.child.kill());
        drop(self.child.wait());
        self.heard.extend(self.log.iter());
        if thread::panicking() {
            let last = self.heard.len().saturating_sub(LOG_SHOWN);
            println!("the end of the server's log:\n{}", self.heard[last..].join("\n"));
            return;
        }
        let panics: Vec<_> = self.heard.iter().filter(|line| line.contains("panicked")).collect();
        assert_eq!(panics, [""; 0], "the server panicked");
    }
}

/// `node join`, into `out`.
pub(crate) fn join(join_string: &str, out: &Path) -> Command {
    let mut command = rhizome();
    command.args(["node", "join", join_string]).arg("--out").arg(out);
    command
}

/// The first line that a program printed.
pub(crate) fn line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or_else(|| panic!("nothing was printed: {}", said(output))).to_owned()
}

fn admin_socket(scratch: &Path) -> PathBuf {
    scratch.join("admin.sock")
}

fn configuration(scratch: &Path, data: &Path, more: &str) -> String {
    format!(
        "trust_domain: example.test\nreplica: r1\nlisten: 127.0.0.1:0\ndata: {data}\n\
         admin:\n  socket: {socket}\nkeys:\n  sealing_key_file: {at}/sealing.key\n\
         log:\n  format: json\n  level: info\n{more}",
        data = data.display(),
        at = scratch.display(),
        socket = admin_socket(scratch).display()
    )
}
