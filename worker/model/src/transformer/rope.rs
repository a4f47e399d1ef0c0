//! Rotary position embedding over three axes: caption or image, row, column.

use tch::{Device, Tensor};

use crate::config::TransformerConfig;

/// Position of one token on the three axes.
pub(crate) type Position = [i64; 3];

/// Unit complex numbers for every position of every axis.
#[derive(Debug)]
pub(crate) struct RopeTables {
    /// `[positions, dims / 2]` complex, one an axis.
    axes: Vec<Tensor>,
}

impl RopeTables {
    /// Source: diffusers 0.42.1 `models/transformers/transformer_z_image.py` `RopeEmbedder.precompute_freqs_cis`. The angle
    /// is a float64 product that is rounded to float32 before its cosine and sine are taken.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "as the original")]
    pub(crate) fn new(config: &TransformerConfig, device: Device) -> Self {
        let axes = config.axes_dims.iter().zip(&config.axes_lens).map(|(&dims, &positions)| {
            let frequencies: Vec<f64> =
                (0..dims).step_by(2).map(|dim| 1.0 / config.rope_theta.powf(dim as f64 / dims as f64)).collect();
            let angles: Vec<f32> = (0..positions)
                .flat_map(|position| frequencies.iter().map(move |frequency| (position as f64 * frequency) as f32))
                .collect();
            let angles = Tensor::from_slice(&angles).view([positions, dims / 2]);
            Tensor::polar(&angles.ones_like(), &angles).to_device(device)
        });
        Self { axes: axes.collect() }
    }

    /// Complex `[tokens, 1, head_dim / 2]`, to be broadcast over heads.
    ///
    /// Source: `RopeEmbedder.__call__`.
    pub(crate) fn lookup(&self, positions: &[Position]) -> Tensor {
        let parts: Vec<Tensor> = self
            .axes
            .iter()
            .enumerate()
            .map(|(axis, table)| {
                let index: Vec<i64> = positions.iter().map(|position| position[axis]).collect();
                table.index_select(0, &Tensor::from_slice(&index).to_device(table.device()))
            })
            .collect();
        Tensor::cat(&parts, 1).unsqueeze(1)
    }
}
