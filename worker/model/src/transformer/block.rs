//! One transformer block.
//!
//! Source: diffusers 0.42.1 `models/transformers/transformer_z_image.py` `ZImageTransformerBlock`,
//! `ZSingleStreamAttnProcessor`, `FeedForward`.

use tch::{Kind, Tensor};

use super::step_index;
use crate::LoadError;
use crate::config::TransformerConfig;
use crate::nn::{Lengths, Linear, attend, inverse_rms, rms_norm};
use crate::weights::Weights;

/// `ZImageTransformerBlock`.
#[derive(Debug)]
pub(crate) struct Block {
    heads: i64,
    norm_eps: f64,
    attention_norm1: Tensor,
    attention_norm2: Tensor,
    ffn_norm1: Tensor,
    ffn_norm2: Tensor,
    to_qkv: Linear,
    /// Weights of `norm_q` and `norm_k`, `[2, 1, head_dim]`.
    qk_norm: Tensor,
    to_out: Linear,
    w1_w3: Linear,
    w2: Linear,
    adaln_modulation: Option<Linear>,
}

/// What the four norms of a block are multiplied by, each `[dim]`: their weights, with the modulation's scales and gates
/// folded in.
#[derive(Debug)]
pub(crate) struct Factors {
    attention_in: Tensor,
    attention_out: Tensor,
    ffn_in: Tensor,
    ffn_out: Tensor,
}

/// [`Factors`] of every step, each `[steps, dim]`.
#[derive(Debug)]
pub(crate) struct Modulation(Factors);

impl Modulation {
    pub(crate) fn at(&self, step: usize) -> Factors {
        let at = |all: &Tensor| all.select(0, step_index(step));
        let Factors { attention_in, attention_out, ffn_in, ffn_out } = &self.0;
        Factors {
            attention_in: at(attention_in),
            attention_out: at(attention_out),
            ffn_in: at(ffn_in),
            ffn_out: at(ffn_out),
        }
    }
}

impl Block {
    /// Of `qk_norm`; the original writes it out instead of taking `norm_eps`.
    const QK_NORM_EPS: f64 = 1e-5;

    /// # Errors
    /// When a tensor is missing or not as the configuration says.
    pub(crate) fn new(
        weights: &mut Weights<'_>,
        config: &TransformerConfig,
        block: &str,
        modulated: bool,
    ) -> Result<Self, LoadError> {
        let name = |rest: &str| format!("{block}.{rest}");
        let (dim, inner) = (config.dim, config.feed_forward_dim());
        let (q, k, v) = (name("attention.to_q"), name("attention.to_k"), name("attention.to_v"));
        let (w1, w3) = (name("feed_forward.w1"), name("feed_forward.w3"));
        let norm_q = weights.norm(&name("attention.norm_q"), config.head_dim())?;
        let norm_k = weights.norm(&name("attention.norm_k"), config.head_dim())?;
        let qk_norm = if weights.checks_only() { norm_q } else { Tensor::stack(&[norm_q, norm_k], 0).unsqueeze(1) };
        Ok(Self {
            heads: config.n_heads,
            norm_eps: config.norm_eps,
            attention_norm1: weights.norm(&name("attention_norm1"), dim)?,
            attention_norm2: weights.norm(&name("attention_norm2"), dim)?,
            ffn_norm1: weights.norm(&name("ffn_norm1"), dim)?,
            ffn_norm2: weights.norm(&name("ffn_norm2"), dim)?,
            to_qkv: weights.linears(&[(&q, dim), (&k, dim), (&v, dim)], dim, false)?,
            qk_norm,
            to_out: weights.linear(&name("attention.to_out.0"), dim, dim, false)?,
            w1_w3: weights.linears(&[(&w1, inner), (&w3, inner)], dim, false)?,
            w2: weights.linear(&name("feed_forward.w2"), inner, dim, false)?,
            adaln_modulation: if modulated {
                Some(weights.linear(&name("adaLN_modulation.0"), config.adaln_dim(), 4 * dim, true)?)
            } else {
                None
            },
        })
    }

    /// Factors of a block without modulation.
    pub(crate) fn unmodulated(&self) -> Factors {
        Factors {
            attention_in: self.attention_norm1.shallow_clone(),
            attention_out: self.attention_norm2.shallow_clone(),
            ffn_in: self.ffn_norm1.shallow_clone(),
            ffn_out: self.ffn_norm2.shallow_clone(),
        }
    }

    /// Factors of every step from the embedded times `[steps, adaln_dim]`.
    pub(crate) fn modulate(&self, embedded: &Tensor) -> Modulation {
        let Some(adaln_modulation) = &self.adaln_modulation else {
            let repeat = |weight: Tensor| weight.unsqueeze(0).expand([embedded.size()[0], -1], false);
            let Factors { attention_in, attention_out, ffn_in, ffn_out } = self.unmodulated();
            return Modulation(Factors {
                attention_in: repeat(attention_in),
                attention_out: repeat(attention_out),
                ffn_in: repeat(ffn_in),
                ffn_out: repeat(ffn_out),
            });
        };
        let [scale_msa, gate_msa, scale_mlp, gate_mlp] =
            <[Tensor; 4]>::try_from(adaln_modulation.forward(embedded).chunk(4, 1))
                .expect("four chunks were asked for");
        Modulation(Factors {
            attention_in: (scale_msa + 1.0) * &self.attention_norm1,
            attention_out: gate_msa.tanh() * &self.attention_norm2,
            ffn_in: (scale_mlp + 1.0) * &self.ffn_norm1,
            ffn_out: gate_mlp.tanh() * &self.ffn_norm2,
        })
    }

    /// Adds to `x` in place, so it must not share its memory with anything that is still read.
    ///
    /// # Shapes
    /// `x` `[tokens, dim]`, `rope` complex `[tokens, 1, 1, head_dim / 2]`.
    ///
    /// Source: `ZImageTransformerBlock.forward`.
    pub(crate) fn forward(&self, mut x: Tensor, lengths: &Lengths, rope: &Tensor, factors: &Factors) -> Tensor {
        let attended = self.attention(&rms_norm(&x, &factors.attention_in, self.norm_eps), lengths, rope);
        self.add_normed(&mut x, &attended, &factors.attention_out);
        let fed = self.feed_forward(&rms_norm(&x, &factors.ffn_in, self.norm_eps));
        self.add_normed(&mut x, &fed, &factors.ffn_out);
        x
    }

    /// `x += rms_norm(update) * factor`
    fn add_normed(&self, x: &mut Tensor, update: &Tensor, factor: &Tensor) {
        let normed = (update * inverse_rms(update, self.norm_eps)).to_kind(x.kind());
        let _ = x.addcmul_(&normed, factor);
    }

    /// Source: `ZSingleStreamAttnProcessor.__call__`. Queries and keys are normed and rotated as one tensor.
    fn attention(&self, x: &Tensor, lengths: &Lengths, rope: &Tensor) -> Tensor {
        let qkv = self.to_qkv.forward(x).view([-1, 3, self.heads, x.size()[1] / self.heads]);
        let query_key = rms_norm(&qkv.narrow(1, 0, 2), &self.qk_norm, Self::QK_NORM_EPS);
        let rotated = rotate(&query_key, rope);
        let attended = attend(&rotated.select(1, 0), &rotated.select(1, 1), &qkv.select(1, 2), lengths, false);
        self.to_out.forward(&attended)
    }

    /// Source: `FeedForward.forward`.
    fn feed_forward(&self, x: &Tensor) -> Tensor {
        let gated = self.w1_w3.forward(x).chunk(2, -1);
        let mut inner = gated[0].silu();
        inner *= &gated[1];
        self.w2.forward(&inner)
    }
}

/// Turns neighbouring pairs of the last dimension by the complex numbers of `rope`, in float32.
///
/// Source: `ZSingleStreamAttnProcessor.__call__` `apply_rotary_emb`.
fn rotate(x: &Tensor, rope: &Tensor) -> Tensor {
    let shape = x.size();
    let pairs = [shape[0], shape[1], shape[2], shape[3] / 2, 2];
    let mut turned = x.to_kind(Kind::Float).reshape(pairs).view_as_complex();
    turned *= rope;
    turned.view_as_real().view(shape.as_slice()).to_kind(x.kind())
}
