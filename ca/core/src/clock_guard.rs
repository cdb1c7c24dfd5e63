//! Whether the wall clock is believed: it is compared with a clock that nobody can step.
//!
//! Laws: a step ahead is not believed until it has lasted; until then time goes on as it went before, so what errs for
//! less than that leaves no trace. A step ahead that was believed may be taken back without anybody's word until the
//! clock has settled. Nothing is destroyed because of time before the clock has settled. A step back of any other
//! kind is not this guard's business: the newest instant of the ledger judges it, and it stops issuing.
//! Not here: reading clocks (`rhizome_server::system`), saying what happened (`rhizome_server::clock`).
//! Sources: ca/docs/attacks.md §2 (21); clock_gettime(2), `CLOCK_BOOTTIME`.

use rhizome_id::Timestamp;

use crate::limits::{CLOCK_AHEAD_SECONDS, CLOCK_BELIEVED_AFTER_SECONDS, CLOCK_SETTLED_AFTER_SECONDS};

/// The difference between the two clocks that is believed, and the one that is not yet. All in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockGuard {
    /// Wall clock minus steady clock.
    offset: i64,
    /// The difference of the last reading that was believed: at most [`CLOCK_AHEAD_SECONDS`] ahead of `offset`.
    last: i64,
    /// Reading of the steady clock at which that difference was first believed.
    since: i64,
    /// The difference that was believed before the clock stepped ahead.
    earlier: Option<i64>,
    /// A difference that is not believed yet, and since when it has been there.
    doubt: Option<(i64, i64)>,
}

/// Something about the clock that people should hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockEvent {
    /// It stepped ahead by so many seconds, and is not believed for now.
    Doubted {
        /// Seconds.
        ahead: i64,
    },
    /// It is back where it was before anybody believed the step.
    Recovered,
    /// The step ahead has lasted and is believed.
    Believed {
        /// Seconds.
        ahead: i64,
    },
    /// A step ahead that had been believed was taken back: what was seen meanwhile was the future.
    Returned {
        /// Seconds.
        back: i64,
    },
}

impl ClockGuard {
    /// Believes the readings of the start: whoever starts a process says that its clock is right.
    pub const fn new(wall: Timestamp, steady: i64) -> Self {
        let offset = wall.unix().saturating_sub(steady);
        Self { offset, last: offset, since: steady, earlier: None, doubt: None }
    }

    /// Hears of a difference that was believed at a glance (see [`ClockGuard::offset`]): time goes on from there when the
    /// next reading is not believed. What is not to be believed at a glance is not heard.
    pub const fn glanced(&mut self, offset: i64) {
        let away = offset.saturating_sub(self.offset).saturating_abs();
        if self.doubt.is_none() && away <= CLOCK_AHEAD_SECONDS {
            self.last = offset;
        }
    }

    /// The difference that is believed, for a caller that wants to see at a glance that nothing has changed: it has
    /// not when the readings differ by it, give or take [`CLOCK_AHEAD_SECONDS`], and [`ClockGuard::ahead`] is `None`.
    pub const fn offset(&self) -> i64 {
        self.offset
    }

    /// The difference of the last reading that was believed.
    pub const fn last_offset(&self) -> i64 {
        self.last
    }

    /// By how much the wall clock is ahead of what is believed; `None` while it is not in doubt.
    pub fn ahead(&self) -> Option<i64> {
        self.doubt.map(|(offset, _since)| offset.saturating_sub(self.offset))
    }

    /// Whether the clock has been steady for so long that something may be destroyed because of it.
    pub const fn settled(&self, steady: i64) -> bool {
        self.doubt.is_none() && steady.saturating_sub(self.since) >= CLOCK_SETTLED_AFTER_SECONDS
    }

    /// Whether the clock is doubted, or was seen to step ahead so lately that a person may yet put it back.
    pub const fn shaken(&self, steady: i64) -> bool {
        self.doubt.is_some() || (self.earlier.is_some() && !self.settled(steady))
    }

    /// The time that is believed when the clocks read `wall` and `steady`, and what is worth saying about it. To be
    /// asked often: that a step lasts is known only from readings.
    pub fn judge(&mut self, wall: Timestamp, steady: i64) -> (Timestamp, Option<ClockEvent>) {
        let offset = wall.unix().saturating_sub(steady);
        let ahead = offset.saturating_sub(self.offset);
        if ahead > CLOCK_AHEAD_SECONDS {
            return self.judge_ahead(wall, steady, ahead);
        }
        let recovered = self.doubt.take().map(|_taken_back| ClockEvent::Recovered);
        self.last = offset;
        if ahead < -CLOCK_AHEAD_SECONDS && self.may_return_to(offset, steady) {
            let back = ahead.saturating_neg();
            self.earlier =
                self.earlier.filter(|earlier| offset.saturating_sub(*earlier) > CLOCK_AHEAD_SECONDS);
            (self.offset, self.since) = (offset, steady);
            return (wall, Some(ClockEvent::Returned { back }));
        }
        (wall, recovered)
    }

    fn judge_ahead(&mut self, wall: Timestamp, steady: i64, ahead: i64) -> (Timestamp, Option<ClockEvent>) {
        let offset = self.offset.saturating_add(ahead);
        let same =
            self.doubt.filter(|(known, _)| offset.abs_diff(*known) <= CLOCK_AHEAD_SECONDS.unsigned_abs());
        let Some((_, since)) = same else {
            self.doubt = Some((offset, steady));
            return (self.continued(steady), Some(ClockEvent::Doubted { ahead }));
        };
        if steady.saturating_sub(since) < CLOCK_BELIEVED_AFTER_SECONDS {
            return (self.continued(steady), None);
        }
        self.earlier = Some(self.earlier.filter(|_| !self.settled_before(since)).unwrap_or(self.offset));
        (self.offset, self.last, self.since, self.doubt) = (offset, offset, steady, None);
        (wall, Some(ClockEvent::Believed { ahead }))
    }

    /// Time as it goes on from what was believed last.
    fn continued(&self, steady: i64) -> Timestamp {
        Timestamp::from_unix(self.last.saturating_add(steady))
    }

    const fn settled_before(&self, steady: i64) -> bool {
        steady.saturating_sub(self.since) >= CLOCK_SETTLED_AFTER_SECONDS
    }

    /// Whether `offset` lies between the steps ahead that were believed and where they began, a little give or take.
    fn may_return_to(&self, offset: i64, steady: i64) -> bool {
        let from = self.earlier.filter(|_| !self.settled_before(steady));
        from.is_some_and(|earlier| offset >= earlier.saturating_sub(CLOCK_AHEAD_SECONDS))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    /// A guard, and two clocks that agree until one is stepped.
    struct Clocks {
        guard: ClockGuard,
        steady: i64,
        stepped: i64,
    }

    impl Clocks {
        fn new() -> Self {
            Self { guard: ClockGuard::new(Timestamp::from_unix(START), 0), steady: 0, stepped: 0 }
        }

        /// Lets `seconds` pass and gives how far the believed time lies ahead of true time.
        fn after(&mut self, seconds: i64) -> (i64, Option<ClockEvent>) {
            self.steady += seconds;
            let wall = Timestamp::from_unix(START + self.steady + self.stepped);
            let (believed, event) = self.guard.judge(wall, self.steady);
            (believed.unix() - START - self.steady, event)
        }

        fn step(&mut self, seconds: i64) -> (i64, Option<ClockEvent>) {
            self.stepped += seconds;
            self.after(0)
        }
    }

    #[test]
    fn the_clock_is_believed_to_ten_minutes_ahead_and_not_a_second_more() {
        let mut clocks = Clocks::new();
        assert_eq!(clocks.step(CLOCK_AHEAD_SECONDS), (CLOCK_AHEAD_SECONDS, None));
        let ahead = CLOCK_AHEAD_SECONDS + 1;
        assert_eq!(clocks.step(1), (CLOCK_AHEAD_SECONDS, Some(ClockEvent::Doubted { ahead })));
        assert_eq!(clocks.guard.ahead(), Some(ahead));
        for _ in 0..10 {
            assert_eq!(clocks.step(1).0, CLOCK_AHEAD_SECONDS, "and small steps do not add up");
        }
    }

    #[test]
    fn time_goes_on_from_what_was_believed_last_when_a_step_is_doubted() {
        for drift in [-3_000, -120, 0, 30, CLOCK_AHEAD_SECONDS] {
            let mut clocks = Clocks::new();
            assert_eq!(clocks.step(drift), (drift, None), "the clock was set");
            assert_eq!(clocks.step(DAY).0, drift, "it does not jump back to the time of the start");
            assert_eq!(clocks.after(10).0, drift);
            assert_eq!(clocks.step(-DAY), (drift, Some(ClockEvent::Recovered)));
        }
        let mut clocks = Clocks::new();
        clocks.guard.glanced(START + 300);
        assert_eq!(clocks.step(DAY).0, 300, "also when that was seen at a glance");
        clocks.guard.glanced(START);
        assert_eq!(clocks.after(1).0, 300, "nothing is glanced at while a step is doubted");
    }

    #[test]
    fn a_step_ahead_that_is_taken_back_in_time_leaves_no_trace() {
        let mut clocks = Clocks::new();
        clocks.after(CLOCK_SETTLED_AFTER_SECONDS);
        let before = clocks.guard.clone();
        clocks.step(365 * DAY);
        assert_eq!(clocks.after(CLOCK_BELIEVED_AFTER_SECONDS - 1), (0, None), "time goes on as before");
        assert!(!clocks.guard.settled(clocks.steady));
        assert_eq!(clocks.step(-365 * DAY), (0, Some(ClockEvent::Recovered)));
        assert_eq!(clocks.guard, before);
        assert!(clocks.guard.settled(clocks.steady));
    }

    #[test]
    fn a_step_ahead_that_lasts_is_believed_and_nothing_is_destroyed_for_hours() {
        let mut clocks = Clocks::new();
        clocks.after(CLOCK_SETTLED_AFTER_SECONDS);
        clocks.step(8 * 3_600);
        clocks.after(CLOCK_BELIEVED_AFTER_SECONDS - 1);
        let ahead = 8 * 3_600;
        assert_eq!(clocks.after(1), (ahead, Some(ClockEvent::Believed { ahead })));
        clocks.after(CLOCK_SETTLED_AFTER_SECONDS - 1);
        assert!(!clocks.guard.settled(clocks.steady));
        clocks.after(1);
        assert!(clocks.guard.settled(clocks.steady));
    }

    #[test]
    fn a_clock_that_will_not_stand_still_is_not_believed() {
        let mut clocks = Clocks::new();
        for _ in 0..100 {
            assert!(matches!(clocks.step(DAY), (0, Some(ClockEvent::Doubted { .. }))));
            assert_eq!(clocks.after(CLOCK_BELIEVED_AFTER_SECONDS - 1), (0, None));
        }
    }

    #[test]
    fn a_believed_step_may_be_taken_back_until_the_clock_has_settled() {
        for (waited, returns) in
            [(CLOCK_SETTLED_AFTER_SECONDS - 1, true), (CLOCK_SETTLED_AFTER_SECONDS, false)]
        {
            let mut clocks = Clocks::new();
            clocks.step(DAY);
            clocks.after(CLOCK_BELIEVED_AFTER_SECONDS);
            clocks.after(waited);
            let (believed, event) = clocks.step(-DAY);
            assert_eq!(believed, 0, "the wall clock's word, which the ledger judges");
            assert_eq!(event, returns.then_some(ClockEvent::Returned { back: DAY }), "after {waited} s");
        }
    }

    #[test]
    fn two_believed_steps_may_be_taken_back_one_by_one_or_at_once() {
        for steps_back in [&[-DAY, -DAY][..], &[-2 * DAY]] {
            let mut clocks = Clocks::new();
            for _ in 0..2 {
                clocks.step(DAY);
                clocks.after(CLOCK_BELIEVED_AFTER_SECONDS);
            }
            for back in steps_back {
                assert_eq!(clocks.step(*back).1, Some(ClockEvent::Returned { back: -back }));
            }
            assert_eq!(clocks.step(-DAY).1, None, "there was no step ahead of which this takes back");
        }
    }

    #[test]
    fn a_step_back_that_takes_nothing_back_is_left_to_the_ledger() {
        let mut clocks = Clocks::new();
        assert_eq!(clocks.step(-DAY), (-DAY, None));
        assert_eq!(clocks.step(DAY), (0, None), "and forgotten when it is mended");
    }

    proptest! {
        #[test]
        fn believed_time_runs_ahead_only_after_a_step_has_lasted(
            moves in proptest::collection::vec((0i64..CLOCK_BELIEVED_AFTER_SECONDS, -DAY..DAY), 1..40),
        ) {
            let mut clocks = Clocks::new();
            for (passed, stepped) in moves {
                clocks.stepped = stepped;
                let (ahead, event) = clocks.after(passed);
                let believed = matches!(event, Some(ClockEvent::Believed { .. }));
                prop_assert!(believed || clocks.guard.earlier.is_some() || ahead <= CLOCK_AHEAD_SECONDS);
            }
        }
    }
}
