//! `rhizome dev`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use crate::process::{rhizome, stderr, stdout};

#[test]
fn the_check_walks_every_step_and_leaves_nothing_behind() {
    let scratch = tempfile::Builder::new().prefix("rhz").tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
    command.args(["dev", "--check"]);
    // A trial has its own server, whatever the environment says.
    let output = command.env("TMPDIR", scratch.path()).env("RHIZOME_SERVER", "nonsense").output().unwrap();
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{said}{}", stderr(&output));
    assert!(said.lines().last().unwrap().starts_with("all 11 steps ok in "), "{said}");
    assert!(!said.contains("failed"), "{said}");
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "something is left in the scratch directory"
    );
}

#[test]
fn a_directory_that_is_not_empty_is_refused() {
    let output = rhizome(&["dev", "--check", "--dir", env!("CARGO_MANIFEST_DIR")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is not empty"), "{}", stderr(&output));
}

#[test]
fn it_shows_one_screen_of_commands_that_work_and_keeps_a_named_directory() {
    let folder = tempfile::Builder::new().prefix("rhz").tempdir().unwrap();
    let home = folder.path().join("kept here");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
    command.args(["dev", "--dir", home.to_str().unwrap()]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let last = line.starts_with("Ctrl-C");
        lines.push(line);
        if last {
            break;
        }
    }
    assert!((10..=25).contains(&lines.len()), "{lines:#?}");
    let script: Vec<String> =
        lines.iter().skip_while(|line| !line.starts_with("alias")).map(runnable).collect();
    let script = script[..script.len() - 1].join("\n");
    let shell = Command::new("bash")
        .args(["-O", "expand_aliases", "-c", &script])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let interrupted = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let ended = child.wait().unwrap();
    let mut complaints = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    assert!(shell.status.success(), "{script}\n{}{}", stdout(&shell), stderr(&shell));
    assert!(stdout(&shell).contains("spiffe://dev.example.org/ns/shop/sa/web"), "{}", stdout(&shell));
    assert!(folder.path().join("web/chain.pem").exists());
    assert!(ended.success(), "{complaints}");
    assert!(home.join("data/rhizome.db").exists());
}

/// The denial that is shown ends with 4 on purpose; everything else must succeed.
fn runnable(line: &String) -> String {
    if line.contains("bank") { format!("{line}; test $? = 4 || exit 9") } else { format!("{line} || exit 9") }
}
