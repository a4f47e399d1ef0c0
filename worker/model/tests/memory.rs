//! Memory that runs out inside the real forward pass, and batches that give some of theirs back.
//!
//! The counting allocator is one for the process, so these tests take turns.
#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly too")]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use imagegen_core::engine::{Engine, EngineError, Stage};
use imagegen_core::spec::{Guidance, ImageSpec, RgbImage, SchedulerKind, Size};
use imagegen_model::shim::cpu;
use imagegen_model::{LoadOptions, TorchBatch, TorchEngine};

/// An engine with the allocator to itself.
struct Alone {
    engine: TorchEngine,
    _turn: MutexGuard<'static, ()>,
}

impl Alone {
    fn with(model: &str) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        hush();
        cpu::limit(u64::MAX);
        cpu::fail_in(0);
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(model);
        let options = LoadOptions { threads: NonZeroUsize::new(1), ..LoadOptions::new(model) };
        Self { engine: TorchEngine::load(&options, &mut |_| {}).unwrap(), _turn: turn }
    }

    fn tiny() -> Self {
        Self::with("fixtures/tiny-a")
    }

    fn allocated(&self) -> u64 {
        self.engine.allocator().allocated_bytes
    }

    fn picture(&mut self, spec: &ImageSpec) -> Result<RgbImage, EngineError> {
        let mut batch = self.engine.begin(std::slice::from_ref(spec))?;
        self.steps(&mut batch, spec.steps)?;
        self.engine.decode(&mut batch, 0)
    }

    fn steps(&mut self, batch: &mut TorchBatch, count: u32) -> Result<(), EngineError> {
        (0..count).try_for_each(|_| self.engine.step(batch))
    }

    /// Fails every `stride`th allocation of one image, and looks at what is left behind.
    fn fail_each(&mut self, spec: &ImageSpec, stride: usize) {
        // The first image fills caches that stay.
        let expected = self.picture(spec).unwrap();
        let baseline = self.allocated();
        let start = cpu::allocations();
        let mut batch = self.engine.begin(std::slice::from_ref(spec)).unwrap();
        let begun = cpu::allocations() - start;
        self.steps(&mut batch, spec.steps).unwrap();
        let stepped = cpu::allocations() - start;
        assert_eq!(self.engine.decode(&mut batch, 0).unwrap(), expected);
        let decoded = cpu::allocations() - start;
        drop(batch);
        assert!(begun > 20 && stepped > begun + 100 && decoded > stepped + 20, "{begun} {stepped} {decoded}");

        for nth in (1..=decoded).step_by(stride) {
            let failures = self.engine.allocator().out_of_memory;
            cpu::fail_in(nth);
            let error = self.picture(spec).unwrap_err();
            assert!(matches!(error, EngineError::OutOfMemory { .. }), "allocation {nth}: {error}");
            let possible: &[Stage] = match nth {
                // Beginning encodes the prompts, then draws the noise.
                _ if nth <= begun => &[Stage::TextEncoder, Stage::Transformer],
                _ if nth <= stepped => &[Stage::Transformer],
                _ => &[Stage::Vae],
            };
            assert!(possible.contains(&error.stage()), "allocation {nth} of {begun}, {stepped}, {decoded}: {error}");
            assert_eq!(self.engine.allocator().out_of_memory, failures + 1, "allocation {nth}");
            assert_eq!(self.allocated(), baseline, "allocation {nth}: {error}");
            assert_eq!(self.picture(spec).unwrap(), expected, "after allocation {nth}");
            assert_eq!(self.allocated(), baseline, "after allocation {nth}");
        }
    }
}

/// Thousands of panics that are meant to be caught need no backtrace each.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.payload_as_str().is_some_and(|text| text.contains("CPU out of memory")) {
                loud(panic);
            }
        }));
    });
}

fn spec(prompt: &str, side: u32, steps: u32, seed: u32) -> ImageSpec {
    let size = Size { width: side, height: side };
    ImageSpec {
        prompt: prompt.to_owned(),
        negative_prompt: String::new(),
        latent_size: size,
        size,
        steps,
        guidance: Guidance::OFF,
        seed,
        scheduler: SchedulerKind::FlowMatchEuler,
    }
}

fn three() -> [ImageSpec; 3] {
    let guidance = Guidance { scale: 3.0, normalization: 0.0, truncation: 0.5 };
    [("a red apple", 1), ("two pears and a plum", 2), ("红苹果", 3)].map(|(prompt, seed)| ImageSpec {
        guidance,
        negative_prompt: "blue".to_owned(),
        ..spec(prompt, 16, 4, seed)
    })
}

#[test]
fn any_allocation_of_a_tiny_model_may_fail_and_nothing_is_left_behind() {
    let mut alone = Alone::tiny();
    let guided = Guidance { scale: 3.0, normalization: 1.0, truncation: 1.0 };
    alone.fail_each(&ImageSpec { guidance: guided, ..spec("a red apple", 16, 2, 7) }, 1);
}

#[test]
fn every_97th_allocation_of_the_demo_model_may_fail() {
    Alone::with("models/emoji-zimage").fail_each(&spec("red apple", 128, 2, 7), 97);
}

#[test]
fn a_limit_binds_until_it_is_lifted() {
    let mut alone = Alone::tiny();
    let spec = spec("a red apple", 16, 2, 7);
    let expected = alone.picture(&spec).unwrap();
    alone.engine.reset_peaks();
    let baseline = alone.allocated();
    alone.picture(&spec).unwrap();
    let needed = alone.engine.allocator().peak_allocated_bytes;
    assert!(needed > baseline, "{needed} {baseline}");

    alone.engine.limit_memory(needed - 1);
    let error = alone.picture(&spec).unwrap_err();
    assert!(error.to_string().contains(&format!("The limit is {} bytes", needed - 1)), "{error}");
    assert_eq!(alone.allocated(), baseline);
    assert!(alone.engine.allocator().peak_allocated_bytes <= needed);
    alone.engine.limit_memory(needed);
    assert_eq!(alone.picture(&spec).unwrap(), expected, "exactly enough is enough");
    alone.engine.limit_memory(0);
    assert!(matches!(alone.picture(&spec).unwrap_err(), EngineError::OutOfMemory { stage: Stage::TextEncoder, .. }));
    alone.engine.limit_memory(u64::MAX);
    assert_eq!(alone.picture(&spec).unwrap(), expected);
}

#[test]
fn on_a_cpu_there_is_no_pool() {
    let mut alone = Alone::tiny();
    alone.engine.trim();
    let stats = alone.engine.allocator();
    assert!(stats.allocated_bytes >= alone.engine.model().weight_bytes, "{stats:?}");
    assert_eq!((stats.reserved_bytes, stats.active_bytes), (stats.allocated_bytes, stats.allocated_bytes));
    assert_eq!((stats.inactive_split_bytes, stats.alloc_retries, stats.device_allocations), (0, 0, 0));
    assert_eq!(stats.largest_free_block_bytes, None);
    alone.engine.reset_peaks();
    let stats = alone.engine.allocator();
    assert_eq!(stats.peak_allocated_bytes, stats.allocated_bytes);
}

#[test]
fn a_suspended_batch_holds_latents_and_captions_alone_and_goes_on_as_if_nothing_had_been() {
    let mut alone = Alone::tiny();
    let specs = three();
    let mut pictures = Vec::new();
    // Three images, 16 channels, 8 x 8 numbers of 4 bytes.
    const LATENTS_BYTES: u64 = 3 * 16 * 8 * 8 * 4;
    for suspends in [false, true] {
        let baseline = alone.allocated();
        let mut batch = alone.engine.begin(&specs).unwrap();
        let begun = alone.allocated();
        for _ in 0..specs[0].steps {
            alone.engine.step(&mut batch).unwrap();
            if suspends {
                let held = alone.allocated();
                alone.engine.suspend(&mut batch);
                assert!(alone.allocated() <= held);
                assert_eq!(alone.allocated(), begun + LATENTS_BYTES, "latents, their last ones, and captions");
            }
        }
        let made: Vec<RgbImage> = (0..3).map(|index| alone.engine.decode(&mut batch, index).unwrap()).collect();
        pictures.push(made);
        drop(batch);
        assert_eq!(alone.allocated(), baseline);
    }
    assert_eq!(pictures[0], pictures[1]);
}

#[test]
fn a_batch_that_shrinks_frees_the_others_and_keeps_the_order_that_was_asked_for() {
    let mut alone = Alone::tiny();
    let specs = three();
    let whole: Vec<RgbImage> = specs.iter().map(|spec| alone.picture(spec).unwrap()).collect();
    let mut batch = alone.engine.begin(&specs).unwrap();
    alone.steps(&mut batch, 2).unwrap();
    for wrong in [&[][..], &[3], &[1, 1]] {
        let error = alone.engine.keep(&mut batch, wrong).unwrap_err();
        assert!(matches!(error, EngineError::Failed { .. }), "{error}");
    }
    alone.engine.suspend(&mut batch);
    let held = alone.allocated();
    alone.engine.keep(&mut batch, &[2, 0]).unwrap();
    assert!(alone.allocated() < held);
    alone.steps(&mut batch, 2).unwrap();
    assert_close(&alone.engine.decode(&mut batch, 0).unwrap(), &whole[2]);
    assert_close(&alone.engine.decode(&mut batch, 1).unwrap(), &whole[0]);
    assert!(alone.engine.decode(&mut batch, 2).is_err());
}

#[test]
fn after_a_shared_failure_each_image_goes_on_alone_from_its_last_step() {
    let mut alone = Alone::tiny();
    let specs = three();
    let whole: Vec<RgbImage> = specs.iter().map(|spec| alone.picture(spec).unwrap()).collect();
    let baseline = alone.allocated();
    let mut batch = alone.engine.begin(&specs).unwrap();
    alone.steps(&mut batch, 2).unwrap();
    cpu::fail_in(40);
    let error = alone.engine.step(&mut batch).unwrap_err();
    assert!(matches!(error, EngineError::OutOfMemory { stage: Stage::Transformer, .. }), "{error}");

    // With no memory at all, parting still works.
    alone.engine.limit_memory(0);
    let parts = alone.engine.split(batch).unwrap();
    alone.engine.limit_memory(u64::MAX);
    assert_eq!(parts.len(), 3);
    for (mut part, expected) in parts.into_iter().zip(&whole) {
        alone.steps(&mut part, 2).unwrap();
        assert!(alone.engine.step(&mut part).is_err(), "two of four steps were done before");
        assert_close(&alone.engine.decode(&mut part, 0).unwrap(), expected);
    }
    assert_eq!(alone.allocated(), baseline);
}

/// The last bits of a sum depend on the batch.
fn assert_close(found: &RgbImage, expected: &RgbImage) {
    assert_eq!(found.size, expected.size);
    let largest = found.data.iter().zip(&expected.data).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(largest <= Some(1), "{largest:?}");
}
