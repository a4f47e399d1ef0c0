//! How many workers an eviction may take at a time.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::names;
use crate::reconcile::types::Validated;

/// The budget of `spec`. A worker that does not answer anyway never blocks a node drain.
pub(super) fn build(spec: &Validated) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: names::child(spec, spec.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(spec.disruption_max_unavailable)),
            selector: Some(names::selector(&spec.name)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..Default::default()
        }),
        ..Default::default()
    }
}
