//! Rollouts that fail.

use std::sync::Arc;

use imagegen_operator::crd::ImageGen;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{World, good_spec};
use crate::support::{apiserver::ApiServer, operator::Operator};

/// What the Deployment controller would say of the current generation: replicas, updated, ready.
async fn controller_says(world: &World, [replicas, updated, ready]: [i32; 3], reason: &str) {
    let generation = world.api::<Deployment>().get("turbo").await.unwrap().metadata.generation;
    let status = json!({"status": {
        "observedGeneration": generation, "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready,
        "availableReplicas": ready, "unavailableReplicas": replicas - ready,
        "conditions": [{"type": "Progressing", "status": "True", "reason": reason, "message": ""}],
    }});
    let api = world.api::<Deployment>();
    api.patch_status("turbo", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

fn image(found: &Deployment) -> &str {
    let pod = found.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).unwrap();
    pod.containers[0].image.as_deref().unwrap()
}

fn steps(found: &ConfigMap) -> Option<&str> {
    found.data.as_ref()?.get("IMAGEGEN_DEFAULT_STEPS").map(String::as_str)
}

async fn start(world: &World, on_failure: &str) {
    let mut spec = good_spec();
    spec["worker"]["image"] = json!("registry.invalid/worker:good");
    spec["model"]["defaults"] = json!({"steps": 8});
    spec["replicas"] = json!(3);
    spec["rollout"] = json!({"onFailure": on_failure});
    world.create_imagegen("turbo", spec).await;
    world.until_children("turbo").await;
    completes(world, 3).await;
    world.until_condition("turbo", "Ready", "True", "AllWorkersReady").await;
}

/// All workers are ready, and the operator has kept the template. That grows the generation, which the controller sees.
async fn completes(world: &World, workers: i32) {
    controller_says(world, [workers; 3], "NewReplicaSetAvailable").await;
    let kept = |found: &Deployment| {
        let annotation = |name: &str| found.annotations().get(name).map(String::as_str).unwrap_or_default();
        annotation("imagegen.dev/ready-revision").contains(annotation("imagegen.dev/template-hash"))
    };
    world.until::<Deployment>("turbo", "the ready revision is kept", kept).await;
    controller_says(world, [workers; 3], "NewReplicaSetAvailable").await;
}

async fn break_it(world: &World) {
    let bad = json!({"worker": {"image": "registry.invalid/worker:bad"}, "model": {"defaults": {"steps": 4}}});
    world.edit_imagegen("turbo", bad).await;
    world.until::<Deployment>("turbo", "the new image", |found| image(found).ends_with(":bad")).await;
    controller_says(world, [3, 1, 2], "ReplicaSetUpdated").await;
    world.until_condition("turbo", "Progressing", "True", "RollingOut").await;
    controller_says(world, [3, 1, 2], "ProgressDeadlineExceeded").await;
}

pub(crate) async fn a_failed_rollout_is_rolled_back_and_a_fix_is_tried(server: Arc<ApiServer>) {
    let world = World::new(server, "rollback").await;
    let operator = Operator::start(&world.server, "rollback", "op-a", &[]).await;
    start(&world, "RollBack").await;
    break_it(&world).await;
    world.until::<Deployment>("turbo", "the last ready image", |found| image(found).ends_with(":good")).await;
    world.until::<ConfigMap>("turbo-worker", "the last ready steps", |found| steps(found) == Some("8")).await;
    controller_says(&world, [3, 3, 3], "NewReplicaSetAvailable").await;
    let degraded = world.until_condition("turbo", "Degraded", "True", "RolledBack").await;
    assert!(degraded.message.contains("is in force again"), "{}", degraded.message);
    world.until_condition("turbo", "Ready", "False", "RolledBack").await;
    world.until_condition("turbo", "Available", "True", "WorkersReady").await;

    // It outlasts the operator.
    operator.kill();
    let _operator = Operator::start(&world.server, "rollback", "op-b", &[]).await;
    world.edit_imagegen("turbo", json!({"replicas": 4})).await;
    let four = |found: &Deployment| found.spec.as_ref().unwrap().replicas == Some(4);
    let found = world.until::<Deployment>("turbo", "four replicas", four).await;
    assert!(image(&found).ends_with(":good"));

    world.edit_imagegen("turbo", json!({"worker": {"image": "registry.invalid/worker:fixed"}})).await;
    world.until::<Deployment>("turbo", "the fixed image", |found| image(found).ends_with(":fixed")).await;
    world.until::<ConfigMap>("turbo-worker", "the new steps", |found| steps(found) == Some("4")).await;
    completes(&world, 4).await;
    world.until_condition("turbo", "Degraded", "False", "AsExpected").await;
}

pub(crate) async fn a_failed_rollout_is_paused_and_does_not_grow(server: Arc<ApiServer>) {
    let world = World::new(server, "pause").await;
    let _operator = Operator::start(&world.server, "pause", "op", &[]).await;
    start(&world, "Pause").await;
    break_it(&world).await;
    let paused = |found: &Deployment| found.spec.as_ref().unwrap().paused == Some(true);
    world.until::<Deployment>("turbo", "paused", paused).await;
    controller_says(&world, [3, 1, 2], "ProgressDeadlineExceeded").await;
    world.until_condition("turbo", "Degraded", "True", "RolloutPaused").await;

    world.edit_imagegen("turbo", json!({"replicas": 9})).await;
    let says = |ig: &ImageGen| {
        let degraded = super::condition(ig, "Degraded");
        degraded.is_some_and(|found| found.message.contains("6 more workers are wanted"))
    };
    world.until::<ImageGen>("turbo", "said that it does not grow", says).await;
    assert_eq!(world.api::<Deployment>().get("turbo").await.unwrap().spec.unwrap().replicas, Some(3));

    world.edit_imagegen("turbo", json!({"worker": {"image": "registry.invalid/worker:fixed"}})).await;
    let goes_on = |found: &Deployment| image(found).ends_with(":fixed") && !paused(found);
    let found = world.until::<Deployment>("turbo", "going on with the fix", goes_on).await;
    assert_eq!(found.spec.unwrap().replicas, Some(9));
}

pub(crate) async fn a_recycle_policy_that_cannot_work_is_a_condition(server: Arc<ApiServer>) {
    let world = World::new(server, "recycle").await;
    let _operator = Operator::start(&world.server, "recycle", "op", &[]).await;
    let mut spec = good_spec();
    spec["recycle"] = json!({"schedule": "0 3 * * *", "timeZone": "Europe/Atlantis"});
    world.create_imagegen("turbo", spec).await;
    let refused = world.until_condition("turbo", "Ready", "False", "InvalidSpec").await;
    let wanted = "spec.recycle.timeZone: there is no time zone \"Europe/Atlantis\"";
    assert!(refused.message.starts_with(wanted), "{}", refused.message);
    world.edit_imagegen("turbo", json!({"recycle": {"timeZone": "Europe/Berlin"}})).await;
    world.until_children("turbo").await;
}
