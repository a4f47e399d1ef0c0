//! One reading of a device.

use std::fmt;

use serde::Serialize;

/// One reading. Every number is absent where the device, its driver or the rights of the process do not give it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct GpuSample {
    /// Of the card, or of the MIG instance.
    pub(crate) uuid: Option<String>,
    pub(crate) name: Option<String>,
    /// Of the card, for example `00000000:1B:00.0`.
    pub(crate) pci_bus_id: Option<String>,
    pub(crate) driver_version: Option<String>,
    /// Newest CUDA that the driver runs.
    pub(crate) cuda_driver_version: Option<CudaVersion>,
    pub(crate) mig: Option<Mig>,
    pub(crate) memory: Option<DeviceMemory>,
    /// Those that the driver lists; inside a container that may be none.
    pub(crate) processes: Vec<ProcessMemory>,
    pub(crate) sm_clock_mhz: Option<u32>,
    pub(crate) max_sm_clock_mhz: Option<u32>,
    pub(crate) memory_clock_mhz: Option<u32>,
    pub(crate) max_memory_clock_mhz: Option<u32>,
    /// Why clocks are below what they could be, an idle card left out. Absent: not known; empty: nothing holds them back.
    pub(crate) throttle: Option<Vec<Throttle>>,
    pub(crate) temperature_celsius: Option<u32>,
    pub(crate) power_watts: Option<f64>,
    pub(crate) power_limit_watts: Option<f64>,
    pub(crate) utilization: Option<Utilization>,
    pub(crate) persistence_mode: Option<bool>,
    /// Since the driver was loaded.
    pub(crate) ecc_corrected_errors: Option<u64>,
    pub(crate) ecc_uncorrected_errors: Option<u64>,
    /// Calls that failed, and not because the card lacks the thing.
    pub(crate) failures: Vec<CallFailure>,
}

/// Bytes. `used` counts all processes, and not what the driver keeps for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct DeviceMemory {
    pub(crate) total_bytes: u64,
    pub(crate) driver_reserved_bytes: u64,
    pub(crate) used_bytes: u64,
}

impl DeviceMemory {
    /// What processes can have, all together.
    pub(crate) const fn usable_total_bytes(self) -> u64 {
        self.total_bytes.saturating_sub(self.driver_reserved_bytes)
    }
}

/// A process on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct ProcessMemory {
    pub(crate) pid: u32,
    /// This process.
    pub(crate) own: bool,
    pub(crate) used_bytes: Option<u64>,
}

/// A version of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CudaVersion {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl CudaVersion {
    /// From NVML's 1000 * major + 10 * minor.
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        let number = u32::try_from(number).ok().filter(|&number| number > 0)?;
        Some(Self { major: number / 1000, minor: number % 1000 / 10 })
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for CudaVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The slice of a card that is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Mig {
    pub(crate) parent_uuid: Option<String>,
    /// Its number on the card, for `nvidia-smi`.
    pub(crate) instance: Option<u32>,
    /// For example `1g.10gb`.
    pub(crate) profile: Option<String>,
}

impl Mig {
    /// The profile that the name of an instance ends with (`NVIDIA H100 80GB HBM3 MIG 1g.10gb`).
    pub(crate) fn profile_in(name: &str) -> Option<String> {
        let (_, profile) = name.rsplit_once(" MIG ")?;
        Some(profile.trim().to_owned())
    }
}

/// Shares of the last sample period, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Utilization {
    /// In which a kernel ran.
    pub(crate) gpu_ratio: f64,
    /// In which memory was read or written.
    pub(crate) memory_ratio: f64,
}

/// Why clocks are held back. Names and bits: `nvmlClocksThrottleReasons` in nvml.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, strum::Display, strum::IntoStaticStr, strum::VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Throttle {
    /// Someone set application clocks.
    ApplicationsClocks,
    /// The power limit.
    SwPowerCap,
    /// The hardware halves the clocks or more: heat or power.
    HwSlowdown,
    /// Another card of a sync boost group.
    SyncBoost,
    /// Heat; the driver lowers the clocks.
    SwThermalSlowdown,
    /// Heat; the hardware lowers the clocks.
    HwThermalSlowdown,
    /// The power supply.
    HwPowerBrake,
    /// The display's clocks.
    DisplayClocks,
}

impl Throttle {
    pub(crate) const fn bit(self) -> u64 {
        match self {
            Self::ApplicationsClocks => 0x2,
            Self::SwPowerCap => 0x4,
            Self::HwSlowdown => 0x8,
            Self::SyncBoost => 0x10,
            Self::SwThermalSlowdown => 0x20,
            Self::HwThermalSlowdown => 0x40,
            Self::HwPowerBrake => 0x80,
            Self::DisplayClocks => 0x100,
        }
    }

    /// The reasons in NVML's bits. Bit 0, an idle card, is none.
    pub(crate) fn from_bits(bits: u64) -> Vec<Self> {
        let all: &[Self] = strum::VariantArray::VARIANTS;
        all.iter().copied().filter(|reason| bits & reason.bit() != 0).collect()
    }
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct CallFailure {
    /// NVML's name for it, or the file.
    pub(crate) call: &'static str,
    pub(crate) reason: String,
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.reason)
    }
}

impl GpuSample {
    /// A reading that gave nothing but the reason.
    pub(crate) fn failed(call: &'static str, reason: impl fmt::Display) -> Self {
        let failure = CallFailure { call, reason: reason.to_string() };
        Self { failures: vec![failure], ..Self::default() }
    }

    /// Bytes of this process, where the driver tells.
    pub(crate) fn own_bytes(&self) -> Option<u64> {
        self.processes.iter().find(|process| process.own)?.used_bytes
    }

    /// Bytes of the other processes that the driver lists.
    pub(crate) fn other_processes_bytes(&self) -> u64 {
        self.processes.iter().filter(|process| !process.own).filter_map(|process| process.used_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing(0, "")]
    #[case::idle_is_no_reason(1, "")]
    #[case::heat_and_power(0x24, "sw_power_cap sw_thermal_slowdown")]
    #[case::unknown_bits(1 << 40, "")]
    #[case::all(
        0x1ff,
        "applications_clocks sw_power_cap hw_slowdown sync_boost sw_thermal_slowdown hw_thermal_slowdown hw_power_brake display_clocks"
    )]
    fn throttle_reasons(#[case] bits: u64, #[case] expected: &str) {
        let names: Vec<_> = Throttle::from_bits(bits).iter().map(ToString::to_string).collect();
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn versions_of_cuda() {
        assert_eq!(CudaVersion::from_number(12_040).unwrap().to_string(), "12.4");
        assert_eq!(CudaVersion::from_number(0), None);
        assert!(CudaVersion::from_number(12_080) > CudaVersion::from_number(12_040));
    }

    #[test]
    fn the_profile_stands_in_the_name_of_an_instance() {
        assert_eq!(Mig::profile_in("NVIDIA H100 80GB HBM3 MIG 1g.10gb").as_deref(), Some("1g.10gb"));
        assert_eq!(Mig::profile_in("NVIDIA H100 80GB HBM3"), None);
    }
}
