//! Norms.

use tch::{Kind, Tensor};

/// `1 / sqrt(mean(x²) + eps)` over the last dimension, kept with size 1, in float32.
pub(crate) fn inverse_rms(x: &Tensor, eps: f64) -> Tensor {
    let x = x.to_kind(Kind::Float);
    let width = x.size().last().copied().unwrap_or(1);
    let norm = x.norm_scalaropt_dim(2.0, [-1].as_slice(), true);
    let mut mean_square = &norm * &norm;
    mean_square *= 1.0 / f64::from(i32::try_from(width).unwrap_or(i32::MAX));
    mean_square += eps;
    mean_square.rsqrt_()
}

/// `x / rms(x) * weight` over the last dimension, with `weight` broadcast.
///
/// Source: diffusers 0.42.1 `models/normalization.py` `RMSNorm.forward`; transformers 5.23.0
/// `models/qwen3/modeling_qwen3.py` `Qwen3RMSNorm.forward` is the same for one type of all numbers.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let mut normed = (x * inverse_rms(x, eps)).to_kind(weight.kind());
    normed *= weight;
    normed
}

/// Group norm over `[B, C, H, W]`.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) groups: i64,
}

impl GroupNorm {
    /// Of the VAE's norms, all of which have the same.
    const EPS: f64 = 1e-6;

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), Self::EPS, true)
    }
}
