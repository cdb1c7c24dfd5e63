//! What counts of what is fetched, and when the next fetch is.

use proptest::prelude::*;
use rhizome_id::{ReplicaNumber, Serial, SerialCounter};
use rhizome_x509::{KeyAlgorithm, RequestKey, RootSpec, Signature, SigningAlgorithm, prepare_root};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use super::*;
use crate::documents::{Document, DocumentKey, Version};
use crate::limits::FOREIGN_BUNDLE_BYTES;
use crate::state::State;

const NOW: i64 = 1_767_225_600;

fn at(seconds_from_now: i64) -> Timestamp {
    Timestamp::from_unix(NOW + seconds_from_now)
}

fn domain() -> TrustDomain {
    "partner.example".parse().unwrap()
}

fn root_until(generation: &str, not_after: Timestamp) -> CaCertificate {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let counter = SerialCounter::new(1).unwrap();
    let root = prepare_root(&RootSpec {
        trust_domain: &domain(),
        generation: &generation.parse().unwrap(),
        public_key: key.public_key(),
        algorithm: SigningAlgorithm::EcdsaP256Sha256,
        serial: Serial::compose(ReplicaNumber::new(1).unwrap(), counter, [7; Serial::RANDOM_BYTES]),
        not_before: at(-1_000),
        not_after,
    });
    let root = root.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a throw-away key for a test")]
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
    let signature = pair.sign(&random, root.to_be_signed().as_bytes()).unwrap();
    let certificate = root.seal(Signature::external(signature.as_ref().to_vec())).unwrap();
    CaCertificate::parse(certificate.der()).unwrap()
}

fn root(generation: &str) -> CaCertificate {
    root_until(generation, at(1_000_000))
}

fn expired_root(generation: &str) -> CaCertificate {
    root_until(generation, at(-1))
}

fn relationship(first_fetch: Option<Digest>) -> Relationship {
    Relationship {
        trust_domain: domain(),
        url: "https://partner.example/bundle".parse().unwrap(),
        profile: EndpointProfile::HttpsWeb,
        first_fetch,
        private_addresses: false,
        created_by: "local:uid=0".to_owned(),
        created_at: at(0),
    }
}

fn document(sequence: u64, anchors: Vec<CaCertificate>, kids: &[&str]) -> String {
    let key = |kid: &&str| {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap().public_key().clone();
        JwtKey::new((*kid).to_owned(), key, Timestamp::MAX).unwrap()
    };
    let keys = kids.iter().map(key).collect();
    Bundle::foreign(domain(), sequence, Ttl::minutes(5), anchors, keys).unwrap().to_spiffe_json()
}

fn judged(held: Option<&HeldBundle>, text: &str) -> Result<Judged, Refusal> {
    judge(&relationship(None), held, text, at(0))
}

fn held(text: &str) -> HeldBundle {
    judged(None, text).unwrap().bundle
}

#[test]
fn a_higher_sequence_takes_the_place_of_a_lower_one_and_never_the_other_way_round() {
    let (first, second) = (document(4, vec![root("a")], &[]), document(5, vec![root("b")], &[]));
    let before = held(&first);
    let after = judged(Some(&before), &second).unwrap().bundle;
    assert_eq!(after.sequence, 5);
    let back = judged(Some(&after), &first);
    assert_eq!(back, Err(Refusal::Older { held: 5, offered: 4 }));
    let without = first.replace("\"spiffe_sequence\":4,", "");
    assert_ne!(without, first);
    assert_eq!(judged(Some(&after), &without), Err(Refusal::Older { held: 5, offered: 0 }));
}

#[test]
fn the_same_sequence_with_other_content_is_refused_and_with_the_same_content_is_not() {
    let (one, other) = (document(4, vec![root("a")], &[]), document(4, vec![root("b")], &[]));
    let before = held(&one);
    assert_eq!(judged(Some(&before), &one).unwrap().bundle.offered, before.offered);
    assert_eq!(judged(Some(&before), &other), Err(Refusal::Differs { sequence: 4 }));
    let more = document(4, before.anchors.clone(), &["k"]);
    assert_eq!(judged(Some(&before), &more), Err(Refusal::Differs { sequence: 4 }), "a key more");
}

#[test]
fn of_a_domain_that_does_not_count_the_last_bundle_fetched_wins() {
    let (one, other) = (document(0, vec![root("a")], &[]), document(0, vec![root("b")], &[]));
    let before = held(&one);
    assert_ne!(judged(Some(&before), &other).unwrap().bundle.anchors, before.anchors);
}

#[test]
fn roots_that_have_expired_are_left_out_and_a_bundle_of_nothing_else_is_refused() {
    let (old, new) = (expired_root("old"), root("new"));
    let both = document(7, vec![old.clone(), new.clone()], &[]);
    let first = held(&both);
    assert_eq!(first.anchors, [new]);
    assert!(judged(Some(&first), &both).is_ok(), "what was left out does not make it another content");
    let nothing_alive = document(8, vec![old.clone()], &[]);
    assert_eq!(judged(Some(&first), &nothing_alive), Err(Refusal::Expired { now: at(0) }));
    let for_tokens_alone = document(8, vec![old], &["k"]);
    assert_eq!(judged(Some(&first), &for_tokens_alone).unwrap().bundle.anchors, []);
}

#[test]
fn the_first_bundle_must_hold_the_root_that_was_named_and_later_ones_need_not() {
    let (named, other) = (root("a"), root("b"));
    let relationship = relationship(Some(named.fingerprint()));
    let forged = document(1, vec![other.clone()], &[]);
    let refused = judge(&relationship, None, &forged, at(0)).unwrap_err();
    assert_eq!(refused.code(), "fingerprint");
    assert!(refused.to_string().contains(&other.fingerprint().to_string()), "{refused}");
    let first = judge(&relationship, None, &document(1, vec![named], &[]), at(0)).unwrap();
    let later = judge(&relationship, Some(&first.bundle), &document(2, vec![other], &[]), at(0));
    assert_eq!(later.unwrap().bundle.sequence, 2);
}

#[test]
fn what_is_no_bundle_is_refused_and_what_is_unknown_in_one_is_counted() {
    for bad in ["", "{}", "[]", "{\"keys\":[]}", "{\"keys\":[{\"kty\":\"EC\",\"use\":\"x\"}]}", "<html>"] {
        assert!(matches!(judged(None, bad), Err(Refusal::Document(_))), "{bad}");
    }
    let large = format!("{{\"keys\":[],\"x\":\"{}\"}}", "a".repeat(FOREIGN_BUNDLE_BYTES));
    assert!(matches!(judged(None, &large), Err(Refusal::TooLarge { .. })));
    let odd = document(1, vec![root("a")], &[]).replace("\"keys\":[", "\"keys\":[{\"use\":\"new\"},");
    assert_eq!(judged(None, &odd).unwrap().ignored, 1);
}

#[test]
fn an_administrators_hand_may_go_back_and_the_endpoint_after_it_may_not() {
    let relationship = relationship(None);
    let new = held(&document(9, vec![root("a")], &[]));
    let record = ForeignRecord { bundle: Some(new), ..ForeignRecord::empty(domain()) };
    let old = document(3, vec![root("b")], &[]);
    let given = record.given(by_hand(&relationship, &old, "admin:eve", at(0)).unwrap());
    let bundle = given.bundle.as_ref().unwrap();
    assert_eq!((bundle.sequence, &bundle.origin), (3, &Origin::Hand { by: "admin:eve".to_owned() }));
    assert_eq!(given.fetch.next, None, "the endpoint is asked at once");
    let older = judge(&relationship, Some(bundle), &document(2, vec![root("c")], &[]), at(0));
    assert_eq!(older, Err(Refusal::Older { held: 3, offered: 2 }));
}

#[test]
fn a_relationship_is_with_somebody_else_and_says_how_it_begins() {
    let own: TrustDomain = "example.org".parse().unwrap();
    let web = relationship(None);
    assert_eq!(web.check(&own, false), Ok(()));
    assert!(matches!(web.check(&domain(), false), Err(RelationshipError::Own { .. })));
    let spiffe = |id: &str, first_fetch| {
        let profile = EndpointProfile::HttpsSpiffe { endpoint_id: id.parse().unwrap() };
        Relationship { profile, first_fetch, ..relationship(None) }
    };
    let own_id = "spiffe://partner.example/rhizome/server/r1";
    assert_eq!(spiffe(own_id, None).check(&own, false), Err(RelationshipError::NothingToBeginWith));
    assert_eq!(spiffe(own_id, None).check(&own, true), Ok(()));
    assert_eq!(spiffe(own_id, Some(Digest::ZERO)).check(&own, false), Ok(()));
    assert_eq!(spiffe("spiffe://third.example/bundles", None).check(&own, false), Ok(()));
    let no_path = spiffe("spiffe://partner.example", Some(Digest::ZERO)).check(&own, false);
    assert!(matches!(no_path, Err(RelationshipError::NoPath { .. })));
}

fn trouble(code: &str, refused: bool) -> Trouble {
    Trouble { code: code.to_owned(), detail: String::new(), since: at(0), refused }
}

#[test]
fn a_failure_keeps_what_is_held_and_says_since_when_it_is_that_failure() {
    let judged = judged(None, &document(4, vec![root("a")], &[])).unwrap();
    let (record, changed) = ForeignRecord::empty(domain()).fetched(judged.clone(), at(0), 0);
    assert!(changed);
    let (once, new) = record.failed(trouble("timeout", false), at(10), 0);
    let (twice, again) = once.failed(trouble("timeout", false), at(30), 0);
    assert_eq!((new, again), (true, false));
    assert_eq!(twice.bundle, record.bundle);
    assert_eq!(twice.fetch.trouble.as_ref().unwrap().since, at(10));
    assert_eq!((twice.fetch.failures, twice.fetch.succeeded_at), (2, Some(at(0))));
    let (well, changed) = twice.fetched(judged, at(60), 0);
    assert_eq!((changed, well.fetch.trouble, well.fetch.failures), (false, None, 0));
    assert_eq!(well.bundle.unwrap().since, at(0), "it is the one that was in force");
}

#[test]
fn how_it_stands_goes_from_awaited_over_current_and_failing_to_old() {
    let empty = ForeignRecord::empty(domain());
    assert_eq!(outlook(None, at(0)), Outlook::Awaited);
    assert_eq!(outlook(Some(&empty), at(0)), Outlook::Awaited);
    let judged = judged(None, &document(4, vec![root("a")], &[])).unwrap();
    let (record, _) = empty.fetched(judged, at(0), 0);
    assert_eq!(outlook(Some(&record), at(900)), Outlook::Current);
    assert_eq!(outlook(Some(&record), at(901)), Outlook::Old);
    let (failing, _) = record.failed(trouble("timeout", false), at(300), 0);
    assert_eq!(outlook(Some(&failing), at(301)), Outlook::Failing);
    assert_eq!(outlook(Some(&failing), at(901)), Outlook::Old);
    let (refused, _) = record.failed(trouble("older_sequence", true), at(300), 0);
    assert_eq!(outlook(Some(&refused), at(301)), Outlook::Refused);
    let (impostor, _) = ForeignRecord::empty(domain()).failed(trouble("fingerprint", true), at(0), 0);
    assert_eq!(outlook(Some(&impostor), at(1)), Outlook::Refused, "also before there is a bundle");
}

#[test]
fn a_fetch_is_due_at_its_instant_and_when_that_was_set_by_a_clock_that_was_wrong() {
    let mut record = ForeignRecord::empty(domain());
    assert!(record.is_due(at(0)), "nothing was tried");
    record.fetch.next = Some(at(300));
    assert_eq!([299, 300, 301].map(|seconds| record.is_due(at(seconds))), [false, true, true]);
    assert!(!record.is_due(at(300 - 86_400)));
    assert!(record.is_due(at(300 - 86_401)));
}

fn stored(version: u64, record: &ForeignRecord) -> Document {
    let body = serde_json::to_string(record).unwrap().into();
    Document {
        key: DocumentKey::new(Kind::ForeignBundle, "partner.example"),
        version: Version(version),
        body,
    }
}

#[test]
fn followers_hear_of_another_bundle_and_not_of_a_fetch_that_brought_nothing() {
    let mut state = State::empty("example.org".parse().unwrap(), "r1".parse().unwrap());
    let first = judged(None, &document(4, vec![root("a")], &[])).unwrap();
    let (record, _) = ForeignRecord::empty(domain()).fetched(first.clone(), at(0), 0);
    state.put(&stored(1, &record)).unwrap();
    let (cursor, revision) = (state.cursor(), state.revision());
    let (again, _) = record.fetched(first, at(300), 0);
    state.put(&stored(2, &again)).unwrap();
    assert_eq!(state.cursor(), cursor);
    assert!(state.revision() > revision, "it is another state all the same");
    let next = judged(again.bundle.as_ref(), &document(5, vec![root("b")], &[])).unwrap();
    let (next, _) = again.fetched(next, at(600), 0);
    state.put(&stored(3, &next)).unwrap();
    let heard: Vec<_> = state.changes_since(cursor).unwrap().cloned().collect();
    assert_eq!(heard, [DocumentKey::new(Kind::ForeignBundle, "partner.example")]);
    state.delete(&heard[0], Version(4)).unwrap();
    assert!(state.foreign().is_empty());
    assert!(state.bundle().is_none(), "ours is another thing");
}

proptest! {
    #[test]
    fn the_next_fetch_of_a_healthy_domain_lies_within_its_hint(seconds in 1_i64..10_000_000, draw: u64) {
        let hint = Ttl::from_seconds(seconds).unwrap();
        let wait = after_success(hint, at(0), draw).since(at(0));
        let wanted = seconds.clamp(10, 86_400);
        prop_assert!(wait <= wanted && wait >= wanted - wanted / 5, "{wait} of {wanted}");
    }

    #[test]
    fn a_domain_that_fails_is_never_asked_more_seldom_than_a_healthy_one(
        seconds in 1_i64..10_000_000, failures: u32, draw: u64,
    ) {
        let hint = Ttl::from_seconds(seconds).unwrap();
        let wait = after_failure(Some(hint), failures, at(0), draw).since(at(0));
        prop_assert!(wait >= 8 && wait <= seconds.clamp(10, 3_600), "{wait}");
    }
}
