//! The server under measurement, in a process of its own.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rhizome_id::Timestamp;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_proto::admin::v1::{CreateTokenRequest, Scope};
use rhizome_tls::{ExpectedServer, IdentityDir, JoinString, client_config};
use rhizome_x509::TrustAnchors;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::figures::now;
use crate::process::Process;

pub(crate) const CLUSTER: &str = "bench";

/// Which program serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// The real one.
    Rhizome,
    /// This one, with the same parts wired the same way, which can publish its bundle anew (`republish`).
    Republishing,
}

pub(crate) struct Server {
    process: Process,
    port: u16,
    /// Where metrics are served, if they are.
    web: Option<u16>,
    scratch: TempDir,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Server {
    /// Starts the real program on an empty store, lets `fill` put things into its database while it is stopped, starts
    /// it again and joins one node.
    pub(crate) fn start(fill: impl FnOnce(&Path)) -> Self {
        let mut server = Self::filled(fill);
        server.join();
        server
    }

    /// As [`Self::start`], and nobody joins.
    pub(crate) fn filled(fill: impl FnOnce(&Path)) -> Self {
        let web = free_port();
        let mut server =
            Self::launch_with(Program::Rhizome, &format!("web: {{ listen: 127.0.0.1:{web} }}\n"));
        server.web = Some(web);
        server.process.terminate();
        fill(&server.scratch.path().join("data").join("rhizome.db"));
        server.process = spawn(Program::Rhizome, server.scratch.path());
        server
    }

    /// Joins one node, whose connections are measured.
    pub(crate) fn join(&mut self) {
        self.tls = Some(tls(&join(self.scratch.path())));
    }

    /// Stops the program and starts it again; how long the start took, until administrators can connect.
    pub(crate) fn restart(&mut self) -> Duration {
        self.process.terminate();
        let start = now();
        self.process = spawn(Program::Rhizome, self.scratch.path());
        start.elapsed()
    }

    /// Starts `program` on an empty store.
    pub(crate) fn launch(program: Program) -> Self {
        Self::launch_with(program, "")
    }

    /// Starts the real program on an empty PostgreSQL database and joins one node.
    pub(crate) fn over_postgres(database: &str) -> Self {
        let mut server =
            Self::launch_with(Program::Rhizome, &format!("store: {{ postgres: \"{database}\" }}\n"));
        server.join();
        server
    }

    /// Starts `program` on an empty store, with these lines of configuration besides its own.
    fn launch_with(program: Program, besides: &str) -> Self {
        let scratch = TempDir::new().expect("a scratch directory");
        let port = free_port();
        let root = scratch.path().display();
        fs::write(
            scratch.path().join("rhizome.yaml"),
            format!(
                "trust_domain: bench.test\nlisten: 127.0.0.1:{port}\ndata: {root}/data\n\
                 admin: {{ socket: {root}/admin.sock }}\nkeys: {{ sealing_key_file: {root}/sealing.key }}\n\
                 limits: {{ per_identity_per_second: 1000000, per_source_per_second: 100000 }}\n\
                 log: {{ format: text, level: warn }}\n{besides}"
            ),
        )
        .expect("the configuration");
        fs::create_dir(scratch.path().join("data")).expect("the data directory");
        let process = spawn(program, scratch.path());
        Self { process, port, web: None, scratch, tls: None }
    }

    /// Where agents connect.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where metrics are served.
    pub(crate) fn web_address(&self) -> String {
        format!("127.0.0.1:{}", self.web.expect("a server that was filled"))
    }

    /// A new connection of the joined node.
    pub(crate) async fn connect(&self) -> Channel {
        let tls = self.tls.clone().expect("a joined node");
        rhizome_tls::connect(&self.address(), Some(tls)).await.expect("a connection")
    }

    /// A new connection of an administrator, on the socket.
    pub(crate) async fn admin(&self) -> Channel {
        let socket = format!("unix://{}", self.scratch.path().join("admin.sock").display());
        rhizome_tls::connect(&socket, None).await.expect("the administrators' socket")
    }

    /// A join string for a node of this name, which may vouch for everything.
    pub(crate) async fn join_string(&self, admin: Channel, node: &str) -> JoinString {
        let request = CreateTokenRequest {
            cluster: CLUSTER.to_owned(),
            node: node.to_owned(),
            scope: Some(Scope { all_namespaces: true, namespaces: Vec::new() }),
            ttl_seconds: 3_600,
        };
        let answer =
            TokenServiceClient::new(admin).create_token(request).await.expect("a token").into_inner();
        let digest =
            |raw: &bytes::Bytes| rhizome_id::Digest::from_bytes(raw.as_ref().try_into().expect("32 bytes"));
        let pins = answer.root_digests.iter().map(digest).collect();
        let domain = answer.trust_domain.parse().expect("a trust domain");
        JoinString::new(vec![self.address()], domain, pins, answer.secret).expect("a join string")
    }

    /// CPU time of the process so far, user and system, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.process.cpu_seconds()
    }

    /// Resident memory, in MiB.
    pub(crate) fn memory_mib(&self) -> f64 {
        self.process.memory().rss
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port()
}

/// The program beside this one: built in release mode by the same command line.
pub(crate) fn program(name: &str, package: &str) -> PathBuf {
    let here = std::env::current_exe().expect("this program's path");
    let program = here.with_file_name(name);
    assert!(program.exists(), "build it first: cargo build --release -p {package}");
    program
}

fn spawn(which: Program, scratch: &Path) -> Process {
    let mut command = match which {
        Program::Rhizome => {
            let mut command = Command::new(program("rhizome", "rhizome"));
            command.args(["server", "--config"]);
            command
        }
        Program::Republishing => {
            let mut command = Command::new(std::env::current_exe().expect("this program's path"));
            command.arg(crate::republish::VERB);
            command
        }
    };
    command.arg(scratch.join("rhizome.yaml")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process::spawn(&mut command);
    pass_on("server", &mut process);
    let socket = scratch.join("admin.sock");
    // The log is at `warn`: readiness shows at the socket.
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(process.ended().is_none(), "the server stopped");
        std::thread::yield_now();
    }
    process
}

/// Passes on what a process logs.
pub(crate) fn pass_on(who: &'static str, process: &mut Process) {
    let mut log = BufReader::new(process.child().stderr.take().expect("piped")).lines();
    std::thread::spawn(move || {
        log.by_ref().map_while(Result::ok).for_each(|line| eprintln!("{who}: {line}"));
    });
}

/// Joins a node through the program's own verbs; the directory of its identity.
fn join(scratch: &Path) -> PathBuf {
    let rhizome = program("rhizome", "rhizome");
    let server = format!("unix://{}", scratch.join("admin.sock").display());
    let words =
        ["token", "create", "--cluster", CLUSTER, "--node", "n1", "--namespace", "default", "--quiet"];
    let created = Command::new(&rhizome).args(words).args(["--server", &server]).output().expect("a token");
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let join_string = String::from_utf8_lossy(&created.stdout).trim().to_owned();
    let directory = scratch.join("node");
    let joined = Command::new(&rhizome)
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
    let config = client_config(anchors, Some(stored.identity), expected, Arc::new(today));
    Arc::new(config.expect("a configuration"))
}

#[expect(clippy::disallowed_methods, reason = "a benchmark runs in real time")]
pub(crate) fn today() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or_default())
}
