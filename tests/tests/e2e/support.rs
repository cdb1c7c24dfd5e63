//! Where things are, and how a program is run: shared by every story.
//!
//! Laws: a command that cannot be started is reported with its name; nothing here retries or sleeps.

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
