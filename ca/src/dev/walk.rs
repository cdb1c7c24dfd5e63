//! The way of a workload certificate, step by step, over the real wire.
//!
//! Laws: each step says what it saw; the first that fails ends the walk. Administrators' steps run the very verbs
//! that people type, as JSON. Not here: starting the server (`stage`).

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rhizome_cli::{Console, Exit};
use rhizome_core::ports::Clock as _;
use rhizome_id::{Digest, SpiffeId, Timestamp};
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::ca::v1::{Attribute, CertificateRequest, SignCertificateRequest};
use rhizome_server::{Stopwatch, SystemClock};
use rhizome_tls::{ExpectedServer, IdentityDir, StoredIdentity};
use rhizome_x509::{KeyAlgorithm, PeerUsage, RequestKey, TrustAnchors, create_csr, verify_peer};
use serde_json::Value;

use super::Way;
use super::mesh::{Mesh, Pace};
use super::stage::Stage;
use crate::command;

/// The cluster, node, namespace and service account of the trial.
pub(super) const CLUSTER: &str = "dev";
pub(super) const NODE: &str = "laptop";
pub(super) const NAMESPACE: &str = "shop";
pub(super) const ACCOUNT: &str = "web";
/// A namespace that the node may not vouch for.
pub(super) const FOREIGN: &str = "bank";

/// Certificates asked for over one connection to measure how long one takes.
const MEASURED: usize = 50;

/// Where everything of a trial is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) config: PathBuf,
    pub(super) data: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) sealing_key: PathBuf,
    pub(super) node: PathBuf,
    pub(super) workload: PathBuf,
    pub(super) thief: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) workload_api: PathBuf,
    pub(super) executables: PathBuf,
    pub(super) clusters: PathBuf,
}

impl Place {
    pub(super) fn below(directory: &Path) -> Self {
        Self {
            config: directory.join("rhizome.yaml"),
            data: directory.join("data"),
            socket: directory.join("admin.sock"),
            sealing_key: directory.join("sealing.key"),
            node: directory.join("node"),
            workload: directory.join("workload"),
            thief: directory.join("thief"),
            agent: directory.join("agent"),
            workload_api: directory.join("agent.sock"),
            executables: directory.join("bin"),
            clusters: directory.join("clusters"),
        }
    }
}

/// What the walk saw; enough to show.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) place: Place,
    pub(super) address: String,
    pub(super) web: Option<String>,
    pub(super) root: Digest,
    pub(super) root_until: Timestamp,
    pub(super) node: String,
    pub(super) workload: Workload,
    pub(super) mesh: Mesh,
    pub(super) ledger: Ledger,
    pub(super) latency: Latency,
}

/// The workload's certificate.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) spiffe_id: String,
    pub(super) serial: String,
    pub(super) valid_until: String,
    pub(super) renew_at: String,
}

/// A node that joined, what it asked for, and the root that it believes.
struct Joined {
    join: String,
    node: String,
    workload: Workload,
    root: Digest,
    root_until: Timestamp,
}

/// What verifying the ledger gave.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pub(super) entries: u64,
    pub(super) head: String,
}

/// How long one certificate takes over a kept connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    pub(super) count: usize,
    pub(super) median: Duration,
    pub(super) worst: Duration,
}

/// One walk, and what it has said so far.
pub(super) struct Walk {
    place: Place,
    aloud: bool,
    passed: usize,
    failure: Option<String>,
}

/// What one verb gave.
pub(super) struct Outcome {
    exit: Exit,
    json: Value,
    complaint: Value,
}

impl Walk {
    pub(super) const fn new(place: Place, aloud: bool) -> Self {
        Self { place, aloud, passed: 0, failure: None }
    }

    /// Every step; `None` as soon as one fails. With `check`, also those that change and stop what runs.
    pub(super) async fn all(&mut self, stage: &mut Stage, way: Way) -> Option<Facts> {
        let address = stage.authority.address().to_string();
        self.step("server", async { Ok(((), format!("serves on {address}"))) }).await?;
        let place = self.place.clone();
        let place = &place;
        let mut joined = self.joins(place, &address).await?;
        let latency = self.step("issuance", issuance(place, &address)).await?;
        self.step("grant explained", explained(place, NAMESPACE, true)).await?;
        self.step("denial explained", explained(place, FOREIGN, false)).await?;
        self.step("wrong request", wrong_request(place, &address)).await?;
        self.step("used token", used_token(place, &joined.join)).await?;
        let pace = if way.check || way.rotate { Pace::QUICK } else { Pace::READABLE };
        let mesh = Box::pin(self.mesh(place, stage, pace)).await?;
        Box::pin(self.clusters(place, stage, way.clusters, pace)).await?;
        if way.check {
            Box::pin(self.changes(place, stage)).await?;
        }
        if way.rotate {
            Box::pin(self.rotation(place, stage)).await?;
            // What was exempted starts anew, below the root that there is now.
            for directory in [&place.node, &place.workload] {
                drop(std::fs::remove_dir_all(directory));
            }
            joined = self.joins(place, &address).await?;
        }
        let ledger = self.step("ledger", ledger(place)).await?;
        let (place, web) = (place.clone(), stage.authority.web().map(|web| web.to_string()));
        let Joined { node, workload, root, root_until, .. } = joined;
        Some(Facts { place, address, web, root, root_until, node, workload, mesh, ledger, latency })
    }

    /// A node joins, asks for a certificate of a workload, and that is good.
    async fn joins(&mut self, place: &Place, address: &str) -> Option<Joined> {
        let join = self.step("join token", join_token(place)).await?;
        let node = self.step("node joins", node_joins(place, &join)).await?;
        let workload = self.step("workload certificate", workload_certificate(place, address)).await?;
        let (root, root_until) = self.step("verification", async { verification(place) }).await?;
        Some(Joined { join, node, workload, root, root_until })
    }

    pub(super) async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(T, String), String>>,
    ) -> Option<T> {
        match work.await {
            Ok((value, seen)) => {
                self.passed = self.passed.saturating_add(1);
                if self.aloud {
                    drop(writeln!(io::stdout(), "{name:<21} ok      {seen}"));
                }
                Some(value)
            }
            Err(cause) => {
                if self.aloud {
                    drop(writeln!(io::stdout(), "{name:<21} failed  {cause}"));
                }
                self.failure = Some(format!("{name}: {cause}"));
                None
            }
        }
    }

    /// Notes that the walk was interrupted.
    pub(super) fn interrupted(&mut self) {
        self.failure = Some("interrupted".to_owned());
    }

    /// The last line of `dev --check`.
    pub(super) fn summarise(&self, took: Duration) {
        let (passed, took) = (self.passed, took.as_secs_f64());
        let line = match &self.failure {
            None => format!("all {passed} steps ok in {took:.1} s"),
            Some(failure) => format!("FAILED after {passed} steps in {took:.1} s: {failure}"),
        };
        drop(writeln!(io::stdout(), "{line}"));
    }

    /// Which step failed, and why.
    pub(super) fn failure(&self) -> &str {
        self.failure.as_deref().unwrap_or("nothing was done")
    }
}

/// A join token, made over the administrators' socket.
async fn join_token(place: &Place) -> Result<(String, String), String> {
    let arguments = ["token", "create", "--cluster", CLUSTER, "--node", NODE, "--namespace", NAMESPACE];
    let made = done(locally(place, &arguments).await?)?;
    let join = text(&made, "/join_string")?;
    let seen = format!("for namespace {NAMESPACE}, until {}", text(&made, "/token/expires_at")?);
    Ok((join, seen))
}

/// A node joins with it: over TCP and TLS, believing only the pinned root.
async fn node_joins(place: &Place, join: &str) -> Result<(String, String), String> {
    let joined = done(locally(place, &["node", "join", "--out", path(&place.node)?, join]).await?)?;
    let node = text(&joined, "/certificate/spiffe_id")?;
    Ok((node.clone(), node))
}

/// A workload certificate, asked for by the node over mutual TLS.
async fn workload_certificate(place: &Place, address: &str) -> Result<(Workload, String), String> {
    let wish = ["--namespace", NAMESPACE, "--service-account", ACCOUNT, "--out", path(&place.workload)?];
    let issued = done(as_node(place, address, &[&["cert", "request"], &wish[..]].concat()).await?)?;
    let workload = Workload {
        spiffe_id: text(&issued, "/certificate/spiffe_id")?,
        serial: text(&issued, "/certificate/serial")?,
        valid_until: text(&issued, "/certificate/not_after")?,
        renew_at: text(&issued, "/certificate/renew_at")?,
    };
    let seen = workload.spiffe_id.clone();
    Ok((workload, seen))
}

/// What the workload holds is accepted from a client and from a server, against the root that the join string pinned.
fn verification(place: &Place) -> Result<((Digest, Timestamp), String), String> {
    let pinned = IdentityDir::new(&place.node).load_bundle().map_err(|error| error.to_string())?;
    let StoredIdentity { identity, .. } =
        IdentityDir::new(&place.workload).load().map_err(|error| error.to_string())?;
    let (leaf, above) = identity.chain_der().split_first().ok_or("the chain is empty")?;
    let above: Vec<&[u8]> = above.iter().map(Vec::as_slice).collect();
    let anchors = TrustAnchors::from_bundle(&pinned);
    let expected = format!("spiffe://{}/ns/{NAMESPACE}/sa/{ACCOUNT}", pinned.trust_domain());
    let expected: SpiffeId = expected.parse().map_err(|error| format!("{error}"))?;
    for usage in [PeerUsage::Client, PeerUsage::Server] {
        let peer = verify_peer(leaf, &above, &anchors, usage, SystemClock.now())
            .map_err(|error| error.to_string())?;
        if peer.spiffe_id != expected {
            return Err(format!("it is for {} and not for {expected}", peer.spiffe_id));
        }
    }
    let root = pinned.anchors().first().ok_or("the bundle is empty")?;
    let (fingerprint, until) = (root.fingerprint(), root.not_after());
    Ok(((fingerprint, until), format!("as client and as server, up to root {fingerprint}")))
}

/// Many certificates over one connection, one after the other.
async fn issuance(place: &Place, address: &str) -> Result<(Latency, String), String> {
    let StoredIdentity { identity, bundle } =
        IdentityDir::new(&place.node).load().map_err(|error| error.to_string())?;
    let server = ExpectedServer::ServerOf(bundle.trust_domain().clone());
    let anchors = Arc::new(TrustAnchors::from_bundle(&bundle));
    let tls = rhizome_tls::client_config(anchors, Some(identity), server, command::clock());
    let tls = tls.map_err(|error| error.to_string())?;
    let channel =
        rhizome_tls::connect(address, Some(Arc::new(tls))).await.map_err(|error| error.to_string())?;
    let mut client = CertificateServiceClient::new(channel);
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).map_err(|error| error.to_string())?;
    let csr = create_csr(&key).map_err(|error| error.to_string())?;
    let attribute = |name: &str, value: &str| Attribute { name: name.to_owned(), value: value.to_owned() };
    let certificate = CertificateRequest {
        csr: Some(Csr::CsrDer(csr.into())),
        attributes: vec![attribute("namespace", NAMESPACE), attribute("service_account", ACCOUNT)],
        ..CertificateRequest::default()
    };
    let mut times = Vec::with_capacity(MEASURED);
    for _ in 0..MEASURED {
        let request = SignCertificateRequest { certificate: Some(certificate.clone()) };
        let watch = Stopwatch::start();
        client.sign_certificate(request).await.map_err(|status| status.message().to_owned())?;
        times.push(watch.elapsed());
    }
    times.sort_unstable();
    let median = times.get(MEASURED / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    let latency = Latency { count: MEASURED, median, worst };
    Ok((latency, latency.to_string()))
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, median, worst } = self;
        let milliseconds = |time: &Duration| time.as_secs_f64() * 1_000.0;
        write!(
            f,
            "{:.1} ms median, {:.1} ms worst, of {count} on one connection",
            milliseconds(median),
            milliseconds(worst)
        )
    }
}

/// The decision, explained: a grant within the node's scope, a denial outside it.
async fn explained(place: &Place, namespace: &str, granted: bool) -> Result<((), String), String> {
    let node = format!("{CLUSTER}/join_token/{NODE}");
    let wish = ["--node", &node, "--namespace", namespace, "--service-account", ACCOUNT];
    let outcome = locally(place, &[&["explain"], &wish[..]].concat()).await?;
    match (outcome.exit, granted) {
        (Exit::Done, true) => {
            let rule = text(&outcome.json, "/granted/rule")?;
            Ok(((), format!("{} by rule {rule}", text(&outcome.json, "/granted/spiffe_id")?)))
        }
        (Exit::Denied, false) if outcome.json.pointer("/denied/code").is_some() => {
            let code = text(&outcome.json, "/denied/code")?;
            Ok(((), format!("{} [{code}]", text(&outcome.json, "/denied/message")?)))
        }
        _ => Err(format!("decided otherwise: {}{}", outcome.json, outcome.complaint)),
    }
}

/// The node asks for a workload that it may not vouch for.
async fn wrong_request(place: &Place, address: &str) -> Result<((), String), String> {
    let wish = ["--namespace", FOREIGN, "--service-account", ACCOUNT, "--out", path(&place.thief)?];
    refused(&as_node(place, address, &[&["cert", "request"], &wish[..]].concat()).await?)
}

/// Somebody else joins with the token that was used.
async fn used_token(place: &Place, join: &str) -> Result<((), String), String> {
    refused(&locally(place, &["node", "join", "--out", path(&place.thief)?, join]).await?)
}

/// The whole chain, from the first record to the head.
async fn ledger(place: &Place) -> Result<(Ledger, String), String> {
    let verified = done(locally(place, &["ledger", "verify"]).await?)?;
    let entries = verified.pointer("/checked").and_then(Value::as_u64).unwrap_or_default();
    let head = text(&verified, "/head/head")?;
    let seen = format!("{entries} entries verified, head {head}");
    Ok((Ledger { entries, head }, seen))
}

pub(super) async fn locally(place: &Place, arguments: &[&str]) -> Result<Outcome, String> {
    let server = format!("unix://{}", path(&place.socket)?);
    typed(&["--server", &server, "--output", "json"], arguments).await
}

async fn as_node(place: &Place, address: &str, arguments: &[&str]) -> Result<Outcome, String> {
    let server = format!("https://{address}");
    typed(&["--server", &server, "--identity", path(&place.node)?, "--output", "json"], arguments).await
}

async fn typed(options: &[&str], arguments: &[&str]) -> Result<Outcome, String> {
    let words: Vec<String> = options.iter().chain(arguments).map(|word| (*word).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console { out: &mut out, err: &mut err, clock: command::clock(), terminal: false };
    let exit = Box::pin(command::typed(&words, &mut console)).await.map_err(|error| error.to_string())?;
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or(Value::Null);
    Ok(Outcome { exit, json: json(&out), complaint: json(&err) })
}

pub(super) fn done(outcome: Outcome) -> Result<Value, String> {
    match outcome.exit {
        Exit::Done => Ok(outcome.json),
        Exit::Failed
        | Exit::Usage
        | Exit::NotFound
        | Exit::Denied
        | Exit::Unavailable
        | Exit::CheckFailed => Err(complaint(&outcome)),
    }
}

fn refused(outcome: &Outcome) -> Result<((), String), String> {
    match outcome.exit {
        Exit::Denied => Ok(((), format!("refused: {}", complaint(outcome)))),
        Exit::Done => Err("it was granted".to_owned()),
        Exit::Failed | Exit::Usage | Exit::NotFound | Exit::Unavailable | Exit::CheckFailed => {
            Err(format!("it failed for another reason: {}", complaint(outcome)))
        }
    }
}

fn complaint(outcome: &Outcome) -> String {
    let field = |name| outcome.complaint.pointer(name).and_then(Value::as_str).unwrap_or("no reason given");
    format!("{} [{}]", field("/error/message"), field("/error/code"))
}

pub(super) fn text(json: &Value, pointer: &str) -> Result<String, String> {
    let found = json.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| format!("the answer has no {pointer}"))
}

pub(super) fn path(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8; name another directory with --dir", path.display()))
}
