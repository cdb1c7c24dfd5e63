//! What every key ring promises, as one suite: a backend that passes it may be plugged in, and what it does not test is
//! not promised.
//!
//! Use: `conformance::suite(|| async { MyRing::new() }).await` in a test; for rings that outlive a process also
//! [`survives_reopening`]. Laws: the suite knows nothing but the port. A broken promise panics with its sentence.

#![expect(clippy::panic, reason = "a suite for tests: a broken promise fails the test that runs it")]

use std::fmt::Debug;

use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRing, KeyRingError};
use rhizome_id::KeyId;
use rhizome_x509::{Provenance, SigningAlgorithm, probe_for};

const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;
const P384: SigningAlgorithm = SigningAlgorithm::EcdsaP384Sha384;

/// Holds a ring to every promise of the port; `make` gives an empty ring each time.
///
/// # Panics
/// When a promise is broken.
pub async fn suite<R: KeyRing, F: Future<Output = R>>(make: impl Fn() -> F) {
    an_empty_ring_has_no_keys(&make().await).await;
    a_key_signs_what_its_public_key_verifies(&make().await).await;
    two_keys_are_different(&make().await).await;
    generating_again_gives_the_key_that_is_there(&make().await).await;
    a_key_of_another_purpose_or_algorithm_is_a_mismatch(&make().await).await;
    bytes_for_another_algorithm_are_not_signed(&make().await).await;
    keys_are_listed_in_the_order_of_names(&make().await).await;
    a_destroyed_key_is_gone_and_destroying_is_idempotent(&make().await).await;
    a_name_destroyed_may_be_used_again_for_a_new_key(&make().await).await;
    many_callers_who_ask_for_one_name_get_one_key(&make().await).await;
    a_key_for_tokens_signs_tokens_that_its_public_key_verifies(&make().await).await;
    a_key_for_tokens_never_signs_a_certificate(&make().await).await;
    a_key_for_certificates_never_signs_a_token(&make().await).await;
}

/// Holds a durable ring to its durability: `open` opens the same, initially empty, storage each time.
///
/// # Panics
/// When a promise is broken.
pub async fn survives_reopening<R: KeyRing, F: Future<Output = R>>(open: impl Fn() -> F) {
    let ring = open().await;
    let root = made(&ring, "root-1", KeyPurpose::Root, P384).await;
    let issuer = made(&ring, "issuer-1", KeyPurpose::Issuer, P256).await;
    let jwt = made(&ring, "jwt-1", KeyPurpose::Jwt, P256).await;
    let gone = made(&ring, "gone", KeyPurpose::Issuer, P256).await;
    must(ring.destroy(&gone.id).await, "a key is destroyed");
    drop(ring);
    let ring = open().await;
    let found = must(ring.keys().await, "keys are listed after reopening");
    assert_eq!(
        found,
        [issuer.clone(), jwt.clone(), root.clone()],
        "exactly the keys that were not destroyed are there again"
    );
    proves(&ring, &root).await;
    proves(&ring, &issuer).await;
    proves_tokens(&ring, &jwt).await;
    let refused = ring.sign(&jwt.id, &probe_for(P256)).await;
    assert!(
        matches!(refused, Err(KeyRingError::Mismatch { .. })),
        "what a key is for survives reopening: a key for tokens still signs no certificate"
    );
    let again = made(&ring, "issuer-1", KeyPurpose::Issuer, P256).await;
    assert_eq!(again, issuer, "generating a key that survived gives the same key");
}

async fn an_empty_ring_has_no_keys(ring: &impl KeyRing) {
    assert_eq!(ring.keys().await, Ok(Vec::new()), "an empty ring lists nothing");
    let id = name("none");
    let missing = KeyRingError::NotFound { id: id.clone() };
    assert_eq!(ring.key(&id).await, Err(missing.clone()), "an unknown key is not found");
    assert_eq!(ring.sign(&id, &probe_for(P256)).await, Err(missing), "an unknown key does not sign");
    assert_eq!(ring.destroy(&id).await, Ok(()), "an unknown key is destroyed already");
}

async fn a_key_signs_what_its_public_key_verifies(ring: &impl KeyRing) {
    for (id, algorithm) in [("p256", P256), ("p384", P384)] {
        let info = made(ring, id, KeyPurpose::Issuer, algorithm).await;
        assert_eq!(
            (info.id.as_str(), info.purpose, info.algorithm),
            (id, KeyPurpose::Issuer, algorithm),
            "a key is what was asked for"
        );
        let kind = SigningAlgorithm::of_key(info.public_key.algorithm());
        assert_eq!(kind, Some(algorithm), "the public key is of the algorithm");
        assert_eq!(ring.key(&info.id).await, Ok(info.clone()), "a key is found again");
        proves(ring, &info).await;
    }
}

async fn two_keys_are_different(ring: &impl KeyRing) {
    let one = made(ring, "one", KeyPurpose::Root, P256).await;
    let two = made(ring, "two", KeyPurpose::Root, P256).await;
    assert_ne!(one.public_key, two.public_key, "two keys are different");
    let probe = probe_for(P256);
    let signature = must(ring.sign(&one.id, &probe).await, "a key signs");
    let crossed = two.public_key.verify(probe.as_bytes(), &signature, P256);
    assert!(crossed.is_err(), "one key's signature is not another's");
}

async fn generating_again_gives_the_key_that_is_there(ring: &impl KeyRing) {
    let first = made(ring, "k", KeyPurpose::Root, P256).await;
    let second = made(ring, "k", KeyPurpose::Root, P256).await;
    assert_eq!(first, second, "generating is idempotent");
}

async fn a_key_of_another_purpose_or_algorithm_is_a_mismatch(ring: &impl KeyRing) {
    let first = made(ring, "k", KeyPurpose::Root, P256).await;
    for (purpose, algorithm) in
        [(KeyPurpose::Issuer, P256), (KeyPurpose::Jwt, P256), (KeyPurpose::Root, P384)]
    {
        let refused = ring.generate(&first.id, purpose, algorithm).await;
        assert!(
            matches!(refused, Err(KeyRingError::Mismatch { .. })),
            "a name has one purpose and algorithm"
        );
    }
    assert_eq!(ring.key(&first.id).await, Ok(first.clone()), "a refused request changes nothing");
}

async fn bytes_for_another_algorithm_are_not_signed(ring: &impl KeyRing) {
    for (id, own, other) in [("a", P256, P384), ("b", P384, P256)] {
        let info = made(ring, id, KeyPurpose::Issuer, own).await;
        let refused = ring.sign(&info.id, &probe_for(other)).await;
        assert!(matches!(refused, Err(KeyRingError::Mismatch { .. })), "bytes say what signs them");
    }
}

async fn keys_are_listed_in_the_order_of_names(ring: &impl KeyRing) {
    let mut made_keys = Vec::new();
    for id in ["c", "a", "B", "a.b", "a-b"] {
        made_keys.push(made(ring, id, KeyPurpose::Issuer, P256).await);
    }
    made_keys.sort_by(|one, other| one.id.cmp(&other.id));
    assert_eq!(ring.keys().await, Ok(made_keys), "every key is listed, in order");
}

async fn a_destroyed_key_is_gone_and_destroying_is_idempotent(ring: &impl KeyRing) {
    let kept = made(ring, "kept", KeyPurpose::Issuer, P256).await;
    let info = made(ring, "k", KeyPurpose::Issuer, P256).await;
    for _ in 0..2 {
        assert_eq!(ring.destroy(&info.id).await, Ok(()), "destroying is idempotent");
        let missing = KeyRingError::NotFound { id: info.id.clone() };
        assert_eq!(ring.key(&info.id).await, Err(missing.clone()), "a destroyed key is not found");
        let refused = ring.sign(&info.id, &probe_for(P256)).await;
        assert_eq!(refused, Err(missing), "a destroyed key does not sign");
    }
    assert_eq!(ring.keys().await, Ok(vec![kept]), "other keys stay");
}

async fn a_name_destroyed_may_be_used_again_for_a_new_key(ring: &impl KeyRing) {
    let first = made(ring, "k", KeyPurpose::Issuer, P256).await;
    must(ring.destroy(&first.id).await, "a key is destroyed");
    let second = made(ring, "k", KeyPurpose::Root, P384).await;
    assert_ne!(first.public_key, second.public_key, "a destroyed key never comes back");
}

async fn many_callers_who_ask_for_one_name_get_one_key(ring: &impl KeyRing) {
    let ask = || made(ring, "k", KeyPurpose::Issuer, P256);
    let (a, b, c, d) = tokio::join!(ask(), ask(), ask(), ask());
    assert!(a == b && b == c && c == d, "callers at the same time get one key");
}

async fn a_key_for_tokens_signs_tokens_that_its_public_key_verifies(ring: &impl KeyRing) {
    for (id, algorithm, other) in [("p256", P256, P384), ("p384", P384, P256)] {
        let info = made(ring, id, KeyPurpose::Jwt, algorithm).await;
        assert_eq!(info.purpose, KeyPurpose::Jwt, "a key is what was asked for");
        proves_tokens(ring, &info).await;
        let refused = ring.sign_token(&info.id, &rhizome_jwt::probe_for(other)).await;
        assert!(matches!(refused, Err(KeyRingError::Mismatch { .. })), "tokens say what signs them");
    }
    let id = name("none");
    let missing = Err(KeyRingError::NotFound { id: id.clone() });
    let refused = ring.sign_token(&id, &rhizome_jwt::probe_for(P256)).await;
    assert_eq!(refused, missing, "an unknown key signs no token");
}

async fn a_key_for_tokens_never_signs_a_certificate(ring: &impl KeyRing) {
    for (id, algorithm) in [("a", P256), ("b", P384)] {
        let info = made(ring, id, KeyPurpose::Jwt, algorithm).await;
        let refused = ring.sign(&info.id, &probe_for(algorithm)).await;
        assert!(
            matches!(refused, Err(KeyRingError::Mismatch { .. })),
            "a key for tokens never signs a certificate"
        );
    }
}

async fn a_key_for_certificates_never_signs_a_token(ring: &impl KeyRing) {
    for (id, purpose) in [("root", KeyPurpose::Root), ("issuer", KeyPurpose::Issuer)] {
        let info = made(ring, id, purpose, P256).await;
        let refused = ring.sign_token(&info.id, &rhizome_jwt::probe_for(P256)).await;
        assert!(
            matches!(refused, Err(KeyRingError::Mismatch { .. })),
            "a key for certificates never signs a token"
        );
    }
}

async fn made(ring: &impl KeyRing, id: &str, purpose: KeyPurpose, algorithm: SigningAlgorithm) -> KeyInfo {
    must(ring.generate(&name(id), purpose, algorithm).await, "a key is made")
}

async fn proves(ring: &impl KeyRing, info: &KeyInfo) {
    let probe = probe_for(info.algorithm);
    let signature = must(ring.sign(&info.id, &probe).await, "a key signs");
    let verified = info.public_key.verify(probe.as_bytes(), &signature, info.algorithm);
    assert_eq!(verified, Ok(()), "the public key verifies what the private key signed");
    let known = [Provenance::InProcess, Provenance::External];
    assert!(known.contains(&signature.provenance()), "a signature says where it was made");
}

async fn proves_tokens(ring: &impl KeyRing, info: &KeyInfo) {
    let probe = rhizome_jwt::probe_for(info.algorithm);
    let signature = must(ring.sign_token(&info.id, &probe).await, "a key signs tokens");
    let verified = info.public_key.verify(probe.as_bytes(), &signature, info.algorithm);
    assert_eq!(verified, Ok(()), "the public key verifies what the private key signed");
}

fn name(text: &str) -> KeyId {
    must(text.parse(), "a name in this suite is valid")
}

fn must<T, E: Debug>(outcome: Result<T, E>, promise: &str) -> T {
    outcome.unwrap_or_else(|error| panic!("broken promise: {promise}: {error:?}"))
}
