//! Reconcile latency and API calls for many ImageGens on a real kube-apiserver. Prints one JSON object.
//!
//! `make bench-operator`. IMAGEGEN_BENCH_OBJECTS is the number of ImageGens (200).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench ends at the first surprise")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod support;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _};
use imagegen_operator::crd::ImageGen;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client, ResourceExt as _,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use support::{
    apiserver::{ADMIN, ApiServer, OPERATOR},
    eventually,
    operator::Operator,
};

const NAMESPACE: &str = "bench";

#[tokio::main]
async fn main() {
    let objects: usize = std::env::var("IMAGEGEN_BENCH_OBJECTS").map_or(200, |text| text.parse().expect("a number"));
    let server = ApiServer::start().await;
    let client = server.client(ADMIN).await;
    server.namespace(NAMESPACE).await;
    grant_everything(&client).await;

    let operator = Operator::start_wide(&server, NAMESPACE, "op-a", &[]).await;
    operator.leads().await;
    let (created, appeared) = create_all(&client, objects).await;
    let mut latencies: Vec<f64> =
        appeared.iter().map(|(name, at)| at.saturating_duration_since(created.each[name]).as_secs_f64()).collect();
    latencies.sort_by(f64::total_cmp);
    let all = appeared.values().max().expect("at least one Deployment").duration_since(created.started);
    settle(&operator).await;
    let first = calls(&operator);
    let resident_bytes = operator.resident_bytes();
    assert!(operator.terminate().await.success());

    // Everything is as it should be: a fresh operator looks at all of it and has nothing to do.
    let started = Instant::now();
    let again = Operator::start_wide(&server, NAMESPACE, "op-b", &[]).await;
    again.leads().await;
    eventually("every ImageGen is reconciled again", async || {
        let done = again.reconciles();
        if done >= objects as f64 { Ok(()) } else { Err(format!("{done}")) }
    })
    .await;
    let restart = started.elapsed();
    settle(&again).await;
    let second = calls(&again);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let report = json!({
        "imagegens": objects,
        "seconds_until_all_deployments_exist": round(all.as_secs_f64()),
        "seconds_from_create_to_deployment": {"p50": round(at(0.5)), "p99": round(at(0.99)), "max": round(at(1.0))},
        "creating": first,
        "nothing_changed": second,
        "seconds_from_start_to_all_reconciled_again": round(restart.as_secs_f64()),
        "operator_resident_mib": round(resident_bytes as f64 / f64::from(1 << 20)),
    });
    println!("{}", serde_json::to_string_pretty(&report).expect("plain data"));
}

struct Created {
    started: Instant,
    each: HashMap<String, Instant>,
}

/// Creates all ImageGens, and returns when each was accepted and when its Deployment was seen.
async fn create_all(client: &Client, objects: usize) -> (Created, HashMap<String, Instant>) {
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let deployments = watcher(Api::<Deployment>::namespaced(client.clone(), NAMESPACE), watcher::Config::default());
    let noted = seen.clone();
    let watching = tokio::spawn(async move {
        let mut stream = deployments.default_backoff().applied_objects().boxed();
        while let Ok(Some(deployment)) = stream.try_next().await {
            let mut seen = noted.lock().expect("no holder panics");
            seen.entry(deployment.name_any()).or_insert_with(Instant::now);
        }
    });
    let api: Api<ImageGen> = Api::namespaced(client.clone(), NAMESPACE);
    let started = Instant::now();
    let creations = (0..objects).map(|index| {
        let (api, name) = (api.clone(), format!("ig-{index:04}"));
        async move {
            let object = json!({
                "apiVersion": "imagegen.dev/v1alpha1", "kind": "ImageGen", "metadata": {"name": name},
                "spec": {"model": {"source": {"image": {"reference": "registry.invalid/model:1"}}}, "worker": {"device": "Cpu"}},
            });
            let object = serde_json::from_value(object).expect("a valid ImageGen");
            let sent = Instant::now();
            api.create(&PostParams::default(), &object).await.expect("the API server accepts it");
            (name, sent)
        }
    });
    let each: HashMap<_, _> = futures::stream::iter(creations).buffer_unordered(16).collect().await;
    eventually("all Deployments exist", async || {
        let count = seen.lock().expect("no holder panics").len();
        if count == objects { Ok(()) } else { Err(format!("{count} of {objects}")) }
    })
    .await;
    watching.abort();
    let appeared = seen.lock().expect("no holder panics").clone();
    (Created { started, each }, appeared)
}

/// Waits until a second passes in which nothing is reconciled.
async fn settle(operator: &Operator) {
    let (mut count, mut since) = (operator.reconciles(), Instant::now());
    eventually("reconciling comes to rest", async || {
        let now = operator.reconciles();
        if now != count {
            (count, since) = (now, Instant::now());
        }
        if since.elapsed() > Duration::from_secs(1) { Ok(()) } else { Err(format!("{now} so far")) }
    })
    .await;
}

fn calls(operator: &Operator) -> serde_json::Value {
    let reconciles = operator.reconciles();
    let of = |verb: &str| operator.metric("imagegen_operator_api_requests_total", &[("verb", verb)]).expect("a metric");
    let writes: u64 = operator.writes().values().sum();
    let seconds = operator.metric("imagegen_operator_reconcile_seconds_sum", &[]).expect("a metric");
    json!({
        "reconciles": reconciles,
        "writes": operator.writes(),
        "writes_per_reconcile": round(writes as f64 / reconciles),
        "gets_per_reconcile": round(of("get") / reconciles),
        "mean_reconcile_milliseconds": round(seconds / reconciles * 1000.0),
    })
}

fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

async fn grant_everything(client: &Client) {
    use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OPERATOR}],
    }))
    .expect("a valid binding");
    Api::all(client.clone()).create(&PostParams::default(), &binding).await.expect("the administrator may bind");
}
