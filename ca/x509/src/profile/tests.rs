use x509_parser::prelude::FromDer;

use super::*;
use crate::inspect::inspect;
use crate::signature::Signature;
use crate::tbs::SealError;
use crate::testing::{Authority, TestKey, at, domain, serial, web};

fn spec<'a>(id: &'a SpiffeId, key: &'a PublicKey) -> LeafSpec<'a> {
    LeafSpec {
        spiffe_id: id,
        dns_names: &[],
        public_key: key,
        serial: serial(9, 1),
        not_before: at(-60),
        not_after: at(3540),
    }
}

fn refusal(spec: &LeafSpec<'_>, issuer: &Issuer) -> LintError {
    match prepare_leaf(spec, issuer) {
        Err(PrepareError::Lint(error)) => error,
        other => panic!("expected a lint error, not {other:?}"),
    }
}

#[test]
fn another_library_reads_the_leaf_as_it_was_asked_for() {
    for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384] {
        let (authority, key) = (Authority::of(algorithm, "g7"), TestKey::p256());
        let certificate = authority.key.seal(authority.leaf(&key.public));
        let (rest, read) = x509_parser::certificate::X509Certificate::from_der(certificate.der()).unwrap();
        assert!(rest.is_empty());
        assert_eq!(read.raw_serial(), serial(3, 0).as_bytes());
        assert_eq!(read.subject().iter().count(), 0);
        assert_eq!(read.issuer().to_string(), authority.certificate.subject());
        assert_eq!(read.public_key().raw, key.public.spki_der());
        assert_eq!(read.validity().not_before.timestamp(), at(-60).unix());
        assert_eq!(read.validity().not_after.timestamp(), at(3540).unix());
        let names = read.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical);
        assert!(!read.basic_constraints().unwrap().unwrap().value.ca);
        let usage = read.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.flags == 1);
        let extended = read.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && extended.other.is_empty());
        let facts = inspect(certificate.der()).unwrap();
        assert_eq!(facts.spiffe_id, Some(web()));
        assert_eq!(facts.issuer_key_id.as_deref(), Some(authority.certificate.key_identifier()));
        assert_eq!(facts.subject_key_id.as_deref(), Some(&key.public.key_identifier()[..]));
    }
}

#[test]
fn equal_arguments_give_equal_bytes_and_digests() {
    let (authority, key, id) = (Authority::new(), TestKey::p256(), web());
    let [first, second] = [(); 2].map(|()| prepare_leaf(&spec(&id, &key.public), &authority.issuer).unwrap());
    assert_eq!(first.to_be_signed().as_bytes(), second.to_be_signed().as_bytes());
    assert_eq!(first.digest(), second.digest());
    assert_eq!(first.digest(), der::sha256(first.to_be_signed().as_bytes()));
}

#[test]
fn keys_of_every_accepted_kind_get_a_leaf() {
    let (authority, id) = (Authority::new(), web());
    for csr in [
        &include_bytes!("../../testdata/rsa2048.csr.der")[..],
        include_bytes!("../../testdata/rsa4096.csr.der"),
        include_bytes!("../../testdata/p384.csr.der"),
        include_bytes!("../../testdata/ed25519.csr.der"),
    ] {
        let key = crate::VerifiedCsr::parse(csr).unwrap().into_public_key();
        let leaf = prepare_leaf(&spec(&id, &key), &authority.issuer).unwrap();
        let facts = inspect(authority.key.seal(leaf).der()).unwrap();
        assert_eq!(facts.key_algorithm, Some(key.algorithm()));
    }
}

#[test]
fn dns_names_and_addresses_stand_after_the_spiffe_id() {
    let (authority, key, id) = (Authority::new(), TestKey::p256(), web());
    let dns: [DnsName; 2] = ["web.example".parse().unwrap(), "web".parse().unwrap()];
    let addresses: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let LeafSpec { spiffe_id, public_key, serial, not_before, not_after, .. } = spec(&id, &key.public);
    let server = ServerSpec {
        spiffe_id,
        dns_names: &dns,
        ip_addresses: &addresses,
        public_key,
        serial,
        not_before,
        not_after,
    };
    let certificate = authority.key.seal(prepare_server(&server, &authority.issuer).unwrap());
    let facts = inspect(certificate.der()).unwrap();
    assert_eq!(facts.dns_names, ["web.example", "web"]);
    assert_eq!(facts.spiffe_id, Some(web()));
    assert!(certificate.der().windows(6).any(|bytes| bytes == [0x87, 4, 10, 0, 0, 1]));
}

#[test]
fn a_leaf_never_starts_before_or_ends_after_any_ca_above() {
    let (authority, key, id) = (Authority::new(), TestKey::p256(), web());
    let good = spec(&id, &key.public);
    let (earliest, latest) = (authority.issuer.not_before_limit(), authority.issuer.not_after_limit());
    assert_eq!((earliest, latest), (at(-3600), at(Authority::LIFE)));
    let widest = LeafSpec { not_before: earliest, not_after: latest, ..good };
    assert!(prepare_leaf(&widest, &authority.issuer).is_ok());
    let early = LeafSpec { not_before: earliest.minus(1), ..good };
    assert_eq!(refusal(&early, &authority.issuer), LintError::PrecedesAuthority { limit: earliest });
    let late = LeafSpec { not_after: latest.plus(1), ..good };
    assert_eq!(refusal(&late, &authority.issuer), LintError::OutlivesAuthority { limit: latest });
}

#[test]
fn the_keys_ids_and_domains_of_authorities_are_not_issued_to_leaves() {
    let (authority, key, id) = (Authority::new(), TestKey::p256(), web());
    for stolen in [&authority.key.public, &authority.root_key.public] {
        assert_eq!(refusal(&spec(&id, stolen), &authority.issuer), LintError::KeyOfAuthority);
    }
    let own = SpiffeId::of_trust_domain(&domain());
    assert_eq!(refusal(&spec(&own, &key.public), &authority.issuer), LintError::IdPath);
    let foreign: SpiffeId = "spiffe://other.org/ns/a/sa/b".parse().unwrap();
    assert_eq!(refusal(&spec(&foreign, &key.public), &authority.issuer), LintError::ForeignTrustDomain);
}

#[test]
fn a_time_from_2050_is_written_as_generalized_time() {
    let root_key = TestKey::p256();
    let until: Timestamp = "2050-01-01T00:00:00Z".parse().unwrap();
    let (domain, generation) = (domain(), "g1".parse().unwrap());
    let root = |not_after| RootSpec {
        trust_domain: &domain,
        generation: &generation,
        public_key: &root_key.public,
        algorithm: SigningAlgorithm::EcdsaP256Sha256,
        serial: serial(1, 1),
        not_before: at(0),
        not_after,
    };
    let holds = |not_after, text: &[u8]| {
        let linted = prepare_root(&root(not_after)).unwrap();
        linted.to_be_signed().as_bytes().windows(text.len()).any(|bytes| bytes == text)
    };
    assert!(holds(until, b"\x18\x0f20500101000000Z"));
    assert!(holds(until.minus(1), b"\x17\x0d491231235959Z"));
    assert!(holds(Timestamp::MAX, b"\x18\x0f99991231235959Z"));
}

#[test]
fn roots_and_intermediates_have_subjects_of_their_own_and_the_right_path_lengths() {
    let (first, second) =
        (Authority::of(KeyAlgorithm::EcdsaP256, "g1"), Authority::of(KeyAlgorithm::EcdsaP256, "g2"));
    assert_eq!(first.root.subject(), "O=example.org, CN=Rhizome root g1");
    assert_eq!(first.certificate.subject(), "O=example.org, CN=Rhizome issuer g1");
    assert_ne!(first.root.subject(), second.root.subject());
    assert!(first.root.is_self_signed() && !first.certificate.is_self_signed());
    assert_eq!((first.root.path_len(), first.certificate.path_len()), (None, Some(0)));
    assert_eq!(first.certificate.spiffe_id(), Some(&SpiffeId::of_trust_domain(&domain())));
}

#[test]
fn an_intermediate_needs_an_issuer_that_may_have_one_and_algorithms_that_fit() {
    let (authority, key) = (Authority::new(), TestKey::p256());
    let spec = IntermediateSpec {
        role: IntermediateRole::Own,
        trust_domain: &domain(),
        generation: &"g2".parse().unwrap(),
        public_key: &key.public,
        algorithm: SigningAlgorithm::EcdsaP256Sha256,
        serial: serial(1, 1),
        not_before: at(0),
        not_after: at(60),
    };
    let p256 = SigningAlgorithm::EcdsaP256Sha256;
    let p384 = SigningAlgorithm::EcdsaP384Sha384;
    assert!(prepare_intermediate(&spec, &authority.root, p256).is_ok());
    let below = prepare_intermediate(&spec, &authority.certificate, p256);
    assert!(matches!(below, Err(PrepareError::Issuer(IssuerError::PathLength { .. }))));
    let mismatch = |result| matches!(result, Err(PrepareError::AlgorithmMismatch { .. }));
    assert!(mismatch(prepare_intermediate(&spec, &authority.root, p384)));
    let wrong = IntermediateSpec { algorithm: p384, ..spec };
    assert!(mismatch(prepare_intermediate(&wrong, &authority.root, p256)));
    let same_key = IntermediateSpec { public_key: &authority.root_key.public, ..spec };
    let refused = prepare_intermediate(&same_key, &authority.root, p256);
    assert_eq!(refused.err(), Some(PrepareError::Lint(LintError::KeyOfAuthority)));
    let foreign = IntermediateSpec { trust_domain: &"other.org".parse().unwrap(), ..spec };
    let refused = prepare_intermediate(&foreign, &authority.root, p256);
    assert_eq!(refused.err(), Some(PrepareError::Lint(LintError::ForeignTrustDomain)));
}

#[test]
fn an_external_signature_is_always_verified() {
    let (authority, key, id) = (Authority::new(), TestKey::p256(), web());
    let linted = || prepare_leaf(&spec(&id, &key.public), &authority.issuer).unwrap();
    let good = authority.key.sign(linted().to_be_signed().as_bytes());
    assert!(linted().seal(Signature::external(good)).is_ok());
    for bad in [key.sign(linted().to_be_signed().as_bytes()), authority.key.sign(b"something else")] {
        let refused = linted().seal(Signature::external(bad));
        assert!(matches!(refused, Err(SealError::Signature(_))));
    }
}

#[test]
fn a_signature_from_this_process_is_verified_for_one_serial_in_64() {
    let (authority, key, id) = (Authority::new(), TestKey::p256(), web());
    let wrong = authority.key.sign(b"something else");
    let verified = (0..=255u8).filter(|random| {
        let spec = LeafSpec { serial: serial(1, *random), ..spec(&id, &key.public) };
        let linted = prepare_leaf(&spec, &authority.issuer).unwrap();
        linted.seal(Signature::in_process(wrong.clone())).is_err()
    });
    assert_eq!(verified.collect::<Vec<u8>>(), [0, 64, 128, 192]);
}

#[test]
fn a_signature_of_the_wrong_shape_is_refused_from_anywhere() {
    let (authority, key, id) = (Authority::new(), TestKey::p256(), web());
    let good = authority.key.sign(b"any");
    let numbers = |r: &[u8], s: &[u8]| {
        der::encode(der::SEQUENCE, &[&der::encode(der::INTEGER, &[r]), &der::encode(der::INTEGER, &[s])])
    };
    for bad in [
        vec![],
        vec![7; 64],
        good[..good.len() - 1].to_vec(),
        [&good[..], &[0]].concat(),
        numbers(&[0], &[1]),
        numbers(&[1], &[0x80]),
        numbers(&[1; 34], &[1]),
    ] {
        for signature in [Signature::in_process(bad.clone()), Signature::external(bad.clone())] {
            let linted = prepare_leaf(&spec(&id, &key.public), &authority.issuer).unwrap();
            assert_eq!(linted.seal(signature), Err(SealError::Malformed), "{bad:02x?}");
        }
    }
}

#[test]
fn what_is_sealed_is_what_was_linted() {
    let (authority, key, id) = (Authority::new(), TestKey::p256(), web());
    let linted = prepare_leaf(&spec(&id, &key.public), &authority.issuer).unwrap();
    let tbs = linted.to_be_signed().as_bytes().to_vec();
    let certificate = authority.key.seal(linted);
    let inner = der::Reader::new(certificate.der()).enter(der::SEQUENCE).unwrap().any().unwrap();
    assert_eq!(inner.raw, tbs);
    assert_eq!(
        (certificate.serial(), certificate.not_before(), certificate.not_after()),
        (serial(9, 1), at(-60), at(3540))
    );
    assert!(certificate.pem().ends_with("-----END CERTIFICATE-----\n"));
    assert!(!certificate.pem().ends_with("\n\n"));
}

#[test]
fn a_probe_proves_a_key_and_is_no_certificate() {
    for key in [TestKey::p256(), TestKey::new(KeyAlgorithm::EcdsaP384)] {
        let probe = crate::probe_for(key.algorithm);
        let signature = Signature::external(key.sign(probe.as_bytes()));
        assert_eq!(key.public.verify(probe.as_bytes(), &signature, probe.algorithm()), Ok(()));
        assert!(der::Reader::new(probe.as_bytes()).enter(der::SEQUENCE).is_err());
    }
    assert_eq!(crate::probe().as_bytes(), crate::probe_for(SigningAlgorithm::default()).as_bytes());
}
