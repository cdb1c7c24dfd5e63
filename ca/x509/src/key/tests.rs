use super::*;
use crate::testing::TestKey;

const BASE_POINT_P256: &str = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

fn ec(point: &[u8]) -> Vec<u8> {
    let identifier = der::encode(der::SEQUENCE, &[EC_P256]);
    der::encode(der::SEQUENCE, &[&identifier, &der::encode(der::BIT_STRING, &[&[0], point])])
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let number = |value: &[u8]| der::encode(der::INTEGER, &[value]);
    let key = der::encode(der::SEQUENCE, &[&number(modulus), &number(exponent)]);
    let identifier = der::encode(der::SEQUENCE, &[RSA]);
    der::encode(der::SEQUENCE, &[&identifier, &der::encode(der::BIT_STRING, &[&[0], &key])])
}

/// A modulus of `bytes` bytes (after the leading zero) that is odd and has no fingerprint.
fn modulus(bytes: usize) -> Vec<u8> {
    let mut modulus = vec![0xc5; bytes + 1];
    modulus[0] = 0;
    modulus
}

const F4: &[u8] = &[1, 0, 1];

#[test]
fn the_base_point_of_p256_is_accepted_and_every_neighbour_is_not_on_the_curve() {
    let point = hex::decode(BASE_POINT_P256).unwrap();
    assert!(PublicKey::from_spki_der(&ec(&point)).is_ok());
    for at in 1..point.len() {
        let mut wrong = point.clone();
        wrong[at] ^= 1;
        assert_eq!(PublicKey::from_spki_der(&ec(&wrong)), Err(KeyError::PointNotOnCurve), "byte {at}");
    }
}

#[test]
fn generated_points_of_both_curves_are_on_them() {
    for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384] {
        for _ in 0..50 {
            let key = TestKey::new(algorithm).public;
            assert_eq!(key.algorithm(), algorithm);
            let mut point = key.bits().to_vec();
            *point.last_mut().unwrap() ^= 4;
            let refused = PublicKey::from_ec_point(algorithm, &point);
            assert_eq!(refused, Err(KeyError::PointNotOnCurve));
        }
    }
}

#[test]
fn coordinates_that_are_not_reduced_are_refused() {
    // (0, y) with y² = b is a point; x = p is the same number written differently.
    let y = "66485c780e2f83d72433bd5d84a06bb6541c2af31dae871728bf856a174f93f4";
    let prime = "ffffffff00000001000000000000000000000000ffffffffffffffffffffffff";
    let point = |x: &str| hex::decode(format!("04{x}{y}")).unwrap();
    assert!(PublicKey::from_spki_der(&ec(&point(&"00".repeat(32)))).is_ok());
    assert_eq!(PublicKey::from_spki_der(&ec(&point(prime))), Err(KeyError::PointNotOnCurve));
}

#[test]
fn only_uncompressed_points_are_accepted() {
    let point = hex::decode(BASE_POINT_P256).unwrap();
    let compressed = [&[3][..], &point[1..33]].concat();
    let hybrid = [&[7][..], &point[1..]].concat();
    for bad in [&compressed[..], &hybrid, &[0], &[], &point[..64]] {
        assert_eq!(PublicKey::from_spki_der(&ec(bad)), Err(KeyError::PointForm));
    }
}

#[test]
fn bytes_before_inside_or_after_a_key_are_refused() {
    let good = ec(&hex::decode(BASE_POINT_P256).unwrap());
    let after = [&good[..], &[0, 0]].concat();
    assert_eq!(PublicKey::from_spki_der(&after), Err(KeyError::TrailingData { bytes: 2 }));
    assert_eq!(PublicKey::from_spki_der(&[]), Err(KeyError::Malformed));
    let content = Reader::new(&good).value(der::SEQUENCE).unwrap();
    let inside = der::encode(der::SEQUENCE, &[content, &[5, 0]]);
    assert_eq!(PublicKey::from_spki_der(&inside), Err(KeyError::Malformed));
}

#[test]
fn rsa_is_accepted_from_2048_to_4096_bits() {
    for (bytes, accepted) in [(128, false), (255, false), (256, true), (384, true), (512, true), (513, false)]
    {
        let key = PublicKey::from_spki_der(&rsa(&modulus(bytes), F4));
        assert_eq!(key.is_ok(), accepted, "{} bits: {key:?}", bytes * 8);
    }
    let mut one_bit_less = modulus(256);
    one_bit_less[1] = 0x45;
    assert_eq!(PublicKey::from_spki_der(&rsa(&one_bit_less[1..], F4)), Err(KeyError::RsaSize { bits: 2047 }));
}

#[test]
fn rsa_exponents_are_odd_at_least_65537_and_at_most_33_bits() {
    for (exponent, accepted) in [
        (&[1][..], false),
        (&[3], false),
        (&[0, 0xff, 0xff], false),
        (&[1, 0, 0], false),
        (F4, true),
        (&[1, 0, 3], true),
        (&[1, 0xff, 0xff, 0xff, 0xff], true),
        (&[2, 0, 0, 0, 1], false),
        (&[1, 0, 0, 0, 0, 1], false),
    ] {
        let key = PublicKey::from_spki_der(&rsa(&modulus(256), exponent));
        let wanted = if accepted { None } else { Some(KeyError::RsaExponent) };
        assert_eq!(key.err(), wanted, "{exponent:02x?}");
    }
}

#[test]
fn rsa_numbers_are_positive_and_written_shortest() {
    let negative = &modulus(256)[1..];
    let padded = [&[0, 0][..], negative].concat();
    for bad in [negative, &padded, &[]] {
        assert_eq!(PublicKey::from_spki_der(&rsa(bad, F4)), Err(KeyError::Malformed));
    }
    let mut even = modulus(256);
    *even.last_mut().unwrap() = 0xc4;
    assert_eq!(PublicKey::from_spki_der(&rsa(&even, F4)), Err(KeyError::RsaModulusEven));
}

#[test]
fn a_modulus_with_the_roca_fingerprint_is_refused() {
    let spki = include_bytes!("../../testdata/roca.spki.der");
    assert_eq!(PublicKey::from_spki_der(spki), Err(KeyError::Roca));
}

#[test]
fn rsa_parameters_must_be_null() {
    let good = rsa(&modulus(256), F4);
    let absent = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    let bits = &good[4 + 15..];
    let key = der::encode(der::SEQUENCE, &[&der::encode(der::SEQUENCE, &[absent]), bits]);
    let oid = "1.2.840.113549.1.1.1".to_owned();
    assert_eq!(PublicKey::from_spki_der(&key), Err(KeyError::Unsupported { oid }));
}

#[test]
fn ed25519_keys_of_small_order_are_refused() {
    let key = |bits: &[u8]| {
        let identifier = der::encode(der::SEQUENCE, &[ED25519]);
        let bits = der::encode(der::BIT_STRING, &[&[0], bits]);
        PublicKey::from_spki_der(&der::encode(der::SEQUENCE, &[&identifier, &bits]))
    };
    let mut negative_one = [0xff; 32];
    negative_one[0] = 0xec;
    for small in [[0; 32], negative_one] {
        assert_eq!(key(&small), Err(KeyError::SmallOrderPoint));
    }
    assert_eq!(key(&[7; 31]), Err(KeyError::PointForm));
    assert_eq!(key(&[7; 32]).unwrap().algorithm(), KeyAlgorithm::Ed25519);
}

#[test]
fn a_signature_belongs_to_its_message_key_and_algorithm() {
    let (key, other) = (TestKey::p256(), TestKey::p256());
    let signature = Signature::external(key.sign(b"message"));
    let algorithm = SigningAlgorithm::EcdsaP256Sha256;
    assert_eq!(key.public.verify(b"message", &signature, algorithm), Ok(()));
    assert_eq!(key.public.verify(b"massage", &signature, algorithm), Err(SignatureError::Invalid));
    assert_eq!(other.public.verify(b"message", &signature, algorithm), Err(SignatureError::Invalid));
    let wrong = SigningAlgorithm::EcdsaP384Sha384;
    assert_eq!(key.public.verify(b"message", &signature, wrong), Err(SignatureError::WrongKey));
}

#[test]
fn a_key_is_named_by_its_digest_and_never_printed_whole() {
    let key = TestKey::p256().public;
    assert_eq!(key.digest(), der::sha256(key.spki_der()));
    assert_eq!(key.key_identifier(), key.digest().as_bytes()[..20]);
    assert_eq!(format!("{key:?}"), format!("PublicKey(ECDSA P-256, sha256 {})", key.digest()));
}

#[test]
fn signing_algorithms_have_stable_names() {
    for (algorithm, name) in
        [(SigningAlgorithm::EcdsaP256Sha256, "ecdsa-p256"), (SigningAlgorithm::EcdsaP384Sha384, "ecdsa-p384")]
    {
        assert_eq!(serde_json::to_value(algorithm).unwrap(), name);
        assert_eq!(algorithm.to_string(), name);
    }
    assert_eq!(SigningAlgorithm::default(), SigningAlgorithm::EcdsaP256Sha256);
}
