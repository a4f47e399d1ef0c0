//! `convert`: a copy of a checkpoint with its weights in another precision.

use std::path::PathBuf;

use crate::cli::ConvertArgs;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// The checkpoint cannot be loaded.
    #[error("{0}")]
    Load(String),
    /// The copy cannot be written.
    #[error("{0}")]
    Write(String),
}

impl ConvertError {
    /// Exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Write(_) => 1,
            Self::Usage(_) => 2,
            Self::Load(_) => 3,
        }
    }
}

/// Number formats that a copy can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredPrecision {
    /// 32 bits.
    Float32,
    /// 16 bits.
    BFloat16,
}

impl std::str::FromStr for StoredPrecision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "float32" => Ok(Self::Float32),
            "bfloat16" => Ok(Self::BFloat16),
            "float8" => Err("float8 weights need scales, which the layout of diffusers has no place for: convert to \
                             bfloat16"
                .into()),
            _ => Err(format!("expected float32 or bfloat16, found \"{text}\"")),
        }
    }
}

/// Writes the copy and returns its folder.
///
/// # Errors
/// See [`ConvertError`]; nothing is written then.
#[cfg(feature = "torch")]
pub fn convert(args: ConvertArgs) -> Result<PathBuf, ConvertError> {
    use imagegen_model::ConvertError as Failure;

    let ConvertArgs { model, output, precision } = args;
    let precision = match precision {
        StoredPrecision::Float32 => imagegen_model::Precision::Float32,
        StoredPrecision::BFloat16 => imagegen_model::Precision::BFloat16,
    };
    let mut console = crate::generate::Console::new();
    let progress = &mut |progress: imagegen_model::LoadProgress| {
        console.copying(progress.loaded_bytes, progress.total_bytes);
    };
    let converted = imagegen_model::convert(&model, &output, precision, progress).map_err(|error| match error {
        Failure::Load(error) => ConvertError::Load(error.to_string()),
        Failure::Exists(_) => ConvertError::Usage(format!("--output: {error}")),
        _ => ConvertError::Write(error.to_string()),
    })?;
    let (files, mebibytes) = (converted.weight_files, converted.weight_bytes >> 20);
    console.line(&format!("{}: {precision}, {files} weight files, {mebibytes} MiB", output.display()));
    Ok(output)
}

/// Never copies: the binary has no libtorch.
///
/// # Errors
/// Always.
#[cfg(not(feature = "torch"))]
pub fn convert(args: ConvertArgs) -> Result<PathBuf, ConvertError> {
    let ConvertArgs { model, output, precision } = args;
    let unused = (model, output, precision);
    Err(ConvertError::Usage(format!("this binary was built without libtorch and cannot use {unused:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_that_cannot_be_stored_is_refused_with_the_reason() {
        assert_eq!("bfloat16".parse(), Ok(StoredPrecision::BFloat16));
        assert!("float8".parse::<StoredPrecision>().unwrap_err().contains("scales"));
        assert!("int4".parse::<StoredPrecision>().unwrap_err().contains("float32 or bfloat16"));
    }
}
