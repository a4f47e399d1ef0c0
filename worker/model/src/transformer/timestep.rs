//! The embedding of the time.

use tch::{Device, Kind, Tensor};

use crate::LoadError;
use crate::nn::Linear;
use crate::weights::Weights;

/// `TimestepEmbedder`.
#[derive(Debug)]
pub(crate) struct TimestepEmbedder {
    mlp_0: Linear,
    mlp_2: Linear,
    kind: Kind,
}

impl TimestepEmbedder {
    /// `frequency_embedding_size` of the original.
    const FREQUENCIES: i64 = 256;
    /// `mid_size` that the transformer gives.
    const INNER: i64 = 1024;
    /// `max_period` of the original.
    const MAX_PERIOD: f64 = 10_000.0;

    /// # Errors
    /// When a tensor is missing or not as the configuration says.
    pub(crate) fn new(weights: &mut Weights<'_>, outputs: i64) -> Result<Self, LoadError> {
        Ok(Self {
            mlp_0: weights.linear("t_embedder.mlp.0", Self::FREQUENCIES, Self::INNER, true)?,
            mlp_2: weights.linear("t_embedder.mlp.2", Self::INNER, outputs, true)?,
            kind: weights.kind(),
        })
    }

    /// `[times, outputs]`. Times are multiplied by `t_scale` and kept in float32 up to the sinusoids.
    ///
    /// Source: diffusers 0.42.1 `models/transformers/transformer_z_image.py` `TimestepEmbedder.timestep_embedding`, `.forward`.
    #[allow(clippy::cast_possible_truncation, reason = "the original multiplies in float32")]
    pub(crate) fn forward(&self, times: &[f32], t_scale: f64, device: Device) -> Tensor {
        let half = Self::FREQUENCIES / 2;
        let scaled: Vec<f32> = times.iter().map(|time| time * t_scale as f32).collect();
        let exponents = Tensor::arange(half, (Kind::Float, device)) * -Self::MAX_PERIOD.ln() / half as f64;
        let angles = Tensor::from_slice(&scaled).to_device(device).unsqueeze(1) * exponents.exp().unsqueeze(0);
        let sinusoids = Tensor::cat(&[angles.cos(), angles.sin()], 1).to_kind(self.kind);
        self.mlp_2.forward(&self.mlp_0.forward(&sinusoids).silu())
    }
}
