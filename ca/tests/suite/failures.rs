//! What programs are told when a verb fails: with `--output json`, one object of one shape on standard error.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::cli::golden;
use crate::process::{Home, rhizome, stderr};

/// The object, alone on standard error, with its exit code.
fn failure(output: &Output) -> Value {
    let said = stderr(output);
    let json: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("not one object: {said}"));
    let error = json["error"].as_object().unwrap_or_else(|| panic!("{said}"));
    assert_eq!(error.keys().collect::<Vec<_>>(), ["code", "exit_code", "hint", "message"], "{said}");
    assert_eq!(error["exit_code"].as_i64(), output.status.code().map(i64::from), "{said}");
    json
}

#[test]
fn every_failure_is_one_json_object_for_whoever_asks_for_json() {
    let home = Home::new("");
    let (none, config) = (home.text("none"), home.config());
    let (faulty, homeless, used) = (home.text("faulty.yaml"), home.text("homeless.yaml"), Home::new(""));
    fs::write(&faulty, "trust_domain: Example.org\nlimit: {}\n").unwrap();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&homeless, text.replace(&home.text("data"), &none)).unwrap();
    fs::write(used.data().join("rhizome.db"), "").unwrap();

    let lines: &[&[&str]] = &[
        &[],
        &["stauts"],
        &["server", "--frobnicate"],
        &["token", "create", "--cluster"],
        &["node", "join"],
        &["agent"],
        &["completions", "tcsh"],
        &["agent", "explain", "--pid", "0"],
        &["status", "--server", "nonsense"],
        &["server", "--config", &none],
        &["server", "--config", &faulty, "--check-config"],
        &["server", "--config", &homeless],
        &["restore", "--config", &faulty, &none],
        &["restore", "--config", &config, &none],
        &["restore", "--config", &used.config(), &faulty],
        &["dev", "--check", "--dir", &home.text("")],
        &["agent", "--config", &none, "check"],
        &["agent", "join", "--state", &none, "nonsense"],
        &["agent", "status", "--admin-socket", &none],
    ];
    let user = fs::metadata(home.directory()).unwrap().uid();
    let mut found = String::new();
    for line in lines {
        let output = rhizome(&[&["--output", "json"], *line].concat());
        assert_eq!(output.stdout, b"", "{line:?}");
        let shown = format!("$ rhizome {}\n{:#}\n\n", line.join(" "), failure(&output));
        let shown = shown.replace(&home.text(""), "DIR/").replace(&used.text(""), "USED/");
        found.push_str(&shown.replace(&format!("-o {user} "), "-o UID "));
    }
    golden("failures.txt", &found);
}

#[test]
fn a_completion_script_that_cannot_be_written_is_a_failure_like_others() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    command.args(["completions", "bash", "--output", "json"]).stdout(full).stderr(Stdio::piped());
    let output = command.output().unwrap();
    assert_eq!(failure(&output)["error"]["code"], "file");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn help_and_versions_are_no_failures_whoever_asks() {
    for words in [&["--output", "json", "--help"][..], &["--output", "json", "--version"]] {
        let output = rhizome(words);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{words:?}");
        assert!(output.stdout.starts_with(b"A certificate") || output.stdout.starts_with(b"rhizome "));
    }
}
