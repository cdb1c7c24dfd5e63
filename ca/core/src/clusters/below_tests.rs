//! What a cluster's own Rhizome believes of the one above it.

use rhizome_id::{ReplicaNumber, Serial, SerialCounter, Ttl};
use rhizome_x509::{
    IntermediateRole, IntermediateSpec, KeyAlgorithm, RequestKey, RootSpec, Signature, SigningAlgorithm,
    prepare_intermediate, prepare_root,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use super::*;

const ALGORITHM: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;
const DAY: i64 = 86_400;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(1_767_225_600 + seconds)
}

fn serial(counter: u64) -> Serial {
    Serial::compose(ReplicaNumber::new(1).unwrap(), SerialCounter::new(counter).unwrap(), [7; 11])
}

#[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
fn sign(key: &RequestKey, message: &[u8]) -> Signature {
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
    Signature::in_process(pair.sign(&random, message).unwrap().as_ref().to_vec())
}

fn key() -> RequestKey {
    RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()
}

fn root(name: &str) -> (CaCertificate, RequestKey) {
    let key = key();
    let linted = prepare_root(&RootSpec {
        trust_domain: &"example.org".parse().unwrap(),
        generation: &name.parse().unwrap(),
        public_key: key.public_key(),
        algorithm: ALGORITHM,
        serial: serial(1),
        not_before: at(-60),
        not_after: at(90 * DAY),
    })
    .unwrap();
    let signature = sign(&key, linted.to_be_signed().as_bytes());
    (CaCertificate::parse(linted.seal(signature).unwrap().der()).unwrap(), key)
}

fn intermediate(above: &(CaCertificate, RequestKey), key: &RequestKey) -> CaCertificate {
    let spec = IntermediateSpec {
        role: IntermediateRole::Cluster,
        trust_domain: &"example.org".parse().unwrap(),
        generation: &"issuer-1".parse().unwrap(),
        public_key: key.public_key(),
        algorithm: ALGORITHM,
        serial: serial(2),
        not_before: at(-60),
        not_after: at(DAY),
    };
    let linted = prepare_intermediate(&spec, &above.0, ALGORITHM).unwrap();
    let signature = sign(&above.1, linted.to_be_signed().as_bytes());
    CaCertificate::parse(linted.seal(signature).unwrap().der()).unwrap()
}

fn bundle(sequence: u64, anchors: &[&CaCertificate]) -> Bundle {
    let anchors = anchors.iter().copied().cloned().collect();
    Bundle::new("example.org".parse().unwrap(), sequence, Ttl::minutes(5), anchors).unwrap()
}

#[test]
fn what_comes_from_above_is_judged_before_it_counts() {
    let (old, new) = (root("root-1").0, root("root-2").0);
    let held = bundle(3, &[&old]);
    assert_eq!(judge_bundle(None, &held), Ok(true), "the first one");
    assert_eq!(judge_bundle(Some(&held), &held), Ok(false), "the same");
    assert_eq!(judge_bundle(Some(&held), &bundle(4, &[&old, &new])), Ok(true));
    let older = judge_bundle(Some(&held), &bundle(2, &[&old]));
    assert_eq!(older, Err(AboveError::Older { offered: 2, held: 3 }));
    let different = judge_bundle(Some(&held), &bundle(3, &[&old, &new]));
    assert_eq!(different, Err(AboveError::Different { sequence: 3 }));
    assert_eq!(judge_bundle(Some(&held), &bundle(9, &[&new])), Err(AboveError::Unrelated));
    let beyond = judge_bundle(Some(&held), &bundle(u64::MAX, &[&old, &new]));
    assert_eq!(beyond, Err(AboveError::Beyond { offered: u64::MAX, held: 3 }));
    let other = Bundle::new("other.org".parse().unwrap(), 9, Ttl::minutes(5), vec![old]).unwrap();
    assert!(matches!(judge_bundle(Some(&held), &other), Err(AboveError::OtherTrustDomain { .. })));
}

#[test]
fn an_intermediate_is_taken_only_for_the_own_key_below_a_root_that_is_held() {
    let (mine, above, other) = (key(), root("root-1"), root("root-2"));
    let good = intermediate(&above, &mine);
    let held = [above.0.clone()];
    let take = |chain: Vec<CaCertificate>, root: &CaCertificate, now: i64| {
        accept_intermediate(chain, root, &held, &mine.public_key().digest(), at(now))
    };
    let accepted = take(vec![good.clone()], &above.0, 0).unwrap();
    assert_eq!((accepted.certificate, accepted.between.len()), (good.clone(), 0));
    assert!(take(vec![good.clone()], &above.0, -600).is_ok(), "this clock may be slow");
    let foreign = take(vec![intermediate(&other, &mine)], &other.0, 0).unwrap_err();
    assert!(matches!(foreign, AboveError::UnknownRoot { .. }));
    let unlinked = take(vec![intermediate(&other, &mine)], &above.0, 0).unwrap_err();
    assert!(matches!(unlinked, AboveError::Chain(_)));
    let stolen = take(vec![intermediate(&above, &key())], &above.0, 0).unwrap_err();
    assert_eq!(stolen, AboveError::OtherKey);
    assert_eq!(take(Vec::new(), &above.0, 0).unwrap_err(), AboveError::Empty);
    assert!(matches!(take(vec![good], &above.0, DAY).unwrap_err(), AboveError::Ended { .. }));
    let own_root =
        accept_intermediate(vec![above.0.clone()], &above.0, &held, &above.1.public_key().digest(), at(0));
    assert!(matches!(own_root.unwrap_err(), AboveError::PathLength { .. }));
}

#[test]
fn the_records_of_roots_follow_the_bundle_and_only_the_signing_one_is_active() {
    let (old, new) = (root("root-1").0, root("root-2").0);
    let replica: ReplicaName = "r1".parse().unwrap();
    let mut records: Vec<Authority> = Vec::new();
    let step = |records: &mut Vec<Authority>, anchors: &[CaCertificate], signing: &CaCertificate| {
        let known: Vec<&Authority> = records.iter().collect();
        let signing = Signing { root: signing.fingerprint(), bridges: Vec::new() };
        let changes = mirror_roots(&known, anchors, &signing, &replica, at(0)).unwrap();
        let count = changes.len();
        for change in changes {
            match change {
                RootChange::Put(root) => {
                    records.retain(|it| it.id != root.id);
                    records.push(*root);
                }
                RootChange::Delete(id) => records.retain(|it| it.id != id),
            }
        }
        count
    };
    let states = |records: &[Authority]| -> Vec<(CaCertificate, AuthorityState)> {
        let mut states: Vec<_> = records.iter().map(|it| (it.certificate.clone(), it.state)).collect();
        states.sort_by_key(|(certificate, _)| *certificate != old);
        states
    };
    step(&mut records, std::slice::from_ref(&old), &old);
    assert_eq!(states(&records), [(old.clone(), AuthorityState::Active)]);
    assert_eq!(records[0].custody, Custody::Elsewhere);
    let both = [old.clone(), new.clone()];
    step(&mut records, &both, &old);
    let expected = [(old.clone(), AuthorityState::Active), (new.clone(), AuthorityState::Prepared)];
    assert_eq!(states(&records), expected);
    step(&mut records, &both, &new);
    let expected = [(old.clone(), AuthorityState::Old), (new.clone(), AuthorityState::Active)];
    assert_eq!(states(&records), expected);
    assert_eq!(step(&mut records, &both, &new), 0, "nothing is left to do");
    step(&mut records, &both, &old);
    assert_eq!(states(&records)[0].1, AuthorityState::Active, "taken back");
    step(&mut records, std::slice::from_ref(&new), &new);
    assert_eq!(states(&records), [(new.clone(), AuthorityState::Active)]);
    let known: Vec<&Authority> = records.iter().collect();
    let signing = Signing { root: old.fingerprint(), bridges: Vec::new() };
    let foreign = mirror_roots(&known, &[new], &signing, &replica, at(0));
    assert!(matches!(foreign, Err(AboveError::UnknownRoot { .. })));
}
