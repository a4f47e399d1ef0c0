//! A whole checkpoint, read in two passes: everything is checked before the first weight is read.

use std::path::{Path, PathBuf};

use crate::LoadError;
use crate::config::{ModelIndex, SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig};
use crate::load::{LoadOptions, LoadProgress, Precision};
use crate::random;
use crate::text_encoder::TextEncoder;
use crate::tokenizer::Tokenizer;
use crate::transformer::Transformer;
use crate::vae::VaeDecoder;
use crate::weights::{OnRead, Shards, Tally, Weights};

/// All parts of a checkpoint.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) pipeline: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) text_encoder: TextEncoder,
    pub(crate) transformer: Transformer,
    pub(crate) vae: VaeDecoder,
    pub(crate) configs: Configs,
    /// Resident bytes of all weights.
    pub(crate) weight_bytes: u64,
    /// Numbers in all weights.
    pub(crate) parameters: u64,
}

/// All of a checkpoint but its weights.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) pipeline: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) configs: Configs,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self, LoadError> {
        let dir = existing_folder(dir)?;
        let ModelIndex { pipeline } = ModelIndex::read(dir)?;
        Ok(Self {
            pipeline,
            scheduler: SchedulerConfig::read(dir)?,
            tokenizer: Tokenizer::read(dir)?,
            configs: Configs::read(dir)?,
        })
    }
}

/// Settings of the networks.
#[derive(Debug)]
pub(crate) struct Configs {
    pub(crate) text_encoder: TextEncoderConfig,
    pub(crate) transformer: TransformerConfig,
    pub(crate) vae: VaeConfig,
}

/// One network: where its tensors are, how they are walked, and what else may lie there.
struct Network<'a, N> {
    component: &'static str,
    class: &'static str,
    shards: Shards,
    prefix: &'static str,
    precision: Precision,
    build: &'a dyn Fn(&mut Weights<'_>) -> Result<N, LoadError>,
    may_be_unused: &'a dyn Fn(&str) -> bool,
}

impl<N> Network<'_, N> {
    /// Compares names, shapes and types with the files.
    fn check(&self) -> Result<Tally, LoadError> {
        let mut weights = Weights::check(&self.shards, self.component, self.prefix, self.precision);
        (self.build)(&mut weights)?;
        weights.finish(self.class, self.may_be_unused)
    }

    fn read(&self, device: tch::Device, on_read: OnRead<'_>) -> Result<N, LoadError> {
        let shards = &self.shards;
        (self.build)(&mut Weights::read(shards, self.component, self.prefix, self.precision, device, on_read))
    }
}

impl Checkpoint {
    /// # Errors
    /// When any file is missing or not as expected; nothing stays loaded then.
    pub(crate) fn read(options: &LoadOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<Self, LoadError> {
        let dir = &options.model_dir;
        let Settings { pipeline, tokenizer, scheduler, configs } =
            if options.has_built_in_model() { random::turbo()? } else { Settings::read(dir)? };
        let _sequence = options.random_weights.then(random::start);
        let device = options.device.tch();
        let (networks, tallies) = configs.networks(options, |text_encoder, transformer, vae| {
            let tallies = [text_encoder.check()?, transformer.check()?, vae.check()?];
            let total_bytes = tallies.iter().map(|tally| tally.file_bytes).sum();
            let mut loaded_bytes = 0;
            let mut on_read = |bytes: u64| {
                loaded_bytes += bytes;
                progress(LoadProgress { loaded_bytes, total_bytes });
            };
            on_read(0);
            let networks = (
                text_encoder.read(device, &mut on_read)?,
                transformer.read(device, &mut on_read)?,
                vae.read(device, &mut on_read)?,
            );
            Ok((networks, tallies))
        })?;
        let (text_encoder, transformer, vae) = networks;
        Ok(Self {
            pipeline,
            tokenizer,
            scheduler,
            text_encoder,
            transformer,
            vae,
            configs,
            weight_bytes: tallies.iter().map(|tally| tally.resident_bytes).sum(),
            parameters: tallies.iter().map(|tally| tally.parameters).sum(),
        })
    }

    /// Compares all files with the configuration, and reads no weight.
    ///
    /// # Errors
    /// When [`Self::read`] would fail over a file.
    pub(crate) fn check(options: &LoadOptions) -> Result<(), LoadError> {
        let dir = existing_folder(&options.model_dir)?;
        ModelIndex::read(dir)?;
        SchedulerConfig::read(dir)?;
        Tokenizer::read(dir)?;
        Configs::read(dir)?.networks(options, |text_encoder, transformer, vae| {
            text_encoder.check()?;
            transformer.check()?;
            vae.check().map(|_| ())
        })
    }
}

impl Configs {
    /// # Errors
    /// When a file is not as expected, or one network's does not fit another's.
    fn read(dir: &Path) -> Result<Self, LoadError> {
        let configs = Self {
            text_encoder: TextEncoderConfig::read(dir)?,
            transformer: TransformerConfig::read(dir)?,
            vae: VaeConfig::read(dir)?,
        };
        configs.agree(dir)?;
        Ok(configs)
    }

    /// What `work` does with the three networks, whose weight files are opened for it.
    fn networks<T>(
        &self,
        options: &LoadOptions,
        work: impl FnOnce(
            Network<'_, TextEncoder>,
            Network<'_, Transformer>,
            Network<'_, VaeDecoder>,
        ) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        let (open, device, precision) = (weight_files(options), options.device.tch(), options.precision);
        let shards = open("text_encoder", "model")?;
        let text_encoder = Network {
            component: "text_encoder",
            class: "Qwen3Model",
            // Saved from the bare model or from the one with a head.
            prefix: if shards.contains("model.embed_tokens.weight") { "model." } else { "" },
            shards,
            precision,
            build: &|weights| TextEncoder::new(weights, &self.text_encoder),
            may_be_unused: &|name| TextEncoder::may_be_unused(&self.text_encoder, name),
        };
        let transformer = Network {
            component: "transformer",
            class: "ZImageTransformer2DModel",
            prefix: "",
            shards: open("transformer", "diffusion_pytorch_model")?,
            precision,
            build: &|weights| Transformer::new(weights, &self.transformer, device),
            may_be_unused: &|_| false,
        };
        let vae = Network {
            component: "vae",
            class: "AutoencoderKL",
            prefix: "",
            shards: open("vae", "diffusion_pytorch_model")?,
            precision: options.vae_precision.unwrap_or(precision),
            build: &|weights| VaeDecoder::new(weights, &self.vae),
            may_be_unused: &|name| VaeDecoder::may_be_unused(&self.vae, name),
        };
        work(text_encoder, transformer, vae)
    }

    /// What one network hands to the next must fit.
    pub(crate) fn agree(&self, dir: &Path) -> Result<(), LoadError> {
        let disagree = |key: &str, expected: String, found: i64| LoadError::Field {
            path: dir.join("transformer/config.json"),
            key: key.to_owned(),
            expected,
            found: found.to_string(),
        };
        let (captions, latents) = (self.transformer.cap_feat_dim, self.transformer.in_channels);
        if captions != self.text_encoder.hidden_size {
            let expected = format!("hidden_size of text_encoder/config.json, {}", self.text_encoder.hidden_size);
            return Err(disagree("cap_feat_dim", expected, captions));
        }
        if latents != self.vae.latent_channels {
            let expected = format!("latent_channels of vae/config.json, {}", self.vae.latent_channels);
            return Err(disagree("in_channels", expected, latents));
        }
        if self.max_prompt_tokens() < 1 {
            return Err(disagree(
                "axes_lens",
                "a first number of at least 34".to_owned(),
                self.transformer.axes_lens[0],
            ));
        }
        Ok(())
    }

    /// Longest prompt in tokens: diffusers cuts at 512, the position table has to hold the padded caption, position 0 and the
    /// image behind it.
    pub(crate) fn max_prompt_tokens(&self) -> i64 {
        const DIFFUSERS_MAX_SEQUENCE_LENGTH: i64 = 512;
        let table = (self.transformer.axes_lens[0] - 2) / 32 * 32;
        DIFFUSERS_MAX_SEQUENCE_LENGTH.min(table).min(self.text_encoder.max_position_embeddings)
    }
}

/// Opens the weight files of a part by its folder and the stem of their names.
fn weight_files(options: &LoadOptions) -> impl Fn(&str, &str) -> Result<Shards, LoadError> {
    |folder, stem| match options.random_weights {
        true => Ok(Shards::random()),
        false => Shards::open(&options.model_dir.join(folder), stem),
    }
}

fn existing_folder(dir: &Path) -> Result<&Path, LoadError> {
    let unreadable = |source| LoadError::Unreadable {
        path: PathBuf::from(dir),
        expected: "a folder with model_index.json in it".to_owned(),
        source,
    };
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => Ok(dir),
        Ok(_) => Err(unreadable(std::io::ErrorKind::NotADirectory.into())),
        Err(source) => Err(unreadable(source)),
    }
}
