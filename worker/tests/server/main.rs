//! The whole server with the scripted engine, over real sockets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that meets what it did not expect has failed")]

mod admission;
mod alerts;
mod binary;
mod faults;
mod gpu;
mod harness;
mod life;
mod memory;
mod observe;
mod report;
mod requests;
mod security;
#[cfg(feature = "torch")]
mod torch;
