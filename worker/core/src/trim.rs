//! When cached blocks are given back to the driver, and when someone should look.

use std::time::Duration;

use crate::{engine::AllocatorStats, memory::pool_overhead_ratio};

/// A worker that did nothing for this long is at rest, and may be trimmed before the interval is over.
const QUIET: Duration = Duration::from_secs(10);

/// Allocations from the driver for each batch, on average, that a pool which fits its work does not need.
const MANY_DEVICE_ALLOCATIONS: u64 = 8;

/// When to look, and what is too much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Time between two looks.
    pub interval: Duration,
    /// Pool overhead above which blocks are given back, 0 to 1.
    pub above: f64,
}

impl Policy {
    /// 300 s and 0.30.
    pub const BUILT_IN: Self = Self { interval: Duration::from_secs(300), above: 0.30 };
}

/// What to do now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Decision {
    /// Give cached blocks back.
    pub trim: bool,
    /// Say that the pool does not fit the work.
    pub alert: Option<Alert>,
}

/// Why the pool does not fit the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
pub enum Alert {
    /// Allocations worked only after cached blocks were given back.
    #[strum(to_string = "allocations worked only after cached blocks were given back")]
    Retries,
    /// Batch after batch allocates from the driver.
    #[strum(to_string = "batch after batch allocates from the driver")]
    DeviceAllocations,
}

/// The worker at the moment of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Duration since any fixed moment.
    pub now: Duration,
    /// Nothing runs and nothing waits.
    pub is_idle: bool,
    /// Since when.
    pub idle_since: Duration,
}

/// Watches the pool from batch to batch.
#[derive(Debug, Clone)]
pub struct Watch {
    policy: Policy,
    looked_at: Duration,
    peak_reserved_bytes: u64,
    peak_allocated_bytes: u64,
    batches: u64,
    first: AllocatorStats,
    last: AllocatorStats,
    overhead_ratio: f64,
}

impl Watch {
    /// Begins with what the allocator says after warm-up.
    #[must_use]
    pub const fn new(policy: Policy, now: Duration, stats: AllocatorStats) -> Self {
        Self {
            policy,
            looked_at: now,
            peak_reserved_bytes: 0,
            peak_allocated_bytes: 0,
            batches: 0,
            first: stats,
            last: stats,
            overhead_ratio: 0.0,
        }
    }

    /// A batch has left the device; the peaks are its own.
    pub fn batch_done(&mut self, stats: AllocatorStats) {
        self.peak_reserved_bytes = self.peak_reserved_bytes.max(stats.peak_reserved_bytes);
        self.peak_allocated_bytes = self.peak_allocated_bytes.max(stats.peak_allocated_bytes);
        self.batches += 1;
        self.last = stats;
        self.overhead_ratio = pool_overhead_ratio(self.peak_reserved_bytes, self.peak_allocated_bytes);
    }

    /// Pool overhead of the last interval with work, 0 to 1.
    #[must_use]
    pub const fn overhead_ratio(&self) -> f64 {
        self.overhead_ratio
    }

    /// What to do. Never anything while something runs or waits: giving blocks back in a burst costs the burst its pool.
    pub fn look(&mut self, moment: Moment) -> Decision {
        if self.batches == 0 || !moment.is_idle {
            return Decision::default();
        }
        let is_due = moment.now.saturating_sub(self.looked_at) >= self.policy.interval;
        let is_quiet = moment.now.saturating_sub(moment.idle_since) >= QUIET;
        if !is_due && !is_quiet {
            return Decision::default();
        }
        let retries = self.last.alloc_retries.saturating_sub(self.first.alloc_retries);
        let device_allocations = self.last.device_allocations.saturating_sub(self.first.device_allocations);
        let alert = if retries > 0 {
            Some(Alert::Retries)
        } else if device_allocations > MANY_DEVICE_ALLOCATIONS * self.batches {
            Some(Alert::DeviceAllocations)
        } else {
            None
        };
        let decision = Decision { trim: self.overhead_ratio > self.policy.above || retries > 0, alert };
        let overhead_ratio = self.overhead_ratio;
        *self = Self { overhead_ratio, ..Self::new(self.policy, moment.now, self.last) };
        decision
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn stats(peak_reserved_bytes: u64, peak_allocated_bytes: u64) -> AllocatorStats {
        AllocatorStats { peak_reserved_bytes, peak_allocated_bytes, ..AllocatorStats::default() }
    }

    fn watch() -> Watch {
        Watch::new(Policy::BUILT_IN, at(0), AllocatorStats::default())
    }

    const fn idle(now: u64, idle_since: u64) -> Moment {
        Moment { now: at(now), is_idle: true, idle_since: at(idle_since) }
    }

    #[test]
    fn a_pool_that_fits_is_left_alone() {
        let mut watch = watch();
        watch.batch_done(stats(100, 90));
        assert_eq!(watch.look(idle(400, 390)), Decision::default());
        assert!((watch.overhead_ratio() - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_wide_pool_is_trimmed_when_the_worker_rests() {
        let mut watch = watch();
        watch.batch_done(stats(100, 60));
        watch.batch_done(stats(90, 65));
        let busy = Moment { is_idle: false, ..idle(900, 900) };
        assert_eq!(watch.look(busy), Decision::default());
        assert_eq!(watch.look(idle(20, 15)), Decision::default());
        assert!(watch.look(idle(25, 15)).trim);
        assert!((watch.overhead_ratio() - 0.35).abs() < 1e-9);
        // Once: the next look needs work of its own.
        assert_eq!(watch.look(idle(999, 15)), Decision::default());
    }

    #[test]
    fn after_the_interval_a_moment_of_rest_is_enough() {
        let mut watch = watch();
        watch.batch_done(stats(100, 60));
        assert!(watch.look(idle(300, 300)).trim);
    }

    #[test]
    fn retries_and_many_device_allocations_are_told() {
        let mut watch = watch();
        watch.batch_done(AllocatorStats { alloc_retries: 2, ..stats(100, 90) });
        assert_eq!(watch.look(idle(300, 0)), Decision { trim: true, alert: Some(Alert::Retries) });
        watch.batch_done(AllocatorStats { alloc_retries: 2, device_allocations: 9, ..stats(100, 90) });
        assert_eq!(watch.look(idle(600, 0)), Decision { trim: false, alert: Some(Alert::DeviceAllocations) });
        watch.batch_done(AllocatorStats { alloc_retries: 2, device_allocations: 17, ..stats(100, 90) });
        assert_eq!(watch.look(idle(900, 0)), Decision::default());
    }

    proptest! {
        #[test]
        fn never_in_a_burst(batches in proptest::collection::vec((0_u64..100, 0_u64..100, 0_u64..9), 0..9), now in 0_u64..9999) {
            let mut watch = watch();
            for (reserved, allocated, alloc_retries) in batches {
                watch.batch_done(AllocatorStats { alloc_retries, ..stats(reserved, allocated) });
            }
            let busy = Moment { is_idle: false, ..idle(now, 0) };
            prop_assert_eq!(watch.look(busy), Decision::default());
            prop_assert!((0.0..=1.0).contains(&watch.overhead_ratio()));
        }
    }
}
