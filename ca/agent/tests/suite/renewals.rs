//! Renewals that the authority orders: each node at its own slot, once, and those that were away as well.

use rhizome_agent::holdings::{Identities, View};
use rhizome_core::ports::Clock;
use rhizome_id::Timestamp;

use crate::support::{Authority, Machine, attributes, follow_web, renewed, status, view};

/// When the view's certificate was issued: it is backdated by a minute.
fn issued_at(view: &View) -> Timestamp {
    view.svids[0].not_before.plus(60)
}

#[tokio::test]
async fn ordered_renewals_happen_in_each_nodes_slot_also_on_one_that_connects_later() {
    let authority = Authority::start().await;
    let names = ["vm-1", "vm-2", "vm-3"];
    let mut machines = Vec::new();
    for name in names {
        machines.push(Machine::joined(&authority, name).await);
    }
    let (first, second) = (machines[0].start(None), machines[1].start(None));
    let (mut seen, mut elsewhere) = (follow_web(&first), follow_web(&second));
    let (before, beside) = (view(&mut seen).await, view(&mut elsewhere).await);
    let own = status(&second, |it| it.connected).await.node_serial;
    let own_first = status(&first, |it| it.connected).await.node_serial;
    // Both have said what they serve: two certificates each, and one of the node that is away.
    let ordered = authority.order_renewal(500, |planned| planned.certificate_count == 5).await;
    assert_eq!((ordered.node_count, ordered.connected_count, ordered.most_per_second), (3, 2, 2));
    let begin = authority.clock.now();

    // vm-1 begins at once, vm-2 after two fifths of the window.
    let after = renewed(&mut seen, &before.svids[0].serial).await;
    assert_eq!(issued_at(&after), begin);
    let own_next = status(&first, |it| it.node_serial != own_first).await.node_serial;
    machines[1].advance(&second, 199);
    first.nudge();
    machines[1].advance(&second, 1);
    let after_beside = renewed(&mut elsewhere, &beside.svids[0].serial).await;
    assert_eq!(issued_at(&after_beside), begin.plus(200), "not before its slot, and no later");
    status(&second, |it| it.node_serial != own).await;

    // vm-3 was away and missed its slot; it has what is left of the window.
    authority.clock.advance(299);
    let third = machines[2].start(None);
    let known = status(&third, |it| !it.node_serial.is_empty()).await.node_serial;
    status(&third, |it| it.connected && it.node_serial != known).await;

    // Told again on its next stream, vm-1 does nothing twice, also after a restart.
    first.stop().await;
    let first = machines[0].start(None);
    status(&first, |it| it.connected).await;
    authority.put_rule("shop", "1000").await;
    let mut other = first.identities().follow(attributes(&[("unix.uid", "1000")]));
    view(&mut other).await;
    let held = follow_web(&first).borrow().clone().unwrap();
    assert_eq!(held.svids[0].serial, after.svids[0].serial);
    assert_eq!(status(&first, |_any| true).await.node_serial, own_next);
    for agent in [first, second, third] {
        agent.stop().await;
    }
}
