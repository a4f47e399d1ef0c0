//! What the library answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Version of the driver, for example `550.54.15`.
    pub driver: String,
    /// Newest CUDA of that driver, 1000 * major + 10 * minor.
    pub cuda: i32,
    /// Functions by name that fail, and the `nvmlReturn_t` that they return.
    pub fail: BTreeMap<String, u32>,
    /// The GPUs, in the order of their PCI addresses.
    pub devices: Vec<Device>,
}

/// One GPU. An absent number is answered with `NVML_ERROR_NOT_SUPPORTED`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    /// `GPU-` and a UUID.
    pub uuid: String,
    /// For example `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Domain, bus, device and function, for example `00000000:1B:00.0`.
    pub pci_bus_id: String,
    /// Memory of the whole card.
    pub memory: Memory,
    /// Who has a compute context.
    pub processes: Vec<Process>,
    /// Streaming multiprocessors, now.
    pub sm_clock_mhz: Option<u32>,
    /// Streaming multiprocessors, at most.
    pub max_sm_clock_mhz: Option<u32>,
    /// Memory, now.
    pub memory_clock_mhz: Option<u32>,
    /// Memory, at most.
    pub max_memory_clock_mhz: Option<u32>,
    /// The bits of `nvmlClocksThrottleReasons`.
    pub throttle_reasons: Option<u64>,
    /// Of the GPU itself.
    pub temperature_celsius: Option<u32>,
    /// Drawn now.
    pub power_milliwatts: Option<u32>,
    /// The limit in force.
    pub power_limit_milliwatts: Option<u32>,
    /// Of the last sample period.
    pub utilization: Option<Utilization>,
    /// Persistence mode.
    pub persistence_mode: Option<bool>,
    /// Since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// Its MIG instances; MIG is on when there is one.
    pub mig: Vec<MigDevice>,
}

/// A MIG instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigDevice {
    /// `MIG-` and a UUID.
    pub uuid: String,
    /// For example `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
    pub name: String,
    /// Memory of the instance.
    pub memory: Memory,
    /// Who has a compute context in it.
    pub processes: Vec<Process>,
}

/// Bytes; what is neither used nor reserved is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// All there is.
    pub total: u64,
    /// What the driver keeps.
    pub reserved: u64,
    /// In use by processes.
    pub used: u64,
}

/// A process on the device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// 0 stands for the process that asks.
    pub pid: u32,
    /// Absent: the driver does not tell.
    pub used: Option<u64>,
}

/// Percent of the time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Utilization {
    /// A kernel ran.
    pub gpu: u32,
    /// Memory was read or written.
    pub memory: u32,
}

impl State {
    /// One healthy H100 that nobody uses.
    #[must_use]
    pub fn h100() -> Self {
        let device = Device {
            uuid: "GPU-11111111-1111-1111-1111-111111111111".into(),
            name: "NVIDIA H100 80GB HBM3".into(),
            pci_bus_id: "00000000:1B:00.0".into(),
            memory: Memory { total: 81_559 << 20, reserved: 551 << 20, used: 4 << 20 },
            processes: Vec::new(),
            sm_clock_mhz: Some(1_980),
            max_sm_clock_mhz: Some(1_980),
            memory_clock_mhz: Some(2_619),
            max_memory_clock_mhz: Some(2_619),
            throttle_reasons: Some(0),
            temperature_celsius: Some(38),
            power_milliwatts: Some(120_000),
            power_limit_milliwatts: Some(700_000),
            utilization: Some(Utilization { gpu: 0, memory: 0 }),
            persistence_mode: Some(true),
            ecc_corrected: Some(0),
            ecc_uncorrected: Some(0),
            mig: Vec::new(),
        };
        Self { driver: "550.54.15".into(), cuda: 12_040, fail: BTreeMap::new(), devices: vec![device] }
    }

    /// The same card, cut into two instances.
    #[must_use]
    pub fn h100_in_slices() -> Self {
        let mut state = Self::h100();
        let slice = |number: u8, profile: &str, mib: u64| MigDevice {
            uuid: format!("MIG-{number}2222222-2222-2222-2222-222222222222"),
            name: format!("NVIDIA H100 80GB HBM3 MIG {profile}"),
            memory: Memory { total: mib << 20, reserved: 0, used: 45 << 20 },
            processes: Vec::new(),
        };
        state.devices[0].mig = vec![slice(1, "3g.40gb", 40_448), slice(2, "1g.10gb", 9_856)];
        state
    }

    /// A consumer card without ECC and with a display, hot and held back.
    #[must_use]
    pub fn rtx_4090_in_trouble() -> Self {
        let device = Device {
            uuid: "GPU-44444444-4444-4444-4444-444444444444".into(),
            name: "NVIDIA GeForce RTX 4090".into(),
            pci_bus_id: "00000000:01:00.0".into(),
            memory: Memory { total: 24_564 << 20, reserved: 346 << 20, used: 6_300 << 20 },
            processes: vec![Process { pid: 4_194_000, used: Some(6_000 << 20) }],
            sm_clock_mhz: Some(1_410),
            max_sm_clock_mhz: Some(3_105),
            memory_clock_mhz: Some(10_251),
            max_memory_clock_mhz: Some(10_501),
            // SwThermalSlowdown and SwPowerCap.
            throttle_reasons: Some(0x20 | 0x4),
            temperature_celsius: Some(86),
            power_milliwatts: Some(448_000),
            power_limit_milliwatts: Some(450_000),
            utilization: Some(Utilization { gpu: 97, memory: 60 }),
            persistence_mode: Some(false),
            ecc_corrected: None,
            ecc_uncorrected: None,
            mig: Vec::new(),
        };
        Self { driver: "535.183.01".into(), cuda: 12_020, fail: BTreeMap::new(), devices: vec![device] }
    }
}
