//! The program under measurement, in a process of its own, and what the kernel says about it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rhizome_id::Timestamp;
use rhizome_tls::{ExpectedServer, IdentityDir, client_config};
use rhizome_x509::TrustAnchors;
use tempfile::TempDir;
use tonic::transport::Channel;

/// Clock ticks a second in `/proc`: fixed for user space on Linux.
const TICKS: f64 = 100.0;

pub(crate) struct Server {
    child: Child,
    port: u16,
    scratch: TempDir,
    tls: Arc<rustls::ClientConfig>,
}

impl Server {
    /// Starts the program on an empty store, lets `fill` put things into its database while it is stopped, starts it
    /// again and joins one node.
    pub(crate) fn start(fill: impl FnOnce(&Path)) -> Self {
        let scratch = TempDir::new().expect("a scratch directory");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
        let config = scratch.path().join("rhizome.yaml");
        let root = scratch.path().display();
        fs::write(
            &config,
            format!(
                "trust_domain: bench.test\nlisten: 127.0.0.1:{port}\ndata: {root}/data\n\
                 admin: {{ socket: {root}/admin.sock }}\nkeys: {{ sealing_key_file: {root}/sealing.key }}\n\
                 limits: {{ per_identity_per_second: 1000000, per_source_per_second: 100000 }}\n\
                 log: {{ format: text, level: warn }}\n"
            ),
        )
        .expect("the configuration");
        fs::create_dir(scratch.path().join("data")).expect("the data directory");
        let mut child = spawn(&config, scratch.path());
        stop(&mut child);
        fill(&scratch.path().join("data").join("rhizome.db"));
        let child = spawn(&config, scratch.path());
        let identity = join(scratch.path());
        let tls = tls(&identity);
        Self { child, port, scratch, tls }
    }

    /// A new connection of the joined node.
    pub(crate) async fn connect(&self) -> Channel {
        let address = format!("127.0.0.1:{}", self.port);
        rhizome_tls::connect(&address, Some(Arc::clone(&self.tls))).await.expect("a connection")
    }

    /// CPU time of the process so far, user and system, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the process runs");
        // Behind the name in parentheses: fields 14 and 15 of proc(5) are the 12th and 13th from there.
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
        (ticks(11) + ticks(12)) / TICKS
    }

    /// Resident memory, in MiB.
    pub(crate) fn memory_mib(&self) -> f64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir_all(self.scratch.path()));
    }
}

/// The program beside this one: both are built in release mode by the same command line.
fn program() -> PathBuf {
    let here = std::env::current_exe().expect("this program's path");
    let program = here.with_file_name("rhizome");
    assert!(program.exists(), "build the server first: cargo build --release -p rhizome");
    program
}

fn spawn(config: &Path, scratch: &Path) -> Child {
    let mut command = Command::new(program());
    command.arg("server").arg("--config").arg(config).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the server starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
    let socket = scratch.join("admin.sock");
    // The log is at `warn`: readiness shows at the socket. Whatever is logged is passed on.
    std::thread::spawn(move || {
        log.by_ref().map_while(Result::ok).for_each(|line| eprintln!("server: {line}"))
    });
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(child.try_wait().expect("the process").is_none(), "the server stopped");
        std::thread::yield_now();
    }
    child
}

fn stop(child: &mut Child) {
    let id = child.id().to_string();
    drop(Command::new("kill").args(["-TERM", &id]).status());
    drop(child.wait());
}

/// Joins a node through the program's own verbs; the directory of its identity.
fn join(scratch: &Path) -> PathBuf {
    let server = format!("unix://{}", scratch.join("admin.sock").display());
    let words =
        ["token", "create", "--cluster", "bench", "--node", "n1", "--namespace", "default", "--quiet"];
    let created = Command::new(program()).args(words).args(["--server", &server]).output().expect("a token");
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let join_string = String::from_utf8_lossy(&created.stdout).trim().to_owned();
    let directory = scratch.join("node");
    let joined = Command::new(program())
        .args(["node", "join", &join_string, "--out"])
        .arg(&directory)
        .output()
        .expect("a node");
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    directory
}

fn tls(identity: &Path) -> Arc<rustls::ClientConfig> {
    let stored = IdentityDir::new(identity).load().expect("the identity");
    let anchors = Arc::new(TrustAnchors::from_bundle(&stored.bundle));
    let expected = ExpectedServer::ServerOf(stored.bundle.trust_domain().clone());
    let config = client_config(anchors, Some(stored.identity), expected, Arc::new(now));
    Arc::new(config.expect("a configuration"))
}

#[expect(clippy::disallowed_methods, reason = "a benchmark runs in real time")]
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or_default())
}
