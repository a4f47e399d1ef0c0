//! Prompt to pixels.

use imagegen_core::engine::Engine;
use imagegen_core::spec::{Guidance, ImageSpec, RgbImage, SchedulerKind, Size};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{Fixture, relative_difference};
use crate::TorchEngine;

/// Largest difference of final latents as a part of the largest expected number.
const LATENTS_TOLERANCE: f64 = 1e-4;

pub(super) struct Made {
    pub(super) latents: Tensor,
    pictures: Vec<RgbImage>,
}

pub(super) fn make(engine: &mut TorchEngine, specs: &[ImageSpec]) -> Made {
    let mut batch = engine.begin(specs).unwrap();
    for _ in 0..specs[0].steps {
        engine.step(&mut batch).unwrap();
    }
    let pictures = (0..specs.len()).map(|index| engine.decode(&mut batch, index).unwrap()).collect();
    assert!(engine.step(&mut batch).is_err(), "a step too many is refused");
    Made { latents: batch.latents, pictures }
}

pub(super) fn specs(case: &Value) -> Vec<ImageSpec> {
    let number = |key: &str| case[key].as_f64().unwrap();
    let side = |index: usize| u32::try_from(case["size"][index].as_u64().unwrap()).unwrap();
    let size = Size { width: side(0), height: side(1) };
    let spec = |(prompt, seed): (&Value, &Value)| ImageSpec {
        prompt: prompt.as_str().unwrap().to_owned(),
        negative_prompt: case["negative"].as_str().unwrap().to_owned(),
        latent_size: size,
        size,
        steps: u32::try_from(case["steps"].as_u64().unwrap()).unwrap(),
        guidance: Guidance {
            scale: number("scale"),
            normalization: number("normalization"),
            truncation: number("truncation"),
        },
        seed: u32::try_from(seed.as_u64().unwrap()).unwrap(),
        scheduler: SchedulerKind::FlowMatchEuler,
    };
    case["prompts"].as_array().unwrap().iter().zip(case["seeds"].as_array().unwrap()).map(spec).collect()
}

fn assert_same_picture(found: &RgbImage, expected: &Tensor, what: &str) {
    let sides = expected.size();
    assert_eq!([i64::from(found.size.height), i64::from(found.size.width), 3], sides.as_slice(), "{what}");
    let found = Tensor::from_slice(&found.data).view(sides.as_slice()).to_kind(Kind::Int);
    let largest = (found - expected.to_kind(Kind::Int)).abs().max().int64_value(&[]);
    assert!(largest <= 1, "{what}: a pixel differs by {largest} of 255");
}

#[test]
fn every_run_of_the_reference() {
    for fixture in Fixture::both() {
        let mut engine = TorchEngine::load(&fixture.options(), &mut |_| {}).unwrap();
        let runs = fixture.cases["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 11);
        for case in runs {
            let name = case["name"].as_str().unwrap();
            let made = make(&mut engine, &specs(case));
            fixture.assert_close(&format!("run.{name}.latents"), &made.latents, LATENTS_TOLERANCE);
            let expected = fixture.get(&format!("run.{name}.pixels"));
            assert_eq!(made.pictures.len() as i64, expected.size()[0]);
            for (index, picture) in made.pictures.iter().enumerate() {
                assert_same_picture(picture, &expected.get(index as i64), &format!("{name} {index}"));
            }
        }
    }
}

#[test]
fn three_images_of_mixed_prompts_and_guidance_equal_three_single_ones() {
    for fixture in Fixture::both() {
        let mut engine = TorchEngine::load(&fixture.options(), &mut |_| {}).unwrap();
        let case = fixture.cases["runs"].as_array().unwrap().iter().find(|case| case["name"] == "all").unwrap();
        let mut specs = specs(case);
        // Truncation and cap of each image are its own.
        specs[0].guidance = Guidance { scale: 2.0, normalization: 0.0, truncation: 0.0 };
        specs[1].guidance = Guidance { scale: 7.0, normalization: 0.3, truncation: 1.0 };
        let together = make(&mut engine, &specs);
        for (index, spec) in specs.iter().enumerate() {
            let alone = make(&mut engine, std::slice::from_ref(spec));
            let difference = relative_difference(&together.latents.narrow(0, index as i64, 1), &alone.latents);
            assert!(difference <= LATENTS_TOLERANCE, "image {index}: {difference:.2e}");
        }
    }
}

#[test]
fn a_smaller_picture_is_the_top_left_part() {
    let fixture = Fixture::read("tiny-a");
    let mut engine = TorchEngine::load(&fixture.options(), &mut |_| {}).unwrap();
    let mut spec = specs(&fixture.cases["runs"][0]).remove(0);
    let whole = make(&mut engine, std::slice::from_ref(&spec)).pictures.remove(0);
    spec.size = Size { width: whole.size.width - 3, height: whole.size.height - 1 };
    let part = make(&mut engine, std::slice::from_ref(&spec)).pictures.remove(0);
    assert_eq!(part.size, spec.size);
    let rows = |picture: &RgbImage| -> Vec<Vec<u8>> {
        picture.data.chunks(3 * picture.size.width as usize).map(<[u8]>::to_vec).collect()
    };
    for (part, whole) in rows(&part).iter().zip(rows(&whole)) {
        assert_eq!(part.as_slice(), &whole[..part.len()]);
    }
}

#[test]
fn what_is_loaded_is_told() {
    let fixture = Fixture::read("tiny-a");
    let mut seen = Vec::new();
    let engine = TorchEngine::load(&fixture.options(), &mut |progress| seen.push(progress)).unwrap();
    let info = engine.model();
    assert_eq!(
        (info.pipeline.as_str(), info.precision.as_str(), info.device.as_str()),
        ("ZImagePipeline", "float32", "cpu")
    );
    assert_eq!((info.name.as_str(), info.size_multiple, info.max_prompt_tokens), ("tiny-a", 4, 512));
    assert_eq!(info.max_size, Size { width: 256, height: 256 });
    assert_eq!(info.weight_bytes, 4 * info.parameters);
    let (first, last) = (seen[0], seen[seen.len() - 1]);
    assert_eq!((first.loaded_bytes, last.loaded_bytes), (0, last.total_bytes));
    assert!(seen.windows(2).all(|pair| pair[0].loaded_bytes <= pair[1].loaded_bytes));

    let count = engine.count_tokens();
    let case = &fixture.cases["tokens"][0];
    assert_eq!(count(case["prompt"].as_str().unwrap()), Ok(case["ids"].as_array().unwrap().len()));
}

#[test]
fn a_batch_of_different_kinds_or_of_an_impossible_size_is_refused() {
    let fixture = Fixture::read("tiny-a");
    let mut engine = TorchEngine::load(&fixture.options(), &mut |_| {}).unwrap();
    let spec = specs(&fixture.cases["runs"][0]).remove(0);
    let size = |width, height| ImageSpec { latent_size: Size { width, height }, ..spec.clone() };
    let other_steps = ImageSpec { steps: 9, ..spec.clone() };
    for specs in [vec![], vec![spec.clone(), other_steps], vec![size(21, 20)], vec![size(0, 4)], vec![size(260, 4)]] {
        assert!(engine.begin(&specs).is_err(), "{specs:?}");
    }
    assert!(engine.begin(&[spec]).is_ok(), "the engine stays usable");
}

#[test]
fn sixteen_bits_give_nearly_the_same_latents_with_either_vae() {
    use crate::load::{LoadOptions, Precision};
    let fixture = Fixture::read("tiny-a");
    let specs = specs(&fixture.cases["runs"][0]);
    for vae_precision in [None, Some(Precision::Float32)] {
        let options = LoadOptions { precision: Precision::BFloat16, vae_precision, ..fixture.options() };
        let mut engine = TorchEngine::load(&options, &mut |_| {}).unwrap();
        assert_eq!(engine.model().precision, "bfloat16");
        let (whole, half) = (4 * engine.model().parameters, 2 * engine.model().parameters);
        let bytes = engine.model().weight_bytes;
        assert!(if vae_precision.is_none() { bytes == half } else { half < bytes && bytes < whole }, "{bytes}");
        let made = make(&mut engine, &specs);
        // 8 bits of mantissa through a handful of random layers.
        fixture.assert_close("run.plain.latents", &made.latents, 0.05);
    }
}

#[test]
fn eight_bits_take_less_memory_and_give_similar_latents() {
    use crate::load::{LoadOptions, Precision};
    let fixture = Fixture::read("tiny-a");
    let engine = |precision| {
        let options = LoadOptions { precision, ..fixture.options() };
        TorchEngine::load(&options, &mut |_| {}).unwrap()
    };
    let mut eight = engine(Precision::Float8);
    assert_eq!(eight.model().precision, "float8");
    let (fewer, more) = (eight.model().weight_bytes, engine(Precision::BFloat16).model().weight_bytes);
    assert!(eight.model().parameters < fewer && fewer < more, "{fewer} {more}");
    let made = make(&mut eight, &specs(&fixture.cases["runs"][0]));
    // 4 bits of mantissa; the products' errors are independent and do not add up to more.
    fixture.assert_close("run.plain.latents", &made.latents, 0.3);
    let exact = make(&mut engine(Precision::Float32), &specs(&fixture.cases["runs"][0]));
    assert!(relative_difference(&made.latents, &exact.latents) > 1e-3, "the products are in 8 bits");
}
