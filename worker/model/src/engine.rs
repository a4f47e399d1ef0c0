//! The model as an [`Engine`].

mod batch;
mod guard;
mod memory;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use imagegen_core::engine::{AllocatorStats, CountTokens, Engine, EngineError, ModelInfo, Stage};
use imagegen_core::spec::{ImageSpec, RgbImage, Size};
use tch::Tensor;

pub use self::batch::TorchBatch;
use self::batch::{Image, Pace};
use self::guard::guard;
use self::memory::Memory;
use crate::checkpoint::Checkpoint;
use crate::config::{SchedulerConfig, TransformerConfig};
use crate::error::LoadError;
use crate::failure::{classify, panic_message};
use crate::kernels;
use crate::libtorch::{self, CudaLibrary};
use crate::load::{Device, LoadOptions, LoadProgress, VaeTiling};
use crate::noise::noise;
use crate::preview::LatentToRgb;
use crate::scheduler::Schedule;
use crate::shim::{ShimError, cuda::Cuda};
use crate::text_encoder::TextEncoder;
use crate::tokenizer::Tokenizer;
use crate::transformer::{Grid, Transformer};
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
    memory: Memory,
    missing_kernels: Option<String>,
}

impl TorchEngine {
    /// Reads a checkpoint to its device. Takes seconds to minutes; `progress` is called after each tensor.
    ///
    /// # Errors
    /// When a file is missing or not as expected, or the device cannot be used. Nothing stays loaded then.
    pub fn load(options: &LoadOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<Self, LoadError> {
        let memory = check_device(options.device)?;
        let missing_kernels = kernels::prepare_for(options)?;
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
        Ok(Self { missing_kernels, ..Self::new(checkpoint, options, memory) })
    }

    fn new(checkpoint: Checkpoint, options: &LoadOptions, memory: Memory) -> Self {
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
                name: match name {
                    _ if options.has_built_in_model() => "Z-Image-Turbo-random".to_owned(),
                    Some(name) if options.random_weights => format!("{name}-random"),
                    Some(name) => name,
                    None => options.model_dir.display().to_string(),
                },
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
            memory,
            missing_kernels: None,
        }
    }

    /// Why a GPU is used without this project's own kernels, and so more slowly; `None` where they run, and on a CPU.
    #[must_use]
    pub fn missing_kernels(&self) -> Option<&str> {
        self.missing_kernels.as_deref()
    }

    /// Runs the text encoder alone and drops what comes out, for measuring.
    ///
    /// # Errors
    /// Any [`EngineError`].
    pub fn encode_only(&self, prompts: &[String]) -> Result<(), EngineError> {
        let tokens = self.tokenize(prompts.iter().map(String::as_str))?;
        self.guard(Stage::TextEncoder, || drop(self.text_encoder.forward(&tokens)))
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

    fn guard<T>(&self, stage: Stage, run: impl FnOnce() -> T) -> Result<T, EngineError> {
        guard(self.memory, stage, run)
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
        let guided = common.guidance.scale > 0.0;
        let prompts = specs.iter().map(|spec| spec.prompt.as_str());
        let negative = specs.iter().map(|spec| spec.negative_prompt.as_str()).filter(|_| guided);
        let tokens = self.tokenize(prompts.chain(negative))?;
        let captions = self.guard(Stage::TextEncoder, || {
            // Each with memory of its own, so that dropping one image frees what it held.
            self.text_encoder.forward(&tokens).iter().map(Tensor::copy).collect::<Vec<_>>()
        })?;
        let latents = self.guard(Stage::Transformer, || self.draw(specs))?;

        let mut captions = captions.into_iter();
        let mut images: Vec<Image> = specs
            .iter()
            .zip(captions.by_ref())
            .map(|(spec, caption)| Image { size: spec.size, guidance: spec.guidance, caption, negative: None })
            .collect();
        for (image, negative) in images.iter_mut().zip(captions) {
            image.negative = Some(negative);
        }
        let tokens = |pixels: u32| i64::from(pixels / self.info.size_multiple);
        let grid = Grid { rows: tokens(common.latent_size.height), columns: tokens(common.latent_size.width) };
        Ok(TorchBatch::new(images, latents, schedule, grid, Pace::new(self.memory.cuda())))
    }

    fn step(&mut self, batch: &mut Self::Batch) -> Result<(), EngineError> {
        let step = batch.steps_done;
        if step >= batch.schedule.steps() {
            let detail = format!("all {step} steps of this batch are done");
            return Err(EngineError::Failed { stage: Stage::Transformer, detail });
        }
        let broken = |error: ShimError| classify(Stage::Transformer, &error.to_string());
        batch.pace.wait().map_err(broken)?;
        (batch.latents, batch.history) = self.guard(Stage::Transformer, || batch.advanced(&self.transformer))?;
        batch.steps_done += 1;
        if batch.steps_done == batch.schedule.steps() {
            batch.forget();
        }
        batch.pace.enqueued().map_err(broken)
    }

    fn decode(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError> {
        let size = batch.size(index)?;
        self.guard(Stage::Vae, || {
            let latents = batch.latents.narrow(0, i64::try_from(index).unwrap_or(i64::MAX), 1);
            let (height, width) = (latents.size()[2].unsigned_abs(), latents.size()[3].unsigned_abs());
            let decoded_pixels = height * width * u64::from(self.vae_scale).pow(2);
            top_left(&self.vae.pixels(&latents, self.vae_tiling.applies(decoded_pixels)), size)
        })
    }

    fn allocator(&self) -> AllocatorStats {
        self.memory.stats()
    }

    // A device that cannot do one of the next three is broken, which the next piece of work finds out and says.
    fn reset_peaks(&mut self) {
        let _ = self.memory.reset_peaks();
    }

    fn trim(&mut self) {
        let _ = self.memory.trim();
    }

    fn limit_memory(&mut self, bytes: u64) {
        let _ = self.memory.limit(bytes);
    }

    fn suspend(&mut self, batch: &mut Self::Batch) {
        batch.forget();
    }

    fn keep(&mut self, batch: &mut Self::Batch, images: &[usize]) -> Result<(), EngineError> {
        let count = batch.images.len();
        let twice = images.iter().enumerate().any(|(at, index)| images[..at].contains(index));
        if images.is_empty() || twice || images.iter().any(|&index| index >= count) {
            let detail = format!("expected different images of a batch of {count}, found {images:?}");
            return Err(EngineError::Failed { stage: Stage::Transformer, detail });
        }
        self.guard(Stage::Transformer, || batch.keep(images))
    }

    fn split(&mut self, batch: Self::Batch) -> Result<Vec<Self::Batch>, EngineError> {
        self.guard(Stage::Transformer, || batch.split())
    }

    fn preview(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError> {
        let size = batch.size(index)?;
        let size = Size { width: size.width.div_ceil(self.vae_scale), height: size.height.div_ceil(self.vae_scale) };
        let memory = self.memory;
        guard(memory, Stage::Vae, || {
            let colours = self
                .latent_to_rgb
                .get_or_insert_with(|| LatentToRgb::fit(&self.vae, self.latent_channels, self.vae_scale, self.device));
            let foreseen = batch.schedule.foresee(&batch.latents, &batch.history, batch.steps_done);
            let latents = foreseen.narrow(0, i64::try_from(index).unwrap_or(i64::MAX), 1);
            top_left(&colours.pixels(&latents), size)
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

/// Opens CUDA when it is asked for.
fn check_device(device: Device) -> Result<Memory, LoadError> {
    let Device::Cuda(index) = device else { return Ok(Memory::Cpu) };
    let unusable = |detail: String| LoadError::Device { device: device.to_string(), detail };
    match libtorch::open_cuda().map_err(|error| unusable(error.to_string()))? {
        CudaLibrary::Absent { reason } => Err(unusable(reason)),
        CudaLibrary::Opened(_) => match libtorch::cuda_device_count() {
            count if index < count => Cuda::open(index).map(Memory::Cuda).map_err(|error| unusable(error.to_string())),
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
    fn a_gpu_that_is_not_there_is_told() {
        let options = LoadOptions { device: Device::Cuda(99), ..LoadOptions::new("/no/such/model") };
        let error = TorchEngine::load(&options, &mut |_| {}).unwrap_err();
        assert_eq!(error.category(), "device", "{error}");
        assert!(error.to_string().starts_with("device cuda:99 cannot be used: "), "{error}");
    }
}
