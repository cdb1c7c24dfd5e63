//! When to fetch next, and whether what is held is fresh.
//!
//! Laws: a healthy domain is asked once within each refresh hint, a little earlier each time by a draw of its own; one
//! that fails is asked sooner, then ever more seldom, but never more seldom than a healthy one. Both ends are limited.
//! Sources: TB §4.1.2 (refresh hint), FED §4.1 and §7.5 (polling); ca/docs/federation.md.

use rhizome_id::{Timestamp, Ttl};

use super::ForeignRecord;
use crate::limits::{
    BUNDLE_REFRESH_HINT, FEDERATION_JITTER_FRACTION, FEDERATION_MAX_BACKOFF, FEDERATION_MAX_REFRESH,
    FEDERATION_MIN_REFRESH, FEDERATION_OLD_AFTER_HINTS,
};

/// Seconds between two fetches by a hint.
fn interval(hint: Ttl) -> i64 {
    hint.clamp(FEDERATION_MIN_REFRESH, FEDERATION_MAX_REFRESH).seconds()
}

/// `seconds`, less up to a fifth of them. `draw` is 64 random bits.
fn early(seconds: i64, draw: u64) -> i64 {
    let width = u64::try_from(seconds / FEDERATION_JITTER_FRACTION).unwrap_or(0).saturating_add(1);
    // The bias of `%` is harmless here.
    let off = i64::try_from(draw.checked_rem(width).unwrap_or(0)).unwrap_or(0);
    seconds.saturating_sub(off).max(1)
}

/// When to fetch after a success: within the hint.
pub fn after_success(hint: Ttl, now: Timestamp, draw: u64) -> Timestamp {
    now.plus(early(interval(hint), draw))
}

/// When to fetch after the `failures`th failure in a row: twice as late each time, up to the hint of what is held.
pub fn after_failure(hint: Option<Ttl>, failures: u32, now: Timestamp, draw: u64) -> Timestamp {
    let most = interval(hint.unwrap_or(BUNDLE_REFRESH_HINT)).min(FEDERATION_MAX_BACKOFF.seconds());
    let doubled = 1_i64.checked_shl(failures.saturating_sub(1).min(32)).unwrap_or(i64::MAX);
    let wait = FEDERATION_MIN_REFRESH.seconds().saturating_mul(doubled).min(most);
    now.plus(early(wait, draw))
}

/// How it stands with a foreign domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outlook {
    /// No bundle yet: identities of that domain verify nowhere.
    Awaited,
    /// The bundle is as fresh as its hint asks.
    Current,
    /// Fetching fails at the moment; the bundle is fresh enough.
    Failing,
    /// The endpoint answers with what must be refused.
    Refused,
    /// Fetching has not succeeded for three hints.
    Old,
}

/// How it stands at `now`.
pub fn outlook(record: Option<&ForeignRecord>, now: Timestamp) -> Outlook {
    let trouble = record.and_then(|it| it.fetch.trouble.as_ref());
    if trouble.is_some_and(|it| it.refused) {
        return Outlook::Refused;
    }
    let Some((record, held)) = record.and_then(|it| Some((it, it.bundle.as_ref()?))) else {
        return Outlook::Awaited;
    };
    let fresh = record.fetch.succeeded_at.unwrap_or(held.since);
    let allowed = interval(held.refresh_hint).saturating_mul(FEDERATION_OLD_AFTER_HINTS);
    if now > fresh.plus(allowed) {
        return Outlook::Old;
    }
    if trouble.is_some() { Outlook::Failing } else { Outlook::Current }
}
