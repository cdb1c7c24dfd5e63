//! What is no message, and what comes beside messages: broken protobuf, oversized frames, forged and doubled metadata.
//!
//! Laws: whatever arrives, the connection's other calls and the server go on.
//! Sources: CVE-2022-39388 (identity from headers), ca/docs/attacks.md §1.4.

use bytes::{Buf as _, BufMut as _, Bytes};
use rhizome_proto::METADATA_CODE;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::client::{
    Answer, Refusal, anonymous, attest, identified, local, new_csr, runtime, sign, token, workload,
};
use crate::server::Server;
use crate::support::must;

/// Bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

const SIGN: &str = "/rhizome.ca.v1.CertificateService/SignCertificate";

async fn send(channel: &Channel, method: &'static str, message: impl Into<Bytes>) -> Answer<Bytes> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static(method);
    let answer = client.unary(Request::new(message.into()), path, Raw).await?;
    Ok(answer.into_inner())
}

/// Field `number` with this content (protobuf encoding, wire type 2).
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(length.try_into().unwrap());
    [bytes, content.to_vec()].concat()
}

#[test]
fn what_is_no_message_is_refused_and_the_connection_goes_on() {
    let server = Server::start();
    let node = server.join_node("n1");
    runtime().block_on(async {
        let channel = identified(&server, &node).await;
        let inside = |content: &[u8]| field(1, content);
        let malformed: Vec<(&str, Vec<u8>)> = vec![
            ("a number that does not end", vec![0xff; 11]),
            ("a length of 2 GiB", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x07]),
            ("a length beyond the end", vec![0x0a, 10, 0]),
            ("field number 0", vec![0x02, 0]),
            ("a wire type that is not", vec![0x0f, 0]),
            ("a number for a message", vec![0x08, 1]),
            ("a request id that is no UTF-8", inside(&field(1, &[0xff, 0xfe]))),
            ("a wish that is no UTF-8", inside(&field(5, b"spiffe://example.test/\xc0\xae"))),
            ("an attribute that is half a surrogate", inside(&field(4, &field(1, b"\xed\xa0\x80")))),
            ("10,000 open groups", vec![0x1b; 10_000]),
            ("10,000 closed groups", vec![0x1c; 10_000]),
        ];
        for (name, message) in malformed {
            let refusal = send(&channel, SIGN, message).await.unwrap_err();
            let told = [Code::InvalidArgument, Code::Internal].contains(&refusal.grpc);
            assert!(told && !refusal.message.is_empty(), "{name}: {refusal:?}");
        }
        for (name, message) in [
            ("nothing", Vec::new()),
            ("nothing inside", inside(&[])),
            ("an unknown field", field(15, b"hello")),
        ] {
            let refusal = send(&channel, SIGN, message).await.unwrap_err();
            assert_eq!(refusal.code, "invalid_argument", "{name}: {refusal:?}");
        }
        // 64 KiB is the limit of the service; a CSR may have 16.
        for size in [64 * 1024, 1 << 20, 8 << 20] {
            let refusal = send(&channel, SIGN, inside(&field(2, &vec![0x30; size]))).await.unwrap_err();
            let told = [Code::OutOfRange, Code::ResourceExhausted].contains(&refusal.grpc);
            assert!(told, "{size} bytes: {refusal:?}");
        }
        let refusal = send(&channel, "/rhizome.ca.v1.CertificateService/Sign", Vec::new()).await.unwrap_err();
        assert_eq!((refusal.grpc, refusal.code.as_str()), (Code::Unimplemented, "no_such_method"));
        sign(&channel, workload(new_csr())).await.unwrap();
    });
    must(&mut server.admin(&["check"]));
}

async fn sign_beside(channel: &Channel, metadata: &[(&str, &str)]) -> Answer<ca::SignCertificateResponse> {
    let certificate = Some(workload(new_csr()));
    let mut request = Request::new(ca::SignCertificateRequest { certificate });
    *request.metadata_mut() = metadata_of(metadata);
    let answer = CertificateServiceClient::new(channel.clone()).sign_certificate(request).await?;
    Ok(answer.into_inner())
}

fn metadata_of(pairs: &[(&str, &str)]) -> MetadataMap {
    let mut map = MetadataMap::new();
    for (key, value) in pairs {
        map.append(AsciiMetadataKey::from_bytes(key.as_bytes()).unwrap(), value.parse().unwrap());
    }
    map
}

#[test]
fn no_metadata_makes_a_caller_and_two_credentials_are_none() {
    let server = Server::start();
    let node = server.join_node("n1");
    let id = "spiffe://example.test/rhizome/node/dev/join_token/n1";
    let forwarded = format!("By=spiffe://example.test/x;Hash=00;URI={id}");
    runtime().block_on(async {
        let nobody = anonymous(&server).await;
        for metadata in [
            vec![],
            vec![("x-forwarded-client-cert", forwarded.as_str())],
            vec![("x-forwarded-client-cert", &forwarded), ("x-forwarded-client-cert", &forwarded)],
            vec![
                ("x-forwarded-for", "127.0.0.1"),
                ("x-real-ip", "127.0.0.1"),
                ("forwarded", "for=127.0.0.1"),
            ],
            vec![("x-spiffe-id", id), ("x-client-spiffe-id", id)],
            vec![("authorization", "Bearer eyJhbGciOiJub25lIn0.e30.")],
            vec![(METADATA_CODE, "ok")],
        ] {
            let refusal = sign_beside(&nobody, &metadata).await.unwrap_err();
            assert_eq!((refusal.grpc, refusal.code.as_str()), (Code::Unauthenticated, "unauthenticated"));
        }
        let channel = identified(&server, &node).await;
        for metadata in
            [vec![("authorization", "Bearer x")], vec![("authorization", "a"), ("authorization", "b")]]
        {
            let refusal = sign_beside(&channel, &metadata).await.unwrap_err();
            assert_eq!((refusal.grpc, refusal.code.as_str()), (Code::Unauthenticated, "unauthenticated"));
        }
        // Read by nobody, so harmless, also twice.
        for metadata in [
            vec![("x-forwarded-client-cert", forwarded.as_str())],
            vec![("cluster", "other"), ("cluster", "third"), ("namespace", "kube-system")],
            vec![("grpc-timeout", "soon")],
        ] {
            sign_beside(&channel, &metadata).await.unwrap();
        }
        let huge = "x".repeat(20_000);
        assert!(sign_beside(&channel, &[("x-huge", &huge)]).await.is_err(), "headers have a limit");
        sign_beside(&channel, &[]).await.unwrap();
    });
}

#[test]
fn a_token_beside_a_certificate_is_refused_and_not_consumed() {
    let server = Server::start();
    let node = server.join_node("n1");
    runtime().block_on(async {
        let secret = token(&local(&server).await, "n2", 0).await.unwrap();
        let both: Refusal = attest(&identified(&server, &node).await, &secret, new_csr()).await.unwrap_err();
        assert_eq!((both.grpc, both.code.as_str()), (Code::Unauthenticated, "unauthenticated"));
        attest(&anonymous(&server).await, &secret, new_csr()).await.unwrap();
    });
}
