use serde_json::json;

use super::*;
use crate::testing::{AUDIENCE, TestKey, at, claims, domain, encode, web};

/// Validates at one second after the token was made, with this key as the only one of example.org.
fn check(key: &TestKey, token: &str) -> Result<ValidatedJwt, JwtError> {
    let keys = [key.public.clone()];
    validate(token, AUDIENCE, |asked| (*asked == domain()).then_some(&keys[..]), at(1))
}

fn code(key: &TestKey, token: &str) -> &'static str {
    check(key, token).err().map_or("accepted", |error| error.code())
}

fn with(claim: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[claim] = value;
    claims
}

fn without(claim: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(claim);
    claims
}

#[test]
fn every_algorithm_of_the_specification_that_ring_does_is_accepted() {
    let (p256, p384, rsa) = (TestKey::p256("k"), TestKey::p384("k"), TestKey::rsa("k"));
    for algorithm in JwsAlgorithm::ALL {
        let fitting: Vec<&TestKey> = [&p256, &p384, &rsa]
            .into_iter()
            .filter(|key| algorithm.fits(key.public.public_key().algorithm()))
            .collect();
        let [key] = fitting[..] else { panic!("{algorithm:?} belongs to one kind of key") };
        let header = json!({ "alg": algorithm.name(), "kid": "k" }).to_string();
        let token = key.token_by(algorithm, &header, &claims().to_string());
        let valid = check(key, &token).unwrap();
        assert_eq!((valid.spiffe_id(), valid.jti()), (&web(), Some("0001")));
        assert_eq!((valid.issued_at(), valid.expires_at()), (Some(at(0)), at(300)));
        assert_eq!(Value::Object(valid.claims().clone()), claims());
        for other in [&p256, &p384, &rsa].into_iter().filter(|other| !std::ptr::eq(*other, key)) {
            assert_eq!(code(other, &token), "jwt_key_mismatch", "{algorithm:?}");
        }
    }
}

#[test]
fn an_algorithm_of_the_same_key_but_another_than_signed_does_not_verify() {
    let rsa = TestKey::rsa("k");
    for signed in [JwsAlgorithm::Rs256, JwsAlgorithm::Ps256, JwsAlgorithm::Rs512] {
        for named in [JwsAlgorithm::Rs384, JwsAlgorithm::Ps384, JwsAlgorithm::Ps512] {
            let header = json!({ "alg": named.name(), "kid": "k" }).to_string();
            assert_eq!(code(&rsa, &rsa.token_by(signed, &header, &claims().to_string())), "jwt_signature");
        }
    }
}

#[test]
fn unsigned_tokens_and_secrets_made_of_public_keys_are_refused() {
    for key in [TestKey::p256("k"), TestKey::rsa("k")] {
        for name in ["none", "None", "NONE", "nOnE", ""] {
            let header = json!({ "alg": name, "kid": "k" }).to_string();
            assert_eq!(code(&key, &key.token(&header, &claims().to_string())), "jwt_algorithm", "{name}");
            let unsigned = format!("{}.{}.", encode(&header), encode(claims().to_string()));
            assert_eq!(code(&key, &unsigned), "jwt_form", "{name}");
        }
        for (name, algorithm) in [
            ("HS256", ring::hmac::HMAC_SHA256),
            ("HS384", ring::hmac::HMAC_SHA384),
            ("HS512", ring::hmac::HMAC_SHA512),
        ] {
            let public = key.public.public_key();
            for secret in [public.spki_der(), public.bits()] {
                let header = json!({ "alg": name, "kid": "k" }).to_string();
                let input = format!("{}.{}", encode(header), encode(claims().to_string()));
                let tag = ring::hmac::sign(&ring::hmac::Key::new(algorithm, secret), input.as_bytes());
                assert_eq!(code(&key, &format!("{input}.{}", encode(tag))), "jwt_algorithm", "{name}");
            }
        }
        for name in ["EdDSA", "ES512", "ES256K", "es256", "RSA-OAEP", "A128KW"] {
            let header = json!({ "alg": name, "kid": "k" }).to_string();
            assert_eq!(code(&key, &key.token(&header, &claims().to_string())), "jwt_algorithm", "{name}");
        }
    }
}

#[test]
fn each_required_claim_missing_null_or_of_a_wrong_type_is_refused() {
    let key = TestKey::p256("k");
    for claim in ["sub", "aud", "exp"] {
        assert_eq!(code(&key, &key.claiming(&without(claim))), "jwt_claims", "{claim} missing");
        for wrong in [Value::Null, json!(true), json!({}), json!([]), json!([[]]), json!("")] {
            assert_eq!(
                code(&key, &key.claiming(&with(claim, wrong.clone()))),
                "jwt_claims",
                "{claim} {wrong}"
            );
        }
    }
    for claim in ["nbf", "iat", "jti", "iss"] {
        assert_eq!(code(&key, &key.claiming(&without(claim))), "accepted", "{claim} missing");
        for wrong in [Value::Null, json!(true), json!({}), json!([])] {
            assert_eq!(
                code(&key, &key.claiming(&with(claim, wrong.clone()))),
                "jwt_claims",
                "{claim} {wrong}"
            );
        }
    }
    for claim in ["jti", "iss"] {
        assert_eq!(code(&key, &key.claiming(&with(claim, json!(1)))), "jwt_claims", "{claim}");
    }
}

#[test]
fn instants_are_whole_seconds_in_years_that_exist() {
    let key = TestKey::p256("k");
    for claim in ["exp", "nbf", "iat"] {
        for odd in [
            "1800000300.0",
            "1800000300.5",
            "1.8e9",
            "\"1800000300\"",
            "-1",
            "-9223372036854775809",
            "253402300800",
            "9223372036854775808",
            "18446744073709551616",
            "1e300",
            "1e999",
            "0x10",
            "01",
        ] {
            let mut others = without(claim).to_string();
            assert_eq!(others.pop(), Some('}'));
            let token = key.token(r#"{"alg":"ES256"}"#, &format!(r#"{others},"{claim}":{odd}}}"#));
            assert_eq!(code(&key, &token), "jwt_claims", "{claim} {odd}");
        }
    }
    let last = with("exp", json!(Timestamp::MAX.unix()));
    assert_eq!(code(&key, &key.claiming(&last)), "accepted");
}

#[test]
fn an_expired_token_is_refused_at_the_second_it_names_without_leeway() {
    let key = TestKey::p256("k");
    for (exp, expected) in [
        (at(2), "accepted"),
        (at(1), "jwt_expired"),
        (at(0), "jwt_expired"),
        (Timestamp::EPOCH, "jwt_expired"),
    ] {
        assert_eq!(code(&key, &key.claiming(&with("exp", json!(exp.unix())))), expected, "{exp}");
    }
}

#[test]
fn a_token_from_the_future_is_refused_beyond_a_minute() {
    let key = TestKey::p256("k");
    for claim in ["nbf", "iat"] {
        for (ahead, expected) in
            [(1, "accepted"), (LEEWAY_SECONDS + 1, "accepted"), (LEEWAY_SECONDS + 2, "jwt_not_yet")]
        {
            let token = key.claiming(&with(claim, json!(at(ahead).unix())));
            assert_eq!(code(&key, &token), expected, "{claim} {ahead}");
        }
    }
}

#[test]
fn the_audience_is_found_in_a_string_or_in_a_list_and_must_be_there_whole() {
    let key = TestKey::p256("k");
    for (aud, expected) in [
        (json!(AUDIENCE), "accepted"),
        (json!(["other", AUDIENCE]), "accepted"),
        (json!([AUDIENCE, AUDIENCE]), "accepted"),
        (json!("other"), "jwt_audience"),
        (json!(["other"]), "jwt_audience"),
        (json!([format!("{AUDIENCE}/")]), "jwt_audience"),
        (json!(AUDIENCE.to_uppercase()), "jwt_audience"),
        (json!([AUDIENCE, 1]), "jwt_claims"),
        (json!([AUDIENCE, null]), "jwt_claims"),
        (json!([AUDIENCE, ""]), "jwt_claims"),
        (json!([[AUDIENCE]]), "jwt_claims"),
        (json!({ "0": AUDIENCE }), "jwt_claims"),
    ] {
        assert_eq!(code(&key, &key.claiming(&with("aud", aud.clone()))), expected, "{aud}");
    }
    let single = check(&key, &key.claiming(&with("aud", json!(AUDIENCE)))).unwrap();
    assert_eq!(single.audiences(), [AUDIENCE]);
    assert_eq!(single.claims()["aud"], json!(AUDIENCE));
}

#[test]
fn the_subject_is_a_workload_of_a_trust_domain_whose_keys_verify() {
    let key = TestKey::p256("k");
    for odd in [
        "",
        "web",
        "SPIFFE://example.org/a",
        "https://example.org/a",
        "spiffe://example.org/a/../b",
        "spiffe://example.org",
    ] {
        assert_eq!(code(&key, &key.claiming(&with("sub", json!(odd)))), "jwt_claims", "{odd}");
    }
    let foreign = key.claiming(&with("sub", json!("spiffe://other.org/ns/prod/sa/web")));
    assert_eq!(code(&key, &foreign), "jwt_trust_domain");
    // The keys of one trust domain say nothing about the subjects of another that is known too.
    let (ours, theirs) = ([key.public.clone()], [TestKey::p256("k").public]);
    let of = |asked: &TrustDomain| match asked.as_str() {
        "example.org" => Some(&ours[..]),
        "other.org" => Some(&theirs[..]),
        _ => None,
    };
    assert_eq!(validate(&foreign, AUDIENCE, of, at(1)), Err(JwtError::Signature));
    assert!(validate(&key.claiming(&claims()), AUDIENCE, of, at(1)).is_ok());
}

#[test]
fn a_key_is_found_by_its_name_or_among_all_when_none_is_named() {
    let (one, two, rsa) = (TestKey::p256("one"), TestKey::p256("two"), TestKey::rsa("rsa"));
    let keys = [one.public.clone(), rsa.public.clone(), two.public.clone()];
    let code = |token: &str, keys: &[JwtKey]| {
        validate(token, AUDIENCE, |_| Some(keys), at(1)).err().map_or("accepted", |error| error.code())
    };
    let text = claims().to_string();
    let named = |kid: &str| two.token(&json!({ "alg": "ES256", "kid": kid }).to_string(), &text);
    assert_eq!(code(&named("two"), &keys), "accepted");
    assert_eq!(code(&named("one"), &keys), "jwt_signature");
    assert_eq!(code(&named("rsa"), &keys), "jwt_key_mismatch");
    assert_eq!(code(&named("three"), &keys), "jwt_key_unknown");
    assert_eq!(code(&named(""), &keys), "jwt_key_unknown");
    let nameless = two.token(r#"{"alg":"ES256"}"#, &text);
    assert_eq!(code(&nameless, &keys), "accepted");
    assert_eq!(code(&nameless, &keys[..2]), "jwt_signature");
    assert_eq!(code(&nameless, &[]), "jwt_signature");
    assert_eq!(code(&named("two"), &[]), "jwt_key_unknown");
    // One name for two keys, as in a bundle that somebody else made.
    let same = [TestKey::p256("two").public, two.public.clone()];
    assert_eq!(code(&named("two"), &same), "accepted");
}

#[test]
fn a_key_past_its_end_verifies_nothing() {
    let key = TestKey::p256("k").until(at(1));
    let keys = [key.public.clone()];
    let check = |kid: &str, now| {
        let header =
            if kid.is_empty() { json!({ "alg": "ES256" }) } else { json!({ "alg": "ES256", "kid": kid }) };
        validate(&key.token(&header.to_string(), &claims().to_string()), AUDIENCE, |_| Some(&keys), now)
    };
    assert!(check("k", at(1)).is_ok());
    assert_eq!(check("k", at(2)), Err(JwtError::UnknownKey { kid: "k".to_owned() }));
    assert_eq!(check("", at(2)), Err(JwtError::Signature));
}

#[test]
fn headers_other_than_the_three_are_refused_and_those_must_be_strings() {
    let key = TestKey::p256("k");
    let text = claims().to_string();
    for (header, expected) in [
        (r#"{"alg":"ES256"}"#, "accepted"),
        (r#"{"alg":"ES256","typ":"JWT"}"#, "accepted"),
        (r#"{"alg":"ES256","typ":"JOSE","kid":"k"}"#, "accepted"),
        (r#"{"alg":"ES256","typ":"jwt"}"#, "jwt_type"),
        (r#"{"alg":"ES256","typ":"at+jwt"}"#, "jwt_type"),
        (r#"{"alg":"ES256","typ":"wit+jwt"}"#, "jwt_type"),
        (r#"{"alg":"ES256","typ":""}"#, "jwt_type"),
        (r#"{"alg":"ES256","typ":null}"#, "jwt_header"),
        (r#"{"alg":"ES256","kid":null}"#, "jwt_header"),
        (r#"{"alg":"ES256","kid":1}"#, "jwt_header"),
        (r#"{"alg":null}"#, "jwt_header"),
        (r#"{"alg":["ES256"]}"#, "jwt_header"),
        (r#"{"kid":"k"}"#, "jwt_header"),
        (r#"["ES256","k","JWT"]"#, "jwt_header"),
        (r#""ES256""#, "jwt_header"),
        ("", "jwt_form"),
        (r#"{"alg":"none","alg":"ES256"}"#, "jwt_header"),
        (r#"{"alg":"ES256","\u0061lg":"none"}"#, "jwt_header"),
        (r#"{"alg":"ES256","crit":["exp"],"exp":1}"#, "jwt_header"),
        (r#"{"alg":"ES256","crit":[]}"#, "jwt_header"),
        (r#"{"alg":"ES256","b64":false}"#, "jwt_header"),
        (r#"{"alg":"ES256","jku":"https://example.org/keys"}"#, "jwt_header"),
        (r#"{"alg":"ES256","jwk":{"kty":"EC"}}"#, "jwt_header"),
        (r#"{"alg":"ES256","x5c":["MA=="]}"#, "jwt_header"),
        (r#"{"alg":"ES256","x5u":"https://example.org/keys"}"#, "jwt_header"),
        (r#"{"alg":"ES256","cty":"JWT"}"#, "jwt_header"),
        (r#"{"alg":"ES256"} x"#, "jwt_header"),
        (r#"{"alg":"ES256"}{}"#, "jwt_header"),
    ] {
        assert_eq!(code(&key, &key.token(header, &text)), expected, "{header}");
    }
}

#[test]
fn claims_that_two_readers_could_read_in_two_ways_are_refused() {
    let key = TestKey::p256("k");
    let text = claims().to_string();
    for (claims, expected) in [
        (text.clone(), "accepted"),
        (text.replacen('{', r#"{"sub":"spiffe://example.org/ns/prod/sa/admin","#, 1), "jwt_claims"),
        (text.replacen('{', r#"{"\u0065xp":1900000000,"#, 1), "jwt_claims"),
        (text.replacen('{', r#"{"x":{"a":1,"a":2},"#, 1), "jwt_claims"),
        (text.replacen('{', r#"{"x":{"a":1},"y":[1,2.5,null,"z"],"#, 1), "accepted"),
        (format!("{text} x"), "jwt_claims"),
        (format!("[{text}]"), "jwt_claims"),
        (format!("\u{feff}{text}"), "jwt_claims"),
        ("null".to_owned(), "jwt_claims"),
        ("{}".to_owned(), "jwt_claims"),
        (text.replacen('{', &format!(r#"{{"x":{}1{},"#, "[".repeat(16), "]".repeat(16)), 1), "jwt_claims"),
    ] {
        assert_eq!(code(&key, &key.token(r#"{"alg":"ES256"}"#, &claims)), expected, "{claims}");
    }
    let broken = key.signed(
        JwsAlgorithm::Es256,
        &format!("{}.{}", encode(r#"{"alg":"ES256"}"#), encode(b"{\"a\":\"\xff\"}")),
    );
    assert_eq!(code(&key, &broken), "jwt_claims", "not UTF-8");
}

#[test]
fn only_three_parts_of_canonical_base64url_are_a_token() {
    let key = TestKey::p256("k");
    let token = key.claiming(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("three parts") };
    let json = format!(r#"{{"payload":"{claims}","protected":"{header}","signature":"{signature}"}}"#);
    for (text, expected) in [
        (token.clone(), "accepted"),
        (String::new(), "jwt_form"),
        (".".to_owned(), "jwt_form"),
        ("..".to_owned(), "jwt_form"),
        (format!("{token}."), "jwt_form"),
        (format!("{token}.."), "jwt_form"),
        (format!(".{token}"), "jwt_form"),
        (format!("{header}.{claims}"), "jwt_form"),
        (format!("{header}.{claims}."), "jwt_form"),
        (format!("{header}..{signature}"), "jwt_form"),
        (format!("{header}.{claims}.{signature}.{signature}.{signature}"), "jwt_form"),
        (json, "jwt_form"),
        (format!("Bearer {token}"), "jwt_encoding"),
        (format!(" {token}"), "jwt_encoding"),
        (format!("{token}\n"), "jwt_encoding"),
        (format!("{header}=.{claims}.{signature}"), "jwt_encoding"),
        (format!("{header}.{claims}.{signature}=="), "jwt_encoding"),
        (format!("{header}.{claims}.{}", signature.replacen(|_: char| true, "+", 1)), "jwt_encoding"),
        (format!("{header}.{claims}.{}", &signature[..85]), "jwt_encoding"),
        (format!("{header}.{claims}.{}", &signature[..84]), "jwt_signature"),
        (format!("{header}.{claims}.{signature}AA"), "jwt_signature"),
    ] {
        assert_eq!(code(&key, &text), expected, "{text}");
    }
}

#[test]
fn the_bits_that_base64_leaves_over_are_zero() {
    let key = TestKey::p256("k");
    let token = key.claiming(&claims());
    // 64 bytes are 86 characters, the last of which carries two bits and four that are left over.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = token.split_at(token.len() - 1);
    let value = alphabet.find(last).unwrap();
    for left_over in 1..16 {
        let other = &alphabet[value + left_over..=value + left_over];
        assert_eq!(code(&key, &format!("{rest}{other}")), "jwt_encoding", "{left_over}");
    }
}

#[test]
fn a_token_is_refused_by_its_size_before_it_is_looked_at() {
    let key = TestKey::p256("k");
    let sized = |bytes: usize| {
        let around = key.claiming(&with("x", json!(""))).len();
        // Three bytes of claims are four characters.
        let filler = (bytes - around) / 4 * 3;
        key.claiming(&with("x", json!("a".repeat(filler))))
    };
    let fits = sized(MAX_TOKEN_BYTES);
    assert!((MAX_TOKEN_BYTES - 8..=MAX_TOKEN_BYTES).contains(&fits.len()), "{}", fits.len());
    assert_eq!(code(&key, &fits), "accepted");
    assert_eq!(code(&key, &sized(MAX_TOKEN_BYTES + 8)), "jwt_too_large");
    assert_eq!(code(&key, &".".repeat(MAX_TOKEN_BYTES + 1)), "jwt_too_large");
    assert_eq!(code(&key, &".".repeat(MAX_TOKEN_BYTES)), "jwt_form");
}

#[test]
fn a_refusal_says_why_in_few_words_and_without_control_characters() {
    let key = TestKey::p256("k");
    let long = "\u{1b}[31m".repeat(500);
    for token in [
        key.token(&json!({ "alg": long }).to_string(), "{}"),
        key.token(&json!({ "alg": "ES256", "typ": long }).to_string(), "{}"),
        key.token(&json!({ "alg": "ES256", long.as_str(): 1 }).to_string(), "{}"),
        key.token(&json!({ "alg": "ES256", "kid": long }).to_string(), &claims().to_string()),
        key.claiming(&with("sub", json!(long))),
        key.claiming(&with("exp", json!(long))),
    ] {
        let refusal = check(&key, &token).unwrap_err();
        let text = refusal.to_string();
        assert!(text.len() < 400, "{text}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}
