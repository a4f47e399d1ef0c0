//! What the operator sees of a worker's memory and load, and what it may ask for.

use imagegen_proto::v1::{
    AllocatorSnapshotRequest, GenerateRequest, MemoryReport, TrimRequest, WatchReportRequest, WorkerReport,
    admin_service_client::AdminServiceClient,
};
use tonic::{Code, Streaming, transport::Channel};

use crate::{
    harness::{PATIENCE, Worker, accepted, apple, generate, listen, running},
    security::{admin_worker, connect},
};

async fn admin(script: &str) -> (Worker, AdminServiceClient<Channel>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (worker, authority) = admin_worker(folder.path(), script).await;
    let channel = connect(worker.addresses.admin.unwrap(), &authority, Some(&authority.client())).await.unwrap();
    (worker, AdminServiceClient::new(channel), folder)
}

async fn until(reports: &mut Streaming<WorkerReport>, holds: impl Fn(&WorkerReport) -> bool) -> WorkerReport {
    let reached = async {
        loop {
            let report = reports.message().await.unwrap().unwrap();
            if holds(&report) {
                return report;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap()
}

/// One size class, of 10 bytes a pixel.
const SCRIPT: &str = "max_size: 256x256\nweight_bytes: 1000000\nmemory: {total_bytes: 200000000, overhead_bytes: 500000, bytes_per_pixel: 10}";

#[tokio::test(flavor = "multi_thread")]
async fn reports_tell_the_numbers_of_the_memory() {
    let (worker, mut admin, _folder) = admin(SCRIPT).await;
    let mut reports = admin.watch_report(WatchReportRequest {}).await.unwrap().into_inner();
    let report = until(&mut reports, |report| report.load_seconds > 0.0).await;
    let expected = MemoryReport {
        usable_total_bytes: 200_000_000,
        used_bytes: 1_500_000,
        reserved_bytes: 1_000_000,
        allocated_bytes: 1_000_000,
        own_overhead_bytes: 500_000,
        weight_bytes: 1_000_000,
        budget_bytes: 183_500_000,
        headroom_bytes: 182_500_000,
        ..MemoryReport::default()
    };
    assert_eq!(report.memory, Some(expected));
    assert!(report.has_capacity && report.no_capacity_reason.is_empty());
    assert_eq!((report.pressure, report.wait_seconds, report.fragmentation_ratio), (0.0, 0.0, 0.0));

    generate(&mut worker.client().await, apple()).await.unwrap();
    // 64x32 pixels of 10 bytes are cached, and nothing of them is in use.
    let report =
        until(&mut reports, |report| report.memory.is_some_and(|memory| memory.reserved_bytes > 1_000_000)).await;
    let idle = until(&mut reports, |report| report.running == 0 && report.idle_seconds > 0.0).await;
    assert_eq!(report.memory.unwrap().reserved_bytes, 1_020_480);
    assert_eq!(idle.memory.unwrap().allocated_bytes, 1_000_000);
    assert!((idle.fragmentation_ratio - 20_480.0 / 1_020_480.0).abs() < 1e-9, "{idle:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_tell_what_waits_and_what_was_refused() {
    let (worker, mut admin, _folder) =
        admin(&format!("{SCRIPT}\nstep_seconds: 0.002\nstep_seconds_by_size: {{64x32: 0.1}}")).await;
    let mut reports = admin.watch_report(WatchReportRequest {}).await.unwrap().into_inner();
    let mut client = worker.client().await;
    let long = GenerateRequest { steps: Some(100), ..apple() };
    let _running = running(&mut client, long.clone()).await;
    let (_waiting, _) = accepted(&mut client, long.clone()).await;
    let report = until(&mut reports, |report| report.queued == 1 && report.running == 1).await;
    assert!(report.wait_seconds > 5.0 && report.backlog_seconds == report.wait_seconds, "{report:?}");
    assert!(report.memory_pressure > 0.0 && report.memory_pressure <= 1.0, "{report:?}");
    assert!(report.busy_ratio > 0.0 && report.busy_ratio <= 1.0, "{report:?}");
    // The same refused request counts once, however often it comes.
    let seconds = client.estimate(long.clone()).await.unwrap().into_inner().seconds;
    let late = GenerateRequest { request_id: "again".into(), ..long };
    for _ in 0..2 {
        let mut late = tonic::Request::new(late.clone());
        late.set_timeout(std::time::Duration::from_secs_f64(1.5 * seconds));
        assert_eq!(client.generate(late).await.unwrap_err().code(), Code::DeadlineExceeded);
    }
    let report = until(&mut reports, |report| !report.refused.is_empty()).await;
    assert_eq!(report.refused.len(), 1, "{report:?}");
    let seconds = report.refused[0].seconds;
    assert!(seconds > 5.0 && (report.backlog_seconds - report.wait_seconds - seconds).abs() < 1e-6, "{report:?}");
    assert_eq!(report.idle_seconds, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_trims_and_looks_into_the_allocator() {
    let (worker, mut admin, _folder) = admin(SCRIPT).await;
    generate(&mut worker.client().await, apple()).await.unwrap();
    let snapshot = admin.allocator_snapshot(AllocatorSnapshotRequest {}).await.unwrap().into_inner();
    assert_eq!(snapshot.reserved_bytes, 1_020_480);
    let trimmed = admin.trim(TrimRequest {}).await.unwrap().into_inner();
    assert_eq!((trimmed.reserved_before_bytes, trimmed.reserved_after_bytes), (1_020_480, 1_000_000));
    let snapshot = admin.allocator_snapshot(AllocatorSnapshotRequest {}).await.unwrap().into_inner();
    assert_eq!(snapshot.reserved_bytes, 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trim_waits_for_the_batch_that_runs() {
    let (worker, mut admin, _folder) = admin("step_seconds: 0.05").await;
    let stream = running(&mut worker.client().await, apple()).await;
    let trim = tokio::spawn(async move { admin.trim(TrimRequest {}).await.map(|_| std::time::Instant::now()) });
    listen(stream).await.unwrap();
    trim.await.unwrap().unwrap();
    let (worker, mut admin, _folder) = self::admin("").await;
    // An engine that tells nothing about its allocator says so.
    let status = admin.allocator_snapshot(AllocatorSnapshotRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    drop(worker);
}
