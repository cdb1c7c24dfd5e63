//! Typed names: one type for each kind of thing that people and records refer to.
//!
//! Laws: 1–128 bytes of `[A-Za-z0-9._-]`, not starting with `.` or `-`; so a name is always safe as a SPIFFE path
//! segment, a file name, a metric label and a command-line argument.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name accepted, in bytes. 128 holds a Kubernetes node name's usual forms and a UUID with a prefix.
const MAX_LENGTH: usize = 128;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("the {what} is empty")]
    Empty {
        /// What the name was for.
        what: &'static str,
    },
    /// More than 128 bytes.
    #[error("the {what} has {length} bytes; the limit is 128")]
    TooLong {
        /// What the name was for.
        what: &'static str,
        /// Bytes found.
        length: usize,
    },
    /// A byte outside the grammar, or a leading '.' or '-'.
    #[error(
        "the {what} holds byte 0x{byte:02x} at offset {at}; use A-Z, a-z, 0-9, '_', and '.' or '-' after the first byte"
    )]
    BadByte {
        /// What the name was for.
        what: &'static str,
        /// The offending byte.
        byte: u8,
        /// Its offset in bytes.
        at: usize,
    },
}

fn validate(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > MAX_LENGTH {
        return Err(NameError::TooLong { what, length: text.len() });
    }
    let allowed = |at: usize, byte: u8| {
        byte.is_ascii_alphanumeric() || byte == b'_' || (at > 0 && matches!(byte, b'.' | b'-'))
    };
    match text.bytes().enumerate().find(|(at, byte)| !allowed(*at, *byte)) {
        Some((at, byte)) => Err(NameError::BadByte { what, byte, at }),
        None => Ok(()),
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text of the name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                validate($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                validate($what, &text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    )*};
}

names! {
    /// A human administrator or an automation that acts as one.
    AdminName, "administrator name";
    /// A signing authority (root or issuer), unique for ever: its key generation is part of it.
    AuthorityId, "authority id";
    /// A cluster, or a group of machines outside Kubernetes.
    ClusterName, "cluster name";
    /// A private key in a key ring.
    KeyId, "key id";
    /// A node within its cluster and attestation method.
    NodeName, "node name";
    /// One server process over the shared state.
    ReplicaName, "replica name";
    /// What a caller calls one request, so that a retry gets the first answer.
    RequestId, "request id";
    /// One change of the root, from its beginning to its end.
    RotationName, "rotation name";
    /// A rule.
    RuleName, "rule name";
    /// A join token's public handle: never the secret itself.
    TokenId, "token id";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_path_segments_files_and_arguments() {
        for bad in ["", ".", "..", ".hidden", "-flag", "a/b", "a b", "a\0", "é", "a\n"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        for good in ["a", "node-1.example", "A_b", "0"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        assert!("a".repeat(128).parse::<NodeName>().is_ok());
        assert!("a".repeat(129).parse::<NodeName>().is_err());
    }

    #[test]
    fn a_refusal_names_the_thing_and_the_byte() {
        let error = "a b".parse::<RuleName>().unwrap_err();
        assert_eq!(error, NameError::BadByte { what: "rule name", byte: b' ', at: 1 });
    }
}
