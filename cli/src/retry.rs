//! When a failed attempt is made again, and after how long.

use std::time::Duration;

/// First waiting time when the worker names none; doubled by every further failure.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Longest waiting time of our own making.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Largest part added to a waiting time, so that clients refused together do not come back together.
const JITTER_RATIO: f64 = 0.2;

/// What a failure says about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same request would fail again.
    Never,
    /// It may succeed, not earlier than this if the worker said so.
    After(Option<Duration>),
}

/// How long to wait before the next attempt, or `None` to give up: no retries left, no use, or no time.
///
/// `failures` counts the failed attempts so far, at least 1; `jitter` is in 0..1.
#[must_use]
pub fn wait_before_retry(
    retry: Retry,
    failures: u32,
    retries: u32,
    remaining: Duration,
    jitter: f64,
) -> Option<Duration> {
    let Retry::After(asked) = retry else { return None };
    if failures > retries {
        return None;
    }
    let own = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_WAIT);
    let wait = asked.unwrap_or(own).mul_f64(1.0 + JITTER_RATIO * jitter.clamp(0.0, 1.0));
    (wait < remaining).then_some(wait)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[rstest]
    #[case::refused(Retry::Never, 1, None)]
    #[case::first(Retry::After(None), 1, Some(500))]
    #[case::second(Retry::After(None), 2, Some(1000))]
    #[case::third(Retry::After(None), 3, Some(2000))]
    #[case::no_retries_left(Retry::After(None), 4, None)]
    #[case::asked_for(Retry::After(Some(Duration::from_secs(7))), 1, Some(7000))]
    #[case::longer_than_the_deadline(Retry::After(Some(MINUTE)), 1, None)]
    fn three_retries_within_a_minute(#[case] retry: Retry, #[case] failures: u32, #[case] wait_ms: Option<u64>) {
        assert_eq!(wait_before_retry(retry, failures, 3, MINUTE, 0.0), wait_ms.map(Duration::from_millis));
    }

    proptest! {
        #[test]
        fn never_earlier_than_asked_and_never_past_the_deadline(
            asked_ms in proptest::option::of(0u64..100_000), failures in 1u32..40, retries in 0u32..40,
            remaining_ms in 0u64..100_000, jitter in 0.0f64..1.0,
        ) {
            let asked = asked_ms.map(Duration::from_millis);
            let remaining = Duration::from_millis(remaining_ms);
            if let Some(wait) = wait_before_retry(Retry::After(asked), failures, retries, remaining, jitter) {
                prop_assert!(wait < remaining && failures <= retries);
                prop_assert!(wait >= asked.unwrap_or_default());
                prop_assert!(asked.is_some() || wait <= LONGEST_WAIT.mul_f64(1.0 + JITTER_RATIO));
            }
        }
    }
}
