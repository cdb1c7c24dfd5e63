//! The real clock and the real randomness: the only file of the shell that reads either.
//!
//! Laws: everything else receives a [`Clock`] or an [`Entropy`]. Whether the wall clock is believed is decided behind
//! it (`clock`). Monotonic time for measuring durations comes from
//! [`Stopwatch`], also here.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rhizome_core::entropy::EntropyError;
use rhizome_core::ports::{Clock, Entropy};
use rhizome_id::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};

/// The machine's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    }

    /// `CLOCK_BOOTTIME`: not stepped by anybody, and it goes on while the machine is suspended.
    fn steady(&self) -> i64 {
        rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec
    }
}

/// The operating system's randomness.
#[derive(Debug)]
pub struct SystemEntropy(SystemRandom);

impl Default for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "this is the one place of the shell that opens the source")]
    fn default() -> Self {
        Self(SystemRandom::new())
    }
}

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        self.0.fill(bytes).map_err(|_opaque| EntropyError)
    }
}

/// Measures how long something takes, in monotonic time.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the monotonic clock")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
