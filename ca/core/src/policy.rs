//! The one decision: may this caller have this certificate, as whom, and for how long.
//!
//! Laws: every way in ends in [`decide`], and only it makes a [`Grant`]; a grant is never wider than the rules, the
//! limits and the caller's scope; an identity is always inside the trust domain, and below `/rhizome` or `/spire` only
//! for nodes, servers and administrators; what a caller asks for can narrow a grant, never widen it. Attributes come
//! from attestation; a CSR plays no part here. Everything not allowed by a line below is refused.
//! Not here: authentication (`rhizome_server`'s gate), the validity in seconds (`renewal`).
//! Sources: ca/docs/ARCHITECTURE.md §3 and §5 step 3; ca/docs/attacks.md §1.2.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rhizome_id::{
    AdminName, ClusterName, NodeName, ReplicaName, RuleName, SpiffeId, SpiffeIdError, Timestamp, TrustDomain,
    Ttl,
};
use rhizome_x509::DnsName;

use crate::attributes::{AttributeName, Attributes};
use crate::caller::{
    AttestationMethod, AttestedCaller, Principal, Role, Scope, admin_id, node_id, server_id,
};
use crate::limits;
use crate::rules::{Rule, RuleSet};
use crate::template::{TemplateError, is_reserved};

mod lifetimes;
mod prospect;

pub use lifetimes::{PolicyLimits, TtlLimits};
use lifetimes::{lifetime, token_lifetime};
pub use prospect::{Prospect, identities, known_to_node};

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A node asks for one of its workloads.
    Workload {
        /// What the node's attestation of the workload found.
        attributes: Attributes,
        /// Which identity, when several are possible.
        spiffe_id: Option<SpiffeId>,
        /// A lifetime; shorter than the rule's counts, longer is clamped.
        ttl: Option<Ttl>,
        /// DNS names, each of which a rule must grant. When empty, all that the rules grant are included.
        dns_names: Vec<DnsName>,
    },
    /// A node asks for a JWT-SVID of one of its workloads.
    Token {
        /// What the node's attestation of the workload found.
        attributes: Attributes,
        /// Which identity, when several are possible.
        spiffe_id: Option<SpiffeId>,
        /// A lifetime; longer than the limits is clamped.
        ttl: Option<Ttl>,
    },
    /// A node asks for itself.
    Node {
        /// A lifetime.
        ttl: Option<Ttl>,
    },
    /// An administrator's certificate.
    Admin {
        /// Whose.
        name: AdminName,
        /// A lifetime.
        ttl: Option<Ttl>,
    },
    /// A server asks for its own serving certificate.
    Server {
        /// Which replica.
        name: ReplicaName,
    },
}

impl Wish {
    /// What the caller vouches for, when the wish is for a workload.
    pub const fn attributes(&self) -> Option<&Attributes> {
        match self {
            Self::Workload { attributes, .. } | Self::Token { attributes, .. } => Some(attributes),
            Self::Node { .. } | Self::Admin { .. } | Self::Server { .. } => None,
        }
    }
}

/// What the decision rests on besides caller and wish.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Our trust domain.
    pub trust_domain: &'a TrustDomain,
    /// The rules in force.
    pub rules: &'a RuleSet,
    /// The lifetimes in force.
    pub limits: &'a PolicyLimits,
}

/// For whom a grant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrantKind {
    /// A workload, by rule.
    Workload,
    /// A JWT-SVID of a workload, by rule: no certificate is made from it, nor a token from any other grant.
    Token,
    /// A node itself.
    Node,
    /// An administrator.
    Admin,
    /// A server itself.
    Server,
}

/// Evidence that a caller may have a certificate. Only [`decide`] makes one.
///
/// ```compile_fail,E0451
/// use rhizome_core::policy::Grant;
/// fn rename(grant: Grant) -> Grant {
///     Grant { caller: String::new(), ..grant }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    kind: GrantKind,
    spiffe_id: SpiffeId,
    ttl: Ttl,
    dns_names: Vec<DnsName>,
    federates_with: Vec<TrustDomain>,
    rule: Option<RuleName>,
    clamped: bool,
    caller: String,
    decided_at: Timestamp,
}

impl Grant {
    /// For whom it is.
    pub const fn kind(&self) -> GrantKind {
        self.kind
    }

    /// The identity granted.
    pub const fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// The lifetime granted, from the moment of issuance.
    pub const fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// The DNS names granted.
    pub fn dns_names(&self) -> &[DnsName] {
        &self.dns_names
    }

    /// Trust domains whose bundles go along, sorted.
    pub fn federates_with(&self) -> &[TrustDomain] {
        &self.federates_with
    }

    /// The rule that decided: the narrowest of those that give this identity. `None` for nodes, servers and
    /// administrators.
    pub const fn rule(&self) -> Option<&RuleName> {
        self.rule.as_ref()
    }

    /// Whether the lifetime is shorter than the wish or the rule said, because a limit is lower.
    pub const fn clamped(&self) -> bool {
        self.clamped
    }

    /// The principal's audit text of who asked.
    pub fn caller(&self) -> &str {
        &self.caller
    }

    /// When it was decided.
    pub const fn decided_at(&self) -> Timestamp {
        self.decided_at
    }
}

/// A refusal, with the rule that caused it where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denial {
    /// Why.
    pub reason: DenialReason,
    /// The rule that matched but could not grant.
    pub rule: Option<RuleName>,
}

impl Denial {
    /// The stable code for metric and audit.
    pub const fn code(&self) -> &'static str {
        self.reason.code()
    }
}

impl From<DenialReason> for Denial {
    fn from(reason: DenialReason) -> Self {
        Self { reason, rule: None }
    }
}

/// Why a wish was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenialReason {
    /// This kind of caller may not ask for this kind of certificate.
    #[error("this caller may not ask for this kind of certificate")]
    WrongCaller,
    /// The caller states, or would get, something it may not vouch for.
    #[error("the caller may not vouch for {attribute}={value}; see its scope with `rhizome node show`")]
    OutOfScope {
        /// Which attribute.
        attribute: AttributeName,
        /// Which value.
        value: String,
    },
    /// No rule matches.
    #[error("no rule matches these attributes; `rhizome explain` shows the nearest ones")]
    NoRule,
    /// Rules give several identities and the wish names none.
    #[error("several identities are possible; ask for one of them: {}", spelled(candidates))]
    Ambiguous {
        /// The identities, sorted, at most 16.
        candidates: Vec<SpiffeId>,
    },
    /// The identity asked for is not among those the rules give.
    #[error("no rule grants {asked} to these attributes")]
    NotGranted {
        /// What was asked for.
        asked: SpiffeId,
    },
    /// The identity lies below a reserved path.
    #[error("identities below /rhizome and /spire are never granted by rule")]
    Reserved,
    /// No rule that gives the identity grants this DNS name.
    #[error("no rule grants the DNS name {name} to this identity")]
    DnsNotGranted {
        /// The name.
        name: DnsName,
    },
    /// A matching rule's template cannot be filled.
    #[error("{error}")]
    Template {
        /// What is wrong.
        error: TemplateError,
    },
}

/// Bytes of candidates in a sentence: it travels in an HTTP/2 header, of which the server allows 16 KiB in all.
const SPELLED_BYTES: usize = 4096;

/// The candidates, as many as a sentence holds.
fn spelled(candidates: &[SpiffeId]) -> String {
    let mut text = String::new();
    for (before, candidate) in candidates.iter().map(ToString::to_string).enumerate() {
        if before > 0 && text.len().saturating_add(candidate.len()) > SPELLED_BYTES {
            text.push_str(&format!(" and {} more", candidates.len().saturating_sub(before)));
            break;
        }
        text.push_str(if before > 0 { ", " } else { "" });
        text.push_str(&candidate);
    }
    text
}

impl DenialReason {
    /// The stable code for metric and audit.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::WrongCaller => "wrong_caller",
            Self::OutOfScope { .. } => "out_of_scope",
            Self::NoRule => "no_rule",
            Self::Ambiguous { .. } => "ambiguous",
            Self::NotGranted { .. } => "not_granted",
            Self::Reserved => "reserved",
            Self::DnsNotGranted { .. } => "dns_not_granted",
            Self::Template { .. } => "template",
        }
    }
}

/// Decides whether `caller` may have what it wishes. Pure: the same arguments give the same answer.
///
/// | caller | may wish for |
/// |---|---|
/// | node | a workload within its scope, or a token for it; itself |
/// | join token | the node that the token names |
/// | administrator or local process with role `security` | an administrator |
/// | server | itself |
///
/// # Errors
/// [`Denial`] with the reason; everything that the table does not list is [`DenialReason::WrongCaller`].
pub fn decide(
    caller: &AttestedCaller,
    wish: &Wish,
    facts: &Facts<'_>,
    now: Timestamp,
) -> Result<Grant, Denial> {
    let domain = facts.trust_domain;
    let (kind, id, ttl, ttl_limits) = match (caller.principal(), wish) {
        (Principal::Node { .. }, Wish::Workload { attributes, spiffe_id, ttl, dns_names }) => {
            let asked = Asked { attributes, spiffe_id: spiffe_id.as_ref(), ttl: *ttl, dns_names };
            return decide_workload(GrantKind::Workload, caller, &asked, facts, now);
        }
        (Principal::Node { .. }, Wish::Token { attributes, spiffe_id, ttl }) => {
            let asked = Asked { attributes, spiffe_id: spiffe_id.as_ref(), ttl: *ttl, dns_names: &[] };
            return decide_workload(GrantKind::Token, caller, &asked, facts, now);
        }
        (Principal::Node { cluster, method, name }, Wish::Node { ttl }) => {
            let id = node_id(domain, cluster, *method, name);
            (GrantKind::Node, id, *ttl, facts.limits.node)
        }
        (Principal::Token { .. }, Wish::Node { ttl }) => {
            let (cluster, name) = node_of_token(caller).ok_or(DenialReason::WrongCaller)?;
            let id = node_id(domain, &cluster, AttestationMethod::JoinToken, &name);
            (GrantKind::Node, id, *ttl, facts.limits.node)
        }
        (Principal::Admin { .. } | Principal::Local { .. }, Wish::Admin { name, ttl })
            if caller.role() == Some(Role::Security) =>
        {
            (GrantKind::Admin, admin_id(domain, name), *ttl, facts.limits.admin)
        }
        (Principal::Server { name: caller }, Wish::Server { name }) if caller == name => {
            (GrantKind::Server, server_id(domain, name), None, facts.limits.server)
        }
        _ => return Err(DenialReason::WrongCaller.into()),
    };
    let (ttl, clamped) = lifetime(ttl, None, ttl_limits);
    Ok(Grant {
        kind,
        spiffe_id: id.map_err(|error: SpiffeIdError| template(TemplateError::Filled(error)))?,
        ttl,
        dns_names: Vec::new(),
        federates_with: Vec::new(),
        rule: None,
        clamped,
        caller: caller.principal().to_string(),
        decided_at: now,
    })
}

/// The node that a join token stands for: authentication put both names into the caller's attributes.
fn node_of_token(caller: &AttestedCaller) -> Option<(ClusterName, NodeName)> {
    let cluster = caller.attributes().single(&AttributeName::Cluster)?;
    let node = caller.attributes().single(&AttributeName::Node)?;
    Some((cluster.parse().ok()?, node.parse().ok()?))
}

/// What a node asks for on behalf of a workload.
struct Asked<'a> {
    attributes: &'a Attributes,
    spiffe_id: Option<&'a SpiffeId>,
    ttl: Option<Ttl>,
    dns_names: &'a [DnsName],
}

/// Certificates and tokens of workloads alike: the same attributes, rules and scope, so that nobody has a token for an
/// identity of which they could not have a certificate.
fn decide_workload(
    kind: GrantKind,
    caller: &AttestedCaller,
    asked: &Asked<'_>,
    facts: &Facts<'_>,
    now: Timestamp,
) -> Result<Grant, Denial> {
    let attributes = known_attributes(caller, asked.attributes)?;
    let rules = facts.rules.matching(&attributes);
    let offers = Offers::collect(&rules, facts.trust_domain, &attributes, caller.scope());
    let (id, rules) = offers.choose(asked.spiffe_id, facts.trust_domain)?;
    let rule_ttl = rules.iter().filter_map(|rule| rule.ttl()).min();
    let ((ttl, clamped), dns_names) = if kind == GrantKind::Token {
        (token_lifetime(asked.ttl, rule_ttl, facts.limits.token), Vec::new())
    } else {
        let dns_names = granted_dns_names(&rules, &attributes, asked.dns_names)?;
        (lifetime(asked.ttl, rule_ttl, facts.limits.workload), dns_names)
    };
    Ok(Grant {
        kind,
        rule: narrowest(&rules).map(|rule| rule.name().clone()),
        spiffe_id: id,
        ttl,
        dns_names,
        federates_with: federated(&rules),
        clamped,
        caller: caller.principal().to_string(),
        decided_at: now,
    })
}

/// What the rules look at: what the node vouched for, overridden by what is attested about the node itself.
///
/// # Errors
/// [`DenialReason::OutOfScope`] when the node states what only attestation may, or a namespace it may not vouch for;
/// [`DenialReason::WrongCaller`] when the caller is no node.
pub(crate) fn known_attributes(
    caller: &AttestedCaller,
    claimed: &Attributes,
) -> Result<Attributes, DenialReason> {
    combined(caller.principal(), caller.attributes(), caller.scope(), claimed)
}

fn combined(
    node: &Principal,
    attested: &Attributes,
    scope: &Scope,
    claimed: &Attributes,
) -> Result<Attributes, DenialReason> {
    let Principal::Node { cluster, method, name } = node else {
        return Err(DenialReason::WrongCaller);
    };
    let foreign = claimed.iter().find(|(attribute, value)| {
        attribute.is_attested_only()
            || (**attribute == AttributeName::Namespace && !scope.allows_namespace(value))
    });
    if let Some((attribute, value)) = foreign {
        return Err(DenialReason::OutOfScope { attribute: attribute.clone(), value: value.to_owned() });
    }
    let own = [
        (AttributeName::Cluster, cluster.as_str()),
        (AttributeName::Method, method.as_str()),
        (AttributeName::Node, name.as_str()),
    ];
    Ok(claimed.overridden_by(attested, &own))
}

/// Of several equally narrow rules the one that comes first by name.
fn narrowest<'a>(rules: &[&'a Rule]) -> Option<&'a Rule> {
    let narrower =
        |a: &&Rule, b: &&Rule| a.specificity().cmp(&b.specificity()).then_with(|| b.name().cmp(a.name()));
    rules.iter().copied().max_by(narrower)
}

fn federated(rules: &[&Rule]) -> Vec<TrustDomain> {
    let domains: BTreeSet<_> = rules.iter().flat_map(|rule| rule.federates_with()).collect();
    domains.into_iter().cloned().collect()
}

/// The identity that `rule`, whose conditions hold, gives to `attributes`.
///
/// # Errors
/// [`DenialReason`] when its template cannot be filled or the identity is reserved.
pub(crate) fn identity_of(
    rule: &Rule,
    domain: &TrustDomain,
    attributes: &Attributes,
) -> Result<SpiffeId, DenialReason> {
    let expanded = rule.identity().expand(domain, attributes);
    let id = expanded.map_err(|error| DenialReason::Template { error })?;
    if is_reserved(&id) {
        return Err(DenialReason::Reserved);
    }
    Ok(id)
}

/// Identities by the rules that give them, and the first refusal.
struct Offers<'a> {
    identities: BTreeMap<SpiffeId, Vec<&'a Rule>>,
    refusal: Option<Denial>,
}

impl<'a> Offers<'a> {
    /// A rule that cannot grant, grants nothing; it does not spoil what the others grant.
    fn collect(
        rules: &[&'a Arc<Rule>],
        domain: &TrustDomain,
        attributes: &Attributes,
        scope: &Scope,
    ) -> Self {
        let mut offers = Self { identities: BTreeMap::new(), refusal: None };
        for rule in rules {
            let offer = identity_of(rule, domain, attributes).and_then(|id| within_scope(id, scope));
            match offer {
                Ok(id) => offers.identities.entry(id).or_default().push(rule),
                Err(reason) => {
                    offers.refusal.get_or_insert_with(|| Denial { reason, rule: Some(rule.name().clone()) });
                }
            }
        }
        offers
    }

    fn choose(
        mut self,
        asked: Option<&SpiffeId>,
        domain: &TrustDomain,
    ) -> Result<(SpiffeId, Vec<&'a Rule>), Denial> {
        if let Some(id) = asked {
            if id.is_member_of(domain) && is_reserved(id) {
                return Err(DenialReason::Reserved.into());
            }
            if let Some(chosen) = self.identities.remove_entry(id) {
                return Ok(chosen);
            }
        }
        match (self.identities.len(), self.refusal, asked) {
            (0, Some(refusal), _) => Err(refusal),
            (0, None, _) => Err(DenialReason::NoRule.into()),
            (_, _, Some(asked)) => Err(DenialReason::NotGranted { asked: asked.clone() }.into()),
            (1, _, None) => self.identities.pop_first().ok_or_else(|| DenialReason::NoRule.into()),
            (_, _, None) => {
                let candidates = self.identities.into_keys().take(limits::AMBIGUOUS_CANDIDATES);
                Err(DenialReason::Ambiguous { candidates: candidates.collect() }.into())
            }
        }
    }
}

/// A rule on other attributes than the namespace must not carry a node out of its namespaces: the `/ns/` of the result
/// counts too.
fn within_scope(id: SpiffeId, scope: &Scope) -> Result<SpiffeId, DenialReason> {
    let mut segments = id.segments();
    if segments.next() == Some("ns")
        && let Some(namespace) = segments.next()
        && !scope.allows_namespace(namespace)
    {
        return Err(DenialReason::OutOfScope {
            attribute: AttributeName::Namespace,
            value: namespace.to_owned(),
        });
    }
    drop(segments);
    Ok(id)
}

/// The DNS names of the certificate: those asked for, all of which must be granted, or, when none are asked for, all
/// that are granted. A template that does not fit this workload (a dot in a service account's name, say) grants
/// nothing; it does not cost the workload its identity.
fn granted_dns_names(
    rules: &[&Rule],
    attributes: &Attributes,
    asked: &[DnsName],
) -> Result<Vec<DnsName>, Denial> {
    let mut granted: Vec<DnsName> = Vec::new();
    for template in rules.iter().flat_map(|rule| rule.dns_names()) {
        let expanded = template.expand(attributes).ok();
        if let Some(name) = expanded.and_then(|text| DnsName::try_from(text).ok())
            && !granted.contains(&name)
        {
            granted.push(name);
        }
    }
    if asked.is_empty() {
        return Ok(granted);
    }
    let mut names: Vec<DnsName> = Vec::new();
    for name in asked {
        if !granted.contains(name) {
            return Err(DenialReason::DnsNotGranted { name: name.clone() }.into());
        }
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

const fn template(error: TemplateError) -> DenialReason {
    DenialReason::Template { error }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
