//! Random histories of a worker, played by the rules of this crate against a clock of numbers, and watched by an oracle
//! that knows nothing of the rules but what they promise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly too")]

use std::{collections::BTreeMap, time::Duration};

use imagegen_core::{
    admission::{self, Ask, Refusal, Worker},
    batch::Forming,
    bucket::Buckets,
    memory::{DeviceMemory, Memory},
    queue::{Place, Queue, Ticket},
    request::{RawRequest, Request, parse},
    rules::{ModelLimits, RuleSettings, Rules},
    spec::Size,
    table::{Cost, Shape, Table},
    turn::Candidate,
};
use proptest::prelude::*;

const MAX_WAIT: Duration = Duration::from_secs(120);
const MAX_HOLDUP: Duration = Duration::from_secs(5);
const CAPACITY: usize = 8;
const WEIGHTS: u64 = 50;
const BUCKETS: &str = "256x256@4,512x512@2,1024x1024@1";

/// One request of a history: when it comes, its size class, and whatever else it may have.
#[derive(Debug, Clone)]
struct Arrival {
    after_ms: u64,
    side: u32,
    count: u32,
    steps: u32,
    priority: i32,
    is_guided: bool,
    deadline_ms: Option<u64>,
    cancel_after_ms: Option<u64>,
    foreign: u64,
}

fn arrivals(priorities: std::ops::Range<i32>) -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (
        (0_u64..6000, prop_oneof![3 => Just(256_u32), 2 => Just(512), 1 => Just(1024)], 1_u32..4, 1_u32..9, priorities),
        (
            any::<bool>(),
            proptest::option::weighted(0.2, 1_000_u64..60_000),
            proptest::option::weighted(0.2, 0_u64..20_000),
        ),
        0_u64..60,
    );
    let arrival = arrival.prop_map(
        |((after_ms, side, count, steps, priority), (is_guided, deadline_ms, cancel_after_ms), foreign)| Arrival {
            after_ms,
            side,
            count,
            steps,
            priority,
            is_guided,
            deadline_ms,
            cancel_after_ms,
            foreign,
        },
    );
    proptest::collection::vec(arrival, 1..30)
}

fn step_seconds(side: u32, batch: u32, is_guided: bool) -> f64 {
    let pixels = f64::from(side) / 256.0;
    0.1 * pixels * pixels * f64::from(batch).powf(0.9) * if is_guided { 2.0 } else { 1.0 }
}

fn table(buckets: &Buckets) -> Table {
    let mut table = Table::default();
    for shape in imagegen_core::table::shapes(buckets, 512) {
        let side = shape.size.width;
        let bytes = u64::from(side / 256) * u64::from(shape.batch) * if shape.is_guided { 4 } else { 2 };
        let step_seconds = step_seconds(side, shape.batch, shape.is_guided);
        table.insert(shape, Cost { peak_reserved_bytes: bytes, step_seconds, ..Cost::default() });
    }
    table
}

fn memory(foreign: u64, activations: u64) -> Memory {
    let held = WEIGHTS + activations;
    Memory {
        device: DeviceMemory { usable_total_bytes: 100, used_bytes: held + foreign },
        reserved_bytes: held,
        allocated_bytes: held,
        own_overhead_bytes: 0,
        weight_bytes: WEIGHTS,
        limit_ratio: 1.0,
    }
}

fn seconds(request: &Request) -> f64 {
    step_seconds(request.bucket.size.width, 1, request.is_guided()) * f64::from(request.steps * request.count)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Done(f64),
    Cancelled,
    Overdue,
}

/// A request of which images are left to start.
struct Part {
    candidate: Candidate,
    id: usize,
    left: u32,
}

/// A batch that is being made.
struct Group {
    leader: Candidate,
    shape: Shape,
    steps_left: u32,
    images: BTreeMap<usize, u32>,
}

/// What the oracle learns.
#[derive(Default)]
struct Seen {
    ends: BTreeMap<usize, End>,
    started: Vec<usize>,
    refused: BTreeMap<usize, Refusal>,
    /// Seconds in which a request waited while one at least twice as big, of at most its priority, ran.
    held: BTreeMap<usize, f64>,
    longest_step: f64,
}

struct Player {
    table: Table,
    rules: Rules,
    queue: Queue<usize>,
    tickets: BTreeMap<usize, Ticket>,
    requests: BTreeMap<usize, (Request, Option<f64>)>,
    parts: Vec<Part>,
    paused: Vec<Group>,
    images_left: BTreeMap<usize, u32>,
    now: f64,
    foreign: u64,
    seen: Seen,
}

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

impl Player {
    fn new() -> Self {
        let buckets: Buckets = BUCKETS.parse().unwrap();
        let model =
            ModelLimits { size_multiple: 16, max_prompt_tokens: 512, max_size: Size { width: 2048, height: 2048 } };
        let settings = RuleSettings { buckets: Some(buckets.clone()), ..RuleSettings::default() };
        Self {
            table: table(&buckets),
            rules: Rules::new(settings, model).unwrap(),
            queue: Queue::new(CAPACITY, MAX_WAIT, MAX_HOLDUP),
            tickets: BTreeMap::new(),
            requests: BTreeMap::new(),
            parts: Vec::new(),
            paused: Vec::new(),
            images_left: BTreeMap::new(),
            now: 0.0,
            foreign: 0,
            seen: Seen::default(),
        }
    }

    fn come(&mut self, id: usize, arrival: &Arrival) {
        self.foreign = arrival.foreign;
        let raw = RawRequest {
            prompt: "a red apple".into(),
            width: Some(arrival.side),
            height: Some(arrival.side),
            steps: Some(arrival.steps),
            count: Some(arrival.count),
            guidance_scale: Some(if arrival.is_guided { 5.0 } else { 0.0 }),
            priority: arrival.priority,
            ..RawRequest::default()
        };
        let request = parse(raw, &self.rules, 0, &|text| Ok(text.split_whitespace().count())).unwrap();
        let left = arrival.deadline_ms.map(Duration::from_millis);
        let memory = memory(self.foreign, 0);
        let running: f64 =
            self.images_left.iter().map(|(id, left)| seconds(&self.requests[id].0) * f64::from(*left)).sum();
        let ask = Ask { shape: Shape::of(&request, 1), seconds: seconds(&request), left };
        let worker = Worker {
            table: &self.table,
            memory: &memory,
            buckets: &self.rules.buckets,
            queued: self.queue.len(),
            capacity: self.queue.capacity(),
            wait_seconds: running.min(100.0),
            max_wait: MAX_WAIT,
            running_seconds: 1.0,
        };
        match admission::admit(&ask, &worker) {
            Ok(permit) => {
                assert!(permit.bytes <= memory.headroom_bytes(), "over budget");
                let place = Place {
                    priority: request.priority,
                    deadline: left.map(|left| at(self.now) + left),
                    total_seconds: permit.seconds,
                };
                let ticket = self.queue.push(place, at(self.now), id).unwrap();
                self.tickets.insert(id, ticket);
                self.images_left.insert(id, request.count);
                let cancel = arrival.cancel_after_ms.map(|after| self.now + after as f64 / 1000.0);
                self.requests.insert(id, (request, cancel));
            }
            Err(refusal) => {
                assert!(!matches!(refusal, Refusal::QueueFull { .. }) || self.queue.len() == CAPACITY);
                self.seen.refused.insert(id, refusal);
            }
        }
    }

    fn end(&mut self, id: usize, end: End) {
        assert!(self.images_left.remove(&id).is_some(), "{id} ended twice");
        assert_eq!(self.seen.ends.insert(id, end), None);
    }

    /// Clients that went away, and those that waited for as long as they may.
    fn leave(&mut self) {
        for (id, ticket) in self.tickets.clone() {
            if self.queue.take_overdue(ticket, at(self.now)).is_some() {
                self.end(id, End::Overdue);
            }
        }
        let gone: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, (_, cancel))| cancel.is_some_and(|at| at <= self.now))
            .map(|(id, _)| *id)
            .collect();
        for id in gone.into_iter().filter(|id| self.images_left.contains_key(id)).collect::<Vec<_>>() {
            self.queue.take(self.tickets[&id]);
            self.parts.retain(|part| part.id != id);
            for group in &mut self.paused {
                group.images.remove(&id);
            }
            self.end(id, End::Cancelled);
        }
        self.paused.retain(|group| !group.images.is_empty());
    }

    /// The batch whose turn it is, unless nothing waits or nothing fits.
    fn next(&mut self) -> Option<Group> {
        let now = at(self.now);
        let memory = memory(self.foreign, 0);
        let free = memory.headroom_bytes();
        let fits = |id: &usize| Forming::start(&self.requests[id].0, &self.table, free).is_some();
        let mut candidates: Vec<(Candidate, Option<usize>, Option<usize>)> = Vec::new();
        candidates.extend(self.paused.iter().enumerate().map(|(index, group)| (group.leader, Some(index), None)));
        candidates
            .extend(self.parts.iter().filter(|part| fits(&part.id)).map(|part| (part.candidate, None, Some(part.id))));
        candidates.extend(
            self.queue
                .in_order(now)
                .into_iter()
                .filter(|(_, _, id)| fits(id))
                .map(|(_, candidate, id)| (*candidate, None, Some(*id))),
        );
        let plain: Vec<_> = candidates.iter().map(|(candidate, ..)| *candidate).collect();
        let (leader, paused, id) = candidates[self.queue.turns().first(&plain, now)?];
        if let Some(index) = paused {
            return Some(self.paused.remove(index));
        }
        let id = id.unwrap();
        let mut others: Vec<usize> = self.parts.iter().map(|part| part.id).collect();
        others.extend(self.queue.in_order(now).into_iter().map(|(_, _, other)| *other));
        others.retain(|other| *other != id);
        self.take(id);
        let part = self.parts.iter().position(|part| part.id == id).unwrap();
        let mut left = self.parts[part].left;
        let (request, _) = &self.requests[&id];
        let steps = request.steps;
        let mut forming = Forming::start(request, &self.table, free).unwrap();
        let own = 1 + forming.add(request, left - 1);
        left -= own;
        let mut images = BTreeMap::from([(id, own)]);
        self.parts[part].left = left;
        if left == 0 {
            for other in others {
                let part = self.parts.iter().find(|part| part.id == other);
                let wanted = part.map_or(self.requests[&other].0.count, |part| part.left);
                let added = forming.add(&self.requests[&other].0, wanted);
                if added > 0 {
                    images.insert(other, added);
                }
            }
        }
        let shape = forming.shape();
        self.parts.retain(|part| part.left > 0);
        for (other, added) in images.iter().filter(|(other, _)| **other != id) {
            self.take_part(*other, *added);
        }
        assert!(self.table.bytes(shape).unwrap() <= free, "over budget");
        Some(Group { leader, shape, steps_left: steps, images })
    }

    fn take(&mut self, id: usize) {
        if let Some((candidate, _)) = self.queue.take(self.tickets[&id]) {
            self.seen.started.push(id);
            let left = self.requests[&id].0.count;
            self.parts.push(Part { candidate, id, left });
        }
    }

    fn take_part(&mut self, id: usize, images: u32) {
        self.take(id);
        let part = self.parts.iter_mut().find(|part| part.id == id).unwrap();
        part.left -= images;
        self.parts.retain(|part| part.left > 0);
    }

    /// Runs until `until`, or until nothing can run.
    fn run(&mut self, until: f64) {
        while self.now < until {
            self.leave();
            let Some(mut group) = self.next() else {
                self.now = until;
                return;
            };
            let seconds = step_seconds(group.shape.size.width, group.shape.batch, group.shape.is_guided);
            self.seen.longest_step = self.seen.longest_step.max(seconds);
            while group.steps_left > 0 {
                self.now += seconds;
                group.steps_left -= 1;
                for (id, held) in self.waiting() {
                    if 2.0 * held <= group.leader.total_seconds
                        && self.requests[&id].0.priority >= group.leader.priority
                    {
                        let since = self
                            .queue
                            .in_order(at(self.now))
                            .iter()
                            .find(|(_, _, other)| **other == id)
                            .unwrap()
                            .1
                            .since;
                        *self.seen.held.entry(id).or_default() += seconds.min(self.now - since.as_secs_f64());
                    }
                }
                self.queue.held_up(&group.leader, seconds, at(self.now));
                self.leave_running(&mut group);
                if group.images.is_empty()
                    || (group.steps_left > 0 && self.queue.is_held_up_too_long(&group.leader))
                    || self.now >= until
                {
                    break;
                }
            }
            if group.images.is_empty() {
                continue;
            }
            if group.steps_left > 0 {
                self.paused.push(group);
                continue;
            }
            for (id, images) in group.images {
                let left = self.images_left.get_mut(&id).unwrap();
                *left -= images;
                if *left == 0 {
                    self.end(id, End::Done(self.now));
                }
            }
        }
    }

    fn waiting(&self) -> Vec<(usize, f64)> {
        self.queue.in_order(at(self.now)).into_iter().map(|(_, candidate, id)| (*id, candidate.total_seconds)).collect()
    }

    fn leave_running(&mut self, group: &mut Group) {
        self.leave();
        group.images.retain(|id, _| self.images_left.contains_key(id));
    }
}

fn play(arrivals: &[Arrival]) -> Player {
    let mut player = Player::new();
    let mut now = 0.0;
    for (id, arrival) in arrivals.iter().enumerate() {
        now += arrival.after_ms as f64 / 1000.0;
        player.run(now);
        player.come(id, arrival);
    }
    // The neighbour goes, and everything that waits comes to its end.
    player.foreign = 0;
    player.run(now + 4.0 * MAX_WAIT.as_secs_f64());
    player
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_permit_comes_back_and_nobody_starves(arrivals in arrivals(-3..4)) {
        let player = play(&arrivals);
        prop_assert!(player.images_left.is_empty(), "left: {:?}", player.images_left);
        prop_assert!(player.queue.is_empty() && player.parts.is_empty() && player.paused.is_empty());
        prop_assert_eq!(player.seen.ends.len() + player.seen.refused.len(), arrivals.len());
    }

    #[test]
    fn bigger_images_hold_a_small_one_up_for_max_holdup_and_two_steps_at_most(mut arrivals in arrivals(0..1)) {
        for arrival in &mut arrivals {
            // Where a neighbour leaves no room for the small one, it is not the big one that it waits for.
            arrival.foreign = 0;
        }
        let seen = play(&arrivals).seen;
        for (id, held) in &seen.held {
            let most = MAX_HOLDUP.as_secs_f64() + 2.0 * seen.longest_step;
            prop_assert!(*held <= most, "{} was held up for {} s, at most {} s are promised", id, held, most);
        }
    }

    #[test]
    fn equals_start_in_order_of_arrival(mut arrivals in arrivals(0..1)) {
        for arrival in &mut arrivals {
            *arrival = Arrival {
                side: 512, count: 1, steps: 4, is_guided: false, deadline_ms: None, foreign: 0, ..arrival.clone()
            };
        }
        let seen = play(&arrivals).seen;
        prop_assert!(seen.started.is_sorted(), "{:?}", seen.started);
    }
}

#[test]
fn a_big_image_is_done_although_small_ones_keep_coming() {
    // Small ones come faster than the worker makes them, for ten minutes.
    let small = Arrival {
        after_ms: 400,
        side: 256,
        count: 1,
        steps: 8,
        priority: 0,
        is_guided: false,
        deadline_ms: None,
        cancel_after_ms: None,
        foreign: 0,
    };
    let big = Arrival { side: 1024, steps: 20, ..small };
    let mut arrivals = vec![big];
    arrivals.extend(std::iter::repeat_n(small, 1500));
    let player = play(&arrivals);
    let Some(End::Done(seconds)) = player.seen.ends.get(&0) else { panic!("{:?}", player.seen.ends.get(&0)) };
    assert!(*seconds < 300.0, "{seconds}");
    let most = MAX_HOLDUP.as_secs_f64() + 2.0 * player.seen.longest_step;
    assert!(player.seen.held.values().all(|held| *held <= most));
    assert!(player.seen.held.len() > 3, "{:?}", player.seen.held);
}
