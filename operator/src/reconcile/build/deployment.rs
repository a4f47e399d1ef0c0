//! The workers.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::ConfigMap,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{config_map, names, pod};
use crate::reconcile::types::Validated;

/// How long a new worker must stay ready before it counts: a worker that dies on its first request fails the rollout.
const MIN_READY_SECONDS: i32 = 5;
const REVISION_HISTORY: i32 = 5;

/// The Deployment of `spec`.
pub(super) fn build(spec: &Validated, config: &ConfigMap) -> Deployment {
    Deployment {
        metadata: names::child(spec, spec.name.clone()),
        spec: Some(DeploymentSpec {
            replicas: Some(spec.replicas),
            selector: names::selector(&spec.name),
            min_ready_seconds: Some(MIN_READY_SECONDS),
            revision_history_limit: Some(REVISION_HISTORY),
            progress_deadline_seconds: Some(seconds(spec.rollout.progress_deadline)),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(spec.rollout.max_surge)),
                    max_unavailable: Some(IntOrString::Int(spec.rollout.max_unavailable)),
                }),
            }),
            template: pod::template(spec, &config_map::hash(config)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn seconds(duration: std::time::Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}
