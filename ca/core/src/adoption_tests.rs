//! What may be taken over, case by case. Certificates as other CAs make them are tried with the real program.

use rhizome_id::{ReplicaNumber, Serial, SerialCounter};
use rhizome_x509::{
    IntermediateRole, IntermediateSpec, KeyAlgorithm, Linted, RequestKey, RootSpec, Signature,
    prepare_intermediate, prepare_root,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use super::*;

const START: i64 = 1_800_000_000;
const DAY: i64 = 86_400;
const ALGORITHM: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;

fn at(day: i64) -> Timestamp {
    Timestamp::from_unix(START + day * DAY)
}

fn domain() -> TrustDomain {
    "example.test".parse().unwrap()
}

struct Made {
    certificate: CaCertificate,
    key: RequestKey,
}

fn sealed(linted: Linted, key: &RequestKey) -> CaCertificate {
    #[expect(clippy::disallowed_methods, reason = "ring takes its own source only")]
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
    let signature = pair.sign(&random, linted.to_be_signed().as_bytes()).unwrap();
    CaCertificate::parse(linted.seal(Signature::external(signature.as_ref().to_vec())).unwrap().der())
        .unwrap()
}

fn serial(counter: u64) -> Serial {
    Serial::compose(ReplicaNumber::new(1).unwrap(), SerialCounter::new(counter).unwrap(), [7; 11])
}

/// A root that lives for a year from `at(0)` on.
fn root(trust_domain: &str, name: &str) -> Made {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let linted = prepare_root(&RootSpec {
        trust_domain: &trust_domain.parse().unwrap(),
        generation: &name.parse().unwrap(),
        public_key: key.public_key(),
        algorithm: ALGORITHM,
        serial: serial(1),
        not_before: at(0),
        not_after: at(365),
    });
    Made { certificate: sealed(linted.unwrap(), &key), key }
}

/// An intermediate with path length 0 under it that lives for 90 days.
fn below(root: &Made, name: &str) -> CaCertificate {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let spec = IntermediateSpec {
        role: IntermediateRole::Own,
        trust_domain: &domain(),
        generation: &name.parse().unwrap(),
        public_key: key.public_key(),
        algorithm: ALGORITHM,
        serial: serial(2),
        not_before: at(0),
        not_after: at(90),
    };
    sealed(prepare_intermediate(&spec, &root.certificate, ALGORITHM).unwrap(), &root.key)
}

fn offer(certificate: &CaCertificate, roots: &[&CaCertificate], with_key: bool) -> Offer {
    let roots = roots.iter().map(|one| (*one).clone()).collect();
    Offer { certificate: certificate.clone(), between: Vec::new(), roots, with_key }
}

fn names() -> Names {
    Names {
        root: "root-1".parse().unwrap(),
        issuer: "issuer-1".parse().unwrap(),
        key: "key-1".parse().unwrap(),
        elsewhere: "root-1".parse().unwrap(),
        replica: "r1".parse().unwrap(),
    }
}

#[test]
fn a_root_with_its_key_signs_issuers_and_one_without_is_only_trusted() {
    let root = root("example.test", "g1").certificate;
    for (with_key, part, custody) in
        [(true, Part::SignsIssuers, Custody::Here), (false, Part::IsTrusted, Custody::Elsewhere)]
    {
        let adoption = judge(&offer(&root, &[], with_key), &domain(), at(1)).unwrap();
        assert_eq!((adoption.part, &adoption.certificate, adoption.above.len()), (part, &root, 0));
        let records = records(&adoption, &names(), at(1));
        let [one] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!(
            (one.kind, one.custody, one.state),
            (AuthorityKind::Root, custody, AuthorityState::Prepared)
        );
        assert_eq!((one.anchor(), one.served().count()), (&root, 0));
        assert_eq!(one.window(), (at(0), at(365)));
    }
}

#[test]
fn an_intermediate_without_room_below_it_is_an_issuer_under_a_root_whose_key_is_elsewhere() {
    let root = root("example.test", "g1");
    let certificate = below(&root, "i1");
    let adoption = judge(&offer(&certificate, &[&root.certificate], true), &domain(), at(1)).unwrap();
    assert_eq!(adoption.part, Part::SignsWorkloads);
    let records = records(&adoption, &names(), at(1));
    let [anchor, issuer] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((anchor.kind, anchor.custody), (AuthorityKind::Root, Custody::Elsewhere));
    assert_eq!(anchor.anchor(), &root.certificate);
    assert_eq!((issuer.kind, issuer.custody), (AuthorityKind::Issuer, Custody::Here));
    assert_eq!((issuer.issuer.as_ref(), &issuer.certificate), (Some(&anchor.id), &certificate));
    assert_eq!(issuer.window(), (at(0), at(90)));
    // Where its key stays elsewhere nothing could ever be issued under it.
    let refused = judge(&offer(&certificate, &[&root.certificate], false), &domain(), at(1));
    assert!(matches!(refused, Err(AdoptionError::PathLength { .. })), "{refused:?}");
}

#[test]
fn what_is_out_of_its_time_or_of_another_trust_domain_is_refused() {
    let root = root("example.test", "g1").certificate;
    let at_day = |day| judge(&offer(&root, &[], true), &domain(), at(day)).map(|it| it.part);
    assert!(matches!(at_day(-1), Err(AdoptionError::NotYet { .. })));
    assert_eq!(at_day(0), Ok(Part::SignsIssuers));
    assert_eq!(at_day(364), Ok(Part::SignsIssuers));
    let nearly = judge(&offer(&root, &[], true), &domain(), at(364).plus(1)).map(|it| it.part);
    assert!(matches!(nearly, Err(AdoptionError::EndsSoon { .. })), "{nearly:?}");
    assert!(matches!(at_day(366), Err(AdoptionError::Expired { .. })));
    let other = judge(&offer(&root, &[], true), &"other.test".parse().unwrap(), at(1));
    assert!(matches!(&other, Err(AdoptionError::OtherTrustDomain { found, .. }) if found == "example.test"));
}

#[test]
fn the_chain_must_reach_a_root_that_verifiers_trust_already() {
    let (root, other) = (root("example.test", "g1"), root("example.test", "g2"));
    let certificate = below(&root, "i1");
    let judged = |certificate, roots: &[&CaCertificate]| {
        judge(&offer(certificate, roots, true), &domain(), at(1)).map(|it| it.part)
    };
    assert!(matches!(judged(&certificate, &[]), Err(AdoptionError::NoIssuer { .. })));
    assert!(matches!(judged(&certificate, &[&other.certificate]), Err(AdoptionError::NoIssuer { .. })));
    let elsewhere = judged(&root.certificate, &[&other.certificate]);
    assert!(matches!(elsewhere, Err(AdoptionError::OtherRoot { .. })), "{elsewhere:?}");
    // With several roots, as in the middle of a rotation, one of them would be trusted no more.
    let several = judged(&certificate, &[&other.certificate, &root.certificate]);
    assert!(matches!(several, Err(AdoptionError::OtherRootTrusted { .. })), "{several:?}");
}

#[test]
fn an_issuer_from_elsewhere_must_fit_below_the_root_and_into_its_time() {
    let (root, other) = (root("example.test", "g1"), root("example.test", "g2"));
    let adoption = judge(&offer(&root.certificate, &[], false), &domain(), at(1)).unwrap();
    let record = records(&adoption, &names(), at(1)).remove(0);
    let judged =
        |certificate: &CaCertificate, day| judge_issuer(certificate, &[], &record, &domain(), at(day));
    let issuer = below(&root, "i1");
    assert_eq!(judged(&issuer, 1), Ok(at(90)));
    assert_eq!(judged(&issuer, 90), Ok(at(90)), "issuers may be short-lived");
    assert!(matches!(judged(&issuer, 91), Err(AdoptionError::Expired { .. })));
    assert!(matches!(judged(&below(&other, "i1"), 1), Err(AdoptionError::Issuer(_))));
    let foreign = judge_issuer(&issuer, &[], &record, &"other.test".parse().unwrap(), at(1));
    assert!(matches!(foreign, Err(AdoptionError::OtherTrustDomain { .. })));
}
