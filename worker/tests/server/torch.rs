//! The demo checkpoint through the whole program.

use std::{fs, path::PathBuf};

use imagegen_proto::v1::{GenerateRequest, GetModelRequest};

use crate::{
    binary::{program, serve_with, text},
    harness::{accepted, listen},
};

fn checkpoint() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/models/emoji-zimage")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_and_generate_make_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apple.png");
    let output = program()
        .args(["generate", "--prompt=红苹果", "--width=128", "--steps=4", "--seed=7"])
        .arg(format!("--model={}", checkpoint().display()))
        .arg(format!("--output={}", file.display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    let served = serve_with(&[&format!("--model={}", checkpoint().display())]);
    let mut client = served.client().await;
    let model = client.get_model(GetModelRequest {}).await.unwrap().into_inner();
    assert_eq!((model.name.as_str(), model.pipeline.as_str()), ("emoji-zimage", "ZImagePipeline"));
    assert_eq!((model.precision.as_str(), model.device.as_str()), ("float32", "cpu"));
    assert!(model.weight_bytes > 10_000_000 && !model.libtorch_version.is_empty(), "{model:?}");
    let request = GenerateRequest {
        prompt: "红苹果".into(),
        width: Some(128),
        height: Some(128),
        steps: Some(4),
        seed: Some(7),
        ..GenerateRequest::default()
    };
    let (stream, accepted) = accepted(&mut client, request).await;
    assert_eq!(accepted.warnings, Vec::<String>::new());
    let told = listen(stream).await.unwrap();
    assert_eq!(told.progress.len(), 4);
    assert!(told.images[0].data == fs::read(file).unwrap());
    served.signal("-TERM");
    assert_eq!(served.exit_code(), Some(0));
}

#[test]
fn a_checkpoint_that_is_not_there_is_named() {
    let output =
        program().args(["generate", "--prompt=a", "--output=a.png", "--model=/no/such/model"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output).contains("/no/such/model"), "{}", text(&output));
}

#[test]
fn a_gpu_that_is_not_there_is_said() {
    let output = program()
        .args(["generate", "--prompt=a", "--output=a.png", "--device=cuda:63"])
        .arg(format!("--model={}", checkpoint().display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output).contains("--device cuda:63"), "{}", text(&output));
}
