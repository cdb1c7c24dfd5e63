//! RSA keys: size, exponent, and the fingerprint of moduli made by the library of CVE-2017-15361 (ROCA).
//!
//! Sources: RFC 8017 §A.1.1; Nemec et al., "The Return of Coppersmith's Attack" (2017) §3.3: such a modulus is, modulo
//! each small prime, a power of 65537.

use super::KeyError;
use crate::der::{self, Reader};

/// Checks an RSAPublicKey in DER and gives the bits of its modulus.
pub(super) fn check(bits: &[u8]) -> Result<u32, KeyError> {
    let (modulus, exponent) = numbers(bits)?;
    let size = bit_length(modulus);
    let accepted = u32::try_from(size).ok().filter(|size| (2048..=4096).contains(size));
    let Some(accepted) = accepted else {
        return Err(KeyError::RsaSize { bits: size });
    };
    if exponent.len() > 5 {
        return Err(KeyError::RsaExponent);
    }
    let exponent = exponent.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    if exponent & 1 == 0 || !(65_537..1 << 33).contains(&exponent) {
        return Err(KeyError::RsaExponent);
    }
    if modulus.last().is_none_or(|last| last & 1 == 0) {
        return Err(KeyError::RsaModulusEven);
    }
    if has_roca_fingerprint(modulus) {
        return Err(KeyError::Roca);
    }
    Ok(accepted)
}

/// Modulus and exponent of an RSAPublicKey in DER, as magnitudes.
pub(super) fn numbers(bits: &[u8]) -> Result<(&[u8], &[u8]), KeyError> {
    let mut outer = Reader::new(bits);
    let mut inner = outer.enter(der::SEQUENCE)?;
    outer.finish()?;
    let modulus = positive(inner.value(der::INTEGER)?)?;
    let exponent = positive(inner.value(der::INTEGER)?)?;
    inner.finish()?;
    Ok((modulus, exponent))
}

/// The RSAPublicKey in DER with these magnitudes. Whether it is a key is for [`check`] to say.
pub(super) fn encode(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let integer = |magnitude: &[u8]| {
        let zeros = magnitude.iter().take_while(|byte| **byte == 0).count();
        let shortest = magnitude.get(zeros..).unwrap_or_default();
        let sign: &[u8] = if shortest.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
        der::encode(der::INTEGER, &[sign, shortest])
    };
    der::encode(der::SEQUENCE, &[&integer(modulus), &integer(exponent)])
}

/// The magnitude of a positive INTEGER in its shortest form (X.690 §8.3.2).
fn positive(content: &[u8]) -> Result<&[u8], KeyError> {
    match content {
        [0, magnitude @ ..] if magnitude.first().is_some_and(|first| *first >= 0x80) => Ok(magnitude),
        [1..=0x7f, ..] => Ok(content),
        _ => Err(KeyError::Malformed),
    }
}

fn bit_length(magnitude: &[u8]) -> u64 {
    let zeros = magnitude.first().map_or(0, |first| u64::from(first.leading_zeros()));
    u64::try_from(magnitude.len()).unwrap_or(u64::MAX).saturating_mul(8).saturating_sub(zeros)
}

/// The odd primes the fingerprint looks at, up to 167. For a random modulus the chance of a match is about 2⁻²⁷.
const PRIMES: [u16; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103,
    107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

/// Almost every modulus fails at one of the first primes, so this costs a few hundred nanoseconds.
fn has_roca_fingerprint(modulus: &[u8]) -> bool {
    PRIMES.iter().all(|prime| {
        let prime = u32::from(*prime);
        let remainder = modulus.iter().fold(0u32, |value, byte| (value << 8 | u32::from(*byte)) % prime);
        let generator = 65_537 % prime;
        let mut power = 1;
        loop {
            if power == remainder {
                return true;
            }
            power = power * generator % prime;
            if power == 1 {
                return false;
            }
        }
    })
}
