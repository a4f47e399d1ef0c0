//! Whether a request may wait for its turn. A refusal says what was needed, what there is, and what would fit.

use std::time::Duration;

use crate::{
    bucket::Buckets,
    memory::Memory,
    spec::Size,
    table::{Shape, Table},
};

/// Shortest and longest hint when to come again: below, a refused client would hammer; above, it would miss free places.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    /// The smallest batch that makes it: one image.
    pub shape: Shape,
    /// What it takes on an empty worker; 0 when that is not known.
    pub seconds: f64,
    /// What is left until its deadline.
    pub left: Option<Duration>,
}

/// The worker as admission sees it.
#[derive(Debug, Clone, Copy)]
pub struct Worker<'a> {
    /// What batches cost.
    pub table: &'a Table,
    /// What there is.
    pub memory: &'a Memory,
    /// Size classes.
    pub buckets: &'a Buckets,
    /// Requests that wait.
    pub queued: usize,
    /// Places in the queue.
    pub capacity: usize,
    /// Until the turn of a request like this one, as far as it can be foreseen.
    pub wait_seconds: f64,
    /// Longest wait in the queue.
    pub max_wait: Duration,
    /// Rest of what runs; when the next place is free.
    pub running_seconds: f64,
}

/// A request may wait for its turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Permit {
    /// Bytes of activations of the smallest batch that makes it; 0 when that is not known.
    pub bytes: u64,
    /// What it takes on an empty worker.
    pub seconds: f64,
    /// Until its turn.
    pub wait_seconds: f64,
}

/// Why a request may not wait.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It will never fit this device.
    #[error(
        "one image of {} needs {} for activations, and this device has {} at most{}",
        size, needs(*needed_bytes), Bytes(*most_bytes), would_fit(*fits)
    )]
    NeverFits {
        /// What was asked.
        size: Size,
        /// For one image; `None` where warm-up found no room for it.
        needed_bytes: Option<u64>,
        /// Headroom when no other process uses the device.
        most_bytes: u64,
        /// The largest class that fits.
        fits: Option<Size>,
    },
    /// Other processes hold the memory that it needs.
    #[error(
        "one image of {} needs {} for activations, and {} are free: other processes hold {} of the device{}",
        size, Bytes(*needed_bytes), Bytes(*free_bytes), Bytes(*foreign_bytes), would_fit(*fits)
    )]
    NoMemory {
        /// What was asked.
        size: Size,
        /// For one image.
        needed_bytes: u64,
        /// Headroom now.
        free_bytes: u64,
        /// Of other processes.
        foreign_bytes: u64,
        /// The largest class that fits now.
        fits: Option<Size>,
        /// When to come again.
        retry: Duration,
    },
    /// All places are taken.
    #[error("the queue is full: all {capacity} places are taken")]
    QueueFull {
        /// Places there are.
        capacity: usize,
        /// When to come again.
        retry: Duration,
    },
    /// Its turn would come too late.
    #[error(
        "the wait is about {wait_seconds:.0} s, longer than a request may wait here ({} s)", max_wait.as_secs()
    )]
    WaitTooLong {
        /// Until its turn.
        wait_seconds: f64,
        /// Longest wait.
        max_wait: Duration,
        /// When to come again.
        retry: Duration,
    },
    /// It cannot be done by its deadline.
    #[error(
        "the deadline is in {:.1} s, and the request would be done in about {:.1} s: {wait_seconds:.1} s of waiting \
         and {seconds:.1} s of work", left.as_secs_f64(), wait_seconds + seconds
    )]
    Deadline {
        /// Until its turn.
        wait_seconds: f64,
        /// Its own work.
        seconds: f64,
        /// Until the deadline.
        left: Duration,
    },
}

impl Refusal {
    /// Whether another worker, or this one when it had less to do, would take the request: such work counts as demand.
    #[must_use]
    pub fn is_for_lack_of_room(&self) -> bool {
        match self {
            Self::NeverFits { .. } => false,
            Self::NoMemory { .. } | Self::QueueFull { .. } | Self::WaitTooLong { .. } => true,
            Self::Deadline { seconds, left, .. } => *seconds <= left.as_secs_f64(),
        }
    }
}

/// The permit, or why there is none.
///
/// # Errors
/// See [`Refusal`].
pub fn admit(ask: &Ask, worker: &Worker<'_>) -> Result<Permit, Refusal> {
    let Worker { table, memory, wait_seconds, max_wait, .. } = *worker;
    let bytes = bytes(ask, worker)?;
    if worker.queued >= worker.capacity {
        return Err(Refusal::QueueFull { capacity: worker.capacity, retry: retry(worker.running_seconds) });
    }
    if wait_seconds > max_wait.as_secs_f64() {
        let retry = retry(wait_seconds - max_wait.as_secs_f64());
        return Err(Refusal::WaitTooLong { wait_seconds, max_wait, retry });
    }
    let seconds = ask.seconds;
    match ask.left {
        Some(left) if wait_seconds + seconds > left.as_secs_f64() => {
            Err(Refusal::Deadline { wait_seconds, seconds, left })
        }
        _ => {
            debug_assert!(table.is_empty() || bytes <= memory.headroom_bytes());
            Ok(Permit { bytes, seconds, wait_seconds })
        }
    }
}

fn bytes(ask: &Ask, worker: &Worker<'_>) -> Result<u64, Refusal> {
    let Worker { table, memory, buckets, .. } = *worker;
    if table.is_empty() {
        return Ok(0);
    }
    let size = ask.shape.size;
    let largest = |free_bytes: u64| {
        let fits =
            |size: &Size| table.bytes(Shape { size: *size, ..ask.shape }).is_some_and(|bytes| bytes <= free_bytes);
        buckets.as_slice().iter().map(|bucket| bucket.size).rev().find(fits)
    };
    let (free_bytes, most_bytes) = (memory.headroom_bytes(), memory.headroom_alone_bytes());
    match table.bytes(ask.shape) {
        Some(bytes) if bytes <= free_bytes => Ok(bytes),
        Some(needed_bytes) if needed_bytes <= most_bytes => Err(Refusal::NoMemory {
            size,
            needed_bytes,
            free_bytes,
            foreign_bytes: memory.foreign_bytes(),
            fits: largest(free_bytes),
            retry: retry(worker.running_seconds),
        }),
        // What warm-up could not run is not in the table: it needs more than there is.
        needed_bytes => Err(Refusal::NeverFits { size, needed_bytes, most_bytes, fits: largest(most_bytes) }),
    }
}

/// A hint within bounds.
#[must_use]
pub fn retry(seconds: f64) -> Duration {
    let (min, max) = RETRY;
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(max).clamp(min, max)
}

fn needs(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "more memory than it was given at warm-up".into(), |bytes| Bytes(bytes).to_string())
}

fn would_fit(size: Option<Size>) -> String {
    size.map_or_else(|| "; no size class fits".into(), |size| format!("; {size} would fit"))
}

/// Bytes as people read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.into_iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) => write!(f, "{:.2} {name}", self.0 as f64 / unit as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
