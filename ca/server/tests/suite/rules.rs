//! Rules as administrators change them.

use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::ca::v1::{Condition, GrantRule};
use tonic::Code;

use crate::support::{TestServer, refusal, sign};

fn condition(attribute: &str, values: &[&str]) -> Condition {
    Condition { attribute: attribute.into(), values: values.iter().map(ToString::to_string).collect() }
}

fn rule(name: &str, namespace: &str, identity: &str) -> GrantRule {
    GrantRule {
        name: name.into(),
        conditions: vec![condition("namespace", &[namespace]), condition("service_account", &["*"])],
        identity: identity.into(),
        ..GrantRule::default()
    }
}

fn put(rule: GrantRule, dry_run: bool, expected_version: Option<u64>) -> wire::PutRuleRequest {
    wire::PutRuleRequest { rule: Some(rule), dry_run, expected_version }
}

fn delete(name: &str, dry_run: bool, expected_version: Option<u64>) -> wire::DeleteRuleRequest {
    wire::DeleteRuleRequest { name: name.into(), dry_run, expected_version }
}

#[tokio::test]
async fn a_new_server_begins_with_one_built_in_rule() {
    let server = TestServer::start().await;
    let mut client = RuleServiceClient::new(server.local().await);
    let rules = client.list_rules(wire::ListRulesRequest::default()).await.unwrap().into_inner().rules;
    assert_eq!(rules.len(), 1);
    let built_in = &rules[0];
    assert_eq!(built_in.rule.as_ref().unwrap().identity, "/ns/{namespace}/sa/{service_account}");
    assert!(built_in.built_in && built_in.changed_at.is_none() && built_in.changed_by.is_empty());
    let node = server.join("vm-1").await;
    let issued = sign(&node.channel, "shop", "web").await.unwrap();
    assert_eq!(
        (issued.rule.as_str(), issued.spiffe_id.as_str()),
        ("default-ns-sa", "spiffe://example.test/ns/shop/sa/web")
    );
    server.stop().await;
}

#[tokio::test]
async fn a_dry_run_says_who_gains_loses_and_changes_and_changes_nothing() {
    let server = TestServer::start().await;
    let mut client = RuleServiceClient::new(server.local().await);
    let node = server.join("vm-1").await;
    sign(&node.channel, "shop", "web").await.unwrap();
    sign(&node.channel, "shop", "web").await.unwrap();
    sign(&node.channel, "pay", "ledger").await.unwrap();
    let before = server.everything_stored().await;

    let answer = client.delete_rule(delete("default-ns-sa", true, None)).await.unwrap().into_inner();
    let diff = answer.diff.unwrap();
    assert!(!answer.applied);
    assert_eq!((diff.examined, diff.losses.len(), diff.gains.len(), diff.changes.len()), (2, 2, 0, 0));
    let lost: Vec<_> = diff.losses.iter().map(|it| (it.before.as_str(), it.after.as_str())).collect();
    let expected =
        [("spiffe://example.test/ns/pay/sa/ledger", ""), ("spiffe://example.test/ns/shop/sa/web", "")];
    assert_eq!(lost, expected);
    let seen: Vec<_> =
        diff.losses[1].attributes.iter().map(|it| (it.name.as_str(), it.value.as_str())).collect();
    assert!(seen.contains(&("node", "vm-1")) && seen.contains(&("namespace", "shop")), "{seen:?}");

    let replaced = rule("default-ns-sa", "shop", "/shop/{service_account}");
    let answer = client.put_rule(put(replaced, true, None)).await.unwrap().into_inner();
    let diff = answer.diff.unwrap();
    assert_eq!((diff.losses.len(), diff.changes.len(), answer.applied), (1, 1, false));
    assert_eq!(diff.changes[0].after, "spiffe://example.test/shop/web");
    let would_be = answer.rule.unwrap();
    assert!(would_be.changed_by.starts_with("local:uid=") && !would_be.built_in);
    assert_eq!(server.everything_stored().await, before);
}

#[tokio::test]
async fn a_rule_applies_from_the_answer_on_and_the_ledger_says_who_changed_it_to_what() {
    let server = TestServer::start().await;
    let (_alice, channel) = server.admin("alice", wire::Role::Operator).await;
    let mut client = RuleServiceClient::new(channel);
    let node = server.join("vm-1").await;
    client.delete_rule(delete("default-ns-sa", false, None)).await.unwrap();
    assert_eq!(refusal(sign(&node.channel, "shop", "web").await).0, Code::PermissionDenied);
    let shop = rule("shop", "shop", "/shop/{service_account}");
    let answer = client.put_rule(put(shop.clone(), false, Some(0))).await.unwrap().into_inner();
    assert!(answer.applied);
    let stored = answer.rule.unwrap();
    assert_eq!((stored.changed_by.as_str(), stored.rule.as_ref()), ("admin:alice", Some(&shop)));
    assert_eq!(stored.changed_at.unwrap().seconds, server.now().unix());
    assert_eq!(sign(&node.channel, "shop", "web").await.unwrap().spiffe_id, "spiffe://example.test/shop/web");
    let shown = client.get_rule(wire::GetRuleRequest { name: "shop".into() }).await.unwrap().into_inner();
    assert_eq!(shown.rule, Some(stored));
    server.recorded(&["rule.put", "admin:alice", "/shop/{service_account}"]).await;
    server.recorded(&["rule.delete", "admin:alice", "default-ns-sa"]).await;
}

#[tokio::test]
async fn a_change_of_another_version_than_the_one_seen_is_refused() {
    let server = TestServer::start().await;
    let mut client = RuleServiceClient::new(server.local().await);
    let first = client.put_rule(put(rule("shop", "shop", "/a"), false, Some(0))).await.unwrap().into_inner();
    let seen = first.rule.unwrap().version;
    let other = rule("shop", "shop", "/b");
    for (request, what) in [
        (put(other.clone(), false, Some(0)), "it exists"),
        (put(other.clone(), false, Some(seen + 1)), "a version that is not there"),
        (put(other.clone(), true, Some(0)), "a dry run too"),
        (put(rule("new", "shop", "/b"), false, Some(seen)), "it does not exist"),
    ] {
        let (code, message) = refusal(client.put_rule(request).await);
        assert_eq!(code, Code::Aborted, "{what}");
        assert!(message.contains("read it again"), "{message}");
    }
    client.put_rule(put(other.clone(), false, Some(seen))).await.unwrap();
    let again = client.put_rule(put(other, false, Some(seen))).await.unwrap().into_inner();
    assert!(again.applied, "asking again after a lost answer gets the answer");
    let puts = server
        .ledger()
        .await
        .iter()
        .filter(|line| line.contains("rule.put") && line.contains("\"shop\""))
        .count();
    assert_eq!(puts, 2, "and changes nothing");
    assert_eq!(refusal(client.delete_rule(delete("shop", false, Some(seen))).await).0, Code::Aborted);
    client.delete_rule(delete("shop", false, again.rule.map(|it| it.version))).await.unwrap();
    let (code, message) = refusal(client.delete_rule(delete("shop", false, None)).await);
    assert_eq!((code, message.as_str()), (Code::NotFound, "there is no rule `shop`"));
}

#[tokio::test]
async fn of_two_who_change_a_rule_at_once_one_is_told_to_read_again() {
    let server = TestServer::start().await;
    let client = RuleServiceClient::new(server.local().await);
    let first =
        client.clone().put_rule(put(rule("shop", "shop", "/a"), false, None)).await.unwrap().into_inner();
    let seen = first.rule.map(|it| it.version);
    let racers = (0..8).map(|n| {
        let mut client = client.clone();
        async move { client.put_rule(put(rule("shop", "shop", &format!("/{n}")), false, seen)).await }
    });
    let outcomes = futures::future::join_all(racers).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.into_iter().filter_map(Result::err).all(|status| status.code() == Code::Aborted));
}

#[tokio::test]
async fn rules_that_mean_nothing_or_too_much_are_refused_with_the_reason() {
    let server = TestServer::start().await;
    let mut client = RuleServiceClient::new(server.local().await);
    let good = || rule("shop", "shop", "/a");
    let many: Vec<String> = (0..64).map(|n| format!("{n:0>256}")).collect();
    let long = |name: &str| Condition { attribute: name.into(), values: many.clone() };
    let refused = [
        (GrantRule { name: "a/b".into(), ..good() }, "name"),
        (GrantRule { conditions: vec![], ..good() }, "no condition"),
        (GrantRule { conditions: vec![condition("color", &["red"])], ..good() }, "conditions"),
        (
            GrantRule { conditions: vec![condition("pod", &["a"]), condition("pod", &["b"])], ..good() },
            "twice",
        ),
        (GrantRule { identity: "/rhizome/admin/mallory".into(), ..good() }, "rhizome"),
        (GrantRule { identity: "/{pod}".into(), ..good() }, "pod"),
        (GrantRule { ttl_seconds: -5, ..good() }, "ttl_seconds"),
        (GrantRule { federates_with: vec!["A B".into()], ..good() }, "federates_with"),
        (GrantRule { conditions: vec![long("pod"), long("node"), long("cluster")], ..good() }, "32768"),
    ];
    for (rule, part) in refused {
        let (code, message) = refusal(client.put_rule(put(rule, false, None)).await);
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.contains(part), "{message} should name {part}");
    }
    let missing = wire::PutRuleRequest { rule: None, ..wire::PutRuleRequest::default() };
    assert_eq!(refusal(client.put_rule(missing).await).0, Code::InvalidArgument);
}

#[tokio::test]
async fn rules_are_listed_by_name_page_by_page() {
    let server = TestServer::start().await;
    let mut client = RuleServiceClient::new(server.local().await);
    for name in ["b", "a", "z"] {
        client.put_rule(put(rule(name, "shop", "/a"), false, None)).await.unwrap();
    }
    let (mut names, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = wire::ListRulesRequest { page_size: 2, page_token };
        let page = client.list_rules(request).await.unwrap().into_inner();
        names.extend(page.rules.into_iter().map(|it| it.rule.unwrap().name));
        (pages, page_token) = (pages + 1, page.next_page_token);
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((names, pages), (["a", "b", "default-ns-sa", "z"].map(String::from).to_vec(), 2));
    let bad = wire::ListRulesRequest { page_size: 0, page_token: "a b".into() };
    assert_eq!(refusal(client.list_rules(bad).await).0, Code::InvalidArgument);
}
