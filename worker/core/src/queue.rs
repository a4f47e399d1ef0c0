//! The bounded waiting line: higher priority first, then in order of arrival.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

/// Names one entry of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(Reverse<i32>, u64);

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} places of the queue are taken")]
pub struct QueueFull {
    /// Places there are.
    pub capacity: usize,
}

/// A bounded waiting line. Times are durations since any fixed moment, the same for all calls.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: BTreeMap<Ticket, (Duration, T)>,
    capacity: usize,
    max_wait: Duration,
    arrivals: u64,
}

impl<T> Queue<T> {
    /// An empty queue of `capacity` places, in which an entry waits at most `max_wait`.
    #[must_use]
    pub const fn new(capacity: usize, max_wait: Duration) -> Self {
        Self { waiting: BTreeMap::new(), capacity, max_wait, arrivals: 0 }
    }

    /// Puts an entry behind all of the same or a higher priority.
    ///
    /// # Errors
    /// When all places are taken.
    pub fn push(&mut self, priority: i32, now: Duration, entry: T) -> Result<Ticket, QueueFull> {
        if self.waiting.len() >= self.capacity {
            return Err(QueueFull { capacity: self.capacity });
        }
        let ticket = Ticket(Reverse(priority), self.arrivals);
        self.arrivals += 1;
        self.waiting.insert(ticket, (now, entry));
        Ok(ticket)
    }

    /// Takes the entry whose turn it is, and how long it waited.
    pub fn pop(&mut self, now: Duration) -> Option<(Duration, T)> {
        let (_, (since, entry)) = self.waiting.pop_first()?;
        Some((now.saturating_sub(since), entry))
    }

    /// Takes an entry out, unless it has left already.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<T> {
        self.waiting.remove(&ticket).map(|(_, entry)| entry)
    }

    /// Entries before this one, or `None` when it has left.
    #[must_use]
    pub fn position(&self, ticket: Ticket) -> Option<usize> {
        self.waiting.contains_key(&ticket).then(|| self.waiting.range(..ticket).count())
    }

    /// Takes an entry out that waited for as long as it may; leaves it while it has time, or when it has left already.
    pub fn take_overdue(&mut self, ticket: Ticket, now: Duration) -> Option<T> {
        let (since, _) = self.waiting.get(&ticket)?;
        if now.saturating_sub(*since) < self.max_wait { None } else { self.cancel(ticket) }
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting).into_values().map(|(_, entry)| entry).collect()
    }

    /// The entries in their order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.values().map(|(_, entry)| entry)
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

    #[test]
    fn higher_priority_first_then_in_order_of_arrival() {
        let mut queue = Queue::new(8, at(60));
        for (priority, name) in [(0, "first"), (5, "urgent"), (0, "second"), (-5, "batch"), (5, "urgent too")] {
            queue.push(priority, at(0), name).unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(at(1))).map(|(_, name)| name).collect();
        assert_eq!(order, ["urgent", "urgent too", "first", "second", "batch"]);
    }

    #[test]
    fn a_full_queue_refuses_and_keeps_what_it_has() {
        let mut queue = Queue::new(1, at(60));
        queue.push(0, at(0), "a").unwrap();
        assert_eq!(queue.push(100, at(0), "b"), Err(QueueFull { capacity: 1 }));
        assert_eq!(queue.pop(at(3)), Some((at(3), "a")));
        assert!(queue.push(0, at(3), "b").is_ok());
    }

    #[test]
    fn positions_move_up_when_one_before_leaves() {
        let mut queue = Queue::new(8, at(60));
        let first = queue.push(0, at(0), 1).unwrap();
        let second = queue.push(0, at(0), 2).unwrap();
        let third = queue.push(0, at(0), 3).unwrap();
        assert_eq!(queue.position(third), Some(2));
        assert_eq!(queue.cancel(second), Some(2));
        assert_eq!(queue.cancel(second), None);
        queue.pop(at(0));
        assert_eq!((queue.position(third), queue.position(first)), (Some(0), None));
    }

    #[test]
    fn who_waited_too_long_leaves() {
        let mut queue = Queue::new(8, at(10));
        let old = queue.push(0, at(0), "old").unwrap();
        let new = queue.push(9, at(5), "new").unwrap();
        assert_eq!(queue.take_overdue(old, at(9)), None);
        assert_eq!(queue.take_overdue(old, at(10)), Some("old"));
        assert_eq!((queue.take_overdue(old, at(11)), queue.take_overdue(new, at(11))), (None, None));
        assert_eq!(queue.len(), 1);
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Push(i32),
        Pop,
        Cancel(usize),
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let operation = prop_oneof![
            3 => (-2_i32..3).prop_map(Operation::Push),
            2 => Just(Operation::Pop),
            1 => (0_usize..20).prop_map(Operation::Cancel),
        ];
        proptest::collection::vec(operation, 0..60)
    }

    proptest! {
        #[test]
        fn never_over_capacity_and_always_the_first_of_the_highest(operations in operations()) {
            let mut queue = Queue::new(6, at(60));
            let mut model: Vec<(Ticket, i32, usize)> = Vec::new();
            for (arrival, operation) in operations.into_iter().enumerate() {
                match operation {
                    Operation::Push(priority) => match queue.push(priority, at(0), arrival) {
                        Ok(ticket) => model.push((ticket, priority, arrival)),
                        Err(_) => prop_assert_eq!(model.len(), 6),
                    },
                    Operation::Pop => {
                        let expected = model.iter().map(|(_, priority, arrival)| (Reverse(*priority), *arrival)).min();
                        prop_assert_eq!(queue.pop(at(0)).map(|(_, entry)| entry), expected.map(|(_, arrival)| arrival));
                        model.retain(|(_, _, arrival)| Some(*arrival) != expected.map(|(_, arrival)| arrival));
                    }
                    Operation::Cancel(index) => if let Some(&(ticket, _, arrival)) = model.get(index) {
                        prop_assert_eq!(queue.cancel(ticket), Some(arrival));
                        model.remove(index);
                    },
                }
                prop_assert_eq!(queue.len(), model.len());
                for (ticket, priority, arrival) in &model {
                    let before = model.iter().filter(|(_, p, a)| (Reverse(*p), *a) < (Reverse(*priority), *arrival)).count();
                    prop_assert_eq!(queue.position(*ticket), Some(before));
                }
            }
        }
    }
}
