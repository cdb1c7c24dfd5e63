//! Two authorities that share no root, and what speaks across them: proxies, client libraries, relying parties.
//!
//! Laws: each side has an authority, an agent and configuration of its own; what one knows of the other it fetched, or was
//! told by an administrator's verb. A story that promises no failure counts every call from its beginning to its end.
//! Not here: endpoints that mean no good (`rhizome-server` tests those); mutual TLS within one domain (`proxies`).
//! Sources: SPIFFE Federation §5; OpenID Connect Discovery 1.0.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::StreamExt as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use serde_json::Value;
use spiffe::{TrustDomain, WorkloadApiClient};

use crate::agent::Agent;
use crate::client::runtime;
use crate::envoy::{Envoy, Role, Sample, installed as envoy_installed};
use crate::process::{quiet_port, until};
use crate::server::{Home, Server};
use crate::support::{in_ci, must, run, said, tools, workspace};
use crate::traffic::{Service, Traffic, get};

/// One of the two: `NAME.test`.
struct Side {
    domain: String,
    port: u16,
    server: Server,
}

impl Side {
    /// With a bundle endpoint, and `more` in the section of federation.
    fn start(name: &str, more: &str) -> Self {
        Self::start_on(name, quiet_port(), more)
    }

    fn start_on(name: &str, port: u16, more: &str) -> Self {
        let domain = format!("{name}.test");
        let federation =
            format!("federation:\n  listen: 127.0.0.1:{port}\n{more}bundle:\n  refresh_hint: 10s\n");
        let server = Home::new(&federation).of(&domain).serve();
        Self { domain, port, server }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/bundle", self.port)
    }

    fn endpoint_id(&self) -> String {
        format!("spiffe://{}/rhizome/server/r1", self.domain)
    }

    fn admin(&self, words: &[&str]) -> Value {
        let output = must(self.server.admin(words).args(["--output", "json"]));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|fault| panic!("{fault}: {}", said(&output)))
    }

    /// The SHA-256 of the one root.
    fn root(&self) -> String {
        self.admin(&["bundle", "show"])["anchors"][0]["fingerprint"].as_str().expect("a root").to_owned()
    }

    fn sequence(&self) -> u64 {
        self.admin(&["bundle", "show"])["sequence"].as_u64().expect("a sequence")
    }

    /// Trusts the other side from here on, known by its root.
    fn federate_with(&self, other: &Self) {
        let (root, url, id) = (other.root(), other.url(), other.endpoint_id());
        let words = ["federation", "add", &other.domain, "--url", &url, "--profile", "https_spiffe"];
        let pinned = ["--endpoint-id", &id, "--first-fetch-fingerprint", &root, "--allow-private-addresses"];
        let begun = self.admin(&[&words[..], &pinned[..]].concat());
        assert_eq!(begun["outlook"], "current", "{begun}");
    }

    /// Gives `identity` to what runs `executable`, with the bundle of the other side.
    fn grant(&self, rule: &str, executable: &Path, identity: &str, other: &Self) {
        let user = format!("unix.uid={}", rustix::process::geteuid().as_raw());
        let path = format!("unix.path={}", executable.display());
        let words = ["rule", "put", "--name", rule, "--when", &user, "--when", &path, "--grant", identity];
        must(self.server.admin(&words).args(["--federates-with", &other.domain, "--yes"]));
    }

    /// What this side knows of the other.
    fn sees(&self, other: &Self) -> Value {
        self.admin(&["federation", "show", &other.domain])
    }

    /// Waits until this side, by itself, has what the other publishes, and its one node has it, too.
    fn catches_up_with(&self, other: &Self) {
        let sequence = other.sequence();
        until("the newest bundle of the other side, also at the node", || {
            let seen = self.sees(other);
            match (seen["sequence"].as_u64(), seen["behind_count"].as_u64()) {
                (Some(found), Some(0)) if found == sequence => Ok(()),
                _other => Err(seen.to_string()),
            }
        });
    }
}

fn pair() -> (Side, Side) {
    let (east, west) = (Side::start("east", ""), Side::start("west", ""));
    east.federate_with(&west);
    west.federate_with(&east);
    (east, west)
}

#[test]
fn proxies_of_two_trust_domains_authenticate_each_other_while_keys_change_and_until_federation_ends() {
    if !envoy_installed() {
        return;
    }
    let (east, west) = pair();
    let agents = [&east, &west].map(|side| Agent::join(&side.server, "n1"));
    east.grant("frontend", &Role::Frontend.executable(), "/frontend", &west);
    west.grant("backend", &Role::Backend.executable(), "/backend", &east);
    let service = Service::start();
    let across = |sample: Sample, peer: &str, domain: &str| {
        let (from, to) = (format!("spiffe://example.test/{peer}"), format!("spiffe://{domain}/{peer}"));
        sample.with(&from, &to).with("name: ROOTCA", "name: ALL")
    };
    let sample = across(Sample::server(&agents[1].socket(), service.port()), "frontend", &east.domain);
    let mut backend = Envoy::start(west.server.scratch(), Role::Backend, "backend", &sample);
    let inbound = backend.listener("inbound");
    let sample = across(Sample::client(&agents[0].socket(), &inbound), "backend", &west.domain);
    let mut frontend = Envoy::start(east.server.scratch(), Role::Frontend, "frontend", &sample);
    let outbound = frontend.listener("outbound");
    let answer = get(&outbound, "/").unwrap();
    for part in ["By=spiffe://west.test/backend", "URI=spiffe://east.test/frontend"] {
        assert!(answer.contains(part), "{part}: {answer}");
    }

    let traffic = Traffic::start(&outbound, "URI=spiffe://east.test/frontend");
    let before = backend.chain().unwrap().remove(1);
    must(&mut west.server.admin(&["authority", "rotate", "--reason", "the story wants it", "--yes"]));
    let words = ["node", "renew", "--all", "--within", "1s", "--reason", "a new issuer", "--yes"];
    must(&mut west.server.admin(&words));
    backend.wait_for_other_than(1, &before);
    let key = west.sees_own_jwt_key();
    must(&mut west.server.admin(&["authority", "taint", &key, "--reason", "the story wants it", "--yes"]));
    east.catches_up_with(&west);
    traffic.wait_for_more(50);
    let (made, failed) = traffic.end();
    println!("handshakes across two trust domains while keys change: {made} made, {} failed", failed.len());
    assert_eq!(failed, [""; 0]);

    let words = ["federation", "remove", &west.domain, "--reason", "the story ends"];
    must(&mut east.server.admin(&words));
    until("a refusal", || match get(&outbound, "/") {
        Ok(_answered) => Err("it is still answered".to_owned()),
        Err(_refused) => Ok(()),
    });
}

impl Side {
    fn sees_own_jwt_key(&self) -> String {
        let listed = self.admin(&["authority", "list"]);
        let mut keys = listed["authorities"].as_array().into_iter().flatten();
        let key = keys.find(|it| it["kind"] == "jwt" && it["state"] == "active");
        key.unwrap_or_else(|| panic!("{listed}"))["id"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_workload_gets_the_bundles_that_its_rule_federates_with_and_validates_tokens_across() {
    let (east, west) = pair();
    let agents = [&east, &west].map(|side| Agent::join(&side.server, "n1"));
    let executable = std::env::current_exe().unwrap();
    east.grant("web", &executable, "/web", &west);
    west.grant("web", &executable, "/web", &east);
    runtime().block_on(async {
        let client = async |agent: &Agent| {
            let endpoint = format!("unix:{}", agent.socket().display());
            WorkloadApiClient::connect_to(&endpoint).await.unwrap()
        };
        let (here, there) = (client(&agents[0]).await, client(&agents[1]).await);
        let context = here.fetch_x509_context().await.unwrap();
        let foreign = TrustDomain::new("west.test").unwrap();
        let bundle = context.bundle_set().get(&foreign).expect("the foreign bundle comes with the identity");
        assert_eq!(bundle.authorities().len(), 1);
        let token = there.fetch_jwt_svid(["db"], None).await.unwrap();
        let valid = here.validate_jwt_token("db", token.token()).await.unwrap();
        assert_eq!(valid.spiffe_id().to_string(), "spiffe://west.test/web");
        here.validate_jwt_token("mail", token.token()).await.unwrap_err();
        let keys = here.fetch_jwt_bundles().await.unwrap();
        assert!(keys.get(&foreign).unwrap().find_jwt_authority(token.key_id()).is_some());

        let mut told = here.stream_jwt_bundles().await.unwrap();
        let words = ["federation", "remove", &west.domain, "--reason", "the story ends"];
        must(&mut east.server.admin(&words));
        let without = async { while told.next().await.unwrap().unwrap().get(&foreign).is_some() {} };
        let soon = tokio::time::timeout(Duration::from_secs(60), without).await;
        assert!(soon.is_ok(), "the bundle of a domain that is not trusted any more stays");
        here.validate_jwt_token("db", token.token()).await.unwrap_err();
        let context = here.fetch_x509_context().await.unwrap();
        assert!(context.bundle_set().get(&foreign).is_none());
    });
}

#[test]
fn go_spiffe_fetches_our_bundle_by_the_endpoints_svid() {
    let program = tools().join("bin/go_workload");
    if !program.exists() {
        assert!(!in_ci(), "go-spiffe is not installed; `tests/run e2e` installs it");
        eprintln!("!!! NOT TESTED: go-spiffe as a federation client; `tests/run e2e` installs it");
        return;
    }
    let east = Side::start("east", "");
    let file = east.server.scratch().join("east.json");
    must(&mut east.server.admin(&["bundle", "get", "--format", "spiffe", "--out", file.to_str().unwrap()]));
    let mut fetch = Command::new(program);
    fetch.args(["fetch", &east.domain, &east.url(), &east.endpoint_id()]).arg(&file);
    let output = must(&mut fetch);
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({
        "event": "fetched", "sequence": east.sequence(), "roots": 1, "jwt_keys": 1, "refresh_seconds": 10,
    });
    assert_eq!(seen, expected);
}

fn pem_of(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}

/// A certificate of a little web of our own, for 127.0.0.1: its files, and that of the root.
struct Web {
    root: PathBuf,
    chain: PathBuf,
    key: PathBuf,
}

impl Web {
    fn new(folder: &Path) -> Self {
        let web = Self {
            root: folder.join("web-root.pem"),
            chain: folder.join("web.pem"),
            key: folder.join("web.key"),
        };
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "the root of a little web");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(&web.root, pem_of("CERTIFICATE", issuer.der())).unwrap();
        web.issue(&issuer);
        web
    }

    fn issue(&self, issuer: &CertifiedIssuer<'_, KeyPair>) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an endpoint");
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, issuer).unwrap();
        fs::write(&self.chain, pem_of("CERTIFICATE", leaf.der())).unwrap();
        fs::write(&self.key, pem_of("PRIVATE KEY", key.serialized_der())).unwrap();
    }

    fn section(&self) -> String {
        format!("  certificate_file: {}\n  key_file: {}\n", self.chain.display(), self.key.display())
    }
}

#[test]
fn an_endpoint_of_the_public_web_is_known_by_its_host_name_also_after_its_certificate_is_renewed() {
    let folder = tempfile::TempDir::new().unwrap();
    let web = Web::new(folder.path());
    let west = Side::start("west", &web.section());
    let roots = format!("  web_roots_file: {}\n", web.root.display());
    let (east, north) = (Side::start("east", &roots), Side::start("north", ""));
    let add = |side: &Side, host: &str| {
        let url = format!("https://{host}:{}/bundle", west.port);
        let words = ["federation", "add", &west.domain, "--url", &url, "--profile", "https_web"];
        side.admin(&[&words[..], &["--allow-private-addresses"][..]].concat())
    };
    assert_eq!(add(&east, "127.0.0.1")["outlook"], "current");
    let public = add(&north, "127.0.0.1");
    assert_eq!(public["trouble_code"], "identity", "the roots built in do not know it: {public}");
    must(&mut east.server.admin(&["federation", "remove", &west.domain, "--reason", "another name"]));
    let named = add(&east, "localhost");
    assert_eq!(named["trouble_code"], "identity", "the certificate is for another host: {named}");

    must(&mut east.server.admin(&["federation", "remove", &west.domain, "--reason", "again"]));
    assert_eq!(add(&east, "127.0.0.1")["outlook"], "current");
    // Renewed by a root that east does not know: what it presents is the new one as soon as east refuses it.
    drop(Web::new(folder.path()));
    until("the renewed certificate", || {
        let output =
            run(east.server.admin(&["federation", "refresh", &west.domain]).args(["--output", "json"]));
        let seen: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        match seen["trouble_code"].as_str() {
            Some("identity") => Ok(()),
            _other => Err(seen.to_string()),
        }
    });
    assert_eq!(east.sees(&west)["outlook"], "refused");
    assert!(east.sees(&west)["sequence"].as_u64().is_some(), "what is held stays");
}

#[test]
fn relying_parties_of_openid_connect_validate_our_token_by_discovery() {
    let python = tools().join("python/bin/python");
    if !python.exists() {
        assert!(!in_ci(), "PyPI's spiffe, and PyJWT with it, is not installed; `tests/run e2e` installs it");
        eprintln!("!!! NOT TESTED: PyJWT as a relying party; `tests/run e2e` installs it");
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let (web, port) = (Web::new(folder.path()), quiet_port());
    let issuer = format!("https://127.0.0.1:{port}/tenant");
    let east = Side::start_on("east", port, &format!("{}  oidc_issuer: {issuer}\n", web.section()));
    let agent = Agent::join(&east.server, "n1");
    let executable = std::env::current_exe().unwrap();
    crate::agent::grant(&east.server, "web", &executable, "/web", "1h");
    let token = runtime().block_on(async {
        let endpoint = format!("unix:{}", agent.socket().display());
        let client = WorkloadApiClient::connect_to(&endpoint).await.unwrap();
        client.fetch_jwt_svid(["relying-party"], None).await.unwrap().token().to_owned()
    });
    let judge = workspace().join("tests/judges/py_oidc.py");
    let judged = |audience: &str| {
        let mut command = Command::new(&python);
        command.arg(&judge).args([&issuer, audience]).arg(&web.root).env("RHIZOME_TEST_TOKEN", &token);
        run(&mut command).unwrap()
    };
    let seen = judged("relying-party");
    assert!(seen.status.success(), "{}", said(&seen));
    let claims: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!((&claims["sub"], &claims["iss"]), (&"spiffe://east.test/web".into(), &issuer.as_str().into()));
    assert!(!judged("somebody-else").status.success());
}
