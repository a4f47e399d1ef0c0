//! The half of the dispatcher that the engine thread calls.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use imagegen_core::{
    engine::{AllocatorStats, CountTokens, EngineError, ModelInfo, Stage},
    eta::Work,
    memory::Memory,
    queue::Ticket,
    request::Request,
    rules::{ModelLimits, Rules, RulesError},
    spec::Size,
    table::Table,
    turn::Candidate,
};

use super::{Command, Dispatcher, IDLE_BEAT, Job, Loaded};
use crate::{
    engine_thread::{EngineEvent, JobError, LoadProgress},
    snapshot::Phase,
};

/// What the engine thread does next.
pub(crate) enum Turn {
    /// End.
    Stop,
    /// Something between two batches.
    Command(Command),
    /// It is the turn of the thread's own candidate of this index.
    Own(usize),
    /// It is the turn of a request that waited.
    Job(Job, Candidate),
    /// Something waits, and nothing of it fits the memory.
    Starved,
    /// Nothing to do for a while.
    Idle,
}

/// A request that joins a batch with so many images.
pub(crate) struct Follower {
    pub(crate) job: Job,
    pub(crate) candidate: Candidate,
    pub(crate) images: u32,
}

/// What the engine thread has measured.
pub(crate) struct Measured {
    pub(crate) memory: Memory,
    pub(crate) allocator: AllocatorStats,
    pub(crate) is_exhausted: bool,
    pub(crate) circuit_open: bool,
    pub(crate) pool_overhead_ratio: f64,
}

impl Dispatcher {
    /// Time since the process began, the clock of everything here.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Part of the checkpoint is read; `share` of what is to do before serving is done with all of it.
    pub(crate) fn loading(&self, LoadProgress { loaded_bytes, total_bytes }: LoadProgress, share: f64) {
        self.metrics.loading(loaded_bytes);
        self.loading_ratio(share * loaded_bytes as f64 / total_bytes.max(1) as f64);
    }

    /// So much of what is to do before serving is done, 0 to 1.
    pub(crate) fn loading_ratio(&self, ratio: f64) {
        self.beat();
        // In whole per cents: a report for each of thousands of tensors helps nobody.
        let ratio = (ratio.clamp(0.0, 1.0) * 100.0).floor() / 100.0;
        self.update(|state| state.phase = Phase::Loading { ratio });
    }

    /// The rules that follow from the settings and this model.
    pub(crate) fn rules(&self, model: &ModelInfo) -> Result<Rules, RulesError> {
        Rules::new(self.settings.clone(), ModelLimits::from(model))
    }

    /// The model is ready to serve.
    pub(crate) fn loaded(&self, model: &ModelInfo, rules: Rules, count_tokens: CountTokens, table: Table) {
        let now = self.epoch.elapsed();
        self.metrics.loaded(model, now);
        self.update(|state| {
            for (shape, cost) in table.iter() {
                let calls_per_step = if shape.is_guided { 2 } else { 1 };
                state.times.record_step(shape.size, calls_per_step, shape.batch as usize, cost.step_seconds);
                state.times.record_decode(shape.size, cost.decode_seconds);
            }
            state.signals.table = Arc::new(table);
            state.signals.served_at = Some(now);
            state.loaded = Some(Arc::new(Loaded { model: model.clone(), rules, count_tokens }));
            state.phase = Phase::Serving;
        });
    }

    /// Costs have changed.
    pub(crate) fn table_changed(&self, table: &Table) {
        self.update(|state| state.signals.table = Arc::new(table.clone()));
    }

    /// The memory, between two batches or now and then within one.
    pub(crate) fn measured(&self, measured: &Measured) {
        let Measured { memory, allocator, is_exhausted, circuit_open, pool_overhead_ratio } = *measured;
        let numbers = {
            let mut state = self.lock();
            let now = self.epoch.elapsed();
            let signals = &mut state.signals;
            signals.memory = memory;
            signals.allocator = allocator;
            signals.is_exhausted = is_exhausted;
            signals.circuit_open = circuit_open;
            signals.pool_overhead_ratio = pool_overhead_ratio;
            signals.note_pressure(now);
            self.publish(&mut state);
            state.numbers(now, &self.targets)
        };
        self.metrics.memory.set(&numbers);
    }

    /// What to do next. `own` are the thread's own candidates, `fits` says whether one image of a request could start.
    pub(crate) fn next_turn(&self, own: &[Candidate], fits: &dyn Fn(&Request) -> bool) -> Turn {
        let mut state = self.lock();
        let mut has_waited = false;
        loop {
            self.beat();
            if state.is_stopped {
                return Turn::Stop;
            }
            if let Some(command) = state.commands.pop_front() {
                return Turn::Command(command);
            }
            let now = self.epoch.elapsed();
            let mut tickets: Vec<Ticket> = Vec::new();
            let mut candidates = own.to_vec();
            let (mut gone, mut is_anything_waiting) = (Vec::new(), false);
            for (ticket, candidate, job) in state.queue.in_order(now) {
                if job.is_cancelled() {
                    gone.push(ticket);
                } else if fits(&job.request) {
                    tickets.push(ticket);
                    candidates.push(*candidate);
                } else {
                    is_anything_waiting = true;
                }
            }
            for ticket in gone {
                if let Some((_, job)) = state.queue.take(ticket) {
                    job.tell(EngineEvent::Ended(Err(JobError::Cancelled)));
                }
            }
            let first = state.queue.turns().first(&candidates, now);
            let was_starved = state.signals.is_starved;
            state.signals.is_starved = first.is_none() && is_anything_waiting;
            state.signals.note_pressure(now);
            match first.map(|index| index.checked_sub(own.len()).ok_or(index)) {
                Some(Err(index)) => {
                    self.publish(&mut state);
                    return Turn::Own(index);
                }
                Some(Ok(index)) => {
                    if let Some((candidate, job)) = state.queue.take(tickets[index]) {
                        state.start(&job, &candidate, now);
                        self.publish(&mut state);
                        return Turn::Job(job, candidate);
                    }
                }
                None if state.signals.is_starved && !was_starved => {
                    self.publish(&mut state);
                    return Turn::Starved;
                }
                None => {}
            }
            self.publish(&mut state);
            if has_waited {
                return Turn::Idle;
            }
            let (next, timeout) = self.work.wait_timeout(state, IDLE_BEAT).unwrap_or_else(PoisonError::into_inner);
            state = next;
            has_waited = timeout.timed_out();
        }
    }

    /// Takes out the requests that join a batch: `images` says with how many of its images each does.
    pub(crate) fn followers(&self, images: &mut dyn FnMut(&Request) -> u32) -> Vec<Follower> {
        self.update(|state| {
            let now = self.epoch.elapsed();
            let waiting = state.queue.in_order(now).into_iter();
            let joining: Vec<_> = waiting
                .filter(|(_, _, job)| !job.is_cancelled())
                .map(|(ticket, _, job)| (ticket, images(&job.request)))
                .filter(|(_, images)| *images > 0)
                .collect();
            let mut followers = Vec::with_capacity(joining.len());
            for (ticket, images) in joining {
                if let Some((candidate, job)) = state.queue.take(ticket) {
                    state.start(&job, &candidate, now);
                    followers.push(Follower { job, candidate, images });
                }
            }
            followers
        })
    }

    /// Whether something that waits was held up by `running` for as long as it may be.
    pub(crate) fn is_held_up_too_long(&self, running: &Candidate) -> bool {
        self.lock().queue.is_held_up_too_long(running)
    }

    /// Work of `running` took this long.
    pub(crate) fn passed(&self, running: &Candidate, seconds: f64) {
        let now = self.epoch.elapsed();
        self.lock().queue.held_up(running, seconds, now);
    }

    /// A batch that is charged these bytes is on the device; 0: none is.
    pub(crate) fn charged(&self, bytes: u64) {
        let now = self.epoch.elapsed();
        self.update(|state| {
            state.signals.charged_bytes = bytes;
            state.signals.note_pressure(now);
        });
    }

    /// A request that was begun has left the engine.
    pub(crate) fn job_ended(&self, arrival: u64, request: &Request) {
        self.metrics.images_per_request.observe(f64::from(request.count));
        let now = self.epoch.elapsed();
        self.update(|state| {
            state.started.remove(&arrival);
            state.signals.busy_at = Some(now);
        });
    }

    /// One call of the engine has returned.
    pub(crate) fn stage_done(&self, stage: Stage, seconds: f64, error: Option<&EngineError>) {
        self.beat();
        self.metrics.stage(stage, seconds, error);
        if matches!(error, Some(EngineError::OutOfMemory { .. })) {
            self.lock().signals.out_of_memory += 1;
        }
    }

    /// One step of `images` images took this long.
    pub(crate) fn step_done(&self, request: &Request, images: usize, seconds: f64) {
        self.lock().times.record_step(request.latent_size, request.calls_per_step(), images, seconds);
    }

    /// One image was decoded.
    pub(crate) fn image_done(&self, latent_size: Size, seconds: f64) {
        self.lock().times.record_decode(latent_size, seconds);
    }

    /// What is left of a request. Returns its seconds.
    pub(crate) fn left(&self, arrival: u64, left: Work) -> f64 {
        let mut state = self.lock();
        state.started.insert(arrival, left);
        state.times.seconds(left).unwrap_or_default()
    }

    /// Whether nothing runs and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.started.is_empty() && state.queue.is_empty()
    }

    /// When a request last ran, waited or was refused.
    pub(crate) fn busy_at(&self) -> Duration {
        self.lock().signals.busy_at.unwrap_or_default()
    }

    /// No request can be served any more; all that are admitted end.
    pub(crate) fn fail(&self, reason: &str) {
        let waiting = self.update(|state| {
            if !matches!(state.phase, Phase::Failed { .. }) {
                state.phase = Phase::Failed { reason: reason.to_owned() };
            }
            state.queue.take_all()
        });
        drop(waiting);
        self.abort();
    }
}

impl super::State {
    fn start(&mut self, job: &Job, candidate: &Candidate, now: Duration) {
        self.started.insert(candidate.arrival, Work::of(&job.request));
        let queue_seconds = now.saturating_sub(candidate.since).as_secs_f64();
        job.tell(EngineEvent::Started { queue_seconds });
    }
}
