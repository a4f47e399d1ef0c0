//! The model as an [`Engine`], and the only place where panics of libtorch are caught.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use imagegen_core::engine::{CountTokens, Engine, EngineError, ModelInfo, Stage};
use imagegen_core::spec::{ImageSpec, RgbImage, Size};
use tch::Tensor;

use crate::checkpoint::Checkpoint;
use crate::config::{SchedulerConfig, TransformerConfig};
use crate::error::LoadError;
use crate::failure::{classify, panic_message};
use crate::guidance::BatchGuidance;
use crate::libtorch::{self, CudaLibrary};
use crate::load::{Device, LoadOptions, LoadProgress, VaeTiling};
use crate::noise::noise;
use crate::preview::LatentToRgb;
use crate::scheduler::{History, Schedule};
use crate::text_encoder::TextEncoder;
use crate::tokenizer::Tokenizer;
use crate::transformer::{Conditioning, Grid, Modulations, Transformer};
use crate::vae::VaeDecoder;

/// A loaded checkpoint on one device.
///
/// It may move between threads but must be used by one at a time: libtorch's seed and its gradient mode are not its own.
#[derive(Debug)]
pub struct TorchEngine {
    info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    text_encoder: TextEncoder,
    transformer: Transformer,
    vae: VaeDecoder,
    scheduler: SchedulerConfig,
    latent_channels: i64,
    vae_tiling: VaeTiling,
    /// Fitted for the first preview.
    latent_to_rgb: Option<LatentToRgb>,
    /// Pixels on a side of one latent pixel.
    vae_scale: u32,
    device: tch::Device,
}

/// Images that are being made together.
#[derive(Debug)]
pub struct TorchBatch {
    sizes: Vec<Size>,
    /// `[B, latent_channels, h, w]`, float32.
    pub(crate) latents: Tensor,
    schedule: Schedule,
    /// What the schedule remembers of the steps done.
    history: History,
    /// The prompts, for steps without guidance.
    plain: Option<Conditioning>,
    /// The prompts, then the negative prompts.
    guided: Option<(Conditioning, BatchGuidance)>,
    modulations: Modulations,
    steps_done: usize,
}

impl TorchEngine {
    /// Reads a checkpoint to its device. Takes seconds to minutes; `progress` is called after each tensor.
    ///
    /// # Errors
    /// When a file is missing or not as expected, or the device cannot be used. Nothing stays loaded then.
    pub fn load(options: &LoadOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<Self, LoadError> {
        check_device(options.device)?;
        if let Some(threads) = options.threads {
            libtorch::set_threads(threads);
        }
        let read = AssertUnwindSafe(|| {
            let _no_grad = tch::no_grad_guard();
            Checkpoint::read(options, progress)
        });
        let checkpoint = catch_unwind(read).unwrap_or_else(|panic| {
            let detail = classify(Stage::Load, &panic_message(&*panic)).to_string();
            Err(LoadError::Library { component: "the checkpoint", detail })
        })?;
        Ok(Self::new(checkpoint, options))
    }

    fn new(checkpoint: Checkpoint, options: &LoadOptions) -> Self {
        let max_prompt_tokens = checkpoint.configs.max_prompt_tokens();
        let Checkpoint { pipeline, tokenizer, scheduler, text_encoder, transformer, vae, configs, .. } = checkpoint;
        let size_multiple = configs.vae.scale_factor() * PATCH;
        let positions = |axis: usize| {
            let patches = u32::try_from(configs.transformer.axes_lens[axis]).unwrap_or(u32::MAX);
            patches.saturating_mul(size_multiple)
        };
        let name =
            options.model_dir.canonicalize().ok().and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
        Self {
            info: ModelInfo {
                name: name.unwrap_or_else(|| options.model_dir.display().to_string()),
                pipeline,
                precision: options.precision.to_string(),
                device: options.device.to_string(),
                libtorch_version: libtorch::version().to_owned(),
                weight_bytes: checkpoint.weight_bytes,
                parameters: checkpoint.parameters,
                size_multiple,
                max_prompt_tokens: u32::try_from(max_prompt_tokens).unwrap_or(u32::MAX),
                max_size: Size { width: positions(2), height: positions(1) },
            },
            tokenizer: Arc::new(tokenizer),
            text_encoder,
            transformer,
            vae,
            scheduler,
            latent_channels: configs.vae.latent_channels,
            vae_tiling: options.vae_tiling,
            latent_to_rgb: None,
            vae_scale: configs.vae.scale_factor(),
            device: options.device.tch(),
        }
    }

    /// Tokens of each prompt, cut at the model's limit.
    fn tokenize<'a>(&self, prompts: impl Iterator<Item = &'a str>) -> Result<Vec<Vec<i64>>, EngineError> {
        let stage = Stage::TextEncoder;
        let limit = usize::try_from(self.info.max_prompt_tokens).unwrap_or(usize::MAX);
        let tokens = |prompt: &str| {
            let tokens = self.tokenizer.encode(prompt);
            let tokens = tokens.map_err(|error| EngineError::Failed { stage, detail: error.to_string() })?;
            if tokens.is_empty() {
                return Err(EngineError::Failed { stage, detail: "a prompt without a single token".to_owned() });
            }
            Ok(tokens.into_iter().take(limit).map(i64::from).collect())
        };
        prompts.map(tokens).collect()
    }

    /// Noise of each image by its own seed, so that an image does not depend on the others of its batch.
    fn draw(&self, specs: &[ImageSpec]) -> Tensor {
        let side = |pixels: u32| i64::from(pixels / self.vae_scale);
        let draw = |spec: &ImageSpec| {
            noise(spec.seed, self.latent_channels, side(spec.latent_size.height), side(spec.latent_size.width))
        };
        Tensor::cat(&specs.iter().map(draw).collect::<Vec<_>>(), 0).to_device(self.device)
    }

    /// What the batch's specs have in common, after a look that they do.
    fn common(&self, specs: &[ImageSpec]) -> Result<ImageSpec, EngineError> {
        let failed = |detail: String| EngineError::Failed { stage: Stage::TextEncoder, detail };
        let first = specs.first().ok_or_else(|| failed("a batch without images".to_owned()))?;
        let kind = |spec: &ImageSpec| (spec.latent_size, spec.steps, spec.scheduler, spec.guidance.scale > 0.0);
        if let Some(other) = specs.iter().find(|spec| kind(spec) != kind(first)) {
            return Err(failed(format!(
                "a batch holds one kind of image, found {:?} and {:?}",
                kind(first),
                kind(other)
            )));
        }
        let (size, max) = (first.latent_size, self.info.max_size);
        let fits =
            size == size.rounded_up(self.info.size_multiple) && size.width <= max.width && size.height <= max.height;
        if first.steps == 0 || size.pixels() == 0 || !fits {
            let multiple = self.info.size_multiple;
            return Err(failed(format!(
                "expected at least one step and a size in multiples of {multiple} up to {max}, found {} steps and {size}",
                first.steps
            )));
        }
        Ok(first.clone())
    }
}

impl Engine for TorchEngine {
    type Batch = TorchBatch;

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn count_tokens(&self) -> CountTokens {
        let tokenizer = Arc::clone(&self.tokenizer);
        Arc::new(move |prompt| tokenizer.encode(prompt).map(|tokens| tokens.len()).map_err(|error| error.to_string()))
    }

    fn begin(&mut self, specs: &[ImageSpec]) -> Result<Self::Batch, EngineError> {
        let common = self.common(specs)?;
        let schedule = Schedule::new(self.scheduler, common.scheduler, common.steps);
        let guidances: Vec<_> = specs.iter().map(|spec| spec.guidance).collect();
        let guidance = guard(Stage::TextEncoder, || BatchGuidance::new(&guidances, &schedule, self.device))?;

        let prompts = specs.iter().map(|spec| spec.prompt.as_str());
        let negative = specs.iter().map(|spec| spec.negative_prompt.as_str()).filter(|_| guidance.is_some());
        let tokens = self.tokenize(prompts.chain(negative))?;
        let captions = guard(Stage::TextEncoder, || self.text_encoder.forward(&tokens))?;

        guard(Stage::Transformer, || {
            let tokens = |pixels: u32| i64::from(pixels / self.info.size_multiple);
            let grid = Grid { rows: tokens(common.latent_size.height), columns: tokens(common.latent_size.width) };
            let all = self.transformer.condition(&captions, grid);
            let (plain, guided) = match guidance {
                None => (Some(all), None),
                Some(guidance) => (guidance.pauses().then(|| all.first(specs.len())), Some((all, guidance))),
            };
            TorchBatch {
                sizes: specs.iter().map(|spec| spec.size).collect(),
                latents: self.draw(specs),
                modulations: self.transformer.modulate(&schedule.model_times),
                schedule,
                history: History::default(),
                plain,
                guided,
                steps_done: 0,
            }
        })
    }

    fn step(&mut self, batch: &mut Self::Batch) -> Result<(), EngineError> {
        let step = batch.steps_done;
        if step >= batch.schedule.steps() {
            let detail = format!("all {step} steps of this batch are done");
            return Err(EngineError::Failed { stage: Stage::Transformer, detail });
        }
        let model = |latents: &Tensor, step: usize| {
            let guided = batch.guided.as_ref().filter(|(_, guidance)| guidance.is_active(step));
            let output = match (guided, &batch.plain) {
                (Some((conditioning, guidance)), _) => {
                    let latents = Tensor::cat(&[latents, latents], 0);
                    guidance.apply(&self.transformer.forward(&latents, conditioning, &batch.modulations, step), step)
                }
                (None, Some(conditioning)) => self.transformer.forward(latents, conditioning, &batch.modulations, step),
                (None, None) => unreachable!("a batch without guidance at some step has its plain conditioning"),
            };
            output.to_kind(tch::Kind::Float)
        };
        let advance = || batch.schedule.advance(&batch.latents, &batch.history, step, &model);
        (batch.latents, batch.history) = guard(Stage::Transformer, advance)?;
        batch.steps_done += 1;
        Ok(())
    }

    fn decode(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError> {
        let size = batch.size(index)?;
        guard(Stage::Vae, || {
            let latents = batch.latents.narrow(0, i64::try_from(index).unwrap_or(i64::MAX), 1);
            let (height, width) = (latents.size()[2].unsigned_abs(), latents.size()[3].unsigned_abs());
            let decoded_pixels = height * width * u64::from(self.vae_scale).pow(2);
            top_left(&self.vae.pixels(&latents, self.vae_tiling.applies(decoded_pixels)), size)
        })
    }

    fn preview(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError> {
        let size = batch.size(index)?;
        let size = Size { width: size.width.div_ceil(self.vae_scale), height: size.height.div_ceil(self.vae_scale) };
        guard(Stage::Vae, || {
            let colours = self
                .latent_to_rgb
                .get_or_insert_with(|| LatentToRgb::fit(&self.vae, self.latent_channels, self.vae_scale, self.device));
            let foreseen = batch.schedule.foresee(&batch.latents, &batch.history, batch.steps_done);
            let latents = foreseen.narrow(0, i64::try_from(index).unwrap_or(i64::MAX), 1);
            top_left(&colours.pixels(&latents), size)
        })
    }
}

impl TorchBatch {
    /// Size of the picture of image `index`.
    fn size(&self, index: usize) -> Result<Size, EngineError> {
        self.sizes.get(index).copied().ok_or_else(|| EngineError::Failed {
            stage: Stage::Vae,
            detail: format!("image {index} of a batch of {}", self.sizes.len()),
        })
    }
}

/// The top left part of bytes `[H, W, 3]`, brought from the device.
fn top_left(pixels: &Tensor, size: Size) -> RgbImage {
    let cropped = pixels.narrow(0, 0, size.height.into()).narrow(1, 0, size.width.into());
    let bytes = cropped.contiguous().to_device(tch::Device::Cpu);
    let mut data = vec![0; bytes.numel()];
    bytes.copy_data_u8(&mut data, bytes.numel());
    RgbImage { size, data }
}

/// Latent pixels on a side of a patch.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is 2")]
const PATCH: u32 = TransformerConfig::PATCH_SIZE as u32;

/// Runs a piece of the model, and turns a panic of libtorch into what it means.
fn guard<T>(stage: Stage, run: impl FnOnce() -> T) -> Result<T, EngineError> {
    let run = AssertUnwindSafe(|| {
        let _no_grad = tch::no_grad_guard();
        run()
    });
    catch_unwind(run).map_err(|panic| classify(stage, &panic_message(&*panic)))
}

/// Opens CUDA when it is asked for.
fn check_device(device: Device) -> Result<(), LoadError> {
    let Device::Cuda(index) = device else { return Ok(()) };
    let unusable = |detail: String| LoadError::Device { device: device.to_string(), detail };
    match libtorch::open_cuda().map_err(|error| unusable(error.to_string()))? {
        CudaLibrary::Absent { reason } => Err(unusable(reason)),
        CudaLibrary::Opened(_) => match libtorch::cuda_device_count() {
            count if index < count => Ok(()),
            count => Err(unusable(format!("libtorch sees {count} GPUs, numbered from 0"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_and_batch_may_be_handed_to_another_thread() {
        const fn send<T: Send>() {}
        const { send::<TorchEngine>() };
        const { send::<TorchBatch>() };
    }

    #[test]
    fn a_panic_of_libtorch_becomes_an_error_that_names_its_stage() {
        let wrong =
            || Tensor::zeros([2, 3], (tch::Kind::Float, tch::Device::Cpu)).matmul(&Tensor::from_slice(&[1.0f32]));
        match guard(Stage::Vae, wrong) {
            Err(EngineError::Failed { stage: Stage::Vae, detail }) => {
                assert!(detail.contains("size mismatch"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn memory_that_is_not_there_is_out_of_memory() {
        let huge = || Tensor::empty([1 << 50], (tch::Kind::Float, tch::Device::Cpu));
        let error = guard(Stage::Transformer, huge).unwrap_err();
        assert!(matches!(error, EngineError::OutOfMemory { stage: Stage::Transformer, .. }), "{error}");
    }

    #[test]
    fn a_gpu_that_is_not_there_is_told() {
        let options = LoadOptions { device: Device::Cuda(99), ..LoadOptions::new("/no/such/model") };
        let error = TorchEngine::load(&options, &mut |_| {}).unwrap_err();
        assert_eq!(error.category(), "device", "{error}");
        assert!(error.to_string().starts_with("device cuda:99 cannot be used: "), "{error}");
    }
}
