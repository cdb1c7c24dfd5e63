//! What each follower may have, and letting go of what is over.
//!
//! Laws: a view says which identities are still on their way, so that no other one is taken for the default, and nothing
//! that is only late for denied. An identity that the authority denied is not waited for. The bundles are seen by whoever
//! the rules give an identity, also while all of its certificates are on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhizome_core::attributes::Attributes;
use rhizome_core::caller::Principal;
use rhizome_core::policy;
use rhizome_core::rules::RuleSet;
use rhizome_id::{Timestamp, TrustDomain};

use super::{Book, Follower, Seen};
use crate::holdings::{Awaited, NotYet, Svid, View, differs};
use crate::renewal::Entitlement;

/// With fewer followers than this nobody looks for those that left.
const FOLLOWERS: usize = 1_024;

impl Book {
    /// Lets go of what has expired and of workloads that left. Whether anything expired.
    pub(crate) fn tick(&mut self, now: Timestamp) -> bool {
        self.let_go_of_who_left();
        let mut affected = BTreeSet::new();
        let mut expired = false;
        for holding in self.holdings.values_mut() {
            let Some(svid) = holding.svid.take_if(|svid| svid.not_after < now) else { continue };
            expired = true;
            affected.extend(holding.followers.iter().copied());
            affected.extend(self.followers.iter().filter(|(_, it)| it.sees(&svid)).map(|(id, _)| *id));
        }
        self.holdings.retain(|_, holding| holding.is_of_use());
        if expired && self.choose_crls() {
            affected.extend(self.followers.keys());
        }
        self.show(affected, now);
        expired
    }

    /// When the next certificate has expired, here or at a stream that waits for something newer.
    pub(crate) fn expires_next(&self, now: Timestamp) -> Option<Timestamp> {
        let held = self.svids().map(|svid| svid.not_after.plus(1)).min();
        held.into_iter().chain(self.released_next(now)).min()
    }

    fn let_go_of_who_left(&mut self) {
        let left: Vec<u64> =
            self.followers.iter().filter(|(_, it)| it.sender.is_closed()).map(|(id, _)| *id).collect();
        for id in left {
            let Some(follower) = self.followers.remove(&id) else { continue };
            self.by_attributes.remove(&follower.attributes);
            for entitlement in follower.entitled.iter().flatten() {
                if let Some(holding) = self.holdings.get_mut(entitlement) {
                    holding.followers.remove(&id);
                }
            }
        }
    }

    /// Lets go of who left when there are many, so that callers which come and go take no memory between two ticks:
    /// at most twice as many as are here, whose number the sockets limit.
    pub(super) fn keep_followers_few(&mut self) {
        if self.followers.len() >= self.let_go_at.max(FOLLOWERS) {
            self.let_go_of_who_left();
            self.let_go_at = self.followers.len().saturating_mul(2);
        }
    }

    pub(super) const fn fresh(&mut self) -> u64 {
        self.next = self.next.saturating_add(1);
        self.next
    }

    /// What the rules give to everyone, anew.
    pub(super) fn rules_changed(&mut self, now: Timestamp) {
        let everyone: Vec<u64> = self.followers.keys().copied().collect();
        everyone.iter().for_each(|id| self.entitle(*id));
        self.holdings.retain(|_, holding| holding.is_of_use());
        self.show(everyone, now);
    }

    /// What the rules give to one follower, anew.
    pub(super) fn entitle(&mut self, id: u64) {
        let Some(follower) = self.followers.get_mut(&id) else { return };
        for entitlement in follower.entitled.iter().flatten() {
            if let Some(holding) = self.holdings.get_mut(entitlement) {
                holding.followers.remove(&id);
            }
        }
        let given = match (&self.node, &self.rules) {
            (Some(node), Some(rules)) => entitlements(node, &follower.attributes, rules, &self.domain),
            (None, _) | (_, None) => Err(NotYet::Starting),
        };
        (follower.entitled, follower.federates_with) = match given {
            Ok((entitled, federates_with)) => (Ok(entitled), federates_with),
            Err(nothing) => (Err(nothing), BTreeSet::new()),
        };
        for entitlement in follower.entitled.iter().flatten() {
            self.holdings.entry(entitlement.clone()).or_default().followers.insert(id);
        }
    }

    pub(super) fn show_everyone(&mut self, now: Timestamp) {
        let everyone: Vec<u64> = self.followers.keys().copied().collect();
        self.show(everyone, now);
    }

    /// Shows each of these followers what it may have now, if that is something else than it sees.
    pub(super) fn show(&mut self, followers: impl IntoIterator<Item = u64>, now: Timestamp) {
        for id in followers {
            let Some(follower) = self.followers.get(&id) else { continue };
            let version = self.version.saturating_add(1);
            let seen = self.view(follower, version, now);
            if differs(&seen, &follower.sender.borrow()) {
                self.version = version;
                drop(follower.sender.send_replace(seen));
            }
        }
    }

    fn view(&self, follower: &Follower, version: u64, now: Timestamp) -> Seen {
        let entitled = follower.entitled.as_ref().map_err(Clone::clone)?;
        let bundle = self.bundle.as_ref().ok_or(NotYet::Starting)?;
        let mut svids: Vec<Arc<Svid>> = Vec::new();
        let mut awaited = Awaited::default();
        let mut reason = None;
        for entitlement in entitled {
            let holding = self.holdings.get(entitlement);
            let own = holding.and_then(|holding| holding.svid.as_ref());
            let found = own.or_else(|| self.lent(follower, entitlement)).filter(|svid| svid.not_after >= now);
            match (found, holding.and_then(|holding| holding.denied.as_ref())) {
                (Some(svid), _) => svids.push(Arc::clone(svid)),
                (None, Some(denied)) => reason = reason.or(Some(denied)),
                (None, None) => {
                    // What was denied is no identity of the workload, so the next one is the default.
                    awaited.default |= svids.is_empty();
                    awaited.identities.insert(entitlement.spiffe_id.clone());
                }
            }
        }
        // One that is still on its way is worth waiting for, and keeps no bundle back meanwhile.
        if svids.is_empty() && awaited.identities.is_empty() {
            return Err(reason.map_or(NotYet::Starting, |reason| NotYet::Denied(reason.clone())));
        }
        let mut bundles = BTreeMap::from([(self.domain.clone(), Arc::clone(bundle))]);
        bundles.extend(self.foreign.of(&follower.federates_with));
        let crls = Arc::clone(&self.shown_crls);
        Ok(Arc::new(View { svids, awaited, bundles, crls, version }))
    }

    /// When a rule changed an entitlement's lifetime or DNS names, its holder keeps the certificate that it has until
    /// the new one is there, as long as the identity is still granted.
    fn lent(&self, follower: &Follower, entitlement: &Entitlement) -> Option<&Arc<Svid>> {
        let same = |it: &&Arc<Svid>| it.spiffe_id == entitlement.spiffe_id;
        self.svids().filter(same).find(|it| follower.sees(it))
    }
}

fn entitlements(
    node: &Principal,
    attributes: &Attributes,
    rules: &RuleSet,
    domain: &TrustDomain,
) -> Result<(Vec<Entitlement>, BTreeSet<TrustDomain>), NotYet> {
    let found = policy::identities(node, attributes, rules, domain);
    let found = found.map_err(|denial| NotYet::Denied(denial.to_string()))?;
    let mut federates_with = BTreeSet::new();
    let entitlement = |it: policy::Prospect| {
        let policy::Prospect { spiffe_id, dns_names, ttl, federates_with: domains, .. } = it;
        federates_with.extend(domains.into_iter().filter(|it| it != domain));
        Entitlement { spiffe_id, dns_names, ttl }
    };
    let entitled = found.into_iter().map(entitlement).collect();
    Ok((entitled, federates_with))
}
