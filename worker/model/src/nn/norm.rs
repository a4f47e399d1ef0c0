//! Norms.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tch::{Kind, Tensor};

use super::fused;

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

/// `x / rms(x) * weight` over the last dimension, with `weight` broadcast, rounded once to the type of `x`.
///
/// Source: diffusers 0.42.1 `models/normalization.py` `RMSNorm.forward`; transformers 5.23.0
/// `models/qwen3/modeling_qwen3.py` `Qwen3RMSNorm.forward` is the same for one type of all numbers.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let mut normed = x * inverse_rms(x, eps);
    normed *= weight;
    normed.to_kind(x.kind())
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

    /// With statistics of `x` or, where `statistics` has some, of what they were noted from.
    pub(crate) fn forward(&self, x: &Tensor, statistics: &Statistics) -> Tensor {
        match statistics {
            Statistics::Own => self.own(x, false),
            Statistics::Noted(noted) => {
                noted.borrow_mut().push(self.scale_and_shift(x));
                self.forward(x, &Statistics::Own)
            }
            Statistics::Shared { noted, next } => {
                let (scale, shift) = &noted[next.replace(next.get() + 1)];
                shift.to_kind(x.kind()).addcmul(x, &scale.to_kind(x.kind()))
            }
        }
    }

    /// `silu` of [`Self::forward`].
    pub(crate) fn forward_silu(&self, x: &Tensor, statistics: &Statistics) -> Tensor {
        match statistics {
            Statistics::Own => self.own(x, true),
            Statistics::Noted(_) | Statistics::Shared { .. } => self.forward(x, statistics).silu_(),
        }
    }

    fn own(&self, x: &Tensor, activate: bool) -> Tensor {
        fused::group_norm(x, &self.weight, &self.bias, self.groups, Self::EPS, activate)
    }

    /// What the norm does to each channel of one image, `[1, C, 1, 1]` in float32.
    fn scale_and_shift(&self, x: &Tensor) -> (Tensor, Tensor) {
        let channels = self.weight.size()[0];
        let groups = x.to_kind(Kind::Float).reshape([self.groups, -1]);
        let (variance, mean) = groups.var_mean_dim([1].as_slice(), false, true);
        let per_channel = |x: Tensor| x.expand([self.groups, channels / self.groups], false).reshape([channels]);
        let scale = per_channel((variance + Self::EPS).rsqrt()) * self.weight.to_kind(Kind::Float);
        let shift = self.bias.to_kind(Kind::Float) - per_channel(mean) * &scale;
        (scale.view([1, -1, 1, 1]), shift.view([1, -1, 1, 1]))
    }
}

/// Where the group norms of one pass through a network have their mean and variance from.
#[derive(Debug)]
pub(crate) enum Statistics {
    /// Their input.
    Own,
    /// Their input, noted for [`Self::Shared`]. One image a pass.
    Noted(RefCell<Vec<(Tensor, Tensor)>>),
    /// Another pass through the same network: scale and shift of each norm in turn.
    Shared { noted: Rc<[(Tensor, Tensor)]>, next: Cell<usize> },
}
