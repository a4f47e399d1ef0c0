//! text_encoder/config.json, as transformers 4 and 5 write it.

use std::path::Path;

use serde_json::{Value, json};

use super::ConfigFile;
use crate::LoadError;

/// Fields of Qwen3Config, named as in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TextEncoderConfig {
    pub(crate) vocab_size: i64,
    pub(crate) hidden_size: i64,
    pub(crate) intermediate_size: i64,
    pub(crate) num_hidden_layers: i64,
    pub(crate) num_attention_heads: i64,
    pub(crate) num_key_value_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) max_position_embeddings: i64,
    pub(crate) attention_bias: bool,
}

impl TextEncoderConfig {
    /// # Errors
    /// When a field is missing, of the wrong type, or asks for something that is not implemented.
    pub(crate) fn read(model_dir: &Path) -> Result<Self, LoadError> {
        let file = ConfigFile::read(model_dir.join("text_encoder/config.json"), "the text encoder's settings")?;
        file.only("model_type", &json!("qwen3"))?;
        file.only("hidden_act", &json!("silu"))?;
        file.only("use_sliding_window", &json!(false))?;
        file.only("rope_scaling", &json!(null))?;
        let config = Self {
            vocab_size: file.size("vocab_size")?,
            hidden_size: file.size("hidden_size")?,
            intermediate_size: file.size("intermediate_size")?,
            num_hidden_layers: file.size("num_hidden_layers")?,
            num_attention_heads: file.size("num_attention_heads")?,
            num_key_value_heads: file.size("num_key_value_heads")?,
            head_dim: file.size("head_dim")?,
            rms_norm_eps: file.positive("rms_norm_eps")?,
            rope_theta: rope_theta(&file)?,
            max_position_embeddings: file.size("max_position_embeddings")?,
            attention_bias: file.get("attention_bias").and_then(Value::as_bool).unwrap_or(false),
        };
        if config.num_attention_heads % config.num_key_value_heads != 0 {
            return Err(file.invalid("num_key_value_heads", format!("a divisor of {}", config.num_attention_heads)));
        }
        if config.head_dim % 2 != 0 {
            return Err(file.invalid("head_dim", "an even number"));
        }
        Ok(config)
    }
}

/// transformers 5 writes `rope_parameters`, 4 writes `rope_theta`; some files have both.
fn rope_theta(file: &ConfigFile) -> Result<f64, LoadError> {
    let Some(parameters) = file.get("rope_parameters") else { return file.positive("rope_theta") };
    if parameters.get("rope_type").is_some_and(|kind| kind != "default") {
        return Err(file.invalid("rope_parameters.rope_type", "\"default\", the only one implemented"));
    }
    match parameters.get("rope_theta").map(Value::as_f64) {
        Some(Some(theta)) if theta > 0.0 => Ok(theta),
        None => file.positive("rope_theta"),
        Some(_) => Err(file.invalid("rope_parameters.rope_theta", "a number above 0")),
    }
}
