//! The store and the key ring as a rotation sees them, and how effects change them: the rules that a shell has to keep.
//!
//! Laws: a change of the store happens only while the rotation's record is the one that it follows from; keys know nothing
//! of that. An issuer is activated only while the root above it is the active one.

use std::collections::{BTreeMap, BTreeSet};

use rhizome_core::rotation::evidence::{BundleFact, CrossFact, Facts, IssuerFact, RootFact};
use rhizome_core::rotation::{Effect, Rotation};
use rhizome_id::{AuthorityId, Digest, RotationName, Timestamp};

/// Which record an effect or a move follows from.
pub(crate) type Seen = Option<(RotationName, u64)>;

/// Somebody else was faster.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conflict;

/// Everything durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) rotation: Option<Rotation>,
    pub(crate) facts: Facts,
    /// Every root that was given up, and every one that passed `distributing`: for the invariants.
    pub(crate) tainted: BTreeSet<AuthorityId>,
    pub(crate) passed: BTreeSet<AuthorityId>,
    /// Whose loss was accepted: they may break.
    pub(crate) given_up: BTreeSet<String>,
    /// Every root that was recorded, with the rotation it was made for.
    pub(crate) made: BTreeSet<(RotationName, AuthorityId)>,
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
    /// A trust domain with one root and an issuer for each replica.
    pub(crate) fn founded(root: &str, replicas: usize, now: Timestamp) -> Self {
        let root = id(root);
        let anchors: BTreeSet<_> = [root.clone()].into();
        let end = Timestamp::from_unix(ROOT_END);
        let fact = RootFact { not_after: end, active: true, tainted: false, cross: None };
        let issuer = |number: usize| IssuerFact {
            replica: format!("r{number}"),
            root: root.clone(),
            since: now,
            active: true,
            not_after: end,
        };
        Self {
            rotation: None,
            tainted: BTreeSet::new(),
            passed: anchors.clone(),
            given_up: BTreeSet::new(),
            made: BTreeSet::new(),
            facts: Facts {
                keys: anchors.clone(),
                roots: BTreeMap::from([(root.clone(), fact)]),
                bundle: BundleFact { sequence: 1, digest: digest(1, &anchors), anchors, refresh_hint: 300 },
                issuers: (0..replicas).map(issuer).collect(),
                canary: None,
                restored: None,
            },
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.rotation.as_ref().map(|it| (it.name.clone(), it.version))
    }

    /// Whom an administrator exempted or gave up.
    pub(crate) fn excused(&self) -> BTreeSet<&str> {
        let exempted = self.rotation.iter().flat_map(|it| &it.exemptions).map(|it| it.subscriber.as_str());
        exempted.chain(self.given_up.iter().map(String::as_str)).collect()
    }

    /// Stores the record that a step moved to.
    pub(crate) fn store(&mut self, seen: &Seen, next: Rotation) -> Result<(), Conflict> {
        if self.seen() != *seen {
            return Err(Conflict);
        }
        self.rotation = Some(next);
        Ok(())
    }

    /// Performs one effect that follows from the record `seen`.
    pub(crate) fn perform(&mut self, seen: &Seen, effect: &Effect, now: Timestamp) -> Result<(), Conflict> {
        match effect {
            // Keys are no part of the store's transactions: a late hand makes or destroys them all the same.
            Effect::MakeKey { root, .. } => {
                self.facts.keys.insert(root.clone());
                return Ok(());
            }
            Effect::DestroyKey { root, .. } => {
                self.facts.keys.remove(root);
                return Ok(());
            }
            _ => {}
        }
        if self.seen() != *seen {
            return Err(Conflict);
        }
        match effect {
            Effect::SelfSign { root, .. } => self.self_sign(root),
            Effect::CrossCertify { root, by, .. } => {
                let (Some(above), Some(fact)) = (self.facts.roots.get(by), self.facts.roots.get(root)) else {
                    return Err(Conflict);
                };
                let not_after = above.not_after.min(fact.not_after);
                let cross = CrossFact { by: by.clone(), not_after, carried: false };
                self.root(root).cross = Some(cross);
            }
            Effect::Publish { with, without, .. } => {
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
                    fact.active = name == root;
                }
            }
            Effect::SetCanary { root, .. } => self.facts.canary.clone_from(root),
            Effect::Taint { root, .. } => {
                self.root(root).tainted = true;
                self.tainted.insert(root.clone());
            }
            Effect::Uncross { root, .. } => self.root(root).cross = None,
            Effect::DeleteRecord { root, .. } => drop(self.facts.roots.remove(root)),
            Effect::SelfTest { .. }
            | Effect::OrderRenewals { .. }
            | Effect::WakeAt(_)
            | Effect::MakeKey { .. }
            | Effect::DestroyKey { .. } => {}
        }
        Ok(())
    }

    fn self_sign(&mut self, root: &AuthorityId) {
        let not_after = Timestamp::from_unix(ROOT_END + 1_000);
        let fact = RootFact { not_after, active: false, tainted: false, cross: None };
        self.facts.roots.insert(root.clone(), fact);
        if let Some(rotation) = &self.rotation {
            self.made.insert((rotation.name.clone(), root.clone()));
        }
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
    ) -> Result<(), Conflict> {
        if self.facts.active_root() != Some(root) {
            return Err(Conflict);
        }
        let name = format!("r{replica}");
        let mine = |it: &IssuerFact| it.replica == name;
        self.facts.issuers.retain(|it| !mine(it) || it.active);
        for issuer in self.facts.issuers.iter_mut().filter(|it| mine(it)) {
            issuer.active = false;
            issuer.since = now;
        }
        let not_after = Timestamp::from_unix(ROOT_END);
        let issuer = IssuerFact { replica: name, root: root.clone(), since: now, active: true, not_after };
        self.facts.issuers.push(issuer);
        self.facts.issuers.sort_by(|a, b| (&a.replica, a.active).cmp(&(&b.replica, b.active)));
        Ok(())
    }

    /// The root of what a replica issues now.
    pub(crate) fn issues_under(&self, replica: usize) -> Option<&AuthorityId> {
        let name = format!("r{replica}");
        self.facts.issuers.iter().find(|it| it.replica == name && it.active).map(|it| &it.root)
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
