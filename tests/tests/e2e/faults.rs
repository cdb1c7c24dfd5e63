//! Faults of files and of tokens, met by the real program: what it says, how it ends, and what it leaves behind.
//!
//! Not here: disks that are full (`disk`), callers that are slow or many (`flood`), clocks that jump
//! (`ca/server/tests/suite/clock.rs`, because a process cannot be given another clock).
//! Sources: ca/docs/attacks.md §1.3, §2 (9, 10, 18).

use std::fs;
use std::path::Path;
use std::process::Output;

use bytes::Bytes;
use rhizome_cli::JoinString;
use rusqlite::Connection;

use crate::client::{anonymous, attest, local, new_csr, runtime, token};
use crate::server::{Home, Server, join, rhizome};
use crate::support::{Draws, must, run, said, workspace};

/// Exit codes, as `rhizome help` lists them.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const DENIED: i32 = 4;

fn check_config(file: &Path) -> Output {
    run(rhizome().args(["server", "--check-config", "--config"]).arg(file)).unwrap()
}

/// Ended with 0, or with 2 and the place of a fault.
fn is_checked(file: &Path, output: &Output) -> bool {
    let text = said(output);
    let place = format!("{}:", file.display());
    let placed = text.split(&place).skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    !text.contains("panicked") && (output.status.success() || output.status.code() == Some(USAGE) && placed)
}

#[test]
fn a_half_written_configuration_is_valid_or_its_faults_have_places() {
    let home = Home::new("");
    let sample = fs::read_to_string(workspace().join("deploy/config/rhizome.yaml")).unwrap();
    let file = home.path().join("half.yaml");
    let mut valid = 0;
    let cuts = (0..20).map(|part| sample.len() * part / 20).chain([sample.len() - 1, sample.len()]);
    for cut in cuts {
        fs::write(&file, &sample.as_bytes()[..cut]).unwrap();
        let output = check_config(&file);
        assert!(is_checked(&file, &output), "{cut} bytes, {}: {}", output.status, said(&output));
        valid += usize::from(output.status.success());
    }
    assert!(valid >= 1, "the whole sample is valid");
}

#[test]
fn a_server_does_not_start_on_half_a_configuration_and_leaves_no_trace() {
    let home = Home::new("");
    let whole = fs::read_to_string(home.config()).unwrap();
    let mut refused = 0;
    for part in 0..12 {
        fs::write(home.config(), &whole[..whole.len() * part / 12]).unwrap();
        let checked = check_config(&home.config());
        assert!(is_checked(&home.config(), &checked), "{}", said(&checked));
        if checked.status.success() {
            continue; // It lacks only what has a default: a server would start.
        }
        let output = run(&mut home.command()).unwrap();
        assert!(
            output.status.code() == Some(USAGE) && is_checked(&home.config(), &output),
            "{}",
            said(&output)
        );
        refused += 1;
    }
    assert!(refused >= 6, "{refused}");
    assert_eq!(fs::read_dir(home.data()).unwrap().count(), 0);
    assert!(!home.path().join("sealing.key").exists() && !home.path().join("admin.sock").exists());
}

fn assert_refused(output: &Output) {
    assert_eq!(output.status.code(), Some(DENIED), "{}", said(output));
    for part in ["join_token_refused", "rhizome token create"] {
        assert!(said(output).contains(part), "{}", said(output));
    }
}

#[test]
fn an_expired_a_replayed_and_an_unknown_token_are_refused_in_the_same_words() {
    let server = Home::new("limits: { per_source_per_second: 100000 }\n").serve();
    let out = |name: &str| server.scratch().join(name);

    let replayed = server.join_string("n1", &[]);
    must(&mut join(&replayed, &out("n1")));
    let second = run(&mut join(&replayed, &out("thief"))).unwrap();
    assert_refused(&second);

    let expiring = server.join_string("n2", &["--ttl", "1s"]);
    runtime().block_on(until_expired(&server, JoinString::decode(&expiring).unwrap().token()));
    let expired = run(&mut join(&expiring, &out("n2"))).unwrap();
    assert_refused(&expired);

    let real = JoinString::decode(&replayed).unwrap();
    let (addresses, roots) = (real.addresses().to_vec(), real.root_sha256().to_vec());
    let invented = "A".repeat(43);
    let forged = JoinString::new(addresses, real.trust_domain().clone(), roots, invented).unwrap();
    let unknown = run(&mut join(&forged.encode().unwrap(), &out("n3"))).unwrap();
    assert_refused(&unknown);

    let words = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((words(&second), words(&second)), (words(&expired), words(&unknown)));
    for name in ["thief", "n2", "n3"] {
        assert!(!out(name).join("chain.pem").exists(), "{name} got nothing");
    }
    let nodes = must(&mut server.admin(&["node", "list"]));
    assert!(said(&nodes).contains("n1") && !said(&nodes).contains("n2"), "{}", said(&nodes));
}

/// Tries the token with what is no request for certification, which consumes nothing, until time itself refuses.
async fn until_expired(server: &Server, token: &str) {
    let channel = anonymous(server).await;
    let mut tries = 0;
    loop {
        let refusal = attest(&channel, token, Bytes::from_static(b"no request")).await.unwrap_err();
        match refusal.code.as_str() {
            "csr_malformed" => tries += 1,
            "join_token_refused" => break,
            _ => panic!("{refusal:?}"),
        }
    }
    println!("the token expired after {tries} tries");
}

#[test]
fn tokens_with_odd_bytes_are_refused_and_the_real_one_still_works() {
    let server = Home::new("limits: { per_source_per_second: 100000 }\n").serve();
    runtime().block_on(async {
        let channel = anonymous(&server).await;
        let secret = token(&local(&server).await, "n1", 0).await.unwrap();
        let mut bad = vec![String::new(), secret[1..].to_owned(), format!("{secret}="), "x".repeat(60_000)];
        bad.extend((0..=u8::MAX).map(|byte| format!("{}{}", char::from(byte), &secret[1..])));
        bad.extend((0..=u8::MAX).map(|byte| format!("{secret}{}", char::from(byte))));
        bad.retain(|it| *it != secret);
        for token in bad {
            let refusal = attest(&channel, &token, new_csr()).await.unwrap_err();
            assert_eq!(refusal.code, "join_token_refused", "{token:?}: {refusal:?}");
        }
        attest(&channel, &secret, new_csr()).await.unwrap();
    });
}

/// A server that was founded, issued, and stopped: what it left behind, all of it in the database's one file.
fn left_behind() -> Server {
    let mut server = Server::start();
    let node = server.join_node("n1");
    for account in ["a", "b", "c"] {
        must(&mut server.request_certificate(&node, account, &server.scratch().join(account)));
    }
    assert!(server.stop().success());
    let database = Connection::open(server.home().database()).unwrap();
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(())).unwrap();
    let free: i64 = database.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
    assert_eq!(free, 0, "every page matters");
    server
}

/// How a server met its damage; it must have noticed.
fn meets(home: Home, what: &str) -> &'static str {
    match home.try_serve() {
        Err((code, log)) => {
            assert_eq!(code, Some(FAILED), "{what}: {log}");
            assert!(!log.contains("panicked"), "{what}: {log}");
            assert!(log.contains("damaged") && log.contains("backup"), "{what} has no remedy: {log}");
            "refused to start"
        }
        Ok(server) => {
            let verified = run(&mut server.admin(&["ledger", "verify"])).unwrap();
            let checked = run(&mut server.admin(&["check"])).unwrap();
            let found = !verified.status.success() || !checked.status.success();
            assert!(found, "{what} was not found: {} {}", said(&verified), said(&checked));
            if verified.status.success() { "found by check" } else { "found by ledger verify" }
        }
    }
}

#[test]
fn a_corrupt_database_page_keeps_the_server_from_starting_or_is_found_by_its_checks() {
    let mut draws = Draws::from_setting("RHIZOME_DAMAGE_SEED");
    let server = left_behind();
    let whole = fs::read(server.home().database()).unwrap();
    let page_bytes = usize::from(u16::from_be_bytes([whole[16], whole[17]]));
    for page in 0..whole.len() / page_bytes {
        let mut damaged = whole.clone();
        for byte in &mut damaged[page * page_bytes..(page + 1) * page_bytes] {
            *byte ^= u8::try_from(draws.below(255)).unwrap() + 1;
        }
        let home = server.home().copy("");
        fs::write(home.database(), damaged).unwrap();
        let outcome = meets(home, &format!("page {page}, {draws}"));
        println!("page {page} of {}: {outcome}", whole.len() / page_bytes);
    }
    for kept in [whole.len() / 2, page_bytes, 100, 0] {
        let home = server.home().copy("");
        fs::write(home.database(), &whole[..kept]).unwrap();
        meets(home, &format!("{kept} bytes of {}", whole.len()));
    }
    meets_nothing(server.home().copy(""));
}

/// The copies are good but for their damage.
fn meets_nothing(home: Home) {
    let server = home.serve();
    must(&mut server.admin(&["ledger", "verify"]));
    must(&mut server.admin(&["check"]));
}

#[test]
fn a_damaged_or_missing_private_key_is_named() {
    let server = left_behind();
    let mut names = Vec::new();
    for entry in fs::read_dir(server.home().data().join("keys")).unwrap() {
        names.push(entry.unwrap().file_name());
    }
    assert!(names.len() >= 2, "{names:?}");
    for name in &names {
        for gone in [false, true] {
            let home = server.home().copy("");
            let file = home.data().join("keys").join(name);
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            if gone {
                fs::remove_file(&file).unwrap()
            } else {
                fs::write(&file, bytes).unwrap()
            }
            let stem = name.to_str().unwrap().split('.').next().unwrap();
            match home.try_serve() {
                Err((code, log)) => {
                    // A damaged name of the sealing key looks like another sealing key, which only a person can put right.
                    assert!([Some(FAILED), Some(USAGE)].contains(&code), "{log}");
                    assert!(log.contains(stem) && !log.contains("panicked"), "{stem}, gone {gone}: {log}");
                }
                Ok(server) => {
                    let checked = run(&mut server.admin(&["check"])).unwrap();
                    assert!(!checked.status.success() && said(&checked).contains(stem), "{}", said(&checked));
                }
            }
        }
    }
}
