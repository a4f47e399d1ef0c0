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
//! ```

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use imagegen_core::{
    engine::{CountTokens, Engine, EngineError, ModelInfo, Stage},
    spec::{ImageSpec, RgbImage, Size},
};
mod script;

pub use self::script::{Fault, FaultKind, FaultStage, Script, ScriptError};
use crate::engine_thread::LoadProgress;

/// Parts that loading is reported in.
const LOAD_PARTS: u32 = 10;

/// Images that the script's time passes for.
#[derive(Debug)]
pub struct ScriptedBatch {
    number: u64,
    specs: Vec<ImageSpec>,
    steps_done: u32,
}

/// The engine that follows a [`Script`].
#[derive(Debug)]
pub struct ScriptedEngine {
    script: Script,
    step_times: BTreeMap<Size, Duration>,
    model: ModelInfo,
    batches: u64,
}

impl ScriptedEngine {
    /// Loads as long as the script says.
    ///
    /// # Errors
    /// When the script cannot be followed, or says that loading fails.
    pub fn load(script: Script, progress: &mut dyn FnMut(LoadProgress)) -> Result<Self, ScriptError> {
        let max_size = size("max_size", &script.max_size)?;
        let mut step_times = BTreeMap::new();
        for (text, &seconds) in &script.step_seconds_by_size {
            let step = wait("step_seconds_by_size", seconds)?;
            step_times.insert(size("step_seconds_by_size", text)?, step);
        }
        for (field, seconds) in [
            ("text_encoder_seconds", script.text_encoder_seconds),
            ("step_seconds", script.step_seconds),
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
        Ok(Self { script, step_times, model, batches: 0 })
    }

    fn fault(&self, batch: &ScriptedBatch, stage: FaultStage) -> Result<(), EngineError> {
        let here = |fault: &&Fault| {
            let step = fault.step.unwrap_or(1);
            let in_this_step = stage != FaultStage::Transformer || step == batch.steps_done + 1;
            fault.batch == batch.number && fault.stage == stage && in_this_step
        };
        let Some(fault) = self.script.faults.iter().find(here) else { return Ok(()) };
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
        let batch = ScriptedBatch { number: self.batches, specs: specs.to_vec(), steps_done: 0 };
        pass(Duration::from_secs_f64(self.script.text_encoder_seconds));
        self.fault(&batch, FaultStage::TextEncoder)?;
        Ok(batch)
    }

    fn step(&mut self, batch: &mut Self::Batch) -> Result<(), EngineError> {
        for spec in &batch.specs {
            let scripted = self.step_times.get(&spec.latent_size).copied();
            pass(scripted.unwrap_or(Duration::from_secs_f64(self.script.step_seconds)));
        }
        self.fault(batch, FaultStage::Transformer)?;
        batch.steps_done += 1;
        Ok(())
    }

    fn decode(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError> {
        pass(Duration::from_secs_f64(self.script.decode_seconds));
        self.fault(batch, FaultStage::Vae)?;
        let spec = batch.spec(index)?;
        Ok(gradient(spec.size, spec.seed))
    }

    fn preview(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError> {
        let spec = batch.spec(index)?;
        let size = Size { width: spec.size.width.div_ceil(8), height: spec.size.height.div_ceil(8) };
        Ok(gradient(size, spec.seed))
    }
}

impl ScriptedBatch {
    fn spec(&self, index: usize) -> Result<&ImageSpec, EngineError> {
        self.specs.get(index).ok_or_else(|| EngineError::Failed {
            stage: Stage::Vae,
            detail: format!("image {index} of a batch of {}", self.specs.len()),
        })
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
        let error = ScriptedEngine::load(script, &mut |_| ()).unwrap_err().to_string();
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
