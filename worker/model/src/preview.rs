//! A small picture straight from the latents, without the VAE.
//!
//! One latent pixel becomes one pixel whose colour is a linear function of it. The function is fitted to the checkpoint's own
//! VAE, so that it holds for any; published factors hold for one.

use tch::{Device, Kind, Tensor};

use crate::noise::noise;
use crate::vae::VaeDecoder;

/// Red, green and blue as a linear function of one latent pixel.
#[derive(Debug)]
pub(crate) struct LatentToRgb {
    /// `[latent_channels + 1, 3]` in float32; the last row is the constant.
    weights: Tensor,
}

/// Pictures that the fit looks at, and latent pixels on a side of one and of its patches. Patches, because a decoder shows a
/// colour only where neighbours agree; fitted to noise it is flat.
const PICTURES: u32 = 16;
const SIDE: i64 = 16;
const PATCH: i64 = 4;

impl LatentToRgb {
    /// The least-squares fit to what the VAE makes of random patches. Decodes [`PICTURES`] small pictures, one by one.
    pub(crate) fn fit(vae: &VaeDecoder, latent_channels: i64, vae_scale: u32, device: Device) -> Self {
        let scale = i64::from(vae_scale);
        let (mut inputs, mut colours) = (Vec::new(), Vec::new());
        for seed in 0..PICTURES {
            let patches = noise(seed, latent_channels, SIDE / PATCH, SIDE / PATCH).to_device(device);
            let latents = patches.upsample_nearest2d([SIDE, SIDE], None, None);
            let picture =
                vae.picture(&latents, false).avg_pool2d([scale, scale], [scale, scale], [0, 0], false, true, None);
            inputs.push(with_one(&latents));
            colours.push(picture.permute([0, 2, 3, 1]).reshape([-1, 3]));
        }
        let on_cpu = |parts: &[Tensor]| Tensor::cat(parts, 0).to_device(Device::Cpu).to_kind(Kind::Double);
        let (inputs, colours) = (on_cpu(&inputs), on_cpu(&colours));
        let transposed = inputs.transpose(0, 1);
        // A little damping, for checkpoints with channels that do nothing.
        let damping = Tensor::eye(latent_channels + 1, (Kind::Double, Device::Cpu)) * 1e-3;
        let weights = Tensor::linalg_solve(&(transposed.matmul(&inputs) + damping), &transposed.matmul(&colours), true);
        Self { weights: weights.to_kind(Kind::Float).to_device(device) }
    }

    /// Bytes of red, green and blue, `[h, w, 3]` on the device.
    ///
    /// # Shapes
    /// `[1, latent_channels, h, w]` in float32.
    pub(crate) fn pixels(&self, latents: &Tensor) -> Tensor {
        let size = latents.size();
        let colours = with_one(latents).matmul(&self.weights).clamp_(0.0, 1.0);
        (colours * 255.0).round().to_kind(Kind::Uint8).view([size[2], size[3], 3])
    }
}

/// `[B, C, h, w]` to `[B * h * w, C + 1]` with a one behind each pixel's numbers.
fn with_one(latents: &Tensor) -> Tensor {
    let channels = latents.size()[1];
    let numbers = latents.permute([0, 2, 3, 1]).reshape([-1, channels]);
    let ones = Tensor::ones([numbers.size()[0], 1], (numbers.kind(), numbers.device()));
    Tensor::cat(&[numbers, ones], 1)
}
