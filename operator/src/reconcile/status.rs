//! From what was applied and what is observed to the status that users see. Pure.

mod conditions;
mod difference;
mod fleet;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use self::difference::changed_enough;
use self::{
    conditions::{Conditions, Verdict},
    fleet::Counts,
};
use super::{
    build::{self, names},
    types::{Applied, ApplyFailureCause, Fleet, Refusal, Setting, Validated},
};
use crate::crd::{ConditionType, EffectiveSetting, ImageGen, ImageGenStatus, Reason};

/// Longest condition message: what the schema takes.
const MAX_MESSAGE: usize = 4096;

/// The status of an ImageGen whose spec was built and applied.
pub fn status(
    cr: &ImageGen,
    validated: &Validated,
    applied: &Applied,
    fleet: &Fleet,
    now: Timestamp,
) -> ImageGenStatus {
    let previous = cr.status.clone().unwrap_or_default();
    let deployment = fleet::newest(applied.deployment.as_ref(), fleet.deployment.as_ref());
    let counts = Counts::of(deployment, validated.replicas);
    let trouble = if counts.complete() { None } else { trouble::find(fleet, deployment) };

    let mut conditions = Conditions::new(cr, now);
    let failure = applied.failures.first().map(|failure| {
        let reason = match failure.cause {
            ApplyFailureCause::NotOurs => Reason::NameConflict,
            ApplyFailureCause::Refused(_) => Reason::ApplyFailed,
        };
        let sentences: Vec<String> = applied.failures.iter().map(ToString::to_string).collect();
        Verdict::new(reason, sentences.join("; "))
    });
    let left_out: Vec<String> = validated.warnings.iter().cloned().chain(build::left_out(validated)).collect();
    conditions.set_all(&counts, failure, trouble, &validated.model_name, &left_out);

    let revision = deployment.and_then(fleet::revision).filter(|_| counts.complete() && counts.desired > 0);
    ImageGenStatus {
        observed_generation: cr.metadata.generation,
        replicas: counts.replicas,
        ready_replicas: counts.ready,
        desired_replicas: counts.desired,
        selector: Some(names::selector_text(&validated.name)),
        worker_image: Some(validated.worker_image.value.clone()),
        autoscaling_mode: Some(validated.autoscaling_mode),
        ready_revision: revision.or(previous.ready_revision),
        model: Some(validated.model_name.clone()),
        gpu: Some(validated.gpu_resource.clone().unwrap_or_else(|| "none".into())),
        conditions: conditions.finish(),
        effective: effective(validated),
        memory: previous.memory,
        demand: previous.demand,
        scaling_history: previous.scaling_history,
        workers: fleet::workers(&fleet.pods),
    }
}

/// The status of an ImageGen whose spec is refused. Its workers, if there are any, go on as the last good spec said.
pub fn refused(cr: &ImageGen, refusals: &[Refusal], fleet: &Fleet, now: Timestamp) -> ImageGenStatus {
    let previous = cr.status.clone().unwrap_or_default();
    let counts = Counts::of(fleet.deployment.as_ref(), previous.desired_replicas);
    let sentences: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    let reason = refusals.first().map_or(Reason::InvalidSpec, |refusal| refusal.reason);
    let verdict = Verdict::new(reason, sentences.join("; "));

    let mut conditions = Conditions::new(cr, now);
    conditions.set_answering(&counts, &verdict, previous.model.as_deref().unwrap_or("the model"));
    conditions.set(ConditionType::Ready, false, verdict.clone());
    conditions.set(ConditionType::Progressing, false, verdict.clone());
    conditions.set(ConditionType::Degraded, true, verdict);
    ImageGenStatus {
        observed_generation: cr.metadata.generation,
        replicas: counts.replicas,
        ready_replicas: counts.ready,
        selector: Some(names::selector_text(cr.metadata.name.as_deref().unwrap_or_default())),
        conditions: conditions.finish(),
        workers: fleet::workers(&fleet.pods),
        ..previous
    }
}

/// The status of an ImageGen whose reconcile failed for `error`, which may pass by itself.
pub fn failed(cr: &ImageGen, error: &str, now: Timestamp) -> ImageGenStatus {
    let previous = cr.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(cr, now);
    let verdict = Verdict::new(Reason::ReconcileFailed, format!("the operator will try again: {error}"));
    conditions.set(ConditionType::Degraded, true, verdict.clone());
    conditions.set_if_absent(ConditionType::Ready, false, verdict);
    // The generation stays: what the status says of the workers was seen under that one.
    ImageGenStatus { conditions: conditions.finish(), ..previous }
}

/// The settings in force, by name.
fn effective(validated: &Validated) -> BTreeMap<String, EffectiveSetting> {
    let entry = |name: &str, setting: &Setting| {
        (name.to_owned(), EffectiveSetting { value: setting.value.clone(), origin: setting.origin })
    };
    let mut effective: BTreeMap<_, _> =
        validated.settings.iter().map(|setting| entry(setting.name, &setting.setting)).collect();
    effective.extend([entry("workerImage", &validated.worker_image)]);
    effective
}
