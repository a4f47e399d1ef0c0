//! What the device says of itself: memory, clocks, temperature, who else uses it.
//!
//! ```text
//! NVML ─NvmlProbe─┐
//!                 ├→ GpuSample ─sampler, every second→ watch ─→ metrics, reports
//! cgroup ─HostProbe┘
//! ```
//!
//! Nothing here changes a setting of the device.

mod cgroup;
mod choose;
mod host;
pub(crate) mod metrics;
mod nvml;
mod sample;
pub(crate) mod sampler;

use std::path::PathBuf;

pub(crate) use self::{
    host::HostProbe,
    nvml::NvmlProbe,
    sample::{CallFailure, CudaVersion, DeviceMemory, GpuSample, Mig, ProcessMemory, Throttle, Utilization},
};
use crate::device::Device;

/// Reads the device.
pub(crate) trait GpuProbe: Send {
    /// Everything that can be read now. What cannot is absent, with the reason in [`GpuSample::failures`] where that is a
    /// fault and not a lack of the card.
    fn sample(&mut self) -> GpuSample;
}

/// Which device to read, and how.
#[derive(Debug, Clone)]
pub(crate) struct ProbeOptions {
    pub(crate) device: Device,
    /// The library to open instead of the system's `libnvidia-ml.so.1`.
    pub(crate) library: Option<PathBuf>,
    /// The card that it has to be.
    pub(crate) gpu_uuid: Option<String>,
}

/// The card is another one than the settings name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WrongCard {
    #[error(
        "--gpu-uuid {expected}: the worker would run on {found}; give it that card (CUDA_VISIBLE_DEVICES={expected}, or the node that has it)"
    )]
    Other { expected: String, found: String },
    #[error("--gpu-uuid {expected}: cannot tell which card the worker would run on: {reason}")]
    Unknown { expected: String, reason: String },
    #[error("--gpu-uuid {expected} has no meaning with --device cpu; leave it out")]
    Cpu { expected: String },
}

impl ProbeOptions {
    /// The probe of that device.
    pub(crate) fn probe(&self) -> Box<dyn GpuProbe> {
        match self.device {
            Device::Cpu => Box::new(HostProbe),
            Device::Cuda(index) => Box::new(NvmlProbe::new(self.library.clone(), choose::Visible::of_process(), index)),
        }
    }

    /// Whether a reading comes from the card that the settings name.
    ///
    /// # Errors
    /// When it is another one, or when nothing says which it is.
    pub(crate) fn check(&self, sample: &GpuSample) -> Result<(), WrongCard> {
        let Some(expected) = &self.gpu_uuid else { return Ok(()) };
        let expected = expected.clone();
        if self.device == Device::Cpu {
            return Err(WrongCard::Cpu { expected });
        }
        match &sample.uuid {
            // Naming a card allows its MIG instances, too.
            Some(found) if *found == expected => Ok(()),
            Some(_) if sample.mig.as_ref().is_some_and(|mig| mig.parent_uuid.as_ref() == Some(&expected)) => Ok(()),
            Some(found) => {
                let name = sample.name.as_deref().unwrap_or("a card without a name");
                Err(WrongCard::Other { expected, found: format!("{found} ({name})") })
            }
            None => {
                let reason = sample.failures.first().map_or_else(|| "no UUID was read".into(), ToString::to_string);
                Err(WrongCard::Unknown { expected, reason })
            }
        }
    }
}
