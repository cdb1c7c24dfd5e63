//! What is known of a cluster: what its Rhizome said last, and what its ledger showed.

use std::collections::BTreeMap;

use rhizome_id::{AuthorityId, ClusterName, Digest, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

use super::{Alarm, Cluster, ClusterState, Granted, continue_ledger, outside_scope};
use crate::documents::{Kind, Stored};
use crate::ledger::{Event, Fault, FaultKind, Head, Position, Record};
use crate::limits::{
    CLUSTER_ALARMS_KEPT, CLUSTER_SAME_SECONDS, CLUSTER_SILENT_SECONDS, ROTATION_SKEW_SECONDS,
};
use crate::rotation::Choices;
use crate::rotation::evidence::{Held, Presented, Subscriber, SubscriberKind, gone};
use crate::rotation::holdings;

/// What a cluster's Rhizome says of everything below it. Replaces what it said before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// The lowest bundle that anybody below it has in force; `None`: it has none itself.
    #[serde(default)]
    pub holds: Option<HeldBelow>,
    /// Living subscribers by kind: `agent`, `replica`.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// How many of them have not said that they have the published bundle in force.
    #[serde(default)]
    pub behind_count: u64,
    /// Names of some of those.
    #[serde(default)]
    pub behind: Vec<String>,
    /// Its release.
    #[serde(default)]
    pub version: String,
    /// The last record of its ledger, as it says.
    #[serde(default)]
    pub last_record: u64,
    /// What it says is still presented, by SHA-256 of the root's certificate. Whoever is not named is presented no more.
    #[serde(default)]
    pub presents: BTreeMap<Digest, PresentedBelow>,
    /// The record of its ledger up to which that speaks; 0: it does not say.
    #[serde(default)]
    pub presents_as_of: u64,
}

/// What a cluster says that somebody below it may still present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentedBelow {
    /// How many certificates.
    pub count: u64,
    /// The last second of the last of them.
    pub until: Timestamp,
}

/// A bundle that everybody below a cluster's Rhizome has at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBelow {
    /// Its sequence.
    pub sequence: u64,
    /// Its digest.
    pub digest: Digest,
}

/// Certificates below one intermediate, as the cluster's ledger has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedIssuer {
    /// How many were issued.
    pub count: u64,
    /// The last second of the last of them.
    pub until: Timestamp,
    /// The record of its ledger with the last of them.
    #[serde(default)]
    pub last_record: u64,
}

/// What is known of a cluster, as a document. Written with every report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Which cluster.
    pub cluster: ClusterName,
    /// When it reported last.
    pub at: Timestamp,
    /// What it said.
    pub reported: Reported,
    /// Since when it holds what it says.
    pub held_since: Timestamp,
    /// The record of its ledger up to which the chain was followed; 0: none.
    pub read_to: u64,
    /// The hash of that record: what its ledger cannot go back behind unseen.
    pub read_hash: Digest,
    /// What it issued, by intermediate. Those whose certificates have all expired are forgotten.
    #[serde(default)]
    pub issued: BTreeMap<AuthorityId, ServedIssuer>,
    /// Alarms ever raised about it.
    #[serde(default)]
    pub alarms: u64,
    /// The newest of them, oldest first.
    #[serde(default)]
    pub recent: Vec<Alarm>,
}

impl Stored for ClusterReport {
    const KIND: Kind = Kind::ClusterReport;

    fn id(&self) -> String {
        self.cluster.to_string()
    }
}

impl ClusterReport {
    /// Nothing heard yet.
    pub fn empty(cluster: ClusterName) -> Self {
        Self {
            cluster,
            at: Timestamp::EPOCH,
            reported: Reported::default(),
            held_since: Timestamp::EPOCH,
            read_to: 0,
            read_hash: Digest::ZERO,
            issued: BTreeMap::new(),
            alarms: 0,
            recent: Vec::new(),
        }
    }

    /// What is kept when the cluster begins anew with another ledger: alarms, and what is still valid of what it issued.
    #[must_use]
    pub fn begun_anew(&self) -> Self {
        let Self { cluster, issued, alarms, recent, .. } = self.clone();
        Self { issued, alarms, recent, ..Self::empty(cluster) }
    }

    /// Up to where its ledger was followed.
    pub const fn cursor(&self) -> Head {
        Head { position: Position(self.read_to), hash: self.read_hash }
    }

    /// The document after a report, with the alarms that it gives rise to and that were not just raised. When the records
    /// do not follow what was read before, that is an alarm, and the ledger is read anew from its first record.
    ///
    /// # Errors
    /// [`Fault`] when the records are no ledger at all: they do not hold together from their first one.
    pub fn after(
        &self,
        reported: Reported,
        records: &[Record],
        cluster: &Cluster,
        domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<(Self, Vec<Alarm>), Fault> {
        let same = reported.holds == self.reported.holds;
        let held_since = if same { self.held_since } else { now };
        let mut next = Self { at: now, held_since, reported, ..self.clone() };
        let fresh = self.fresh(&next.reported, records);
        let found = match fresh.and_then(|fresh| continue_ledger(self.cursor(), fresh)) {
            Ok(continued) => {
                (next.read_to, next.read_hash) = (continued.head.position.0, continued.head.hash);
                next.take_in(continued.events, cluster, domain, now)
            }
            Err(fault) if self.read_to == 0 => return Err(fault),
            Err(fault) => {
                // What it issued was issued: it is counted again, and not forgotten.
                (next.read_to, next.read_hash) = (0, Digest::ZERO);
                vec![Alarm::rewritten(&fault, now)]
            }
        };
        next.issued.retain(|_, served| now.since(served.until) <= ROTATION_SKEW_SECONDS);
        let new = next.raise(found);
        Ok((next, new))
    }

    /// Of `records` those that were not read yet. An answer that was lost, or a start, makes a cluster begin too early; one
    /// that begins too late is told where to.
    fn fresh<'r>(&self, reported: &Reported, records: &'r [Record]) -> Result<&'r [Record], Fault> {
        let rewritten =
            |at: u64| Fault { at: Position(at), kind: FaultKind::Rewritten { kept: self.read_hash } };
        if (1..self.read_to).contains(&reported.last_record) {
            return Err(rewritten(reported.last_record));
        }
        if records.first().is_some_and(|first| first.position.0 > self.read_to.saturating_add(1)) {
            return Ok(&[]);
        }
        let last_read = records.iter().find(|it| it.position.0 == self.read_to);
        if last_read.is_some_and(|it| it.hash != self.read_hash) {
            return Err(rewritten(self.read_to));
        }
        let known = records.iter().take_while(|it| it.position.0 <= self.read_to).count();
        Ok(records.get(known..).unwrap_or_default())
    }

    fn take_in(
        &mut self,
        events: Vec<(Position, Result<Event, String>)>,
        cluster: &Cluster,
        domain: &TrustDomain,
        now: Timestamp,
    ) -> Vec<Alarm> {
        let mut found = Vec::new();
        for (position, event) in events {
            let event = match event {
                Ok(event) => event,
                Err(cause) => {
                    found.push(Alarm::unreadable(position, &cause, now));
                    continue;
                }
            };
            if let Some(outside) = outside_scope(cluster, domain, &event, now) {
                found.push(Alarm::outside(&outside, position, now));
            }
            // Only what it was granted can be believed by anybody, and for so long: other names would fill this record.
            if let Event::Issued(issuance) = event
                && let Some(granted) = cluster.granted.iter().find(|it| it.id == issuance.issuer)
            {
                let until = issuance.not_after.min(granted.not_after);
                let first = ServedIssuer { count: 0, until, last_record: 0 };
                let served = self.issued.entry(issuance.issuer).or_insert(first);
                served.count = served.count.saturating_add(1);
                served.until = served.until.max(until);
                served.last_record = served.last_record.max(position.0);
            }
        }
        found
    }

    /// Counts all, keeps and gives back those that say something new.
    fn raise(&mut self, found: Vec<Alarm>) -> Vec<Alarm> {
        let mut new = Vec::new();
        for alarm in found {
            self.alarms = self.alarms.saturating_add(1);
            if self.recent.iter().any(|known| known.repeats(&alarm)) {
                continue;
            }
            self.recent.push(alarm.clone());
            if new.len() < CLUSTER_ALARMS_KEPT {
                new.push(alarm);
            }
        }
        let extra = self.recent.len().saturating_sub(CLUSTER_ALARMS_KEPT);
        self.recent.drain(..extra);
        new
    }

    /// Whether a report of `reported` without records says nothing that is not known, so soon that it need not be written.
    pub fn is_told(&self, reported: &Reported, now: Timestamp) -> bool {
        let soon = (0..CLUSTER_SAME_SECONDS).contains(&now.since(self.at));
        soon && self.reported == *reported
    }

    /// Whether its Rhizome was heard of lately.
    pub fn is_heard(&self, now: Timestamp) -> bool {
        now.since(self.at) <= CLUSTER_SILENT_SECONDS
    }
}

/// What a change of the root looks at a cluster with.
#[derive(Clone, Copy, Debug)]
pub struct Outlook<'o> {
    /// The roots on record, by SHA-256 of their certificates.
    pub roots: &'o BTreeMap<Digest, AuthorityId>,
    /// What was chosen for the change.
    pub choices: &'o Choices,
    /// Now.
    pub now: Timestamp,
}

/// What a cluster says is still presented: roots on record, and whether there are others.
struct Claim<'c> {
    report: &'c ClusterReport,
    roots: BTreeMap<&'c AuthorityId, PresentedBelow>,
    unknown: bool,
}

impl<'c> Claim<'c> {
    /// `None` while it says nothing, and when only the end of certificates counts.
    fn of(report: &'c ClusterReport, outlook: &Outlook<'c>) -> Option<Self> {
        let reported = &report.reported;
        if reported.presents_as_of == 0 || outlook.choices.until_expiry {
            return None;
        }
        let known = |(root, it): (&Digest, &PresentedBelow)| Some((outlook.roots.get(root)?, *it));
        let roots: BTreeMap<_, _> = reported.presents.iter().filter_map(known).collect();
        let unknown = roots.len() < reported.presents.len();
        Some(Self { report, roots, unknown })
    }

    fn names(&self, root: &AuthorityId) -> bool {
        self.unknown || self.roots.contains_key(root)
    }

    /// Whether it says that what an intermediate below `root` signed, up to `last_record`, is presented no more.
    fn disowns_issued(&self, root: &AuthorityId, last_record: u64) -> bool {
        self.report.reported.presents_as_of >= last_record && !self.names(root)
    }

    /// Whether it says, long enough after an intermediate was granted, that it signs nothing with it.
    fn disowns_granted(&self, granted: &Granted, outlook: &Outlook<'_>) -> bool {
        self.report.at.since(granted.granted_at) >= outlook.choices.settle_seconds
            && !self.names(&granted.root)
    }
}

/// What a cluster says of itself, for its own certificate: it is judged like an agent's.
pub fn own_report(report: &ClusterReport, outlook: &Outlook<'_>) -> Option<holdings::Report> {
    let claim = Claim::of(report, outlook)?;
    let roots = claim.roots.keys().map(|it| (*it).clone()).collect();
    Some(holdings::Report { roots, unknown: claim.unknown, with_own: true, at: report.at })
}

/// A cluster as the change of the root sees it: one subscriber that stands for everything below it. `None` when nothing
/// that it was granted can still be valid: then nobody depends on it.
///
/// Its ledger says what it issued and what it was granted it may sign with. That it presents these no more is its own
/// word, as an agent's is: who lies there harms what is below it alone.
pub fn subscriber(
    cluster: &Cluster,
    report: Option<&ClusterReport>,
    outlook: &Outlook<'_>,
) -> Option<Subscriber> {
    let until = cluster.matters_until()?;
    let claim = report.and_then(|it| Claim::of(it, outlook));
    let issued = presented(cluster, report, claim.as_ref(), outlook);
    let reported = report.map(|it| &it.reported);
    let unread = report.is_none_or(|it| it.read_to < it.reported.last_record);
    let mut behind = reported.map(|it| it.behind.clone()).unwrap_or_default();
    if reported.is_some_and(|it| it.behind_count > 0) && behind.is_empty() {
        behind.push(format!("nodes of {}", cluster.name));
    }
    if unread {
        behind.push(format!("the ledger of {}, which is not read to its end", cluster.name));
    }
    let held = |report: &ClusterReport| {
        let held = report.reported.holds?;
        Some(Held { sequence: held.sequence, digest: Some(held.digest), at: report.held_since })
    };
    Some(Subscriber {
        name: format!("cluster:{}", cluster.name),
        kind: SubscriberKind::Subordinate,
        cluster: cluster.name.to_string(),
        holds: report.and_then(held),
        workloads: issued.iter().map(|it| it.count).fold(0, u32::saturating_add),
        presents: issued,
        until: Some(until),
        last_contact: report.map(|it| it.at),
        connected: cluster.state == ClusterState::Active && report.is_some_and(|it| it.is_heard(outlook.now)),
        behind,
    })
}

fn presented(
    cluster: &Cluster,
    report: Option<&ClusterReport>,
    claim: Option<&Claim<'_>>,
    outlook: &Outlook<'_>,
) -> Vec<Presented> {
    let mut found: Vec<Presented> = Vec::new();
    let mut add = |root: &AuthorityId, count: u64, until: Timestamp| {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        match found.iter_mut().find(|it| it.root == *root) {
            Some(known) => {
                known.count = known.count.saturating_add(count);
                known.until = known.until.max(until);
            }
            None => found.push(Presented { root: root.clone(), count, until }),
        }
    };
    for (issuer, served) in report.into_iter().flat_map(|it| &it.issued) {
        let Some(granted) = cluster.granted.iter().find(|it| it.id == *issuer) else { continue };
        if !claim.is_some_and(|it| it.disowns_issued(&granted.root, served.last_record)) {
            add(&granted.root, served.count, served.until);
        }
    }
    // With what it was granted it may sign at any moment.
    let living = cluster.granted.iter().filter(|it| !gone(it.not_after, outlook.now));
    for granted in living.filter(|granted| !claim.is_some_and(|it| it.disowns_granted(granted, outlook))) {
        add(&granted.root, 1, granted.not_after);
    }
    for (root, said) in claim.into_iter().flat_map(|it| &it.roots) {
        add(root, 0, said.until);
    }
    for known in &mut found {
        known.count = known.count.max(1);
    }
    found
}
