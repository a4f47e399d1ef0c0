//! The Z-Image transformer.
//!
//! Source: diffusers 0.42.1 `models/transformers/transformer_z_image.py`. What depends on the prompt alone (caption
//! features, positions) is computed once for a request in [`Transformer::condition`], what depends on the time alone
//! (modulations) once in [`Transformer::modulate`], and the rest in [`Transformer::forward`].

mod block;
mod modulation;
mod rope;
mod timestep;
mod tokens;

use tch::Tensor;

use crate::LoadError;
use crate::config::TransformerConfig;
use crate::nn::{Lengths, Linear, prepare_attention, rms_norm};
use crate::weights::Weights;
pub(crate) use block::{Block, Factors, forward as through};
pub(crate) use modulation::{AdaLn, Modulation};
use rope::RopeTables;
use timestep::TimestepEmbedder;
pub(crate) use tokens::{Grid, padded_len};

/// `ZImageTransformer2DModel` in its basic mode; fields are named as the checkpoint's keys.
#[derive(Debug)]
pub(crate) struct Transformer {
    pub(crate) config: TransformerConfig,
    x_embedder: Linear,
    final_linear: Linear,
    final_modulation: Linear,
    noise_refiner_adaln: AdaLn,
    pub(crate) layers_adaln: AdaLn,
    noise_refiner: Vec<Block>,
    pub(crate) context_refiner: Vec<Block>,
    pub(crate) layers: Vec<Block>,
    pub(crate) t_embedder: TimestepEmbedder,
    cap_norm: Tensor,
    cap_linear: Linear,
    x_pad_token: Tensor,
    cap_pad_token: Tensor,
    pub(crate) rope: RopeTables,
}

/// What a forward pass needs of the prompts. Valid for one latent size, all steps.
#[derive(Debug)]
pub(crate) struct Conditioning {
    grid: Grid,
    captions: Vec<Tensor>,
    image_lengths: Lengths,
    image_rope: Tensor,
    unified_lengths: Lengths,
    unified_rope: Tensor,
}

impl Conditioning {
    /// Of the first `count` prompts alone.
    pub(crate) fn first(&self, count: usize) -> Self {
        let lengths = |all: &Lengths| Lengths::new(all.as_slice()[..count].to_vec());
        let rows = |rope: &Tensor, lengths: &Lengths| rope.narrow(0, 0, lengths.as_slice().iter().sum());
        let (image_lengths, unified_lengths) = (lengths(&self.image_lengths), lengths(&self.unified_lengths));
        Self {
            grid: self.grid,
            captions: self.captions[..count].iter().map(Tensor::shallow_clone).collect(),
            image_rope: rows(&self.image_rope, &image_lengths),
            unified_rope: rows(&self.unified_rope, &unified_lengths),
            image_lengths,
            unified_lengths,
        }
    }
}

/// What a forward pass needs of the time, for all steps of a schedule.
#[derive(Debug)]
pub(crate) struct Modulations {
    noise_refiner: Modulation,
    layers: Modulation,
    /// `[steps, dim]`
    final_scale: Tensor,
}

impl Transformer {
    /// # Errors
    /// When a tensor is missing or not as the configuration says.
    pub(crate) fn new(
        weights: &mut Weights<'_>,
        config: &TransformerConfig,
        device: tch::Device,
    ) -> Result<Self, LoadError> {
        let (dim, adaln_dim) = (config.dim, config.adaln_dim());
        let mut blocks = |stack: &str, count: i64| -> Result<Vec<Block>, LoadError> {
            (0..count).map(|index| Block::new(weights, config, &format!("{stack}.{index}"))).collect()
        };
        Ok(Self {
            noise_refiner: blocks("noise_refiner", config.n_refiner_layers)?,
            context_refiner: blocks("context_refiner", config.n_refiner_layers)?,
            layers: blocks("layers", config.n_layers)?,
            noise_refiner_adaln: AdaLn::new(weights, config, "noise_refiner", config.n_refiner_layers)?,
            layers_adaln: AdaLn::new(weights, config, "layers", config.n_layers)?,
            x_embedder: weights.linear("all_x_embedder.2-1", config.patch_dim(), dim, true)?,
            final_linear: weights.linear("all_final_layer.2-1.linear", dim, config.patch_dim(), true)?,
            final_modulation: weights.linear("all_final_layer.2-1.adaLN_modulation.1", adaln_dim, dim, true)?,
            t_embedder: TimestepEmbedder::new(weights, adaln_dim)?,
            cap_norm: weights.norm("cap_embedder.0", config.cap_feat_dim)?,
            cap_linear: weights.linear("cap_embedder.1", config.cap_feat_dim, dim, true)?,
            x_pad_token: weights.tensor("x_pad_token", &[1, dim])?,
            cap_pad_token: weights.tensor("cap_pad_token", &[1, dim])?,
            rope: RopeTables::new(config, device),
            config: config.clone(),
        })
    }

    /// Embeds and refines the captions, and looks up all positions, for latents of `grid`.
    ///
    /// # Shapes
    /// Each caption `[tokens, cap_feat_dim]`, at least one.
    ///
    /// Source: `patchify_and_embed`, `_pad_with_ids`, `_prepare_sequence` and the caption part of `forward`.
    pub(crate) fn condition(&self, captions: &[Tensor], grid: Grid) -> Conditioning {
        let tokens: Vec<i64> = captions.iter().map(|caption| caption.size()[0]).collect();
        let lengths = Lengths::new(tokens.iter().map(|&length| padded_len(length)).collect());

        let caption_ropes: Vec<Tensor> =
            lengths.as_slice().iter().map(|&length| self.rope.lookup(&tokens::caption_positions(length))).collect();
        let features = Tensor::cat(captions, 0);
        let embedded = self.cap_linear.forward(&rms_norm(&features, &self.cap_norm, self.config.norm_eps));
        let padded: Vec<Tensor> = embedded
            .split_with_sizes(&tokens, 0)
            .iter()
            .zip(lengths.as_slice())
            .map(|(caption, &length)| with_pads(caption, &self.cap_pad_token, length))
            .collect();
        let refined = Tensor::cat(&padded, 0);
        let rope = Tensor::cat(&caption_ropes, 0);
        let factors: Vec<Factors> = self.context_refiner.iter().map(|block| Factors::of(block.norms())).collect();
        let refined = through(&self.context_refiner, &factors, refined, &lengths, &rope);

        let image_ropes: Vec<Tensor> =
            lengths.as_slice().iter().map(|&length| self.rope.lookup(&grid.positions(length))).collect();
        let unified: Vec<&Tensor> =
            image_ropes.iter().zip(&caption_ropes).flat_map(|(x, caption)| [x, caption]).collect();
        let image_len = grid.padded_tokens();
        let image_lengths = Lengths::new(vec![image_len; captions.len()]);
        let unified_lengths = Lengths::new(lengths.as_slice().iter().map(|&length| image_len + length).collect());
        for lengths in [&image_lengths, &unified_lengths] {
            prepare_attention(refined.device(), refined.kind(), lengths, self.config.n_heads, self.config.head_dim());
        }
        Conditioning {
            grid,
            captions: refined.split_with_sizes(lengths.as_slice(), 0),
            image_lengths,
            image_rope: Tensor::cat(&image_ropes, 0),
            unified_lengths,
            unified_rope: Tensor::cat(&unified, 0),
        }
    }

    /// Modulations of every block at every step. `times` are model times, 0 at pure noise and 1 at the picture.
    ///
    /// Source: `ZImageTransformerBlock.forward` and `FinalLayer.forward`, the lines on `adaLN_modulation`.
    pub(crate) fn modulate(&self, times: &[f32]) -> Modulations {
        let embedded = self.t_embedder.forward(times, self.config.t_scale, self.x_pad_token.device());
        Modulations {
            noise_refiner: self.noise_refiner_adaln.modulate(&self.noise_refiner, &embedded),
            layers: self.layers_adaln.modulate(&self.layers, &embedded),
            final_scale: self.final_modulation.forward(&embedded.silu()) + 1.0,
        }
    }

    /// The model's output (the negated noise prediction) for `latents` at step `step` of `modulations`.
    ///
    /// # Shapes
    /// `[B, in_channels, H, W]` of any type, to the same shape in the model's type; B as in `conditioning`.
    ///
    /// Source: `forward` in basic mode, `_build_unified_sequence`, `FinalLayer.forward`.
    pub(crate) fn forward(
        &self,
        latents: &Tensor,
        conditioning: &Conditioning,
        modulations: &Modulations,
        step: usize,
    ) -> Tensor {
        let grid = conditioning.grid;
        let patches = grid.patchify(&latents.to_kind(self.x_pad_token.kind())); // [B, tokens, patch_dim]
        let mut x = self.x_embedder.forward(&patches);
        let (batch, image_len) = (x.size()[0], grid.padded_tokens());
        if image_len > grid.tokens() {
            let pads = self.x_pad_token.expand([batch, image_len - grid.tokens(), self.config.dim], false);
            x = Tensor::cat(&[x, pads], 1);
        }
        let x = x.view([-1, self.config.dim]);
        let factors = modulations.noise_refiner.at(step);
        let x = through(&self.noise_refiner, &factors, x, &conditioning.image_lengths, &conditioning.image_rope);

        let images = x.split(image_len, 0);
        let parts: Vec<&Tensor> =
            images.iter().zip(&conditioning.captions).flat_map(|(x, caption)| [x, caption]).collect();
        let unified = Tensor::cat(&parts, 0);
        let factors = modulations.layers.at(step);
        let unified =
            through(&self.layers, &factors, unified, &conditioning.unified_lengths, &conditioning.unified_rope);

        let images: Vec<Tensor> =
            conditioning.unified_lengths.ranges().map(|(start, _)| unified.narrow(0, start, grid.tokens())).collect();
        let images = Tensor::stack(&images, 0); // [B, tokens, dim]
        let normed = images.layer_norm([self.config.dim], None::<&Tensor>, None::<&Tensor>, FINAL_NORM_EPS, true);
        let scale = modulations.final_scale.select(0, step_index(step));
        grid.unpatchify(&self.final_linear.forward(&(normed * scale)), self.config.in_channels)
    }
}

/// Of `FinalLayer.norm_final`.
const FINAL_NORM_EPS: f64 = 1e-6;

/// Steps are counted in `u32`.
fn step_index(step: usize) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

/// `features` `[tokens, dim]` followed by `pad` up to `length` rows.
fn with_pads(features: &Tensor, pad: &Tensor, length: i64) -> Tensor {
    let missing = length - features.size()[0];
    if missing == 0 {
        return features.shallow_clone();
    }
    Tensor::cat(&[features.shallow_clone(), pad.expand([missing, -1], false)], 0)
}
