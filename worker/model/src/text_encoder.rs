//! The Qwen3 text encoder, up to the state that Z-Image reads.
//!
//! Source: transformers 5.23.0 `models/qwen3/modeling_qwen3.py`.

use tch::{Device, Kind, Tensor};

use crate::LoadError;
use crate::config::TextEncoderConfig;
use crate::kernels::Pairs;
use crate::nn::fused::{self, Operand};
use crate::nn::{Lengths, Linear, attend};
use crate::weights::Weights;

/// The Qwen3 text encoder without its last layer, its final norm and its head, which Z-Image does not read.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    config: TextEncoderConfig,
    embed_tokens: Tensor,
    layers: Vec<Layer>,
}

/// `Qwen3DecoderLayer`.
#[derive(Debug)]
struct Layer {
    input_layernorm: Tensor,
    qkv_proj: Linear,
    /// Weights of `q_norm` and `k_norm`, `[2, head_dim]`.
    qk_norm: Tensor,
    o_proj: Linear,
    post_attention_layernorm: Tensor,
    gate_up_proj: Linear,
    down_proj: Linear,
}

impl TextEncoder {
    /// # Errors
    /// When a tensor is missing or not as the configuration says.
    pub(crate) fn new(weights: &mut Weights<'_>, config: &TextEncoderConfig) -> Result<Self, LoadError> {
        let embed_tokens = weights.tensor("embed_tokens.weight", &[config.vocab_size, config.hidden_size])?;
        let layers = (0..Self::layers_used(config)).map(|index| Layer::new(weights, config, index));
        Ok(Self { embed_tokens, layers: layers.collect::<Result<_, _>>()?, config: config.clone() })
    }

    /// `hidden_states[-2]` comes out of the last layer but one.
    const fn layers_used(config: &TextEncoderConfig) -> i64 {
        config.num_hidden_layers - 1
    }

    /// Whether a checkpoint may hold this tensor although nothing here reads it.
    pub(crate) fn may_be_unused(config: &TextEncoderConfig, name: &str) -> bool {
        let last = format!("layers.{}.", Self::layers_used(config));
        name.starts_with(&last) || matches!(name, "norm.weight" | "lm_head.weight")
    }

    /// Caption features of each prompt, `[tokens, hidden_size]`: the hidden state before the last layer, without the
    /// final norm. Only real tokens are run; with causal attention the padding of the original cannot be seen by them.
    ///
    /// Source: diffusers 0.42.1 `pipelines/z_image/pipeline_z_image.py` `_encode_prompt`.
    pub(crate) fn forward(&self, prompts: &[Vec<i64>]) -> Vec<Tensor> {
        let device = self.embed_tokens.device();
        let lengths = Lengths::new(prompts.iter().map(|tokens| tokens.len() as i64).collect());
        let tokens = Tensor::from_slice(&prompts.concat()).to_device(device);
        let mut hidden = Tensor::embedding(&self.embed_tokens, &tokens, -1, false, false);
        let rope = rope(&self.config, &lengths, device);
        let eps = self.config.rms_norm_eps;
        let mut layers = self.layers.iter().peekable();
        let mut input =
            layers.peek().map(|first| fused::norm(&hidden, &first.input_layernorm, eps, first.qkv_proj.form()));
        while let (Some(layer), Some(normed)) = (layers.next(), input.take()) {
            input = layer.forward(&self.config, &mut hidden, &normed, &lengths, &rope, layers.peek().copied());
        }
        hidden.split_with_sizes(lengths.as_slice(), 0)
    }
}

impl Layer {
    fn new(weights: &mut Weights<'_>, config: &TextEncoderConfig, index: i64) -> Result<Self, LoadError> {
        let name = |rest: &str| format!("layers.{index}.{rest}");
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let (queries, keys) = (config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim);
        let (q, k, v) = (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        let inner = config.intermediate_size;
        let bias = config.attention_bias;
        Ok(Self {
            input_layernorm: weights.norm(&name("input_layernorm"), hidden)?,
            qkv_proj: weights.products(&[(&q, queries), (&k, keys), (&v, keys)], hidden, bias)?,
            qk_norm: weights.norms(&["self_attn.q_norm", "self_attn.k_norm"].map(name), head_dim)?,
            o_proj: weights.products(&[(&name("self_attn.o_proj"), hidden)], queries, bias)?,
            post_attention_layernorm: weights.norm(&name("post_attention_layernorm"), hidden)?,
            gate_up_proj: weights.products(&[(&gate, inner), (&up, inner)], hidden, false)?,
            down_proj: weights.products(&[(&name("mlp.down_proj"), hidden)], inner, false)?,
        })
    }

    /// `input` is the norm of `hidden` by this layer. Adds to `hidden` in place and returns its norm by the layer `next`.
    ///
    /// Source: transformers 5.23.0 `models/qwen3/modeling_qwen3.py` `Qwen3DecoderLayer.forward`, `Qwen3Attention.forward`,
    /// `Qwen3MLP.forward`.
    fn forward(
        &self,
        config: &TextEncoderConfig,
        hidden: &mut Tensor,
        input: &Operand,
        lengths: &Lengths,
        rope: &Tensor,
        next: Option<&Self>,
    ) -> Option<Operand> {
        let heads = (config.num_attention_heads, config.num_key_value_heads);
        let eps = config.rms_norm_eps;
        let qkv = self.qkv_proj.product(input);
        let qkv = qkv.view([qkv.size()[0], -1, config.head_dim]);
        let [query, key, value] = fused::norm_rotate(qkv, &self.qk_norm, rope, heads, Pairs::Halves, eps);
        let attended = attend(&query, &key, &value, lengths, true);
        let attended = self.o_proj.product(&fused::in_form(attended, self.o_proj.form()));

        let form = self.gate_up_proj.form();
        let normed = fused::add_norm(hidden, &attended, None, &self.post_attention_layernorm, eps, form);
        let inner = fused::silu_mul(&self.gate_up_proj.product(&normed), self.down_proj.form());
        let fed = self.down_proj.product(&inner);
        match next {
            Some(next) => Some(fused::add_norm(hidden, &fed, None, &next.input_layernorm, eps, next.qkv_proj.form())),
            None => {
                fused::add(hidden, &fed, None, eps);
                None
            }
        }
    }
}

/// Rotation of each token, complex `[tokens, 1, head_dim / 2]`, in float32 whatever the model computes in.
///
/// Source: transformers 5.23.0 `models/qwen3/modeling_qwen3.py` `Qwen3RotaryEmbedding.compute_default_rope_parameters`
/// and `.forward`.
fn rope(config: &TextEncoderConfig, lengths: &Lengths, device: Device) -> Tensor {
    let options = (Kind::Float, device);
    let exponents = Tensor::arange_start_step(0, config.head_dim, 2, options) / config.head_dim as f64;
    let inverse_frequencies = Tensor::full([1], config.rope_theta, options).pow(&exponents).reciprocal();
    let positions: Vec<Tensor> = lengths.as_slice().iter().map(|&length| Tensor::arange(length, options)).collect();
    let angles = Tensor::cat(&positions, 0).unsqueeze(1) * inverse_frequencies;
    Tensor::complex(&angles.cos(), &angles.sin()).unsqueeze(1)
}
