//! The algorithms of JOSE that a JWT-SVID may name, and how each verifies.
//!
//! Laws: an algorithm is chosen by the token's header but must belong to the key (RFC 8725 §3.1), so no key is ever used
//! for two families; `none`, the HMACs and EdDSA have no value of this type (JWT-SVID §2.1).
//! ES512 is in the list of JWT-SVID §2.1 but needs P-521, which ring does not do: it is refused, as are such keys.
//! Sources: RFC 7518 §3.1–§3.5.

use rhizome_x509::{KeyAlgorithm, PublicKey, SigningAlgorithm};
use ring::signature as ring_signature;

/// A signature algorithm of JWT-SVID §2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JwsAlgorithm {
    Es256,
    Es384,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
}

impl JwsAlgorithm {
    pub(crate) const ALL: [Self; 8] = [
        Self::Es256,
        Self::Es384,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// The value of `alg` (RFC 7518 §3.1).
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    /// By the value of `alg`, which is case-sensitive (RFC 7515 §4.1.1).
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// What our own authorities sign with.
    pub(crate) const fn of(signing: SigningAlgorithm) -> Self {
        match signing {
            SigningAlgorithm::EcdsaP256Sha256 => Self::Es256,
            SigningAlgorithm::EcdsaP384Sha384 => Self::Es384,
        }
    }

    /// Whether a key of this kind may be used with this algorithm.
    pub(crate) const fn fits(self, key: KeyAlgorithm) -> bool {
        match self {
            Self::Es256 => matches!(key, KeyAlgorithm::EcdsaP256),
            Self::Es384 => matches!(key, KeyAlgorithm::EcdsaP384),
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => {
                matches!(key, KeyAlgorithm::Rsa { .. })
            }
        }
    }

    /// Whether `signature`, in the form JOSE gives it, is the key's over `message`. False too for a key that does not fit.
    pub(crate) fn verifies(self, key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
        if !self.fits(key.algorithm()) {
            return false;
        }
        let verifier: &'static dyn ring_signature::VerificationAlgorithm = match self {
            Self::Es256 => &ring_signature::ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &ring_signature::ECDSA_P384_SHA384_FIXED,
            Self::Rs256 => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &ring_signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &ring_signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &ring_signature::RSA_PSS_2048_8192_SHA512,
        };
        let key = ring_signature::UnparsedPublicKey::new(verifier, key.bits());
        key.verify(message, signature).is_ok()
    }
}

/// Turns an `ECDSA-Sig-Value` in DER into the form JOSE wants: both numbers in full width, one after the other
/// (RFC 7518 §3.4). `None` when it is not such a signature, in DER, for the curve.
pub(crate) fn fixed_form(der: &[u8], algorithm: SigningAlgorithm) -> Option<Vec<u8>> {
    let width = match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => 32,
        SigningAlgorithm::EcdsaP384Sha384 => 48,
    };
    // At most 2 × 51 bytes, so every length is one byte below 0x80 (X.690 §8.1.3.4).
    let [0x30, length @ 0..0x80, rest @ ..] = der else { return None };
    if usize::from(*length) != rest.len() {
        return None;
    }
    let mut fixed = Vec::with_capacity(width * 2);
    let rest = append_number(&mut fixed, rest, width)?;
    let rest = append_number(&mut fixed, rest, width)?;
    rest.is_empty().then_some(fixed)
}

/// Reads one positive INTEGER of at most `width` bytes and appends it in full width; gives what follows it.
fn append_number<'a>(to: &mut Vec<u8>, der: &'a [u8], width: usize) -> Option<&'a [u8]> {
    let [0x02, length @ 0..0x80, rest @ ..] = der else { return None };
    let (number, rest) = rest.split_at_checked(usize::from(*length))?;
    let digits = match number {
        [1..=0x7f, ..] => number,
        [0, digits @ ..] if matches!(digits, [0x80..=0xff, ..]) => digits,
        _ => return None,
    };
    let zeros = width.checked_sub(digits.len())?;
    to.extend(std::iter::repeat_n(0, zeros));
    to.extend_from_slice(digits);
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;

    #[test]
    fn only_the_algorithms_of_the_specification_have_a_name_here() {
        for algorithm in JwsAlgorithm::ALL {
            assert_eq!(JwsAlgorithm::named(algorithm.name()), Some(algorithm));
        }
        for name in
            ["none", "None", "", "HS256", "HS384", "HS512", "EdDSA", "ES256K", "ES512", "es256", "ES256 "]
        {
            assert_eq!(JwsAlgorithm::named(name), None, "{name}");
        }
    }

    #[test]
    fn a_short_number_is_filled_up_and_a_sign_byte_is_dropped() {
        let fixed = fixed_form(b"\x30\x07\x02\x01\x05\x02\x02\x00\x80", P256).unwrap();
        assert_eq!(fixed.len(), 64);
        assert_eq!((fixed[31], fixed[63]), (5, 0x80));
        assert!(fixed[..31].iter().chain(&fixed[32..63]).all(|byte| *byte == 0));
    }

    #[test]
    fn signatures_that_are_not_der_for_the_curve_are_refused() {
        let long = [b"\x30\x26\x02\x21\x7f".as_slice(), &[1; 32], b"\x02\x01\x01"].concat();
        let bad: [&[u8]; 11] = [
            b"",
            b"\x30",
            b"\x30\x00",
            b"\x30\x06\x02\x01\x05\x02\x01\x05\x00",
            b"\x30\x05\x02\x01\x05\x02\x01\x05",
            b"\x30\x06\x02\x01\x00\x02\x01\x05",
            b"\x30\x06\x02\x01\x80\x02\x01\x05",
            b"\x30\x07\x02\x02\x00\x05\x02\x01\x05",
            b"\x30\x81\x06\x02\x01\x05\x02\x01\x05",
            b"\x31\x06\x02\x01\x05\x02\x01\x05",
            &long,
        ];
        for signature in bad {
            assert_eq!(fixed_form(signature, P256), None, "{signature:02x?}");
        }
    }
}
