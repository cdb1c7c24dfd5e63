//! Other people's client libraries judge the agent's Workload API: go-spiffe, PyPI `spiffe`, the Rust crate `spiffe`.
//!
//! Laws: a library is used as its own documentation says and told nothing but the socket; what it reports is what
//! counts. All are led along the same way: an identity, its renewal, a second identity, the second withdrawn, the first
//! withdrawn.
//! Not here: proxies (`proxies`).
//! Sources: SPIFFE Workload API §4.3 (full state), §4.4 (what is absent is withdrawn), §5.2; Workload Endpoint §6 (codes).

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use spiffe::{TrustDomain, WorkloadApiClient, WorkloadApiError, X509Context, X509Source};
use tokio::time::timeout;

use crate::agent::{Agent, grant};
use crate::client::runtime;
use crate::server::Server;
use crate::support::{in_ci, must, tools, workspace};

/// Half of this life plus a tenth is the longest wait of a story.
const TTL: &str = "20s";
/// Whatever is waited for comes within this, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

const WEB: &str = "spiffe://example.test/web";
const MORE: &str = "spiffe://example.test/more";

fn withdraw(server: &Server, rule: &str) {
    must(&mut server.admin(&["rule", "delete", rule, "--yes"]));
}

/// A program that prints what it sees, an object a line.
struct Reporter {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Reporter {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, receiver) = channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines: receiver, heard: Vec::new() }
    }

    /// The next event that is `wanted`, or the next at all with a name that is not `update`.
    fn hears(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.lines.recv_timeout(LIMIT);
            let line = line.unwrap_or_else(|fault| panic!("{fault} after {}", self.heard.join("\n")));
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            self.heard.push(line);
            if wanted(&event) {
                return event;
            }
            assert_eq!(event["event"], "update", "{}", self.heard.join("\n"));
        }
    }

    /// The next update with just these identities, in any order; their serials in the order of their names.
    fn updated(&mut self, ids: &[&str]) -> Vec<String> {
        let event = self.hears(|event| {
            let mut found: Vec<_> = svids(event).map(|it| it["id"].as_str().unwrap()).collect();
            found.sort_unstable();
            event["event"] == "update" && found == ids
        });
        assert_eq!(event["authorities"], json!({"example.test": 1}));
        assert!(svids(&event).all(|it| it["key_fits"] == true), "{event}");
        let mut serials: Vec<_> =
            svids(&event).map(|it| (it["id"].to_string(), it["serial"].to_string())).collect();
        serials.sort();
        serials.into_iter().map(|(_, serial)| serial).collect()
    }
}

impl Reporter {
    /// Whatever it says after it was told that it has nothing any more.
    fn wait_for_last_word(&mut self) {
        self.hears(|event| event["event"] == "refused");
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn svids(event: &Value) -> impl Iterator<Item = &Value> {
    event["svids"].as_array().into_iter().flatten()
}

/// A program below `target/tools`; `None`, loudly, where it is not installed and need not be.
fn installed(name: &str, what: &str) -> Option<PathBuf> {
    let program = tools().join(name);
    if program.exists() {
        return Some(program);
    }
    assert!(!in_ci(), "{what} is not installed; `tests/run e2e` installs it");
    eprintln!("!!! NOT TESTED: {what}; `tests/run e2e` installs it");
    None
}

/// Leads a client along the way, up to its being told that it has nothing any more.
fn lead(program: &Path, arguments: &[&Path]) -> Reporter {
    let server = Server::start();
    let agent = Agent::join(&server, "n1");
    // Rules see what runs, not the link that started it.
    let executable = fs::canonicalize(program).unwrap();
    grant(&server, "web", &executable, "/web", TTL);
    let mut client = Reporter::start(Command::new(program).args(arguments).arg(agent.socket()));

    let first = client.hears(|event| event["event"] == "svid");
    assert_eq!((&first["id"], &first["key_fits"]), (&json!(WEB), &json!(true)), "{first}");
    let bundles = client.hears(|event| event["event"] == "bundles");
    assert_eq!(bundles["authorities"], json!({"example.test": 1}));
    let token = client.hears(|event| event["event"] == "token");
    let expected = json!({"event": "token", "locally": WEB, "by_agent": WEB, "elsewhere_refused": true});
    assert_eq!(token, expected);
    let serial = client.updated(&[WEB]);
    assert_ne!(client.updated(&[WEB]), serial, "renewed");

    grant(&server, "more", &executable, "/more", TTL);
    client.updated(&[MORE, WEB]);
    withdraw(&server, "more");
    client.updated(&[WEB]);
    withdraw(&server, "web");
    let error = client.hears(|event| event["event"] == "error");
    let error = error["fault"].as_str().unwrap().replace('_', "").to_lowercase();
    assert!(error.contains("permissiondenied"), "{error}");
    client.wait_for_last_word();
    client
}

#[test]
fn the_python_client_sees_each_change_and_is_told_of_what_is_withdrawn() {
    let Some(python) = installed("python/bin/python", "PyPI's spiffe") else { return };
    let client = lead(&python, &[&workspace().join("tests/judges/py_workload.py")]);
    // It asks once more at the end, and is refused in the words that clients know.
    let last = client.heard.last().unwrap();
    assert!(last.contains("refused") && last.contains("no identity issued"), "{last}");
}

#[test]
fn the_go_client_sees_each_change_and_is_told_of_what_is_withdrawn() {
    let Some(program) = installed("bin/go_workload", "go-spiffe") else { return };
    let client = lead(&program, &[]);
    assert!(client.heard.last().unwrap().contains("no identity issued"));
}

#[test]
fn the_rust_client_sees_each_change_and_is_told_of_what_is_withdrawn() {
    let server = Server::start();
    let agent = Agent::join(&server, "n1");
    let executable = std::env::current_exe().unwrap();
    grant(&server, "web", &executable, "/web", TTL);
    runtime().block_on(async {
        let endpoint = format!("unix:{}", agent.socket().display());
        let client = WorkloadApiClient::connect_to(&endpoint).await.unwrap();
        let svid = client.fetch_x509_svid().await.unwrap();
        assert_eq!(svid.spiffe_id().to_string(), WEB);
        let domain = TrustDomain::new("example.test").unwrap();
        let bundles = client.fetch_x509_bundles().await.unwrap();
        assert_eq!(bundles.get(&domain).unwrap().authorities().len(), 1);
        let token = client.fetch_jwt_svid(["db"], None).await.unwrap();
        assert_eq!(token.spiffe_id().to_string(), WEB);
        let valid = client.validate_jwt_token("db", token.token()).await.unwrap();
        assert_eq!(
            (valid.spiffe_id().to_string().as_str(), valid.audience()),
            (WEB, ["db".to_owned()].as_slice())
        );
        client.validate_jwt_token("mail", token.token()).await.unwrap_err();
        let keys = client.fetch_jwt_bundles().await.unwrap();
        assert!(keys.get(&domain).unwrap().find_jwt_authority(token.key_id()).is_some());
        // The part that programs use: it watches by itself.
        let source = X509Source::builder().endpoint(&endpoint).build().await.unwrap();
        assert_eq!(source.svid().unwrap().spiffe_id().to_string(), WEB);

        let mut updates = Box::pin(client.stream_x509_contexts().await.unwrap());
        let first = until(&mut updates, &[WEB]).await;
        let second = until(&mut updates, &[WEB]).await;
        assert_ne!(leaf(&first), leaf(&second), "renewed");
        grant(&server, "more", &executable, "/more", TTL);
        until(&mut updates, &[MORE, WEB]).await;
        withdraw(&server, "more");
        until(&mut updates, &[WEB]).await;
        let mut changes = source.updated();
        withdraw(&server, "web");
        let told = loop {
            match timeout(LIMIT, updates.next()).await.unwrap() {
                Some(Ok(_renewed)) => {}
                Some(Err(told)) => break told,
                None => panic!("the stream ended without a word"),
            }
        };
        assert!(matches!(told, WorkloadApiError::NoIdentityIssued), "{told:?}");
        let withdrawn = changes.wait_for(|_revision| source.svid().is_err());
        timeout(LIMIT, withdrawn).await.unwrap().unwrap();
        let refused = client.fetch_x509_svid().await.unwrap_err();
        assert!(matches!(refused, WorkloadApiError::NoIdentityIssued), "{refused:?}");
        source.shutdown().await;
    });
}

/// The next update with just these identities, in any order.
async fn until(
    updates: &mut (impl futures::Stream<Item = Result<X509Context, WorkloadApiError>> + Unpin),
    ids: &[&str],
) -> X509Context {
    loop {
        let update = timeout(LIMIT, updates.next()).await.unwrap().expect("it goes on").unwrap();
        let mut found: Vec<_> = update.svids().iter().map(|svid| svid.spiffe_id().to_string()).collect();
        found.sort();
        if found == ids {
            return update;
        }
    }
}

fn leaf(context: &X509Context) -> Vec<u8> {
    context.default_svid().unwrap().leaf().as_bytes().to_vec()
}
