//! One root, and a cluster with a Rhizome of its own below it: real processes, real agents, and openssl as the judge.
//!
//! Not here: refusals, clocks and renewal, which need no processes (`rhizome-server`'s tests).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process;
use crate::server::{Home, Server, join, line, rhizome};
use crate::support::{must, run, said};

/// Writes the join string of cluster `east`, which may have what `scope` says besides its namespace, beside where its server
/// will be, and starts that server with `more` in its configuration.
pub(crate) fn cluster_below(root: &Server, scope: &[&str], more: &str) -> Server {
    let words = ["cluster", "add", "east", "--namespace", "default", "--max-ttl", "1h", "--quiet"];
    let string = line(&must(&mut root.admin(&[&words, scope].concat())));
    let home = Home::new(more).listening_on(process::quiet_port());
    let file = home.path().join("upstream.join");
    fs::write(&file, string).unwrap();
    let text = fs::read_to_string(home.config()).unwrap();
    let more = format!("{text}authority:\n  upstream:\n    join_file: {}\n", file.display());
    fs::write(home.config(), more).unwrap();
    home.serve()
}

/// Joins a node of `cluster` at `server`.
fn node_of(server: &Server, cluster: &str, name: &str, namespaces: &[&str]) -> PathBuf {
    let mut words = vec!["token", "create", "--cluster", cluster, "--node", name, "--quiet"];
    for namespace in namespaces {
        words.extend(["--namespace", namespace]);
    }
    let string = line(&must(&mut server.admin(&words)));
    let directory = server.scratch().join(name);
    must(&mut join(&string, &directory));
    directory
}

fn request(server: &Server, node: &Path, namespace: &str, out: &Path) -> Command {
    let mut command = rhizome();
    command.args(["cert", "request", "--namespace", namespace, "--service-account", "web"]);
    command.arg("--server").arg(server.url()).arg("--identity").arg(node).arg("--out").arg(out);
    command
}

/// openssl judges the chain in `holder` by the bundle in `verifier`, as both ends of TLS.
fn trusts(verifier: &Path, holder: &Path) {
    for purpose in ["sslserver", "sslclient"] {
        let mut verify = Command::new("openssl");
        verify
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
            .arg(verifier.join("bundle.pem"));
        must(verify.arg("-untrusted").arg(holder.join("chain.pem")).arg(holder.join("chain.pem")));
    }
}

fn cluster(root: &Server) -> Value {
    let output = must(&mut root.admin(&["cluster", "show", "east", "--output", "json"]));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until the root knows of the cluster what is wanted.
fn until(root: &Server, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    process::until(what, || {
        let known = cluster(root);
        if wanted(&known) { Ok(known) } else { Err(format!("the root knows {known}")) }
    })
}

fn at_the_end(known: &Value) -> bool {
    known["ledger_last"].as_u64() > Some(0) && known["ledger_read_to"] == known["ledger_last"]
}

#[test]
fn a_cluster_issues_under_one_root_also_while_the_root_is_away_and_the_root_sees_what_it_does() {
    let mut root = Home::new("").listening_on(process::quiet_port()).serve();
    let mut below = cluster_below(&root, &[], "");

    // Workloads of both verify each other: one root, one bundle.
    let (far, near) = (below.scratch().join("far"), root.scratch().join("near"));
    let there = node_of(&below, "east", "vm-1", &["default", "pay"]);
    must(&mut request(&below, &there, "default", &far));
    let here = root.join_node("vm-1");
    must(&mut root.request_certificate(&here, "web", &near));
    trusts(&near, &far);
    trusts(&far, &near);
    assert_eq!(fs::read(near.join("bundle.pem")).unwrap(), fs::read(far.join("bundle.pem")).unwrap());
    let chain = fs::read_to_string(far.join("chain.pem")).unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2, "leaf and intermediate: {chain}");

    let known =
        until(&root, "the ledger is read to its end", |known| at_the_end(known) && known["agents"] == 1);
    assert_eq!((&known["state"], &known["alarm_count"]), (&"active".into(), &0.into()), "{known}");
    must(&mut below.admin(&["check"]));
    must(&mut below.admin(&["ledger", "verify"]));

    // The root is killed; the cluster restarts, and goes on.
    root.kill();
    assert!(below.stop().success());
    below.start_again();
    let again = below.scratch().join("again");
    must(&mut request(&below, &there, "default", &again));
    trusts(&near, &again);
    let checked = run(&mut below.admin(&["check"])).unwrap();
    assert!(said(&checked).contains("upstream"), "{}", said(&checked));

    // It comes back, and learns of what was issued meanwhile, and of what should not have been.
    root.start_again();
    let outside = below.scratch().join("outside");
    must(&mut request(&below, &there, "pay", &outside));
    let known = until(&root, "there is an alarm", |known| known["alarm_count"].as_u64() > Some(0));
    assert_eq!(known["alarms"][0]["subject"], "spiffe://example.test/ns/pay/sa/web", "{known}");
    root.hears(|event| {
        event["level"] == "ERROR"
            && event["message"].as_str().is_some_and(|it| it.contains("gives rise to an alarm"))
    });
    let list = said(&must(&mut root.admin(&["cluster", "list"])));
    assert!(list.contains("east") && list.contains("active"), "{list}");
    must(&mut root.admin(&["ledger", "verify"]));

    // Cut off: the cluster says why, and what it holds goes on.
    must(&mut root.admin(&["cluster", "suspend", "east", "--reason", "a stranger in its namespace"]));
    below.hears(|event| event["cause"].as_str().is_some_and(|it| it.contains("suspended or removed")));
    must(&mut request(&below, &there, "default", &below.scratch().join("later")));
    must(&mut root.admin(&["cluster", "resume", "east", "--reason", "it was a mistake"]));
    below.hears(|event| event["message"] == "the Rhizome above answers again");
}
