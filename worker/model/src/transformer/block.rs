//! One transformer block.
//!
//! Source: diffusers 0.42.1 `models/transformers/transformer_z_image.py` `ZImageTransformerBlock`,
//! `ZSingleStreamAttnProcessor`, `FeedForward`.

use tch::Tensor;

use crate::LoadError;
use crate::config::TransformerConfig;
use crate::kernels::Pairs;
use crate::nn::fused::{self, Operand};
use crate::nn::{Lengths, Linear, attend};
use crate::weights::Weights;

/// `ZImageTransformerBlock`, without its `adaLN_modulation`: see [`super::modulation`].
#[derive(Debug)]
pub(crate) struct Block {
    heads: i64,
    norm_eps: f64,
    /// Weights of the four norms, `[4, dim]`.
    norms: Tensor,
    to_qkv: Linear,
    /// Weights of `norm_q` and `norm_k`, `[2, head_dim]`.
    qk_norm: Tensor,
    to_out: Linear,
    w1_w3: Linear,
    w2: Linear,
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

impl Factors {
    /// Of `[4, dim]`, in the order of [`Block::norms`].
    pub(crate) fn of(all: &Tensor) -> Self {
        let at = |index| all.select(0, index);
        Self { attention_in: at(0), attention_out: at(1), ffn_in: at(2), ffn_out: at(3) }
    }
}

impl Block {
    /// Of `qk_norm`; the original writes it out instead of taking `norm_eps`.
    const QK_NORM_EPS: f64 = 1e-5;

    /// # Errors
    /// When a tensor is missing or not as the configuration says.
    pub(crate) fn new(weights: &mut Weights<'_>, config: &TransformerConfig, block: &str) -> Result<Self, LoadError> {
        let name = |rest: &str| format!("{block}.{rest}");
        let (dim, inner) = (config.dim, config.feed_forward_dim());
        let (q, k, v) = (name("attention.to_q"), name("attention.to_k"), name("attention.to_v"));
        let (w1, w3) = (name("feed_forward.w1"), name("feed_forward.w3"));
        let norms = ["attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"].map(name);
        let qk_norms = ["attention.norm_q", "attention.norm_k"].map(name);
        Ok(Self {
            heads: config.n_heads,
            norm_eps: config.norm_eps,
            norms: weights.norms(&norms, dim)?,
            to_qkv: weights.products(&[(&q, dim), (&k, dim), (&v, dim)], dim, false)?,
            qk_norm: weights.norms(&qk_norms, config.head_dim())?,
            to_out: weights.products(&[(&name("attention.to_out.0"), dim)], dim, false)?,
            w1_w3: weights.products(&[(&w1, inner), (&w3, inner)], dim, false)?,
            w2: weights.products(&[(&name("feed_forward.w2"), dim)], inner, false)?,
        })
    }

    /// Weights of `attention_norm1`, `attention_norm2`, `ffn_norm1` and `ffn_norm2`, `[4, dim]`.
    pub(crate) const fn norms(&self) -> &Tensor {
        &self.norms
    }

    /// `input` is the norm of `x` by the block's first factor. Adds to `x` in place and returns its norm by `next`, the first
    /// factor of the block that follows.
    ///
    /// Source: `ZImageTransformerBlock.forward`.
    fn forward(
        &self,
        x: &mut Tensor,
        input: &Operand,
        lengths: &Lengths,
        rope: &Tensor,
        factors: &Factors,
        next: Option<(&Tensor, &Self)>,
    ) -> Option<Operand> {
        let eps = self.norm_eps;
        let attended = self.attention(input, lengths, rope);
        let (factor, next_factor) = (Some(&factors.attention_out), &factors.ffn_in);
        let normed = fused::add_norm(x, &attended, factor, next_factor, eps, self.w1_w3.form());
        let inner = fused::silu_mul(&self.w1_w3.product(&normed), self.w2.form());
        let fed = self.w2.product(&inner);
        let factor = Some(&factors.ffn_out);
        match next {
            Some((next_factor, block)) => Some(fused::add_norm(x, &fed, factor, next_factor, eps, block.to_qkv.form())),
            None => {
                fused::add(x, &fed, factor, eps);
                None
            }
        }
    }

    /// Source: `ZSingleStreamAttnProcessor.__call__`.
    fn attention(&self, input: &Operand, lengths: &Lengths, rope: &Tensor) -> Tensor {
        let qkv = self.to_qkv.product(input);
        let qkv = qkv.view([qkv.size()[0], 3 * self.heads, -1]);
        let heads = (self.heads, self.heads);
        let [query, key, value] =
            fused::norm_rotate(qkv, &self.qk_norm, rope, heads, Pairs::Neighbours, Self::QK_NORM_EPS);
        let attended = attend(&query, &key, &value, lengths, false);
        self.to_out.product(&fused::in_form(attended, self.to_out.form()))
    }
}

/// `x` through all blocks. Adds to `x` in place, so it must not share its memory with anything that is still read.
///
/// # Shapes
/// `x` `[tokens, dim]`, `rope` complex `[tokens, 1, head_dim / 2]`; one of `factors` for each block.
pub(crate) fn forward(
    blocks: &[Block],
    factors: &[Factors],
    mut x: Tensor,
    lengths: &Lengths,
    rope: &Tensor,
) -> Tensor {
    let mut stack = blocks.iter().zip(factors).peekable();
    let first = stack.peek();
    let mut input =
        first.map(|(block, factors)| fused::norm(&x, &factors.attention_in, block.norm_eps, block.to_qkv.form()));
    while let (Some((block, factors)), Some(normed)) = (stack.next(), input.take()) {
        let next = stack.peek().map(|(block, factors)| (&factors.attention_in, *block));
        input = block.forward(&mut x, &normed, lengths, rope, factors, next);
    }
    x
}
