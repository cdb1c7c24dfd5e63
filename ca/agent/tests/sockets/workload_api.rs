//! The Workload API over the socket.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use rhizome_agent::holdings::{NotYet, Standing};
use rhizome_core::attributes::AttributeName;
use rhizome_proto::workload as wire;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};

use crate::support::{Host, WEB, soon, svid};

/// Calls a method with an empty message and these values of the security header; the status of the answer's head or,
/// where it has none, of its first message.
async fn code_of(host: &Host, method: &str, values: &[&str]) -> Code {
    let mut client = tonic::client::Grpc::new(host.channel().await);
    client.ready().await.unwrap();
    let mut request = Request::new(());
    for value in values {
        request.metadata_mut().append("workload.spiffe.io", value.parse().unwrap());
    }
    let path: PathAndQuery = format!("/SpiffeWorkloadAPI/{method}").parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), wire::X509svidResponse>::default();
    match soon(client.server_streaming(request, path, codec)).await {
        Err(status) => status.code(),
        Ok(answer) => match soon(answer.into_inner().message()).await {
            Err(status) => status.code(),
            Ok(_) => Code::Ok,
        },
    }
}

#[tokio::test]
async fn every_method_wants_the_security_header_once_and_exactly() {
    use prost::Message as _;
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let set = prost_types::FileDescriptorSet::decode(wire::FILE_DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let methods: Vec<&str> = services.flat_map(|service| &service.method).map(|it| it.name()).collect();
    assert_eq!(methods.len(), 7);
    for method in methods.into_iter().chain(["NoSuchMethod"]) {
        for values in [
            &[][..],
            &["True"],
            &["TRUE"],
            &["1"],
            &[""],
            &["true", "true"],
            &["true", "false"],
            &["true,true"],
        ] {
            assert_eq!(code_of(&host, method, values).await, Code::InvalidArgument, "{method} {values:?}");
        }
        let expected = match method {
            "FetchX509SVID" | "FetchX509Bundles" | "FetchJWTBundles" => Code::Ok,
            // An empty message lacks what these need.
            "FetchJWTSVID" | "ValidateJWTSVID" => Code::InvalidArgument,
            _ => Code::Unimplemented,
        };
        assert_eq!(code_of(&host, method, &["true"]).await, expected, "{method}");
    }
}

#[tokio::test]
async fn identities_come_at_once_whole_and_again_when_they_change() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let mut client = host.workload_api().await;
    let mut stream = soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    let own = Bytes::copy_from_slice(host.roots[0].der());
    let expected = wire::X509svid {
        spiffe_id: WEB.to_owned(),
        x509_svid: "leaf+intermediate".into(),
        x509_svid_key: "private key".into(),
        bundle: own,
        hint: String::new(),
    };
    assert_eq!(first.svids, [expected]);
    let foreign = Bytes::copy_from_slice(host.roots[1].der());
    assert_eq!(first.federated_bundles, [("spiffe://other.example".to_owned(), foreign)].into());
    host.identities.until_given(1).await;
    host.identities.set(host.view(2, "renewed"));
    let second = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(second.svids[0].x509_svid, "renewed+intermediate");
    host.identities.until_given(2).await;
    drop((stream, client));
    host.identities.until_all_gone().await;
}

#[tokio::test]
async fn what_vanishes_mid_stream_is_redacted() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let mut client = host.workload_api().await;
    let mut svids = soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap().into_inner();
    let mut bundles =
        soon(client.fetch_x509_bundles(wire::X509BundlesRequest {})).await.unwrap().into_inner();
    soon(svids.message()).await.unwrap().unwrap();
    soon(bundles.message()).await.unwrap().unwrap();
    host.identities.set(Err(NotYet::Denied("the rule is gone".to_owned())));
    for status in [soon(svids.message()).await.unwrap_err(), soon(bundles.message()).await.unwrap_err()] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    }
    host.identities.until_all_gone().await;
}

#[tokio::test]
async fn who_has_no_identity_is_told_so_without_the_reason() {
    let host = Host::serving(|settings| settings.limits.patience = Duration::from_millis(20));
    for (value, code, message) in [
        (NotYet::Denied("secret reason".to_owned()), Code::PermissionDenied, "no identity issued"),
        (NotYet::Starting, Code::Unavailable, "the agent has no identity for this workload yet; try again"),
    ] {
        host.identities.set(Err(value));
        let mut client = host.workload_api().await;
        let mut stream = soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap().into_inner();
        let status = soon(stream.message()).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message));
    }
}

#[tokio::test]
async fn an_agent_that_is_starting_is_waited_for() {
    let host = Host::serving(|_| {});
    let mut client = host.workload_api().await;
    let mut stream = soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap().into_inner();
    host.identities.until(|all| all.values().any(|it| *it == Standing::Nothing)).await;
    host.identities.set(host.view(1, "leaf"));
    assert!(soon(stream.message()).await.unwrap().is_some());
}

#[tokio::test]
async fn bundles_are_not_repeated_when_their_bytes_are_the_same() {
    let mut host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let mut client = host.workload_api().await;
    let mut stream = soon(client.fetch_x509_bundles(wire::X509BundlesRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    let mut domains: Vec<_> = first.bundles.keys().map(String::as_str).collect();
    domains.sort_unstable();
    assert_eq!(domains, ["spiffe://example.org", "spiffe://other.example"]);
    // Other identities and another sequence, but the same roots: in force, and not sent.
    host.identities.set(host.view(2, "renewed"));
    host.identities.until_given(2).await;
    let before = host.roots[0].clone();
    host.roots[0] = crate::support::root("example.org");
    host.identities.set(host.view(3, "renewed"));
    let second = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(second.bundles["spiffe://example.org"], host.roots[0].der());
    assert_ne!(host.roots[0].der(), before.der());
}

#[tokio::test]
async fn bundles_come_while_no_identity_is_there_and_reach_who_holds_one() {
    let mut host = Host::serving(|_| {});
    let batch = "spiffe://example.org/ns/prod/sa/batch";
    let both = vec![svid(WEB, "web", "web"), svid(batch, "batch", "batch")];
    host.identities.set(host.awaiting(1, Vec::new(), &[WEB, batch]));
    let mut client = host.workload_api().await;
    let mut bundles =
        soon(client.fetch_x509_bundles(wire::X509BundlesRequest {})).await.unwrap().into_inner();
    assert_eq!(soon(bundles.message()).await.unwrap().unwrap().bundles.len(), 2, "nothing else is there");
    let mut keys = soon(client.fetch_jwt_bundles(wire::JwtBundlesRequest {})).await.unwrap().into_inner();
    assert_eq!(soon(keys.message()).await.unwrap().unwrap().bundles.len(), 2);
    let mut svids = soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap().into_inner();
    host.identities.until(|all| all.values().any(|it| *it == Standing::Nothing)).await;
    host.identities.set(host.view_of(2, both.clone()));
    let shown = |message: &wire::X509svidResponse| {
        message.svids.iter().map(|it| it.x509_svid.clone()).collect::<Vec<_>>()
    };
    let first = soon(svids.message()).await.unwrap().unwrap();
    assert_eq!(shown(&first), ["web+intermediate", "batch+intermediate"]);
    host.identities.until_given(2).await;

    // Another identity is to be the default one, and cannot be had: new roots go out with what is held, as it is held.
    host.roots[0] = crate::support::root("example.org");
    let other = "spiffe://example.org/ns/prod/sa/other";
    let renewed = svid(batch, "renewed", "batch");
    host.identities.set(host.awaiting(3, vec![renewed.clone(), both[0].clone()], &[other]));
    let second = soon(svids.message()).await.unwrap().unwrap();
    assert_eq!(shown(&second), ["web+intermediate", "renewed+intermediate"], "the first stays the first");
    assert_eq!(second.svids[0].bundle, host.roots[0].der());
    assert!(soon(bundles.message()).await.unwrap().is_some(), "by themselves, too");
    host.identities.until_given(3).await;
    // What it takes for its default one is gone: it waits, and holds what it holds for as long as that is valid.
    host.roots[0] = crate::support::root("example.org");
    host.identities.set(host.awaiting(4, vec![renewed.clone()], &[WEB, other]));
    assert!(soon(bundles.message()).await.unwrap().is_some());
    host.identities.until_given(4).await;
    let until = rhizome_id::Timestamp::from_unix(4_000_000_000);
    host.identities.until(|all| all.values().any(|it| *it == Standing::GivenUntil(3, until))).await;
    host.identities.set(host.view_of(5, vec![svid(other, "other", ""), renewed]));
    let third = soon(svids.message()).await.unwrap().unwrap();
    assert_eq!(shown(&third), ["other+intermediate", "renewed+intermediate"]);
}

#[tokio::test]
async fn hints_are_unique_in_a_message_and_not_too_long() {
    let host = Host::serving(|_| {});
    let (longest, long) = ("h".repeat(1024), "h".repeat(1025));
    let hints = ["internal", "internal", "", "", longest.as_str(), long.as_str()];
    let svids = hints.iter().map(|hint| svid(WEB, "leaf", hint)).collect();
    host.identities.set(host.view_of(1, svids));
    let mut client = host.workload_api().await;
    let mut stream = soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap().into_inner();
    let message = soon(stream.message()).await.unwrap().unwrap();
    let shown: Vec<_> = message.svids.iter().map(|it| it.hint.as_str()).collect();
    assert_eq!(shown, ["internal", "", "", "", longest.as_str(), ""]);
}

#[tokio::test]
async fn a_caller_is_what_the_kernel_says_it_is() {
    let host = Host::serving(|settings| settings.unix.hash_executables = true);
    host.identities.set(host.view(1, "leaf"));
    let mut client = host.workload_api().await;
    let mut stream = soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap().into_inner();
    soon(stream.message()).await.unwrap();
    let asked = host.identities.asked.lock().unwrap().clone();
    let uid = rustix::process::geteuid().as_raw().to_string();
    let program = std::env::current_exe().unwrap();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].single(&AttributeName::UnixUid), Some(uid.as_str()));
    assert_eq!(asked[0].single(&AttributeName::UnixPath), program.to_str());
    assert_eq!(asked[0].single(&AttributeName::UnixSha256).map(str::len), Some(64));
}

#[tokio::test]
async fn a_caller_that_does_not_read_loses_its_connection() {
    let host = Host::serving(|settings| settings.limits.stall = Duration::from_millis(100));
    let endpoint = format!("unix://{}", host.path().display());
    // Room for less than one message. The transport takes the first whole and keeps the second at hand; the third
    // waits for ever.
    let endpoint =
        tonic::transport::Endpoint::from_shared(endpoint).unwrap().initial_stream_window_size(1024);
    let channel = endpoint.connect().await.unwrap();
    let mut client = wire::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(channel);
    let mut request = Request::new(wire::X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let large = |version| host.view(version, &"leaf".repeat(10_000));
    host.identities.set(large(1));
    let unread = soon(client.fetch_x509svid(request)).await.unwrap();
    host.identities.until_given(1).await;
    host.identities.set(large(2));
    host.identities.until_given(2).await;
    host.identities.set(large(3));
    host.identities.until_all_gone().await;
    // The whole connection is gone, not only the stream.
    let mut stream = unread.into_inner();
    while let Ok(Some(_)) = soon(stream.message()).await {}
    tokio::task::spawn_blocking(move || {
        while host.doors.open_connections() > 0 {
            std::thread::yield_now()
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let host = Host::serving(|settings| settings.limits.preface = Duration::from_millis(50));
    let mut silent = UnixStream::connect(host.path()).unwrap();
    let read = tokio::task::spawn_blocking(move || silent.read_to_end(&mut Vec::new()));
    drop(soon(read).await.unwrap());
}

#[tokio::test]
async fn a_process_has_only_so_many_connections() {
    let host = Host::serving(|settings| settings.limits.connections_per_process = 2);
    host.identities.set(host.view(1, "leaf"));
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut client = host.workload_api().await;
        soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap();
        kept.push(client);
    }
    let mut third = UnixStream::connect(host.path()).unwrap();
    let read = tokio::task::spawn_blocking(move || third.read_to_end(&mut Vec::new()));
    drop(soon(read).await.unwrap());
}

#[tokio::test]
async fn streams_end_when_the_agent_stops_and_the_socket_goes() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let mut client = host.workload_api().await;
    let mut stream = soon(client.fetch_x509svid(wire::X509svidRequest {})).await.unwrap().into_inner();
    soon(stream.message()).await.unwrap();
    let (stopped, status) = tokio::join!(soon(host.spawner.shut_down()), soon(stream.message()));
    assert_eq!((stopped, status.unwrap_err().code()), ((), Code::Unavailable));
    assert!(!host.path().exists());
}

#[tokio::test]
async fn health_and_reflection_are_on_the_socket() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};
    let host = Host::serving(|_| {});
    let mut health = HealthClient::new(host.channel().await);
    for service in rhizome_agent::socket::SERVICES.into_iter().chain([""]) {
        let answer = soon(health.check(HealthCheckRequest { service: service.to_owned() })).await.unwrap();
        assert_eq!(answer.into_inner().status, 1, "{service}");
    }
    let mut reflection = ServerReflectionClient::new(host.channel().await);
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let asked = tokio_stream::once(request);
    let mut answers = soon(reflection.server_reflection_info(asked)).await.unwrap().into_inner();
    let answer = soon(answers.message()).await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("no list") };
    let name = |name: &str| ServiceResponse { name: name.to_owned() };
    assert!(services.service.contains(&name("SpiffeWorkloadAPI")), "{services:?}");
    assert!(!services.service.iter().any(|it| it.name.starts_with("rhizome.")), "{services:?}");
}

#[tokio::test]
async fn watchers_of_health_and_of_reflection_are_counted_like_every_stream() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let host = Host::serving(|settings| settings.limits.streams_per_user = 3);
    let channel = host.channel().await;
    let mut health = HealthClient::new(channel.clone());
    let watch = || HealthCheckRequest { service: String::new() };
    let mut watches = Vec::new();
    for _ in 0..2 {
        let mut stream = soon(health.watch(watch())).await.unwrap().into_inner();
        soon(stream.message()).await.unwrap().unwrap();
        watches.push(stream);
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let (asking, questions) = tokio::sync::mpsc::channel(1);
    let asked = reflection.server_reflection_info(tokio_stream::wrappers::ReceiverStream::new(questions));
    let reflected = soon(asked).await.unwrap();
    assert_eq!(soon(health.watch(watch())).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(soon(health.check(watch())).await.unwrap_err().code(), Code::Unavailable, "calls count, too");
    assert_eq!(host.doors.open_streams(), 3);
    drop((watches, asking, reflected));
    let freed = async {
        while host.doors.open_streams() > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(freed).await;
    soon(health.check(watch())).await.unwrap();
}

#[tokio::test]
async fn watchers_are_told_when_workloads_can_be_served_and_when_not() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let host = Host::serving(|_| {});
    let mut health = HealthClient::new(host.channel().await);
    for service in rhizome_agent::socket::SERVICES.into_iter().chain([""]) {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut stream = soon(health.watch(request.clone())).await.unwrap().into_inner();
        for (ready, status) in [
            (true, ServingStatus::Serving),
            (false, ServingStatus::NotServing),
            (true, ServingStatus::Serving),
        ] {
            host.identities.ready.send_replace(ready);
            // It may be told again what it knows.
            while soon(stream.message()).await.unwrap().unwrap().status() != status {}
            assert_eq!(soon(health.check(request.clone())).await.unwrap().into_inner().status(), status);
        }
    }
}
