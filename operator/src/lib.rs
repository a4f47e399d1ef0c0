//! The ImageGen operator.
//!
//! ```text
//! ImageGen -observe(read)-> Observed -validate(pure)-> Validated -build(pure)-> Desired -apply(write)-> Applied
//!          -status(pure)-> Status -patch(write)-> ImageGen.status
//! ```
//!
//! Nothing later in this line is used by anything earlier. Beside it stand the election of the pod that writes
//! ([`lease`]) and the certificate authority of the workers' admin port ([`pki`]).

pub mod api_calls;
pub mod autoscale;
pub mod backoff;
pub mod caches;
pub mod cli;
pub mod crd;
pub mod events;
pub mod fleets;
pub mod keda;
pub mod lease;
pub mod metrics;
pub mod metrics_api;
pub mod pki;
pub mod reconcile;
pub mod recycle;
pub mod run;
mod serve;
pub mod serving;

/// The field manager of everything that the operator applies, and the controller name in its events.
pub const FIELD_MANAGER: &str = "imagegen-operator";
