//! The way of an identity to a workload, and what two workloads do with it: agent, Workload API, mutual TLS.
//!
//! Laws: as in `walk`: each step says what it saw, the first that fails ends the walk. The two workloads call each other
//! from their first moment to the last, and no call may fail, whatever is changed or stopped meanwhile.
//! Not here: what a workload does (`workload`), what runs (`stage`).

use std::collections::BTreeSet;

use rhizome_agent::checkup;
use rhizome_server::{Stopwatch, SystemClock};

use super::TRUST_DOMAIN;
use super::process::{Process, Seen, make_executables};
use super::stage::{Below, Stage};
use super::walk::{CLUSTER, NAMESPACE, Place, Walk, done, locally, path, text};
use super::workload::Identity;

/// The node that the agent is.
const HOST: &str = "host";
/// The workloads by the names of their executables. The last has no rule.
pub(super) const WEB: &str = "web";
pub(super) const BACKEND: &str = "backend";
const STRANGER: &str = "stranger";
const NOBODY: &str = "nobody";

/// Calls before mutual TLS counts as shown.
const CALLS: u64 = 10;
/// Calls while the authority is away.
const CALLS_IN_OUTAGE: u64 = 20;

/// How fast things go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Lifetime of the workloads' certificates; they are renewed at about half of it.
    ttl: &'static str,
    /// Milliseconds between two calls.
    every: &'static str,
}

impl Pace {
    /// For a program that waits for a renewal.
    pub(super) const QUICK: Self = Self { ttl: "20s", every: "20" };
    /// For people who watch.
    pub(super) const READABLE: Self = Self { ttl: "60s", every: "200" };

    /// Milliseconds between two calls.
    pub(super) const fn every(self) -> &'static str {
        self.every
    }
}

/// What the workloads had when they ran.
#[derive(Clone, Debug)]
pub(super) struct Mesh {
    pub(super) agent: String,
    pub(super) web: Identity,
    pub(super) backend: Identity,
}

impl Walk {
    /// From the agent to two workloads that know each other, and callers that get nowhere.
    pub(super) async fn mesh(&mut self, place: &Place, stage: &mut Stage, pace: Pace) -> Option<Mesh> {
        let agent = self.step("agent", agent(place, stage)).await?;
        self.step("workload rules", rules(place, pace)).await?;
        let (web, backend) = self.step("workload API", workloads(place, stage, pace)).await?;
        self.step("mutual TLS", mutual_tls(stage)).await?;
        self.step("JWT-SVID", tokens(place, stage)).await?;
        self.step("wrong caller", wrong_caller(place, stage)).await?;
        self.step("wrong server", wrong_server(place, stage)).await?;
        self.step("no rights", no_rights(place, stage)).await?;
        Some(Mesh { agent, web, backend })
    }

    /// Everything is changed below the feet of the two, and the authority goes away for a while.
    pub(super) async fn changes(&mut self, place: &Place, stage: &mut Stage) -> Option<()> {
        let issuer = self.step("issuer change", issuer_change(place)).await?;
        self.step("revocation", revocation(place, stage, &issuer)).await?;
        self.step("outage", outage(stage)).await?;
        self.step("renewal", renewal(stage)).await?;
        self.step("no failed handshake", no_failed_handshake(stage)).await
    }
}

pub(super) fn id_of(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{name}")
}

/// An agent joins as a node of its own, with one string.
async fn agent(place: &Place, stage: &mut Stage) -> Result<(String, String), String> {
    let wish = ["token", "create", "--cluster", CLUSTER, "--node", HOST, "--namespace", NAMESPACE];
    let join = text(&done(locally(place, &wish).await?)?, "/join_string")?;
    stage.start_agent(place, &join).await?;
    let node = checkup(&place.agent, &SystemClock).node.ok_or("the agent has no identity")?.to_string();
    let seen = format!("{node} serves {}", place.workload_api.display());
    Ok((node, seen))
}

/// Who runs which executable is whom.
pub(super) async fn rules(place: &Place, pace: Pace) -> Result<((), String), String> {
    make_executables(&place.executables, &[WEB, BACKEND, STRANGER, NOBODY])?;
    let uid = format!("unix.uid={}", rustix::process::geteuid().as_raw());
    let directory = std::fs::canonicalize(&place.executables).map_err(|cause| cause.to_string())?;
    for name in [WEB, BACKEND, STRANGER] {
        let executable = format!("unix.path={}", path(&directory.join(name))?);
        let (rule, identity) = (format!("dev-{name}"), format!("/ns/{NAMESPACE}/sa/{name}"));
        let wish = ["rule", "put", "--name", &rule, "--when", &uid, "--when", &executable];
        let grant = ["--grant", &identity, "--ttl", pace.ttl, "--yes"];
        drop(done(locally(place, &[&wish[..], &grant].concat()).await?)?);
    }
    Ok(((), format!("{WEB}, {BACKEND} and {STRANGER}, by {uid} and the path of what they run")))
}

/// Two processes get their identities, and new ones from now on, from the Workload API.
async fn workloads(
    place: &Place,
    stage: &mut Stage,
    pace: Pace,
) -> Result<((Identity, Identity), String), String> {
    let task = ["serve", "--caller", &id_of(WEB)];
    let backend =
        &*stage.backend.insert(Process::start(&place.executables, BACKEND, &place.workload_api, &task)?);
    let serving = backend.until("serve", |seen| seen.address.is_some()).await?;
    let address = serving.address.clone().unwrap_or_default();
    let task = ["call", "--address", &address, "--callee", &id_of(BACKEND), "--every", pace.every];
    let web = &*stage.web.insert(Process::start(&place.executables, WEB, &place.workload_api, &task)?);
    let calling = web.until("get an identity", |seen| seen.identity.is_some()).await?;
    let mut held = Vec::new();
    for (seen, name) in [(calling, WEB), (serving, BACKEND)] {
        let identity = seen.identity.ok_or_else(|| format!("{name} has no identity"))?;
        if identity.spiffe_id.as_str() != id_of(name) {
            return Err(format!("{name} is {} and not {}", identity.spiffe_id, id_of(name)));
        }
        held.push(identity);
    }
    let [web, backend] = <[Identity; 2]>::try_from(held).map_err(|_other| "two workloads were started")?;
    let seen = format!("{} and {}, each until {}", web.spiffe_id, backend.spiffe_id, web.not_after);
    Ok(((web, backend), seen))
}

/// They call each other, and each says who the other is.
async fn mutual_tls(stage: &Stage) -> Result<((), String), String> {
    let (web, _) = stage.workloads()?;
    let seen = web.until("call", |seen| seen.calls >= CALLS).await?;
    let call = seen.call.ok_or("nobody called")?;
    if (call.caller.as_str(), call.server.as_str()) != (&id_of(WEB), &id_of(BACKEND)) {
        return Err(format!("{} called {}", call.caller, call.server));
    }
    Ok(((), format!("{WEB} calls {BACKEND}: {} handshakes, each end sure of the other", seen.calls)))
}

/// A second process of `web` shows tokens beside its certificate: one for `backend`, and one for somebody else.
async fn tokens(place: &Place, stage: &Stage) -> Result<((), String), String> {
    let (_, backend) = stage.workloads()?;
    let address = backend.now().address.unwrap_or_default();
    let (callee, other) = (id_of(BACKEND), id_of(STRANGER));
    let show = |audience: &str| {
        let task = ["call", "--address", &address, "--callee", &callee, "--token-for", audience];
        Process::start(&place.executables, WEB, &place.workload_api, &task)
    };
    show(&callee)?.until_answered().await?;
    drop(show(&other)?.until_failure().await?);
    let about_it = |seen: &Seen| seen.turned_away.as_ref().is_some_and(|why| why.contains("token"));
    let seen = backend.until("refuse a token for somebody else", about_it).await?;
    let refusal = seen.turned_away.unwrap_or_default();
    Ok(((), format!("{BACKEND} had one of {WEB} validated; refused another: {refusal}")))
}

/// Somebody with an identity, but not the right one, calls.
async fn wrong_caller(place: &Place, stage: &Stage) -> Result<((), String), String> {
    let (_, backend) = stage.workloads()?;
    let address = backend.now().address.unwrap_or_default();
    let task = ["call", "--address", &address, "--callee", &id_of(BACKEND)];
    let stranger = Process::start(&place.executables, STRANGER, &place.workload_api, &task)?;
    drop(stranger.until_failure().await?);
    let about_it = |seen: &Seen| seen.turned_away.as_ref().is_some_and(|why| why.contains(&id_of(STRANGER)));
    let seen = backend.until("turn a stranger away", about_it).await?;
    Ok(((), format!("turned away: {}", seen.turned_away.unwrap_or_default())))
}

/// Somebody else answers than the one who was called.
async fn wrong_server(place: &Place, stage: &Stage) -> Result<((), String), String> {
    let (_, backend) = stage.workloads()?;
    let address = backend.now().address.unwrap_or_default();
    let task = ["call", "--address", &address, "--callee", &id_of(WEB)];
    let stranger = Process::start(&place.executables, STRANGER, &place.workload_api, &task)?;
    let cause = stranger.until_failure().await?;
    match cause.contains(&format!("it is {}", id_of(BACKEND))) {
        true => Ok(((), format!("refused: {cause}"))),
        false => Err(format!("it failed for another reason: {cause}")),
    }
}

/// A process that no rule names asks for an identity.
async fn no_rights(place: &Place, stage: &Stage) -> Result<((), String), String> {
    let (_, backend) = stage.workloads()?;
    let address = backend.now().address.unwrap_or_default();
    let task = ["call", "--address", &address, "--callee", &id_of(BACKEND)];
    let nobody = Process::start(&place.executables, NOBODY, &place.workload_api, &task)?;
    let asked = |seen: &Seen| seen.nothing.is_some() || seen.identity.is_some();
    let seen = nobody.until("be turned away", asked).await?;
    match (seen.nothing, seen.identity) {
        (Some(cause), None) if cause.contains("PermissionDenied") => Ok(((), format!("refused: {cause}"))),
        (Some(cause), None) => Err(format!("it failed for another reason: {cause}")),
        (_, identity) => {
            Err(format!("it is {}", identity.map(|it| it.spiffe_id.to_string()).unwrap_or_default()))
        }
    }
}

/// The intermediate that signs is replaced.
async fn issuer_change(place: &Place) -> Result<(String, String), String> {
    let rotated = done(locally(place, &["authority", "rotate", "--reason", "trial", "--yes"]).await?)?;
    let subject = text(&rotated, "/active/subject")?;
    Ok((subject, format!("{} signs from now on", text(&rotated, "/active/id")?)))
}

/// Both certificates are revoked; new ones, of the new issuer, are in use at once.
async fn revocation(place: &Place, stage: &Stage, issuer: &str) -> Result<((), String), String> {
    let (web, backend) = stage.workloads()?;
    let before = [serial(web), serial(backend)];
    let watch = Stopwatch::start();
    for serial in &before {
        let wish = ["cert", "revoke", "--serial", serial, "--reason", "trial", "--yes"];
        drop(done(locally(place, &wish).await?)?);
    }
    replaced(web, &before).await?;
    let took = watch.elapsed().as_secs_f64() * 1_000.0;
    for process in [web, backend] {
        let found = process.now().identity.map(|it| it.issuer).unwrap_or_default();
        if found != issuer {
            return Err(format!("a new certificate is by {found} and not by {issuer}"));
        }
    }
    Ok(((), format!("two certificates revoked; {took:.0} ms later both have new ones, by the new issuer")))
}

/// The authority stops and comes back; calls go on.
async fn outage(stage: &mut Stage) -> Result<((), String), String> {
    let syncs = stage.syncs();
    stage.authority.stop().await;
    let (web, _) = stage.workloads()?;
    let before = web.now().calls;
    let wanted = before.saturating_add(CALLS_IN_OUTAGE);
    let calls = web.until("go on without the authority", |seen| seen.calls >= wanted).await?.calls;
    stage.authority.start_again().await?;
    stage.agent_follows(syncs).await?;
    let without = calls.saturating_sub(before);
    Ok(((), format!("{without} handshakes while the authority was stopped; it is back, and followed again")))
}

/// Both certificates are renewed because their time has come.
async fn renewal(stage: &Stage) -> Result<((), String), String> {
    let (web, backend) = stage.workloads()?;
    let before = [serial(web), serial(backend)];
    replaced(web, &before).await?;
    let [web_before, backend_before] = before;
    let (web_after, backend_after) = (serial(web), serial(backend));
    Ok(((), format!("{WEB} {web_before} → {web_after}, {BACKEND} {backend_before} → {backend_after}")))
}

pub(super) async fn no_failed_handshake(stage: &Stage) -> Result<((), String), String> {
    let (web, _) = stage.workloads()?;
    let (mut calls, mut failures, mut serials) = (0_u64, 0_u64, BTreeSet::new());
    for caller in std::iter::once(web).chain(stage.below.iter().flat_map(Below::callers)) {
        let before = caller.now().calls;
        let seen = caller.until("go on calling", |seen| seen.calls > before).await?;
        calls = calls.saturating_add(seen.calls);
        failures = failures.saturating_add(seen.failures);
        serials.extend(seen.serials);
    }
    Ok(((), format!("{calls} handshakes with {} certificates, {failures} failed", serials.len())))
}

/// Waits until `web` has called with, and was answered with, other certificates than these two.
async fn replaced(web: &Process, before: &[String; 2]) -> Result<(), String> {
    let [caller, server] = before;
    let other = |seen: &Seen| {
        seen.call.as_ref().is_some_and(|call| call.caller_serial != *caller && call.server_serial != *server)
    };
    web.until("call with new certificates", other).await.map(drop)
}

fn serial(process: &Process) -> String {
    process.now().identity.map(|identity| identity.serial).unwrap_or_default()
}
