use rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints,
};

use super::*;
use crate::certificate::CaCertificateError;
use crate::inspect::InspectError;
use crate::testing::{Authority, TestKey, serial};

/// An intermediate under `authority`'s root that our own profile would not make.
fn odd(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let key = TestKey::p256();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "odd");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.serial_number = Some(serial(5, 5).as_bytes().to_vec().into());
    params.use_authority_key_identifier_extension = true;
    change(&mut params);
    authority.root_key.forge(&params, &key.public, &authority.root)
}

fn odd_issuer(
    authority: &Authority,
    change: impl FnOnce(&mut CertificateParams),
) -> Result<Issuer, IssuerError> {
    let certificate = CaCertificate::parse(&odd(authority, change)).unwrap();
    Issuer::new(vec![certificate], authority.root.clone())
}

#[test]
fn a_chain_must_hold_together_by_name_key_and_signature() {
    let (authority, other) = (Authority::new(), Authority::new());
    assert_eq!(Issuer::new(vec![], authority.root.clone()).err(), Some(IssuerError::EmptyChain));
    // Same names, other keys.
    assert_eq!(authority.root.subject(), other.root.subject());
    let broken = Issuer::new(vec![authority.certificate.clone()], other.root.clone());
    assert!(matches!(broken, Err(IssuerError::BrokenLink { cause: SignatureError::WrongKey, .. })));
    // Same names and key identifiers, a signature that is not the root's.
    let mut der = authority.certificate.der().to_vec();
    *der.last_mut().unwrap() ^= 1;
    let forged = CaCertificate::parse(&der).unwrap();
    let broken = Issuer::new(vec![forged], authority.root.clone());
    assert!(matches!(broken, Err(IssuerError::BrokenLink { cause: SignatureError::Invalid, .. })));
}

#[test]
fn a_chain_is_served_from_the_signer_up_without_the_root() {
    let authority = Authority::new();
    let served: Vec<&[u8]> = authority.issuer.chain_der().iter().map(AsRef::as_ref).collect();
    assert_eq!(served, [authority.certificate.der()]);
    assert_eq!(authority.issuer.certificate(), &authority.certificate);
    assert_eq!(authority.issuer.root(), &authority.root);
    assert_eq!(authority.issuer.not_after_limit(), authority.certificate.not_after());
    let too_long = vec![authority.certificate.clone(); 4];
    let refused = Issuer::new(too_long, authority.root.clone());
    assert_eq!(refused.err(), Some(IssuerError::ChainTooLong { length: 4 }));
}

#[test]
fn path_lengths_must_allow_the_chain() {
    let authority = Authority::new();
    let below = TestKey::p256();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "below");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    let der = authority.key.forge(&params, &below.public, &authority.certificate);
    let chain = vec![CaCertificate::parse(&der).unwrap(), authority.certificate.clone()];
    let refused = Issuer::new(chain, authority.root.clone());
    assert!(matches!(refused, Err(IssuerError::PathLength { .. })), "the intermediate has path length 0");
}

#[test]
fn name_constraints_above_a_leaf_are_refused() {
    let authority = Authority::new();
    let refused = odd_issuer(&authority, |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
            excluded_subtrees: vec![],
        });
    });
    assert!(matches!(refused, Err(IssuerError::NameConstraints { .. })));
}

#[test]
fn an_issuers_name_is_written_back_byte_for_byte_or_refused() {
    let authority = Authority::new();
    let key = TestKey::p256();
    let certificate = CaCertificate::parse(&odd(&authority, |params| {
        let value = DnValue::PrintableString("Example Org".try_into().unwrap());
        params.distinguished_name.push(DnType::OrganizationName, value);
        params.distinguished_name.push(DnType::CountryName, "DE");
    }))
    .unwrap();
    let written = IssuerNames::of(&certificate).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let algorithm = SigningAlgorithm::EcdsaP256Sha256;
    let tbs = crate::profile::encode(&params, &key.public, written.params(), algorithm).unwrap();
    assert!(tbs.windows(certificate.subject_der().len()).any(|bytes| bytes == certificate.subject_der()));

    let refused = odd_issuer(&authority, |params| {
        params.distinguished_name.push(DnType::LocalityName, DnValue::TeletexString("x".try_into().unwrap()));
    });
    assert!(matches!(refused, Err(IssuerError::Subject { .. })));
}

#[test]
fn certificates_that_are_no_cas_are_refused() {
    let authority = Authority::new();
    let refusal = |change: fn(&mut CertificateParams)| CaCertificate::parse(&odd(&authority, change)).err();
    assert_eq!(refusal(|_| {}), None);
    assert_eq!(refusal(|params| params.is_ca = IsCa::ExplicitNoCa), Some(CaCertificateError::NotCa));
    assert_eq!(refusal(|params| params.is_ca = IsCa::NoCa), Some(CaCertificateError::NotCa));
    assert_eq!(
        refusal(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        Some(CaCertificateError::NoKeyCertSign)
    );
    assert_eq!(refusal(|params| params.key_usages = vec![]), Some(CaCertificateError::NoKeyCertSign));
    assert_eq!(
        refusal(|params| params.distinguished_name = DistinguishedName::new()),
        Some(CaCertificateError::EmptySubject)
    );
    assert_eq!(
        refusal(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        None
    );
    let mut custom = rcgen::CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
    custom.set_criticality(true);
    let unknown = CaCertificate::parse(&odd(&authority, |params| params.custom_extensions = vec![custom]));
    let oid = "1.2.3".to_owned();
    assert_eq!(unknown.err(), Some(CaCertificateError::UnknownCriticalExtension { oid }));
}

#[test]
fn ca_certificates_with_bytes_left_over_are_refused() {
    let authority = Authority::new();
    let after = [authority.root.der(), &[0]].concat();
    let refused = CaCertificateError::Unreadable(InspectError::TrailingData { bytes: 1 });
    assert_eq!(CaCertificate::parse(&after).err(), Some(refused));
    let large = vec![0x30; crate::MAX_CERTIFICATE_DER_BYTES + 1];
    let refused = CaCertificateError::Unreadable(InspectError::TooLarge { bytes: large.len() });
    assert_eq!(CaCertificate::parse(&large).err(), Some(refused));
}

#[test]
fn a_ca_certificate_survives_serialisation() {
    let authority = Authority::new();
    let text = serde_json::to_string(&authority.root).unwrap();
    let again: CaCertificate = serde_json::from_str(&text).unwrap();
    assert_eq!(again, authority.root);
    assert_eq!(again.fingerprint(), authority.root.fingerprint());
    for bad in ["\"\"", "\"*\"", "\"MAA=\""] {
        assert!(serde_json::from_str::<CaCertificate>(bad).is_err(), "{bad}");
    }
}
