//! A discrete-event simulator of a fleet: workers with queues and device memory, clients that retry, traffic with
//! disturbances, and the autoscalers that are compared on it. The operator's own decision runs in it as it is.
//!
//! What it leaves out: the network, batches of more than one picture, and the stickiness of channels (requests go to the
//! ready workers in turn).

pub(crate) mod autoscaler;
pub(crate) mod card;
pub(crate) mod hpa;
pub(crate) mod outcome;
pub(crate) mod scenario;
pub(crate) mod signals;
pub(crate) mod worker;
pub(crate) mod world;
