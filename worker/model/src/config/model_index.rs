//! model_index.json: which class is in which folder.

use std::path::Path;

use serde_json::Value;

use super::ConfigFile;
use crate::LoadError;

/// Classes that this program implements, by folder.
const CLASSES: [(&str, &[&str]); 5] = [
    ("scheduler", &["FlowMatchEulerDiscreteScheduler"]),
    ("text_encoder", &["Qwen3Model", "Qwen3ForCausalLM"]),
    ("tokenizer", &["Qwen2Tokenizer", "Qwen2TokenizerFast"]),
    ("transformer", &["ZImageTransformer2DModel"]),
    ("vae", &["AutoencoderKL"]),
];

/// A pipeline that this program implements.
#[derive(Debug)]
pub(crate) struct ModelIndex {
    /// `_class_name`.
    pub(crate) pipeline: String,
}

impl ModelIndex {
    /// # Errors
    /// When a class is missing or unknown.
    pub(crate) fn read(model_dir: &Path) -> Result<Self, LoadError> {
        let purpose = "the list of parts of a checkpoint in the diffusers folder layout";
        let file = ConfigFile::read(model_dir.join("model_index.json"), purpose)?;
        let pipeline = file.text("_class_name")?.to_owned();
        if pipeline != "ZImagePipeline" {
            return Err(file.invalid("_class_name", "\"ZImagePipeline\""));
        }
        for (folder, known) in CLASSES {
            let class = file.get(folder).and_then(|value| value.get(1)).and_then(Value::as_str);
            if !class.is_some_and(|class| known.contains(&class)) {
                return Err(file.invalid(folder, format!("[library, class] with class {}", known.join(" or "))));
            }
        }
        Ok(Self { pipeline })
    }
}
