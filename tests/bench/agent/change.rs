//! How long it takes from a change until it is in force at agents that are connected: a rule, a revocation, a bundle.
//! Time begins when the administrator's call is sent, so the call and its durable write are in it.

use std::time::{Duration, Instant};

use rhizome_proto::admin::v1::RevokeCertificatesRequest;
use rhizome_proto::admin::v1::certificate_admin_service_client::CertificateAdminServiceClient;
use rhizome_proto::admin::v1::revoke_certificates_request::Target;
use rhizome_proto::workload::X509svidResponse;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::agent::fleet::{Fleet, Heard, certificate, csr, enroll, new_key};
use crate::agent::machine::Machine;
use crate::agent::{Sizes, rules, subscribers};
use crate::figures::{Waits, heading, now, show};
use crate::process::Process;
use crate::republish::republish;
use crate::server::{Program, Server};
use crate::workload::{Identities, identity};

/// Whoever has not heard of a change by then is counted as never having heard.
const PATIENCE: Duration = Duration::from_secs(20);
/// The identity that the workload of the real agent always has.
const ALWAYS: &str = "/bench/always";
/// First by name among the nodes.
const REAL: &str = "a-real-agent";

pub(crate) async fn run(sizes: &Sizes) {
    heading("a change until it is in force, from the administrator's call, durable write included");
    let server = Server::launch(Program::Republishing);
    let admin = server.admin().await;
    let nodes = enroll(&server, sizes.hearing).await;
    let mut fleet = Fleet::assemble(&server, &nodes).await;
    let uid = rustix::process::geteuid().as_raw().to_string();
    rules::put(&admin, "always", "unix.uid", &uid, ALWAYS).await;
    let mut real = RealAgent::start(&server, &admin).await;
    let sequence = subscribers::sequence(&admin).await;
    let everyone = nodes.len() + 1;
    subscribers::all_hold(&admin, sequence, everyone, PATIENCE).await.expect("everybody acknowledges");

    change_rules(sizes, &admin, &mut fleet, &mut real, &uid).await;
    revoke(sizes, &admin, &mut fleet, &mut real).await;
    publish(sizes, &admin, &mut fleet, everyone).await;
}

async fn change_rules(sizes: &Sizes, admin: &Channel, fleet: &mut Fleet, real: &mut RealAgent, uid: &str) {
    let (mut heard, mut served) = (Spread::default(), Spread::default());
    for round in 0..sizes.changes {
        let (name, path) = (format!("change-{round}"), format!("/bench/change-{round}"));
        let start = now();
        rules::put(admin, &name, "unix.uid", uid, &path).await;
        let wanted = Heard::Rule(name.clone());
        heard.add(
            start,
            fleet.members.len(),
            fleet.hear(fleet.members.len(), PATIENCE, |it| *it == wanted).await,
        );
        served.add(start, 1, real.until(|message| identity(message, &path).is_some()).await);
        rules::delete(admin, &name).await;
    }
    heard.show(&format!("rule: heard by {} agents", fleet.members.len()));
    served.show("rule: its identity at a workload of the real agent");
}

async fn revoke(sizes: &Sizes, admin: &Channel, fleet: &mut Fleet, real: &mut RealAgent) {
    let (mut heard, mut replaced) = (Spread::default(), Spread::default());
    let key = new_key();
    let mut serials = Vec::new();
    for member in fleet.members.iter().take(sizes.changes * 10) {
        let issued = certificate(member.channel(), csr(&key)).await.expect("a certificate");
        serials.push(issued.serial);
    }
    for serial in serials {
        let start = now();
        revoke_one(admin, Target::Serial(serial.clone())).await;
        let wanted = Heard::Stop(serial);
        heard.add(start, 1, fleet.hear(1, PATIENCE, |it| *it == wanted).await);
    }
    heard.show("revocation: heard by the agent that serves it");
    for _ in 0..sizes.changes {
        let held = real.last.as_ref().and_then(|it| identity(it, ALWAYS)).expect("an identity").clone();
        let start = now();
        revoke_one(admin, Target::SpiffeId(held.spiffe_id)).await;
        let another = |message: &X509svidResponse| {
            identity(message, ALWAYS).is_some_and(|it| it.x509_svid != held.x509_svid)
        };
        replaced.add(start, 1, real.until(another).await);
    }
    replaced.show("revocation: replaced at a workload of the real agent");
}

async fn revoke_one(admin: &Channel, target: Target) {
    let request = RevokeCertificatesRequest {
        target: Some(target),
        reason: "benchmark".to_owned(),
        ..RevokeCertificatesRequest::default()
    };
    let answer = CertificateAdminServiceClient::new(admin.clone()).revoke_certificates(request).await;
    assert!(answer.expect("a revocation").into_inner().count > 0, "nothing was revoked");
}

async fn publish(sizes: &Sizes, admin: &Channel, fleet: &mut Fleet, everyone: usize) {
    let (mut heard, mut sealed, mut all) = (Spread::default(), Spread::default(), Spread::default());
    for _ in 0..sizes.changes {
        let next = subscribers::sequence(admin).await + 1;
        let start = now();
        republish(admin.clone()).await;
        let wanted = Heard::Bundle(next);
        heard.add(
            start,
            fleet.members.len(),
            fleet.hear(fleet.members.len(), PATIENCE, |it| *it == wanted).await,
        );
        sealed.add(start, 1, subscribers::first_holds(admin, next, PATIENCE).await.into_iter().collect());
        all.add(start, 1, subscribers::all_hold(admin, next, everyone, PATIENCE).await.into_iter().collect());
    }
    heard.show(&format!("bundle: heard by {} agents", fleet.members.len()));
    sealed.show("bundle: sealed, given to workloads, acknowledged (*)");
    all.show("bundle: acknowledged by everybody (*)");
    println!(
        "(*) looked at after the line above it, every 5 ms: not below it. The bundle by the server that republishes."
    );
}

/// Waits for changes, and how many never came.
#[derive(Default)]
struct Spread {
    waits: Vec<Duration>,
    never: usize,
}

impl Spread {
    fn add(&mut self, start: Instant, wanted: usize, heard: Vec<Instant>) {
        self.never += wanted.saturating_sub(heard.len());
        self.waits.extend(heard.into_iter().map(|at| at.duration_since(start)));
    }

    fn show(self, what: &str) {
        let waits: Waits = self.waits.into_iter().collect();
        let never = if self.never > 0 { format!("; NEVER HEARD: {}", self.never) } else { String::new() };
        show(what, &format!("p99 {:.1} ms", waits.at(0.99)), "p99 ≤ 100 ms", &format!("{waits}{never}"));
    }
}

/// The real agent with one workload, which is this process.
struct RealAgent {
    messages: mpsc::UnboundedReceiver<(Instant, X509svidResponse)>,
    last: Option<X509svidResponse>,
    _agent: Process,
    _machine: Machine,
}

impl RealAgent {
    async fn start(server: &Server, admin: &Channel) -> Self {
        let machine = Machine::joined(&server.join_string(admin.clone(), REAL).await);
        let (agent, start) = machine.start();
        let (sender, messages) = mpsc::unbounded_channel();
        let socket = machine.socket();
        // Ends with the agent.
        std::thread::spawn(move || {
            let mut identities = Identities::open(&socket, || start.elapsed() > PATIENCE);
            while let Ok(message) = identities.next() {
                drop(sender.send((now(), message)));
            }
        });
        let mut real = Self { messages, last: None, _agent: agent, _machine: machine };
        let first = real.until(|message| identity(message, ALWAYS).is_some()).await;
        assert!(!first.is_empty(), "the real agent serves nothing");
        real
    }

    /// Waits for a message like this; when it came, if it did.
    async fn until(&mut self, wanted: impl Fn(&X509svidResponse) -> bool) -> Vec<Instant> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while let Ok(Some((at, message))) = tokio::time::timeout_at(deadline, self.messages.recv()).await {
            let found = wanted(&message);
            self.last = Some(message);
            if found {
                return vec![at];
            }
        }
        Vec::new()
    }
}
