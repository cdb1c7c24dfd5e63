//! When to dial a database that does not answer.
//!
//! Laws: the first try after a success comes at once, further ones ever later up to a bound; no two servers keep the
//! same time, so that a database that returns is not met by all of them at once.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{BACKOFF_FIRST, BACKOFF_LONGEST};

/// The memory of failures.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    again_at: Option<Instant>,
}

impl Backoff {
    /// How long nobody should dial from `now` on; zero when a try is welcome.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.again_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Notes a failure at `now`; `draw` is random.
    pub(super) fn failed(&mut self, now: Instant, draw: u64) {
        self.again_at = Some(now + pause(self.failures, draw));
        self.failures = self.failures.saturating_add(1);
    }
}

/// Between half and all of the bound for so many failures.
pub(super) fn pause(failures: u32, draw: u64) -> Duration {
    let bound = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(BACKOFF_LONGEST);
    let half = bound / 2;
    let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_micros(draw % micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread() {
        for failures in [0, 1, 5, 40, u32::MAX] {
            let (least, most) = (pause(failures, 0), pause(failures, u64::MAX));
            assert!(least >= BACKOFF_FIRST / 2 && most <= BACKOFF_LONGEST, "{failures}: {least:?} {most:?}");
            assert!(least <= most);
        }
        assert!(pause(2, 7) > pause(0, 7));
        assert_eq!(pause(99, 0), BACKOFF_LONGEST / 2);
    }

    #[test]
    fn a_success_forgets_every_failure() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        assert_eq!(backoff.wait(now), Duration::ZERO);
        backoff.failed(now, 3);
        assert!(backoff.wait(now) > Duration::ZERO);
        backoff.succeeded();
        assert_eq!(backoff.wait(now), Duration::ZERO);
    }
}
