//! vae/config.json.

use std::path::Path;

use serde_json::{Value, json};

use super::ConfigFile;
use crate::LoadError;

/// Of Z-Image's VAE. diffusers falls back to 32, where a tile knows next to nothing of its picture.
const DEFAULT_SAMPLE_SIZE: i64 = 1024;

/// Fields of AutoencoderKL that its decoder uses, named as in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VaeConfig {
    pub(crate) latent_channels: i64,
    pub(crate) out_channels: i64,
    pub(crate) block_out_channels: Vec<i64>,
    pub(crate) layers_per_block: i64,
    pub(crate) norm_num_groups: i64,
    pub(crate) scaling_factor: f64,
    pub(crate) shift_factor: f64,
    pub(crate) use_post_quant_conv: bool,
    pub(crate) mid_block_add_attention: bool,
    /// Pixels on a side of a tile.
    pub(crate) sample_size: i64,
}

impl VaeConfig {
    /// # Errors
    /// When a field is missing, of the wrong type, or asks for something that is not implemented.
    pub(crate) fn read(model_dir: &Path) -> Result<Self, LoadError> {
        let file = ConfigFile::read(model_dir.join("vae/config.json"), "the VAE's settings")?;
        file.class("AutoencoderKL")?;
        file.only("act_fn", &json!("silu"))?;
        let config = Self {
            latent_channels: file.size("latent_channels")?,
            out_channels: file.size("out_channels")?,
            block_out_channels: file.sizes("block_out_channels")?,
            layers_per_block: file.size("layers_per_block")?,
            norm_num_groups: file.size("norm_num_groups")?,
            scaling_factor: file.number("scaling_factor")?,
            shift_factor: file.number("shift_factor")?,
            use_post_quant_conv: file.flag("use_post_quant_conv")?,
            mid_block_add_attention: file.flag("mid_block_add_attention")?,
            sample_size: if file.get("sample_size").is_some() {
                file.size("sample_size")?
            } else {
                DEFAULT_SAMPLE_SIZE
            },
        };
        if config.scaling_factor == 0.0 {
            return Err(file.invalid("scaling_factor", "a number other than 0"));
        }
        if config.out_channels != 3 {
            return Err(file.invalid("out_channels", "3, red, green and blue"));
        }
        if config.block_out_channels.is_empty() {
            return Err(file.invalid("block_out_channels", "a list with an entry for each block"));
        }
        if config.block_out_channels.iter().any(|channels| channels % config.norm_num_groups != 0) {
            return Err(file.invalid("block_out_channels", format!("multiples of {}", config.norm_num_groups)));
        }
        let blocks = file.get("up_block_types").and_then(Value::as_array);
        let known = |blocks: &Vec<Value>| {
            blocks.len() == config.block_out_channels.len() && blocks.iter().all(|block| block == "UpDecoderBlock2D")
        };
        if !blocks.is_some_and(known) {
            let count = config.block_out_channels.len();
            return Err(file.invalid("up_block_types", format!("{count} times \"UpDecoderBlock2D\"")));
        }
        Ok(config)
    }

    /// Pixels on a side of one latent pixel.
    pub(crate) fn scale_factor(&self) -> u32 {
        1 << (self.block_out_channels.len() - 1)
    }
}
