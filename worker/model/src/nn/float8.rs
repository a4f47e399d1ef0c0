//! 8-bit numbers (e4m3) with one scale a row, for the large products.
//!
//! Weights are rounded once, at load, with a scale for each output; activations with a scale for each token. A product is that of
//! the 8-bit numbers, summed in float32, times both scales.

use tch::{Device, Kind, TchError, Tensor};

use crate::kernels::Float8Rows;

/// Largest number of e4m3.
const MAX: f64 = 448.0;
/// Scale of a row of zeros, so that it can be divided by.
const SMALLEST_MAGNITUDE: f64 = 1e-12;

/// `x` rounded to 8 bits, a scale for each row of the last dimension.
///
/// # Shapes
/// `[rows, width]` of any type.
pub(crate) fn quantize(x: &Tensor) -> Float8Rows {
    let x = x.to_kind(Kind::Float);
    let scales = x.abs().amax([-1].as_slice(), true).clamp_min(SMALLEST_MAGNITUDE) / MAX;
    let values = (x * scales.reciprocal()).clamp(-MAX, MAX).to_kind(Kind::Float8e4m3fn);
    Float8Rows { values, scales }
}

/// A weight in 8 bits.
#[derive(Debug)]
pub(crate) struct Float8Weight {
    /// `[outputs, inputs]`
    values: Tensor,
    /// `[1, outputs]`
    scales: Tensor,
}

impl Float8Weight {
    /// `weight` is `[outputs, inputs]`.
    pub(crate) fn new(weight: &Tensor) -> Self {
        let Float8Rows { values, scales } = quantize(weight);
        Self { values, scales: scales.transpose(0, 1).contiguous() }
    }

    /// `[rows, inputs]` to `[rows, outputs]` in bfloat16.
    pub(crate) fn product(&self, x: &Float8Rows) -> Tensor {
        self.f_product(x).expect("8-bit precision was refused where there are no such products")
    }

    fn f_product(&self, x: &Float8Rows) -> Result<Tensor, TchError> {
        let none = None::<&Tensor>;
        match x.values.device() {
            Device::Cuda(_) => {
                let weight = self.values.transpose(0, 1);
                x.values.f_internal_scaled_mm(&weight, &x.scales, &self.scales, none, none, Kind::BFloat16, true)
            }
            // The same numbers, for machines without such products.
            _ => {
                let float = |x: &Tensor| x.to_kind(Kind::Float);
                let mut product = float(&x.values).linear(&float(&self.values), none);
                product *= &x.scales;
                product *= &self.scales;
                Ok(product.to_kind(Kind::BFloat16))
            }
        }
    }
}

/// Why `device` has no products of 8-bit numbers with a scale for each row and output, found by making one: it depends on the GPU
/// and on the version of libtorch.
pub(crate) fn missing(device: Device) -> Option<String> {
    let ones = Tensor::ones([16, 16], (Kind::Float, device));
    let product = Float8Weight::new(&ones).f_product(&quantize(&ones));
    product.err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_own_scale_and_zeros_stay_zeros() {
        let x = Tensor::from_slice(&[1.0f32, -0.5, 0.25, 1e4, 448.0, 0.0, 0.0, 0.0, 0.0]).view([3, 3]);
        let Float8Rows { values, scales } = quantize(&x);
        let back = values.to_kind(Kind::Float) * &scales;
        let error = ((&back - &x).abs() / x.abs().clamp_min(1e-6)).max().double_value(&[]);
        // Three bits of mantissa: at most one part in 16, and 448 of 1e4 is far from its row's smallest number.
        assert!(error <= 1.0 / 16.0, "{error}");
        assert_eq!(Vec::<f32>::try_from(back.get(2)).unwrap(), [0.0; 3]);
        assert_eq!(back.double_value(&[1, 0]), 1e4);
    }

    #[test]
    fn a_product_is_near_the_one_in_float32() {
        let options = (Kind::Float, Device::Cpu);
        tch::manual_seed(3);
        let _generator = crate::noise::generator(1);
        let (x, weight) = (Tensor::randn([5, 64], options), Tensor::randn([32, 64], options));
        assert_eq!(missing(Device::Cpu), None);
        let product = Float8Weight::new(&weight).product(&quantize(&x)).to_kind(Kind::Float);
        let exact = x.linear(&weight, None::<&Tensor>);
        let error = (product - &exact).norm().double_value(&[]) / exact.norm().double_value(&[]);
        assert!(error > 1e-3 && error < 0.06, "{error}");
    }
}
