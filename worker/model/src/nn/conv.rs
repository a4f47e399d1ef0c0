//! Convolutions.

use tch::Tensor;

/// A convolution with stride 1 that keeps the size.
#[derive(Debug)]
pub(crate) struct Conv {
    weight: Tensor,
    bias: Tensor,
    padding: i64,
}

impl Conv {
    /// `weight` is `[outputs, inputs, kernel, kernel]`.
    pub(crate) fn new(weight: &Tensor, bias: Tensor, kernel: i64) -> Self {
        Self { weight: channels_last(weight), bias, padding: kernel / 2 }
    }

    /// Only to be dropped again.
    pub(crate) const fn undefined(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias, padding: 0 }
    }

    /// `[B, inputs, H, W]` to `[B, outputs, H, W]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, Some(&self.bias), [1, 1], [self.padding, self.padding], [1, 1], 1)
    }
}

/// The same `[B, C, H, W]` with the channels of a pixel side by side in memory, which convolutions are faster on.
pub(crate) fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}
