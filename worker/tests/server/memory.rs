//! Memory: costs are measured, what does not fit is refused, what runs out of memory recovers, and others see the
//! numbers. Several tests are named after failures that users of other servers report.

use imagegen_proto::v1::GenerateRequest;
use rstest::rstest;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::harness::{Told, Worker, accepted, apple, eventually, generate, listen, running};

/// A device on which a step of a 64x64 image takes 40960 bytes of activations (81920 with guidance), decoding it 81920.
const MEMORY: &str =
    "weight_bytes: 100000\nmemory: {total_bytes: 1000000, bytes_per_pixel: 10, decode_bytes_per_pixel: 20";

fn script(memory: &str, rest: &str) -> String {
    format!("{MEMORY}{memory}}}\n{rest}")
}

const SMALL: [&str; 1] = ["--buckets=64x64@4,128x128@1"];

fn seeded(seed: u32) -> GenerateRequest {
    GenerateRequest { seed: Some(seed), width: Some(64), height: Some(64), ..apple() }
}

fn data(told: &Told) -> Vec<&[u8]> {
    told.images.iter().map(|image| image.data.as_slice()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn estimate_tells_what_generate_will_do() {
    let worker = Worker::ready(&script("", "step_seconds: 0.001"), &SMALL).await;
    let mut client = worker.client().await;
    let estimate = client.estimate(seeded(1)).await.unwrap().into_inner();
    assert_eq!((estimate.refusal.as_str(), estimate.bucket.unwrap().width), ("", 64));
    assert_eq!(estimate.bytes, 81_920);
    assert!(estimate.seconds > 0.0, "{estimate:?}");
    let told = generate(&mut client, seeded(1)).await.unwrap();
    assert_eq!(told.finished.unwrap().peak_bytes, 100_000 + estimate.bytes);

    let mut late = Request::new(GenerateRequest { steps: Some(100), ..seeded(1) });
    late.metadata_mut().insert("grpc-timeout", "10m".parse().unwrap());
    let refusal = client.estimate(late).await.unwrap().into_inner().refusal;
    assert!(refusal.starts_with("the deadline is in 0.0 s"), "{refusal}");
    let too_large = GenerateRequest { width: Some(512), height: Some(512), ..apple() };
    let refusal = client.estimate(too_large.clone()).await.unwrap().into_inner().refusal;
    assert_eq!(refusal, generate(&mut client, too_large).await.unwrap_err().message());
    let invalid = client.estimate(GenerateRequest { steps: Some(0), ..apple() }).await.unwrap_err();
    assert_eq!(invalid.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_does_not_refuse_what_fits() {
    // 100000 of weights and 163840 for a guided image of 128x128 at the most: to the byte.
    let exact = "weight_bytes: 100000\nmemory: {total_bytes: 427680, bytes_per_pixel: 10}";
    let worker = Worker::ready(exact, &["--buckets=128x128@1", "--memory-limit-ratio=1"]).await;
    let guided = GenerateRequest { width: Some(128), height: Some(128), guidance_scale: Some(5.0), ..apple() };
    generate(&mut worker.client().await, guided).await.unwrap();
    assert_eq!(worker.metric("cuda_oom_count").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_fit_is_refused_with_what_would() {
    let small = "weight_bytes: 100000\nmemory: {total_bytes: 300000, bytes_per_pixel: 10}";
    let worker = Worker::ready(small, &["--buckets=64x64@1,128x128@1", "--memory-limit-ratio=1"]).await;
    let mut client = worker.client().await;
    let guided = |side| GenerateRequest { width: Some(side), height: Some(side), guidance_scale: Some(5.0), ..apple() };
    let status = generate(&mut client, guided(128)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().ends_with("64x64 would fit"), "{status:?}");
    generate(&mut client, guided(64)).await.unwrap();
    generate(&mut client, GenerateRequest { guidance_scale: Some(0.0), ..guided(128) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_which_nothing_fits_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = "weight_bytes: 100000\nmemory: {total_bytes: 120000, bytes_per_pixel: 10}";
    let (_addresses, _terminations, ended) = crate::harness::serve(folder.path(), tiny, &SMALL);
    let error = tokio::time::timeout(crate::harness::PATIENCE, ended).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("not one size class fits"), "{error}");
}

#[rstest]
#[case::in_the_text_encoder("{batch: 1, stage: text_encoder, kind: out_of_memory}", "text_encoder")]
#[case::in_a_step("{batch: 1, stage: transformer, step: 3, kind: out_of_memory}", "transformer")]
#[case::in_the_vae("{batch: 1, stage: vae, kind: out_of_memory}", "vae")]
#[tokio::test(flavor = "multi_thread")]
async fn one_failed_allocation_is_recovered_from(#[case] fault: &str, #[case] stage: &str) {
    let worker = Worker::ready(&script("", &format!("faults: [{fault}]")), &SMALL).await;
    let mut client = worker.client().await;
    let told = generate(&mut client, seeded(7)).await.unwrap();
    // It went on from its last completed step.
    let steps: Vec<_> = told.progress.iter().map(|progress| progress.step).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    let again = generate(&mut client, seeded(7)).await.unwrap();
    assert_eq!(data(&told), data(&again));
    let failures = format!("imagegen_worker_engine_failures_total{{stage=\"{stage}\",kind=\"out_of_memory\"}}");
    assert_eq!(worker.metric(&failures).await, 1.0);
    eventually("the gauge follows", || async { worker.metric("cuda_oom_count").await == 1.0 }).await;
    assert_eq!(worker.metric("imagegen_worker_retries_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_oom_does_not_poison_later_requests() {
    let fault = "faults: [{batch: 1, stage: transformer, step: 2, kind: out_of_memory, times: 2}]";
    let worker = Worker::ready(&script("", fault), &SMALL).await;
    let mut client = worker.client().await;
    let status = generate(&mut client, seeded(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("out of memory in transformer"), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
    for seed in 0..3 {
        generate(&mut client, seeded(seed)).await.unwrap();
    }
    eventually("everything is given back", || async {
        worker.metric("imagegen_worker_memory_allocated_bytes").await == 100_000.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_fails_again_names_bytes_asked_and_free() {
    // The neighbour comes with the first batch, and takes more than the image needs.
    let worker = Worker::ready(&script(", foreign: [{from_batch: 1, bytes: 860000}]", ""), &SMALL).await;
    let status = generate(&mut worker.client().await, seeded(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("out of memory in"), "{status:?}");
    assert!(status.message().contains("40.00 KiB asked") && status.message().contains("free"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_takes_all_memory_makes_the_worker_unready() {
    let foreign = ", foreign: [{from_batch: 1, bytes: 890000}]";
    let worker = Worker::ready(&script(foreign, ""), &SMALL).await;
    let mut client = worker.client().await;
    generate(&mut client, seeded(1)).await.unwrap_err();
    let (status, reason) = worker.get("/readyz").await;
    assert!(status == 503 && reason.starts_with("NoHeadroom"), "{reason}");
    let status = generate(&mut client, seeded(1)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("other processes hold"), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
    assert_eq!(worker.metric("imagegen_worker_has_capacity").await, 0.0);
}

/// Several requests that wait together behind one that runs.
async fn together(worker: &Worker, seeds: &[u32]) -> Vec<Result<Told, tonic::Status>> {
    let mut client = worker.client().await;
    let first = running(&mut client, GenerateRequest { steps: Some(20), ..seeded(99) }).await;
    let mut streams = Vec::new();
    for &seed in seeds {
        streams.push(accepted(&mut client, seeded(seed)).await.0);
    }
    listen(first).await.unwrap();
    futures::future::join_all(streams.into_iter().map(listen)).await
}

/// Batches pay: two images take less than twice the time of one.
const PAYS: &str = "step_seconds: 0.01\nbatch_seconds: 0.02";

#[tokio::test(flavor = "multi_thread")]
async fn two_requests_that_are_made_together_give_the_same_pictures() {
    let worker = Worker::ready(&script("", PAYS), &SMALL).await;
    let ended = together(&worker, &[1, 2, 3]).await;
    assert_eq!(worker.metric("imagegen_worker_images_per_batch_bucket{le=\"2.0\"}").await, 1.0);
    assert_eq!(worker.metric("imagegen_worker_images_per_batch_count").await, 2.0);
    let mut client = worker.client().await;
    for (seed, told) in [1, 2, 3].into_iter().zip(ended) {
        let alone = generate(&mut client, GenerateRequest { reproducible: true, ..seeded(seed) }).await.unwrap();
        assert_eq!(data(&told.unwrap()), data(&alone));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_runs_out_of_memory_goes_on_image_by_image() {
    let fault = format!("{PAYS}\nfaults: [{{batch: 2, stage: transformer, step: 2, kind: out_of_memory}}]");
    let worker = Worker::ready(&script("", &fault), &SMALL).await;
    let ended = together(&worker, &[1, 2, 3]).await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    assert_eq!(worker.metric("imagegen_worker_retries_total").await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_runs_out_of_memory_only_the_request_that_fails_again_fails() {
    let fault = format!("{PAYS}\nfaults: [{{batch: 2, stage: transformer, step: 2, kind: out_of_memory, times: 2}}]");
    let worker = Worker::ready(&script("", &fault), &SMALL).await;
    let ended = together(&worker, &[1, 2, 3]).await;
    let failed: Vec<_> = ended.iter().filter_map(|end| end.as_ref().err()).collect();
    assert_eq!(failed.len(), 1, "{ended:?}");
    assert_eq!(failed[0].code(), Code::ResourceExhausted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_request_does_not_abort_the_rest() {
    let worker = Worker::ready(&script("", "step_seconds: 0.02\nbatch_seconds: 0.05"), &SMALL).await;
    let mut client = worker.client().await;
    let first = running(&mut client, GenerateRequest { steps: Some(20), ..seeded(99) }).await;
    let (aborted, _) = accepted(&mut client, GenerateRequest { steps: Some(30), ..seeded(1) }).await;
    let (mut kept, _) = accepted(&mut client, GenerateRequest { steps: Some(30), ..seeded(2) }).await;
    listen(first).await.unwrap();
    // Both are in one batch once the second has a step.
    let event = kept.next().await.unwrap().unwrap();
    assert!(matches!(event.event, Some(imagegen_proto::v1::generate_event::Event::Progress(_))), "{event:?}");
    drop(aborted);
    let told = listen(kept).await.unwrap();
    let alone = GenerateRequest { steps: Some(30), reproducible: true, ..seeded(2) };
    assert_eq!(data(&told), data(&generate(&mut client, alone).await.unwrap()));
    assert_eq!(worker.metric("imagegen_worker_cancellations_total").await, 1.0);
    // Every later request works.
    for seed in 0..3 {
        generate(&mut client, seeded(seed)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_image_is_suspended_for_a_small_one_and_still_done() {
    let rest = "step_seconds: 0.005\nstep_seconds_by_size: {128x128: 0.05}";
    let worker = Worker::ready(&script("", rest), &["--buckets=64x64@1,128x128@1", "--queue-max-holdup=200ms"]).await;
    let mut client = worker.client().await;
    let big = GenerateRequest { width: Some(128), height: Some(128), steps: Some(60), ..seeded(1) };
    let big = running(&mut client, big).await;
    let start = std::time::Instant::now();
    let small = generate(&mut client, seeded(2)).await.unwrap();
    // What the small one waited: the holdup and two steps, of the 3 s that the big one takes.
    let waited = small.finished.unwrap().timings.unwrap().queue_seconds;
    assert!((0.1..=0.2 + 2.0 * 0.06 + 0.1).contains(&waited), "{waited}");
    assert!(start.elapsed().as_secs_f64() < 2.0);
    let told = listen(big).await.unwrap();
    let steps: Vec<_> = told.progress.iter().map(|progress| progress.step).collect();
    assert!(steps.is_sorted() && steps.last() == Some(&60), "{steps:?}");
    assert_eq!(worker.metric("imagegen_worker_suspensions_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_cannot_be_met_is_refused_at_once_with_the_numbers() {
    let worker = Worker::ready(&script("", "step_seconds: 0.02"), &SMALL).await;
    let mut request = Request::new(GenerateRequest { steps: Some(100), ..seeded(1) });
    request.metadata_mut().insert("grpc-timeout", "500m".parse().unwrap());
    let status = worker.client().await.generate(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        status.message().starts_with("the deadline is in 0.5 s, and the request would be done in about"),
        "{status:?}"
    );
    assert_eq!(worker.metric("imagegen_worker_refusals_total{reason=\"deadline_too_short\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn measured_costs_are_kept_for_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let cache = format!("--table-cache={}", folder.path().display());
    let flags = [SMALL[0], &cache];
    let slow = script("", "step_seconds: 0.01");
    let first = Worker::ready(&slow, &flags).await;
    let bytes = first.client().await.estimate(seeded(1)).await.unwrap().into_inner().bytes;
    let measuring = first.metric("imagegen_worker_load_seconds").await;
    let second = Worker::ready(&slow, &flags).await;
    assert_eq!(second.client().await.estimate(seeded(1)).await.unwrap().into_inner().bytes, bytes);
    let reading = second.metric("imagegen_worker_load_seconds").await;
    assert!(reading < measuring / 2.0, "{measuring} s, then {reading} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_tell_the_memory() {
    let worker = Worker::ready(&script(", overhead_bytes: 50000", ""), &SMALL).await;
    generate(&mut worker.client().await, seeded(1)).await.unwrap();
    eventually("the device is idle", || async {
        worker.metric("imagegen_worker_memory_allocated_bytes").await == 100_000.0
    })
    .await;
    let (_, page) = worker.get("/metrics").await;
    for line in [
        "cuda_memory_used_bytes 231920",
        "cuda_memory_reserved_bytes 181920",
        "cuda_oom_count 0",
        "imagegen_worker_memory_usable_total_bytes 1000000",
        "imagegen_worker_memory_own_overhead_bytes 50000",
        "imagegen_worker_memory_foreign_bytes 0",
        "imagegen_worker_memory_budget_bytes 870000",
        "imagegen_worker_memory_headroom_bytes 770000",
        "imagegen_worker_has_capacity 1",
        "imagegen_worker_admissions_total 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}
