//! Validity of what is issued, and when its holder renews it.
//!
//! Laws: NotAfter is inclusive and lies within every CA above; NotBefore lies a little in the past, because clocks
//! differ, and never before a CA above; the renewal instant is drawn once per certificate and lies after the issuance
//! and before NotAfter, so that a fleet that started together does not renew together.
//! Not here: who may have which lifetime (`policy`), when authorities are replaced (`authority`).
//! Sources: RFC 5280 §4.1.2.5; ca/docs/issuance.md, Validity and Renewal; spiffe/spire
//! `pkg/common/rotationutil/rotationutil.go` (half of the life);
//! Let's Encrypt 2021-06-08 (validity off by one); istio/istio#59768 (lifetime outlives the issuer).

use rhizome_id::{Timestamp, Ttl};

use crate::limits::{BACKDATE_FRACTION, BACKDATE_SECONDS, RENEW_AT_FRACTION, RENEW_JITTER_FRACTION};

/// From when to when a certificate is valid; both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: Timestamp,
    /// The last second.
    pub not_after: Timestamp,
    /// Whether it is shorter than the lifetime asked for, because a CA above ends sooner.
    pub clamped: bool,
}

/// The validity of a certificate issued at `now` for `ttl`, under CAs that are all valid from `not_before_limit` to
/// `not_after_limit` (inclusive). It is backdated by 60 s, but at most a tenth of the time that lies ahead; the
/// backdating is part of `ttl`, so that `not_after - not_before + 1 s` never exceeds it.
///
/// `None` when the CAs are not valid at `now`: then nothing may be issued.
pub fn validity(
    now: Timestamp,
    ttl: Ttl,
    not_before_limit: Timestamp,
    not_after_limit: Timestamp,
) -> Option<Validity> {
    validity_backdated(BACKDATE_SECONDS, now, ttl, not_before_limit, not_after_limit)
}

/// The same, backdated by `most` seconds, or a tenth of the time that lies ahead if that is less.
pub fn validity_backdated(
    most: i64,
    now: Timestamp,
    ttl: Ttl,
    not_before_limit: Timestamp,
    not_after_limit: Timestamp,
) -> Option<Validity> {
    if now < not_before_limit || now > not_after_limit {
        return None;
    }
    // Inclusive at both ends: a certificate valid from `now` to `now` lives for one second.
    let left = not_after_limit.since(now).saturating_add(1);
    let backdate = most.min(ttl.seconds().min(left) / BACKDATE_FRACTION);
    let not_before = now.minus(backdate).max(not_before_limit);
    // The backdating is part of the lifetime, not on top of it: the whole never exceeds what was granted.
    let wanted = not_before.last_second_of(ttl);
    Some(Validity { not_before, not_after: wanted.min(not_after_limit), clamped: not_after_limit < wanted })
}

/// When to renew a certificate valid from `not_before` to `not_after`: at half of its life, ± 10 % of it. `draw` is 64
/// random bits, drawn once for this certificate: a renewal instant drawn at every look would collapse to its early
/// edge.
pub fn renewal_instant(not_before: Timestamp, not_after: Timestamp, draw: u64) -> Timestamp {
    let life = not_after.since(not_before).saturating_add(1).max(1);
    let spread = life / RENEW_JITTER_FRACTION;
    let width = u64::try_from(spread.saturating_mul(2).saturating_add(1)).unwrap_or(1);
    // The bias of `%` is below 2^-30 for every lifetime there is, and harmless.
    let offset = i64::try_from(draw.checked_rem(width).unwrap_or(0)).unwrap_or(0);
    not_before.plus(life / RENEW_AT_FRACTION).minus(spread).plus(offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    fn ttl(seconds: i64) -> Ttl {
        Ttl::from_seconds(seconds).unwrap()
    }

    const START: Timestamp = Timestamp::EPOCH;
    const END: Timestamp = Timestamp::MAX;

    #[test]
    fn the_last_second_is_inclusive_and_the_first_is_backdated() {
        let found = validity(at(10_000), Ttl::hours(1), START, END).unwrap();
        assert_eq!(found.not_after, at(13_539));
        assert_eq!(found.not_before, at(9_940));
        assert_eq!(found.not_after.since(found.not_before) + 1, 3_600, "the whole is what was granted");
        assert!(!found.clamped);
        let short = validity(at(10_000), ttl(100), START, END).unwrap();
        assert_eq!((short.not_before, short.not_after), (at(9_990), at(10_089)), "a tenth");
        let shortest = validity(at(10_000), ttl(1), START, END).unwrap();
        assert_eq!((shortest.not_before, shortest.not_after), (at(10_000), at(10_000)));
    }

    #[test]
    fn the_last_second_of_the_issuer_is_the_last_chance_to_issue() {
        let end = at(20_000);
        let table = [
            (19_000, Some((20_000, true))),
            (16_461, Some((20_000, false))),
            (16_460, Some((19_999, false))),
            (16_462, Some((20_000, true))),
            (19_999, Some((20_000, true))),
            (20_000, Some((20_000, true))),
            (20_001, None),
        ];
        for (now, expected) in table {
            let found = validity(at(now), Ttl::hours(1), START, end);
            let expected = expected.map(|(not_after, clamped)| (at(not_after), clamped));
            assert_eq!(found.map(|it| (it.not_after, it.clamped)), expected, "now {now}");
        }
    }

    #[test]
    fn nothing_is_valid_before_the_issuer_is() {
        let begin = at(20_000);
        assert_eq!(validity(at(19_999), Ttl::hours(1), begin, END), None);
        for now in [20_000, 20_001, 20_059] {
            let found = validity(at(now), Ttl::hours(1), begin, END).unwrap();
            assert_eq!(found.not_before, begin, "now {now}");
        }
    }

    #[test]
    fn renewals_of_a_fleet_are_spread_over_a_fifth_of_the_life() {
        let instants: std::collections::BTreeSet<_> = (0..1_000u64)
            .map(|draw| renewal_instant(at(0), at(9_999), draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect();
        let (first, last) = (instants.first().unwrap(), instants.last().unwrap());
        assert!(instants.len() > 500, "{}", instants.len());
        assert!(first.unix() < 4_100 && last.unix() > 5_900, "{first} {last}");
    }

    proptest! {
        #[test]
        fn a_leaf_never_outlives_the_chain_above_it(
            now in 1_000_000i64..2_000_000_000, seconds in 1i64..100_000_000,
            begin in -1_000i64..100_000, room in -1_000i64..100_000_000,
        ) {
            let (begin, end) = (at(now - begin), at(now + room));
            match validity(at(now), ttl(seconds), begin, end) {
                None => prop_assert!(at(now) < begin || at(now) > end),
                Some(found) => {
                    prop_assert!(begin <= found.not_before && found.not_before <= at(now));
                    prop_assert!(at(now) <= found.not_after && found.not_after <= end);
                    prop_assert!(found.not_after.since(found.not_before) < seconds);
                    prop_assert!(at(now).since(found.not_before) <= 60);
                    prop_assert_eq!(found.clamped, end < found.not_before.last_second_of(ttl(seconds)));
                }
            }
        }

        #[test]
        fn the_renewal_instant_lies_between_now_and_the_end(
            now in 1_000_000i64..2_000_000_000, seconds in 4i64..100_000_000,
            // Often an issuer with little life left: then most of a long backdating would lie before `now`.
            room in prop_oneof![3i64..300, 3i64..100_000_000], draw: u64,
        ) {
            let found = validity(at(now), ttl(seconds), START, at(now + room)).unwrap();
            let renew = renewal_instant(found.not_before, found.not_after, draw);
            prop_assert!(at(now) < renew && renew < found.not_after, "{now} {renew} {found:?}");
            let life = found.not_after.since(found.not_before) + 1;
            let from_half = renew.since(found.not_before.plus(life / 2));
            prop_assert!(from_half.abs() <= life / 10);
        }

        #[test]
        fn even_a_life_of_a_second_has_a_renewal_instant(start in 0i64..2_000_000_000, life in 1i64..5, draw: u64) {
            let (first, last) = (at(start), at(start + life - 1));
            let renew = renewal_instant(first, last, draw);
            prop_assert!(first <= renew && renew <= last);
        }
    }
}
