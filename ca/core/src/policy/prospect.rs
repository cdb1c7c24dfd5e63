//! What a node can expect, before it asks: the same matching as the decision, without its evidence.
//!
//! Laws: nothing here grants; whatever [`decide`](super::decide) would grant to a node with every namespace in its
//! scope is among the prospects, and under the same rule. Not here: the decision.

use rhizome_id::{RuleName, SpiffeId, TrustDomain, Ttl};
use rhizome_x509::DnsName;

use super::{Denial, DenialReason, Offers, combined, federated, granted_dns_names, narrowest};
use crate::attributes::Attributes;
use crate::caller::{Principal, Scope};
use crate::rules::RuleSet;

/// What a node can expect when it asks for one of its workloads. No grant: the authority decides, and may know more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// All DNS names that the rules grant with it.
    pub dns_names: Vec<DnsName>,
    /// The lifetime that the rules set; `None` leaves it to the policy.
    pub ttl: Option<Ttl>,
    /// Trust domains whose bundles go along, sorted.
    pub federates_with: Vec<TrustDomain>,
    /// The narrowest of the rules that give this identity.
    pub rule: RuleName,
}

/// The attributes that rules see when a node asks for one of its workloads: its own word, with what is known of it.
///
/// # Errors
/// As for [`identities`].
pub fn known_to_node(node: &Principal, attributes: &Attributes) -> Result<Attributes, Denial> {
    Ok(combined(node, &Attributes::new(), &Scope::ALL, attributes)?)
}

/// The identities that `rules` give to a workload of `node` with these attributes, the narrowest rule's first: what
/// [`decide`](super::decide) would choose from, as far as a node can know it (not its own scope, nor attributes of it besides its
/// name).
///
/// # Errors
/// [`DenialReason::WrongCaller`] when `node` is none, [`DenialReason::OutOfScope`] when `attributes` hold what only
/// attestation of the node may say; [`DenialReason::NoRule`], or why the rules that match cannot give an identity.
pub fn identities(
    node: &Principal,
    attributes: &Attributes,
    rules: &RuleSet,
    domain: &TrustDomain,
) -> Result<Vec<Prospect>, Denial> {
    let known = known_to_node(node, attributes)?;
    let offers = Offers::collect(&rules.matching(&known), domain, &known, &Scope::ALL);
    if offers.identities.is_empty() {
        return Err(offers.refusal.unwrap_or_else(|| DenialReason::NoRule.into()));
    }
    let mut found = Vec::new();
    for (spiffe_id, rules) in offers.identities {
        let Some(narrowest) = narrowest(&rules) else { continue };
        let prospect = Prospect {
            spiffe_id,
            dns_names: granted_dns_names(&rules, &known, &[])?,
            ttl: rules.iter().filter_map(|rule| rule.ttl()).min(),
            federates_with: federated(&rules),
            rule: narrowest.name().clone(),
        };
        found.push((narrowest.specificity(), prospect));
    }
    // Stable: identities of equally narrow rules stay in the order of their text.
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    Ok(found.into_iter().map(|(_, prospect)| prospect).collect())
}
