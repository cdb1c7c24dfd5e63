//! Is a point on P-256 or P-384? ring asks only when it uses a key; we ask before we accept one.
//!
//! Laws: y² = x³ − 3x + b over the field, both coordinates reduced (SEC 1 §3.2.2.1). Values are public, so nothing
//! here needs constant time. Sources: FIPS 186-5 / SP 800-186 §3.2.1 (the constants), Montgomery CIOS multiplication.

use super::KeyError;

/// A prime field of `N` 64-bit limbs (little-endian) with a curve over it.
struct Curve<const N: usize> {
    prime: [u64; N],
    /// −prime⁻¹ mod 2⁶⁴.
    negative_inverse: u64,
    /// 2^(128·N) mod prime: takes a number into Montgomery form.
    r_squared: [u64; N],
    /// b of the curve in Montgomery form.
    b: [u64; N],
}

const P256: Curve<4> = Curve {
    prime: [0xffff_ffff_ffff_ffff, 0xffff_ffff, 0, 0xffff_ffff_0000_0001],
    negative_inverse: 1,
    r_squared: [3, 0xffff_fffb_ffff_ffff, 0xffff_ffff_ffff_fffe, 0x4_ffff_fffd],
    b: [0xd89c_df62_29c4_bddf, 0xacf0_05cd_7884_3090, 0xe5a2_20ab_f721_2ed6, 0xdc30_061d_0487_4834],
};

const P384: Curve<6> = Curve {
    prime: [
        0xffff_ffff,
        0xffff_ffff_0000_0000,
        0xffff_ffff_ffff_fffe,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_ffff_ffff,
    ],
    negative_inverse: 0x1_0000_0001,
    r_squared: [0xffff_fffe_0000_0001, 0x2_0000_0000, 0xffff_fffe_0000_0000, 0x2_0000_0000, 1, 0],
    b: [
        0x0811_8871_9d41_2dcc,
        0xf729_add8_7a4c_32ec,
        0x77f2_209b_1920_022e,
        0xe337_4bee_9493_8ae2,
        0xb62b_21f4_1f02_2094,
        0xcd08_114b_604f_bff9,
    ],
};

pub(super) fn check_p256(point: &[u8]) -> Result<(), KeyError> {
    P256.check(point)
}

pub(super) fn check_p384(point: &[u8]) -> Result<(), KeyError> {
    P384.check(point)
}

impl<const N: usize> Curve<N> {
    fn check(&self, point: &[u8]) -> Result<(), KeyError> {
        // RFC 5480 §2.2: 04 is the uncompressed form; the point at infinity has no such form.
        let Some((0x04, coordinates)) = point.split_first() else {
            return Err(KeyError::PointForm);
        };
        if coordinates.len() != 16 * N {
            return Err(KeyError::PointForm);
        }
        let (x, y) = coordinates.split_at_checked(8 * N).ok_or(KeyError::PointForm)?;
        let (x, y) = (limbs(x), limbs(y));
        if !self.is_reduced(&x) || !self.is_reduced(&y) {
            return Err(KeyError::PointNotOnCurve);
        }
        let (x, y) = (self.multiply(&x, &self.r_squared), self.multiply(&y, &self.r_squared));
        let cube = self.multiply(&self.multiply(&x, &x), &x);
        let three_x = self.add(&self.add(&x, &x), &x);
        // y² + 3x = x³ + b: no subtraction needed.
        if self.add(&self.multiply(&y, &y), &three_x) == self.add(&cube, &self.b) {
            Ok(())
        } else {
            Err(KeyError::PointNotOnCurve)
        }
    }

    fn is_reduced(&self, value: &[u64; N]) -> bool {
        value.iter().rev().lt(self.prime.iter().rev())
    }

    fn add(&self, a: &[u64; N], b: &[u64; N]) -> [u64; N] {
        let mut sum = *a;
        let mut carry = false;
        for (digit, addend) in sum.iter_mut().zip(b) {
            (*digit, carry) = digit.carrying_add(*addend, carry);
        }
        self.reduce(sum, carry)
    }

    /// a · b · 2^(−64·N) mod prime.
    #[expect(clippy::indexing_slicing, reason = "every index is below N, the length of all arrays here")]
    fn multiply(&self, a: &[u64; N], b: &[u64; N]) -> [u64; N] {
        let mut sum = [0u64; N];
        let mut top = 0u64;
        for &factor in b {
            let mut carry = 0;
            for (digit, &other) in sum.iter_mut().zip(a) {
                (*digit, carry) = other.carrying_mul_add(factor, *digit, carry);
            }
            let (high, over) = top.overflowing_add(carry);
            let quotient = sum[0].wrapping_mul(self.negative_inverse);
            let (_zero, mut carry) = self.prime[0].carrying_mul_add(quotient, sum[0], 0);
            for index in 1..N {
                (sum[index - 1], carry) = self.prime[index].carrying_mul_add(quotient, sum[index], carry);
            }
            let (high, over_again) = high.overflowing_add(carry);
            sum[N - 1] = high;
            top = u64::from(over) + u64::from(over_again);
        }
        self.reduce(sum, top != 0)
    }

    /// Subtracts the prime once if the value, with its carry, is not below it.
    fn reduce(&self, value: [u64; N], carry: bool) -> [u64; N] {
        if !carry && self.is_reduced(&value) {
            return value;
        }
        let mut reduced = value;
        let mut borrow = false;
        for (digit, subtrahend) in reduced.iter_mut().zip(&self.prime) {
            (*digit, borrow) = digit.borrowing_sub(*subtrahend, borrow);
        }
        reduced
    }
}

/// Big-endian bytes as little-endian limbs.
fn limbs<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut out = [0; N];
    for (limb, chunk) in out.iter_mut().zip(bytes.rchunks(8)) {
        *limb = chunk.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    }
    out
}
