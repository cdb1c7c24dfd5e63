//! What a cluster's ledger says, judged by what the cluster may do.

use rhizome_id::{ClusterName, SpiffeId, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

use super::Cluster;
use crate::caller::{Principal, principal_of};
use crate::ledger::{Event, Fault, FaultKind, Head, Issuance, Position, Profile, Record, Verifier};
use crate::template::is_reserved;

/// Something to raise an alarm about, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// A stable word: `outside_scope`, `ledger_rewritten` or `ledger_unreadable`.
    pub code: String,
    /// About what: an identity, or a record of the cluster's ledger.
    pub subject: String,
    /// For people.
    pub detail: String,
    /// Where it stands in the cluster's ledger.
    pub position: u64,
    /// When it was found.
    pub at: Timestamp,
}

/// What a cluster issued outside its scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The identity.
    pub identity: SpiffeId,
    /// The serial number, or the token's id.
    pub serial: String,
    /// What is wrong, in words.
    pub why: String,
}

/// Judges one event of a cluster's ledger by its scope as it is now; `None`: it was allowed.
pub fn outside_scope(
    cluster: &Cluster,
    domain: &TrustDomain,
    event: &Event,
    now: Timestamp,
) -> Option<Outside> {
    match event {
        Event::Issued(issuance) => {
            let why = certificate(cluster, domain, issuance, now)?;
            let (identity, serial) = (issuance.spiffe_id.clone(), issuance.serial.to_string());
            Some(Outside { identity, serial, why })
        }
        Event::JwtIssued(token) => {
            // Its keys would have to be in our bundle, and none is.
            let why = "a token; a cluster's Rhizome gives none".to_owned();
            Some(Outside { identity: token.spiffe_id.clone(), serial: token.jti.to_string(), why })
        }
        Event::SigningFailed { .. } | Event::Changed { .. } | Event::Refused { .. } => None,
    }
}

fn certificate(
    cluster: &Cluster,
    domain: &TrustDomain,
    issuance: &Issuance,
    now: Timestamp,
) -> Option<String> {
    if matches!(issuance.profile, Profile::Root | Profile::Issuer) {
        return Some("a certificate of an authority; its intermediate may sign leaves only".to_owned());
    }
    // Which intermediates it had long ago is not remembered.
    let lives = issuance.not_after >= now;
    if lives && !cluster.granted.iter().any(|it| it.id == issuance.issuer) {
        return Some(format!("issuer {} is none that it was granted", issuance.issuer));
    }
    if is_reserved(&issuance.spiffe_id) {
        return reserved(&cluster.name, domain, issuance);
    }
    if issuance.profile != Profile::Workload {
        return Some(format!("a {:?} certificate with a workload's identity", issuance.profile));
    }
    let seconds = issuance.not_after.since(issuance.not_before).saturating_add(1);
    workload(cluster, domain, &issuance.spiffe_id, seconds)
}

/// Its own nodes, server and administrators, each with its own profile; whoever else trusts them is asked elsewhere: a
/// server knows only those that its own issuers made.
fn reserved(name: &ClusterName, domain: &TrustDomain, issuance: &Issuance) -> Option<String> {
    let allowed = match principal_of(&issuance.spiffe_id, domain) {
        Some(Principal::Node { cluster, .. }) => cluster == *name && issuance.profile == Profile::Node,
        Some(Principal::Server { .. }) => issuance.profile == Profile::Server,
        Some(Principal::Admin { .. }) => issuance.profile == Profile::Admin,
        Some(Principal::Local { .. } | Principal::Token { .. }) | None => false,
    };
    (!allowed).then(|| format!("a reserved identity; its nodes are below /rhizome/node/{name}"))
}

fn workload(cluster: &Cluster, domain: &TrustDomain, id: &SpiffeId, seconds: i64) -> Option<String> {
    let longest = cluster.scope.max_ttl.seconds();
    if !id.is_member_of(domain) {
        Some("an identity of another trust domain".to_owned())
    } else if !cluster.scope.allows(id) {
        Some(format!("it may issue for {}", cluster.scope))
    } else if seconds > longest {
        Some(format!("a lifetime of {seconds} s; it may give {longest} s at most"))
    } else {
        None
    }
}

/// A piece of a cluster's ledger that continues what was read before.
#[derive(Clone, Debug)]
pub struct Continued {
    /// Where its chain stands now.
    pub head: Head,
    /// What it says, record by record; a record of a newer release cannot be read, and counts as it stands in the chain.
    pub events: Vec<(Position, Result<Event, String>)>,
}

/// Continues the chain of a cluster's ledger from `from` with `records`.
///
/// # Errors
/// [`Fault`] at the first record that does not follow: the ledger was rewritten, or is not the one that was read before.
pub fn continue_ledger(from: Head, records: &[Record]) -> Result<Continued, Fault> {
    let mut verifier = Verifier::after(from);
    let mut events = Vec::with_capacity(records.len());
    for record in records {
        match verifier.check(record) {
            Ok(()) => {}
            // The link and the hash were right: they are looked at first.
            Err(Fault { kind: FaultKind::Unreadable(cause), .. }) => {
                verifier = Verifier::after(record.head());
                events.push((record.position, Err(cause)));
                continue;
            }
            Err(fault) => return Err(fault),
        }
        let event = record.read().map(|(_, event)| event).map_err(|fault| fault.to_string());
        events.push((record.position, event));
    }
    Ok(Continued { head: verifier.head(), events })
}

impl Alarm {
    /// Of a certificate or token outside the scope.
    pub fn outside(found: &Outside, position: Position, at: Timestamp) -> Self {
        Self {
            code: "outside_scope".to_owned(),
            subject: found.identity.to_string(),
            detail: format!("serial {}: {}", found.serial, found.why),
            position: position.0,
            at,
        }
    }

    /// Of a chain that does not continue.
    pub fn rewritten(fault: &Fault, at: Timestamp) -> Self {
        Self {
            code: "ledger_rewritten".to_owned(),
            subject: format!("record {}", fault.at.0),
            detail: format!("{fault}; its ledger is read anew from its first record"),
            position: fault.at.0,
            at,
        }
    }

    /// Of a record that cannot be read.
    pub fn unreadable(position: Position, cause: &str, at: Timestamp) -> Self {
        // It may quote what the record says.
        let cause: String = cause.chars().take(200).collect();
        Self {
            code: "ledger_unreadable".to_owned(),
            subject: format!("record {}", position.0),
            detail: format!("{cause}; upgrade this server, which must not be older than the cluster's"),
            position: position.0,
            at,
        }
    }

    /// Whether `other` says the same again.
    pub fn repeats(&self, other: &Self) -> bool {
        let why = |it: &Self| it.detail.split_once(": ").map_or(String::new(), |(_, why)| why.to_owned());
        self.code == other.code && self.subject == other.subject && why(self) == why(other)
    }
}
