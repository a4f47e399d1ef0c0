//! What the engine thread owns, and its loop: whose turn it is, which images are made together.

use std::{collections::BTreeMap, time::Instant};

use imagegen_core::{
    batch::Forming,
    breaker::Breaker,
    engine::{Engine, EngineError},
    memory::{Memory, ReadDeviceMemory},
    table::{Shape, Table},
    trim,
    turn::Candidate,
};

use super::{
    Done, EngineEvent, JobError, Setup,
    group::{Group, Item},
};
use crate::dispatcher::{Command, Dispatcher, Job, Trimmed, Turn};

/// See the module.
pub(super) struct World<'a, E: Engine> {
    pub(super) engine: E,
    pub(super) dispatcher: &'a Dispatcher,
    pub(super) device: ReadDeviceMemory,
    pub(super) memory: Memory,
    pub(super) table: Table,
    pub(super) watch: trim::Watch,
    pub(super) breaker: Breaker,
    /// What the allocator may hold; `None` before it was told.
    pub(super) limit_bytes: Option<u64>,
    pub(super) is_exhausted: bool,
    pub(super) measured_at: Instant,
    /// Requests that are begun and not done, by arrival.
    pub(super) started: BTreeMap<u64, Started>,
    /// Batches that wait for their turn: suspended ones, and images that go on alone.
    pub(super) paused: Vec<Group<E::Batch>>,
}

/// A request that is begun.
pub(super) struct Started {
    pub(super) job: Job,
    pub(super) candidate: Candidate,
    /// The first image that is in no batch yet.
    pub(super) next: u32,
    pub(super) images_done: u32,
    /// Steps done, counted once for each image.
    pub(super) image_steps_done: u64,
    pub(super) done: Done,
}

impl Started {
    fn new(job: Job, candidate: Candidate) -> Self {
        Self { job, candidate, next: 0, images_done: 0, image_steps_done: 0, done: Done::default() }
    }

    fn images_left(&self) -> u32 {
        self.job.request.count - self.next
    }
}

impl<'a, E: Engine> World<'a, E> {
    pub(super) fn new(engine: E, setup: &Setup, dispatcher: &'a Dispatcher) -> Self {
        let stats = engine.allocator();
        let memory = Memory {
            weight_bytes: if stats.allocated_bytes > 0 { stats.allocated_bytes } else { engine.model().weight_bytes },
            limit_ratio: setup.limit_ratio,
            ..Memory::UNKNOWN
        };
        Self {
            engine,
            dispatcher,
            device: std::sync::Arc::clone(&setup.device),
            memory,
            table: Table::default(),
            watch: trim::Watch::new(setup.trim, dispatcher.now(), stats),
            breaker: Breaker::default(),
            limit_bytes: None,
            is_exhausted: false,
            measured_at: Instant::now(),
            started: BTreeMap::new(),
            paused: Vec::new(),
        }
    }

    /// Makes what is asked for until the dispatcher stops the thread.
    ///
    /// # Errors
    /// [`EngineError::Fatal`]: the device needs a new process.
    pub(super) fn serve(&mut self) -> Result<(), EngineError> {
        loop {
            self.drop_unwanted();
            self.look_after_memory()?;
            let own: Vec<_> = self.own_candidates();
            let candidates: Vec<_> = own.iter().map(|(candidate, _)| *candidate).collect();
            let (table, free_bytes) = (&self.table, self.memory.free_bytes());
            let fits = |request: &_| Forming::start(request, table, free_bytes).is_some();
            let group = match self.dispatcher.next_turn(&candidates, &fits) {
                Turn::Stop => return Ok(()),
                Turn::Idle => continue,
                Turn::Starved => {
                    self.trim();
                    continue;
                }
                Turn::Command(Command::Trim(reply)) => {
                    let before_bytes = self.engine.allocator().reserved_bytes;
                    self.trim();
                    let after_bytes = self.engine.allocator().reserved_bytes;
                    // Whoever asked may have gone.
                    let _ = reply.send(Trimmed { before_bytes, after_bytes });
                    continue;
                }
                Turn::Own(index) => match own[index].1 {
                    Own::Paused(index) => self.paused.remove(index),
                    Own::Started(arrival) => self.form(arrival),
                },
                Turn::Job(job, candidate) => {
                    let arrival = candidate.arrival;
                    self.started.insert(arrival, Started::new(job, candidate));
                    self.form(arrival)
                }
            };
            self.make(group)?;
        }
    }

    fn own_candidates(&self) -> Vec<(Candidate, Own)> {
        let paused = self.paused.iter().enumerate();
        let paused = paused.map(|(index, group)| (group.leader, Own::Paused(index)));
        let left = self.started.iter().filter(|(_, started)| started.images_left() > 0);
        let left = left.map(|(arrival, started)| (started.candidate, Own::Started(*arrival)));
        paused.chain(left).collect()
    }

    /// The batch that begins with the next image of this request. Images of other requests join it where that pays.
    fn form(&mut self, arrival: u64) -> Group<E::Batch> {
        let Some(leader) = self.started.get(&arrival) else { return Group::empty() };
        let (candidate, request) = (leader.candidate, std::sync::Arc::clone(&leader.job.request));
        let mut joining = vec![(arrival, 1)];
        let mut shape = Shape::of(&request, 1);
        if let Some(mut forming) = Forming::start(&request, &self.table, self.memory.free_bytes()) {
            joining[0].1 += forming.add(&request, leader.images_left().saturating_sub(1));
            for (other, started) in self.started.iter().filter(|(other, _)| **other != arrival) {
                joining.push((*other, forming.add(&started.job.request, started.images_left())));
            }
            let followers = self.dispatcher.followers(&mut |request| forming.add(request, request.count));
            shape = forming.shape();
            for follower in followers {
                joining.push((follower.candidate.arrival, follower.images));
                self.started.insert(follower.candidate.arrival, Started::new(follower.job, follower.candidate));
            }
        }
        let mut items = Vec::new();
        for (arrival, images) in joining {
            if let Some(started) = self.started.get_mut(&arrival) {
                items.extend((0..images).map(|image| Item { arrival, index: started.next + image }));
                started.next += images;
            }
        }
        Group::new(candidate, items, request.steps, shape)
    }

    /// Ends the requests that nobody wants any more, and drops what was begun of them.
    pub(super) fn drop_unwanted(&mut self) {
        let cancelled = self.started.iter().filter(|(_, started)| started.job.is_cancelled());
        for arrival in cancelled.map(|(arrival, _)| *arrival).collect::<Vec<_>>() {
            self.end(arrival, Err(JobError::Cancelled));
        }
        let started = &self.started;
        self.paused.retain(|group| group.items.iter().any(|item| started.contains_key(&item.arrival)));
    }

    /// Gives a request its end, once.
    pub(super) fn end(&mut self, arrival: u64, result: Result<(), JobError>) {
        if let Some(started) = self.started.remove(&arrival) {
            self.dispatcher.job_ended(arrival, &started.job.request);
            started.job.tell(EngineEvent::Ended(result.map(|()| started.done)));
        }
    }
}

enum Own {
    Paused(usize),
    Started(u64),
}
