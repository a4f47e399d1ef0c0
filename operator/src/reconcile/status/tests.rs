//! What users see, from what the cluster shows.

#![allow(clippy::needless_pass_by_value, reason = "builders of test objects")]

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Event, Pod},
};
use rstest::rstest;
use serde_json::json;

use super::{changed_enough, failed, refused, status};
use crate::{
    crd::{ImageGen, ImageGenStatus, Reason},
    reconcile::{
        api_service::MetricsApiState,
        types::{Applied, ApplyFailure, ApplyFailureCause, Facts, Fleet, OperatorSettings, Refusal, Validated},
        validate::validate,
    },
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

fn imagegen(replicas: u32) -> ImageGen {
    let spec = json!({"model": {"source": {"image": {"reference": "r/z-image:1"}}}, "replicas": replicas});
    let mut object = ImageGen::new("fleet", serde_json::from_value(spec).expect("a spec"));
    object.metadata.namespace = Some("studio".into());
    object.metadata.uid = Some("u".into());
    object.metadata.generation = Some(3);
    object
}

fn validated(object: &ImageGen) -> Validated {
    let operator = OperatorSettings {
        worker_image: "r/worker:1".into(),
        operator_namespace: "system".into(),
        allow_host_path: false,
        allow_privileged_pods: false,
        metrics_api: true,
    };
    validate(object, &Facts::default(), &operator).expect("accepted")
}

/// replicas, updated, ready, available of a Deployment whose status is current.
fn deployment(counts: [i32; 4]) -> Deployment {
    let [replicas, updated, ready, available] = counts;
    serde_json::from_value(json!({
        "metadata": {"name": "fleet", "generation": 7, "annotations": {"deployment.kubernetes.io/revision": "4"}},
        "status": {"observedGeneration": 7, "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": available},
    }))
    .expect("a Deployment")
}

fn fleet(counts: [i32; 4]) -> Fleet {
    Fleet { deployment: Some(deployment(counts)), ..Fleet::default() }
}

fn pod(status: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "fleet-1", "uid": "p1"}, "status": status})).expect("a Pod")
}

fn waiting(reason: &str, message: &str) -> Pod {
    pod(json!({"containerStatuses": [{
        "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
    }]}))
}

fn crashed(exit: serde_json::Value) -> Pod {
    pod(json!({"containerStatuses": [{
        "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}},
        "lastState": {"terminated": exit},
    }]}))
}

fn event(reason: &str, message: &str) -> Event {
    serde_json::from_value(json!({
        "metadata": {"name": "e"}, "involvedObject": {"uid": "p1"}, "type": "Warning", "reason": reason,
        "message": message, "lastTimestamp": "2026-01-01T00:00:00Z",
    }))
    .expect("an Event")
}

fn see(object: &ImageGen, fleet: &Fleet) -> ImageGenStatus {
    status(object, &validated(object), &Applied::default(), fleet, at(0))
}

/// `Type=Status/Reason` of the named conditions.
fn shown(status: &ImageGenStatus, types: &[&str]) -> Vec<String> {
    let of = |kind: &&str| {
        let condition = status.conditions.iter().find(|condition| condition.type_ == **kind).expect("the condition");
        format!("{}={}/{}", condition.type_, condition.status, condition.reason)
    };
    types.iter().map(of).collect()
}

fn message<'a>(status: &'a ImageGenStatus, kind: &str) -> &'a str {
    &status.conditions.iter().find(|condition| condition.type_ == kind).expect("the condition").message
}

#[rstest]
#[case::no_deployment_yet(2, None, "Ready=False/Starting Available=False/Starting Progressing=True/Starting")]
#[case::from_nothing(2, Some([0, 0, 0, 0]), "Ready=False/Starting Available=False/Starting Progressing=True/Starting")]
#[case::starting(2, Some([2, 2, 0, 0]), "Ready=False/Starting Available=False/Starting Progressing=True/Starting")]
#[case::half_there(2, Some([2, 2, 1, 1]), "Ready=False/Starting Available=True/WorkersReady Progressing=True/Starting")]
#[case::ready_but_not_long_enough(2, Some([2, 2, 2, 1]), "Ready=False/Starting Available=True/WorkersReady Progressing=True/Starting")]
#[case::complete(2, Some([2, 2, 2, 2]), "Ready=True/AllWorkersReady Available=True/WorkersReady Progressing=False/UpToDate")]
#[case::replacing(2, Some([2, 1, 1, 1]), "Ready=False/RollingOut Available=True/WorkersReady Progressing=True/RollingOut")]
#[case::growing(3, Some([2, 2, 2, 2]), "Ready=False/Scaling Available=True/WorkersReady Progressing=True/Scaling")]
#[case::shrinking(1, Some([2, 2, 2, 2]), "Ready=False/Scaling Available=True/WorkersReady Progressing=True/Scaling")]
#[case::nothing_wanted(0, Some([0, 0, 0, 0]), "Ready=True/ScaledToZero Available=False/ScaledToZero Progressing=False/UpToDate")]
fn conditions_follow_the_counts(#[case] replicas: u32, #[case] counts: Option<[i32; 4]>, #[case] expected: &str) {
    let fleet = counts.map_or_else(Fleet::default, fleet);
    let seen = see(&imagegen(replicas), &fleet);
    assert_eq!(shown(&seen, &["Ready", "Available", "Progressing"]).join(" "), expected);
    assert_eq!(
        shown(&seen, &["Degraded", "ScalingActive"]),
        ["Degraded=False/AsExpected", "ScalingActive=False/AutoscalingDisabled"]
    );
}

#[rstest]
#[case::containerd_without_image_volumes(
    waiting(
        "CreateContainerError",
        "failed to generate spec: failed to mkdir \"\": mkdir : no such file or directory"
    ),
    None,
    Reason::ImageVolumeUnsupported,
    "containerd 2.1"
)]
#[case::kubelet_without_image_volumes(
    waiting("ContainerCreating", ""),
    Some(event(
        "FailedMount",
        "failed to get Plugin from volumeSpec for volume \"model\" err=no volume plugin matched"
    )),
    Reason::ImageVolumeUnsupported,
    "model.source.persistentVolumeClaim"
)]
#[case::image_not_found(
    waiting("ImagePullBackOff", "Back-off pulling image \"r/worker:9\""),
    None,
    Reason::ImagePullFailed,
    "r/worker:9"
)]
#[case::secret_not_found(
    waiting("ContainerCreating", ""),
    Some(event("FailedMount", "MountVolume.SetUp failed for volume \"tls\" : secret \"turbo-tls\" not found")),
    Reason::MountFailed,
    "secret \"turbo-tls\" not found"
)]
#[case::bad_env(
    waiting("CreateContainerConfigError", "configmap \"x\" not found"),
    None,
    Reason::ContainerConfigError,
    "configmap \"x\" not found"
)]
#[case::a_model_that_is_none(
    crashed(json!({"exitCode": 1, "reason": "Error", "message": "error: /model/model_index.json: not found"})),
    None, Reason::CrashLoopBackOff, "/model/model_index.json: not found")]
#[case::too_little_memory(
    crashed(json!({"exitCode": 137, "reason": "OOMKilled"})),
    None, Reason::OutOfMemoryKilled, "worker.resources.limits.memory")]
#[case::no_gpu(
    pod(json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}]})),
    None, Reason::Unschedulable, "Insufficient nvidia.com/gpu")]
#[case::claim_deleted(
    pod(json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "persistentvolumeclaim \"z\" not found"}]})),
    None, Reason::ClaimNotFound, "persistentvolumeclaim \"z\" not found")]
fn a_pod_that_is_stuck_says_why(
    #[case] pod: Pod,
    #[case] event: Option<Event>,
    #[case] reason: Reason,
    #[case] says: &str,
) {
    let fleet = Fleet { pods: vec![pod], events: event.into_iter().collect(), ..fleet([1, 1, 0, 0]) };
    let seen = see(&imagegen(1), &fleet);
    let of = |kind: &str, status: &str| format!("{kind}={status}/{reason}");
    let expected = [of("Ready", "False"), of("Available", "False"), of("Degraded", "True"), of("ModelReady", "False")];
    assert_eq!(shown(&seen, &["Ready", "Available", "Degraded", "ModelReady"]), expected);
    let text = message(&seen, "Degraded");
    assert!(text.starts_with("pod fleet-1: ") && text.contains(says), "{text}");
}

#[rstest]
#[case::created_a_moment_ago(waiting("ContainerCreating", ""), None)]
#[case::init_containers_run(waiting("PodInitializing", ""), None)]
#[case::pulling_after_a_late_mount(
    pod(json!({"conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]})),
    Some(event("FailedMount", "failed to sync configmap cache: timed out waiting for the condition")))]
#[case::loading(
    pod(json!({"containerStatuses": [{
        "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "started": false,
        "containerID": "containerd://1", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    }]})),
    Some(event("FailedMount", "failed to sync configmap cache: timed out waiting for the condition")))]
fn a_pod_on_its_way_is_no_trouble(#[case] pod: Pod, #[case] event: Option<Event>) {
    let fleet = Fleet { pods: vec![pod], events: event.into_iter().collect(), ..fleet([1, 1, 0, 0]) };
    let seen = see(&imagegen(1), &fleet);
    assert_eq!(shown(&seen, &["Degraded", "Ready"]), ["Degraded=False/AsExpected", "Ready=False/Starting"]);
}

#[test]
fn pods_that_go_away_or_have_ended_cause_no_alarm() {
    let mut going = crashed(json!({"exitCode": 1}));
    going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    let evicted = pod(json!({"phase": "Failed", "reason": "Evicted"}));
    let seen = see(&imagegen(1), &Fleet { pods: vec![going, evicted], ..fleet([1, 1, 0, 0]) });
    assert_eq!(shown(&seen, &["Degraded"]), ["Degraded=False/AsExpected"]);
}

#[rstest]
#[case::a_quota("ReplicaFailure", "True", "FailedCreate", "exceeded quota: gpus", Reason::PodsRefused)]
#[case::a_dropped_volume(
    "ReplicaFailure",
    "True",
    "FailedCreate",
    "spec.volumes[0]: Required value: must specify a volume type",
    Reason::ImageVolumeUnsupported
)]
#[case::too_slow("Progressing", "False", "ProgressDeadlineExceeded", "timed out", Reason::ProgressDeadlineExceeded)]
fn a_deployment_that_is_stuck_says_why(
    #[case] kind: &str,
    #[case] holds: &str,
    #[case] cause: &str,
    #[case] text: &str,
    #[case] reason: Reason,
) {
    let mut fleet = fleet([0, 0, 0, 0]);
    let condition = json!([{"type": kind, "status": holds, "reason": cause, "message": text}]);
    let status = fleet.deployment.as_mut().and_then(|deployment| deployment.status.as_mut()).expect("a status");
    status.conditions = serde_json::from_value(condition).expect("conditions");
    let seen = see(&imagegen(1), &fleet);
    assert_eq!(
        shown(&seen, &["Degraded", "Ready"]),
        [format!("Degraded=True/{reason}"), format!("Ready=False/{reason}")]
    );
}

#[test]
fn a_name_that_is_taken_is_a_conflict_even_while_old_workers_answer() {
    let object = imagegen(1);
    let failure = |cause| ApplyFailure { kind: "Deployment".into(), name: "fleet".into(), cause };
    let applied = |cause| Applied { failures: vec![failure(cause)], ..Applied::default() };
    let see = |cause| status(&object, &validated(&object), &applied(cause), &fleet([1, 1, 1, 1]), at(0));

    let conflict = see(ApplyFailureCause::NotOurs);
    assert_eq!(
        shown(&conflict, &["Ready", "Degraded", "Available"]),
        ["Ready=False/NameConflict", "Degraded=True/NameConflict", "Available=True/WorkersReady"]
    );
    assert!(message(&conflict, "Degraded").contains("the Deployment fleet exists and does not belong"));
    let refused = see(ApplyFailureCause::Refused("admission webhook says no".into()));
    assert!(message(&refused, "Ready").contains("admission webhook says no"));
}

#[test]
fn a_refused_spec_leaves_the_running_workers_their_place() {
    let mut object = imagegen(2);
    let before = see(&object, &fleet([2, 2, 2, 2]));
    object.status = Some(before.clone());
    object.metadata.generation = Some(4);
    let refusal = |reason, field: &str| Refusal { reason, field: field.into(), message: "leave it out".into() };
    let refusals = [refusal(Reason::NotYetSupported, "spec.suspend"), refusal(Reason::NotAllowed, "spec.worker")];

    let after = refused(&object, &refusals, &fleet([2, 2, 2, 2]), at(60));
    assert_eq!(
        shown(&after, &["Ready", "Available", "Degraded"]),
        ["Ready=False/NotYetSupported", "Available=True/WorkersReady", "Degraded=True/NotYetSupported"]
    );
    assert_eq!(message(&after, "Ready"), "spec.suspend: leave it out; spec.worker: leave it out");
    assert_eq!(
        (after.observed_generation, after.ready_replicas, &after.worker_image),
        (Some(4), 2, &before.worker_image)
    );

    object.status = Some(after);
    let healed = status(&object, &validated(&object), &Applied::default(), &fleet([2, 2, 2, 2]), at(90));
    assert_eq!(shown(&healed, &["Ready", "Degraded"]), ["Ready=True/AllWorkersReady", "Degraded=False/AsExpected"]);
}

#[test]
fn a_failed_reconcile_says_so_and_keeps_the_rest() {
    let mut object = imagegen(1);
    object.status = Some(see(&object, &fleet([1, 1, 1, 1])));
    let after = failed(&object, "the API server is away", at(5));
    assert_eq!(shown(&after, &["Ready", "Degraded"]), ["Ready=True/AllWorkersReady", "Degraded=True/ReconcileFailed"]);
    object.status = None;
    assert_eq!(shown(&failed(&object, "x", at(5)), &["Ready"]), ["Ready=False/ReconcileFailed"]);
}

#[test]
fn a_transition_time_moves_only_with_the_status() {
    let mut object = imagegen(1);
    let time = |status: &ImageGenStatus| {
        status.conditions.iter().map(|c| (c.type_.clone(), c.last_transition_time.0)).collect::<Vec<_>>()
    };
    object.status = Some(see(&object, &fleet([1, 1, 0, 0])));
    let applied = Applied::default();
    let later = status(&object, &validated(&object), &applied, &fleet([1, 1, 1, 0]), at(60));
    let moved: Vec<_> = time(&later).into_iter().filter(|(_, time)| *time == at(60)).map(|(kind, _)| kind).collect();
    assert_eq!(moved, ["Available", "ModelReady"], "Ready stays false since the beginning");
}

#[test]
fn the_same_view_gives_the_same_status_and_no_write() {
    let mut object = imagegen(2);
    let fleet = Fleet { pods: vec![crashed(json!({"exitCode": 2, "message": "no"}))], ..fleet([2, 2, 1, 1]) };
    let first = see(&object, &fleet);
    object.status = Some(first.clone());
    let second = status(&object, &validated(&object), &Applied::default(), &fleet, at(600));
    assert_eq!(first, second);
    assert!(!changed_enough(&first, &second));
}

#[rstest]
#[case::a_longer_back_off(|s: &mut ImageGenStatus| s.conditions[0].message = "back-off 40s".into(), false)]
#[case::another_cause(|s: &mut ImageGenStatus| s.conditions[0].message = "something else".into(), true)]
#[case::a_condition(|s: &mut ImageGenStatus| s.conditions[0].status = "True".into(), true)]
#[case::a_count(|s: &mut ImageGenStatus| s.ready_replicas = 9, true)]
#[case::a_little_pressure(|s: &mut ImageGenStatus| pressure(s, 0.52), false)]
#[case::much_pressure(|s: &mut ImageGenStatus| pressure(s, 0.8), true)]
fn only_what_matters_is_written(#[case] change: fn(&mut ImageGenStatus), #[case] matters: bool) {
    let mut old = see(&imagegen(2), &fleet([2, 2, 1, 1]));
    old.conditions[0].message = "back-off 20s".into();
    pressure(&mut old, 0.5);
    let mut new = old.clone();
    change(&mut new);
    assert_eq!(changed_enough(&old, &new), matters);
}

fn pressure(status: &mut ImageGenStatus, pressure: f64) {
    status.memory = Some(crate::crd::MemoryStatus { pressure, ..Default::default() });
}

#[test]
fn the_status_names_what_is_in_force() {
    let seen = see(&imagegen(2), &fleet([2, 2, 2, 2]));
    assert_eq!(seen.selector.as_deref(), Some("imagegen.dev/name=fleet"));
    assert_eq!((seen.model.as_deref(), seen.gpu.as_deref()), (Some("z-image:1"), Some("nvidia.com/gpu")));
    assert_eq!(seen.ready_revision.as_deref(), Some("4"));
    let origin = |name: &str| seen.effective[name].origin.to_string();
    assert_eq!(
        (origin("workerImage"), origin("sizePolicy"), origin("queueCapacity")),
        ("BuiltIn".into(), "Spec".into(), "BuiltIn".into())
    );
}

#[test]
fn a_message_never_exceeds_what_the_schema_takes() {
    let object = imagegen(1);
    let refusal = Refusal { reason: Reason::InvalidSpec, field: "spec".into(), message: "ü".repeat(5000) };
    let seen = refused(&object, &[refusal], &Fleet::default(), at(0));
    assert!(message(&seen, "Ready").len() <= 4096 && message(&seen, "Ready").ends_with("..."));
}

fn hpa(status: &str, reason: &str) -> HorizontalPodAutoscaler {
    serde_json::from_value(json!({
        "metadata": {"name": "fleet"},
        "spec": {"maxReplicas": 4, "scaleTargetRef": {"kind": "ImageGen", "name": "fleet"}},
        "status": {"desiredReplicas": 2, "conditions": [
            {"type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale"},
            {"type": "ScalingActive", "status": status, "reason": reason, "message": "the HPA's own words"},
        ]},
    }))
    .expect("an HPA")
}

fn adapter() -> MetricsApiState {
    MetricsApiState::OwnedByOther {
        api_service: "v1beta1.custom.metrics.k8s.io".into(),
        service: "Service monitoring/prometheus-adapter".into(),
    }
}

#[rstest]
#[case::new(
    "HorizontalPodAutoscaler",
    None,
    MetricsApiState::Ours,
    "ScalingActive=False/HorizontalPodAutoscalerStarting",
    "not read its metric"
)]
#[case::working(
    "HorizontalPodAutoscaler",
    Some(hpa("True", "ValidMetricFound")),
    MetricsApiState::Ours,
    "ScalingActive=True/HorizontalPodAutoscaler",
    "1 to 4 workers"
)]
#[case::without_a_value(
    "HorizontalPodAutoscaler",
    Some(hpa("False", "FailedGetObjectMetric")),
    MetricsApiState::Ours,
    "ScalingActive=False/HorizontalPodAutoscalerFailed",
    "FailedGetObjectMetric: the HPA's own words"
)]
#[case::an_adapter_that_does_not_help(
    "HorizontalPodAutoscaler",
    Some(hpa("False", "FailedGetObjectMetric")),
    adapter(),
    "ScalingActive=False/MetricsAPIOwnedByOther",
    "Service monitoring/prometheus-adapter"
)]
#[case::an_adapter_that_helps(
    "HorizontalPodAutoscaler",
    Some(hpa("True", "ValidMetricFound")),
    adapter(),
    "ScalingActive=True/HorizontalPodAutoscaler",
    "1 to 4 workers"
)]
#[case::no_rights("HorizontalPodAutoscaler", None, MetricsApiState::Failed("forbidden".into()), "ScalingActive=False/MetricsAPIFailed", "forbidden")]
#[case::keda(
    "External",
    None,
    MetricsApiState::NotWanted,
    "ScalingActive=False/ScaledExternally",
    "owner of the scale subresource"
)]
fn scaling_active_says_whether_the_size_follows_the_load(
    #[case] mode: &str,
    #[case] hpa: Option<HorizontalPodAutoscaler>,
    #[case] metrics_api: MetricsApiState,
    #[case] expected: &str,
    #[case] word: &str,
) {
    let mut object = imagegen(2);
    let scaling = match mode {
        "External" => json!({"mode": mode}),
        _ => json!({"mode": mode, "maxReplicas": 4}),
    };
    object.spec.autoscaling = serde_json::from_value(scaling).expect("an autoscaling spec");
    let status = see(&object, &Fleet { hpa, metrics_api, ..fleet([2, 2, 2, 2]) });
    assert_eq!(shown(&status, &["ScalingActive", "Ready"]), [expected, "Ready=True/AllWorkersReady"]);
    assert!(message(&status, "ScalingActive").contains(word), "{}", message(&status, "ScalingActive"));
}
