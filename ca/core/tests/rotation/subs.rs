//! A subscriber of the model: as it is, as the store knows it, and what can happen to it.

use std::collections::BTreeSet;

use rhizome_core::rotation::Phase;
use rhizome_id::{AuthorityId, Digest};

use crate::model::{Bounds, Event, Model};
use crate::store::{Store, digest};

/// What it presents.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chain {
    /// The root that its certificate was issued under, and every root that the chain reaches.
    pub(crate) root: AuthorityId,
    pub(crate) reaches: BTreeSet<AuthorityId>,
    /// The bundle that went out with it; 0 where that is no evidence.
    bundle: u64,
}

/// A subscriber as it is, and as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sub {
    /// `None`: it is not there.
    pub(crate) leaf: Option<Chain>,
    pub(crate) sequence: u64,
    pub(crate) trusts: BTreeSet<AuthorityId>,
    pub(crate) away: bool,
    one_shot: bool,
    /// Known: the bundle it acknowledged, and what the ledger does not know to be gone, by root and bundle.
    pub(crate) acknowledged: Option<(u64, Digest)>,
    pub(crate) recorded: BTreeSet<(AuthorityId, u64)>,
    /// An acknowledgement with its report, on its way.
    on_its_way: Option<(u64, Digest, AuthorityId)>,
}

impl Sub {
    pub(crate) fn founded(root: &AuthorityId, one_shot: bool) -> Self {
        let trusts: BTreeSet<AuthorityId> = [root.clone()].into();
        let bundle = u64::from(one_shot);
        Self {
            leaf: Some(Chain { root: root.clone(), reaches: trusts.clone(), bundle }),
            sequence: 1,
            away: false,
            one_shot,
            acknowledged: Some((1, digest(1, &trusts))),
            recorded: [(root.clone(), bundle)].into(),
            trusts,
            on_its_way: None,
        }
    }

    pub(crate) const fn is_unkind(event: &Event) -> bool {
        matches!(
            event,
            Event::ReportIsLost(_) | Event::RenewalAnswerIsLost(..) | Event::Expire(_) | Event::Leave(_)
        )
    }

    /// What can happen to it.
    pub(crate) fn events(&self, number: usize, model: &Model, bounds: &Bounds, events: &mut Vec<Event>) {
        let (rotating, unkind) = (model.phase() != Phase::Stable, model.unkind > 0);
        let Some(leaf) = &self.leaf else {
            events.extend((0..2).map(|replica| Event::Join(number, replica)));
            return;
        };
        if unkind && rotating {
            events.push(Event::Expire(number));
        }
        if model.exemptions > 0 && rotating {
            events.push(Event::Exempt(number));
        }
        if self.away {
            events.push(Event::Return(number));
            return;
        }
        if unkind && rotating && bounds.away {
            events.push(Event::Leave(number));
        }
        let bundle = model.store.facts.bundle.sequence;
        if self.one_shot {
            if self.recorded.len() > 1 {
                events.push(Event::OlderExpire(number));
            }
        } else {
            self.stream(number, bundle, unkind, events);
        }
        for replica in 0..2 {
            let other = |it: &AuthorityId| {
                *it != leaf.root
                    || (self.one_shot && leaf.bundle < bundle)
                    || model.store.reaches(it).into_keys().ne(leaf.reaches.iter().cloned())
            };
            if model.store.issues_under(replica).is_some_and(other) {
                events.push(Event::Renew(number, replica));
                if unkind {
                    events.push(Event::RenewalAnswerIsLost(number, replica));
                }
            }
        }
    }

    fn stream(&self, number: usize, bundle: u64, unkind: bool, events: &mut Vec<Event>) {
        if self.sequence < bundle {
            events.push(Event::Deliver(number));
        }
        let said = self.acknowledged.is_some_and(|(sequence, _)| sequence == self.sequence);
        match &self.on_its_way {
            None if !said || self.recorded.len() > 1 => events.push(Event::Report(number)),
            None => {}
            Some(_) => {
                events.push(Event::ReportArrives(number));
                if unkind {
                    events.push(Event::ReportIsLost(number));
                }
            }
        }
    }

    /// What becomes of it; `None`: nothing.
    pub(crate) fn meets(&mut self, event: &Event, store: &Store) -> Option<()> {
        let bundle = &store.facts.bundle;
        let issued = |replica: usize, one_shot: bool| {
            let root = store.issues_under(replica)?.clone();
            let reaches = store.reaches(&root).into_keys().collect();
            Some(Chain { root, reaches, bundle: if one_shot { bundle.sequence } else { 0 } })
        };
        match event {
            Event::Deliver(_) => self.takes(bundle.sequence, &bundle.anchors),
            Event::Report(_) => {
                let said = (self.sequence, digest(self.sequence, &self.trusts));
                self.on_its_way = self.leaf.as_ref().map(|leaf| (said.0, said.1, leaf.root.clone()));
            }
            Event::ReportArrives(_) => {
                let (sequence, digest, root) = self.on_its_way.take()?;
                self.acknowledged = Some((sequence, digest));
                self.recorded.retain(|(it, _)| *it == root);
            }
            Event::ReportIsLost(_) => self.on_its_way = None,
            Event::Renew(_, replica) => {
                let leaf = issued(*replica, self.one_shot)?;
                self.recorded.insert((leaf.root.clone(), leaf.bundle));
                self.leaf = Some(leaf);
                self.on_its_way = None;
                self.takes(bundle.sequence, &bundle.anchors);
            }
            Event::RenewalAnswerIsLost(_, replica) => {
                let leaf = issued(*replica, self.one_shot)?;
                self.recorded.insert((leaf.root, leaf.bundle));
                self.on_its_way = None;
            }
            Event::OlderExpire(_) => {
                let leaf = self.leaf.as_ref()?;
                self.recorded = [(leaf.root.clone(), leaf.bundle)].into();
            }
            Event::Expire(_) => {
                self.leaf = None;
                self.recorded.clear();
                self.on_its_way = None;
                self.away = false;
            }
            Event::Join(_, replica) => {
                let leaf = issued(*replica, self.one_shot)?;
                self.recorded = [(leaf.root.clone(), leaf.bundle)].into();
                self.leaf = Some(leaf);
                // In one answer.
                self.sequence = bundle.sequence;
                self.trusts.clone_from(&bundle.anchors);
                self.acknowledged = None;
            }
            Event::Leave(_) => {
                self.away = true;
                self.on_its_way = None;
            }
            Event::Return(_) => self.away = false,
            _ => return None,
        }
        Some(())
    }

    fn takes(&mut self, sequence: u64, anchors: &BTreeSet<AuthorityId>) {
        if sequence > self.sequence {
            self.sequence = sequence;
            self.trusts.clone_from(anchors);
        }
    }
}
