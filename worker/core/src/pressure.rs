//! How loaded a worker is: memory decides what may start, time measures how much waits.

use std::{collections::VecDeque, time::Duration};

/// Time that memory pressure is the mean of.
const WINDOW: Duration = Duration::from_secs(15);

/// How long refused work counts as demand.
const REFUSED_WINDOW: Duration = Duration::from_secs(30);

/// Refused requests that are remembered, the newest.
const MAX_REFUSED: usize = 256;

/// Largest value of the scaling signal.
pub const MAX_PRESSURE: f64 = 100.0;

/// Mean over the last 15 s of a share between 0 and 1. Times are durations since any fixed moment.
#[derive(Debug, Clone, Default)]
pub struct MemoryPressure {
    /// From when on which share holds, oldest first. The first may be older than the window.
    changes: VecDeque<(Duration, f64)>,
}

impl MemoryPressure {
    /// From now on this share of the headroom is in use; 1 while the next batch cannot start for lack of memory.
    pub fn set(&mut self, now: Duration, share: f64) {
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 1.0 };
        if self.changes.back().is_some_and(|(_, current)| *current == share) {
            return;
        }
        self.changes.push_back((now, share));
        let begin = now.saturating_sub(WINDOW);
        while self.changes.get(1).is_some_and(|(since, _)| *since <= begin) {
            self.changes.pop_front();
        }
    }

    /// The mean, 0 to 1. Before the first 15 s have passed, of the time there was.
    #[must_use]
    pub fn mean(&self, now: Duration) -> f64 {
        let begin = now.saturating_sub(WINDOW);
        let (mut sum, mut total) = (0.0, 0.0);
        let ends = self.changes.iter().skip(1).map(|(since, _)| *since).chain([now]);
        for ((since, share), end) in self.changes.iter().zip(ends) {
            let seconds = end.saturating_sub((*since).max(begin)).as_secs_f64();
            sum += share * seconds;
            total += seconds;
        }
        match self.changes.back() {
            Some((_, share)) if total == 0.0 => *share,
            Some(_) => (sum / total).clamp(0.0, 1.0),
            None => 0.0,
        }
    }
}

/// The share of the headroom that these bytes are, 0 to 1.
#[must_use]
pub fn share(bytes: u64, headroom_bytes: u64) -> f64 {
    match (bytes, headroom_bytes) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        _ => (bytes as f64 / headroom_bytes as f64).min(1.0),
    }
}

/// One request that was refused for lack of room.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refused {
    /// A hash of its request_id, so that a repeat, here or at another worker, counts once.
    pub key: u64,
    /// What it would have taken.
    pub seconds: f64,
    /// When.
    pub at: Duration,
}

/// Work refused in the last 30 s, each request once.
#[derive(Debug, Clone, Default)]
pub struct RefusedWork {
    entries: VecDeque<Refused>,
}

impl RefusedWork {
    /// Notes a refusal. A repeat of a request takes the place of its earlier refusal.
    pub fn add(&mut self, refused: Refused) {
        self.forget(refused.at);
        self.entries.retain(|entry| entry.key != refused.key);
        self.entries.push_back(refused);
        if self.entries.len() > MAX_REFUSED {
            self.entries.pop_front();
        }
    }

    /// A request that was refused before is admitted: its work now counts where it waits.
    pub fn admitted(&mut self, key: u64) {
        self.entries.retain(|entry| entry.key != key);
    }

    /// Those of the last 30 s, newest first.
    pub fn recent(&self, now: Duration) -> impl Iterator<Item = &Refused> {
        self.entries.iter().rev().filter(move |entry| now.saturating_sub(entry.at) < REFUSED_WINDOW)
    }

    /// Their seconds.
    #[must_use]
    pub fn seconds(&self, now: Duration) -> f64 {
        self.recent(now).map(|entry| entry.seconds).sum()
    }

    fn forget(&mut self, now: Duration) {
        self.entries.retain(|entry| now.saturating_sub(entry.at) < REFUSED_WINDOW);
    }
}

/// What the scaling signal is measured against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Targets {
    /// Memory pressure that is wanted, above 0 and at most 1.
    pub memory_pressure: f64,
    /// Wait that is wanted.
    pub queue_wait: Duration,
}

impl Targets {
    /// 0.75 and 20 s.
    pub const BUILT_IN: Self = Self { memory_pressure: 0.75, queue_wait: Duration::from_secs(20) };
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Mean memory pressure, 0 to 1.
    pub memory_pressure: f64,
    /// Share of the last 15 s in which something was on the engine, 0 to 1.
    pub busy_ratio: f64,
    /// Rest of the running work and all that waits.
    pub wait_seconds: f64,
    /// The above, and work refused of late.
    pub backlog_seconds: f64,
    /// Something is on the engine.
    pub is_running: bool,
    /// Something waits, or was refused of late.
    pub is_waiting: bool,
}

/// The scaling signal, 0 to [`MAX_PRESSURE`]: 0 when nothing runs, waits or was refused; at most the memory target while
/// nothing waits or was refused.
#[must_use]
pub fn pressure(demand: &Demand, targets: &Targets) -> f64 {
    if !demand.is_running && !demand.is_waiting {
        return 0.0;
    }
    let of_time = targets.memory_pressure * demand.backlog_seconds / targets.queue_wait.as_secs_f64().max(1e-3);
    let of_time = if of_time.is_finite() { of_time } else { MAX_PRESSURE };
    // A worker at work all the time counts as one worker, with a queue or without.
    let of_work = targets.memory_pressure * demand.busy_ratio.clamp(0.0, 1.0);
    let most = if demand.is_waiting { MAX_PRESSURE } else { targets.memory_pressure };
    demand.memory_pressure.max(of_time).max(of_work).clamp(0.0, most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_mean_weighs_by_time_and_forgets_after_15_seconds() {
        let mut pressure = MemoryPressure::default();
        assert_eq!(pressure.mean(at(5)), 0.0);
        pressure.set(at(100), 1.0);
        assert_eq!(pressure.mean(at(100)), 1.0);
        pressure.set(at(105), 0.0);
        assert_eq!(pressure.mean(at(110)), 0.5);
        assert_eq!(pressure.mean(at(115)), 1.0 / 3.0);
        assert_eq!(pressure.mean(at(120)), 0.0);
        pressure.set(at(130), 0.6);
        assert!((pressure.mean(at(140)) - 0.4).abs() < 1e-9);
        assert!((pressure.mean(at(999)) - 0.6).abs() < 1e-9);
    }

    #[test]
    fn refused_work_counts_once_a_request_for_30_seconds() {
        let mut refused = RefusedWork::default();
        for (key, seconds, second) in [(1, 5.0, 0), (2, 7.0, 10), (1, 6.0, 20)] {
            refused.add(Refused { key, seconds, at: at(second) });
        }
        assert_eq!(refused.seconds(at(25)), 13.0);
        assert_eq!(refused.recent(at(25)).map(|entry| entry.key).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(refused.seconds(at(40)), 6.0);
        refused.admitted(1);
        assert_eq!(refused.seconds(at(40)), 0.0);
    }

    #[test]
    fn the_newest_256_are_remembered() {
        let mut refused = RefusedWork::default();
        for key in 0..300 {
            refused.add(Refused { key, seconds: 1.0, at: at(0) });
        }
        assert_eq!(refused.seconds(at(1)), 256.0);
        assert_eq!(refused.recent(at(1)).next().unwrap().key, 299);
    }

    #[rstest]
    #[case::idle(0.9, 0.9, 0.0, false, false, 0.0)]
    #[case::a_large_card_that_works_a_little(0.1, 0.1, 4.0, true, false, 0.15)]
    #[case::a_large_card_at_work_half_of_the_time(0.1, 0.5, 4.0, true, false, 0.375)]
    #[case::a_large_card_at_work_all_the_time(0.1, 1.0, 4.0, true, false, 0.75)]
    #[case::long_work_and_no_queue_is_at_most_the_target(0.2, 1.0, 400.0, true, false, 0.75)]
    #[case::a_small_card_that_is_full_and_has_a_queue(0.95, 1.0, 5.0, true, true, 0.95)]
    #[case::a_backlog_of_twice_the_wanted_wait(0.1, 1.0, 40.0, true, true, 1.5)]
    #[case::refused_while_nothing_runs(0.0, 0.0, 40.0, false, true, 1.5)]
    #[case::endless(0.1, 1.0, f64::INFINITY, true, true, 100.0)]
    fn the_signal_is_the_largest_of_memory_wait_and_work(
        #[case] memory_pressure: f64,
        #[case] busy_ratio: f64,
        #[case] backlog_seconds: f64,
        #[case] is_running: bool,
        #[case] is_waiting: bool,
        #[case] expected: f64,
    ) {
        let demand = Demand {
            memory_pressure,
            busy_ratio,
            wait_seconds: backlog_seconds,
            backlog_seconds,
            is_running,
            is_waiting,
        };
        assert!((pressure(&demand, &Targets::BUILT_IN) - expected).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn a_mean_of_shares_is_a_share(changes in proptest::collection::vec((0_u64..40, -1.0_f64..2.0), 0..30)) {
            let mut pressure = MemoryPressure::default();
            let mut now = 0;
            for (passed, share) in changes {
                now += passed;
                pressure.set(at(now), share);
                prop_assert!((0.0..=1.0).contains(&pressure.mean(at(now))));
                prop_assert!((0.0..=1.0).contains(&pressure.mean(at(now + 7))));
            }
        }

        #[test]
        fn the_signal_is_finite_and_grows_with_the_backlog(
            memory_pressure in 0.0_f64..=1.0, backlog in 0.0_f64..1e9, more in 0.0_f64..1e9, wait_ms in 0_u64..100_000,
        ) {
            let targets = Targets { queue_wait: Duration::from_millis(wait_ms), ..Targets::BUILT_IN };
            let demand = |backlog_seconds| Demand {
                memory_pressure, busy_ratio: 0.5, wait_seconds: backlog_seconds, backlog_seconds, is_running: true, is_waiting: true,
            };
            let (less, more) = (pressure(&demand(backlog), &targets), pressure(&demand(backlog + more), &targets));
            prop_assert!(less <= more && (0.0..=MAX_PRESSURE).contains(&more));
        }
    }
}
