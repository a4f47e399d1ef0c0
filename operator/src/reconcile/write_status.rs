//! Writes the status: at once when a condition changes, otherwise at most every 30 seconds.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use serde_json::json;

use super::{Context, RESYNC, context::Tracked, error::Error, status};
use crate::{
    FIELD_MANAGER,
    crd::{ImageGen, ImageGenStatus, Reason},
    events,
};

/// The least time between two writes that change no condition.
const PAUSE: Duration = Duration::from_secs(30);

/// When a status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now,
    In(Duration),
    Never,
}

/// The status that was written last.
#[derive(Debug)]
pub(super) struct Written {
    status: ImageGenStatus,
    at: Instant,
    /// Of the ImageGen, after the write.
    resource_version: Option<String>,
}

/// The ImageGen with the newest status there is: the cache may be behind our own last write.
pub(super) fn with_newest_status(ig: &ImageGen, tracked: &Tracked) -> ImageGen {
    let mut ig = ig.clone();
    if let Some(written) = &tracked.status {
        let number = |version: Option<&str>| version?.parse::<u128>().ok();
        let (cached, ours) = (ig.metadata.resource_version.as_deref(), written.resource_version.as_deref());
        if number(cached).zip(number(ours)).is_none_or(|(cached, ours)| cached <= ours) {
            ig.status = Some(written.status.clone());
        }
    }
    ig
}

/// `last_write` is how long ago this process wrote the status, if it did.
fn due(old: Option<&ImageGenStatus>, new: &ImageGenStatus, last_write: Option<Duration>) -> Due {
    let Some(old) = old else { return Due::Now };
    if !status::changed_enough(old, new) {
        return Due::Never;
    }
    let what_a_condition_says = |status: &ImageGenStatus| {
        let said = |c: &Condition| (c.type_.clone(), c.status.clone(), c.reason.clone(), c.observed_generation);
        let said: Vec<_> = status.conditions.iter().map(said).collect();
        // These three steer autoscalers and `kubectl scale --timeout`, and only a person or an autoscaler moves them.
        (said, status.observed_generation, status.desired_replicas, status.selector.clone())
    };
    if what_a_condition_says(old) != what_a_condition_says(new) {
        return Due::Now;
    }
    match last_write.and_then(|ago| PAUSE.checked_sub(ago)) {
        Some(left) if !left.is_zero() => Due::In(left),
        _ => Due::Now,
    }
}

/// Writes `next` if it is due over the status of `ig` (see [`with_newest_status`]), tells what changed in Events, and returns the wait until it is due otherwise.
///
/// # Errors
/// When the API server does not take it.
pub(super) async fn write(
    ctx: &Context,
    ig: &ImageGen,
    next: ImageGenStatus,
    tracked: &mut Tracked,
) -> Result<Option<Duration>, Error> {
    let now = Instant::now();
    let old = ig.status.as_ref();
    let last_write = tracked.status.as_ref().map(|written| now.duration_since(written.at));
    match due(old, &next, last_write) {
        Due::Never => return Ok(None),
        Due::In(wait) => return Ok(Some(wait)),
        Due::Now => {}
    }
    let notices = events::notices(old, &next);
    let body = json!({
        "apiVersion": "imagegen.dev/v1alpha1", "kind": "ImageGen",
        "metadata": {"name": ig.name_any(), "uid": ig.uid()}, "status": next,
    });
    let api: Api<ImageGen> = Api::namespaced(ctx.client.clone(), &ig.namespace().unwrap_or_default());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let resource_version = match api.patch_status(&ig.name_any(), &params, &Patch::Apply(&body)).await {
        Ok(answer) => answer.resource_version(),
        // It was deleted meanwhile.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(source) => {
            return Err(Error::Write {
                what: format!("status of ImageGen {}", ig.name_any()),
                source: Box::new(source),
            });
        }
    };
    tracked.status = Some(Written { status: next, at: now, resource_version });
    events::publish(&ctx.recorder, ig, notices).await;
    Ok(None)
}

/// Says on an object that this version cannot read what is wrong with it. Its children stay as they are.
///
/// # Errors
/// When the API server does not take it.
pub(super) async fn unreadable(
    ctx: &Context,
    meta: &ObjectMeta,
    cause: &str,
    tracked: &mut Tracked,
) -> Result<Action, Error> {
    let seen = format!("{}: {cause}", meta.generation.unwrap_or_default());
    if tracked.unreadable.as_ref() == Some(&seen) {
        return Ok(Action::requeue(RESYNC));
    }
    let message = format!("this version of the operator cannot read the object, so it changes nothing of it: {cause}");
    let condition = |kind: &str, status: &str| {
        json!({
            "type": kind, "status": status, "reason": Reason::InvalidSpec.to_string(), "message": message,
            "observedGeneration": meta.generation, "lastTransitionTime": Timestamp::now().strftime("%FT%TZ").to_string(),
        })
    };
    // A merge, because the rest of the status may be as unreadable as the spec.
    let patch = Patch::Merge(json!({"status": {
        "observedGeneration": meta.generation,
        "conditions": [condition("Ready", "False"), condition("Degraded", "True")],
    }}));
    let name = meta.name.clone().unwrap_or_default();
    let namespace = meta.namespace.clone().unwrap_or_default();
    let api: Api<kube::core::PartialObjectMeta<ImageGen>> = Api::namespaced(ctx.client.clone(), &namespace);
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_status(&name, &params, &patch).await {
        Ok(_) => {
            tracked.unreadable = Some(seen);
            Ok(Action::requeue(RESYNC))
        }
        Err(source) => Err(Error::Write { what: format!("status of ImageGen {name}"), source: Box::new(source) }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;

    use super::*;

    fn status(ready: &str, reason: &str, ready_replicas: i32) -> ImageGenStatus {
        let condition = Condition {
            type_: "Ready".into(),
            status: ready.into(),
            reason: reason.into(),
            message: String::new(),
            observed_generation: Some(1),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        ImageGenStatus { conditions: vec![condition], ready_replicas, ..ImageGenStatus::default() }
    }

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[rstest]
    #[case::nothing_changed(status("True", "Ok", 3), Some(60), Due::Never)]
    #[case::a_condition_changed(status("False", "Starting", 3), Some(1), Due::Now)]
    #[case::only_its_reason_changed(status("True", "Other", 3), Some(1), Due::Now)]
    #[case::a_number_changed_soon_after_a_write(status("True", "Ok", 2), Some(10), Due::In(seconds(20)))]
    #[case::a_number_changed_long_after_a_write(status("True", "Ok", 2), Some(31), Due::Now)]
    #[case::a_number_changed_and_nothing_was_written_yet(status("True", "Ok", 2), None, Due::Now)]
    fn a_status_is_written_sparingly(#[case] new: ImageGenStatus, #[case] ago: Option<u64>, #[case] expected: Due) {
        assert_eq!(due(Some(&status("True", "Ok", 3)), &new, ago.map(seconds)), expected);
    }
}
