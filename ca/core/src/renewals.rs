//! Renewals that are ordered: who renews at which instant of a window, because the authority says so.
//!
//! Laws: everybody gets a slot of its own inside the window; whoever holds what ends sooner never comes after whoever
//! holds what ends later; slots fill at one steady rate, the number of certificates over the window, and only what would
//! end first is let in ahead of it. An order brings renewals forward and never puts one off, so that a slot that is
//! missed costs nothing; whoever is late gets another slot in what is left of the window, and not all the late ones the
//! same. An order says what it concerns when it is given: who comes later holds newer certificates anyhow.
//! Not here: who holds what (`rhizome_server::renewals`), carrying an order out (`rhizome-agent`), the renewal instant
//! of each certificate (`renewal`).
//! Sources: ca/docs/issuance.md, Renewal; RFC 9773 §4 (renewal windows that the authority chooses).

use std::collections::BTreeMap;

use rhizome_id::{Timestamp, Ttl};
use serde::{Deserialize, Serialize};

use crate::documents::{Kind, Stored};

/// An ordered renewal happens before this fraction of what was left of a certificate is all that remains.
const MARGIN_FRACTION: i64 = 10;
/// Bytes of turns in one document: half of what a store takes, since names are escaped.
const PART_BYTES: usize = 512 * 1024;
/// What a turn takes besides the name.
const TURN_BYTES: usize = 24;

/// One who is to renew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The stable text of its principal.
    pub principal: String,
    /// How many certificates it will ask for, its own included.
    pub certificates: u32,
    /// Last second of the one that ends first.
    pub first_end: Timestamp,
}

/// Who renews when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// When each one begins, by principal.
    pub turns: BTreeMap<String, Timestamp>,
    /// How many certificates will be asked for.
    pub certificates: u64,
    /// How many at most begin within one second.
    pub most_per_second: u64,
}

/// Gives each of `holders` a slot in the `window` that begins at `begin` (inclusive; the window's end is exclusive). The
/// bucket fills with `certificates / window` tokens a second, and a holder takes as many as it has certificates.
pub fn schedule(mut holders: Vec<Holder>, begin: Timestamp, window: Ttl) -> Schedule {
    holders.sort_by(|a, b| (a.first_end, &a.principal).cmp(&(b.first_end, &b.principal)));
    let weight = |holder: &Holder| u64::from(holder.certificates.max(1));
    let certificates = holders.iter().map(weight).fold(0, u64::saturating_add);
    let seconds = u64::try_from(window.seconds()).unwrap_or(1);
    let (mut turns, mut begun) = (BTreeMap::new(), BTreeMap::<Timestamp, u64>::new());
    let mut before: u64 = 0;
    for holder in &holders {
        let share = seconds.saturating_mul(before).checked_div(certificates).unwrap_or(0);
        let left = holder.first_end.since(begin).max(0);
        let latest = left.saturating_sub((left / MARGIN_FRACTION).max(1)).max(0);
        let slot = begin.plus(i64::try_from(share).unwrap_or(i64::MAX).min(latest));
        before = before.saturating_add(weight(holder));
        let in_this_second = begun.entry(slot).or_default();
        *in_this_second = in_this_second.saturating_add(weight(holder));
        turns.insert(holder.principal.clone(), slot);
    }
    let most_per_second = begun.into_values().max().unwrap_or(0);
    Schedule { turns, certificates, most_per_second }
}

/// What is the same for everybody whom an order concerns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its name: whoever has carried it out knows it again.
    pub name: String,
    /// When it was given; the window begins then.
    pub given_at: Timestamp,
    /// The end of the window. Nobody is told afterwards.
    pub deadline: Timestamp,
    /// Who gave it: the stable text of a principal, or `server`.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Only certificates of these issuers, by authority key identifier in hexadecimal. Empty: all.
    pub issuers: Vec<String>,
}

/// An order, or a part of one: a document has an end. Each part stands for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalOrder {
    /// What it says.
    pub order: Order,
    /// Which part it is, from 0.
    pub part: u32,
    /// Seconds after [`Order::given_at`] at which each one begins, by the stable text of its principal.
    pub turns: BTreeMap<String, i64>,
}

impl RenewalOrder {
    /// The documents of `order` with the turns of `schedule`.
    pub fn parts(order: &Order, schedule: &Schedule) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        let mut bytes = usize::MAX;
        for (principal, slot) in &schedule.turns {
            let more = principal.len().saturating_add(TURN_BYTES);
            bytes = bytes.saturating_add(more);
            if bytes > PART_BYTES {
                let part = u32::try_from(parts.len()).unwrap_or(u32::MAX);
                parts.push(Self { order: order.clone(), part, turns: BTreeMap::new() });
                bytes = more;
            }
            if let Some(part) = parts.last_mut() {
                part.turns.insert(principal.clone(), slot.since(order.given_at));
            }
        }
        parts
    }

    /// When `principal` is to begin, as it is told at `now`; `None` when the order does not concern it, or is over. Whoever
    /// missed its slot gets another one in what is left of the window.
    pub fn slot(&self, principal: &str, now: Timestamp) -> Option<Timestamp> {
        let planned = self.order.given_at.plus(*self.turns.get(principal)?);
        let left = self.order.deadline.since(now);
        if left <= 0 || planned >= now {
            return (left > 0).then_some(planned);
        }
        let draw = spread(&[self.order.name.as_str(), principal]);
        let offset = draw.checked_rem(u64::try_from(left).unwrap_or(1)).unwrap_or(0);
        Some(now.plus(i64::try_from(offset).unwrap_or(0)))
    }
}

impl Stored for RenewalOrder {
    const KIND: Kind = Kind::Renewal;

    fn id(&self) -> String {
        format!("{}/{:04}", self.order.name, self.part)
    }
}

/// The same number for the same words, and evenly spread over words (FNV-1a, 64 bits). No secret depends on it.
fn spread(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    fn holder(number: usize, certificates: u32, first_end: i64) -> Holder {
        let principal = format!("node:prod/join_token/vm-{number}");
        Holder { principal, certificates, first_end: at(first_end) }
    }

    fn order(given_at: i64, window: i64) -> Order {
        Order {
            name: "renewal-1".to_owned(),
            given_at: at(given_at),
            deadline: at(given_at + window),
            by: "admin:alice".to_owned(),
            reason: "test".to_owned(),
            issuers: Vec::new(),
        }
    }

    #[test]
    fn slots_are_spread_by_certificates_and_what_ends_first_comes_first() {
        let holders =
            vec![holder(0, 1, 90_000), holder(1, 2, 50_000), holder(2, 4, 70_000), holder(3, 1, 80_000)];
        let found = schedule(holders, at(10_000), Ttl::hours(1));
        let turns: Vec<i64> = found.turns.values().map(|slot| slot.unix()).collect();
        assert_eq!(turns, [13_150, 10_000, 10_900, 12_700]);
        assert_eq!((found.certificates, found.most_per_second), (8, 4));
        let nobody = schedule(Vec::new(), at(0), Ttl::hours(1));
        assert_eq!((nobody.turns.len(), nobody.certificates, nobody.most_per_second), (0, 0, 0));
    }

    #[test]
    fn what_would_end_before_its_turn_is_let_in_ahead() {
        let holders = (0..100).map(|number| holder(number, 1, 10_600)).collect();
        let found = schedule(holders, at(10_000), Ttl::hours(1));
        let last = found.turns.values().max().unwrap();
        assert_eq!(*last, at(10_540), "a tenth of what was left is kept");
        assert!(found.most_per_second > 1, "and the plan says what that costs");
    }

    #[test]
    fn a_turn_is_told_until_the_window_ends_and_late_ones_do_not_come_all_at_once() {
        let holders: Vec<Holder> = (0..1_000).map(|number| holder(number, 1, 90_000)).collect();
        let names: Vec<String> = holders.iter().map(|it| it.principal.clone()).collect();
        let planned = schedule(holders, at(0), Ttl::hours(1));
        let parts = RenewalOrder::parts(&order(0, 3_600), &planned);
        let [part] = parts.as_slice() else { panic!("{}", parts.len()) };
        for name in &names {
            assert_eq!(part.slot(name, at(0)), Some(planned.turns[name]));
            let late = part.slot(name, at(1_800)).unwrap();
            assert!(late >= at(1_800) && late < at(3_600));
            assert_eq!(part.slot(name, at(1_800)), Some(late), "the same at every look");
            assert_eq!(part.slot(name, at(3_600)), None);
        }
        let late: Vec<i64> = names.iter().map(|it| part.slot(it, at(1_800)).unwrap().unix()).collect();
        let in_one_minute = (1_800..3_600)
            .step_by(60)
            .map(|from| late.iter().filter(|slot| (from..from + 60).contains(*slot)).count());
        assert!(in_one_minute.max().unwrap() < 70, "a thirtieth of a thousand is 33");
        assert_eq!(part.slot("node:prod/join_token/other", at(0)), None);
    }

    #[test]
    fn a_large_order_is_cut_into_documents_that_a_store_takes() {
        let long = "x".repeat(300);
        let turns = (0..5_000).map(|number| (format!("node:prod/join_token/{long}{number}"), at(number)));
        let planned = Schedule { turns: turns.collect(), certificates: 5_000, most_per_second: 1 };
        let parts = RenewalOrder::parts(&order(0, 10_000), &planned);
        assert!(parts.len() > 1);
        assert_eq!(parts.iter().map(|it| it.turns.len()).sum::<usize>(), 5_000);
        for (number, part) in (0..).zip(&parts) {
            assert_eq!(part.key().to_string(), format!("renewal renewal-1/000{number}"));
            let body = serde_json::to_string(part).unwrap();
            assert!(body.len() < 1 << 20, "{}", body.len());
            assert_eq!(serde_json::from_str::<RenewalOrder>(&body).unwrap(), *part);
        }
        for (name, slot) in &planned.turns {
            let told: Vec<Timestamp> = parts.iter().filter_map(|it| it.slot(name, at(0))).collect();
            assert_eq!(told, [*slot]);
        }
    }

    fn holders() -> impl Strategy<Value = Vec<Holder>> {
        let one = (1_u32..200, 0_i64..1_000_000);
        proptest::collection::vec(one, 0..60).prop_map(|drawn| {
            drawn.into_iter().enumerate().map(|(n, (count, end))| holder(n, count, end)).collect()
        })
    }

    proptest! {
        #[test]
        fn everybody_has_a_slot_of_the_window_before_its_certificates_end(
            holders in holders(), begin in 0_i64..500_000, window in 1_i64..604_800,
        ) {
            let found = schedule(holders.clone(), at(begin), Ttl::from_seconds(window).unwrap());
            prop_assert_eq!(found.turns.len(), holders.len());
            for holder in &holders {
                let slot = found.turns[&holder.principal];
                prop_assert!(slot >= at(begin) && slot < at(begin + window));
                prop_assert!(slot < holder.first_end || slot == at(begin));
            }
        }

        #[test]
        fn nobody_comes_after_one_whose_certificates_end_later(
            holders in holders(), begin in 0_i64..500_000, window in 1_i64..604_800,
        ) {
            let found = schedule(holders.clone(), at(begin), Ttl::from_seconds(window).unwrap());
            for (one, other) in holders.iter().zip(holders.iter().skip(1)) {
                let (first, second) = (found.turns[&one.principal], found.turns[&other.principal]);
                prop_assert!(one.first_end >= other.first_end || first <= second);
                prop_assert!(other.first_end >= one.first_end || second <= first);
            }
        }

        #[test]
        fn no_more_begin_than_the_bucket_holds(holders in holders(), window in 1_i64..604_800) {
            // Nothing ends soon: nobody has to be let in ahead.
            let holders: Vec<Holder> =
                holders.into_iter().map(|it| Holder { first_end: it.first_end.plus(10_000_000), ..it }).collect();
            let found = schedule(holders.clone(), at(0), Ttl::from_seconds(window).unwrap());
            let weight: BTreeMap<&str, u64> =
                holders.iter().map(|it| (it.principal.as_str(), u64::from(it.certificates))).collect();
            let largest = weight.values().copied().max().unwrap_or(0);
            let mut begun = BTreeMap::<Timestamp, u64>::new();
            for (name, slot) in &found.turns {
                *begun.entry(*slot).or_default() += weight[name.as_str()];
            }
            prop_assert_eq!(begun.values().copied().max().unwrap_or(0), found.most_per_second);
            let mut sum = 0;
            for (slot, count) in begun {
                sum += count;
                let filled = found.certificates * u64::try_from(slot.unix() + 1).unwrap();
                prop_assert!(sum * u64::try_from(window).unwrap() <= filled + largest * u64::try_from(window).unwrap());
            }
        }

        #[test]
        fn whatever_the_clock_says_a_slot_that_is_told_lies_in_the_window(
            holders in holders(), window in 1_i64..604_800, now in -1_000_i64..700_000,
        ) {
            let planned = schedule(holders.clone(), at(1_000), Ttl::from_seconds(window).unwrap());
            let parts = RenewalOrder::parts(&order(1_000, window), &planned);
            for holder in &holders {
                let told: Vec<Timestamp> =
                    parts.iter().filter_map(|it| it.slot(&holder.principal, at(now))).collect();
                prop_assert_eq!(told.len(), usize::from(now < 1_000 + window));
                for slot in told {
                    prop_assert!(slot >= at(1_000).max(at(now).min(planned.turns[&holder.principal])));
                    prop_assert!(slot < at(1_000 + window));
                }
            }
        }
    }
}
