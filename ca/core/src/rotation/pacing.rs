//! Pacing: over how long the renewals that a rotation orders are spread.
//!
//! Laws: at most so many begin in a second, however many there are. Not here: each subscriber's own slot in the window, the
//! nearest end first ([`crate::renewals`]).
//! Sources: ca/docs/rotation.md, Herd; Consul's `csr_max_per_second`.

use super::Choices;

/// Over how many seconds the renewals of `count` certificates are spread.
pub fn window_seconds(count: u32, choices: &Choices) -> i64 {
    let rate = i64::from(choices.renewals_per_second.max(1));
    let fastest = i64::from(count).saturating_add(rate.saturating_sub(1)).checked_div(rate).unwrap_or(0);
    choices.window_seconds.max(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_when_the_rate_demands_it() {
        let choices = Choices { window_seconds: 60, renewals_per_second: 10, ..Choices::default() };
        for (count, expected) in [(0, 60), (600, 60), (601, 61), (6_000, 600)] {
            assert_eq!(window_seconds(count, &choices), expected, "{count} certificates");
        }
    }
}
