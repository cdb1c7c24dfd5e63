//! Where things are, how a program is run, and draws by chance that can be repeated: shared by every story.
//!
//! Laws: a command that cannot be started is reported with its name; nothing here retries or sleeps.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The directory of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the workspace").to_owned()
}

/// Where `tests/run` installs what Debian does not package.
pub(crate) fn tools() -> PathBuf {
    workspace().join("target/tools")
}

/// Whether a missing program is a failure rather than a skip.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Runs a program to its end; `None` when it is not installed.
pub(crate) fn run(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => None,
        Err(fault) => panic!("{command:?} could not be started: {fault}"),
    }
}

/// Both streams of a finished program on one line, for messages.
pub(crate) fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs a program that has to be there and has to succeed.
pub(crate) fn must(command: &mut Command) -> Output {
    let output = run(command).unwrap_or_else(|| panic!("{command:?}: not installed"));
    assert!(output.status.success(), "{command:?} ended with {}: {}", output.status, said(&output));
    output
}

/// A number from the environment.
#[expect(clippy::disallowed_methods, reason = "a test's own configuration")]
pub(crate) fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// Draws by chance; shows its seed (SplitMix64: Steele, Lea and Flood 2014).
pub(crate) struct Draws {
    name: &'static str,
    seed: u64,
    state: u64,
}

impl Draws {
    /// From the seed in the variable `name`, or from a new one.
    pub(crate) fn from_setting(name: &'static str) -> Self {
        let fresh = || {
            let mut bytes = [0; 8];
            getrandom(&mut bytes);
            u64::from_be_bytes(bytes)
        };
        let seed = setting(name).unwrap_or_else(fresh);
        println!("{name}={seed}");
        Self { name, seed, state: seed }
    }

    /// From 0 to `limit`, without it.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

impl fmt::Display for Draws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.seed)
    }
}

#[expect(clippy::disallowed_methods, reason = "a fresh seed, which is printed")]
fn getrandom(bytes: &mut [u8]) {
    use ring::rand::SecureRandom as _;
    ring::rand::SystemRandom::new().fill(bytes).unwrap();
}
