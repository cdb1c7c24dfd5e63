//! SPIFFE IDs: the names that certificates carry.
//!
//! Laws: `spiffe://` + trust domain + path of non-empty `[A-Za-z0-9._-]` segments, none of them `.` or `..`; at most
//! 2048 bytes. IDs with parts from outside (a namespace, a service account) are built from segments, never by
//! formatting. Not here: which IDs are reserved or granted (`rhizome_core::policy`).
//! Sources: SPIFFE-ID §2.1–2.4.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{TrustDomain, TrustDomainError};

/// A valid SPIFFE ID, such as `spiffe://example.org/ns/prod/sa/web`. Kept as the one text that goes into the URI SAN.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: String,
    /// Offset of the path, equal to `text.len()` when there is none.
    path_at: usize,
}

const SCHEME: &str = "spiffe://";
/// Room for an ID of the usual shape.
const TYPICAL_LENGTH: usize = 96;

impl SpiffeId {
    /// Longest ID accepted or made, in bytes (SPIFFE-ID §2.3).
    pub const MAX_LENGTH: usize = 2048;

    /// The ID of a trust domain itself, without a path: what CA certificates carry (X509-SVID §3.2).
    pub fn of_trust_domain(domain: &TrustDomain) -> Self {
        let text = format!("{SCHEME}{domain}");
        Self { path_at: text.len(), text }
    }

    /// Builds an ID from a trust domain and path segments; each segment is checked alone, so no value can smuggle in
    /// a separator.
    ///
    /// # Errors
    /// [`SpiffeIdError`] naming the first bad segment, or the length limit.
    pub fn from_segments<'a>(
        domain: &TrustDomain,
        segments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SpiffeIdError> {
        let mut text = String::with_capacity(TYPICAL_LENGTH);
        text.push_str(SCHEME);
        text.push_str(domain.as_str());
        let path_at = text.len();
        for segment in segments {
            Self::check_segment(segment)?;
            text.push('/');
            text.push_str(segment);
            if text.len() > Self::MAX_LENGTH {
                return Err(SpiffeIdError::TooLong { length: text.len() });
            }
        }
        Ok(Self { text, path_at })
    }

    /// The whole ID, `spiffe://…`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        let name = self.trust_domain_str().to_owned();
        // Validated by every constructor; the fallible door is the only one, so take it and keep the type honest.
        TrustDomain::try_from(name).unwrap_or_else(|_| unreachable!("a SpiffeId holds a valid trust domain"))
    }

    /// Whether this ID lives in `domain`, without allocating.
    pub fn is_member_of(&self, domain: &TrustDomain) -> bool {
        self.trust_domain_str() == domain.as_str()
    }

    /// The path with its leading slash, or the empty string for a trust domain's own ID.
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// The segments of the path, in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').skip(1)
    }

    fn trust_domain_str(&self) -> &str {
        self.text.get(SCHEME.len()..self.path_at).unwrap_or_default()
    }

    fn validate(text: &str) -> Result<usize, SpiffeIdError> {
        if text.len() > Self::MAX_LENGTH {
            return Err(SpiffeIdError::TooLong { length: text.len() });
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        TrustDomain::validate(domain)?;
        for segment in path.split('/').skip(1) {
            Self::check_segment(segment)?;
        }
        Ok(SCHEME.len() + domain.len())
    }

    /// Checks one segment of a path alone (SPIFFE-ID §2.2).
    ///
    /// # Errors
    /// [`SpiffeIdError`] when it is empty, a dot segment, or holds a byte outside the grammar.
    pub fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
        match segment {
            "" => return Err(SpiffeIdError::EmptySegment),
            "." | ".." => return Err(SpiffeIdError::DotSegment),
            _ => {}
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        match segment.bytes().enumerate().find(|(_, byte)| !allowed(*byte)) {
            Some((at, byte)) => Err(SpiffeIdError::BadByte { byte, at }),
            None => Ok(()),
        }
    }
}

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// It does not start with `spiffe://` in lower case.
    #[error("a SPIFFE ID starts with `spiffe://` in lower case")]
    Scheme,
    /// The trust domain is not valid.
    #[error(transparent)]
    TrustDomain(#[from] TrustDomainError),
    /// Two slashes in a row, or a trailing one.
    #[error("the path has an empty segment; remove the doubled or trailing '/'")]
    EmptySegment,
    /// A `.` or `..` segment.
    #[error("the path has a '.' or '..' segment; SPIFFE IDs are not file paths")]
    DotSegment,
    /// A byte outside the grammar.
    #[error(
        "a path segment holds byte 0x{byte:02x} at offset {at}; only A-Z, a-z, 0-9, '.', '_' and '-' are allowed"
    )]
    BadByte {
        /// The offending byte.
        byte: u8,
        /// Its offset within the segment, in bytes.
        at: usize,
    },
    /// More than [`SpiffeId::MAX_LENGTH`] bytes.
    #[error("the SPIFFE ID has {length} bytes or more; the limit is 2048 (SPIFFE-ID §2.3)")]
    TooLong {
        /// Bytes counted when the limit was passed.
        length: usize,
    },
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path_at = Self::validate(text)?;
        Ok(Self { text: text.to_owned(), path_at })
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let path_at = Self::validate(&text)?;
        Ok(Self { text, path_at })
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain() -> TrustDomain {
        "example.org".parse().unwrap()
    }

    #[test]
    fn an_id_gives_back_its_parts() {
        let id: SpiffeId = "spiffe://example.org/ns/prod/sa/web".parse().unwrap();
        assert_eq!(id.trust_domain(), domain());
        assert_eq!(id.path(), "/ns/prod/sa/web");
        assert_eq!(id.segments().collect::<Vec<_>>(), ["ns", "prod", "sa", "web"]);
        assert!(id.is_member_of(&domain()));
        assert_eq!(id, SpiffeId::from_segments(&domain(), ["ns", "prod", "sa", "web"]).unwrap());
    }

    #[test]
    fn a_trust_domain_id_has_no_path() {
        let id = SpiffeId::of_trust_domain(&domain());
        assert_eq!((id.as_str(), id.path(), id.segments().count()), ("spiffe://example.org", "", 0));
        assert_eq!(id, "spiffe://example.org".parse().unwrap());
    }

    #[test]
    fn every_odd_byte_in_every_position_is_refused() {
        for byte in 0..=127u8 {
            let odd = char::from(byte);
            let in_path = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
            let text = format!("spiffe://td/a{odd}b");
            assert_eq!(text.parse::<SpiffeId>().is_ok(), in_path, "path byte 0x{byte:02x}");
            let segment = format!("a{odd}b");
            let built = SpiffeId::from_segments(&domain(), [segment.as_str()]);
            assert_eq!(built.is_ok(), in_path && byte != b'/', "segment byte 0x{byte:02x}");
        }
        assert!("spiffe://td/é".parse::<SpiffeId>().is_err());
    }

    #[test]
    fn paths_that_could_be_read_two_ways_are_refused() {
        for text in [
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/a/",
            "spiffe://td/a//b",
            "spiffe://td/./a",
            "spiffe://td/a/..",
            "spiffe://td/%2e%2e",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "SPIFFE://td/a",
            "spiffe:///a",
            "spiffe://",
            "td/a",
            "",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
        assert!("spiffe://td/.../.x/-".parse::<SpiffeId>().is_ok(), "odd but legal segments");
    }

    #[test]
    fn the_length_limit_holds_on_both_sides_of_the_boundary() {
        let fits = format!("spiffe://td/{}", "a".repeat(2048 - 12));
        assert_eq!(fits.len(), 2048);
        assert!(fits.parse::<SpiffeId>().is_ok());
        assert!(format!("{fits}a").parse::<SpiffeId>().is_err());
        let long = "a".repeat(2048);
        assert!(SpiffeId::from_segments(&domain(), [long.as_str()]).is_err());
    }

    proptest! {
        #[test]
        fn what_parses_prints_back_the_same(text in "spiffe://[a-z0-9._-]{1,20}(/[A-Za-z0-9_-]{1,9}){0,5}") {
            let id: SpiffeId = text.parse().unwrap();
            prop_assert_eq!(id.to_string(), text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,64}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                let rebuilt = SpiffeId::from_segments(&id.trust_domain(), id.segments()).unwrap();
                prop_assert_eq!(rebuilt, id);
            }
        }
    }
}
