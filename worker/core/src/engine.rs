//! The seam between the server and the model. Two implementations exist: libtorch and the scripted one for tests.

use std::sync::Arc;

use crate::spec::{ImageSpec, RgbImage, Size};

/// Part of the pipeline, for errors, metrics and timings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::Display, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Stage {
    /// Reading the checkpoint.
    Load,
    /// Prompt to caption features.
    TextEncoder,
    /// One denoising step.
    Transformer,
    /// Latents to pixels.
    Vae,
}

/// Why the engine could not do what it was asked. The engine stays usable after every variant but [`Self::Fatal`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The device has no memory for this; what the batch held was freed.
    #[error("out of memory in {stage}: {detail}")]
    OutOfMemory {
        /// Where it happened.
        stage: Stage,
        /// The allocator's own words.
        detail: String,
    },
    /// A fault of the engine, not of the request.
    #[error("the engine failed in {stage}: {detail}")]
    Failed {
        /// Where it happened.
        stage: Stage,
        /// The library's own words.
        detail: String,
    },
    /// The device is in a state that only a new process cures.
    #[error("the device failed for good in {stage}: {detail}")]
    Fatal {
        /// Where it happened.
        stage: Stage,
        /// The library's own words.
        detail: String,
    },
}

impl EngineError {
    /// Where it happened.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match self {
            Self::OutOfMemory { stage, .. } | Self::Failed { stage, .. } | Self::Fatal { stage, .. } => *stage,
        }
    }
}

/// What is loaded. Plain values, so that any thread may hold it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Folder name of the checkpoint.
    pub name: String,
    /// `_class_name` of model_index.json.
    pub pipeline: String,
    /// `float32` or `bfloat16`.
    pub precision: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Version of libtorch that is loaded.
    pub libtorch_version: String,
    /// Resident bytes of all weights.
    pub weight_bytes: u64,
    /// Parameters of text encoder, transformer and VAE decoder that generation uses.
    pub parameters: u64,
    /// Latents are made for sizes that are multiples of this many pixels.
    pub size_multiple: u32,
    /// Prompts are cut at this many tokens, chat template included.
    pub max_prompt_tokens: u32,
    /// Largest width and height that the model's position table covers.
    pub max_size: Size,
}

/// What the allocator of the device holds: bytes, and counts since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllocatorStats {
    /// Live tensors.
    pub allocated_bytes: u64,
    /// Held from the driver.
    pub reserved_bytes: u64,
    /// Live tensors and blocks that a stream still uses.
    pub active_bytes: u64,
    /// Free parts of blocks that are split.
    pub inactive_split_bytes: u64,
    /// Most bytes of live tensors since the peaks were reset.
    pub peak_allocated_bytes: u64,
    /// Most bytes held since the peaks were reset.
    pub peak_reserved_bytes: u64,
    /// Times an allocation worked only after cached blocks were given back.
    pub alloc_retries: u64,
    /// Allocations that failed.
    pub out_of_memory: u64,
    /// Allocations from the driver.
    pub device_allocations: u64,
    /// Blocks given back to the driver.
    pub device_frees: u64,
    /// Largest free block that is held; `None` where the allocator does not tell.
    pub largest_free_block_bytes: Option<u64>,
}

/// Tokens of a prompt with the chat template around it, before it is cut. Callable from any thread.
pub type CountTokens = Arc<dyn Fn(&str) -> Result<usize, String> + Send + Sync>;

/// A loaded model on one device. Lives on one thread, and does nothing unless called.
///
/// Calls are `begin`, then `step` until every image of the batch had its steps, then `decode` for each image. Dropping
/// the batch at any point frees what it held. An error frees nothing by itself: drop the batch.
pub trait Engine {
    /// Latents, caption features and schedule of the images that are being made together.
    type Batch;

    /// What is loaded.
    fn model(&self) -> &ModelInfo;

    /// Counts tokens as the engine does.
    fn count_tokens(&self) -> CountTokens;

    /// Encodes the prompts and draws the noise. All specs have the same latent size, steps, scheduler and kind of
    /// guidance (off or on); there is at least one.
    ///
    /// # Errors
    /// Any [`EngineError`].
    fn begin(&mut self, specs: &[ImageSpec]) -> Result<Self::Batch, EngineError>;

    /// One denoising step of all images of the batch.
    ///
    /// # Errors
    /// Any [`EngineError`].
    fn step(&mut self, batch: &mut Self::Batch) -> Result<(), EngineError>;

    /// The picture of image `index` of the batch, cropped to its asked size.
    ///
    /// # Errors
    /// Any [`EngineError`].
    fn decode(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError>;

    /// What image `index` of the batch will look like, as far as it can be told now: small, cropped in proportion, and
    /// cheap. Changes nothing.
    ///
    /// # Errors
    /// Any [`EngineError`].
    fn preview(&mut self, batch: &mut Self::Batch, index: usize) -> Result<RgbImage, EngineError>;

    /// What the allocator holds now.
    fn allocator(&self) -> AllocatorStats;

    /// Starts new peaks at what is held now.
    fn reset_peaks(&mut self);

    /// Gives cached blocks back to the driver. Only between batches: it waits for the device.
    fn trim(&mut self);

    /// Most bytes that the allocator may hold from now on. What is held already stays.
    fn limit_memory(&mut self, bytes: u64);

    /// Frees what [`step`](Self::step) can make again: the batch keeps its latents and caption features.
    fn suspend(&mut self, batch: &mut Self::Batch);

    /// Leaves only these images in the batch, in this order. Indices are those of the batch as it is now.
    ///
    /// # Errors
    /// Any [`EngineError`].
    fn keep(&mut self, batch: &mut Self::Batch, images: &[usize]) -> Result<(), EngineError>;

    /// The images one by one, each at its last completed step; for going on alone after a shared failure.
    ///
    /// # Errors
    /// Any [`EngineError`].
    fn split(&mut self, batch: Self::Batch) -> Result<Vec<Self::Batch>, EngineError>;
}
