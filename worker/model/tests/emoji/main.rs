//! The demo checkpoint: its pictures are the emoji that the prompts name, as often as the reference's are.
#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly too")]

mod preview;
mod tiling;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use imagegen_core::engine::Engine;
use imagegen_core::spec::{Guidance, ImageSpec, RgbImage, SchedulerKind, Size};
use imagegen_model::{LoadOptions, Precision, TorchEngine};
use serde_json::Value;

/// Side of the pictures that are compared, and emoji in a row of the sheet.
const SIDE: usize = 32;
const COLUMNS: usize = 46;
const EMOJI: usize = 1886;
const BATCH: usize = 15;

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests")
}

fn json(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(tests().join(file)).unwrap()).unwrap()
}

/// All emoji, `[32, 32, 3]` each.
fn renders() -> Vec<Vec<f32>> {
    let sheet = image::open(tests().join("models/emoji-32x32.png")).unwrap().to_rgb8();
    let tile = |index: usize| {
        let (left, top) = (index % COLUMNS * SIDE, index / COLUMNS * SIDE);
        (0..SIDE * SIDE)
            .flat_map(|pixel| sheet.get_pixel((left + pixel % SIDE) as u32, (top + pixel / SIDE) as u32).0)
            .map(f32::from)
            .collect()
    };
    (0..EMOJI).map(tile).collect()
}

/// Area average at 32x32.
fn small(picture: &RgbImage) -> Vec<f32> {
    let width = picture.size.width as usize;
    let factor = width / SIDE;
    let mut small = vec![0.0; SIDE * SIDE * 3];
    for (index, &value) in picture.data.iter().enumerate() {
        let (row, column, channel) = (index / 3 / width, index / 3 % width, index % 3);
        small[(row / factor * SIDE + column / factor) * 3 + channel] += f32::from(value) / (factor * factor) as f32;
    }
    small
}

fn nearest(picture: &RgbImage, renders: &[Vec<f32>]) -> usize {
    let picture = small(picture);
    let distance = |render: &Vec<f32>| picture.iter().zip(render).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    (0..renders.len()).min_by(|&a, &b| distance(&renders[a]).total_cmp(&distance(&renders[b]))).unwrap()
}

fn spec(prompt: &str, seed: u32, side: u32, scheduler: SchedulerKind) -> ImageSpec {
    let size = Size { width: side, height: side };
    ImageSpec {
        prompt: prompt.to_owned(),
        negative_prompt: String::new(),
        latent_size: size,
        size,
        steps: 8,
        guidance: Guidance::OFF,
        seed,
        scheduler,
    }
}

fn options() -> LoadOptions {
    LoadOptions { threads: NonZeroUsize::new(1), ..LoadOptions::new(tests().join("models/emoji-zimage")) }
}

fn engine(precision: Precision) -> TorchEngine {
    TorchEngine::load(&LoadOptions { precision, ..options() }, &mut |_| {}).unwrap()
}

/// Percent of the first `prompts` prompts whose picture is nearest to the right emoji, here and, of all, in the reference.
///
/// One thread for libtorch: the two languages run side by side, and threads that wait for each other are slow on a busy
/// machine.
fn retrieval(language: &str, scheduler: SchedulerKind, prompts: usize, precision: Precision) -> (f64, f64) {
    let reference = json("fixtures/retrieval.json");
    let first_seed = reference["first_seed"].as_u64().unwrap();
    let (all, renders) = (json("models/prompts.json"), renders());
    let all = all.as_array().unwrap();
    assert_eq!(reference["prompts"], all.len());
    let prompts = &all[..prompts.min(all.len())];
    let mut engine = engine(precision);
    let mut correct = 0;
    for (chunk, rows) in prompts.chunks(BATCH).enumerate() {
        let spec_of = |(index, row): (usize, &Value)| {
            let seed = first_seed + (chunk * BATCH + index) as u64;
            spec(row[language].as_str().unwrap(), u32::try_from(seed).unwrap(), 128, scheduler)
        };
        let specs: Vec<ImageSpec> = rows.iter().enumerate().map(spec_of).collect();
        let mut batch = engine.begin(&specs).unwrap();
        for _ in 0..8 {
            engine.step(&mut batch).unwrap();
        }
        for (index, row) in rows.iter().enumerate() {
            let picture = engine.decode(&mut batch, index).unwrap();
            correct += usize::from(nearest(&picture, &renders) as u64 == row["row"].as_u64().unwrap());
        }
    }
    let percent = |count: f64, of: usize| 100.0 * count / of as f64;
    (percent(correct as f64, prompts.len()), percent(reference[language]["correct"].as_f64().unwrap(), all.len()))
}

#[test]
fn english_names_give_their_emoji_as_often_as_in_diffusers() {
    let (found, expected) = retrieval("en", SchedulerKind::FlowMatchEuler, usize::MAX, Precision::Float32);
    assert!(found >= expected - 1.0, "{found:.1} % right, {expected:.1} % in diffusers");
}

#[test]
fn chinese_names_give_their_emoji_as_often_as_in_diffusers() {
    let (found, expected) = retrieval("zh", SchedulerKind::FlowMatchEuler, usize::MAX, Precision::Float32);
    assert!(found >= expected - 1.0, "{found:.1} % right, {expected:.1} % in diffusers");
}

#[test]
fn every_other_scheduler_draws_the_emoji_too() {
    use SchedulerKind::{Deis, DpmSolverPlusPlus, Heun, UniPc};
    for scheduler in [UniPc, Deis, DpmSolverPlusPlus, Heun] {
        let (found, expected) = retrieval("en", scheduler, BATCH, Precision::Float32);
        println!("{scheduler}: {found:.1} % right");
        assert!(found >= expected - 7.0, "{scheduler}: {found:.1} % right, {expected:.1} % with Euler in diffusers");
    }
}

#[test]
fn eight_bits_lose_at_most_one_percent_of_the_names() {
    let (found, expected) = retrieval("en", SchedulerKind::FlowMatchEuler, usize::MAX, Precision::Float8);
    assert!(found >= expected - 1.0, "{found:.1} % right, {expected:.1} % in diffusers");
}

#[test]
fn pictures_in_eight_bits_are_near_those_in_sixteen() {
    let pictures = |precision| -> Vec<RgbImage> {
        let mut engine = engine(precision);
        let specs: Vec<ImageSpec> = ["a red apple", "a cat", "a house", "the sun"]
            .iter()
            .zip(1..)
            .map(|(prompt, seed)| spec(prompt, seed, 128, SchedulerKind::FlowMatchEuler))
            .collect();
        let mut batch = engine.begin(&specs).unwrap();
        for _ in 0..8 {
            engine.step(&mut batch).unwrap();
        }
        (0..specs.len()).map(|index| engine.decode(&mut batch, index).unwrap()).collect()
    };
    let psnr = |(a, b): (&RgbImage, &RgbImage)| {
        let squares = a.data.iter().zip(&b.data).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>();
        10.0 * (255.0 * 255.0 * a.data.len() as f64 / squares).log10()
    };
    let (eight, sixteen) = (pictures(Precision::Float8), pictures(Precision::BFloat16));
    let found: Vec<f64> = eight.iter().zip(&sixteen).map(psnr).collect();
    println!("PSNR of 8 to 16 bits: {found:.1?} dB");
    assert!(found.iter().all(|&psnr| psnr >= 35.0 && psnr.is_finite()), "{found:?}");
}
