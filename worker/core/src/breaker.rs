//! The circuit breaker: a worker that itself holds too much memory for good stops serving, and waits to be replaced.
//!
//! Memory that others take comes back, and only lowers the headroom; memory that this process holds and cannot give
//! back comes back with a new process only.

use std::time::Duration;

use crate::memory::Memory;

/// How long the memory must be over the limit, look after look.
const FOR_GOOD: Duration = Duration::from_secs(60);

/// Looks in that time.
const LOOKS: u32 = 3;

/// Whether what this process holds while it does nothing, after a trim, leaves no room for the smallest batch, even if no
/// other process used the device.
#[must_use]
pub fn is_over(memory: &Memory, smallest_bytes: u64) -> bool {
    memory.activation_bytes().saturating_add(smallest_bytes) > memory.headroom_alone_bytes()
        && smallest_bytes <= memory.headroom_alone_bytes()
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    over: Option<(Duration, u32)>,
    is_open: bool,
}

impl Breaker {
    /// One look at an idle, trimmed worker. `true` when it opens with this look.
    pub fn look(&mut self, now: Duration, is_over: bool) -> bool {
        if !is_over {
            self.over = None;
            return false;
        }
        let (since, looks) = self.over.map_or((now, 1), |(since, looks)| (since, looks + 1));
        self.over = Some((since, looks));
        let opens = !self.is_open && looks >= LOOKS && now.saturating_sub(since) >= FOR_GOOD;
        self.is_open |= opens;
        opens
    }

    /// Whether it is open. It never closes again.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether the last look was over the limit.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::DeviceMemory;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A card of 100 bytes with 50 of weights; smallest batch 20.
    fn memory(leaked_bytes: u64, foreign_bytes: u64) -> Memory {
        let allocated_bytes = 50 + leaked_bytes;
        Memory {
            device: DeviceMemory { usable_total_bytes: 100, used_bytes: allocated_bytes + foreign_bytes },
            reserved_bytes: allocated_bytes,
            allocated_bytes,
            own_overhead_bytes: 0,
            weight_bytes: 50,
            limit_ratio: 1.0,
        }
    }

    #[test]
    fn only_memory_of_our_own_counts() {
        assert!(!is_over(&memory(0, 0), 20));
        assert!(!is_over(&memory(30, 0), 20));
        assert!(is_over(&memory(31, 0), 20));
        assert!(!is_over(&memory(0, 50), 20));
        // A card that was always too small is no fault of the process.
        assert!(!is_over(&memory(31, 0), 51));
    }

    #[test]
    fn it_opens_after_a_minute_over_the_limit_and_stays_open() {
        let mut breaker = Breaker::default();
        let looks = [(0, true), (30, true), (59, false), (60, true), (90, true), (120, true), (150, true)];
        let opened: Vec<_> = looks.map(|(second, is_over)| breaker.look(at(second), is_over)).into();
        assert_eq!(opened, [false, false, false, false, false, true, false]);
        breaker.look(at(200), false);
        assert!(breaker.is_open());
    }

    #[test]
    fn two_looks_are_not_enough() {
        let mut breaker = Breaker::default();
        assert!(!breaker.look(at(0), true) && !breaker.look(at(600), true) && breaker.look(at(601), true));
    }

    proptest! {
        #[test]
        fn a_worker_that_recovers_within_the_minute_never_opens_it(looks in proptest::collection::vec(0_u64..60, 1..40)) {
            let mut breaker = Breaker::default();
            for (round, second) in looks.into_iter().enumerate() {
                let round = 60 * round as u64;
                breaker.look(at(round), false);
                prop_assert!(!breaker.look(at(round + second), true));
            }
        }
    }
}
