//! Figures: waits and how they are spread, printed beside their targets. And the two things that only a benchmark may
//! have from the machine directly: the time, and tasks of its own.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the tasks of a benchmark end with it")]
pub(crate) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(work)
}

/// Waits, in order.
#[derive(Debug, Default)]
pub(crate) struct Waits(Vec<Duration>);

impl FromIterator<Duration> for Waits {
    fn from_iter<I: IntoIterator<Item = Duration>>(waits: I) -> Self {
        let mut waits: Vec<Duration> = waits.into_iter().collect();
        waits.sort_unstable();
        Self(waits)
    }
}

impl Waits {
    /// The wait that this share of all does not exceed, ms; nothing counts as 0.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let index = ((self.0.len() as f64 * share) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, worst, count) = (self.at(0.5), self.at(0.99), self.at(1.0), self.len());
        write!(f, "median {p50:.1} ms, p99 {p99:.1} ms, worst {worst:.1} ms, of {count}")
    }
}

/// One line: what was measured, the figure, its target, and what the figure came from.
pub(crate) fn show(what: &str, figure: &str, target: &str, raw: &str) {
    println!("{what:<52} {figure:>12}   target {target:<26} {raw}");
}

/// A part begins.
pub(crate) fn heading(text: &str) {
    println!("\n{text}");
}
