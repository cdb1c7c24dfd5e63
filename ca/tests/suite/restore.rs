//! `rhizome backup` and `rhizome restore`, end to end.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rhizome_cli::JoinString;
use rhizome_core::documents::{DocumentKey, Kind};
use rhizome_core::ledger::Position;
use rhizome_core::ports::Store as _;
use rhizome_store::{Options, SqliteStore};
use serde_json::Value;

use crate::process::{Home, rhizome, stderr, stdout};

fn restore(home: &Home, backup: &str) -> std::process::Output {
    rhizome(&["restore", "--config", &home.config(), backup])
}

fn make_token(home: &Home, node: &str) -> (String, String) {
    let made = home.admin(&["token", "create", "--cluster", "prod", "--node", node, "--namespace", "shop"]);
    let field = |pointer: &str| made.1.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
    (field("/token/id"), field("/join_string"))
}

/// The same join string for a server that came back on another port.
fn redirected(join: &str, address: &str) -> String {
    let join = JoinString::decode(join).unwrap();
    let (domain, roots, token) =
        (join.trust_domain().clone(), join.root_sha256().to_vec(), join.token().to_owned());
    JoinString::new(vec![address.to_owned()], domain, roots, token).unwrap().encode().unwrap()
}

fn bundle_sequence(home: &Home) -> u64 {
    let (output, status) = home.admin(&["status"]);
    let sequence = status.pointer("/bundle_sequence").and_then(Value::as_u64);
    sequence.unwrap_or_else(|| panic!("{status} {}", stderr(&output)))
}

#[test]
fn a_restored_server_resurrects_no_token_and_raises_the_bundle() {
    let home = Home::new("");
    let server = home.serve();
    let before = bundle_sequence(&home);
    let (outstanding, join) = make_token(&home, "vm-1");
    let backup = home.text("backup.db");
    let (output, _) = home.admin(&["backup", &backup]);
    assert!(output.status.success(), "{}", stderr(&output));
    let busy = restore(&home, &backup);
    assert!(stderr(&busy).contains("exists already and is not overwritten"), "{}", stderr(&busy));
    assert!(server.stop().success());

    for name in ["rhizome.db", "rhizome.db-wal", "rhizome.db-shm"] {
        drop(fs::remove_file(home.data().join(name)));
    }
    let restored = restore(&home, &backup);
    assert_eq!(restored.status.code(), Some(0), "{}{}", stdout(&restored), stderr(&restored));
    let said = stdout(&restored);
    assert!(said.contains("outstanding join tokens revoked: 1"), "{said}");
    assert!(said.contains("private keys: all there"), "{said}");
    let left: Vec<_> = fs::read_dir(home.data()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("restoring")), "{left:?}");

    let server = home.serve();
    assert!(bundle_sequence(&home) > before);
    let (_, tokens) = home.admin(&["token", "list", "--all"]);
    let state = tokens["tokens"].as_array().unwrap().iter().find(|token| token["id"] == outstanding.as_str());
    assert_eq!(state.unwrap()["state"], "revoked");
    let join = redirected(&join, server.ready["address"].as_str().unwrap());
    let (refused, _) = home.admin(&["node", "join", "--out", &home.text("node"), &join]);
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("join_token_refused"), "{}", stderr(&refused));
    let (verified, ledger) = home.admin(&["ledger", "verify"]);
    assert!(verified.status.success(), "{ledger}");
    let (_, entries) = home.admin(&["ledger", "list", "--limit", "0"]);
    assert!(entries.to_string().contains("store.restore"), "{entries}");
    assert!(server.stop().success());
}

#[test]
fn a_backup_of_another_trust_domain_is_refused_and_nothing_is_left() {
    let home = Home::new("");
    let server = home.serve();
    let backup = home.text("backup.db");
    let (output, _) = home.admin(&["backup", &backup]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(server.stop().success());

    let other = Home::new("");
    let text = fs::read_to_string(other.config()).unwrap();
    fs::write(other.config(), text.replace("trust_domain: example.org", "trust_domain: example.com"))
        .unwrap();
    let refused = restore(&other, &backup);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("this backup is of trust domain example.org"), "{}", stderr(&refused));
    assert_eq!(fs::read_dir(other.data()).unwrap().count(), 0);
}

#[test]
fn a_damaged_or_missing_backup_is_refused_and_nothing_is_left() {
    let home = Home::new("");
    let server = home.serve();
    let backup = home.text("backup.db");
    let (output, _) = home.admin(&["backup", &backup]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(server.stop().success());

    let other = Home::new("");
    let missing = restore(&other, &other.text("none.db"));
    assert!(stderr(&missing).contains("the backup cannot be read"), "{}", stderr(&missing));
    let mut bytes = fs::read(&backup).unwrap();
    let at = bytes.windows(5).position(|window| window == b"prod/").unwrap_or(bytes.len() / 2);
    bytes[at] ^= 1;
    let damaged = other.text("damaged.db");
    fs::write(&damaged, &bytes).unwrap();
    let refused = restore(&other, &damaged);
    assert_eq!(refused.status.code(), Some(1), "{}{}", stdout(&refused), stderr(&refused));
    assert!(stderr(&refused).contains("cannot be restored"), "{}", stderr(&refused));
    assert_eq!(fs::read_dir(other.data()).unwrap().count(), 0);

    let keyless = Home::new("");
    let restored = rhizome(&["restore", "--config", &keyless.config(), &backup, "--output", "json"]);
    assert_eq!(restored.status.code(), Some(6), "{}{}", stdout(&restored), stderr(&restored));
    let failure: Value = serde_json::from_slice(&restored.stderr).unwrap();
    assert_eq!((&failure["error"]["code"], &failure["error"]["exit_code"]), (&"keys".into(), &6.into()));
    assert!(
        stdout(&restored).contains("private keys not checked") && keyless.data().join("rhizome.db").exists()
    );
}

#[test]
fn a_restore_that_is_killed_leaves_a_marked_database_or_none() {
    let home = Home::new("");
    let server = home.serve();
    let (outstanding, _) = make_token(&home, "vm-1");
    let backup = home.text("backup.db");
    let (output, _) = home.admin(&["backup", &backup]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(server.stop().success());
    fs::remove_dir_all(home.data()).unwrap();

    let target = home.data().join("rhizome.db");
    for moment in ["draft.db", "draft.db-wal", "finished.db", "finished.db-journal", "rhizome.db"] {
        drop(fs::remove_dir_all(home.data()));
        fs::create_dir(home.data()).unwrap();
        kill_restore_at(&home, &backup, moment);
        if !target.exists() {
            let again = restore(&home, &backup);
            assert!(target.exists(), "killed at {moment}: {}{}", stdout(&again), stderr(&again));
        }
        let left =
            fs::read_dir(home.data()).unwrap().filter(|it| it.as_ref().unwrap().path().is_dir()).count();
        assert!(left <= 1, "killed at {moment}: the keys and at most one unfinished restore");
        let store = SqliteStore::open(&target, Options::default()).unwrap();
        let token =
            block_on(store.document(&DocumentKey::new(Kind::Token, outstanding.clone()))).unwrap().unwrap();
        assert!(token.body.contains("revoked"), "killed at {moment}: {}", token.body);
        let records = block_on(store.records(Position(1), 1_000)).unwrap();
        assert!(records.last().unwrap().body.contains("store.restore"), "killed at {moment}");
    }
}

/// Kills a restore as soon as a file called `moment` appears (or lets it end, when that is faster).
fn kill_restore_at(home: &Home, backup: &str, moment: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome"));
    command.args(["restore", "--config", &home.config(), backup]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let seen = |directory: &Path| directory.join(moment).exists();
    while child.try_wait().unwrap().is_none() {
        let below = fs::read_dir(home.data()).into_iter().flatten().flatten();
        if seen(&home.data()) || below.into_iter().any(|entry| seen(&entry.path())) {
            break;
        }
    }
    drop(child.kill());
    child.wait().unwrap();
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
