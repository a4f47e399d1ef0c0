//! The numbers of docs/memory.md: what the engine thread measured last, and what follows from it.

use std::{sync::Arc, time::Duration};

use imagegen_core::{
    engine::AllocatorStats,
    memory::Memory,
    pressure::{self, Demand, MemoryPressure, Refused, RefusedWork, Targets},
    table::Table,
};

use super::State;
use crate::snapshot::{NoCapacity, Phase};

/// See the module.
pub(super) struct Signals {
    pub(super) memory: Memory,
    pub(super) allocator: AllocatorStats,
    pub(super) table: Arc<Table>,
    pub(super) circuit_open: bool,
    pub(super) pool_overhead_ratio: f64,
    pub(super) out_of_memory: u64,
    /// What the running batch is charged; 0 while none runs.
    pub(super) charged_bytes: u64,
    /// The next batch cannot start for lack of memory.
    pub(super) is_starved: bool,
    /// Live bytes of all processes fill the device, even after a trim.
    pub(super) is_exhausted: bool,
    pressure: MemoryPressure,
    /// 1 while something is on the engine.
    busy: MemoryPressure,
    refused: RefusedWork,
    /// When a request last ran, waited or was refused; `None` before the first serving.
    pub(super) busy_at: Option<Duration>,
    /// When the worker first served.
    pub(super) served_at: Option<Duration>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            memory: Memory::UNKNOWN,
            allocator: AllocatorStats::default(),
            table: Arc::default(),
            circuit_open: false,
            pool_overhead_ratio: 0.0,
            out_of_memory: 0,
            charged_bytes: 0,
            is_starved: false,
            is_exhausted: false,
            pressure: MemoryPressure::default(),
            busy: MemoryPressure::default(),
            refused: RefusedWork::default(),
            busy_at: None,
            served_at: None,
        }
    }
}

impl Signals {
    pub(super) fn refused(&mut self, key: u64, seconds: f64, now: Duration) {
        self.refused.add(Refused { key, seconds, at: now });
        self.busy_at = Some(now);
    }

    pub(super) fn admitted(&mut self, key: u64, now: Duration) {
        self.refused.admitted(key);
        self.busy_at = Some(now);
    }

    /// Follows a change of what runs, or of the memory.
    pub(super) fn note_pressure(&mut self, now: Duration) {
        let share = if self.is_starved || self.is_exhausted {
            1.0
        } else {
            pressure::share(self.charged_bytes, self.memory.headroom_bytes())
        };
        self.pressure.set(now, share);
    }

    /// Why no batch of any size can start.
    pub(super) fn no_capacity(&self) -> Option<NoCapacity> {
        if self.circuit_open {
            return Some(NoCapacity::CircuitOpen);
        }
        let smallest_bytes = self.table.smallest_bytes()?;
        (smallest_bytes > self.memory.headroom_bytes()).then_some(NoCapacity::NoHeadroom)
    }
}

/// The numbers at one moment, for reports and metrics.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    pub(crate) memory: Memory,
    pub(crate) allocator: AllocatorStats,
    pub(crate) demand: Demand,
    pub(crate) pressure: f64,
    pub(crate) pool_overhead_ratio: f64,
    pub(crate) out_of_memory: u64,
    pub(crate) refused: Vec<RefusedAgo>,
    pub(crate) load_seconds: f64,
    pub(crate) idle_seconds: f64,
    pub(crate) no_capacity: Option<NoCapacity>,
}

/// A refused request, and how long ago that was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusedAgo {
    pub(crate) key: u64,
    pub(crate) seconds: f64,
    pub(crate) age_seconds: f64,
}

impl State {
    /// Notes when the worker was last busy, and whether it is at work.
    pub(super) fn note_idleness(&mut self, now: Duration) {
        self.signals.busy.set(now, if self.started.is_empty() { 0.0 } else { 1.0 });
        if self.phase == Phase::Serving && (!self.started.is_empty() || !self.queue.is_empty()) {
            self.signals.busy_at = Some(now);
        }
    }

    pub(super) fn numbers(&self, now: Duration, targets: &Targets) -> Numbers {
        let signals = &self.signals;
        let refused: Vec<_> = signals
            .refused
            .recent(now)
            .map(|refused| RefusedAgo {
                key: refused.key,
                seconds: refused.seconds,
                age_seconds: now.saturating_sub(refused.at).as_secs_f64(),
            })
            .collect();
        let wait_seconds = self.wait_seconds(now);
        let is_running = !self.started.is_empty();
        let no_capacity = signals.no_capacity();
        let demand = Demand {
            memory_pressure: signals.pressure.mean(now),
            busy_ratio: signals.busy.mean(now),
            wait_seconds,
            backlog_seconds: wait_seconds + signals.refused.seconds(now),
            is_running,
            is_waiting: !self.queue.is_empty() || !refused.is_empty(),
        };
        let is_busy = is_running || !self.queue.is_empty();
        let idle_since = signals.busy_at.or(signals.served_at).filter(|_| !is_busy);
        Numbers {
            memory: signals.memory,
            allocator: signals.allocator,
            demand,
            pressure: pressure::pressure(&demand, targets),
            pool_overhead_ratio: signals.pool_overhead_ratio,
            out_of_memory: signals.out_of_memory,
            refused,
            load_seconds: signals.served_at.unwrap_or_default().as_secs_f64(),
            idle_seconds: idle_since.map_or(0.0, |since| now.saturating_sub(since).as_secs_f64()),
            no_capacity,
        }
    }
}
