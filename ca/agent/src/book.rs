//! The book of everything the agent knows and holds, and of who follows what. Pure: time is an argument.
//!
//! Laws: what a follower sees is whole and changes only when its content does; it never holds an expired or a stopped
//! certificate, nor one that the rules do not give it; a bundle in force is never replaced by one with a lower
//! sequence, or by another one with the same; it may be acknowledged only when it is sealed on disk and no open stream
//! can hold an older one, except with certificates that have all expired. A bundle waits for no certificate: whoever is
//! granted an identity sees the bundles while its certificates are on their way. While a successor is being fetched, the
//! certificate of the same identity stays.
//! Not here: locks and wake-ups (`cache`), the disk (`sealed`).
//! Sources: ca/docs/ARCHITECTURE.md §2 (acknowledged trust); spiffe/spire#1847 (a restart during an outage); SPIFFE
//! Workload API §4.4.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rhizome_core::attributes::Attributes;
use rhizome_core::caller::Principal;
use rhizome_core::rules::{Rule, RuleSet};
use rhizome_id::{Digest, RuleName, SpiffeId, Timestamp, TrustDomain};
use rhizome_proto::node::v1::CrlSet;
use rhizome_x509::{Bundle, Crl};
use tokio::sync::watch;

use crate::crls::{Crls, Taken, issuer_of};
use crate::holdings::{NotYet, Standing, Svid, View};
use crate::renewal::Entitlement;

mod asking;
mod foreign;
mod insight;
mod views;

use foreign::Foreign;
pub(crate) use foreign::{ForeignChange, InForce};
pub(crate) use insight::Insight;

/// Serials remembered as stopped, so that an answer that was overtaken by the order to stop is not served. An order
/// overtakes an answer by milliseconds.
const STOPPED: usize = 1_024;
/// Orders to renew remembered as carried out. The authority has a few in force, and repeats each on every stream.
const ORDERS: usize = 256;

/// What one workload sees.
type Seen = Result<Arc<View>, NotYet>;

/// Everything the agent knows and holds.
pub(crate) struct Book {
    domain: TrustDomain,
    node: Option<Principal>,
    rules: Option<RuleSet>,
    cursor: u64,
    bundle: Option<Arc<Bundle>>,
    foreign: Foreign,
    crls: Crls,
    /// Those of them that may be handed out, in DER.
    shown_crls: Arc<Vec<Vec<u8>>>,
    /// Views from this version on have the bundle in force.
    bundle_since: u64,
    /// Sequence of the bundle that is safely on disk.
    sealed: u64,
    version: u64,
    followers: BTreeMap<u64, Follower>,
    by_attributes: BTreeMap<Attributes, u64>,
    holdings: BTreeMap<Entitlement, Holding>,
    stopped: VecDeque<String>,
    /// Names of the orders to renew that were carried out, oldest first.
    orders: VecDeque<String>,
    streams: BTreeMap<u64, Standing>,
    next: u64,
    /// With so many followers those that left are let go of.
    let_go_at: usize,
}

struct Follower {
    attributes: Attributes,
    sender: watch::Sender<Seen>,
    /// What the rules give it, or why nothing.
    entitled: Result<Vec<Entitlement>, NotYet>,
    /// The foreign trust domains that those rules federate with.
    federates_with: BTreeSet<TrustDomain>,
}

#[derive(Default)]
struct Holding {
    svid: Option<Arc<Svid>>,
    /// Authority key identifier of that certificate, if it has one.
    issuer: Option<Vec<u8>>,
    /// The certificate's own instant, or an earlier one by the server's order.
    renew_at: Option<Timestamp>,
    followers: BTreeSet<u64>,
    asked: bool,
    failures: u32,
    not_before: Option<Timestamp>,
    denied: Option<String>,
}

/// What became of an offered bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It is in force now.
    InForce,
    /// It was in force already.
    Known,
    /// Refused: its sequence is lower than the one in force.
    Lower {
        /// The sequence in force.
        held: u64,
    },
    /// Refused: another bundle with the same sequence is in force. Somebody's store went back, or worse.
    Conflict,
    /// Refused: it is of another trust domain.
    Foreign,
}

/// Why an answer brought no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The server's rules or the node's scope do not allow it.
    Denied(String),
    /// Anything that may pass; not before this many seconds, when the server said so.
    Passing {
        /// Seconds that the server asked to wait.
        wait: Option<i64>,
    },
    /// The question or the answer was lost with the connection.
    Lost,
}

/// A change of the rules, whole: every message of one batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuleChange {
    pub(crate) full: bool,
    pub(crate) upserts: Vec<Arc<Rule>>,
    pub(crate) removed: Vec<RuleName>,
    pub(crate) cursor: u64,
}

/// What goes to disk and comes back.
#[derive(Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) cursor: u64,
    pub(crate) rules: Option<Vec<Arc<Rule>>>,
    pub(crate) bundle: Option<Arc<Bundle>>,
    pub(crate) foreign: Vec<Arc<Bundle>>,
    pub(crate) crls: Crls,
    pub(crate) orders: Vec<String>,
    pub(crate) svids: Vec<Kept>,
}

/// A certificate as it is kept on disk.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) entitlement: Entitlement,
    pub(crate) svid: Arc<Svid>,
    /// The certificate's own instant, or an earlier one by the server's order.
    pub(crate) renew_at: Timestamp,
}

impl Book {
    pub(crate) fn new(domain: TrustDomain) -> Self {
        Self {
            domain,
            node: None,
            rules: None,
            cursor: 0,
            bundle: None,
            foreign: Foreign::default(),
            crls: Crls::default(),
            shown_crls: Arc::default(),
            bundle_since: 0,
            sealed: 0,
            version: 0,
            followers: BTreeMap::new(),
            by_attributes: BTreeMap::new(),
            holdings: BTreeMap::new(),
            stopped: VecDeque::new(),
            orders: VecDeque::new(),
            streams: BTreeMap::new(),
            next: 0,
            let_go_at: 0,
        }
    }

    /// Takes over what an earlier process held.
    pub(crate) fn restore(&mut self, snapshot: Snapshot, now: Timestamp) {
        self.cursor = snapshot.cursor;
        self.rules = snapshot.rules.map(RuleSet::new);
        self.sealed = snapshot.bundle.as_ref().map_or(0, |bundle| bundle.sequence());
        self.bundle = snapshot.bundle;
        self.foreign = Foreign::restored(snapshot.foreign);
        self.crls = snapshot.crls;
        self.orders = snapshot.orders.into();
        for kept in snapshot.svids.into_iter().filter(|kept| kept.svid.not_after >= now) {
            let Kept { entitlement, svid, renew_at } = kept;
            let holding = self.holdings.entry(entitlement).or_default();
            holding.renew_at = Some(renew_at);
            holding.issuer = issuer_of(&svid);
            holding.svid = Some(svid);
        }
        self.choose_crls();
        self.rules_changed(now);
    }

    /// What is to be kept on disk.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let svids = self.holdings.iter().filter_map(|(entitlement, holding)| {
            let svid = Arc::clone(holding.svid.as_ref()?);
            let renew_at = holding.renew_at.unwrap_or(svid.renew_at);
            Some(Kept { entitlement: entitlement.clone(), svid, renew_at })
        });
        Snapshot {
            cursor: self.cursor,
            rules: self.rules.as_ref().map(|rules| rules.iter().map(Arc::clone).collect()),
            bundle: self.bundle.clone(),
            foreign: self.foreign.bundles.values().cloned().collect(),
            crls: self.crls.clone(),
            orders: self.orders.iter().cloned().collect(),
            svids: svids.collect(),
        }
    }

    /// Says which node this is: rules look at its names.
    pub(crate) fn set_node(&mut self, node: Principal, now: Timestamp) {
        if self.node.as_ref() != Some(&node) {
            if self.node.is_some() {
                // What the authority told another node, and how far, says nothing about this one.
                self.rules = None;
                self.cursor = 0;
                self.orders.clear();
            }
            self.node = Some(node);
            self.rules_changed(now);
        }
    }

    pub(crate) const fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(crate) const fn bundle(&self) -> Option<&Arc<Bundle>> {
        self.bundle.as_ref()
    }

    /// Every certificate held.
    pub(crate) fn svids(&self) -> impl Iterator<Item = &Arc<Svid>> {
        self.holdings.values().filter_map(|holding| holding.svid.as_ref())
    }

    /// The identities that the rules give to somebody who is here.
    pub(crate) fn granted(&self) -> BTreeSet<SpiffeId> {
        let entitled = self.followers.values().flat_map(|follower| follower.entitled.iter().flatten());
        entitled.map(|entitlement| entitlement.spiffe_id.clone()).collect()
    }

    // What workloads do.

    /// Follows what a workload with these attributes may have.
    pub(crate) fn follow(&mut self, attributes: Attributes, now: Timestamp) -> watch::Receiver<Seen> {
        if let Some(follower) = self.by_attributes.get(&attributes).and_then(|id| self.followers.get(id)) {
            return follower.sender.subscribe();
        }
        self.keep_followers_few();
        let id = self.fresh();
        let (sender, receiver) = watch::channel(Err(NotYet::Starting));
        self.by_attributes.insert(attributes.clone(), id);
        let federates_with = BTreeSet::new();
        let entitled = Err(NotYet::Starting);
        self.followers.insert(id, Follower { attributes, sender, entitled, federates_with });
        self.entitle(id);
        self.show([id], now);
        receiver
    }

    pub(crate) fn open(&mut self) -> u64 {
        let id = self.fresh();
        self.streams.insert(id, Standing::Taking);
        id
    }

    pub(crate) fn stands(&mut self, stream: u64, standing: Standing) {
        match standing {
            Standing::Gone => drop(self.streams.remove(&stream)),
            Standing::Taking | Standing::Nothing | Standing::Given(_) | Standing::GivenUntil(..) => {
                if let Some(known) = self.streams.get_mut(&stream) {
                    *known = standing;
                }
            }
        }
    }

    // What the server says.

    /// Applies a change of the rules.
    pub(crate) fn apply(&mut self, change: RuleChange, now: Timestamp) {
        let mut rules = match &self.rules {
            Some(known) if !change.full => known.clone(),
            Some(_) | None => RuleSet::default(),
        };
        for name in &change.removed {
            rules = rules.without(name);
        }
        let granted_more = change.full || !change.upserts.is_empty();
        for rule in change.upserts {
            rules = rules.with(rule);
        }
        self.rules = Some(rules);
        self.cursor = change.cursor;
        if granted_more {
            self.ask_denied_again(now);
        }
        self.rules_changed(now);
    }

    /// Puts a bundle in force, unless it is older than the one that is.
    pub(crate) fn offer(&mut self, bundle: Bundle, now: Timestamp) -> Offered {
        if *bundle.trust_domain() != self.domain {
            return Offered::Foreign;
        }
        // Sequence 0 is a bundle from a join string or from files, which do not say which one it is.
        if let Some(held) = self.bundle.as_ref().filter(|held| held.sequence() > 0) {
            if bundle.sequence() < held.sequence() {
                return Offered::Lower { held: held.sequence() };
            }
            if bundle.sequence() == held.sequence() {
                let same = bundle.digest() == held.digest();
                return if same { Offered::Known } else { Offered::Conflict };
            }
        }
        self.bundle = Some(Arc::new(bundle));
        self.bundle_since = self.version.saturating_add(1);
        self.show_everyone(now);
        Offered::InForce
    }

    /// Takes the revocation lists that the server sent in place of those before. They come after their bundle.
    pub(crate) fn take_crls(&mut self, sent: &CrlSet, now: Timestamp) -> Taken {
        let Some(bundle) = self.bundle.clone() else {
            return Taken {
                changed: false,
                refused: vec!["there is no bundle to verify lists with".to_owned()],
            };
        };
        let taken = self.crls.take(sent, &bundle);
        if taken.changed && self.choose_crls() {
            self.show_everyone(now);
        }
        taken
    }

    /// Decides anew which lists may be handed out. Whether that is something else than before.
    fn choose_crls(&mut self) -> bool {
        let serving = self.holdings.values().filter(|it| it.svid.is_some());
        let shown = self.crls.shown(serving.filter_map(|it| it.issuer.as_deref()));
        // Compared before anything is copied: this is asked for every certificate that comes.
        let changed = !shown.iter().map(Crl::der).eq(self.shown_crls.iter().map(Vec::as_slice));
        if changed {
            self.shown_crls = Arc::new(shown.iter().map(|it| it.der().to_vec()).collect());
        }
        changed
    }

    /// Stops serving certificates at once; a new key is asked for where the rules still grant one. The serials that
    /// were served.
    pub(crate) fn stop(&mut self, serials: &[String], now: Timestamp) -> Vec<String> {
        for serial in serials {
            if self.stopped.len() >= STOPPED {
                self.stopped.pop_front();
            }
            self.stopped.push_back(serial.clone());
        }
        let mut stopped = Vec::new();
        let mut affected = BTreeSet::new();
        for holding in self.holdings.values_mut() {
            let Some(svid) = holding.svid.take_if(|svid| serials.contains(&svid.serial)) else { continue };
            holding.renew_at = None;
            holding.not_before = None;
            affected.extend(holding.followers.iter().copied());
            stopped.push(svid.serial.clone());
            // Another entitlement may have lent it.
            affected.extend(self.followers.iter().filter(|(_, it)| it.sees(&svid)).map(|(id, _)| *id));
        }
        if self.choose_crls() {
            affected.extend(self.followers.keys());
        }
        self.show(affected, now);
        stopped
    }

    /// Brings renewals forward to `slot`, of the certificates for whose issuer (its key identifier) `concerns` holds.
    /// An order that was carried out before changes nothing.
    pub(crate) fn renew_by(
        &mut self,
        order: &str,
        slot: Timestamp,
        concerns: impl Fn(Option<&[u8]>) -> bool,
    ) {
        if self.carried_out(order) {
            return;
        }
        if !order.is_empty() {
            if self.orders.len() >= ORDERS {
                self.orders.pop_front();
            }
            self.orders.push_back(order.to_owned());
        }
        for holding in self.holdings.values_mut() {
            if let (Some(_), Some(renew_at)) = (&holding.svid, &mut holding.renew_at)
                && concerns(holding.issuer.as_deref())
            {
                *renew_at = slot.min(*renew_at);
            }
        }
    }

    /// Whether the order of that name came before: what was renewed since then is not renewed for it once more.
    pub(crate) fn carried_out(&self, order: &str) -> bool {
        self.orders.iter().any(|known| known == order)
    }

    // Acknowledgement.

    /// The bundle that may be acknowledged: it is sealed, and every open stream was given it that still needs one.
    pub(crate) fn acknowledgeable(&self, now: Timestamp) -> Option<(u64, Digest)> {
        let bundle = self.bundle.as_ref().filter(|bundle| bundle.sequence() > 0)?;
        let given = |standing: &Standing| standing.has(now, |version| version >= self.bundle_since);
        let everywhere = self.sealed >= bundle.sequence() && self.streams.values().all(given);
        everywhere.then(|| (bundle.sequence(), bundle.digest()))
    }

    /// When the next stream that holds an older bundle than the one in force has nothing valid left.
    fn released_next(&self, now: Timestamp) -> Option<Timestamp> {
        let since = self.bundle_since.max(self.foreign.since());
        let until = |standing: &Standing| match standing {
            Standing::GivenUntil(version, until) if *version < since && *until >= now => Some(until.plus(1)),
            Standing::GivenUntil(..)
            | Standing::Taking
            | Standing::Nothing
            | Standing::Given(_)
            | Standing::Gone => None,
        };
        self.streams.values().filter_map(until).min()
    }

    /// The bundle of this sequence is safely on disk.
    pub(crate) const fn set_sealed(&mut self, sequence: u64) {
        self.sealed = sequence;
    }
}

impl Follower {
    fn sees(&self, svid: &Arc<Svid>) -> bool {
        let seen = self.sender.borrow();
        seen.as_ref().is_ok_and(|view| view.svids.iter().any(|it| Arc::ptr_eq(it, svid)))
    }
}

impl Holding {
    fn is_of_use(&self) -> bool {
        self.svid.is_some() || !self.followers.is_empty()
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "book_model.rs"]
mod model;
