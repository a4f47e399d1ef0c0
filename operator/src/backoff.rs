//! How long to wait before an object that failed is tried again.

use std::time::{Duration, Instant};

/// The longest wait between two tries of one object.
pub const MAX_DELAY: Duration = Duration::from_secs(300);
/// The shortest wait, before jitter only takes away from the first step.
pub const MIN_DELAY: Duration = Duration::from_secs(1);

/// Jitter takes away up to a fifth, so the first delay lies between 1 s and this.
const FIRST_SECONDS: f64 = 1.25;
const JITTER_RATIO: f64 = 0.2;

/// The failures in a row of one object. Drop it on success.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Backoff {
    failures: u32,
    due: Option<Instant>,
}

impl Backoff {
    /// Records a failure at `now` and returns the wait until the next try. `jitter` lies in `0.0..1.0`.
    ///
    /// Watch events may trigger a try before the previous wait is over. Such a failure does not count: it says nothing
    /// new, and counting it would let a chatty child push its owner to the longest wait.
    pub fn failed(&mut self, now: Instant, jitter: f64) -> Duration {
        if let Some(remaining) = self.due.and_then(|due| due.checked_duration_since(now)).filter(|left| !left.is_zero())
        {
            return remaining;
        }
        let delay = delay(self.failures, jitter);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + delay);
        delay
    }

    /// Failures counted so far.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

fn delay(failures: u32, jitter: f64) -> Duration {
    // 2^16 s is far beyond the cap; the bound keeps the power finite.
    let exponent = f64::from(failures.min(16));
    let seconds = (FIRST_SECONDS * exponent.exp2()).min(MAX_DELAY.as_secs_f64());
    Duration::from_secs_f64(seconds * (1.0 - JITTER_RATIO * jitter.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        let waits: Vec<_> = (0..10)
            .map(|_| {
                let wait = backoff.failed(now, 0.0);
                now += wait;
                wait.as_secs_f64()
            })
            .collect();
        assert_eq!(waits, [1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]);
    }

    #[test]
    fn a_failure_before_the_wait_is_over_does_not_count() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        let wait = backoff.failed(start, 0.0);
        for elapsed_ms in [0, 100, 1200] {
            let elapsed = Duration::from_millis(elapsed_ms);
            assert_eq!(backoff.failed(start + elapsed, 0.0), wait - elapsed);
        }
        assert_eq!(backoff.failures(), 1);
        assert_eq!(backoff.failed(start + wait, 0.0), Duration::from_millis(2500));
    }

    proptest! {
        #[test]
        fn waits_stay_in_range(failures in 0u32.., jitter in 0.0f64..1.0) {
            let delay = delay(failures, jitter);
            prop_assert!((MIN_DELAY..=MAX_DELAY).contains(&delay), "{delay:?}");
        }

        #[test]
        fn more_failures_never_wait_less(failures in 0u32..1000, jitter in 0.0f64..1.0) {
            prop_assert!(delay(failures, jitter) <= delay(failures + 1, jitter));
        }
    }
}
