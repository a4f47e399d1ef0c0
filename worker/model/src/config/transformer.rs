//! transformer/config.json.

use std::path::Path;

use serde_json::json;

use super::ConfigFile;
use crate::LoadError;

/// Fields of ZImageTransformer2DModel, named as in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TransformerConfig {
    pub(crate) in_channels: i64,
    pub(crate) dim: i64,
    pub(crate) n_layers: i64,
    pub(crate) n_refiner_layers: i64,
    pub(crate) n_heads: i64,
    pub(crate) norm_eps: f64,
    pub(crate) cap_feat_dim: i64,
    pub(crate) rope_theta: f64,
    pub(crate) t_scale: f64,
    pub(crate) axes_dims: Vec<i64>,
    pub(crate) axes_lens: Vec<i64>,
}

impl TransformerConfig {
    /// Latent pixels on a side of a patch; the only size that a Z-Image checkpoint has.
    pub(crate) const PATCH_SIZE: i64 = 2;
    /// Width of the timestep embedding, at most (`ADALN_EMBED_DIM`).
    const ADALN_EMBED_DIM: i64 = 256;

    /// # Errors
    /// When a field is missing, of the wrong type, or asks for something that is not implemented.
    pub(crate) fn read(model_dir: &Path) -> Result<Self, LoadError> {
        let file = ConfigFile::read(model_dir.join("transformer/config.json"), "the transformer's settings")?;
        file.class("ZImageTransformer2DModel")?;
        for (key, supported) in [("all_patch_size", Self::PATCH_SIZE), ("all_f_patch_size", 1)] {
            if file.sizes(key)? != [supported] {
                return Err(file.invalid(key, format!("[{supported}], the only one implemented")));
            }
        }
        if !file.flag("qk_norm")? {
            return Err(file.invalid("qk_norm", "true, the only one implemented"));
        }
        file.only("siglip_feat_dim", &json!(null))?;
        let config = Self {
            in_channels: file.size("in_channels")?,
            dim: file.size("dim")?,
            n_layers: file.size("n_layers")?,
            n_refiner_layers: file.count("n_refiner_layers")?,
            n_heads: file.size("n_heads")?,
            norm_eps: file.positive("norm_eps")?,
            cap_feat_dim: file.size("cap_feat_dim")?,
            rope_theta: file.positive("rope_theta")?,
            t_scale: file.positive("t_scale")?,
            axes_dims: file.sizes("axes_dims")?,
            axes_lens: file.sizes("axes_lens")?,
        };
        if config.axes_dims.len() != 3 || config.axes_dims.iter().any(|dim| dim % 2 != 0) {
            return Err(file.invalid("axes_dims", "three even numbers"));
        }
        if config.axes_lens.len() != 3 {
            return Err(file.invalid("axes_lens", "three numbers"));
        }
        if config.dim % config.n_heads != 0 || config.head_dim() != config.axes_dims.iter().sum::<i64>() {
            return Err(
                file.invalid("axes_dims", format!("a sum of dim / n_heads = {} / {}", config.dim, config.n_heads))
            );
        }
        Ok(config)
    }

    pub(crate) const fn head_dim(&self) -> i64 {
        self.dim / self.n_heads
    }

    /// Inner width of the feed-forward blocks: Python's `int(dim / 3 * 8)`, a float product that is cut.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "as the original")]
    pub(crate) fn feed_forward_dim(&self) -> i64 {
        (self.dim as f64 / 3.0 * 8.0) as i64
    }

    /// Width of the timestep embedding.
    pub(crate) fn adaln_dim(&self) -> i64 {
        self.dim.min(Self::ADALN_EMBED_DIM)
    }

    /// Numbers in one patch.
    pub(crate) const fn patch_dim(&self) -> i64 {
        Self::PATCH_SIZE * Self::PATCH_SIZE * self.in_channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feed_forward_width_is_a_float_product() {
        let config = |dim| TransformerConfig {
            in_channels: 16,
            dim,
            n_layers: 1,
            n_refiner_layers: 1,
            n_heads: 1,
            norm_eps: 1e-5,
            cap_feat_dim: 1,
            rope_theta: 256.0,
            t_scale: 1000.0,
            axes_dims: vec![2, 2, 2],
            axes_lens: vec![1, 1, 1],
        };
        for (dim, width) in [(16, 42), (32, 85), (256, 682), (3840, 10240)] {
            assert_eq!(config(dim).feed_forward_dim(), width);
        }
    }
}
