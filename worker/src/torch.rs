//! The engine in libtorch, as the command line asks for it.

use std::{num::NonZeroUsize, path::PathBuf};

use imagegen_core::allocator::{Allocator, Taken, check_taken};
use imagegen_model::{
    LoadError, LoadOptions, TorchEngine,
    libtorch::{self, CudaLibrary, LibtorchError},
    shim::{ShimError, cuda::Cuda},
};
use tracing::{info, warn};

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

/// The options that the command line means.
///
/// # Errors
/// The sentence for the user, when it names no weights.
pub(crate) fn options(model: Option<PathBuf>, settings: EngineSettings) -> Result<Options, String> {
    let EngineSettings { precision, vae_tiling, device, threads, allocator, random_weights } = settings;
    let folder = match model {
        Some(folder) => folder,
        // Of the built-in architecture.
        None if random_weights => PathBuf::new(),
        None => return Err("--model DIR (or IMAGEGEN_MODEL) is missing: the folder of the checkpoint".into()),
    };
    let mut load = LoadOptions { random_weights, ..LoadOptions::new(folder) };
    load.precision = match precision.unwrap_or(device.suited_precision()) {
        Precision::Float32 => imagegen_model::Precision::Float32,
        Precision::BFloat16 => imagegen_model::Precision::BFloat16,
        Precision::Float8 => imagegen_model::Precision::Float8,
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
    Ok(Options { load, device, allocator })
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
    if let Some(reason) = engine.missing_kernels() {
        warn!(reason, "This program's own GPU kernels are not there; pictures take longer.");
    }
    Ok(engine)
}
