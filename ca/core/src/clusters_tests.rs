//! What a cluster may have, and what its ledger is judged by.

use std::collections::BTreeSet;

use rhizome_id::{ReplicaNumber, SerialCounter};

use super::*;
use crate::ledger::{Entry, Event, FaultKind, Head, Issuance, JwtIssuance, Profile, Record};
use crate::rotation::Choices;
use crate::rotation::evidence::Subscriber;

const DAY: i64 = 86_400;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(1_000_000 + seconds)
}

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn ttl(seconds: i64) -> Ttl {
    Ttl::from_seconds(seconds).unwrap()
}

fn scope() -> ClusterScope {
    ClusterScope {
        namespaces: NamespaceScope::Only(BTreeSet::from(["shop".to_owned(), "a.b".to_owned()])),
        identities: vec!["spiffe://example.org/edge/*".parse().unwrap()],
        max_ttl: ttl(3_600),
    }
}

fn granted(name: &str, key: u8, not_after: i64) -> Granted {
    Granted {
        id: name.parse().unwrap(),
        root: "root-1".parse().unwrap(),
        serial: serial(900),
        public_key: Digest::from_bytes([key; 32]),
        key_id: "ab".repeat(20),
        granted_at: at(0),
        not_after: at(not_after),
    }
}

fn cluster() -> Cluster {
    Cluster {
        name: "east".parse().unwrap(),
        node: "rhizome-1".parse().unwrap(),
        scope: scope(),
        intermediate_ttl: ttl(DAY),
        state: ClusterState::Active,
        created_by: "admin:alice".to_owned(),
        created_at: at(0),
        granted: vec![granted("issuer-1", 1, DAY)],
    }
}

fn ended() -> Ended {
    Ended { at: at(1), by: "admin:alice".to_owned(), reason: "moved".to_owned() }
}

fn serial(counter: u64) -> Serial {
    Serial::compose(ReplicaNumber::new(0).unwrap(), SerialCounter::new(counter).unwrap(), [0; 11])
}

fn issued(counter: u64, profile: Profile, id: &str, seconds: i64) -> Event {
    Event::Issued(Issuance {
        profile,
        spiffe_id: id.parse().unwrap(),
        dns_names: Vec::new(),
        serial: serial(counter),
        not_before: at(0),
        not_after: at(seconds - 1),
        public_key: Digest::ZERO,
        tbs: Digest::ZERO,
        issuer: "issuer-1".parse().unwrap(),
        key: "issuer-1".parse().unwrap(),
        caller: "node:east/join_token/vm-1".to_owned(),
        rule: None,
        request: None,
        bundle: 1,
        attributes: Vec::new(),
    })
}

fn workload(counter: u64, id: &str) -> Event {
    issued(counter, Profile::Workload, id, 3_600)
}

fn ledger(events: &[Event]) -> Vec<Record> {
    let mut head = Head::EMPTY;
    let link = |event: &Event| {
        let record = head.link(&Entry::new(at(0), event));
        head = record.head();
        record
    };
    events.iter().map(link).collect()
}

#[test]
fn a_pattern_speaks_of_one_identity_or_of_all_below_a_path() {
    let says =
        |pattern: &str, id: &str| pattern.parse::<IdentityPattern>().unwrap().matches(&id.parse().unwrap());
    assert!(says("spiffe://example.org/a", "spiffe://example.org/a"));
    assert!(!says("spiffe://example.org/a", "spiffe://example.org/a/b"));
    assert!(says("spiffe://example.org/a/*", "spiffe://example.org/a/b/c"));
    assert!(!says("spiffe://example.org/a/*", "spiffe://example.org/a"));
    assert!(!says("spiffe://example.org/a/*", "spiffe://example.org/ab"));
    assert!(!says("spiffe://example.org/a/*", "spiffe://example.orga/a/b"));
    assert!(says("spiffe://example.org/*", "spiffe://example.org/a"));
    for wrong in ["", "*", "spiffe://example.org", "spiffe://example.org/a/", "example.org/a", "spiffe://*/a"]
    {
        assert!(wrong.parse::<IdentityPattern>().is_err(), "{wrong}");
    }
}

#[test]
fn a_scope_allows_what_it_names_byte_for_byte_and_nothing_reserved() {
    let all = ClusterScope { namespaces: NamespaceScope::All, identities: Vec::new(), max_ttl: ttl(60) };
    let cases = [
        ("spiffe://example.org/ns/shop/sa/web", true, true),
        ("spiffe://example.org/ns/a.b/sa/web", true, true),
        ("spiffe://example.org/ns/a-b/sa/web", false, true),
        ("spiffe://example.org/ns/Shop/sa/web", false, true),
        ("spiffe://example.org/edge/gw", true, false),
        ("spiffe://example.org/vm/ns/shop", false, false),
        ("spiffe://example.org/rhizome/admin/alice", false, false),
        ("spiffe://example.org/spire/server", false, false),
    ];
    for (id, by_name, by_all) in cases {
        let id = id.parse().unwrap();
        assert_eq!((scope().allows(&id), all.allows(&id)), (by_name, by_all), "{id}");
    }
}

#[test]
fn a_scope_that_makes_no_sense_is_refused() {
    let check = |scope: ClusterScope, seconds| scope.check(&domain(), ttl(seconds));
    assert_eq!(check(scope(), 7_200), Ok(()));
    assert!(matches!(check(scope(), 7_199), Err(ScopeError::TooShort { .. })));
    assert_eq!(check(scope(), 91 * DAY), Err(ScopeError::Lifetime));
    let short = ClusterScope { max_ttl: ttl(30), ..scope() };
    assert_eq!(check(short.clone(), 119), Err(ScopeError::Lifetime));
    assert_eq!(check(short, 120), Ok(()));
    let none = NamespaceScope::Only(BTreeSet::new());
    let nothing = ClusterScope { namespaces: none.clone(), identities: Vec::new(), ..scope() };
    assert_eq!(check(nothing, DAY), Err(ScopeError::Nothing));
    let of = |text: &str| ClusterScope {
        namespaces: none.clone(),
        identities: vec![text.parse().unwrap()],
        ..scope()
    };
    assert!(matches!(check(of("spiffe://other.org/a"), DAY), Err(ScopeError::Foreign { .. })));
    assert!(matches!(check(of("spiffe://example.org/rhizome/*"), DAY), Err(ScopeError::Reserved { .. })));
    assert_eq!(check(of("spiffe://example.org/*"), DAY), Ok(()), "what is reserved stays reserved below it");
    let many = (0..=CLUSTER_IDENTITIES).map(|n| format!("spiffe://example.org/{n}").parse().unwrap());
    let many = ClusterScope { identities: many.collect(), ..scope() };
    assert!(matches!(check(many, DAY), Err(ScopeError::TooMany { .. })));
}

#[test]
fn an_intermediate_is_granted_within_the_scope_and_the_root_s_life() {
    let wish = |seconds: Option<i64>, key: u8| IntermediateWish {
        public_key: Digest::from_bytes([key; 32]),
        ttl: seconds.map(ttl),
    };
    let root = (at(-10 * DAY), at(10 * DAY));
    let other = Cluster { name: "west".parse().unwrap(), granted: vec![granted("x", 9, DAY)], ..cluster() };
    let ask = |cluster: &Cluster, wish, root, now| {
        cluster.may_have_intermediate(&wish, root, [&other, cluster], [], at(now))
    };
    let whole = ask(&cluster(), wish(None, 2), root, 0).unwrap();
    assert_eq!(whole.not_after.since(whole.not_before) + 1, DAY);
    let shorter = ask(&cluster(), wish(Some(600), 2), root, 0).unwrap();
    assert_eq!(shorter.not_after.since(shorter.not_before) + 1, 600);
    let clamped = ask(&cluster(), wish(None, 2), (root.0, at(100)), 0).unwrap();
    assert_eq!(clamped.not_after, at(100), "never beyond the root");
    let again = ask(&cluster(), wish(None, 1), root, 0);
    assert!(again.is_ok(), "for its own key it may ask again after a lost answer");
    let refused = |outcome: Result<Validity, ClusterRefusal>| outcome.unwrap_err();
    let long = refused(ask(&cluster(), wish(Some(DAY + 1), 2), root, 0));
    assert!(long.to_string().contains("it may have 86400 s at most"), "{long}");
    assert_eq!(long.code(), "beyond_cluster_scope");
    let stolen = refused(ask(&cluster(), wish(None, 9), root, 0));
    assert!(stolen.to_string().contains("cluster west"), "{stolen}");
    let over = refused(ask(&cluster(), wish(None, 2), (root.0, at(-1)), 0));
    assert_eq!(over.code(), "root_not_valid");
    let suspended = cluster().suspended(ended());
    assert_eq!(refused(ask(&suspended, wish(None, 2), root, 0)).code(), "cluster_suspended");
    let removed = refused(ask(&suspended.removed(ended()), wish(None, 2), root, 0));
    assert_eq!(removed.code(), "cluster_removed");
}

#[test]
fn what_was_suspended_may_come_back_and_what_was_removed_may_not() {
    let suspended = cluster().suspended(ended());
    assert_eq!(suspended.suspended(Ended { at: at(9), ..ended() }), suspended, "the first record stays");
    assert_eq!(suspended.resumed().unwrap(), cluster());
    assert_eq!(cluster().resumed(), None);
    let removed = suspended.removed(ended());
    assert_eq!(removed.resumed(), None);
    assert_eq!(removed.suspended(ended()), removed);
    assert_eq!(removed.matters_until(), Some(at(DAY)), "what it holds is valid until its end");
    let later = at(DAY + ROTATION_SKEW_SECONDS + 1);
    let next = cluster().granting(granted("issuer-2", 2, 9 * DAY), later);
    assert_eq!(next.granted.len(), 1, "what has long ended is forgotten");
}

#[test]
fn what_a_cluster_issues_outside_its_scope_is_named_with_what_is_wrong() {
    let judge = |event: &Event| outside_scope(&cluster(), &domain(), event, at(10)).map(|it| it.why);
    let node = |path: &str| issued(1, Profile::Node, &format!("spiffe://example.org/rhizome/{path}"), DAY);
    for allowed in [
        workload(1, "spiffe://example.org/ns/shop/sa/web"),
        workload(1, "spiffe://example.org/edge/gw/1"),
        node("node/east/join_token/vm-1"),
        issued(1, Profile::Server, "spiffe://example.org/rhizome/server/e1", DAY),
        issued(1, Profile::Admin, "spiffe://example.org/rhizome/admin/bob", DAY),
        Event::SigningFailed { serial: serial(1), reason: String::new() },
    ] {
        assert_eq!(judge(&allowed), None, "{allowed:?}");
    }
    let mut other_issuer = workload(1, "spiffe://example.org/ns/shop/sa/web");
    if let Event::Issued(issuance) = &mut other_issuer {
        issuance.issuer = "issuer-7".parse().unwrap();
    }
    let token = Event::JwtIssued(JwtIssuance {
        spiffe_id: "spiffe://example.org/ns/pay/sa/web".parse().unwrap(),
        jti: serial(3),
        audiences: Vec::new(),
        issued_at: at(0),
        expires_at: at(60),
        input: Digest::ZERO,
        authority: "jwt-1".parse().unwrap(),
        key: "jwt-1".parse().unwrap(),
        caller: String::new(),
        rule: None,
        attributes: Vec::new(),
    });
    let wrong = [
        (workload(1, "spiffe://example.org/ns/pay/sa/web"), "namespaces a.b, shop"),
        (workload(1, "spiffe://other.org/ns/shop/sa/web"), "another trust domain"),
        (issued(1, Profile::Workload, "spiffe://example.org/ns/shop/sa/web", 3_601), "3601 s"),
        (issued(1, Profile::Issuer, "spiffe://example.org", DAY), "leaves only"),
        (node("node/west/join_token/vm-1"), "/rhizome/node/east"),
        (node("admin/alice"), "reserved"),
        (issued(1, Profile::Workload, "spiffe://example.org/rhizome/server/r1", 60), "reserved"),
        (workload(1, "spiffe://example.org/spire/server"), "reserved"),
        (other_issuer, "issuer-7"),
        (token, "gives none"),
        (issued(1, Profile::Admin, "spiffe://example.org/ns/shop/sa/web", 60), "a workload's identity"),
    ];
    for (event, why) in wrong {
        let found = judge(&event).unwrap_or_else(|| panic!("{event:?} is outside"));
        assert!(found.contains(why), "{found}");
    }
}

#[test]
fn a_report_continues_the_ledger_and_raises_an_alarm_once() {
    let events = [
        workload(1, "spiffe://example.org/ns/shop/sa/web"),
        workload(2, "spiffe://example.org/ns/pay/sa/web"),
        workload(3, "spiffe://example.org/ns/pay/sa/web"),
    ];
    let records = ledger(&events);
    let empty = ClusterReport::empty("east".parse().unwrap());
    let say = |before: &ClusterReport, records: &[Record], now| {
        before.after(Reported::default(), records, &cluster(), &domain(), at(now))
    };
    let (first, alarms) = say(&empty, &records[..2], 5).unwrap();
    assert_eq!((first.read_to, first.read_hash, first.alarms), (2, records[1].hash, 1));
    assert_eq!(alarms[0].code, "outside_scope");
    assert_eq!(alarms[0].subject, "spiffe://example.org/ns/pay/sa/web");
    assert_eq!(alarms[0].position, 2);
    let (second, alarms) = say(&first, &records[2..], 6).unwrap();
    assert_eq!((second.read_to, second.alarms, alarms.len()), (3, 2, 0), "counted, and not said again");
    let issuer = "issuer-1".parse().unwrap();
    assert_eq!(
        second.issued.get(&issuer),
        Some(&ServedIssuer { count: 3, until: at(3_599), last_record: 3 })
    );
    let (silent, _) = say(&second, &[], 7).unwrap();
    assert_eq!((silent.read_to, silent.at), (3, at(7)));

    // The same again, from too early and from too late: nothing is lost, and nothing is an alarm.
    let (again, alarms) = say(&second, &records, 7).unwrap();
    assert_eq!((again.read_to, again.alarms, alarms.len()), (3, 2, 0));
    let (late, alarms) = say(&empty, &records[1..], 5).unwrap();
    assert_eq!((late.read_to, alarms.len()), (0, 0));
    let (half, _) = say(&first, &records, 6).unwrap();
    assert_eq!((half.read_to, half.read_hash), (3, records[2].hash));

    // Another ledger than the one that was read, longer or shorter: an alarm, and from its first record anew.
    let other = ledger(&[workload(1, "spiffe://example.org/ns/shop/sa/other")]);
    let longer = ledger(&[(); 4].map(|()| workload(1, "spiffe://example.org/ns/shop/sa/other")));
    for differing in [&longer[3..], &longer[2..]] {
        let (rewritten, alarms) = say(&second, differing, 8).unwrap();
        assert_eq!((rewritten.read_to, alarms[0].code.as_str()), (0, "ledger_rewritten"));
    }
    let shorter = Reported { last_record: 1, ..Reported::default() };
    let (rewritten, alarms) = second.after(shorter, &[], &cluster(), &domain(), at(8)).unwrap();
    assert_eq!((rewritten.read_to, alarms[0].code.as_str()), (0, "ledger_rewritten"));
    let (anew, alarms) = say(&rewritten, &other, 9).unwrap();
    assert_eq!((anew.read_to, alarms.len()), (1, 0));

    // No ledger at all.
    let gap = say(&empty, &[records[0].clone(), records[2].clone()], 5).unwrap_err();
    assert_eq!(gap.kind, FaultKind::Gap { expected: 2 });
    let mut altered = records.clone();
    altered[1].body = altered[1].body.replace("pay", "shop").into();
    assert_eq!(say(&empty, &altered, 5).unwrap_err().kind, FaultKind::Altered);
}

#[test]
fn a_record_of_a_newer_release_is_an_alarm_and_is_passed() {
    let first = ledger(&[workload(1, "spiffe://example.org/ns/shop/sa/web")]);
    let body = r#"{"at":"2026-01-01T00:00:00Z","event":"from_a_newer_release"}"#;
    let newer = first[0].head().link_raw_for_tests(body);
    let records = [first[0].clone(), newer.clone()];
    let empty = ClusterReport::empty("east".parse().unwrap());
    let (next, alarms) = empty.after(Reported::default(), &records, &cluster(), &domain(), at(5)).unwrap();
    assert_eq!((next.read_to, next.read_hash), (2, newer.hash));
    assert_eq!(alarms[0].code, "ledger_unreadable");
}

/// The cluster as a change of the root sees it that waits for what is below `root-1`, whose fingerprint is all ones.
fn seen(cluster: &Cluster, report: Option<&ClusterReport>, now: Timestamp) -> Option<Subscriber> {
    let roots = [(ones(), "root-1".parse().unwrap())].into();
    let choices = Choices { settle_seconds: 2, ..Choices::default() };
    subscriber(cluster, report, &Outlook { roots: &roots, choices: &choices, now })
}

fn ones() -> Digest {
    Digest::from_bytes([1; 32])
}

#[test]
fn a_cluster_stands_in_a_change_of_the_root_for_everybody_below_it() {
    let records = ledger(&[workload(1, "spiffe://example.org/ns/shop/sa/web")]);
    let digest = Digest::from_bytes([4; 32]);
    let reported =
        Reported { holds: Some(HeldBelow { sequence: 3, digest }), last_record: 1, ..Reported::default() };
    let empty = ClusterReport::empty("east".parse().unwrap());
    let (report, _) = empty.after(reported.clone(), &records, &cluster(), &domain(), at(5)).unwrap();
    let found = seen(&cluster(), Some(&report), at(6)).unwrap();
    assert_eq!((found.name.as_str(), found.until, found.connected), ("cluster:east", Some(at(DAY)), true));
    assert!(found.behind.is_empty());
    assert_eq!(found.holds.unwrap().sequence, 3);
    let root = "root-1".parse().unwrap();
    // What it issued, and what it may sign with.
    assert_eq!(found.presents.iter().map(|it| (&it.root, it.count)).collect::<Vec<_>>(), [(&root, 2)]);

    let unread = Reported { last_record: 2, ..reported.clone() };
    let (report, _) = empty.after(unread, &records, &cluster(), &domain(), at(5)).unwrap();
    let behind = seen(&cluster(), Some(&report), at(6)).unwrap().behind;
    assert!(behind[0].contains("not read to its end"), "{behind:?}");
    let lagging = Reported { behind_count: 1, ..reported };
    let (report, _) = empty.after(lagging, &records, &cluster(), &domain(), at(5)).unwrap();
    assert_eq!(seen(&cluster(), Some(&report), at(6)).unwrap().behind, ["nodes of east"]);
    assert!(seen(&cluster(), None, at(6)).unwrap().holds.is_none(), "not heard of: not acknowledged");
    let nothing = Cluster { granted: Vec::new(), ..cluster() };
    assert_eq!(seen(&nothing, None, at(6)), None, "nobody depends on it");
}

#[test]
fn what_a_cluster_issued_counts_until_it_says_of_all_of_it_that_nobody_presents_it() {
    let records = ledger(&[workload(1, "spiffe://example.org/ns/shop/sa/web")]);
    let empty = ClusterReport::empty("east".parse().unwrap());
    let below = |presents: &[Digest], as_of: u64, now: Timestamp| {
        let until = at(DAY);
        let presents = presents.iter().map(|it| (*it, PresentedBelow { count: 1, until })).collect();
        let reported = Reported { last_record: 1, presents, presents_as_of: as_of, ..Reported::default() };
        let (report, _) = empty.after(reported, &records, &cluster(), &domain(), now).unwrap();
        let found = seen(&cluster(), Some(&report), now).unwrap();
        found.presents.iter().map(|it| it.root.to_string()).collect::<Vec<_>>()
    };
    let (other, late) = (Digest::from_bytes([2; 32]), at(3_600));
    assert_eq!(below(&[], 0, late), ["root-1"], "it does not say");
    assert_eq!(below(&[ones()], 1, late), ["root-1"]);
    assert_eq!(below(&[ones(), other], 1, late), ["root-1"]);
    assert_eq!(below(&[other], 1, late), ["root-1"], "below a root nobody knows may be below any");
    assert!(below(&[], 1, late).is_empty(), "it says that nobody does");
    let granted = cluster().granted.first().unwrap().granted_at;
    assert_eq!(
        below(&[], 1, granted.plus(1)),
        ["root-1"],
        "it was granted a moment ago, and may sign with it"
    );
}

#[test]
fn stored_records_read_back_and_ignore_fields_of_a_newer_schema() {
    let newer = |json: String| json.replacen('{', r#"{"from_schema_n_plus_1":[1],"#, 1);
    let stored = serde_json::to_string(&cluster().suspended(ended())).unwrap();
    assert_eq!(serde_json::from_str::<Cluster>(&newer(stored)).unwrap(), cluster().suspended(ended()));
    let report = ClusterReport::empty("east".parse().unwrap());
    let stored = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<ClusterReport>(&newer(stored)).unwrap(), report);
}
