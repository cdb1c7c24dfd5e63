use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;
use crate::PublicKey;
use crate::key::KeyAlgorithm;
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

fn requested(csr: &[u8]) -> PublicKey {
    crate::VerifiedCsr::parse(csr).unwrap().into_public_key()
}

fn jwt_key(kid: &str) -> JwtKey {
    JwtKey::new(kid.to_owned(), TestKey::p256().public, at(3_600)).unwrap()
}

fn with_keys(keys: Vec<JwtKey>) -> Bundle {
    bundle(vec![Authority::new().root]).with_jwt_keys(keys).unwrap()
}

/// The entries of a bundle's keys in a SPIFFE document.
fn jwt_entries(bundle: &Bundle) -> Vec<String> {
    bundle.jwt_keys().iter().map(|key| serde_json::to_string(&Jwk::of_jwt_key(key)).unwrap()).collect()
}

fn entry(certificate: &CaCertificate) -> String {
    serde_json::to_string(&Jwk::of_anchor(certificate)).unwrap()
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
fn an_anchor_is_pruned_the_second_after_its_last() {
    let root = Authority::new().root;
    let bundle = bundle(vec![root.clone()]);
    assert_eq!(bundle.pruned(root.not_after()).unwrap(), bundle);
    assert_eq!(bundle.pruned(root.not_after().plus(1)), Err(BundleError::Empty), "nothing is left");
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
    let show = |csr: &[u8]| serde_json::to_value(Jwk::of_key(&requested(csr))).unwrap();
    let rsa = show(include_bytes!("../../testdata/rsa2048.csr.der"));
    assert_eq!((rsa["kty"].as_str(), rsa["e"].as_str()), (Some("RSA"), Some("AQAB")));
    assert_eq!(URL_SAFE_NO_PAD.decode(rsa["n"].as_str().unwrap()).unwrap().len(), 256);
    let edwards = show(include_bytes!("../../testdata/ed25519.csr.der"));
    assert_eq!((edwards["kty"].as_str(), edwards["crv"].as_str()), (Some("OKP"), Some("Ed25519")));
}

#[test]
fn one_bad_entry_never_spoils_the_others() {
    let good = entry(&Authority::new().root);
    let wit = "{\"kty\":\"EC\",\"use\":\"wit-svid\",\"kid\":\"a\"}";
    let read = document(&format!("{good},{wit}")).unwrap();
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

#[test]
fn jwt_keys_do_not_depend_on_order_or_repeats_and_have_one_name_each() {
    let (a, b) = (jwt_key("a"), jwt_key("b"));
    let (roots, ..) = two();
    let sorted = roots.clone().with_jwt_keys(vec![a.clone(), b.clone()]).unwrap();
    let other = roots.clone().with_jwt_keys(vec![b.clone(), a.clone(), b]).unwrap();
    assert_eq!((&sorted, sorted.digest()), (&other, other.digest()));
    let clash = roots.clone().with_jwt_keys(vec![a, jwt_key("a")]);
    assert_eq!(clash, Err(BundleError::RepeatedKid { kid: "a".into() }));
    let many = |count| (0..count).map(|n| jwt_key(&n.to_string())).collect::<Vec<_>>();
    assert!(roots.clone().with_jwt_keys(many(Bundle::MAX_JWT_KEYS)).is_ok());
    assert_eq!(roots.with_jwt_keys(many(65)), Err(BundleError::TooManyJwtKeys { count: 65 }));
}

#[test]
fn the_digest_tells_jwt_keys_apart_and_is_the_old_one_without_any() {
    let (roots, ..) = two();
    let with = |keys: Vec<JwtKey>| roots.clone().with_jwt_keys(keys).unwrap().digest();
    let key = jwt_key("a");
    let renamed = JwtKey::new("b".into(), key.public_key().clone(), key.not_after()).unwrap();
    let longer = JwtKey::new("a".into(), key.public_key().clone(), key.not_after().plus(1)).unwrap();
    let digests =
        [roots.digest(), with(vec![key]), with(vec![renamed]), with(vec![longer]), with(vec![jwt_key("a")])];
    for (at, digest) in digests.iter().enumerate() {
        assert!(!digests[..at].contains(digest));
    }
    let mut text = Vec::new();
    let sequence = 7u64.to_be_bytes();
    let parts = [domain().as_str().as_bytes().to_vec(), sequence.to_vec()];
    for part in parts.into_iter().chain(roots.anchors().iter().map(|anchor| anchor.der().to_vec())) {
        text.extend_from_slice(&u64::try_from(part.len()).unwrap().to_be_bytes());
        text.extend_from_slice(&part);
    }
    assert_eq!(
        with(vec![]),
        der::sha256(&text),
        "bundles stored before there were JWT keys keep their digest"
    );
}

#[test]
fn jwt_keys_survive_their_spiffe_document_but_for_their_lifetime() {
    let rsa = requested(include_bytes!("../../testdata/rsa2048.csr.der"));
    let p384 = TestKey::new(KeyAlgorithm::EcdsaP384).public;
    let keys = vec![
        jwt_key("p256"),
        JwtKey::new("p384".into(), p384, at(1)).unwrap(),
        JwtKey::new("rsa".into(), rsa, at(1)).unwrap(),
    ];
    let bundle = with_keys(keys);
    let read = SpiffeDocument::parse(domain(), &bundle.to_spiffe_json()).unwrap();
    assert_eq!((read.ignored, read.bundle.jwt_keys().len()), (0, 3));
    for (read, written) in read.bundle.jwt_keys().iter().zip(bundle.jwt_keys()) {
        assert_eq!((read.kid(), read.public_key()), (written.kid(), written.public_key()));
        assert_eq!(read.not_after(), Timestamp::MAX, "a document does not say");
    }
    let json: Value = serde_json::from_str(&bundle.to_spiffe_json()).unwrap();
    let kinds: Vec<_> = json["keys"].as_array().unwrap().iter().map(|key| key["use"].clone()).collect();
    assert_eq!(kinds, ["x509-svid", "jwt-svid", "jwt-svid", "jwt-svid"]);
    assert!(json["keys"][1].get("x5c").is_none(), "JWT-SVID §6.1");
}

#[test]
fn one_bad_jwt_key_never_spoils_the_others() {
    let root = entry(&Authority::new().root);
    let good = jwt_entries(&with_keys(vec![jwt_key("a")])).remove(0);
    let other = jwt_entries(&with_keys(vec![jwt_key("b")])).remove(0);
    let short = with_keys(vec![jwt_key("c")]);
    let shown = serde_json::to_value(Jwk::of_jwt_key(&short.jwt_keys()[0])).unwrap();
    let x = shown["x"].as_str().unwrap();
    let off_curve = jwt_entries(&short).remove(0).replace(x, &URL_SAFE_NO_PAD.encode([1; 32]));
    let truncated = jwt_entries(&short).remove(0).replace(x, &x[..42]);
    for bad in [
        good.replace(",\"kid\":\"a\"", ""),
        good.replace("\"kid\":\"a\"", "\"kid\":\"\""),
        good.replace("\"kid\":\"a\"", "\"kid\":7"),
        good.replace("P-256", "P-384"),
        good.replace("P-256", "P-521"),
        good.replace("\"kty\":\"EC\"", "\"kty\":\"RSA\""),
        good.replace("\"kty\":\"EC\"", "\"kty\":\"OKP\""),
        good.replace("jwt-svid", "JWT-SVID"),
        off_curve,
        truncated,
        // The second of one name.
        other.replace("\"kid\":\"b\"", "\"kid\":\"z\""),
    ] {
        let z = other.replace("\"kid\":\"b\"", "\"kid\":\"z\"");
        let read = document(&format!("{root},{z},{bad}")).unwrap();
        let kids: Vec<_> = read.bundle.jwt_keys().iter().map(JwtKey::kid).collect();
        assert_eq!((kids, read.ignored), (vec!["z"], 1), "{bad}");
    }
}

#[test]
fn keys_that_no_jwt_svid_is_signed_with_are_refused() {
    let edwards = requested(include_bytes!("../../testdata/ed25519.csr.der"));
    let refused = JwtKey::new("a".into(), edwards, at(0));
    assert_eq!(refused, Err(JwtKeyError::Algorithm { found: KeyAlgorithm::Ed25519 }));
    for kid in [String::new(), "a\n".into(), "a".repeat(257)] {
        assert_eq!(JwtKey::new(kid, TestKey::p256().public, at(0)), Err(JwtKeyError::Kid));
    }
}

#[test]
fn a_jwt_key_is_stored_and_read_back() {
    let key = jwt_key("a");
    let text = serde_json::to_string(&key).unwrap();
    assert!(text.starts_with("{\"kid\":\"a\",\"public_key\":\"MFkw"), "{text}");
    assert_eq!(serde_json::from_str::<JwtKey>(&text).unwrap(), key);
    for bad in [text.replace("MFkw", "MFk"), text.replace("MFkw", "MFkx"), text.replace("\"a\"", "\"\"")] {
        assert!(serde_json::from_str::<JwtKey>(&bad).is_err(), "{bad}");
    }
}

#[test]
fn the_workload_api_gets_live_jwt_keys_and_nothing_else() {
    let (short, long) = (jwt_key("short"), jwt_key("z"));
    let long = JwtKey::new("long".into(), long.public_key().clone(), at(9_999)).unwrap();
    let bundle = with_keys(vec![short, long]);
    let kids = |now| {
        let json: Value = serde_json::from_str(&bundle.to_jwks_json(now)).unwrap();
        assert_eq!(json.as_object().unwrap().len(), 1, "keys alone");
        let keys = json["keys"].as_array().unwrap().clone();
        assert!(keys.iter().all(|key| key.get("use").is_none() && key["kty"] == "EC"));
        keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kids(at(3_600)), ["long", "short"]);
    assert_eq!(kids(at(3_601)), ["long"]);
    assert_eq!(bundle.to_jwks_json(at(10_000)), "{\"keys\":[]}");
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
