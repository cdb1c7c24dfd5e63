//! Where the root's key is, with the real program: in a PKCS#11 token (SoftHSM), in the database, and moved between.
//!
//! Not here: what rings promise (`rhizome_keys::conformance`), how tokens fail (`ca/keys/tests/suite/pkcs11.rs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::server::{Home, Server};
use crate::support::{in_ci, must, run, said};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "5521907";
/// Exit codes, as `rhizome help` lists them.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const CHECK_FAILED: i32 = 6;

/// A home whose root's key is in a token of its own; `None` where SoftHSM is not installed.
fn with_token() -> Option<Home> {
    let home = Home::new("");
    let (tokens, conf, pin) =
        (home.path().join("tokens"), home.path().join("softhsm2.conf"), home.path().join("pin"));
    fs::create_dir(&tokens).unwrap();
    fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
    let mut making = Command::new("softhsm2-util");
    making.args(["--init-token", "--free", "--label", "mesh root", "--so-pin", "so-pin", "--pin", PIN]);
    let made = run(making.env("SOFTHSM2_CONF", &conf)).filter(|_| Path::new(MODULE).exists());
    if made.is_none_or(|output| !output.status.success()) {
        assert!(!in_ci(), "SoftHSM is missing: apt-get install softhsm2");
        eprintln!("!!! NOT TESTED: a root's key in a token; apt-get install softhsm2");
        return None;
    }
    private(&pin, PIN);
    let lines = format!(
        "  root: pkcs11\n  pkcs11: {{module: {MODULE}, token: mesh root, pin_file: {}}}\n",
        pin.display()
    );
    Some(home.with_keys(&lines, Some(("SOFTHSM2_CONF", conf))))
}

/// A file that only its owner can read.
fn private(path: &Path, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("not JSON: {}", said(output)))
}

/// The checks that failed, by name, each with what it says.
fn failing(server: &Server) -> Vec<(String, String)> {
    let output = run(&mut server.admin(&["check", "--output", "json"])).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = json(&output)["checks"].as_array().cloned().unwrap_or_default();
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] == false).collect();
    let code = if failed.is_empty() { Some(0) } else { Some(CHECK_FAILED) };
    assert_eq!(output.status.code(), code, "{}", said(&output));
    failed.iter().map(|check| (text(&check["name"]), text(&check["summary"]))).collect()
}

fn key_files(home: &Home) -> Vec<String> {
    let Ok(entries) = fs::read_dir(home.data().join("keys")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn rotate(server: &Server) -> Command {
    server.admin(&["authority", "rotate", "--reason", "a test", "--yes"])
}

fn issues(server: &Server, node: &Path, account: &str) -> PathBuf {
    let out = server.scratch().join(account);
    must(&mut server.request_certificate(node, account, &out));
    out
}

/// openssl judges the chain that was served.
fn validates(out: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-CAfile"]).arg(out.join("bundle.pem"));
    openssl.arg("-untrusted").arg(out.join("chain.pem")).arg(out.join("chain.pem"));
    must(&mut openssl);
}

#[test]
fn a_server_whose_root_key_is_in_a_token_issues_and_goes_on_issuing_when_the_token_is_pulled_out() {
    let Some(home) = with_token() else { return };
    let (here, away) = (home.path().join("tokens"), home.path().join("pulled"));
    let mut server = home.serve();
    assert!(!key_files(server.home()).iter().any(|name| name.starts_with("root")), "no root key in a file");
    assert_eq!(failing(&server), []);
    let node = server.join_node("n1");
    validates(&issues(&server, &node, "before"));
    must(&mut rotate(&server));

    fs::rename(&here, &away).unwrap();
    fs::create_dir(&here).unwrap();
    validates(&issues(&server, &node, "while-away"));
    let refused = run(&mut rotate(&server)).unwrap();
    assert_ne!(refused.status.code(), Some(0));
    assert!(!said(&refused).contains("bug"), "{}", said(&refused));
    let failed = failing(&server);
    assert!(
        matches!(failed.as_slice(), [(name, told)] if name == "authority.root.key" && told.contains("`mesh root`")),
        "{failed:?}"
    );
    // It starts without its token, too, and serves with what it has.
    assert!(server.stop().success());
    server.start_again();
    validates(&issues(&server, &node, "started-without"));

    fs::remove_dir(&here).unwrap();
    fs::rename(&away, &here).unwrap();
    must(&mut rotate(&server));
    assert_eq!(failing(&server), []);
    validates(&issues(&server, &node, "after"));
}

#[test]
fn a_wrong_pin_is_refused_at_the_start_by_name_and_never_shown() {
    let Some(home) = with_token() else { return };
    private(&home.path().join("pin"), "0000000");
    let Err((code, told)) = home.try_serve() else { panic!("it started with the wrong PIN") };
    assert_eq!(code, Some(USAGE), "no supervisor tries it again: {told}");
    assert!(told.contains("`mesh root`") && told.contains("refuses the PIN"), "{told}");
    assert!(!told.contains("0000000") && !told.contains(PIN), "{told}");
}

#[test]
fn keys_in_the_database_need_no_file_but_the_operators_key_which_can_be_changed() {
    let home = Home::new("").with_keys("  root: database\n  issuers: database\n", None);
    let Err((code, told)) = home.try_serve() else { panic!("it made a sealing key of its own") };
    assert_eq!(code, Some(FAILED), "{told}");
    assert!(told.contains("openssl rand -base64 32 >"), "{told}");

    let home = Home::new("").with_keys("  root: database\n  issuers: database\n", None);
    let key = home.path().join("sealing.key");
    private(&key, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n");
    let mut server = home.serve();
    let node = server.join_node("n1");
    validates(&issues(&server, &node, "before"));
    assert_eq!(key_files(server.home()), [""; 0], "no key is in a file");
    assert!(server.stop().success());

    // Another key: alone it opens nothing; with the old one beside it, once, it seals everything anew.
    let old = server.home().path().join("old.key");
    fs::rename(&key, &old).unwrap();
    private(&key, "1f1e1d1c1b1a191817161514131211100f0e0d0c0b0a09080706050403020100\n");
    let refused = run(&mut server.home().command()).unwrap();
    assert_eq!(refused.status.code(), Some(USAGE));
    assert!(said(&refused).contains("is sealed under sealing key"), "{}", said(&refused));
    let config = fs::read_to_string(server.home().config()).unwrap();
    let both = format!("keys:\n  other_sealing_key_file: {}\n", old.display());
    fs::write(server.home().config(), config.replace("keys:\n", &both)).unwrap();
    server.start_again();
    assert!(server.stop().success());
    fs::write(server.home().config(), config).unwrap();
    fs::remove_file(&old).unwrap();
    server.start_again();
    assert_eq!(failing(&server), []);
    validates(&issues(&server, &node, "after"));
}
