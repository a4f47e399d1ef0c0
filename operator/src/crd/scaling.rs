//! `spec.autoscaling`: how many workers there are.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::Display;

use super::{duration::Duration, schema::duration_between};

/// Who decides about the number of workers, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas")
        .message("minReplicas must not be larger than maxReplicas"),
    validation = Rule::new("self.mode == 'Disabled' || self.mode == 'External' || has(self.maxReplicas)")
        .message("maxReplicas is needed with this mode: it is the limit of what the autoscaler may start"),
    validation = Rule::new("!has(self.scaleToZero) || (has(self.minReplicas) && self.minReplicas == 0)")
        .message("scaleToZero works only with minReplicas: 0")
)]
pub struct AutoscalingSpec {
    /// Who owns the number of workers: Disabled (spec.replicas), Operator (the operator, from memory pressure), HorizontalPodAutoscaler (an HPA that the operator makes) or External (KEDA or any other owner of the scale subresource).
    pub mode: AutoscalingMode,
    /// Fewest workers, 0 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: Option<u32>,
    /// Most workers, 1 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: Option<u32>,
    /// Memory pressure to steer for, 0.05 to 1: the share of the room for activations that the running batch takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.05, max = 1.0))]
    pub target_memory_pressure: Option<f64>,
    /// Time that waiting work may take, at which backlog weighs as much as memory at its target; 1s to 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between("1s", "1h"))]
    pub target_queue_wait: Option<Duration>,
    /// Relative distance from the target below which nothing changes, 0 to 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.5))]
    pub tolerance: Option<f64>,
    /// How fast workers are added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScalingRule>,
    /// How fast workers are taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScalingRule>,
    /// What happens when nobody asks for pictures. Only with minReplicas: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_to_zero: Option<ScaleToZero>,
}

/// The speed of one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingRule {
    /// Time over which the most careful decision counts, 0s to 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between("0s", "1h"))]
    pub stabilization_window: Option<Duration>,
    /// Most workers in one step, 1 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_step: Option<u32>,
}

/// Scaling to zero and back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleToZero {
    /// Time without any request after which the last worker goes, 1m to 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between("1m", "24h"))]
    pub idle_window: Option<Duration>,
    /// Most requests that wait for the first worker, 1 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_held: Option<u32>,
}

/// Who owns the number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum AutoscalingMode {
    /// `spec.replicas`.
    Disabled,
    /// The operator, from the workers' reports.
    Operator,
    /// A HorizontalPodAutoscaler that the operator makes.
    HorizontalPodAutoscaler,
    /// Another owner of the scale subresource.
    External,
}
