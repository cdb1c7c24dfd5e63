//! Tests of rehearsals: who is accepted, and who is said to have refused.

use super::*;
use crate::support::{Authority, Issued, anchors, at, spiffe_id};

const DOMAIN: &str = "example.org";
const ONE: &str = "spiffe://example.org/rhizome/server/one";
const OTHER: &str = "spiffe://example.org/rhizome/server/other";

fn held(
    (server, server_trusts): (&Issued, &[&Authority]),
    (client, client_trusts): (&Issued, &[&Authority]),
) -> Result<(), RehearsalError> {
    let (one, other) = (spiffe_id(ONE), spiffe_id(OTHER));
    let (server_trusts, client_trusts) = (anchors(DOMAIN, server_trusts), anchors(DOMAIN, client_trusts));
    let end = |issued: &Issued| (issued.chain.clone(), issued.key.to_vec());
    let ((server_chain, server_key), (client_chain, client_key)) = (end(server), end(client));
    let server = RehearsedEnd {
        chain_der: &server_chain,
        key_pkcs8_der: &server_key,
        spiffe_id: &one,
        trusts: &server_trusts,
    };
    let client = RehearsedEnd {
        chain_der: &client_chain,
        key_pkcs8_der: &client_key,
        spiffe_id: &other,
        trusts: &client_trusts,
    };
    rehearse(server, client, at(0))
}

#[test]
fn a_rehearsal_succeeds_when_both_trust_each_other_and_names_the_end_that_does_not() {
    let (old, new) = (Authority::new(DOMAIN, "g1"), Authority::new(DOMAIN, "g2"));
    let (server, client) = (new.issue(ONE), old.issue(OTHER));
    let both: &[&Authority] = &[&old, &new];
    held((&server, both), (&client, both)).unwrap();
    held((&server, &[&old]), (&client, &[&new])).unwrap();

    let refused = held((&server, both), (&client, &[&old])).unwrap_err();
    assert!(
        matches!(&refused, RehearsalError::ClientRefuses { cause } if cause.contains("no live anchor")),
        "{refused}"
    );
    let refused = held((&server, &[&new]), (&client, both)).unwrap_err();
    assert!(matches!(refused, RehearsalError::ServerRefuses { .. }), "{refused}");
}

#[test]
fn who_shows_another_identity_than_it_says_or_a_certificate_that_is_not_its_own_fails() {
    let root = Authority::new(DOMAIN, "g1");
    let trusts: &[&Authority] = &[&root];
    let (server, client) = (root.issue(ONE), root.issue(OTHER));
    let refused = held((&client, trusts), (&client, trusts)).unwrap_err();
    assert!(matches!(refused, RehearsalError::ClientRefuses { .. }), "{refused}");
    let refused = held((&server, trusts), (&server, trusts)).unwrap_err();
    assert!(matches!(refused, RehearsalError::Bug { .. }), "{refused}");
    let stolen = Issued { chain: server.chain.clone(), key: client.key.clone() };
    let refused = held((&stolen, trusts), (&client, trusts)).unwrap_err();
    assert!(matches!(refused, RehearsalError::Bug { .. }), "{refused}");
}
