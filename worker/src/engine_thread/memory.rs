//! Memory between batches: measures it, keeps the allocator within the budget, trims by policy, watches for leaks.

use std::time::{Duration, Instant};

use imagegen_core::{
    breaker,
    engine::{Engine, EngineError},
    memory::DeviceMemory,
    trim::Moment,
};
use tracing::{error, info, warn};

use super::world::World;
use crate::dispatcher::Measured;

/// How often the device is asked.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// Changes of the budget below this share are left alone: readings tremble.
const TREMOR_RATIO: f64 = 0.01;

impl<E: Engine> World<'_, E> {
    /// Everything that is done about memory between two batches.
    ///
    /// # Errors
    /// [`EngineError::Fatal`], when an entry of the table is measured again.
    pub(super) fn look_after_memory(&mut self) -> Result<(), EngineError> {
        self.follow(self.measured_at.elapsed() >= MEASURE_EVERY);
        let (now, is_idle) = (self.dispatcher.now(), self.dispatcher.is_idle());
        let decision = self.watch.look(Moment { now, is_idle, idle_since: self.dispatcher.busy_at() });
        if let Some(alert) = decision.alert {
            warn!(%alert, pool_overhead_ratio = self.watch.overhead_ratio(), "The allocator's pool does not fit the work.");
            self.dispatcher.metrics.pool_alerts.inc();
        }
        if decision.trim {
            info!(pool_overhead_ratio = self.watch.overhead_ratio(), "Giving cached blocks back.");
            self.trim();
        }
        if self.memory.is_exhausted() && !self.is_exhausted {
            self.trim();
        }
        self.is_exhausted = self.memory.is_exhausted();
        if is_idle && self.paused.is_empty() {
            self.watch_for_leaks(now);
            self.measure_stale_entry()?;
        }
        Ok(())
    }

    /// Reads allocator and device, and keeps the allocator's limit at the budget.
    pub(super) fn measure(&mut self) {
        self.follow(true);
    }

    fn follow(&mut self, ask: bool) {
        self.read(ask);
        if self.memory.device.is_known() {
            let budget_bytes = self.memory.budget_bytes();
            let is_new =
                self.limit_bytes.is_none_or(|limit| budget_bytes.abs_diff(limit) as f64 > TREMOR_RATIO * limit as f64);
            if is_new {
                if self.memory.reserved_bytes > budget_bytes {
                    self.engine.trim();
                    self.dispatcher.metrics.trims.inc();
                    self.read(false);
                }
                self.engine.limit_memory(budget_bytes);
                self.limit_bytes = Some(budget_bytes);
            }
        }
        self.publish();
    }

    /// The same within a batch, without changing anything, and not more often than is of use.
    pub(super) fn measure_now_and_then(&mut self) {
        if self.measured_at.elapsed() >= MEASURE_EVERY {
            self.read(true);
            self.publish();
        }
    }

    /// Gives cached blocks back, and measures what that did.
    pub(super) fn trim(&mut self) {
        self.engine.trim();
        self.dispatcher.metrics.trims.inc();
        self.measure();
    }

    /// Asks the device, which takes milliseconds, or carries its last answer on: our own pool is the part that changes
    /// from one moment to the next, and the allocator tells it.
    fn read(&mut self, ask: bool) {
        let allocator = self.engine.allocator();
        let device = if ask {
            self.measured_at = Instant::now();
            (self.device)()
        } else {
            let others = self.memory.device.used_bytes.saturating_sub(self.memory.reserved_bytes);
            let used_bytes = others.saturating_add(allocator.reserved_bytes);
            DeviceMemory { used_bytes, ..self.memory.device }
        };
        self.memory = self.memory.at(device, &allocator);
    }

    fn publish(&self) {
        self.dispatcher.measured(&Measured {
            memory: self.memory,
            allocator: self.engine.allocator(),
            is_exhausted: self.is_exhausted,
            circuit_open: self.breaker.is_open(),
            pool_overhead_ratio: self.watch.overhead_ratio(),
        });
    }

    fn watch_for_leaks(&mut self, now: Duration) {
        let Some(smallest_bytes) = self.table.smallest_bytes() else { return };
        let mut is_over = breaker::is_over(&self.memory, smallest_bytes);
        if is_over && !self.breaker.is_over() {
            self.trim();
            is_over = breaker::is_over(&self.memory, smallest_bytes);
        }
        if self.breaker.look(now, is_over) {
            error!(
                held_bytes = self.memory.activation_bytes(),
                smallest_batch_bytes = smallest_bytes,
                "This process holds memory that it cannot give back, and no batch fits any more: it needs to be replaced."
            );
            self.publish();
        }
    }

    fn measure_stale_entry(&mut self) -> Result<(), EngineError> {
        let Some(shape) = self.table.stale() else { return Ok(()) };
        match self.cost(shape) {
            Ok(cost) => {
                self.table.insert(shape, cost);
                self.trim();
            }
            Err(error @ EngineError::Fatal { .. }) => {
                self.dispatcher.fail(&error.to_string());
                return Err(error);
            }
            // It still needs more than there is: the raised entry stays.
            Err(error) => {
                warn!(%error, size = %shape.size, batch = shape.batch, "A raised entry could not be measured again.");
                self.table.keep_raised(shape);
                self.trim();
            }
        }
        self.dispatcher.table_changed(&self.table);
        Ok(())
    }
}
