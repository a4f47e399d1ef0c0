//! bfloat16 loses no more than it does in diffusers.

use imagegen_core::engine::Engine;
use imagegen_core::spec::{Guidance, ImageSpec, SchedulerKind, Size};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::end_to_end::{make, specs};
use super::{Fixture, fixtures, tensors};
use crate::TorchEngine;
use crate::load::{LoadOptions, Precision};

/// Largest error as a multiple of that of diffusers.
const MAX_RATIO: f64 = 1.1;

fn engine(options: LoadOptions) -> TorchEngine {
    TorchEngine::load(&LoadOptions { precision: Precision::BFloat16, ..options }, &mut |_| {}).unwrap()
}

/// Squares of the errors and of the expected numbers, summed.
fn squares(found: &Tensor, expected: &Tensor) -> [f64; 2] {
    let sum = |x: Tensor| x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
    [sum(found - expected), sum(expected.shallow_clone())]
}

fn assert_not_worse(name: &str, all: &[[f64; 2]]) {
    let reference: Value = serde_json::from_slice(&std::fs::read(fixtures().join("bfloat16.json")).unwrap()).unwrap();
    let sum = |index: usize| all.iter().map(|squares| squares[index]).sum::<f64>();
    let (ours, theirs) = ((sum(0) / sum(1)).sqrt(), reference["errors"][name].as_f64().unwrap());
    println!("{name}: error {ours:.5}, in diffusers {theirs:.5}, ratio {:.3}", ours / theirs);
    assert!(ours <= MAX_RATIO * theirs, "{name}: error {ours:.5}, in diffusers {theirs:.5}");
    assert!(ours > 0.01 * theirs, "{name}: bfloat16 was not used");
}

#[test]
fn all_runs_of_the_tiny_checkpoints() {
    for (name, fixture) in ["tiny-a", "tiny-b"].into_iter().zip(Fixture::both()) {
        let mut engine = engine(fixture.options());
        let run = |case: &Value| {
            let expected = fixture.get(&format!("run.{}.latents", case["name"].as_str().unwrap()));
            squares(&make(&mut engine, &specs(case)).latents, expected)
        };
        let all: Vec<_> = fixture.cases["runs"].as_array().unwrap().iter().map(run).collect();
        assert_not_worse(name, &all);
    }
}

#[test]
fn pictures_of_the_demo_checkpoint() {
    let reference: Value = serde_json::from_slice(&std::fs::read(fixtures().join("bfloat16.json")).unwrap()).unwrap();
    let folder = fixtures().join("../models/emoji-zimage");
    let mut engine = engine(LoadOptions { threads: std::num::NonZeroUsize::new(1), ..LoadOptions::new(folder) });
    let size = Size { width: 128, height: 128 };
    let spec = |(prompt, seed): (&Value, u32)| ImageSpec {
        prompt: prompt.as_str().unwrap().to_owned(),
        negative_prompt: String::new(),
        latent_size: size,
        size,
        steps: 8,
        guidance: Guidance::OFF,
        seed,
        scheduler: SchedulerKind::FlowMatchEuler,
    };
    let specs: Vec<_> = reference["prompts"].as_array().unwrap().iter().zip(0..).map(spec).collect();
    let mut batch = engine.begin(&specs).unwrap();
    for _ in 0..8 {
        engine.step(&mut batch).unwrap();
    }
    assert_not_worse("demo", &[squares(&batch.latents, &tensors("demo.safetensors")["latents"])]);
}
