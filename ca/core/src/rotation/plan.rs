//! The plan: what a rotation would meet, before it is begun.
//!
//! Laws: a plan changes nothing. What it cannot know it says: a duration is what is known to be needed, and beside it the
//! instant at which whoever is away now stops mattering by itself.

use std::collections::BTreeMap;

use rhizome_id::{AuthorityId, Timestamp};

use super::evidence::{SubscriberKind, World};
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

/// A live subscriber without a stream: it will acknowledge nothing before it comes back.
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
    /// When it stops mattering by itself; `None`: never.
    pub until: Option<Timestamp>,
}

/// The plan of a rotation begun at `now`.
pub fn plan(world: &World, mode: Mode, choices: &Choices, now: Timestamp) -> Plan {
    let live = || world.subscribers.iter().filter(|it| it.is_live(now));
    let mut subscribers: BTreeMap<Place, u32> = BTreeMap::new();
    for subscriber in live() {
        let count = subscribers.entry((subscriber.cluster.clone(), subscriber.kind)).or_default();
        *count = count.saturating_add(1);
    }
    let with_streams = |kind| matches!(kind, SubscriberKind::Agent | SubscriberKind::Subordinate);
    let mut absent: Vec<Absent> = live()
        .filter(|it| with_streams(it.kind) && !it.connected)
        .map(|it| Absent {
            last_contact: it.last_contact,
            name: it.name.clone(),
            kind: it.kind,
            cluster: it.cluster.clone(),
            until: it.matters_until(),
        })
        .collect();
    absent.sort();
    let renewals = live().fold(0u32, |sum, it| sum.saturating_add(it.workloads));
    let window = pacing::window_seconds(renewals, choices);
    let canary = choices.canary.as_ref().map_or(0, |it| it.window_seconds);
    let soak = if mode == Mode::Planned { choices.soak_seconds } else { 0 };
    let seconds = [canary, window, choices.settle_seconds, soak].into_iter().fold(0i64, i64::saturating_add);
    let per_second = i64::from(renewals).checked_div(window.max(1)).unwrap_or(0).max(i64::from(renewals > 0));
    let ends: Option<Vec<Timestamp>> = absent.iter().map(|it| it.until).collect();
    Plan {
        old: world.facts.active_root().cloned(),
        subscribers,
        renewals,
        renewals_per_second: u32::try_from(per_second).unwrap_or(u32::MAX),
        seconds,
        bridge: mode != Mode::Expired
            && world.facts.active_root().is_some_and(|old| world.facts.keys.contains(old)),
        latest: ends.and_then(|ends| ends.into_iter().max()),
        absent,
    }
}

/// Whether an anchor that ends at `not_after` is too close to its end at `now`, when a rotation takes `rotation_seconds`.
pub fn is_close_to_its_end(not_after: Timestamp, rotation_seconds: i64, now: Timestamp) -> bool {
    not_after.since(now) < rotation_seconds.saturating_mul(ANCHOR_ALARM_ROTATIONS)
}
