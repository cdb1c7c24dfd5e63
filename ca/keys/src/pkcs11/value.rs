//! Signatures and public keys, between the forms of PKCS#11 and those of certificates.
//!
//! Laws: a form that is not exactly as expected gives nothing.
//! Sources: PKCS #11 v3.1 §2.3.1 (signature r‖s), §2.3.3 (CKA_EC_PARAMS, CKA_EC_POINT); RFC 3279 §2.2.3; X.690 §8.3.

use rhizome_x509::SigningAlgorithm;
use ring::digest;

/// DER of the object identifier secp256r1.
const SECP256R1: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
/// DER of the object identifier secp384r1.
const SECP384R1: &[u8] = b"\x06\x05\x2b\x81\x04\x00\x22";

/// What the token signs.
pub(super) fn digest(algorithm: SigningAlgorithm, bytes: &[u8]) -> Vec<u8> {
    let hash = match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => &digest::SHA256,
        SigningAlgorithm::EcdsaP384Sha384 => &digest::SHA384,
    };
    digest::digest(hash, bytes).as_ref().to_vec()
}

/// The curve's parameters, DER.
pub(super) const fn parameters(algorithm: SigningAlgorithm) -> &'static [u8] {
    match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => SECP256R1,
        SigningAlgorithm::EcdsaP384Sha384 => SECP384R1,
    }
}

/// The algorithm of a curve.
pub(super) fn algorithm(parameters: &[u8]) -> Option<SigningAlgorithm> {
    match parameters {
        SECP256R1 => Some(SigningAlgorithm::EcdsaP256Sha256),
        SECP384R1 => Some(SigningAlgorithm::EcdsaP384Sha384),
        _ => None,
    }
}

/// Bytes of a coordinate, and of each half of a signature.
const fn width(algorithm: SigningAlgorithm) -> usize {
    match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => 32,
        SigningAlgorithm::EcdsaP384Sha384 => 48,
    }
}

/// The uncompressed point in CKA_EC_POINT: a DER octet string, or bare as some modules give it.
pub(super) fn point(algorithm: SigningAlgorithm, given: &[u8]) -> Option<&[u8]> {
    let length = width(algorithm).checked_mul(2)?.checked_add(1)?;
    let bare = match given {
        bare if bare.len() == length => bare,
        [0x04, inner, bare @ ..] if usize::from(*inner) == length && bare.len() == length => bare,
        _ => return None,
    };
    bare.starts_with(&[0x04]).then_some(bare)
}

/// DER of `ECDSA-Sig-Value` from r‖s of equal halves.
pub(super) fn signature(algorithm: SigningAlgorithm, halves: &[u8]) -> Option<Vec<u8>> {
    let width = width(algorithm);
    if halves.len() != width.checked_mul(2)? {
        return None;
    }
    let (r, s) = halves.split_at_checked(width)?;
    let numbers = [integer(r)?, integer(s)?].concat();
    // At most 2 × (2 + 49) = 102 bytes: the short form of a length.
    let mut der = vec![0x30, u8::try_from(numbers.len()).ok()?];
    der.extend(numbers);
    Some(der)
}

/// A positive INTEGER. Zero is no half of a signature.
fn integer(bytes: &[u8]) -> Option<Vec<u8>> {
    let first = bytes.iter().position(|byte| *byte != 0)?;
    let (_zeros, number) = bytes.split_at_checked(first)?;
    let sign = number.first().is_some_and(|byte| *byte >= 0x80);
    let length = number.len().checked_add(usize::from(sign))?;
    let mut der = vec![0x02, u8::try_from(length).ok()?];
    der.extend(sign.then_some(0));
    der.extend(number);
    Some(der)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;
    const P384: SigningAlgorithm = SigningAlgorithm::EcdsaP384Sha384;

    #[test]
    fn halves_become_the_shortest_positive_integers() {
        let mut halves = [0; 64];
        halves[31] = 0x7f;
        halves[62..].copy_from_slice(&[0x80, 0x01]);
        let der = signature(P256, &halves).unwrap();
        assert_eq!(der, [0x30, 8, 0x02, 1, 0x7f, 0x02, 3, 0x00, 0x80, 0x01]);
    }

    #[test]
    fn the_largest_halves_of_both_curves_fit() {
        for (algorithm, width) in [(P256, 32), (P384, 48)] {
            let der = signature(algorithm, &vec![0xff; 2 * width]).unwrap();
            assert_eq!(der.len(), 2 + 2 * (2 + 1 + width));
            assert_eq!(usize::from(der[1]), der.len() - 2);
        }
    }

    #[test]
    fn other_lengths_and_zeros_give_nothing() {
        for length in [0, 1, 63, 65, 96] {
            assert_eq!(signature(P256, &vec![1; length]), None, "{length}");
        }
        assert_eq!(signature(P256, &[0; 64]), None);
        let mut half = [1; 64];
        half[..32].fill(0);
        assert_eq!(signature(P256, &half), None);
    }

    #[test]
    fn points_are_read_wrapped_and_bare_and_nothing_else_is() {
        for (algorithm, length) in [(P256, 65_u8), (P384, 97)] {
            let mut bare = vec![4; usize::from(length)];
            let wrapped = [&[4, length], bare.as_slice()].concat();
            assert_eq!(point(algorithm, &bare), Some(bare.as_slice()));
            assert_eq!(point(algorithm, &wrapped), Some(bare.as_slice()));
            assert_eq!(point(algorithm, &wrapped[1..]), None);
            assert_eq!(point(algorithm, &bare[1..]), None);
            bare[0] = 2;
            assert_eq!(point(algorithm, &bare), None, "compressed points are not taken");
        }
    }

    #[test]
    fn curves_are_told_by_their_parameters() {
        for known in [P256, P384] {
            assert_eq!(algorithm(parameters(known)), Some(known));
        }
        assert_eq!(algorithm(b"\x06\x05\x2b\x81\x04\x00\x23"), None, "secp521r1");
    }
}
