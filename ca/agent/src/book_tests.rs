//! Tests of the book: what each follower sees after each thing that can happen.

use super::*;
use crate::testing::{
    TestIssuer, at, attributes, bundle, crl_set, entitlement, node, root, rule, svid, valid,
};

const WEB: [(&str, &str); 1] = [("unix.uid", "1000")];

/// A book that is up to date: two rules for uid 1000, one for uid 2000, bundle 1.
fn book() -> Book {
    let mut book = Book::new("example.org".parse().unwrap());
    book.set_node(node(), at(0));
    let rules = [
        rule("api", ("unix.uid", "2000"), "/api"),
        rule("web", ("unix.uid", "1000"), "/web"),
        rule("all", ("unix.uid", "*"), "/any"),
    ];
    let upserts = rules.into_iter().map(valid).collect();
    book.apply(RuleChange { full: true, upserts, removed: Vec::new(), cursor: 7 }, at(0));
    assert_eq!(book.offer(bundle(1, &[&root("r1")]), at(0)), Offered::InForce);
    book.set_sealed(1);
    book
}

/// The identities that are seen; [`NotYet::Starting`] while all of them are on their way.
fn paths(seen: &watch::Receiver<Seen>) -> Result<Vec<String>, NotYet> {
    let view = seen.borrow().clone()?;
    if view.svids.is_empty() {
        return Err(NotYet::Starting);
    }
    Ok(view.svids.iter().map(|svid| svid.spiffe_id.path().to_owned()).collect())
}

fn serials(seen: &watch::Receiver<Seen>) -> Vec<String> {
    seen.borrow().iter().flat_map(|view| &view.svids).map(|svid| svid.serial.clone()).collect()
}

fn default(seen: &watch::Receiver<Seen>) -> Option<String> {
    let view = seen.borrow().clone().ok()?;
    view.default_svid().map(|svid| svid.spiffe_id.path().to_owned())
}

fn version(seen: &watch::Receiver<Seen>) -> u64 {
    seen.borrow().as_ref().unwrap().version
}

/// Answers everything that is due.
fn fetch(book: &mut Book, serial: &str, now: Timestamp) -> Vec<String> {
    let plan = book.plan(now, 100);
    for entitlement in &plan.ask {
        book.ask(entitlement).unwrap();
        book.issued(entitlement, svid(entitlement.spiffe_id.path(), serial, now), now);
    }
    plan.ask.iter().map(|it| it.spiffe_id.path().to_owned()).collect()
}

#[test]
fn identities_are_fetched_on_first_subscription_and_shared() {
    let mut book = book();
    assert_eq!(book.plan(at(0), 100).ask, [], "nobody wants anything yet");
    let first = book.follow(attributes(&WEB), at(0));
    assert_eq!(paths(&first), Err(NotYet::Starting));
    assert_eq!(fetch(&mut book, "a1", at(0)), ["/any", "/web"]);
    assert_eq!(paths(&first).unwrap(), ["/web", "/any"], "the narrowest rule's is the default one");

    let same = book.follow(attributes(&WEB), at(1));
    assert_eq!(serials(&same), serials(&first), "there at once");
    let other = book.follow(attributes(&[("unix.uid", "2000")]), at(1));
    assert_eq!(fetch(&mut book, "a2", at(1)), ["/api"], "/any is shared");
    assert_eq!(serials(&other), ["a2", "a1"]);
}

#[test]
fn who_matches_no_rule_is_denied_and_who_loses_its_rule_too() {
    let mut book = book();
    let nobody = book.follow(attributes(&[("pod", "x")]), at(0));
    assert!(matches!(paths(&nobody), Err(NotYet::Denied(_))), "{:?}", paths(&nobody));
    let web = book.follow(attributes(&WEB), at(0));
    fetch(&mut book, "a1", at(0));
    let removed = ["web", "all"].map(|name| name.parse().unwrap()).to_vec();
    book.apply(RuleChange { full: false, upserts: Vec::new(), removed, cursor: 8 }, at(1));
    assert!(matches!(paths(&web), Err(NotYet::Denied(_))), "redacted at once");
    assert_eq!(book.cursor(), 8);
}

#[test]
fn a_rule_that_changes_a_lifetime_or_names_costs_nobody_the_identity_meanwhile() {
    let mut book = book();
    let web = book.follow(attributes(&WEB), at(0));
    fetch(&mut book, "a1", at(0));
    let mut changed = rule("web", ("unix.uid", "1000"), "/web");
    changed.dns_names = vec!["web.example".to_owned()];
    let upserts = vec![valid(changed)];
    book.apply(RuleChange { full: false, upserts, removed: Vec::new(), cursor: 8 }, at(1));
    assert_eq!(serials(&web), ["a1", "a1"], "the old one while the new one is fetched");
    assert_eq!(fetch(&mut book, "a2", at(1)), ["/web"]);
    assert_eq!(serials(&web), ["a2", "a1"]);

    let late = book.follow(attributes(&[("unix.uid", "1000"), ("pod", "p")]), at(2));
    assert_eq!(serials(&late), ["a2", "a1"], "another workload with the same entitlement shares the new one");
}

#[test]
fn the_names_of_one_workload_are_never_lent_to_another_with_the_same_identity() {
    let mut book = book();
    let mut named = rule("named", ("pod", "blue"), "/any");
    named.dns_names = vec!["blue.example".to_owned()];
    let upserts = vec![valid(named)];
    book.apply(RuleChange { full: false, upserts, removed: Vec::new(), cursor: 8 }, at(0));
    let blue = book.follow(attributes(&[("pod", "blue")]), at(0));
    assert_eq!(fetch(&mut book, "blue", at(0)), ["/any"]);
    assert_eq!(serials(&blue), ["blue"]);
    let plain = book.follow(attributes(&[("unix.uid", "5")]), at(0));
    assert_eq!(paths(&plain), Err(NotYet::Starting), "same identity, but without that name");
}

#[test]
fn an_older_bundle_and_another_one_with_the_same_sequence_are_refused() {
    let mut book = book();
    let (one, two) = (root("a"), root("b"));
    assert_eq!(book.offer(bundle(5, &[&one]), at(0)), Offered::InForce);
    assert_eq!(book.offer(bundle(5, &[&one]), at(0)), Offered::Known);
    assert_eq!(book.offer(bundle(5, &[&two]), at(0)), Offered::Conflict);
    assert_eq!(book.offer(bundle(4, &[&one, &two]), at(0)), Offered::Lower { held: 5 });
    let foreign = Bundle::new("other.org".parse().unwrap(), 9, rhizome_id::Ttl::hours(1), vec![two.clone()]);
    assert_eq!(book.offer(foreign.unwrap(), at(0)), Offered::Foreign);
    assert_eq!(book.bundle().unwrap().anchors(), std::slice::from_ref(&one));
}

#[test]
fn a_bundle_is_acknowledged_when_it_is_sealed_and_every_open_stream_was_given_it() {
    let mut book = book();
    let web = book.follow(attributes(&WEB), at(0));
    fetch(&mut book, "a1", at(0));
    let (fast, slow, waiting) = (book.open(), book.open(), book.open());
    assert_eq!(book.acknowledgeable(at(1)), None, "streams are taking what there is");
    for stream in [fast, slow] {
        book.stands(stream, Standing::Given(version(&web)));
    }
    book.stands(waiting, Standing::Nothing);
    let acknowledged = |book: &Book| book.acknowledgeable(at(1)).map(|(sequence, _)| sequence);
    assert_eq!(acknowledged(&book), Some(1));

    book.offer(bundle(2, &[&root("a")]), at(1));
    assert_eq!(book.acknowledgeable(at(1)), None);
    book.set_sealed(2);
    book.stands(fast, Standing::Given(version(&web)));
    assert_eq!(book.acknowledgeable(at(1)), None, "one stream holds the old bundle");
    book.stands(slow, Standing::Gone);
    assert_eq!(acknowledged(&book), Some(2));
    book.stands(waiting, Standing::Taking);
    assert_eq!(book.acknowledgeable(at(1)), None, "it may be taking the old bundle");
    book.stands(waiting, Standing::Given(version(&web)));
    assert_eq!(acknowledged(&book), Some(2));
    book.stands(slow, Standing::Taking);
    assert_eq!(acknowledged(&book), Some(2), "a stream that ended never counts again");
}

#[test]
fn a_bundle_goes_out_and_is_acknowledged_while_an_only_identity_cannot_be_had() {
    let mut book = book();
    let mut web = book.follow(attributes(&[("unix.uid", "5")]), at(0));
    let sequence = |seen: &watch::Receiver<Seen>| {
        seen.borrow().as_ref().unwrap().bundles.values().map(|it| it.sequence()).collect::<Vec<_>>()
    };
    assert_eq!(
        (paths(&web), sequence(&web)),
        (Err(NotYet::Starting), vec![1]),
        "no identity, but the bundle"
    );
    fetch(&mut book, "a1", at(0));
    let (bundles, identities, never) = (book.open(), book.open(), book.open());
    book.stands(bundles, Standing::Given(version(&web)));
    book.stands(identities, Standing::GivenUntil(version(&web), at(3_599)));
    book.stands(never, Standing::Nothing);
    book.stop(&["a1".to_owned()], at(10));
    web.borrow_and_update();
    book.offer(bundle(2, &[&root("a")]), at(11));
    book.set_sealed(2);
    assert!(web.has_changed().unwrap());
    assert_eq!((paths(&web), sequence(&web)), (Err(NotYet::Starting), vec![2]));
    book.stands(bundles, Standing::Given(version(&web)));
    assert_eq!(book.acknowledgeable(at(11)), None, "one holds a certificate, and the bundle before");
    assert_eq!(book.expires_next(at(11)), Some(at(3_600)), "until that has expired");
    assert_eq!(book.acknowledgeable(at(3_599)), None);
    assert_eq!(book.acknowledgeable(at(3_600)).map(|(sequence, _)| sequence), Some(2));
    assert_eq!(book.expires_next(at(3_600)), None);
    // It comes back: what it holds then is the newest.
    fetch(&mut book, "a2", at(3_700));
    book.stands(identities, Standing::GivenUntil(version(&web), at(7_000)));
    book.stands(bundles, Standing::Given(version(&web)));
    assert_eq!(book.acknowledgeable(at(3_700)).map(|(sequence, _)| sequence), Some(2));
}

#[test]
fn what_is_stopped_is_gone_at_once_and_asked_for_anew() {
    let mut book = book();
    let web = book.follow(attributes(&WEB), at(0));
    fetch(&mut book, "a1", at(0));
    assert_eq!(book.plan(at(0), 100).ask, []);
    book.issued(&entitlement("/web"), svid("/web", "bad", at(0)), at(0));
    assert_eq!(book.stop(&["bad".to_owned(), "unknown".to_owned()], at(1)), ["bad"]);
    assert_eq!(serials(&web), ["a1"], "only /any is left");
    assert_eq!(default(&web), None, "which is not the default one");
    assert_eq!(book.plan(at(1), 100).ask, [entitlement("/web")]);
    book.issued(&entitlement("/web"), svid("/web", "bad", at(0)), at(1));
    assert_eq!(serials(&web), ["a1"], "an answer that the order overtook is not served");
    assert_eq!(fetch(&mut book, "good", at(1)), ["/web"]);
    assert_eq!(serials(&web), ["good", "a1"]);
}

#[test]
fn renewal_is_asked_for_at_its_instant_or_at_the_servers_slot_and_the_old_one_stays_meanwhile() {
    let mut book = book();
    let web = book.follow(attributes(&WEB), at(0));
    fetch(&mut book, "a1", at(0));
    assert_eq!(book.plan(at(1_799), 100).ask, []);
    assert_eq!(book.plan(at(1_799), 100).wake_at, Some(at(1_800)));
    assert_eq!(book.plan(at(1_800), 100).ask.len(), 2);
    book.renew_by("one", at(60), |_any| true);
    assert_eq!(book.plan(at(60), 100).ask.len(), 2);
    book.ask(&entitlement("/any")).unwrap();
    book.ask(&entitlement("/web")).unwrap();
    book.failed(&entitlement("/web"), Failure::Passing { wait: Some(30) }, at(60), 0);
    assert_eq!(book.plan(at(89), 100).ask, []);
    assert_eq!(book.plan(at(90), 100).ask, [entitlement("/web")]);
    assert_eq!(serials(&web), ["a1", "a1"]);
}

#[test]
fn what_expires_is_taken_away_and_what_nobody_follows_is_let_go() {
    let mut book = book();
    let web = book.follow(attributes(&WEB), at(0));
    fetch(&mut book, "a1", at(0));
    assert!(!book.tick(at(3_599)));
    assert_eq!(paths(&web).unwrap().len(), 2);
    assert!(book.tick(at(3_600)));
    assert_eq!(paths(&web), Err(NotYet::Starting), "nothing expired is served");
    fetch(&mut book, "a2", at(3_600));
    drop(web);
    book.tick(at(3_601));
    assert_eq!(book.plan(at(3_600 + 1_900), 100).ask, [], "not renewed for nobody");
    let back = book.follow(attributes(&WEB), at(3_602));
    assert_eq!(serials(&back), ["a2", "a2"], "whoever comes back finds it");
    drop(back);
    book.tick(at(3_600 + 3_600));
    assert_eq!(book.svids().count(), 0);
}

#[test]
fn a_denial_by_the_server_is_told_until_a_rule_changes() {
    let mut book = book();
    let api = book.follow(attributes(&[("unix.uid", "2000")]), at(0));
    for path in ["/api", "/any"] {
        book.ask(&entitlement(path)).unwrap();
        assert_eq!(paths(&api), Err(NotYet::Starting));
        book.failed(&entitlement(path), Failure::Denied("out of scope".into()), at(0), 0);
    }
    assert_eq!(paths(&api), Err(NotYet::Denied("out of scope".into())));
    assert_eq!(book.plan(at(1), 100).ask, []);
    let removed = vec!["web".parse().unwrap()];
    book.apply(RuleChange { cursor: 8, removed, ..RuleChange::default() }, at(1));
    assert_eq!(book.plan(at(299), 100).ask, [], "a rule that goes grants nothing more");
    let upserts = vec![valid(rule("other", ("unix.uid", "7"), "/other"))];
    book.apply(RuleChange { cursor: 9, upserts, ..RuleChange::default() }, at(2));
    assert_eq!(book.plan(at(17), 100).ask.len(), 2);
    assert_eq!(paths(&api), Err(NotYet::Denied("out of scope".into())), "until the authority says otherwise");
    assert_eq!(fetch(&mut book, "a1", at(17)), ["/any", "/api"]);
    assert_eq!(paths(&api).unwrap(), ["/api", "/any"]);
}

#[test]
fn the_nodes_of_a_fleet_do_not_all_ask_at_once_for_what_was_denied() {
    let instants: BTreeSet<i64> = (0..50)
        .map(|n| {
            let mut book = book();
            let id: SpiffeId =
                format!("spiffe://example.org/rhizome/node/prod/join_token/vm-{n}").parse().unwrap();
            let upserts = || vec![valid(rule("api", ("unix.uid", "2000"), "/api"))];
            book.set_node(rhizome_core::caller::principal_of(&id, &id.trust_domain()).unwrap(), at(0));
            book.apply(RuleChange { full: true, upserts: upserts(), removed: Vec::new(), cursor: 8 }, at(0));
            let _api = book.follow(attributes(&[("unix.uid", "2000")]), at(0));
            book.ask(&entitlement("/api")).unwrap();
            book.failed(&entitlement("/api"), Failure::Denied("out of scope".into()), at(0), 0);
            book.apply(RuleChange { cursor: 9, upserts: upserts(), ..RuleChange::default() }, at(100));
            book.plan(at(99), 100).wake_at.unwrap().since(at(100))
        })
        .collect();
    assert!(instants.len() > 5, "{instants:?}");
    assert!(instants.iter().all(|it| (0..15).contains(it)), "{instants:?}");
}

#[test]
fn no_other_identity_is_the_default_while_the_first_is_on_its_way_and_a_denied_one_is_not_waited_for() {
    let mut book = book();
    let web = book.follow(attributes(&WEB), at(0));
    book.ask(&entitlement("/any")).unwrap();
    book.issued(&entitlement("/any"), svid("/any", "a1", at(0)), at(0));
    assert_eq!((paths(&web).unwrap(), default(&web)), (vec!["/any".to_owned()], None));
    let id = entitlement("/web").spiffe_id;
    assert_eq!(web.borrow().as_ref().unwrap().svid(&id).err(), Some(NotYet::Starting), "it is no denial");
    book.issued(&entitlement("/web"), svid("/web", "a1", at(0)), at(0));
    assert_eq!(default(&web).as_deref(), Some("/web"));
    book.stop(&["a1".to_owned()], at(1));
    book.issued(&entitlement("/any"), svid("/any", "a2", at(1)), at(1));
    assert_eq!(default(&web), None, "nor after it was revoked");
    book.failed(&entitlement("/web"), Failure::Denied("out of scope".into()), at(1), 0);
    assert_eq!(default(&web).as_deref(), Some("/any"));
    assert!(matches!(web.borrow().as_ref().unwrap().svid(&id).err(), Some(NotYet::Denied(_))));
}

#[test]
fn a_renewal_that_was_brought_forward_is_kept_on_disk() {
    let mut before = book();
    let _web = before.follow(attributes(&WEB), at(0));
    fetch(&mut before, "a1", at(0));
    before.renew_by("one", at(60), |_any| true);
    let mut after = Book::new("example.org".parse().unwrap());
    after.set_node(node(), at(30));
    after.restore(before.snapshot(), at(30));
    let _again = after.follow(attributes(&WEB), at(30));
    assert_eq!(after.plan(at(59), 100).ask, []);
    assert_eq!(after.plan(at(60), 100).ask.len(), 2);
    fetch(&mut after, "a2", at(60));
    assert!(after.carried_out("one"), "it will be told again on the next stream");
    after.renew_by("one", at(60), |_any| true);
    assert_eq!(after.plan(at(61), 100).ask, []);
    for n in 0..300 {
        after.renew_by(&format!("order {n}"), at(100), |_any| true);
    }
    assert_eq!((after.plan(at(99), 100).ask.len(), after.plan(at(100), 100).ask.len()), (0, 2));
    assert_eq!(after.snapshot().orders.len(), 256, "what is remembered is bounded");
    after.renew_by("", at(90), |_any| true);
    assert!(!after.carried_out(""), "without a name it is carried out whenever it comes");
}

#[test]
fn workloads_that_come_and_go_leave_nothing_behind_between_two_ticks() {
    let mut book = book();
    let stays = book.follow(attributes(&WEB), at(0));
    for n in 0..5_000 {
        drop(book.follow(attributes(&[("unix.uid", "1000"), ("pod", &n.to_string())]), at(0)));
    }
    assert!(book.followers.len() <= 1_100, "{}", book.followers.len());
    fetch(&mut book, "a1", at(0));
    assert_eq!(paths(&stays).unwrap().len(), 2);
}

#[test]
fn a_snapshot_brings_back_everything_unexpired() {
    let mut before = book();
    let web = before.follow(attributes(&WEB), at(0));
    fetch(&mut before, "a1", at(0));
    before.issued(&entitlement("/any"), svid("/any", "a2", at(100)), at(100));
    let mut after = Book::new("example.org".parse().unwrap());
    after.set_node(node(), at(3_650));
    after.restore(before.snapshot(), at(3_650));
    let again = after.follow(attributes(&WEB), at(3_650));
    assert_eq!(serials(&again), ["a2"], "the other one has expired meanwhile");
    assert_eq!(after.cursor(), 7);
    assert_eq!(after.acknowledgeable(at(3_650)), before.acknowledgeable(at(3_650)));
    drop(web);
}

#[test]
fn a_machine_that_becomes_another_node_waits_for_that_nodes_rules() {
    let mut book = book();
    let web = book.follow(attributes(&WEB), at(0));
    fetch(&mut book, "a1", at(0));
    book.set_node(node(), at(1));
    assert_eq!((book.cursor(), serials(&web).len()), (7, 2), "the same node again changes nothing");
    let domain = "example.org".parse().unwrap();
    let other = "spiffe://example.org/rhizome/node/prod/join_token/vm-2".parse().unwrap();
    book.set_node(rhizome_core::caller::principal_of(&other, &domain).unwrap(), at(2));
    assert_eq!((book.cursor(), paths(&web)), (0, Err(NotYet::Starting)));
}

#[test]
fn revocation_lists_are_shown_with_the_bundle_and_withheld_rather_than_incomplete() {
    let (first, second) = (TestIssuer::new("g1"), TestIssuer::new("g2"));
    let mut book = book();
    book.offer(bundle(2, &[&first.root, &second.root]), at(0));
    let web = book.follow(attributes(&WEB), at(0));
    let issued = |book: &mut Book, issuer: &TestIssuer, serial: &str, now| {
        let plan = book.plan(now, 100);
        for entitlement in &plan.ask {
            book.ask(entitlement).unwrap();
            let path = entitlement.spiffe_id.path();
            let svid = Svid { chain_der: vec![issuer.leaf(path)], ..copy(&svid(path, serial, now)) };
            book.issued(entitlement, Arc::new(svid), now);
        }
    };
    let shown = |seen: &watch::Receiver<Seen>| seen.borrow().as_ref().unwrap().crls.len();
    issued(&mut book, &first, "a1", at(0));
    assert_eq!(shown(&web), 0);
    let before = version(&web);
    assert!(book.take_crls(&crl_set(&[&first], vec![first.crl(1, 0)]), at(1)).changed);
    assert!(shown(&web) == 1 && version(&web) > before);
    let before = version(&web);
    assert!(!book.take_crls(&crl_set(&[&first], vec![first.crl(1, 0)]), at(2)).refused.is_empty());
    assert_eq!(version(&web), before, "what was refused is nothing new to anybody");

    issued(&mut book, &second, "a2", at(1_900));
    assert_eq!(shown(&web), 0, "this node serves certificates of an issuer without a list");
    let both = crl_set(&[&first, &second], vec![first.crl(2, 0), second.crl(2, 1)]);
    book.take_crls(&both, at(1_901));
    assert_eq!(shown(&web), 2);

    let mut again = Book::new("example.org".parse().unwrap());
    again.restore(book.snapshot(), at(1_902));
    assert_eq!(again.take_crls(&both, at(1_903)), Taken::default(), "they come back from the disk");
}

fn copy(svid: &Svid) -> Svid {
    Svid {
        spiffe_id: svid.spiffe_id.clone(),
        chain_der: Vec::new(),
        key_pkcs8_der: svid.key_pkcs8_der.clone(),
        serial: svid.serial.clone(),
        hint: svid.hint.clone(),
        ..*svid
    }
}
