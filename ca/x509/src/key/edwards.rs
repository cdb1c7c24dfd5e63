//! Ed25519 keys: 32 bytes, and not one of the few points whose order divides eight.
//!
//! Sources: RFC 8032 §5.1.3, RFC 8410 §4; the list is every encoding of a small-order point, reduced or not, without
//! the sign bit.

use super::KeyError;

pub(super) fn check(bits: &[u8]) -> Result<(), KeyError> {
    let mut key: [u8; 32] = bits.try_into().map_err(|_length| KeyError::PointForm)?;
    if let Some(last) = key.last_mut() {
        *last &= 0x7f;
    }
    if SMALL_ORDER.contains(&key) {
        return Err(KeyError::SmallOrderPoint);
    }
    Ok(())
}

const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    ends(0x01, 0x00, 0x00),
    *b"\x26\xe8\x95\x8f\xc2\xb2\x27\xb0\x45\xc3\xf4\x89\xf2\xef\x98\xf0\xd5\xdf\xac\x05\xd3\xc6\x33\x39\xb1\x38\x02\x88\x6d\x53\xfc\x05",
    *b"\xc7\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03\x7a",
    ends(0xec, 0xff, 0x7f),
    ends(0xed, 0xff, 0x7f),
    ends(0xee, 0xff, 0x7f),
];

const fn ends(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}
