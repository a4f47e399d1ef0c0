//! Decoding in tiles that overlap and are blended, so that memory follows the tile and not the picture.
//!
//! The picture is not quite the one of a decode in one piece: the attention of the middle block sees one tile only.

use tch::{Kind, Tensor};

use crate::config::VaeConfig;

/// Sizes of tiles: latents in, pixels out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    /// Latent pixels on a side of a tile, a multiple of 4.
    latents: i64,
    /// Pixels on a side of one latent pixel.
    scale: i64,
}

impl Tiles {
    /// Source: diffusers 0.42.1 `models/autoencoders/autoencoder_kl.py` `AutoencoderKL.__init__`, with
    /// `tile_overlap_factor` 0.25. There the size must be a multiple of 4 latent pixels too, or the parts do not fit.
    pub(super) fn new(config: &VaeConfig) -> Self {
        let scale = i64::from(config.scale_factor());
        Self { latents: (config.sample_size / scale / 4 * 4).max(4), scale }
    }

    /// Whether latents of this size need more than one tile.
    pub(super) fn splits(self, latents: &Tensor) -> bool {
        latents.size()[2..].iter().any(|&side| side > self.latents)
    }

    /// The latents at the size of one tile: every so manyth pixel, so that their distribution stays.
    pub(super) fn overview(self, latents: &Tensor) -> Tensor {
        let (_, _, height, width) = latents.size4().expect("latents have four dimensions");
        let longer = height.max(width);
        let pick = |side: i64| {
            let count = (side * self.latents / longer).max(1);
            let picked: Vec<i64> = (0..count).map(|index| (2 * index + 1) * side / (2 * count)).collect();
            Tensor::from_slice(&picked).to_device(latents.device())
        };
        latents.index_select(2, &pick(height)).index_select(3, &pick(width))
    }

    /// What `decode` makes of `latents`, `[B, C, h, w]` to `[B, 3, h * scale, w * scale]`, put together tile by tile.
    ///
    /// Source: diffusers 0.42.1 `models/autoencoders/autoencoder_kl.py` `AutoencoderKL.tiled_decode`, `.blend_v`, `.blend_h`.
    /// There each tile is blended in place, so a tile's neighbours below and to the right see the blended one; here only the
    /// strips that they need are kept.
    pub(super) fn decode(self, latents: &Tensor, decode: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let (_, _, height, width) = latents.size4().expect("latents have four dimensions");
        let stride = self.latents / 4 * 3;
        let blended = self.latents / 4 * self.scale;
        let mut picture: Option<Tensor> = None;
        // Of the row above: the lowest pixels of each tile.
        let mut above: Vec<Tensor> = Vec::new();
        for top in starts(height, stride) {
            let rows = latents.narrow(2, top, self.latents.min(height - top));
            let mut left: Option<Tensor> = None;
            let mut lowest = Vec::with_capacity(above.len());
            for (column, start) in starts(width, stride).enumerate() {
                let tile = decode(&rows.narrow(3, start, self.latents.min(width - start)));
                if let Some(above) = above.get(column) {
                    blend(above, &tile, 2);
                }
                if let Some(left) = &left {
                    blend(left, &tile, 3);
                }
                let (batch, channels, tile_height, tile_width) = tile.size4().expect("pictures have four dimensions");
                let size = [batch, channels, height * self.scale, width * self.scale];
                let picture = picture.get_or_insert_with(|| tile.new_empty(size, (tile.kind(), tile.device())));
                let limit = stride * self.scale;
                let part = |x: &Tensor, top: i64, left: i64| {
                    x.narrow(2, top, limit.min(tile_height)).narrow(3, left, limit.min(tile_width))
                };
                part(picture, top * self.scale, start * self.scale).copy_(&part(&tile, 0, 0));
                left = Some(end_of(&tile, 3, blended).copy());
                lowest.push(end_of(&tile, 2, blended).copy());
            }
            above = lowest;
        }
        picture.expect("latents have at least one row and column")
    }
}

fn starts(side: i64, stride: i64) -> impl Iterator<Item = i64> {
    std::iter::successors(Some(0), move |start| Some(start + stride)).take_while(move |&start| start < side)
}

/// The last `length` pixels along `dim`, or all where there are fewer.
fn end_of(x: &Tensor, dim: i64, length: i64) -> Tensor {
    let side = x.size()[usize::try_from(dim).unwrap_or_default()];
    let length = length.min(side);
    x.narrow(dim, side - length, length)
}

/// Goes over from the end of `before` to `tile` along `dim`, within `tile`.
fn blend(before: &Tensor, tile: &Tensor, dim: i64) {
    let side = |x: &Tensor| x.size()[usize::try_from(dim).unwrap_or_default()];
    let length = side(before).min(side(tile));
    let (before, start) = (end_of(before, dim, length), tile.narrow(dim, 0, length));
    let mut shape = [1; 4];
    shape[usize::try_from(dim).unwrap_or_default()] = length;
    let ramp = Tensor::arange(length, (Kind::Float, tile.device())).view(shape) / f64_of(length);
    let ramp = ramp.to_kind(tile.kind());
    let (mut start, mixed) = (start.shallow_clone(), before * (1.0 - &ramp) + &start * &ramp);
    start.copy_(&mixed);
}

#[allow(clippy::cast_precision_loss, reason = "a side of a tile")]
const fn f64_of(length: i64) -> f64 {
    length as f64
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    const TILES: Tiles = Tiles { latents: 8, scale: 2 };

    /// A decoder that knows no neighbours: tiles of it must fit without a trace.
    fn repeat(latents: &Tensor) -> Tensor {
        let size = latents.size();
        latents.upsample_nearest2d([size[2] * 2, size[3] * 2], None, None).narrow(1, 0, 3)
    }

    #[test]
    fn every_size_is_covered_once() {
        for (height, width) in [(8, 8), (9, 8), (6, 20), (12, 12), (13, 14), (24, 25), (1, 30)] {
            let _generator = crate::noise::generator(1);
            let latents = Tensor::randn([2, 4, height, width], (Kind::Float, Device::Cpu));
            let (tiled, whole) = (TILES.decode(&latents, repeat), repeat(&latents));
            assert_eq!(tiled.size(), whole.size());
            let difference = (tiled - whole).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{height}x{width}: {difference:.1e}");
        }
    }

    #[test]
    fn the_overview_has_the_shape_of_the_picture_and_the_size_of_a_tile() {
        let latents = Tensor::arange(16 * 32, (Kind::Float, Device::Cpu)).view([1, 1, 16, 32]);
        let overview = TILES.overview(&latents);
        assert_eq!(overview.size(), [1, 1, 4, 8]);
        let first_row = Vec::<f32>::try_from(overview.select(2, 0).view([-1])).unwrap();
        // Of each 4 x 4 pixels the one right below the middle.
        assert_eq!(first_row, [66.0, 70.0, 74.0, 78.0, 82.0, 86.0, 90.0, 94.0]);
    }

    #[test]
    fn tiles_that_disagree_go_over_into_each_other() {
        // The mean of a tile is all that this decoder shows.
        let mean = |latents: &Tensor| {
            let size = latents.size();
            latents.mean_dim([2, 3].as_slice(), true, None).expand([1, 3, size[2] * 2, size[3] * 2], false).contiguous()
        };
        let latents = Tensor::cat(
            &[
                Tensor::zeros([1, 3, 8, 6], (Kind::Float, Device::Cpu)),
                Tensor::ones([1, 3, 8, 8], (Kind::Float, Device::Cpu)),
            ],
            3,
        );
        let row = Vec::<f32>::try_from(TILES.decode(&latents, mean).select(1, 0).select(1, 0).view([-1])).unwrap();
        assert_eq!(row.len(), 28);
        assert!(row.windows(2).all(|pair| (pair[1] - pair[0]).abs() < 0.26), "no step is seen: {row:?}");
        assert!(row[0] == 0.25 && (row[27] - 1.0).abs() < 1e-6, "{row:?}");
    }
}
