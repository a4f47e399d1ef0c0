//! The numbers of docs/memory.md as gauges.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::gauge::Gauge,
    registry::{Registry, Unit},
};

use super::gauge;
use crate::dispatcher::Numbers;

type Ratio = Gauge<f64, AtomicU64>;

/// Handles of the gauges; clones share the numbers.
#[derive(Clone, Default)]
pub(crate) struct MemoryMetrics {
    cuda_used: Gauge,
    cuda_reserved: Gauge,
    cuda_out_of_memory: Gauge,
    usable_total: Gauge,
    used: Gauge,
    reserved: Gauge,
    allocated: Gauge,
    foreign: Gauge,
    own_overhead: Gauge,
    budget: Gauge,
    headroom: Gauge,
    inactive_split: Gauge,
    largest_free_block: Gauge,
    alloc_retries: Gauge,
    device_allocations: Gauge,
    fragmentation: Ratio,
    pool_overhead: Ratio,
    memory_pressure: Ratio,
    pressure: Ratio,
    wait: Ratio,
    backlog: Ratio,
    idle: Ratio,
    has_capacity: Gauge,
}

impl MemoryMetrics {
    /// Three names are those that many dashboards know; they have no prefix.
    pub(super) fn register(&self, registry: &mut Registry) {
        let known = [
            ("cuda_memory_used_bytes", "Bytes in use on the device by all processes", &self.cuda_used),
            ("cuda_memory_reserved_bytes", "Bytes that the allocator holds from the driver", &self.cuda_reserved),
            ("cuda_oom_count", "Allocations that failed since the worker serves", &self.cuda_out_of_memory),
        ];
        for (name, help, gauge) in known {
            registry.register(name, help, gauge.clone());
        }
        let own = registry.sub_registry_with_prefix("imagegen_worker");
        let bytes = [
            ("memory_usable_total", "What the device has, less what its driver keeps", &self.usable_total),
            ("memory_used", "In use on the device by all processes", &self.used),
            ("memory_reserved", "Held by the allocator from the driver", &self.reserved),
            ("memory_allocated", "Live tensors", &self.allocated),
            ("memory_foreign", "Used by other processes", &self.foreign),
            ("memory_own_overhead", "What this process holds besides the allocator", &self.own_overhead),
            ("memory_budget", "What the allocator may hold", &self.budget),
            ("memory_headroom", "What activations may take", &self.headroom),
            ("memory_inactive_split", "Free parts of blocks that are split", &self.inactive_split),
            (
                "memory_largest_free_block",
                "Largest free block that is held; 0 where not told",
                &self.largest_free_block,
            ),
        ];
        for (name, help, gauge) in bytes {
            own.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
        let counts = [
            ("alloc_retries", "Allocations that worked only after cached blocks were given back", &self.alloc_retries),
            ("device_allocations", "Allocations from the driver", &self.device_allocations),
            ("has_capacity", "1 while a batch of the smallest size fits", &self.has_capacity),
        ];
        for (name, help, gauge) in counts {
            own.register(name, help, gauge.clone());
        }
        let ratios = [
            (
                "fragmentation_ratio",
                "(reserved - allocated) / reserved, high on a healthy idle worker",
                &self.fragmentation,
            ),
            (
                "pool_overhead_ratio",
                "(peak reserved - peak allocated) / peak reserved, over the last interval with work",
                &self.pool_overhead,
            ),
            ("memory_pressure", "Mean share of the headroom in use over 15 s, 0 to 1", &self.memory_pressure),
            ("pressure", "The scaling signal, 0 to 100", &self.pressure),
        ];
        for (name, help, gauge) in ratios {
            own.register(name, help, gauge.clone());
        }
        let seconds = [
            ("wait", "Rest of what runs, and all that waits", &self.wait),
            ("backlog", "The same and work refused in the last 30 s", &self.backlog),
            ("idle", "Since a request last ran, waited or was refused", &self.idle),
        ];
        for (name, help, gauge) in seconds {
            own.register_with_unit(name, help, Unit::Seconds, gauge.clone());
        }
    }

    pub(crate) fn set(&self, numbers: &Numbers) {
        let Numbers { memory, allocator, demand, .. } = numbers;
        let known = |bytes: u64| if memory.device.is_known() { gauge(bytes) } else { 0 };
        self.cuda_used.set(known(memory.device.used_bytes));
        self.cuda_reserved.set(gauge(memory.reserved_bytes));
        self.cuda_out_of_memory.set(gauge(numbers.out_of_memory));
        self.usable_total.set(known(memory.device.usable_total_bytes));
        self.used.set(known(memory.device.used_bytes));
        self.reserved.set(gauge(memory.reserved_bytes));
        self.allocated.set(gauge(memory.allocated_bytes));
        self.foreign.set(known(memory.foreign_bytes()));
        self.own_overhead.set(gauge(memory.own_overhead_bytes));
        self.budget.set(known(memory.budget_bytes()));
        self.headroom.set(known(memory.headroom_bytes()));
        self.inactive_split.set(gauge(allocator.inactive_split_bytes));
        self.largest_free_block.set(gauge(allocator.largest_free_block_bytes.unwrap_or_default()));
        self.alloc_retries.set(gauge(allocator.alloc_retries));
        self.device_allocations.set(gauge(allocator.device_allocations));
        self.fragmentation.set(memory.fragmentation_ratio());
        self.pool_overhead.set(numbers.pool_overhead_ratio);
        self.memory_pressure.set(demand.memory_pressure);
        self.pressure.set(numbers.pressure);
        self.wait.set(demand.wait_seconds);
        self.backlog.set(demand.backlog_seconds);
        self.idle.set(numbers.idle_seconds);
        self.has_capacity.set(i64::from(numbers.no_capacity.is_none()));
    }
}
