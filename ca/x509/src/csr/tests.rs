use proptest::prelude::*;

use super::*;
use crate::key::KeyAlgorithm;
use crate::testing::{TestKey, extension};

macro_rules! testdata {
    ($name:literal) => {
        include_bytes!(concat!("../../testdata/", $name, ".csr.der"))
    };
}

fn refusal(der: &[u8]) -> &'static str {
    VerifiedCsr::parse(der).map_or_else(|error| error.code(), |_| "accepted")
}

/// A request by `key` with these parts.
fn request(key: &TestKey, version: &[u8], subject: &[u8], attributes: &[u8]) -> Vec<u8> {
    let version = der::encode(der::INTEGER, &[version]);
    let attributes = der::encode(der::CONTEXT_0, &[attributes]);
    key.wrap(&der::encode(der::SEQUENCE, &[&version, subject, key.public.spki_der(), &attributes]))
}

const NO_SUBJECT: &[u8] = &[0x30, 0];

fn attribute(oid: &[u8], values: &[u8]) -> Vec<u8> {
    let oid = der::encode(der::OID, &[oid]);
    der::encode(der::SEQUENCE, &[&oid, &der::encode(der::SET, &[values])])
}

fn asking(extensions: &[Vec<u8>]) -> Vec<u8> {
    let list = der::encode(der::SEQUENCE, &[&extensions.concat()]);
    request(&TestKey::p256(), &[0], NO_SUBJECT, &attribute(EXTENSION_REQUEST, &list))
}

fn names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let all: Vec<u8> = names.iter().flat_map(|(tag, value)| der::encode(*tag, &[value])).collect();
    extension(SUBJECT_ALT_NAME, false, &der::encode(der::SEQUENCE, &[&all]))
}

#[test]
fn keys_of_every_accepted_kind_are_taken_with_their_proof() {
    for (der, algorithm) in [
        (&testdata!("p256")[..], KeyAlgorithm::EcdsaP256),
        (testdata!("p384"), KeyAlgorithm::EcdsaP384),
        (testdata!("ed25519"), KeyAlgorithm::Ed25519),
        (testdata!("rsa2048"), KeyAlgorithm::Rsa { bits: 2048 }),
        (testdata!("rsa3072"), KeyAlgorithm::Rsa { bits: 3072 }),
        (testdata!("rsa4096"), KeyAlgorithm::Rsa { bits: 4096 }),
    ] {
        let csr = VerifiedCsr::parse(der).unwrap();
        assert_eq!(csr.public_key().algorithm(), algorithm);
    }
}

#[test]
fn weak_and_foreign_keys_are_refused() {
    for (der, code) in [
        (&testdata!("rsa1024")[..], "csr_weak_key"),
        (testdata!("rsa4104"), "csr_weak_key"),
        (testdata!("rsa2048_e3"), "csr_weak_key"),
        (testdata!("p521"), "csr_unsupported_key"),
        (testdata!("secp256k1"), "csr_unsupported_key"),
        (testdata!("rsa2048_sha1"), "csr_unsupported_signature"),
    ] {
        assert_eq!(refusal(der), code);
    }
    // Weak keys are refused before the signature costs anything: these requests are not even signed by them.
    let signer = TestKey::p256();
    let info = |spki: &[u8]| der::encode(der::SEQUENCE, &[&[2, 1, 0], NO_SUBJECT, spki, &[0xa0, 0]]);
    let roca = include_bytes!("../../testdata/roca.spki.der");
    assert_eq!(refusal(&signer.wrap(&info(roca))), "csr_weak_key");
    let mut off_curve = signer.public.spki_der().to_vec();
    *off_curve.last_mut().unwrap() ^= 1;
    assert_eq!(refusal(&signer.wrap(&info(&off_curve))), "csr_weak_key");
}

#[test]
fn what_agents_and_tools_send_is_accepted_for_its_key_alone() {
    for der in [&testdata!("istio_agent")[..], testdata!("harmless")] {
        let csr = VerifiedCsr::parse(der).unwrap();
        let text = String::from_utf8_lossy(csr.public_key().spki_der()).into_owned();
        assert!(!text.contains("spiffe") && !text.contains("web"));
    }
}

#[test]
fn wishes_to_be_a_ca_are_refused() {
    for der in [&testdata!("ca_true")[..], testdata!("key_cert_sign"), testdata!("crl_sign")] {
        assert_eq!(refusal(der), "csr_requests_ca");
    }
    let path_length = extension(BASIC_CONSTRAINTS, true, &[0x30, 3, 2, 1, 0]);
    assert_eq!(refusal(&asking(&[path_length])), "csr_requests_ca");
}

#[test]
fn unknown_attributes_and_extensions_are_refused() {
    assert_eq!(refusal(testdata!("challenge_password")), "csr_unsupported_attribute");
    assert_eq!(refusal(testdata!("must_staple")), "csr_unsupported_extension");
    let constraints = extension(&[0x55, 0x1d, 0x1e], true, &[0x30, 0]);
    assert_eq!(
        VerifiedCsr::parse(&asking(&[constraints])),
        Err(CsrError::UnsupportedExtension { oid: "2.5.29.30".into() })
    );
}

#[test]
fn doubled_attributes_and_extensions_are_refused() {
    let usage = || extension(KEY_USAGE, true, &[3, 2, 7, 0x80]);
    assert_eq!(refusal(&asking(&[usage()])), "accepted");
    assert_eq!(refusal(&asking(&[usage(), usage()])), "csr_duplicate_extension");
    let list = attribute(EXTENSION_REQUEST, &[0x30, 0]);
    let twice = request(&TestKey::p256(), &[0], NO_SUBJECT, &[&list[..], &list[..]].concat());
    assert_eq!(refusal(&twice), "csr_duplicate_attribute");
}

#[test]
fn extra_names_of_any_kind_are_ignored() {
    let many = names(&[
        (0x86, b"spiffe://example.org/ns/a/sa/b"),
        (0x86, b"spiffe://other.org/ns/kube-system/sa/admin"),
        (0x82, b"kubernetes.default.svc"),
        (0x87, &[10, 0, 0, 1]),
    ]);
    assert_eq!(refusal(&asking(&[many])), "accepted");
}

#[test]
fn name_lists_that_are_oversized_or_unreadable_are_refused() {
    let list = |count| asking(&[names(&vec![(0x82, &b"a"[..]); count])]);
    assert_eq!(refusal(&list(16)), "accepted");
    assert_eq!(refusal(&list(17)), "csr_too_many_names");
    for bad in [
        names(&[]),
        names(&[(0x82, b"a\0b")]),
        names(&[(0x82, b"a\xff")]),
        names(&[(0x86, b"spiffe://a/b c")]),
        names(&[(0x87, &[1, 2, 3])]),
        extension(SUBJECT_ALT_NAME, false, b"\x30\x03\x82\x01a\x05\x00"),
        extension(SUBJECT_ALT_NAME, false, b"\x30\x03\x82\x05a"),
    ] {
        assert_eq!(refusal(&asking(&[bad])), "csr_malformed");
    }
}

#[test]
fn extensions_that_cannot_be_read_are_refused() {
    for (oid, value) in [
        (KEY_USAGE, &[3, 2, 7][..]),
        (KEY_USAGE, &[3, 2, 7, 0x81]),
        (KEY_USAGE, &[3, 2, 7, 0x80, 0]),
        (KEY_USAGE, &[3, 1, 0]),
        (EXTENDED_KEY_USAGE, &[0x30, 1, 6]),
        (EXTENDED_KEY_USAGE, &[2, 1, 0]),
        (BASIC_CONSTRAINTS, &[0x30, 3, 1, 1, 0x55]),
        (BASIC_CONSTRAINTS, &[0x30, 0, 0]),
        (SUBJECT_KEY_ID, &[4, 2, 0]),
        (SUBJECT_KEY_ID, &[]),
    ] {
        assert_eq!(refusal(&asking(&[extension(oid, false, value)])), "csr_malformed", "{value:02x?}");
    }
}

#[test]
fn a_signature_that_is_not_the_keys_own_is_refused() {
    let mut changed = testdata!("p256").to_vec();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(refusal(&changed), "csr_bad_signature");

    let (key, thief) = (TestKey::p256(), TestKey::p256());
    let info = der::encode(der::SEQUENCE, &[&[2, 1, 0], NO_SUBJECT, key.public.spki_der(), &[0xa0, 0]]);
    assert_eq!(refusal(&key.wrap(&info)), "accepted");
    assert_eq!(refusal(&thief.wrap(&info)), "csr_bad_signature");
}

#[test]
fn bytes_left_over_anywhere_are_refused() {
    let after = [&testdata!("p256")[..], b"junk"].concat();
    assert_eq!(VerifiedCsr::parse(&after), Err(CsrError::TrailingData { bytes: 4 }));
    let key = TestKey::p256();
    let spki = key.public.spki_der();
    let info = |end: &[u8]| der::encode(der::SEQUENCE, &[&[2, 1, 0], NO_SUBJECT, spki, &[0xa0, 0], end]);
    assert_eq!(refusal(&key.wrap(&info(&[5, 0]))), "csr_malformed");
    let whole = key.wrap(&info(&[]));
    let content = Reader::new(&whole).value(der::SEQUENCE).unwrap();
    assert_eq!(refusal(&der::encode(der::SEQUENCE, &[content, &[5, 0]])), "csr_malformed");
}

#[test]
fn requests_that_are_not_requests_are_refused() {
    let key = TestKey::p256();
    assert_eq!(refusal(&request(&key, &[0], NO_SUBJECT, &[])), "accepted");
    assert_eq!(refusal(&request(&key, &[1], NO_SUBJECT, &[])), "csr_malformed");
    for subject in [&[0x30, 1, 0][..], &[0x30, 2, 0x31, 0], &[0x30, 4, 0x31, 2, 0x30, 0]] {
        assert_eq!(refusal(&request(&key, &[0], subject, &[])), "csr_malformed");
    }
    let no_attributes = der::encode(der::SEQUENCE, &[&[2, 1, 0], NO_SUBJECT, key.public.spki_der()]);
    assert_eq!(refusal(&key.wrap(&no_attributes)), "csr_malformed");
    for junk in [&b""[..], b"\x30", b"\x30\x80\x00\x00", b"not DER at all", &[0x30; 50]] {
        assert_eq!(refusal(junk), "csr_malformed");
    }
}

#[test]
fn the_size_limit_comes_before_any_parsing() {
    assert_eq!(refusal(&vec![0; MAX_CSR_DER_BYTES]), "csr_malformed");
    assert_eq!(refusal(&vec![0; MAX_CSR_DER_BYTES + 1]), "csr_too_large");
    let text = "-".repeat(MAX_CSR_DER_BYTES * 2);
    assert_eq!(VerifiedCsr::parse_pem(&text).unwrap_err().code(), "csr_too_large");
}

#[test]
fn pem_holds_exactly_one_request_and_nothing_else() {
    let der = testdata!("p256");
    for label in ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"] {
        let pem = pem_text::encode(label, der);
        for accepted in [pem.clone(), pem.replace('\n', "\r\n"), format!("{pem}\n\n")] {
            assert!(VerifiedCsr::parse_pem(&accepted).is_ok(), "{accepted}");
        }
    }
    let pem = pem_text::encode("CERTIFICATE REQUEST", der);
    let with_header = pem.replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1);
    for refused in [
        String::new(),
        format!("# comment\n{pem}"),
        format!("\n{pem}"),
        format!("{pem}{pem}"),
        format!("{pem}comment"),
        with_header,
        pem.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        pem.replace("END CERTIFICATE REQUEST", "END CERTIFICATE"),
        pem.replacen("MI", "*?", 1),
        pem.replacen("-----BEGIN", "----BEGIN", 1),
    ] {
        let code = VerifiedCsr::parse_pem(&refused).unwrap_err().code();
        assert_eq!(code, "csr_pem", "{refused}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(VerifiedCsr::parse(&bytes).is_err());
    }

    #[test]
    fn a_request_with_a_changed_byte_is_refused_or_unchanged_in_meaning(at in 0usize..370, new: u8) {
        let mut der = testdata!("harmless").to_vec();
        let at = at % der.len();
        let changed = der[at] != new;
        der[at] = new;
        prop_assert_eq!(VerifiedCsr::parse(&der).is_err(), changed);
    }

    #[test]
    fn no_text_makes_the_pem_reader_panic(text in "(-----BEGIN CERTIFICATE REQUEST-----)?[ -~\n]{0,200}") {
        prop_assert!(VerifiedCsr::parse_pem(&text).is_err());
    }
}
