//! The file that a scripted engine follows.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// What the engine does. The [module above](super) documents every field.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "documented as a whole in the module")]
pub struct Script {
    pub load_seconds: f64,
    pub load_fault: Option<String>,
    pub weight_bytes: u64,
    pub text_encoder_seconds: f64,
    pub step_seconds: f64,
    pub batch_seconds: f64,
    pub step_seconds_by_size: BTreeMap<String, f64>,
    pub decode_seconds: f64,
    pub size_multiple: u32,
    pub max_prompt_tokens: u32,
    pub max_size: String,
    pub memory: Option<ScriptedMemory>,
    pub faults: Vec<Fault>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            load_seconds: 0.0,
            load_fault: None,
            weight_bytes: 1_000_000,
            text_encoder_seconds: 0.0,
            step_seconds: 0.0,
            batch_seconds: 0.0,
            step_seconds_by_size: BTreeMap::new(),
            decode_seconds: 0.0,
            size_multiple: 16,
            max_prompt_tokens: 512,
            max_size: "2048x2048".into(),
            memory: None,
            faults: Vec::new(),
        }
    }
}

/// Something that goes wrong, once unless it says otherwise.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented as a whole in the module")]
pub struct Fault {
    pub batch: u64,
    pub stage: FaultStage,
    #[serde(default)]
    pub step: Option<u32>,
    pub kind: FaultKind,
    #[serde(default = "once")]
    pub times: u32,
}

const fn once() -> u32 {
    1
}

/// The memory of the device, and what of it the engine needs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented as a whole in the module")]
pub struct ScriptedMemory {
    pub total_bytes: u64,
    #[serde(default)]
    pub overhead_bytes: u64,
    pub bytes_per_pixel: f64,
    #[serde(default)]
    pub decode_bytes_per_pixel: f64,
    #[serde(default)]
    pub leak_bytes: u64,
    #[serde(default)]
    pub foreign: Vec<Foreign>,
}

/// What other processes hold from some batch on.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "documented as a whole in the module")]
pub struct Foreign {
    pub from_batch: u64,
    pub bytes: u64,
}

/// Where it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "as in Stage")]
pub enum FaultStage {
    TextEncoder,
    Transformer,
    Vae,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// [`imagegen_core::engine::EngineError::OutOfMemory`]
    OutOfMemory,
    /// [`imagegen_core::engine::EngineError::Failed`]
    Failed,
    /// [`imagegen_core::engine::EngineError::Fatal`]
    Fatal,
    /// A panic, as the operators of libtorch have them
    Panic,
}

/// Why a script cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file.
    #[error("cannot read the engine's script {path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its text.
    #[error("the engine's script {path} is not valid: {source}", path = path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: serde_yaml::Error,
    },
    /// A value.
    #[error("the engine's script: {field} {reason}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What was expected and found.
        reason: String,
    },
    /// The script says that loading fails.
    #[error("{0}")]
    Scripted(String),
}

impl Script {
    /// The script in a file.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Self, ScriptError> {
        let text = fs::read_to_string(path).map_err(|source| ScriptError::Read { path: path.to_owned(), source })?;
        serde_yaml::from_str(&text).map_err(|source| ScriptError::Parse { path: path.to_owned(), source })
    }
}
