//! The allocator's flags, and whether the environment agrees with them.

use clap::Args;
use imagegen_core::allocator::{Allocator, AllocatorChoice, Strategy, check_environment};

use crate::device::Device;

/// Flags of CUDA's caching allocator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Args)]
pub struct AllocatorArgs {
    /// How the allocator of a GPU keeps fragmentation low: expandable-segments, max-split-size or cuda-malloc-async. libtorch reads it
    /// from PYTORCH_CUDA_ALLOC_CONF when it is loaded; the worker refuses to start when that says something else
    /// [default: what that variable says]
    #[arg(long, env = "IMAGEGEN_ALLOCATOR", value_name = "STRATEGY", help_heading = "Memory")]
    pub allocator: Option<Strategy>,
    /// Largest block that is split, in MiB, above 20; with --allocator max-split-size [default: 256]
    #[arg(
        long,
        env = "IMAGEGEN_ALLOCATOR_MAX_SPLIT_SIZE_MIB",
        value_name = "MIB",
        requires = "allocator",
        help_heading = "Memory"
    )]
    pub allocator_max_split_size_mib: Option<u32>,
    /// Steps between powers of two that sizes are rounded up to, a power of two up to 64; with --allocator max-split-size
    /// [default: sizes stay as they are]
    #[arg(
        long,
        env = "IMAGEGEN_ALLOCATOR_ROUNDUP_POWER2_DIVISIONS",
        value_name = "N",
        requires = "allocator",
        help_heading = "Memory"
    )]
    pub allocator_roundup_power2_divisions: Option<u32>,
    /// Share of the memory limit above which cached blocks are collected; with --allocator max-split-size [default: 0.8]
    #[arg(
        long,
        env = "IMAGEGEN_ALLOCATOR_GARBAGE_COLLECTION_THRESHOLD",
        value_name = "F",
        requires = "allocator",
        help_heading = "Memory"
    )]
    pub allocator_garbage_collection_threshold: Option<f64>,
}

impl AllocatorArgs {
    /// What the allocator of `device` was asked for, by these flags and by `variable`, the value of
    /// [`VARIABLE`](imagegen_core::allocator::VARIABLE).
    ///
    /// # Errors
    /// The sentence for the user, when they contradict each other or make no sense.
    pub(crate) fn asked(self, device: Device, variable: Option<&str>) -> Result<Option<Allocator>, String> {
        let choice = self.allocator.map(|strategy| AllocatorChoice {
            strategy,
            max_split_size_mib: self.allocator_max_split_size_mib,
            roundup_power2_divisions: self.allocator_roundup_power2_divisions,
            garbage_collection_threshold: self.allocator_garbage_collection_threshold,
        });
        match (device, choice) {
            (Device::Cpu, None) => Ok(None),
            (Device::Cpu, Some(_)) => {
                Err("--allocator: allocator settings are those of CUDA and have no meaning with --device cpu; leave them out"
                    .into())
            }
            (Device::Cuda(_), choice) => {
                let configured = choice.map(AllocatorChoice::resolve).transpose();
                check_environment(configured.map_err(|error| format!("--allocator: {error}"))?, variable)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPANDABLE: AllocatorArgs = AllocatorArgs {
        allocator: Some(Strategy::ExpandableSegments),
        allocator_max_split_size_mib: None,
        allocator_roundup_power2_divisions: None,
        allocator_garbage_collection_threshold: None,
    };

    #[test]
    fn flags_and_environment_must_agree_on_a_gpu_and_have_no_meaning_on_a_cpu() {
        let (cpu, cuda) = (Device::Cpu, Device::Cuda(0));
        let none = AllocatorArgs::default();
        let text = Some("expandable_segments:True");
        assert_eq!(EXPANDABLE.asked(cuda, text), Ok(Some(Allocator::ExpandableSegments)));
        assert_eq!(none.asked(cuda, text), Ok(Some(Allocator::ExpandableSegments)));
        assert_eq!(none.asked(cuda, None), Ok(None));
        assert_eq!(none.asked(cpu, text), Ok(None), "what libtorch's CUDA half would read does not matter");
        assert!(EXPANDABLE.asked(cpu, text).unwrap_err().contains("no meaning with --device cpu"));
        assert!(EXPANDABLE.asked(cuda, None).unwrap_err().contains("PYTORCH_CUDA_ALLOC_CONF is not set"));
        let split = AllocatorArgs { allocator_max_split_size_mib: Some(64), ..EXPANDABLE };
        assert!(split.asked(cuda, text).unwrap_err().contains("do nothing with expandable-segments"));
    }
}
