//! Programs beside the server: started with their output in a file, ended with the test, whatever becomes of it.
//!
//! Laws: a process is killed and reaped when its value is dropped, and its output is shown when the test has failed;
//! what another process does is waited for as a condition with a bound, never for a time.
//! Not here: the server (`server`); programs that end by themselves (`support`).

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

/// Looks at a condition, and the pause between two of them: together a minute, which a busy machine needs.
const LOOKS: u32 = 2_400;
const PAUSE: Duration = Duration::from_millis(25);

/// Lines of output that a failure shows.
const SHOWN: usize = 40;

/// One running program.
pub(crate) struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command`, with what it says in `NAME.log` below `folder`.
    pub(crate) fn start(name: &str, command: &mut Command, folder: &Path) -> Self {
        let output = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&output).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|fault| panic!("{command:?}: {fault}"));
        Self { name: name.to_owned(), child, output }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Waits until `condition` gives something.
    ///
    /// # Panics
    /// When the process ends before, or it takes too long; with what `condition` said last.
    pub(crate) fn wait_for<T>(&mut self, what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
        until(&format!("{}: {what}", self.name), || match self.child.try_wait().unwrap() {
            Some(status) => panic!("{} has ended with {status} before {what}", self.name),
            None => condition(),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let said = fs::read_to_string(&self.output).unwrap_or_default();
            let lines: Vec<_> = said.lines().collect();
            let last = lines.len().saturating_sub(SHOWN);
            println!("the end of the output of {}:\n{}", self.name, lines[last..].join("\n"));
        }
    }
}

/// Waits until `condition` gives something. What is waited for is in other processes, which tell nobody: asking again is the
/// only way to know.
///
/// # Panics
/// When it takes too long; with what `condition` said last.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    for _ in 0..LOOKS {
        match condition() {
            Ok(found) => return found,
            Err(why) => last = why,
        }
        thread::sleep(PAUSE);
    }
    panic!("waited in vain for {what}: {last}")
}

/// A free port on loopback below those that the system gives to outgoing connections, so that it is still free when a
/// server comes back to it.
pub(crate) fn quiet_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap();
    (0..COUNT)
        .map(|_| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
