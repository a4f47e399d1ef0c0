//! A GPU that kills its worker again and again: the pod goes, so that the scheduler may choose another one.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;

/// Exit code of a worker whose engine died, as its `--help` tells it.
pub const ENGINE_DIED: i32 = 4;
/// This many such exits,
pub const MAX_EXITS: usize = 3;
/// in this time.
pub const WITHIN: Duration = Duration::from_secs(15 * 60);

/// The ends of one pod's worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FatalExits(VecDeque<Timestamp>);

impl FatalExits {
    /// Takes the last end of the container: its exit code and when it was. The same end may be told any number of times.
    pub fn note(&mut self, exit_code: i32, finished: Timestamp) {
        if exit_code == ENGINE_DIED && self.0.back().is_none_or(|last| *last < finished) {
            self.0.push_back(finished);
            while self.0.len() > MAX_EXITS {
                self.0.pop_front();
            }
        }
    }

    /// Whether the last [`MAX_EXITS`] of them lie within [`WITHIN`].
    #[must_use]
    pub fn too_many(&self) -> bool {
        let span = self.0.front().zip(self.0.back()).map(|(first, last)| last.duration_since(*first).unsigned_abs());
        self.0.len() == MAX_EXITS && span.is_some_and(|span| span <= WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::two_are_not_enough(&[(4, 0), (4, 60)], false)]
    #[case::three_in_time(&[(4, 0), (4, 60), (4, 900)], true)]
    #[case::three_over_a_longer_time(&[(4, 0), (4, 60), (4, 901)], false)]
    #[case::the_last_three_count(&[(4, 0), (4, 1000), (4, 1100), (4, 1200)], true)]
    #[case::one_end_told_three_times(&[(4, 0), (4, 0), (4, 0)], false)]
    #[case::other_ends_do_not_count(&[(4, 0), (137, 30), (0, 45), (4, 60)], false)]
    fn three_fatal_ends_in_a_quarter_of_an_hour(#[case] ends: &[(i32, i64)], #[case] expected: bool) {
        let mut exits = FatalExits::default();
        for &(code, seconds) in ends {
            exits.note(code, Timestamp::from_second(seconds).unwrap());
        }
        assert_eq!(exits.too_many(), expected);
    }
}
