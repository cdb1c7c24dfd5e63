//! How much one caller may ask for: token buckets for each identity and, before there is an identity, each address.
//!
//! Laws: authenticated callers are counted by who they are, never by where they come from (fleets behind one address
//! translator do not starve each other); addresses count only for methods open to anybody. Buckets that are full
//! again are forgotten, so memory is bounded by the callers of the last seconds.
//! Sources: ca/docs/attacks.md §1.4 (floods of requests).

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota as Rate, RateLimiter};

use crate::settings::DoorLimits;

/// Refusals of one caller that reach the ledger, a second.
const RECORDED_REFUSALS_PER_SECOND: u32 = 5;

/// Intermediates for one cluster in a minute, at most as many at once: each is a signature of the root.
const INTERMEDIATES_PER_MINUTE: NonZeroU32 = NonZeroU32::MIN.saturating_add(7);

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
    intermediates: DefaultKeyedRateLimiter<String>,
    clock: DefaultClock,
    /// How many replicas share what one caller may ask for.
    share: AtomicU32,
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
            intermediates: RateLimiter::keyed(Rate::per_minute(INTERMEDIATES_PER_MINUTE)),
            clock: DefaultClock::default(),
            share: AtomicU32::new(1),
        }
    }

    /// From here on each replica admits one part in `replicas` of what all together admit, so that a caller gets no more
    /// by asking all of them.
    pub(crate) fn shared_by(&self, replicas: usize) {
        self.share.store(u32::try_from(replicas).unwrap_or(u32::MAX).max(1), Ordering::Relaxed);
    }

    /// What one request takes of a bucket that is sized for all replicas.
    fn cells(&self) -> NonZeroU32 {
        NonZeroU32::new(self.share.load(Ordering::Relaxed)).unwrap_or(NonZeroU32::MIN)
    }

    fn admit<K: std::hash::Hash + Eq + Clone>(
        &self,
        buckets: &DefaultKeyedRateLimiter<K>,
        key: &K,
    ) -> Result<(), Duration> {
        match buckets.check_key_n(key, self.cells()) {
            Ok(fits) => fits.map_err(|full| full.wait_time_from(self.clock.now())),
            // More replicas than a bucket has room for: one whole bucket for each request.
            Err(small) => {
                let whole = NonZeroU32::new(small.0).unwrap_or(NonZeroU32::MIN);
                let fits = buckets.check_key_n(key, whole).unwrap_or(Ok(()));
                fits.map_err(|full| full.wait_time_from(self.clock.now()))
            }
        }
    }

    /// Counts a request from an address nobody vouches for.
    ///
    /// # Errors
    /// How long to wait until the next one fits.
    pub(crate) fn admit_source(&self, source: IpAddr) -> Result<(), Duration> {
        let source = Source::of(source);
        self.admit(&self.by_source, &source)
    }

    /// Whether one more connection from an address may begin its handshake, which costs as much as four certificates.
    pub(crate) fn admit_connection(&self, source: IpAddr) -> bool {
        self.admit(&self.connections, &Source::of(source)).is_ok()
    }

    /// Counts a request of an authenticated caller.
    ///
    /// # Errors
    /// How long to wait until the next one fits.
    pub(crate) fn admit_identity(&self, caller: &String) -> Result<(), Duration> {
        self.admit(&self.by_identity, caller)
    }

    /// Whether one more refusal of `caller` may go to the ledger.
    pub(crate) fn may_record_refusal(&self, caller: &String) -> bool {
        self.refusals.check_key(caller).is_ok()
    }

    /// Counts an intermediate for the Rhizome of a cluster.
    ///
    /// # Errors
    /// How long to wait until the next one fits.
    pub(crate) fn admit_intermediate(&self, caller: &String) -> Result<(), Duration> {
        let fits = self.intermediates.check_key(caller);
        fits.map_err(|full| full.wait_time_from(self.clock.now()))
    }

    /// Forgets buckets that are full again.
    pub(crate) fn forget_idle(&self) {
        self.by_source.retain_recent();
        self.connections.retain_recent();
        self.by_identity.retain_recent();
        self.intermediates.retain_recent();
        self.refusals.retain_recent();
    }
}

fn rate(per_second: u32) -> Rate {
    let per_second = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
    Rate::per_second(per_second).allow_burst(per_second.saturating_mul(TWO))
}

const TWO: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
