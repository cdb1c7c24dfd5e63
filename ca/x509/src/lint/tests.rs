use proptest::prelude::*;

use super::*;
use crate::testing::{
    Authority, TestKey, at, extension, sequence, serial, web, with_extension, with_extensions, with_parts,
};

const SAN: &[u8] = b"\x55\x1d\x11";
const BASIC: &[u8] = b"\x55\x1d\x13";
const USAGE: &[u8] = b"\x55\x1d\x0f";
const EXTENDED: &[u8] = b"\x55\x1d\x25";
const SKI: &[u8] = b"\x55\x1d\x0e";
const AKI: &[u8] = b"\x55\x1d\x23";

/// A sound leaf and what it must say; each test plants one defect.
struct Bench {
    authority: Authority,
    key: TestKey,
    serial: Serial,
    id: SpiffeId,
    tbs: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let (authority, key) = (Authority::new(), TestKey::p256());
        let tbs = authority.leaf(&key.public).to_be_signed().as_bytes().to_vec();
        Self { authority, key, serial: serial(3, 0), id: web(), tbs }
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            kind: Kind::Leaf,
            serial: &self.serial,
            algorithm: SigningAlgorithm::EcdsaP256Sha256,
            issuer_name: self.authority.certificate.subject_der(),
            issuer_key_id: Some(self.authority.certificate.key_identifier()),
            not_before: at(-60),
            not_after: at(3540),
            window: (at(-3600), at(Authority::LIFE)),
            subject: EMPTY_NAME,
            public_key: &self.key.public,
            authority_keys: &[],
            authority_id: None,
            spiffe_id: &self.id,
            dns_names: &[],
            ip_addresses: &[],
        }
    }

    fn finds(&self, tbs: &[u8], defect: LintError) {
        assert_eq!(lint(tbs, &self.expected()).err(), Some(defect));
    }

    fn finds_in(&self, expected: &Expected<'_>, defect: LintError) {
        assert_eq!(lint(&self.tbs, expected).err(), Some(defect));
    }

    fn with(&self, oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
        with_extension(&self.tbs, oid, Some(extension(oid, critical, value)))
    }

    fn with_part(&self, index: usize, part: &[u8]) -> Vec<u8> {
        with_parts(&self.tbs, |parts| parts[index] = part.to_vec())
    }
}

fn names(names: &[(u8, &str)]) -> Vec<u8> {
    let all: Vec<Vec<u8>> = names.iter().map(|(tag, name)| der::encode(*tag, &[name.as_bytes()])).collect();
    sequence(&all)
}

fn times(before: (u8, &str), after: (u8, &str)) -> Vec<u8> {
    sequence(&[der::encode(before.0, &[before.1.as_bytes()]), der::encode(after.0, &[after.1.as_bytes()])])
}

#[test]
fn a_sound_certificate_passes() {
    let bench = Bench::new();
    assert!(lint(&bench.tbs, &bench.expected()).is_ok());
    assert_eq!(
        with_parts(&bench.tbs, |_| {}),
        bench.tbs,
        "the tools of these tests change nothing by themselves"
    );
    assert_eq!(with_extensions(&bench.tbs, |_| {}), bench.tbs);
}

#[test]
fn finds_bytes_left_over() {
    let bench = Bench::new();
    let unreadable = |field| LintError::Unreadable { field };
    let after = [&bench.tbs[..], &[0]].concat();
    bench.finds(&after, unreadable(CertificateField::Certificate));
    let inside = with_parts(&bench.tbs, |parts| parts.push(vec![5, 0]));
    bench.finds(&inside, unreadable(CertificateField::Certificate));
    let wrapped = with_parts(&bench.tbs, |parts| {
        let list = Reader::new(&parts[7]).value(der::CONTEXT_3).unwrap();
        parts[7] = der::encode(der::CONTEXT_3, &[list, &[5, 0]]);
    });
    bench.finds(&wrapped, unreadable(CertificateField::Extensions));
}

#[test]
fn finds_unique_identifiers_and_missing_extensions() {
    let bench = Bench::new();
    let unreadable = LintError::Unreadable { field: CertificateField::Extensions };
    bench.finds(&with_parts(&bench.tbs, |parts| parts.insert(7, vec![0x81, 2, 0, 1])), unreadable.clone());
    bench.finds(&with_parts(&bench.tbs, |parts| drop(parts.pop())), unreadable);
}

#[test]
fn finds_another_version() {
    let bench = Bench::new();
    bench.finds(&bench.with_part(0, &[0xa0, 3, 2, 1, 1]), LintError::Version);
}

#[test]
fn finds_serials_that_are_short_long_negative_zero_or_others() {
    let bench = Bench::new();
    for (content, bytes) in
        [(&[7][..], 1), (&[0], 1), (&[0x40; 21], 21), (&[0x40; 15], 15), (&[0x80; 20], 20)]
    {
        bench.finds(
            &bench.with_part(1, &der::encode(der::INTEGER, &[content])),
            LintError::SerialShape { bytes },
        );
    }
    let other = der::encode(der::INTEGER, &[serial(4, 0).as_bytes()]);
    bench.finds(&bench.with_part(1, &other), LintError::SerialMismatch);
}

#[test]
fn finds_another_signature_algorithm() {
    let bench = Bench::new();
    let other = SigningAlgorithm::EcdsaP384Sha384.identifier();
    bench.finds(&bench.with_part(2, other), LintError::SignatureAlgorithm);
    let with_null = sequence(&[der::encode(der::OID, &[b"\x2a\x86\x48\xce\x3d\x04\x03\x02"]), vec![5, 0]]);
    bench.finds(&bench.with_part(2, &with_null), LintError::SignatureAlgorithm);
}

#[test]
fn finds_an_issuer_that_is_empty_or_only_nearly_the_same() {
    let bench = Bench::new();
    bench.finds(&bench.with_part(3, EMPTY_NAME), LintError::IssuerName);
    let mut printable = bench.authority.certificate.subject_der().to_vec();
    let at = printable.iter().position(|byte| *byte == der::UTF8_STRING).unwrap();
    printable[at] = 0x13;
    bench.finds(&bench.with_part(3, &printable), LintError::IssuerName);
}

#[test]
fn finds_times_in_another_form() {
    let bench = Bench::new();
    for (before, after) in [
        ((0x18, "20270115075900Z"), (0x17, "270115085900Z")),
        ((0x17, "270115075900Z"), (0x17, "270115085900+0000")),
        ((0x17, "2701150759Z"), (0x17, "270115085900Z")),
        ((0x17, "271315075900Z"), (0x17, "270115085900Z")),
        ((0x17, "270115075960Z"), (0x17, "270115085900Z")),
        ((0x17, "27011507590 Z"), (0x17, "270115085900Z")),
        ((0x17, "500115075900Z"), (0x17, "270115085900Z")),
        ((0x18, "20270115075900.0Z"), (0x17, "270115085900Z")),
    ] {
        bench.finds(&bench.with_part(4, &times(before, after)), LintError::TimeForm);
    }
    let three = with_parts(&bench.tbs, |parts| {
        let content = Reader::new(&parts[4]).value(der::SEQUENCE).unwrap();
        parts[4] = der::encode(der::SEQUENCE, &[content, &[5, 0]]);
    });
    bench.finds(&three, LintError::Unreadable { field: CertificateField::Validity });
}

#[test]
fn finds_another_validity_by_one_second() {
    let bench = Bench::new();
    for (before, after) in [("270115075901Z", "270115085900Z"), ("270115075900Z", "270115085901Z")] {
        let validity = times((0x17, before), (0x17, after));
        bench.finds(&bench.with_part(4, &validity), LintError::ValidityMismatch);
    }
}

#[test]
fn finds_a_life_outside_that_of_any_ca_above_by_one_second() {
    let bench = Bench::new();
    let window = |from: i64, until: i64| Expected { window: (at(from), at(until)), ..bench.expected() };
    assert!(lint(&bench.tbs, &window(-60, 3540)).is_ok());
    bench.finds_in(&window(-59, 3540), LintError::PrecedesAuthority { limit: at(-59) });
    bench.finds_in(&window(-60, 3539), LintError::OutlivesAuthority { limit: at(3539) });
}

#[test]
fn finds_a_validity_that_runs_backwards() {
    let bench = Bench::new();
    let validity = times((0x17, "270115085900Z"), (0x17, "270115075900Z"));
    let expected = Expected { not_before: at(3540), not_after: at(-60), ..bench.expected() };
    assert_eq!(lint(&bench.with_part(4, &validity), &expected).err(), Some(LintError::ValidityReversed));
}

#[test]
fn finds_a_subject_in_a_leaf() {
    let bench = Bench::new();
    let subject = bench.authority.root.subject_der();
    bench.finds(&bench.with_part(5, subject), LintError::SubjectMismatch);
}

#[test]
fn finds_a_ca_without_a_subject_or_with_its_issuers() {
    let bench = Bench::new();
    let of_ca = |subject| Expected { kind: Kind::Intermediate, subject, ..bench.expected() };
    bench.finds_in(&of_ca(EMPTY_NAME), LintError::EmptySubject);
    let issuer = bench.authority.certificate.subject_der();
    let same = bench.with_part(5, issuer);
    assert_eq!(lint(&same, &of_ca(issuer)).err(), Some(LintError::SubjectIsIssuer));
}

#[test]
fn finds_another_key_and_the_key_of_an_authority() {
    let bench = Bench::new();
    bench.finds(&bench.with_part(6, TestKey::p256().public.spki_der()), LintError::PublicKeyMismatch);
    let keys = [bench.key.public.digest()];
    bench.finds_in(&Expected { authority_keys: &keys, ..bench.expected() }, LintError::KeyOfAuthority);
}

#[test]
fn finds_an_id_without_a_path_or_of_another_trust_domain() {
    let bench = Bench::new();
    let root: SpiffeId = "spiffe://example.org".parse().unwrap();
    bench.finds_in(&Expected { spiffe_id: &root, ..bench.expected() }, LintError::IdPath);
    assert!(lint(&bench.tbs, &Expected { authority_id: Some(&root), ..bench.expected() }).is_ok());
    for foreign in ["spiffe://example.com", "spiffe://example.or", "spiffe://example.org.a"] {
        let foreign: SpiffeId = foreign.parse().unwrap();
        let expected = Expected { authority_id: Some(&foreign), ..bench.expected() };
        bench.finds_in(&expected, LintError::ForeignTrustDomain);
    }
}

#[test]
fn finds_any_number_of_uris_but_one() {
    let bench = Bench::new();
    let id = bench.id.as_str();
    for (list, count) in [
        (names(&[(URI, id), (URI, id)]), 2),
        (names(&[(URI, id), (URI, "spiffe://example.org/admin")]), 2),
        (names(&[(DNS, id)]), 0),
        (names(&[]), 0),
    ] {
        bench.finds(&bench.with(SAN, true, &list), LintError::UriCount { count });
    }
    let other = names(&[(URI, "spiffe://example.org/ns/prod/sa/web2")]);
    bench.finds(&bench.with(SAN, true, &other), LintError::UriMismatch);
}

#[test]
fn finds_names_that_nobody_asked_for_or_that_are_missing() {
    let bench = Bench::new();
    let id = bench.id.as_str();
    for list in [
        names(&[(URI, id), (DNS, "web")]),
        names(&[(DNS, "web"), (URI, id)]),
        names(&[(URI, id), (0x81, "a@b")]),
    ] {
        bench.finds(&bench.with(SAN, true, &list), LintError::Names);
    }
    let wanted: [DnsName; 1] = ["web".parse().unwrap()];
    bench.finds_in(&Expected { dns_names: &wanted, ..bench.expected() }, LintError::Names);
    let addresses: [IpAddr; 1] = ["10.0.0.1".parse().unwrap()];
    bench.finds_in(&Expected { ip_addresses: &addresses, ..bench.expected() }, LintError::Names);
}

#[test]
fn finds_every_extension_whose_criticality_is_wrong() {
    let bench = Bench::new();
    for (oid, field) in [
        (SAN, CertificateField::SubjectAltName),
        (BASIC, CertificateField::BasicConstraints),
        (USAGE, CertificateField::KeyUsage),
        (EXTENDED, CertificateField::ExtendedKeyUsage),
        (SKI, CertificateField::SubjectKeyId),
        (AKI, CertificateField::AuthorityKeyId),
    ] {
        let changed = with_extensions(&bench.tbs, |extensions| {
            for each in extensions.iter_mut() {
                let found = der::extension(&mut Reader::new(each)).unwrap();
                if found.oid == oid {
                    let flipped = extension(oid, !found.critical, found.value);
                    *each = flipped;
                }
            }
        });
        bench.finds(&changed, LintError::Criticality { field });
    }
}

#[test]
fn finds_every_extension_that_is_missing_or_there_twice() {
    let bench = Bench::new();
    for (oid, field) in [
        (SAN, CertificateField::SubjectAltName),
        (BASIC, CertificateField::BasicConstraints),
        (USAGE, CertificateField::KeyUsage),
        (EXTENDED, CertificateField::ExtendedKeyUsage),
        (SKI, CertificateField::SubjectKeyId),
        (AKI, CertificateField::AuthorityKeyId),
    ] {
        bench.finds(&with_extension(&bench.tbs, oid, None), LintError::MissingExtension { field });
        let twice = with_extensions(&bench.tbs, |extensions| {
            let is_it = |each: &&Vec<u8>| der::extension(&mut Reader::new(each)).unwrap().oid == oid;
            let again = extensions.iter().find(is_it).unwrap().clone();
            extensions.push(again);
        });
        bench.finds(&twice, LintError::DuplicateExtension { field });
    }
}

#[test]
fn finds_extensions_outside_the_profile() {
    let bench = Bench::new();
    let adding = |oid: &[u8], value: &[u8]| {
        with_extensions(&bench.tbs, |extensions| extensions.push(extension(oid, false, value)))
    };
    bench.finds(&adding(b"\x55\x1d\x1e", &[0x30, 0]), LintError::NameConstraints);
    bench
        .finds(&adding(b"\x55\x1d\x1f", &[0x30, 0]), LintError::UnknownExtension { oid: "2.5.29.31".into() });
    let not_der = with_extensions(&bench.tbs, |extensions| extensions.push(vec![0x30, 0]));
    bench.finds(&not_der, LintError::Unreadable { field: CertificateField::Extensions });
}

#[test]
fn finds_criticality_that_is_spelled_out_as_false() {
    let bench = Bench::new();
    let spelled = with_extensions(&bench.tbs, |extensions| {
        let parts = [der::encode(der::OID, &[EXTENDED]), vec![1, 1, 0], der::encode(der::OCTET_STRING, &[])];
        extensions.push(sequence(&parts));
    });
    bench.finds(&spelled, LintError::Unreadable { field: CertificateField::Extensions });
}

#[test]
fn finds_a_leaf_that_is_a_ca_or_spells_out_the_default() {
    let bench = Bench::new();
    for value in [&[0x30, 3, 1, 1, 0xff][..], &[0x30, 3, 1, 1, 0], &[0x30, 3, 2, 1, 0], &[]] {
        bench.finds(&bench.with(BASIC, true, value), LintError::BasicConstraints);
    }
}

#[test]
fn finds_any_other_key_usage() {
    let bench = Bench::new();
    // digitalSignature with keyEncipherment, keyAgreement, keyCertSign; none; unused bits counted wrong.
    for value in [&[3, 2, 5, 0xa0][..], &[3, 2, 3, 0x88], &[3, 2, 2, 0x84], &[3, 1, 0], &[3, 2, 0, 0x80]] {
        bench.finds(&bench.with(USAGE, true, value), LintError::KeyUsage);
    }
}

#[test]
fn finds_any_other_extended_key_usage() {
    let bench = Bench::new();
    let server = &SERVER_AND_CLIENT_AUTH[2..12];
    let client = &SERVER_AND_CLIENT_AUTH[12..];
    let any = der::encode(der::OID, &[b"\x55\x1d\x25\x00"]);
    for list in [&[server][..], &[client], &[client, server], &[server, client, &any], &[]] {
        let value = der::encode(der::SEQUENCE, list);
        bench.finds(&bench.with(EXTENDED, false, &value), LintError::ExtendedKeyUsage);
    }
}

#[test]
fn finds_key_identifiers_that_are_not_derived_from_the_keys() {
    let bench = Bench::new();
    let own = bench.key.public.key_identifier();
    for value in [der::encode(der::OCTET_STRING, &[&[7; 20]]), der::encode(der::OCTET_STRING, &[&own[..19]])]
    {
        bench.finds(&bench.with(SKI, false, &value), LintError::SubjectKeyId);
    }
    let issuer = der::encode(0x80, &[bench.authority.certificate.key_identifier()]);
    let by_serial = der::encode(0x82, &[&[1]]);
    for parts in [vec![der::encode(0x80, &[&own])], vec![issuer, by_serial.clone()], vec![by_serial], vec![]]
    {
        bench.finds(&bench.with(AKI, false, &sequence(&parts)), LintError::AuthorityKeyId);
    }
}

#[test]
fn finds_extensions_that_a_ca_must_not_have() {
    let bench = Bench::new();
    let subject = bench.authority.root.subject_der();
    let of_ca = Expected {
        kind: Kind::Intermediate,
        subject,
        spiffe_id: &"spiffe://example.org".parse().unwrap(),
        ..bench.expected()
    };
    let tbs = with_extensions(&bench.with_part(5, subject), |extensions| {
        extensions.retain(|each| der::extension(&mut Reader::new(each)).unwrap().oid == EXTENDED);
    });
    let field = CertificateField::ExtendedKeyUsage;
    assert_eq!(lint(&tbs, &of_ca).err(), Some(LintError::UnwantedExtension { field }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_changed_byte_is_found(at: prop::sample::Index, new: u8) {
        let bench = Bench::new();
        for step in 0..16 {
            let mut tbs = bench.tbs.clone();
            let at = (at.index(tbs.len()) + step * 31) % tbs.len();
            tbs[at] = new;
            prop_assert_eq!(lint(&tbs, &bench.expected()).is_ok(), tbs == bench.tbs);
        }
    }

    #[test]
    fn no_bytes_make_the_lint_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bench = Bench::new();
        prop_assert!(lint(&bytes, &bench.expected()).is_err());
    }
}
