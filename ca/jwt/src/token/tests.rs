use proptest::prelude::*;

use super::*;
use crate::testing::{AUDIENCE, TestKey, at, domain, spec, web};
use crate::validate::validate;

fn sealed(key: &TestKey, spec: JwtSpec) -> JwtSvid {
    let token = prepare(spec).unwrap();
    let signature = key.sign_der(token.as_bytes());
    token.seal(signature).unwrap()
}

fn decoded(svid: &JwtSvid, part: usize) -> String {
    let part = svid.token().split('.').nth(part).unwrap();
    String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn a_token_has_exactly_the_headers_and_claims_we_write() {
    let key = TestKey::p256("jwt-1");
    let svid = sealed(&key, spec(&key));
    assert_eq!(decoded(&svid, 0), r#"{"alg":"ES256","kid":"jwt-1","typ":"JWT"}"#);
    let expected = concat!(
        r#"{"aud":["spiffe://example.org/ns/prod/sa/reports"],"exp":1800000300,"iat":1800000000,"#,
        r#""jti":"0001","sub":"spiffe://example.org/ns/prod/sa/web"}"#
    );
    assert_eq!(decoded(&svid, 1), expected);
    assert_eq!((svid.spiffe_id(), svid.audiences()), (&web(), &[AUDIENCE.to_owned()][..]));
    assert_eq!((svid.issued_at(), svid.expires_at()), (at(0), at(300)));
    assert_eq!((svid.jti(), svid.kid()), ("0001", "jwt-1"));
}

#[test]
fn the_same_facts_give_the_same_bytes_and_digest() {
    let key = TestKey::p256("jwt-1");
    let (one, two) = (prepare(spec(&key)).unwrap(), prepare(spec(&key)).unwrap());
    assert_eq!(one.as_bytes(), two.as_bytes());
    assert_eq!(one.digest(), two.digest());
    let other = prepare(JwtSpec { jti: "0002".to_owned(), ..spec(&key) }).unwrap();
    assert_ne!(one.digest(), other.digest());
}

#[test]
fn repeated_audiences_are_written_once_in_the_order_given() {
    let key = TestKey::p256("jwt-1");
    let audiences = ["b", "a", "b"].map(str::to_owned).to_vec();
    let svid = sealed(&key, JwtSpec { audiences, ..spec(&key) });
    assert_eq!(svid.audiences(), ["b", "a"]);
}

#[test]
fn facts_that_make_no_token_of_ours_are_named() {
    let key = TestKey::p256("jwt-1");
    let audiences = |audiences: &[&str]| JwtSpec {
        audiences: audiences.iter().map(|text| (*text).to_owned()).collect(),
        ..spec(&key)
    };
    let many: Vec<String> = (0..=MAX_AUDIENCES).map(|number| number.to_string()).collect();
    let long = "a".repeat(MAX_AUDIENCE_BYTES + 1);
    let jti = |jti: &str| JwtSpec { jti: jti.to_owned(), ..spec(&key) };
    let short_lived = TestKey::p256("jwt-1").until(at(299));
    for (spec, refusal) in [
        (audiences(&[]), PrepareError::NoAudience),
        (audiences(&[""]), PrepareError::Audience),
        (audiences(&["a", "b\n"]), PrepareError::Audience),
        (audiences(&[&long]), PrepareError::Audience),
        (JwtSpec { audiences: many, ..spec(&key) }, PrepareError::TooManyAudiences { count: 17 }),
        (jti(""), PrepareError::Jti),
        (jti("a b"), PrepareError::Jti),
        (jti(&"a".repeat(MAX_NAME_BYTES + 1)), PrepareError::Jti),
        (
            JwtSpec { spiffe_id: SpiffeId::of_trust_domain(&domain()), ..spec(&key) },
            PrepareError::NotAWorkload { id: SpiffeId::of_trust_domain(&domain()) },
        ),
        (
            JwtSpec { expires_at: at(0), ..spec(&key) },
            PrepareError::Lifetime { issued_at: at(0), expires_at: at(0) },
        ),
        (spec(&short_lived), PrepareError::OutlivesKey { expires_at: at(300), key_ends: at(299) }),
        (spec(&TestKey::rsa("rsa")), PrepareError::Key),
    ] {
        assert_eq!(prepare(spec).err(), Some(refusal));
    }
    let longest = "a".repeat(MAX_AUDIENCE_BYTES);
    assert!(prepare(audiences(&[&longest])).is_ok());
}

#[test]
fn the_largest_token_we_make_is_one_we_read() {
    let key = TestKey::p384(&"k".repeat(256));
    let audiences: Vec<String> =
        (0..MAX_AUDIENCES).map(|number| format!("{number:0>width$}", width = MAX_AUDIENCE_BYTES)).collect();
    let path = "a".repeat(2048 - 21);
    let spiffe_id = SpiffeId::from_segments(&domain(), [path.as_str()]).unwrap();
    assert_eq!(spiffe_id.as_str().len(), 2048 + "spiffe://example.org/".len() - 21);
    let svid = sealed(&key, JwtSpec { audiences: audiences.clone(), spiffe_id, ..spec(&key) });
    assert!(
        validate(svid.token(), &audiences[0], |_| Some(std::slice::from_ref(&key.public)), at(1)).is_ok()
    );
    // Quotes double in JSON: what would not fit is refused before it is signed.
    let quotes: Vec<String> = (0..MAX_AUDIENCES).map(|number| format!("{number:\"<256}")).collect();
    let spec = JwtSpec { audiences: quotes, ..spec(&key) };
    assert!(prepare(spec).is_ok_and(|token| token.as_bytes().len() < MAX_TOKEN_BYTES));
}

#[test]
fn an_external_signature_is_verified_and_a_foreign_form_is_refused() {
    let (key, other) = (TestKey::p256("jwt-1"), TestKey::p256("jwt-1"));
    let seal = |signature: &dyn Fn(&[u8]) -> Signature| {
        let token = prepare(spec(&key)).unwrap();
        let signature = signature(token.as_bytes());
        token.seal(signature).err()
    };
    let external = |signature: Signature| Signature::external(signature.as_bytes().to_vec());
    assert_eq!(seal(&|bytes| external(key.sign_der(bytes))), None);
    assert_eq!(seal(&|bytes| external(other.sign_der(bytes))), Some(SealError::Signature));
    assert_eq!(seal(&|_| external(key.sign_der(b"something else"))), Some(SealError::Signature));
    assert_eq!(seal(&|_| Signature::in_process(vec![7; 64])), Some(SealError::Malformed));
    let wide = TestKey::p384("jwt-1");
    assert_eq!(seal(&|bytes| wide.sign_der(bytes)), Some(SealError::Malformed));
}

#[test]
fn a_probe_is_never_a_token() {
    for (algorithm, key) in [
        (SigningAlgorithm::EcdsaP256Sha256, TestKey::p256("jwt-1")),
        (SigningAlgorithm::EcdsaP384Sha384, TestKey::p384("jwt-1")),
    ] {
        let probe = probe_for(algorithm);
        assert!(!probe.as_bytes().contains(&b'.'));
        let signature = key.sign_der(probe.as_bytes());
        assert_eq!(key.public.public_key().verify(probe.as_bytes(), &signature, algorithm), Ok(()));
        assert_eq!(probe.seal(signature).err(), Some(SealError::Probe));
    }
}

#[test]
fn nothing_that_prints_shows_the_token() {
    let key = TestKey::p256("jwt-1");
    let prepared = prepare(spec(&key)).unwrap();
    let input = String::from_utf8(prepared.as_bytes().to_vec()).unwrap();
    assert!(!format!("{prepared:?}").contains(&input));
    let svid = sealed(&key, spec(&key));
    let text = format!("{svid:?}");
    assert!(text.contains("0001") && text.contains(web().as_str()));
    for part in svid.token().split('.') {
        assert!(!text.contains(part));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_sealed_validates_and_says_the_same(
        wide in any::<bool>(),
        kid in "[!-~]{1,40}",
        path in "(/[A-Za-z0-9_-]{1,9}){1,5}",
        audiences in prop::collection::vec("\\PC{1,40}", 1..=16),
        jti in "[!-~]{1,40}",
        issued in 0..4_000_000_000_i64,
        lifetime in 1..1_000_000_i64,
    ) {
        let key = if wide { TestKey::p384(&kid) } else { TestKey::p256(&kid) };
        let issued_at = Timestamp::from_unix(issued);
        let spec = JwtSpec {
            spiffe_id: format!("spiffe://example.org{path}").parse().unwrap(),
            audiences: audiences.clone(),
            issued_at,
            expires_at: issued_at.plus(lifetime),
            jti: jti.clone(),
            key: key.public.clone(),
            issuer: None,
        };
        let svid = sealed(&key, spec.clone());
        let keys = [key.public.clone()];
        for audience in &audiences {
            let valid = validate(svid.token(), audience, |_| Some(&keys), issued_at).unwrap();
            prop_assert_eq!(valid.spiffe_id(), &spec.spiffe_id);
            prop_assert_eq!(valid.audiences(), svid.audiences());
            prop_assert_eq!(valid.expires_at(), spec.expires_at);
            prop_assert_eq!(valid.issued_at(), Some(issued_at));
            prop_assert_eq!(valid.jti(), Some(jti.as_str()));
            prop_assert_eq!(valid.claims().len(), 5);
        }
        prop_assert!(validate(svid.token(), &audiences[0], |_| Some(&keys), spec.expires_at).is_err());
    }
}

#[test]
fn no_bit_of_a_token_can_be_flipped() {
    for key in [TestKey::p256("jwt-1"), TestKey::p384("jwt-1")] {
        let svid = sealed(&key, spec(&key));
        let keys = [key.public.clone()];
        let check = |token: &str| validate(token, AUDIENCE, |_| Some(&keys), at(1));
        assert!(check(svid.token()).is_ok());
        for at in 0..svid.token().len() {
            for bit in 0..8 {
                let mut bytes = svid.token().as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                let Ok(flipped) = String::from_utf8(bytes) else { continue };
                assert!(check(&flipped).is_err(), "byte {at}, bit {bit}");
            }
        }
    }
}
