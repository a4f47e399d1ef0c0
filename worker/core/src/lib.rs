//! The rules of an ImageGen worker. Everything here is pure: no clock, no environment, no tensors, no network.
//!
//! ```text
//! bytes ─parse→ GenerateRequest ─admit→ queue ─→ ImageSpec ─engine thread→ RgbImage ─encode→ reply
//! ```
//!
//! The only seam to the model is [`engine::Engine`].

pub mod engine;
pub mod spec;
