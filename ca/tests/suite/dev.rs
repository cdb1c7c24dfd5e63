//! `rhizome dev`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::process::{rhizome, stderr, stdout};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn the_check_walks_every_step_and_leaves_nothing_behind() {
    let scratch = tempfile::Builder::new().prefix("rhz").tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
    command.args(["dev", "--check"]);
    // A trial has its own server, whatever the environment says.
    let output = command.env("TMPDIR", scratch.path()).env("RHIZOME_SERVER", "nonsense").output().unwrap();
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{said}{}", stderr(&output));
    assert!(said.lines().last().unwrap().starts_with("all 24 steps ok in "), "{said}");
    let handshakes = said.lines().find(|line| line.starts_with("no failed handshake")).unwrap();
    assert!(handshakes.ends_with("certificates, 0 failed"), "{said}");
    assert_eq!(said.matches("failed").count(), 2, "{said}");
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "something is left in the scratch directory"
    );
}

#[test]
fn a_root_is_changed_and_a_change_is_taken_back_while_workloads_of_two_clusters_call_each_other() {
    let scratch = tempfile::Builder::new().prefix("rhz").tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
    command.args(["dev", "--check", "--clusters", "2", "--rotate"]);
    let output = command.env("TMPDIR", scratch.path()).output().unwrap();
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{said}{}", stderr(&output));
    let line =
        |step: &str| said.lines().rfind(|line| line.starts_with(step)).unwrap_or_else(|| panic!("{said}"));
    assert!(line("gate waits, by name").contains("laptop"), "{said}");
    assert!(line("new root signs").ends_with("in 2 cluster(s)"), "{said}");
    assert!(line("a cluster cut off").contains("cluster:east"), "{said}");
    assert!(line("old root gone").contains("its key is destroyed"), "{said}");
    assert!(line("taken back").ends_with("the same roots as before, byte for byte"), "{said}");
    assert!(line("no failed handshake").ends_with("certificates, 0 failed"), "{said}");
    assert!(line("all ").contains(" steps ok in "), "{said}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_directory_that_is_not_empty_is_refused() {
    let output = rhizome(&["dev", "--check", "--dir", env!("CARGO_MANIFEST_DIR")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is not empty"), "{}", stderr(&output));
}

/// `dev` with these arguments, and what it says.
fn start(arguments: &[&str], scratch: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
    command.arg("dev").args(arguments).env("TMPDIR", scratch);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    (child, said)
}

/// Its lines up to the one that `last` picks.
fn lines_until(said: &mut BufReader<ChildStdout>, last: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended too soon: {lines:#?}");
        let is_last = last(&line);
        lines.push(line.trim_end().to_owned());
        if is_last {
            return lines;
        }
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_check_that_is_stopped_half_way_leaves_nothing_behind() {
    let scratch = tempfile::Builder::new().prefix("rhz").tempdir().unwrap();
    let (mut child, mut said) = start(&["--check"], scratch.path());
    drop(lines_until(&mut said, |line| line.starts_with("mutual TLS")));
    signal(&child, "TERM");
    let rest = lines_until(&mut said, |line| line.starts_with("FAILED"));
    assert!(rest.last().unwrap().ends_with(": interrupted"), "{rest:#?}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn no_workload_outlives_a_trial_that_is_killed() {
    let scratch = tempfile::Builder::new().prefix("rhz").tempdir().unwrap();
    let (mut child, mut said) = start(&[], scratch.path());
    drop(lines_until(&mut said, |line| line.starts_with("Ctrl-C")));
    signal(&child, "KILL");
    child.wait().unwrap();
    // The workloads have its standard error, too: it ends when the last of them does.
    let mut held = child.stderr.take().unwrap();
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(held.read_to_string(&mut String::new()).is_ok()));
    assert_eq!(ended.recv_timeout(PATIENCE), Ok(true), "a workload is still there");
}

#[test]
fn it_shows_one_screen_of_commands_that_work_and_what_they_do_and_keeps_a_named_directory() {
    let folder = tempfile::Builder::new().prefix("rhz").tempdir().unwrap();
    let home = folder.path().join("kept here");
    let (mut child, mut said) = start(&["--dir", home.to_str().unwrap()], folder.path());
    let lines = lines_until(&mut said, |line| line.starts_with("Ctrl-C"));
    assert!((10..=25).contains(&lines.len()), "{lines:#?}");
    let script: Vec<String> =
        lines.iter().skip_while(|line| !line.starts_with("alias")).map(runnable).collect();
    let script = script[..script.len() - 1].join("\n");
    let shell = Command::new("bash")
        .args(["-O", "expand_aliases", "-c", &script])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(shell.status.success(), "{script}\n{}{}", stdout(&shell), stderr(&shell));
    drop(lines_until(&mut said, |line| line.contains("backend has a new certificate")));
    signal(&child, "INT");
    let ended = child.wait().unwrap();
    let mut complaints = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    assert!(stdout(&shell).contains("spiffe://dev.example.org/ns/shop/sa/web"), "{}", stdout(&shell));
    assert!(folder.path().join("web/chain.pem").exists());
    assert!(ended.success(), "{complaints}");
    assert!(home.join("data/rhizome.db").exists());
}

/// The denial that is shown ends with 4 on purpose; everything else must succeed.
fn runnable(line: &String) -> String {
    if line.contains("bank") { format!("{line}; test $? = 4 || exit 9") } else { format!("{line} || exit 9") }
}
