//! The change of the root with the real program: a gate that names a node without an agent, an exemption, chains that other
//! people's validators accept whichever root they hold, and an abort that leaves the very same bytes.
//!
//! Not here: agents and proxies (`proxies`), single steps (`ca/core`), the doors (`ca/server/tests`).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::judges::{Judge, Verdict};
use crate::server::Server;
use crate::support::{in_ci, must, run, said};

/// Longer than any phase takes here; whoever waits longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the ledger says of a rotation with a canary that is taken back from `active`.
const PASSAGES: [&str; 5] = [
    "staged -> distributing",
    "distributing -> canary",
    "canary -> active",
    "active -> distributing",
    "staged -> stable",
];

/// By hand, so that it stays in each phase for as long as it is looked at.
const CHOICES: [&str; 14] = [
    "rotate",
    "--reason",
    "a test",
    "--yes",
    "--manual",
    "--settle",
    "1s",
    "--soak",
    "1s",
    "--window",
    "1s",
    "--canary-namespace=default",
    "--canary-for",
    "1s",
];

fn root(server: &Server, words: &[&str]) -> Value {
    let mut all = vec!["root"];
    all.extend_from_slice(words);
    all.extend_from_slice(&["--output", "json"]);
    let output = must(&mut server.admin(&all));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asks for the status until it is as `wanted` says.
fn until(server: &Server, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    #[expect(clippy::disallowed_methods, reason = "a bounded wait on a condition")]
    let begun = Instant::now();
    loop {
        let status = root(server, &["status"]);
        if wanted(&status) {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "it never was {what}: {status}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn names(status: &Value) -> Vec<String> {
    let blockers = status["blockers"].as_array().unwrap();
    blockers.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
}

fn certificates(file: &Path) -> Vec<pem::Pem> {
    pem::parse_many(fs::read(file).unwrap()).unwrap()
}

/// Every validator accepts `chain` when it trusts `roots`, but those in `but`.
fn judged(good: &Path, roots: &[pem::Pem], but: &[Judge]) {
    let scratch = TempDir::new().unwrap();
    for name in ["key.pem", "chain.pem"] {
        fs::copy(good.join(name), scratch.path().join(name)).unwrap();
    }
    fs::write(scratch.path().join("bundle.pem"), pem::encode_many(roots)).unwrap();
    for judge in Judge::ALL.into_iter().filter(|it| !but.contains(it)) {
        match judge.verdict(scratch.path()) {
            Verdict::Accepted(_) => {}
            Verdict::Absent if !in_ci() => eprintln!("!!! NOT TESTED: {judge:?} is not installed"),
            verdict @ (Verdict::Refused(_) | Verdict::Absent) => {
                panic!("{judge:?} with {} roots: {verdict:?}", roots.len())
            }
        }
    }
}

/// Whoever says a second time which phase is to be left leaves no other one, and nobody leaves one that they do not name.
fn leave_distributing(server: &Server) {
    let again = root(server, &["advance", "--from", "staged", "--yes"]);
    assert_eq!(again["phase"], "distributing", "{again}");
    let unsaid = run(&mut server.admin(&["root", "advance", "--yes"])).unwrap();
    assert!(said(&unsaid).contains("--from"), "{}", said(&unsaid));
    let words = said(&must(&mut server.admin(&["root", "advance"])));
    assert!(words.contains("rhizome root advance --from distributing --yes"), "{words}");
    root(server, &["advance", "--from", "distributing", "--yes"]);
}

/// In the canary, also after the server was killed: whoever holds either bundle accepts what the share is issued with.
fn share_is_issued_below_the_new_root(server: &mut Server, node: &Path, before: &Path) {
    let probed = |it: &Value| {
        let probes = it["canary"]["probes"].as_u64();
        it["phase"] == "canary" && probes.is_some_and(|it| it > 0) && it["gate_open"] == true
    };
    let status = until(server, "probed in both directions", probed);
    assert_eq!(status["canary"]["replicas_without"], json!([]), "{status}");
    let canary = server.scratch().join("canary");
    must(&mut server.request_certificate(node, "web", &canary));
    let (chain, both) = (certificates(&canary.join("chain.pem")), certificates(&canary.join("bundle.pem")));
    assert_eq!((chain.len(), both.len()), (3, 2), "leaf, the canary's issuer, new root by the old one");
    judged(&canary, &certificates(&before.join("bundle.pem")), &[]);
    judged(&canary, &both, &[]);
    server.kill();
    server.start_again();
    let again = until(server, "probed again", probed);
    assert_eq!(again["version"], status["version"], "{again}");
    let later = server.scratch().join("canary-again");
    must(&mut server.request_certificate(node, "web", &later));
    assert_eq!(certificates(&later.join("chain.pem"))[1], chain[1], "with the issuer that it had");
    let shown = said(&must(&mut server.admin(&["root", "status"])));
    for expected in ["namespaces default, for 1s", "below the new root", "canary probed"] {
        assert!(shown.contains(expected), "{expected} is not in {shown}");
    }
    root(server, &["advance", "--from", "canary", "--yes"]);
}

#[test]
fn a_gate_names_who_is_away_every_validator_accepts_the_chain_and_an_abort_leaves_the_very_same_bytes() {
    let mut server = Server::start();
    let node = server.join_node("n1");
    let before = server.scratch().join("before");
    must(&mut server.request_certificate(&node, "web", &before));
    let plan = root(&server, &["rotate"]);
    assert_eq!(plan["blockers"][0]["name"], "node:dev/join_token/n1", "{plan}");
    assert_eq!(
        (&plan["choices"]["settle_seconds"], &plan["warnings"]),
        (&json!(1_260), &json!([])),
        "{plan}"
    );
    let plan = said(&must(&mut server.admin(&["root", "rotate"])));
    for expected in ["takes at least", "settles for", "a second", "agent", "would hold it up as things are"] {
        assert!(plan.contains(expected), "{expected} is not in {plan}");
    }
    assert_eq!(root(&server, &["status"]), Value::Null, "a plan changes nothing");
    let begun = root(&server, &CHOICES);
    assert_eq!(root(&server, &CHOICES)["name"], begun["name"], "whoever says it twice has said it once");
    let second = run(&mut server.admin(&["root", "rotate", "--reason", "I was second", "--yes"])).unwrap();
    let refusal = format!("rotation {} is under way", begun["name"].as_str().unwrap());
    assert!(said(&second).contains(&refusal), "{}", said(&second));

    until(&server, "tested", |it| it["phase"] == "staged" && it["gate_open"] == true);
    root(&server, &["advance", "--from", "staged", "--yes"]);
    let distributing = |it: &Value| it["phase"] == "distributing" && it["bundle_sequence"] != 0;
    let status = until(&server, "distributing", distributing);
    assert_eq!(names(&status), ["node:dev/join_token/n1"], "{status}");
    // Whoever comes back looks again.
    server.kill();
    server.start_again();
    let again = until(&server, "where it was", distributing);
    assert_eq!((&again["name"], &again["version"]), (&status["name"], &status["version"]), "{again}");
    let refused = run(&mut server.admin(&["root", "advance", "--from", "distributing", "--yes"])).unwrap();
    assert!(said(&refused).contains("node:dev/join_token/n1"), "{}", said(&refused));
    let exempt = ["exempt", "node:dev/join_token/n1", "--reason", "it has no agent", "--yes"];
    let exempted = root(&server, &exempt);
    assert_eq!(exempted["exemptions"].as_array().unwrap().len(), 1, "{exempted}");
    until(&server, "free to go", |it| it["phase"] == "distributing" && it["gate_open"] == true);
    leave_distributing(&server);
    share_is_issued_below_the_new_root(&mut server, &node, &before);
    until(&server, "active", |it| it["phase"] == "active");

    let dependents = root(&server, &["who-depends-on"]);
    assert_eq!(dependents["root"], begun["old"], "{dependents}");
    assert!(dependents["dependents"].to_string().contains("node:dev/join_token/n1"), "{dependents}");

    let active = server.scratch().join("active");
    must(&mut server.request_certificate(&node, "web", &active));
    let (chain, both) = (certificates(&active.join("chain.pem")), certificates(&active.join("bundle.pem")));
    let old = certificates(&before.join("bundle.pem"));
    let new: Vec<pem::Pem> = both.iter().filter(|it| !old.contains(it)).cloned().collect();
    assert_eq!((chain.len(), old.len(), new.len()), (3, 1, 1), "leaf, issuer, new root by the old one");
    judged(&active, &old, &[]);
    judged(&active, &both, &[]);
    // Java's validator builds no path: it wants a chain that ends below the one root it is given.
    judged(&active, &new, &[Judge::JavaPkix]);

    root(&server, &["abort", "--reason", "second thoughts", "--yes"]);
    until(&server, "aborted", |it| it["outcome"] == "aborted");
    let after = server.scratch().join("after");
    must(&mut server.request_certificate(&node, "web", &after));
    let bundle = |directory: &Path| fs::read(directory.join("bundle.pem")).unwrap();
    assert_eq!(bundle(&after), bundle(&before), "trust is what it was, byte for byte");
    assert_eq!(certificates(&after.join("chain.pem")).len(), 2);
    let twice = run(&mut server.admin(&["root", "abort", "--reason", "once more", "--yes"])).unwrap();
    assert!(said(&twice).contains("no rotation of the root is under way"), "{}", said(&twice));
    must(&mut server.admin(&["ledger", "verify"]));
    let entries = said(&must(&mut server.admin(&["ledger", "list", "--limit", "0", "--output", "json"])));
    for passage in PASSAGES {
        assert!(entries.contains(passage), "{passage} is not in the ledger");
    }
    assert!(entries.contains("is exempted until"), "nor the exemption");
}
