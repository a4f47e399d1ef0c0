//! How far a pod is, from what Kubernetes says of it. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

use crate::autoscale::fleet::Standing;

/// How far `pod` is and for how long; `None` for one that has ended, which counts no more.
pub(super) fn of(pod: &Pod, now: Timestamp) -> Option<(Standing, Duration)> {
    let status = pod.status.clone().unwrap_or_default();
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let since = |time: Option<Timestamp>| {
        let since = time.or(created).unwrap_or(now);
        Duration::try_from(now.duration_since(since)).unwrap_or_default()
    };
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        return Some((Standing::Terminating, since(Some(deleted.0))));
    }
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return None;
    }
    let condition = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    let changed = |condition: Option<&PodCondition>| {
        since(condition.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0))
    };
    let holds = |condition: Option<&PodCondition>| condition.is_some_and(|condition| condition.status == "True");
    let (scheduled, ready) = (condition("PodScheduled"), condition("Ready"));
    Some(if holds(ready) {
        (Standing::Ready, changed(ready))
    } else if !holds(scheduled) {
        (Standing::Unscheduled, changed(None))
    } else if status.container_statuses.iter().flatten().any(has_started) {
        (Standing::NotReady, changed(ready))
    } else {
        (Standing::Starting, changed(scheduled))
    })
}

/// It passed its startup probe, or ran before.
fn has_started(container: &ContainerStatus) -> bool {
    container.started == Some(true) || container.restart_count > 0
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn at(seconds_ago: i64) -> String {
        Timestamp::from_second(NOW - seconds_ago).unwrap().to_string()
    }

    fn condition(kind: &str, status: &str, seconds_ago: i64) -> Value {
        json!({"type": kind, "status": status, "lastTransitionTime": at(seconds_ago)})
    }

    fn container(started: bool, restarts: i32) -> Value {
        json!({"name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": restarts, "started": started})
    }

    #[rstest]
    #[case::just_created(json!({}), Some((Standing::Unscheduled, 100)))]
    #[case::no_node(json!({"conditions": [condition("PodScheduled", "False", 90)]}), Some((Standing::Unscheduled, 100)))]
    #[case::pulling(json!({"conditions": [condition("PodScheduled", "True", 80)]}), Some((Standing::Starting, 80)))]
    #[case::loading(
        json!({"conditions": [condition("PodScheduled", "True", 80), condition("Ready", "False", 80)],
               "containerStatuses": [container(false, 0)]}),
        Some((Standing::Starting, 80)))]
    #[case::ready(
        json!({"conditions": [condition("PodScheduled", "True", 80), condition("Ready", "True", 20)],
               "containerStatuses": [container(true, 0)]}),
        Some((Standing::Ready, 20)))]
    #[case::started_and_not_ready(
        json!({"conditions": [condition("PodScheduled", "True", 80), condition("Ready", "False", 10)],
               "containerStatuses": [container(true, 0)]}),
        Some((Standing::NotReady, 10)))]
    #[case::crashed(
        json!({"conditions": [condition("PodScheduled", "True", 80), condition("Ready", "False", 10)],
               "containerStatuses": [container(false, 1)]}),
        Some((Standing::NotReady, 10)))]
    #[case::evicted(json!({"phase": "Failed"}), None)]
    fn standings(#[case] status: Value, #[case] expected: Option<(Standing, u64)>) {
        let pod = json!({"metadata": {"name": "p", "creationTimestamp": at(100)}, "status": status});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let found = of(&pod, Timestamp::from_second(NOW).unwrap());
        assert_eq!(found, expected.map(|(standing, seconds)| (standing, Duration::from_secs(seconds))));
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_terminating_whatever_else_it_is() {
        let pod = json!({"metadata": {"creationTimestamp": at(100), "deletionTimestamp": at(-30)},
            "status": {"conditions": [condition("Ready", "True", 20)]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let found = of(&pod, Timestamp::from_second(NOW).unwrap());
        assert_eq!(found, Some((Standing::Terminating, Duration::ZERO)));
    }
}
