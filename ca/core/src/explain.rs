//! Why: what `rhizome explain` shows about a decision, and what an edit of the rules would change for whom.
//!
//! Laws: an explanation's decision is the answer of [`policy::decide`] itself, not of a copy of it; nothing here
//! grants anything. Lists are short and sorted: the nearest rules first.
//! Not here: the decision (`policy`), the workloads seen lately (the ledger; the shell reads them).
//! Sources: ca/docs/divergences.md, From common practice (what can take an identity away is a dry run first).

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use rhizome_id::{RuleName, SpiffeId, Timestamp, TrustDomain, Ttl};
use rhizome_x509::DnsName;

use crate::attributes::{AttributeName, Attributes};
use crate::caller::{AttestedCaller, Principal};
use crate::limits::NEAR_MISSES;
use crate::policy::{self, Denial, Facts, Grant, Prospect, Wish};
use crate::rules::{Rule, RuleSet};

/// A decision and what led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What [`policy::decide`] says.
    pub decision: Result<GrantSummary, Denial>,
    /// The attributes that the rules saw: claimed ones, overridden by attested ones. Empty when the caller may not
    /// vouch for them, or when the wish is not for a workload.
    pub attributes: Attributes,
    /// The rules whose conditions hold, by name.
    pub matched: Vec<RuleName>,
    /// The rules that came nearest, fewest unmet conditions first, at most 10.
    pub near: Vec<NearMiss>,
}

/// What a grant would be. Not a [`Grant`]: an administrator may explain for a caller who never proved anything, and
/// no evidence may come of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantSummary {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The lifetime.
    pub ttl: Ttl,
    /// Whether a limit shortened it.
    pub clamped: bool,
    /// The DNS names.
    pub dns_names: Vec<DnsName>,
    /// Trust domains whose bundles go along.
    pub federates_with: Vec<TrustDomain>,
    /// The rule that decided.
    pub rule: Option<RuleName>,
}

impl From<&Grant> for GrantSummary {
    fn from(grant: &Grant) -> Self {
        Self {
            spiffe_id: grant.spiffe_id().clone(),
            ttl: grant.ttl(),
            clamped: grant.clamped(),
            dns_names: grant.dns_names().to_vec(),
            federates_with: grant.federates_with().to_vec(),
            rule: grant.rule().cloned(),
        }
    }
}

/// A rule that does not match, and what it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// The rule.
    pub rule: RuleName,
    /// Its unmet conditions, by attribute.
    pub missing: Vec<Unmet>,
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// On which attribute.
    pub attribute: AttributeName,
    /// The values that would do; `*` is any.
    pub wanted: Vec<String>,
    /// The values found; empty when the attribute is absent.
    pub found: Vec<String>,
}

/// Explains what [`policy::decide`] answers to the same arguments. Looks at every rule, so it is for people, not for
/// the issuing path.
pub fn explain(caller: &AttestedCaller, wish: &Wish, facts: &Facts<'_>, now: Timestamp) -> Explanation {
    let decision = policy::decide(caller, wish, facts, now).map(|grant| GrantSummary::from(&grant));
    let known = match wish {
        Wish::Workload { attributes, .. } | Wish::Token { attributes, .. } => {
            policy::known_attributes(caller, attributes).ok()
        }
        Wish::Node { .. } | Wish::Admin { .. } | Wish::Server { .. } => None,
    };
    let Some(attributes) = known else {
        return Explanation {
            decision,
            attributes: Attributes::new(),
            matched: Vec::new(),
            near: Vec::new(),
        };
    };
    let matched = facts.rules.matching(&attributes);
    Explanation {
        decision,
        matched: matched.into_iter().map(|rule| rule.name().clone()).collect(),
        near: near_misses(facts.rules, &attributes),
        attributes,
    }
}

/// What a node can expect for one of its workloads, and why: for a node that explains itself. No decision: the authority
/// decides, and may know more, such as the node's scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// What [`policy::identities`] says.
    pub identities: Result<Vec<Prospect>, Denial>,
    /// The attributes that the rules saw.
    pub attributes: Attributes,
    /// The rules whose conditions hold, by name.
    pub matched: Vec<RuleName>,
    /// The rules that came nearest, fewest unmet conditions first, at most 10.
    pub near: Vec<NearMiss>,
}

/// Explains what [`policy::identities`] answers to the same arguments. Looks at every rule, so it is for people.
pub fn outlook(node: &Principal, attributes: &Attributes, rules: &RuleSet, domain: &TrustDomain) -> Outlook {
    let identities = policy::identities(node, attributes, rules, domain);
    let Ok(known) = policy::known_to_node(node, attributes) else {
        return Outlook { identities, attributes: attributes.clone(), matched: Vec::new(), near: Vec::new() };
    };
    let matched = rules.matching(&known).into_iter().map(|rule| rule.name().clone()).collect();
    Outlook { identities, matched, near: near_misses(rules, &known), attributes: known }
}

fn near_misses(rules: &RuleSet, attributes: &Attributes) -> Vec<NearMiss> {
    let mut misses: Vec<(usize, Reverse<usize>, &Arc<Rule>)> = rules
        .iter()
        .map(|rule| {
            let unmet = rule.unmet(attributes).count();
            (unmet, Reverse(rule.when().len().saturating_sub(unmet)), rule)
        })
        .filter(|(unmet, ..)| *unmet > 0)
        .collect();
    // Stable, and the rules come by name: equally near ones stay in that order.
    misses.sort_by_key(|(unmet, met, _)| (*unmet, *met));
    misses.into_iter().take(NEAR_MISSES).map(|(_, _, rule)| near_miss(rule, attributes)).collect()
}

fn near_miss(rule: &Rule, attributes: &Attributes) -> NearMiss {
    let missing = rule.unmet(attributes).map(|(attribute, wanted)| Unmet {
        attribute: attribute.clone(),
        wanted: wanted.iter().cloned().collect(),
        found: attributes.values(attribute).map(str::to_owned).collect(),
    });
    NearMiss { rule: rule.name().clone(), missing: missing.collect() }
}

/// What an edit of the rules changes for the workloads known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleDiff {
    /// Workloads whose possible identities differ, by attributes.
    pub changes: Vec<IdentityChange>,
    /// How many workloads keep exactly what they could have.
    pub unchanged: usize,
}

/// One workload's identities before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityChange {
    /// Which workload.
    pub attributes: Attributes,
    /// The identities that it could have.
    pub before: BTreeSet<SpiffeId>,
    /// The identities that it could have after the edit.
    pub after: BTreeSet<SpiffeId>,
}

/// What happens to a workload, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// It can have more, and nothing less.
    Gains,
    /// It can have less, and nothing more.
    Loses,
    /// It loses some and gains others.
    Changes,
}

impl IdentityChange {
    /// What happens, in a word.
    pub fn kind(&self) -> ChangeKind {
        if self.before.is_subset(&self.after) {
            ChangeKind::Gains
        } else if self.after.is_subset(&self.before) {
            ChangeKind::Loses
        } else {
            ChangeKind::Changes
        }
    }
}

/// Compares two sets of rules over the workloads in `known`, each given by all the attributes that rules see. A
/// workload that occurs more than once counts once.
pub fn diff<'a>(
    trust_domain: &TrustDomain,
    old: &RuleSet,
    new: &RuleSet,
    known: impl IntoIterator<Item = &'a Attributes>,
) -> RuleDiff {
    let known: BTreeSet<&Attributes> = known.into_iter().collect();
    let mut diff = RuleDiff::default();
    for attributes in known {
        let before = identities(trust_domain, old, attributes);
        let after = identities(trust_domain, new, attributes);
        if before == after {
            diff.unchanged = diff.unchanged.saturating_add(1);
        } else {
            diff.changes.push(IdentityChange { attributes: attributes.clone(), before, after });
        }
    }
    diff
}

fn identities(domain: &TrustDomain, rules: &RuleSet, attributes: &Attributes) -> BTreeSet<SpiffeId> {
    rules
        .matching(attributes)
        .into_iter()
        .filter_map(|rule| policy::identity_of(rule, domain, attributes).ok())
        .collect()
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
