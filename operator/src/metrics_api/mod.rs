//! The custom metrics API, `custom.metrics.k8s.io/v1beta2`: what a HorizontalPodAutoscaler reads.
//!
//! ```text
//! connection -front_proxy(who asks)-> User -request(pure: what is asked)-> Target -access(may they)-> value(pure) -> JSON
//! ```
//!
//! Every operator pod answers. Callers come through the API server, which vouches for them with its front-proxy
//! certificate.

pub mod access;
pub mod auth_headers;
pub mod discovery;
pub mod failure;
pub mod front_proxy;
pub mod quantity;
pub mod request;
pub mod selector;
pub mod server;
pub mod value;

use strum::{Display, EnumIter, EnumString, IntoStaticStr};

/// The API group.
pub const GROUP: &str = "custom.metrics.k8s.io";
/// The one version that is served.
pub const VERSION: &str = "v1beta2";
/// Both, as `apiVersion` has them.
pub const API_VERSION: &str = "custom.metrics.k8s.io/v1beta2";

/// What can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Metric {
    /// Sum of the workers' pressure; divided by the target it is the number of workers.
    PressureTotal,
    /// The scaling signal of one worker, 0 to 100; of a fleet, the mean.
    Pressure,
    /// Share of the room for activations that the running batch takes; of a fleet, the mean.
    MemoryPressure,
    /// Seconds of work that wait or were refused; of a fleet, the sum.
    BacklogSeconds,
    /// Requests that wait; of a fleet, the sum.
    QueuedRequests,
    /// Bytes that activations may take; of a fleet, the sum.
    HeadroomBytes,
    /// Share of the reserved bytes that no tensor uses.
    FragmentationRatio,
}

/// What a metric speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A fleet.
    ImageGen,
    /// One worker.
    Pod,
}

impl Subject {
    /// Its resource, as paths and RBAC name it.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::ImageGen => "imagegens.imagegen.dev",
            Self::Pod => "pods",
        }
    }

    /// The subject behind a resource.
    #[must_use]
    pub fn of_resource(resource: &str) -> Option<Self> {
        [Self::ImageGen, Self::Pod].into_iter().find(|subject| subject.resource() == resource)
    }

    /// Whether it has this metric. One worker has no total.
    #[must_use]
    pub fn has(self, metric: Metric) -> bool {
        self == Self::ImageGen || metric != Metric::PressureTotal
    }
}
