//! The ImageGen worker: a gRPC server around one loaded model.
//!
//! ```text
//! connections ─→ service ─parse(pure)→ Request ─admit→ dispatcher: queue ─→ engine thread ─RGB→ call: encode ─→ stream
//!     tls, auth      status (one table)             health, metrics, admin read its snapshot
//! ```
//!
//! One OS thread owns the engine and with it the device. Everything else is asynchronous and only talks to that thread
//! through the dispatcher.

pub mod cli;
pub mod convert;
pub mod doctor;
pub mod generate;
pub mod profiles;
pub mod run;
pub mod scripted;

mod admin;
mod allocator;
mod auth;
mod call;
mod calls;
mod connections;
mod device;
mod dispatcher;
mod driver;
mod encode;
mod engine_thread;
mod gpu;
mod health;
mod metrics;
mod output;
mod reload;
mod service;
mod settings;
mod snapshot;
mod status;
mod table_cache;
mod tls;
#[cfg(feature = "torch")]
mod torch;
mod wire;
