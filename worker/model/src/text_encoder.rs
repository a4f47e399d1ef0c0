//! The Qwen3 text encoder, up to the state that Z-Image reads.
//!
//! Source: transformers 5.23.0 `models/qwen3/modeling_qwen3.py`.

use tch::{Device, Kind, Tensor};

use crate::LoadError;
use crate::config::TextEncoderConfig;
use crate::nn::{Lengths, Linear, attend, rms_norm};
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
    q_norm: Tensor,
    k_norm: Tensor,
    o_proj: Linear,
    post_attention_layernorm: Tensor,
    gate_up_proj: Linear,
    down_proj: Linear,
}

/// Cosine and sine of each token's rotation, `[tokens, 1, head_dim]`.
struct Rope {
    cos: Tensor,
    sin: Tensor,
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
        let rope = Rope::new(&self.config, &lengths, self.embed_tokens.kind(), device);
        for layer in &self.layers {
            hidden = layer.forward(&self.config, hidden, &lengths, &rope);
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
            qkv_proj: weights.linears(&[(&q, queries), (&k, keys), (&v, keys)], hidden, bias)?,
            q_norm: weights.norm(&name("self_attn.q_norm"), head_dim)?,
            k_norm: weights.norm(&name("self_attn.k_norm"), head_dim)?,
            o_proj: weights.linear(&name("self_attn.o_proj"), queries, hidden, bias)?,
            post_attention_layernorm: weights.norm(&name("post_attention_layernorm"), hidden)?,
            gate_up_proj: weights.linears(&[(&gate, inner), (&up, inner)], hidden, false)?,
            down_proj: weights.linear(&name("mlp.down_proj"), inner, hidden, false)?,
        })
    }

    /// Source: transformers 5.23.0 `models/qwen3/modeling_qwen3.py` `Qwen3DecoderLayer.forward`, `Qwen3Attention.forward`,
    /// `Qwen3MLP.forward`.
    fn forward(&self, config: &TextEncoderConfig, mut hidden: Tensor, lengths: &Lengths, rope: &Rope) -> Tensor {
        let (heads, groups, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let eps = config.rms_norm_eps;
        let normed = rms_norm(&hidden, &self.input_layernorm, eps);
        let qkv = self.qkv_proj.forward(&normed).view([-1, heads + 2 * groups, head_dim]);
        let query = rope.apply(&rms_norm(&qkv.narrow(1, 0, heads), &self.q_norm, eps));
        let key = rope.apply(&rms_norm(&qkv.narrow(1, heads, groups), &self.k_norm, eps));
        let value = qkv.narrow(1, heads + groups, groups);
        let shared = |x: &Tensor| x.repeat_interleave_self_int(heads / groups, 1, None);
        let attended = attend(&query, &shared(&key), &shared(&value), lengths, true);
        hidden += self.o_proj.forward(&attended);

        let normed = rms_norm(&hidden, &self.post_attention_layernorm, eps);
        let gate_up = self.gate_up_proj.forward(&normed).chunk(2, -1);
        hidden += self.down_proj.forward(&(gate_up[0].silu() * &gate_up[1]));
        hidden
    }
}

impl Rope {
    /// Source: transformers 5.23.0 `models/qwen3/modeling_qwen3.py` `Qwen3RotaryEmbedding.compute_default_rope_parameters`
    /// and `.forward`.
    fn new(config: &TextEncoderConfig, lengths: &Lengths, kind: Kind, device: Device) -> Self {
        let options = (Kind::Float, device);
        let exponents = Tensor::arange_start_step(0, config.head_dim, 2, options) / config.head_dim as f64;
        let inverse_frequencies = Tensor::full([1], config.rope_theta, options).pow(&exponents).reciprocal();
        let positions: Vec<Tensor> = lengths.as_slice().iter().map(|&length| Tensor::arange(length, options)).collect();
        let angles = Tensor::cat(&positions, 0).unsqueeze(1) * inverse_frequencies;
        let angles = Tensor::cat(&[&angles, &angles], 1).unsqueeze(1);
        Self { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }

    /// Rotates `[tokens, heads, head_dim]`, whose first and second half hold the two coordinates.
    ///
    /// Source: transformers 5.23.0 `models/qwen3/modeling_qwen3.py` `apply_rotary_pos_emb`.
    fn apply(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let turned = Tensor::cat(&[&-&halves[1], &halves[0]], -1);
        x * &self.cos + turned * &self.sin
    }
}
