//! The clock that everything in the server reads: the machine's, unless it has just stepped ahead.
//!
//! Laws: nothing is decided here; `rhizome_core::clock_guard` judges. A reading that agrees with the last judgement
//! takes no lock. What happens to the clock is said in the log, once.
//! Not here: a clock that lies behind the ledger (`ca`), what waits until the clock has settled (`housekeeping`,
//! `rotate`). Sources: ca/docs/attacks.md §2 (21).

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhizome_core::clock_guard::{ClockEvent, ClockGuard};
use rhizome_core::limits::{CLOCK_AHEAD_SECONDS, CLOCK_BELIEVED_AFTER_SECONDS};
use rhizome_core::ports::Clock;
use rhizome_id::Timestamp;

/// A clock behind a guard.
pub(crate) struct GuardedClock {
    machine: Arc<dyn Clock>,
    guard: Mutex<ClockGuard>,
    /// Copies of what the guard believes, for readings that change nothing.
    offset: AtomicI64,
    /// The difference of the last such reading, of which the guard hears when something changes.
    glanced: AtomicI64,
    doubting: AtomicBool,
    /// How often a step ahead that had been believed was taken back.
    returns: AtomicU64,
}

impl GuardedClock {
    pub(crate) fn new(machine: Arc<dyn Clock>) -> Self {
        let guard = ClockGuard::new(machine.now(), machine.steady());
        Self {
            machine,
            offset: AtomicI64::new(guard.offset()),
            glanced: AtomicI64::new(guard.offset()),
            guard: Mutex::new(guard),
            doubting: AtomicBool::new(false),
            returns: AtomicU64::new(0),
        }
    }

    /// By how many seconds the machine's clock is ahead of what is believed; 0 while it is believed.
    pub(crate) fn ahead(&self) -> i64 {
        self.now();
        self.guard().ahead().unwrap_or(0)
    }

    /// Whether the clock has been steady for so long that something may be destroyed because of it.
    pub(crate) fn settled(&self) -> bool {
        self.now();
        self.guard().settled(self.machine.steady())
    }

    /// How often a step ahead that had been believed was taken back: whoever keeps the largest instant seen begins
    /// anew when this has changed.
    pub(crate) fn returns(&self) -> u64 {
        self.returns.load(Ordering::Acquire)
    }

    /// Whether the clock is doubted, or was seen to step ahead lately.
    pub(crate) fn shaken(&self) -> bool {
        self.now();
        self.guard().shaken(self.machine.steady())
    }

    fn guard(&self) -> MutexGuard<'_, ClockGuard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self) -> Timestamp {
        let mut guard = self.guard();
        guard.glanced(self.glanced.load(Ordering::Acquire));
        // Read again under the lock: judgements follow each other in the order of their readings.
        let wall = self.machine.now();
        let (believed, event) = guard.judge(wall, self.machine.steady());
        self.offset.store(guard.offset(), Ordering::Release);
        self.glanced.store(guard.last_offset(), Ordering::Release);
        self.doubting.store(guard.ahead().is_some(), Ordering::Release);
        match event {
            None => {}
            Some(ClockEvent::Doubted { ahead }) => tracing::error!(
                %wall, ahead, believed_after = CLOCK_BELIEVED_AFTER_SECONDS,
                "the clock stepped ahead; time goes on as before until the step has lasted or is taken back"
            ),
            Some(ClockEvent::Recovered) => tracing::warn!(%wall, "the clock's step ahead was taken back"),
            Some(ClockEvent::Believed { ahead }) => tracing::error!(
                %wall, ahead,
                "the clock's step ahead has lasted and is believed; nothing is destroyed because of it for hours"
            ),
            Some(ClockEvent::Returned { back }) => {
                self.returns.fetch_add(1, Ordering::AcqRel);
                tracing::error!(
                    %wall, back,
                    "the clock came back from a step ahead that had been believed; certificates of that time are not \
                     valid yet, revoke them"
                );
            }
        }
        believed
    }
}

impl Clock for GuardedClock {
    fn now(&self) -> Timestamp {
        let (wall, steady) = (self.machine.now(), self.machine.steady());
        let offset = wall.unix().saturating_sub(steady);
        let away = offset.abs_diff(self.offset.load(Ordering::Acquire));
        if away <= CLOCK_AHEAD_SECONDS.unsigned_abs() && !self.doubting.load(Ordering::Acquire) {
            // The two clocks tick at different moments, so it changes by a second now and then.
            if self.glanced.load(Ordering::Acquire) != offset {
                self.glanced.store(offset, Ordering::Release);
            }
            return wall;
        }
        self.judge()
    }

    fn steady(&self) -> i64 {
        self.machine.steady()
    }
}
