//! What the time changes in the blocks.

use tch::Tensor;

use super::block::{Block, Factors};
use super::step_index;
use crate::LoadError;
use crate::config::TransformerConfig;
use crate::nn::Linear;
use crate::weights::Weights;

/// `adaLN_modulation` of a stack of blocks as one product.
#[derive(Debug)]
pub(crate) struct AdaLn {
    all: Option<Linear>,
}

/// Factors of the blocks of a stack at every step, `[steps, blocks, 4, dim]`.
#[derive(Debug)]
pub(crate) struct Modulation(Option<Tensor>);

impl Modulation {
    /// Of each block.
    pub(crate) fn at(&self, step: usize) -> Vec<Factors> {
        let Some(all) = &self.0 else { return Vec::new() };
        let at_step = all.select(0, step_index(step));
        (0..at_step.size()[0]).map(|block| Factors::of(&at_step.select(0, block))).collect()
    }
}

impl AdaLn {
    /// # Errors
    /// When a tensor is missing or not as the configuration says.
    pub(crate) fn new(
        weights: &mut Weights<'_>,
        config: &TransformerConfig,
        stack: &str,
        blocks: i64,
    ) -> Result<Self, LoadError> {
        let names: Vec<String> = (0..blocks).map(|block| format!("{stack}.{block}.adaLN_modulation.0")).collect();
        let parts: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 4 * config.dim)).collect();
        let all = (blocks > 0).then(|| weights.linears(&parts, config.adaln_dim(), true)).transpose()?;
        Ok(Self { all })
    }

    /// Factors of every step from the embedded times `[steps, adaln_dim]`: the norms' weights times `1 + scale` before attention
    /// and feed-forward, times `tanh(gate)` behind them.
    ///
    /// Source: diffusers 0.42.1 `models/transformers/transformer_z_image.py` `ZImageTransformerBlock.forward`, the lines on
    /// `adaLN_modulation`.
    pub(crate) fn modulate(&self, blocks: &[Block], embedded: &Tensor) -> Modulation {
        let Some(all) = &self.all else { return Modulation(None) };
        let norms = Tensor::stack(&blocks.iter().map(Block::norms).collect::<Vec<_>>(), 0); // [blocks, 4, dim]
        let (count, _, dim) = norms.size3().expect("blocks, norms, numbers");
        let modulation = all.forward(embedded).view([-1, count, 2, 2, dim]);
        let (scale, gate) = (modulation.select(3, 0) + 1.0, modulation.select(3, 1).tanh());
        Modulation(Some(Tensor::stack(&[scale, gate], 3).view([-1, count, 4, dim]) * norms))
    }
}
