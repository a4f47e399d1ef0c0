//! What others see: health, probes, reflection, metrics.

use tokio_stream::{StreamExt as _, once};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::harness::{Worker, apple, generate};

#[tokio::test(flavor = "multi_thread")]
async fn health_and_probes_follow_the_loading() {
    let worker = Worker::start("load_seconds: 1", &[]).await;
    let (status, reason) = worker.get("/readyz").await;
    assert!(status == 503 && reason.starts_with("loading the model"), "{reason}");
    assert_eq!(worker.get("/livez").await.0, 200);
    let mut health = HealthClient::new(worker.channel().await);
    let mut changes = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    for status in [ServingStatus::NotServing, ServingStatus::Serving] {
        assert_eq!(changes.message().await.unwrap().unwrap().status(), status);
    }
    assert_eq!(worker.get("/readyz").await, (200, "ok\n".into()));
    assert_eq!(worker.metric("imagegen_worker_state{state=\"serving\"}").await, 1.0);
    assert_eq!(worker.metric("imagegen_worker_state{state=\"loading\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_engine_fails_the_liveness_probe() {
    let worker = Worker::start("load_seconds: 600", &["--stall-timeout=100ms"]).await;
    crate::harness::eventually("livez fails", || async { worker.get("/livez").await.0 == 503 }).await;
    assert!(worker.get("/livez").await.1.contains("has not finished a step"));
    worker.terminate().await;
    worker.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_public_services() {
    let worker = Worker::ready("", &[]).await;
    let mut client = ServerReflectionClient::new(worker.channel().await);
    let ask = |message_request| ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
    let list = once(ask(MessageRequest::ListServices(String::new())));
    let answer = client.server_reflection_info(list).await.unwrap().into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else { panic!("{answer:?}") };
    let mut names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "imagegen.v1.ImageService"]);
    let symbol = once(ask(MessageRequest::FileContainingSymbol("imagegen.v1.ImageService".into())));
    let answer = client.server_reflection_info(symbol).await.unwrap().into_inner().next().await.unwrap().unwrap();
    assert!(matches!(answer.message_response, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_page_has_every_name() {
    let worker = Worker::ready("weight_bytes: 123\nstep_seconds: 0.001", &[]).await;
    generate(&mut worker.client().await, apple()).await.unwrap();
    let (status, page) = worker.get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "imagegen_worker_requests_total{code=\"OK\"} 1",
        "imagegen_worker_requests_total{code=\"INTERNAL\"} 0",
        "imagegen_worker_images_total 1",
        "imagegen_worker_cancellations_total 0",
        "imagegen_worker_queue_wait_seconds_count 1",
        "imagegen_worker_step_seconds_count 4",
        "imagegen_worker_stage_seconds_count{stage=\"text_encoder\"} 1",
        "imagegen_worker_stage_seconds_count{stage=\"transformer\"} 4",
        "imagegen_worker_stage_seconds_count{stage=\"vae\"} 1",
        "imagegen_worker_stage_seconds_count{stage=\"encode\"} 1",
        "imagegen_worker_images_per_request_count 1",
        "imagegen_worker_queued_requests 0",
        "imagegen_worker_running_requests 0",
        "imagegen_worker_state{state=\"serving\"} 1",
        "imagegen_worker_weight_bytes 123",
        "imagegen_worker_loaded_bytes 123",
        "imagegen_worker_load_ratio 1.0",
        "# UNIT imagegen_worker_load_seconds seconds",
        "# TYPE imagegen_worker_refusals counter",
        "# TYPE imagegen_worker_engine_failures counter",
        "# TYPE imagegen_worker_reloads counter",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    assert!(page.contains("imagegen_worker_build_info{version="), "{page}");
}
