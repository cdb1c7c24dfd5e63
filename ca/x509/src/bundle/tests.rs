use proptest::prelude::*;

use super::*;
use crate::testing::{Authority, TestKey, at, domain};

fn bundle(anchors: Vec<CaCertificate>) -> Bundle {
    Bundle::new(domain(), 7, Ttl::hours(1), anchors).unwrap()
}

fn two() -> (Bundle, CaCertificate, CaCertificate) {
    let (first, second) = (Authority::new().root, Authority::new().root);
    (bundle(vec![first.clone(), second.clone()]), first, second)
}

fn document(keys: &str) -> Result<SpiffeDocument, BundleError> {
    SpiffeDocument::parse(domain(), &format!("{{\"keys\":[{keys}]}}"))
}

fn entry(certificate: &CaCertificate) -> String {
    serde_json::to_string(&Jwk::of(certificate)).unwrap()
}

#[test]
fn a_bundle_does_not_depend_on_order_or_repeats() {
    let (sorted, first, second) = two();
    let other = bundle(vec![second.clone(), first.clone(), second, first]);
    assert_eq!(sorted, other);
    assert_eq!(sorted.digest(), other.digest());
    assert_eq!(sorted.to_spiffe_json(), other.to_spiffe_json());
    assert!(sorted.anchors()[0].fingerprint() < sorted.anchors()[1].fingerprint());
}

#[test]
fn the_digest_tells_domains_sequences_and_anchors_apart() {
    let (both, first, _) = two();
    let hint = Ttl::hours(1);
    let other_domain = Bundle::new("other.org".parse().unwrap(), 7, hint, both.anchors().to_vec()).unwrap();
    let other_sequence = Bundle::new(domain(), 8, hint, both.anchors().to_vec()).unwrap();
    let digests =
        [both.digest(), other_domain.digest(), other_sequence.digest(), bundle(vec![first]).digest()];
    for (at, digest) in digests.iter().enumerate() {
        assert!(!digests[..at].contains(digest));
    }
}

#[test]
fn a_bundle_without_anchors_or_with_too_many_is_refused() {
    assert_eq!(Bundle::new(domain(), 1, Ttl::hours(1), vec![]), Err(BundleError::Empty));
    let anchors: Vec<_> = (0..=Bundle::MAX_ANCHORS).map(|_| Authority::new().root).collect();
    assert!(Bundle::new(domain(), 1, Ttl::hours(1), anchors[1..].to_vec()).is_ok());
    let refused = Bundle::new(domain(), 1, Ttl::hours(1), anchors);
    assert_eq!(refused, Err(BundleError::TooManyAnchors { count: 65 }));
}

#[test]
fn expired_and_future_anchors_are_not_live() {
    let root = Authority::new().root;
    let bundle = bundle(vec![root.clone()]);
    let live = |now| bundle.live_anchors(now).count();
    assert_eq!((live(root.not_before().minus(1)), live(root.not_before())), (0, 1));
    assert_eq!((live(root.not_after()), live(root.not_after().plus(1))), (1, 0));
    assert_eq!(live(at(0)), 1);
}

#[test]
fn a_bundle_survives_its_spiffe_document() {
    let (bundle, ..) = two();
    let read = SpiffeDocument::parse(domain(), &bundle.to_spiffe_json()).unwrap();
    assert_eq!((read.bundle, read.ignored), (bundle.clone(), 0));
    assert_eq!(Bundle::from_spiffe_json(domain(), &bundle.to_spiffe_json()), Ok(bundle));
}

#[test]
fn a_document_has_the_members_the_standard_asks_for() {
    let (bundle, ..) = two();
    let json: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
    assert_eq!(
        (json["spiffe_sequence"].as_u64(), json["spiffe_refresh_hint"].as_u64()),
        (Some(7), Some(3600))
    );
    for key in json["keys"].as_array().unwrap() {
        assert_eq!((key["use"].as_str(), key["kty"].as_str()), (Some("x509-svid"), Some("EC")));
        assert_eq!(key["crv"], "P-256");
        assert_eq!(URL_SAFE_NO_PAD.decode(key["x"].as_str().unwrap()).unwrap().len(), 32);
        assert_eq!(URL_SAFE_NO_PAD.decode(key["y"].as_str().unwrap()).unwrap().len(), 32);
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
        assert!(key.get("kid").is_none(), "X509-SVID §6.1");
    }
}

#[test]
fn the_numbers_of_rsa_and_edwards_keys_are_shown_as_jwks_do() {
    let authority = Authority::new();
    let show = |csr: &[u8]| {
        let key = crate::VerifiedCsr::parse(csr).unwrap().into_public_key();
        serde_json::to_value(Jwk::of(&authority.root).with_numbers(&key)).unwrap()
    };
    let rsa = show(include_bytes!("../../testdata/rsa2048.csr.der"));
    assert_eq!((rsa["kty"].as_str(), rsa["e"].as_str()), (Some("RSA"), Some("AQAB")));
    assert_eq!(URL_SAFE_NO_PAD.decode(rsa["n"].as_str().unwrap()).unwrap().len(), 256);
    let edwards = show(include_bytes!("../../testdata/ed25519.csr.der"));
    assert_eq!((edwards["kty"].as_str(), edwards["crv"].as_str()), (Some("OKP"), Some("Ed25519")));
}

#[test]
fn one_bad_entry_never_spoils_the_others() {
    let good = entry(&Authority::new().root);
    let jwt = "{\"kty\":\"EC\",\"use\":\"jwt-svid\",\"kid\":\"a\"}";
    let read = document(&format!("{good},{jwt}")).unwrap();
    assert_eq!((read.bundle.anchors().len(), read.ignored), (1, 0), "keys for other uses are no fault");
    for bad in [
        "{}".to_owned(),
        "null".to_owned(),
        "7".to_owned(),
        good.replace("\"kty\":\"EC\"", "\"kty\":\"XX\""),
        good.replace("\"kty\":\"EC\",", ""),
        good.replace("x509-svid", "X509-SVID"),
        good.replace("x509-svid", "tls"),
        good.replace("\"use\":\"x509-svid\",", ""),
        good.replace("x5c", "x5d"),
        good.replace("[\"MII", "[\"AII"),
        good.replace("[\"MII", "[\"M-I"),
        "{\"kty\":\"EC\",\"use\":\"x509-svid\",\"x5c\":[]}".to_owned(),
        "{\"kty\":\"EC\",\"use\":\"x509-svid\",\"x5c\":\"MII\"}".to_owned(),
    ] {
        assert_ne!(bad, good);
        let read = document(&format!("{bad},{good}")).unwrap();
        assert_eq!((read.bundle.anchors().len(), read.ignored), (1, 1), "{bad}");
        assert_eq!(document(&bad), Err(BundleError::Empty), "{bad}");
    }
}

#[test]
fn a_leaf_is_no_anchor() {
    let authority = Authority::new();
    let leaf = authority.key.seal(authority.leaf(&TestKey::p256().public));
    let good = entry(&authority.root);
    let bad = good.replace(&STANDARD.encode(authority.root.der()), &STANDARD.encode(leaf.der()));
    assert_eq!(document(&bad), Err(BundleError::Empty));
}

#[test]
fn only_the_first_certificate_of_an_entry_counts() {
    let (first, second) = (Authority::new().root, Authority::new().root);
    let both = entry(&first).replace("\"]", &format!("\",\"{}\"]", STANDARD.encode(second.der())));
    assert_eq!(document(&both).unwrap().bundle.anchors(), [first]);
}

#[test]
fn documents_that_are_none_are_refused() {
    let good = entry(&Authority::new().root);
    for text in [
        String::new(),
        "[]".to_owned(),
        "{}".to_owned(),
        "{\"keys\":null}".to_owned(),
        "{\"keys\":{}}".to_owned(),
        format!("{{\"keys\":[{good}],\"spiffe_sequence\":-1}}"),
        format!("{{\"keys\":[{good}],\"spiffe_sequence\":1.5}}"),
        format!("{{\"keys\":[{good}],\"spiffe_sequence\":\"1\"}}"),
        format!("{{\"keys\":[{good}],\"keys\":[{good}]}}"),
        format!("{{\"keys\":[{good}]}} junk"),
        "[".repeat(100_000),
    ] {
        let refused = SpiffeDocument::parse(domain(), &text);
        assert!(matches!(refused, Err(BundleError::Malformed(_))), "{text:.80}");
    }
    assert_eq!(document(""), Err(BundleError::Empty));
    let large = " ".repeat(Bundle::MAX_JSON_BYTES + 1);
    assert!(matches!(SpiffeDocument::parse(domain(), &large), Err(BundleError::TooLarge { .. })));
}

#[test]
fn what_the_standard_leaves_optional_may_be_missing_and_what_is_unknown_may_be_there() {
    let good = entry(&Authority::new().root);
    let bare = document(&good).unwrap().bundle;
    assert_eq!((bare.sequence(), bare.refresh_hint()), (0, Ttl::from_seconds(300).unwrap()));
    let rich = format!(
        "{{\"new\":[],\"spiffe_sequence\":18446744073709551615,\"spiffe_refresh_hint\":-5,\"keys\":[{good}]}}"
    );
    let rich = Bundle::from_spiffe_json(domain(), &rich).unwrap();
    assert_eq!((rich.sequence(), rich.refresh_hint().seconds()), (u64::MAX, 1));
}

#[test]
fn pem_and_der_hold_every_anchor_once() {
    let (bundle, first, second) = two();
    let pem = bundle.to_pem();
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(pem.ends_with("-----END CERTIFICATE-----\n") && !pem.contains("\n\n"));
    let blocks: Vec<Vec<u8>> =
        pem::parse_many(pem).unwrap().into_iter().map(pem::Pem::into_contents).collect();
    assert_eq!(blocks.concat(), bundle.to_der());
    assert_eq!(bundle.to_der().len(), first.der().len() + second.der().len());
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(
        text in "\\PC{0,64}",
        keys in prop::collection::vec("\\{(\"(kty|use|x5c)\":(\"(EC|x509-svid|MII)\"|\\[\"MA==\"\\]|1),?){0,4}\\}", 0..4),
    ) {
        prop_assert!(Bundle::from_spiffe_json(domain(), &text).is_err());
        prop_assert!(document(&keys.join(",")).is_err());
    }
}
