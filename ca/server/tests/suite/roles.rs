//! Every method against every kind of caller, and against forged credentials.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use rhizome_core::caller::Role as Held;
use rhizome_proto::METADATA_CODE;
use rhizome_proto::admin::v1::Role;
use rhizome_server::{METHODS, Needed};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::support::TestServer;

const ATTEST: &str = "/rhizome.node.v1.NodeService/Attest";
const LIST_NODES: &str = "/rhizome.admin.v1.NodeAdminService/ListNodes";

/// Who may come to a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Anonymous,
    Node,
    Admin(Held),
    Local,
}

impl Who {
    /// What the table says: allowed, or the code of the refusal.
    fn expected(self, needed: Needed) -> Option<Code> {
        let allowed = match (needed, self) {
            (Needed::Nobody, _) | (Needed::Node, Self::Node) | (Needed::Role(_), Self::Local) => true,
            (Needed::Role(role), Self::Admin(held)) => held >= role,
            (Needed::Node | Needed::Role(_), _) => false,
        };
        match self {
            _ if allowed => None,
            Self::Anonymous => Some(Code::Unauthenticated),
            Self::Node | Self::Admin(_) | Self::Local => Some(Code::PermissionDenied),
        }
    }
}

fn methods_of(descriptors: &[u8]) -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(descriptors).unwrap();
    let mut methods = BTreeSet::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                methods.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

/// Calls `path` with one empty message, however its streams run; how that ends, and with which of our codes.
async fn call(channel: &Channel, path: &str, headers: &[(&'static str, &str)]) -> (Code, String) {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::once(()));
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    let answer = client.streaming(request, path.parse().unwrap(), ProstCodec::<(), ()>::default()).await;
    let first = match answer {
        Ok(answer) => answer.into_inner().message().await,
        Err(status) => Err(status),
    };
    first.map_or_else(
        |status| {
            let code =
                status.metadata().get(METADATA_CODE).and_then(|it| it.to_str().ok()).unwrap_or_default();
            (status.code(), code.to_owned())
        },
        |_message| (Code::Ok, String::new()),
    )
}

#[test]
fn the_table_names_every_method_that_is_served_and_no_other() {
    let mut served = methods_of(rhizome_proto::FILE_DESCRIPTOR_SET);
    served.extend(methods_of(tonic_health::pb::FILE_DESCRIPTOR_SET));
    served.extend(methods_of(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET));
    let named: BTreeSet<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(served, named);
}

#[tokio::test]
async fn every_method_lets_in_exactly_those_whom_the_table_names() {
    let server = TestServer::start().await;
    let node = server.join("vm-1").await;
    let callers = [
        (Who::Anonymous, server.connect(None).await),
        (Who::Node, node.channel),
        (Who::Admin(Held::Viewer), server.admin("vera", Role::Viewer).await.1),
        (Who::Admin(Held::Operator), server.admin("otto", Role::Operator).await.1),
        (Who::Admin(Held::Security), server.admin("sara", Role::Security).await.1),
        (Who::Local, server.local().await),
    ];
    for (path, needed) in METHODS {
        for (who, channel) in &callers {
            let (code, ours) = call(channel, path, &[]).await;
            match who.expected(*needed) {
                Some(refused) => assert_eq!(code, refused, "{who:?} at {path}"),
                // Whoever joins has no certificate yet: one beside the token would be a second credential.
                None if *path == ATTEST && matches!(who, Who::Node | Who::Admin(_)) => {
                    assert_eq!(code, Code::Unauthenticated, "{who:?} at {path}");
                }
                None => {
                    assert!(
                        !["forbidden", "unauthenticated"].contains(&ours.as_str()),
                        "{who:?} at {path}: {ours}"
                    );
                    assert_ne!(code, Code::Unimplemented, "{path} is served");
                }
            }
        }
    }
    server.recorded(&["forbidden", "node:prod/join_token/vm-1"]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_method_outside_the_table_does_not_exist_for_anybody() {
    let server = TestServer::start().await;
    for channel in [server.connect(None).await, server.local().await] {
        for path in [
            "/rhizome.node.v1.NodeService/Steal",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(call(&channel, path, &[]).await.0, Code::Unimplemented);
        }
    }
}

#[tokio::test]
async fn headers_are_no_credentials() {
    let server = TestServer::start().await;
    let forwarded = ("x-forwarded-client-cert", "By=x;URI=spiffe://example.test/rhizome/admin/alice");
    let bearer = ("authorization", "Bearer let-me-in");
    server.admin("alice", Role::Security).await;
    let nobody = server.connect(None).await;
    for headers in [vec![forwarded], vec![bearer], vec![forwarded, bearer]] {
        assert_eq!(call(&nobody, LIST_NODES, &headers).await.0, Code::Unauthenticated, "{headers:?}");
    }
    let node = server.join("vm-1").await;
    assert_eq!(call(&node.channel, LIST_NODES, &[forwarded]).await.0, Code::PermissionDenied);
    assert_eq!(call(&node.channel, LIST_NODES, &[bearer]).await.0, Code::Unauthenticated);
    let local = server.local().await;
    assert_eq!(call(&local, LIST_NODES, &[forwarded]).await.0, Code::Ok);
    assert_eq!(call(&local, LIST_NODES, &[bearer]).await.0, Code::Unauthenticated);
}
