//! One worker: a queue, one picture at a time on the device, and the numbers that it reports.

use std::collections::VecDeque;

use super::card::Card;

/// Most requests that wait at a worker, as built in.
const QUEUE_CAPACITY: usize = 64;
/// Longest wait at a worker, as built in.
const MAX_WAIT_SECONDS: f64 = 120.0;
/// Seconds over which memory pressure is averaged.
const MEAN_SECONDS: usize = 15;
/// Seconds for which refused work counts.
const REFUSED_SECONDS: f64 = 30.0;

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No GPU is free.
    Unscheduled,
    /// Its container is being started.
    Pending,
    Loading,
    Serving,
    /// Finishes what it has, then goes.
    Draining,
    Gone,
}

/// A request at a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Job {
    pub(crate) request: usize,
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) queued_at: f64,
}

/// What runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) job: Job,
    pub(crate) started: f64,
}

/// One worker pod.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) id: u64,
    pub(crate) phase: Phase,
    /// When it came to that phase.
    pub(crate) since: f64,
    pub(crate) created: f64,
    pub(crate) gpu: Option<u32>,
    /// Grows with every end of the process, so that events of an earlier one are told apart.
    pub(crate) epoch: u32,
    pub(crate) foreign_bytes: u64,
    pub(crate) queue: VecDeque<Job>,
    pub(crate) running: Option<Running>,
    /// Most that the allocator held for activations.
    pub(crate) peak_activation_bytes: u64,
    pub(crate) load_seconds: f64,
    pub(crate) out_of_memory_total: u64,
    /// When, which request, how many seconds of work.
    pub(crate) refused: VecDeque<(f64, usize, f64)>,
    /// Seconds with something on the device, up to now.
    busy_seconds: f64,
    /// Of the running second: bytes of the running batch times seconds.
    byte_seconds: f64,
    counted_to: f64,
    /// Memory pressure of each of the last seconds, and the share of it in which something ran.
    pressures: VecDeque<f64>,
    busy: VecDeque<f64>,
    busy_before: f64,
    /// Work of the queue.
    queued_seconds: f64,
}

impl Worker {
    pub(crate) fn new(id: u64, now: f64) -> Self {
        Self {
            id,
            phase: Phase::Unscheduled,
            since: now,
            created: now,
            gpu: None,
            epoch: 0,
            foreign_bytes: 0,
            queue: VecDeque::new(),
            running: None,
            peak_activation_bytes: 0,
            load_seconds: 0.0,
            out_of_memory_total: 0,
            refused: VecDeque::new(),
            busy_seconds: 0.0,
            byte_seconds: 0.0,
            counted_to: now,
            pressures: VecDeque::new(),
            busy: VecDeque::new(),
            busy_before: 0.0,
            queued_seconds: 0.0,
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase, now: f64) {
        (self.phase, self.since) = (phase, now);
    }

    /// Whether even the smallest picture fits.
    pub(crate) fn has_capacity(&self, card: &Card) -> bool {
        card.classes[0].activation_bytes <= card.headroom_bytes(self.foreign_bytes)
    }

    /// Rest of what runs, and all that waits.
    pub(crate) fn wait_seconds(&self, now: f64) -> f64 {
        let rest = self.running.map_or(0.0, |running| (running.started + running.job.seconds - now).max(0.0));
        rest + self.queued_seconds.max(0.0)
    }

    /// Takes a request, or refuses it: no room, or too long a wait.
    pub(crate) fn admit(&mut self, job: Job, now: f64) -> bool {
        let room = self.queue.len() < QUEUE_CAPACITY && self.wait_seconds(now) <= MAX_WAIT_SECONDS;
        if room {
            self.queued_seconds += job.seconds;
            self.queue.push_back(job);
        } else {
            self.refuse(job, now);
        }
        room
    }

    /// Notes refused work, once per request.
    pub(crate) fn refuse(&mut self, job: Job, now: f64) {
        if !self.refused.iter().any(|(_, request, _)| *request == job.request) {
            self.refused.push_back((now, job.request, job.seconds));
        }
    }

    /// Puts the first request that fits on the device. The end is due after its seconds.
    pub(crate) fn start_next(&mut self, card: &Card, now: f64) -> Option<Running> {
        if self.running.is_some() || !matches!(self.phase, Phase::Serving | Phase::Draining) {
            return None;
        }
        let headroom = card.headroom_bytes(self.foreign_bytes);
        let index = self.queue.iter().position(|job| job.bytes <= headroom)?;
        let job = self.queue.remove(index)?;
        self.count(now);
        self.queued_seconds -= job.seconds;
        self.peak_activation_bytes = self.peak_activation_bytes.max(job.bytes);
        self.running = Some(Running { job, started: now });
        self.running
    }

    /// Takes what runs off the device.
    pub(crate) fn stop_running(&mut self, now: f64) -> Option<Job> {
        self.count(now);
        self.running.take().map(|running| running.job)
    }

    /// Puts a request back in front of the queue.
    pub(crate) fn requeue(&mut self, job: Job) {
        self.queued_seconds += job.seconds;
        self.queue.push_front(job);
    }

    /// Everything it has, which it no longer does.
    pub(crate) fn take_all(&mut self, now: f64) -> Vec<Job> {
        let mut all: Vec<Job> = self.stop_running(now).into_iter().collect();
        all.extend(self.queue.drain(..));
        self.queued_seconds = 0.0;
        all
    }

    /// Requests that have waited too long.
    pub(crate) fn take_overdue(&mut self, now: f64) -> Vec<Job> {
        let (overdue, kept): (Vec<Job>, Vec<Job>) =
            self.queue.drain(..).partition(|job| now - job.queued_at > MAX_WAIT_SECONDS);
        self.queue = kept.into();
        self.queued_seconds -= overdue.iter().map(|job| job.seconds).sum::<f64>();
        overdue
    }

    /// The end of a second: its memory pressure goes into the mean.
    pub(crate) fn tick(&mut self, card: &Card, now: f64) {
        self.count(now);
        let headroom = card.headroom_bytes(self.foreign_bytes) as f64;
        let blocked = self.running.is_none() && !self.queue.is_empty() && self.phase == Phase::Serving;
        let pressure = if blocked { 1.0 } else { (self.byte_seconds / headroom.max(1.0)).min(1.0) };
        self.byte_seconds = 0.0;
        self.pressures.push_back(pressure);
        self.busy.push_back(self.busy_seconds - self.busy_before);
        self.busy_before = self.busy_seconds;
        if self.pressures.len() > MEAN_SECONDS {
            self.pressures.pop_front();
            self.busy.pop_front();
        }
        while self.refused.front().is_some_and(|(at, ..)| now - at > REFUSED_SECONDS) {
            self.refused.pop_front();
        }
    }

    /// Mean over the last seconds.
    pub(crate) fn memory_pressure(&self) -> f64 {
        let count = self.pressures.len().max(1) as f64;
        self.pressures.iter().sum::<f64>() / count
    }

    /// Share of the last seconds in which something ran.
    pub(crate) fn busy_ratio(&self) -> f64 {
        let count = self.busy.len().max(1) as f64;
        (self.busy.iter().sum::<f64>() / count).min(1.0)
    }

    /// Seconds with something on the device.
    pub(crate) fn busy_seconds(&self, now: f64) -> f64 {
        self.busy_seconds + self.running.map_or(0.0, |_| now - self.counted_to)
    }

    /// What NVML says of the device: a caching allocator keeps what it once took.
    pub(crate) fn used_bytes(&self, card: &Card) -> u64 {
        let own = match self.phase {
            Phase::Unscheduled | Phase::Pending | Phase::Gone => 0,
            Phase::Loading => card.own_overhead_bytes,
            Phase::Serving | Phase::Draining => {
                card.own_overhead_bytes + card.weights_bytes + self.peak_activation_bytes
            }
        };
        own + self.foreign_bytes
    }

    fn count(&mut self, now: f64) {
        if let Some(running) = self.running {
            let passed = now - self.counted_to;
            self.busy_seconds += passed;
            self.byte_seconds += passed * running.job.bytes as f64;
        }
        self.counted_to = now;
    }
}
