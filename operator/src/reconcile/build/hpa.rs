//! The HorizontalPodAutoscaler of an ImageGen in that mode. It reads one number of the whole fleet from the metrics API,
//! and writes the ImageGen's scale subresource.

use k8s_openapi::{
    api::autoscaling::v2::{
        CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
        HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget,
        ObjectMetricSource,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::names;
use crate::{
    autoscale::{decide::STEP_PERIOD, spec::Speed},
    crd::AutoscalingMode,
    metrics_api::{Metric, quantity::quantity},
    reconcile::types::Validated,
};

/// The autoscaler of `spec`; `None` in other modes.
pub(super) fn build(spec: &Validated) -> Option<HorizontalPodAutoscaler> {
    if spec.autoscaling_mode != AutoscalingMode::HorizontalPodAutoscaler {
        return None;
    }
    let scaling = &spec.scaling;
    let imagegen = CrossVersionObjectReference {
        api_version: Some(spec.owner.api_version.clone()),
        kind: spec.owner.kind.clone(),
        name: spec.name.clone(),
    };
    let metric = ObjectMetricSource {
        described_object: imagegen.clone(),
        metric: MetricIdentifier { name: Metric::PressureTotal.to_string(), selector: None },
        target: MetricTarget {
            type_: "AverageValue".to_owned(),
            average_value: Some(Quantity(quantity(scaling.targets.memory_pressure))),
            ..MetricTarget::default()
        },
    };
    Some(HorizontalPodAutoscaler {
        metadata: names::child(spec, spec.name.clone()),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: imagegen,
            min_replicas: Some(whole(scaling.min)),
            max_replicas: whole(scaling.max),
            metrics: Some(vec![MetricSpec {
                type_: "Object".to_owned(),
                object: Some(metric),
                ..MetricSpec::default()
            }]),
            behavior: Some(HorizontalPodAutoscalerBehavior {
                scale_up: Some(rules(scaling.up)),
                scale_down: Some(rules(scaling.down)),
            }),
        }),
        ..HorizontalPodAutoscaler::default()
    })
}

fn rules(speed: Speed) -> HPAScalingRules {
    let policy = HPAScalingPolicy {
        type_: "Pods".to_owned(),
        value: whole(speed.max_step),
        period_seconds: i32::try_from(STEP_PERIOD.as_secs()).unwrap_or(i32::MAX),
    };
    // Rounded up: half a second of care is not none.
    let window = speed.window.as_secs() + u64::from(speed.window.subsec_nanos() > 0);
    HPAScalingRules {
        stabilization_window_seconds: Some(i32::try_from(window).unwrap_or(i32::MAX)),
        select_policy: Some("Max".to_owned()),
        policies: Some(vec![policy]),
        ..HPAScalingRules::default()
    }
}

fn whole(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
