//! When to ask for what: pure planning over what is held and what is wanted.
//!
//! Laws: a renewal instant is drawn once per certificate (by the server; by [`own_draw`] where it said nothing) and
//! can only be moved forward, by the server's order; what is missing comes before what expires, and what expires soon
//! before what expires late; after a failure an identity waits by itself, longer each time but never so long that the
//! certificate expires unasked. Not here: asking (`fetch`), keeping (`book`).
//! Sources: ca/docs/issuance.md, Renewal (drawn once); SPIFFE Workload Endpoint §6 (backoff).

use std::time::Duration;

use rhizome_core::renewal::renewal_instant;
use rhizome_id::{SpiffeId, Timestamp, Ttl};
use rhizome_x509::{DnsName, LeafFacts};
use serde::{Deserialize, Serialize};

/// First wait after a failure of one identity, in seconds.
const RETRY_FIRST_SECONDS: i64 = 1;
/// Longest wait of one identity, in seconds.
const RETRY_LONGEST_SECONDS: i64 = 60;
/// How long an identity that the server denies waits, unless rules change before. Its scope may have.
pub(crate) const DENIED_SECONDS: i64 = 300;
/// First wait after a lost connection.
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
/// Longest wait between two attempts to connect.
const RECONNECT_LONGEST: Duration = Duration::from_secs(30);

/// Longest wait of a node that the authority refuses: an administrator who lets it in again waits no longer.
const REFUSED_LONGEST: Duration = Duration::from_secs(300);

/// What one certificate is for. Workloads with equal entitlements share a certificate; those that differ in any of
/// this never do, because its DNS names and its lifetime are grants, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entitlement {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The DNS names that the rules grant with it.
    pub dns_names: Vec<DnsName>,
    /// The lifetime that the rules set.
    pub ttl: Option<Ttl>,
}

/// One wanted entitlement as planning sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// What it is.
    pub entitlement: &'a Entitlement,
    /// When the unexpired certificate that is held is to be renewed, and its last second.
    pub held: Option<(Timestamp, Timestamp)>,
    /// Not before this instant, after a failure.
    pub not_before: Option<Timestamp>,
    /// Whether it was asked for and no answer has come.
    pub asked: bool,
}

/// What to do now, and when to look again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to ask for, in this order.
    pub ask: Vec<Entitlement>,
    /// When something falls due by time alone.
    pub wake_at: Option<Timestamp>,
}

/// What to ask for at `now`, at most `room` of it.
pub fn plan<'a>(candidates: impl IntoIterator<Item = Candidate<'a>>, now: Timestamp, room: usize) -> Plan {
    let mut due: Vec<(Option<Timestamp>, &Entitlement)> = Vec::new();
    let mut wake_at: Option<Timestamp> = None;
    let mut wake = |at: Timestamp| wake_at = Some(wake_at.map_or(at, |other| other.min(at)));
    for candidate in candidates {
        if let Some((_, not_after)) = candidate.held {
            wake(not_after.plus(1));
        }
        if candidate.asked {
            continue;
        }
        let from = candidate.held.map_or(Timestamp::EPOCH, |(renew_at, _)| renew_at);
        let from = candidate.not_before.map_or(from, |at| at.max(from));
        if from > now {
            wake(from);
        } else {
            due.push((candidate.held.map(|(_, not_after)| not_after), candidate.entitlement));
        }
    }
    // `None`, nothing held, sorts first.
    due.sort();
    let ask = due.into_iter().take(room).map(|(_, entitlement)| entitlement.clone()).collect();
    Plan { ask, wake_at }
}

/// A renewal instant that leaves some time to a certificate that has just come: where this machine's clock is far ahead
/// of the server's, every certificate is old on arrival, and asking again at once would never end.
pub fn not_at_once(renew_at: Timestamp, now: Timestamp, not_after: Timestamp) -> Timestamp {
    let least = (not_after.since(now) / 4).clamp(RETRY_FIRST_SECONDS, RETRY_LONGEST_SECONDS);
    renew_at.max(now.plus(least))
}

/// When to try an identity again after `failures` failures in a row, the last one at `now`; `not_after` is the last
/// second of the certificate it still has.
pub fn retry_at(now: Timestamp, failures: u32, draw: u64, not_after: Option<Timestamp>) -> Timestamp {
    let doubled = RETRY_FIRST_SECONDS.checked_shl(failures.saturating_sub(1).min(16)).unwrap_or(i64::MAX);
    let ceiling = doubled.min(RETRY_LONGEST_SECONDS);
    // Close to its end a certificate is worth more attempts: four in what is left.
    let ceiling = not_after.map_or(ceiling, |end| ceiling.min(end.since(now) / 4)).max(1);
    let half = ceiling / 2;
    let width = u64::try_from(ceiling.saturating_sub(half)).unwrap_or(0).saturating_add(1);
    let spread = i64::try_from(draw.checked_rem(width).unwrap_or(0)).unwrap_or(0);
    now.plus(half.saturating_add(spread).max(1))
}

/// How long to wait before connecting again after `failures` failures in a row: doubling, with half of it drawn.
pub fn reconnect_after(failures: u32, draw: u64) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1).min(16)).unwrap_or(u32::MAX);
    let ceiling = RECONNECT_FIRST.saturating_mul(factor).min(RECONNECT_LONGEST);
    let half = ceiling / 2;
    let width = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    half.saturating_add(Duration::from_millis(draw.checked_rem(width).unwrap_or(0)))
}

/// How long a node that the authority refuses waits before it asks again: half of the longest wait, and up to that much
/// more by `draw`.
pub fn refused_pace(draw: u64) -> Duration {
    let half = REFUSED_LONGEST / 2;
    half.saturating_add(Duration::from_secs(draw.checked_rem(half.as_secs().saturating_add(1)).unwrap_or(0)))
}

/// The renewal instant of a certificate about which the server said nothing (usable): drawn from its fingerprint, so
/// that it is the same at every look and after every restart.
pub fn own_draw(facts: &LeafFacts) -> Timestamp {
    let draw =
        facts.fingerprint.as_bytes().iter().take(8).fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
    renewal_instant(facts.not_before, facts.not_after, draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    fn entitlement(name: &str) -> Entitlement {
        let spiffe_id = format!("spiffe://example.org/{name}").parse().unwrap();
        Entitlement { spiffe_id, dns_names: Vec::new(), ttl: None }
    }

    #[test]
    fn what_is_missing_comes_first_then_what_expires_soonest() {
        let names = ["late", "soon", "missing", "asked", "fresh", "failed"].map(entitlement);
        let [late, soon, missing, asked, fresh, failed] = &names;
        let candidate = |entitlement, held| Candidate { entitlement, held, not_before: None, asked: false };
        let candidates = [
            candidate(late, Some((at(90), at(900)))),
            candidate(soon, Some((at(95), at(200)))),
            candidate(missing, None),
            Candidate { asked: true, ..candidate(asked, None) },
            candidate(fresh, Some((at(150), at(300)))),
            Candidate { not_before: Some(at(130)), ..candidate(failed, None) },
        ];
        let found = plan(candidates, at(100), 10);
        assert_eq!(found.ask, [missing.clone(), soon.clone(), late.clone()]);
        assert_eq!(found.wake_at, Some(at(130)), "the next instant at which anything changes by itself");
        assert_eq!(plan(candidates, at(100), 1).ask, std::slice::from_ref(missing));
    }

    #[test]
    fn an_expiry_is_looked_at_even_when_nothing_is_to_be_asked() {
        let only = entitlement("x");
        let held =
            Candidate { entitlement: &only, held: Some((at(50), at(99))), not_before: None, asked: true };
        assert_eq!(plan([held], at(60), 10), Plan { ask: Vec::new(), wake_at: Some(at(100)) });
        assert_eq!(plan([], at(0), 10), Plan::default());
    }

    #[test]
    fn retries_grow_up_to_a_minute_and_hurry_when_the_certificate_ends() {
        for draw in [0, 1, 7, u64::MAX] {
            let waits: Vec<i64> =
                (1..12).map(|failures| retry_at(at(0), failures, draw, None).unix()).collect();
            assert!(
                waits.iter().zip(1..).all(|(wait, n)| (1..=(1i64 << (n - 1)).min(60)).contains(wait)),
                "{waits:?}"
            );
            assert!(waits.iter().rev().take(4).all(|wait| *wait >= 30), "{waits:?}");
            assert!(retry_at(at(0), 11, draw, Some(at(40))).unix() <= 10);
            assert_eq!(retry_at(at(0), 11, draw, Some(at(2))).unix(), 1, "never at once");
        }
    }

    #[test]
    fn a_certificate_that_is_old_on_arrival_is_not_renewed_at_once() {
        assert_eq!(not_at_once(at(1_800), at(0), at(3_600)), at(1_800));
        assert_eq!(not_at_once(at(1_800), at(3_000), at(3_600)), at(3_060));
        assert_eq!(not_at_once(at(1_800), at(3_592), at(3_600)), at(3_594));
        assert_eq!(not_at_once(at(1_800), at(3_600), at(3_600)), at(3_601));
    }

    #[test]
    fn reconnecting_waits_between_half_of_the_step_and_all_of_it() {
        for draw in [0, 12_345, u64::MAX] {
            let first = reconnect_after(1, draw);
            assert!((Duration::from_millis(100)..=Duration::from_millis(200)).contains(&first), "{first:?}");
            let later = reconnect_after(40, draw);
            assert!((Duration::from_secs(15)..=Duration::from_secs(30)).contains(&later), "{later:?}");
        }
    }
}
