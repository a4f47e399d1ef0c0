//! An engine that fails.

use imagegen_worker::run::ServeError;
use rstest::rstest;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{PATIENCE, Worker, accepted, apple, generate, listen, running, serve};

#[rstest]
#[case::failed_in_the_text_encoder("text_encoder", "failed", Code::Internal)]
#[case::failed_in_a_step("transformer", "failed", Code::Internal)]
#[case::panicked_in_a_step("transformer", "panic", Code::Internal)]
#[case::failed_in_the_vae("vae", "failed", Code::Internal)]
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_fails_one_request_and_the_next_works(#[case] stage: &str, #[case] kind: &str, #[case] code: Code) {
    let worker = Worker::ready(&format!("faults: [{{batch: 2, stage: {stage}, kind: {kind}}}]"), &[]).await;
    let mut client = worker.client().await;
    generate(&mut client, apple()).await.unwrap();
    let status = generate(&mut client, apple()).await.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    let details = status.get_error_details();
    let id = &details.request_info().unwrap().request_id;
    assert!(status.message().contains(id.as_str()) && !status.message().contains("script"), "{status:?}");
    generate(&mut client, apple()).await.unwrap();
    let failures = format!("imagegen_worker_engine_failures_total{{stage=\"{stage}\",kind=\"failed\"}}");
    assert_eq!(worker.metric(&failures).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_failed_for_good_ends_all_streams_and_the_process() {
    let script = "step_seconds: 0.05\nfaults: [{batch: 1, stage: transformer, step: 3, kind: fatal}]";
    let worker = Worker::ready(script, &[]).await;
    let mut client = worker.client().await;
    let first = running(&mut client, apple()).await;
    let (second, _) = accepted(&mut client, apple()).await;
    for stream in [first, second] {
        let status = listen(stream).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    let error = worker.ended().await.unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("failed for good in transformer"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_load_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let (_addresses, _terminations, ended) = serve(folder.path(), "load_fault: the shard is cut", &[]);
    let error = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert_eq!(error.to_string(), "the model could not be loaded: the shard is cut");
}

#[rstest]
#[case::bucket_beyond_the_model(&["--buckets=4096x4096"], "larger than the model's largest size 2048x2048", 3)]
#[case::default_beyond_the_limit(&["--default-steps=200"], "200 steps", 3)]
#[case::token_in_plain_text(&["--token-file=script.yaml"], "--allow-insecure-token", 2)]
#[case::no_such_certificates(&["--tls-dir=/no/such/folder"], "cannot read /no/such/folder/tls.crt", 2)]
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_do_not_go_together_end_the_process(
    #[case] flags: &[&str],
    #[case] sentence: &str,
    #[case] code: u8,
) {
    let folder = tempfile::tempdir().unwrap();
    let (_addresses, _terminations, ended) = serve(folder.path(), "", flags);
    let error: ServeError = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains(sentence), "{error}");
    assert_eq!(error.exit_code(), code);
}
