//! Requests that are made, and requests that are refused.

use imagegen_proto::v1::{GenerateRequest, GetModelRequest, ImageFormat, Scheduler};
use rstest::rstest;
use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_types::StatusExt as _;

use crate::harness::{Worker, accepted, apple, eventually, generate, listen, running};

#[rstest]
#[case::unspecified(ImageFormat::Unspecified, "image/png", image::ImageFormat::Png)]
#[case::png(ImageFormat::Png, "image/png", image::ImageFormat::Png)]
#[case::jpeg(ImageFormat::Jpeg, "image/jpeg", image::ImageFormat::Jpeg)]
#[case::webp(ImageFormat::Webp, "image/webp", image::ImageFormat::WebP)]
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_comes_in_the_asked_format(
    #[case] format: ImageFormat,
    #[case] mime: &str,
    #[case] expected: image::ImageFormat,
) {
    let worker = Worker::ready("step_seconds: 0.001", &[]).await;
    let request = GenerateRequest { format: format.into(), ..apple() };
    let told = generate(&mut worker.client().await, request).await.unwrap();
    assert_eq!(told.order, ["accepted", "image", "finished"]);
    let steps: Vec<_> = told.progress.iter().map(|progress| (progress.index, progress.step, progress.steps)).collect();
    assert_eq!(steps, [(0, 1, 4), (0, 2, 4), (0, 3, 4), (0, 4, 4)]);
    let image = &told.images[0];
    assert_eq!((image.mime.as_str(), image.width, image.height, image.seed), (mime, 64, 32, 7));
    assert_eq!(image::guess_format(&image.data).unwrap(), expected);
    let picture = image::load_from_memory(&image.data).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (64, 32));
    let timings = told.finished.unwrap().timings.unwrap();
    assert!(
        timings.transformer_seconds >= 0.004 && timings.total_seconds >= timings.transformer_seconds,
        "{timings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_request_are_made_together_with_seeds_that_wrap() {
    let worker = Worker::ready("", &["--buckets=64x64@2"]).await;
    let request = GenerateRequest { count: Some(3), seed: Some(u32::MAX), ..apple() };
    let told = generate(&mut worker.client().await, request).await.unwrap();
    let images: Vec<_> = told.images.iter().map(|image| (image.index, image.seed)).collect();
    assert_eq!(images, [(0, u32::MAX), (1, 0), (2, 1)]);
    let firsts: Vec<_> = told.progress.iter().map(|progress| progress.index).collect();
    assert_eq!(firsts, [0, 0, 0, 0, 2, 2, 2, 2]);
    assert_eq!(told.accepted.unwrap().bucket.unwrap().max_batch, 2);
    assert_ne!(told.images[0].data, told.images[1].data);
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_come_as_small_png_for_each_image_and_not_with_the_last_step() {
    let worker = Worker::ready("", &["--buckets=64x64@2"]).await;
    let request = GenerateRequest { count: Some(2), preview_every: 2, ..apple() };
    let told = generate(&mut worker.client().await, request).await.unwrap();
    let seen: Vec<_> =
        told.progress.iter().map(|progress| (progress.step, progress.index, !progress.preview.is_empty())).collect();
    assert_eq!(seen, [(1, 0, false), (2, 0, true), (2, 1, true), (3, 0, false), (4, 0, false)]);
    for progress in told.progress.iter().filter(|progress| !progress.preview.is_empty()) {
        let preview = image::load_from_memory_with_format(&progress.preview, image::ImageFormat::Png).unwrap();
        assert_eq!((preview.width(), preview.height()), (8, 4));
    }
    assert_ne!(told.progress[1].preview, told.progress[2].preview);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_is_advised_against_is_used_with_a_warning() {
    let worker = Worker::ready("", &[]).await;
    let request = GenerateRequest { scheduler: Scheduler::Heun.into(), ..apple() };
    let told = generate(&mut worker.client().await, request).await.unwrap();
    let warnings = told.accepted.unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("advised against"), "{warnings:?}");
    assert_eq!(told.images.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_seed_is_one_picture_and_an_absent_seed_is_told() {
    let worker = Worker::ready("", &[]).await;
    let mut client = worker.client().await;
    let random = generate(&mut client, GenerateRequest { seed: None, ..apple() }).await.unwrap();
    let seed = random.accepted.unwrap().seed;
    assert_eq!(random.images[0].seed, seed);
    let again = generate(&mut client, GenerateRequest { seed: Some(seed), ..apple() }).await.unwrap();
    assert_eq!(again.images[0].data, random.images[0].data);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_size_and_a_long_prompt_are_made_with_a_warning() {
    let worker = Worker::ready("max_prompt_tokens: 8", &[]).await;
    let prompt = "apple ".repeat(10);
    let request = GenerateRequest { prompt, width: Some(50), height: Some(30), ..apple() };
    let told = generate(&mut worker.client().await, request).await.unwrap();
    assert_eq!((told.images[0].width, told.images[0].height), (50, 30));
    assert_eq!(
        told.accepted.unwrap().warnings,
        [
            "The prompt has 10 tokens with the chat template: cut at 8, the last 2 are ignored.",
            "50x30 is not a multiple of 16 pixels: made at 64x32 and cropped."
        ]
    );
}

#[rstest]
#[case::empty_prompt(GenerateRequest { prompt: String::new(), ..apple() }, "prompt")]
#[case::control_character(GenerateRequest { prompt: "a\u{1b}[31m".into(), ..apple() }, "prompt")]
#[case::negative_without_guidance(GenerateRequest { negative_prompt: "blur".into(), ..apple() }, "negative_prompt")]
#[case::width_0(GenerateRequest { width: Some(0), ..apple() }, "width")]
#[case::beyond_the_model(GenerateRequest { height: Some(2049), ..apple() }, "height")]
#[case::too_many_pixels(GenerateRequest { width: Some(2048), height: Some(2048), ..apple() }, "width")]
#[case::steps_0(GenerateRequest { steps: Some(0), ..apple() }, "steps")]
#[case::too_many_steps(GenerateRequest { steps: Some(101), ..apple() }, "steps")]
#[case::nan_guidance(GenerateRequest { guidance_scale: Some(f32::NAN), ..apple() }, "guidance_scale")]
#[case::nan_normalization(GenerateRequest { cfg_normalization: Some(f32::NAN), ..apple() }, "cfg_normalization")]
#[case::truncation(GenerateRequest { cfg_truncation: Some(-0.1), ..apple() }, "cfg_truncation")]
#[case::count_0(GenerateRequest { count: Some(0), ..apple() }, "count")]
#[case::too_many_images(GenerateRequest { count: Some(9), ..apple() }, "count")]
#[case::format(GenerateRequest { format: 99, ..apple() }, "format")]
#[case::scheduler(GenerateRequest { scheduler: 99, ..apple() }, "scheduler")]
#[case::priority(GenerateRequest { priority: 1000, ..apple() }, "priority")]
#[case::request_id(GenerateRequest { request_id: "ü".into(), ..apple() }, "request_id")]
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_field_is_an_invalid_argument_that_names_it(#[case] request: GenerateRequest, #[case] field: &str) {
    let worker = Worker::ready("", &["--max-pixels=1000000"]).await;
    let status = generate(&mut worker.client().await, request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_error_details().bad_request().unwrap().field_violations.clone();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert_eq!(violations[0].field, field);
    assert!(status.message().starts_with(field), "{status:?}");
    assert_eq!(worker.metric("imagegen_worker_refusals_total{reason=\"invalid\"}").await, 1.0);
}

/// GenerateRequest with a prompt of any bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct BytesRequest {
    #[prost(bytes = "vec", tag = "1")]
    prompt: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_surrogate_is_an_invalid_argument() {
    let worker = Worker::ready("", &[]).await;
    let mut grpc = Grpc::new(worker.channel().await);
    grpc.ready().await.unwrap();
    let request = Request::new(BytesRequest { prompt: b"\xED\xA0\x80".to_vec() });
    let path = PathAndQuery::from_static("/imagegen.v1.ImageService/Generate");
    let codec = tonic_prost::ProstCodec::<BytesRequest, imagegen_proto::v1::GenerateEvent>::default();
    let status = grpc.server_streaming(request, path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "prompt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_million_characters_is_an_invalid_argument() {
    let worker = Worker::ready("", &[]).await;
    let request = GenerateRequest { prompt: "apple ".repeat(200_000), ..apple() };
    let status = generate(&mut worker.client().await, request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("1048576"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_bucket_covers_names_the_largest() {
    let worker = Worker::ready("", &["--buckets=512x512,256x768"]).await;
    let request = GenerateRequest { width: Some(640), ..apple() };
    let status = generate(&mut worker.client().await, request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "640x32 fits no size class of this worker; the largest is 512x512");
    let details = status.get_error_details();
    assert_eq!(details.precondition_failure().unwrap().violations[0].subject, "640x32");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_attaches_while_it_runs_and_is_replayed_after() {
    let worker = Worker::ready("step_seconds: 0.1", &[]).await;
    let mut client = worker.client().await;
    let request = GenerateRequest { request_id: "order 1".into(), seed: None, ..apple() };
    let (first, told_first) = accepted(&mut client, request.clone()).await;
    let (second, told_second) = accepted(&mut client, request.clone()).await;
    assert_eq!((told_first.seed, told_first.request_id.as_str()), (told_second.seed, "order 1"));
    // One of two streams closes: the work goes on for the other.
    drop(first);
    let image = listen(second).await.unwrap().images.remove(0);
    let replayed = generate(&mut client, request.clone()).await.unwrap();
    assert_eq!(replayed.order, ["accepted", "image", "finished"]);
    assert_eq!((replayed.images[0].data == image.data, replayed.progress.len()), (true, 0));
    assert_eq!(worker.metric("imagegen_worker_images_total").await, 1.0);

    let other = GenerateRequest { prompt: "a pear".into(), ..request };
    let status = generate(&mut client, other).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "request_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_a_cancelled_request_starts_again() {
    let worker = Worker::ready("step_seconds: 0.05", &[]).await;
    let mut client = worker.client().await;
    let request = GenerateRequest { request_id: "order 2".into(), ..apple() };
    drop(running(&mut client, request.clone()).await);
    eventually("the first is cancelled", || async {
        worker.metric("imagegen_worker_cancellations_total").await == 1.0
    })
    .await;
    assert_eq!(generate(&mut client, request).await.unwrap().progress.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_tells_what_is_in_force_and_who_said_so() {
    let flags =
        ["--queue-capacity=5", "--buckets=256x256@2,512x512", "--default-steps=6", "--max-images-per-request=3"];
    let worker = Worker::ready("max_size: 1024x512\nweight_bytes: 400", &flags).await;
    let model = worker.client().await.get_model(GetModelRequest {}).await.unwrap().into_inner();
    assert_eq!((model.name.as_str(), model.weight_bytes, model.parameters), ("scripted", 400, 100));
    let limits = model.limits.unwrap();
    assert_eq!((limits.queue_capacity, limits.max_images_per_request, limits.max_steps), (5, 3, 100));
    let buckets: Vec<_> = model.buckets.iter().map(|bucket| (bucket.width, bucket.height, bucket.max_batch)).collect();
    assert_eq!(buckets, [(256, 256, 2), (512, 512, 1)]);
    let defaults = model.defaults.unwrap();
    assert_eq!((defaults.width, defaults.height, defaults.steps), (512, 512, 6));
    assert!(model.ready && model.size_multiple == 16 && !model.version.is_empty());
    let setting = |name: &str| {
        let setting = model.settings.iter().find(|setting| setting.name == name).unwrap();
        (setting.value.clone(), setting.origin.clone())
    };
    assert_eq!(setting("queue-capacity"), ("5".into(), "Flag".into()));
    assert_eq!(setting("default-size"), ("512x512".into(), "BuiltIn".into()));
    assert_eq!(setting("max-connection-age"), ("60s".into(), "BuiltIn".into()));
    assert_eq!(setting("log"), ("info".into(), "BuiltIn".into()));
    assert_eq!(setting("buckets"), ("256x256@2,512x512@1".into(), "Flag".into()));
}
