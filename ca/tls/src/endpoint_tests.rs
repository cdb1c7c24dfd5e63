//! Handshakes with an endpoint, both ends ours.

use super::*;
use crate::support::{Authority, DEADLINE, HOUR, Issued, anchors, at, spiffe_id};

const ENDPOINT: &str = "spiffe://partner/rhizome/server/r1";

async fn fetch(issued: &Issued, trust: &EndpointTrust) -> Result<EndpointConnection, EndpointError> {
    let server = EndpointTls::new(issued.serving()).unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let clock: Clock = Arc::new(|| at(0));
    let accepted = server.accept(far, DEADLINE);
    let dialled = secure_endpoint(near, "bundles.partner.invalid", trust, clock, DEADLINE);
    let (_accepted, connection) = tokio::join!(accepted, dialled);
    connection
}

fn spiffe(authority: &Authority) -> EndpointTrust {
    EndpointTrust::Spiffe { anchors: anchors("partner", &[authority]), id: spiffe_id(ENDPOINT) }
}

#[tokio::test]
async fn an_endpoint_is_believed_by_exactly_its_identity_and_the_bundle_of_its_domain() {
    let (authority, stranger) = (Authority::new("partner", "g1"), Authority::new("partner", "g2"));
    assert!(fetch(&authority.issue(ENDPOINT), &spiffe(&authority)).await.is_ok());
    let wrong = [
        (authority.issue("spiffe://partner/rhizome/server/r2"), "another server of the domain"),
        (authority.issue("spiffe://partner/ns/a/sa/b"), "a workload of the domain"),
        (stranger.issue(ENDPOINT), "the right name under another root"),
        (authority.issue_for(ENDPOINT, -2 * HOUR, -HOUR), "expired"),
    ];
    for (issued, what) in wrong {
        let refused = fetch(&issued, &spiffe(&authority)).await;
        assert!(matches!(refused, Err(EndpointError::Refused(_))), "{what}: {refused:?}");
    }
}

#[tokio::test]
async fn the_public_web_does_not_vouch_for_an_svid_and_a_file_of_roots_vouches_for_no_other_name() {
    let authority = Authority::new("partner", "g1");
    let issued = authority.issue(ENDPOINT);
    let own = WebRoots::from_pem(authority.root.pem().as_bytes()).unwrap();
    for roots in [WebRoots::public(), own] {
        let refused = fetch(&issued, &EndpointTrust::Web(roots)).await;
        assert!(matches!(refused, Err(EndpointError::Refused(_))), "{refused:?}");
    }
    for bad in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(WebRoots::from_pem(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn whoever_answered_a_pinned_fetch_is_known_by_the_root_that_came_with_it() {
    let (authority, stranger) = (Authority::new("partner", "g1"), Authority::new("partner", "g2"));
    let connection = fetch(&authority.issue(ENDPOINT), &EndpointTrust::Pinned).await.unwrap();
    let verify = |id: &str, by: &Authority| {
        let anchors = anchors("partner", &[by]);
        EndpointConnection::verify(&connection.chain_der, &spiffe_id(id), &anchors, at(0))
    };
    assert_eq!(verify(ENDPOINT, &authority), Ok(()));
    assert!(verify(ENDPOINT, &stranger).is_err());
    assert!(verify("spiffe://partner/rhizome/server/r2", &authority).is_err());
    let none =
        EndpointConnection::verify(&[], &spiffe_id(ENDPOINT), &anchors("partner", &[&authority]), at(0));
    assert!(none.is_err());
}

#[test]
fn a_certificate_from_files_is_taken_with_its_own_key_only() {
    let authority = Authority::new("partner", "g1");
    let (one, other) = (authority.issue(ENDPOINT), authority.issue(ENDPOINT));
    let pem = |label: &str, der: &[u8]| {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    let chain: String = one.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    let (own, foreign) = (pem("PRIVATE KEY", &one.key), pem("PRIVATE KEY", &other.key));
    let identity = ServingIdentity::from_pem(chain.as_bytes(), own.as_bytes()).unwrap();
    assert_eq!(identity.leaf_der(), one.chain[0]);
    let mismatch = identity.set_pem(chain.as_bytes(), foreign.as_bytes());
    assert_eq!(mismatch, Err(IdentityError::KeyMismatch));
    assert_eq!(identity.set_pem(b"", own.as_bytes()), Err(IdentityError::EmptyChain));
    assert_eq!(identity.set_pem(chain.as_bytes(), b""), Err(IdentityError::Key));
    assert_eq!(identity.leaf_der(), one.chain[0], "what was served before stays");
}
