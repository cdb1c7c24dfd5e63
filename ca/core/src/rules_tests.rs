//! Tests of rules and their index.

use proptest::prelude::*;

use super::*;

fn draft(name: &str, when: &[(&str, &[&str])], identity: &str) -> RuleDraft {
    let when = when.iter().map(|(attribute, values)| {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        (attribute.parse().unwrap(), values)
    });
    RuleDraft {
        name: name.parse().unwrap(),
        when: when.collect(),
        identity: identity.to_owned(),
        ttl: None,
        dns_names: Vec::new(),
        federates_with: Vec::new(),
        comment: None,
    }
}

fn rule(name: &str, when: &[(&str, &[&str])]) -> Arc<Rule> {
    Arc::new(Rule::new(draft(name, when, "/x")).unwrap())
}

fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    Attributes::from_pairs(pairs.iter().map(|(name, value)| (name.parse().unwrap(), *value))).unwrap()
}

#[test]
fn the_built_in_rule_is_valid_and_gives_the_usual_identity() {
    let rule = Rule::built_in();
    assert_eq!(rule.name().as_str(), "default-ns-sa");
    assert_eq!(rule.identity().to_string(), "/ns/{namespace}/sa/{service_account}");
    assert!(rule.matches(&attributes(&[("namespace", "a"), ("service_account", "b")])));
    assert!(!rule.matches(&attributes(&[("namespace", "a")])));
}

#[test]
fn every_condition_must_hold_with_one_of_its_values() {
    let rule = rule("r", &[("namespace", &["a", "b"]), ("unix.gid", &["7"]), ("pod", &["*"])]);
    let right = [("namespace", "b"), ("unix.gid", "7"), ("unix.gid", "8"), ("pod", "p")];
    assert!(rule.matches(&attributes(&right)));
    for wrong in 0..right.len() {
        let mut facts = right.to_vec();
        facts[wrong].1 = "wrong";
        let only_pod_is_free = right[wrong].0 == "pod" || right[wrong].1 == "8";
        assert_eq!(rule.matches(&attributes(&facts)), only_pod_is_free, "{facts:?}");
        facts.remove(wrong);
        assert_eq!(rule.matches(&attributes(&facts)), right[wrong].1 == "8", "{facts:?}");
    }
}

#[test]
fn values_with_dots_stars_and_brackets_are_plain_text() {
    let cases = [
        ("a.b", "aXb"),
        ("a*", "aaa"),
        ("a*", "a"),
        ("**", "x"),
        ("[ab]", "a"),
        (".*", "x"),
        ("^a$", "a"),
        ("a|b", "a"),
        ("a?", "a"),
        ("a", "A"),
        ("a", "a "),
        ("a", "ab"),
    ];
    for (written, other) in cases {
        let rule = rule("r", &[("pod", &[written])]);
        assert!(rule.matches(&attributes(&[("pod", written)])), "{written}");
        assert!(!rule.matches(&attributes(&[("pod", other)])), "{written} is not {other}");
        let set = RuleSet::new([rule]);
        assert!(set.matching(&attributes(&[("pod", other)])).is_empty());
    }
}

#[test]
fn a_draft_with_one_fault_is_refused() {
    let good = || draft("r", &[("namespace", &["a"])], "/ns/{namespace}");
    assert!(Rule::new(good()).is_ok());
    type Fault = fn(&mut RuleDraft);
    let faults: [(&str, Fault); 12] = [
        ("no condition", |draft| draft.when.clear()),
        ("no value", |draft| {
            draft.when.insert(AttributeName::Pod, BTreeSet::new());
        }),
        ("an empty value", |draft| {
            draft.when.insert(AttributeName::Pod, BTreeSet::from([String::new()]));
        }),
        ("a value no attribute can have", |draft| {
            draft.when.insert(AttributeName::Pod, BTreeSet::from(["\n".to_owned()]));
        }),
        ("too many values", |draft| {
            let values = (0..=RULE_VALUES).map(|n| n.to_string()).collect();
            draft.when.insert(AttributeName::Pod, values);
        }),
        ("too many conditions", |draft| {
            for n in 0..RULE_CONDITIONS {
                let name = AttributeName::label(&n.to_string()).unwrap();
                draft.when.insert(name, BTreeSet::from(["x".to_owned()]));
            }
        }),
        ("a malformed template", |draft| draft.identity = "ns".to_owned()),
        ("a reserved path", |draft| draft.identity = "/rhizome/admin/x".to_owned()),
        ("a placeholder without condition", |draft| {
            draft.identity = "/ns/{pod}".to_owned();
        }),
        ("a DNS placeholder without condition", |draft| {
            draft.dns_names = vec!["{pod}.svc".to_owned()];
        }),
        ("too many DNS names", |draft| {
            draft.dns_names = vec!["a.svc".to_owned(); RULE_DNS_NAMES + 1];
        }),
        ("a long comment", |draft| {
            draft.comment = Some("x".repeat(RULE_COMMENT_BYTES + 1));
        }),
    ];
    for (what, spoil) in faults {
        let mut draft = good();
        spoil(&mut draft);
        assert!(Rule::new(draft).is_err(), "{what}");
    }
}

#[test]
fn a_stored_rule_reads_back_and_passes_through_the_same_door() {
    let mut full = draft("r", &[("namespace", &["a", "b"])], "/ns/{namespace}");
    full.ttl = Some(Ttl::hours(2));
    full.dns_names = vec!["{namespace}.svc".to_owned()];
    full.federates_with = vec!["other.org".parse().unwrap()];
    full.comment = Some("why".to_owned());
    let rule = Rule::new(full).unwrap();
    let json = serde_json::to_string(&rule).unwrap();
    assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
    let newer = json.replacen('{', r#"{"from_schema_n_plus_1":{},"#, 1);
    assert_eq!(serde_json::from_str::<Rule>(&newer).unwrap(), rule);
    assert!(serde_json::from_str::<Rule>(&json.replace("/ns/", "/spire/")).is_err());
    assert!(
        serde_json::from_str::<Rule>(&json.replace(r#"{"namespace":"#, r#"{"narrower_of_n_plus_1":"#))
            .is_err(),
        "an unknown condition is refused, not ignored"
    );
}

fn distinct(count: usize) -> RuleSet {
    // The shape that grows in practice: many namespaces, each with many accounts of which `default` is everywhere.
    RuleSet::new((0..count).map(|n| {
        let (namespace, account) = (format!("ns-{}", n / 10), format!("sa-{n}"));
        let name = format!("rule-{n}");
        match n % 3 {
            0 => rule(&name, &[("namespace", &[&namespace]), ("service_account", &["default"])]),
            1 => rule(
                &name,
                &[("service_account", &[&account]), ("namespace", &[&namespace]), ("cluster", &["prod"])],
            ),
            _ => rule(
                &name,
                &[("label.app", &[&account, &namespace]), ("node", &["*"]), ("cluster", &["prod"])],
            ),
        }
    }))
}

#[test]
fn the_number_of_candidates_stays_the_same_from_1k_to_100k_rules() {
    let asked = attributes(&[
        ("cluster", "prod"),
        ("node", "vm-1"),
        ("namespace", "ns-42"),
        ("service_account", "default"),
        ("label.app", "sa-422"),
    ]);
    let examined = |count| distinct(count).candidates(&asked).count();
    let (small, large) = (examined(1_000), examined(100_000));
    assert!(small <= 12, "{small}");
    assert_eq!(small, large);
}

#[test]
fn rules_of_wildcards_alone_are_always_looked_at() {
    let set = distinct(1_000).with(Arc::new(Rule::built_in()));
    let asked = attributes(&[("namespace", "elsewhere"), ("service_account", "web")]);
    let names: Vec<_> = set.matching(&asked).iter().map(|rule| rule.name().to_string()).collect();
    assert_eq!(names, ["default-ns-sa"]);
}

#[test]
fn replacing_and_removing_a_rule_leave_the_old_set_alone() {
    let old = RuleSet::new([rule("a", &[("pod", &["x", "y"])]), rule("b", &[("pod", &["x"])])]);
    let replaced = old.with(rule("a", &[("node", &["n"])]));
    let removed = old.without(&"a".parse().unwrap());
    let pod = attributes(&[("pod", "x")]);
    let names = |set: &RuleSet| -> Vec<String> {
        let rules = set.matching(&pod);
        rules.iter().map(|rule| rule.name().to_string()).collect()
    };
    assert_eq!(names(&old), ["a", "b"]);
    assert_eq!(names(&replaced), ["b"]);
    assert_eq!(names(&removed), ["b"]);
    assert_eq!((old.len(), replaced.len(), removed.len()), (2, 2, 1));
    let empty = removed.without(&"b".parse().unwrap());
    assert!(empty.is_empty() && empty.candidates(&pod).next().is_none());
    assert!(empty.without(&"b".parse().unwrap()).is_empty());
}

fn small_rule() -> impl Strategy<Value = RuleDraft> {
    let name = prop::sample::select(vec!["a", "b", "c", "d", "e", "f"]);
    let attribute = prop::sample::select(vec!["namespace", "pod", "node", "unix.gid"]);
    let value = prop::sample::select(vec!["1", "2", "3", "*"]).prop_map(str::to_owned);
    let condition = (attribute, prop::collection::btree_set(value, 1..3));
    (name, prop::collection::vec(condition, 1..4)).prop_map(|(name, conditions)| {
        let mut draft = draft(name, &[], "/x");
        draft.when =
            conditions.into_iter().map(|(attribute, values)| (attribute.parse().unwrap(), values)).collect();
        draft
    })
}

proptest! {
    #[test]
    fn the_index_finds_exactly_what_a_search_through_all_rules_finds(
        drafts in prop::collection::vec((small_rule(), any::<bool>()), 0..24),
        pairs in prop::collection::vec(
            (prop::sample::select(vec!["namespace", "pod", "node", "unix.gid"]), prop::sample::select(vec!["1", "2", "3"])),
            0..6,
        ),
    ) {
        let mut set = RuleSet::default();
        let mut plain = BTreeMap::new();
        for (draft, keep) in drafts {
            let rule = Arc::new(Rule::new(draft).unwrap());
            if keep {
                plain.insert(rule.name().clone(), Arc::clone(&rule));
                set = set.with(rule);
            } else {
                plain.remove(rule.name());
                set = set.without(rule.name());
            }
        }
        let asked = attributes(&pairs);
        let found: Vec<_> = set.matching(&asked).into_iter().cloned().collect();
        let searched: Vec<_> = plain.values().filter(|rule| rule.matches(&asked)).cloned().collect();
        prop_assert_eq!(found, searched);
        prop_assert_eq!(set.iter().cloned().collect::<Vec<_>>(), plain.into_values().collect::<Vec<_>>());
    }
}
