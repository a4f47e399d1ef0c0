//! Draining, ageing connections, the end.

use std::sync::atomic::Ordering;

use imagegen_proto::v1::GenerateRequest;
use imagegen_worker::run::ServeError;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{Worker, accepted, apple, eventually, generate, listen, running};

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_was_admitted_and_refuses_the_rest() {
    let worker = Worker::ready("step_seconds: 0.1", &[]).await;
    let mut client = worker.client().await;
    let first = running(&mut client, GenerateRequest { steps: Some(8), ..apple() }).await;
    let (second, _) = accepted(&mut client, apple()).await;
    let mut late = worker.client().await;
    worker.terminate().await;
    worker.reaches(ServingStatus::NotServing).await;
    assert_eq!(worker.get("/readyz").await, (503, "draining\n".into()));
    assert_eq!(worker.get("/livez").await.0, 200);
    let status = generate(&mut late, apple()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(listen(first).await.unwrap().images.len(), 1);
    assert_eq!(listen(second).await.unwrap().images.len(), 1);
    worker.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_cuts_off_what_is_left() {
    let worker = Worker::ready("step_seconds: 0.1", &["--drain-timeout=300ms"]).await;
    let mut client = worker.client().await;
    let stream = running(&mut client, GenerateRequest { steps: Some(100), ..apple() }).await;
    worker.terminate().await;
    let status = listen(stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("drain timeout"), "{status:?}");
    let error = worker.ended().await.unwrap_err();
    assert!(matches!(error, ServeError::Cut { cut: 1, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_order_ends_at_once() {
    let worker = Worker::ready("step_seconds: 0.1", &["--drain-timeout=1h"]).await;
    let mut client = worker.client().await;
    let stream = running(&mut client, GenerateRequest { steps: Some(100), ..apple() }).await;
    worker.terminate().await;
    worker.terminate().await;
    assert_eq!(listen(stream).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(worker.ended().await.unwrap_err().exit_code(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aged_connection_finishes_its_requests_and_takes_no_new_ones() {
    let worker = Worker::ready("step_seconds: 0.1", &["--max-connection-age=300ms"]).await;
    let (mut client, connections) = worker.counting_client();
    // Runs for three times the age of its connection.
    let long = GenerateRequest { steps: Some(10), ..apple() };
    assert_eq!(generate(&mut client, long).await.unwrap().images.len(), 1);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    // A call that meets the very end of the old connection is cancelled.
    eventually("a new connection serves", || {
        let mut client = client.clone();
        async move { generate(&mut client, apple()).await.is_ok() }
    })
    .await;
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_stay_without_an_age() {
    let worker = Worker::ready("", &["--max-connection-age=0s"]).await;
    let (mut client, connections) = worker.counting_client();
    for _ in 0..3 {
        generate(&mut client, apple()).await.unwrap();
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    // That of the health check closes by itself.
    eventually("one connection is open", || async {
        worker.metric("imagegen_worker_connections{port=\"public\"}").await == 1.0
    })
    .await;
    drop(client);
    eventually("the connection is closed", || async {
        worker.metric("imagegen_worker_connections{port=\"public\"}").await == 0.0
    })
    .await;
}
