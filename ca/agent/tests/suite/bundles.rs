//! Bundles: acknowledged when they are in force everywhere, and never older than what is held.

use rhizome_agent::holdings::{Identities, Subscription, View};
use rhizome_core::ports::Clock;

use crate::support::{Authority, Machine, follow_web, is_awaited, renewed, status, view, wait, web};

/// A root of an authority that never issues here.
async fn another_root() -> rhizome_x509::CaCertificate {
    Authority::start().await.bundle().await.anchors.remove(0)
}

#[tokio::test]
async fn a_new_bundle_is_acknowledged_only_after_every_open_stream_was_given_it() {
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    view(&mut agent.identities().follow(web())).await;
    let mut stream = Subscription::open(agent.identities(), web());
    let first = stream.next().await.unwrap().unwrap();
    stream.delivered(first.version);
    authority.acknowledges("vm-1", 2).await;

    authority.stop_server().await;
    let anchors = [authority.bundle().await.anchors, vec![another_root().await]].concat();
    authority.publish(3, anchors).await;
    authority.start_server().await;
    let domain = agent.identities().trust_domain().clone();
    let second = loop {
        let view = stream.next().await.unwrap().unwrap();
        if view.bundles[&domain].sequence() == 3 {
            break view;
        }
    };
    assert_eq!(second.bundles[&domain].anchors().len(), 2);
    let synced = status(&agent, |it| it.connected).await;
    assert_eq!(synced.acknowledged, Some(2), "the stream has it in hand, the workload may not");
    assert_eq!(*agent.identities().acknowledgeable().borrow(), None);
    assert_eq!(authority.acknowledged("vm-1").await, Some(2));

    stream.delivered(second.version);
    authority.acknowledges("vm-1", 3).await;
    wait(&mut agent.status(), |it| it.acknowledged == Some(3)).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_bundle_waits_for_no_identity_that_cannot_be_had_and_is_acknowledged_when_nothing_older_is_of_use()
{
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let first = view(&mut seen).await;
    let domain = agent.identities().trust_domain().clone();
    // One stream is of bundles, the other gives them with identities only.
    let mut bundles = Subscription::open(agent.identities(), web());
    let mut identities = Subscription::open(agent.identities(), web());
    for stream in [&mut bundles, &mut identities] {
        stream.next().await.unwrap().unwrap();
    }
    bundles.delivered(first.version);
    identities.delivered_until(first.version, first.svids[0].not_after);
    authority.acknowledges("vm-1", 2).await;

    // What it holds is revoked, and no other certificate of that identity can be had.
    *authority.keys.of.lock().unwrap() = Some("/sa/web".to_owned());
    authority.revoke(&first.svids[0].serial).await;
    wait(&mut seen, is_awaited).await.unwrap();
    authority.stop_server().await;
    let anchors = [authority.bundle().await.anchors, vec![another_root().await]].concat();
    authority.publish(3, anchors).await;
    authority.start_server().await;
    let three = |view: &View| view.bundles[&domain].sequence() == 3;
    loop {
        let view = bundles.next().await.unwrap().unwrap();
        if three(&view) {
            bundles.delivered(view.version);
            break;
        }
    }
    while !three(&identities.next().await.unwrap().unwrap()) {}
    identities.waits();
    status(&agent, |it| it.connected).await;
    assert_eq!(*agent.identities().acknowledgeable().borrow(), None, "a certificate is held with bundle 2");

    // Nobody accepts that certificate any more.
    machine.advance(&agent, first.svids[0].not_after.since(machine.clock.now()) + 1);
    authority.acknowledges("vm-1", 3).await;
    assert!(is_awaited(&seen.borrow()), "and the identity is still missing");
    *authority.keys.of.lock().unwrap() = None;
    machine.advance(&agent, 60);
    renewed(&mut seen, &first.svids[0].serial).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_stream_that_ends_holds_up_no_acknowledgement() {
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    view(&mut agent.identities().follow(web())).await;
    let stream = Subscription::open(agent.identities(), web());
    status(&agent, |it| it.connected).await;
    authority.stop_server().await;
    let anchors = [authority.bundle().await.anchors, vec![another_root().await]].concat();
    authority.publish(3, anchors).await;
    authority.start_server().await;
    let three = |bundle: &Option<std::sync::Arc<rhizome_x509::Bundle>>| {
        bundle.as_ref().is_some_and(|it| it.sequence() == 3)
    };
    status(&agent, |_| three(&agent.identities().bundle())).await;
    assert_eq!(*agent.identities().acknowledgeable().borrow(), None);
    drop(stream);
    authority.acknowledges("vm-1", 3).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_authority_whose_bundle_went_back_is_refused_that_bundle_also_after_a_restart() {
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    authority.stop_server().await;
    let old = authority.bundle().await.anchors;
    authority.publish(5, [old.clone(), vec![another_root().await]].concat()).await;
    authority.start_server().await;
    let agent = machine.start(None);
    authority.acknowledges("vm-1", 5).await;

    authority.stop_server().await;
    authority.publish(4, old.clone()).await;
    authority.start_server().await;
    status(&agent, |it| it.refused_bundles > 0).await;
    assert_eq!(agent.identities().bundle().unwrap().sequence(), 5);
    agent.stop().await;

    let agent = machine.start(None);
    status(&agent, |it| it.connected && it.refused_bundles > 0).await;
    assert_eq!(agent.identities().bundle().unwrap().anchors().len(), 2);
    let seen = view(&mut agent.identities().follow(web())).await;
    assert_eq!(seen.bundles.values().next().unwrap().sequence(), 5, "identities are issued nevertheless");
    agent.stop().await;
}

#[tokio::test]
async fn another_bundle_with_the_sequence_in_force_is_refused() {
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    authority.acknowledges("vm-1", 2).await;
    authority.stop_server().await;
    let anchors = [authority.bundle().await.anchors, vec![another_root().await]].concat();
    authority.publish(2, anchors).await;
    authority.start_server().await;
    status(&agent, |it| it.refused_bundles > 0).await;
    assert_eq!(agent.identities().bundle().unwrap().anchors().len(), 1);
    agent.stop().await;
}
