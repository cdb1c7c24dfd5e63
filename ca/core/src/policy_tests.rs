//! Tests of the decision.

use proptest::prelude::*;

use super::*;
use crate::caller::NamespaceScope;
use crate::rules::RuleDraft;

const NOW: Timestamp = Timestamp::EPOCH;

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn id(path: &str) -> SpiffeId {
    format!("spiffe://example.org{path}").parse().unwrap()
}

fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    Attributes::from_pairs(pairs.iter().map(|(name, value)| (name.parse().unwrap(), *value))).unwrap()
}

fn draft(name: &str, when: &[(&str, &str)], identity: &str) -> RuleDraft {
    let mut draft = RuleDraft {
        name: name.parse().unwrap(),
        when: BTreeMap::new(),
        identity: identity.to_owned(),
        ttl: None,
        dns_names: Vec::new(),
        federates_with: Vec::new(),
        comment: None,
    };
    for (attribute, value) in when {
        let values = draft.when.entry(attribute.parse().unwrap()).or_default();
        values.insert((*value).to_owned());
    }
    draft
}

fn rules(drafts: Vec<RuleDraft>) -> RuleSet {
    RuleSet::new(drafts.into_iter().map(|draft| Arc::new(Rule::new(draft).unwrap())))
}

fn built_in() -> RuleSet {
    RuleSet::new([Arc::new(Rule::built_in())])
}

fn only(namespaces: &[&str]) -> Scope {
    Scope { namespaces: NamespaceScope::Only(namespaces.iter().map(|name| (*name).to_owned()).collect()) }
}

fn node(scope: Scope) -> AttestedCaller {
    let principal = Principal::Node {
        cluster: "prod".parse().unwrap(),
        method: AttestationMethod::JoinToken,
        name: "vm-1".parse().unwrap(),
    };
    AttestedCaller::assertion(principal, attributes(&[("platform", "vm")]), scope)
}

fn admin(role: Option<Role>) -> AttestedCaller {
    let principal = Principal::Admin { name: "alice".parse().unwrap() };
    let caller = AttestedCaller::assertion(principal, Attributes::new(), Scope::none());
    match role {
        Some(role) => caller.with_role(role),
        None => caller,
    }
}

fn local(role: Option<Role>) -> AttestedCaller {
    let principal = Principal::Local { uid: 0, user: None };
    let caller = AttestedCaller::assertion(principal, Attributes::new(), Scope::none());
    match role {
        Some(role) => caller.with_role(role),
        None => caller,
    }
}

fn token(facts: &[(&str, &str)]) -> AttestedCaller {
    let principal = Principal::Token { id: "ab12".parse().unwrap() };
    AttestedCaller::assertion(principal, attributes(facts), Scope::ALL)
}

fn server() -> AttestedCaller {
    let principal = Principal::Server { name: "r1".parse().unwrap() };
    AttestedCaller::assertion(principal, Attributes::new(), Scope::none())
}

fn workload(pairs: &[(&str, &str)]) -> Wish {
    Wish::Workload { attributes: attributes(pairs), spiffe_id: None, ttl: None, dns_names: Vec::new() }
}

const WEB: [(&str, &str); 2] = [("namespace", "prod"), ("service_account", "web")];

fn web(asked: Option<&str>, ttl: Option<Ttl>, dns_names: &[&str]) -> Wish {
    let dns_names = dns_names.iter().map(|name| DnsName::try_from((*name).to_owned()).unwrap());
    Wish::Workload {
        attributes: attributes(&WEB),
        spiffe_id: asked.map(|text| text.parse().unwrap()),
        ttl,
        dns_names: dns_names.collect(),
    }
}

fn ask(caller: &AttestedCaller, wish: &Wish, rules: &RuleSet) -> Result<Grant, Denial> {
    let (domain, limits) = (domain(), PolicyLimits::default());
    let facts = Facts { trust_domain: &domain, rules, limits: &limits };
    decide(caller, wish, &facts, NOW)
}

fn code(answer: &Result<Grant, Denial>) -> &'static str {
    answer.as_ref().map_or_else(Denial::code, |_grant| "granted")
}

#[test]
fn a_node_gets_the_identity_of_a_workload_it_vouches_for() {
    let grant = ask(&node(Scope::ALL), &workload(&WEB), &built_in()).unwrap();
    assert_eq!(grant.spiffe_id(), &id("/ns/prod/sa/web"));
    assert_eq!((grant.ttl(), grant.clamped()), (Ttl::hours(1), false));
    assert_eq!(grant.rule().unwrap().as_str(), "default-ns-sa");
    assert_eq!(grant.caller(), "node:prod/join_token/vm-1");
    assert_eq!(grant.kind(), GrantKind::Workload);
}

#[test]
fn every_caller_may_wish_for_what_the_table_says_and_nothing_else() {
    let place = [("cluster", "prod"), ("node", "vm-2")];
    let callers = [
        ("node", node(Scope::ALL)),
        ("token", token(&place)),
        ("token without names", token(&[])),
        ("security admin", admin(Some(Role::Security))),
        ("operator", admin(Some(Role::Operator))),
        ("viewer", admin(Some(Role::Viewer))),
        ("admin without role", admin(None)),
        ("local security", local(Some(Role::Security))),
        ("local without role", local(None)),
        ("server", server()),
    ];
    let wishes = [
        ("workload", workload(&WEB)),
        ("node", Wish::Node { ttl: None }),
        ("admin", Wish::Admin { name: "bob".parse().unwrap(), ttl: None }),
        ("itself", Wish::Server { name: "r1".parse().unwrap() }),
        ("another server", Wish::Server { name: "r2".parse().unwrap() }),
    ];
    let table = [
        ("node", "workload", "/ns/prod/sa/web"),
        ("node", "node", "/rhizome/node/prod/join_token/vm-1"),
        ("token", "node", "/rhizome/node/prod/join_token/vm-2"),
        ("security admin", "admin", "/rhizome/admin/bob"),
        ("local security", "admin", "/rhizome/admin/bob"),
        ("server", "itself", "/rhizome/server/r1"),
    ];
    for (who, caller) in &callers {
        for (what, wish) in &wishes {
            let answer = ask(caller, wish, &built_in());
            match table.iter().find(|(a, b, _)| (a, b) == (who, what)) {
                Some((_, _, path)) => assert_eq!(answer.unwrap().spiffe_id(), &id(path), "{who} {what}"),
                None => assert_eq!(code(&answer), "wrong_caller", "{who} {what}"),
            }
        }
    }
}

#[test]
fn a_node_may_vouch_only_for_namespaces_in_its_scope() {
    let caller = node(only(&["prod", "a.b"]));
    assert_eq!(code(&ask(&caller, &workload(&WEB), &built_in())), "granted");
    for namespace in ["dev", "Prod", "prod.", "pro", "prod2", "a-b", "aXb", "*", ".*"] {
        let wish = workload(&[("namespace", namespace), ("service_account", "web")]);
        assert_eq!(code(&ask(&caller, &wish, &built_in())), "out_of_scope", "{namespace}");
    }
    let both = workload(&[("namespace", "prod"), ("namespace", "dev"), ("service_account", "web")]);
    assert_eq!(code(&ask(&caller, &both, &built_in())), "out_of_scope");
}

#[test]
fn a_rule_on_other_attributes_does_not_carry_a_node_out_of_its_namespaces() {
    let by_user = rules(vec![draft("by-user", &[("unix.user", "pay")], "/ns/pay/sa/pay")]);
    let wish = workload(&[("unix.user", "pay")]);
    assert_eq!(code(&ask(&node(Scope::ALL), &wish, &by_user)), "granted");
    assert_eq!(code(&ask(&node(only(&["pay"])), &wish, &by_user)), "granted");
    let denial = ask(&node(only(&["prod"])), &wish, &by_user).unwrap_err();
    assert_eq!((denial.code(), denial.rule.unwrap().as_str()), ("out_of_scope", "by-user"));
}

#[test]
fn a_wish_that_states_what_only_attestation_knows_is_refused() {
    for attribute in ["platform", "cluster", "node", "method"] {
        for value in ["prod", "vm-1", "join_token", "vm"] {
            let mut pairs = WEB.to_vec();
            pairs.push((attribute, value));
            let answer = ask(&node(Scope::ALL), &workload(&pairs), &built_in());
            assert_eq!(code(&answer), "out_of_scope", "{attribute}={value}");
        }
    }
}

#[test]
fn attested_attributes_override_claimed_ones_and_reach_the_rules() {
    let rules = rules(vec![draft(
        "r",
        &[
            ("label.zone", "a"),
            ("cluster", "prod"),
            ("node", "vm-1"),
            ("method", "join_token"),
            ("platform", "vm"),
        ],
        "/zone/a",
    )]);
    let caller = AttestedCaller::assertion(
        node(Scope::ALL).principal().clone(),
        attributes(&[("platform", "vm"), ("label.zone", "b")]),
        Scope::ALL,
    );
    let wish = workload(&[("label.zone", "a")]);
    assert_eq!(code(&ask(&node(Scope::ALL), &wish, &rules)), "granted");
    assert_eq!(code(&ask(&caller, &wish, &rules)), "no_rule");
}

#[test]
fn one_wrong_fact_at_a_time_gives_no_identity() {
    let right = [
        ("namespace", "prod"),
        ("service_account", "web"),
        ("unix.uid", "1000"),
        ("unix.path", "/usr/bin/web"),
        ("label.app", "web"),
    ];
    let exact = rules(vec![draft("exact", &right, "/web")]);
    assert_eq!(code(&ask(&node(Scope::ALL), &workload(&right), &exact)), "granted");
    for wrong in 0..right.len() {
        for value in ["x", "*", ".*", "", "prod web"] {
            let mut pairs: Vec<_> = right.to_vec();
            if value.is_empty() {
                pairs.remove(wrong);
            } else {
                pairs[wrong].1 = value;
            }
            let answer = ask(&node(Scope::ALL), &workload(&pairs), &exact);
            assert_eq!(code(&answer), "no_rule", "{pairs:?}");
        }
    }
}

#[test]
fn when_rules_disagree_the_wish_must_name_one_of_their_identities() {
    let set = rules(vec![
        draft("a", &[("namespace", "prod")], "/a"),
        draft("b", &[("service_account", "web")], "/b"),
    ]);
    let caller = node(Scope::ALL);
    let denial = ask(&caller, &web(None, None, &[]), &set).unwrap_err();
    let candidates = vec![id("/a"), id("/b")];
    assert_eq!(denial.reason, DenialReason::Ambiguous { candidates });
    assert_eq!(
        denial.to_string(),
        "several identities are possible; ask for one of them: spiffe://example.org/a, spiffe://example.org/b"
    );
    let grant = ask(&caller, &web(Some("spiffe://example.org/b"), None, &[]), &set).unwrap();
    assert_eq!((grant.spiffe_id(), grant.rule().unwrap().as_str()), (&id("/b"), "b"));
    for other in ["/c", "/A", "/a/b", "", "/ns/prod/sa/web"] {
        let asked = format!("spiffe://example.org{other}");
        assert_eq!(code(&ask(&caller, &web(Some(&asked), None, &[]), &set)), "not_granted", "{asked}");
    }
    let foreign = web(Some("spiffe://other.org/a"), None, &[]);
    assert_eq!(code(&ask(&caller, &foreign, &set)), "not_granted");
    let reserved = web(Some("spiffe://example.org/rhizome/admin/alice"), None, &[]);
    assert_eq!(code(&ask(&caller, &reserved, &set)), "reserved");
}

#[test]
fn a_value_cannot_reach_a_reserved_path() {
    let set = rules(vec![draft("r", &[("label.first", "*"), ("pod", "*")], "/{label.first}/admin/{pod}")]);
    for (first, expected) in [
        ("rhizome", "reserved"),
        ("spire", "reserved"),
        ("rhizomes", "granted"),
        ("..", "template"),
        ("a/../rhizome", "template"),
        ("%72hizome", "template"),
    ] {
        let wish = workload(&[("label.first", first), ("pod", "alice")]);
        let answer = ask(&node(Scope::ALL), &wish, &set);
        assert_eq!(code(&answer), expected, "{first}");
    }
}

#[test]
fn a_rule_that_cannot_be_filled_does_not_spoil_another() {
    let set = rules(vec![
        draft("bad", &[("pod", "*")], "/pod/{pod}"),
        draft("good", &[("namespace", "prod")], "/good"),
    ]);
    let wish = workload(&[("namespace", "prod"), ("pod", "a/b")]);
    assert_eq!(ask(&node(Scope::ALL), &wish, &set).unwrap().spiffe_id(), &id("/good"));
    let denial = ask(&node(Scope::ALL), &workload(&[("pod", "a/b")]), &set).unwrap_err();
    assert_eq!((denial.code(), denial.rule.unwrap().as_str()), ("template", "bad"));
}

#[test]
fn a_lifetime_is_bounded_by_rule_and_limit_and_says_so() {
    let h = Ttl::hours;
    let table = [
        // asked, rule, granted, clamped
        (None, None, h(1), false),
        (Some(h(2)), None, h(2), false),
        (Some(h(24)), None, h(24), false),
        (Some(h(25)), None, h(24), true),
        (None, Some(h(3)), h(3), false),
        (Some(h(2)), Some(h(3)), h(2), false),
        (Some(h(4)), Some(h(3)), h(3), true),
        (None, Some(h(48)), h(24), true),
        (Some(h(30)), Some(h(48)), h(24), true),
    ];
    for (asked, rule, granted, clamped) in table {
        let mut draft = draft("r", &[("namespace", "prod")], "/ns/prod/sa/web");
        draft.ttl = rule;
        let set = rules(vec![draft]).with(Arc::new(Rule::built_in()));
        let grant = ask(&node(Scope::ALL), &web(None, asked, &[]), &set).unwrap();
        assert_eq!((grant.ttl(), grant.clamped()), (granted, clamped), "{asked:?} {rule:?}");
        assert_eq!(grant.rule().unwrap().as_str(), "r", "the narrower of the two rules is named");
    }
}

#[test]
fn rules_for_one_identity_add_up_and_the_shortest_lifetime_counts() {
    let with = |name: &str, ttl, dns: &str, domain: &str| {
        let mut draft = draft(
            name,
            &[("namespace", "*"), ("service_account", "*")],
            "/ns/{namespace}/sa/{service_account}",
        );
        draft.ttl = Some(ttl);
        draft.dns_names = vec![dns.to_owned()];
        draft.federates_with = vec![domain.parse().unwrap()];
        draft
    };
    let set = rules(vec![
        with("b", Ttl::hours(2), "{service_account}.{namespace}.svc", "z.org"),
        with("a", Ttl::hours(3), "{service_account}.example.org", "b.org"),
    ]);
    let grant = ask(&node(Scope::ALL), &web(None, None, &[]), &set).unwrap();
    assert_eq!(grant.ttl(), Ttl::hours(2));
    assert_eq!(grant.rule().unwrap().as_str(), "a", "of equals the first by name");
    let names: Vec<_> = grant.dns_names().iter().map(DnsName::as_str).collect();
    assert_eq!(names, ["web.example.org", "web.prod.svc"]);
    let domains: Vec<_> = grant.federates_with().iter().map(TrustDomain::as_str).collect();
    assert_eq!(domains, ["b.org", "z.org"]);
}

#[test]
fn dns_names_are_granted_one_by_one() {
    let mut draft =
        draft("r", &[("namespace", "*"), ("service_account", "*")], "/ns/{namespace}/sa/{service_account}");
    draft.dns_names = vec!["{service_account}.{namespace}.svc".to_owned(), "web.example.org".to_owned()];
    let set = rules(vec![draft]);
    let caller = node(Scope::ALL);
    let names = |wish: &Wish| -> Vec<String> {
        let grant = ask(&caller, wish, &set).unwrap();
        grant.dns_names().iter().map(ToString::to_string).collect()
    };
    assert_eq!(names(&web(None, None, &[])), ["web.prod.svc", "web.example.org"]);
    assert_eq!(names(&web(None, None, &["web.example.org", "web.example.org"])), ["web.example.org"]);
    for other in ["web.dev.svc", "example.org", "webXexample.org", "a.web.example.org"] {
        let Ok(_) = DnsName::try_from(other.to_owned()) else {
            continue;
        };
        let answer = ask(&caller, &web(None, None, &["web.prod.svc", other]), &set);
        assert_eq!(code(&answer), "dns_not_granted", "{other}");
    }
    let dotted = workload(&[("namespace", "prod"), ("service_account", "web.v2")]);
    assert_eq!(names(&dotted), ["web.example.org"], "a name that does not fit costs no identity");
}

#[test]
fn nodes_servers_and_administrators_have_their_own_limits() {
    let ttl = |caller: &AttestedCaller, wish: &Wish| {
        let grant = ask(caller, wish, &built_in()).unwrap();
        (grant.ttl(), grant.clamped())
    };
    let month = Some(Ttl::hours(30 * 24));
    let name: AdminName = "bob".parse().unwrap();
    let admin_wish = |ttl| Wish::Admin { name: name.clone(), ttl };
    assert_eq!(ttl(&node(Scope::ALL), &Wish::Node { ttl: None }), (Ttl::hours(24), false));
    assert_eq!(ttl(&node(Scope::ALL), &Wish::Node { ttl: month }), (Ttl::hours(168), true));
    assert_eq!(ttl(&admin(Some(Role::Security)), &admin_wish(None)), (Ttl::hours(12), false));
    assert_eq!(ttl(&admin(Some(Role::Security)), &admin_wish(month)), (Ttl::hours(24), true));
    let itself = Wish::Server { name: "r1".parse().unwrap() };
    assert_eq!(ttl(&server(), &itself), (Ttl::hours(24), false));
}

fn any_value() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["prod", "dev", "a.b", "rhizome", "spire", "*", "..", "a/b", "web"])
}

fn any_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "namespace",
        "service_account",
        "pod",
        "unix.user",
        "label.app",
        "cluster",
        "node",
    ])
}

fn any_rule(name: usize) -> impl Strategy<Value = Option<RuleDraft>> {
    let conditions = prop::collection::vec((any_name(), any_value()), 1..4);
    let identity = prop::sample::select(vec![
        "/ns/{namespace}/sa/{service_account}",
        "/{namespace}/{service_account}",
        "/{label.app}",
        "/ns/{pod}/x",
        "/ns/prod/sa/{unix.user}",
        "/fixed",
    ]);
    (conditions, identity, prop::option::of(1i64..200_000)).prop_map(move |(conditions, identity, ttl)| {
        let mut draft = draft(&format!("r{name}"), &conditions, identity);
        draft.ttl = ttl.map(|seconds| Ttl::from_seconds(seconds).unwrap());
        draft.dns_names = vec!["{service_account}.svc".to_owned()];
        draft.when.entry(AttributeName::ServiceAccount).or_default().insert("*".to_owned());
        Rule::new(draft).ok().map(RuleDraft::from)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_grant_is_never_wider_than_rules_limits_and_scope(
        drafts in (any_rule(0), any_rule(1), any_rule(2), any_rule(3)),
        pairs in prop::collection::vec((any_name(), any_value()), 1..6),
        scope in prop::option::of(prop::collection::btree_set(any_value(), 0..3)),
        asked in prop::option::of(prop::sample::select(vec!["/fixed", "/ns/prod/sa/web", "/rhizome", "/prod/web"])),
        ttl in prop::option::of(1i64..200_000),
    ) {
        let set = rules([drafts.0, drafts.1, drafts.2, drafts.3].into_iter().flatten().collect());
        let scope = scope.map_or(Scope::ALL, |names| only(&names.into_iter().collect::<Vec<_>>()));
        let caller = node(scope.clone());
        let asked = asked.map(id);
        let wish = Wish::Workload {
            attributes: attributes(&pairs),
            spiffe_id: asked.clone(),
            ttl: ttl.map(|seconds| Ttl::from_seconds(seconds).unwrap()),
            dns_names: Vec::new(),
        };
        let answer = ask(&caller, &wish, &set);
        prop_assert_eq!(&answer, &ask(&caller, &wish, &set), "the same arguments give the same answer");
        let stated = |name: AttributeName| pairs.iter().any(|(other, _)| *other == name.as_str());
        if stated(AttributeName::Cluster) || stated(AttributeName::Node) {
            prop_assert!(answer.is_err());
        }
        let Ok(grant) = answer else { return Ok(()) };
        prop_assert!(grant.spiffe_id().is_member_of(&domain()));
        prop_assert!(!grant.spiffe_id().path().starts_with("/rhizome"));
        prop_assert!(grant.spiffe_id().segments().next() != Some("spire"));
        prop_assert!(grant.ttl() <= Ttl::hours(24));
        if let Some(seconds) = ttl {
            prop_assert!(grant.ttl().seconds() <= seconds);
        }
        if let Some(asked) = &asked {
            prop_assert_eq!(grant.spiffe_id(), asked);
        }
        let rule = set.rule(grant.rule().unwrap()).unwrap();
        prop_assert!(rule.ttl().is_none_or(|bound| grant.ttl() <= bound));
        let known = known_attributes(&caller, &attributes(&pairs)).unwrap();
        prop_assert!(rule.matches(&known));
        prop_assert_eq!(&identity_of(rule, &domain(), &known).unwrap(), grant.spiffe_id());
        for (name, value) in &pairs {
            prop_assert!(*name != "namespace" || scope.allows_namespace(value));
        }
        let mut segments = grant.spiffe_id().segments();
        if segments.next() == Some("ns") {
            prop_assert!(segments.next().is_some_and(|namespace| scope.allows_namespace(namespace)));
        }
    }
}

#[test]
fn a_node_knows_beforehand_what_it_would_be_granted_the_narrowest_rule_first() {
    let mut narrow = draft("narrow", &[("unix.uid", "1000"), ("namespace", "shop")], "/shop/{unix.uid}");
    narrow.dns_names = vec!["{unix.uid}.shop.example".to_owned()];
    narrow.ttl = Some(Ttl::hours(2));
    let elsewhere = draft("elsewhere", &[("cluster", "other")], "/other");
    let broken = draft("broken", &[("unix.path", "*")], "/bin/{unix.path}");
    let rules =
        rules(vec![narrow, draft("wide", &[("namespace", "*")], "/ns/{namespace}"), elsewhere, broken]);
    let caller = node(Scope::ALL);
    let workload = attributes(&[("namespace", "shop"), ("unix.uid", "1000"), ("unix.path", "/bin/a b")]);

    let found = identities(caller.principal(), &workload, &rules, &domain()).unwrap();
    let names: Vec<_> = found.iter().map(|it| (it.spiffe_id.path(), it.rule.as_str(), it.ttl)).collect();
    assert_eq!(names, [("/shop/1000", "narrow", Some(Ttl::hours(2))), ("/ns/shop", "wide", None)]);
    assert_eq!(found[0].dns_names, ["1000.shop.example".to_owned().try_into().unwrap()]);

    let limits = PolicyLimits::default();
    let facts = Facts { trust_domain: &domain(), rules: &rules, limits: &limits };
    for prospect in found {
        let wish = Wish::Workload {
            attributes: workload.clone(),
            spiffe_id: Some(prospect.spiffe_id.clone()),
            ttl: None,
            dns_names: Vec::new(),
        };
        let grant = decide(&caller, &wish, &facts, NOW).unwrap();
        assert_eq!((grant.spiffe_id(), grant.rule()), (&prospect.spiffe_id, Some(&prospect.rule)));
        assert_eq!(grant.dns_names(), prospect.dns_names);
    }
    let refused = |node, facts: &[(&str, &str)]| {
        identities(node, &attributes(facts), &rules, &domain()).unwrap_err().reason
    };
    assert_eq!(refused(caller.principal(), &[("unix.uid", "1000")]), DenialReason::NoRule);
    let stated = refused(caller.principal(), &[("cluster", "other")]);
    assert!(matches!(stated, DenialReason::OutOfScope { .. }), "{stated:?}");
    let person = admin(None);
    assert_eq!(refused(person.principal(), &[("namespace", "shop")]), DenialReason::WrongCaller);
}

fn token_wish(asked: Option<&str>, ttl: Option<i64>, pairs: &[(&str, &str)]) -> Wish {
    Wish::Token {
        attributes: attributes(pairs),
        spiffe_id: asked.map(id),
        ttl: ttl.map(|seconds| Ttl::from_seconds(seconds).unwrap()),
    }
}

#[test]
fn a_token_is_granted_where_a_certificate_is_and_lives_shorter() {
    let (domain, limits) = (domain(), PolicyLimits::default());
    let facts = |rules| Facts { trust_domain: &domain, rules, limits: &limits };
    let shop = [("namespace", "shop"), ("service_account", "web")];
    let rules = built_in();
    let decide = |caller: &AttestedCaller, wish: &Wish| decide(caller, wish, &facts(&rules), NOW);
    let grant = decide(&node(Scope::ALL), &token_wish(None, None, &shop)).unwrap();
    assert_eq!((grant.kind(), grant.spiffe_id()), (GrantKind::Token, &id("/ns/shop/sa/web")));
    assert_eq!((grant.ttl(), grant.clamped(), grant.dns_names().len()), (Ttl::minutes(5), false, 0));
    for (asked, seconds, clamped) in [(1, 1, false), (3_600, 3_600, false), (3_601, 3_600, true)] {
        let grant = decide(&node(Scope::ALL), &token_wish(None, Some(asked), &shop)).unwrap();
        assert_eq!((grant.ttl().seconds(), grant.clamped()), (seconds, clamped), "{asked}");
    }
    let outside = decide(&node(only(&["pay"])), &token_wish(None, None, &shop)).unwrap_err();
    assert_eq!(outside.code(), "out_of_scope");
    let other = decide(&node(Scope::ALL), &token_wish(Some("/ns/pay/sa/web"), None, &shop)).unwrap_err();
    assert_eq!(other.code(), "not_granted");
    let none = decide(&node(Scope::ALL), &token_wish(None, None, &[("namespace", "shop")])).unwrap_err();
    assert_eq!(none.code(), "no_rule");
    let admin = AttestedCaller::assertion(
        Principal::Admin { name: "alice".parse().unwrap() },
        Attributes::new(),
        Scope::none(),
    );
    let refused = decide(&admin.with_role(Role::Security), &token_wish(None, None, &shop)).unwrap_err();
    assert_eq!(refused.code(), "wrong_caller", "no administrator speaks for a workload");
}

#[test]
fn the_lifetime_of_a_rule_bounds_tokens_and_never_lengthens_them() {
    let (domain, limits) = (domain(), PolicyLimits::default());
    let shop = [("namespace", "shop")];
    for (rule_seconds, asked, expected, clamped) in [
        (120, None, 120, false),
        (120, Some(300), 120, true),
        (7_200, None, 300, false),
        (7_200, Some(7_200), 3_600, true),
    ] {
        let mut rule = draft("shop", &[("namespace", "shop")], "/shop");
        rule.ttl = Some(Ttl::from_seconds(rule_seconds).unwrap());
        let rules = rules(vec![rule]);
        let facts = Facts { trust_domain: &domain, rules: &rules, limits: &limits };
        let grant = decide(&node(Scope::ALL), &token_wish(None, asked, &shop), &facts, NOW).unwrap();
        let found = (grant.ttl().seconds(), grant.clamped());
        assert_eq!(found, (expected, clamped), "rule {rule_seconds}, asked {asked:?}");
    }
}
