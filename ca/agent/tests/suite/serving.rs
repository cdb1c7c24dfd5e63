//! What workloads see while the authority is there.

use rhizome_agent::holdings::{Identities, NotYet};
use rhizome_core::ports::Clock;
use rhizome_x509::{PeerUsage, TrustAnchors, verify_peer};

use crate::support::{Authority, Machine, attributes, follow_web, renewed, status, view, wait};

#[tokio::test]
async fn a_workload_gets_an_identity_that_others_verify_and_shares_it_with_its_like() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let first = view(&mut seen).await;
    let svid = &first.svids[0];
    assert_eq!(svid.spiffe_id.to_string(), "spiffe://example.test/ns/shop/sa/web");
    let bundle = &first.bundles[agent.identities().trust_domain()];
    let above: Vec<&[u8]> = svid.chain_der[1..].iter().map(Vec::as_slice).collect();
    let anchors = TrustAnchors::from_bundle(bundle);
    let now = machine.clock.now();
    let peer = verify_peer(&svid.chain_der[0], &above, &anchors, PeerUsage::Server, now).unwrap();
    assert_eq!(peer.spiffe_id, svid.spiffe_id);
    assert!(rhizome_tls::ClientIdentity::new(svid.chain_der.clone(), svid.key_pkcs8_der.clone()).is_ok());

    let same = follow_web(&agent).borrow().clone().unwrap();
    assert_eq!(same.svids[0].serial, svid.serial, "there at once");
    agent.stop().await;
}

#[tokio::test]
async fn certificates_are_renewed_at_their_instant_with_a_new_key() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let mut before = view(&mut seen).await;
    for _ in 0..2 {
        let svid = &before.svids[0];
        let wait = svid.renew_at.since(machine.clock.now());
        assert!((1..3_600).contains(&wait), "{wait}");
        machine.advance(&agent, wait);
        let after = renewed(&mut seen, &svid.serial).await;
        assert_ne!(after.svids[0].key_pkcs8_der, svid.key_pkcs8_der);
        assert!(after.svids[0].not_after > svid.not_after);
        before = after;
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_revoked_certificate_is_replaced_at_once_by_push() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let revoked = view(&mut seen).await.svids[0].serial.clone();
    authority.revoke(&revoked).await;
    let after = renewed(&mut seen, &revoked).await;
    assert_eq!(after.svids[0].spiffe_id.path(), "/ns/shop/sa/web");
    assert!(agent.identities().svids().iter().all(|svid| svid.serial != revoked));
    agent.stop().await;
    let agent = machine.start(None);
    let again = follow_web(&agent).borrow().clone().unwrap();
    assert_eq!(again.svids[0].serial, after.svids[0].serial, "nor does it come back from the disk");
    agent.stop().await;
}

#[tokio::test]
async fn rules_reach_the_node_as_they_change() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    status(&agent, |it| it.connected).await;
    let mut seen = agent.identities().follow(attributes(&[("unix.uid", "1000")]));
    wait(&mut seen, |seen| matches!(seen, Err(NotYet::Denied(_)))).await.unwrap_err();
    authority.put_rule("shop", "1000").await;
    assert_eq!(view(&mut seen).await.svids[0].spiffe_id.path(), "/unix/shop");
    authority.put_rule("till", "1000").await;
    let both = wait(&mut seen, |seen| seen.as_ref().is_ok_and(|view| view.svids.len() == 2)).await.unwrap();
    let paths: Vec<_> = both.svids.iter().map(|svid| svid.spiffe_id.path().to_owned()).collect();
    assert_eq!(paths, ["/unix/shop", "/unix/till"]);
    authority.delete_rule("shop").await;
    wait(&mut seen, |seen| seen.as_ref().is_ok_and(|view| view.svids.len() == 1)).await.unwrap();
    authority.delete_rule("till").await;
    wait(&mut seen, |seen| matches!(seen, Err(NotYet::Denied(_)))).await.unwrap_err();
    agent.stop().await;
}

#[tokio::test]
async fn two_hundred_identities_come_over_one_stream() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let follow = |n: i32| {
        let account = format!("sa-{n}");
        agent.identities().follow(attributes(&[("namespace", "shop"), ("service_account", &account)]))
    };
    let mut all: Vec<_> = (0..200).map(follow).collect();
    for (n, seen) in all.iter_mut().enumerate() {
        assert_eq!(view(seen).await.svids[0].spiffe_id.path(), format!("/ns/shop/sa/sa-{n}"));
    }
    agent.stop().await;
}
