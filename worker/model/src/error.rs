//! Why a checkpoint cannot be loaded.

use std::path::PathBuf;

/// Why a checkpoint cannot be loaded. Each message names the file, the key, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file that the layout asks for is not there, or cannot be read.
    #[error("cannot read {}, {expected}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the file is for.
        expected: String,
        /// Why it cannot be read.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file is not JSON, or not an object.
    #[error("{} is not a JSON object: {detail}", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        detail: String,
    },
    /// A field is missing, has the wrong type, or a value that this program does not know.
    #[error("{}: field \"{key}\": expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, with dots between levels.
        key: String,
        /// What it should be.
        expected: String,
        /// What it is; `nothing` when it is missing.
        found: String,
    },
    /// The file list of a sharded checkpoint names a file that is not there.
    #[error("{}: shard missing, {} expects tensor \"{key}\" in it", path.display(), index.display())]
    MissingShard {
        /// The shard.
        path: PathBuf,
        /// The list that names it.
        index: PathBuf,
        /// One tensor of it.
        key: String,
    },
    /// A weight file is cut short or damaged.
    #[error("{}: not a complete safetensors file of {bytes} bytes: {detail}; copy it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// A tensor that generation needs is in no file.
    #[error("{}: tensor \"{key}\" missing, expected shape {expected:?}", path.display())]
    MissingTensor {
        /// File or folder that was searched.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape by the configuration.
        expected: Vec<i64>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor \"{key}\": expected shape {expected:?}, found {found:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape by the configuration.
        expected: Vec<i64>,
        /// Its shape in the file.
        found: Vec<i64>,
    },
    /// A tensor's numbers are of a type that cannot be converted.
    #[error("{}: tensor \"{key}\": expected dtype F32, BF16 or F16, found {found}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its type in the file.
        found: String,
    },
    /// A tensor that the model does not know: the configuration is not the one of these weights.
    #[error("{}: unexpected tensor \"{key}\" of shape {found:?}, expected no such tensor in a {model}", path.display())]
    ExtraTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape in the file.
        found: Vec<i64>,
        /// The class that does not know it.
        model: &'static str,
    },
    /// The tokenizer or its chat template cannot be used.
    #[error("{}: {detail}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        detail: String,
    },
    /// The device cannot be used.
    #[error("device {device} cannot be used: {detail}")]
    Device {
        /// As asked for.
        device: String,
        /// What is missing.
        detail: String,
    },
    /// libtorch failed while the weights were read, most often for lack of memory.
    #[error("libtorch failed while loading {component}: {detail}")]
    Library {
        /// Folder of the checkpoint.
        component: &'static str,
        /// libtorch's words.
        detail: String,
    },
}

impl LoadError {
    /// A bounded name for metrics and conditions.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::NotJson { .. } | Self::Field { .. } => "config",
            Self::MissingShard { .. } => "missing_shard",
            Self::Damaged { .. } => "damaged",
            Self::MissingTensor { .. } => "missing_tensor",
            Self::Shape { .. } => "shape",
            Self::Dtype { .. } => "dtype",
            Self::ExtraTensor { .. } => "extra_tensor",
            Self::Tokenizer { .. } => "tokenizer",
            Self::Device { .. } => "device",
            Self::Library { .. } => "library",
        }
    }
}
