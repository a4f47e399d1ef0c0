//! Prompt to tokens: the checkpoint's chat template around it, then its tokenizer.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};
use serde_json::Value as Json;
use tokenizers::Tokenizer as Tokens;

use crate::LoadError;
use crate::config::ConfigFile;

const TEMPLATE: &str = "chat_template";

/// The checkpoint's tokenizer and chat template.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    tokens: Tokens,
    templates: Environment<'static>,
    special_tokens: Vec<(String, String)>,
}

/// Why a prompt has no tokens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenizeError {
    #[error("the chat template cannot be rendered: {0:#}")]
    Template(#[from] minijinja::Error),
    #[error("the tokenizer refuses the prompt: {0}")]
    Tokens(String),
}

impl Tokenizer {
    /// # Errors
    /// When a file is missing or broken, or there is no chat template.
    pub(crate) fn read(model_dir: &Path) -> Result<Self, LoadError> {
        let folder = model_dir.join("tokenizer");
        let path = folder.join("tokenizer.json");
        if let Err(source) = std::fs::metadata(&path) {
            return Err(LoadError::Unreadable { path, expected: "the tokenizer's vocabulary".to_owned(), source });
        }
        let mut tokens = Tokens::from_file(&path).map_err(|error| LoadError::Tokenizer {
            path: path.clone(),
            detail: format!("not a tokenizer: {error}"),
        })?;
        tokens.with_padding(None);
        tokens.with_truncation(None).map_err(|error| LoadError::Tokenizer {
            path,
            detail: format!("truncation cannot be switched off: {error}"),
        })?;

        let config = ConfigFile::read(folder.join("tokenizer_config.json"), "the tokenizer's settings")?;
        let (source, path) = chat_template(&folder, &config)?;
        let tokenizer =
            Self { tokens, templates: environment(source, &path)?, special_tokens: special_tokens(&config) };
        match tokenizer.render("a prompt") {
            Ok(text) if text.contains("a prompt") => Ok(tokenizer),
            Ok(text) => {
                let detail =
                    format!("expected a chat template that keeps the user's message, found one that gives {text:?}");
                Err(LoadError::Tokenizer { path, detail })
            }
            Err(error) => Err(LoadError::Tokenizer { path, detail: error.to_string() }),
        }
    }

    /// One token for each word and each run of other characters, all the same; for weights that know no words either.
    ///
    /// # Errors
    /// Never: the text that it is made of stands here.
    pub(crate) fn of_words() -> Result<Self, LoadError> {
        const WORDS: &[u8] = br#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": {"word": 0}, "unk_token": "word"}}"#;
        let path = PathBuf::from("the built-in tokenizer");
        let tokens = Tokens::from_bytes(WORDS)
            .map_err(|error| LoadError::Tokenizer { path: path.clone(), detail: error.to_string() })?;
        Ok(Self {
            tokens,
            templates: environment("{{ messages[0].content }}".to_owned(), &path)?,
            special_tokens: vec![],
        })
    }

    /// Tokens of `prompt` with the chat template around it, not cut.
    ///
    /// # Errors
    /// When the template or the tokenizer refuses it.
    pub(crate) fn encode(&self, prompt: &str) -> Result<Vec<u32>, TokenizeError> {
        let text = self.render(prompt)?;
        let encoding = self.tokens.encode_fast(text, true).map_err(|error| TokenizeError::Tokens(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `prompt` as the one message of a user, followed by the opening of an answer.
    ///
    /// Source: diffusers 0.42.1 `pipelines/z_image/pipeline_z_image.py` `_encode_prompt`; transformers 5.23.0
    /// `utils/chat_template_utils.py` `render_jinja_template`.
    fn render(&self, prompt: &str) -> Result<String, minijinja::Error> {
        let special: Value = self.special_tokens.iter().map(|(name, token)| (name.as_str(), token.as_str())).collect();
        let message = context! { role => "user", content => prompt };
        self.templates.get_template(TEMPLATE)?.render(context! {
            messages => vec![message],
            tools => (),
            documents => (),
            add_generation_prompt => true,
            enable_thinking => true,
            ..special
        })
    }
}

/// The text of the chat template and the file it is in. A file of its own goes before the field, as in transformers.
fn chat_template(folder: &Path, config: &ConfigFile) -> Result<(String, PathBuf), LoadError> {
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok((source, path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(LoadError::Unreadable { path, expected: "the chat template".to_owned(), source }),
    }
    let source = match config.get(TEMPLATE) {
        Some(Json::String(source)) => Some(source.as_str()),
        Some(Json::Array(templates)) => templates.iter().find_map(default_template),
        _ => None,
    };
    let source =
        source.ok_or_else(|| config.invalid(TEMPLATE, format!("a chat template here or in {}", path.display())))?;
    Ok((source.to_owned(), config.path().to_owned()))
}

fn default_template(named: &Json) -> Option<&str> {
    if named.get("name")? == "default" { named.get("template")?.as_str() } else { None }
}

/// What transformers gives to a template: block trimming, Python's methods, `raise_exception`.
fn environment(source: String, path: &Path) -> Result<Environment<'static>, LoadError> {
    let mut templates = Environment::new();
    templates.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the default delimiters differ from each other"),
    );
    templates.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    templates.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
    });
    templates.add_template_owned(TEMPLATE, source).map_err(|error| LoadError::Tokenizer {
        path: path.to_owned(),
        detail: format!("expected a Jinja chat template, found {error:#}"),
    })?;
    Ok(templates)
}

/// Fields like `eos_token`, which templates may name. A token is a text or an object with the text in `content`.
fn special_tokens(config: &ConfigFile) -> Vec<(String, String)> {
    let text = |value: &Json| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    ["bos_token", "eos_token", "unk_token", "pad_token"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), text(config.get(name)?)?)))
        .collect()
}
