//! Clusters with a Rhizome of their own, as the root's side has them: granted, judged by their ledger, cut off.

use rhizome_core::ledger::{Entry, Event, Head, Issuance, Profile, Record};
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRing};
use rhizome_id::{Digest, KeyId, ReplicaNumber, Serial, SerialCounter, SpiffeId, Timestamp};
use rhizome_keys::MemoryKeyRing;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::ClusterState;
use rhizome_proto::admin::v1::cluster_service_client::ClusterServiceClient;
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::node::v1 as node;
use rhizome_proto::upstream::v1 as wire;
use rhizome_proto::upstream::v1::upstream_service_client::UpstreamServiceClient;
use rhizome_x509::{
    CaCertificate, Issuer, KeyAlgorithm, LeafSpec, RequestKey, SigningAlgorithm, prepare_leaf, probe_for,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{Holder, Node, TestServer, attest, refusal, sign, token_for};

type Clusters = ClusterServiceClient<Channel>;

async fn clusters(server: &TestServer) -> Clusters {
    ClusterServiceClient::new(server.local().await)
}

/// For the namespace `shop` and what is below `/edge`, an hour each.
fn scope() -> admin::ClusterScope {
    admin::ClusterScope {
        namespaces: vec!["shop".to_owned()],
        identities: vec!["spiffe://example.test/edge/*".to_owned()],
        max_ttl_seconds: 3_600,
        intermediate_ttl_seconds: 86_400,
        ..admin::ClusterScope::default()
    }
}

fn adding(name: &str) -> admin::AddClusterRequest {
    admin::AddClusterRequest { name: name.to_owned(), scope: Some(scope()), token_ttl_seconds: 0 }
}

async fn show(server: &TestServer, name: &str) -> admin::Cluster {
    let request = admin::GetClusterRequest { name: name.to_owned() };
    clusters(server).await.get_cluster(request).await.unwrap().into_inner().cluster.unwrap()
}

/// The Rhizome of a cluster as far as the root sees it.
struct Below {
    node: Node,
    keys: MemoryKeyRing,
    ledger: Head,
    /// Counters of its serials.
    issued: u64,
}

/// Adds a cluster and joins as its Rhizome.
async fn below(server: &TestServer, name: &str) -> Below {
    let answer = clusters(server).await.add_cluster(adding(name)).await.unwrap().into_inner();
    let node = join(server, &answer.secret).await.unwrap();
    Below { node, keys: MemoryKeyRing::new(), ledger: Head::EMPTY, issued: 0 }
}

async fn join(server: &TestServer, token: &str) -> Result<Node, Status> {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let answer = attest(server.connect(None).await, token, &key).await?;
    let holder = Holder { key, issued: answer.identity.unwrap() };
    let channel = server.connect(Some(&holder)).await;
    Ok(Node { id: answer.node_id, token: token.to_owned(), holder, channel })
}

impl Below {
    fn client(&self) -> UpstreamServiceClient<Channel> {
        UpstreamServiceClient::new(self.node.channel.clone())
    }

    async fn key(&self, name: &str) -> KeyInfo {
        let id: KeyId = name.parse().unwrap();
        self.keys.generate(&id, KeyPurpose::Issuer, SigningAlgorithm::EcdsaP256Sha256).await.unwrap()
    }

    async fn request(&self, name: &str) -> wire::SignIntermediateRequest {
        let key = self.key(name).await;
        let proof = self.keys.sign(&key.id, &probe_for(key.algorithm)).await.unwrap();
        wire::SignIntermediateRequest {
            public_key_der: key.public_key.spki_der().to_vec().into(),
            proof: proof.as_bytes().to_vec().into(),
            ttl_seconds: 0,
        }
    }

    async fn ask(&self, name: &str) -> Result<wire::SignIntermediateResponse, Status> {
        let request = self.request(name).await;
        self.client().sign_intermediate(request).await.map(tonic::Response::into_inner)
    }

    async fn report(&self, records: &[Record]) -> Result<wire::ReportResponse, Status> {
        let record = |it: &Record| wire::LedgerRecord {
            position: it.position.0,
            previous: it.previous.as_bytes().to_vec().into(),
            hash: it.hash.as_bytes().to_vec().into(),
            counter: it.counter.map(SerialCounter::value),
            body: it.body.to_string(),
        };
        let request = wire::ReportRequest {
            counts: vec![wire::KindCount { kind: "agent".to_owned(), count: 2 }],
            behind_count: 1,
            behind: vec!["node:east/join_token/vm-1".to_owned()],
            version: "0.1.0".to_owned(),
            last_record: self.ledger.position.0,
            records: records.iter().map(record).collect(),
            ..wire::ReportRequest::default()
        };
        self.client().report(request).await.map(tonic::Response::into_inner)
    }

    /// Writes an issuance to its own ledger.
    fn issues(&mut self, issuer: &str, id: &str, from: Timestamp, seconds: i64) -> Record {
        self.issued += 1;
        let issuance = Issuance {
            profile: Profile::Workload,
            spiffe_id: id.parse().unwrap(),
            dns_names: Vec::new(),
            serial: serial(self.issued),
            not_before: from,
            not_after: from.plus(seconds - 1),
            public_key: Digest::ZERO,
            tbs: Digest::ZERO,
            issuer: issuer.parse().unwrap(),
            key: issuer.parse().unwrap(),
            caller: "node:east/join_token/vm-1".to_owned(),
            rule: None,
            request: None,
            bundle: 1,
            attributes: Vec::new(),
        };
        let record = self.ledger.link(&Entry::new(from, &Event::Issued(issuance)));
        self.ledger = record.head();
        record
    }
}

fn serial(counter: u64) -> Serial {
    Serial::compose(ReplicaNumber::new(0).unwrap(), SerialCounter::new(counter).unwrap(), [7; 11])
}

fn parsed(der: &[u8]) -> CaCertificate {
    CaCertificate::parse(der).unwrap()
}

#[tokio::test]
async fn a_cluster_s_rhizome_joins_once_and_gets_an_intermediate_within_its_scope() {
    let server = TestServer::start().await;
    let answer = clusters(&server).await.add_cluster(adding("east")).await.unwrap().into_inner();
    assert_eq!(answer.trust_domain, "example.test");
    assert_eq!(answer.addresses, [server.address().to_string()]);
    let root = server.bundle().await.anchors()[0].clone();
    assert_eq!(answer.root_digests, [root.fingerprint().as_bytes().to_vec()]);
    assert_eq!(show(&server, "east").await.state(), ClusterState::Awaited);

    let node = join(&server, &answer.secret).await.unwrap();
    assert!(node.id.starts_with("east/join_token/rhizome-"), "{}", node.id);
    let (code, _) = refusal(join(&server, &answer.secret).await);
    assert_eq!(code, Code::Unauthenticated, "the string is used up");
    assert!(!server.everything_stored().await.contains(&answer.secret), "the secret is nowhere else");

    let below = Below { node, keys: MemoryKeyRing::new(), ledger: Head::EMPTY, issued: 0 };
    let signed = below.ask("mine").await.unwrap();
    assert_eq!(signed.root_der, root.der());
    let intermediate = parsed(&signed.chain_der[0]);
    assert_eq!((signed.chain_der.len(), intermediate.path_len()), (1, Some(0)));
    assert_eq!(intermediate.public_key(), &below.key("mine").await.public_key);
    assert_eq!(intermediate.not_after().since(intermediate.not_before()) + 1, 86_400);
    assert!(intermediate.subject().contains(&signed.authority_id), "{}", intermediate.subject());
    let chain = vec![intermediate.clone()];
    Issuer::new(chain, root.clone()).unwrap();
    server.recorded(&["issued", &signed.authority_id, "node:east/join_token/rhizome-"]).await;
    server.recorded(&["cluster.grant", &signed.authority_id]).await;

    let next = below.ask("next").await.unwrap();
    let other = parsed(&next.chain_der[0]);
    assert_ne!(other.subject(), intermediate.subject());
    assert_ne!(other.key_identifier(), intermediate.key_identifier());
    let shown = show(&server, "east").await;
    assert_eq!((shown.state(), shown.intermediates.len()), (ClusterState::Active, 2));
    server.stop().await;
}

#[tokio::test]
async fn who_asks_for_more_than_the_scope_is_refused_with_what_is_allowed() {
    let server = TestServer::start().await;
    let below = below(&server, "east").await;
    let whole = below.request("mine").await;

    let long = wire::SignIntermediateRequest { ttl_seconds: 86_401, ..whole.clone() };
    let (code, message) = refusal(below.client().sign_intermediate(long).await);
    assert_eq!(code, Code::PermissionDenied);
    assert!(message.contains("it may have 86400 s at most"), "{message}");

    let theirs = below.request("theirs").await;
    let swapped = wire::SignIntermediateRequest { proof: theirs.proof.clone(), ..whole.clone() };
    let (code, message) = refusal(below.client().sign_intermediate(swapped).await);
    assert_eq!(
        (code, message.contains("not made with that key")),
        (Code::InvalidArgument, true),
        "{message}"
    );

    let west = self::below(&server, "west").await;
    west.client().sign_intermediate(theirs.clone()).await.unwrap();
    let (code, message) = refusal(below.client().sign_intermediate(theirs).await);
    assert_eq!((code, message.contains("cluster west has")), (Code::PermissionDenied, true), "{message}");

    // An ordinary node gets none, a cluster's node vouches for nobody, and no other token names it.
    let ordinary = server.join("vm-1").await;
    let mut client = UpstreamServiceClient::new(ordinary.channel.clone());
    let (code, message) = refusal(client.sign_intermediate(whole).await);
    assert_eq!((code, message.contains("rhizome cluster add")), (Code::PermissionDenied, true), "{message}");
    let (code, _) = refusal(client.report(wire::ReportRequest::default()).await);
    assert_eq!(code, Code::PermissionDenied);
    let (code, _) = refusal(sign(&below.node.channel, "shop", "web").await);
    assert_eq!(code, Code::PermissionDenied);
    let name = below.node.id.rsplit('/').next().unwrap().to_owned();
    let mut tokens = TokenServiceClient::new(server.local().await);
    let request = admin::CreateTokenRequest { cluster: "east".to_owned(), ..token_for(&name) };
    let (code, message) = refusal(tokens.create_token(request).await);
    assert_eq!((code, message.contains("is the Rhizome of a cluster")), (Code::FailedPrecondition, true));
    server.stop().await;
}

#[tokio::test]
async fn a_scope_that_makes_no_sense_is_refused_by_name() {
    let server = TestServer::start().await;
    let mut client = clusters(&server).await;
    let with = |change: &dyn Fn(&mut admin::ClusterScope)| {
        let mut wrong = scope();
        change(&mut wrong);
        admin::AddClusterRequest { scope: Some(wrong), ..adding("east") }
    };
    let refused = [
        (admin::AddClusterRequest { scope: None, ..adding("east") }, "missing"),
        (with(&|it| it.all_namespaces = true), "one of the two"),
        (with(&|it| it.namespaces = vec!["*".to_owned()]), "all_namespaces"),
        (with(&|it| it.identities = vec!["spiffe://other.test/a".to_owned()]), "not of this trust domain"),
        (with(&|it| it.identities = vec!["spiffe://example.test/rhizome/*".to_owned()]), "reserved"),
        (with(&|it| it.identities = vec!["web".to_owned()]), "no pattern"),
        (with(&|it| it.intermediate_ttl_seconds = 7_199), "twice as long"),
        (with(&|it| (it.namespaces, it.identities) = Default::default()), "allows nothing"),
        (admin::AddClusterRequest { token_ttl_seconds: 86_401, ..adding("east") }, "86400 seconds"),
        (adding("a b"), "name"),
    ];
    for (request, says) in refused {
        let (code, message) = refusal(client.add_cluster(request).await);
        assert_eq!((code, message.contains(says)), (Code::InvalidArgument, true), "{message}");
    }
    client.add_cluster(adding("east")).await.unwrap();
    let (code, message) = refusal(client.add_cluster(adding("east")).await);
    assert_eq!((code, message.contains("cluster set")), (Code::FailedPrecondition, true), "{message}");
    let all = client.list_clusters(admin::ListClustersRequest {}).await.unwrap().into_inner().clusters;
    assert_eq!(all.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_suspended_cluster_is_cut_off_until_it_is_let_in_and_a_removed_one_for_good() {
    let server = TestServer::start().await;
    let below = below(&server, "east").await;
    let signed = below.ask("mine").await.unwrap();
    let mut client = clusters(&server).await;
    let (name, reason) = ("east".to_owned(), "stolen host".to_owned());

    let suspend = admin::SuspendClusterRequest { name: name.clone(), reason: reason.clone() };
    let shown = client.suspend_cluster(suspend).await.unwrap().into_inner().cluster.unwrap();
    assert_eq!((shown.state(), shown.end_reason.as_str()), (ClusterState::Suspended, "stolen host"));
    let (code, _) = refusal(below.ask("next").await);
    assert_eq!(code, Code::Unauthenticated, "its node is nobody");
    server.recorded(&["cluster.suspend", "east", "stolen host"]).await;
    let resume = admin::ResumeClusterRequest { name: name.clone(), reason: "host is back".to_owned() };
    client.resume_cluster(resume.clone()).await.unwrap();
    below.ask("next").await.unwrap();
    let (code, _) = refusal(client.resume_cluster(resume.clone()).await);
    assert_eq!(code, Code::FailedPrecondition);

    // Narrowed: what is asked for next is judged by it.
    let narrow = admin::ClusterScope { intermediate_ttl_seconds: 7_200, ..scope() };
    let set =
        admin::SetClusterScopeRequest { name: name.clone(), scope: Some(narrow), reason: reason.clone() };
    client.set_cluster_scope(set).await.unwrap();
    let short = parsed(&below.ask("third").await.unwrap().chain_der[0]);
    assert_eq!(short.not_after().since(short.not_before()) + 1, 7_200);

    let remove = admin::RemoveClusterRequest { name: name.clone(), reason };
    let shown = client.remove_cluster(remove.clone()).await.unwrap().into_inner().cluster.unwrap();
    assert_eq!((shown.state(), shown.intermediates.len()), (ClusterState::Removed, 3));
    let (code, _) = refusal(below.ask("fourth").await);
    assert_eq!(code, Code::Unauthenticated);
    let (code, message) = refusal(client.remove_cluster(remove).await);
    assert_eq!((code, message.contains("cluster add")), (Code::FailedPrecondition, true), "{message}");
    let (code, _) = refusal(client.resume_cluster(resume).await);
    assert_eq!(code, Code::FailedPrecondition);

    // Added again it is another node; what the first one holds is not forgotten.
    let again = self::below(&server, "east").await;
    assert_ne!(again.node.id, below.node.id);
    again.ask("anew").await.unwrap();
    let shown = show(&server, "east").await;
    assert_eq!((shown.state(), shown.intermediates.len()), (ClusterState::Active, 4));
    assert_eq!(shown.intermediates[0].authority_id, signed.authority_id);
    assert_eq!(refusal(below.ask("fifth").await).0, Code::Unauthenticated);
    server.stop().await;
}

#[tokio::test]
async fn a_token_of_a_cluster_that_was_suspended_before_it_joined_joins_nothing() {
    let server = TestServer::start().await;
    let mut client = clusters(&server).await;
    let answer = client.add_cluster(adding("east")).await.unwrap().into_inner();
    let suspend = admin::SuspendClusterRequest { name: "east".to_owned(), reason: "mistake".to_owned() };
    client.suspend_cluster(suspend).await.unwrap();
    let (code, message) = refusal(join(&server, &answer.secret).await);
    assert_eq!((code, message.contains("suspended")), (Code::PermissionDenied, true), "{message}");
    server.stop().await;
}

#[tokio::test]
async fn what_a_cluster_s_ledger_shows_outside_its_scope_is_raised_as_an_alarm() {
    let server = TestServer::start().await;
    let mut below = below(&server, "east").await;
    let issuer = below.ask("mine").await.unwrap().authority_id;
    let now = server.now();
    let inside = below.issues(&issuer, "spiffe://example.test/ns/shop/sa/web", now, 3_600);
    let edge = below.issues(&issuer, "spiffe://example.test/edge/gw", now, 60);
    let answer = below.report(&[inside.clone(), edge]).await.unwrap();
    assert_eq!((answer.next_position, answer.bundle_sequence), (3, server.bundle().await.sequence()));
    assert!(answer.bundle.is_some(), "it said that it holds none");
    let root = server.bundle().await.anchors()[0].fingerprint();
    assert_eq!(answer.signing_root_sha256, root.as_bytes().as_slice());
    let shown = show(&server, "east").await;
    assert_eq!((shown.alarm_count, shown.connected, shown.ledger_read_to), (0, true, 2));
    assert_eq!((shown.behind_count, shown.counts[0].count), (1, 2));
    assert_eq!(shown.intermediates[0].issued_count, 2);
    assert_eq!(shown.intermediates[0].issued_until.unwrap().seconds, now.plus(3_599).unix());

    let outside = below.issues(&issuer, "spiffe://example.test/ns/pay/sa/ledger", now, 3_600);
    let long = below.issues(&issuer, "spiffe://example.test/ns/shop/sa/web", now, 3_601);
    below.report(&[outside, long]).await.unwrap();
    let shown = show(&server, "east").await;
    assert_eq!(shown.alarm_count, 2);
    let subjects: Vec<_> = shown.alarms.iter().map(|it| (it.code.as_str(), it.subject.as_str())).collect();
    let expected = [
        ("outside_scope", "spiffe://example.test/ns/pay/sa/ledger"),
        ("outside_scope", "spiffe://example.test/ns/shop/sa/web"),
    ];
    assert_eq!(subjects, expected);
    server.recorded(&["cluster.alarm", "east", "ns/pay/sa/ledger", "namespaces shop"]).await;

    // The same again brings nothing new; a gap, and another ledger, do.
    let gap = [inside.clone(), shown_gap(&shown_gap(&inside))];
    let (code, message) = refusal(self::below(&server, "west").await.report(&gap).await);
    assert_eq!((code, message.contains("expected position 2")), (Code::InvalidArgument, true), "{message}");
    below.ledger = inside.head();
    let restored = below.report(&[inside]).await.unwrap();
    assert_eq!(restored.next_position, 1, "from the first record anew");
    let shown = show(&server, "east").await;
    assert_eq!(shown.alarms.last().unwrap().code, "ledger_rewritten");
    server.recorded(&["cluster.alarm", "ledger_rewritten"]).await;
    server.stop().await;
}

/// A record that follows nothing.
fn shown_gap(record: &Record) -> Record {
    record.head().link(&Entry::new(
        Timestamp::EPOCH,
        &Event::SigningFailed { serial: serial(1), reason: String::new() },
    ))
}

#[tokio::test]
async fn whoever_has_an_intermediate_speaks_for_nobody_at_the_root() {
    let server = TestServer::start().await;
    let below = below(&server, "east").await;
    let (_, alice) = server.admin("alice", admin::Role::Security).await;
    let vm = server.join("vm-1").await;
    let signed = below.ask("mine").await.unwrap();
    let issuer = Issuer::new(vec![parsed(&signed.chain_der[0])], parsed(&signed.root_der)).unwrap();
    drop(alice);

    // Its Rhizome was taken over, and signs what it likes: names that the root knows, with serials that it gave out.
    let stolen = |name: &str, serial: Serial| {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let id: SpiffeId = format!("spiffe://example.test/rhizome/{name}").parse().unwrap();
        let spec = LeafSpec {
            spiffe_id: &id,
            dns_names: &[],
            public_key: key.public_key(),
            serial,
            not_before: server.now().minus(60),
            not_after: server.now().plus(600),
        };
        let linted = prepare_leaf(&spec, &issuer).unwrap();
        (key, linted)
    };
    for (name, serial) in [
        ("admin/alice".to_owned(), serial(5)),
        (format!("node/{}", vm.id), vm.holder.issued.serial.parse().unwrap()),
        (format!("node/{}", below.node.id), below.node.holder.issued.serial.parse().unwrap()),
    ] {
        let (key, linted) = stolen(&name, serial);
        let signature = below.keys.sign(&"mine".parse().unwrap(), &linted.to_be_signed()).await.unwrap();
        let leaf = linted.seal(signature).unwrap();
        let chain_der = vec![leaf.der().to_vec().into(), signed.chain_der[0].clone()];
        let issued = ca::IssuedCertificate { chain_der, ..ca::IssuedCertificate::default() };
        let channel = server.connect(Some(&Holder { key, issued })).await;
        let mut clients = ClusterServiceClient::new(channel.clone());
        let (code, _) = refusal(clients.list_clusters(admin::ListClustersRequest {}).await);
        assert_eq!(code, Code::Unauthenticated, "{name}");
        let mut nodes = node::node_service_client::NodeServiceClient::new(channel);
        let (code, _) = refusal(nodes.renew(node::RenewRequest::default()).await);
        assert_eq!(code, Code::Unauthenticated, "{name}");
    }
    server.stop().await;
}
