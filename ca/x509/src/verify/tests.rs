use proptest::prelude::*;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};
use rhizome_id::Ttl;
use time::OffsetDateTime;

use super::*;
use crate::key::KeyAlgorithm;
use crate::testing::{Authority, TestKey, at, domain, extension, web, with_extension, with_extensions};

struct Bench {
    authority: Authority,
    anchors: TrustAnchors,
    key: TestKey,
}

impl Bench {
    fn new() -> Self {
        let authority = Authority::new();
        let anchors = anchors(&[&authority]);
        Self { authority, anchors, key: TestKey::p256() }
    }

    fn verify_at(&self, leaf: &[u8], usage: PeerUsage, now: Timestamp) -> Result<VerifiedPeer, PeerError> {
        verify_peer(leaf, &[self.authority.certificate.der()], &self.anchors, usage, now)
    }

    fn verify(&self, leaf: &[u8]) -> Result<VerifiedPeer, PeerError> {
        self.verify_at(leaf, PeerUsage::Client, at(0))
    }

    fn refusal(&self, leaf: &[u8]) -> &'static str {
        self.verify(leaf).map_or_else(|error| error.code(), |_| "accepted")
    }

    /// A leaf the authority signed without our lint.
    fn odd(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from_unix_timestamp(at(-60).unix()).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(at(60).unix()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri("spiffe://example.org/a")];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        self.authority.key.forge(&params, &self.key.public, &self.authority.certificate)
    }

    fn odd_tbs(&self, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let linted = self.authority.leaf(&self.key.public);
        self.authority.key.wrap(&change(linted.to_be_signed().as_bytes()))
    }
}

fn anchors(authorities: &[&Authority]) -> TrustAnchors {
    let roots = authorities.iter().map(|authority| authority.root.clone()).collect();
    TrustAnchors::from_bundle(&Bundle::new(domain(), 1, Ttl::hours(1), roots).unwrap())
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

#[test]
fn a_peer_is_who_its_certificate_says_in_both_directions() {
    for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384] {
        let (authority, key) = (Authority::of(algorithm, "g1"), TestKey::p256());
        let anchors = anchors(&[&authority]);
        let leaf = authority.key.seal(authority.leaf(&key.public));
        for usage in [PeerUsage::Client, PeerUsage::Server] {
            let chain = [authority.certificate.der()];
            let peer = verify_peer(leaf.der(), &chain, &anchors, usage, at(0)).unwrap();
            assert_eq!(peer.spiffe_id, web());
            assert_eq!(peer.serial, leaf.serial().as_bytes());
            assert_eq!((peer.not_before, peer.not_after), (leaf.not_before(), leaf.not_after()));
            assert_eq!(peer.public_key_digest, key.public.digest());
            assert_eq!(peer.fingerprint, leaf.fingerprint());
        }
    }
}

#[test]
fn validity_is_inclusive_on_both_ends() {
    let bench = Bench::new();
    let leaf = bench.authority.key.seal(bench.authority.leaf(&bench.key.public));
    let at = |now| bench.verify_at(leaf.der(), PeerUsage::Client, now).err();
    assert_eq!(at(leaf.not_before()), None);
    assert_eq!(at(leaf.not_after()), None);
    assert_eq!(at(leaf.not_before().minus(1)), Some(PeerError::NotYetValid));
    assert_eq!(at(leaf.not_after().plus(1)), Some(PeerError::Expired));
}

#[test]
fn an_expired_anchor_is_no_anchor() {
    let bench = Bench::new();
    // The leaf and the issuer outlive the root here: only the anchor is expired. webpki alone would accept it.
    let mut short = bench.anchors.clone();
    short.validity = vec![(at(-86_400), at(-1))];
    let leaf = bench.odd(|_| {});
    let chain = [bench.authority.certificate.der()];
    assert!(verify_peer(&leaf, &chain, &bench.anchors, PeerUsage::Client, at(0)).is_ok());
    let refused = verify_peer(&leaf, &chain, &short, PeerUsage::Client, at(0));
    assert_eq!(refused, Err(PeerError::NoLiveAnchor));

    // The same with another, live anchor beside it.
    let other = Authority::of(KeyAlgorithm::EcdsaP256, "g2");
    let mut both = anchors(&[&bench.authority, &other]);
    let ours = webpki::anchor_from_trusted_cert(&CertificateDer::from(bench.authority.root.der()))
        .unwrap()
        .to_owned();
    let at_ours = both.anchors.iter().position(|anchor| *anchor == ours).unwrap();
    both.validity[at_ours] = (at(-86_400), at(-1));
    let refused = verify_peer(&leaf, &chain, &both, PeerUsage::Client, at(0));
    assert_eq!(refused.unwrap_err().code(), "peer_unknown_issuer");
}

#[test]
fn chains_to_other_roots_and_broken_chains_are_refused() {
    let bench = Bench::new();
    let leaf = bench.odd(|_| {});
    let stranger = anchors(&[&Authority::of(KeyAlgorithm::EcdsaP256, "g2")]);
    let chain = [bench.authority.certificate.der()];
    let refused = verify_peer(&leaf, &chain, &stranger, PeerUsage::Client, at(0));
    assert_eq!(refused, Err(PeerError::UnknownIssuer));
    let refused = verify_peer(&leaf, &[], &bench.anchors, PeerUsage::Client, at(0));
    assert_eq!(refused, Err(PeerError::UnknownIssuer));
    let mut forged = leaf;
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(bench.refusal(&forged), "peer_path");
}

#[test]
fn long_chains_and_large_certificates_are_refused_before_any_work() {
    let bench = Bench::new();
    let leaf = bench.odd(|_| {});
    let chain = [bench.authority.certificate.der(); 4];
    let verify = |chain: &[&[u8]]| verify_peer(&leaf, chain, &bench.anchors, PeerUsage::Client, at(0));
    assert!(verify(&chain[..3]).is_ok());
    assert_eq!(verify(&chain), Err(PeerError::ChainTooLong { length: 5 }));
    let large = vec![0x30; crate::MAX_CERTIFICATE_DER_BYTES + 1];
    assert_eq!(bench.refusal(&large), "peer_leaf_unreadable");
    assert_eq!(verify(&[&large]).unwrap_err().code(), "peer_intermediate_unreadable");
}

#[test]
fn the_usage_must_be_allowed() {
    let bench = Bench::new();
    let with = |usages: Vec<ExtendedKeyUsagePurpose>| bench.odd(|params| params.extended_key_usages = usages);
    let as_client = |leaf: &[u8]| bench.verify_at(leaf, PeerUsage::Client, at(0)).err();
    let as_server = |leaf: &[u8]| bench.verify_at(leaf, PeerUsage::Server, at(0)).err();
    let server = with(vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!((as_client(&server), as_server(&server)), (Some(PeerError::Usage), None));
    let client = with(vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!((as_client(&client), as_server(&client)), (None, Some(PeerError::Usage)));
    let code = with(vec![ExtendedKeyUsagePurpose::CodeSigning]);
    assert_eq!((as_client(&code), as_server(&code)), (Some(PeerError::Usage), Some(PeerError::Usage)));
}

#[test]
fn there_must_be_exactly_one_uri_and_it_must_be_an_id_of_our_trust_domain() {
    let bench = Bench::new();
    let with = |names: Vec<SanType>| bench.odd(|params| params.subject_alt_names = names);
    let id = || uri("spiffe://example.org/a");
    for (names, code) in [
        (vec![id(), dns("web.example")], "accepted"),
        (vec![id(), id()], "peer_uri_count"),
        (vec![id(), uri("https://example.org")], "peer_uri_count"),
        (vec![dns("web.example")], "peer_uri_count"),
        (vec![dns("spiffe://example.org/a")], "peer_dns_name"),
        (vec![id(), dns("spiffe://example.org/b")], "peer_dns_name"),
        (vec![id(), dns("a\0b")], "peer_dns_name"),
        (vec![SanType::Rfc822Name("a@example.org".try_into().unwrap())], "peer_uri_count"),
        (vec![uri("https://example.org/a")], "peer_spiffe_id"),
        (vec![uri("spiffe://example.org/a/../b")], "peer_spiffe_id"),
        (vec![uri("spiffe://EXAMPLE.org/a")], "peer_spiffe_id"),
        (vec![uri("spiffe://example.org")], "peer_no_path"),
        (vec![uri("spiffe://other.org/a")], "peer_trust_domain"),
        (vec![uri("spiffe://example.org.evil/a")], "peer_trust_domain"),
    ] {
        assert_eq!(bench.refusal(&with(names.clone())), code, "{names:?}");
    }
    assert_eq!(bench.refusal(&with(vec![])), "peer_uri_count");
}

#[test]
fn a_ca_or_something_that_signs_like_one_is_no_peer() {
    let bench = Bench::new();
    let root = bench.authority.root.der();
    let issuer = bench.authority.certificate.der();
    assert_eq!(bench.verify(issuer), Err(PeerError::CaAsLeaf));
    assert_eq!(bench.verify(root), Err(PeerError::CaAsLeaf));
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let leaf = bench.odd(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature, usage]);
        assert_eq!(bench.verify(&leaf), Err(PeerError::CaAsLeaf));
    }
}

#[test]
fn key_usage_must_be_there_critical_and_for_signatures() {
    let bench = Bench::new();
    let key_usage = b"\x55\x1d\x0f";
    let absent = bench.odd_tbs(|tbs| with_extension(tbs, key_usage, None));
    let not_critical = extension(key_usage, false, &[3, 2, 7, 0x80]);
    let not_critical = bench.odd_tbs(|tbs| with_extension(tbs, key_usage, Some(not_critical)));
    let other = bench.odd(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    for leaf in [absent, not_critical, other] {
        assert_eq!(bench.verify(&leaf), Err(PeerError::KeyUsage));
    }
}

#[test]
fn extensions_that_are_doubled_unreadable_or_unknown_and_critical_are_refused() {
    let bench = Bench::new();
    let basic = b"\x55\x1d\x13";
    let adding =
        |added: Vec<u8>| bench.odd_tbs(|tbs| with_extensions(tbs, |extensions| extensions.push(added)));
    let replacing = |value: &[u8]| {
        let new = extension(basic, true, value);
        bench.odd_tbs(|tbs| with_extension(tbs, basic, Some(new)))
    };
    for leaf in [
        adding(extension(basic, true, &[0x30, 0])),
        replacing(&[0x30, 0, 0]),
        replacing(&[0x30, 1, 0]),
        replacing(&[]),
    ] {
        assert_eq!(bench.refusal(&leaf), "peer_leaf_unreadable");
    }
    assert_eq!(bench.refusal(&adding(extension(&[0x2a, 3], true, &[5, 0]))), "peer_path");
    assert_eq!(bench.refusal(&adding(extension(&[0x2a, 3], false, &[5, 0]))), "accepted");
}

#[test]
fn a_leaf_that_acts_as_a_ca_is_refused() {
    let bench = Bench::new();
    let thief = &bench.key;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "thief");
    // A leaf that webpki would take for a CA but that lacks keyCertSign.
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let middle = bench.authority.key.forge(&params, &thief.public, &bench.authority.certificate);
    let leaf = bench.odd(|_| {});
    let chain = [&middle[..], bench.authority.certificate.der()];
    let refused = verify_peer(&leaf, &chain, &bench.anchors, PeerUsage::Client, at(0));
    assert_eq!(refused, Err(PeerError::NotCa(CaCertificateError::NoKeyCertSign)));
    let plain = bench.odd(|_| {});
    let refused = verify_peer(&leaf, &[&plain], &bench.anchors, PeerUsage::Client, at(0));
    assert_eq!(refused, Err(PeerError::NotCa(CaCertificateError::NotCa)));
}

#[test]
fn weak_keys_are_refused_whoever_signed_for_them() {
    let bench = Bench::new();
    let roca = include_bytes!("../../testdata/roca.spki.der");
    let leaf = bench.odd_tbs(|tbs| crate::testing::with_parts(tbs, |parts| parts[6] = roca.to_vec()));
    assert_eq!(bench.verify(&leaf), Err(PeerError::Key(KeyError::Roca)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_make_the_readers_of_certificates_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let bench = Bench::new();
        prop_assert!(inspect::inspect(&bytes).is_err());
        prop_assert!(bench.verify(&bytes).is_err());
        let leaf = bench.odd(|_| {});
        let mut changed = leaf.clone();
        for (at, new) in &places {
            changed[at.index(leaf.len())] = *new;
        }
        drop(inspect::inspect(&changed).ok());
        drop(CaCertificate::parse(&changed).ok());
        prop_assert_eq!(bench.verify(&changed).is_ok(), changed == leaf);
        let chain = [&changed[..]];
        drop(verify_peer(&leaf, &chain, &bench.anchors, PeerUsage::Server, at(0)).ok());
    }
}
