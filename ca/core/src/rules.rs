//! Rules: who may be whom; and the set of them, indexed so that finding the right ones costs the same among ten rules
//! and among a hundred thousand.
//!
//! Laws: a [`Rule`] exists only valid; values are compared byte for byte, never as patterns (`*` alone, in a
//! condition, means "any value"); a [`RuleSet`] is immutable, adding and removing make a new one that shares almost
//! everything; its iteration order is the order of names. Not here: the decision (`policy`), storage.
//! Sources: ca/docs/ARCHITECTURE.md §3; CVE-2026-39350 and istio/istio#59992 (identities matched by expression or prefix).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use rhizome_id::{RuleName, TrustDomain, Ttl};
use serde::{Deserialize, Serialize};

use crate::attributes::{AttributeError, AttributeName, Attributes, validate_value};
use crate::limits::{RULE_COMMENT_BYTES, RULE_CONDITIONS, RULE_DNS_NAMES, RULE_FEDERATES_WITH, RULE_VALUES};
use crate::template::{DnsTemplate, Template, TemplateError};

/// The condition value that any value satisfies.
pub const ANY: &str = "*";

/// The conditions of a rule: each attribute must have one of the values listed for it.
pub type Conditions = BTreeMap<AttributeName, BTreeSet<String>>;

/// A rule as people write it and as it is stored: JSON, unvalidated. [`Rule::new`] is the way in.
///
/// Unknown fields are ignored (schema N and N−1). That never widens a rule: conditions live in `when` alone, and an
/// unknown attribute there is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDraft {
    /// Its name.
    pub name: RuleName,
    /// The conditions, all of which must hold.
    pub when: Conditions,
    /// The identity it grants.
    pub identity: String,
    /// Lifetime of certificates, and its upper bound, when this rule applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// Templates of the DNS names it grants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// Trust domains whose bundles the workload gets too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub federates_with: Vec<TrustDomain>,
    /// A note for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// A valid rule. Serialised as its [`RuleDraft`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RuleDraft", into = "RuleDraft")]
pub struct Rule {
    name: RuleName,
    when: Conditions,
    identity: Template,
    ttl: Option<Ttl>,
    dns_names: Vec<DnsTemplate>,
    federates_with: Vec<TrustDomain>,
    comment: Option<String>,
}

/// Why a rule was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No conditions: it would match everyone.
    #[error("rule {rule} has no condition; to match every workload say so, for example `namespace: [\"*\"]`")]
    NoCondition {
        /// Which rule.
        rule: RuleName,
    },
    /// A condition without values: nothing can satisfy it.
    #[error("rule {rule} lists no value for {attribute}; use `*` for any value")]
    NoValue {
        /// Which rule.
        rule: RuleName,
        /// Which condition.
        attribute: AttributeName,
    },
    /// A value that no attribute can have.
    #[error("rule {rule}: {source}")]
    Value {
        /// Which rule.
        rule: RuleName,
        /// What is wrong.
        source: AttributeError,
    },
    /// A template that cannot be filled with anything.
    #[error("rule {rule}: {source}")]
    Template {
        /// Which rule.
        rule: RuleName,
        /// What is wrong.
        source: TemplateError,
    },
    /// A template uses an attribute without a condition on it.
    #[error(
        "rule {rule} uses {{{attribute}}} without a condition on it; add `{attribute}: [\"*\"]` to `when`"
    )]
    Unconditioned {
        /// Which rule.
        rule: RuleName,
        /// Which attribute.
        attribute: AttributeName,
    },
    /// More of something than its limit.
    #[error("rule {rule} has {found} {what}; the limit is {limit}")]
    TooMany {
        /// Which rule.
        rule: RuleName,
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many are allowed.
        limit: usize,
    },
}

impl Rule {
    /// Validates a draft.
    ///
    /// # Errors
    /// [`RuleError`] naming the rule and the first fault.
    pub fn new(draft: RuleDraft) -> Result<Self, RuleError> {
        let RuleDraft { name, when, identity, ttl, dns_names, federates_with, comment } = draft;
        validate_conditions(&name, &when)?;
        let comment_bytes = comment.as_ref().map_or(0, String::len);
        at_most(&name, "DNS names", dns_names.len(), RULE_DNS_NAMES)?;
        at_most(&name, "trust domains to federate with", federates_with.len(), RULE_FEDERATES_WITH)?;
        at_most(&name, "bytes of comment", comment_bytes, RULE_COMMENT_BYTES)?;
        let template = |source| RuleError::Template { rule: name.clone(), source };
        let identity: Template = identity.parse().map_err(template)?;
        let dns_names: Vec<DnsTemplate> =
            dns_names.iter().map(|text| text.parse().map_err(template)).collect::<Result<_, _>>()?;
        let unconditioned = identity
            .placeholders()
            .chain(dns_names.iter().flat_map(DnsTemplate::placeholders))
            .find(|attribute| !when.contains_key(attribute))
            .cloned();
        if let Some(attribute) = unconditioned {
            return Err(RuleError::Unconditioned { rule: name, attribute });
        }
        Ok(Self { name, when, identity, ttl, dns_names, federates_with, comment })
    }

    /// The rule of a fresh server: whatever proves a namespace and a service account is
    /// `/ns/{namespace}/sa/{service_account}`, on Kubernetes and on a VM alike.
    pub fn built_in() -> Self {
        let any = || BTreeSet::from([ANY.to_owned()]);
        let draft = "default-ns-sa".parse().map(|name| RuleDraft {
            name,
            when: BTreeMap::from([(AttributeName::Namespace, any()), (AttributeName::ServiceAccount, any())]),
            identity: "/ns/{namespace}/sa/{service_account}".to_owned(),
            ttl: None,
            dns_names: Vec::new(),
            federates_with: Vec::new(),
            comment: Some(
                "the identity of every workload that proves a namespace and a service account".to_owned(),
            ),
        });
        let rule = draft.ok().and_then(|draft| Self::new(draft).ok());
        rule.unwrap_or_else(|| unreachable!("a constant that a test validates"))
    }

    /// Its name.
    pub const fn name(&self) -> &RuleName {
        &self.name
    }

    /// The conditions, all of which must hold.
    pub const fn when(&self) -> &Conditions {
        &self.when
    }

    /// The identity it grants.
    pub const fn identity(&self) -> &Template {
        &self.identity
    }

    /// Lifetime of certificates, and its upper bound, when this rule applies.
    pub const fn ttl(&self) -> Option<Ttl> {
        self.ttl
    }

    /// Templates of the DNS names it grants.
    pub fn dns_names(&self) -> &[DnsTemplate] {
        &self.dns_names
    }

    /// Trust domains whose bundles the workload gets too.
    pub fn federates_with(&self) -> &[TrustDomain] {
        &self.federates_with
    }

    /// A note for people.
    pub fn comment(&self) -> Option<&str> {
        self.comment.as_deref()
    }

    /// Whether every condition holds for `attributes`.
    pub fn matches(&self, attributes: &Attributes) -> bool {
        self.unmet(attributes).next().is_none()
    }

    /// The conditions that do not hold for `attributes`, by name.
    pub fn unmet<'a>(
        &'a self,
        attributes: &'a Attributes,
    ) -> impl Iterator<Item = (&'a AttributeName, &'a BTreeSet<String>)> {
        self.when.iter().filter(|(name, wanted)| !holds(name, wanted, attributes))
    }

    /// How narrow the rule is: more conditions on concrete values first, then more conditions.
    pub(crate) fn specificity(&self) -> (usize, usize) {
        let concrete = self.when.values().filter(|values| !values.contains(ANY)).count();
        (concrete, self.when.len())
    }

    /// The conditions on concrete values: those that the index can use.
    fn equalities(&self) -> impl Iterator<Item = (&AttributeName, &BTreeSet<String>)> {
        self.when.iter().filter(|(_, values)| !values.contains(ANY))
    }
}

fn holds(name: &AttributeName, wanted: &BTreeSet<String>, attributes: &Attributes) -> bool {
    if wanted.contains(ANY) {
        return attributes.has(name);
    }
    wanted.iter().any(|value| attributes.contains(name, value))
}

fn validate_conditions(rule: &RuleName, when: &Conditions) -> Result<(), RuleError> {
    if when.is_empty() {
        return Err(RuleError::NoCondition { rule: rule.clone() });
    }
    at_most(rule, "conditions", when.len(), RULE_CONDITIONS)?;
    for (attribute, values) in when {
        if values.is_empty() {
            return Err(RuleError::NoValue { rule: rule.clone(), attribute: attribute.clone() });
        }
        at_most(rule, "values in one condition", values.len(), RULE_VALUES)?;
        for value in values {
            validate_value(attribute, value)
                .map_err(|source| RuleError::Value { rule: rule.clone(), source })?;
        }
    }
    Ok(())
}

fn at_most(rule: &RuleName, what: &'static str, found: usize, limit: usize) -> Result<(), RuleError> {
    if found <= limit {
        return Ok(());
    }
    Err(RuleError::TooMany { rule: rule.clone(), what, found, limit })
}

impl TryFrom<RuleDraft> for Rule {
    type Error = RuleError;

    fn try_from(draft: RuleDraft) -> Result<Self, Self::Error> {
        Self::new(draft)
    }
}

impl From<Rule> for RuleDraft {
    fn from(rule: Rule) -> Self {
        let Rule { name, when, identity, ttl, dns_names, federates_with, comment } = rule;
        Self {
            name,
            when,
            identity: identity.into(),
            ttl,
            dns_names: dns_names.into_iter().map(String::from).collect(),
            federates_with,
            comment,
        }
    }
}

/// Rules that share one (attribute, value), or have none to share; sorted by name.
type Bucket = Arc<Vec<Arc<Rule>>>;

/// All rules in force, immutable. Cloning and changing share structure.
///
/// Each rule is filed under the values of *one* of its conditions, the one whose buckets hold the fewest rules so far;
/// rules with nothing but `*` conditions are few and are looked at every time. A request looks into one bucket for
/// each of its attribute values.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    by_name: OrdMap<RuleName, Filed>,
    buckets: OrdMap<AttributeName, OrdMap<String, Bucket>>,
    catch_all: Bucket,
}

#[derive(Clone, Debug)]
struct Filed {
    rule: Arc<Rule>,
    /// The condition it is filed under; `None` in the catch-all list.
    under: Option<AttributeName>,
}

impl RuleSet {
    /// A set of `rules`; of two with the same name the later one counts.
    pub fn new(rules: impl IntoIterator<Item = Arc<Rule>>) -> Self {
        let mut set = Self::default();
        for rule in rules {
            set.put(rule);
        }
        set
    }

    /// This set with `rule` added, in place of one with the same name.
    #[must_use]
    pub fn with(&self, rule: Arc<Rule>) -> Self {
        let mut set = self.clone();
        set.put(rule);
        set
    }

    /// This set without the rule called `name`.
    #[must_use]
    pub fn without(&self, name: &RuleName) -> Self {
        let mut set = self.clone();
        set.take(name);
        set
    }

    /// The rule called `name`.
    pub fn rule(&self, name: &RuleName) -> Option<&Arc<Rule>> {
        self.by_name.get(name).map(|filed| &filed.rule)
    }

    /// Every rule, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.by_name.values().map(|filed| &filed.rule)
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The rules that might match `attributes`: all that do, and few that do not. A rule filed under several values
    /// that `attributes` has all of comes more than once.
    pub fn candidates<'a, 'b>(
        &'a self,
        attributes: &'b Attributes,
    ) -> impl Iterator<Item = &'a Arc<Rule>> + use<'a, 'b> {
        attributes
            .iter()
            .filter_map(|(name, value)| self.buckets.get(name)?.get(value))
            .chain([&self.catch_all])
            .flat_map(|bucket| bucket.iter())
    }

    /// The rules that match `attributes`, each once, in the order of names.
    pub fn matching(&self, attributes: &Attributes) -> Vec<&Arc<Rule>> {
        let mut rules: Vec<_> = self.candidates(attributes).filter(|rule| rule.matches(attributes)).collect();
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        rules.dedup_by(|a, b| a.name == b.name);
        rules
    }

    fn put(&mut self, rule: Arc<Rule>) {
        self.take(&rule.name);
        let chosen = rule.equalities().min_by_key(|(attribute, values)| self.crowd(attribute, values));
        let under = chosen.map(|(attribute, _)| attribute.clone());
        match chosen {
            None => insert(&mut self.catch_all, &rule),
            Some((attribute, values)) => {
                let buckets = self.buckets.entry(attribute.clone()).or_default();
                for value in values {
                    insert(buckets.entry(value.clone()).or_default(), &rule);
                }
            }
        }
        self.by_name.insert(rule.name.clone(), Filed { rule, under });
    }

    fn take(&mut self, name: &RuleName) {
        let Some(Filed { rule, under }) = self.by_name.remove(name) else {
            return;
        };
        let Some(attribute) = under else {
            remove(&mut self.catch_all, name);
            return;
        };
        let Some(buckets) = self.buckets.get_mut(&attribute) else {
            return;
        };
        for value in rule.when.get(&attribute).into_iter().flatten() {
            if let Some(bucket) = buckets.get_mut(value) {
                remove(bucket, name);
                if bucket.is_empty() {
                    buckets.remove(value);
                }
            }
        }
    }

    /// The largest bucket among those of `values`: what a request would pay for a rule filed there.
    fn crowd(&self, attribute: &AttributeName, values: &BTreeSet<String>) -> usize {
        let Some(buckets) = self.buckets.get(attribute) else {
            return 0;
        };
        let sizes = values.iter().filter_map(|value| buckets.get(value));
        sizes.map(|bucket| bucket.len()).max().unwrap_or(0)
    }
}

fn insert(bucket: &mut Bucket, rule: &Arc<Rule>) {
    let rules = Arc::make_mut(bucket);
    match rules.binary_search_by(|other| other.name.cmp(&rule.name)) {
        Ok(_present) => {}
        Err(at) => rules.insert(at, Arc::clone(rule)),
    }
}

fn remove(bucket: &mut Bucket, name: &RuleName) {
    Arc::make_mut(bucket).retain(|rule| rule.name != *name);
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
