//! An engine that follows a script: it takes the time and makes the faults that a file tells, and paints colour
//! gradients. It lets the server be tested, on any machine and in a cluster, without a model.
//!
//! The file is YAML (or JSON, which is a part of it). Every field may be left out:
//!
//! ```yaml
//! load_seconds: 2.0           # from start to ready, in ten parts
//! load_fault: "no such shard" # loading fails with this sentence at its end
//! weight_bytes: 1000000       # what GetModel and the metrics say is loaded
//! text_encoder_seconds: 0.1   # for each batch
//! step_seconds: 0.05          # for each step of each image
//! batch_seconds: 0.02         # for each step besides, however many images it has
//! step_seconds_by_size:       # the same, for latents of these sizes
//!   512x512: 0.1
//! decode_seconds: 0.2         # for each image
//! size_multiple: 16
//! max_prompt_tokens: 512      # a token is a word here
//! max_size: 2048x2048
//! faults:
//!   - batch: 2                # the second batch since the start; a request of one image is one batch
//!     stage: transformer      # text_encoder, transformer or vae
//!     step: 3                 # with transformer: in this step, counted from 1; absent: in the first
//!     kind: out_of_memory     # out_of_memory, failed, fatal (the process must end) or panic
//!     times: 2                # how often, here and in the images that go on alone; absent: once
//! memory:                     # absent: nothing is known about memory, and no warm-up measures costs
//!   total_bytes: 16000000     # of the device
//!   overhead_bytes: 500000    # of this process besides weights and activations
//!   bytes_per_pixel: 10       # activations of a step, for each image, twice that with guidance; the weights are weight_bytes
//!   decode_bytes_per_pixel: 20 # activations of decoding one image
//!   leak_bytes: 1000          # of each batch, never given back; the warm-up's do not leak
//!   foreign:                  # what other processes hold, from some batch on
//!     - {from_batch: 3, bytes: 2000000}
//! ```
//!
//! Batches are counted after the warm-up.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use imagegen_core::{
    engine::{AllocatorStats, CountTokens, Engine, EngineError, ModelInfo, Stage},
    spec::{ImageSpec, RgbImage, Size},
};

mod device;
mod script;

pub use self::{
    device::ScriptedDevice,
    script::{Fault, FaultKind, FaultStage, Script, ScriptError, ScriptedMemory},
};
use crate::engine_thread::LoadProgress;

/// Parts that loading is reported in.
const LOAD_PARTS: u32 = 10;

/// Images that the script's time passes for.
#[derive(Debug)]
pub struct ScriptedBatch {
    number: u64,
    specs: Vec<ImageSpec>,
    steps_done: u32,
    device: ScriptedDevice,
    /// Activations of the last step, held until the batch is suspended or dropped.
    held_bytes: u64,
}

impl ScriptedBatch {
    fn spec(&self, index: usize) -> Result<&ImageSpec, EngineError> {
        self.specs.get(index).ok_or_else(|| EngineError::Failed {
            stage: Stage::Vae,
            detail: format!("image {index} of a batch of {}", self.specs.len()),
        })
    }

    fn give_back(&mut self) {
        self.device.give(std::mem::take(&mut self.held_bytes));
    }
}

impl Drop for ScriptedBatch {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// The engine that follows a [`Script`].
#[derive(Debug)]
pub struct ScriptedEngine {
    script: Script,
    step_times: BTreeMap<Size, Duration>,
    model: ModelInfo,
    device: ScriptedDevice,
    batches: u64,
    is_warm: bool,
}

impl ScriptedEngine {
    /// Loads as long as the script says.
    ///
    /// # Errors
    /// When the script cannot be followed, or says that loading fails.
    pub fn load(
        script: Script,
        device: ScriptedDevice,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ScriptError> {
        let max_size = size("max_size", &script.max_size)?;
        let mut step_times = BTreeMap::new();
        for (text, &seconds) in &script.step_seconds_by_size {
            let step = wait("step_seconds_by_size", seconds)?;
            step_times.insert(size("step_seconds_by_size", text)?, step);
        }
        for (field, seconds) in [
            ("text_encoder_seconds", script.text_encoder_seconds),
            ("step_seconds", script.step_seconds),
            ("batch_seconds", script.batch_seconds),
            ("decode_seconds", script.decode_seconds),
        ] {
            wait(field, seconds)?;
        }
        if script.size_multiple == 0 {
            return Err(ScriptError::Value { field: "size_multiple", reason: "must be 1 or more, found 0".into() });
        }
        let part = wait("load_seconds", script.load_seconds)? / LOAD_PARTS;
        for parts in 1..=LOAD_PARTS {
            pass(part);
            let loaded_bytes = script.weight_bytes * u64::from(parts) / u64::from(LOAD_PARTS);
            progress(LoadProgress { loaded_bytes, total_bytes: script.weight_bytes });
        }
        if let Some(fault) = script.load_fault {
            return Err(ScriptError::Scripted(fault));
        }
        let model = ModelInfo {
            name: "scripted".into(),
            pipeline: "ScriptedPipeline".into(),
            precision: "float32".into(),
            device: "cpu".into(),
            libtorch_version: String::new(),
            weight_bytes: script.weight_bytes,
            parameters: script.weight_bytes / 4,
            size_multiple: script.size_multiple,
            max_prompt_tokens: script.max_prompt_tokens,
            max_size,
        };
        device.load(model.weight_bytes);
        Ok(Self { script, step_times, model, device, batches: 0, is_warm: false })
    }

    /// From here on batches are counted, and neighbours and faults come.
    pub fn warm(&mut self) {
        self.batches = 0;
        self.is_warm = true;
    }

    fn take(&self, stage: Stage, bytes: u64) -> Result<(), EngineError> {
        self.device.take(bytes).map_err(|detail| EngineError::OutOfMemory { stage, detail })
    }

    fn fault(&mut self, batch: &ScriptedBatch, stage: FaultStage) -> Result<(), EngineError> {
        if !self.is_warm {
            return Ok(());
        }
        let here = |fault: &&Fault| {
            let step = fault.step.unwrap_or(1);
            let in_this_step = stage != FaultStage::Transformer || step == batch.steps_done + 1;
            fault.times > 0 && fault.batch == batch.number && fault.stage == stage && in_this_step
        };
        let Some(index) = self.script.faults.iter().position(|fault| here(&fault)) else { return Ok(()) };
        let fault = &mut self.script.faults[index];
        fault.times -= 1;
        let stage = match stage {
            FaultStage::TextEncoder => Stage::TextEncoder,
            FaultStage::Transformer => Stage::Transformer,
            FaultStage::Vae => Stage::Vae,
        };
        let detail = format!("the script says so for batch {}", batch.number);
        match fault.kind {
            FaultKind::OutOfMemory => Err(EngineError::OutOfMemory { stage, detail }),
            FaultKind::Failed => Err(EngineError::Failed { stage, detail }),
            FaultKind::Fatal => Err(EngineError::Fatal { stage, detail }),
            FaultKind::Panic => std::panic::resume_unwind(Box::new(detail)),
        }
    }
}

impl Engine for ScriptedEngine {
    type Batch = ScriptedBatch;

    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn count_tokens(&self) -> CountTokens {
        Arc::new(|text| Ok(text.split_whitespace().count()))
    }

    fn begin(&mut self, specs: &[ImageSpec]) -> Result<Self::Batch, EngineError> {
        self.batches += 1;
        if self.is_warm {
            self.device.begin(self.batches);
            self.device.leak();
        }
        let batch = ScriptedBatch {
            number: self.batches,
            specs: specs.to_vec(),
            steps_done: 0,
            device: self.device.clone(),
            held_bytes: 0,
        };
        pass(Duration::from_secs_f64(self.script.text_encoder_seconds));
        self.fault(&batch, FaultStage::TextEncoder)?;
        Ok(batch)
    }

    fn step(&mut self, batch: &mut Self::Batch) -> Result<(), EngineError> {
        pass(Duration::from_secs_f64(self.script.batch_seconds));
        for spec in &batch.specs {
            let scripted = self.step_times.get(&spec.latent_size).copied();
            pass(scripted.unwrap_or(Duration::from_secs_f64(self.script.step_seconds)));
        }
        if batch.held_bytes == 0 {
            let branches = |spec: &ImageSpec| if spec.guidance.scale > 0.0 { 2 } else { 1 };
            let needs = |spec: &ImageSpec| self.device.needs(spec.latent_size.pixels(), branches(spec)).0;
            let bytes = batch.specs.iter().map(needs).sum();
            self.take(Stage::Transformer, bytes)?;
            batch.held_bytes = bytes;
        }
        self.fault(batch, FaultStage::Transformer)?;
        batch.steps_done += 1;
        Ok(())
    }

    fn decode(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError> {
        pass(Duration::from_secs_f64(self.script.decode_seconds));
        // The last step's activations are not needed any more.
        batch.give_back();
        self.fault(batch, FaultStage::Vae)?;
        let spec = batch.spec(index)?;
        let bytes = self.device.needs(spec.latent_size.pixels(), 1).1;
        self.take(Stage::Vae, bytes)?;
        self.device.give(bytes);
        Ok(gradient(spec.size, spec.seed))
    }

    fn preview(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError> {
        let spec = batch.spec(index)?;
        let size = Size { width: spec.size.width.div_ceil(8), height: spec.size.height.div_ceil(8) };
        Ok(gradient(size, spec.seed))
    }

    fn allocator(&self) -> AllocatorStats {
        self.device.stats()
    }

    fn reset_peaks(&mut self) {
        self.device.reset_peaks();
    }

    fn trim(&mut self) {
        self.device.trim();
    }

    fn limit_memory(&mut self, bytes: u64) {
        self.device.limit(bytes);
    }

    fn suspend(&mut self, batch: &mut Self::Batch) {
        batch.give_back();
    }

    fn keep(&mut self, batch: &mut Self::Batch, images: &[usize]) -> Result<(), EngineError> {
        batch.give_back();
        batch.specs = images.iter().filter_map(|&index| batch.specs.get(index).cloned()).collect();
        Ok(())
    }

    fn split(&mut self, batch: Self::Batch) -> Result<Vec<Self::Batch>, EngineError> {
        let alone = |spec: &ImageSpec| ScriptedBatch {
            number: batch.number,
            specs: vec![spec.clone()],
            steps_done: batch.steps_done,
            device: batch.device.clone(),
            held_bytes: 0,
        };
        Ok(batch.specs.iter().map(alone).collect())
    }
}

/// Blocks the thread for this long, as a device would: no signal, channel or cancellation is noticed.
fn pass(time: Duration) {
    let start = Instant::now();
    while let Some(rest) = time.checked_sub(start.elapsed()).filter(|rest| !rest.is_zero()) {
        thread::park_timeout(rest);
    }
}

fn wait(field: &'static str, seconds: f64) -> Result<Duration, ScriptError> {
    let in_range = Duration::try_from_secs_f64(seconds).ok();
    let reason = || format!("must be a number of seconds of at least 0, found {seconds}");
    in_range.ok_or_else(|| ScriptError::Value { field, reason: reason() })
}

fn size(field: &'static str, text: &str) -> Result<Size, ScriptError> {
    text.parse().map_err(|error| ScriptError::Value { field, reason: format!("{error}") })
}

/// Red grows to the right, green downwards, blue and the start of both come from the seed.
fn gradient(size: Size, seed: u32) -> RgbImage {
    let [start_red, start_green, blue, _] = seed.to_le_bytes();
    let along = |position: u32, length: u32| (u64::from(position) * 255 / u64::from(length)) as u8;
    let mut data = Vec::with_capacity(3 * size.width as usize * size.height as usize);
    for y in 0..size.height {
        for x in 0..size.width {
            let red = start_red.wrapping_add(along(x, size.width));
            data.extend([red, start_green.wrapping_add(along(y, size.height)), blue]);
        }
    }
    RgbImage { size, data }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_script_is_yaml_or_json() {
        let yaml: Script = serde_yaml::from_str(
            "step_seconds: 0.5\nstep_seconds_by_size: {512x512: 1}\nfaults: [{batch: 2, stage: vae, kind: panic}]",
        )
        .unwrap();
        assert_eq!((yaml.step_seconds, yaml.faults[0].batch, yaml.faults[0].kind), (0.5, 2, FaultKind::Panic));
        let json: Script = serde_yaml::from_str(r#"{"step_seconds": 0.5, "max_size": "256x256"}"#).unwrap();
        assert_eq!(json.max_size, "256x256");
    }

    #[rstest]
    #[case::size("max_size: huge", "max_size a size is written")]
    #[case::negative("step_seconds: -1", "step_seconds must be a number of seconds of at least 0, found -1")]
    #[case::multiple("size_multiple: 0", "size_multiple must be 1 or more")]
    #[case::fault("load_fault: the disk is gone", "the disk is gone")]
    fn loading_fails_with_the_reason(#[case] text: &str, #[case] sentence: &str) {
        let script = serde_yaml::from_str(text).unwrap();
        let error = ScriptedEngine::load(script, ScriptedDevice::new(None), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_yaml::from_str::<Script>("step_second: 1").is_err());
    }

    #[test]
    fn a_seed_is_a_picture() {
        let size = Size { width: 4, height: 2 };
        let image = gradient(size, 0x00_03_02_01);
        assert_eq!(image.data.len(), 24);
        assert_eq!(&image.data[..3], &[1, 2, 3]);
        assert_eq!(image, gradient(size, 0x00_03_02_01));
        assert_ne!(image, gradient(size, 7));
    }
}
