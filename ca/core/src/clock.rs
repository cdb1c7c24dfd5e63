//! The only shape in which time enters: a trait that the shell implements and passes readings from.
//!
//! Laws: nothing in this crate reads a clock; every function that needs the time takes `now: Timestamp`, read once per
//! request. Not here: the system clock (`rhizome_server`), whether it is believed
//! (`clock_guard`), arithmetic of instants (`rhizome_id::Timestamp`).
//! Sources: mozilla/neqo `.clippy.toml`; divviup/janus `core/src/time.rs`.

use std::sync::atomic::{AtomicI64, Ordering};

use rhizome_id::Timestamp;

/// A source of the current instant.
pub trait Clock: Send + Sync {
    /// The current instant in whole UTC seconds. May step back: who depends on order keeps the largest value seen.
    fn now(&self) -> Timestamp;

    /// Seconds since a moment that stays the same while the process runs: never stepped, and counting the time in
    /// which the machine was suspended. What [`crate::clock_guard`] compares the wall clock with. A source that has
    /// no such count gives its own instant, and is then never doubted.
    fn steady(&self) -> i64 {
        self.now().unix()
    }
}

/// A clock that stands still until it is told to move: for tests and simulations.
#[derive(Debug)]
pub struct ManualClock {
    unix: AtomicI64,
    steady: AtomicI64,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub const fn new(start: Timestamp) -> Self {
        Self { unix: AtomicI64::new(start.unix()), steady: AtomicI64::new(0) }
    }

    /// Sets the clock: forward as if time had passed, back as if somebody had stepped it.
    pub fn set(&self, to: Timestamp) {
        self.steady.fetch_add(to.since(self.now()).max(0), Ordering::SeqCst);
        self.unix.store(to.unix(), Ordering::SeqCst);
    }

    /// Moves the clock by `seconds`, negative for back, and returns the new reading: [`ManualClock::set`].
    pub fn advance(&self, seconds: i64) -> Timestamp {
        let to = self.now().plus(seconds);
        self.set(to);
        to
    }

    /// Steps the wall clock by `seconds`, also forward, while no time passes, and returns the new reading.
    pub fn step(&self, seconds: i64) -> Timestamp {
        let to = self.now().plus(seconds);
        self.unix.store(to.unix(), Ordering::SeqCst);
        to
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(self.unix.load(Ordering::SeqCst))
    }

    fn steady(&self) -> i64 {
        self.steady.load(Ordering::SeqCst)
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
        assert_eq!((clock.now().unix(), clock.steady()), (7, 5), "five seconds have passed");
        assert_eq!((clock.step(100).unix(), clock.steady()), (107, 5));
    }
}
