//! The authority is away, the agent restarts, the disk lies: workloads keep what they had.

use std::fs;

use crate::support::{Authority, Machine, follow_web, is_awaited, renewed, status, view, wait};

#[tokio::test]
async fn an_agent_that_restarts_while_the_authority_is_away_serves_what_it_held_and_recovers() {
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let before = view(&mut follow_web(&agent)).await;
    let cursor = status(&agent, |it| it.connected).await.cursor;
    agent.stop().await;
    authority.stop_server().await;

    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let at_once = seen.borrow_and_update().clone().unwrap();
    assert_eq!(at_once.svids[0].serial, before.svids[0].serial);
    assert_eq!(at_once.svids[0].key_pkcs8_der, before.svids[0].key_pkcs8_der);
    assert_eq!(at_once.svids[0].renew_at, before.svids[0].renew_at, "drawn once");
    assert_eq!(at_once.bundles, before.bundles);
    status(&agent, |it| it.failures > 1).await;

    machine.advance(&agent, 3_000);
    authority.start_server().await;
    let after = renewed(&mut seen, &before.svids[0].serial).await;
    assert!(after.svids[0].not_after > before.svids[0].not_after);
    let followed = status(&agent, |it| it.connected).await.cursor;
    assert!(followed > 0 && followed != cursor, "the new process has cursors of its own");
    agent.stop().await;
}

#[tokio::test]
async fn an_expired_identity_is_not_served_and_comes_back_with_the_authority() {
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    let before = view(&mut seen).await;
    authority.stop_server().await;
    agent.stop().await;
    machine.clock.advance(3_700);
    let agent = machine.start(None);
    let mut seen = follow_web(&agent);
    assert!(is_awaited(&seen.borrow_and_update()));
    authority.start_server().await;
    assert_ne!(view(&mut seen).await.svids[0].serial, before.svids[0].serial);
    agent.stop().await;
}

#[tokio::test]
async fn a_corrupt_state_is_kept_aside_and_everything_is_fetched_anew() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let before = view(&mut follow_web(&agent)).await;
    agent.stop().await;
    let path = machine.state().join("state.sealed");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&path, &bytes).unwrap();

    let agent = machine.start(None);
    let aside = agent.kept_aside();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(&aside[0].path).unwrap(), bytes);
    let after = view(&mut follow_web(&agent)).await;
    assert_ne!(after.svids[0].serial, before.svids[0].serial);
    assert_eq!(status(&agent, |it| it.connected).await.aside, 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_damaged_node_identity_costs_no_workload_its_certificate_and_is_replaced_by_a_join_string() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let before = view(&mut follow_web(&agent)).await;
    agent.stop().await;
    fs::write(machine.state().join("identity/key.pem"), "nonsense").unwrap();

    let agent = machine.start(None);
    let at_once = follow_web(&agent).borrow().clone().unwrap();
    assert_eq!(at_once.svids[0].serial, before.svids[0].serial);
    status(&agent, |it| it.failures > 0).await;
    agent.stop().await;

    let agent = machine.start(Some(authority.join_string("vm-1", &[]).await));
    status(&agent, |it| it.connected).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_cannot_be_sealed_is_served_and_not_acknowledged() {
    let authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    // A directory where the temporary file should be: no write can succeed, whoever we are.
    fs::create_dir_all(machine.state().join(".state.sealed.tmp/x")).unwrap();
    let agent = machine.start(None);
    view(&mut follow_web(&agent)).await;
    status(&agent, |it| it.connected && it.unsealed > 0).await;
    assert_eq!(authority.acknowledged("vm-1").await, None);
    fs::remove_dir_all(machine.state().join(".state.sealed.tmp")).unwrap();
    authority.acknowledges("vm-1", 2).await;
    wait(&mut agent.status(), |it| it.unsealed == 0).await;
    agent.stop().await;
}
