//! Z-Image in libtorch: checkpoint in the diffusers folder layout in, pictures out.
//!
//! ```text
//! prompt ─tokenizer→ tokens ─text_encoder→ caption features ─┐
//! seed ─noise→ latents ─────────────────────────────────────┴→ transformer × steps (guidance, scheduler) → latents ─vae→ pixels
//! ```
//!
//! [`TorchEngine`] is the whole of it behind [`imagegen_core::engine::Engine`]. The module names follow the folders of the
//! checkpoint and the struct fields follow its keys. Operators of libtorch panic on failure; [`engine`] is the only place
//! that catches them, so the networks read like their originals.
//!
//! Originals, all cited by function: diffusers 0.42.1 and transformers 5.23.0.

mod checkpoint;
mod config;
mod convert;
pub mod engine;
mod error;
mod failure;
mod guidance;
mod kernels;
pub mod libtorch;
mod load;
mod nn;
mod noise;
#[cfg(test)]
mod parity;
mod preview;
mod random;
mod scheduler;
pub mod shim;
mod text_encoder;
mod tokenizer;
mod transformer;
mod vae;
mod weights;

pub use convert::{ConvertError, Converted, convert};
pub use engine::{TorchBatch, TorchEngine};
pub use error::LoadError;
pub use kernels::check::{KernelCheck, check_kernels};
pub use load::{Device, LoadOptions, LoadProgress, Precision, VaeTiling};
pub use nn::attention_choices;
