//! A token that nobody signed is never believed; one that is well signed is believed only with one reading, the
//! audience asked for, and a life ahead. Half of the effort goes below the signature: header and claims around a zero.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use rhizome_id::{Timestamp, TrustDomain};
use rhizome_jwt::{MAX_TOKEN_BYTES, ValidatedJwt, validate};
use rhizome_x509::{JwtKey, KeyAlgorithm, RequestKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

const AUDIENCE: &str = "reports";
/// 2027-01-15T08:00:00Z.
const NOW: i64 = 1_800_000_000;

static KEY: LazyLock<(EcdsaKeyPair, [JwtKey; 1])> = LazyLock::new(|| {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.pkcs8_der(), &SystemRandom::new());
    let public = JwtKey::new("k".to_owned(), key.public_key().clone(), Timestamp::MAX).unwrap();
    (pair.unwrap(), [public])
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = str::from_utf8(bytes) {
        assert!(check(text).is_none(), "nobody signed it");
    }
    let Some(zero) = bytes.iter().position(|byte| *byte == 0) else { return };
    let (header, claims) = (&bytes[..zero], &bytes[zero + 1..]);
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = KEY.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature));
    let Some(valid) = check(&token) else { return };
    assert!(token.len() <= MAX_TOKEN_BYTES);
    assert_eq!(valid.spiffe_id().trust_domain().as_str(), "example.org");
    assert!(valid.audiences().iter().any(|audience| audience == AUDIENCE));
    assert!(valid.expires_at().unix() > NOW);
    // What a lenient reader of the same bytes sees is the same.
    let lenient: serde_json::Value = serde_json::from_slice(claims).unwrap();
    assert_eq!(lenient.as_object(), Some(valid.claims()));
    assert_eq!(lenient["sub"], valid.spiffe_id().as_str());
    assert_eq!(lenient["exp"], valid.expires_at().unix());
    assert!(check(&format!("{token}A")).is_none());
});

fn check(token: &str) -> Option<ValidatedJwt> {
    let keys_of = |domain: &TrustDomain| (domain.as_str() == "example.org").then_some(&KEY.1[..]);
    match validate(token, AUDIENCE, keys_of, Timestamp::from_unix(NOW)) {
        Ok(valid) => Some(valid),
        Err(refusal) => {
            assert!(!refusal.code().is_empty());
            assert!(refusal.to_string().len() < 2_000);
            None
        }
    }
}
