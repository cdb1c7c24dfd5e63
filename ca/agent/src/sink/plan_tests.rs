//! What a sink does, in what order, and what failures change.

use std::collections::BTreeMap;

use super::*;
use crate::holdings::Awaited;
use crate::testing::{at, bundle, entitlement, root, svid};

fn view(svid: &Arc<Svid>, bundle: &Arc<Bundle>, version: u64) -> View {
    let bundles = BTreeMap::from([(bundle.trust_domain().clone(), Arc::clone(bundle))]);
    View {
        svids: vec![Arc::clone(svid)],
        awaited: Awaited::default(),
        bundles,
        crls: Arc::default(),
        version,
    }
}

fn choose(view: &View) -> Result<Content, NotYet> {
    let svid = view.default_svid().ok_or(NotYet::Starting)?;
    let bundle = &view.bundles[&svid.spiffe_id.trust_domain()];
    let content = |it: &Arc<Svid>| Content {
        svid: Arc::clone(it),
        bundle: Arc::clone(bundle),
        foreign: view.bundles.values().filter(|it| !Arc::ptr_eq(it, bundle)).cloned().collect(),
        crls: Arc::default(),
        version: view.version,
    };
    Ok(content(svid))
}

fn name(step: &Step) -> String {
    match step {
        Step::Write(content) => format!("write {}", content.svid.serial),
        Step::Remove => "remove".to_owned(),
        Step::Reload => "reload".to_owned(),
        Step::InForce(version, _) => format!("in force {version}"),
        Step::Nothing => "nothing".to_owned(),
        Step::Wait(at) => format!("wait {}", at.since(crate::testing::at(0))),
        Step::Rest => "rest".to_owned(),
    }
}

/// Does everything that is to be done, and succeeds at it.
fn through(course: &mut Course) -> Vec<String> {
    let mut done = Vec::new();
    loop {
        let step = course.next(at(0));
        done.push(name(&step));
        match step {
            Step::Write(content) => course.wrote(content),
            Step::Remove => course.removed(),
            Step::Reload => course.reloaded(),
            Step::InForce(version, _) => course.in_force(version),
            Step::Nothing => course.nothing(),
            Step::Wait(_) | Step::Rest => return done,
        }
    }
}

#[test]
fn what_is_new_is_written_then_told_then_in_force() {
    let anchors = root("one");
    let (first, trust) = (svid("/a", "01", at(0)), Arc::new(bundle(1, &[&anchors])));
    let mut course = Course::new(false);
    assert_eq!(through(&mut course), ["nothing", "rest"], "nothing there, nothing held up");
    course.see(Ok(&view(&first, &trust, 5)), choose);
    assert_eq!(through(&mut course), ["write 01", "reload", "in force 5", "rest"]);
    assert!(course.is_done());
    // The same again, in a later view: nothing to write.
    course.see(Ok(&view(&first, &trust, 6)), choose);
    assert_eq!(through(&mut course), ["in force 6", "rest"]);
}

#[test]
fn a_new_bundle_alone_is_delivered_too() {
    let (one, two) = (root("one"), root("two"));
    let only = svid("/a", "01", at(0));
    let mut course = Course::new(false);
    course.see(Ok(&view(&only, &Arc::new(bundle(1, &[&one])), 1)), choose);
    through(&mut course);
    course.see(Ok(&view(&only, &Arc::new(bundle(2, &[&one, &two])), 2)), choose);
    assert_eq!(through(&mut course), ["write 01", "reload", "in force 2", "rest"]);
}

#[test]
fn a_foreign_bundle_that_comes_changes_or_goes_is_written_and_told() {
    let own = Arc::new(bundle(1, &[&root("one")]));
    let only = svid("/a", "01", at(0));
    let foreign = |sequence, anchor: &str| {
        let domain = "partner.example".parse().unwrap();
        let hint = rhizome_id::Ttl::hours(1);
        Arc::new(Bundle::foreign(domain, sequence, hint, vec![root(anchor)], Vec::new()).unwrap())
    };
    let with = |partner: Option<&Arc<Bundle>>, version| {
        let mut view = view(&only, &own, version);
        view.bundles.extend(partner.map(|it| (it.trust_domain().clone(), Arc::clone(it))));
        view
    };
    let (first, second) = (foreign(5, "p"), foreign(6, "q"));
    let mut course = Course::new(false);
    for (partner, version) in [(None, 1), (Some(&first), 2), (Some(&second), 3), (None, 4)] {
        course.see(Ok(&with(partner, version)), choose);
        let told = format!("in force {version}");
        assert_eq!(through(&mut course), ["write 01", "reload", told.as_str(), "rest"]);
        assert_eq!(course.written().unwrap().foreign.len(), usize::from(partner.is_some()));
    }
}

#[test]
fn a_bundle_is_not_in_force_while_writing_or_telling_fails_and_waits_grow() {
    let trust = Arc::new(bundle(1, &[&root("one")]));
    let mut course = Course::new(false);
    course.see(Ok(&view(&svid("/a", "01", at(0)), &trust, 1)), choose);
    for _ in 0..8 {
        course.failed(at(0), u64::MAX);
    }
    let Step::Wait(until) = course.next(at(0)) else { panic!("it waits") };
    assert!((30..=61).contains(&until.since(at(0))), "{until}");
    assert_eq!(name(&course.next(until)), "write 01");
    let Step::Write(content) = course.next(until) else { panic!("it writes") };
    course.wrote(content);
    assert_eq!(course.failures(), 0);
    course.failed(at(0), 0);
    assert!(matches!(course.next(at(0)), Step::Wait(_)));
    assert_eq!(name(&course.next(at(1))), "reload", "what was written is not written again");
    assert!(!course.is_done());
}

#[test]
fn what_a_newer_state_overtook_is_not_done_any_more() {
    let trust = Arc::new(bundle(1, &[&root("one")]));
    let mut course = Course::new(false);
    course.see(Ok(&view(&svid("/a", "01", at(0)), &trust, 1)), choose);
    course.failed(at(0), 0);
    course.see(Ok(&view(&svid("/a", "02", at(0)), &trust, 2)), choose);
    assert_eq!(through(&mut course), ["write 02", "reload", "in force 2", "rest"], "and without the wait");
}

#[test]
fn files_of_an_earlier_process_hold_up_until_they_are_written_anew_and_told() {
    let trust = Arc::new(bundle(1, &[&root("one")]));
    let mut course = Course::new(true);
    course.see(Err(&NotYet::Starting), choose);
    assert_eq!(through(&mut course), ["rest"], "nobody knows which bundle is in them");
    course.see(Ok(&view(&svid("/a", "01", at(0)), &trust, 3)), choose);
    assert_eq!(through(&mut course), ["write 01", "reload", "in force 3", "rest"]);
}

#[test]
fn an_identity_that_is_on_its_way_leaves_the_files_and_a_denied_one_takes_them_away() {
    let trust = Arc::new(bundle(1, &[&root("one")]));
    let first = svid("/a", "01", at(0));
    let mut course = Course::new(false);
    course.see(Ok(&view(&first, &trust, 1)), choose);
    through(&mut course);
    course.see(Err(&NotYet::Starting), choose);
    assert_eq!(through(&mut course), ["rest"]);
    assert!(!course.is_done());
    course.disturbed();
    assert_eq!(through(&mut course), ["rest"], "it may have been revoked: it is not written again");
    course.see(Err(&NotYet::Denied("no rule".to_owned())), choose);
    assert_eq!(through(&mut course), ["remove", "nothing", "rest"]);
    assert_eq!(course.denial(), Some("no rule"));
    course.see(Ok(&view(&first, &trust, 4)), choose);
    assert_eq!(through(&mut course), ["write 01", "reload", "in force 4", "rest"]);
}

#[test]
fn files_that_somebody_changed_are_written_anew() {
    let trust = Arc::new(bundle(1, &[&root("one")]));
    let mut course = Course::new(false);
    course.see(Ok(&view(&svid("/a", "01", at(0)), &trust, 1)), choose);
    through(&mut course);
    course.disturbed();
    assert_eq!(through(&mut course), ["write 01", "reload", "rest"]);
}

#[test]
fn an_identity_that_the_rules_do_not_give_is_named_as_a_denial() {
    let trust = Arc::new(bundle(1, &[&root("one")]));
    let mut course = Course::new(false);
    course.see(Ok(&view(&svid("/a", "01", at(0)), &trust, 1)), |view| {
        view.svid(&entitlement("/b").spiffe_id).map(|_| unreachable!())
    });
    assert_eq!(through(&mut course), ["nothing", "rest"]);
    assert!(course.denial().unwrap().contains("another identity"));
}

#[test]
fn an_identity_that_is_on_its_way_while_another_one_is_there_takes_no_files_away() {
    let trust = Arc::new(bundle(1, &[&root("one")]));
    let (web, any) = (svid("/web", "01", at(0)), svid("/any", "02", at(0)));
    let awaited = |default| Awaited { identities: [web.spiffe_id.clone()].into(), default };
    let mut course = Course::new(false);
    course.see(Ok(&view(&web, &trust, 1)), choose);
    through(&mut course);
    // By default, and by name.
    let only_any = View { awaited: awaited(true), ..view(&any, &trust, 2) };
    course.see(Ok(&only_any), choose);
    assert_eq!(through(&mut course), ["rest"], "another identity is not the default one");
    let only_any = View { awaited: awaited(false), ..view(&any, &trust, 3) };
    course.see(Ok(&only_any), |view| view.svid(&web.spiffe_id).map(|_| unreachable!()));
    assert_eq!(through(&mut course), ["rest"]);
    assert_eq!(course.denial(), None);
}
