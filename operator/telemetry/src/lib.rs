//! Logging, the HTTP page of metrics and probes, and task supervision, shared by operator and worker.

pub mod http;
pub mod logging;
pub mod supervise;
