//! Orders to renew: planned, recorded, and told to every node that they concern.

use std::collections::BTreeSet;

use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use rhizome_proto::admin::v1::renew_nodes_request::Target;
use rhizome_proto::node::v1 as wire;
use rhizome_proto::node::v1::directive::Order;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::node::v1::sync_request::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::{Node, TestServer, refusal};

const HOUR: i64 = 3_600;

type Stream = (mpsc::Sender<wire::SyncRequest>, Streaming<wire::SyncResponse>);

fn request(target: Target) -> admin::RenewNodesRequest {
    admin::RenewNodesRequest {
        target: Some(target),
        window_seconds: HOUR,
        reason: "a new root".into(),
        dry_run: false,
    }
}

const ALL: Target = Target::All(admin::AllNodes {});

async fn renew(
    server: &TestServer,
    request: admin::RenewNodesRequest,
) -> Result<admin::RenewNodesResponse, Status> {
    let mut client = NodeAdminServiceClient::new(server.local().await);
    client.renew_nodes(request).await.map(tonic::Response::into_inner)
}

/// A stream of `node`, and the orders to renew in its first answer.
async fn listen(node: &Node) -> (Stream, Vec<wire::RenewBy>) {
    let (sender, requests) = mpsc::channel(4);
    let hello = wire::Hello { cursor: 0, agent_version: String::new() };
    sender.send(wire::SyncRequest { message: Some(Message::Hello(hello)) }).await.unwrap();
    let answers = NodeServiceClient::new(node.channel.clone()).sync(ReceiverStream::new(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    ((sender, answers), orders(first))
}

fn orders(answer: wire::SyncResponse) -> Vec<wire::RenewBy> {
    let order = |directive: wire::Directive| match directive.order {
        Some(Order::RenewBy(order)) => Some(order),
        Some(Order::StopServing(_)) | None => None,
    };
    answer.directives.into_iter().filter_map(order).collect()
}

/// The next order to renew on an open stream.
async fn told((_, answers): &mut Stream) -> wire::RenewBy {
    loop {
        if let Some(order) = orders(answers.message().await.unwrap().unwrap()).pop() {
            return order;
        }
    }
}

fn slot(order: &wire::RenewBy) -> i64 {
    order.slot.unwrap().seconds
}

#[tokio::test]
async fn a_dry_run_tells_what_would_be_and_orders_nothing() {
    let server = TestServer::start().await;
    let vm = server.join("vm-1").await;
    server.join("vm-2").await;
    let (_stream, heard) = listen(&vm).await;
    assert_eq!(heard, []);
    let stored = server.everything_stored().await;
    let dry = admin::RenewNodesRequest { dry_run: true, ..request(ALL) };
    let planned = renew(&server, dry).await.unwrap();
    assert_eq!((planned.applied, planned.name.as_str()), (false, ""));
    assert_eq!((planned.node_count, planned.connected_count, planned.certificate_count), (2, 1, 2));
    assert_eq!(planned.deadline.unwrap().seconds, server.now().unix() + HOUR);
    assert_eq!(server.everything_stored().await, stored);
    assert_eq!(listen(&vm).await.1, []);
    server.stop().await;
}

#[tokio::test]
async fn an_order_reaches_who_is_connected_and_who_connects_before_the_window_ends() {
    let server = TestServer::start().await;
    let (here, late, out) = (server.join("vm-1").await, server.join("vm-2").await, server.join("vm-3").await);
    let (mut stream, _) = listen(&here).await;
    let begin = server.now().unix();
    let ordered = renew(&server, request(ALL)).await.unwrap();
    assert_eq!((ordered.applied, ordered.node_count), (true, 3));
    server.recorded(&["node.renew", "all nodes", &ordered.name, "a new root", "local:uid="]).await;
    let heard = told(&mut stream).await;
    assert_eq!((heard.name.as_str(), heard.reason.as_str()), (ordered.name.as_str(), "a new root"));
    assert_eq!(heard.deadline, ordered.deadline);
    let mut slots = BTreeSet::from([slot(&heard)]);
    server.clock.advance(HOUR - 1);
    let (_stream, heard) = listen(&late).await;
    let [order] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!((&order.name, slot(order)), (&ordered.name, begin + HOUR - 1), "what was missed comes late");
    slots.insert(slot(order));
    assert!(slots.iter().all(|slot| (begin..begin + HOUR).contains(slot)) && slots.len() == 2);
    server.clock.advance(1);
    assert_eq!(listen(&out).await.1, [], "the window has ended");
    server.stop().await;
}

#[tokio::test]
async fn everybody_has_a_slot_of_its_own_that_grows_with_what_it_serves() {
    let server = TestServer::start().await;
    let nodes = [server.join("vm-1").await, server.join("vm-2").await, server.join("vm-3").await];
    let mut streams = Vec::new();
    for node in &nodes {
        streams.push(listen(node).await.0);
    }
    let not_after = server.now().plus(1_800);
    let served = |number: u8, count: u32| {
        let issuer = wire::ServedIssuer {
            authority_key_id: vec![number; 20].into(),
            count,
            earliest_not_after: Some(prost_types::Timestamp { seconds: not_after.unix(), nanos: 0 }),
        };
        Message::ServedIssuers(wire::ServedIssuers { issuers: vec![issuer], with_own: true })
    };
    // The last one serves what ends first, and most; its own certificate is among them.
    streams[2].0.send(wire::SyncRequest { message: Some(served(7, 998)) }).await.unwrap();
    let dry = || admin::RenewNodesRequest { dry_run: true, ..request(ALL) };
    while renew(&server, dry()).await.unwrap().certificate_count != 1_000 {
        tokio::task::yield_now().await;
    }
    let ordered = renew(&server, request(ALL)).await.unwrap();
    assert_eq!((ordered.certificate_count, ordered.most_per_second), (1_000, 998));
    let mut slots = Vec::new();
    for stream in &mut streams {
        slots.push(slot(&told(stream).await) - server.now().unix());
    }
    assert_eq!(slots, [3_592, 3_596, 0], "998 of 1000 tokens go first");
    server.stop().await;
}

#[tokio::test]
async fn one_node_or_one_cluster_can_be_meant_and_who_is_banned_is_left_out() {
    let server = TestServer::start().await;
    let (one, other) = (server.join("vm-1").await, server.join("vm-2").await);
    let ordered = renew(&server, request(Target::NodeId(one.id.clone()))).await.unwrap();
    assert_eq!((ordered.applied, ordered.node_count), (true, 1));
    assert_eq!((listen(&one).await.1.len(), listen(&other).await.1.len()), (1, 0));
    let cluster = renew(&server, request(Target::Cluster("prod".into()))).await.unwrap();
    assert_eq!(cluster.node_count, 2);
    let names: BTreeSet<String> = listen(&one).await.1.into_iter().map(|order| order.name).collect();
    assert_eq!(names, BTreeSet::from([ordered.name, cluster.name]), "orders stand beside each other");
    let elsewhere = renew(&server, request(Target::Cluster("lab".into()))).await.unwrap();
    assert_eq!((elsewhere.applied, elsewhere.node_count), (false, 0), "nobody to tell, nothing to record");
    let ban = admin::BanNodeRequest { id: one.id.clone(), reason: "stolen".into() };
    NodeAdminServiceClient::new(server.local().await).ban_node(ban).await.unwrap();
    assert_eq!(renew(&server, request(ALL)).await.unwrap().node_count, 1);
    server.stop().await;
}

#[tokio::test]
async fn an_order_that_says_too_little_or_too_much_is_refused() {
    let server = TestServer::start().await;
    server.join("vm-1").await;
    let usual = || request(ALL);
    let table = [
        (admin::RenewNodesRequest { target: None, ..usual() }, Code::InvalidArgument),
        (request(Target::NodeId("prod/join_token/vm-9".into())), Code::NotFound),
        (request(Target::Cluster("Not A Name".into())), Code::InvalidArgument),
        (admin::RenewNodesRequest { window_seconds: 0, ..usual() }, Code::InvalidArgument),
        (admin::RenewNodesRequest { window_seconds: 604_801, ..usual() }, Code::InvalidArgument),
        (admin::RenewNodesRequest { reason: " ".into(), ..usual() }, Code::InvalidArgument),
    ];
    let stored = server.everything_stored().await;
    for (request, code) in table {
        assert_eq!(refusal(renew(&server, request.clone()).await).0, code, "{request:?}");
    }
    assert_eq!(server.everything_stored().await, stored);
    for _ in 0..256 {
        renew(&server, usual()).await.unwrap();
    }
    assert_eq!(
        refusal(renew(&server, usual()).await).0,
        Code::FailedPrecondition,
        "a bounded number is in force"
    );
    server.clock.advance(HOUR);
    renew(&server, usual()).await.unwrap();
    server.stop().await;
}
