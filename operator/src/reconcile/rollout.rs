//! What becomes of a rollout: it goes on, is paused, or is taken back; and how many workers there may be meanwhile. Pure.
//!
//! What has to outlast the operator stands in annotations of the Deployment: the template in force, the last one whose
//! workers were all ready (with the worker's configuration, which its pods read from the ConfigMap), and the one that
//! failed.

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::PodTemplateSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{status::Counts, types::Desired};
use crate::crd::{AutoscalingMode, RolloutFailure};

/// Hash of the pod template in force, as this operator built it.
pub const TEMPLATE_ANNOTATION: &str = "imagegen.dev/template-hash";
/// The last [`Revision`] whose workers were all ready.
pub const READY_ANNOTATION: &str = "imagegen.dev/ready-revision";
/// The [`Failure`] of the spec's template, until the spec changes.
pub const FAILED_ANNOTATION: &str = "imagegen.dev/failed-rollout";

/// A pod template that can be brought back, with what its pods read beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// Hash of the template.
    pub hash: String,
    /// The template.
    pub template: PodTemplateSpec,
    /// Data of the ConfigMap.
    pub config: BTreeMap<String, String>,
}

/// A rollout that made no progress in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Hash of the template that failed.
    pub hash: String,
    /// What was wrong with its workers then.
    pub why: String,
}

/// What is known of the Deployment before this reconcile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Hash of the template in force.
    pub template: Option<String>,
    /// The last revision that was ready.
    pub ready: Option<Revision>,
    /// The failure that is acted on.
    pub failure: Option<Failure>,
    /// Workers that it asks for.
    pub replicas: Option<i32>,
    counts: Counts,
}

/// What is done about the rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// The spec's template is applied.
    #[default]
    Apply,
    /// It failed and there is nothing to go back to: it stays, and does not grow.
    Hold,
    /// It failed and stays where it is.
    Pause,
    /// It failed, and the last ready revision is applied.
    RollBack,
}

/// What was decided, for the status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rollout {
    /// What is done.
    pub step: Step,
    /// Why, unless the spec's template is applied.
    pub failure: Option<Failure>,
    /// Workers that are wanted but not asked for until the rollout has ended; 0 or the difference to the wanted number.
    pub held_back: i32,
}

impl Seen {
    /// Reads the annotations and the state of `deployment`. An annotation that cannot be read counts as none.
    #[must_use]
    pub fn of(deployment: Option<&Deployment>) -> Self {
        let annotations = deployment.and_then(|deployment| deployment.metadata.annotations.as_ref());
        let text = |name: &str| annotations.and_then(|all| all.get(name));
        let replicas = deployment.and_then(|deployment| deployment.spec.as_ref()?.replicas);
        Self {
            template: text(TEMPLATE_ANNOTATION).cloned(),
            ready: text(READY_ANNOTATION).and_then(|text| serde_json::from_str(text).ok()),
            failure: text(FAILED_ANNOTATION).and_then(|text| serde_json::from_str(text).ok()),
            replicas,
            counts: Counts::of(deployment, replicas.unwrap_or(0)),
        }
    }

    /// Whether the template in force has made no progress for too long, and is not ready after all.
    fn is_failing(&self) -> bool {
        self.counts.deadline_exceeded && !self.counts.all_ready()
    }
}

/// Decides what is done about the spec's template, whose hash is `wanted`.
#[must_use]
pub fn decide(seen: &Seen, wanted: &str, on_failure: RolloutFailure) -> Step {
    let failed_before = seen.failure.as_ref().is_some_and(|failure| failure.hash == wanted);
    let in_force = seen.template.as_deref() == Some(wanted);
    // Its workers became ready after all: what was wrong lay outside of the spec.
    let recovered = failed_before && in_force && seen.counts.all_ready();
    if recovered || !(failed_before || (in_force && seen.is_failing())) {
        return Step::Apply;
    }
    match (on_failure, &seen.ready) {
        (RolloutFailure::RollBack, Some(ready)) if ready.hash != wanted => Step::RollBack,
        (RolloutFailure::Pause, Some(_)) => Step::Pause,
        _ => Step::Hold,
    }
}

/// Workers to ask for when `wanted` are: a failing revision never grows, and while a rollout runs nobody takes workers
/// away but a person.
#[must_use]
pub fn replicas(seen: &Seen, step: Step, wanted: i32, mode: AutoscalingMode) -> i32 {
    let Some(current) = seen.replicas else { return wanted };
    let automatic = mode != AutoscalingMode::Disabled;
    match step {
        Step::Hold | Step::Pause => wanted.min(current),
        Step::Apply | Step::RollBack if automatic && wanted > 0 && seen.counts.any_outdated() => wanted.max(current),
        Step::Apply | Step::RollBack => wanted,
    }
}

/// Makes `desired` what the rollout allows. `why` says what is wrong with the workers now, in case the rollout just
/// failed.
pub fn shape(
    desired: &mut Desired,
    deployment: Option<&Deployment>,
    on_failure: RolloutFailure,
    mode: AutoscalingMode,
    why: Option<String>,
) -> Rollout {
    let seen = Seen::of(deployment);
    let Some(spec) = &mut desired.deployment.spec else { return Rollout::default() };
    let wanted_hash = hash(&spec.template);
    let step = decide(&seen, &wanted_hash, on_failure);
    let wanted = spec.replicas.unwrap_or(0);
    let allowed = replicas(&seen, step, wanted, mode);
    spec.replicas = Some(allowed);

    let now_ready = seen.template.as_ref() == Some(&wanted_hash) && seen.counts.complete() && seen.counts.desired > 0;
    let ready = if now_ready && seen.ready.as_ref().is_none_or(|ready| ready.hash != wanted_hash) {
        let config = desired.config_map.data.clone().unwrap_or_default();
        Some(Revision { hash: wanted_hash.clone(), template: spec.template.clone(), config })
    } else {
        seen.ready
    };
    let failure = (step != Step::Apply).then(|| {
        let before = seen.failure.filter(|failure| failure.hash == wanted_hash);
        before.unwrap_or_else(|| Failure {
            hash: wanted_hash.clone(),
            why: why.unwrap_or_else(|| "its workers were not ready in time".to_owned()),
        })
    });
    let mut template = wanted_hash;
    if let (Step::RollBack, Some(ready)) = (step, &ready) {
        template.clone_from(&ready.hash);
        spec.template.clone_from(&ready.template);
        desired.config_map.data = Some(ready.config.clone());
    }
    spec.paused = (step == Step::Pause).then_some(true);

    let annotations = desired.deployment.metadata.annotations.get_or_insert_default();
    annotations.insert(TEMPLATE_ANNOTATION.to_owned(), template);
    let records =
        [(READY_ANNOTATION, ready.map(|ready| text(&ready))), (FAILED_ANNOTATION, failure.as_ref().map(text))];
    annotations.extend(records.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))));
    Rollout { step, failure, held_back: wanted - allowed }
}

fn hash(template: &PodTemplateSpec) -> String {
    let digest = Sha256::digest(text(template));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: &impl Serialize) -> String {
    // Plain data: a map has text for keys, and there are no numbers but integers.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
