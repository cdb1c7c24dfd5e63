//! Real handshakes, both ends ours.

use rhizome_x509::PeerError;
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::client::client_config_of;
use crate::error::{IdentityError, ServerRefusal};
use crate::support::{
    Authority, ClientStream, DEADLINE, HOUR, Issued, Trust, anchors, at, bundle, client, domain, handshake,
    spiffe_id,
};
use crate::{ClientIdentity, ExpectedServer, PresentedAuthority, client_config};

const SERVER: &str = "spiffe://td/rhizome/server/r1";
const WEB: &str = "spiffe://td/ns/prod/sa/web";

struct World {
    authority: Authority,
    trust: Arc<Trust>,
    identity: Arc<ServingIdentity>,
    server: ServerTls,
}

fn world() -> World {
    let authority = Authority::new("td", "g1");
    let trust = Trust::new(anchors("td", &[&authority]));
    let identity = authority.issue(SERVER).serving();
    let server = ServerTls::new(Arc::clone(&identity), trust.clone());
    World { authority, trust, identity, server }
}

impl World {
    fn client(&self, identity: Option<&Issued>) -> Arc<ClientConfig> {
        let anchors = anchors("td", &[&self.authority]);
        Arc::new(client(anchors, identity.map(Issued::identity)))
    }
}

fn refusal(outcome: Result<Accepted<DuplexStream>, AcceptError>) -> PeerError {
    match outcome.err().unwrap() {
        AcceptError::ClientRefused(reason) => reason,
        other @ (AcceptError::TimedOut { .. } | AcceptError::Handshake(_) | AcceptError::Bug(_)) => {
            panic!("{other}")
        }
    }
}

fn server_refusal(outcome: io::Result<ClientStream>) -> ServerRefusal {
    let error = outcome.err().unwrap();
    reason_in::<ServerRefusal>(&error).cloned().unwrap_or_else(|| panic!("{error}"))
}

/// What the client is told when it reads.
async fn told(client: io::Result<ClientStream>) -> String {
    match client {
        Ok(mut stream) => stream.read_u8().await.err().unwrap().to_string(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_client_with_a_certificate_is_known_by_its_spiffe_id_after_the_handshake() {
    let world = world();
    let web = world.authority.issue(WEB);
    let (accepted, connected) = handshake(&world.server, &world.client(Some(&web))).await;
    let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
    let peer = accepted.client.unwrap();
    assert_eq!(peer.spiffe_id, spiffe_id(WEB));
    assert_eq!(accepted.stream.get_ref().1.alpn_protocol(), Some(ALPN_H2));
    assert_eq!(connected.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_accepted_as_nobody() {
    let world = world();
    let (accepted, connected) = handshake(&world.server, &world.client(None)).await;
    assert!(accepted.unwrap().client.is_none());
    assert!(connected.is_ok());
}

#[tokio::test]
async fn an_expired_client_certificate_is_refused_with_one_opaque_alert() {
    let world = world();
    let web = world.authority.issue_for(WEB, -2 * HOUR, -1);
    let (accepted, connected) = handshake(&world.server, &world.client(Some(&web))).await;
    assert_eq!(refusal(accepted), PeerError::Expired);
    let told = told(connected).await;
    assert!(told.contains("CertificateUnknown") && !told.to_lowercase().contains("expired"), "{told}");
}

#[tokio::test]
async fn a_certificate_is_good_through_its_last_second_and_not_one_longer() {
    let world = world();
    let web = world.authority.issue_for(WEB, -HOUR, 10);
    let config = world.client(Some(&web));
    world.trust.set_now(at(10));
    assert!(handshake(&world.server, &config).await.0.is_ok());
    world.trust.set_now(at(11));
    assert_eq!(refusal(handshake(&world.server, &config).await.0), PeerError::Expired);
}

#[tokio::test]
async fn a_client_of_another_root_is_refused_even_when_that_root_has_our_names() {
    let world = world();
    for (generation, named_alike) in [("g2", false), ("g1", true)] {
        let web = Authority::new("td", generation).issue(WEB);
        let (accepted, connected) = handshake(&world.server, &world.client(Some(&web))).await;
        let reason = refusal(accepted);
        let by_signature = matches!(reason, PeerError::Path(_));
        assert!(by_signature || reason == PeerError::UnknownIssuer, "{reason}");
        assert_eq!(by_signature, named_alike);
        assert!(told(connected).await.contains("CertificateUnknown"));
    }
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let world = world();
    let other = Authority::new("other", "g1");
    let web = other.issue("spiffe://other/ns/prod/sa/web");
    let (accepted, _) = handshake(&world.server, &world.client(Some(&web))).await;
    assert!(matches!(refusal(accepted), PeerError::TrustDomain { .. }));
}

#[tokio::test]
async fn a_client_under_an_expired_anchor_is_refused_though_its_own_chain_is_live() {
    // The intermediate and the leaf outlive the root on paper: here, the clock passes the root's end first.
    let dying = Authority::lasting("td", "g1", HOUR, HOUR);
    let fresh = Authority::new("td", "g2");
    let trust = Trust::new(anchors("td", &[&dying]));
    let server = ServerTls::new(fresh.issue(SERVER).serving(), trust.clone());
    let web = dying.issue_for(WEB, -HOUR, HOUR);
    let config = Arc::new(client(anchors("td", &[&fresh]), Some(web.identity())));
    assert!(handshake(&server, &config).await.0.is_ok());
    trust.set_now(at(HOUR + 1));
    assert_eq!(refusal(handshake(&server, &config).await.0), PeerError::NoLiveAnchor);
}

#[tokio::test]
async fn a_certificate_without_client_auth_is_no_client_certificate() {
    let world = world();
    let web = world.authority.issue_without_usage(WEB, 2);
    let (accepted, _) = handshake(&world.server, &world.client(Some(&web))).await;
    assert_eq!(refusal(accepted), PeerError::Usage);
}

#[tokio::test]
async fn a_change_of_the_anchors_holds_from_the_next_connection_on_and_nothing_is_resumed() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let world = world();
        let (old, new) = (&world.authority, Authority::new("td", "g2"));
        let web = old.issue(WEB);
        let expected = ExpectedServer::ServerOf(domain("td"));
        let trusted = anchors("td", &[old, &new]);
        let identity = Some(web.identity());
        let config = client_config_of(&[version], trusted, identity, expected, Arc::new(|| at(0)));
        let mut config = config.unwrap();
        // A client that would love to resume.
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        for _ in 0..3 {
            let (accepted, connected) = handshake(&world.server, &config).await;
            let (mut accepted, mut connected) = (accepted.unwrap().stream, connected.unwrap());
            // Tickets would come with the first data.
            accepted.write_all(b"x").await.unwrap();
            accepted.flush().await.unwrap();
            assert_eq!(connected.read_u8().await.unwrap(), b'x');
            assert_eq!(accepted.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(connected.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(connected.get_ref().1.tls13_tickets_received(), 0);
        }
        world.trust.set_anchors(anchors("td", &[&new]));
        let (accepted, _) = handshake(&world.server, &config).await;
        assert_eq!(refusal(accepted), PeerError::UnknownIssuer, "{version:?}");
    }
}

#[tokio::test]
async fn a_changed_serving_certificate_is_seen_by_the_next_connection() {
    let world = world();
    let config = world.client(None);
    let served = |connected: io::Result<ClientStream>| {
        connected.unwrap().get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = world.identity.leaf_der();
    assert_eq!(served(handshake(&world.server, &config).await.1), before);
    let next = world.authority.issue(SERVER);
    world.identity.set(&next.chain, &next.key).unwrap();
    assert_eq!(served(handshake(&world.server, &config).await.1), next.chain[0]);
}

#[tokio::test]
async fn a_serving_certificate_that_does_not_fit_its_key_leaves_the_old_one_in_place() {
    let world = world();
    let (one, two) = (world.authority.issue(SERVER), world.authority.issue(SERVER));
    let before = world.identity.leaf_der();
    assert_eq!(world.identity.set(&one.chain, &two.key), Err(IdentityError::KeyMismatch));
    assert_eq!(world.identity.set(&[], &two.key), Err(IdentityError::EmptyChain));
    assert_eq!(world.identity.set(&one.chain, b"junk"), Err(IdentityError::Key));
    assert_eq!(world.identity.leaf_der(), before);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_dropped_at_the_deadline() {
    let world = world();
    let (_near, far) = tokio::io::duplex(1024);
    let error = world.server.accept(far, Duration::ZERO).await.err().unwrap();
    assert!(matches!(error, AcceptError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn bytes_that_are_not_tls_are_a_failed_handshake() {
    let world = world();
    let (mut near, far) = tokio::io::duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error = world.server.accept(far, DEADLINE).await.err().unwrap();
    assert_eq!(error.code(), "tls_handshake_failed", "{error}");
}

#[tokio::test]
async fn a_configuration_for_ones_own_acceptor_refuses_the_same_clients() {
    let world = world();
    let acceptor = TlsAcceptor::from(world.server.config().unwrap());
    let web = Authority::new("td", "g1").issue(WEB);
    for (identity, fine) in
        [(world.authority.issue(WEB), true), (web, false), (world.authority.issue(WEB), true)]
    {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let name = rustls::pki_types::ServerName::try_from("x").unwrap();
        let connector = tokio_rustls::TlsConnector::from(world.client(Some(&identity)));
        let (accepted, _) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
        assert_eq!(accepted.is_ok(), fine);
    }
}

#[tokio::test]
async fn a_server_of_another_trust_domain_is_refused_by_name() {
    let world = world();
    let other = Authority::new("other", "g1");
    let config = Arc::new(client(anchors("other", &[&other]), None));
    let (accepted, connected) = handshake(&world.server, &config).await;
    assert!(accepted.is_err());
    let said = server_refusal(connected).to_string();
    assert_eq!(
        said,
        "it is spiffe://td/rhizome/server/r1, expected was a server of other (spiffe://other/rhizome/server/…)"
    );
}

#[tokio::test]
async fn a_workload_or_node_that_poses_as_a_server_is_refused() {
    for poser in [
        WEB,
        "spiffe://td/rhizome/node/c/join_token/vm-1",
        "spiffe://td/rhizome/admin/alice",
        "spiffe://td/rhizome/server",
        "spiffe://td/rhizome/server/r1/more",
        "spiffe://td/ns/rhizome/server/r1",
    ] {
        let world = world();
        let posing = world.authority.issue(poser);
        world.identity.set(&posing.chain, &posing.key).unwrap();
        let (_, connected) = handshake(&world.server, &world.client(None)).await;
        let refused = server_refusal(connected);
        assert!(matches!(refused, ServerRefusal::WrongIdentity { .. }), "{poser}: {refused}");
    }
}

#[tokio::test]
async fn a_client_that_wants_one_server_refuses_its_neighbour() {
    let world = world();
    let trusted = anchors("td", &[&world.authority]);
    for (wanted, fine) in [(SERVER, true), ("spiffe://td/rhizome/server/r2", false)] {
        let expected = ExpectedServer::Exact(spiffe_id(wanted));
        let config = client_config(Arc::clone(&trusted), None, expected, Arc::new(|| at(0))).unwrap();
        let (_, connected) = handshake(&world.server, &Arc::new(config)).await;
        assert_eq!(connected.is_ok(), fine, "{wanted}");
    }
}

#[tokio::test]
async fn an_expired_server_is_refused_with_both_clocks() {
    let world = world();
    let over = world.authority.issue_for(SERVER, -2 * HOUR, -HOUR);
    world.identity.set(&over.chain, &over.key).unwrap();
    let (_, connected) = handshake(&world.server, &world.client(None)).await;
    let refused = server_refusal(connected);
    let expected = ServerRefusal::Expired { subject: SERVER.to_owned(), not_after: at(-HOUR), now: at(0) };
    assert_eq!(refused, expected);
    let said = refused.to_string();
    assert!(said.contains("2025-12-31T23:00:00Z") && said.contains("2026-01-01T00:00:00Z"), "{said}");
}

#[tokio::test]
async fn a_server_from_the_future_is_refused_with_both_clocks() {
    let world = world();
    let early = world.authority.issue_for(SERVER, HOUR, 2 * HOUR);
    world.identity.set(&early.chain, &early.key).unwrap();
    let (_, connected) = handshake(&world.server, &world.client(None)).await;
    let refused = server_refusal(connected);
    assert!(matches!(refused, ServerRefusal::NotYetValid { .. }), "{refused}");
}

#[tokio::test]
async fn a_server_of_another_root_is_refused_with_the_name_and_fingerprint_it_showed() {
    let world = world();
    // Also when that root was made anew under its old name.
    for generation in ["g9", "g1"] {
        let ours = Authority::new("td", generation);
        let config = Arc::new(client(anchors("td", &[&ours]), None));
        let (_, connected) = handshake(&world.server, &config).await;
        let refused = server_refusal(connected);
        let ServerRefusal::UnknownAuthority { issuer, authority, .. } = &refused else {
            panic!("{refused}");
        };
        assert!(issuer.contains("Rhizome root g1"), "{issuer}");
        assert!(matches!(authority, PresentedAuthority::Intermediate(_)), "{authority}");
    }
}

#[tokio::test]
async fn a_client_whose_anchors_are_expired_says_so() {
    let world = world();
    let trusted = anchors("td", &[&world.authority]);
    let expected = ExpectedServer::ServerOf(domain("td"));
    let later = at(400 * 24 * HOUR);
    let config = client_config(trusted, None, expected, Arc::new(move || later)).unwrap();
    let (_, connected) = handshake(&world.server, &Arc::new(config)).await;
    let refused = server_refusal(connected);
    assert!(matches!(refused, ServerRefusal::AnchorsExpired { .. }), "{refused}");
}

#[tokio::test]
async fn a_certificate_without_server_auth_is_no_server_certificate() {
    let world = world();
    let odd = world.authority.issue_without_usage(SERVER, 1);
    world.identity.set(&odd.chain, &odd.key).unwrap();
    let (_, connected) = handshake(&world.server, &world.client(None)).await;
    assert_eq!(server_refusal(connected), ServerRefusal::Certificate(PeerError::Usage));
}

#[tokio::test]
async fn a_client_without_any_anchor_connects_only_with_the_dangerous_configuration() {
    let world = world();
    let config = Arc::new(crate::client::danger_unverified_client_config().unwrap());
    let (accepted, connected) = handshake(&world.server, &config).await;
    assert!(accepted.unwrap().client.is_none());
    assert!(connected.is_ok());
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_gets_nowhere() {
    let world = world();
    let (victim, thief) = (world.authority.issue(WEB), world.authority.issue(WEB));
    assert!(ClientIdentity::new(victim.chain.clone(), thief.key.clone()).is_err());
    // A client that does not check itself: the victim's chain over the thief's key.
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(thief.key.to_vec());
    let signer = rustls::crypto::ring::sign::any_supported_type(&key.into()).unwrap();
    let chain = victim.chain.iter().cloned().map(CertificateDer::from).collect();
    let forged = Arc::new(rustls::sign::CertifiedKey::new(chain, signer));
    let mut config = client(anchors("td", &[&world.authority]), None);
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(forged));
    let (accepted, _) = handshake(&world.server, &Arc::new(config)).await;
    assert!(matches!(accepted, Err(AcceptError::Handshake(_))));
}

#[test]
fn nothing_secret_is_printed_by_debug() {
    let world = world();
    let said = format!("{:?} {:?}", world.identity, bundle("td", &[&world.authority]).trust_domain());
    assert_eq!(said, "ServingIdentity { certificates: 2, .. } TrustDomain(td)");
}
