//! The only shape in which time enters: a trait that the shell implements and passes readings from.
//!
//! Laws: nothing in this crate reads a clock; every function that needs the time takes `now: Timestamp`, read once per
//! request. Not here: the system clock (`rhizome_server`), arithmetic of instants (`rhizome_id::Timestamp`).
//! Sources: mozilla/neqo `.clippy.toml`; divviup/janus `core/src/time.rs`.

use std::sync::atomic::{AtomicI64, Ordering};

use rhizome_id::Timestamp;

/// A source of the current instant.
pub trait Clock: Send + Sync {
    /// The current instant in whole UTC seconds. May step back: who depends on order keeps the largest value seen.
    fn now(&self) -> Timestamp;
}

/// A clock that stands still until it is told to move: for tests and simulations.
#[derive(Debug)]
pub struct ManualClock {
    unix: AtomicI64,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub const fn new(start: Timestamp) -> Self {
        Self { unix: AtomicI64::new(start.unix()) }
    }

    /// Sets the clock, also back.
    pub fn set(&self, to: Timestamp) {
        self.unix.store(to.unix(), Ordering::SeqCst);
    }

    /// Moves the clock by `seconds`, negative for back, and returns the new reading.
    pub fn advance(&self, seconds: i64) -> Timestamp {
        let to = self.now().plus(seconds);
        self.set(to);
        to
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(self.unix.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(Timestamp::from_unix(1_000));
        assert_eq!(clock.now(), clock.now());
        assert_eq!(clock.advance(5).unix(), 1_005);
        assert_eq!(clock.advance(-10).unix(), 995);
        clock.set(Timestamp::from_unix(7));
        assert_eq!(clock.now().unix(), 7);
    }
}
