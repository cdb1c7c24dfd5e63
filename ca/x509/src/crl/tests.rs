use rhizome_id::Ttl;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::*;
use crate::testing::{Authority, at, domain, parts, sequence, serial};

fn revoked(counter: u64, code: RevocationCode) -> Revoked {
    Revoked { serial: serial(counter, 0x55), at: at(-30), code }
}

fn spec<'a>(authority: &'a Authority, number: u64, revoked: &'a [Revoked]) -> CrlSpec<'a> {
    let issuer = &authority.certificate;
    CrlSpec { issuer, number, this_update: at(0), next_update: issuer.not_after(), revoked }
}

fn sign(authority: &Authority, spec: &CrlSpec<'_>) -> Crl {
    let linted = prepare_crl(spec).unwrap();
    let signature = authority.key.sign(linted.to_be_signed().as_bytes());
    linted.seal(Signature::external(signature)).unwrap()
}

#[test]
fn a_list_says_what_was_asked_for_in_the_words_of_another_parser() {
    let authority = Authority::new();
    let entries = [revoked(7, RevocationCode::Unspecified), revoked(8, RevocationCode::PrivilegeWithdrawn)];
    let crl = sign(&authority, &spec(&authority, 300, &entries));
    assert_eq!((crl.number(), crl.revoked()), (300, entries.as_slice()));
    assert!(crl.is_of(&authority.certificate) && !crl.is_of(&authority.root));
    assert!(crl.pem().starts_with("-----BEGIN X509 CRL-----\n"));

    let (rest, read) = CertificateRevocationList::from_der(crl.der()).unwrap();
    assert!(rest.is_empty());
    assert_eq!(read.version().map(|it| it.0), Some(1));
    assert_eq!(read.last_update().timestamp(), at(0).unix());
    assert_eq!(read.next_update().map(|it| it.timestamp()), Some(at(Authority::LIFE).unix()));
    assert_eq!(read.crl_number().map(ToString::to_string).as_deref(), Some("300"));
    let listed: Vec<(Vec<u8>, Option<u8>)> = read
        .iter_revoked_certificates()
        .map(|it| (it.raw_serial().to_vec(), it.reason_code().map(|(_, code)| code.0)))
        .collect();
    let expected: Vec<(Vec<u8>, Option<u8>)> =
        vec![(entries[0].serial.as_bytes().to_vec(), None), (entries[1].serial.as_bytes().to_vec(), Some(9))];
    assert_eq!(listed, expected);
}

#[test]
fn an_empty_list_has_no_entries_field_and_the_largest_one_fits() {
    let authority = Authority::new();
    let empty = sign(&authority, &spec(&authority, 1, &[]));
    assert_eq!(parts(&parts(empty.der())[0]).len(), 6, "RFC 5280 §5.1.2.6");
    let count = u64::try_from(MAX_CRL_ENTRIES).unwrap();
    let mut most: Vec<Revoked> =
        (1..=count).map(|counter| revoked(counter, RevocationCode::PrivilegeWithdrawn)).collect();
    let full = sign(&authority, &spec(&authority, u64::from(u32::MAX) << 20, &most));
    assert!(full.der().len() <= MAX_CRL_DER_BYTES, "{}", full.der().len());
    assert_eq!(full.revoked().len(), MAX_CRL_ENTRIES);
    most.push(revoked(count + 1, RevocationCode::Unspecified));
    assert!(prepare_crl(&spec(&authority, 2, &most)).is_err());
}

#[test]
fn what_breaks_a_rule_is_not_prepared() {
    let authority = Authority::new();
    let good = spec(&authority, 1, &[]);
    let (late, doubled) = (
        [Revoked { at: at(1), ..revoked(7, RevocationCode::Unspecified) }],
        [revoked(7, RevocationCode::Unspecified); 2],
    );
    let issuer = good.issuer;
    for bad in [
        CrlSpec { next_update: issuer.not_after().plus(1), ..good },
        CrlSpec { this_update: issuer.not_before().minus(1), ..good },
        CrlSpec { next_update: at(-1), ..good },
        CrlSpec { revoked: &late, ..good },
        CrlSpec { revoked: &doubled, ..good },
    ] {
        assert!(prepare_crl(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_signature_of_another_key_makes_no_list() {
    let (authority, other) = (Authority::new(), Authority::new());
    let linted = prepare_crl(&spec(&authority, 1, &[])).unwrap();
    let signature = other.key.sign(linted.to_be_signed().as_bytes());
    assert!(matches!(linted.seal(Signature::in_process(signature)), Err(SealError::Signature(_))));
}

#[test]
fn a_list_is_believed_only_when_its_issuer_signed_it_and_chains_to_the_bundle() {
    let (authority, stranger) = (Authority::new(), Authority::of(crate::KeyAlgorithm::EcdsaP256, "g2"));
    let bundle = Bundle::new(domain(), 1, Ttl::hours(1), vec![authority.root.clone()]).unwrap();
    let crl = sign(&authority, &spec(&authority, 1, &[revoked(7, RevocationCode::Unspecified)]));
    let foreign = sign(&stranger, &spec(&stranger, 1, &[]));
    let both = [stranger.certificate.clone(), authority.certificate.clone()];
    let issuers = issuers_under(&bundle, &both);
    assert_eq!(issuers, std::slice::from_ref(&authority.certificate));
    assert_eq!(Crl::verify(crl.der(), &issuers), Ok(crl.clone()));
    assert_eq!(Crl::verify(foreign.der(), &issuers), Err(CrlError::UnknownIssuer));
    // Any bit: in the entry, in the number, in the signature.
    for at in [crl.der().len() / 2, crl.der().len() - 90, crl.der().len() - 1] {
        let mut flipped = crl.der().to_vec();
        flipped[at] ^= 1;
        assert!(Crl::verify(&flipped, &issuers).is_err(), "{at}");
    }
    let mut trailing = crl.der().to_vec();
    trailing.push(0);
    assert_eq!(Crl::verify(&trailing, &issuers), Err(CrlError::Unreadable { field: "end" }));
}

#[test]
fn a_list_with_anything_that_we_do_not_write_is_not_read() {
    let authority = Authority::new();
    let crl = sign(&authority, &spec(&authority, 1, &[]));
    let tbs = parts(crl.der())[0].clone();
    let resigned = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut all = parts(&tbs);
        change(&mut all);
        Crl::parse(&authority.key.wrap(&sequence(&all)))
    };
    assert!(resigned(&|_| {}).is_ok());
    assert!(resigned(&|all| drop(all.remove(0))).is_err(), "no version");
    assert!(resigned(&|all| drop(all.remove(4))).is_err(), "no nextUpdate");
    assert!(resigned(&|all| drop(all.pop())).is_err(), "no extensions");
    assert!(resigned(&|all| all.insert(5, vec![0x30, 0])).is_err(), "an empty list of entries");
    // A critical issuing distribution point would make the list speak of some certificates only.
    let partial = crate::testing::extension(b"\x55\x1d\x1c", true, &[0x30, 3, 0x81, 1, 0xff]);
    let with_partial = resigned(&|all| {
        let mut extensions = parts(Reader::new(&all[5]).value(der::CONTEXT_0).unwrap());
        extensions.push(partial.clone());
        all[5] = der::encode(der::CONTEXT_0, &[&sequence(&extensions)]);
    });
    assert_eq!(with_partial, Err(CrlError::Extension { oid: "2.5.29.28".to_owned() }));
}
