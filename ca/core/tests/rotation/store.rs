//! The store and the key rings as a rotation sees them, and how effects change them: the rules that a shell has to keep.
//!
//! Laws: a change of the store happens only while the rotation's record, and whatever else it writes, are as they were
//! read; keys know nothing of that. Each replica has a key ring of its own, or all share one; a key has a name and, unlike
//! its name, material that nobody makes twice. An issuer is activated only while the root above it is the active one.
//! Each of these rules can be broken on purpose (`Broken`).

use std::collections::{BTreeMap, BTreeSet};

use rhizome_core::rotation::evidence::{BundleFact, CrossFact, Facts, IssuerFact, RootFact};
use rhizome_core::rotation::{Effect, Rotation};
use rhizome_id::{AuthorityId, Digest, RotationName, Timestamp};

use crate::broken::Broken;

/// Which record an effect or a move follows from.
pub(crate) type Seen = Option<(RotationName, u64)>;

/// The material of a key.
pub(crate) type Material = u32;

/// Somebody else was faster.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conflict;

/// Everything durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) rotation: Option<Rotation>,
    /// Without `keys`: those are each replica's own.
    pub(crate) facts: Facts,
    /// One for each replica, or one for all of them.
    pub(crate) rings: Vec<BTreeMap<AuthorityId, Material>>,
    /// The key that each root on record was made with.
    pub(crate) keys_of: BTreeMap<AuthorityId, Material>,
    made_keys: Material,
    /// The anchors of the bundle, with their keys, when the rotation began.
    pub(crate) before: Vec<(AuthorityId, Material)>,
    /// Every root that was given up, and every one that passed `distributing`: for the invariants.
    pub(crate) tainted: BTreeSet<AuthorityId>,
    pub(crate) passed: BTreeSet<AuthorityId>,
    /// Whose loss was accepted: they may break.
    pub(crate) given_up: BTreeSet<String>,
    /// Every key that a root was recorded with, and the rotation it was made for.
    pub(crate) made: BTreeSet<(RotationName, AuthorityId, Material)>,
}

pub(crate) fn id(text: &str) -> AuthorityId {
    text.parse().unwrap()
}

pub(crate) const ROOT_END: i64 = 4_000_000_000;

/// A digest that differs wherever anchors or sequence do.
pub(crate) fn digest(sequence: u64, anchors: &BTreeSet<AuthorityId>) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&sequence.to_be_bytes());
    for (at, anchor) in anchors.iter().enumerate() {
        for (offset, byte) in anchor.as_str().bytes().take(6).enumerate() {
            bytes[8 + at * 6 + offset] = byte;
        }
    }
    Digest::from_bytes(bytes)
}

impl Store {
    /// A trust domain with one root and an issuer for each replica; the root's key is in the first of so many rings.
    pub(crate) fn founded(root: &str, replicas: usize, rings: usize, now: Timestamp, end: Timestamp) -> Self {
        let root = id(root);
        let anchors: BTreeSet<_> = [root.clone()].into();
        let fact = RootFact { not_after: end, active: true, tainted: false, cross: None };
        let issuer = |number: usize| IssuerFact {
            replica: format!("r{number}"),
            root: root.clone(),
            since: now,
            active: true,
            not_after: end,
        };
        let mut ring_of = vec![BTreeMap::new(); rings];
        ring_of[0].insert(root.clone(), 0);
        Self {
            rotation: None,
            rings: ring_of,
            keys_of: [(root.clone(), 0)].into(),
            made_keys: 0,
            before: Vec::new(),
            tainted: BTreeSet::new(),
            passed: anchors.clone(),
            given_up: BTreeSet::new(),
            made: BTreeSet::new(),
            facts: Facts {
                keys: BTreeSet::new(),
                roots: BTreeMap::from([(root.clone(), fact)]),
                bundle: BundleFact { sequence: 1, digest: digest(1, &anchors), anchors, refresh_hint: 300 },
                issuers: (0..replicas).map(issuer).collect(),
                canary: None,
                restored: None,
                unreadable: 0,
            },
        }
    }

    fn ring(&self, replica: usize) -> &BTreeMap<AuthorityId, Material> {
        &self.rings[replica.min(self.rings.len() - 1)]
    }

    fn ring_mut(&mut self, replica: usize) -> &mut BTreeMap<AuthorityId, Material> {
        let last = self.rings.len() - 1;
        &mut self.rings[replica.min(last)]
    }

    /// What a replica sees: keys in its own ring that are the recorded ones, or of which nothing is on record.
    pub(crate) fn facts(&self, replica: usize) -> Facts {
        let recorded =
            |(name, key): &(&AuthorityId, &Material)| self.keys_of.get(*name).is_none_or(|it| it == *key);
        let keys = self.ring(replica).iter().filter(recorded).map(|(name, _)| name.clone()).collect();
        Facts { keys, ..self.facts.clone() }
    }

    /// Whether any ring holds the recorded key, or a key that has no record, of this name.
    pub(crate) fn has_key(&self, root: &AuthorityId) -> bool {
        let recorded = self.keys_of.get(root);
        self.rings.iter().any(|ring| ring.get(root).is_some_and(|key| recorded.is_none_or(|it| it == key)))
    }

    /// The anchors of the bundle, byte for byte.
    pub(crate) fn anchors(&self) -> Vec<(AuthorityId, Material)> {
        let key = |it: &AuthorityId| (it.clone(), self.keys_of.get(it).copied().unwrap_or(Material::MAX));
        self.facts.bundle.anchors.iter().map(key).collect()
    }

    pub(crate) fn seen(&self) -> Seen {
        self.rotation.as_ref().map(|it| (it.name.clone(), it.version))
    }

    /// Whom an administrator exempted or gave up.
    pub(crate) fn excused(&self) -> BTreeSet<&str> {
        let exempted = self.rotation.iter().flat_map(|it| &it.exemptions).map(|it| it.subscriber.as_str());
        exempted.chain(self.given_up.iter().map(String::as_str)).collect()
    }

    /// Keeps what a restore of the store does not touch: key rings, and what this test remembers.
    pub(crate) fn keep_what_is_no_backup(&mut self, today: &Self) {
        self.rings.clone_from(&today.rings);
        self.made_keys = today.made_keys;
        self.passed.extend(today.passed.iter().cloned());
        self.tainted.extend(today.tainted.iter().cloned());
        self.made.extend(today.made.iter().cloned());
    }

    /// Stores the record that a step moved to.
    pub(crate) fn store(&mut self, seen: &Seen, next: Rotation) -> Result<(), Conflict> {
        if self.seen() != *seen {
            return Err(Conflict);
        }
        if self.rotation.as_ref().is_none_or(|it| it.name != next.name) {
            self.before = self.anchors();
            self.given_up.clear();
        }
        self.rotation = Some(next);
        Ok(())
    }

    /// Performs one effect that follows from the record `seen`.
    pub(crate) fn perform(
        &mut self,
        replica: usize,
        seen: &Seen,
        effect: &Effect,
        now: Timestamp,
        broken: Option<Broken>,
    ) -> Result<(), Conflict> {
        match effect {
            // Keys are no part of the store's transactions: a late hand makes or destroys them all the same.
            Effect::MakeKey { root, .. } => {
                if !self.ring(replica).contains_key(root) {
                    self.made_keys += 1;
                    let key = self.made_keys;
                    self.ring_mut(replica).insert(root.clone(), key);
                }
                return Ok(());
            }
            Effect::DestroyKey { root, .. } => {
                self.ring_mut(replica).remove(root);
                return Ok(());
            }
            _ => {}
        }
        if self.seen() != *seen {
            return Err(Conflict);
        }
        match effect {
            Effect::SelfSign { root, .. } => return self.self_sign(replica, root, broken),
            Effect::CrossCertify { root, by, .. } => return self.cross_certify(replica, root, by),
            Effect::Publish { with, without, .. } => {
                if with.iter().any(|it| !self.facts.roots.contains_key(it)) {
                    return Err(Conflict);
                }
                let anchors = &mut self.facts.bundle.anchors;
                anchors.extend(with.iter().cloned());
                anchors.retain(|it| !without.contains(it));
                self.publish(self.facts.bundle.sequence + 1, now);
            }
            Effect::Carry { root, .. } => {
                if let Some(cross) = &mut self.root(root).cross {
                    cross.carried = true;
                }
            }
            Effect::Activate { root, .. } => {
                for (name, fact) in &mut self.facts.roots {
                    fact.active = name == root || (broken == Some(Broken::ActivatesBeside) && fact.active);
                }
            }
            Effect::SetCanary { root, .. } => self.facts.canary.clone_from(root),
            Effect::Taint { root, .. } => {
                self.root(root).tainted = true;
                self.tainted.insert(root.clone());
            }
            Effect::Uncross { root, .. } => self.root(root).cross = None,
            Effect::DeleteRecord { root, .. } => {
                self.facts.roots.remove(root);
                self.keys_of.remove(root);
            }
            Effect::SelfTest { .. }
            | Effect::OrderRenewals { .. }
            | Effect::WakeAt(_)
            | Effect::MakeKey { .. }
            | Effect::DestroyKey { .. } => {}
        }
        Ok(())
    }

    fn self_sign(
        &mut self,
        replica: usize,
        root: &AuthorityId,
        broken: Option<Broken>,
    ) -> Result<(), Conflict> {
        let key = *self.ring(replica).get(root).ok_or(Conflict)?;
        if self.facts.roots.contains_key(root) && broken != Some(Broken::SignsOver) {
            return Err(Conflict);
        }
        let not_after = Timestamp::from_unix(ROOT_END + 1_000);
        let fact = RootFact { not_after, active: false, tainted: false, cross: None };
        self.facts.roots.insert(root.clone(), fact);
        self.keys_of.insert(root.clone(), key);
        if let Some(rotation) = &self.rotation {
            self.made.insert((rotation.name.clone(), root.clone(), key));
        }
        Ok(())
    }

    fn cross_certify(
        &mut self,
        replica: usize,
        root: &AuthorityId,
        by: &AuthorityId,
    ) -> Result<(), Conflict> {
        let has_key = self.ring(replica).get(by).is_some_and(|key| self.keys_of.get(by) == Some(key));
        let (Some(above), Some(fact)) = (self.facts.roots.get(by), self.facts.roots.get(root)) else {
            return Err(Conflict);
        };
        if !has_key || fact.cross.is_some() {
            return Err(Conflict);
        }
        let not_after = above.not_after.min(fact.not_after);
        self.root(root).cross = Some(CrossFact { by: by.clone(), not_after, carried: false });
        Ok(())
    }

    fn root(&mut self, root: &AuthorityId) -> &mut RootFact {
        self.facts.roots.get_mut(root).expect("a root that an effect names is on record")
    }

    /// Publishes the anchors as they are under another sequence, and notes it in the rotation's record.
    pub(crate) fn publish(&mut self, sequence: u64, now: Timestamp) {
        let bundle = &mut self.facts.bundle;
        bundle.sequence = sequence;
        bundle.digest = digest(sequence, &bundle.anchors);
        let digest = bundle.digest;
        self.rotation = self.rotation.as_ref().map(|it| it.with_published(sequence, digest, now));
    }

    /// What the authority machine does for a replica: its issuer follows the active root. `root` is the one that it saw.
    pub(crate) fn follow(
        &mut self,
        replica: usize,
        root: &AuthorityId,
        now: Timestamp,
        not_after: Timestamp,
        broken: Option<Broken>,
    ) -> Result<(), Conflict> {
        if self.facts.active_root() != Some(root) && broken != Some(Broken::FollowsBlindly) {
            return Err(Conflict);
        }
        let name = format!("r{replica}");
        let mine = |it: &IssuerFact| it.replica == name;
        // What is kept of those that sign no more: one below each root, the last.
        let stopped = |it: &IssuerFact| mine(it) && !it.active;
        let stopping: Vec<AuthorityId> =
            self.facts.issuers.iter().filter(|it| mine(it) && it.active).map(|it| it.root.clone()).collect();
        self.facts.issuers.retain(|it| !stopped(it) || !stopping.contains(&it.root));
        for issuer in self.facts.issuers.iter_mut().filter(|it| mine(it)) {
            if issuer.active {
                issuer.active = false;
                issuer.since = now;
            }
        }
        let end = self.facts.roots.get(root).map_or(not_after, |it| it.not_after.min(not_after));
        let issuer =
            IssuerFact { replica: name, root: root.clone(), since: now, active: true, not_after: end };
        self.facts.issuers.push(issuer);
        self.facts
            .issuers
            .sort_by(|a, b| (&a.replica, a.active, &a.root).cmp(&(&b.replica, b.active, &b.root)));
        Ok(())
    }

    /// The issuer of a replica that signs now.
    pub(crate) fn issuer(&self, replica: usize) -> Option<&IssuerFact> {
        let number =
            |it: &IssuerFact| it.replica.as_bytes().get(1) == Some(&(b'0' + u8::try_from(replica).unwrap()));
        self.facts.issuers.iter().find(|it| it.active && number(it))
    }

    /// The root of what a replica issues now.
    pub(crate) fn issues_under(&self, replica: usize) -> Option<&AuthorityId> {
        self.issuer(replica).map(|it| &it.root)
    }

    /// Every root that a chain below `root` reaches now, and until when.
    pub(crate) fn reaches(&self, root: &AuthorityId) -> BTreeMap<AuthorityId, Timestamp> {
        let mut reached = BTreeMap::new();
        if let Some(fact) = self.facts.roots.get(root) {
            reached.insert(root.clone(), fact.not_after);
            if let Some(cross) = fact.cross.as_ref().filter(|it| it.carried) {
                reached.insert(cross.by.clone(), cross.not_after);
            }
        }
        reached
    }
}
