//! The engine in libtorch, as the command line asks for it.

use std::{num::NonZeroUsize, path::Path};

use imagegen_model::{
    LoadError, LoadOptions, TorchEngine,
    libtorch::{self, CudaLibrary, LibtorchError},
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
}

/// What to load, and where.
pub(crate) struct Options {
    load: LoadOptions,
    device: Device,
}

/// The options that the command line means.
pub(crate) fn options(model: &Path, settings: EngineSettings) -> Options {
    let EngineSettings { precision, vae_tiling, device, threads } = settings;
    let mut load = LoadOptions::new(model);
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
    Options { load, device }
}

/// Loads the model; blocks for seconds to minutes.
pub(crate) fn load(options: &Options, progress: &mut dyn FnMut(LoadProgress)) -> Result<TorchEngine, TorchError> {
    let Options { load, device } = options;
    if let Device::Cuda(index) = *device {
        match libtorch::open_cuda()? {
            CudaLibrary::Opened(path) => info!(path = %path.display(), "Opened libtorch's CUDA library."),
            CudaLibrary::Absent { reason } => return Err(TorchError::NoCuda { device: *device, reason }),
        }
        let found = libtorch::cuda_device_count();
        if index as usize >= found {
            return Err(TorchError::NoSuchGpu { device: *device, found });
        }
    }
    let engine = TorchEngine::load(load, &mut |imagegen_model::LoadProgress { loaded_bytes, total_bytes }| {
        progress(LoadProgress { loaded_bytes, total_bytes });
    })?;
    Ok(engine)
}
