//! Foreign trust domains: which of their bundles the agent has, who is given them, and when that may be told.
//!
//! Laws: a workload gets the bundles of the domains that the rules of its own identities federate with, and no others;
//! never one in the place of the agent's own. What the authority says of a foreign domain holds as it says it: it has
//! judged sequences. A foreign bundle is told to be in force only when it is sealed on disk, and no open stream can hold
//! what was there before.
//! Not here: how they are judged (`rhizome_core::federation`), sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhizome_id::{Digest, Timestamp, TrustDomain};
use rhizome_x509::Bundle;

use super::{Book, Seen};
use crate::holdings::Standing;

/// A change of the foreign bundles, whole: every message of one batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForeignChange {
    /// What was known before is forgotten.
    pub(crate) full: bool,
    pub(crate) upserts: Vec<Arc<Bundle>>,
    pub(crate) removed: Vec<TrustDomain>,
}

/// A foreign bundle that is in force: whose, its sequence and its digest.
pub(crate) type InForce = (TrustDomain, u64, Digest);

/// Foreign bundles, by trust domain and never merged.
#[derive(Default)]
pub(super) struct Foreign {
    pub(super) bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Grows with every change; 0 when there never was one.
    generation: u64,
    /// The generation that is safely on disk.
    sealed: u64,
    /// Views from this version on show what there is now, and so does whichever is current.
    since: u64,
}

impl Foreign {
    /// What an earlier process held.
    pub(super) fn restored(bundles: Vec<Arc<Bundle>>) -> Self {
        let generation = u64::from(!bundles.is_empty());
        let bundles = bundles.into_iter().map(|it| (it.trust_domain().clone(), it)).collect();
        Self { bundles, generation, sealed: generation, since: 0 }
    }

    /// The version of the first view that can show what there is now.
    pub(super) const fn since(&self) -> u64 {
        self.since
    }

    /// Those of these domains that there are.
    pub(super) fn of<'a>(
        &'a self,
        domains: &'a BTreeSet<TrustDomain>,
    ) -> impl Iterator<Item = (TrustDomain, Arc<Bundle>)> + 'a {
        let held = |domain: &TrustDomain| Some((domain.clone(), Arc::clone(self.bundles.get(domain)?)));
        domains.iter().filter_map(held)
    }
}

impl Book {
    /// Applies a change of the foreign bundles. Whether anything is different now.
    pub(crate) fn apply_foreign(&mut self, change: ForeignChange, now: Timestamp) -> bool {
        let ForeignChange { full, upserts, removed } = change;
        let mut next = if full { BTreeMap::new() } else { self.foreign.bundles.clone() };
        for domain in &removed {
            next.remove(domain);
        }
        // Nobody's word but the authority's own bundle is about the agent's own domain.
        for bundle in upserts.into_iter().filter(|bundle| *bundle.trust_domain() != self.domain) {
            next.insert(bundle.trust_domain().clone(), bundle);
        }
        if next == self.foreign.bundles {
            return false;
        }
        self.foreign.bundles = next;
        self.foreign.generation = self.foreign.generation.saturating_add(1);
        self.foreign.since = self.version.saturating_add(1);
        self.show_everyone(now);
        true
    }

    /// Every foreign bundle held, in the order of the domains' names.
    pub(crate) fn foreign_bundles(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.foreign.bundles.values()
    }

    /// The generation of foreign bundles, to be named again when what there is now is safely on disk.
    pub(crate) const fn foreign_generation(&self) -> u64 {
        self.foreign.generation
    }

    /// The foreign bundles of this generation are safely on disk.
    pub(crate) const fn set_foreign_sealed(&mut self, generation: u64) {
        self.foreign.sealed = generation;
    }

    /// The foreign bundles that may be told to be in force, with their generation; `None` while they may not, or there
    /// never was one.
    pub(crate) fn foreign_in_force(&self, now: Timestamp) -> Option<(u64, Vec<InForce>)> {
        let generation = self.foreign.generation;
        if generation == 0 || self.foreign.sealed < generation {
            return None;
        }
        let seen = |seen: &Seen| seen.as_ref().ok().map(|view| view.version);
        // A view that does not show the change stays as it is, and whoever holds it is not behind.
        let current: BTreeSet<u64> =
            self.followers.values().filter_map(|it| seen(&it.sender.borrow())).collect();
        let newest = |version| version >= self.foreign.since || current.contains(&version);
        let holds = |standing: &Standing| standing.has(now, newest);
        if !self.streams.values().all(holds) {
            return None;
        }
        let all = self.foreign.bundles.values();
        let told = all.map(|it| (it.trust_domain().clone(), it.sequence(), it.digest()));
        Some((generation, told.collect()))
    }
}

#[cfg(test)]
mod tests {
    use rhizome_core::rules::RuleDraft;
    use rhizome_x509::CaCertificate;

    use super::*;
    use crate::book::{Offered, RuleChange};
    use crate::testing::{at, attributes, bundle, entitlement, node, root, rule, svid, valid};

    fn foreign(domain: &str, sequence: u64, root: &CaCertificate) -> Arc<Bundle> {
        let hint = rhizome_id::Ttl::minutes(5);
        let domain = domain.parse().unwrap();
        Arc::new(Bundle::foreign(domain, sequence, hint, vec![root.clone()], Vec::new()).unwrap())
    }

    /// `/web` federates with `partner.example`; `/plain` with nobody.
    fn book() -> Book {
        let mut book = Book::new("example.org".parse().unwrap());
        book.set_node(node(), at(0));
        let federates_with = ["partner.example", "absent.example"].map(|it| it.parse().unwrap()).to_vec();
        let web = RuleDraft { federates_with, ..rule("web", ("unix.uid", "1"), "/web") };
        let plain = rule("plain", ("unix.uid", "2"), "/plain");
        let upserts = vec![valid(web), valid(plain)];
        book.apply(RuleChange { full: true, upserts, removed: Vec::new(), cursor: 1 }, at(0));
        assert_eq!(book.offer(bundle(1, &[&root("own")]), at(0)), Offered::InForce);
        book
    }

    fn upsert(bundle: &Arc<Bundle>) -> ForeignChange {
        ForeignChange { upserts: vec![Arc::clone(bundle)], ..ForeignChange::default() }
    }

    fn domains(book: &mut Book, uid: &str, path: &str) -> Vec<String> {
        let seen = book.follow(attributes(&[("unix.uid", uid)]), at(0));
        book.ask(&entitlement(path)).unwrap();
        book.issued(&entitlement(path), svid(path, &format!("a{uid}"), at(0)), at(0));
        let view = seen.borrow().clone().unwrap();
        view.bundles.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_workload_gets_the_bundles_of_the_domains_that_its_rules_federate_with_and_no_others() {
        let mut book = book();
        let (partner, other) =
            (foreign("partner.example", 3, &root("p")), foreign("other.example", 9, &root("o")));
        assert!(book.apply_foreign(upsert(&partner), at(0)));
        assert!(book.apply_foreign(upsert(&other), at(0)));
        assert_eq!(domains(&mut book, "1", "/web"), ["example.org", "partner.example"]);
        assert_eq!(domains(&mut book, "2", "/plain"), ["example.org"]);
    }

    #[test]
    fn a_bundle_that_is_missing_keeps_no_identity_back_and_one_for_our_own_domain_is_not_taken() {
        let mut book = book();
        let forged = foreign("example.org", 99, &root("forged"));
        assert!(!book.apply_foreign(upsert(&forged), at(0)));
        assert_eq!(domains(&mut book, "1", "/web"), ["example.org"]);
        assert_eq!(book.bundle().unwrap().sequence(), 1);
    }

    #[test]
    fn what_is_removed_is_taken_from_whoever_had_it_and_a_full_change_forgets_the_rest() {
        let mut book = book();
        let partner = foreign("partner.example", 3, &root("p"));
        book.apply_foreign(upsert(&partner), at(0));
        let mut seen = book.follow(attributes(&[("unix.uid", "1")]), at(0));
        book.ask(&entitlement("/web")).unwrap();
        book.issued(&entitlement("/web"), svid("/web", "a1", at(0)), at(0));
        assert_eq!(seen.borrow_and_update().as_ref().unwrap().bundles.len(), 2);
        let removed = vec![partner.trust_domain().clone()];
        book.apply_foreign(ForeignChange { removed, ..ForeignChange::default() }, at(0));
        assert_eq!(seen.borrow_and_update().as_ref().unwrap().bundles.len(), 1);
        book.apply_foreign(upsert(&partner), at(0));
        assert!(book.apply_foreign(ForeignChange { full: true, ..ForeignChange::default() }, at(0)));
        assert_eq!(seen.borrow_and_update().as_ref().unwrap().bundles.len(), 1);
        assert!(!book.apply_foreign(ForeignChange { full: true, ..ForeignChange::default() }, at(0)));
    }

    #[test]
    fn a_foreign_bundle_is_told_once_it_is_sealed_and_every_stream_that_is_to_show_it_was_given_it() {
        let mut book = book();
        assert_eq!(book.foreign_in_force(at(0)), None, "there never was one");
        let (web, plain) = (attributes(&[("unix.uid", "1")]), attributes(&[("unix.uid", "2")]));
        let (web_seen, plain_seen) = (book.follow(web, at(0)), book.follow(plain, at(0)));
        for (path, serial) in [("/web", "a1"), ("/plain", "a2")] {
            book.ask(&entitlement(path)).unwrap();
            book.issued(&entitlement(path), svid(path, serial, at(0)), at(0));
        }
        let version = |seen: &tokio::sync::watch::Receiver<Seen>| seen.borrow().as_ref().unwrap().version;
        let streams = [book.open(), book.open()];
        book.stands(streams[0], Standing::Given(version(&web_seen)));
        book.stands(streams[1], Standing::Given(version(&plain_seen)));
        book.apply_foreign(upsert(&foreign("partner.example", 3, &root("p"))), at(0));
        let generation = book.foreign_generation();
        book.set_foreign_sealed(generation);
        assert_eq!(book.foreign_in_force(at(0)), None, "one stream holds the view before");
        book.stands(streams[0], Standing::Given(version(&web_seen)));
        let (told, held) = book.foreign_in_force(at(0)).unwrap();
        assert_eq!((told, held.len(), held[0].1), (generation, 1, 3), "the other shows nothing of it");
        book.apply_foreign(upsert(&foreign("partner.example", 4, &root("q"))), at(0));
        assert_eq!(book.foreign_in_force(at(0)), None, "it is not sealed");
    }
}
