//! Status: what it says, and how often it is written.

use std::sync::Arc;

use imagegen_operator::crd::ImageGen;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::PersistentVolumeClaim};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{World, condition, good_spec};
use crate::support::{apiserver::ApiServer, eventually, operator::Operator};

async fn set_deployment_status(world: &World, status: Value) {
    let patch = Patch::Merge(json!({"status": status}));
    world.api::<Deployment>().patch_status("turbo", &PatchParams::default(), &patch).await.unwrap();
}

/// Observed at a generation that no write of a test reaches: a Deployment's generation grows with its annotations too.
fn fleet(replicas: i32, ready: i32) -> Value {
    let available = if ready > 0 { "True" } else { "False" };
    json!({
        "observedGeneration": 1000, "replicas": replicas, "updatedReplicas": replicas,
        "readyReplicas": ready, "availableReplicas": ready, "unavailableReplicas": replicas - ready,
        "conditions": [
            {"type": "Available", "status": available, "reason": "MinimumReplicas", "message": ""},
            {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable", "message": ""},
        ],
    })
}

pub(crate) async fn the_status_follows_the_deployment_sparingly(server: Arc<ApiServer>) {
    let world = World::new(server, "sparing").await;
    let operator = Operator::start(&world.server, "sparing", "op", &[]).await;
    let mut spec = good_spec();
    spec["replicas"] = json!(3);
    world.create_imagegen("turbo", spec).await;
    world.until_children("turbo").await;
    set_deployment_status(&world, fleet(3, 3)).await;
    let condition_set = world.until_condition("turbo", "Ready", "True", "AllWorkersReady").await;
    let settled = world.api::<ImageGen>().get("turbo").await.unwrap();
    assert_eq!(settled.status.as_ref().unwrap().ready_replicas, 3);
    assert_eq!(condition_set.observed_generation, settled.metadata.generation);

    // A condition that changes is written at once, and back again.
    set_deployment_status(&world, fleet(3, 2)).await;
    world
        .until::<ImageGen>("turbo", "not Ready", |ig| condition(ig, "Ready").is_some_and(|c| c.status == "False"))
        .await;
    set_deployment_status(&world, fleet(3, 3)).await;
    world.until_condition("turbo", "Ready", "True", "AllWorkersReady").await;

    // Numbers that flutter without a condition are not.
    let before = operator.writes()["imagegens/status"];
    let reconciles = operator.reconciles();
    for round in 0..10 {
        let mut status = fleet(3, 3);
        status["terminatingReplicas"] = json!(round);
        set_deployment_status(&world, status).await;
    }
    eventually("reconciles that find nothing to say", async || {
        if operator.reconciles() > reconciles { Ok(()) } else { Err("none".to_owned()) }
    })
    .await;
    let after = operator.writes()["imagegens/status"];
    assert!(after - before <= 1, "{before} writes became {after}");
}

pub(crate) async fn a_missing_claim_is_named_and_found_later(server: Arc<ApiServer>) {
    let world = World::new(server, "claim").await;
    let _operator = Operator::start(&world.server, "claim", "op", &[]).await;
    let source = json!({"persistentVolumeClaim": {"claimName": "weights", "path": "z-image"}});
    let spec = json!({"model": {"source": source}, "worker": {"device": "Cpu"}, "replicas": 2});
    world.create_imagegen("turbo", spec).await;
    let missing = world.until_condition("turbo", "Ready", "False", "ClaimNotFound").await;
    assert!(missing.message.contains("weights"), "{}", missing.message);

    let claim = json!({
        "metadata": {"name": "weights"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
    world.api::<PersistentVolumeClaim>().create(&PostParams::default(), &claim).await.unwrap();
    world.until_condition("turbo", "Ready", "False", "ClaimNotShareable").await;
    world.edit_imagegen("turbo", json!({"replicas": 1})).await;
    world.until_children("turbo").await;
}
