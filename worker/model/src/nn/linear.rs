//! Linear maps.

use tch::{Device, Kind, Tensor};

/// `x @ weight.T + bias`, or several of them with one input and their outputs one after the other.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

/// `[outputs, inputs]`, as the product that is used wants it.
#[derive(Debug)]
enum Weight {
    Plain(Tensor),
    /// For oneDNN: in float32 on a CPU with AVX-512 that is not Intel's it is up to twice as fast as the BLAS that plain
    /// products go to, its copies of input and output included.
    OneDnn(Tensor),
}

impl Linear {
    /// `weight` is `[outputs, inputs]`, `bias` `[outputs]`.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        let suits = bias.is_none() && weight.kind() == Kind::Float && weight.device() == Device::Cpu;
        let packed = if suits { weight.f_to_mkldnn(None::<Kind>).ok() } else { None };
        Self { weight: packed.map_or(Weight::Plain(weight), Weight::OneDnn), bias }
    }

    /// Only to be dropped again.
    pub(crate) const fn undefined(weight: Tensor) -> Self {
        Self { weight: Weight::Plain(weight), bias: None }
    }

    /// `[..., inputs]` to `[..., outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        match &self.weight {
            Weight::Plain(weight) => x.linear(weight, self.bias.as_ref()),
            Weight::OneDnn(weight) => {
                x.g_to_mkldnn(None::<Kind>).mkldnn_linear(weight, self.bias.as_ref()).to_dense(None::<Kind>, false)
            }
        }
    }
}
