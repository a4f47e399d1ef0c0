//! The rules of an ImageGen worker. Everything here is pure: no clock, no environment, no tensors, no network.
//!
//! ```text
//! bytes ─parse→ Request ─admit→ queue ─→ ImageSpec ─engine thread→ RgbImage ─encode→ reply
//! ```
//!
//! The only seam to the model is [`engine::Engine`].

pub mod admission;
pub mod allocator;
pub mod batch;
pub mod breaker;
pub mod bucket;
pub mod duration;
pub mod engine;
pub mod eta;
pub mod geometry;
pub mod memory;
pub mod oom;
pub mod pressure;
pub mod queue;
pub mod request;
pub mod rules;
pub mod spec;
pub mod table;
pub mod text;
pub mod trim;
pub mod turn;

mod violation;
