//! The decoder of the VAE: latents to pixels.
//!
//! Source: diffusers 0.42.1 `models/autoencoders/vae.py` `Decoder`, `models/autoencoders/autoencoder_kl.py`
//! `AutoencoderKL._decode`, `models/unets/unet_2d_blocks.py` `UNetMidBlock2D` and `UpDecoderBlock2D`, `models/resnet.py`
//! `ResnetBlock2D`, `models/upsampling.py` `Upsample2D`, `models/attention_processor.py` `AttnProcessor2_0`.

mod tiles;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tch::{Kind, Tensor};

use self::tiles::Tiles;
use crate::LoadError;
use crate::config::VaeConfig;
use crate::nn::{Conv, GroupNorm, Lengths, Linear, Statistics, attend, channels_last};
use crate::weights::Weights;

/// The decoder of `AutoencoderKL`.
#[derive(Debug)]
pub(crate) struct VaeDecoder {
    scaling_factor: f64,
    shift_factor: f64,
    post_quant_conv: Option<Conv>,
    conv_in: Conv,
    mid_resnets: [Resnet; 2],
    mid_attention: Option<Attention>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
    kind: Kind,
    tiles: Tiles,
}

/// `UpDecoderBlock2D`.
#[derive(Debug)]
struct UpBlock {
    resnets: Vec<Resnet>,
    upsampler: Option<Conv>,
}

/// `ResnetBlock2D` without a time embedding.
#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    conv_shortcut: Option<Conv>,
}

/// `Attention` with one head over all pixels.
#[derive(Debug)]
struct Attention {
    group_norm: GroupNorm,
    to_qkv: Linear,
    to_out: Linear,
}

impl VaeDecoder {
    /// # Errors
    /// When a tensor is missing or not as the configuration says.
    pub(crate) fn new(weights: &mut Weights<'_>, config: &VaeConfig) -> Result<Self, LoadError> {
        let (groups, latents) = (config.norm_num_groups, config.latent_channels);
        let widths: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let (widest, narrowest) = (widths[0], config.block_out_channels[0]);
        let post_quant_conv =
            config.use_post_quant_conv.then(|| weights.conv("post_quant_conv", latents, latents, 1)).transpose()?;
        let mid = |rest: &str| format!("decoder.mid_block.{rest}");
        let mut up_blocks = Vec::with_capacity(widths.len());
        for (index, &width) in widths.iter().enumerate() {
            let inputs = widths[index.saturating_sub(1)];
            let last = index + 1 == widths.len();
            up_blocks.push(UpBlock::new(weights, config, &format!("decoder.up_blocks.{index}"), inputs, width, last)?);
        }
        Ok(Self {
            scaling_factor: config.scaling_factor,
            shift_factor: config.shift_factor,
            post_quant_conv,
            conv_in: weights.conv("decoder.conv_in", latents, widest, 3)?,
            mid_resnets: [
                Resnet::new(weights, &mid("resnets.0"), widest, widest, groups)?,
                Resnet::new(weights, &mid("resnets.1"), widest, widest, groups)?,
            ],
            mid_attention: if config.mid_block_add_attention {
                Some(Attention::new(weights, &mid("attentions.0"), widest, groups)?)
            } else {
                None
            },
            up_blocks,
            conv_norm_out: weights.group_norm("decoder.conv_norm_out", groups, narrowest)?,
            conv_out: weights.conv("decoder.conv_out", narrowest, config.out_channels, 3)?,
            kind: weights.kind(),
            tiles: Tiles::new(config),
        })
    }

    /// Whether a checkpoint may hold this tensor although nothing here reads it.
    pub(crate) fn may_be_unused(config: &VaeConfig, name: &str) -> bool {
        let unread = ["encoder.", "quant_conv."].iter().any(|prefix| name.starts_with(prefix));
        unread || (!config.use_post_quant_conv && name.starts_with("post_quant_conv."))
    }

    /// Bytes of red, green and blue, `[H, W, 3]` on the device, of latents as the denoising leaves them; `in_tiles` where they
    /// are larger than one tile.
    ///
    /// # Shapes
    /// `[1, latent_channels, h, w]`.
    ///
    /// Source: diffusers 0.42.1 `pipelines/z_image/pipeline_z_image.py` `__call__`, `image_processor.py`
    /// `VaeImageProcessor.denormalize`, `.pt_to_numpy`, `.numpy_to_pil`: clamped in the VAE's type, rounded half to even.
    pub(crate) fn pixels(&self, latents: &Tensor, in_tiles: bool) -> Tensor {
        let bytes = (self.picture(latents, in_tiles) * 255.0).round().to_kind(Kind::Uint8);
        bytes.squeeze_dim(0).permute([1, 2, 0])
    }

    /// Red, green and blue from 0 to 1, `[1, 3, H, W]` in float32.
    pub(crate) fn picture(&self, latents: &Tensor, in_tiles: bool) -> Tensor {
        let latents = latents.to_kind(self.kind) / self.scaling_factor + self.shift_factor;
        let decoded = if in_tiles { self.decode_in_tiles(&latents) } else { self.decode(&latents) };
        (decoded * 0.5 + 0.5).clamp_(0.0, 1.0).to_kind(Kind::Float)
    }

    /// As [`Self::decode`], tile by tile where the latents are larger than one tile. One image.
    ///
    /// Tiles differ from the whole mostly because each has group norms of its own. So the norms get mean and variance from a
    /// decode of the whole picture first, at one tile's size. diffusers does not; with [`Self::decode_in_plain_tiles`] the
    /// demo checkpoint's tiles show.
    pub(crate) fn decode_in_tiles(&self, latents: &Tensor) -> Tensor {
        if !self.tiles.splits(latents) {
            return self.decode(latents);
        }
        let noted = Statistics::Noted(RefCell::default());
        drop(self.decode_with(&self.tiles.overview(latents), &noted));
        let Statistics::Noted(noted) = noted else { unreachable!("it was made above") };
        let noted: Rc<[_]> = noted.into_inner().into();
        self.tiles.decode(latents, |tile| {
            self.decode_with(tile, &Statistics::Shared { noted: Rc::clone(&noted), next: Cell::new(0) })
        })
    }

    /// As diffusers' `AutoencoderKL.tiled_decode`.
    #[cfg(test)]
    pub(crate) fn decode_in_plain_tiles(&self, latents: &Tensor) -> Tensor {
        if self.tiles.splits(latents) {
            self.tiles.decode(latents, |tile| self.decode(tile))
        } else {
            self.decode(latents)
        }
    }

    /// `[B, latent_channels, h, w]` to `[B, 3, h * scale, w * scale]`, about -1 to 1.
    pub(crate) fn decode(&self, latents: &Tensor) -> Tensor {
        self.decode_with(latents, &Statistics::Own)
    }

    fn decode_with(&self, latents: &Tensor, statistics: &Statistics) -> Tensor {
        let mut x = channels_last(latents);
        if let Some(conv) = &self.post_quant_conv {
            x = conv.forward(&x);
        }
        x = self.conv_in.forward(&x);
        x = self.mid_resnets[0].forward(&x, statistics);
        if let Some(attention) = &self.mid_attention {
            x = attention.forward(&x, statistics);
        }
        x = self.mid_resnets[1].forward(&x, statistics);
        for block in &self.up_blocks {
            x = block.forward(x, statistics);
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x, statistics))
    }
}

impl UpBlock {
    fn new(
        weights: &mut Weights<'_>,
        config: &VaeConfig,
        name: &str,
        inputs: i64,
        outputs: i64,
        last: bool,
    ) -> Result<Self, LoadError> {
        let mut resnets = Vec::new();
        for index in 0..=config.layers_per_block {
            let inputs = if index == 0 { inputs } else { outputs };
            let name = format!("{name}.resnets.{index}");
            resnets.push(Resnet::new(weights, &name, inputs, outputs, config.norm_num_groups)?);
        }
        let upsampler =
            if last { None } else { Some(weights.conv(&format!("{name}.upsamplers.0.conv"), outputs, outputs, 3)?) };
        Ok(Self { resnets, upsampler })
    }

    fn forward(&self, mut x: Tensor, statistics: &Statistics) -> Tensor {
        for resnet in &self.resnets {
            x = resnet.forward(&x, statistics);
        }
        match &self.upsampler {
            None => x,
            Some(conv) => {
                let size = x.size();
                conv.forward(&x.upsample_nearest2d([size[2] * 2, size[3] * 2], None, None))
            }
        }
    }
}

impl Resnet {
    fn new(weights: &mut Weights<'_>, name: &str, inputs: i64, outputs: i64, groups: i64) -> Result<Self, LoadError> {
        let part = |rest: &str| format!("{name}.{rest}");
        Ok(Self {
            norm1: weights.group_norm(&part("norm1"), groups, inputs)?,
            conv1: weights.conv(&part("conv1"), inputs, outputs, 3)?,
            norm2: weights.group_norm(&part("norm2"), groups, outputs)?,
            conv2: weights.conv(&part("conv2"), outputs, outputs, 3)?,
            conv_shortcut: if inputs == outputs {
                None
            } else {
                Some(weights.conv(&part("conv_shortcut"), inputs, outputs, 1)?)
            },
        })
    }

    fn forward(&self, x: &Tensor, statistics: &Statistics) -> Tensor {
        let hidden = self.conv1.forward(&self.norm1.forward_silu(x, statistics));
        let mut hidden = self.conv2.forward(&self.norm2.forward_silu(&hidden, statistics));
        match &self.conv_shortcut {
            None => hidden += x,
            Some(conv) => hidden += conv.forward(x),
        }
        hidden
    }
}

impl Attention {
    fn new(weights: &mut Weights<'_>, name: &str, channels: i64, groups: i64) -> Result<Self, LoadError> {
        let part = |rest: &str| format!("{name}.{rest}");
        let (q, k, v) = (part("to_q"), part("to_k"), part("to_v"));
        Ok(Self {
            group_norm: weights.group_norm(&part("group_norm"), groups, channels)?,
            to_qkv: weights.linears(&[(&q, channels), (&k, channels), (&v, channels)], channels, true)?,
            to_out: weights.linear(&part("to_out.0"), channels, channels, true)?,
        })
    }

    fn forward(&self, x: &Tensor, statistics: &Statistics) -> Tensor {
        let (batch, channels, height, width) = x.size4().expect("images have four dimensions");
        let tokens = self.group_norm.forward(x, statistics).permute([0, 2, 3, 1]).reshape([-1, channels]);
        let qkv = self.to_qkv.forward(&tokens).view([-1, 3, 1, channels]);
        let lengths = Lengths::new(vec![height * width; usize::try_from(batch).unwrap_or(1)]);
        let attended = attend(&qkv.select(1, 0), &qkv.select(1, 1), &qkv.select(1, 2), &lengths, false);
        let output = self.to_out.forward(&attended).view([batch, height, width, channels]).permute([0, 3, 1, 2]);
        output + x
    }
}
