//! `spec.autoscaling` with everything decided, and what of it cannot work with its mode.

use std::time::Duration;

use super::refuse;
use crate::{
    autoscale::spec::{ScalingSpec, Speed, Targets},
    crd::{self, AutoscalingMode, ImageGenSpec, Reason, ScalingRule},
    reconcile::types::{OperatorSettings, Refusal},
};

const TARGET_MEMORY_PRESSURE: f64 = 0.75;
const TARGET_QUEUE_WAIT: Duration = Duration::from_secs(20);
const TOLERANCE: f64 = 0.1;
const UP: Speed = Speed { window: Duration::ZERO, max_step: 4 };
const DOWN: Speed = Speed { window: Duration::from_secs(300), max_step: 1 };

/// How an ImageGen is scaled: what its spec says, and the built-in values for the rest. Without `spec.autoscaling`, what a
/// metric would be read with.
#[must_use]
pub fn resolve(spec: &ImageGenSpec) -> ScalingSpec {
    let scaling = spec.autoscaling.as_ref();
    let min = scaling.and_then(|scaling| scaling.min_replicas).unwrap_or(1);
    ScalingSpec {
        min,
        max: scaling.and_then(|scaling| scaling.max_replicas).unwrap_or(u32::MAX).max(min),
        targets: Targets {
            memory_pressure: scaling
                .and_then(|scaling| scaling.target_memory_pressure)
                .unwrap_or(TARGET_MEMORY_PRESSURE),
            queue_wait: parsed(scaling.and_then(|scaling| scaling.target_queue_wait.as_ref()), TARGET_QUEUE_WAIT),
        },
        tolerance: scaling.and_then(|scaling| scaling.tolerance).unwrap_or(TOLERANCE),
        up: speed(scaling.and_then(|scaling| scaling.scale_up.as_ref()), UP),
        down: speed(scaling.and_then(|scaling| scaling.scale_down.as_ref()), DOWN),
        assumed_load_time: parsed(Some(&spec.worker.startup_timeout), Duration::from_secs(1800)),
    }
}

fn speed(rule: Option<&ScalingRule>, built_in: Speed) -> Speed {
    Speed {
        window: parsed(rule.and_then(|rule| rule.stabilization_window.as_ref()), built_in.window),
        max_step: rule.and_then(|rule| rule.max_step).unwrap_or(built_in.max_step),
    }
}

/// The schema lets nothing through that does not parse.
fn parsed(text: Option<&crd::Duration>, built_in: Duration) -> Duration {
    text.and_then(|text| text.parse().ok()).unwrap_or(built_in)
}

/// Everything that does not go with the mode of HorizontalPodAutoscaler, with what to do instead.
pub(super) fn check_hpa(spec: &ImageGenSpec, operator: &OperatorSettings) -> Vec<Refusal> {
    let Some(scaling) = &spec.autoscaling else { return Vec::new() };
    if scaling.mode != AutoscalingMode::HorizontalPodAutoscaler {
        return Vec::new();
    }
    let table = [
        (
            !operator.metrics_api,
            Reason::NotAllowed,
            "autoscaling.mode",
            "an HPA reads the operator's metrics through an APIService, and this operator has no rights on those: install \
             the chart with metricsAPI.clusterRBAC=true, or use mode External or Disabled",
        ),
        (
            scaling.min_replicas == Some(0),
            Reason::NotYetSupported,
            "autoscaling.minReplicas",
            "0 does not go with mode HorizontalPodAutoscaler: without a worker there is no metric that could bring the \
             first one back; set at least 1, or use mode External",
        ),
        (
            scaling.tolerance.is_some(),
            Reason::InvalidSpec,
            "autoscaling.tolerance",
            "has no effect with mode HorizontalPodAutoscaler, whose tolerance is the cluster's \
             (--horizontal-pod-autoscaler-tolerance of kube-controller-manager): leave the field out",
        ),
    ];
    let refused = table.into_iter().filter(|(found, ..)| *found);
    refused.map(|(_, reason, field, message)| refuse(reason, field, message)).collect()
}

/// Everything that does not go with another owner of the number of workers.
pub(super) fn check_external(spec: &ImageGenSpec) -> Vec<Refusal> {
    let Some(scaling) = spec.autoscaling.as_ref().filter(|scaling| scaling.mode == AutoscalingMode::External) else {
        return Vec::new();
    };
    let table = [
        (scaling.min_replicas.is_some(), "minReplicas"),
        (scaling.max_replicas.is_some(), "maxReplicas"),
        (scaling.tolerance.is_some(), "tolerance"),
        (
            scaling.scale_up.as_ref().is_some_and(|rule| rule.stabilization_window.is_some()),
            "scaleUp.stabilizationWindow",
        ),
        (scaling.scale_down.is_some(), "scaleDown"),
    ];
    let refused = table.into_iter().filter(|(found, _)| *found);
    let message = "has no effect with mode External: the owner of the scale subresource decides about it, such as \
                   minReplicaCount, maxReplicaCount and advanced.horizontalPodAutoscalerConfig of a ScaledObject; leave \
                   the field out";
    refused.map(|(_, field)| refuse(Reason::InvalidSpec, format!("autoscaling.{field}"), message)).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn spec(autoscaling: &Value) -> ImageGenSpec {
        let spec = json!({"model": {"source": {"hostPath": {"path": "/m"}}}, "autoscaling": autoscaling});
        serde_json::from_value(spec).unwrap()
    }

    fn operator(metrics_api: bool) -> OperatorSettings {
        OperatorSettings {
            worker_image: "w".into(),
            operator_namespace: "o".into(),
            allow_host_path: true,
            allow_privileged_pods: false,
            metrics_api,
        }
    }

    #[test]
    fn what_is_absent_is_built_in() {
        let given = resolve(&spec(&json!({
            "mode": "HorizontalPodAutoscaler", "minReplicas": 2, "maxReplicas": 9, "targetMemoryPressure": 0.5,
            "targetQueueWait": "1m", "scaleUp": {"maxStep": 2}, "scaleDown": {"stabilizationWindow": "30s"},
        })));
        assert_eq!((given.min, given.max, given.targets.memory_pressure), (2, 9, 0.5));
        assert_eq!(given.targets.queue_wait, Duration::from_secs(60));
        assert_eq!((given.up.window, given.up.max_step), (Duration::ZERO, 2));
        assert_eq!((given.down.window, given.down.max_step), (Duration::from_secs(30), 1));
        let absent = resolve(&spec(&Value::Null));
        assert_eq!((absent.min, absent.targets.memory_pressure, absent.up), (1, 0.75, UP));
    }

    #[rstest]
    #[case::good(json!({"mode": "HorizontalPodAutoscaler", "maxReplicas": 3}), true, &[])]
    #[case::roles_only(json!({"mode": "HorizontalPodAutoscaler", "maxReplicas": 3}), false, &["spec.autoscaling.mode"])]
    #[case::zero(
        json!({"mode": "HorizontalPodAutoscaler", "minReplicas": 0, "maxReplicas": 3}), true,
        &["spec.autoscaling.minReplicas"]
    )]
    #[case::tolerance(
        json!({"mode": "HorizontalPodAutoscaler", "maxReplicas": 3, "tolerance": 0.2}), true,
        &["spec.autoscaling.tolerance"]
    )]
    #[case::another_mode_without_rights(json!({"mode": "Disabled", "tolerance": 0.2}), false, &[])]
    fn what_an_hpa_cannot_do_is_refused(#[case] scaling: Value, #[case] metrics_api: bool, #[case] fields: &[&str]) {
        let refused = check_hpa(&spec(&scaling), &operator(metrics_api));
        assert_eq!(refused.iter().map(|refusal| refusal.field.as_str()).collect::<Vec<_>>(), fields);
    }

    #[rstest]
    #[case::good(json!({"mode": "External", "targetMemoryPressure": 0.6, "targetQueueWait": "5s"}), &[])]
    #[case::limits(
        json!({"mode": "External", "minReplicas": 0, "maxReplicas": 3}),
        &["spec.autoscaling.minReplicas", "spec.autoscaling.maxReplicas"]
    )]
    #[case::speed(
        json!({"mode": "External", "scaleUp": {"stabilizationWindow": "3s"}, "scaleDown": {"maxStep": 1}}),
        &["spec.autoscaling.scaleUp.stabilizationWindow", "spec.autoscaling.scaleDown"]
    )]
    fn what_another_owner_decides_is_refused(#[case] scaling: Value, #[case] fields: &[&str]) {
        let refused = check_external(&spec(&scaling));
        assert_eq!(refused.iter().map(|refusal| refusal.field.as_str()).collect::<Vec<_>>(), fields);
    }
}
