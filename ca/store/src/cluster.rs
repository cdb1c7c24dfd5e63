//! A PostgreSQL of one's own, for tests: a cluster that is made for them, may be stopped, crashed and started again, and
//! is gone with the process that made it, however that ends.
//!
//! Laws: PostgreSQL refuses to run as root, so a test that does lends it an unprivileged user; where PostgreSQL is
//! missing a test says so loudly and passes, and fails when `CI=true`. Only this host reaches it.
//! Not here: what is stored in it. Sources: postgresql.org/docs/15/server-start.html.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "it fails by panicking, looks at the environment and speaks to people; it runs in tests only"
)]

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

/// A cluster that runs, or was stopped by its owner.
pub struct Cluster {
    home: PathBuf,
    programs: PathBuf,
    port: u16,
    databases: AtomicU64,
    control: Mutex<Control>,
}

struct Control {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("home", &self.home).finish_non_exhaustive()
    }
}

/// Users that own nothing: the package's own, and the one that every system has.
const USERS: [&str; 2] = ["postgres", "nobody"];

impl Cluster {
    /// The one that tests share which leave it running. `None`, said loudly, where there is no PostgreSQL.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// A new one. `None`, said loudly, where there is no PostgreSQL.
    ///
    /// # Panics
    /// When it does not start; and, with `CI=true`, where there is no PostgreSQL.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "PostgreSQL is missing: apt-get install postgresql"
            );
            // Not by `eprintln!`, which the harness keeps to itself when a test passes.
            let told = "\n!!! NOT TESTED: PostgreSQL is missing: apt-get install postgresql\n\n";
            drop(std::io::stderr().write_all(told.as_bytes()));
            return None;
        };
        // Free a moment ago; nobody else picks ports by hand here.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = unprivileged();
        command
            .args(["sh", "-c", include_str!("cluster.sh"), "cluster"])
            .arg(&programs)
            .arg(port.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let commands = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut home = String::new();
        answers.read_line(&mut home).unwrap();
        assert!(home.ends_with('\n'), "PostgreSQL did not start; see above");
        let home = PathBuf::from(home.trim_end());
        let control = Mutex::new(Control { child, commands, answers });
        Some(Self { home, programs, port, databases: AtomicU64::new(0), control })
    }

    /// The address of a new database, over the Unix socket.
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.at(&name)
    }

    /// The address of the database `name`, over the Unix socket.
    pub fn at(&self, name: &str) -> String {
        format!("host={} port={} user=tests dbname={name}", self.home.display(), self.port)
    }

    /// Where it listens on the loopback address.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL as its owner and gives what it printed.
    ///
    /// # Panics
    /// When the SQL fails.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set", "ON_ERROR_STOP=1"]);
        psql.args(["--username", "tests", "--dbname", database, "--command", sql]);
        let output =
            psql.arg("--host").arg(&self.home).arg("--port").arg(self.port.to_string()).output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Ends it as an operator does: open transactions are rolled back, everybody is cut off.
    pub fn stop(&self) {
        self.order("stop");
    }

    /// Ends it as a power cut does: nothing is finished, and the next start recovers from the log.
    pub fn crash(&self) {
        self.order("crash");
    }

    /// Starts it again and waits until it answers.
    pub fn start_again(&self) {
        self.order("start");
    }

    /// Stops all of its processes where they stand, as a network does that was cut.
    pub fn freeze(&self) {
        self.order("freeze");
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        self.order("thaw");
    }

    /// Gives it a certificate and a key (PEM); it speaks TLS from its next start on.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn use_tls(&self, certificate: &str, key: &str) {
        let given = self.home.join("given");
        let script = format!(
            "mkdir -p '{0}' && cat > '{0}/server.crt' <<'E'\n{certificate}\nE\ncat > '{0}/server.key' <<'E'\n{key}\nE",
            given.display()
        );
        let written = unprivileged().args(["sh", "-c", &script]).status().unwrap();
        assert!(written.success());
        self.order("tls");
    }

    fn order(&self, word: &str) {
        let mut control = self.control.lock().unwrap();
        let Control { commands, answers, .. } = &mut *control;
        writeln!(commands.as_mut().unwrap(), "{word}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "PostgreSQL did not {word}; see above");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(mut control) = self.control.lock() {
            // The script ends at the end of its input, and takes everything with it.
            drop(control.commands.take());
            drop(control.child.wait());
        }
    }
}

/// A command that runs as somebody who may own a database.
fn unprivileged() -> Command {
    if !is_root() {
        return Command::new("env");
    }
    let exists =
        |user: &&&str| Command::new("id").arg(user).output().is_ok_and(|output| output.status.success());
    let Some(user) = USERS.iter().find(exists) else { panic!("root, and no unprivileged user") };
    let group = Command::new("id").args(["-g", user]).output().unwrap().stdout;
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={}", String::from_utf8(group).unwrap().trim()));
    command.args(["--clear-groups", "--"]).current_dir("/");
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Where PostgreSQL's programs are: on the path, or where Debian puts them (the newest).
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<PathBuf> = debian.map(|entry| entry.path().join("bin")).collect();
    debian.sort();
    places.extend(debian.into_iter().rev());
    places.into_iter().find(|place| is_there(place))
}

fn is_there(place: &Path) -> bool {
    ["initdb", "postgres", "psql", "pg_isready"].iter().all(|program| place.join(program).is_file())
}
