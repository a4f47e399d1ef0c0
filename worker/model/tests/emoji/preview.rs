//! How much a preview has of the picture that it foretells.

use imagegen_core::engine::Engine;
use imagegen_core::spec::{RgbImage, SchedulerKind};
use imagegen_model::TorchEngine;

/// Area average at the size of the preview.
fn shrunk(picture: &RgbImage, side: usize) -> Vec<f64> {
    let width = picture.size.width as usize;
    let factor = width / side;
    let mut small = vec![0.0; side * side * 3];
    for (index, &value) in picture.data.iter().enumerate() {
        let (row, column, channel) = (index / 3 / width, index / 3 % width, index % 3);
        small[(row / factor * side + column / factor) * 3 + channel] += f64::from(value) / (factor * factor) as f64;
    }
    small
}

/// Correlation of all numbers.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let product = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| f(a - mean_a, b - mean_b)).sum::<f64>();
    product(&|a, b| a * b) / (product(&|a, _| a * a) * product(&|_, b| b * b)).sqrt()
}

#[test]
fn previews_resemble_the_picture_more_with_each_step() {
    let mut engine = TorchEngine::load(&super::options(), &mut |_| {}).unwrap();
    let prompts = ["a red apple", "红苹果", "a cat face", "a banana", "the sun", "a rocket", "a tree", "a red heart"];
    let specs: Vec<_> = (7..)
        .zip(prompts)
        .map(|(seed, prompt)| super::spec(prompt, seed, 128, SchedulerKind::FlowMatchEuler))
        .collect();
    let mut batch = engine.begin(&specs).unwrap();
    let mut previews: Vec<Vec<RgbImage>> = Vec::new();
    for _ in 0..8 {
        engine.step(&mut batch).unwrap();
        previews.push((0..specs.len()).map(|index| engine.preview(&mut batch, index).unwrap()).collect());
    }
    let pictures: Vec<RgbImage> = (0..specs.len()).map(|index| engine.decode(&mut batch, index).unwrap()).collect();
    assert!(engine.preview(&mut batch, specs.len()).is_err(), "there is no such image");

    let resemblance = |previews: &Vec<RgbImage>| {
        let each = previews.iter().zip(&pictures).map(|(preview, picture)| {
            assert_eq!((preview.size.width, preview.size.height), (16, 16));
            let preview: Vec<f64> = preview.data.iter().map(|&byte| f64::from(byte)).collect();
            correlation(&preview, &shrunk(picture, 16))
        });
        each.sum::<f64>() / previews.len() as f64
    };
    let by_step: Vec<f64> = previews.iter().map(resemblance).collect();
    println!("{by_step:.2?}");
    assert!(by_step[7] > 0.8, "the finished latents: {by_step:.2?}");
    assert!(by_step[3] > 0.6, "half way: {by_step:.2?}");
    assert!(by_step[0] < by_step[7], "{by_step:.2?}");
}
