//! Children: made, kept, restored, pruned.

use std::{collections::BTreeMap, sync::Arc};

use imagegen_operator::crd::ImageGen;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Secret, Service},
    events::v1::Event,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{World, good_spec};
use crate::support::{apiserver::ApiServer, eventually, operator::Operator};

pub(crate) async fn an_imagegen_gets_its_children_and_a_restart_writes_nothing(server: Arc<ApiServer>) {
    let world = World::new(server, "restart").await;
    let first = Operator::start(&world.server, "restart", "op-a", &[]).await;
    first.leads().await;
    for name in ["one", "two"] {
        world.create_imagegen(name, good_spec()).await;
        world.until_children(name).await;
        world.until_condition(name, "Ready", "False", "Starting").await;
    }
    let secret = world.until::<Secret>("one-admin-tls", "there", |_| true).await;
    let found = secret.data.unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["ca.crt", "tls.crt", "tls.key"]);

    // What the first operator still had to say is said once it has seen this.
    touch_deployment_status(&world, "one").await;
    world.until::<ImageGen>("one", "one replica", |ig| ig.status.as_ref().is_some_and(|s| s.replicas == 1)).await;
    let before = world.versions().await;
    assert!(first.terminate().await.success());

    let second = Operator::start(&world.server, "restart", "op-b", &[]).await;
    second.leads().await;
    eventually("both are reconciled again", async || {
        let done = second.reconciles();
        if done >= 2.0 { Ok(()) } else { Err(format!("{done}")) }
    })
    .await;
    assert_eq!(world.versions().await, before, "log of the second operator:\n{}", second.log());
    assert_eq!(second.writes(), BTreeMap::new(), "log of the second operator:\n{}", second.log());
}

async fn touch_deployment_status(world: &World, name: &str) {
    let status =
        json!({"status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "unavailableReplicas": 1}});
    let api = world.api::<Deployment>();
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

pub(crate) async fn deleted_and_edited_children_come_back(server: Arc<ApiServer>) {
    let world = World::new(server, "drift").await;
    let operator = Operator::start(&world.server, "drift", "op", &[]).await;
    world.create_imagegen("turbo", good_spec()).await;
    world.until_children("turbo").await;

    let gone = DeleteParams::default();
    world.api::<ConfigMap>().delete("turbo-worker", &gone).await.unwrap();
    world.api::<Service>().delete("turbo-headless", &gone).await.unwrap();
    world.api::<NetworkPolicy>().delete("turbo", &gone).await.unwrap();
    world.api::<PodDisruptionBudget>().delete("turbo", &gone).await.unwrap();
    world.api::<Deployment>().delete("turbo", &DeleteParams::background()).await.unwrap();
    world.until_children("turbo").await;

    // Secrets are not watched: the next reconcile, here caused by the edit below, brings this one back.
    world.api::<Secret>().delete("turbo-admin-tls", &gone).await.unwrap();
    let edit =
        json!({"spec": {"replicas": 7, "template": {"spec": {"containers": [{"name": "worker", "image": "evil"}]}}}});
    edit_until_undone::<Deployment>(&world, "turbo", edit, |found| {
        let spec = found.spec.as_ref().unwrap();
        let image = spec.template.spec.as_ref().unwrap().containers[0].image.as_deref();
        spec.replicas == Some(1) && image == Some("registry.invalid/imagegen-worker:1")
    })
    .await;
    world.until::<Secret>("turbo-admin-tls", "there again", |_| true).await;
    let edit = json!({"data": {"IMAGEGEN_MODEL": "/etc", "THEIRS": "kept"}});
    let config = edit_until_undone::<ConfigMap>(&world, "turbo-worker", edit, |found| {
        found.data.as_ref().unwrap()["IMAGEGEN_MODEL"] == "/model"
    })
    .await;
    assert_eq!(config.data.unwrap()["THEIRS"], "kept", "a field that is not ours stays");
    let edit = json!({"spec": {"ingress": [{}]}});
    edit_until_undone::<NetworkPolicy>(&world, "turbo", edit, |found| {
        let rules = found.spec.as_ref().unwrap().ingress.as_deref().unwrap_or_default();
        !rules.iter().any(|rule| rule.ports.is_none() && rule.from.is_none())
    })
    .await;
    assert!(operator.log().contains("Someone changed a child"));
}

async fn edit_until_undone<K>(world: &World, name: &str, edit: Value, undone: impl Fn(&K) -> bool) -> K
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let patch = PatchParams { field_manager: Some("someone".into()), ..PatchParams::default() };
    let edited = world.api::<K>().patch(name, &patch, &Patch::Strategic(edit)).await.unwrap();
    assert!(!undone(&edited), "the edit changed nothing: {edited:?}");
    world.until::<K>(name, "as desired again", undone).await
}

pub(crate) async fn a_foreign_deployment_is_left_alone(server: Arc<ApiServer>) {
    let world = World::new(server, "foreign").await;
    let theirs: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "turbo"},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "theirs"}},
            "template": {
                "metadata": {"labels": {"app": "theirs"}},
                "spec": {"containers": [{"name": "theirs", "image": "theirs"}]},
            },
        },
    }))
    .unwrap();
    let theirs = world.api::<Deployment>().create(&PostParams::default(), &theirs).await.unwrap();
    let operator = Operator::start(&world.server, "foreign", "op", &[]).await;
    world.create_imagegen("turbo", good_spec()).await;
    world.create_imagegen("other", good_spec()).await;
    let condition = world.until_condition("turbo", "Ready", "False", "NameConflict").await;
    assert!(condition.message.contains("Deployment turbo"), "{}", condition.message);
    world.until_children("other").await;

    let found = world.api::<Deployment>().get("turbo").await.unwrap();
    assert_eq!(found.resource_version(), theirs.resource_version());
    assert!(world.api::<Service>().get_opt("turbo").await.unwrap().is_none(), "half a fleet helps nobody");
    let events = eventually("an Event about it", async || {
        let about = ListParams::default().fields("regarding.name=turbo,reason=NameConflict");
        let found = world.api::<Event>().list(&about).await.map_err(|error| error.to_string())?.items;
        if found.is_empty() { Err("none".to_owned()) } else { Ok(found) }
    })
    .await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].type_.as_deref(), Some("Warning"));

    // Their owner gives the name free.
    world.api::<Deployment>().delete("turbo", &DeleteParams::background()).await.unwrap();
    world.until_children("turbo").await;
    world.until_condition("turbo", "Ready", "False", "Starting").await;
    drop(operator);
}

pub(crate) async fn the_scale_subresource_reaches_the_deployment(server: Arc<ApiServer>) {
    let world = World::new(server, "scale").await;
    let _operator = Operator::start(&world.server, "scale", "op", &[]).await;
    world.create_imagegen("turbo", good_spec()).await;
    world.until::<Deployment>("turbo", "one replica", |found| replicas(found) == Some(1)).await;
    let api = world.api::<ImageGen>();
    assert_eq!(api.get_scale("turbo").await.unwrap().spec.unwrap().replicas, Some(1));

    let scale = Patch::Merge(json!({"spec": {"replicas": 4}}));
    api.patch_scale("turbo", &PatchParams::default(), &scale).await.unwrap();
    world.until::<Deployment>("turbo", "four replicas", |found| replicas(found) == Some(4)).await;
    world
        .until::<ImageGen>("turbo", "desiredReplicas 4", |ig| {
            ig.status.as_ref().is_some_and(|status| status.desired_replicas == 4)
        })
        .await;
    let scale = api.get_scale("turbo").await.unwrap();
    assert_eq!(scale.status.unwrap().selector.as_deref(), Some("imagegen.dev/name=turbo"));
}

fn replicas(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.replicas
}

pub(crate) async fn removed_fields_and_children_go_away(server: Arc<ApiServer>) {
    let world = World::new(server, "prune").await;
    let _operator = Operator::start(&world.server, "prune", "op", &[]).await;
    let mut spec = good_spec();
    spec["service"] = json!({"annotations": {"a.example/x": "1", "b.example/y": "2"}});
    let ig = world.create_imagegen("turbo", spec).await;
    world.until_children("turbo").await;
    let annotation = |service: &Service, name: &str| service.annotations().contains_key(name);
    world.until::<Service>("turbo", "annotated", |found| annotation(found, "b.example/y")).await;

    world.edit_imagegen("turbo", json!({"service": {"annotations": {"b.example/y": null}}})).await;
    let pruned = |found: &Service| annotation(found, "a.example/x") && !annotation(found, "b.example/y");
    world.until::<Service>("turbo", "without the removed annotation", pruned).await;

    let stray = |name: &str, owned: bool| {
        let owners = owned.then(|| vec![ig.controller_owner_ref(&()).unwrap()]);
        let labels = json!({"app.kubernetes.io/managed-by": "imagegen-operator", "imagegen.dev/name": "turbo"});
        serde_json::from_value::<ConfigMap>(json!({
            "metadata": {"name": name, "labels": labels, "ownerReferences": owners},
        }))
        .unwrap()
    };
    let api = world.api::<ConfigMap>();
    api.create(&PostParams::default(), &stray("theirs", false)).await.unwrap();
    api.create(&PostParams::default(), &stray("of-an-older-version", true)).await.unwrap();
    eventually("what is no longer wanted is removed", async || {
        let found = api.get_opt("of-an-older-version").await.map_err(|error| error.to_string())?;
        if found.is_none() { Ok(()) } else { Err("it is there".to_owned()) }
    })
    .await;
    api.get("theirs").await.expect("what lacks our owner reference stays");
    api.get("turbo-worker").await.expect("what is wanted stays");
}
