//! The device, through a fake NVML: what the worker shows, and what it refuses.

use std::{fs, path::Path};

use fake_nvml::{FakeNvml, Process, State};
use imagegen_proto::v1::GetModelRequest;
use imagegen_worker::run::ServeError;
use rstest::rstest;
use tempfile::TempDir;

use crate::{
    binary::program,
    harness::{PATIENCE, Worker, eventually, serve},
};

/// A folder with the fake library and the flags that bring a worker to it.
pub(crate) struct Gpu {
    pub(crate) fake: FakeNvml,
    pub(crate) flags: Vec<String>,
    folder: TempDir,
}

impl Gpu {
    pub(crate) fn new(state: &State) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = FakeNvml::install(folder.path(), state).unwrap();
        let flags = vec!["--device=cuda".into(), format!("--nvml-library={}", fake.library().display())];
        Self { fake, flags, folder }
    }

    pub(crate) fn with<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        self.flags.iter().map(String::as_str).chain(more.iter().copied()).collect()
    }
}

/// Why the server did not start.
async fn refused(flags: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (_addresses, _terminations, ended) = serve(folder.path(), "", flags);
    match tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap() {
        Err(ServeError::Settings(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_is_on_the_page_within_seconds() {
    let mut state = State::h100();
    let gpu = Gpu::new(&state);
    let worker = Worker::ready("", &gpu.with(&[])).await;
    assert_eq!(worker.metric("imagegen_worker_device_memory_total_bytes").await, f64::from(81_559_u32 << 10) * 1024.0);
    assert_eq!(worker.metric("imagegen_worker_gpu_clock_hertz{clock=\"sm\"}").await, 1.98e9);
    assert_eq!(worker.metric("imagegen_worker_device_probe_up").await, 1.0);

    state.devices[0].processes =
        vec![Process { pid: 0, used: Some(1 << 30) }, Process { pid: 4_194_000, used: Some(9 << 30) }];
    state.devices[0].throttle_reasons = Some(0x20);
    gpu.fake.answer(&state).unwrap();
    let other = "imagegen_worker_gpu_process_memory_bytes{process=\"other\"}";
    eventually("the neighbour is seen", || async { worker.metric(other).await == 9.0 * 1_073_741_824.0 }).await;
    assert_eq!(worker.metric("imagegen_worker_gpu_throttle{reason=\"sw_thermal_slowdown\"}").await, 1.0);
    assert_eq!(worker.metric("imagegen_worker_gpu_throttle{reason=\"hw_slowdown\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nvml_the_worker_serves_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("--nvml-library={}", folder.path().join("libnvidia-ml.so.1").display());
    let worker = Worker::ready("", &["--device=cuda", &missing]).await;
    assert_eq!(worker.metric("imagegen_worker_device_probe_up").await, 0.0);
    assert!(worker.metric("imagegen_worker_device_call_failures_total{call=\"nvmlInit_v2\"}").await >= 1.0);
    assert!(!worker.get("/metrics").await.1.contains("imagegen_worker_gpu_temperature"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cpu_has_memory_and_nothing_of_a_gpu() {
    let worker = Worker::ready("", &[]).await;
    let (_, page) = worker.get("/metrics").await;
    let (total, used) = (
        worker.metric("imagegen_worker_device_memory_total_bytes").await,
        worker.metric("imagegen_worker_device_memory_used_bytes").await,
    );
    assert!(used > 1e6 && used < total, "{used} of {total}");
    assert!(!page.contains("imagegen_worker_gpu_"), "{page}");
}

#[rstest]
#[case::another_card(&["--gpu-uuid=GPU-other"], "the worker would run on GPU-11111111-1111-1111-1111-111111111111 (NVIDIA H100 80GB HBM3)")]
#[case::an_unknown_profile(&["--profile=h1000"], "no profile has this name; expected auto, none, or one of h200, h100-80gb")]
#[case::a_larger_card(&["--profile=h200"], "is for 139 GiB or more")]
#[case::features_that_are_not_there(&["--profile=t4-16gb"], "needs float8 weights of the transformer")]
#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_card_or_profile_is_refused_at_start(#[case] flags: &[&str], #[case] expected: &str) {
    let gpu = Gpu::new(&State::h100());
    let reason = refused(&gpu.with(flags)).await;
    assert!(reason.contains(expected), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_or_profile_has_no_meaning_on_a_cpu() {
    assert!(refused(&["--gpu-uuid=GPU-1"]).await.contains("no meaning with --device cpu"));
    assert!(refused(&["--profile=h100-80gb"]).await.contains("is for a GPU, and the device is cpu"));
}

/// A checkpoint of that many parameters, as far as headers tell.
fn checkpoint(folder: &Path, parameters: u64) {
    for (part, parameters) in [("transformer", parameters), ("text_encoder", 0), ("vae", 0)] {
        let header = format!(r#"{{"w": {{"dtype": "BF16", "shape": [{parameters}], "data_offsets": [0, 0]}}}}"#);
        fs::create_dir_all(folder.join(part)).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        fs::write(folder.join(part).join("model.safetensors"), bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_full_model_on_a_small_card_is_refused_with_what_it_would_need() {
    let mut state = State::h100();
    state.devices[0].name = "NVIDIA GeForce RTX 4080".into();
    state.devices[0].memory.total = 16_376 << 20;
    let gpu = Gpu::new(&state);
    checkpoint(gpu.folder.path(), 10_261_000_000);
    let model = format!("--model={}", gpu.folder.path().display());
    let reason = refused(&gpu.with(&[&model])).await;
    assert!(reason.contains("takes 19.1 GiB in bfloat16"), "{reason}");
    assert!(reason.contains("its profile rtx-4080-16gb needs float8 weights of the transformer"), "{reason}");
    // A small model fits without those features, and nothing else stops it.
    checkpoint(gpu.folder.path(), 20_000_000);
    Worker::ready("", &gpu.with(&[&model])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_say_what_the_profile_decided() {
    let gpu = Gpu::new(&State::h100());
    let origin = async |flags: &[&str], name: &str| {
        let worker = Worker::ready("", &gpu.with(flags)).await;
        let model = worker.client().await.get_model(GetModelRequest {}).await.unwrap().into_inner();
        let setting = model.settings.into_iter().find(|setting| setting.name == name).unwrap();
        (setting.value, setting.origin)
    };
    let (buckets, who) = origin(&[], "buckets").await;
    assert!(buckets.contains("2048x2048@4") && who == "Profile", "{buckets} {who}");
    assert_eq!(origin(&[], "profile").await, ("h100-80gb".into(), "BuiltIn".into()));
    assert_eq!(origin(&["--buckets=512x512@2"], "buckets").await, ("512x512@2".into(), "Flag".into()));
    assert_eq!(origin(&["--profile=none"], "buckets").await.1, "BuiltIn");
    // This model makes nothing as large as the profile's sizes: the built-in list is no setting of the profile.
    let worker = Worker::ready("max_size: 64x64", &gpu.with(&[])).await;
    let model = worker.client().await.get_model(GetModelRequest {}).await.unwrap().into_inner();
    assert_eq!(model.settings.iter().find(|setting| setting.name == "buckets").unwrap().origin, "BuiltIn");
}

#[test]
fn the_doctor_exits_with_1_when_something_stops_serving() {
    let doctor = |state: &State, more: &[&str]| {
        let gpu = Gpu::new(state);
        let mut command = program();
        command.arg("doctor").args(gpu.with(more)).env_remove("PYTORCH_CUDA_ALLOC_CONF").output().unwrap()
    };
    let healthy = doctor(&State::h100(), &[]);
    let page = String::from_utf8(healthy.stdout).unwrap();
    assert_eq!(healthy.status.code(), Some(0), "{page}");
    assert!(page.contains("NVIDIA H100 80GB HBM3") && page.contains("fit to serve"), "{page}");

    let mut broken = State::h100();
    broken.devices[0].ecc_uncorrected = Some(2);
    let json = doctor(&broken, &["--json"]);
    assert_eq!(json.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["healthy"], false);
    assert_eq!(report["facts"]["sample"]["ecc_uncorrected_errors"], 2);
    let errors: Vec<_> =
        report["findings"].as_array().unwrap().iter().filter(|finding| finding["level"] == "error").collect();
    assert!(errors.len() == 1 && errors[0]["about"] == "ECC", "{errors:?}");
}

#[test]
fn profiles_are_listed() {
    let output = program().args(["profiles", "--json"]).output().unwrap();
    let profiles: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let t4 = profiles.as_array().unwrap().iter().find(|profile| profile["name"] == "t4-16gb").unwrap();
    assert_eq!(t4["needs"], serde_json::json!(["float8-transformer", "int4-text-encoder"]));
    let table = program().arg("profiles").output().unwrap();
    assert!(String::from_utf8(table.stdout).unwrap().starts_with("PROFILE"));
}
