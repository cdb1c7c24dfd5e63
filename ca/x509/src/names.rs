//! DNS names for certificates.
//!
//! Laws: a [`DnsName`] is lower-case letters, digits and hyphens in labels of 1–63 bytes, at most 253 bytes; no
//! wildcard, no trailing dot, no upper case (nothing is folded), and nothing that could be read as an IP address.
//! Not here: who may have which name. Sources: RFC 1034 §3.5, RFC 1123 §2.1, RFC 5280 §4.2.1.6.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host name that may stand in a certificate, such as `web.prod.svc.cluster.local`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

impl DnsName {
    /// Longest name, in bytes (RFC 1035 §2.3.4 without the length octets).
    pub const MAX_LENGTH: usize = 253;
    /// Longest label, in bytes (RFC 1035 §2.3.4).
    pub const MAX_LABEL_LENGTH: usize = 63;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn validate(name: &str) -> Result<(), DnsNameError> {
        if name.is_empty() {
            return Err(DnsNameError::Empty);
        }
        if name.len() > Self::MAX_LENGTH {
            return Err(DnsNameError::TooLong { length: name.len() });
        }
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if let Some((at, byte)) = name.bytes().enumerate().find(|(_, byte)| !allowed(*byte)) {
            return Err(DnsNameError::BadByte { byte, at });
        }
        for label in name.split('.') {
            if label.is_empty()
                || label.len() > Self::MAX_LABEL_LENGTH
                || label.starts_with('-')
                || label.ends_with('-')
            {
                return Err(DnsNameError::Label);
            }
        }
        // RFC 1123 §2.1: the last label is never all digits, so that an address is never taken for a name.
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(DnsNameError::Address);
        }
        Ok(())
    }
}

/// Why a text is not a DNS name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    /// Nothing was given.
    #[error("the DNS name is empty")]
    Empty,
    /// More than [`DnsName::MAX_LENGTH`] bytes.
    #[error("the DNS name has {length} bytes; the limit is 253")]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// A byte outside the grammar.
    #[error(
        "the DNS name holds byte 0x{byte:02x} at offset {at}; only a-z, 0-9, '-' and '.' are allowed (no wildcards, no upper case)"
    )]
    BadByte {
        /// The offending byte.
        byte: u8,
        /// Its offset in bytes.
        at: usize,
    },
    /// An empty or too long label, or a hyphen at its edge.
    #[error("a label of the DNS name is empty, longer than 63 bytes, or starts or ends with '-'")]
    Label,
    /// The last label is a number.
    #[error("the DNS name ends in a number, like an IP address")]
    Address,
}

impl FromStr for DnsName {
    type Err = DnsNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::validate(name)?;
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for DnsName {
    type Error = DnsNameError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::validate(&name)?;
        Ok(Self(name))
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> Self {
        name.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DnsName({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_outside_the_grammar_is_refused() {
        for byte in 0..=127u8 {
            let name = format!("a{}b", char::from(byte));
            let allowed = byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
            assert_eq!(name.parse::<DnsName>().is_ok(), allowed, "byte 0x{byte:02x}");
        }
    }

    #[test]
    fn wildcards_addresses_and_odd_labels_are_refused() {
        for bad in ["", "*.a", "a..b", ".a", "a.", "-a", "a-", "A.b", "10.0.0.1", "1", "a.1", "a_b", "é.org"]
        {
            assert!(bad.parse::<DnsName>().is_err(), "{bad}");
        }
        for good in ["a", "web.prod.svc.cluster.local", "1a", "3com.example", "xn--e1afmkfd"] {
            assert!(good.parse::<DnsName>().is_ok(), "{good}");
        }
    }

    #[test]
    fn the_length_limits_hold_on_both_sides_of_the_boundary() {
        let label = "a".repeat(63);
        assert!(label.parse::<DnsName>().is_ok());
        assert!(format!("{label}a").parse::<DnsName>().is_err());
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(longest.len(), 253);
        assert!(longest.parse::<DnsName>().is_ok());
        assert!(format!("{longest}a").parse::<DnsName>().is_err());
    }
}
