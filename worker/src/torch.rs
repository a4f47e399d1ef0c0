//! The engine in libtorch, as the command line asks for it.

use std::{num::NonZeroUsize, path::PathBuf};

use imagegen_core::allocator::{Allocator, Taken, check_taken};
use imagegen_model::{
    LoadError, LoadOptions, TorchEngine,
    libtorch::{self, CudaLibrary, LibtorchError},
    shim::{ShimError, cuda::Cuda},
};
use tracing::info;

use crate::{
    device::{Device, EngineSettings, Precision, VaeTiling},
    engine_thread::LoadProgress,
};

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TorchError {
    #[error(transparent)]
    Library(#[from] LibtorchError),
    #[error("--device {device}: libtorch has no CUDA here: {reason}")]
    NoCuda { device: Device, reason: String },
    #[error("--device {device}: {found} GPUs are visible; expected an index below that")]
    NoSuchGpu { device: Device, found: usize },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("--device {device}: {error}")]
    Gpu { device: Device, error: ShimError },
    #[error("{0}")]
    Allocator(String),
}

/// What to load, and where.
pub(crate) struct Options {
    load: LoadOptions,
    device: Device,
    allocator: Option<Allocator>,
}

/// The weights that the command line means: those of a folder, or random ones.
pub(crate) enum Weights {
    Folder(PathBuf),
    /// Of the architecture in this folder, or else of the built-in one.
    Random(Option<PathBuf>),
}

/// What `--model` and `--random-weights` mean together.
///
/// # Errors
/// The sentence for the user, when there is neither.
pub(crate) fn weights(model: Option<PathBuf>, random: bool) -> Result<Weights, String> {
    match model {
        model if random => Ok(Weights::Random(model)),
        Some(folder) => Ok(Weights::Folder(folder)),
        None => Err("--model DIR (or IMAGEGEN_MODEL) is missing: the folder of the checkpoint".into()),
    }
}

/// The options that the command line means; `allocator` is what the environment asks libtorch for.
pub(crate) fn options(weights: Weights, settings: EngineSettings, allocator: Option<Allocator>) -> Options {
    let EngineSettings { precision, vae_tiling, device, threads } = settings;
    let mut load = match weights {
        Weights::Folder(folder) => LoadOptions::new(folder),
        Weights::Random(folder) => LoadOptions { random_weights: true, ..LoadOptions::new(folder.unwrap_or_default()) },
    };
    load.precision = match precision.unwrap_or(device.suited_precision()) {
        Precision::Float32 => imagegen_model::Precision::Float32,
        Precision::BFloat16 => imagegen_model::Precision::BFloat16,
    };
    load.vae_tiling = match vae_tiling {
        VaeTiling::Auto => imagegen_model::VaeTiling::Auto,
        VaeTiling::Always => imagegen_model::VaeTiling::Always,
        VaeTiling::Never => imagegen_model::VaeTiling::Never,
    };
    load.device = match device {
        Device::Cpu => imagegen_model::Device::Cpu,
        Device::Cuda(index) => imagegen_model::Device::Cuda(index as usize),
    };
    load.threads = NonZeroUsize::new(threads.unwrap_or_else(crate::settings::default_threads));
    Options { load, device, allocator }
}

/// Loads the model; blocks for seconds to minutes.
pub(crate) fn load(options: &Options, progress: &mut dyn FnMut(LoadProgress)) -> Result<TorchEngine, TorchError> {
    let Options { load, device, allocator } = options;
    if let Device::Cuda(index) = *device {
        match libtorch::open_cuda()? {
            CudaLibrary::Opened(path) => info!(path = %path.display(), "Opened libtorch's CUDA library."),
            CudaLibrary::Absent { reason } => return Err(TorchError::NoCuda { device: *device, reason }),
        }
        let found = libtorch::cuda_device_count();
        if index as usize >= found {
            return Err(TorchError::NoSuchGpu { device: *device, found });
        }
        let gpu = |error| TorchError::Gpu { device: *device, error };
        let cuda = Cuda::open(index as usize).map_err(gpu)?;
        let (backend, settings) = (cuda.allocator_backend().map_err(gpu)?, cuda.allocator_settings().map_err(gpu)?);
        check_taken(*allocator, Taken { backend: &backend, settings: &settings }).map_err(TorchError::Allocator)?;
        info!(backend, settings, "The GPU's allocator.");
    }
    let engine = TorchEngine::load(load, &mut |imagegen_model::LoadProgress { loaded_bytes, total_bytes }| {
        progress(LoadProgress { loaded_bytes, total_bytes });
    })?;
    Ok(engine)
}
