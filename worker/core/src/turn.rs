//! Whose turn it is: by priority, deadline and arrival, and never a big image for too long while small ones wait.
//!
//! Three rules, in this order:
//! 1. A small request that bigger ones have held up for `max_holdup` goes before them.
//! 2. A request that waited for half of the longest wait goes before all that did not, so that none starves.
//! 3. Higher priority first, then the earlier deadline, then in order of arrival.

use std::{cmp::Reverse, time::Duration};

/// A request is small beside one that takes at least this many times as long.
const BIG_FACTOR: f64 = 2.0;

/// Work that waits, is paused or runs. Times are durations since any fixed moment, the same for all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Higher first.
    pub priority: i32,
    /// When it is of no use any more.
    pub deadline: Option<Duration>,
    /// Counts up; tells requests apart.
    pub arrival: u64,
    /// When it was admitted.
    pub since: Duration,
    /// What the whole request takes on an empty worker; 0 while nothing was measured.
    pub total_seconds: f64,
    /// How long bigger requests of at most this priority have held it up.
    pub held_seconds: f64,
}

/// How turns are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// How long a big image may hold up a small one.
    pub max_holdup: Duration,
    /// A request that waited this long goes before all that did not.
    pub aged_after: Duration,
}

impl Turns {
    /// The rules for a queue in which a request waits at most `max_wait`.
    #[must_use]
    pub fn new(max_holdup: Duration, max_wait: Duration) -> Self {
        Self { max_holdup, aged_after: max_wait / 2 }
    }

    /// Sorts as rules 2 and 3 say.
    pub fn order(self, candidate: &Candidate, now: Duration) -> impl Ord + use<> {
        let is_aged = now.saturating_sub(candidate.since) >= self.aged_after;
        let by_rank = (!is_aged).then(|| (Reverse(candidate.priority), candidate.deadline.unwrap_or(Duration::MAX)));
        (by_rank, candidate.arrival)
    }

    /// The index of the one whose turn it is.
    pub fn first(self, candidates: &[Candidate], now: Duration) -> Option<usize> {
        let mut order: Vec<_> = (0..candidates.len()).collect();
        order.sort_by_key(|&index| self.order(&candidates[index], now));
        let mut first = *order.first()?;
        // Each one that goes before is at most half as big, so this ends.
        while let Some(&small) = order.iter().find(|&&other| self.must_yield(&candidates[first], &candidates[other])) {
            first = small;
        }
        Some(first)
    }

    /// Whether `big` must let `small` go first.
    #[must_use]
    pub fn must_yield(self, big: &Candidate, small: &Candidate) -> bool {
        is_held_up_by(small, big) && small.held_seconds >= self.max_holdup.as_secs_f64()
    }
}

/// Whether time in which `big` runs counts as holding up `small`.
#[must_use]
pub fn is_held_up_by(small: &Candidate, big: &Candidate) -> bool {
    small.priority >= big.priority && big.total_seconds > 0.0 && small.total_seconds * BIG_FACTOR <= big.total_seconds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const TURNS: Turns = Turns { max_holdup: Duration::from_secs(5), aged_after: Duration::from_secs(60) };

    const fn candidate(arrival: u64, priority: i32, total_seconds: f64) -> Candidate {
        Candidate {
            priority,
            deadline: None,
            arrival,
            since: Duration::from_secs(arrival),
            total_seconds,
            held_seconds: 0.0,
        }
    }

    #[rstest]
    #[case::in_order_of_arrival([candidate(1, 0, 1.0), candidate(2, 0, 1.0)], 0)]
    #[case::higher_priority([candidate(1, 0, 1.0), candidate(2, 5, 1.0)], 1)]
    #[case::earlier_deadline([candidate(1, 0, 1.0), Candidate { deadline: Some(Duration::from_secs(9)), ..candidate(2, 0, 1.0) }], 1)]
    #[case::a_small_one_waits_its_turn([candidate(1, 0, 100.0), candidate(2, 0, 1.0)], 0)]
    #[case::until_it_was_held_up_for_long([candidate(1, 0, 100.0), Candidate { held_seconds: 5.0, ..candidate(2, 0, 1.0) }], 1)]
    #[case::but_not_before_a_higher_priority([candidate(1, 9, 100.0), Candidate { held_seconds: 5.0, ..candidate(2, 0, 1.0) }], 0)]
    #[case::nor_before_one_of_its_own_size([candidate(1, 0, 1.9), Candidate { held_seconds: 5.0, ..candidate(2, 0, 1.0) }], 0)]
    fn first_of_two_at_10_seconds(#[case] candidates: [Candidate; 2], #[case] expected: usize) {
        assert_eq!(TURNS.first(&candidates, Duration::from_secs(10)), Some(expected));
    }

    #[test]
    fn who_waited_for_long_goes_before_any_priority() {
        let candidates = [candidate(50, 100, 1.0), candidate(1, -100, 1.0)];
        assert_eq!(TURNS.first(&candidates, Duration::from_secs(60)), Some(0));
        assert_eq!(TURNS.first(&candidates, Duration::from_secs(61)), Some(1));
    }

    #[test]
    fn the_smallest_of_those_held_up_goes_first() {
        let held = |arrival, total_seconds| Candidate { held_seconds: 9.0, ..candidate(arrival, 0, total_seconds) };
        let candidates = [candidate(1, 0, 100.0), held(2, 40.0), held(3, 4.0)];
        assert_eq!(TURNS.first(&candidates, Duration::from_secs(10)), Some(2));
        assert_eq!(TURNS.first(&[], Duration::ZERO), None);
    }

    prop_compose! {
        fn candidates()(list in proptest::collection::vec((-2_i32..3, 0.0_f64..100.0, 0.0_f64..10.0, 0_u64..90), 1..12)) -> Vec<Candidate> {
            let number = |(arrival, (priority, total_seconds, held_seconds, since)): (usize, (i32, f64, f64, u64))| Candidate {
                priority, deadline: None, arrival: arrival as u64, since: Duration::from_secs(since), total_seconds, held_seconds,
            };
            list.into_iter().enumerate().map(number).collect()
        }
    }

    proptest! {
        #[test]
        fn whoever_is_first_must_yield_to_nobody(candidates in candidates()) {
            let now = Duration::from_secs(90);
            let first = candidates[TURNS.first(&candidates, now).unwrap()];
            prop_assert!(candidates.iter().all(|other| !TURNS.must_yield(&first, other)));
        }

        #[test]
        fn equals_go_in_order_of_arrival(count in 1_usize..12, priority in -3_i32..3, seconds in 0.0_f64..9.0) {
            let equals: Vec<_> = (0..count as u64).rev().map(|arrival| candidate(arrival, priority, seconds)).collect();
            prop_assert_eq!(TURNS.first(&equals, Duration::from_secs(20)), Some(count - 1));
        }
    }
}
