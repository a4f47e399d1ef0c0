//! Building blocks that more than one network uses.

mod attention;
mod conv;
mod float8;
pub(crate) mod fused;
mod linear;
mod norm;

pub use attention::attention_choices;
pub(crate) use attention::{Lengths, attend, prepare as prepare_attention};
pub(crate) use conv::{Conv, channels_last};
pub(crate) use float8::missing as float8_missing;
pub(crate) use linear::Linear;
pub(crate) use norm::{GroupNorm, Statistics, rms_norm};
