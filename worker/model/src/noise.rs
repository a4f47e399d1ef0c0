//! The noise that a seed means.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

/// Seeding and drawing are two calls on one generator of the process.
static GENERATOR: Mutex<()> = Mutex::new(());

/// The generator of the process, started at `seed`; nobody else draws from it until the guard is dropped.
pub(crate) fn generator(seed: i64) -> MutexGuard<'static, ()> {
    // The lock guards no data, so a panic of another thread left nothing broken.
    let generator = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    generator
}

/// Noise `[1, channels, height, width]` in float32 on the CPU, the same numbers as `torch.randn` with
/// `torch.Generator("cpu").manual_seed(seed)` gives.
///
/// Source: diffusers 0.42.1 `pipelines/z_image/pipeline_z_image.py` `prepare_latents`, `utils/torch_utils.py` `randn_tensor`.
pub(crate) fn noise(seed: u32, channels: i64, height: i64, width: i64) -> Tensor {
    let _generator = generator(i64::from(seed));
    Tensor::randn([1, channels, height, width], (Kind::Float, Device::Cpu))
}
