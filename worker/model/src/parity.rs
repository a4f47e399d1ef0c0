//! Parity with diffusers on two tiny random checkpoints. tests/reference/make_fixtures.py wrote what is expected.

mod accuracy;
mod end_to_end;
mod modules;
mod schedulers;
mod tiling;

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::Checkpoint;
use crate::load::LoadOptions;

/// Largest difference as a part of the largest expected number, in one module.
const MODULE_TOLERANCE: f64 = 1e-5;

/// A checkpoint with what the reference computed on it.
struct Fixture {
    folder: PathBuf,
    expected: HashMap<String, Tensor>,
    cases: Value,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn tensors(file: &str) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(fixtures().join(file)).unwrap().into_iter().collect()
}

impl Fixture {
    fn read(name: &str) -> Self {
        let folder = fixtures().join(name);
        let cases = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        Self { expected: tensors(&format!("{name}/expected.safetensors")), folder, cases }
    }

    fn both() -> [Self; 2] {
        ["tiny-a", "tiny-b"].map(Self::read)
    }

    fn options(&self) -> LoadOptions {
        LoadOptions { threads: std::num::NonZeroUsize::new(1), ..LoadOptions::new(&self.folder) }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::read(&self.options(), &mut |_| {}).unwrap()
    }

    fn get(&self, key: &str) -> &Tensor {
        self.expected.get(key).unwrap_or_else(|| panic!("no {key} in {}", self.folder.display()))
    }

    /// Names `x` of all keys `stem.x.leaf`, sorted.
    fn names(&self, stem: &str, leaf: &str) -> Vec<String> {
        let name = |key: &String| {
            Some(key.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(leaf)?.strip_suffix('.')?.to_owned())
        };
        let mut names: Vec<String> = self.expected.keys().filter_map(name).collect();
        names.sort();
        assert!(!names.is_empty(), "no {stem}.*.{leaf}");
        names
    }

    #[track_caller]
    fn assert_close(&self, key: &str, found: &Tensor, tolerance: f64) {
        let expected = self.get(key);
        assert_eq!(found.size(), expected.size(), "{key} in {}", self.folder.display());
        let difference = relative_difference(found, expected);
        assert!(difference <= tolerance, "{key} in {}: {difference:.2e} > {tolerance:.0e}", self.folder.display());
    }
}

/// `max |found - expected| / max |expected|`; NaN anywhere is infinitely far.
fn relative_difference(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = |x: &Tensor| x.to_kind(Kind::Double).abs().max().double_value(&[]);
    let difference = largest(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)));
    match difference {
        0.0 => 0.0,
        _ if difference.is_nan() => f64::INFINITY,
        _ => difference / largest(expected),
    }
}

#[test]
fn a_nan_is_not_close() {
    let expected = Tensor::from_slice(&[1.0f32, 2.0]);
    assert_eq!(relative_difference(&Tensor::from_slice(&[1.0f32, f32::NAN]), &expected), f64::INFINITY);
    assert_eq!(relative_difference(&Tensor::from_slice(&[1.0f32, 2.5]), &expected), 0.25);
}

#[test]
fn fixtures_are_the_ones_that_were_committed() {
    use sha2::{Digest, Sha256};
    let sums = std::fs::read_to_string(fixtures().join("SHA256SUMS")).unwrap();
    assert!(sums.lines().count() > 20, "{sums}");
    for line in sums.lines() {
        let (sum, file) = line.split_once("  ").unwrap();
        let found = Sha256::digest(std::fs::read(fixtures().join(file)).unwrap());
        assert_eq!(format!("{found:x}"), sum, "{file}: run `make fixtures` and commit all of tests/fixtures");
    }
}

#[test]
fn noise_of_a_seed_is_torchs_at_every_size() {
    for (key, expected) in tensors("noise.safetensors") {
        let mut parts = key.split('.').skip(1);
        let seed: u32 = parts.next().unwrap().parse().unwrap();
        let sides: Vec<i64> = parts.next().unwrap().split('x').map(|side| side.parse().unwrap()).collect();
        let noise = crate::noise::noise(seed, sides[0], sides[1], sides[2]);
        assert_eq!((noise.kind(), noise.device()), (Kind::Float, Device::Cpu));
        let every_211th = noise.view([-1]).slice(0, 0, None, 211);
        assert_eq!(every_211th.size(), expected.size(), "{key}");
        // The vectors that draw the numbers differ between processors in the last bit.
        assert!(relative_difference(&every_211th, &expected) <= 1e-6, "{key}");
    }
}
