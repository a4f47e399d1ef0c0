use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::rules::{ModelLimits, RuleSettings};

fn rules() -> Rules {
    let model = ModelLimits { size_multiple: 16, max_prompt_tokens: 512, max_size: Size { width: 4096, height: 3000 } };
    let buckets = Some("512x512@4,1024x1024@2".parse().unwrap());
    Rules::new(RuleSettings { buckets, ..RuleSettings::default() }, model).unwrap()
}

fn raw() -> RawRequest {
    RawRequest { prompt: "a red apple".into(), ..RawRequest::default() }
}

fn words(text: &str) -> Result<usize, String> {
    Ok(text.split_whitespace().count())
}

fn checked(raw: RawRequest) -> Result<Request, RequestError> {
    parse(raw, &rules(), 4242, &words)
}

#[test]
fn absent_fields_get_the_defaults() {
    let request = checked(raw()).unwrap();
    assert_eq!(request.size.to_string(), "1024x1024");
    assert_eq!((request.steps, request.count, request.seed), (8, 1, 4242));
    assert_eq!((request.guidance, request.format), (Guidance::OFF, ImageFormat::Png));
    assert_eq!(request.warnings, Vec::<String>::new());
}

#[rstest]
#[case::empty_prompt(RawRequest { prompt: String::new(), ..raw() }, "prompt", "is empty")]
#[case::blank_prompt(RawRequest { prompt: " \n".into(), ..raw() }, "prompt", "is empty")]
#[case::control_character(RawRequest { prompt: "a\u{7}".into(), ..raw() }, "prompt", "U+0007 at character 1")]
#[case::control_in_negative(
    RawRequest { negative_prompt: "a\0".into(), guidance_scale: Some(3.0), ..raw() }, "negative_prompt", "U+0000")]
#[case::negative_without_guidance(
    RawRequest { negative_prompt: "blur".into(), ..raw() }, "negative_prompt", "needs guidance_scale above 0")]
#[case::width_0(RawRequest { width: Some(0), ..raw() }, "width", "1 to 4096 pixels, the model's largest, found 0")]
#[case::height_0(RawRequest { height: Some(0), ..raw() }, "height", "found 0")]
#[case::beyond_the_model(RawRequest { height: Some(3001), ..raw() }, "height", "1 to 3000")]
#[case::too_many_pixels(
    RawRequest { width: Some(3000), height: Some(3000), ..raw() }, "width", "at most 4194304 pixels, found 3000x3000")]
#[case::steps_0(RawRequest { steps: Some(0), ..raw() }, "steps", "1 to 100, found 0")]
#[case::too_many_steps(RawRequest { steps: Some(101), ..raw() }, "steps", "found 101")]
#[case::nan_guidance(RawRequest { guidance_scale: Some(f64::NAN), ..raw() }, "guidance_scale", "found NaN")]
#[case::endless_guidance(RawRequest { guidance_scale: Some(f64::INFINITY), ..raw() }, "guidance_scale", "found inf")]
#[case::negative_guidance(RawRequest { guidance_scale: Some(-1.0), ..raw() }, "guidance_scale", "found -1")]
#[case::nan_normalization(RawRequest { cfg_normalization: Some(f64::NAN), ..raw() }, "cfg_normalization", "found NaN")]
#[case::truncation_above_1(RawRequest { cfg_truncation: Some(1.5), ..raw() }, "cfg_truncation", "0 to 1, found 1.5")]
#[case::nan_truncation(RawRequest { cfg_truncation: Some(f64::NAN), ..raw() }, "cfg_truncation", "found NaN")]
#[case::count_0(RawRequest { count: Some(0), ..raw() }, "count", "1 to 8, found 0")]
#[case::too_many_images(RawRequest { count: Some(9), ..raw() }, "count", "found 9")]
#[case::unknown_format(RawRequest { format: Err("17".into()), ..raw() }, "format", "found 17")]
#[case::unknown_scheduler(RawRequest { scheduler: Err("9".into()), ..raw() }, "scheduler", "found 9")]
#[case::priority(RawRequest { priority: 101, ..raw() }, "priority", "-100 to 100, found 101")]
#[case::long_id(RawRequest { request_id: "x".repeat(129), ..raw() }, "request_id", "128 characters, found 129")]
#[case::id_not_ascii(RawRequest { request_id: "é".into(), ..raw() }, "request_id", "printable ASCII")]
fn a_bad_field_is_named_with_what_was_found(#[case] raw: RawRequest, #[case] field: &str, #[case] description: &str) {
    let Err(RequestError::Invalid(violations)) = checked(raw) else { panic!("accepted") };
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert_eq!(violations[0].field, field);
    assert!(violations[0].description.contains(description), "{violations:?}");
}

#[test]
fn all_bad_fields_are_named_at_once() {
    let raw = RawRequest { prompt: String::new(), steps: Some(0), count: Some(0), ..raw() };
    let error = checked(raw).unwrap_err();
    assert_eq!(
        error.to_string(),
        "prompt is empty; say what to draw, in any language; steps must be 1 to 100, found 0; count must be 1 to 8, found 0"
    );
}

#[test]
fn a_prompt_that_the_tokenizer_refuses_is_a_bad_prompt() {
    let error = parse(raw(), &rules(), 0, &|_| Err("no such token".into())).unwrap_err();
    assert_eq!(error.to_string(), "prompt cannot be turned into tokens: no such token");
}

#[test]
fn a_long_prompt_is_accepted_with_a_warning() {
    let request = checked(RawRequest { prompt: "apple ".repeat(600), ..raw() }).unwrap();
    assert_eq!(
        request.warnings,
        ["The prompt has 600 tokens with the chat template: cut at 512, the last 88 are ignored."]
    );
    assert!(checked(RawRequest { prompt: "apple ".repeat(512), ..raw() }).unwrap().warnings.is_empty());
}

#[test]
fn an_odd_size_is_accepted_with_a_warning() {
    let request = checked(RawRequest { width: Some(500), height: Some(300), ..raw() }).unwrap();
    assert_eq!((request.latent_size.to_string(), request.bucket.to_string()), ("512x304".into(), "512x512@4".into()));
    assert_eq!(request.warnings, ["500x300 is not a multiple of 16 pixels: made at 512x304 and cropped."]);
}

#[rstest]
#[case::euler(SchedulerKind::FlowMatchEuler, 0.0, 0, 1)]
#[case::unipc_guided(SchedulerKind::UniPc, 2.0, 0, 2)]
#[case::heun(SchedulerKind::Heun, 0.0, 1, 2)]
#[case::heun_guided(SchedulerKind::Heun, 2.0, 1, 4)]
fn a_scheduler_that_is_advised_against_is_accepted_with_a_warning(
    #[case] scheduler: SchedulerKind,
    #[case] scale: f64,
    #[case] warnings: usize,
    #[case] calls_per_step: u32,
) {
    let raw = RawRequest { scheduler: Ok(Some(scheduler)), guidance_scale: Some(scale), ..raw() };
    let request = checked(raw).unwrap();
    assert_eq!((request.scheduler, request.calls_per_step()), (scheduler, calls_per_step));
    assert_eq!(request.warnings.len(), warnings, "{:?}", request.warnings);
    assert!(request.warnings.iter().all(|warning| warning.contains("advised against")), "{:?}", request.warnings);
}

#[rstest]
#[case::none(0, &[])]
#[case::each(1, &[1, 2, 3, 4, 5, 6, 7])]
#[case::third(3, &[3, 6])]
#[case::beyond_the_end(9, &[])]
fn previews_come_every_so_many_steps_but_not_with_the_picture(#[case] preview_every: u32, #[case] expected: &[u32]) {
    let request = checked(RawRequest { preview_every, steps: Some(8), ..raw() }).unwrap();
    let found: Vec<u32> = (1..=8).filter(|&step| request.has_preview(step)).collect();
    assert_eq!(found, expected);
}

#[test]
fn guidance_options_without_guidance_are_accepted_with_a_warning() {
    let raw = RawRequest { cfg_truncation: Some(0.5), cfg_normalization: Some(1.0), ..raw() };
    let request = checked(raw).unwrap();
    assert_eq!(request.guidance, Guidance::OFF);
    assert_eq!(request.warnings.len(), 2, "{:?}", request.warnings);
}

#[test]
fn what_no_bucket_covers_is_too_large() {
    let error = checked(RawRequest { width: Some(1536), height: Some(64), ..raw() }).unwrap_err();
    assert!(matches!(error, RequestError::TooLarge(TooLarge { largest, .. }) if largest.size.width == 1024), "{error}");
}

#[test]
fn seeds_of_a_request_wrap() {
    let request = checked(RawRequest { seed: Some(u32::MAX), count: Some(3), ..raw() }).unwrap();
    let seeds: Vec<_> = request.specs().into_iter().map(|spec| spec.seed).collect();
    assert_eq!(seeds, [u32::MAX, 0, 1]);
}

#[test]
fn reproducible_images_are_made_alone() {
    let size = RawRequest { width: Some(512), height: Some(512), ..raw() };
    assert_eq!(checked(size.clone()).unwrap().batch_size(), 4);
    assert_eq!(checked(RawRequest { reproducible: true, ..size }).unwrap().batch_size(), 1);
}

proptest! {
    #[test]
    fn whatever_is_accepted_is_within_the_rules(
        prompt in "\\PC{0,20}|[\\x00-\\x20]{0,4}",
        (width, height) in (proptest::option::of(0_u32..5000), proptest::option::of(0_u32..5000)),
        (steps, count) in (proptest::option::of(0_u32..120), proptest::option::of(0_u32..12)),
        scale in proptest::option::of(proptest::num::f64::ANY),
        truncation in proptest::option::of(proptest::num::f64::ANY),
    ) {
        let rules = rules();
        let raw = RawRequest {
            prompt, width, height, steps, count, guidance_scale: scale, cfg_truncation: truncation, ..RawRequest::default()
        };
        if let Ok(request) = parse(raw, &rules, 7, &words) {
            prop_assert!(!request.prompt.trim().is_empty());
            prop_assert!((1..=rules.limits.max_steps).contains(&request.steps));
            prop_assert!((1..=rules.limits.max_images_per_request).contains(&request.count));
            prop_assert!(request.size.pixels() >= 1 && request.size.pixels() <= rules.limits.max_pixels);
            prop_assert!(request.guidance.scale >= 0.0 && request.guidance.scale.is_finite());
            prop_assert!((0.0..=1.0).contains(&request.guidance.truncation));
            prop_assert_eq!(request.specs().len(), request.count as usize);
            for spec in request.specs() {
                prop_assert_eq!(spec.latent_size.rounded_up(16), spec.latent_size);
                prop_assert!(spec.size.width <= spec.latent_size.width && spec.size.height <= spec.latent_size.height);
            }
        }
    }
}
