//! Scaled dot-product attention by a backend that the caller names.

use std::ffi::c_void;
use std::ptr;

use tch::Tensor;

use super::{ShimError, ffi};

/// A fused attention of libtorch on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::Display, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum AttentionBackend {
    /// FlashAttention; 16-bit numbers, heads of at most 256 numbers.
    Flash,
    /// cuDNN's; 16-bit numbers.
    Cudnn,
    /// CUTLASS's memory-efficient one; any head size, also float32.
    Efficient,
}

/// Attention by `backend`, or its refusal; never another one.
///
/// # Shapes
/// `query`, `key` and `value` `[batch, heads, tokens, head_dim]` on a GPU, to the same shape. Without `scale`, scores are
/// multiplied by `head_dim^-0.5`.
///
/// # Errors
/// libtorch's words, also when there is no memory.
pub fn attention(
    backend: AttentionBackend,
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    causal: bool,
    scale: Option<f64>,
) -> Result<Tensor, ShimError> {
    let pointer = |tensor: &Tensor| tensor.as_ptr().cast::<c_void>();
    let scale = scale.as_ref().map_or(ptr::null(), ptr::from_ref);
    let mut output = ptr::null_mut();
    // SAFETY: a tch tensor points to an at::Tensor, and the three outlive the call; `scale` is null or points to a number that
    // does too.
    let thrown = unsafe {
        ffi::ig_attention(backend as i32, pointer(query), pointer(key), pointer(value), causal, scale, &raw mut output)
    };
    ffi::check(thrown)?;
    // SAFETY: without an error, `output` is an at::Tensor on the heap that nobody else has.
    Ok(unsafe { Tensor::from_ptr(output.cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::VariantArray as _;
    use tch::{Device, Kind};

    #[test]
    fn a_backend_that_cannot_says_so_instead_of_another_taking_its_place() {
        let x = Tensor::ones([1, 2, 8, 16], (Kind::Float, Device::Cpu));
        for &backend in AttentionBackend::VARIANTS {
            let error = attention(backend, &x, &x, &x, false, Some(0.5)).unwrap_err();
            assert!(error.to_string().contains(&format!("{backend}_attention")), "{error}");
        }
    }
}
