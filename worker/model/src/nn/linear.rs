//! Linear maps.

use tch::{Device, Kind, Tensor};

use super::float8::{self, Float8Weight};
use super::fused::{Form, Operand};

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
    Float8(Float8Weight),
}

impl Linear {
    /// `weight` is `[outputs, inputs]`, `bias` `[outputs]`.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        let suits = bias.is_none() && weight.kind() == Kind::Float && weight.device() == Device::Cpu;
        let packed = if suits { weight.f_to_mkldnn(None::<Kind>).ok() } else { None };
        Self { weight: packed.map_or(Weight::Plain(weight), Weight::OneDnn), bias }
    }

    /// With the weight in 8 bits.
    pub(crate) fn float8(weight: &Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Float8(Float8Weight::new(weight)), bias }
    }

    /// Sizes that products of 8-bit numbers take.
    pub(crate) const fn takes_float8(outputs: i64, inputs: i64) -> bool {
        outputs % 16 == 0 && inputs % 16 == 0
    }

    /// Only to be dropped again.
    pub(crate) const fn undefined(weight: Tensor) -> Self {
        Self { weight: Weight::Plain(weight), bias: None }
    }

    /// What [`Self::product`] wants its input in.
    pub(crate) const fn form(&self) -> Form {
        match self.weight {
            Weight::Plain(_) | Weight::OneDnn(_) => Form::Plain,
            Weight::Float8(_) => Form::Float8,
        }
    }

    /// `[..., inputs]` to `[..., outputs]`; with a weight in 8 bits the input has two dimensions.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        match &self.weight {
            Weight::Plain(weight) => x.linear(weight, self.bias.as_ref()),
            Weight::OneDnn(weight) => {
                x.g_to_mkldnn(None::<Kind>).mkldnn_linear(weight, self.bias.as_ref()).to_dense(None::<Kind>, false)
            }
            Weight::Float8(_) => self.product(&Operand::Float8(float8::quantize(x))),
        }
    }

    /// `[rows, inputs]` to `[rows, outputs]`, from an input in its [`Self::form`].
    pub(crate) fn product(&self, x: &Operand) -> Tensor {
        match (&self.weight, x) {
            (Weight::Float8(weight), Operand::Float8(x)) => {
                let product = weight.product(x);
                match &self.bias {
                    None => product,
                    Some(bias) => product + bias,
                }
            }
            (_, Operand::Plain(x)) => self.forward(x),
            (_, Operand::Float8(_)) => unreachable!("an operand is made in the form of its product"),
        }
    }
}
