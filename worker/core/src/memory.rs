//! What a worker may use of its device: the definitions behind every number about memory.
//!
//! A caching allocator never gives memory back by itself, so what the driver says is used tells nothing about load.
//! [`Memory`] puts the driver's numbers and the allocator's side by side; everything else follows from them.

use std::sync::Arc;

use crate::engine::AllocatorStats;

/// Above this share of the device, live bytes of all processes count as no memory left.
const EXHAUSTED_RATIO: f64 = 0.97;

/// The device at one moment, as the driver (on a CPU: the system) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What the device has, less what its driver keeps. Of a MIG instance: its own.
    pub usable_total_bytes: u64,
    /// In use by all processes.
    pub used_bytes: u64,
}

impl DeviceMemory {
    /// Nothing is known, so nothing is limited.
    pub const UNKNOWN: Self = Self { usable_total_bytes: u64::MAX, used_bytes: 0 };

    /// Whether the numbers are the device's.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.usable_total_bytes != u64::MAX
    }
}

/// Asks the device now. A number from earlier would not fit the allocator's numbers, which are of this moment.
pub type ReadDeviceMemory = Arc<dyn Fn() -> DeviceMemory + Send + Sync>;

/// Device and allocator at one moment. All sums stop at 0 and at the largest number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// The device.
    pub device: DeviceMemory,
    /// Held by our allocator from the driver.
    pub reserved_bytes: u64,
    /// Live tensors of ours.
    pub allocated_bytes: u64,
    /// What our process holds besides the allocator; see [`own_overhead_bytes`].
    pub own_overhead_bytes: u64,
    /// Resident weights, as measured.
    pub weight_bytes: u64,
    /// Share of the device that may be used, 0 to 1.
    pub limit_ratio: f64,
}

impl Memory {
    /// Nothing is known, nothing is held.
    pub const UNKNOWN: Self = Self {
        device: DeviceMemory::UNKNOWN,
        reserved_bytes: 0,
        allocated_bytes: 0,
        own_overhead_bytes: 0,
        weight_bytes: 0,
        limit_ratio: 1.0,
    };

    /// The same with what the device and the allocator say now.
    #[must_use]
    pub const fn at(self, device: DeviceMemory, allocator: &AllocatorStats) -> Self {
        Self { device, reserved_bytes: allocator.reserved_bytes, allocated_bytes: allocator.allocated_bytes, ..self }
    }

    /// Bytes that the allocator holds and no tensor needs.
    #[must_use]
    pub const fn reclaimable_bytes(&self) -> u64 {
        self.reserved_bytes.saturating_sub(self.allocated_bytes)
    }

    /// Bytes of other processes, graphics and other frameworks.
    #[must_use]
    pub const fn foreign_bytes(&self) -> u64 {
        self.device.used_bytes.saturating_sub(self.reserved_bytes).saturating_sub(self.own_overhead_bytes)
    }

    /// Bytes that our allocator may hold.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.alone_bytes().saturating_sub(self.foreign_bytes())
    }

    /// Bytes that activations may take now.
    #[must_use]
    pub fn headroom_bytes(&self) -> u64 {
        self.budget_bytes().saturating_sub(self.weight_bytes)
    }

    /// Bytes that activations could take if no other process used the device. What needs more can never be made here.
    #[must_use]
    pub fn headroom_alone_bytes(&self) -> u64 {
        self.alone_bytes().saturating_sub(self.weight_bytes)
    }

    /// Bytes of headroom that are not taken by tensors now.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.headroom_bytes().saturating_sub(self.activation_bytes())
    }

    /// Bytes of tensors that are not weights.
    #[must_use]
    pub const fn activation_bytes(&self) -> u64 {
        self.allocated_bytes.saturating_sub(self.weight_bytes)
    }

    /// `(reserved - allocated) / reserved`, 0 to 1. High on a healthy idle worker.
    #[must_use]
    pub fn fragmentation_ratio(&self) -> f64 {
        ratio(self.reclaimable_bytes(), self.reserved_bytes)
    }

    /// Whether live bytes of all processes fill the device, so that nothing more may start. Meaningful after a trim.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        let live = self.device.used_bytes.saturating_sub(self.reclaimable_bytes());
        live as f64 > EXHAUSTED_RATIO * self.device.usable_total_bytes as f64
    }

    fn alone_bytes(&self) -> u64 {
        if !self.device.is_known() {
            return u64::MAX;
        }
        let limit = self.device.usable_total_bytes as f64 * self.limit_ratio.clamp(0.0, 1.0);
        (limit as u64).saturating_sub(self.own_overhead_bytes)
    }
}

/// Bytes of the CUDA context and libraries: what was used after warm-up, less what was used before CUDA and what the
/// allocator holds. Taken once, while nothing else changes.
#[must_use]
pub const fn own_overhead_bytes(used_after_bytes: u64, used_before_bytes: u64, reserved_bytes: u64) -> u64 {
    used_after_bytes.saturating_sub(used_before_bytes).saturating_sub(reserved_bytes)
}

/// `(peak reserved - peak allocated) / peak reserved`, 0 to 1: what the pool costs beyond what tensors needed.
#[must_use]
pub fn pool_overhead_ratio(peak_reserved_bytes: u64, peak_allocated_bytes: u64) -> f64 {
    ratio(peak_reserved_bytes.saturating_sub(peak_allocated_bytes), peak_reserved_bytes)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A card of 1000 bytes, of which 100 are a neighbour's, 50 our context, 400 weights; the pool holds 600.
    const CARD: Memory = Memory {
        device: DeviceMemory { usable_total_bytes: 1000, used_bytes: 750 },
        reserved_bytes: 600,
        allocated_bytes: 450,
        own_overhead_bytes: 50,
        weight_bytes: 400,
        limit_ratio: 0.9,
    };

    #[test]
    fn the_numbers_follow_their_definitions() {
        assert_eq!((CARD.reclaimable_bytes(), CARD.foreign_bytes()), (150, 100));
        assert_eq!((CARD.budget_bytes(), CARD.headroom_bytes()), (750, 350));
        assert_eq!((CARD.headroom_alone_bytes(), CARD.activation_bytes(), CARD.free_bytes()), (450, 50, 300));
        assert_eq!(CARD.fragmentation_ratio(), 0.25);
        assert_eq!(own_overhead_bytes(750, 100, 600), 50);
        assert_eq!(pool_overhead_ratio(600, 450), 0.25);
        assert_eq!(pool_overhead_ratio(0, 0), 0.0);
    }

    #[test]
    fn only_live_bytes_exhaust_a_device() {
        let full = DeviceMemory { used_bytes: 990, ..CARD.device };
        assert!(!Memory { device: full, ..CARD }.is_exhausted());
        assert!(Memory { device: full, allocated_bytes: 590, ..CARD }.is_exhausted());
    }

    #[test]
    fn nothing_known_is_nothing_limited() {
        let memory = Memory { weight_bytes: 5, ..Memory::UNKNOWN };
        assert_eq!(memory.headroom_bytes(), u64::MAX - 5);
        assert!(!memory.is_exhausted());
    }

    prop_compose! {
        fn memories()(
            numbers in prop_oneof![proptest::array::uniform6(0_u64..2000), proptest::array::uniform6(any::<u64>())],
            limit_ratio in 0.0_f64..=1.0,
        ) -> Memory {
            let [usable_total_bytes, used_bytes, reserved_bytes, allocated_bytes, own_overhead_bytes, weight_bytes] = numbers;
            let device = DeviceMemory { usable_total_bytes, used_bytes };
            Memory { device, reserved_bytes, allocated_bytes, own_overhead_bytes, weight_bytes, limit_ratio }
        }
    }

    proptest! {
        #[test]
        fn no_number_leaves_its_range(memory in memories()) {
            prop_assert!(memory.headroom_bytes() <= memory.budget_bytes());
            prop_assert!(memory.budget_bytes() <= memory.device.usable_total_bytes);
            prop_assert!(memory.free_bytes() <= memory.headroom_bytes());
            prop_assert!(memory.headroom_bytes() <= memory.headroom_alone_bytes());
            prop_assert!(memory.foreign_bytes() <= memory.device.used_bytes);
            prop_assert!((0.0..=1.0).contains(&memory.fragmentation_ratio()));
        }

        #[test]
        fn a_neighbour_takes_from_the_headroom_what_it_takes(memory in memories(), bytes in 0_u64..1000) {
            let device = DeviceMemory { used_bytes: memory.device.used_bytes.saturating_add(bytes), ..memory.device };
            let crowded = Memory { device, ..memory };
            prop_assert!(crowded.headroom_bytes() <= memory.headroom_bytes());
            prop_assert!(memory.headroom_bytes() - crowded.headroom_bytes() <= bytes);
        }

        #[test]
        fn what_we_hold_ourselves_changes_no_budget(memory in memories(), bytes in 0_u64..1000) {
            let used_bytes = memory.device.used_bytes.saturating_add(bytes);
            prop_assume!(memory.device.used_bytes >= memory.reserved_bytes && used_bytes < u64::MAX - 1000);
            let device = DeviceMemory { used_bytes, ..memory.device };
            let grown = Memory { device, reserved_bytes: memory.reserved_bytes + bytes, ..memory };
            prop_assert_eq!(grown.budget_bytes(), memory.budget_bytes());
        }
    }
}
