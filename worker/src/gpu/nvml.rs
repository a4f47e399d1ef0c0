//! The device through NVML, NVIDIA's management library. Opened at run time; whatever it does not give is absent.

use std::{fmt::Display, path::PathBuf};

use nvml_wrapper::{
    Device as Handle, Nvml,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::NvmlError,
};

use super::{
    CallFailure, CudaVersion, DeviceMemory, GpuProbe, GpuSample, Mig, ProcessMemory, Throttle, Utilization,
    choose::{Card, Visible, choose},
};

/// Reads the GPU that is `cuda:index` in this process.
pub(crate) struct NvmlProbe {
    library: Option<PathBuf>,
    visible: Visible,
    index: u32,
    nvml: Option<Nvml>,
    uuid: Option<String>,
}

impl NvmlProbe {
    /// A probe that opens the library at its first reading, and again whenever that failed.
    pub(crate) const fn new(library: Option<PathBuf>, visible: Visible, index: u32) -> Self {
        Self { library, visible, index, nvml: None, uuid: None }
    }

    fn open(&mut self) -> Result<&Nvml, NvmlError> {
        if self.nvml.is_none() {
            let mut builder = Nvml::builder();
            if let Some(library) = &self.library {
                builder.lib_path(library.as_os_str());
            } else {
                // The name that driver and container toolkit install; the one without a number belongs to development files.
                builder.lib_path("libnvidia-ml.so.1".as_ref());
            }
            self.nvml = Some(builder.init()?);
        }
        self.nvml.as_ref().ok_or(NvmlError::Uninitialized)
    }
}

impl GpuProbe for NvmlProbe {
    fn sample(&mut self) -> GpuSample {
        let (visible, index, known) = (self.visible.clone(), self.index, self.uuid.clone());
        let nvml = match self.open() {
            Ok(nvml) => nvml,
            Err(error) => return GpuSample::failed("nvmlInit_v2", opening(&error)),
        };
        // The device stays the same for the life of the process.
        let uuid = match known.map_or_else(|| find(nvml, &visible, index), Ok) {
            Ok(uuid) => uuid,
            Err(CallFailure { call, reason }) => {
                let driver_version = nvml.sys_driver_version().ok();
                return GpuSample { driver_version, ..GpuSample::failed(call, reason) };
            }
        };
        let sample = read(nvml, &uuid);
        self.uuid = Some(uuid);
        sample
    }
}

fn opening(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(error) => {
            format!("{error}; install the NVIDIA driver, or in a pod use the runtime class of the GPU Operator")
        }
        error => error.to_string(),
    }
}

/// UUID of `cuda:index`.
fn find(nvml: &Nvml, visible: &Visible, index: u32) -> Result<String, CallFailure> {
    let failed = |call| move |error: NvmlError| CallFailure { call, reason: error.to_string() };
    let count = nvml.device_count().map_err(failed("nvmlDeviceGetCount_v2"))?;
    let card = |number| -> Result<Card, NvmlError> {
        let device = nvml.device_by_index(number)?;
        let instances = instances(&device).filter_map(|(_, instance)| instance.uuid().ok()).collect();
        Ok(Card { uuid: device.uuid()?, name: device.name()?, instances })
    };
    let cards: Vec<_> =
        (0..count).map(card).collect::<Result<_, _>>().map_err(failed("nvmlDeviceGetHandleByIndex_v2"))?;
    choose(&cards, visible, index).map_err(|error| CallFailure { call: "choosing the GPU", reason: error.to_string() })
}

/// MIG instances with their numbers.
fn instances<'nvml>(card: &Handle<'nvml>) -> impl Iterator<Item = (u32, Handle<'nvml>)> {
    let is_cut_up = card.mig_mode().is_ok_and(|mode| mode.current == 1);
    let room = if is_cut_up { card.mig_device_count().unwrap_or(0) } else { 0 };
    (0..room)
        .filter_map(|number| Some((number, card.mig_device_by_index(number).ok()?)))
        .collect::<Vec<_>>()
        .into_iter()
}

fn read(nvml: &Nvml, uuid: &str) -> GpuSample {
    let mut calls = Calls::default();
    let Some(device) = calls.take("nvmlDeviceGetHandleByUUID", nvml.device_by_uuid(uuid)) else {
        return GpuSample { failures: calls.failures, ..GpuSample::default() };
    };
    let name = calls.take("nvmlDeviceGetName", device.name());
    let parent = device.mig_parent_device().ok();
    let mig = parent.as_ref().map(|parent| Mig {
        parent_uuid: parent.uuid().ok(),
        instance: instances(parent).find(|(_, found)| found.uuid().is_ok_and(|found| found == uuid)).map(|(n, _)| n),
        profile: name.as_deref().and_then(Mig::profile_in),
    });
    // Clocks, heat and power belong to the card; an instance has memory and processes of its own.
    let card = parent.as_ref().unwrap_or(&device);
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    let ratio = |percent: u32| f64::from(percent) / 100.0;
    let ecc = |kind| card.total_ecc_errors(kind, EccCounter::Volatile);
    GpuSample {
        uuid: Some(uuid.to_owned()),
        pci_bus_id: calls.take("nvmlDeviceGetPciInfo_v3", card.pci_info()).map(|pci| pci.bus_id),
        driver_version: calls.take("nvmlSystemGetDriverVersion", nvml.sys_driver_version()),
        cuda_driver_version: calls
            .take("nvmlSystemGetCudaDriverVersion_v2", nvml.sys_cuda_driver_version())
            .and_then(CudaVersion::from_number),
        memory: calls.take("nvmlDeviceGetMemoryInfo_v2", device.memory_info()).map(|memory| DeviceMemory {
            total_bytes: memory.total,
            driver_reserved_bytes: memory.reserved,
            used_bytes: memory.used,
        }),
        processes: processes(&mut calls, &device),
        sm_clock_mhz: calls.take("nvmlDeviceGetClockInfo", card.clock_info(Clock::SM)),
        max_sm_clock_mhz: calls.take("nvmlDeviceGetMaxClockInfo", card.max_clock_info(Clock::SM)),
        memory_clock_mhz: calls.take("nvmlDeviceGetClockInfo", card.clock_info(Clock::Memory)),
        max_memory_clock_mhz: calls.take("nvmlDeviceGetMaxClockInfo", card.max_clock_info(Clock::Memory)),
        throttle: calls
            .take("nvmlDeviceGetCurrentClocksThrottleReasons", card.current_throttle_reasons())
            .map(|reasons| Throttle::from_bits(reasons.bits())),
        temperature_celsius: calls.take("nvmlDeviceGetTemperature", card.temperature(TemperatureSensor::Gpu)),
        power_watts: calls.take("nvmlDeviceGetPowerUsage", card.power_usage()).map(watts),
        power_limit_watts: calls.take("nvmlDeviceGetEnforcedPowerLimit", card.enforced_power_limit()).map(watts),
        utilization: calls
            .take("nvmlDeviceGetUtilizationRates", card.utilization_rates())
            .map(|rates| Utilization { gpu_ratio: ratio(rates.gpu), memory_ratio: ratio(rates.memory) }),
        persistence_mode: calls.take("nvmlDeviceGetPersistenceMode", card.is_in_persistent_mode()),
        ecc_corrected_errors: calls.take("nvmlDeviceGetTotalEccErrors", ecc(MemoryError::Corrected)),
        ecc_uncorrected_errors: calls.take("nvmlDeviceGetTotalEccErrors", ecc(MemoryError::Uncorrected)),
        name,
        mig,
        failures: calls.failures,
    }
}

fn processes(calls: &mut Calls, device: &Handle<'_>) -> Vec<ProcessMemory> {
    let own = std::process::id();
    let listed = device.running_compute_processes();
    let listed = calls.take("nvmlDeviceGetComputeRunningProcesses_v3", listed).unwrap_or_default();
    let one = |process: nvml_wrapper::struct_wrappers::device::ProcessInfo| ProcessMemory {
        pid: process.pid,
        own: process.pid == own,
        used_bytes: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
    };
    listed.into_iter().map(one).collect()
}

/// Keeps apart what failed and what the card does not have.
#[derive(Default)]
struct Calls {
    failures: Vec<CallFailure>,
}

impl Calls {
    fn take<T>(&mut self, call: &'static str, result: Result<T, NvmlError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            // Consumer cards have no ECC, instances no clocks, pods not every right.
            Err(NvmlError::NotSupported | NvmlError::NoPermission) => None,
            Err(error) => {
                self.fail(call, error);
                None
            }
        }
    }

    fn fail(&mut self, call: &'static str, reason: impl Display) {
        if !self.failures.iter().any(|failure| failure.call == call) {
            self.failures.push(CallFailure { call, reason: reason.to_string() });
        }
    }
}

#[cfg(test)]
#[path = "nvml_tests.rs"]
mod tests;
