//! Building blocks that more than one network uses.

mod attention;
mod conv;
mod linear;
mod norm;

pub(crate) use attention::{Lengths, attend};
pub(crate) use conv::{Conv, channels_last};
pub(crate) use linear::Linear;
pub(crate) use norm::{GroupNorm, Statistics, inverse_rms, rms_norm};
