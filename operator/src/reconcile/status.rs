//! From what was applied and what is observed to the status that users see. Pure.

mod conditions;
mod difference;
mod fleet;
mod scaling;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::BTreeMap;

use jiff::Timestamp;

use self::conditions::{Conditions, Notes, Verdict};
pub use self::difference::changed_enough;
pub(super) use self::fleet::Counts;
use super::{
    build::{self, names},
    rollout::{Rollout, Step},
    types::{Applied, ApplyFailureCause, Fleet, Refusal, Setting, Validated},
};
use crate::crd::{ConditionType, EffectiveSetting, ImageGen, ImageGenStatus, Reason};

/// Longest condition message: what the schema takes.
const MAX_MESSAGE: usize = 4096;
/// Said while the only worker is replaced.
const GAP: &str = "the only worker is replaced in place, so nobody answers until the new one has loaded the model (rollout.maxSurge: 1 avoids that where a GPU is free)";

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
    let stopped = stopped(applied, &counts);
    let left_out: Vec<String> = validated.warnings.iter().cloned().chain(build::left_out(validated)).collect();
    let gap = (validated.replicas == 1 && validated.rollout.max_surge == 0).then_some(GAP);
    let notes = Notes { model: &validated.model_name, gap, left_out: &left_out };
    conditions.set_all(&counts, failure.or(stopped), trouble, notes, scaling::verdict(validated, fleet));

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

/// What is wrong with the workers now, as one sentence.
pub fn trouble(fleet: &Fleet) -> Option<String> {
    trouble::find(fleet, fleet.deployment.as_ref()).map(|verdict| format!("{}: {}", verdict.reason, verdict.message))
}

/// What became of a rollout that made no progress in time.
fn stopped(applied: &Applied, counts: &Counts) -> Option<Verdict> {
    let Rollout { step, failure, held_back } = &applied.rollout;
    let why = failure.as_ref().map(|failure| failure.why.as_str()).unwrap_or_default();
    let failed = "the rollout of this spec made no progress for spec.rollout.progressDeadline";
    let held = match held_back {
        1.. => format!("; {held_back} more workers are wanted, which it does not get"),
        _ => String::new(),
    };
    match step {
        Step::Apply | Step::Hold => None,
        Step::Pause => Some(Verdict::new(
            Reason::RolloutPaused,
            format!("{failed} and is paused ({counts}){held}. Then: {why}. Change the spec to go on"),
        )),
        Step::RollBack => Some(Verdict::new(
            Reason::RolledBack,
            format!(
                "{failed}, so the last revision that was ready is in force again ({counts}). Then: {why}. Change the spec to try again"
            ),
        )),
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
