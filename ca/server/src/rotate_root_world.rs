//! What a change of the root looks at: one reading of the store, the key ring, the ledger and those who follow the bundle.
//!
//! Laws: whatever is not known counts as not acknowledged, and a certificate of an issuer that is not known counts as one
//! below the root that goes. A certificate that the ledger shows counts as presented until it has expired; one of an agent
//! only until that agent, well after it was issued and over a stream that is open, reports what it serves, and no
//! certificate of that issuer is among it; its own, by which it calls, only where the report says that it speaks of that
//! one, too; and a report that is as long as reports can be tells nothing. Whoever has no stream holds the oldest bundle that went out with any of its
//! unexpired certificates: an answer may be lost, and one name may stand for many. On the way back, what was revoked counts
//! until it has expired: with the new root its revocation list goes. The ledger is read once, and from then on only what
//! is new of it, so a look costs what there is of subscribers and not of certificates; none is read while nothing is under
//! way.
//! Not here: what follows from it (`rhizome_core::rotation`), performing that (`rotate_root`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhizome_core::authority::{Authority, AuthorityKind, AuthorityState};
use rhizome_core::clusters::{self, Outlook};
use rhizome_core::ledger::{Event, Issuance, Position, Profile};
use rhizome_core::limits::ROTATION_SKEW_SECONDS;
use rhizome_core::nodes::{NodeRecord, NodeState};
use rhizome_core::ports::{KeyPurpose, KeyRingError, StoreError};
use rhizome_core::rotation::evidence::{
    BundleFact, CrossFact, Facts, Held, IssuerFact, Presented, RootFact, Subscriber, SubscriberKind,
};
use rhizome_core::rotation::holdings::{self, Issued, Report};
use rhizome_core::rotation::{Choices, Heading, Phase, Restore, Rotation, World, keys_that_matter};
use rhizome_core::state::{Revocation, State};
use rhizome_id::{AuthorityId, ReplicaName, Timestamp};
use rhizome_proto::node::v1::ServedIssuer;

use crate::authority_keys::FORGET_WITH_ROOT;
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::presence::{Present, SERVED_ISSUERS};
use crate::rotate_root::key_of;
use crate::rotate_root_canary::{Probes, is_probe};
use crate::rotate_root_look::Reading;
use crate::rotate_root_orders::NamedLosses;
use crate::rotate_root_reports::Sightings;
use crate::rotate_root_test::PROBE;

/// Ledger records read in one go.
const PAGE: usize = 1_000;
/// What the ledger calls a restore.
const RESTORE: &str = "store.restore";
/// Where a node's identity begins, below the trust domain.
const NODE_PATH: &str = "/rhizome/node/";
/// Where an administrator's does.
const ADMIN_PATH: &str = "/rhizome/admin/";

/// What this process keeps for the change of the root.
#[derive(Default)]
pub(crate) struct RootRotation {
    /// Held by whoever steps: one at a time in a process; between processes the store decides.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// The newest reading, for whoever looks soon after.
    pub(crate) reading: tokio::sync::Mutex<Option<Arc<Reading>>>,
    ledger: tokio::sync::Mutex<LedgerIndex>,
    /// Whom people were told that they would break.
    pub(crate) losses: std::sync::Mutex<NamedLosses>,
    /// Whom other servers were seen to reach.
    sightings: std::sync::Mutex<Sightings>,
    /// When the store was put back, as the store says; servers do not run while that is done.
    restored: tokio::sync::OnceCell<Option<Timestamp>>,
    pub(crate) probes: Probes,
}

/// Who may present what, as the ledger shows it.
#[derive(Default)]
struct LedgerIndex {
    /// The last record that was read.
    read: u64,
    holders: BTreeMap<String, Holder>,
    /// When the store was last put back from a backup.
    restored: Option<Timestamp>,
    /// Entries that this release cannot read.
    unreadable: u32,
    /// Every issuer that was on record while this process looked: what an issuer signed is still there, and known to reach
    /// nothing, when it has gone with its root.
    issuers: BTreeMap<AuthorityId, KnownIssuer>,
}

/// An issuer that is or was on record.
struct KnownIssuer {
    /// Its key identifier, in hexadecimal digits.
    key_id: String,
    root: AuthorityId,
}

#[derive(Default)]
struct Holder {
    /// By issuer and by the bundle that went out with them; those apart by which a node calls.
    issued: BTreeMap<(AuthorityId, u64, bool), Lines>,
    /// The issuer of its newest certificate, in the order of the ledger.
    newest: Option<AuthorityId>,
}

/// Lines of the ledger, together.
#[derive(Clone, Copy)]
struct Lines {
    until: Timestamp,
    last_at: Timestamp,
    count: u32,
}

impl Ca {
    /// What the store and the key ring hold, without the ledger.
    pub(crate) async fn root_facts(
        &self,
        state: &State,
        rotation: Option<&Rotation>,
        now: Timestamp,
    ) -> Result<Facts, ApiError> {
        let mut facts = facts(state);
        facts.restored = *self.root.restored.get_or_try_init(|| self.when_restored()).await?;
        let asked: BTreeSet<AuthorityId> = match rotation {
            Some(rotation) => keys_that_matter(rotation, &facts, now).into_iter().cloned().collect(),
            None => facts.active_root().into_iter().cloned().collect(),
        };
        for root in asked {
            if self.has_root_key(state, &root).await? {
                facts.keys.insert(root);
            }
        }
        Ok(facts)
    }

    async fn when_restored(&self) -> Result<Option<Timestamp>, ApiError> {
        let Some(document) = self.ports.store.document(&Restore::key()).await? else { return Ok(None) };
        let restore = document.read::<Restore>();
        let restore = restore.map_err(|bad| ApiError::Bug(format!("unreadable: {bad}")))?;
        Ok(Some(restore.value.restored_at))
    }

    /// Whether the key of `root` is in this server's ring. Only the key that is on record under its name is a root's.
    pub(crate) async fn has_root_key(&self, state: &State, root: &AuthorityId) -> Result<bool, ApiError> {
        let key = match self.ports.keys.key(&key_of(root)?).await {
            Ok(key) => key,
            Err(KeyRingError::NotFound { .. }) => return Ok(false),
            Err(cause) => return Err(IssueError::from(cause).into()),
        };
        let record = state.authorities().get(root);
        let is_real = record.is_none_or(|it| *it.value.certificate.public_key() == key.public_key);
        Ok(key.purpose == KeyPurpose::Root && is_real)
    }

    /// The world as a rotation sees it; as one that begins would, where there is none.
    pub(crate) async fn root_world(
        &self,
        rotation: Option<&Rotation>,
        now: Timestamp,
    ) -> Result<World, ApiError> {
        let state = self.state();
        let facts = self.root_facts(&state, rotation, now).await?;
        if rotation.is_some_and(|it| it.phase == Phase::Stable) {
            return Ok(World { facts, ..World::default() });
        }
        let mut ledger = self.root.ledger.lock().await;
        self.read_ledger(&mut ledger, now).await?;
        ledger.learn(&state);
        // Earlier releases said it in the ledger alone.
        let restored = ledger.restored.max(facts.restored);
        let facts = Facts { restored, unreadable: ledger.unreadable, ..facts };
        let fallback = Choices::default();
        let choices = rotation.map_or(&fallback, |it| &it.choices);
        let elsewhere = {
            let mut sightings = self.root.sightings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            sightings.within_reach(&state, now)
        };
        let issuers = Issuers::of(&ledger.issuers);
        let look = Look { state: &state, issuers, roots: &facts.roots, choices, elsewhere, now };
        let mut subscribers = self.subscribers(&look, &ledger);
        if rotation.is_some_and(|it| it.heading == Heading::Back) {
            subscribers.extend(revoked(&look));
        }
        drop(ledger);
        let probes = rotation.map(|it| self.root.probes.of(it)).unwrap_or_default();
        Ok(World { facts, subscribers, probes })
    }

    /// Everybody who holds certificates of this Rhizome or follows its bundle, and the last record of the ledger that was
    /// looked at; 0 when some of it could not be read, so that nobody can say who holds what.
    pub(crate) async fn everybody(&self, now: Timestamp) -> Result<(Vec<Subscriber>, u64), StoreError> {
        let mut ledger = self.root.ledger.lock().await;
        self.read_ledger(&mut ledger, now).await?;
        let state = self.state();
        ledger.learn(&state);
        let (facts, choices) = (facts(&state), &self.settings.root_rotation);
        // A cluster's own Rhizome is one server: nobody is connected to another one.
        let (issuers, elsewhere) = (Issuers::of(&ledger.issuers), BTreeSet::default());
        let look = Look { state: &state, issuers, roots: &facts.roots, choices, elsewhere, now };
        let as_of = if ledger.unreadable > 0 { 0 } else { ledger.read };
        Ok((self.subscribers(&look, &ledger), as_of))
    }

    /// Reads what is new in the ledger, and forgets what has expired.
    async fn read_ledger(&self, index: &mut LedgerIndex, now: Timestamp) -> Result<(), StoreError> {
        // What a clock that stepped ahead calls expired may live.
        let expired = |until: Timestamp| now.since(until) > ROTATION_SKEW_SECONDS && !self.clock.shaken();
        let mut dead = BTreeSet::new();
        loop {
            let page = self.ports.store.records(Position(index.read.saturating_add(1)), PAGE).await?;
            let Some(last) = page.last() else { break };
            index.read = last.position.0;
            for record in &page {
                match record.read() {
                    Ok((at, Event::Issued(issuance))) if !expired(issuance.not_after) => {
                        index.note(at, &issuance);
                    }
                    Ok((at, Event::Changed { action, .. })) if action == RESTORE => {
                        index.restored = index.restored.max(Some(at));
                    }
                    Ok((_, Event::Changed { action, subject, .. })) if action == FORGET_WITH_ROOT => {
                        dead.insert(subject);
                    }
                    Ok(_) => {}
                    // A newer release may have issued something.
                    Err(unreadable) => {
                        index.unreadable = index.unreadable.saturating_add(1);
                        tracing::error!(%unreadable, "an entry of the ledger that this release cannot read: while the root is \
                            changed, no phase that asks who holds what is left");
                    }
                }
            }
            // What is being written meanwhile is read at the next look.
            if page.len() < PAGE {
                break;
            }
        }
        for holder in index.holders.values_mut() {
            // What reaches nothing any more is presented by nobody; nor is it known after a start what it was below.
            holder.issued.retain(|line, it| !expired(it.until) && !dead.contains(line.0.as_str()));
        }
        index.holders.retain(|_, holder| !holder.issued.is_empty());
        Ok(())
    }

    /// In whose name this server has its own certificates.
    pub(crate) fn own_name(&self) -> String {
        format!("server:{}", self.settings.replica)
    }

    fn subscribers(&self, look: &Look<'_>, ledger: &LedgerIndex) -> Vec<Subscriber> {
        let nodes = look.state.nodes().values().map(|it| &*it.value);
        let nodes: BTreeMap<String, &NodeRecord> = nodes
            .filter(|it| it.state == NodeState::Active)
            .map(|it| (it.principal().to_string(), it))
            .collect();
        // A node that was shut out counts, too: its own certificate is revoked, those of its workloads are not.
        let mut found: BTreeMap<&str, Option<&Holder>> =
            ledger.holders.iter().map(|(name, holder)| (name.as_str(), Some(holder))).collect();
        for name in nodes.keys() {
            found.entry(name).or_insert(None);
        }
        let own = self.own_name();
        let one = |(name, holder): (&str, Option<&Holder>)| match nodes.get(name) {
            Some(node) => agent(look, name, node, holder, self.presence.of(name).as_ref()),
            None => client(look, name, holder, *name == *own),
        };
        let clusters = below(look, ledger);
        let agents = found.into_iter().filter(|(name, _)| !clusters.contains_key(*name)).map(one);
        agents.chain(clusters.values().cloned()).collect()
    }
}

/// Clusters with a Rhizome of their own, by the name of the node as which it calls: each stands for everything below it,
/// and for its own certificate.
fn below(look: &Look<'_>, ledger: &LedgerIndex) -> BTreeMap<String, Subscriber> {
    let of_roots = look.state.authorities().values().map(|it| &it.value);
    let of_roots = of_roots.filter(|it| it.kind == AuthorityKind::Root);
    let roots = of_roots.map(|it| (it.anchor().fingerprint(), it.id.clone())).collect();
    let outlook = Outlook { roots: &roots, choices: look.choices, now: look.now };
    let mut found = BTreeMap::new();
    for cluster in look.state.clusters().values().map(|it| &*it.value) {
        let report = look.state.cluster_reports().get(&cluster.name).map(|it| &*it.value);
        let Some(mut subscriber) = clusters::subscriber(cluster, report, &outlook) else { continue };
        let node = cluster.principal().to_string();
        let said = report.and_then(|it| clusters::own_report(it, &outlook));
        for it in look.presented(&look.issuers.issued(ledger.holders.get(&node)), said.as_ref()) {
            match subscriber.presents.iter_mut().find(|known| known.root == it.root) {
                Some(known) => {
                    known.count = known.count.saturating_add(it.count);
                    known.until = known.until.max(it.until);
                }
                None => subscriber.presents.push(it),
            }
        }
        let last = subscriber.presents.iter().map(|it| it.until).max();
        subscriber.until = subscriber.until.max(last);
        found.insert(node, subscriber);
    }
    found
}

/// What every subscriber is looked at with.
struct Look<'w> {
    state: &'w State,
    issuers: Issuers<'w>,
    roots: &'w BTreeMap<AuthorityId, RootFact>,
    choices: &'w Choices,
    /// Whom other servers reach.
    elsewhere: BTreeSet<String>,
    now: Timestamp,
}

impl Look<'_> {
    fn presented(&self, issued: &[Issued], report: Option<&Report>) -> Vec<Presented> {
        holdings::presented(issued, report, self.roots, self.choices, self.now)
    }
}

/// A report as it is stored: how many certificates, by the key identifier of their issuer.
pub(crate) fn served_by_key(serves: &[ServedIssuer]) -> BTreeMap<String, u32> {
    serves.iter().map(|it| (hex::encode(&it.authority_key_id), it.count)).collect()
}

fn agent(
    look: &Look<'_>,
    name: &str,
    node: &NodeRecord,
    holder: Option<&Holder>,
    present: Option<&Present>,
) -> Subscriber {
    let acknowledged = look.state.subscribers().get(name).map(|it| &it.value);
    let holds = acknowledged.map(|it| Held { sequence: it.sequence, digest: Some(it.digest), at: it.at });
    // Whichever server heard it, the newest counts.
    let written = acknowledged.and_then(|it| it.report.as_ref());
    let said = present.and_then(|it| Some((served_by_key(&it.serves), it.with_own, it.reported_at?)));
    let heard = written.map(|it| (it.issuers.clone(), it.with_own, it.said_at));
    let (served, with_own, said_at) = match (said, heard) {
        (Some(said), Some(heard)) if heard.2 > said.2 => (heard.0, heard.1, Some(heard.2)),
        (Some((served, own, at)), _) | (None, Some((served, own, at))) => (served, own, Some(at)),
        (None, None) => (BTreeMap::new(), false, None),
    };
    let seen_at = written.map(|it| it.seen_at);
    let elsewhere = look.elsewhere.contains(name);
    let issued = look.issuers.issued(holder);
    let until = issued.iter().map(|it| it.until).fold(node.not_after, Ord::max);
    let report = said_at.and_then(|at| look.issuers.report(&served, with_own, at));
    let mut presents = look.presented(&issued, report.as_ref());
    // What it says that it serves, it presents, whatever the ledger shows.
    let says = |root: &AuthorityId| report.as_ref().is_some_and(|it| it.unknown || it.roots.contains(root));
    for root in look.roots.keys().filter(|it| says(it)) {
        if !presents.iter().any(|it| it.root == *root) {
            presents.push(Presented { root: root.clone(), count: 1, until });
        }
    }
    let workloads = served.values().fold(0u32, |sum, it| sum.saturating_add(*it));
    let last_seen = present.map(|it| it.last_seen);
    Subscriber {
        name: name.to_owned(),
        kind: SubscriberKind::Agent,
        cluster: node.cluster.to_string(),
        holds,
        workloads: workloads.max(u32::from(!presents.is_empty())),
        presents,
        until: Some(until),
        last_contact: last_seen.max(seen_at).max(acknowledged.map(|it| it.at)).or(Some(node.attested_at)),
        connected: present.is_some() || elsewhere,
        behind: Vec::new(),
    }
}

/// Whoever holds certificates and follows no bundle: an administrator, a script, a server of this authority.
fn client(look: &Look<'_>, name: &str, holder: Option<&Holder>, own: bool) -> Subscriber {
    let issued = look.issuers.issued(holder);
    let newest = issued.iter().map(|it| it.last_at).max();
    // This process presents the newest of its certificates alone, and has the bundle.
    let serving = holder.filter(|_| own).and_then(|it| it.newest.as_ref());
    let report = serving.map(|issuer| {
        let root = look.issuers.roots.get(issuer);
        Report {
            roots: root.map(|it| (*it).clone()).into_iter().collect(),
            unknown: root.is_none(),
            with_own: true,
            at: look.now,
        }
    });
    let presents = look.presented(&issued, report.as_ref());
    let is_server = name.starts_with("server:");
    let published = look.state.bundle().map(|it| &it.value.bundle).filter(|_| is_server);
    let at = newest.unwrap_or(Timestamp::EPOCH);
    let published = published.map(|it| Held { sequence: it.sequence(), digest: Some(it.digest()), at });
    Subscriber {
        name: name.to_owned(),
        kind: if is_server { SubscriberKind::Replica } else { SubscriberKind::OneShot },
        cluster: String::new(),
        holds: published.or_else(|| holdings::lowest(&issued, look.now)),
        workloads: presents.iter().fold(0u32, |sum, it| sum.saturating_add(it.count)),
        presents,
        until: issued.iter().map(|it| it.until).max(),
        last_contact: newest,
        connected: is_server,
        behind: Vec::new(),
    }
}

/// What was revoked and has not expired: nobody presents it honestly, and whoever does must meet its revocation list.
fn revoked(look: &Look<'_>) -> Vec<Subscriber> {
    let bundle = look.state.bundle().map(|it| &it.value.bundle);
    let held = bundle.map(|it| (it.sequence(), it.digest()));
    let live = look.state.revocations().values().map(|it| &it.value);
    let live = live.filter(|it| look.now.since(it.not_after) <= ROTATION_SKEW_SECONDS);
    let one = |it: &Arc<Revocation>| {
        let below = |root: &AuthorityId| Presented { root: root.clone(), count: 1, until: it.not_after };
        let presents = match &it.issuer {
            // An issuer that is not on record went with its root: nothing below it reaches anything.
            Some(issuer) => look.issuers.roots.get(issuer).map(|root| below(root)).into_iter().collect(),
            None => look.roots.keys().map(below).collect(),
        };
        Subscriber {
            name: format!("revoked:{}", it.serial),
            kind: SubscriberKind::OneShot,
            cluster: String::new(),
            holds: held.map(|(sequence, digest)| Held { sequence, digest: Some(digest), at: it.at }),
            workloads: 1,
            presents,
            until: Some(it.not_after),
            last_contact: Some(it.at),
            connected: false,
            behind: Vec::new(),
        }
    };
    live.map(one).collect()
}

impl LedgerIndex {
    fn learn(&mut self, state: &State) {
        let on_record = state.authorities().values().map(|it| &*it.value);
        for issuer in on_record.filter(|it| it.kind == AuthorityKind::Issuer) {
            let Some(root) = issuer.issuer.clone() else { continue };
            let key_id = hex::encode(issuer.certificate.key_identifier());
            self.issuers.insert(issuer.id.clone(), KnownIssuer { key_id, root });
        }
    }

    fn note(&mut self, at: Timestamp, issuance: &Issuance) {
        // What self-tests and probes sign is verified and forgotten.
        if issuance.key.as_str().starts_with(PROBE) || is_probe(issuance) {
            return;
        }
        let Some(name) = holder_of(issuance) else { return };
        let holder = self.holders.entry(name).or_default();
        holder.newest = Some(issuance.issuer.clone());
        let own = issuance.profile == Profile::Node;
        let first = Lines { until: issuance.not_after, last_at: at, count: 0 };
        let lines = holder.issued.entry((issuance.issuer.clone(), issuance.bundle, own)).or_insert(first);
        lines.until = lines.until.max(issuance.not_after);
        lines.last_at = lines.last_at.max(at);
        lines.count = lines.count.saturating_add(1);
    }
}

/// In whose name somebody presents a certificate; nobody presents those of authorities.
fn holder_of(issuance: &Issuance) -> Option<String> {
    let path = issuance.spiffe_id.path();
    match issuance.profile {
        Profile::Workload => Some(issuance.caller.clone()),
        Profile::Node => path.strip_prefix(NODE_PATH).map(|it| format!("node:{it}")),
        Profile::Admin => path.strip_prefix(ADMIN_PATH).map(|it| format!("admin:{it}")),
        Profile::Server => Some(issuance.caller.clone()),
        Profile::Root | Profile::Issuer => None,
    }
}

/// Issuers by key identifier, and the roots above them.
struct Issuers<'s> {
    by_key_id: BTreeMap<&'s str, &'s AuthorityId>,
    roots: BTreeMap<&'s AuthorityId, &'s AuthorityId>,
}

impl<'s> Issuers<'s> {
    fn of(known: &'s BTreeMap<AuthorityId, KnownIssuer>) -> Self {
        Self {
            by_key_id: known.iter().map(|(id, it)| (it.key_id.as_str(), id)).collect(),
            roots: known.iter().map(|(id, it)| (id, &it.root)).collect(),
        }
    }

    fn issued(&self, holder: Option<&Holder>) -> Vec<Issued> {
        let lines = holder.into_iter().flat_map(|it| &it.issued);
        let one = |((issuer, bundle, own), lines): (&(AuthorityId, u64, bool), &Lines)| Issued {
            root: self.roots.get(issuer).map(|it| (*it).clone()),
            bundle: *bundle,
            own: *own,
            last_at: lines.last_at,
            until: lines.until,
            count: lines.count,
        };
        lines.map(one).collect()
    }

    /// What an agent said at `at`; `None`: nothing that tells anything.
    fn report(&self, serves: &BTreeMap<String, u32>, with_own: bool, at: Timestamp) -> Option<Report> {
        let of = |it: &String| self.roots.get(self.by_key_id.get(it.as_str())?).copied();
        let found: Vec<Option<&AuthorityId>> = serves.keys().map(of).collect();
        let roots = found.iter().flatten().map(|it| (*it).clone()).collect();
        // What did not fit into it may be below any root.
        let unknown = found.len() >= SERVED_ISSUERS || found.iter().any(Option::is_none);
        (!found.is_empty()).then_some(Report { roots, unknown, with_own, at })
    }
}

/// Without keys, and without what the store says of restores.
fn facts(state: &State) -> Facts {
    let of_kind = |kind| {
        state.authorities().values().map(|it| &*it.value).filter(move |it: &&Authority| it.kind == kind)
    };
    let roots = of_kind(AuthorityKind::Root).map(|it| {
        let cross = it.cross.as_ref().map(|cross| CrossFact {
            by: cross.by.clone(),
            not_after: cross.certificate.not_after(),
            carried: cross.carried,
        });
        let fact = RootFact {
            not_after: it.window().1,
            active: it.state == AuthorityState::Active,
            tainted: it.state == AuthorityState::Tainted,
            cross,
        };
        (it.id.clone(), fact)
    });
    let bundle = state.bundle().map(|it| &it.value.bundle).map_or_else(BundleFact::default, |bundle| {
        let published = |it: &&Authority| {
            bundle.anchors().iter().any(|anchor| anchor.fingerprint() == it.anchor().fingerprint())
        };
        BundleFact {
            sequence: bundle.sequence(),
            digest: bundle.digest(),
            anchors: of_kind(AuthorityKind::Root).filter(published).map(|it| it.id.clone()).collect(),
            refresh_hint: bundle.refresh_hint().seconds(),
        }
    });
    // Of one that signs no more an older release did not say when it stopped: when its successor began.
    let successor = |replica: &ReplicaName| {
        let active = of_kind(AuthorityKind::Issuer)
            .filter(|it| it.state == AuthorityState::Active && it.replica == *replica);
        active.filter_map(|it| it.activated_at).max()
    };
    let issuers = of_kind(AuthorityKind::Issuer).filter(|it| it.state != AuthorityState::Prepared);
    let issuers = issuers.filter_map(|it| {
        let active = it.state == AuthorityState::Active;
        let ended = || it.retired_at.or_else(|| successor(&it.replica)).or(it.activated_at);
        let since = if active { it.activated_at } else { ended() };
        Some(IssuerFact {
            replica: it.replica.to_string(),
            root: it.issuer.clone()?,
            since: since.unwrap_or(it.prepared_at),
            active,
            not_after: it.certificate.not_after(),
        })
    });
    let canary = of_kind(AuthorityKind::Root).find(|it| it.is_canary()).map(|it| it.id.clone());
    Facts { roots: roots.collect(), bundle, issuers: issuers.collect(), canary, ..Facts::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_is_as_long_as_reports_can_be_may_have_left_something_out() {
        let id = |text: String| text.parse::<AuthorityId>().unwrap();
        let issuer = |number: usize| {
            let known = KnownIssuer { key_id: format!("{number:02x}"), root: id("root-1".to_owned()) };
            (id(format!("issuer-{number}")), known)
        };
        let known = (0..SERVED_ISSUERS).map(issuer).collect();
        let issuers = Issuers::of(&known);
        let said = |many: usize| {
            let serves = (0..many).map(|number| (format!("{number:02x}"), 1)).collect();
            issuers.report(&serves, true, Timestamp::EPOCH)
        };
        assert!(said(0).is_none(), "whoever says nothing tells nothing");
        assert!(!said(SERVED_ISSUERS - 1).unwrap().unknown);
        assert!(said(SERVED_ISSUERS).unwrap().unknown);
    }
}
