//! Names of devices, precisions and ways to decode, as they are written on the command line.

use std::{fmt, str::FromStr};

use imagegen_core::allocator::Allocator;

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this index.
    Cuda(u32),
}

/// Why a text is not a device.
#[derive(Debug, thiserror::Error)]
#[error("a device is cpu, cuda, or cuda:N with the index of the GPU, found \"{0}\"")]
pub struct ParseDeviceError(String);

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").and_then(|index| index.parse().ok());
                index.map(Self::Cuda).ok_or_else(|| ParseDeviceError(text.to_owned()))
            }
        }
    }
}

impl Device {
    /// bfloat16 on GPUs, float32 on processors, which are slower in bfloat16.
    #[must_use]
    pub const fn suited_precision(self) -> Precision {
        match self {
            Self::Cpu => Precision::Float32,
            Self::Cuda(_) => Precision::BFloat16,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Which pictures the VAE decodes in tiles.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, strum::Display, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum VaeTiling {
    /// Those of at least 2048 x 2048 pixels
    #[default]
    Auto,
    /// All that are larger than a tile
    Always,
    /// None
    Never,
}

/// How the model is loaded and run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineSettings {
    /// Absent: what suits the device.
    pub(crate) precision: Option<Precision>,
    /// Which pictures are decoded in tiles.
    pub(crate) vae_tiling: VaeTiling,
    /// Where the model runs.
    pub(crate) device: Device,
    /// CPU threads of libtorch. Absent: the CPU limit.
    pub(crate) threads: Option<usize>,
    /// What the environment asks the GPU's allocator for. Absent: nothing.
    pub(crate) allocator: Option<Allocator>,
    /// Random weights in place of the checkpoint's.
    pub(crate) random_weights: bool,
}

/// Numbers that the weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, strum::Display)]
#[strum(serialize_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits; the reference for numeric parity
    Float32,
    /// 16 bits; half the memory, what GPUs are fast at
    BFloat16,
    /// 8 bits for the large products of text encoder and transformer, 16 for the rest; on a GPU it needs compute capability 8.9
    Float8,
}
