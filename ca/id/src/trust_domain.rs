//! Trust domains: the name under which one root of trust speaks.
//!
//! Laws: 1–255 bytes of `[a-z0-9._-]`; lower case only, nothing is normalised.
//! Sources: SPIFFE-ID §2.1 and §2.3. We refuse upper case rather than fold it, as the deployed parsers do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A SPIFFE trust domain name, such as `example.org` (SPIFFE-ID §2.1); without the `spiffe://` scheme.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Longest name accepted, in bytes (SPIFFE-ID §2.1).
    pub const MAX_LENGTH: usize = 255;

    /// The name, for example `example.org`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn validate(name: &str) -> Result<(), TrustDomainError> {
        if name.is_empty() {
            return Err(TrustDomainError::Empty);
        }
        if name.len() > Self::MAX_LENGTH {
            return Err(TrustDomainError::TooLong { length: name.len() });
        }
        match name.bytes().enumerate().find(|(_, byte)| !is_allowed(*byte)) {
            Some((at, byte)) => Err(TrustDomainError::BadByte { byte, at }),
            None => Ok(()),
        }
    }
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
}

/// Why a text is not a trust domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustDomainError {
    /// Nothing was given.
    #[error("the trust domain is empty; give a name such as `example.org`")]
    Empty,
    /// More than [`TrustDomain::MAX_LENGTH`] bytes.
    #[error("the trust domain has {length} bytes; the limit is 255 (SPIFFE-ID §2.1)")]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// A byte outside the grammar.
    #[error(
        "the trust domain holds byte 0x{byte:02x} at offset {at}; only a-z, 0-9, '.', '_' and '-' are allowed"
    )]
    BadByte {
        /// The offending byte.
        byte: u8,
        /// Its offset in bytes.
        at: usize,
    },
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::validate(name)?;
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = TrustDomainError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::validate(&name)?;
        Ok(Self(name))
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_outside_the_grammar_is_refused_at_its_position() {
        for byte in 0..=255u8 {
            let Ok(name) = String::from_utf8(vec![b'a', byte, b'b']) else {
                continue;
            };
            assert_eq!(name.parse::<TrustDomain>().is_ok(), is_allowed(byte), "byte 0x{byte:02x}");
        }
        assert_eq!("a/b".parse::<TrustDomain>(), Err(TrustDomainError::BadByte { byte: b'/', at: 1 }));
    }

    #[test]
    fn the_length_limit_holds_on_both_sides_of_the_boundary() {
        assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
        assert_eq!("a".repeat(256).parse::<TrustDomain>(), Err(TrustDomainError::TooLong { length: 256 }));
        assert_eq!("".parse::<TrustDomain>(), Err(TrustDomainError::Empty));
    }

    #[test]
    fn ports_userinfo_percent_and_upper_case_are_refused() {
        for name in ["td:8080", "user@td", "t%64", "TD", "[::1]", "spiffe://td", "td/"] {
            assert!(name.parse::<TrustDomain>().is_err(), "{name}");
        }
        assert!("192.168.0.1".parse::<TrustDomain>().is_ok(), "a dotted quad is legal and not special");
    }

    #[test]
    fn deserialising_passes_through_the_same_door() {
        assert!(serde_json::from_str::<TrustDomain>("\"Example.org\"").is_err());
        let domain: TrustDomain = serde_json::from_str("\"example.org\"").unwrap();
        assert_eq!(serde_json::to_string(&domain).unwrap(), "\"example.org\"");
    }
}
