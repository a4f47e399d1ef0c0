//! Broken checkpoints: each is refused with a sentence that names file, key, expected and found.
#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly too")]

use std::fs;
use std::path::{Path, PathBuf};

use imagegen_model::{LoadError, LoadOptions, TorchEngine};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a tiny checkpoint that a test may break.
struct Broken(TempDir);

impl Broken {
    fn copy(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
        copy_folder(&source, folder.path());
        Self(folder)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn edit(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.path(file);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
    }

    fn edit_tensors(&self, file: &str, edit: impl FnOnce(&mut Vec<(String, TensorView<'_>)>)) {
        let bytes = fs::read(self.path(file)).unwrap();
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors = parsed.tensors();
        edit(&mut tensors);
        fs::write(self.path(file), safetensors::serialize(tensors, None).unwrap()).unwrap();
    }

    /// The complaint, after a look that nothing was reported as read before it.
    fn error(&self) -> LoadError {
        let mut reports = 0;
        let error = TorchEngine::load(&LoadOptions::new(self.0.path()), &mut |_| reports += 1).unwrap_err();
        assert_eq!(reports, 0, "weights were read before the checkpoint was refused: {error}");
        error
    }

    #[track_caller]
    fn assert_refused(&self, category: &str, parts: &[&str]) {
        let error = self.error();
        let text = error.to_string();
        assert_eq!(error.category(), category, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const KEY: &str = "layers.1.attention.to_k.weight";

#[test]
fn the_copy_itself_loads() {
    for name in ["tiny-a", "tiny-b"] {
        TorchEngine::load(&LoadOptions::new(Broken::copy(name).0.path()), &mut |_| {}).unwrap();
    }
}

#[test]
fn no_folder() {
    let error = TorchEngine::load(&LoadOptions::new("/no/such/model"), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("/no/such/model") && error.contains("model_index.json"), "{error}");
}

#[test]
fn missing_shard() {
    let model = Broken::copy("tiny-b");
    let shard = "diffusion_pytorch_model-00002-of-00004.safetensors";
    fs::remove_file(model.path(&format!("transformer/{shard}"))).unwrap();
    model.assert_refused(
        "missing_shard",
        &[shard, "diffusion_pytorch_model.safetensors.index.json", "expects tensor \""],
    );
}

#[test]
fn missing_weight_file() {
    let model = Broken::copy("tiny-a");
    fs::remove_file(model.path(TRANSFORMER)).unwrap();
    model.assert_refused("unreadable", &[TRANSFORMER]);
}

#[test]
fn truncated_weight_file() {
    let model = Broken::copy("tiny-a");
    let bytes = fs::read(model.path(TRANSFORMER)).unwrap();
    for length in [0, 4, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(model.path(TRANSFORMER), &bytes[..length]).unwrap();
        let error = model.error();
        let text = error.to_string();
        assert!(text.contains(TRANSFORMER), "{text}");
        assert!(["damaged", "unreadable"].contains(&error.category()), "{length}: {text}");
    }
}

#[test]
fn missing_tensor() {
    let model = Broken::copy("tiny-a");
    model.edit_tensors(TRANSFORMER, |tensors| tensors.retain(|(name, _)| name != KEY));
    model.assert_refused("missing_tensor", &[TRANSFORMER, KEY, "[32, 32]"]);
}

#[test]
fn wrong_shape() {
    let model = Broken::copy("tiny-a");
    model.edit_tensors(TRANSFORMER, |tensors| {
        let tensor = tensors.iter_mut().find(|(name, _)| name == KEY).unwrap();
        tensor.1 = TensorView::new(Dtype::BF16, vec![64, 16], tensor.1.data()).unwrap();
    });
    model.assert_refused("shape", &[TRANSFORMER, KEY, "expected shape [32, 32]", "found [64, 16]"]);
}

#[test]
fn wrong_dtype() {
    let model = Broken::copy("tiny-a");
    model.edit_tensors(TRANSFORMER, |tensors| {
        let tensor = tensors.iter_mut().find(|(name, _)| name == KEY).unwrap();
        tensor.1 = TensorView::new(Dtype::I16, vec![32, 32], tensor.1.data()).unwrap();
    });
    model.assert_refused("dtype", &[TRANSFORMER, KEY, "expected dtype F32, BF16 or F16", "found I16"]);
}

#[test]
fn extra_tensor() {
    static ZEROS: [u8; 8] = [0; 8];
    let model = Broken::copy("tiny-a");
    let extra = |name: &str| (name.to_owned(), TensorView::new(Dtype::F32, vec![2], &ZEROS).unwrap());
    model.edit_tensors(TRANSFORMER, |tensors| tensors.push(extra("layers.2.attention_norm1.weight")));
    model.assert_refused(
        "extra_tensor",
        &[TRANSFORMER, "layers.2.attention_norm1.weight", "[2]", "ZImageTransformer2DModel"],
    );
}

#[test]
fn tensors_that_generation_does_not_use_may_be_there_or_not() {
    static ZEROS: [u8; 8] = [0; 8];
    let model = Broken::copy("tiny-a");
    let extra = |name: &str| (name.to_owned(), TensorView::new(Dtype::F32, vec![2], &ZEROS).unwrap());
    model.edit_tensors("text_encoder/model.safetensors", |tensors| {
        tensors.retain(|(name, _)| name != "norm.weight" && !name.starts_with("layers.2."));
        tensors.push(extra("lm_head.weight"));
    });
    model.edit_tensors("vae/diffusion_pytorch_model.safetensors", |tensors| {
        tensors.retain(|(name, _)| !name.starts_with("encoder."));
        tensors.push(extra("quant_conv.weight"));
    });
    TorchEngine::load(&LoadOptions::new(model.0.path()), &mut |_| {}).unwrap();
}

#[test]
fn missing_or_wrong_config_fields() {
    let table = [
        ("transformer/config.json", "dim", json!(null), "a whole number of at least 1"),
        ("transformer/config.json", "n_heads", json!("two"), "found \"two\""),
        ("transformer/config.json", "qk_norm", json!(false), "true"),
        ("transformer/config.json", "all_patch_size", json!([4]), "[2]"),
        ("transformer/config.json", "axes_dims", json!([8, 4]), "three even numbers"),
        ("transformer/config.json", "cap_feat_dim", json!(24), "hidden_size of text_encoder/config.json, 16"),
        ("text_encoder/config.json", "head_dim", json!(null), "found nothing"),
        ("text_encoder/config.json", "hidden_act", json!("gelu"), "\"silu\""),
        ("text_encoder/config.json", "rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1.0}), "\"default\""),
        ("vae/config.json", "shift_factor", json!(null), "a number"),
        ("vae/config.json", "up_block_types", json!(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]), "UpDecoderBlock2D"),
        ("scheduler/scheduler_config.json", "use_dynamic_shifting", json!(true), "false, the only one implemented"),
        ("scheduler/scheduler_config.json", "shift", json!(0), "above 0"),
        ("model_index.json", "transformer", json!(["diffusers", "FluxTransformer2DModel"]), "ZImageTransformer2DModel"),
        ("model_index.json", "_class_name", json!("FluxPipeline"), "found \"FluxPipeline\""),
    ];
    for (file, key, value, expected) in table {
        let model = Broken::copy("tiny-a");
        model.edit(file, |config| match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            _ => config[key] = value,
        });
        model.assert_refused("config", &[file, key, expected]);
    }
}

#[test]
fn config_that_is_not_json() {
    let model = Broken::copy("tiny-a");
    fs::write(model.path("vae/config.json"), "{\"act_fn\": ").unwrap();
    model.assert_refused("config", &["vae/config.json", "is not a JSON object"]);
}

#[test]
fn tokenizer_without_or_with_a_broken_chat_template() {
    let model = Broken::copy("tiny-b");
    let config = "tokenizer/tokenizer_config.json";
    model.edit(config, |config| drop(config.as_object_mut().unwrap().remove("chat_template")));
    model.assert_refused("config", &[config, "chat_template", "found nothing", "chat_template.jinja"]);

    model.edit(config, |config| config["chat_template"] = json!("{% for %}"));
    model.assert_refused("tokenizer", &[config, "expected a Jinja chat template"]);
    model.edit(config, |config| config["chat_template"] = json!("no message at all"));
    model.assert_refused("tokenizer", &[config, "keeps the user's message"]);
    fs::write(model.path("tokenizer/chat_template.jinja"), "{{ raise_exception('not today') }}").unwrap();
    model.assert_refused("tokenizer", &["chat_template.jinja", "not today"]);
}

#[test]
fn tokenizer_that_is_none() {
    let model = Broken::copy("tiny-a");
    fs::write(model.path("tokenizer/tokenizer.json"), "{}").unwrap();
    model.assert_refused("tokenizer", &["tokenizer/tokenizer.json", "not a tokenizer"]);
    fs::remove_file(model.path("tokenizer/tokenizer.json")).unwrap();
    model.assert_refused("unreadable", &["tokenizer/tokenizer.json"]);
}
