//! The secret discovery service over the socket; the protocol itself is tested without one.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::rpc::Status as Detail;
use rhizome_agent::holdings::{NotYet, Standing};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::{Host, WEB, soon};

fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

async fn open(host: &Host) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
    let (requests, outgoing) = mpsc::channel(4);
    // No security header: Envoy cannot send one.
    let mut client = SecretDiscoveryServiceClient::new(host.channel().await);
    let stream = soon(client.stream_secrets(ReceiverStream::new(outgoing))).await.unwrap();
    (requests, stream.into_inner())
}

#[tokio::test]
async fn a_stream_is_served_acknowledged_updated_and_ended() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let (requests, mut stream) = open(&host).await;
    requests.send(ask(&["default", "ROOTCA", "unknown"], "")).await.unwrap();
    let first = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!((first.resources.len(), first.resource_errors.len()), (2, 1));
    assert!(
        host.identities.standings.borrow().values().all(|it| *it != Standing::Given(1)),
        "not accepted yet"
    );
    requests.send(ask(&["default", "ROOTCA", "unknown"], &first.nonce)).await.unwrap();
    host.identities.until_given(1).await;
    host.identities.set(host.view(2, "renewed"));
    let second = soon(stream.message()).await.unwrap().unwrap();
    let mut refusal = ask(&["default", "ROOTCA", "unknown"], &second.nonce);
    refusal.error_detail = Some(Detail { message: "no".to_owned(), ..Default::default() });
    requests.send(refusal).await.unwrap();
    host.identities.set(host.view(3, "better"));
    let third = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(third.version_info, "3");
    assert!(host.identities.standings.borrow().values().all(|it| *it != Standing::Given(2)), "refused");
    requests.send(ask(&["default", "ROOTCA", "unknown"], &third.nonce)).await.unwrap();
    host.identities.until_given(3).await;
    host.identities.set(Err(NotYet::Denied("gone".to_owned())));
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), Code::PermissionDenied);
    host.identities.until_all_gone().await;
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_is_dropped() {
    let host = Host::serving(|settings| settings.limits.answer = Duration::from_millis(200));
    host.identities.set(host.view(1, "leaf"));
    let (requests, mut stream) = open(&host).await;
    requests.send(ask(&["default"], "")).await.unwrap();
    soon(stream.message()).await.unwrap().unwrap();
    assert!(soon(stream.message()).await.is_err());
    host.identities.until_all_gone().await;
}

#[tokio::test]
async fn a_stream_that_asks_nothing_subscribes_to_nothing() {
    let host = Host::serving(|settings| settings.limits.answer = Duration::from_millis(50));
    host.identities.set(host.view(1, "leaf"));
    let (requests, mut stream) = open(&host).await;
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), Code::Unavailable);
    assert!(host.identities.standings.borrow().is_empty());
    drop(requests);
}

#[tokio::test]
async fn a_stream_that_has_asked_nothing_yet_takes_a_place() {
    let host = Host::serving(|settings| settings.limits.streams_per_user = 1);
    host.identities.set(host.view(1, "leaf"));
    let (requests, _stream) = open(&host).await;
    let mut client = SecretDiscoveryServiceClient::new(host.channel().await);
    let refused = soon(client.stream_secrets(tokio_stream::pending::<DiscoveryRequest>())).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    assert_eq!(host.doors.open_streams(), 1);
    drop(requests);
}

#[tokio::test]
async fn a_wrong_type_is_refused() {
    let host = Host::serving(|_| {});
    let (requests, mut stream) = open(&host).await;
    let request = DiscoveryRequest { type_url: "type.googleapis.com/x.Cluster".to_owned(), ..ask(&[], "") };
    requests.send(request).await.unwrap();
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_fetch_is_answered_once() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(4, "leaf"));
    let mut client = SecretDiscoveryServiceClient::new(host.channel().await);
    let answer = soon(client.fetch_secrets(ask(&[WEB, "ALL"], ""))).await.unwrap().into_inner();
    assert_eq!((answer.resources.len(), answer.version_info.as_str()), (2, "4"));
    let refused = soon(client.fetch_secrets(ask(&["spiffe://example.org/ns/prod/sa/other"], ""))).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_incremental_form_is_served_too() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let (requests, outgoing) = mpsc::channel(4);
    let mut client = SecretDiscoveryServiceClient::new(host.channel().await);
    let subscribe = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["default".to_owned(), "ROOTCA".to_owned()],
        ..Default::default()
    };
    requests.send(subscribe).await.unwrap();
    let mut stream = soon(client.delta_secrets(ReceiverStream::new(outgoing))).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(first.resources.len(), 2);
    let accept = DeltaDiscoveryRequest { response_nonce: first.nonce, ..Default::default() };
    requests.send(accept).await.unwrap();
    host.identities.until_given(1).await;
    host.identities.set(host.view(2, "renewed"));
    let second = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(second.resources.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["default"]);
}
