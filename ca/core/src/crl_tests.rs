//! Tests of what is due, on states made of documents.

use std::sync::Arc;

use rhizome_id::{KeyId, ReplicaNumber, SerialCounter};
use rhizome_x509::{
    CaCertificate, CrlSpec, IntermediateRole, IntermediateSpec, KeyAlgorithm, RequestKey, RevocationCode,
    RootSpec, Signature, SigningAlgorithm, prepare_crl, prepare_intermediate, prepare_root,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use super::*;
use crate::authority::AuthorityState;
use crate::documents::{Document, Transaction, Write};

/// 2026-01-01T00:00:00Z.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(1_767_225_600 + seconds)
}

fn serial(counter: u64) -> Serial {
    Serial::compose(
        ReplicaNumber::new(1).unwrap(),
        SerialCounter::new(counter).unwrap(),
        [7; Serial::RANDOM_BYTES],
    )
}

#[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
fn sign(key: &RequestKey, message: &[u8]) -> Signature {
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
    Signature::in_process(pair.sign(&random, message).unwrap().as_ref().to_vec())
}

/// An issuer of replica `r1` for thirty days, and its key.
fn issuer(name: &str) -> (Authority, RequestKey) {
    let [above, key] = [(); 2].map(|()| RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap());
    let (domain, generation) = ("example.org".parse().unwrap(), name.parse().unwrap());
    let algorithm = SigningAlgorithm::EcdsaP256Sha256;
    let root = prepare_root(&RootSpec {
        trust_domain: &domain,
        generation: &generation,
        public_key: above.public_key(),
        algorithm,
        serial: serial(1),
        not_before: at(-60),
        not_after: at(90 * 86_400),
    });
    let root = root.unwrap();
    let signature = sign(&above, root.to_be_signed().as_bytes());
    let root = CaCertificate::parse(root.seal(signature).unwrap().der()).unwrap();
    let spec = IntermediateSpec {
        role: IntermediateRole::Own,
        trust_domain: &domain,
        generation: &generation,
        public_key: key.public_key(),
        algorithm,
        serial: serial(2),
        not_before: at(-60),
        not_after: at(30 * 86_400),
    };
    let linted = prepare_intermediate(&spec, &root, algorithm).unwrap();
    let signature = sign(&above, linted.to_be_signed().as_bytes());
    let certificate = CaCertificate::parse(linted.seal(signature).unwrap().der()).unwrap();
    let authority = Authority {
        id: generation,
        kind: AuthorityKind::Issuer,
        replica: "r1".parse().unwrap(),
        key: name.parse::<KeyId>().unwrap(),
        algorithm,
        certificate,
        issuer: None,
        state: AuthorityState::Prepared,
        prepared_at: at(0),
        activated_at: None,
        custody: crate::authority::Custody::Here,
        above: Vec::new(),
        cross: None,
        canary: false,
        retired_at: None,
    };
    (authority, key)
}

fn put<T: Stored>(state: &mut State, value: &T) {
    let version = Version(state.version().0 + 1);
    let transaction = Transaction::named("test").put(value);
    let Write::Put(key, body) = &transaction.writes[0] else { panic!("a put") };
    state.put(&Document { key: key.clone(), version, body: Arc::clone(body) }).unwrap();
}

fn state() -> State {
    State::empty("example.org".parse().unwrap(), "r1".parse().unwrap())
}

fn revocation(counter: u64, issuer: Option<&str>, not_after: Timestamp) -> Revocation {
    Revocation {
        serial: serial(counter),
        reason: "test".to_owned(),
        by: "server".to_owned(),
        at: at(10),
        not_after,
        spiffe_id: "spiffe://example.org/web".parse().unwrap(),
        holder: "node:a/join_token/b".to_owned(),
        issuer: issuer.map(|it| it.parse().unwrap()),
        code: RevocationCode::Unspecified,
    }
}

/// Signs what is due for the only issuer.
fn signed(state: &State, due: &Due, key: &RequestKey, now: Timestamp) -> CrlRecord {
    let issuer = &state.authorities()[&due.issuer].value.certificate;
    let Due { number, this_update, next_update, ref revoked, .. } = *due;
    let linted = prepare_crl(&CrlSpec { issuer, number, this_update, next_update, revoked }).unwrap();
    let signature = sign(key, linted.to_be_signed().as_bytes());
    CrlRecord { issuer: due.issuer.clone(), signed_at: now, crl: linted.seal(signature).unwrap() }
}

fn listed(due: &Due) -> Vec<u64> {
    due.revoked.iter().map(|it| it.serial.counter().value()).collect()
}

#[test]
fn an_issuer_has_a_list_before_it_signs_that_may_be_used_until_its_own_end() {
    let (mut state, (authority, key)) = (state(), issuer("issuer-1"));
    put(&mut state, &authority);
    let due_now = due(&state, at(0));
    let [first] = due_now.as_slice() else { panic!("{due_now:?}") };
    assert_eq!((first.reason, listed(first)), (Reason::NewIssuer, vec![]));
    assert_eq!((first.this_update, first.next_update), (at(-60), authority.certificate.not_after()));
    let record = signed(&state, first, &key, at(0));
    put(&mut state, &record);
    assert_eq!(due(&state, at(0)), []);
    assert_eq!(due(&state, at(31 * 86_400)), [], "nothing for an issuer that has ended");
}

#[test]
fn what_is_revoked_is_listed_by_its_issuer_until_it_has_expired() {
    let (mut state, (authority, key)) = (state(), issuer("issuer-1"));
    put(&mut state, &authority);
    put(&mut state, &revocation(10, Some("issuer-1"), at(600)));
    put(&mut state, &revocation(11, Some("issuer-2"), at(600)));
    put(&mut state, &revocation(12, None, at(7_200)));
    let first = due(&state, at(20)).remove(0);
    assert_eq!(listed(&first), [10, 12], "one of nobody knows whom is in every list");
    let record = signed(&state, &first, &key, at(20));
    put(&mut state, &record);
    assert_eq!(due(&state, at(600)), []);
    assert_eq!(due(&state, at(700)), [], "not signed again for that alone within the hour");
    let later = due(&state, at(3_620)).remove(0);
    assert_eq!((later.reason, listed(&later)), (Reason::Expired, vec![12]));
    assert!(later.number > first.number && later.replaces.is_some());
    put(&mut state, &revocation(13, Some("issuer-1"), at(9_000)));
    let at_once = due(&state, at(30)).remove(0);
    assert_eq!((at_once.reason, listed(&at_once)), (Reason::Revoked, vec![10, 12, 13]));
}

#[test]
fn numbers_grow_when_the_clock_stands_still_and_after_a_restore() {
    let (mut state, (authority, key)) = (state(), issuer("issuer-1"));
    put(&mut state, &authority);
    let restored = state.clone();
    let mut last = 0;
    for counter in 10..20 {
        put(&mut state, &revocation(counter, Some("issuer-1"), at(600)));
        let next = due(&state, at(20)).remove(0);
        assert!(next.number > last);
        last = next.number;
        let record = signed(&state, &next, &key, at(20));
        put(&mut state, &record);
    }
    assert!(due(&restored, at(21)).remove(0).number > last, "from the next second on");
}

#[test]
fn issuers_of_other_replicas_are_left_to_them() {
    let (mut state, (authority, _)) = (state(), issuer("issuer-1"));
    put(&mut state, &Authority { replica: "r2".parse().unwrap(), ..authority });
    assert_eq!(due(&state, at(0)), []);
}

#[test]
fn lists_that_another_replica_has_not_signed_are_noticed_with_its_name() {
    let (mut state, (authority, key)) = (state(), issuer("issuer-1"));
    put(&mut state, &Authority { replica: "r2".parse().unwrap(), ..authority });
    let named = |state: &State, now| -> Vec<(String, Reason)> {
        behind(state, now).into_iter().map(|(replica, due)| (replica.to_string(), due.reason)).collect()
    };
    assert_eq!(named(&state, at(0)), [("r2".to_owned(), Reason::NewIssuer)]);
    let first = behind(&state, at(0)).remove(0).1;
    let record = signed(&state, &first, &key, at(0));
    put(&mut state, &record);
    assert_eq!(named(&state, at(0)), []);
    put(&mut state, &revocation(10, Some("issuer-1"), at(600)));
    assert_eq!(named(&state, at(20)), [("r2".to_owned(), Reason::Revoked)]);
    assert_eq!(due(&state, at(20)), [], "it is still not this replica's to sign");
    assert_eq!(named(&state, at(31 * 86_400)), [], "nothing of an issuer that has ended");
}

#[test]
fn a_list_from_a_future_that_was_taken_back_is_signed_anew_once() {
    let (mut state, (authority, key)) = (state(), issuer("issuer-1"));
    put(&mut state, &authority);
    let false_now = at(5 * 86_400);
    let first = due(&state, false_now).remove(0);
    let record = signed(&state, &first, &key, false_now);
    put(&mut state, &record);
    assert_eq!(due(&state, false_now), []);
    assert_eq!(due(&state, false_now.minus(60)), [], "a slow clock is no such thing");
    let again = due(&state, at(0)).remove(0);
    assert_eq!((again.reason, again.this_update), (Reason::Future, at(-60)));
    assert!(again.number > first.number);
    let record = signed(&state, &again, &key, at(0));
    put(&mut state, &record);
    assert_eq!(due(&state, at(0)), []);
}

#[test]
fn the_list_of_an_issuer_from_the_future_is_not_signed_again_and_again() {
    let (mut state, (authority, key)) = (state(), issuer("issuer-1"));
    put(&mut state, &authority);
    let before = at(-10 * 86_400);
    let first = due(&state, before).remove(0);
    assert_eq!(first.this_update, authority.certificate.not_before(), "it cannot hold earlier");
    let record = signed(&state, &first, &key, before);
    put(&mut state, &record);
    assert_eq!(due(&state, before), []);
}
