//! Why workers do not come up: from container states, scheduling, events and the Deployment, the first thing that a
//! person can act on.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ContainerStateTerminated, ContainerStatus, Event, Pod},
};

use super::{conditions::Verdict, fleet};
use crate::{crd::Reason, reconcile::types::Fleet};

/// What a container runtime (containerd before 2.1) says of a mount that has an image instead of a path.
const RUNTIME_WITHOUT_IMAGE_VOLUMES: &str = "failed to mkdir \"\"";
/// What a kubelet says of a volume type that it does not know or has switched off.
const KUBELET_WITHOUT_IMAGE_VOLUMES: &str = "no volume plugin matched";
/// What an API server says of a volume whose only field it dropped.
const API_WITHOUT_IMAGE_VOLUMES: &str = "must specify a volume type";

const IMAGE_VOLUME_ADVICE: &str = "the node cannot mount image volumes: it needs Kubernetes 1.33 with containerd 2.1 or CRI-O 1.33; use newer nodes (worker.podTemplate.nodeSelector), or put the model into a claim (model.source.persistentVolumeClaim)";

/// The first trouble of the fleet, in the order of pod names, with how many pods share it.
pub(super) fn find(fleet: &Fleet, deployment: Option<&Deployment>) -> Option<Verdict> {
    let mut pods: Vec<&Pod> =
        fleet.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && !fleet::is_finished(pod)).collect();
    pods.sort_by_key(|pod| &pod.metadata.name);
    let found: Vec<(&Pod, Verdict)> =
        pods.into_iter().filter_map(|pod| Some((pod, of_pod(pod, &fleet.events)?))).collect();
    let Some((pod, first)) = found.first() else { return deployment.and_then(of_deployment) };
    let alike = found.iter().filter(|(_, verdict)| verdict.reason == first.reason).count();
    let others = match alike {
        1 => String::new(),
        2 => " and 1 other".to_owned(),
        more => format!(" and {} others", more - 1),
    };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    Some(Verdict::new(first.reason, format!("pod {name}{others}: {}", first.message)))
}

fn of_pod(pod: &Pod, events: &[Event]) -> Option<Verdict> {
    of_containers(pod).or_else(|| of_scheduling(pod)).or_else(|| of_events(pod, events))
}

/// What the containers of `pod` suffer from.
pub(super) fn of_containers(pod: &Pod) -> Option<Verdict> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find_map(of_container)
}

fn of_container(status: &ContainerStatus) -> Option<Verdict> {
    let name = &status.name;
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    if message.contains(RUNTIME_WITHOUT_IMAGE_VOLUMES) {
        return Some(Verdict::new(Reason::ImageVolumeUnsupported, format!("{IMAGE_VOLUME_ADVICE} ({message})")));
    }
    match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => Some(Verdict::new(
            Reason::ImagePullFailed,
            format!(
                "an image cannot be pulled: {}; check the reference, and worker.podTemplate.imagePullSecrets",
                or(message, reason)
            ),
        )),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "PostStartHookError" => {
            Some(Verdict::new(
                Reason::ContainerConfigError,
                format!("container {name} cannot be started: {}", or(message, reason)),
            ))
        }
        _ => of_restarts(status, reason == "CrashLoopBackOff"),
    }
}

/// A container that ended and has not been ready since.
fn of_restarts(status: &ContainerStatus, backing_off: bool) -> Option<Verdict> {
    let of = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state.as_ref().and_then(|state| state.terminated.clone())
    };
    let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
    let now = of(&status.state).filter(|end| end.exit_code != 0);
    let last =
        of(&status.last_state).filter(|_| backing_off || (running && !status.ready && status.started != Some(true)));
    let end = now.or(last)?;
    if status.ready {
        return None;
    }
    let name = &status.name;
    if end.reason.as_deref() == Some("OOMKilled") {
        let message = format!(
            "container {name} was killed for using more memory than its limit: raise worker.resources.limits.memory or leave it out"
        );
        return Some(Verdict::new(Reason::OutOfMemoryKilled, message));
    }
    let message = format!("container {name} ended {}: {}", how_often(status.restart_count), last_words(&end));
    Some(Verdict::new(Reason::CrashLoopBackOff, message))
}

fn how_often(restarts: i32) -> String {
    match restarts {
        0 | 1 => "once".to_owned(),
        // Not the exact number: it would change the status at every restart.
        2..10 => "several times".to_owned(),
        _ => "again and again".to_owned(),
    }
}

/// The end of the log, which the kubelet keeps when a container writes no termination message.
fn last_words(end: &ContainerStateTerminated) -> String {
    const MAX: usize = 600;
    let text = end.message.as_deref().unwrap_or_default().trim();
    let start = text.len().saturating_sub(MAX);
    let start = (start..=text.len()).find(|index| text.is_char_boundary(*index)).unwrap_or(text.len());
    // From the beginning of a line, where the end of the log is more than one.
    let start = text[start..].find('\n').filter(|_| start > 0).map_or(start, |line| start + line + 1);
    let said = if text.is_empty() { "without a word" } else { &text[start..] };
    format!("exit code {}, {said}", end.exit_code)
}

fn of_scheduling(pod: &Pod) -> Option<Verdict> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let condition = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    let message = condition.message.as_deref().unwrap_or_default();
    if message.contains("persistentvolumeclaim") && message.contains("not found") {
        return Some(Verdict::new(Reason::ClaimNotFound, format!("{message}; create the claim, or name another one")));
    }
    Some(Verdict::new(Reason::Unschedulable, format!("no node can take it: {message}")))
}

/// The newest warning about a pod that has no sandbox yet. Once it has one its volumes are mounted, and a warning about
/// them is old news.
fn of_events(pod: &Pod, events: &[Event]) -> Option<Verdict> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let has_sandbox =
        |kind: &str| conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True");
    if has_sandbox("PodReadyToStartContainers") || has_containers(pod) {
        return None;
    }
    let ours = events.iter().filter(|event| event.involved_object.uid == pod.metadata.uid);
    let when = |event: &&Event| {
        let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref().map(|time| time.0));
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        let first = event.event_time.as_ref().map(|time| time.0);
        (series.max(last).max(first), event.metadata.name.clone())
    };
    let newest = ours.filter(|event| reason_of(event).is_some()).max_by_key(when)?;
    let message = newest.message.as_deref().unwrap_or_default();
    let reason = reason_of(newest)?;
    let advice = if reason == Reason::ImageVolumeUnsupported {
        format!("{IMAGE_VOLUME_ADVICE} ({message})")
    } else {
        message.to_owned()
    };
    Some(Verdict::new(reason, advice))
}

fn has_containers(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().any(|status| status.container_id.is_some())
}

fn reason_of(event: &Event) -> Option<Reason> {
    let message = event.message.as_deref().unwrap_or_default();
    if message.contains(KUBELET_WITHOUT_IMAGE_VOLUMES) || message.contains(RUNTIME_WITHOUT_IMAGE_VOLUMES) {
        return Some(Reason::ImageVolumeUnsupported);
    }
    match event.reason.as_deref()? {
        "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => Some(Reason::MountFailed),
        "FailedCreatePodSandBox" | "FailedCreatePodContainer" => Some(Reason::ContainerConfigError),
        "FailedScheduling" => Some(Reason::Unschedulable),
        _ => None,
    }
}

/// Pods that were never made.
fn of_deployment(deployment: &Deployment) -> Option<Verdict> {
    let conditions = deployment.status.as_ref()?.conditions.as_deref()?;
    let condition =
        conditions.iter().find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    let message = condition.message.as_deref().unwrap_or_default();
    if message.contains(API_WITHOUT_IMAGE_VOLUMES) {
        return Some(Verdict::new(Reason::ImageVolumeUnsupported, format!("{IMAGE_VOLUME_ADVICE} ({message})")));
    }
    Some(Verdict::new(Reason::PodsRefused, format!("the namespace refuses the pods: {message}")))
}

fn or<'a>(message: &'a str, reason: &'a str) -> &'a str {
    if message.is_empty() { reason } else { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_log_begins_with_a_whole_line() {
        let log = format!("{}\nERROR the last line", "a line that is cut\n".repeat(60));
        let end = ContainerStateTerminated { exit_code: 3, message: Some(log), ..Default::default() };
        let words = last_words(&end);
        assert!(words.starts_with("exit code 3, a line that is cut\n"), "{words}");
        assert!(words.ends_with("ERROR the last line") && words.len() < 650, "{words}");
    }
}
