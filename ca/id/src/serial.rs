//! Serial numbers: unique by construction, unguessable, and found again without an index on random bytes.
//!
//! Laws: always 20 bytes and positive (RFC 5280 §4.1.2.2: at most 20 octets): bytes 0–1 are `01` and the 14 bits of
//! the issuing replica, bytes 2–8 a 56-bit counter that never repeats within the replica, bytes 9–19 are 88 random
//! bits. The counter alone makes a serial unique; the random bits make it unpredictable. Not here: where counters
//! come from (a store reserves them, `rhizome_server::serials` hands them out), and the randomness.
//! Sources: RFC 5280 §4.1.2.2; ADR 0002.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// Which replica issued: 0–16383.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaNumber(u16);

impl ReplicaNumber {
    /// A replica number; `None` above 16383 (14 bits).
    pub const fn new(number: u16) -> Option<Self> {
        if number < 1 << 14 { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn value(self) -> u16 {
        self.0
    }
}

/// The never-repeating part of a serial: 0 to 2^56 − 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SerialCounter(u64);

impl SerialCounter {
    /// The last counter that fits into a serial.
    pub const MAX: Self = Self((1 << 56) - 1);

    /// A counter; `None` above [`SerialCounter::MAX`].
    pub const fn new(value: u64) -> Option<Self> {
        if value <= Self::MAX.0 { Some(Self(value)) } else { None }
    }

    /// The counter's value.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// A certificate serial number made by Rhizome: 20 bytes, big-endian, positive. Shown as 40 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Serial([u8; 20]);

impl Serial {
    /// Random bytes a serial takes: 88 bits, above the 80 the design asks for.
    pub const RANDOM_BYTES: usize = 11;

    /// Puts a serial together.
    pub const fn compose(
        replica: ReplicaNumber,
        counter: SerialCounter,
        random: [u8; Self::RANDOM_BYTES],
    ) -> Self {
        let [high, low] = replica.0.to_be_bytes();
        let [_, c0, c1, c2, c3, c4, c5, c6] = counter.0.to_be_bytes();
        let [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10] = random;
        // 0b01 in front: the number is positive and always has 20 significant octets.
        Self([high | 0x40, low, c0, c1, c2, c3, c4, c5, c6, r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10])
    }

    /// From the content octets of the INTEGER in a certificate.
    ///
    /// # Errors
    /// [`SerialError`] when it does not have the shape this authority gives its serials.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SerialError> {
        let fixed: [u8; 20] = bytes.try_into().map_err(|_length| SerialError)?;
        if fixed[0] & 0xc0 == 0x40 { Ok(Self(fixed)) } else { Err(SerialError) }
    }

    /// The content octets of the INTEGER (DER, without tag and length).
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Who issued it.
    pub const fn replica(&self) -> ReplicaNumber {
        let [high, low, ..] = self.0;
        ReplicaNumber(u16::from_be_bytes([high & 0x3f, low]))
    }

    /// The unique part: the key under which the ledger finds the certificate.
    pub const fn counter(&self) -> SerialCounter {
        let [_, _, c0, c1, c2, c3, c4, c5, c6, ..] = self.0;
        SerialCounter(u64::from_be_bytes([0, c0, c1, c2, c3, c4, c5, c6]))
    }
}

/// The text or bytes are not a serial of this authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a serial of this authority: those are 20 bytes (40 hexadecimal digits) and start with 4 to 7")]
pub struct SerialError;

impl FromStr for Serial {
    type Err = SerialError;

    /// Accepts the 40 digits, in either case, also in openssl's colon-separated form.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > 64 {
            return Err(SerialError);
        }
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let bytes = hex::decode(digits).map_err(|_not_hex| SerialError)?;
        Self::from_bytes(&bytes)
    }
}

impl TryFrom<String> for Serial {
    type Error = SerialError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        hex::encode(serial.0)
    }
}

impl Serialize for Serial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::text::serialize_hex::<40, S>(&self.0, serializer)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_serial_gives_back_its_parts_and_is_positive(
            replica in 0u16..1 << 14, counter in 0u64..1 << 56, random: [u8; 11],
        ) {
            let (replica, counter) = (ReplicaNumber::new(replica).unwrap(), SerialCounter::new(counter).unwrap());
            let serial = Serial::compose(replica, counter, random);
            prop_assert_eq!((serial.replica(), serial.counter()), (replica, counter));
            prop_assert_eq!(&serial.as_bytes()[9..], &random[..]);
            prop_assert!((0x40..0x80).contains(&serial.as_bytes()[0]));
            prop_assert_eq!(serial.to_string().parse::<Serial>().unwrap(), serial);
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert!(ReplicaNumber::new(1 << 14).is_none());
        assert!(SerialCounter::new(1 << 56).is_none());
    }

    #[test]
    fn serials_of_other_authorities_are_refused() {
        assert!(Serial::from_bytes(&[0x40; 19]).is_err());
        assert!(Serial::from_bytes(&[0x80; 20]).is_err());
        assert!("7".parse::<Serial>().is_err());
        let text = "40:01".to_owned() + &":02".repeat(18);
        assert!(text.parse::<Serial>().is_ok());
    }
}
