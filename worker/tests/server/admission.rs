//! Who waits, who is refused, and who frees their place.

use std::time::{Duration, Instant};

use imagegen_proto::v1::GenerateRequest;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::harness::{Worker, accepted, apple, eventually, generate, listen, running};

/// More steps than any test waits for.
fn endless() -> GenerateRequest {
    GenerateRequest { steps: Some(100), ..apple() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_with_a_retry_hint() {
    let worker = Worker::ready("step_seconds: 0.1", &["--queue-capacity=1"]).await;
    let mut client = worker.client().await;
    let _running = running(&mut client, endless()).await;
    let (_waiting, place) = accepted(&mut client, endless()).await;
    assert_eq!(place.queue_position, 1);
    assert!(place.eta_seconds > 1.0, "{place:?}");
    let status = generate(&mut client, apple()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    let retry = details.retry_info().unwrap().retry_delay.unwrap();
    assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&retry), "{retry:?}");
    assert_eq!(details.quota_failure().unwrap().violations[0].subject, "queue");
    assert_eq!(worker.metric("imagegen_worker_refusals_total{reason=\"queue_full\"}").await, 1.0);
    assert_eq!(worker.metric("imagegen_worker_queued_requests").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_priority_overtakes_what_waits() {
    let worker = Worker::ready("step_seconds: 0.05", &[]).await;
    let mut client = worker.client().await;
    let first = running(&mut client, apple()).await;
    let (normal, _) = accepted(&mut client, apple()).await;
    let (urgent, place) = accepted(&mut client, GenerateRequest { priority: 5, ..apple() }).await;
    assert_eq!(place.queue_position, 1);
    let ended = |stream| async move {
        listen(stream).await.unwrap();
        Instant::now()
    };
    let (first, normal, urgent) = tokio::join!(ended(first), ended(normal), ended(urgent));
    assert!(first < urgent && urgent < normal);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_waiting_stream_frees_its_place() {
    let worker = Worker::ready("step_seconds: 0.1", &["--queue-capacity=1"]).await;
    let mut client = worker.client().await;
    let _running = running(&mut client, endless()).await;
    let (waiting, _) = accepted(&mut client, endless()).await;
    drop(waiting);
    eventually("the place is free", || async { worker.metric("imagegen_worker_queued_requests").await == 0.0 }).await;
    accepted(&mut client, apple()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_running_stream_frees_the_engine_within_two_steps() {
    let worker = Worker::ready("step_seconds: 0.3", &[]).await;
    let mut client = worker.client().await;
    let stream = running(&mut client, endless()).await;
    let (next, _) = accepted(&mut client, GenerateRequest { steps: Some(1), ..apple() }).await;
    let before = worker.metric("imagegen_worker_step_seconds_count").await;
    drop(stream);
    assert_eq!(listen(next).await.unwrap().images.len(), 1);
    let steps = worker.metric("imagegen_worker_step_seconds_count").await - before;
    // The next request's own step, and at most two of the one that was cancelled.
    assert!(steps <= 3.0, "{steps}");
    assert_eq!(worker.metric("imagegen_worker_requests_total{code=\"CANCELLED\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_the_deadline_frees_the_engine_within_two_steps() {
    let worker = Worker::ready("step_seconds: 0.2", &[]).await;
    let mut client = worker.client().await;
    let mut request = Request::new(endless());
    request.metadata_mut().insert("grpc-timeout", "700m".parse().unwrap());
    let start = Instant::now();
    let stream = client.generate(request).await.unwrap().into_inner();
    let status = listen(stream).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(start.elapsed() >= Duration::from_millis(700));
    generate(&mut client, GenerateRequest { steps: Some(1), ..apple() }).await.unwrap();
    let steps = worker.metric("imagegen_worker_step_seconds_count").await;
    // Three fit in before the deadline, then at most two, then the next request's own.
    assert!(steps <= 6.0, "{steps}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_refused_with_a_retry_hint() {
    let flags = ["--queue-max-wait=200ms", "--queue-max-holdup=100ms"];
    let worker = Worker::ready("step_seconds: 0.3", &flags).await;
    let mut client = worker.client().await;
    // Before the first step is measured, nobody knows how long the wait will be.
    let (_running, _) = accepted(&mut client, endless()).await;
    let (waiting, _) = accepted(&mut client, endless()).await;
    let status = listen(waiting).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
    eventually("a step is measured", || async { worker.metric("imagegen_worker_step_seconds_count").await >= 1.0 })
        .await;
    // From then on it is told at once, with when to come again.
    let status = client.generate(endless()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("the wait is about"), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
    assert_eq!(worker.metric("imagegen_worker_refusals_total{reason=\"wait_too_long\"}").await, 1.0);
    assert_eq!(worker.metric("imagegen_worker_queued_requests").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loading_worker_asks_to_come_again() {
    let worker = Worker::start("load_seconds: 600", &[]).await;
    let status = generate(&mut worker.client().await, apple()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("loading"), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some());
    // And it ends when it is told to, however long the loading takes.
    worker.terminate().await;
    worker.ended().await.unwrap();
}
