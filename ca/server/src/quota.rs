//! How much one caller may ask for: token buckets for each identity and, before there is an identity, each address.
//!
//! Laws: authenticated callers are counted by who they are, never by where they come from (fleets behind one address
//! translator do not starve each other); addresses count only for methods open to anybody. Buckets that are full
//! again are forgotten, so memory is bounded by the callers of the last seconds.
//! Sources: ca/docs/attacks.md §1.4 (floods of requests).

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota as Rate, RateLimiter};

use crate::settings::DoorLimits;

/// Refusals of one caller that reach the ledger, a second.
const RECORDED_REFUSALS_PER_SECOND: u32 = 5;

/// Connections from one address for each request without a credential that it may make: a fleet behind one address
/// translator connects once per agent and then stays.
const CONNECTIONS_PER_REQUEST: u32 = 4;

/// Whoever sends from there: an IPv4 address, or the /64 that one IPv6 host has to itself (RFC 4291 §2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(u64);

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(address.to_bits())),
            IpAddr::V6(address) => Self(u64::try_from(address.to_bits() >> 64).unwrap_or_default()),
        }
    }
}

pub(crate) struct Quota {
    by_source: DefaultKeyedRateLimiter<Source>,
    connections: DefaultKeyedRateLimiter<Source>,
    by_identity: DefaultKeyedRateLimiter<String>,
    refusals: DefaultKeyedRateLimiter<String>,
    clock: DefaultClock,
}

impl Quota {
    pub(crate) fn new(limits: DoorLimits) -> Self {
        Self {
            by_source: RateLimiter::keyed(rate(limits.per_source_per_second)),
            connections: RateLimiter::keyed(rate(
                limits.per_source_per_second.saturating_mul(CONNECTIONS_PER_REQUEST),
            )),
            by_identity: RateLimiter::keyed(rate(limits.per_identity_per_second)),
            refusals: RateLimiter::keyed(rate(RECORDED_REFUSALS_PER_SECOND)),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request from an address nobody vouches for.
    ///
    /// # Errors
    /// How long to wait until the next one fits.
    pub(crate) fn admit_source(&self, source: IpAddr) -> Result<(), Duration> {
        let source = Source::of(source);
        self.by_source.check_key(&source).map_err(|full| full.wait_time_from(self.clock.now()))
    }

    /// Whether one more connection from an address may begin its handshake, which costs as much as four certificates.
    pub(crate) fn admit_connection(&self, source: IpAddr) -> bool {
        self.connections.check_key(&Source::of(source)).is_ok()
    }

    /// Counts a request of an authenticated caller.
    ///
    /// # Errors
    /// How long to wait until the next one fits.
    pub(crate) fn admit_identity(&self, caller: &String) -> Result<(), Duration> {
        self.by_identity.check_key(caller).map_err(|full| full.wait_time_from(self.clock.now()))
    }

    /// Whether one more refusal of `caller` may go to the ledger.
    pub(crate) fn may_record_refusal(&self, caller: &String) -> bool {
        self.refusals.check_key(caller).is_ok()
    }

    /// Forgets buckets that are full again.
    pub(crate) fn forget_idle(&self) {
        self.by_source.retain_recent();
        self.connections.retain_recent();
        self.by_identity.retain_recent();
        self.refusals.retain_recent();
    }
}

fn rate(per_second: u32) -> Rate {
    let per_second = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
    Rate::per_second(per_second).allow_burst(per_second.saturating_mul(TWO))
}

const TWO: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
