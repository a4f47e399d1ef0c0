//! The condition ScalingActive: whether somebody changes the number of workers by itself, and if not, why.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

use super::conditions::Verdict;
use crate::{
    crd::{AutoscalingMode, Reason},
    metrics_api::{GROUP, Metric},
    reconcile::{
        api_service::MetricsApiState,
        types::{Fleet, Validated},
    },
};

/// Whether the number of workers follows the load.
pub(super) fn verdict(validated: &Validated, fleet: &Fleet) -> (bool, Verdict) {
    match validated.autoscaling_mode {
        AutoscalingMode::HorizontalPodAutoscaler => by_hpa(validated, fleet),
        AutoscalingMode::External => {
            let message = "the operator leaves the number of workers to the owner of the scale subresource";
            (false, Verdict::new(Reason::ScaledExternally, message))
        }
        AutoscalingMode::Disabled | AutoscalingMode::Operator => {
            (false, Verdict::new(Reason::AutoscalingDisabled, "spec.replicas decides about the number of workers"))
        }
    }
}

fn by_hpa(validated: &Validated, fleet: &Fleet) -> (bool, Verdict) {
    let said = fleet.hpa.as_ref().and_then(scaling_active);
    if let Some((true, ..)) = said {
        let (min, max) = (validated.scaling.min, validated.scaling.max);
        let message = format!("HorizontalPodAutoscaler {} keeps {min} to {max} workers", validated.name);
        return (true, Verdict::new(Reason::HorizontalPodAutoscaler, message));
    }
    let verdict = match (&fleet.metrics_api, said) {
        (MetricsApiState::OwnedByOther { api_service, service }, _) => Verdict::new(
            Reason::MetricsAPIOwnedByOther,
            format!(
                "APIService {api_service} ({service}) serves {GROUP} for the whole cluster, so the operator does not: let \
                 that adapter serve {} of {} (docs/hpa.md, \"Beside another adapter\"), or remove it",
                Metric::PressureTotal,
                crate::metrics_api::Subject::ImageGen.resource(),
            ),
        ),
        (MetricsApiState::Failed(error), _) => Verdict::new(
            Reason::MetricsAPIFailed,
            format!("the operator's metrics API cannot be reached by HPAs: {error}"),
        ),
        (_, Some((_, reason, message))) => {
            Verdict::new(Reason::HorizontalPodAutoscalerFailed, format!("{reason}: {message}"))
        }
        (_, None) => Verdict::new(Reason::HorizontalPodAutoscalerStarting, "the HPA has not read its metric yet"),
    };
    (false, verdict)
}

/// The HPA's own condition: whether it holds, its reason and its message.
fn scaling_active(hpa: &HorizontalPodAutoscaler) -> Option<(bool, String, String)> {
    let conditions = hpa.status.as_ref()?.conditions.as_deref()?;
    let found = conditions.iter().find(|condition| condition.type_ == "ScalingActive")?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some((found.status == "True", text(&found.reason), text(&found.message)))
}
