//! A model without a checkpoint: the architecture of Z-Image-Turbo, or of a folder's configuration files, with random weights.
//! Its pictures are noise; its time and memory are those of the real one.

use std::sync::MutexGuard;

use tch::{Device, Kind, TchError, Tensor};

use crate::LoadError;
use crate::checkpoint::{Configs, Settings};
use crate::config::{SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig};
use crate::noise::generator;
use crate::tokenizer::Tokenizer;

/// Seed of all weights.
const SEED: i64 = 0;

/// Starts the sequence of weights, so that every load gives the same ones on the same device. Keep it until all are made.
pub(crate) fn start() -> MutexGuard<'static, ()> {
    generator(SEED)
}

/// Norms and pad tokens are 1, biases 0, all else normal with a deviation of 0.02.
///
/// # Errors
/// When the device has no memory for it.
pub(crate) fn tensor(name: &str, shape: &[i64], device: Device, kind: Kind) -> Result<Tensor, TchError> {
    let options = (kind, device);
    if name.ends_with(".bias") {
        Tensor::f_zeros(shape, options)
    } else if shape.len() == 1 || name.ends_with("_pad_token") {
        Tensor::f_ones(shape, options)
    } else {
        Tensor::f_empty(shape, options)?.f_normal_(0.0, 0.02)
    }
}

/// Configuration of Z-Image-Turbo, with a tokenizer that makes one token of each word.
///
/// Source: transformer/config.json, vae/config.json, text_encoder/config.json and scheduler/scheduler_config.json of
/// Tongyi-MAI/Z-Image-Turbo.
///
/// # Errors
/// None that depends on the caller: the tokenizer is parsed from a text in this file.
pub(crate) fn turbo() -> Result<Settings, LoadError> {
    Ok(Settings {
        pipeline: "ZImagePipeline".to_owned(),
        tokenizer: Tokenizer::of_words()?,
        scheduler: SchedulerConfig { num_train_timesteps: 1000.0, shift: 3.0 },
        configs: Configs {
            text_encoder: TextEncoderConfig {
                vocab_size: 151_936,
                hidden_size: 2560,
                intermediate_size: 9728,
                num_hidden_layers: 36,
                num_attention_heads: 32,
                num_key_value_heads: 8,
                head_dim: 128,
                rms_norm_eps: 1e-6,
                rope_theta: 1e6,
                max_position_embeddings: 40_960,
                attention_bias: false,
            },
            transformer: TransformerConfig {
                in_channels: 16,
                dim: 3840,
                n_layers: 30,
                n_refiner_layers: 2,
                n_heads: 30,
                norm_eps: 1e-5,
                cap_feat_dim: 2560,
                rope_theta: 256.0,
                t_scale: 1000.0,
                axes_dims: vec![32, 48, 48],
                axes_lens: vec![1536, 512, 512],
            },
            vae: VaeConfig {
                latent_channels: 16,
                out_channels: 3,
                block_out_channels: vec![128, 256, 512, 512],
                layers_per_block: 2,
                norm_num_groups: 32,
                scaling_factor: 0.3611,
                shift_factor: 0.1159,
                use_post_quant_conv: false,
                mid_block_add_attention: true,
                sample_size: 1024,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use imagegen_core::engine::Engine;
    use imagegen_core::spec::{Guidance, ImageSpec, SchedulerKind, Size};

    use super::*;
    use crate::{LoadOptions, TorchEngine};

    #[test]
    fn the_built_in_architecture_is_the_one_of_the_6_billion_checkpoint() {
        let turbo = turbo().unwrap();
        turbo.configs.agree(Path::new("")).unwrap();
        assert_eq!(turbo.configs.max_prompt_tokens(), 512);
        assert_eq!(turbo.configs.vae.scale_factor(), 8);
        let tokens = turbo.tokenizer.encode("one two, three").unwrap().len();
        assert_eq!(turbo.tokenizer.encode("one two, three four").unwrap().len(), tokens + 1);
    }

    #[test]
    fn weights_by_name() {
        let make = |name, shape: &[i64]| tensor(name, shape, Device::Cpu, Kind::Float).unwrap();
        let sequence = start();
        let weight = make("layers.0.w.weight", &[64, 64]);
        let (mean, deviation) = (weight.mean(Kind::Float).double_value(&[]), weight.std(true).double_value(&[]));
        assert!(mean.abs() < 2e-3 && (deviation - 0.02).abs() < 2e-3, "{mean} {deviation}");
        for (name, shape, value) in
            [("norm.weight", &[8][..], 1.0), ("x_pad_token", &[1, 8], 1.0), ("w.bias", &[8], 0.0)]
        {
            assert_eq!(make(name, shape), Tensor::full(shape, value, (Kind::Float, Device::Cpu)), "{name}");
        }
        drop(sequence);
        let _sequence = start();
        assert_eq!(make("layers.0.w.weight", &[64, 64]), weight);
    }

    #[test]
    fn the_configuration_of_a_folder_makes_the_same_noise_each_time() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-a");
        let size = Size { width: 16, height: 16 };
        let spec = ImageSpec {
            prompt: "a red apple".to_owned(),
            negative_prompt: String::new(),
            latent_size: size,
            size,
            steps: 2,
            guidance: Guidance::OFF,
            seed: 1,
            scheduler: SchedulerKind::FlowMatchEuler,
        };
        let picture = || {
            let options = LoadOptions { random_weights: true, ..LoadOptions::new(&folder) };
            let mut engine = TorchEngine::load(&options, &mut |_| {}).unwrap();
            assert!(engine.model().weight_bytes > 0);
            let mut batch = engine.begin(std::slice::from_ref(&spec)).unwrap();
            (0..spec.steps).for_each(|_| engine.step(&mut batch).unwrap());
            engine.decode(&mut batch, 0).unwrap()
        };
        let first = picture();
        assert!(first.data.iter().any(|&value| value != first.data[0]), "numbers, not NaN");
        assert_eq!(picture(), first);
    }
}
