//! Through the real wrapper, against a library that answers from a file.

use fake_nvml::{FakeNvml, Process, State};
use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::{
    device::Device,
    gpu::{ProbeOptions, WrongCard},
};

struct Machine {
    fake: FakeNvml,
    _folder: TempDir,
}

impl Machine {
    fn new(state: &State) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { fake: FakeNvml::install(folder.path(), state).unwrap(), _folder: folder }
    }

    fn probe(&self, visible: Option<&str>, index: u32) -> NvmlProbe {
        let visible = Visible { devices: visible.map(Into::into), order: None };
        NvmlProbe::new(Some(self.fake.library()), visible, index)
    }
}

#[test]
fn a_healthy_card_tells_everything() {
    let machine = Machine::new(&State::h100());
    let sample = machine.probe(None, 0).sample();
    let expected = GpuSample {
        uuid: Some("GPU-11111111-1111-1111-1111-111111111111".into()),
        name: Some("NVIDIA H100 80GB HBM3".into()),
        pci_bus_id: Some("00000000:1B:00.0".into()),
        driver_version: Some("550.54.15".into()),
        cuda_driver_version: CudaVersion::from_number(12_040),
        mig: None,
        memory: Some(DeviceMemory { total_bytes: 81_559 << 20, driver_reserved_bytes: 551 << 20, used_bytes: 4 << 20 }),
        processes: Vec::new(),
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
        failures: Vec::new(),
    };
    assert_eq!(sample, expected);
}

#[test]
fn what_a_card_does_not_have_is_no_failure() {
    let machine = Machine::new(&State::rtx_4090_in_trouble());
    let sample = machine.probe(None, 0).sample();
    assert_eq!((sample.ecc_corrected_errors, sample.ecc_uncorrected_errors), (None, None));
    assert_eq!(sample.failures, []);
    assert_eq!(sample.throttle, Some(vec![Throttle::SwPowerCap, Throttle::SwThermalSlowdown]));
}

#[test]
fn a_neighbour_that_takes_memory_is_seen_at_the_next_reading() {
    let mut state = State::h100();
    let machine = Machine::new(&state);
    let mut probe = machine.probe(None, 0);
    assert_eq!(probe.sample().other_processes_bytes(), 0);
    state.devices[0].memory.used += 10 << 30;
    state.devices[0].processes =
        vec![Process { pid: 0, used: Some(1 << 30) }, Process { pid: 4_194_000, used: Some(9 << 30) }];
    machine.fake.answer(&state).unwrap();
    let sample = probe.sample();
    assert_eq!((sample.own_bytes(), sample.other_processes_bytes()), (Some(1 << 30), 9 << 30));
    assert_eq!(sample.memory.unwrap().used_bytes, (4 << 20) + (10 << 30));
}

#[test]
fn an_instance_has_its_own_memory_and_the_clocks_of_its_card() {
    let machine = Machine::new(&State::h100_in_slices());
    let sample = machine.probe(Some("MIG-22222222"), 0).sample();
    assert_eq!(sample.uuid.as_deref(), Some("MIG-22222222-2222-2222-2222-222222222222"));
    assert_eq!(sample.memory.unwrap().total_bytes, 9_856 << 20);
    let mig = Mig {
        parent_uuid: Some("GPU-11111111-1111-1111-1111-111111111111".into()),
        instance: Some(1),
        profile: Some("1g.10gb".into()),
    };
    assert_eq!(sample.mig, Some(mig));
    assert_eq!((sample.sm_clock_mhz, sample.temperature_celsius), (Some(1_980), Some(38)));
    assert_eq!(sample.failures, []);
}

#[rstest]
#[case::by_index(Some("1"), "GPU-b")]
#[case::in_the_order_of_the_list(Some("1,0"), "GPU-b")]
#[case::by_uuid(Some("GPU-b"), "GPU-b")]
#[case::all(None, "GPU-11111111-1111-1111-1111-111111111111")]
fn cuda_visible_devices_decides(#[case] visible: Option<&str>, #[case] expected: &str) {
    let mut state = State::h100();
    let second = fake_nvml::Device { uuid: "GPU-b".into(), ..state.devices[0].clone() };
    state.devices.push(second);
    let machine = Machine::new(&state);
    assert_eq!(machine.probe(visible, 0).sample().uuid.as_deref(), Some(expected));
}

#[test]
fn without_the_library_there_is_a_reason_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libnvidia-ml.so.1");
    let sample = NvmlProbe::new(Some(library), Visible::default(), 0).sample();
    let [failure] = sample.failures.as_slice() else { panic!("{sample:?}") };
    assert_eq!(failure.call, "nvmlInit_v2");
    assert!(failure.reason.contains("install the NVIDIA driver"), "{failure}");
    assert_eq!((sample.memory, sample.uuid), (None, None));
}

#[test]
fn a_library_that_comes_later_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut probe = NvmlProbe::new(Some(folder.path().join("libnvidia-ml.so.1")), Visible::default(), 0);
    assert_eq!(probe.sample().memory, None);
    FakeNvml::install(folder.path(), &State::h100()).unwrap();
    assert!(probe.sample().memory.is_some());
}

#[rstest]
#[case::of_memory("nvmlDeviceGetMemoryInfo_v2", |sample: &GpuSample| sample.memory.is_none() && sample.temperature_celsius.is_some())]
#[case::of_the_temperature("nvmlDeviceGetTemperature", |sample: &GpuSample| sample.temperature_celsius.is_none() && sample.memory.is_some())]
#[case::of_the_name("nvmlDeviceGetName", |sample: &GpuSample| sample.name.is_none() && sample.memory.is_none())]
#[case::of_persistence("nvmlDeviceGetPersistenceMode", |sample: &GpuSample| sample.persistence_mode.is_none() && sample.memory.is_some())]
fn one_failing_call_costs_its_own_number_only(#[case] call: &str, #[case] expected: fn(&GpuSample) -> bool) {
    let mut state = State::h100();
    state.fail.insert(call.into(), 999);
    let machine = Machine::new(&state);
    let sample = machine.probe(None, 0).sample();
    assert!(expected(&sample), "{sample:?}");
    assert_eq!(sample.failures.len(), 1, "{sample:?}");
}

#[test]
fn a_lost_card_is_a_failure_and_its_return_is_seen() {
    let mut state = State::h100();
    let machine = Machine::new(&state);
    let mut probe = machine.probe(None, 0);
    assert!(probe.sample().memory.is_some());
    // NVML_ERROR_GPU_IS_LOST
    state.fail.insert("nvmlDeviceGetHandleByUUID".into(), 15);
    machine.fake.answer(&state).unwrap();
    assert!(probe.sample().failures[0].reason.contains("fell off the bus"));
    state.fail.clear();
    machine.fake.answer(&state).unwrap();
    assert!(probe.sample().memory.is_some());
}

#[rstest]
#[case::the_card(State::h100(), "GPU-11111111-1111-1111-1111-111111111111", Ok(()))]
#[case::a_slice_of_the_card(State::h100_in_slices(), "GPU-11111111-1111-1111-1111-111111111111", Ok(()))]
#[case::a_slice(State::h100_in_slices(), "MIG-12222222-2222-2222-2222-222222222222", Ok(()))]
#[case::another_card(
    State::h100(), "GPU-a",
    Err(WrongCard::Other { expected: "GPU-a".into(), found: "GPU-11111111-1111-1111-1111-111111111111 (NVIDIA H100 80GB HBM3)".into() })
)]
#[case::no_card(
    State { devices: Vec::new(), ..State::h100() }, "GPU-a",
    Err(WrongCard::Unknown { expected: "GPU-a".into(), reason: "choosing the GPU: the driver lists no GPU; in a pod, ask for nvidia.com/gpu".into() })
)]
fn the_worker_is_bound_to_one_card(#[case] state: State, #[case] uuid: &str, #[case] expected: Result<(), WrongCard>) {
    let machine = Machine::new(&state);
    let sample = machine.probe(None, 0).sample();
    let options = ProbeOptions { device: Device::Cuda(0), library: None, gpu_uuid: Some(uuid.into()) };
    assert_eq!(options.check(&sample), expected);
}
