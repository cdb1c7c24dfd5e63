//! A machine joins, and its node certificate lives on.

use rhizome_agent::checkup;
use rhizome_core::ports::Clock;
use rhizome_id::Digest;
use rhizome_tls::{IdentityDir, JoinString};

use crate::support::{Authority, Machine, follow_web, status, view};

#[tokio::test]
async fn a_machine_joins_with_one_string_and_holds_a_node_identity() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let stored = IdentityDir::new(machine.state().join("identity")).load().unwrap();
    assert_eq!(stored.bundle.anchors(), authority.bundle().await.anchors);
    let found = checkup(&machine.state(), &*machine.clock);
    assert_eq!(found.node.as_ref().unwrap().path(), "/rhizome/node/prod/join_token/vm-1");
    assert_eq!(found.troubles, [""; 0], "{found:?}");
    assert!(!machine.state().join("key.pending.der").exists());
}

#[tokio::test]
async fn an_authority_with_another_root_is_not_joined_and_nothing_is_written() {
    let authority = Authority::start().await;
    let machine = Machine::new(&authority);
    let good = authority.join_string("vm-1", &[]).await;
    let domain = "example.test".parse().unwrap();
    let pins = vec![Digest::from_bytes([7; 32])];
    let wrong = JoinString::new(good.addresses().to_vec(), domain, pins, good.token().to_owned()).unwrap();
    let refused = rhizome_agent::join(&machine.state(), &wrong, &machine.clock()).await.unwrap_err();
    assert!(refused.to_string().contains(&"07".repeat(32)), "{refused}");
    assert!(!machine.state().exists());
    rhizome_agent::join(&machine.state(), &good, &machine.clock()).await.unwrap();
}

#[tokio::test]
async fn an_agent_with_a_join_string_joins_by_itself_past_an_address_where_nobody_is() {
    let authority = Authority::start().await;
    let machine = Machine::new(&authority);
    let agent = machine.start(Some(authority.join_string("vm-1", &["127.0.0.1:1"]).await));
    view(&mut follow_web(&agent)).await;
    assert!(status(&agent, |it| it.connected).await.node_not_after.unwrap() > machine.clock.now());
    agent.stop().await;
}

#[tokio::test]
async fn the_node_certificate_is_renewed_and_the_connection_goes_on_with_it() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let before = status(&agent, |it| it.connected).await;
    // Renewal is drawn between 40 % and 60 % of three hours.
    machine.advance(&agent, 110 * 60);
    let after = status(&agent, |it| it.connected && it.node_serial != before.node_serial).await;
    assert!(after.node_not_after > before.node_not_after);
    view(&mut follow_web(&agent)).await;
    machine.advance(&agent, 110 * 60);
    status(&agent, |it| it.connected && it.node_serial != after.node_serial).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_node_whose_certificate_expired_joins_anew_when_it_has_a_join_string() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let before = status(&machine.start(None), |it| it.connected).await;
    machine.clock.advance(4 * 3_600);
    let agent = machine.start(None);
    let alone = status(&agent, |it| it.failures > 0).await;
    assert!(!alone.connected);
    agent.stop().await;
    let agent = machine.start(Some(authority.join_string("vm-1", &[]).await));
    let after = status(&agent, |it| it.connected).await;
    assert_ne!(after.node_serial, before.node_serial);
    view(&mut follow_web(&agent)).await;
    agent.stop().await;
}
