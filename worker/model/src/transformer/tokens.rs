//! Latents to tokens and back, and where each token is.
//!
//! Source: diffusers 0.42.1 `models/transformers/transformer_z_image.py` `_patchify_image`, `unpatchify`, `_pad_with_ids`,
//! `create_coordinate_grid`.

use tch::Tensor;

use super::rope::Position;
use crate::config::TransformerConfig;

/// `SEQ_MULTI_OF`: sequences are padded to multiples of this with learned tokens that take part in attention.
const SEQUENCE_MULTIPLE: i64 = 32;

const PATCH: i64 = TransformerConfig::PATCH_SIZE;

/// `tokens` rounded up to a full sequence.
pub(crate) const fn padded_len(tokens: i64) -> i64 {
    (tokens + SEQUENCE_MULTIPLE - 1) / SEQUENCE_MULTIPLE * SEQUENCE_MULTIPLE
}

/// Rows and columns of patches of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) rows: i64,
    pub(crate) columns: i64,
}

impl Grid {
    pub(crate) const fn tokens(self) -> i64 {
        self.rows * self.columns
    }

    pub(crate) const fn padded_tokens(self) -> i64 {
        padded_len(self.tokens())
    }

    /// `[B, C, rows * 2, columns * 2]` to `[B, rows * columns, 2 * 2 * C]`.
    pub(crate) fn patchify(self, latents: &Tensor) -> Tensor {
        let (batch, channels) = (latents.size()[0], latents.size()[1]);
        latents
            .reshape([batch, channels, self.rows, PATCH, self.columns, PATCH])
            .permute([0, 2, 4, 3, 5, 1]) // [B, rows, columns, 2, 2, C]
            .reshape([batch, self.tokens(), PATCH * PATCH * channels])
    }

    /// The reverse of [`Self::patchify`].
    pub(crate) fn unpatchify(self, patches: &Tensor, channels: i64) -> Tensor {
        let batch = patches.size()[0];
        patches
            .reshape([batch, self.rows, self.columns, PATCH, PATCH, channels])
            .permute([0, 5, 1, 3, 2, 4]) // [B, C, rows, 2, columns, 2]
            .reshape([batch, channels, self.rows * PATCH, self.columns * PATCH])
    }

    /// Positions of the image's tokens after a caption of `caption_len` tokens, pads included in both. Pads are at the origin.
    pub(crate) fn positions(self, caption_len: i64) -> Vec<Position> {
        let tokens = (0..self.rows).flat_map(|row| (0..self.columns).map(move |column| [caption_len + 1, row, column]));
        let pads = (self.tokens()..self.padded_tokens()).map(|_| [0, 0, 0]);
        tokens.chain(pads).collect()
    }
}

/// Positions of a caption's tokens. Unlike those of an image, its pads count on.
pub(crate) fn caption_positions(padded_len: i64) -> Vec<Position> {
    (1..=padded_len).map(|index| [index, 0, 0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn sequences_are_multiples_of_32() {
        for (tokens, padded) in [(1, 32), (31, 32), (32, 32), (33, 64), (200, 224), (512, 512)] {
            assert_eq!(padded_len(tokens), padded);
        }
    }

    #[test]
    fn image_follows_the_padded_caption_and_its_pads_are_at_the_origin() {
        let positions = Grid { rows: 2, columns: 3 }.positions(32);
        assert_eq!(positions[..7], [[33, 0, 0], [33, 0, 1], [33, 0, 2], [33, 1, 0], [33, 1, 1], [33, 1, 2], [0, 0, 0]]);
        assert_eq!(positions.len(), 32);
        assert_eq!(caption_positions(32).last(), Some(&[32, 0, 0]));
    }

    #[test]
    fn unpatchify_undoes_patchify() {
        let grid = Grid { rows: 3, columns: 2 };
        let latents = Tensor::arange(2 * 5 * 6 * 4, (Kind::Float, Device::Cpu)).view([2, 5, 6, 4]);
        let patches = grid.patchify(&latents);
        assert_eq!(patches.size(), [2, 6, 20]);
        assert_eq!(grid.unpatchify(&patches, 5), latents);
    }
}
