//! How often a worker ran out of memory lately, from the totals that it reports.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;

/// The errors of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutOfMemories {
    /// The total last seen; `None` before the first report.
    total: Option<u64>,
    /// When how many more were seen, oldest first.
    seen: VecDeque<(Timestamp, u64)>,
}

impl OutOfMemories {
    /// Takes a reported total. A smaller one than before comes from a process that was started again, with all its
    /// errors new; the first one ever says nothing about when.
    pub fn note(&mut self, total: u64, now: Timestamp, keep: Duration) {
        let more = match self.total {
            None => 0,
            Some(last) if total < last => {
                self.seen.clear();
                total
            }
            Some(last) => total - last,
        };
        self.total = Some(total);
        if more > 0 {
            self.seen.push_back((now, more));
        }
        while self.seen.front().is_some_and(|(at, _)| is_older(*at, now, keep)) {
            self.seen.pop_front();
        }
    }

    /// Errors seen within the last `within`.
    #[must_use]
    pub fn within(&self, within: Duration, now: Timestamp) -> u64 {
        self.seen.iter().filter(|(at, _)| !is_older(*at, now, within)).map(|(_, more)| more).sum()
    }
}

fn is_older(at: Timestamp, now: Timestamp, than: Duration) -> bool {
    now.duration_since(at).unsigned_abs() > than
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[rstest]
    #[case::the_first_total_says_nothing_about_when(&[(0, 7)], 10, 0)]
    #[case::more_errors_count(&[(0, 7), (10, 8), (20, 10)], 30, 3)]
    #[case::the_same_total_is_no_error(&[(0, 7), (10, 7)], 30, 0)]
    #[case::old_errors_are_forgotten(&[(0, 0), (10, 2), (3000, 3)], 3700, 1)]
    #[case::a_process_that_was_started_again_begins_at_zero(&[(0, 0), (10, 5), (20, 0)], 30, 0)]
    #[case::and_its_errors_are_new(&[(0, 0), (10, 5), (20, 1)], 30, 1)]
    fn errors_are_counted_within_a_time(#[case] reports: &[(i64, u64)], #[case] now: i64, #[case] expected: u64) {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut worker = OutOfMemories::default();
        for &(seconds, total) in reports {
            worker.note(total, at(seconds), HOUR);
        }
        assert_eq!(worker.within(HOUR, at(now)), expected);
    }
}
