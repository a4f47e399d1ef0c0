//! What a decision has to know of the past.

use std::{collections::VecDeque, time::Duration};

use super::{
    decide::{Decision, STEP_PERIOD},
    spec::ScalingSpec,
};

/// What was recommended and changed so far. Times are durations since an origin that the caller keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Recommendations within the window of scaling down, oldest first, each larger than all that follow it.
    highest: VecDeque<Look>,
    /// Recommendations within the window of scaling up, oldest first, each smaller than all that follow it.
    lowest: VecDeque<Look>,
    /// Changes within the last [`STEP_PERIOD`], oldest first.
    changes: VecDeque<Change>,
    /// Since when nearly all ready workers have been reporting without a break.
    covered_since: Option<Duration>,
    /// How long a worker takes to load, as measured.
    load_time: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    at: Duration,
    wanted: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    at: Duration,
    from: u32,
    to: u32,
}

impl History {
    /// Notes a decision that was made at `now` while `current` workers were wanted, and is in force from now on. `now`
    /// never goes back.
    pub fn note(&mut self, decision: &Decision, current: u32, spec: &ScalingSpec, now: Duration) {
        if !decision.covered {
            self.covered_since = None;
        } else if self.covered_since.is_none() {
            self.covered_since = Some(now);
        }
        let look = Look { at: now, wanted: decision.wanted };
        push(&mut self.highest, look, now.saturating_sub(spec.down.window), |last| last.wanted <= look.wanted);
        push(&mut self.lowest, look, now.saturating_sub(spec.up.window), |last| last.wanted >= look.wanted);
        self.changes.retain(|change| change.at + STEP_PERIOD > now);
        if decision.replicas != current {
            self.changes.push_back(Change { at: now, from: current, to: decision.replicas });
        }
        self.load_time = decision.load_time.or(self.load_time);
    }

    /// Takes over what an earlier process measured.
    pub fn learn_load_time(&mut self, load_time: Duration) {
        self.load_time.get_or_insert(load_time);
    }

    /// How long a worker takes to load, once one has been measured.
    #[must_use]
    pub fn load_time(&self) -> Option<Duration> {
        self.load_time
    }

    pub(super) fn covered_since(&self) -> Option<Duration> {
        self.covered_since
    }

    /// The largest recommendation younger than `window`, and when it is forgotten.
    pub(super) fn highest(&self, window: Duration, now: Duration) -> Option<(u32, Duration)> {
        newest_within(&self.highest, window, now)
    }

    /// The smallest recommendation younger than `window`, and when it is forgotten.
    pub(super) fn lowest(&self, window: Duration, now: Duration) -> Option<(u32, Duration)> {
        newest_within(&self.lowest, window, now)
    }

    /// Workers added within the last [`STEP_PERIOD`], and when the first of them no longer counts.
    pub(super) fn added(&self, now: Duration) -> (u32, Option<Duration>) {
        self.moved(now, |change| change.to.saturating_sub(change.from))
    }

    /// Workers taken away within the last [`STEP_PERIOD`], and when the first of them no longer counts.
    pub(super) fn removed(&self, now: Duration) -> (u32, Option<Duration>) {
        self.moved(now, |change| change.from.saturating_sub(change.to))
    }

    fn moved(&self, now: Duration, by: impl Fn(&Change) -> u32) -> (u32, Option<Duration>) {
        let counted = self.changes.iter().filter(|change| change.at + STEP_PERIOD > now && by(change) > 0);
        let total = counted.clone().map(&by).sum();
        (total, counted.map(|change| change.at + STEP_PERIOD).next())
    }
}

/// Adds `look`, drops what is older than `since` and what `look` makes irrelevant.
fn push(looks: &mut VecDeque<Look>, look: Look, since: Duration, obsolete: impl Fn(&Look) -> bool) {
    while looks.back().is_some_and(&obsolete) {
        looks.pop_back();
    }
    looks.push_back(look);
    while looks.front().is_some_and(|first| first.at < since) {
        looks.pop_front();
    }
}

fn newest_within(looks: &VecDeque<Look>, window: Duration, now: Duration) -> Option<(u32, Duration)> {
    let first = looks.iter().find(|look| look.at + window >= now)?;
    Some((first.wanted, first.at + window))
}
