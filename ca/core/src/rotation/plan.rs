//! The plan: what a rotation would meet, before it is begun.
//!
//! Laws: a plan changes nothing. What it cannot know it says: a duration is what is known to be needed, and beside it the
//! instant at which whoever is away now stops mattering by itself. Whoever has no stream cannot be told to renew: what it
//! holds below the old root counts until it has expired, and a planned rotation takes at least as long.

use std::collections::BTreeMap;

use rhizome_id::{AuthorityId, Timestamp};

use super::evidence::{Subscriber, SubscriberKind, World};
use super::gate::Place;
use super::{Choices, Mode, pacing};
use crate::limits::ANCHOR_ALARM_ROTATIONS;

/// What a rotation begun now would meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The root that would go.
    pub old: Option<AuthorityId>,
    /// Live subscribers by cluster and kind.
    pub subscribers: BTreeMap<Place, u32>,
    /// Who would hold up a gate as things are.
    pub absent: Vec<Absent>,
    /// Certificates that would be renewed.
    pub renewals: u32,
    /// Renewals a second while they are.
    pub renewals_per_second: u32,
    /// Seconds that it takes at least.
    pub seconds: i64,
    /// Whether this server can make the cross-certificates, so that nobody breaks who has only one of the roots.
    pub bridge: bool,
    /// When the last of those who are away stops mattering; `None`: somebody never does, or nobody is away.
    pub latest: Option<Timestamp>,
}

/// A live subscriber that would hold up a gate: one that has a stream and is away, or one that has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Absent {
    /// When it was last heard of; `None`: never.
    pub last_contact: Option<Timestamp>,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: SubscriberKind,
    /// Where it is.
    pub cluster: String,
    /// Whether it would be told to renew once it is connected; otherwise what it holds counts until it has expired.
    pub obeys: bool,
    /// When it stops mattering by itself; `None`: never.
    pub until: Option<Timestamp>,
}

/// The plan of a rotation begun at `now` by the server whose own certificates are those of `own`; it renews them at once.
pub fn plan(world: &World, mode: Mode, choices: &Choices, own: &str, now: Timestamp) -> Plan {
    let old = world.facts.active_root();
    let live = || world.subscribers.iter().filter(|it| it.is_live(now));
    let mut subscribers: BTreeMap<Place, u32> = BTreeMap::new();
    for subscriber in live() {
        let count = subscribers.entry((subscriber.cluster.clone(), subscriber.kind)).or_default();
        *count = count.saturating_add(1);
    }
    let presents = |it: &Subscriber| old.is_some_and(|old| it.presents_under(old, now).is_some());
    let holds_up = |it: &&Subscriber| match it.kind {
        SubscriberKind::Agent | SubscriberKind::Subordinate => !it.connected,
        SubscriberKind::OneShot | SubscriberKind::Publisher | SubscriberKind::Federated => presents(it),
        SubscriberKind::Replica => presents(it) && it.name != own,
    };
    let mut absent: Vec<Absent> = live()
        .filter(holds_up)
        .map(|it| Absent {
            last_contact: it.last_contact,
            name: it.name.clone(),
            kind: it.kind,
            cluster: it.cluster.clone(),
            obeys: it.kind.obeys_orders(),
            until: it.matters_until(),
        })
        .collect();
    absent.sort();
    let renewals = live().fold(0u32, |sum, it| sum.saturating_add(it.workloads));
    let window = pacing::window_seconds(renewals, choices);
    let canary = choices.canary.as_ref().map_or(0, |it| it.window_seconds);
    let soak = if mode == Mode::Planned { choices.soak_seconds } else { 0 };
    // Whoever is told renews within the window, and it is believed after the settling time.
    let told = window.saturating_add(choices.settle_seconds);
    let waited_for = live().filter(|it| presents(it) && it.name != own);
    let waited_for = waited_for.filter(|it| choices.until_expiry || !it.kind.obeys_orders());
    let ends = waited_for.filter_map(Subscriber::matters_until).map(|until| until.since(now));
    let active = ends.filter(|_| mode == Mode::Planned).fold(told, Ord::max);
    let seconds = [canary, active, soak].into_iter().fold(0i64, i64::saturating_add);
    let per_second = i64::from(renewals).checked_div(window.max(1)).unwrap_or(0).max(i64::from(renewals > 0));
    let ends: Option<Vec<Timestamp>> = absent.iter().map(|it| it.until).collect();
    Plan {
        old: old.cloned(),
        subscribers,
        renewals,
        renewals_per_second: u32::try_from(per_second).unwrap_or(u32::MAX),
        seconds,
        bridge: mode != Mode::Expired && old.is_some_and(|old| world.facts.keys.contains(old)),
        latest: ends.and_then(|ends| ends.into_iter().max()),
        absent,
    }
}

/// Whether an anchor that ends at `not_after` is too close to its end at `now`, when a rotation takes `rotation_seconds`.
pub fn is_close_to_its_end(not_after: Timestamp, rotation_seconds: i64, now: Timestamp) -> bool {
    not_after.since(now) < rotation_seconds.saturating_mul(ANCHOR_ALARM_ROTATIONS)
}
