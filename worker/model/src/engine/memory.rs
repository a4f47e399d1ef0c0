//! The memory of the engine's device: what its allocator holds, its limit, and what an allocation that failed was about.

use imagegen_core::engine::{AllocatorStats, EngineError};

use crate::shim::cuda::Cuda;
use crate::shim::{FailedAllocation, ShimError, cpu};

/// The memory of the engine's device.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory {
    Cpu,
    Cuda(Cuda),
}

impl Memory {
    pub(super) const fn cuda(self) -> Option<Cuda> {
        match self {
            Self::Cpu => None,
            Self::Cuda(cuda) => Some(cuda),
        }
    }

    pub(super) fn stats(self) -> AllocatorStats {
        match self {
            Self::Cpu => cpu::stats(),
            // Counters of the host, which do not fail once the device was made ready.
            Self::Cuda(cuda) => cuda.stats().unwrap_or_default(),
        }
    }

    pub(super) fn reset_peaks(self) -> Result<(), ShimError> {
        match self {
            Self::Cpu => {
                cpu::reset_peak();
                Ok(())
            }
            Self::Cuda(cuda) => cuda.reset_peaks(),
        }
    }

    pub(super) fn trim(self) -> Result<(), ShimError> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(cuda) => cuda.empty_cache(),
        }
    }

    pub(super) fn limit(self, bytes: u64) -> Result<(), ShimError> {
        match self {
            Self::Cpu => {
                cpu::limit(bytes);
                Ok(())
            }
            Self::Cuda(cuda) => cuda.set_memory_fraction(fraction(bytes, cuda.memory()?.total_bytes)),
        }
    }

    fn last_failure(self) -> Option<FailedAllocation> {
        match self {
            Self::Cpu => cpu::last_failure(),
            Self::Cuda(cuda) => cuda.last_failure(),
        }
    }

    /// `error` with the bytes of the allocation that failed, where libtorch's words lack them. `before`: [`Self::mark`] before
    /// what failed.
    pub(super) fn explain(self, error: EngineError, before: Option<u64>) -> EngineError {
        let EngineError::OutOfMemory { stage, mut detail } = error else { return error };
        let failure = self.last_failure().filter(|failure| Some(failure.count) != before);
        if let Some(FailedAllocation { asked_bytes, free_bytes, .. }) = failure
            && !detail.contains("Tried to allocate")
        {
            detail = format!("{detail} (tried to allocate {asked_bytes} bytes, {free_bytes} bytes were free)");
        }
        EngineError::OutOfMemory { stage, detail }
    }

    /// How many allocations failed so far.
    pub(super) fn mark(self) -> Option<u64> {
        self.last_failure().map(|failure| failure.count)
    }
}

/// `bytes` as a part of `total_bytes`, at most 1.
#[allow(clippy::cast_precision_loss, reason = "a part of a device's memory need not be exact to the byte")]
fn fraction(bytes: u64, total_bytes: u64) -> f64 {
    if bytes >= total_bytes { 1.0 } else { bytes as f64 / total_bytes as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_part_of_the_device_and_never_more_than_all_of_it() {
        for (bytes, total_bytes, expected) in [(0, 8, 0.0), (2, 8, 0.25), (8, 8, 1.0), (u64::MAX, 8, 1.0), (0, 0, 1.0)]
        {
            assert_eq!(fraction(bytes, total_bytes), expected, "{bytes} of {total_bytes}");
        }
    }
}
