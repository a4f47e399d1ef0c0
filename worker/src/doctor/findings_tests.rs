//! Pages for machines that people have, and tables of single facts.

use std::collections::BTreeMap;

use rstest::rstest;

use super::{
    super::{facts::Libtorch, page::page},
    *,
};
use crate::{
    cli::ProfileChoice,
    doctor::Level,
    gpu::{CudaVersion, GpuSample, Mig, ProcessMemory, Throttle, Utilization},
    profiles::{self, Card},
};

/// Parameters of Z-Image-Turbo's files.
const FULL: u64 = 10_261_000_000;

fn h100() -> GpuSample {
    GpuSample {
        uuid: Some("GPU-11111111-1111-1111-1111-111111111111".into()),
        name: Some("NVIDIA H100 80GB HBM3".into()),
        pci_bus_id: Some("00000000:1B:00.0".into()),
        driver_version: Some("550.54.15".into()),
        cuda_driver_version: CudaVersion::from_number(12_040),
        memory: Some(DeviceMemory { total_bytes: 81_559 << 20, driver_reserved_bytes: 551 << 20, used_bytes: 4 << 20 }),
        sm_clock_mhz: Some(1_980),
        max_sm_clock_mhz: Some(1_980),
        memory_clock_mhz: Some(2_619),
        max_memory_clock_mhz: Some(2_619),
        throttle: Some(Vec::new()),
        temperature_celsius: Some(38),
        power_watts: Some(120.0),
        power_limit_watts: Some(700.0),
        utilization: Some(Utilization { gpu_ratio: 0.0, memory_ratio: 0.0 }),
        persistence_mode: Some(true),
        ecc_corrected_errors: Some(0),
        ecc_uncorrected_errors: Some(0),
        ..GpuSample::default()
    }
}

fn facts(sample: GpuSample) -> Facts {
    let model = Model { name: "Z-Image-Turbo".into(), parameters: Ok(FULL), precision: Precision::BFloat16 };
    let card = Card::of(&sample);
    Facts {
        device: if sample.uuid.is_some() { Device::Cuda(0) } else { Device::Cpu },
        wrong_card: None,
        process_names: BTreeMap::new(),
        libtorch: Some(Libtorch { version: "2.5.1".into(), cuda: CudaVersion { major: 12, minor: 4 } }),
        alloc_conf: Some("expandable_segments:True".into()),
        profile: profiles::choose(&ProfileChoice::Auto, &profiles::all(), card.as_ref(), Some(FULL))
            .map_err(|error| error.to_string()),
        model: Some(model),
        sample,
    }
}

fn read(facts: &Facts) -> String {
    page(facts, &findings(facts))
}

#[test]
fn a_healthy_h100() {
    insta::assert_snapshot!(read(&facts(h100())));
}

#[test]
fn a_throttled_4090_with_a_neighbour() {
    let sample = GpuSample {
        uuid: Some("GPU-44444444-4444-4444-4444-444444444444".into()),
        name: Some("NVIDIA GeForce RTX 4090".into()),
        pci_bus_id: Some("00000000:01:00.0".into()),
        driver_version: Some("535.183.01".into()),
        cuda_driver_version: CudaVersion::from_number(12_020),
        memory: Some(DeviceMemory {
            total_bytes: 24_564 << 20,
            driver_reserved_bytes: 346 << 20,
            used_bytes: 6_300 << 20,
        }),
        processes: vec![ProcessMemory { pid: 4_211, own: false, used_bytes: Some(6_000 << 20) }],
        sm_clock_mhz: Some(1_410),
        max_sm_clock_mhz: Some(3_105),
        throttle: Some(vec![Throttle::SwPowerCap, Throttle::SwThermalSlowdown]),
        temperature_celsius: Some(86),
        power_watts: Some(448.0),
        power_limit_watts: Some(450.0),
        utilization: Some(Utilization { gpu_ratio: 0.97, memory_ratio: 0.6 }),
        persistence_mode: Some(false),
        ecc_corrected_errors: None,
        ecc_uncorrected_errors: None,
        ..h100()
    };
    let mut facts = facts(sample);
    facts.process_names.insert(4_211, "python3".into());
    facts.alloc_conf = Some("expandable_segments:True,max_split_size_mb:128".into());
    insta::assert_snapshot!(read(&facts));
}

#[test]
fn a_machine_without_a_gpu() {
    let memory = DeviceMemory { total_bytes: 32 << 30, driver_reserved_bytes: 0, used_bytes: 9 << 20 };
    let mut facts = facts(GpuSample { memory: Some(memory), ..GpuSample::default() });
    facts.model =
        Some(Model { name: "emoji-zimage".into(), parameters: Ok(20_000_000), precision: Precision::Float32 });
    insta::assert_snapshot!(read(&facts));
}

#[test]
fn a_slice_of_an_h100() {
    let sample = GpuSample {
        uuid: Some("MIG-12222222-2222-2222-2222-222222222222".into()),
        name: Some("NVIDIA H100 80GB HBM3 MIG 3g.40gb".into()),
        mig: Some(Mig { parent_uuid: h100().uuid, instance: Some(0), profile: Some("3g.40gb".into()) }),
        memory: Some(DeviceMemory { total_bytes: 40_448 << 20, driver_reserved_bytes: 0, used_bytes: 45 << 20 }),
        utilization: None,
        ..h100()
    };
    insta::assert_snapshot!(read(&facts(sample)));
}

#[test]
fn a_16_gb_card_with_a_model_in_bfloat16() {
    let sample = GpuSample {
        name: Some("NVIDIA GeForce RTX 4080".into()),
        memory: Some(DeviceMemory {
            total_bytes: 16_376 << 20,
            driver_reserved_bytes: 300 << 20,
            used_bytes: 10 << 20,
        }),
        ecc_corrected_errors: None,
        ecc_uncorrected_errors: None,
        ..h100()
    };
    insta::assert_snapshot!(read(&facts(sample)));
}

fn level(facts: &Facts, about: &str) -> Option<Level> {
    findings(facts).into_iter().filter(|finding| finding.about == about).map(|finding| finding.level).max()
}

// Driver branches of the CUDA Toolkit release notes.
#[rstest]
#[case::as_new_as_needed("550.54.15", 12_040, "12.4", Level::Ok)]
#[case::newer("580.65.06", 13_000, "12.4", Level::Ok)]
#[case::compatible("525.147.05", 12_000, "12.4", Level::Warning)]
#[case::too_old("520.61.05", 11_080, "12.4", Level::Error)]
#[case::too_old_for_13("570.86.10", 12_080, "13.0", Level::Error)]
#[case::new_enough_for_13("580.65.06", 13_000, "13.0", Level::Ok)]
fn drivers(#[case] driver: &str, #[case] newest: i32, #[case] cuda: &str, #[case] expected: Level) {
    let sample = GpuSample {
        driver_version: Some(driver.into()),
        cuda_driver_version: CudaVersion::from_number(newest),
        ..h100()
    };
    let mut facts = facts(sample);
    let (major, minor) = cuda.split_once('.').unwrap();
    let cuda = CudaVersion { major: major.parse().unwrap(), minor: minor.parse().unwrap() };
    facts.libtorch = Some(Libtorch { version: "2".into(), cuda });
    assert_eq!(level(&facts, "driver"), Some(expected));
}

#[rstest]
#[case::at_the_limit(75, Level::Ok)]
#[case::above(76, Level::Warning)]
fn temperatures(#[case] celsius: u32, #[case] expected: Level) {
    let facts = facts(GpuSample { temperature_celsius: Some(celsius), ..h100() });
    assert_eq!(level(&facts, "temperature"), Some(expected));
}

#[rstest]
#[case::none(Some(0), Some(0), Some(Level::Ok))]
#[case::corrected(Some(3), Some(0), Some(Level::Note))]
#[case::uncorrected(Some(0), Some(1), Some(Level::Error))]
#[case::a_card_without_ecc(None, None, None)]
fn memory_errors(#[case] corrected: Option<u64>, #[case] uncorrected: Option<u64>, #[case] expected: Option<Level>) {
    let sample = GpuSample { ecc_corrected_errors: corrected, ecc_uncorrected_errors: uncorrected, ..h100() };
    assert_eq!(level(&facts(sample), "ECC"), expected);
}

#[rstest]
#[case::it_fits(FULL, Precision::BFloat16, 0, Level::Ok)]
#[case::a_neighbour_takes_its_room(FULL, Precision::BFloat16, 60 << 30, Level::Error)]
#[case::float32_of_a_model_too_large(30_000_000_000, Precision::Float32, 0, Level::Error)]
fn room_for_the_model(
    #[case] parameters: u64,
    #[case] precision: Precision,
    #[case] foreign_bytes: u64,
    #[case] expected: Level,
) {
    let mut facts = facts(h100());
    facts.model = Some(Model { name: "model".into(), parameters: Ok(parameters), precision });
    facts.sample.memory = facts.sample.memory.map(|memory| DeviceMemory { used_bytes: foreign_bytes, ..memory });
    assert_eq!(level(&facts, "model"), Some(expected));
}

#[test]
fn memory_that_nobody_admits_to() {
    let mut facts = facts(h100());
    facts.sample.memory = facts.sample.memory.map(|memory| DeviceMemory { used_bytes: 5 << 30, ..memory });
    let found = findings(&facts);
    let memory = found.iter().find(|finding| finding.about == "memory").unwrap();
    assert_eq!(memory.level, Level::Warning);
    assert!(memory.found.contains("the driver lists no process here"), "{}", memory.found);
}

#[test]
fn a_gpu_that_cannot_be_read_stops_serving() {
    let mut facts = facts(GpuSample::failed("nvmlInit_v2", "libnvidia-ml.so.1: cannot open shared object file"));
    facts.device = Device::Cuda(0);
    let found = findings(&facts);
    assert_eq!((found[0].level, found[0].about), (Level::Error, "GPU"));
    assert!(found[0].found.contains("cannot open shared object file"));
}

#[test]
fn every_warning_says_what_to_do() {
    let mut sick = facts(GpuSample {
        throttle: Some(strum::VariantArray::VARIANTS.to_vec()),
        temperature_celsius: Some(90),
        power_watts: Some(700.0),
        persistence_mode: Some(false),
        ecc_uncorrected_errors: Some(1),
        driver_version: Some("500.1".into()),
        cuda_driver_version: CudaVersion::from_number(11_000),
        failures: vec![crate::gpu::CallFailure {
            call: "nvmlDeviceGetName",
            reason: "an internal driver error occurred".into(),
        }],
        ..h100()
    });
    sick.alloc_conf = Some("backend:cudaMallocAsync,max_split_size_mb:1".into());
    for finding in findings(&sick).into_iter().filter(|finding| finding.level >= Level::Warning) {
        assert!(finding.change.is_some(), "{finding:?}");
    }
}
