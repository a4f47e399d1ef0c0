//! An ImageGen that an HPA scales: the real kube-apiserver with its aggregation layer, and the real
//! kube-controller-manager, whose HPA controller reads the operator's metrics API.

use std::{sync::Arc, time::Instant};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Namespace, Service},
        rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding},
    },
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PostParams},
    discovery::Discovery,
};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::{World, good_spec};
use crate::support::{
    apiserver::{ApiServer, OPERATOR, TENANT},
    eventually,
    node::{Node, Work, network},
    operator::Operator,
};

const NAMESPACE: &str = "hpa";
const ROLE: &str = "imagegen-operator-metrics-api";
const API_SERVICE: &str = "v1beta2.custom.metrics.k8s.io";
const BASE: &str = "/apis/custom.metrics.k8s.io/v1beta2";

pub(crate) async fn an_hpa_scales_a_fleet_through_the_metrics_api(server: Arc<ApiServer>) {
    let world = World::new(server, NAMESPACE).await;
    let network = network();
    grant_metrics_api(&world.client).await;
    route_service(&world, &network(1).to_string()).await;
    let flags = [
        "--service-name=imagegen-operator".to_owned(),
        format!("--metrics-api-cluster-role={ROLE}"),
        format!("--metrics-api-listen={}:9443", network(1)),
        format!("--keda-listen={}:9090", network(1)),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let operator = Operator::start(&world.server, NAMESPACE, "op-a", &flags).await;
    operator.leads().await;
    let api_services: Api<APIService> = Api::all(world.client.clone());

    // An adapter of someone else, in another version of the group, is left alone.
    api_services.create(&PostParams::default(), &adapter()).await.unwrap();
    world.create_imagegen("turbo", hpa_spec()).await;
    let condition = world.until_condition("turbo", "ScalingActive", "False", "MetricsAPIOwnedByOther").await;
    assert!(condition.message.contains("Service monitoring/adapter"), "{}", condition.message);
    assert!(api_services.get_opt(API_SERVICE).await.unwrap().is_none());
    api_services.delete("v1beta1.custom.metrics.k8s.io", &DeleteParams::default()).await.unwrap();
    let ours = eventually("the APIService is available", async || {
        let found = api_services.get_opt(API_SERVICE).await.map_err(|error| error.to_string())?.ok_or("none")?;
        let conditions = found.status.clone().and_then(|status| status.conditions).unwrap_or_default();
        let available = conditions.iter().any(|c| c.type_ == "Available" && c.status == "True");
        available.then_some(found).ok_or_else(|| format!("{conditions:?}"))
    })
    .await;
    assert_eq!(ours.owner_references()[0].name, ROLE, "whoever uninstalls the chart takes it along");

    let controllers = world.server.controllers(&[
        "horizontal-pod-autoscaler-controller",
        "deployment-controller",
        "replicaset-controller",
        "serviceaccount-controller",
        "garbage-collector-controller",
        "namespace-controller",
    ]);
    let node = Node::start(world.client.clone(), NAMESPACE, "turbo", network);
    world.until_condition("turbo", "ScalingActive", "True", "HorizontalPodAutoscaler").await;
    the_api_answers_through_the_api_server(&world).await;
    replicas(&world, 1).await;

    // 75 s of work at a target of 20 s a worker are four workers.
    node.work(Work::Seconds(75.0));
    replicas(&world, 4).await;
    ready(&world, 4).await;
    assert_eq!(value(&world.client, "imagegens.imagegen.dev/turbo/pressure_total").await.unwrap(), "2813m");
    print_for_the_docs(&world).await;

    // Nobody says anything: the HPA says so, and the size stays.
    node.work(Work::Silence);
    world.until_condition("turbo", "ScalingActive", "False", "HorizontalPodAutoscalerFailed").await;
    // Not with this client, which tries again for minutes.
    let total = format!("{BASE}/namespaces/{NAMESPACE}/imagegens.imagegen.dev/turbo/pressure_total");
    let error = world.server.kubectl(&["get", "--raw", &total]).await.unwrap_err();
    assert!(error.contains("ServiceUnavailable") || error.contains("unable to handle the request"), "{error}");
    replicas(&world, 4).await;

    // The load is gone: down to one.
    node.work(Work::Seconds(0.0));
    replicas(&world, 1).await;
    ready(&world, 1).await;

    // Without the operator there is no value, and nothing changes; the next one takes over.
    node.work(Work::Seconds(30.0));
    replicas(&world, 2).await;
    drop(operator);
    let hpa_fails = |hpa: &HorizontalPodAutoscaler| scaling_active(hpa) == Some("False");
    world.until::<HorizontalPodAutoscaler>("turbo", "has no value", hpa_fails).await;
    replicas(&world, 2).await;
    let operator = Operator::start(&world.server, NAMESPACE, "op-b", &flags).await;
    world.until_condition("turbo", "ScalingActive", "True", "HorizontalPodAutoscaler").await;
    replicas(&world, 2).await;

    // Another mode takes HPA and APIService away; back in the mode they are there again.
    world.edit_imagegen("turbo", json!({"autoscaling": null})).await;
    gone(&api_services).await;
    let hpas = world.api::<HorizontalPodAutoscaler>();
    eventually("the HPA is gone", async || match hpas.get_opt("turbo").await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    world.edit_imagegen("turbo", hpa_spec()).await;
    world.until_condition("turbo", "ScalingActive", "True", "HorizontalPodAutoscaler").await;

    // Uninstalled without a word, as by deleting the chart's objects: the cluster is left whole.
    drop(operator);
    let roles: Api<ClusterRole> = Api::all(world.client.clone());
    roles.delete(ROLE, &DeleteParams::default()).await.unwrap();
    gone(&api_services).await;
    drop(node);
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let started = Instant::now();
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await.unwrap();
    eventually("the namespace is gone", async || match namespaces.get_opt(NAMESPACE).await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    drop(controllers);
}

fn hpa_spec() -> Value {
    let mut spec = good_spec();
    spec["autoscaling"] = json!({
        "mode": "HorizontalPodAutoscaler", "minReplicas": 1, "maxReplicas": 5,
        "scaleUp": {"maxStep": 4}, "scaleDown": {"stabilizationWindow": "2s", "maxStep": 4},
    });
    spec
}

fn adapter() -> APIService {
    serde_json::from_value(json!({
        "metadata": {"name": "v1beta1.custom.metrics.k8s.io"},
        "spec": {
            "group": "custom.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "insecureSkipTLSVerify": true, "service": {"namespace": "monitoring", "name": "adapter"},
        },
    }))
    .unwrap()
}

/// The operator's rights in the whole cluster, as the manifests have them.
async fn grant_metrics_api(client: &Client) {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/operator.yaml");
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OPERATOR}]);
    let created = PostParams::default();
    let mut granted = 0;
    for document in serde_yaml::Deserializer::from_str(&std::fs::read_to_string(manifests).unwrap()) {
        let mut document = Value::deserialize(document).unwrap();
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        let name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if document.get("subjects").is_some() {
            document["subjects"] = subjects.clone();
        }
        match (kind.as_str(), name.as_str()) {
            ("ClusterRole", ROLE) => {
                let role: ClusterRole = serde_json::from_value(document).unwrap();
                Api::<ClusterRole>::all(client.clone()).create(&created, &role).await.unwrap();
            }
            ("ClusterRoleBinding", ROLE) => {
                let binding: ClusterRoleBinding = serde_json::from_value(document).unwrap();
                Api::<ClusterRoleBinding>::all(client.clone()).create(&created, &binding).await.unwrap();
            }
            ("RoleBinding", "imagegen-operator-front-proxy") => {
                let binding: RoleBinding = serde_json::from_value(document).unwrap();
                let api: Api<RoleBinding> = Api::namespaced(client.clone(), "kube-system");
                api.create(&created, &binding).await.unwrap();
            }
            _ => continue,
        }
        granted += 1;
    }
    assert_eq!(granted, 3, "deploy/operator.yaml has a role, its binding and one in kube-system");
}

/// There is no network of Services here, so the operator's leads to its address by name.
async fn route_service(world: &World, address: &str) {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "imagegen-operator"}, "spec": {"type": "ExternalName", "externalName": address},
    }))
    .unwrap();
    world.api::<Service>().create(&PostParams::default(), &service).await.unwrap();
}

async fn replicas(world: &World, expected: i32) {
    let wanted = |deployment: &Deployment| deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(expected);
    world.until::<Deployment>("turbo", &format!("{expected} replicas"), wanted).await;
}

async fn ready(world: &World, expected: i32) {
    let there = |deployment: &Deployment| {
        deployment.status.as_ref().is_some_and(|s| (s.replicas, s.ready_replicas) == (Some(expected), Some(expected)))
    };
    world.until::<Deployment>("turbo", &format!("{expected} ready"), there).await;
}

fn scaling_active(hpa: &HorizontalPodAutoscaler) -> Option<&str> {
    let conditions = hpa.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "ScalingActive").map(|condition| condition.status.as_str())
}

async fn gone(api_services: &Api<APIService>) {
    eventually("the APIService is gone", async || match api_services.get_opt(API_SERVICE).await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

async fn raw(client: &Client, path: &str, accept: &str) -> Result<Value, String> {
    let request = http::Request::get(path).header("accept", accept).body(Vec::new()).unwrap();
    client.request::<Value>(request).await.map_err(|error| format!("{error:?}"))
}

/// The one value at a path of the fleet's namespace.
async fn value(client: &Client, rest: &str) -> Result<String, String> {
    let list = raw(client, &format!("{BASE}/namespaces/{NAMESPACE}/{rest}"), "application/json").await?;
    Ok(list["items"][0]["value"].as_str().unwrap_or_default().to_owned())
}

async fn the_api_answers_through_the_api_server(world: &World) {
    eventually("the API server lists the group", async || {
        let found = Discovery::new(world.client.clone()).run_aggregated().await.map_err(|error| error.to_string())?;
        found.has_group("custom.metrics.k8s.io").then_some(()).ok_or_else(|| "it does not".to_owned())
    })
    .await;
    let resources = raw(&world.client, BASE, "application/json").await.unwrap();
    assert_eq!(resources["resources"][0]["name"], "imagegens.imagegen.dev/pressure_total");
    assert_eq!(value(&world.client, "imagegens.imagegen.dev/turbo/pressure_total").await.unwrap(), "0");
    let selected = format!("{BASE}/namespaces/{NAMESPACE}/pods/*/pressure?labelSelector=imagegen.dev%2Fname%3Dturbo");
    let table = raw(&world.client, &selected, "application/json;as=Table;v=v1;g=meta.k8s.io").await.unwrap();
    assert_eq!((table["kind"].as_str(), table["rows"].as_array().map(Vec::len)), (Some("Table"), Some(1)));
    for (rest, code) in [("imagegens.imagegen.dev/other/pressure", "404"), ("imagegens.imagegen.dev/turbo/luck", "404")]
    {
        let error = value(&world.client, rest).await.unwrap_err();
        assert!(error.contains(code) && error.contains("NotFound"), "{rest}: {error}");
    }
    let tenant = world.server.client(TENANT).await;
    let error = value(&tenant, "imagegens.imagegen.dev/turbo/pressure").await.unwrap_err();
    assert!(error.contains("403"), "{error}");
}

/// With IMAGEGEN_PRINT set: what docs/hpa.md shows.
async fn print_for_the_docs(world: &World) {
    if std::env::var_os("IMAGEGEN_PRINT").is_none() {
        return;
    }
    let values = format!("{BASE}/namespaces/{NAMESPACE}/imagegens.imagegen.dev/turbo/pressure_total");
    let pods = format!("{BASE}/namespaces/{NAMESPACE}/pods/*/pressure");
    let commands: [&[&str]; 6] = [
        &["get", "--raw", &values],
        &["get", "--raw", &pods],
        &["get", "--raw", BASE],
        &["describe", "hpa", "turbo", "-n", NAMESPACE],
        &["get", "hpa", "turbo", "-n", NAMESPACE, "-o", "yaml"],
        &["get", "apiservice", API_SERVICE, "-o", "yaml"],
    ];
    for arguments in commands {
        let printed = world.server.kubectl(arguments).await.unwrap();
        println!("$ kubectl {}\n{printed}", arguments.join(" "));
    }
}
