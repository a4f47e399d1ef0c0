//! The number of workers, from scripted workers' reports to the Deployment.

use std::sync::Arc;

use imagegen_operator::crd::ImageGen;
use k8s_openapi::api::{
    apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod, events::v1::Event,
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    World, good_spec,
    scripted::{ScriptedWorker, busy, idle},
};
use crate::support::{apiserver::ApiServer, eventually, operator::Operator};

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn operated() -> Value {
    let mut spec = good_spec();
    spec["autoscaling"] = json!({
        "mode": "Operator", "minReplicas": 1, "maxReplicas": 4,
        "scaleDown": {"stabilizationWindow": "1s", "maxStep": 4},
    });
    spec
}

async fn until_size(world: &World, size: i32) -> Deployment {
    let replicas = move |found: &Deployment| found.spec.as_ref().and_then(|spec| spec.replicas) == Some(size);
    world.until::<Deployment>("turbo", &format!("{size} replicas"), replicas).await
}

pub(crate) async fn load_adds_workers_and_a_drained_one_goes(server: Arc<ApiServer>) {
    let world = World::new(server, "load").await;
    let operator = Operator::start(&world.server, "load", "op", &[]).await;
    world.create_imagegen("turbo", operated()).await;
    until_size(&world, 1).await;
    world.until_condition("turbo", "ScalingActive", "True", "FollowingLoad").await;

    let first = ScriptedWorker::start(&world, "turbo-1", "127.77.1.1", busy(0.2, 60.0)).await;
    until_size(&world, 3).await;
    let ig = world
        .until::<ImageGen>("turbo", "its history", |ig| {
            ig.status.as_ref().is_some_and(|status| !status.scaling_history.is_empty())
        })
        .await;
    let status = ig.status.unwrap();
    assert_eq!((ig.spec.replicas, status.desired_replicas), (1, 3), "spec.replicas is the users'");
    let reason = &status.scaling_history[0].reason;
    assert!(reason.starts_with("Backlog: backlog 60.0 s over 1 workers"), "{reason}");
    eventually("an Event about it", async || {
        let about = ListParams::default().fields("regarding.name=turbo,reason=ScaledUp");
        let found = world.api::<Event>().list(&about).await.map_err(|error| error.to_string())?.items;
        if found.len() == 1 { Ok(()) } else { Err(format!("{}", found.len())) }
    })
    .await;
    assert!(operator.metric("imagegen_operator_scaling_decisions_total", &[("decision", "up")]).unwrap() >= 1.0);

    // One of the new ones serves, the other has no pod here. The load ends: the idle one drains, then goes.
    let second = ScriptedWorker::start(&world, "turbo-2", "127.77.1.2", idle()).await;
    first.say(busy(0.3, 0.0));
    until_size(&world, 1).await;
    assert_eq!(second.told.lock().unwrap().iter().map(|(told, _)| *told).collect::<Vec<_>>(), ["drain"]);
    assert!(first.told.lock().unwrap().is_empty(), "the one that works goes on");
    let released = |pod: &Pod| pod.annotations().get(COST).is_some_and(|cost| cost == "-2147483648");
    world.until::<Pod>("turbo-2", "released", released).await;

    // Another pod is removed than the one that drained: that one goes back to work.
    let now = DeleteParams::default().grace_period(0);
    world.api::<Pod>().delete("turbo-1", &now).await.unwrap();
    world.until::<Pod>("turbo-2", "no longer released", |pod| !pod.annotations().contains_key(COST)).await;
    assert!(second.told.lock().unwrap().iter().any(|(told, _)| *told == "resume"));
    until_size(&world, 1).await;
}

pub(crate) async fn who_owns_the_size(server: Arc<ApiServer>) {
    let world = World::new(server, "owner").await;
    let _operator = Operator::start(&world.server, "owner", "op", &[]).await;
    let mut spec = operated();
    spec["autoscaling"]["minReplicas"] = json!(2);
    world.create_imagegen("turbo", spec).await;
    until_size(&world, 2).await;

    world.edit_imagegen("turbo", json!({"replicas": 4})).await;
    world.until_condition("turbo", "ScalingActive", "True", "ReplicasIgnored").await;
    until_size(&world, 2).await;

    let hpa: HorizontalPodAutoscaler = serde_json::from_value(json!({
        "metadata": {"name": "theirs"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "turbo"}},
    }))
    .unwrap();
    world.api::<HorizontalPodAutoscaler>().create(&PostParams::default(), &hpa).await.unwrap();
    world.edit_imagegen("turbo", json!({"autoscaling": {"tolerance": 0.2}})).await;
    let conflict = world.until_condition("turbo", "ScalingActive", "False", "ConflictingAutoscaler").await;
    assert!(conflict.message.contains("HorizontalPodAutoscaler theirs"), "{}", conflict.message);
    world.api::<HorizontalPodAutoscaler>().delete("theirs", &DeleteParams::default()).await.unwrap();

    world.edit_imagegen("turbo", json!({"suspend": true})).await;
    world.until_condition("turbo", "ScalingActive", "False", "Suspended").await;
    until_size(&world, 0).await;
    world.edit_imagegen("turbo", json!({"suspend": false})).await;
    until_size(&world, 2).await;

    // Whoever leaves the mode keeps the size, and owns it.
    world
        .until::<ImageGen>("turbo", "desiredReplicas 2", |ig| {
            ig.status.as_ref().is_some_and(|status| status.desired_replicas == 2)
        })
        .await;
    world.edit_imagegen("turbo", json!({"autoscaling": {"mode": "Disabled"}})).await;
    world.until::<ImageGen>("turbo", "the size handed over", |ig| ig.spec.replicas == 2).await;
    world.until_condition("turbo", "ScalingActive", "False", "AutoscalingDisabled").await;
    world.edit_imagegen("turbo", json!({"replicas": 3})).await;
    until_size(&world, 3).await;
}

pub(crate) async fn a_leader_that_is_killed_changes_nothing(server: Arc<ApiServer>) {
    let world = World::new(server, "killed").await;
    let mut leader = Operator::start(&world.server, "killed", "op-0", &[]).await;
    world.create_imagegen("turbo", operated()).await;
    // Uneven on purpose: the sum fits two workers, each alone does not.
    let _first = ScriptedWorker::start(&world, "turbo-1", "127.77.2.1", busy(0.2, 35.0)).await;
    let _second = ScriptedWorker::start(&world, "turbo-2", "127.77.2.2", busy(0.1, 5.0)).await;
    let before = until_size(&world, 2).await.metadata.generation;
    for round in 1..=3 {
        let next = Operator::start(&world.server, "killed", &format!("op-{round}"), &[]).await;
        leader.kill();
        next.leads().await;
        leader = next;
        eventually("the new leader decided on all reports", async || {
            let open = leader.metric("imagegen_operator_report_streams", &[])?;
            let decided = leader.metric("imagegen_operator_scaling_decisions_total", &[("reason", "Steady")])?;
            if open == 2.0 && decided >= 1.0 { Ok(()) } else { Err(format!("{open} streams, {decided} decisions")) }
        })
        .await;
        assert_eq!(until_size(&world, 2).await.metadata.generation, before, "leader {round}");
    }
}
