//! The condition ScalingActive: whether somebody changes the number of workers by itself, and if not, why.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

use super::conditions::Verdict;
use crate::{
    autoscale::view::{Pause, View},
    crd::{AutoscalingMode, MAX_SCALING_HISTORY, Reason, ScalingEvent},
    metrics_api::{GROUP, Metric},
    reconcile::{
        api_service::MetricsApiState,
        types::{Fleet, Validated},
    },
};

/// Whether the number of workers follows the load.
pub(super) fn verdict(validated: &Validated, fleet: &Fleet) -> (bool, Verdict) {
    let view = &fleet.scaling;
    match &view.pause {
        Some(Pause::Suspended) => {
            let message = "spec.suspend is true: no worker is wanted, and nothing is decided";
            return (false, Verdict::new(Reason::Suspended, message));
        }
        Some(Pause::Conflict(sentence)) => {
            return (false, Verdict::new(Reason::ConflictingAutoscaler, sentence.clone()));
        }
        None => {}
    }
    match validated.autoscaling_mode {
        AutoscalingMode::Operator => by_operator(validated, view),
        AutoscalingMode::HorizontalPodAutoscaler => by_hpa(validated, fleet),
        AutoscalingMode::External => {
            let message = "the operator leaves the number of workers to the owner of the scale subresource";
            (false, Verdict::new(Reason::ScaledExternally, message))
        }
        AutoscalingMode::Disabled => {
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

/// The sentences leave out what changes with every report: that is in the history, the Events and the metrics.
fn by_operator(validated: &Validated, view: &View) -> (bool, Verdict) {
    let (min, max) = (validated.scaling.min, validated.scaling.max);
    if view.reports_missing {
        let message = "no ready worker reports its load, so their number stays: is port 8501 of the workers open to the operator's pods?";
        return (false, Verdict::new(Reason::ReportsMissing, message));
    }
    if let Some((_, reason)) = view.decision.as_ref().filter(|_| view.is_starved()) {
        return (true, Verdict::new(Reason::InsufficientGPU, reason.clone()));
    }
    if view.ignores_replicas {
        let message = format!(
            "spec.replicas has no effect in mode Operator, which keeps {min} to {max} workers: change autoscaling.minReplicas or maxReplicas, or set autoscaling.mode: Disabled"
        );
        return (true, Verdict::new(Reason::ReplicasIgnored, message));
    }
    (
        true,
        Verdict::new(Reason::FollowingLoad, format!("the operator keeps {min} to {max} workers, by what they report")),
    )
}

/// The last changes, newest first: those of this process, then what was there before.
pub(super) fn history(news: &[ScalingEvent], before: Vec<ScalingEvent>) -> Vec<ScalingEvent> {
    let older: Vec<_> = before.into_iter().filter(|event| !news.contains(event)).collect();
    news.iter().cloned().chain(older).take(MAX_SCALING_HISTORY).collect()
}
