//! Tests of explanations and of the dry run.

use std::collections::BTreeMap;

use super::*;
use crate::caller::{AttestationMethod, Principal, Scope};
use crate::policy::PolicyLimits;
use crate::rules::RuleDraft;

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn id(path: &str) -> SpiffeId {
    format!("spiffe://example.org{path}").parse().unwrap()
}

fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    Attributes::from_pairs(pairs.iter().map(|(name, value)| (name.parse().unwrap(), *value))).unwrap()
}

fn rule(name: &str, when: &[(&str, &str)], identity: &str) -> Arc<Rule> {
    let mut conditions: BTreeMap<AttributeName, BTreeSet<String>> = BTreeMap::new();
    for (attribute, value) in when {
        let values = conditions.entry(attribute.parse().unwrap()).or_default();
        values.insert((*value).to_owned());
    }
    let draft = RuleDraft {
        name: name.parse().unwrap(),
        when: conditions,
        identity: identity.to_owned(),
        ttl: None,
        dns_names: Vec::new(),
        federates_with: Vec::new(),
        comment: None,
    };
    Arc::new(Rule::new(draft).unwrap())
}

fn node() -> AttestedCaller {
    let principal = Principal::Node {
        cluster: "prod".parse().unwrap(),
        method: AttestationMethod::JoinToken,
        name: "vm-1".parse().unwrap(),
    };
    AttestedCaller::assertion(principal, Attributes::new(), Scope::ALL)
}

fn explained(rules: &RuleSet, pairs: &[(&str, &str)]) -> Explanation {
    let (domain, limits) = (domain(), PolicyLimits::default());
    let facts = Facts { trust_domain: &domain, rules, limits: &limits };
    let wish =
        Wish::Workload { attributes: attributes(pairs), spiffe_id: None, ttl: None, dns_names: Vec::new() };
    let explanation = explain(&node(), &wish, &facts, Timestamp::EPOCH);
    let decision = policy::decide(&node(), &wish, &facts, Timestamp::EPOCH);
    assert_eq!(
        explanation.decision,
        decision.map(|grant| GrantSummary::from(&grant)),
        "an explanation says what the decision says"
    );
    explanation
}

#[test]
fn an_explanation_names_what_matched_and_what_came_near() {
    let rules = RuleSet::new([
        rule("a-far", &[("namespace", "x"), ("pod", "y"), ("unix.uid", "1")], "/far"),
        rule("b-match", &[("namespace", "prod")], "/match"),
        rule("c-near", &[("namespace", "prod"), ("unix.uid", "1000")], "/near"),
        rule("d-alone", &[("unix.uid", "1000")], "/alone"),
    ]);
    let found = explained(&rules, &[("namespace", "prod"), ("unix.uid", "7")]);
    assert_eq!(found.decision.as_ref().unwrap().spiffe_id, id("/match"));
    assert_eq!(found.matched, ["b-match".parse().unwrap()]);
    let near: Vec<_> = found.near.iter().map(|miss| miss.rule.as_str()).collect();
    assert_eq!(near, ["c-near", "d-alone", "a-far"], "fewest misses, then most hits");
    let unmet = Unmet {
        attribute: AttributeName::UnixUid,
        wanted: vec!["1000".to_owned()],
        found: vec!["7".to_owned()],
    };
    assert_eq!(found.near[0].missing, [unmet]);
    assert_eq!(
        found.attributes.single(&AttributeName::Cluster),
        Some("prod"),
        "attested attributes are shown too"
    );
}

#[test]
fn at_most_ten_near_misses_are_shown() {
    let rules = (0..30).map(|n| rule(&format!("r{n:02}"), &[("pod", &n.to_string())], "/x"));
    let found = explained(&RuleSet::new(rules), &[("namespace", "prod")]);
    assert_eq!(found.near.len(), 10);
    assert_eq!(found.near[0].rule.as_str(), "r00");
    assert!(found.matched.is_empty());
    assert_eq!(found.decision.unwrap_err().code(), "no_rule");
}

#[test]
fn a_wish_outside_the_scope_is_explained_without_rules() {
    let rules = RuleSet::new([Arc::new(Rule::built_in())]);
    let found = explained(&rules, &[("cluster", "other")]);
    assert_eq!(found.decision.unwrap_err().code(), "out_of_scope");
    assert!(found.matched.is_empty() && found.near.is_empty());
}

#[test]
fn a_dry_run_shows_who_gains_who_loses_and_who_changes() {
    let old = RuleSet::new([
        rule("keep", &[("namespace", "keep")], "/keep"),
        rule("lose", &[("namespace", "lose")], "/lose"),
        rule("change", &[("namespace", "change")], "/old"),
    ]);
    let new = old
        .without(&"lose".parse().unwrap())
        .with(rule("change", &[("namespace", "change")], "/new"))
        .with(rule("gain", &[("namespace", "gain")], "/gain"))
        .with(rule("second", &[("namespace", "keep"), ("pod", "p")], "/second"));
    let known =
        ["keep", "lose", "change", "gain", "none", "none"].map(|name| attributes(&[("namespace", name)]));
    let twice = attributes(&[("namespace", "keep"), ("pod", "p")]);
    let diff = diff(&domain(), &old, &new, known.iter().chain([&twice]));
    assert_eq!(diff.unchanged, 2, "a workload that occurs twice counts once");
    let seen: Vec<_> = diff
        .changes
        .iter()
        .map(|change| {
            let namespace = change.attributes.single(&AttributeName::Namespace).unwrap();
            (namespace, change.kind())
        })
        .collect();
    let expected = [
        ("change", ChangeKind::Changes),
        ("gain", ChangeKind::Gains),
        ("keep", ChangeKind::Gains),
        ("lose", ChangeKind::Loses),
    ];
    assert_eq!(seen, expected);
    assert_eq!(diff.changes[3].before, BTreeSet::from([id("/lose")]));
}

#[test]
fn a_node_explains_itself_with_the_matching_by_which_it_asks() {
    let rules = RuleSet::new([
        rule("a", &[("unix.uid", "33"), ("cluster", "prod")], "/web"),
        rule("b", &[("unix.uid", "33"), ("systemd.unit", "nginx.service")], "/nginx"),
    ]);
    let caller = node();
    let known = attributes(&[("unix.uid", "33")]);
    let found = outlook(caller.principal(), &known, &rules, &domain());
    assert_eq!(found.identities, policy::identities(caller.principal(), &known, &rules, &domain()));
    assert_eq!(found.identities.unwrap()[0].spiffe_id, id("/web"));
    assert_eq!(found.matched, ["a".parse().unwrap()]);
    assert_eq!(found.near[0].rule.to_string(), "b");
    assert_eq!(found.near[0].missing[0].attribute, AttributeName::SystemdUnit);
    assert!(found.attributes.contains(&AttributeName::Node, "vm-1"), "with what is known of the node");
    let none = outlook(caller.principal(), &attributes(&[("unix.uid", "7")]), &rules, &domain());
    assert_eq!(none.identities.unwrap_err().code(), "no_rule");
    assert_eq!(none.near.len(), 2);
}
