//! Client of ImageGen workers, as a program of its own and as a kubectl plugin.
//!
//! ```text
//! args ─request(pure)→ GenerateRequest ─session→ stream of events ─display, files→ pictures
//!                              ▲                        │ failure
//!                              └───── retry(pure) ◀─ explain(pure) ─error→ exit code, text, JSON
//! ```
//!
//! A session is a channel to the addresses of an endpoint ([`channel`]) or through the Kubernetes API server
//! ([`kubectl`]).

pub mod args;
pub mod channel;
pub mod credentials;
pub mod display;
pub mod endpoint;
pub mod error;
pub mod exit;
pub mod explain;
pub mod files;
pub mod generate;
pub mod kubectl;
pub mod output;
pub mod request;
pub mod retry;
pub mod run;
pub mod session;
pub mod status;
pub mod table;
pub mod time;
