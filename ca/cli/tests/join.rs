//! A machine joins, over real TLS: what it believes, what it sends to whom, and what it leaves on disk.
#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod authority;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use rhizome_cli::{Console, Exit, JoinString, Options, Verb, run};
use rhizome_id::{Digest, Timestamp};
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::bundle_service_server::{BundleService, BundleServiceServer};
use rhizome_proto::node::v1::node_service_server::{NodeService, NodeServiceServer};
use rhizome_proto::node::v1::{
    AttestRequest, AttestResponse, RenewRequest, RenewResponse, SyncRequest, SyncResponse,
};
use rhizome_tls::{ClientTrust, IdentityDir, ServerTls, ServingIdentity};
use rhizome_x509::{KeyAlgorithm, RequestKey, TrustAnchors, VerifiedCsr};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::authority::{Authority, at};

const SERVER_ID: &str = "spiffe://example.org/rhizome/server/r1";
const NODE_ID: &str = "spiffe://example.org/rhizome/node/prod/join_token/vm-1";

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    verb: Verb,
}

/// What a server does and what reached it.
struct Fake {
    authority: Authority,
    /// SHA-256 of the public key of every attestation, in order.
    attested: Mutex<Vec<Digest>>,
    /// How many attestations are done but not answered.
    lost_answers: Mutex<u32>,
}

#[tonic::async_trait]
impl BundleService for Fake {
    type WatchBundleStream = BoxStream<ca::WatchBundleResponse>;

    async fn get_bundle(
        &self,
        _request: Request<ca::GetBundleRequest>,
    ) -> Result<Response<ca::GetBundleResponse>, Status> {
        let bundle = Some(self.authority.wire_bundle());
        Ok(Response::new(ca::GetBundleResponse { bundle }))
    }

    async fn watch_bundle(
        &self,
        _request: Request<Streaming<ca::WatchBundleRequest>>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl NodeService for Fake {
    type SyncStream = BoxStream<SyncResponse>;

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<AttestResponse>, Status> {
        let key = VerifiedCsr::parse(&request.get_ref().csr_der).unwrap().into_public_key();
        self.attested.lock().unwrap().push(key.digest());
        let mut lost = self.lost_answers.lock().unwrap();
        if *lost > 0 {
            *lost -= 1;
            return Err(Status::unavailable("the answer is lost"));
        }
        let chain = self.authority.chain(NODE_ID, &key);
        let identity = ca::IssuedCertificate {
            chain_der: chain.into_iter().map(Bytes::from).collect(),
            bundle: Some(self.authority.wire_bundle()),
            ..ca::IssuedCertificate::default()
        };
        Ok(Response::new(AttestResponse {
            identity: Some(identity),
            node_id: "prod/join_token/vm-1".to_owned(),
        }))
    }

    async fn renew(&self, _request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn sync(
        &self,
        _request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Trust(Arc<TrustAnchors>);

impl ClientTrust for Trust {
    fn anchors(&self) -> Arc<TrustAnchors> {
        Arc::clone(&self.0)
    }

    fn now(&self) -> Timestamp {
        at(0)
    }
}

/// A server behind TLS, with a folder for its socket and for the identity of the machine that joins.
struct Server {
    folder: tempfile::TempDir,
    address: String,
    fake: Arc<Fake>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Server {
    /// A server that calls itself `id`.
    #[expect(clippy::disallowed_methods, reason = "a test has no spawner")]
    async fn start(id: &str) -> Self {
        let authority = Authority::new("example.org");
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let serving = ServingIdentity::new(&authority.chain(id, key.public_key()), &key.pkcs8_der()).unwrap();
        let trust = Trust(Arc::new(TrustAnchors::from_bundle(&authority.bundle())));
        let tls = ServerTls::new(Arc::new(serving), Arc::new(trust));
        let fake = Arc::new(Fake { authority, attested: Mutex::default(), lost_answers: Mutex::default() });

        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let inner = UnixListener::bind(&socket).unwrap();
        let routes = tonic::transport::Server::builder()
            .add_service(BundleServiceServer::from_arc(Arc::clone(&fake)))
            .add_service(NodeServiceServer::from_arc(Arc::clone(&fake)));
        let serve = tokio::spawn(async move {
            routes.serve_with_incoming(UnixListenerStream::new(inner)).await.unwrap();
        });
        let outer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = outer.local_addr().unwrap().to_string();
        let terminate = tokio::spawn(terminate_tls(outer, tls, socket));
        Self { folder, address, fake, tasks: [serve, terminate] }
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("identity")
    }

    /// Joins with a join string that pins `root`.
    async fn join(&self, root: Digest, further: &[&str]) -> (Exit, String, String) {
        let domain = "example.org".parse().unwrap();
        let join =
            JoinString::new(vec![self.address.clone()], domain, vec![root], "secret".to_owned()).unwrap();
        let (join, directory) = (join.encode().unwrap(), self.directory());
        let words = ["rhizome", "node", "join", &join, "--out", directory.to_str().unwrap()];
        let Program { options, verb } = Program::try_parse_from(words.iter().chain(further)).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console =
            Console { out: &mut out, err: &mut err, clock: Arc::new(|| at(0)), terminal: false };
        let exit = run(&options, verb, &mut console).await;
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    fn root(&self) -> Digest {
        self.fake.authority.root.fingerprint()
    }

    fn attested(&self) -> Vec<Digest> {
        self.fake.attested.lock().unwrap().clone()
    }
}

/// Passes what comes over TLS on to the socket.
#[expect(clippy::disallowed_methods, reason = "a test has no spawner")]
async fn terminate_tls(listener: TcpListener, tls: ServerTls, socket: PathBuf) {
    while let Ok((connection, _peer)) = listener.accept().await {
        let (tls, socket) = (tls.clone(), socket.clone());
        tokio::spawn(async move {
            let Ok(mut accepted) = tls.accept(connection, Duration::from_secs(30)).await else {
                return;
            };
            let mut inner = UnixStream::connect(socket).await.unwrap();
            drop(tokio::io::copy_bidirectional(&mut accepted.stream, &mut inner).await);
        });
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_machine_joins_and_its_directory_holds_a_usable_identity() {
    let server = Server::start(SERVER_ID).await;
    let (exit, out, err) = server.join(server.root(), &[]).await;
    assert_eq!((exit, err.as_str()), (Exit::Done, ""), "{out}");
    assert!(out.contains("prod/join_token/vm-1") && out.contains(NODE_ID), "{out}");

    let directory = server.directory();
    let stored = IdentityDir::new(&directory).load().unwrap();
    assert_eq!(stored.bundle.anchors()[0].fingerprint(), server.root());
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("key.pem")), 0o600);
    assert_eq!(mode(&directory.join("chain.pem")), 0o644);
    let mut files: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["bundle.pem", "chain.pem", "key.pem", "trust-domain"]);
}

#[tokio::test]
async fn a_server_with_another_root_gets_no_token_and_both_fingerprints_are_named() {
    let server = Server::start(SERVER_ID).await;
    let pinned = Digest::from_bytes([7; 32]);
    let (exit, _, err) = server.join(pinned, &[]).await;
    assert_eq!((exit, server.attested()), (Exit::Denied, vec![]));
    assert!(err.contains(&pinned.to_string()) && err.contains(&server.root().to_string()), "{err}");
    assert!(!server.directory().exists(), "nothing is written for a server that is not believed");
}

#[tokio::test]
async fn a_workload_that_poses_as_the_server_gets_no_token() {
    let server = Server::start("spiffe://example.org/ns/shop/sa/web").await;
    let (exit, _, err) = server.join(server.root(), &[]).await;
    assert_eq!((exit, server.attested()), (Exit::Denied, vec![]));
    assert!(err.contains("not to be trusted"), "{err}");
}

#[tokio::test]
async fn after_a_lost_answer_the_same_key_is_used_again() {
    let server = Server::start(SERVER_ID).await;
    *server.fake.lost_answers.lock().unwrap() = 1;
    assert_eq!(server.join(server.root(), &[]).await.0, Exit::Unavailable);
    assert_eq!(server.join(server.root(), &[]).await.0, Exit::Done);
    let keys = server.attested();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test]
async fn an_identity_is_replaced_only_with_force() {
    let server = Server::start(SERVER_ID).await;
    assert_eq!(server.join(server.root(), &[]).await.0, Exit::Done);
    let (exit, _, err) = server.join(server.root(), &[]).await;
    assert_eq!((exit, server.attested().len()), (Exit::Failed, 1));
    assert!(err.contains("--force"), "{err}");
    assert_eq!(server.join(server.root(), &["--force"]).await.0, Exit::Done);
}
