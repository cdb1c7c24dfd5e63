//! What is reported, in the form that programs read it.
//!
//! Laws: names are stable; lists are bounded, and say how much was left out. Not here: serving it (`web`).

use std::collections::BTreeMap;
use std::sync::Arc;

use rhizome_core::ports::Clock;
use rhizome_id::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::attestation::{AttestError, PeerError, PeerProcess};
use crate::book::Insight;
use crate::cache::Cache;
use crate::holdings::Identities as _;
use crate::sink::{SinkBoard, SinkHealth, SinkStatus};
use crate::socket::Doors;
use crate::status::Status;
use crate::{Agent, Aside};

/// Identities listed; an agent with more is asked by metrics.
const IDENTITIES: usize = 10_000;

/// Looks at a running agent.
pub struct Observer {
    cache: Arc<Cache>,
    status: watch::Receiver<Status>,
    doors: Arc<Doors>,
    sinks: Arc<SinkBoard>,
    clock: Arc<dyn Clock>,
    aside: Vec<Aside>,
    since: Timestamp,
}

/// How an agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The agent's release.
    pub version: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// Whether workloads can be served.
    pub ready: bool,
    /// Whether the authority's stream is open and has brought the agent up to date.
    pub connected: bool,
    /// For how long it has not been, in seconds.
    pub sync_lag_seconds: i64,
    /// Attempts to connect that failed in a row.
    pub connect_failures: u32,
    /// Last second of the node's own certificate.
    pub node_expires: Option<Timestamp>,
    /// Serial of the node's own certificate.
    pub node_serial: String,
    /// Sequence of the bundle in force.
    pub bundle_sequence: Option<u64>,
    /// Sequence of the bundle that was acknowledged last.
    pub bundle_acknowledged: Option<u64>,
    /// The foreign bundles in force, by trust domain: their sequences, as the authority has them.
    #[serde(default)]
    pub federated: BTreeMap<String, u64>,
    /// Bundles refused since the start.
    pub bundles_refused: u64,
    /// Revocation lists, or issuers of lists, refused since the start.
    pub crls_refused: u64,
    /// Identities held.
    pub identities_held: usize,
    /// Those that expire first, at most 10 000.
    pub identities: Vec<IdentityReport>,
    /// Connections of workloads.
    pub connections: usize,
    /// Open streams of workloads.
    pub streams: usize,
    /// What came of asking for certificates.
    pub certificates: Tallies,
    /// Writes of the state that failed in a row.
    pub state_write_failures: u32,
    /// Files of the state that were of no use, and where they are now.
    pub state_kept_aside: Vec<String>,
    /// How the file sinks are.
    pub sinks: Vec<SinkStatus>,
    /// What needs attention, in words.
    pub problems: Vec<String>,
}

/// One identity that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityReport {
    /// Whose.
    pub spiffe_id: String,
    /// The serial, in hexadecimal.
    pub serial: String,
    /// Its last second.
    pub expires: Timestamp,
    /// When it is renewed.
    pub renew_at: Timestamp,
}

/// What came of asking for certificates, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tallies {
    /// Issued: first ones and renewals.
    pub issued: u64,
    /// Refused by the authority.
    pub refused: u64,
    /// Failed in a way that may pass.
    pub failed: u64,
    /// Unanswered when the connection broke; asked again.
    pub lost: u64,
}

/// Why a process has what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Which process.
    pub pid: i32,
    /// What attestation found, with what is known of the node.
    pub attributes: BTreeMap<String, Vec<String>>,
    /// What the rules give.
    pub granted: Vec<WhatIsGiven>,
    /// Why they give nothing.
    pub denied: Option<Refused>,
    /// The rules that match, by name.
    pub matched: Vec<String>,
    /// The rules that nearly match, the nearest first.
    pub near: Vec<NearReport>,
}

/// One identity that the rules give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhatIsGiven {
    /// The identity.
    pub spiffe_id: String,
    /// The rule.
    pub rule: String,
    /// The DNS names that go along.
    pub dns_names: Vec<String>,
    /// Last second of the certificate that is held.
    pub expires: Option<Timestamp>,
    /// Why the authority gave none when it was last asked: it may know more than this node, such as its scope.
    pub refused: Option<String>,
}

/// Why nothing is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Stable, for programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A rule that nearly matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearReport {
    /// Its name.
    pub rule: String,
    /// What it lacks.
    pub unmet: Vec<UnmetReport>,
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmetReport {
    /// On which attribute.
    pub attribute: String,
    /// What would do.
    pub wanted: Vec<String>,
    /// What was found.
    pub found: Vec<String>,
}

impl Observer {
    /// Looks at `agent`, its sockets and its sinks.
    pub fn new(agent: &Agent, doors: &Arc<Doors>, sinks: &Arc<SinkBoard>, clock: &Arc<dyn Clock>) -> Self {
        Self {
            cache: agent.identities(),
            status: agent.status(),
            doors: Arc::clone(doors),
            sinks: Arc::clone(sinks),
            clock: Arc::clone(clock),
            aside: agent.kept_aside().to_vec(),
            since: clock.now(),
        }
    }

    /// Whether workloads can be served.
    pub fn is_ready(&self) -> bool {
        *self.cache.readiness().borrow()
    }

    /// How the agent is.
    pub fn report(&self) -> Report {
        let status = self.status.borrow().clone();
        let mut svids = self.cache.svids();
        svids.sort_by(|a, b| (a.not_after, &a.spiffe_id).cmp(&(b.not_after, &b.spiffe_id)));
        let identity = |svid: &Arc<crate::holdings::Svid>| IdentityReport {
            spiffe_id: svid.spiffe_id.to_string(),
            serial: svid.serial.clone(),
            expires: svid.not_after,
            renew_at: svid.renew_at,
        };
        let now = self.clock.now();
        let heard = status.heard_at.unwrap_or(self.since);
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.cache.trust_domain().to_string(),
            ready: self.is_ready(),
            connected: status.connected,
            sync_lag_seconds: if status.connected { 0 } else { now.since(heard).max(0) },
            connect_failures: status.failures,
            node_expires: status.node_not_after,
            node_serial: status.node_serial,
            bundle_sequence: self.cache.bundle().map(|bundle| bundle.sequence()),
            bundle_acknowledged: status.acknowledged,
            federated: self.cache.foreign(),
            bundles_refused: status.refused_bundles,
            crls_refused: status.refused_crls,
            identities_held: svids.len(),
            identities: svids.iter().take(IDENTITIES).map(identity).collect(),
            connections: self.doors.open_connections(),
            streams: self.doors.open_streams(),
            certificates: self.cache.tallies(),
            state_write_failures: status.unsealed,
            state_kept_aside: self
                .aside
                .iter()
                .map(|it| format!("{}: {}", it.path.display(), it.cause))
                .collect(),
            sinks: self.sinks.all(),
            problems: Vec::new(),
        };
        report.problems = problems(&report, now);
        report
    }

    /// Why the process with this number has what it has.
    ///
    /// # Errors
    /// [`Refused`] with `not_found` when there is no such process, `starting` before the rules are known.
    pub async fn explain(&self, pid: i32) -> Result<Explained, Refused> {
        let refused = |code: &str, message: String| Refused { code: code.to_owned(), message };
        let gone = |error: PeerError| refused("not_found", format!("process {pid}: {error}"));
        let process = Arc::new(PeerProcess::of_pid(pid).map_err(gone)?);
        let attested = self.doors.attestor.attest(&process).await.map_err(|error| match error {
            AttestError::Peer(error) => gone(error),
            AttestError::TooSlow | AttestError::Attribute(_) | AttestError::Stopping => {
                refused("attestation", error.to_string())
            }
        })?;
        let insight = self.cache.insight(&attested.attributes);
        let starting = || "the agent does not know the rules yet: it has never reached the authority";
        let insight = insight.ok_or_else(|| refused("starting", starting().to_owned()))?;
        Ok(explained(pid, &insight))
    }
}

fn explained(pid: i32, Insight { outlook, held }: &Insight) -> Explained {
    let mut attributes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in outlook.attributes.iter() {
        attributes.entry(name.to_string()).or_default().push(value.to_owned());
    }
    let (prospects, denied) = match &outlook.identities {
        Ok(prospects) => (prospects.as_slice(), None),
        Err(denial) => (Default::default(), Some(denial)),
    };
    let given = prospects.iter().zip(held).map(|(prospect, held)| WhatIsGiven {
        spiffe_id: prospect.spiffe_id.to_string(),
        rule: prospect.rule.to_string(),
        dns_names: prospect.dns_names.iter().map(ToString::to_string).collect(),
        expires: held.not_after,
        refused: held.refused.clone(),
    });
    let near = outlook.near.iter().map(|miss| NearReport {
        rule: miss.rule.to_string(),
        unmet: miss
            .missing
            .iter()
            .map(|unmet| UnmetReport {
                attribute: unmet.attribute.to_string(),
                wanted: unmet.wanted.clone(),
                found: unmet.found.clone(),
            })
            .collect(),
    });
    Explained {
        pid,
        attributes,
        granted: given.collect(),
        denied: denied.map(|it| Refused { code: it.code().to_owned(), message: it.to_string() }),
        matched: outlook.matched.iter().map(ToString::to_string).collect(),
        near: near.collect(),
    }
}

/// What needs attention, with what to do.
fn problems(report: &Report, now: Timestamp) -> Vec<String> {
    let mut found = Vec::new();
    if !report.ready {
        found.push("nobody can be served: the agent has never reached the authority; see its log".to_owned());
    }
    if !report.connected {
        let lag = report.sync_lag_seconds;
        found
            .push(format!("no connection to the authority for {lag} s; what is held is served; see the log"));
    }
    if let Some(end) = report.node_expires.filter(|end| *end < now) {
        found.push(format!("the node's certificate expired at {end}; join again"));
    }
    if report.bundle_sequence > report.bundle_acknowledged && report.connected {
        let sequence = report.bundle_sequence.unwrap_or_default();
        found
            .push(format!("bundle {sequence} is not acknowledged: some stream or sink does not hold it yet"));
    }
    if report.bundles_refused > 0 {
        let count = report.bundles_refused;
        found.push(format!(
            "{count} bundles were refused: a server's store went back, or it is another server"
        ));
    }
    if report.crls_refused > 0 {
        let count = report.crls_refused;
        found.push(format!(
            "{count} revocation lists were refused: not signed under the bundle, or older; see the log"
        ));
    }
    if report.state_write_failures > 0 {
        found.push("the state cannot be written; a restart would serve what was written before".to_owned());
    }
    found.extend(
        report.state_kept_aside.iter().map(|aside| format!("a file of the state was of no use: {aside}")),
    );
    let expired = report.identities.iter().filter(|it| it.expires < now).count();
    if expired > 0 {
        found.push(format!("{expired} identities have expired"));
    }
    for sink in &report.sinks {
        let trouble = sink.trouble.as_deref().unwrap_or("no reason known");
        match sink.health {
            SinkHealth::Failing => found.push(format!("sink {}: {trouble}", sink.name)),
            SinkHealth::Denied => found.push(format!("sink {}: no identity: {trouble}", sink.name)),
            SinkHealth::Waiting | SinkHealth::InForce => {}
        }
    }
    found
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("since", &self.since).finish_non_exhaustive()
    }
}
