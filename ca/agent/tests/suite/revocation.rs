//! What is revoked reaches this node, its workloads and whoever verifies for them, and what a refused node does.

use std::sync::Arc;

use rhizome_agent::checkup;
use rhizome_agent::holdings::{Identities, View};
use rhizome_proto::admin::v1::revoke_certificates_request::Target;
use rhizome_x509::{Crl, inspect};

use crate::support::{Authority, Machine, attributes, follow_web, is_awaited, renewed, status, view, wait};

fn crls(view: &View) -> Vec<Crl> {
    view.crls.iter().map(|der| Crl::parse(der).unwrap()).collect()
}

fn lists(view: &View, serial: &str) -> bool {
    crls(view).iter().flat_map(Crl::revoked).any(|it| it.serial.to_string() == serial)
}

/// Whether the issuer of every certificate of the view has its list there.
fn covered(view: &View) -> bool {
    let listed = |leaf: &Vec<u8>| {
        let issuer = inspect(leaf).unwrap().issuer_key_id.unwrap();
        crls(view).iter().any(|crl| crl.issuer_key_id() == issuer)
    };
    view.svids.iter().all(|svid| listed(&svid.chain_der[0]))
}

#[tokio::test]
async fn a_revocation_is_listed_at_every_node_at_once_and_its_holder_gets_another_certificate() {
    let authority = Authority::start().await;
    let (here, there) =
        (Machine::joined(&authority, "vm-1").await, Machine::joined(&authority, "vm-2").await);
    let (agent, other) = (here.start(None), there.start(None));
    let (mut seen, mut elsewhere) = (follow_web(&agent), follow_web(&other));
    let revoked = view(&mut seen).await.svids[0].serial.clone();
    let before = view(&mut elsewhere).await;
    assert!(covered(&before) && !lists(&before, &revoked), "an empty list is there from the beginning");
    authority.revoke(&revoked).await;
    let after = renewed(&mut seen, &revoked).await;
    assert_ne!(after.svids[0].key_pkcs8_der, before.svids[0].key_pkcs8_der);
    let listed = |seen: &Result<Arc<View>, _>| seen.as_ref().is_ok_and(|view| lists(view, &revoked));
    wait(&mut seen, listed).await.unwrap();
    let told = wait(&mut elsewhere, listed).await.unwrap();
    assert_eq!(told.svids[0].serial, before.svids[0].serial, "who is not concerned keeps what it has");
    agent.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn an_identity_that_is_revoked_is_replaced_on_every_node_that_serves_it_and_on_no_other() {
    let authority = Authority::start().await;
    let mut machines = Vec::new();
    for name in ["vm-1", "vm-2", "vm-3"] {
        machines.push(Machine::joined(&authority, name).await);
    }
    let agents: Vec<_> = machines.iter().map(|machine| machine.start(None)).collect();
    let mut webs = [follow_web(&agents[0]), follow_web(&agents[1])];
    let mut till =
        agents[2].identities().follow(attributes(&[("namespace", "shop"), ("service_account", "till")]));
    let before = [view(&mut webs[0]).await, view(&mut webs[1]).await];
    let beside = view(&mut till).await;
    let id = before[0].svids[0].spiffe_id.to_string();
    let revoked = authority.revoke_all(Target::SpiffeId(id)).await;
    for (seen, before) in webs.iter_mut().zip(&before) {
        let serial = &before.svids[0].serial;
        assert!(revoked.contains(serial));
        let after = renewed(seen, serial).await;
        assert_eq!(after.svids[0].spiffe_id, before.svids[0].spiffe_id);
        assert!(!revoked.contains(&after.svids[0].serial));
    }
    let all_listed = |seen: &Result<Arc<View>, _>| {
        seen.as_ref().is_ok_and(|view| revoked.iter().all(|serial| lists(view, serial)))
    };
    for seen in webs.iter_mut().chain([&mut till]) {
        wait(seen, all_listed).await.unwrap();
    }
    assert_eq!(view(&mut till).await.svids[0].serial, beside.svids[0].serial);
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_is_revoked_stops_serving_at_once_and_serves_again_when_it_has_joined_anew() {
    let authority = Authority::start().await;
    let (here, there) =
        (Machine::joined(&authority, "vm-1").await, Machine::joined(&authority, "vm-2").await);
    let (agent, other) = (here.start(None), there.start(None));
    let (mut seen, mut elsewhere) = (follow_web(&agent), follow_web(&other));
    let (held, beside) = (view(&mut seen).await, view(&mut elsewhere).await);
    let own = status(&agent, |it| it.connected).await.node_serial;
    let revoked = authority.revoke_all(Target::NodeId("prod/join_token/vm-1".to_owned())).await;
    assert!(revoked.contains(&held.svids[0].serial) && revoked.contains(&own), "{revoked:?}");
    // The stream of a node that is nobody any more ends with what it must not serve.
    wait(&mut seen, is_awaited).await.unwrap();
    status(&agent, |it| it.refused).await;
    assert!(agent.identities().svids().is_empty());
    let all_listed = |seen: &Result<Arc<View>, _>| {
        seen.as_ref().is_ok_and(|view| revoked.iter().all(|serial| lists(view, serial)))
    };
    let told = wait(&mut elsewhere, all_listed).await.unwrap();
    assert_eq!(told.svids[0].serial, beside.svids[0].serial);
    agent.stop().await;

    authority.evict("vm-1").await;
    let again = here.start(Some(authority.join_string("vm-1", &[]).await));
    assert!(is_awaited(&follow_web(&again).borrow()), "nor after a restart");
    status(&again, |it| it.refused).await;
    again.nudge();
    let after = view(&mut follow_web(&again)).await;
    assert!(!revoked.contains(&after.svids[0].serial));
    again.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn the_list_of_a_new_issuer_is_there_before_its_first_certificate() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let before = view(&mut seen).await;
    status(&agent, |it| it.connected).await;
    assert_eq!(before.crls.len(), 1);
    authority.rotate().await;
    // The very first look after the rotation: nothing has been issued by the new issuer yet.
    let told = wait(&mut seen, |seen| seen.as_ref().is_ok_and(|view| view.crls.len() == 2)).await.unwrap();
    assert_eq!(told.svids[0].serial, before.svids[0].serial);
    let due = told.svids[0].renew_at.since(machine.clock().now());
    machine.advance(&agent, due);
    let after = renewed(&mut seen, &before.svids[0].serial).await;
    assert!(covered(&after) && after.crls.len() == 2);
    agent.stop().await;
}

#[tokio::test]
async fn lists_survive_restarts_of_both_sides() {
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let revoked = view(&mut seen).await.svids[0].serial.clone();
    authority.revoke(&revoked).await;
    let before = wait(&mut seen, |seen| seen.as_ref().is_ok_and(|view| lists(view, &revoked))).await.unwrap();
    authority.stop_server().await;
    agent.stop().await;
    let agent = machine.start(None);
    let alone = follow_web(&agent).borrow().clone().unwrap();
    assert_eq!(alone.crls, before.crls, "served while the authority is away");
    authority.start_server().await;
    let refused = status(&agent, |it| it.connected).await.refused_crls;
    assert_eq!(
        (refused, follow_web(&agent).borrow().clone().unwrap().crls.clone()),
        (0, before.crls.clone())
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_banned_node_says_so_serves_what_it_has_and_is_let_in_again_with_a_new_join_string() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let held = view(&mut seen).await;
    authority.ban("vm-1").await;
    let refused = status(&agent, |it| it.refused).await;
    assert!(!refused.connected);
    assert_eq!(view(&mut seen).await.svids[0].serial, held.svids[0].serial, "until it expires");
    let troubles = checkup(&machine.state(), &*machine.clock).troubles;
    assert!(troubles[0].contains("join again"), "{troubles:?}");
    agent.stop().await;

    authority.evict("vm-1").await;
    let again = machine.start(Some(authority.join_string("vm-1", &[]).await));
    status(&again, |it| it.refused).await;
    // At its own slow pace, unless somebody asks it to look now.
    again.nudge();
    status(&again, |it| it.connected && !it.refused).await;
    assert_eq!(checkup(&machine.state(), &*machine.clock).troubles, [""; 0]);
    again.stop().await;
}
