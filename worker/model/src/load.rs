//! What to load, where to, and how far it is.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use tch::Kind;

/// Number format of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits, the one that parity is defined in.
    Float32,
    /// 16 bits with the range of 32.
    BFloat16,
    /// 8 bits (e4m3) for the large products of text encoder and transformer, bfloat16 for the rest and for the VAE.
    Float8,
}

impl Precision {
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::BFloat16 | Self::Float8 => Kind::BFloat16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
            Self::Float8 => "float8",
        })
    }
}

/// A text that names no precision.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a precision is float32, bfloat16 or float8, found \"{0}\"")]
pub struct ParsePrecisionError(String);

impl FromStr for Precision {
    type Err = ParsePrecisionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "float32" => Ok(Self::Float32),
            "bfloat16" => Ok(Self::BFloat16),
            "float8" => Ok(Self::Float8),
            _ => Err(ParsePrecisionError(text.to_owned())),
        }
    }
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by its number among those that the process sees.
    Cuda(usize),
}

impl Device {
    pub(crate) const fn tch(self) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda(index) => tch::Device::Cuda(index),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A text that names no device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a device is cpu, cuda or cuda:N, found \"{0}\"")]
pub struct ParseDeviceError(String);

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseDeviceError(text.to_owned());
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(invalid)?;
                index.parse().map(Self::Cuda).map_err(|_| invalid())
            }
        }
    }
}

/// Which pictures the VAE decodes in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VaeTiling {
    /// Those of at least 2048 x 2048 pixels.
    #[default]
    Auto,
    /// All that are larger than a tile.
    Always,
    /// None.
    Never,
}

impl VaeTiling {
    /// From where on a decode in one piece takes more memory than all else of a generation.
    const AUTO_MIN_PIXELS: u64 = 2048 * 2048;

    /// Whether a picture of this many pixels is decoded in tiles.
    pub(crate) const fn applies(self, pixels: u64) -> bool {
        match self {
            Self::Auto => pixels >= Self::AUTO_MIN_PIXELS,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// What to load, and where to.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Folder with model_index.json, in the diffusers layout.
    pub model_dir: PathBuf,
    /// Random weights in place of those in the folder. Without a folder, the architecture is that of Z-Image-Turbo. For measuring.
    pub random_weights: bool,
    /// Precision of text encoder and transformer.
    pub precision: Precision,
    /// Precision of the VAE; `None` is the one of the rest.
    pub vae_precision: Option<Precision>,
    /// Which pictures the VAE decodes in tiles, of the size in its config.json.
    pub vae_tiling: VaeTiling,
    /// Where the model runs.
    pub device: Device,
    /// Threads of one libtorch operator on the CPU, for the whole process; `None` leaves libtorch's own choice.
    pub threads: Option<NonZeroUsize>,
}

impl LoadOptions {
    /// float32 on the CPU.
    #[must_use]
    pub fn new(model_dir: impl Into<PathBuf>) -> Self {
        Self {
            model_dir: model_dir.into(),
            random_weights: false,
            precision: Precision::Float32,
            vae_precision: None,
            vae_tiling: VaeTiling::Auto,
            device: Device::Cpu,
            threads: None,
        }
    }

    /// Whether nothing is read from any folder.
    pub(crate) fn has_built_in_model(&self) -> bool {
        self.random_weights && self.model_dir.as_os_str().is_empty()
    }
}

/// How far loading is, in bytes of the weight files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Read so far.
    pub loaded_bytes: u64,
    /// Of this many; files or parts of them that generation does not use are not counted.
    pub total_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for precision in [Precision::Float32, Precision::BFloat16, Precision::Float8] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
    }

    #[test]
    fn other_names_are_refused() {
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert!("float16".parse::<Precision>().is_err());
    }
}
