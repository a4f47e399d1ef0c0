//! What libtorch offers in C++ only: its allocators, events, the current stream, attention by a named backend.
//!
//! [`cpu`] and [`attention`] are linked in. [`cuda`] is a shared object that this program carries inside itself: it needs
//! libtorch_cuda.so, so it is opened after that, and never where there is no GPU. All `unsafe` of the project that is about
//! libtorch is in here, and nothing that this module exports is unsafe to call.
#![allow(unsafe_code, reason = "this is the boundary to C++; what it exports is safe")]

pub mod attention;
pub mod cpu;
pub mod cuda;
mod event;
mod ffi;

/// What a C++ function of libtorch threw, in its own words without the backtrace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ShimError(pub(crate) String);

/// The last allocation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAllocation {
    /// Failed allocations so far, this one included.
    pub count: u64,
    /// What was asked for.
    pub asked_bytes: u64,
    /// What the device, or the limit, had left. Below it free blocks may be held that are too small.
    pub free_bytes: u64,
}
