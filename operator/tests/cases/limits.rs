//! What users cannot get, and whom a bad object cannot hurt.

use std::sync::Arc;

use imagegen_operator::crd::ImageGen;
use k8s_openapi::api::{
    apps::v1::Deployment,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api,
    api::{DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use super::{World, condition, good_spec, imagegen};
use crate::support::{
    apiserver::{ApiServer, TENANT},
    operator::Operator,
};

pub(crate) async fn a_tenant_cannot_get_more_than_a_restricted_pod(server: Arc<ApiServer>) {
    let world = World::new(server, "tenant").await;
    let role: Role = serde_json::from_value(json!({
        "metadata": {"name": "tenant"},
        "rules": [{"apiGroups": ["imagegen.dev"], "resources": ["imagegens"], "verbs": ["create", "get"]}],
    }))
    .unwrap();
    world.api::<Role>().create(&PostParams::default(), &role).await.unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": TENANT}],
    }))
    .unwrap();
    world.api::<RoleBinding>().create(&PostParams::default(), &binding).await.unwrap();
    let _operator = Operator::start(&world.server, "tenant", "op", &[]).await;

    let tenant: Api<ImageGen> = Api::namespaced(world.server.client(TENANT).await, "tenant");
    let pod = |template: Value| {
        let mut spec = good_spec();
        spec["worker"]["podTemplate"] = template;
        spec
    };
    let host_volume = json!({"name": "host", "hostPath": {"path": "/"}});
    let greedy = [
        ("host-model", json!({"model": {"source": {"hostPath": {"path": "/models"}}}}), "--allow-host-path"),
        ("host-volume", pod(json!({"volumes": [host_volume]})), "--allow-host-path"),
        ("root", pod(json!({"securityContext": {"runAsUser": 0, "runAsNonRoot": false}})), "--allow-privileged-pods"),
    ];
    for (name, spec, flag) in &greedy {
        tenant.create(&PostParams::default(), &imagegen(name, spec)).await.unwrap();
        let condition = world.until_condition(name, "Ready", "False", "NotAllowed").await;
        assert!(condition.message.contains(flag), "{name}: {}", condition.message);
    }
    // A sign that the operator had its turn with all of them.
    tenant.create(&PostParams::default(), &imagegen("modest", &good_spec())).await.unwrap();
    world.until_children("modest").await;
    let deployments = world.api::<Deployment>().list(&Default::default()).await.unwrap();
    assert_eq!(deployments.items.len(), 1, "{deployments:?}");
}

pub(crate) async fn an_unreadable_imagegen_disturbs_no_other(server: Arc<ApiServer>) {
    let world = World::new(server, "unreadable").await;
    // As an object of another version of the CRD would be: the schema let it in, this version cannot read it.
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let strict = world.server.exchange_spec_schema(anything).await;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("imagegen.dev", "v1alpha1", "ImageGen"));
    let api: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), "unreadable", &resource);
    let bad = json!({
        "apiVersion": "imagegen.dev/v1alpha1", "kind": "ImageGen",
        "metadata": {"name": "bad"}, "spec": {"model": "a string", "replicas": 1},
    });
    let bad: DynamicObject = serde_json::from_value(bad).unwrap();
    crate::support::eventually("the API server takes the bad object", async || {
        api.create(&PostParams::default(), &bad).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;

    let operator = Operator::start(&world.server, "unreadable", "op", &[]).await;
    world.create_imagegen("good", good_spec()).await;
    world.until_children("good").await;
    crate::support::eventually("the bad object says what is wrong", async || {
        let found = api.get("bad").await.map_err(|error| error.to_string())?;
        let mut conditions = found.data["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.find(|condition| condition["type"] == "Ready").cloned();
        let ready = ready.ok_or_else(|| format!("{found:?}"))?;
        let right = ready["status"] == "False" && ready["reason"] == "InvalidSpec";
        if right { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    let good = world.api::<ImageGen>().get("good").await.unwrap();
    assert!(condition(&good, "Ready").is_some());
    drop(operator);
    api.delete("bad", &Default::default()).await.unwrap();
    world.server.exchange_spec_schema(strict).await;
}
