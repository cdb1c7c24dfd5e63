//! Instants and lifetimes in whole seconds.
//!
//! Laws: a [`Timestamp`] is whole UTC seconds, because that is all X.509 can say; a [`Ttl`] is never zero. Not here:
//! reading a clock (`rhizome_core::clock`). NotAfter is inclusive: a certificate is valid through the second it
//! names (RFC 5280 §4.1.2.5), so lifetimes are subtracted in one place, [`Timestamp::last_second_of`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An instant in whole seconds since 1970-01-01T00:00:00Z. Shown and serialised as RFC 3339 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Timestamp(i64);

impl Timestamp {
    /// The last instant X.509 can name: 9999-12-31T23:59:59Z (RFC 5280 §4.1.2.5).
    pub const MAX: Self = Self(253_402_300_799);
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);

    /// From seconds since the epoch; held to the range X.509 can express.
    pub fn from_unix(seconds: i64) -> Self {
        Self(seconds.clamp(0, Self::MAX.0))
    }

    /// Seconds since the epoch.
    pub const fn unix(self) -> i64 {
        self.0
    }

    /// This instant plus `seconds`, held to the range X.509 can express.
    #[must_use]
    pub fn plus(self, seconds: i64) -> Self {
        Self::from_unix(self.0.saturating_add(seconds))
    }

    /// This instant minus `seconds`, held to the range X.509 can express.
    #[must_use]
    pub fn minus(self, seconds: i64) -> Self {
        Self::from_unix(self.0.saturating_sub(seconds))
    }

    /// Seconds from `earlier` to this instant; negative when it lies before.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// NotAfter of something that starts at `self` and lives for `ttl`: NotAfter is inclusive, so one second less.
    #[must_use]
    pub fn last_second_of(self, ttl: Ttl) -> Self {
        self.plus(ttl.seconds().saturating_sub(1))
    }

    /// `2026-11-22T12:00:00Z`: four times in every ledger entry, so written without the formatting machinery.
    fn ascii(self) -> [u8; 20] {
        let at = OffsetDateTime::from_unix_timestamp(self.0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let year = u16::try_from(at.year()).unwrap_or_default();
        let [c1, c0] = two_digits(u8::try_from(year / 100).unwrap_or_default());
        let [y1, y0] = two_digits(u8::try_from(year % 100).unwrap_or_default());
        let [mo1, mo0] = two_digits(u8::from(at.month()));
        let [d1, d0] = two_digits(at.day());
        let [h1, h0] = two_digits(at.hour());
        let [mi1, mi0] = two_digits(at.minute());
        let [s1, s0] = two_digits(at.second());
        [c1, c0, y1, y0, b'-', mo1, mo0, b'-', d1, d0, b'T', h1, h0, b':', mi1, mi0, b':', s1, s0, b'Z']
    }
}

const fn two_digits(number: u8) -> [u8; 2] {
    [b'0' + number / 10 % 10, b'0' + number % 10]
}

/// The text is not an RFC 3339 instant in the range X.509 can express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an instant such as 2026-11-22T12:00:00Z")]
pub struct TimestampError(String);

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || TimestampError(text.chars().take(40).collect());
        let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|_malformed| refuse())?;
        let seconds = parsed.unix_timestamp();
        if (0..=Self::MAX.0).contains(&seconds) { Ok(Self(seconds)) } else { Err(refuse()) }
    }
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(instant: Timestamp) -> Self {
        instant.to_string()
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::text::serialize_ascii(&self.ascii(), serializer)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(crate::text::as_str(&self.ascii()))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timestamp({self})")
    }
}

/// A lifetime in whole seconds: at least 1 s, at most 100 years. Written as `90s`, `15m`, `24h` or `7d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ttl(i64);

impl Ttl {
    /// Longest lifetime accepted: 100 years, beyond any policy that makes sense.
    pub const MAX: Self = Self(100 * 365 * 86_400);

    /// A lifetime of `seconds`.
    ///
    /// # Errors
    /// [`TtlError`] when it is zero, negative or above [`Ttl::MAX`].
    pub fn from_seconds(seconds: i64) -> Result<Self, TtlError> {
        if seconds < 1 {
            return Err(TtlError::TooShort);
        }
        if seconds > Self::MAX.0 {
            return Err(TtlError::TooLong);
        }
        Ok(Self(seconds))
    }

    /// A lifetime of `hours`, for constants; held to the allowed range.
    pub const fn hours(hours: u32) -> Self {
        let seconds = 3600 * widen(hours);
        if seconds < 1 {
            Self(1)
        } else if seconds > Self::MAX.0 {
            Self::MAX
        } else {
            Self(seconds)
        }
    }

    /// A lifetime of `minutes`, for constants; at least one second.
    pub const fn minutes(minutes: u32) -> Self {
        let seconds = 60 * widen(minutes);
        if seconds < 1 { Self(1) } else { Self(seconds) }
    }

    /// A lifetime of `seconds`, for constants; at least one second.
    pub const fn seconds_of(seconds: u32) -> Self {
        let seconds = widen(seconds);
        if seconds < 1 { Self(1) } else { Self(seconds) }
    }

    /// Seconds in this lifetime.
    pub const fn seconds(self) -> i64 {
        self.0
    }
}

#[expect(clippy::as_conversions, reason = "widening; From is not const")]
const fn widen(value: u32) -> i64 {
    value as i64
}

/// Why a text or number is not a lifetime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TtlError {
    /// Zero or negative.
    #[error("a lifetime is at least 1s")]
    TooShort,
    /// Above [`Ttl::MAX`].
    #[error("a lifetime is at most 36500d")]
    TooLong,
    /// Not a number with a unit.
    #[error("`{0}` is not a lifetime; write a whole number and a unit, such as 90s, 15m, 24h or 7d")]
    Malformed(String),
}

impl FromStr for Ttl {
    type Err = TtlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || TtlError::Malformed(text.chars().take(40).collect());
        let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
        let unit = text.chars().last().ok_or_else(malformed)?;
        let (_, factor) = units.into_iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
        let digits = text.strip_suffix(unit).unwrap_or_default();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        let count: i64 = digits.parse().map_err(|_overflow| TtlError::TooLong)?;
        Self::from_seconds(count.checked_mul(factor).ok_or(TtlError::TooLong)?)
    }
}

impl TryFrom<String> for Ttl {
    type Error = TtlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Ttl> for String {
    fn from(ttl: Ttl) -> Self {
        ttl.to_string()
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            s if s % 86_400 == 0 => write!(f, "{}d", s / 86_400),
            s if s % 3600 == 0 => write!(f, "{}h", s / 3600),
            s if s % 60 == 0 => write!(f, "{}m", s / 60),
            s => write!(f, "{s}s"),
        }
    }
}

impl fmt::Debug for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ttl({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn not_after_is_inclusive_so_a_lifetime_of_one_second_ends_where_it_starts() {
        let start = Timestamp::from_unix(1_000);
        assert_eq!(start.last_second_of(Ttl::from_seconds(1).unwrap()), start);
        assert_eq!(start.last_second_of(Ttl::hours(1)).unix(), 1_000 + 3_599);
    }

    #[test]
    fn instants_read_and_print_as_rfc_3339() {
        let at: Timestamp = "2026-11-22T12:34:56Z".parse().unwrap();
        assert_eq!(at.to_string(), "2026-11-22T12:34:56Z");
        assert_eq!(at, "2026-11-22T13:34:56+01:00".parse().unwrap());
        for bad in ["", "2026-11-22", "1969-12-31T23:59:59Z", "now"] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
        assert_eq!(Timestamp::MAX.plus(1), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn lifetimes_need_a_number_and_a_unit() {
        assert_eq!("24h".parse::<Ttl>().unwrap(), Ttl::hours(24));
        for bad in ["", "h", "24", "1.5h", "-1h", "0s", "+1h", "1w", "99999999999999999999s", "40000d"] {
            assert!(bad.parse::<Ttl>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_lifetime_prints_back_to_itself(seconds in 1..=Ttl::MAX.0) {
            let ttl = Ttl::from_seconds(seconds).unwrap();
            prop_assert_eq!(ttl.to_string().parse::<Ttl>().unwrap(), ttl);
        }

        #[test]
        fn an_instant_prints_back_to_itself(seconds in 0..=Timestamp::MAX.0) {
            let at = Timestamp::from_unix(seconds);
            prop_assert_eq!(at.to_string().parse::<Timestamp>().unwrap(), at);
        }
    }
}
