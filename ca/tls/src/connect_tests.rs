//! Reaching servers over loopback and Unix sockets.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tower::{Service, ServiceExt};

use super::*;
use crate::server::ServerTls;
use crate::support::{Authority, DEADLINE, HOUR, Trust, anchors, client};

const SERVER: &str = "spiffe://td/rhizome/server/r1";

fn server(authority: &Authority) -> ServerTls {
    let trust = Trust::new(anchors("td", &[authority]));
    ServerTls::new(authority.issue(SERVER).serving(), trust)
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn a_server_is_reached_over_tcp_and_tls() {
    let authority = Authority::new("td", "g1");
    let (listener, address) = listen().await;
    let config = Arc::new(client(anchors("td", &[&authority]), None));
    let server = server(&authority);
    let serve = async {
        let (io, _) = listener.accept().await.unwrap();
        let mut accepted = server.accept(io, DEADLINE).await.unwrap();
        let mut preface = [0; 24];
        accepted.stream.read_exact(&mut preface).await.unwrap();
        preface
    };
    let (connected, preface) = tokio::join!(connect(&address, Some(config)), serve);
    assert!(connected.is_ok());
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

#[tokio::test]
async fn a_server_is_reached_over_a_unix_socket_in_the_plain() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let serve = async {
        let (mut io, _) = listener.accept().await.unwrap();
        io.read_u8().await.unwrap()
    };
    let address = format!("unix://{}", path.display());
    let (connected, first) = tokio::join!(connect(&address, None), serve);
    assert!(connected.is_ok());
    assert_eq!(first, b'P');
}

#[tokio::test]
async fn one_connection_is_dialled_and_says_who_answered() {
    let authority = Authority::new("td", "g1");
    let (listener, address) = listen().await;
    let issued = authority.issue(SERVER);
    let server = ServerTls::new(issued.serving(), Trust::new(anchors("td", &[&authority])));
    let config = client(anchors("td", &[&authority]), None);
    let serve = async {
        let (io, _) = listener.accept().await.unwrap();
        let mut accepted = server.accept(io, DEADLINE).await.unwrap();
        accepted.stream.write_all(b"hello").await.unwrap();
        accepted.stream.shutdown().await.unwrap();
        accepted.stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
    };
    let call = async {
        let mut dialled = dial(&address, &config).await.unwrap();
        let mut text = String::new();
        dialled.stream.read_to_string(&mut text).await.unwrap();
        (dialled.server_leaf_der, text)
    };
    let ((leaf, text), protocol) = tokio::join!(call, serve);
    assert_eq!((leaf, text.as_str(), protocol), (issued.chain[0].clone(), "hello", None));
}

#[tokio::test]
async fn tcp_without_tls_is_refused_before_anything_is_sent() {
    let (_listener, address) = listen().await;
    let error = connect(&address, None).await.err().unwrap();
    assert!(matches!(error, ConnectError::Plaintext { .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let (listener, address) = listen().await;
    drop(listener);
    let authority = Authority::new("td", "g1");
    let config = Arc::new(client(anchors("td", &[&authority]), None));
    let error = connect(&address, Some(config)).await.err().unwrap();
    assert!(error.to_string().starts_with(&format!("cannot reach {address}: ")), "{error}");
    let error = connect("unix:///nowhere/api.sock", None).await.err().unwrap();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_to_be_trusted_is_said_with_the_reason() {
    let (authority, stranger) = (Authority::new("td", "g1"), Authority::new("td", "g2"));
    let (listener, address) = listen().await;
    let config = Arc::new(client(anchors("td", &[&stranger]), None));
    let server = server(&authority);
    let serve = async {
        let (io, _) = listener.accept().await.unwrap();
        server.accept(io, DEADLINE).await.err()
    };
    let (connected, refused) = tokio::join!(connect(&address, Some(config)), serve);
    let error = connected.err().unwrap();
    assert!(matches!(error, ConnectError::ServerRefused { .. }), "{error}");
    assert!(error.to_string().contains("Rhizome root g1"), "{error}");
    assert!(refused.is_some());
}

#[tokio::test]
async fn something_that_does_not_speak_tls_is_said() {
    let authority = Authority::new("td", "g1");
    let (listener, address) = listen().await;
    let config = Arc::new(client(anchors("td", &[&authority]), None));
    let serve = async {
        let (mut io, _) = listener.accept().await.unwrap();
        io.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
        io
    };
    let (connected, _io) = tokio::join!(connect(&address, Some(config)), serve);
    let error = connected.err().unwrap();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_refuses_the_client_is_told_apart_at_the_first_call() {
    let authority = Authority::new("td", "g1");
    let (listener, address) = listen().await;
    let over = authority.issue_for("spiffe://td/rhizome/admin/alice", -2 * HOUR, -HOUR);
    let config = Arc::new(client(anchors("td", &[&authority]), Some(over.identity())));
    let server = server(&authority);
    let call = async {
        let mut channel = connect(&address, Some(config)).await.unwrap();
        let request = tonic::codegen::http::Request::new(tonic::body::Body::empty());
        let sent = async { channel.ready().await?.call(request).await };
        cause_of(&sent.await.err().unwrap())
    };
    let serve = async {
        let (io, _) = listener.accept().await.unwrap();
        server.accept(io, DEADLINE).await.err().unwrap()
    };
    let (said, refused) = tokio::join!(call, serve);
    assert_eq!(refused.code(), "tls_client_refused");
    assert!(said.contains("does not accept this client's certificate"), "{said}");
}

#[tokio::test]
async fn a_channel_that_cannot_reconnect_gives_its_reason_with_the_call() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let address = format!("unix://{}", path.display());
    let (connected, io) = tokio::join!(connect(&address, None), listener.accept());
    let mut channel = connected.unwrap();
    drop((io, listener));
    std::fs::remove_file(&path).unwrap();
    let mut said = String::new();
    // The first call may still meet the old connection's end.
    for _ in 0..3 {
        let request = tonic::codegen::http::Request::new(tonic::body::Body::empty());
        let sent = async { channel.ready().await?.call(request).await };
        said = cause_of(&sent.await.err().unwrap());
    }
    assert!(said.starts_with(&format!("cannot reach {address}: ")), "{said}");
}

#[test]
fn addresses_have_two_forms_and_no_others() {
    for good in ["localhost:8443", "ca.example.org:1", "10.0.0.1:443", "[::1]:443", "unix:///run/x.sock"] {
        assert!(Target::parse(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "localhost",
        ":443",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "::1:443",
        "https://localhost:443",
        "unix://run/x.sock",
        "unix://",
        "unix:///a\0b",
        "user@host:1",
        "a b:1",
    ] {
        let error = Target::parse(bad).err();
        assert!(matches!(error, Some(ConnectError::Address { .. })), "{bad}");
    }
}
