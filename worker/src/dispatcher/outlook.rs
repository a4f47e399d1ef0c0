//! What the state means for a request that would come now: whether it may, when its turn would be, what it would cost.

use std::time::Duration;

use imagegen_core::{
    admission::{self, Ask, Permit, Worker, admit},
    eta::Work,
    request::Request,
    table::Shape,
    turn::{Candidate, is_held_up_by},
};

use super::State;
use crate::{snapshot::Phase, status::Refusal};

impl State {
    /// What admission says to this request.
    pub(super) fn decide(
        &self,
        request: &Request,
        left: Option<Duration>,
        now: Duration,
    ) -> Result<(Ask, Result<Permit, admission::Refusal>), Refusal> {
        if let Phase::Failed { reason } = &self.phase {
            return Err(Refusal::Failed { reason: reason.clone() });
        }
        if self.drain_id.is_some() || self.is_stopped {
            return Err(Refusal::Draining);
        }
        let Some(loaded) = &self.loaded else { return Err(Refusal::Loading { ratio: 1.0 }) };
        if self.signals.circuit_open {
            return Err(Refusal::CircuitOpen);
        }
        let seconds = self.times.seconds(Work::of(request)).unwrap_or_default();
        let ask = Ask { shape: Shape::of(request, 1), seconds, left };
        let candidate = Candidate {
            priority: request.priority,
            deadline: left.map(|left| now + left),
            arrival: u64::MAX,
            since: now,
            total_seconds: seconds,
            held_seconds: 0.0,
        };
        let worker = Worker {
            table: &self.signals.table,
            memory: &self.signals.memory,
            buckets: &loaded.rules.buckets,
            queued: self.queue.len(),
            capacity: self.queue.capacity(),
            wait_seconds: self.wait_seconds_before(&candidate, now),
            max_wait: self.queue.max_wait(),
            running_seconds: self.running_seconds(),
        };
        Ok((ask, admit(&ask, &worker)))
    }

    /// Rest of what the engine has begun.
    pub(super) fn running_seconds(&self) -> f64 {
        self.times.total_seconds(self.started.values().copied())
    }

    /// Rest of what the engine has begun, and all that waits.
    pub(super) fn wait_seconds(&self, now: Duration) -> f64 {
        let waiting = self.queue.in_order(now).into_iter().map(|(_, _, job)| Work::of(&job.request));
        self.running_seconds() + self.times.total_seconds(waiting)
    }

    /// Until the turn of this candidate. Bigger requests hold it up for `max_holdup` at most.
    fn wait_seconds_before(&self, candidate: &Candidate, now: Duration) -> f64 {
        let turns = self.queue.turns();
        let own = turns.order(candidate, now);
        let waiting = self.queue.in_order(now).into_iter();
        let before = waiting.filter(|(_, other, _)| turns.order(other, now) < own);
        let before = before.map(|(_, other, job)| (other.priority, Work::of(&job.request)));
        let started = self.started.values().map(|work| (candidate.priority, *work));
        let (mut by_bigger, mut by_others) = (0.0, 0.0);
        for (priority, work) in started.chain(before) {
            let total_seconds = self.times.seconds(work).unwrap_or_default();
            let other = Candidate { priority, total_seconds, ..*candidate };
            if is_held_up_by(candidate, &other) { by_bigger += total_seconds } else { by_others += total_seconds }
        }
        by_others + by_bigger.min(turns.max_holdup.as_secs_f64())
    }
}
