//! The allocator that libtorch uses on the CPU in this program: it counts, and has a limit.
//!
//! It is the default allocator with a count around it, put in place before `main`, and one for the whole process.

use imagegen_core::engine::AllocatorStats;

use super::{FailedAllocation, ffi};

/// What tensors on the CPU hold. There is no pool and no driver: reserved is allocated, and what a pool would count is 0.
#[must_use]
pub fn stats() -> AllocatorStats {
    let mut stats = ffi::AllocatorStats::default();
    // SAFETY: it writes the struct that it is given.
    unsafe { ffi::ig_cpu_stats(&raw mut stats) };
    stats.into()
}

/// Starts a new peak at what is held now.
pub fn reset_peak() {
    // SAFETY: it sets an atomic number.
    unsafe { ffi::ig_cpu_reset_peak() }
}

/// Most bytes that tensors may hold from now on; beyond it an allocation fails as on a card. `u64::MAX`: no limit.
pub fn limit(bytes: u64) {
    // SAFETY: it sets an atomic number.
    unsafe { ffi::ig_cpu_limit(bytes) }
}

/// Allocations since the process started, those that failed included.
#[must_use]
pub fn allocations() -> u64 {
    // SAFETY: it reads an atomic number.
    unsafe { ffi::ig_cpu_allocations() }
}

/// Makes the `nth` allocation from now fail, once; 0 takes that back. For tests.
pub fn fail_in(nth: u64) {
    // SAFETY: it sets an atomic number.
    unsafe { ffi::ig_cpu_fail_in(nth) }
}

/// The last allocation that failed.
#[must_use]
pub fn last_failure() -> Option<FailedAllocation> {
    let mut last = ffi::OutOfMemory::default();
    // SAFETY: it writes the struct that it is given.
    unsafe { ffi::ig_cpu_last_out_of_memory(&raw mut last) };
    last.into()
}
