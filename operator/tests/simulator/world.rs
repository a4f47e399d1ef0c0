//! The events of one run, in the order of their times.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    autoscaler::{Autoscaler, Kind},
    card::Card,
    outcome::Outcome,
    scenario::{Scenario, Trouble},
    worker::{Job, Phase, Worker},
};

/// Times that a client tries again, as `imagegen` does.
const RETRIES: u32 = 3;
const FIRST_RETRY_SECONDS: f64 = 0.5;
const RETRY_JITTER: f64 = 0.2;
/// How long a worker may take to finish what it has.
const DRAIN_SECONDS: f64 = 120.0;
/// Seconds of a picture differ by at most this share from the table.
const SERVICE_JITTER: f64 = 0.05;
const TICK_SECONDS: f64 = 1.0;
const TRACE_SECONDS: f64 = 10.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    Retry {
        request: usize,
    },
    /// What runs ends, in the process of this epoch.
    Finish {
        worker: u64,
        epoch: u32,
        request: usize,
    },
    /// The worker comes to the next phase of its start.
    Started {
        worker: u64,
        epoch: u32,
    },
    DrainEnds {
        worker: u64,
    },
    NeighbourComes,
    NeighbourLeaves,
    Crash,
    Tick,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    arrived: f64,
    class: usize,
    seconds: f64,
    failures: u32,
}

/// Runs `scenario` under an autoscaler. The same arguments give the same outcome.
pub(crate) fn run(card: &Card, scenario: &Scenario, kind: Kind, target: f64, seed: u64) -> Outcome {
    let mut world = World::new(card, scenario, kind, target, seed);
    world.run();
    world.finish()
}

struct World<'a> {
    card: &'a Card,
    scenario: &'a Scenario,
    rng: StdRng,
    now: f64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    /// By id, ascending.
    workers: Vec<Worker>,
    next_id: u64,
    free_gpus: BTreeSet<u32>,
    /// What a neighbour holds of every second GPU.
    neighbour_bytes: u64,
    /// Workers that take requests; rebuilt when something about that changed.
    takers: Option<Vec<u64>>,
    requests: Vec<Request>,
    autoscaler: Autoscaler,
    wanted: u32,
    bursts: Vec<(f64, f64, u32)>,
    outcome: Outcome,
}

impl<'a> World<'a> {
    fn new(card: &'a Card, scenario: &'a Scenario, kind: Kind, target: f64, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let autoscaler = Autoscaler::new(kind, target, scenario, &mut rng);
        let mut world = Self {
            card,
            scenario,
            rng,
            now: 0.0,
            events: BinaryHeap::new(),
            sequence: 0,
            workers: Vec::new(),
            next_id: 0,
            free_gpus: (0..scenario.gpus).collect(),
            neighbour_bytes: 0,
            takers: None,
            requests: Vec::new(),
            autoscaler,
            wanted: scenario.start,
            bursts: scenario.load.bursts(scenario.seconds),
            outcome: Outcome { fewest: scenario.start, ..Outcome::default() },
        };
        for _ in 0..scenario.start {
            world.create_worker();
            let worker = world.workers.last_mut().expect("just made");
            worker.load_seconds = card.load_seconds * scenario.load_time_factor;
            worker.enter(Phase::Serving, 0.0);
            worker.epoch += 1;
        }
        world.schedule_arrival();
        world.schedule(TICK_SECONDS, Event::Tick);
        match scenario.trouble {
            Trouble::Nothing => {}
            Trouble::Neighbour { .. } => {
                world.schedule(scenario.seconds / 3.0, Event::NeighbourComes);
                world.schedule(scenario.seconds * 2.0 / 3.0, Event::NeighbourLeaves);
            }
            Trouble::Crashes { every_seconds } => world.schedule(every_seconds, Event::Crash),
        }
        world
    }

    fn run(&mut self) {
        while let Some(Reverse((micros, _, event))) = self.events.pop() {
            let at = micros as f64 / 1e6;
            if at > self.scenario.seconds {
                return;
            }
            self.now = at;
            self.handle(event);
        }
    }

    fn finish(mut self) -> Outcome {
        let end = self.scenario.seconds;
        for worker in self.workers.iter().filter(|worker| worker.gpu.is_some()) {
            self.outcome.gpu_seconds += end - worker.created;
        }
        self.outcome.in_flight = self.outcome.arrived - self.outcome.finished - self.outcome.lost;
        self.outcome
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Retry { request } => self.place(request),
            Event::Finish { worker, epoch, request } => self.finish_request(worker, epoch, request),
            Event::Started { worker, epoch } => self.started(worker, epoch),
            Event::DrainEnds { worker } => self.drain_ends(worker),
            Event::NeighbourComes => {
                if let Trouble::Neighbour { share } = self.scenario.trouble {
                    self.neighbour(share);
                }
            }
            Event::NeighbourLeaves => self.neighbour(0.0),
            Event::Crash => self.crash(),
            Event::Tick => self.tick(),
        }
    }

    fn schedule(&mut self, at: f64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(((at * 1e6).round() as u64, self.sequence, event)));
    }

    // --- Requests

    fn schedule_arrival(&mut self) {
        // Thinning: of arrivals at the peak rate, those are kept that the rate of their time allows.
        let peak = self.scenario.peak_rate(self.card);
        let mut at = self.now;
        loop {
            at -= (1.0 - self.rng.random::<f64>()).ln() / peak;
            if at > self.scenario.seconds || self.rng.random::<f64>() * peak <= self.scenario.rate(self.card, at) {
                return self.schedule(at, Event::Arrive);
            }
        }
    }

    fn arrive(&mut self) {
        let total: f64 = self.scenario.mix.iter().sum();
        let mut draw = self.rng.random::<f64>() * total;
        let class = self.scenario.mix.iter().position(|share| {
            draw -= share;
            draw < 0.0
        });
        let class = class.unwrap_or(0);
        let jitter = 1.0 + SERVICE_JITTER * self.rng.random_range(-1.0..1.0);
        let seconds = self.card.classes[class].seconds * jitter;
        self.requests.push(Request { arrived: self.now, class, seconds, failures: 0 });
        self.outcome.arrived += 1;
        self.place(self.requests.len() - 1);
        self.schedule_arrival();
    }

    /// Sends a request to some worker that takes requests.
    fn place(&mut self, request: usize) {
        let card = self.card;
        let workers = &self.workers;
        let takers = self.takers.get_or_insert_with(|| {
            let takes = |worker: &&Worker| worker.phase == Phase::Serving && worker.has_capacity(card);
            workers.iter().filter(takes).map(|worker| worker.id).collect()
        });
        if takers.is_empty() {
            return self.fail(request, 0.0);
        }
        let id = takers[self.rng.random_range(0..takers.len())];
        let Some(index) = self.find(id) else { return self.fail(request, 0.0) };
        let Request { class, seconds, .. } = self.requests[request];
        let bytes = card.classes[class].activation_bytes;
        let job = Job { request, seconds, bytes, queued_at: self.now };
        if self.workers[index].admit(job, self.now) {
            self.start_next(index);
        } else {
            let rest =
                self.workers[index].running.map_or(0.0, |running| running.started + running.job.seconds - self.now);
            self.fail(request, rest);
        }
    }

    /// The client tries again, or gives up.
    fn fail(&mut self, request: usize, hint_seconds: f64) {
        let failures = &mut self.requests[request].failures;
        *failures += 1;
        if *failures > RETRIES {
            self.outcome.lost += 1;
            return;
        }
        let own = FIRST_RETRY_SECONDS * f64::from(1u32 << (*failures - 1));
        let wait = own.max(hint_seconds) * (1.0 + RETRY_JITTER * self.rng.random::<f64>());
        self.schedule(self.now + wait, Event::Retry { request });
    }

    fn start_next(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if let Some(running) = worker.start_next(self.card, self.now) {
            let event = Event::Finish { worker: worker.id, epoch: worker.epoch, request: running.job.request };
            self.schedule(self.now + running.job.seconds, event);
        }
        self.leave_if_drained(index);
    }

    fn finish_request(&mut self, id: u64, epoch: u32, request: usize) {
        let Some(index) = self.find(id) else { return };
        let worker = &mut self.workers[index];
        let runs = worker.running.is_some_and(|running| running.job.request == request);
        if worker.epoch != epoch || !runs {
            return;
        }
        let started = worker.running.map_or(self.now, |running| running.started);
        worker.stop_running(self.now);
        self.outcome.finished += 1;
        self.outcome.waits.push((started - self.requests[request].arrived) as f32);
        self.start_next(index);
    }

    // --- Workers

    fn find(&self, id: u64) -> Option<usize> {
        self.workers.binary_search_by_key(&id, |worker| worker.id).ok()
    }

    fn create_worker(&mut self) {
        self.workers.push(Worker::new(self.next_id, self.now));
        self.next_id += 1;
        self.assign_gpus();
    }

    /// Gives free GPUs to those that wait for one.
    fn assign_gpus(&mut self) {
        let mut starting = Vec::new();
        for worker in self.workers.iter_mut().filter(|worker| worker.phase == Phase::Unscheduled) {
            let Some(gpu) = self.free_gpus.pop_first() else { break };
            worker.gpu = Some(gpu);
            worker.created = self.now;
            worker.foreign_bytes = foreign_bytes(gpu, self.neighbour_bytes);
            worker.enter(Phase::Pending, self.now);
            starting.push((worker.id, worker.epoch));
        }
        for (worker, epoch) in starting {
            self.schedule(self.now + self.card.pending_seconds, Event::Started { worker, epoch });
        }
    }

    fn started(&mut self, id: u64, epoch: u32) {
        let Some(index) = self.find(id) else { return };
        let load_seconds = self.card.load_seconds * self.scenario.load_time_factor;
        let worker = &mut self.workers[index];
        if worker.epoch != epoch {
            return;
        }
        match worker.phase {
            Phase::Pending => {
                worker.enter(Phase::Loading, self.now);
                self.schedule(self.now + load_seconds, Event::Started { worker: id, epoch });
            }
            Phase::Loading => {
                worker.load_seconds = load_seconds;
                worker.enter(Phase::Serving, self.now);
                self.takers = None;
            }
            _ => {}
        }
    }

    fn drain(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        self.takers = None;
        if worker.phase == Phase::Serving {
            worker.enter(Phase::Draining, self.now);
            let event = Event::DrainEnds { worker: worker.id };
            self.schedule(self.now + DRAIN_SECONDS, event);
            self.leave_if_drained(index);
        } else {
            self.remove(index);
        }
    }

    fn drain_ends(&mut self, id: u64) {
        let Some(index) = self.find(id) else { return };
        let worker = &mut self.workers[index];
        // Taken back, and perhaps drained anew, since.
        if worker.phase != Phase::Draining || self.now - worker.since < DRAIN_SECONDS {
            return;
        }
        for job in worker.take_all(self.now) {
            self.fail(job.request, 0.0);
        }
        if let Some(index) = self.find(id) {
            self.remove(index);
        }
    }

    fn leave_if_drained(&mut self, index: usize) {
        let worker = &self.workers[index];
        if worker.phase == Phase::Draining && worker.running.is_none() && worker.queue.is_empty() {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) {
        let worker = self.workers.remove(index);
        self.takers = None;
        if let Some(gpu) = worker.gpu {
            self.outcome.gpu_seconds += self.now - worker.created;
            self.free_gpus.insert(gpu);
            self.assign_gpus();
        }
    }

    // --- Trouble

    fn neighbour(&mut self, share: f64) {
        let bytes = (self.card.usable_total_bytes as f64 * share) as u64;
        self.neighbour_bytes = bytes;
        self.takers = None;
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let Some(gpu) = worker.gpu else { continue };
            worker.foreign_bytes = foreign_bytes(gpu, bytes);
            let needed = self.card.own_overhead_bytes + self.card.weights_bytes + worker.foreign_bytes;
            let bytes = worker.running.map_or(0, |running| running.job.bytes);
            if needed + bytes > self.card.usable_total_bytes
                && let Some(job) = worker.stop_running(self.now)
            {
                // The worker frees the batch and runs the request again, alone.
                worker.out_of_memory_total += 1;
                self.outcome.out_of_memory += 1;
                worker.epoch += 1;
                worker.requeue(job);
            }
        }
        let ids: Vec<u64> = self.workers.iter().map(|worker| worker.id).collect();
        for id in ids {
            if let Some(index) = self.find(id) {
                self.start_next(index);
            }
        }
    }

    fn crash(&mut self) {
        let serving = self.workers.iter().enumerate().filter(|(_, worker)| worker.phase == Phase::Serving);
        let busiest = serving.max_by(|(_, a), (_, b)| a.wait_seconds(self.now).total_cmp(&b.wait_seconds(self.now)));
        if let Some((index, _)) = busiest {
            let worker = &mut self.workers[index];
            let jobs = worker.take_all(self.now);
            worker.epoch += 1;
            worker.peak_activation_bytes = 0;
            worker.enter(Phase::Loading, self.now);
            let event = Event::Started { worker: worker.id, epoch: worker.epoch };
            let load_seconds = self.card.load_seconds * self.scenario.load_time_factor;
            self.takers = None;
            self.schedule(self.now + self.card.restart_seconds + load_seconds, event);
            for job in jobs {
                self.fail(job.request, 0.0);
            }
        }
        if let Trouble::Crashes { every_seconds } = self.scenario.trouble {
            self.schedule(self.now + every_seconds, Event::Crash);
        }
    }

    // --- Every second

    fn tick(&mut self) {
        let mut overdue = Vec::new();
        for worker in &mut self.workers {
            worker.tick(self.card, self.now);
            for job in worker.take_overdue(self.now) {
                worker.refuse(job, self.now);
                overdue.push(job.request);
            }
        }
        for request in overdue {
            self.fail(request, 0.0);
        }
        let wanted = self.autoscaler.tick(&self.workers, self.card, self.wanted, self.now);
        self.resize(wanted);
        self.watch();
        self.schedule(self.now + TICK_SECONDS, Event::Tick);
    }

    fn resize(&mut self, wanted: u32) {
        if wanted != self.wanted {
            self.outcome.changes.push((self.now, self.wanted, wanted));
            self.wanted = wanted;
            self.outcome.fewest = self.outcome.fewest.min(wanted);
        }
        loop {
            let there = self.workers.iter().filter(|worker| worker.phase != Phase::Draining).count() as u32;
            if there < wanted {
                self.add_worker();
            } else if there > wanted {
                let Some(index) = self.victim() else { return };
                self.drain(index);
            } else {
                return;
            }
        }
    }

    fn add_worker(&mut self) {
        let draining = self.workers.iter().position(|worker| worker.phase == Phase::Draining);
        match draining.filter(|_| self.autoscaler.kind.drains()) {
            Some(index) => {
                self.workers[index].enter(Phase::Serving, self.now);
                self.takers = None;
            }
            None => self.create_worker(),
        }
    }

    /// Who goes: those that do not serve yet, then by the operator's choice the least loaded, by the ReplicaSet's the
    /// youngest.
    fn victim(&self) -> Option<usize> {
        let rank = |worker: &Worker| match worker.phase {
            Phase::Unscheduled => 0,
            Phase::Pending => 1,
            Phase::Loading => 2,
            _ => 3,
        };
        let stays = self.workers.iter().enumerate().filter(|(_, worker)| worker.phase != Phase::Draining);
        let drains = self.autoscaler.kind.drains();
        let chosen = stays.min_by(|(_, a), (_, b)| {
            let by_load = a.wait_seconds(self.now).total_cmp(&b.wait_seconds(self.now));
            let youngest_first = b.created.total_cmp(&a.created);
            rank(a).cmp(&rank(b)).then(if drains { by_load } else { youngest_first }).then(b.id.cmp(&a.id))
        });
        chosen.map(|(index, _)| index)
    }

    fn watch(&mut self) {
        let serving = self.workers.iter().filter(|worker| worker.phase == Phase::Serving).count() as u32;
        let now = self.now;
        let outcome = &mut self.outcome;
        self.bursts.retain(|&(start, end, needed)| {
            if now < start || (serving < needed && now < end) {
                return true;
            }
            outcome.to_size_seconds.push(now.min(end) - start);
            false
        });
        if (now / TRACE_SECONDS).fract() < TICK_SECONDS / TRACE_SECONDS / 2.0 {
            outcome.trace.push((now, self.scenario.load.at(now), self.wanted, serving));
        }
    }
}

/// What the neighbour holds of this GPU.
fn foreign_bytes(gpu: u32, neighbour_bytes: u64) -> u64 {
    if gpu.is_multiple_of(2) { neighbour_bytes } else { 0 }
}
