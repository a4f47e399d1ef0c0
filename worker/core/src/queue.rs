//! The bounded waiting line. Whose turn it is, [`Turns`] says.

use std::{collections::BTreeMap, time::Duration};

use crate::turn::{Candidate, Turns, is_held_up_by};

/// Names one entry of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

impl Ticket {
    /// Counts up; the `arrival` of the entry's [`Candidate`].
    #[must_use]
    pub const fn arrival(self) -> u64 {
        self.0
    }
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} places of the queue are taken")]
pub struct QueueFull {
    /// Places there are.
    pub capacity: usize,
}

/// What decides about the place of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Place {
    /// Higher first.
    pub priority: i32,
    /// When it is of no use any more.
    pub deadline: Option<Duration>,
    /// What it takes on an empty worker; 0 when that is not known.
    pub total_seconds: f64,
}

/// A bounded waiting line. Times are durations since any fixed moment, the same for all calls.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: BTreeMap<Ticket, (Candidate, T)>,
    capacity: usize,
    max_wait: Duration,
    turns: Turns,
    arrivals: u64,
}

impl<T> Queue<T> {
    /// An empty queue of `capacity` places, in which an entry waits at most `max_wait`, and is held up by bigger ones for
    /// at most `max_holdup`.
    #[must_use]
    pub fn new(capacity: usize, max_wait: Duration, max_holdup: Duration) -> Self {
        let turns = Turns::new(max_holdup, max_wait);
        Self { waiting: BTreeMap::new(), capacity, max_wait, turns, arrivals: 0 }
    }

    /// Puts an entry into the line.
    ///
    /// # Errors
    /// When all places are taken.
    pub fn push(&mut self, place: Place, now: Duration, entry: T) -> Result<Ticket, QueueFull> {
        if self.waiting.len() >= self.capacity {
            return Err(QueueFull { capacity: self.capacity });
        }
        let ticket = Ticket(self.arrivals);
        self.arrivals += 1;
        let Place { priority, deadline, total_seconds } = place;
        let candidate =
            Candidate { priority, deadline, arrival: ticket.0, since: now, total_seconds, held_seconds: 0.0 };
        self.waiting.insert(ticket, (candidate, entry));
        Ok(ticket)
    }

    /// Takes an entry out, unless it has left already.
    pub fn take(&mut self, ticket: Ticket) -> Option<(Candidate, T)> {
        self.waiting.remove(&ticket)
    }

    /// Takes out an entry that waited for as long as it may; leaves it while it has time, or when it has left already.
    pub fn take_overdue(&mut self, ticket: Ticket, now: Duration) -> Option<T> {
        let (candidate, _) = self.waiting.get(&ticket)?;
        let is_overdue = now.saturating_sub(candidate.since) >= self.max_wait;
        if is_overdue { self.take(ticket).map(|(_, entry)| entry) } else { None }
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting).into_values().map(|(_, entry)| entry).collect()
    }

    /// The entries, those with earlier turns first, as far as they can be foreseen.
    #[must_use]
    pub fn in_order(&self, now: Duration) -> Vec<(Ticket, &Candidate, &T)> {
        let mut order: Vec<_> =
            self.waiting.iter().map(|(ticket, (candidate, entry))| (*ticket, candidate, entry)).collect();
        order.sort_by_key(|(_, candidate, _)| self.turns.order(candidate, now));
        order
    }

    /// Something of `big` ran for these seconds until now: those that are small beside it were held up by it.
    pub fn held_up(&mut self, big: &Candidate, seconds: f64, now: Duration) {
        for (candidate, _) in self.waiting.values_mut() {
            if is_held_up_by(candidate, big) {
                candidate.held_seconds += seconds.min(now.saturating_sub(candidate.since).as_secs_f64());
            }
        }
    }

    /// Whether `running` must let one that waits go first.
    #[must_use]
    pub fn is_held_up_too_long(&self, running: &Candidate) -> bool {
        self.waiting.values().any(|(candidate, _)| self.turns.must_yield(running, candidate))
    }

    /// How turns are given.
    #[must_use]
    pub const fn turns(&self) -> Turns {
        self.turns
    }

    /// Entries that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Places there are.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Longest wait.
    #[must_use]
    pub const fn max_wait(&self) -> Duration {
        self.max_wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn queue<T>(capacity: usize, max_wait: Duration) -> Queue<T> {
        Queue::new(capacity, max_wait, at(5))
    }

    fn place(priority: i32) -> Place {
        Place { priority, ..Place::default() }
    }

    #[test]
    fn higher_priority_first_then_in_order_of_arrival() {
        let mut queue = queue(8, at(60));
        for (priority, name) in [(0, "first"), (5, "urgent"), (0, "second"), (-5, "batch"), (5, "urgent too")] {
            queue.push(place(priority), at(0), name).unwrap();
        }
        let order: Vec<_> = queue.in_order(at(1)).into_iter().map(|(_, _, name)| *name).collect();
        assert_eq!(order, ["urgent", "urgent too", "first", "second", "batch"]);
    }

    #[test]
    fn a_full_queue_refuses_and_keeps_what_it_has() {
        let mut queue = queue(1, at(60));
        let ticket = queue.push(place(0), at(0), "a").unwrap();
        assert_eq!(queue.push(place(100), at(0), "b"), Err(QueueFull { capacity: 1 }));
        assert_eq!(queue.take(ticket).map(|(candidate, entry)| (candidate.since, entry)), Some((at(0), "a")));
        assert!(queue.push(place(0), at(3), "b").is_ok());
    }

    #[test]
    fn who_waited_too_long_leaves() {
        let mut queue = queue(8, at(10));
        let old = queue.push(place(0), at(0), "old").unwrap();
        let new = queue.push(place(9), at(5), "new").unwrap();
        assert_eq!(queue.take_overdue(old, at(9)), None);
        assert_eq!(queue.take_overdue(old, at(10)), Some("old"));
        assert_eq!((queue.take_overdue(old, at(11)), queue.take_overdue(new, at(11))), (None, None));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn only_what_is_small_beside_it_is_held_up_and_only_since_it_came() {
        let mut queue = queue(8, at(60));
        let big = queue.push(Place { total_seconds: 100.0, ..place(0) }, at(0), "big").unwrap();
        let (big, _) = queue.take(big).unwrap();
        queue.push(Place { total_seconds: 2.0, ..place(0) }, at(0), "small").unwrap();
        queue.push(Place { total_seconds: 2.0, ..place(0) }, at(3), "late").unwrap();
        queue.push(Place { total_seconds: 2.0, ..place(-1) }, at(0), "of less priority").unwrap();
        queue.push(Place { total_seconds: 90.0, ..place(0) }, at(0), "as big").unwrap();
        queue.held_up(&big, 4.0, at(4));
        let held: Vec<_> = queue.waiting.values().map(|(candidate, _)| candidate.held_seconds).collect();
        assert_eq!(held, [4.0, 1.0, 0.0, 0.0]);
        assert!(!queue.is_held_up_too_long(&big));
        queue.held_up(&big, 1.0, at(5));
        assert!(queue.is_held_up_too_long(&big));
    }

    proptest! {
        #[test]
        fn never_over_capacity_and_always_the_first_of_the_highest(
            operations in proptest::collection::vec(prop_oneof![3 => (-2_i32..3).prop_map(Some), 2 => Just(None)], 0..60)
        ) {
            let mut queue = queue(6, at(60));
            let mut model: Vec<(i32, usize)> = Vec::new();
            for (arrival, operation) in operations.into_iter().enumerate() {
                match operation {
                    Some(priority) => match queue.push(place(priority), at(0), arrival) {
                        Ok(_) => model.push((priority, arrival)),
                        Err(_) => prop_assert_eq!(model.len(), 6),
                    },
                    None => {
                        let expected = model.iter().copied().min_by_key(|(priority, arrival)| (-priority, *arrival));
                        let first = queue.in_order(at(1)).first().map(|(ticket, ..)| *ticket);
                        let found = first.and_then(|ticket| queue.take(ticket)).map(|(_, entry)| entry);
                        prop_assert_eq!(found, expected.map(|(_, arrival)| arrival));
                        model.retain(|entry| Some(*entry) != expected);
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
