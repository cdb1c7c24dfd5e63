//! Federation: two authorities that fetch from each other, endpoints that mean no good, and what ours gives out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rhizome_id::TrustDomain;
use rhizome_proto::admin::v1 as admin;
use rhizome_proto::admin::v1::authority_service_client::AuthorityServiceClient;
use rhizome_proto::admin::v1::federation_service_client::FederationServiceClient;
use rhizome_proto::admin::v1::server_service_client::ServerServiceClient;
use rhizome_proto::admin::v1::{EndpointProfile, Relationship, RelationshipOutlook};
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::jwt_service_client::JwtServiceClient;
use rhizome_proto::node::v1 as node;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::node::v1::sync_request::Message;
use rhizome_tls::{EndpointTls, EndpointTrust, ServingIdentity, secure_endpoint};
use rhizome_x509::{Bundle, TrustAnchors};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

use crate::support::{TestServer, attributes, refusal, sign};

const DEADLINE: Duration = Duration::from_secs(30);

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

async fn authority(name: &str) -> TestServer {
    TestServer::start_with(|settings| {
        settings.trust_domain = domain(name);
        settings.federation.listen = Some("127.0.0.1:0".parse().unwrap());
    })
    .await
}

async fn relationships(server: &TestServer) -> FederationServiceClient<tonic::transport::Channel> {
    FederationServiceClient::new(server.local().await)
}

fn fingerprint(bundle: &Bundle) -> Vec<u8> {
    bundle.anchors().first().unwrap().fingerprint().as_bytes().to_vec()
}

/// What a federation with `other` asks for, known by its root.
async fn with(other: &TestServer) -> admin::CreateRelationshipRequest {
    let bundle = other.bundle().await;
    let name = bundle.trust_domain().to_string();
    admin::CreateRelationshipRequest {
        url: format!("https://{}/bundle", other.federation_address()),
        profile: EndpointProfile::HttpsSpiffe.into(),
        endpoint_spiffe_id: format!("spiffe://{name}/rhizome/server/r1"),
        first_fetch_sha256: fingerprint(&bundle).into(),
        private_addresses: true,
        bundle_json: String::new(),
        trust_domain: name,
    }
}

async fn create(
    server: &TestServer,
    request: admin::CreateRelationshipRequest,
) -> Result<Relationship, tonic::Status> {
    let answer = relationships(server).await.create_relationship(request).await?;
    Ok(answer.into_inner().relationship.unwrap())
}

async fn refresh(server: &TestServer, name: &str) -> Relationship {
    let request = admin::RefreshRelationshipRequest { trust_domain: name.to_owned() };
    let answer = relationships(server).await.refresh_relationship(request).await.unwrap();
    answer.into_inner().relationship.unwrap()
}

fn sequence(relationship: &Relationship) -> u64 {
    relationship.bundle.as_ref().map_or(0, |bundle| bundle.sequence)
}

#[tokio::test]
async fn two_domains_fetch_from_each_other_and_follow_a_change_of_keys() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    for (here, there) in [(&east, &west), (&west, &east)] {
        let begun = create(here, with(there).await).await.unwrap();
        assert_eq!(begun.outlook(), RelationshipOutlook::Current, "{begun:?}");
        assert_eq!(begun.bundle.unwrap().anchors_der, vec![there.bundle().await.anchors()[0].der().to_vec()]);
    }
    assert_eq!(east.bundle().await.anchors().len(), 1, "ours is ours");
    let before = west.bundle().await;
    let request = admin::TaintJwtKeyRequest {
        id: before.jwt_keys()[0].kid().to_owned(),
        reason: "a drill".to_owned(),
        dry_run: false,
    };
    AuthorityServiceClient::new(west.local().await).taint_jwt_key(request).await.unwrap();
    let after = west.bundle().await;
    assert!(after.sequence() > before.sequence());
    let seen = refresh(&east, "west.test").await;
    assert_eq!(sequence(&seen), after.sequence());
    let kids: Vec<_> = seen.bundle.unwrap().jwt_keys.into_iter().map(|key| key.kid).collect();
    assert_eq!(kids, after.jwt_keys().iter().map(|key| key.kid().to_owned()).collect::<Vec<_>>());
    east.recorded(&["federation.bundle", "west.test", &format!("sequence {}", after.sequence())]).await;
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
async fn a_bundle_is_fetched_again_when_its_hint_has_passed_and_without_being_asked() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let begun = create(&east, with(&west).await).await.unwrap();
    let tried_at = begun.tried_at.unwrap();
    east.clock.advance(300);
    let again = async {
        loop {
            let request = admin::GetRelationshipRequest { trust_domain: "west.test".to_owned() };
            let answer = relationships(&east).await.get_relationship(request).await.unwrap();
            let shown = answer.into_inner().relationship.unwrap();
            if shown.tried_at.unwrap().seconds > tried_at.seconds {
                return shown;
            }
            tokio::task::yield_now().await;
        }
    };
    let again = tokio::time::timeout(DEADLINE, again).await.expect("it is fetched by itself");
    assert_eq!((again.outlook(), again.in_force_since), (RelationshipOutlook::Current, begun.in_force_since));
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
async fn a_first_bundle_without_the_named_root_is_refused_and_nothing_is_trusted() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let request = admin::CreateRelationshipRequest {
        first_fetch_sha256: fingerprint(&east.bundle().await).into(),
        ..with(&west).await
    };
    let begun = create(&east, request).await.unwrap();
    assert_eq!(begun.outlook(), RelationshipOutlook::Refused);
    assert_eq!((begun.trouble_code.as_str(), begun.bundle), ("fingerprint", None));
    east.recorded(&["refused", "federation:west.test", "fingerprint"]).await;
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
async fn a_private_address_is_refused_unless_it_was_allowed() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let request = admin::CreateRelationshipRequest { private_addresses: false, ..with(&west).await };
    let begun = create(&east, request).await.unwrap();
    assert_eq!(begun.trouble_code, "address", "{}", begun.trouble_detail);
    assert!(begun.trouble_detail.contains("loopback"), "{}", begun.trouble_detail);
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
async fn a_relationship_that_makes_no_sense_is_refused_before_anything_is_asked() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let good = with(&west).await;
    let cases = [
        (admin::CreateRelationshipRequest { url: "http://127.0.0.1/b".into(), ..good.clone() }, "https"),
        (admin::CreateRelationshipRequest { url: "https://u:p@h/b".into(), ..good.clone() }, "user name"),
        (admin::CreateRelationshipRequest { profile: 0, ..good.clone() }, "https_web or https_spiffe"),
        (admin::CreateRelationshipRequest { endpoint_spiffe_id: String::new(), ..good.clone() }, "SPIFFE ID"),
        (admin::CreateRelationshipRequest { trust_domain: "east.test".into(), ..good.clone() }, "own"),
        (
            admin::CreateRelationshipRequest { first_fetch_sha256: Vec::new().into(), ..good.clone() },
            "fingerprint",
        ),
        (admin::CreateRelationshipRequest { bundle_json: "{}".into(), ..good.clone() }, "bundle"),
    ];
    for (request, part) in cases {
        let (code, said) = refusal(create(&east, request).await);
        assert_eq!(code, Code::InvalidArgument, "{said}");
        assert!(said.contains(part), "{part}: {said}");
    }
    create(&east, good.clone()).await.unwrap();
    assert_eq!(refusal(create(&east, good).await).0, Code::FailedPrecondition);
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a caller that is not waited for")]
async fn a_first_answer_that_dawdles_until_a_bundle_was_set_by_hand_changes_nothing() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let impostor = authority("north.test").await;
    // Of other roots and a high sequence, from whoever answered: what the pin is there to refuse.
    let forged = impostor.bundle().await.to_spiffe_json();
    let own = format!("\"spiffe_sequence\":{}", west_sequence(&forged));
    let forged = forged.replace(&own, "\"spiffe_sequence\":99");
    let hostile = Hostile::of(&west, json(&forged)).await;
    hostile.gate.send_replace(false);
    let request = admin::CreateRelationshipRequest {
        url: format!("https://127.0.0.1:{}/bundle", hostile.port),
        ..with(&west).await
    };
    let mut client = relationships(&east).await;
    let begun = tokio::spawn(async move { client.create_relationship(request).await });
    while hostile.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let request = admin::SetFederatedBundleRequest {
        trust_domain: "west.test".to_owned(),
        bundle_json: west.bundle().await.to_spiffe_json(),
        reason: "the first fetch takes long".to_owned(),
    };
    relationships(&east).await.set_federated_bundle(request).await.unwrap();
    hostile.gate.send_replace(true);
    begun.await.unwrap().unwrap();
    let request = admin::GetRelationshipRequest { trust_domain: "west.test".to_owned() };
    let shown = relationships(&east).await.get_relationship(request).await.unwrap().into_inner();
    let shown = shown.relationship.unwrap();
    assert_eq!(sequence(&shown), west.bundle().await.sequence(), "{shown:?}");
    let anchors = shown.bundle.unwrap().anchors_der;
    assert_eq!(anchors, vec![west.bundle().await.anchors().first().unwrap().der().to_vec()]);
    east.stop().await;
    west.stop().await;
    impostor.stop().await;
}

/// What a hostile endpoint answers to the path it is asked for; `None`: nothing, for ever.
type Script = Arc<dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync>;

/// An endpoint that holds a genuine identity of its trust domain, and says what a test wants.
struct Hostile {
    port: u16,
    script: Arc<Mutex<Script>>,
    asked: Arc<AtomicUsize>,
    /// Closed, it answers nobody until it is opened.
    gate: tokio::sync::watch::Sender<bool>,
}

fn json(body: &str) -> Script {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    Arc::new(move |_path| Some(answer.clone().into_bytes()))
}

fn redirect(location: &str) -> Script {
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    Arc::new(move |_path| Some(answer.clone().into_bytes()))
}

impl Hostile {
    /// With the identity of a workload of `owner`.
    #[expect(clippy::disallowed_methods, reason = "a server of the test's own, which ends with it")]
    async fn of(owner: &TestServer, script: Script) -> Self {
        let vm = owner.join("vm-1").await;
        let (key, issued) = crate::support::sign_with_key(&vm.channel, "shop", "endpoint").await;
        let chain: Vec<Vec<u8>> = issued.chain_der.iter().map(|der| der.to_vec()).collect();
        let identity = Arc::new(ServingIdentity::new(&chain, &key.pkcs8_der()).unwrap());
        let tls = EndpointTls::new(identity).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (script, asked) = (Arc::new(Mutex::new(script)), Arc::new(AtomicUsize::new(0)));
        let (scripted, counted) = (Arc::clone(&script), Arc::clone(&asked));
        let (gate, open) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, script) = (tls.clone(), Arc::clone(&scripted.lock().unwrap()));
                counted.fetch_add(1, Ordering::SeqCst);
                let open = open.clone();
                tokio::spawn(async move { drop(answer(stream, &tls, &script, open).await) });
            }
        });
        Self { port, script, asked, gate }
    }

    fn says(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    async fn relationship(&self, owner: &TestServer) -> admin::CreateRelationshipRequest {
        admin::CreateRelationshipRequest {
            url: format!("https://127.0.0.1:{}/bundle", self.port),
            endpoint_spiffe_id: format!(
                "spiffe://{}/ns/shop/sa/endpoint",
                owner.bundle().await.trust_domain()
            ),
            ..with(owner).await
        }
    }
}

async fn answer(
    stream: TcpStream,
    tls: &EndpointTls,
    script: &Script,
    mut open: tokio::sync::watch::Receiver<bool>,
) -> std::io::Result<()> {
    let Ok(mut stream) = tls.accept(stream, DEADLINE).await else { return Ok(()) };
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&request);
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    drop(open.wait_for(|open| *open).await);
    match script(&path) {
        Some(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        }
        None => std::future::pending().await,
    }
}

#[tokio::test]
async fn whatever_a_hostile_endpoint_answers_the_bundle_that_is_held_stays_and_the_reason_is_told() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let genuine = west.bundle().await.to_spiffe_json();
    let at = |sequence: u64| {
        let own = format!("\"spiffe_sequence\":{}", west_sequence(&genuine));
        genuine.replace(&own, &format!("\"spiffe_sequence\":{sequence}"))
    };
    let hostile = Hostile::of(&west, json(&at(7))).await;
    let begun = create(&east, hostile.relationship(&west).await).await.unwrap();
    assert_eq!((begun.outlook(), sequence(&begun)), (RelationshipOutlook::Current, 7), "{begun:?}");
    let foreign = east.bundle().await.to_spiffe_json();
    let same_sequence = {
        let own = format!("\"spiffe_sequence\":{}", west_sequence(&foreign));
        foreign.replace(&own, "\"spiffe_sequence\":7")
    };
    let huge = format!("{{\"keys\":[],\"x\":\"{}\"}}", "a".repeat(2 << 20));
    let loopback = format!("https://localhost:{}/bundle", hostile.port);
    let to_http = format!("http://127.0.0.1:{}/bundle", hostile.port);
    let cases: [(&str, Script, &str); 12] = [
        ("an older sequence", json(&at(6)), "older_sequence"),
        ("other content under the same sequence", json(&same_sequence), "same_sequence"),
        ("no JSON", json("<html>"), "document"),
        ("no keys", json("{\"keys\":[]}"), "document"),
        ("more than the limit", json(&huge), "too_large"),
        (
            "no text",
            Arc::new(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe".to_vec())),
            "encoding",
        ),
        ("no HTTP", Arc::new(|_| Some(b"SSH-2.0-OpenSSH_9\r\n".to_vec())), "http"),
        ("an error", Arc::new(|_| Some(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec())), "status"),
        ("a redirect to http", redirect(&to_http), "redirect"),
        ("a redirect to this machine by another name", redirect(&loopback), "redirect_address"),
        (
            "a redirect to where clouds serve credentials",
            redirect("https://169.254.169.254/"),
            "redirect_address",
        ),
        ("a redirect without end", redirect("/again"), "redirect"),
    ];
    for (what, script, code) in cases {
        hostile.says(script);
        let shown = refresh(&east, "west.test").await;
        assert_eq!(shown.trouble_code, code, "{what}: {}", shown.trouble_detail);
        assert_eq!(sequence(&shown), 7, "{what}");
        assert!(!shown.trouble_detail.contains("SSH"), "{what}: nothing is echoed");
    }
    for code in ["older_sequence", "same_sequence", "too_large", "redirect_address"] {
        east.recorded(&["federation.fetch", "west.test", code]).await;
    }
    hostile.says(json(&at(8)));
    let well = refresh(&east, "west.test").await;
    assert_eq!((well.outlook(), sequence(&well)), (RelationshipOutlook::Current, 8));
    east.stop().await;
    west.stop().await;
}

fn west_sequence(json: &str) -> u64 {
    let document: Value = serde_json::from_str(json).unwrap();
    document.get("spiffe_sequence").and_then(Value::as_u64).unwrap()
}

#[tokio::test]
async fn a_redirect_on_the_same_host_is_followed_for_this_once() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let body = west.bundle().await.to_spiffe_json();
    let script: Script = Arc::new(move |path| match path {
        "/moved" => json(&body)(path),
        _other => redirect("/moved")(path),
    });
    let hostile = Hostile::of(&west, script).await;
    let begun = create(&east, hostile.relationship(&west).await).await.unwrap();
    assert_eq!(begun.outlook(), RelationshipOutlook::Current, "{begun:?}");
    assert!(begun.url.ends_with("/bundle"), "the address that was stated stays");
    assert_eq!(hostile.asked.load(Ordering::SeqCst), 2);
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
async fn another_identity_of_the_same_domain_is_not_the_endpoint() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let hostile = Hostile::of(&west, json(&west.bundle().await.to_spiffe_json())).await;
    let as_server = admin::CreateRelationshipRequest {
        url: format!("https://127.0.0.1:{}/bundle", hostile.port),
        ..with(&west).await
    };
    let first = create(&east, as_server).await.unwrap();
    assert_eq!((first.trouble_code.as_str(), sequence(&first)), ("identity", 0), "the pinned fetch");
    // And once there is a bundle to verify by.
    let request = admin::SetFederatedBundleRequest {
        trust_domain: "west.test".to_owned(),
        bundle_json: west.bundle().await.to_spiffe_json(),
        reason: "by hand".to_owned(),
    };
    relationships(&east).await.set_federated_bundle(request).await.unwrap();
    let shown = refresh(&east, "west.test").await;
    assert_eq!((shown.trouble_code.as_str(), shown.outlook()), ("identity", RelationshipOutlook::Refused));
    assert!(shown.trouble_detail.contains("spiffe://west.test/ns/shop/sa/endpoint"), "{shown:?}");
    let mut client = ServerServiceClient::new(east.local().await);
    let checks = client.run_checks(admin::RunChecksRequest::default()).await.unwrap().into_inner().checks;
    let check = checks.into_iter().find(|check| check.name == "federation.bundle").unwrap();
    assert!(!check.ok && check.summary.contains("west.test"), "{check:?}");
    east.stop().await;
    west.stop().await;
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a caller that is not waited for")]
async fn an_endpoint_that_never_answers_delays_neither_another_domain_nor_issuing() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let north = authority("north.test").await;
    let tarpit = Hostile::of(&north, Arc::new(|_path| None)).await;
    let request = tarpit.relationship(&north).await;
    let mut client = relationships(&east).await;
    let stuck = tokio::spawn(async move { client.create_relationship(request).await });
    let caught = async {
        while tarpit.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, caught).await.unwrap();
    assert_eq!(create(&east, with(&west).await).await.unwrap().outlook(), RelationshipOutlook::Current);
    let vm = east.join("vm-1").await;
    sign(&vm.channel, "shop", "web").await.unwrap();
    assert!(!stuck.is_finished(), "the tarpit still holds whoever asked it");
    stuck.abort();
    east.stop().await;
    west.stop().await;
    north.stop().await;
}

#[tokio::test]
async fn ending_a_relationship_takes_its_bundle_with_it() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    create(&east, with(&west).await).await.unwrap();
    let request = admin::DeleteRelationshipRequest {
        trust_domain: "west.test".to_owned(),
        reason: "the contract ended".to_owned(),
    };
    relationships(&east).await.delete_relationship(request).await.unwrap();
    let listed = relationships(&east).await.list_relationships(admin::ListRelationshipsRequest {}).await;
    assert_eq!(listed.unwrap().into_inner().relationships, []);
    assert!(!east.everything_stored().await.contains("foreign_bundle"), "nothing is left to trust");
    east.recorded(&["federation.delete", "west.test", "the contract ended"]).await;
    east.stop().await;
    west.stop().await;
}

/// One GET of `path` at the endpoint of `server`: status line, headers and body.
async fn get(server: &TestServer, path: &str, header: &str) -> (String, String, String) {
    let (bundle, address) = (server.bundle().await, server.federation_address());
    let id = format!("spiffe://{}/rhizome/server/r1", bundle.trust_domain()).parse().unwrap();
    let trust = EndpointTrust::Spiffe { anchors: Arc::new(TrustAnchors::from_bundle(&bundle)), id };
    let (tcp, now) = (TcpStream::connect(address).await.unwrap(), server.now());
    let connection = secure_endpoint(tcp, "127.0.0.1", &trust, Arc::new(move || now), DEADLINE).await;
    let mut stream = connection.unwrap().stream;
    let request = format!("{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // The end may come without a goodbye; what counts is what came before.
    drop(stream.read_to_string(&mut answer).await);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap();
    (status.to_owned(), headers.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn our_endpoint_gives_the_bundle_as_json_with_a_tag_and_nothing_else() {
    let east = authority("east.test").await;
    let (status, headers, body) = get(&east, "GET /bundle", "").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(headers.contains("content-type: application/json"), "{headers}");
    let read = Bundle::from_spiffe_json(domain("east.test"), &body).unwrap();
    let own = east.bundle().await;
    assert_eq!((read.sequence(), read.refresh_hint()), (own.sequence(), own.refresh_hint()));
    assert_eq!(read.anchors(), own.anchors());
    let tag = headers.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let (status, _, body) = get(&east, "GET /bundle", &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 304 Not Modified", ""));
    for (request, expected) in [
        ("HEAD /bundle", "HTTP/1.1 200 OK"),
        ("POST /bundle", "HTTP/1.1 405 Method Not Allowed"),
        ("GET /", "HTTP/1.1 404 Not Found"),
        ("GET /metrics", "HTTP/1.1 404 Not Found"),
        ("GET /.well-known/openid-configuration", "HTTP/1.1 404 Not Found"),
    ] {
        assert_eq!(get(&east, request, "").await.0, expected, "{request}");
    }
    east.stop().await;
}

#[tokio::test]
async fn discovery_leads_from_the_issuer_in_a_token_to_the_key_that_signed_it() {
    let issuer = "https://oidc.east.test/tenant";
    let east = TestServer::start_with(|settings| {
        settings.trust_domain = domain("east.test");
        settings.federation.listen = Some("127.0.0.1:0".parse().unwrap());
        settings.federation.oidc_issuer = Some(issuer.to_owned());
    })
    .await;
    let (status, _, body) = get(&east, "GET /tenant/.well-known/openid-configuration", "").await;
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status.as_str(), document["issuer"].as_str()), ("HTTP/1.1 200 OK", Some(issuer)));
    assert_eq!(document["jwks_uri"], "https://oidc.east.test/tenant/keys");
    let keys: Value = serde_json::from_str(&get(&east, "GET /tenant/keys", "").await.2).unwrap();
    let vm = east.join("vm-1").await;
    let request = ca::SignJwtSvidRequest {
        attributes: attributes(&[("namespace", "shop"), ("service_account", "web")]),
        audiences: vec!["relying-party".to_owned()],
        ..ca::SignJwtSvidRequest::default()
    };
    let token = JwtServiceClient::new(vm.channel.clone()).sign_jwt_svid(request).await.unwrap();
    let token = token.into_inner().jwt_svid.unwrap();
    let claims = URL_SAFE_NO_PAD.decode(token.token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["iss"], issuer);
    let key = keys["keys"].as_array().unwrap().iter().find(|key| key["kid"] == token.kid.as_str());
    assert_eq!(key.unwrap()["use"], "sig");
    east.stop().await;
}

#[tokio::test]
async fn nodes_are_sent_foreign_bundles_as_they_change_and_what_they_hold_is_kept() {
    let (east, west) = (authority("east.test").await, authority("west.test").await);
    let vm = east.join("vm-1").await;
    let (sender, requests) = tokio::sync::mpsc::channel(4);
    let hello = node::Hello { cursor: 0, agent_version: "test".to_owned() };
    let say = async |message| sender.send(node::SyncRequest { message: Some(message) }).await.unwrap();
    say(Message::Hello(hello)).await;
    let stream = tokio_stream::wrappers::ReceiverStream::new(requests);
    let answers = NodeServiceClient::new(vm.channel.clone()).sync(stream).await;
    let mut answers = answers.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert!(first.full && first.federated_bundles.is_empty());
    create(&east, with(&west).await).await.unwrap();
    let sent = next_with(&mut answers, |it| !it.federated_bundles.is_empty()).await;
    let bundle = sent.federated_bundles[0].clone();
    assert_eq!((sent.full, bundle.trust_domain.as_str()), (false, "west.test"));
    let held = |digest| node::FederatedBundlesInForce {
        bundles: vec![node::FederatedBundleInForce {
            trust_domain: "west.test".to_owned(),
            sequence: bundle.sequence,
            digest,
        }],
    };
    say(Message::FederatedBundles(held(vec![7; 32].into()))).await;
    say(Message::FederatedBundles(held(bundle.digest.clone()))).await;
    let noted = async {
        loop {
            let request = admin::GetRelationshipRequest { trust_domain: "west.test".to_owned() };
            let shown = relationships(&east).await.get_relationship(request).await.unwrap().into_inner();
            let shown = shown.relationship.unwrap();
            if shown.holder_count == 1 {
                return shown;
            }
            assert_eq!(shown.behind, ["node:prod/join_token/vm-1"]);
            tokio::task::yield_now().await;
        }
    };
    let noted = tokio::time::timeout(DEADLINE, noted).await.expect("it is kept");
    assert_eq!(noted.behind_count, 0);
    let request = admin::DeleteRelationshipRequest {
        trust_domain: "west.test".to_owned(),
        reason: "the contract ended".to_owned(),
    };
    relationships(&east).await.delete_relationship(request).await.unwrap();
    let sent = next_with(&mut answers, |it| !it.removed_federated_domains.is_empty()).await;
    assert_eq!(sent.removed_federated_domains, ["west.test"]);
    east.stop().await;
    west.stop().await;
}

async fn next_with(
    answers: &mut tonic::Streaming<node::SyncResponse>,
    wanted: impl Fn(&node::SyncResponse) -> bool,
) -> node::SyncResponse {
    let next = async {
        loop {
            let answer = answers.message().await.unwrap().unwrap();
            if wanted(&answer) {
                return answer;
            }
        }
    };
    tokio::time::timeout(DEADLINE, next).await.unwrap()
}
