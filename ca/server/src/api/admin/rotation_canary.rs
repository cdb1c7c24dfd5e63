//! The canary of a change of the root, as administrators choose and see it.
//!
//! Laws: what is chosen is either a percentage or namespaces, bounded, so that the record stays small.
//! Not here: who belongs to the share and what its gate waits for (`rhizome_core::rotation`), probes (`rotate_root_canary`).

use rhizome_core::limits::{CANARY_NAMESPACES, ROTATION_CANARY_SECONDS};
use rhizome_core::rotation::canary::Share;
use rhizome_core::rotation::evidence::Direction;
use rhizome_core::rotation::{Canary, Phase, Rotation, World, gate};
use rhizome_core::state::State;
use rhizome_id::Timestamp;
use rhizome_proto::admin::v1 as wire;

use crate::api::convert;
use crate::error::ApiError;
use crate::rotate_root_canary::replicas;

/// The longest canary: a month, after which it is no canary.
const MOST_SECONDS: u64 = 31 * 86_400;
/// The longest name of a namespace (RFC 1123: a label).
const MOST_NAME_BYTES: usize = 63;

/// What was chosen.
pub(super) fn read(wished: &wire::RotationCanary) -> Result<Canary, ApiError> {
    let invalid = |field, problem: &str| Err(ApiError::Invalid { field, problem: problem.to_owned() });
    let is_name = |it: &&String| {
        let plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
        (1..=MOST_NAME_BYTES).contains(&it.len()) && it.chars().all(plain)
    };
    let share = match (wished.percent, wished.namespaces.as_slice()) {
        (0, []) => return invalid("canary", "say how many percent, or which namespaces"),
        (0, names) if names.len() > CANARY_NAMESPACES => {
            return invalid("canary.namespaces", "there are more than 64");
        }
        (0, names) if !names.iter().all(|it| is_name(&it)) => {
            return invalid("canary.namespaces", "one of them is no name of a namespace");
        }
        (0, names) => Share::Namespaces(names.iter().cloned().collect()),
        (percent, []) => match u8::try_from(percent) {
            Ok(percent) if percent < 100 => Share::Percent(percent),
            Ok(_) | Err(_) => return invalid("canary.percent", "1 to 99"),
        },
        (_, _) => return invalid("canary", "either a percentage or namespaces, not both"),
    };
    let seconds = match wished.seconds {
        None => ROTATION_CANARY_SECONDS,
        Some(seconds) if seconds <= MOST_SECONDS => i64::try_from(seconds).unwrap_or(ROTATION_CANARY_SECONDS),
        Some(_) => return invalid("canary.seconds", "at most 31 days"),
    };
    Ok(Canary { share, window_seconds: seconds })
}

/// What was chosen, as it is shown.
pub(super) fn shown(canary: &Canary) -> wire::RotationCanary {
    let (percent, namespaces) = match &canary.share {
        Share::Percent(percent) => (u32::from(*percent), Vec::new()),
        Share::Namespaces(names) => (0, names.iter().cloned().collect()),
    };
    let seconds = Some(u64::try_from(canary.window_seconds).unwrap_or_default());
    wire::RotationCanary { percent, namespaces, seconds }
}

/// How it does; `None`: none was chosen.
pub(super) fn status(
    state: &State,
    rotation: &Rotation,
    world: &World,
    now: Timestamp,
) -> Option<wire::RotationCanaryStatus> {
    rotation.choices.canary.as_ref()?;
    let holders: Vec<u32> =
        gate::who_depends_on(&rotation.new, world, now).map(|(_, presented)| presented.count).collect();
    let (with, without) =
        if rotation.phase == Phase::Canary { replicas(state, &rotation.new) } else { Default::default() };
    let rounds = world.probes.iter().filter(|it| it.direction == Direction::NewToOld);
    let fails = world.probes.iter().find_map(|it| it.failure.clone());
    let failed = rotation.last.as_ref().filter(|it| it.from == Phase::Canary && it.probes.1 > 0);
    Some(wire::RotationCanaryStatus {
        certificates: holders.iter().fold(0, |sum: u32, it| sum.saturating_add(*it)),
        holders: u32::try_from(holders.len()).unwrap_or(u32::MAX),
        replicas: with.into_iter().collect(),
        replicas_without: without.into_iter().collect(),
        probes: u32::try_from(rounds.count()).unwrap_or(u32::MAX),
        last_probe: world.probes.last().map(|it| convert::timestamp(it.at)),
        failure: fails.or_else(|| failed.map(|it| it.by.clone())).unwrap_or_default(),
    })
}
