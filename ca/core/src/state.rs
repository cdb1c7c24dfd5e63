//! State: everything the issuing path reads, as one immutable value that is replaced when something changes.
//!
//! Laws: a state is built from documents alone, and applying the same documents in any order gives the same state:
//! each document counts at its newest version, and a deletion leaves a tombstone so that an older write arriving late
//! does not bring it back. What followers must hear stands in a journal in the order in which it was taken in, not in
//! the order of versions, so a change that arrives late is still heard. Cloning is cheap (shared structure), so a
//! change costs the change and not the size.
//! Not here: reading documents (`rhizome-store`), swapping the pointer (`rhizome_server`).

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use rhizome_id::{
    AdminName, AuthorityId, Digest, ReplicaName, RuleName, Serial, SerialCounter, SpiffeId, Timestamp,
    TrustDomain,
};
use rhizome_x509::{Bundle, BundleError, RevocationCode, TrustAnchors};
use serde::{Deserialize, Serialize};

use crate::authority::{Authority, JwtAuthority};
use crate::caller::Role;
use crate::crl::CrlRecord;
use crate::documents::{BadDocument, Document, DocumentKey, Kind, Stored, Version, Versioned};
use crate::issuance::ActiveIssuer;
use crate::issuance::jwt::ActiveJwtKey;
use crate::nodes::NodeRecord;
use crate::renewals::RenewalOrder;
use crate::rotation::Rotation;
use crate::rules::{Rule, RuleSet};
use crate::tokens::JoinToken;

mod bundle_record;
mod clusters;
mod foreign;
mod jwt;
mod signing;

pub use bundle_record::BundleRecord;
use clusters::Clusters;
pub use foreign::Foreign;
use foreign::Foreigners;
use jwt::jwt_key_of;
pub use signing::CanaryIssuer;
use signing::{canary_of, issuer_of};

/// An administrator, as a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminRecord {
    /// Who.
    pub name: AdminName,
    /// What they may do.
    pub role: Role,
    /// Serial of the newest certificate.
    pub serial: Serial,
    /// Its last second.
    pub not_after: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}

/// A revoked certificate, as a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Which.
    pub serial: Serial,
    /// Why.
    pub reason: String,
    /// By whom.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// When it stops mattering.
    pub not_after: Timestamp,
    /// Whose identity it carries.
    pub spiffe_id: SpiffeId,
    /// Who had asked for it: the stable text of a principal, so that the right agent is told to stop serving it.
    pub holder: String,
    /// Whose certificate it is, and in whose list it therefore stands. `None`: recorded by an earlier release.
    #[serde(default)]
    pub issuer: Option<AuthorityId>,
    /// Why, in the words of revocation lists.
    #[serde(default)]
    pub code: RevocationCode,
}

/// Whoever verifies or presents on behalf of workloads, and which bundle it holds, as a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscriber {
    /// The stable text of its principal.
    pub principal: String,
    /// Sequence of the bundle it has in force.
    pub sequence: u64,
    /// Digest of that bundle.
    pub digest: Digest,
    /// When it said so.
    pub at: Timestamp,
    /// What it serves, written while the root is changed and several servers share the store. Older releases wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ServedReport>,
}

/// What an agent says that it serves, for those servers that it is not connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedReport {
    /// How many certificates, by the key identifier of their issuer, in hexadecimal.
    pub issuers: BTreeMap<String, u32>,
    /// Whether the certificate by which it calls is among them. Agents of older releases leave it out.
    #[serde(default)]
    pub with_own: bool,
    /// When it last said so.
    pub said_at: Timestamp,
    /// When its stream was last seen open.
    pub seen_at: Timestamp,
}

impl ServedReport {
    /// Of whoever has said nothing yet, and whose stream was open at `seen_at`.
    pub const fn silent(seen_at: Timestamp) -> Self {
        Self { issuers: BTreeMap::new(), with_own: false, said_at: Timestamp::EPOCH, seen_at }
    }
}

/// The one setting that can never change: whose authority this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// When it was founded.
    pub founded_at: Timestamp,
}

macro_rules! stored {
    ($($type:ty, $kind:ident, |$it:ident| $id:expr;)*) => {$(
        impl Stored for $type {
            const KIND: Kind = Kind::$kind;

            fn id(&self) -> String {
                let $it = self;
                $id
            }
        }
    )*};
}

stored! {
    Rule, Rule, |it| it.name().to_string();
    JoinToken, Token, |it| it.id.to_string();
    NodeRecord, Node, |it| it.id();
    Authority, Authority, |it| it.id.to_string();
    JwtAuthority, JwtAuthority, |it| it.id.to_string();
    BundleRecord, Bundle, |it| it.trust_domain.to_string();
    AdminRecord, Admin, |it| it.name.to_string();
    Revocation, Revocation, |it| it.serial.to_string();
    Subscriber, Subscriber, |it| it.principal.clone();
    Rotation, Rotation, |_it| "root".to_owned();
    Identity, Setting, |_it| "identity".to_owned();
}

/// A bundle with the trust anchors already parsed for verification.
#[derive(Debug)]
pub struct PublishedBundle {
    /// The bundle.
    pub bundle: Bundle,
    /// The same roots, ready to verify with.
    pub anchors: Arc<TrustAnchors>,
}

/// Changes that followers can catch up on after a lost stream; whoever missed more starts anew.
const JOURNAL: usize = 100_000;

/// One immutable view of everything.
#[derive(Clone, Debug)]
pub struct State {
    trust_domain: TrustDomain,
    replica: ReplicaName,
    version: Version,
    revision: u64,
    rule_set: RuleSet,
    rules: OrdMap<RuleName, Versioned<Arc<Rule>>>,
    authorities: OrdMap<AuthorityId, Versioned<Arc<Authority>>>,
    issuer: Option<Arc<ActiveIssuer>>,
    canary: Option<Arc<CanaryIssuer>>,
    jwt_authorities: OrdMap<AuthorityId, Versioned<Arc<JwtAuthority>>>,
    jwt_key: Option<Arc<ActiveJwtKey>>,
    bundle: Option<Versioned<Arc<PublishedBundle>>>,
    nodes: OrdMap<String, Versioned<Arc<NodeRecord>>>,
    admins: OrdMap<AdminName, Versioned<Arc<AdminRecord>>>,
    revocations: OrdMap<SerialCounter, Versioned<Arc<Revocation>>>,
    crls: OrdMap<AuthorityId, Versioned<Arc<CrlRecord>>>,
    /// Grows whenever a list or an authority changes.
    crl_generation: u64,
    subscribers: OrdMap<String, Versioned<Arc<Subscriber>>>,
    rotation: Option<Versioned<Arc<Rotation>>>,
    renewals: OrdMap<String, Versioned<Arc<RenewalOrder>>>,
    foreigners: Foreigners,
    clusters: Clusters,
    tombstones: OrdMap<DocumentKey, Version>,
    /// What followers must hear, by the order in which this process took it in.
    journal: OrdMap<u64, DocumentKey>,
    taken_in: u64,
    journal_since: u64,
}

/// Why documents do not make a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A document cannot be read.
    #[error(transparent)]
    Document(#[from] BadDocument),
    /// The bundle is not one.
    #[error("the stored bundle is not usable: {0}")]
    Bundle(#[from] BundleError),
    /// An active authority's chain does not fit together.
    #[error("authority {id} cannot be used: {cause}")]
    Authority {
        /// Which.
        id: AuthorityId,
        /// What does not fit.
        cause: String,
    },
}

impl State {
    /// An empty state of `trust_domain`, as replica `replica` sees it.
    pub fn empty(trust_domain: TrustDomain, replica: ReplicaName) -> Self {
        Self {
            trust_domain,
            replica,
            version: Version(0),
            revision: 0,
            rule_set: RuleSet::default(),
            rules: OrdMap::new(),
            authorities: OrdMap::new(),
            issuer: None,
            canary: None,
            jwt_authorities: OrdMap::new(),
            jwt_key: None,
            bundle: None,
            nodes: OrdMap::new(),
            admins: OrdMap::new(),
            revocations: OrdMap::new(),
            crls: OrdMap::new(),
            crl_generation: 0,
            subscribers: OrdMap::new(),
            rotation: None,
            renewals: OrdMap::new(),
            foreigners: Foreigners::default(),
            clusters: Clusters::default(),
            tombstones: OrdMap::new(),
            journal: OrdMap::new(),
            taken_in: 0,
            journal_since: 0,
        }
    }

    /// Takes in a document that was created or replaced. An older version than the one held changes nothing.
    ///
    /// # Errors
    /// [`StateError`]; the state is then unchanged.
    pub fn put(&mut self, document: &Document) -> Result<(), StateError> {
        if self.known(&document.key).is_some_and(|known| known >= document.version) {
            return Ok(());
        }
        let mut is_news = true;
        match document.key.kind {
            Kind::Rule => {
                let rule = shared(document.read::<Rule>()?);
                self.rule_set = self.rule_set.with(Arc::clone(&rule.value));
                self.rules.insert(rule.value.name().clone(), rule);
            }
            Kind::Authority => {
                let authority = shared(document.read::<Authority>()?);
                let mut next = self.authorities.clone();
                next.insert(authority.value.id.clone(), authority);
                let issuer = issuer_of(&next, &self.replica)?;
                self.canary = canary_of(&next, self.underway(), &self.replica);
                (self.issuer, self.authorities) = (issuer, next);
            }
            Kind::JwtAuthority => {
                let authority = shared(document.read::<JwtAuthority>()?);
                self.jwt_authorities.insert(authority.value.id.clone(), authority);
                self.jwt_key = jwt_key_of(&self.jwt_authorities, &self.replica);
            }
            Kind::Bundle => self.put_bundle(document)?,
            Kind::Node => {
                self.nodes.insert(document.key.id.clone(), shared(document.read::<NodeRecord>()?));
            }
            Kind::Admin => {
                let admin = shared(document.read::<AdminRecord>()?);
                self.admins.insert(admin.value.name.clone(), admin);
            }
            Kind::Revocation => {
                let revocation = shared(document.read::<Revocation>()?);
                self.revocations.insert(revocation.value.serial.counter(), revocation);
            }
            Kind::Crl => {
                let crl = shared(document.read::<CrlRecord>()?);
                self.crls.insert(crl.value.issuer.clone(), crl);
            }
            Kind::Subscriber => {
                self.subscribers.insert(document.key.id.clone(), shared(document.read::<Subscriber>()?));
            }
            Kind::Rotation => {
                let rotation = shared(document.read::<Rotation>()?);
                self.canary = canary_of(&self.authorities, Some(&rotation.value), &self.replica);
                self.rotation = Some(rotation);
            }
            Kind::Renewal => {
                self.renewals.insert(document.key.id.clone(), shared(document.read::<RenewalOrder>()?));
            }
            Kind::Federation | Kind::ForeignBundle | Kind::ForeignHolder => {
                is_news = self.foreigners.put(document)?;
            }
            Kind::Cluster | Kind::ClusterReport => self.clusters.put(document)?,
            // Tokens are looked up where they are redeemed, once each; settings are read at start; keys by their ring.
            Kind::Token | Kind::Setting | Kind::Key => {}
        }
        self.version = self.version.max(document.version);
        self.note(&document.key, is_news);
        Ok(())
    }

    fn put_bundle(&mut self, document: &Document) -> Result<(), StateError> {
        let Versioned { version, value } = document.read::<BundleRecord>()?;
        if value.trust_domain != self.trust_domain {
            return Ok(());
        }
        let bundle = Bundle::try_from(value)?;
        let anchors = Arc::new(TrustAnchors::from_bundle(&bundle));
        self.bundle = Some(Versioned { version, value: Arc::new(PublishedBundle { bundle, anchors }) });
        Ok(())
    }

    /// Takes in that the document `key` was deleted at `version`.
    ///
    /// # Errors
    /// [`StateError`] when what remains does not fit together.
    pub fn delete(&mut self, key: &DocumentKey, version: Version) -> Result<(), StateError> {
        if self.known(key).is_some_and(|known| known > version) {
            return Ok(());
        }
        let id = key.id.as_str();
        match key.kind {
            Kind::Rule => {
                if let Ok(name) = id.parse::<RuleName>() {
                    self.rules.remove(&name);
                    self.rule_set = self.rule_set.without(&name);
                }
            }
            Kind::Authority => {
                if let Ok(name) = id.parse::<AuthorityId>() {
                    self.authorities.remove(&name);
                    self.issuer = issuer_of(&self.authorities, &self.replica)?;
                    self.canary = canary_of(&self.authorities, self.underway(), &self.replica);
                }
            }
            Kind::JwtAuthority => {
                if let Ok(name) = id.parse::<AuthorityId>() {
                    self.jwt_authorities.remove(&name);
                    self.jwt_key = jwt_key_of(&self.jwt_authorities, &self.replica);
                }
            }
            Kind::Bundle => self.bundle = None,
            Kind::Node => drop(self.nodes.remove(id)),
            Kind::Admin => {
                if let Ok(name) = id.parse::<AdminName>() {
                    self.admins.remove(&name);
                }
            }
            Kind::Revocation => {
                if let Ok(serial) = id.parse::<Serial>() {
                    self.revocations.remove(&serial.counter());
                }
            }
            Kind::Crl => {
                if let Ok(name) = id.parse::<AuthorityId>() {
                    self.crls.remove(&name);
                }
            }
            Kind::Subscriber => drop(self.subscribers.remove(id)),
            Kind::Rotation => (self.rotation, self.canary) = (None, None),
            Kind::Renewal => drop(self.renewals.remove(id)),
            Kind::Federation | Kind::ForeignBundle | Kind::ForeignHolder => self.foreigners.delete(key),
            Kind::Cluster | Kind::ClusterReport => self.clusters.delete(key),
            Kind::Token | Kind::Setting | Kind::Key => {}
        }
        if !matches!(key.kind, Kind::Token | Kind::Setting | Kind::Key) {
            self.tombstones.insert(key.clone(), version);
        }
        self.version = self.version.max(version);
        self.note(key, true);
        Ok(())
    }

    /// Counts a change, and puts it into the journal when followers must hear of it: nodes and subscribers come and go by
    /// the thousand and concern nobody but themselves (a ban and an eviction also write revocations, which do), and of a
    /// foreign bundle only what verifies is news.
    fn note(&mut self, key: &DocumentKey, is_news: bool) {
        self.revision = self.revision.saturating_add(1);
        if matches!(key.kind, Kind::Crl | Kind::Authority) {
            self.crl_generation = self.crl_generation.saturating_add(1);
        }
        let told = match key.kind {
            Kind::Rule | Kind::Revocation | Kind::Crl | Kind::Bundle | Kind::Authority | Kind::Renewal => {
                true
            }
            Kind::Federation | Kind::ForeignBundle | Kind::Rotation => true,
            Kind::JwtAuthority | Kind::Node | Kind::Admin | Kind::Subscriber | Kind::ForeignHolder => false,
            Kind::Cluster | Kind::ClusterReport => false,
            Kind::Token | Kind::Setting | Kind::Key => false,
        };
        if !told || !is_news {
            return;
        }
        self.taken_in = self.taken_in.saturating_add(1);
        self.journal.insert(self.taken_in, key.clone());
        if self.journal.len() > JOURNAL
            && let Some((first, _)) = self.journal.get_min().cloned()
        {
            self.journal.remove(&first);
            self.journal_since = first;
        }
    }

    /// The record of the node whose principal's stable text is `principal`, such as `node:prod/join_token/vm-1`.
    pub fn node_of(&self, principal: &str) -> Option<&Versioned<Arc<NodeRecord>>> {
        principal.strip_prefix("node:").and_then(|id| self.nodes.get(id))
    }

    /// How often this state was changed since it was empty: two states of one process with the same revision are the
    /// same state.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Ends loading: from here on the journal speaks of what comes. Cursors of this process lie at or above `start`,
    /// which must be another one for every process, so that a cursor of an earlier process is never taken for one of
    /// this: whoever holds it starts anew.
    pub fn begin_journal(&mut self, start: u64) {
        self.journal = OrdMap::new();
        self.taken_in = start;
        self.journal_since = start;
    }

    /// The cursor of a follower that has heard everything.
    pub const fn cursor(&self) -> u64 {
        self.taken_in
    }

    /// What changed after `cursor`, in the order in which it was taken in; `None` when this process does not remember
    /// that far back, or the cursor is from a future that it does not know.
    pub fn changes_since(&self, cursor: u64) -> Option<impl Iterator<Item = &DocumentKey>> {
        if cursor < self.journal_since || cursor > self.taken_in {
            return None;
        }
        Some(self.journal.range(cursor.saturating_add(1)..).map(|(_, key)| key))
    }

    /// The version of `key` that is held now, living or deleted: for reading it back.
    pub fn version_of(&self, key: &DocumentKey) -> Option<Version> {
        self.known(key)
    }

    /// The newest version known of `key`, whether it lives or was deleted.
    fn known(&self, key: &DocumentKey) -> Option<Version> {
        let id = key.id.as_str();
        let living = match key.kind {
            Kind::Rule => {
                id.parse::<RuleName>().ok().and_then(|name| self.rules.get(&name).map(|it| it.version))
            }
            Kind::Authority => id
                .parse::<AuthorityId>()
                .ok()
                .and_then(|name| self.authorities.get(&name).map(|it| it.version)),
            Kind::JwtAuthority => id
                .parse::<AuthorityId>()
                .ok()
                .and_then(|name| self.jwt_authorities.get(&name).map(|it| it.version)),
            Kind::Bundle => self.bundle.as_ref().map(|it| it.version),
            Kind::Node => self.nodes.get(id).map(|it| it.version),
            Kind::Admin => {
                id.parse::<AdminName>().ok().and_then(|name| self.admins.get(&name).map(|it| it.version))
            }
            Kind::Revocation => {
                let counter = id.parse::<Serial>().ok().map(|serial| serial.counter());
                counter.and_then(|counter| self.revocations.get(&counter).map(|it| it.version))
            }
            Kind::Crl => {
                id.parse::<AuthorityId>().ok().and_then(|name| self.crls.get(&name).map(|it| it.version))
            }
            Kind::Subscriber => self.subscribers.get(id).map(|it| it.version),
            Kind::Rotation => self.rotation.as_ref().map(|it| it.version),
            Kind::Renewal => self.renewals.get(id).map(|it| it.version),
            Kind::Federation | Kind::ForeignBundle | Kind::ForeignHolder => self.foreigners.version_of(key),
            Kind::Cluster | Kind::ClusterReport => self.clusters.version_of(key),
            Kind::Token | Kind::Setting | Kind::Key => None,
        };
        living.max(self.tombstones.get(key).copied())
    }

    /// The trust domain.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The newest version taken in: the cursor of every follower.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The rules, indexed.
    pub const fn rule_set(&self) -> &RuleSet {
        &self.rule_set
    }

    /// The rules with their versions, by name.
    pub const fn rules(&self) -> &OrdMap<RuleName, Versioned<Arc<Rule>>> {
        &self.rules
    }

    /// All authorities, by id.
    pub const fn authorities(&self) -> &OrdMap<AuthorityId, Versioned<Arc<Authority>>> {
        &self.authorities
    }

    /// The authority that this replica signs leaves with, if there is one.
    pub const fn issuer(&self) -> Option<&Arc<ActiveIssuer>> {
        self.issuer.as_ref()
    }

    /// The published bundle, if there is one.
    pub const fn bundle(&self) -> Option<&Versioned<Arc<PublishedBundle>>> {
        self.bundle.as_ref()
    }

    /// Nodes by `CLUSTER/METHOD/NAME`.
    pub const fn nodes(&self) -> &OrdMap<String, Versioned<Arc<NodeRecord>>> {
        &self.nodes
    }

    /// Administrators by name.
    pub const fn admins(&self) -> &OrdMap<AdminName, Versioned<Arc<AdminRecord>>> {
        &self.admins
    }

    /// Revoked certificates by serial counter.
    pub const fn revocations(&self) -> &OrdMap<SerialCounter, Versioned<Arc<Revocation>>> {
        &self.revocations
    }

    /// Whether the certificate of that serial was revoked.
    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.revocations.get(&serial.counter()).is_some_and(|it| it.value.serial == *serial)
    }

    /// Revocation lists by issuer.
    pub const fn crls(&self) -> &OrdMap<AuthorityId, Versioned<Arc<CrlRecord>>> {
        &self.crls
    }

    /// Another number after every change of a list or an authority: what nodes must hear of both.
    pub const fn crl_generation(&self) -> u64 {
        self.crl_generation
    }

    /// As which replica this is seen.
    pub const fn replica(&self) -> &ReplicaName {
        &self.replica
    }

    fn underway(&self) -> Option<&Rotation> {
        self.rotation.as_ref().map(|it| &*it.value)
    }

    /// The change of the root that is under way, or was last.
    pub const fn rotation(&self) -> Option<&Versioned<Arc<Rotation>>> {
        self.rotation.as_ref()
    }

    /// Subscribers by principal.
    pub const fn subscribers(&self) -> &OrdMap<String, Versioned<Arc<Subscriber>>> {
        &self.subscribers
    }

    /// Orders to renew, each part by its id: those of one order stand together.
    pub const fn renewals(&self) -> &OrdMap<String, Versioned<Arc<RenewalOrder>>> {
        &self.renewals
    }
}

fn shared<T>(Versioned { version, value }: Versioned<T>) -> Versioned<Arc<T>> {
    Versioned { version, value: Arc::new(value) }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
