//! The command line.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory as _;
use rhizome::command::Arguments;

use crate::process::{rhizome, stderr, stdout};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config/rhizome.yaml");

#[test]
fn checking_a_configuration_ends_with_0_2_or_2() {
    let good = rhizome(&["server", "--config", SAMPLE, "--check-config"]);
    assert_eq!(good.status.code(), Some(0), "{}", stderr(&good));
    assert!(stdout(&good).contains("valid; trust domain example.org"));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.yaml");
    fs::write(&path, "trust_domain: Example.org\nnames: [ca]\nkeys: {danger_unsealed: true}\nlimit: {}\n")
        .unwrap();
    let bad = rhizome(&["server", "--config", path.to_str().unwrap(), "--check-config"]);
    assert_eq!(bad.status.code(), Some(2));
    let said = stderr(&bad);
    assert!(said.contains(&format!("{}:1:15: trust_domain: ", path.display())), "{said}");
    assert!(
        said.contains(&format!("{}:4:1: limit: unknown field; did you mean `limits`?", path.display())),
        "{said}"
    );
    assert!(said.contains("2 faults"), "{said}");

    let none = rhizome(&["server", "--config", "/nonexistent/rhizome.yaml", "--check-config"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(stderr(&none).contains("/nonexistent/rhizome.yaml: the configuration cannot be read"));
}

#[test]
fn a_command_line_that_is_not_understood_ends_with_2() {
    for arguments in [&["frobnicate"][..], &[], &["server", "--frobnicate"], &["completions", "tcsh"]] {
        assert_eq!(rhizome(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn every_shell_gets_a_completion_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = rhizome(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = stdout(&output);
        assert!(script.contains("rhizome") && script.contains("check-config"), "{shell}");
    }
}

#[test]
fn a_bad_server_in_the_environment_stops_only_the_verbs_that_need_a_server() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
        command.args(arguments).env("RHIZOME_SERVER", "nonsense").output().unwrap()
    };
    assert!(run(&["completions", "bash"]).status.success());
    assert!(run(&["server", "--config", SAMPLE, "--check-config"]).status.success());
    let refused = run(&["status"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("RHIZOME_SERVER"), "{}", stderr(&refused));
}

#[test]
fn the_help_of_every_verb_is_the_one_in_the_golden_file() {
    let mut text = String::new();
    collect_help(&mut Arguments::command().term_width(100), "", &mut text);
    golden("help.txt", &text);
}

fn collect_help(command: &mut clap::Command, above: &str, text: &mut String) {
    command.build();
    let name = format!("{above} {}", command.get_name()).trim().to_owned();
    text.push_str(&format!("==== {name}\n{}\n", command.render_help()));
    for below in
        command.get_subcommands_mut().filter(|below| below.get_name() != "help" && !below.is_hide_set())
    {
        collect_help(below, &name, text);
    }
}

pub(crate) fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("RHIZOME_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let changed = expected.lines().zip(found.lines()).position(|(a, b)| a != b);
    let at = changed.unwrap_or_else(|| expected.lines().count().min(found.lines().count()));
    assert!(
        expected == found,
        "{} differs from line {}: expected {:?}, found {:?}; RHIZOME_BLESS=1 rewrites it",
        path.display(),
        at + 1,
        expected.lines().nth(at),
        found.lines().nth(at),
    );
}

#[test]
fn an_exit_code_means_the_same_to_the_agent_and_to_the_administrators_verbs() {
    use rhizome_agent::program::Exit as Agents;
    use rhizome_cli::Exit;
    // Written twice, because the agent links none of the command line; said once.
    let all = [
        (Agents::Done, Exit::Done),
        (Agents::Failed, Exit::Failed),
        (Agents::Usage, Exit::Usage),
        (Agents::NotFound, Exit::NotFound),
        (Agents::Denied, Exit::Denied),
        (Agents::Unavailable, Exit::Unavailable),
        (Agents::CheckFailed, Exit::CheckFailed),
    ];
    for (agents, verbs) in all {
        assert_eq!((format!("{agents:?}"), agents.code()), (format!("{verbs:?}"), verbs.code()));
    }
}
