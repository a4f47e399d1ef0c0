use std::time::Duration;

use kube::core::Expression;
use rstest::rstest;

use super::*;
use crate::{
    autoscale::{
        fleet::{Standing, Worker},
        samples::{TARGETS, busy, idle, on_gpu, ready, silent, standing},
    },
    crd::AutoscalingMode,
};

fn fleet(name: &str, workers: Vec<Worker>) -> Fleet {
    let labels = |text: &str| BTreeMap::from([("app".to_owned(), text.to_owned())]);
    Fleet {
        namespace: "studio".into(),
        name: name.into(),
        labels: labels(name),
        mode: AutoscalingMode::HorizontalPodAutoscaler,
        targets: TARGETS,
        max_step: 4,
        replicas: 2,
        pod_labels: workers.iter().map(|worker| (worker.pod.clone(), labels(name))).collect(),
        workers,
    }
}

fn query(resource: &str, name: &str, metric: &str) -> Query {
    Query {
        namespace: "studio".into(),
        resource: resource.into(),
        name: name.into(),
        metric: metric.into(),
        labels: Default::default(),
        metric_labels: Default::default(),
    }
}

fn fleet_query(metric: &str) -> Query {
    query("imagegens.imagegen.dev", "turbo", metric)
}

fn read(fleets: &[Fleet], query: &Query) -> Result<Vec<(String, f64)>, u16> {
    match select(fleets, query) {
        Ok(items) => Ok(items.into_iter().map(|item| (item.name, item.value)).collect()),
        Err(failure) => Err(failure.code().as_u16()),
    }
}

#[rstest]
#[case("pressure_total", 1.5)]
#[case("pressure", 0.75)]
#[case("memory_pressure", 0.4)]
#[case("backlog_seconds", 24.0)]
#[case("queued_requests", 1.0)]
#[case("headroom_bytes", 12.0)]
#[case("fragmentation_ratio", 0.25)]
fn every_metric_of_a_fleet_is_made_of_its_workers(#[case] metric: &str, #[case] value: f64) {
    let memory = |headroom_bytes| imagegen_proto::v1::MemoryReport {
        headroom_bytes,
        reserved_bytes: 8,
        allocated_bytes: 6,
        ..Default::default()
    };
    let workers = vec![
        ready("p1", on_gpu(busy(0.6, 0.0), "g1", memory(5))),
        ready("p2", on_gpu(busy(0.2, 24.0), "g2", memory(7))),
    ];
    let items = read(&[fleet("turbo", workers)], &fleet_query(metric)).unwrap();
    let [(name, found)] = items.as_slice() else { panic!("one value: {items:?}") };
    assert_eq!((name.as_str(), (found * 1e9).round() / 1e9), ("turbo", value));
}

#[rstest]
#[case::idle_is_nothing(vec![ready("p", idle())], Ok(0.0))]
#[case::an_unknown_worker_counts_as_the_target(vec![ready("p", idle()), silent(ready("q", idle()))], Ok(0.75))]
#[case::or_as_its_last_value(vec![ready("p", idle()), silent(ready("q", busy(0.1, 60.0)))], Ok(2.25))]
#[case::nobody_known_is_no_value(vec![silent(ready("p", busy(0.9, 1.0)))], Err(503))]
#[case::nobody_serving_yet_is_no_value(vec![standing("p", Standing::Starting, Duration::ZERO, None)], Err(503))]
#[case::nobody_at_all_is_no_value(vec![], Err(503))]
fn what_is_not_known_never_reads_as_nothing(#[case] workers: Vec<Worker>, #[case] expected: Result<f64, u16>) {
    let found = read(&[fleet("turbo", workers)], &fleet_query("pressure_total"));
    assert_eq!(found.map(|items| items[0].1), expected);
}

#[rstest]
#[case::an_unknown_metric(fleet_query("happiness"))]
#[case::an_unknown_object(query("imagegens.imagegen.dev", "other", "pressure"))]
#[case::an_unknown_resource(query("deployments.apps", "turbo", "pressure"))]
#[case::an_unknown_namespace(Query { namespace: "elsewhere".into(), ..fleet_query("pressure") })]
#[case::an_unknown_pod(query("pods", "q", "pressure"))]
#[case::no_total_of_a_pod(query("pods", "p", "pressure_total"))]
#[case::nothing_selected(Query {
    labels: Expression::Equal("app".into(), "other".into()).into(), ..query("pods", "*", "pressure")
})]
#[case::metrics_without_labels(Query {
    metric_labels: Expression::Equal("verb".into(), "GET".into()).into(), ..fleet_query("pressure")
})]
fn what_is_not_there_is_not_found(#[case] query: Query) {
    assert_eq!(read(&[fleet("turbo", vec![ready("p", idle())])], &query), Err(404));
}

#[rstest]
#[case::serving("serving", "pressure", Ok(0.5))]
#[case::unknown("unknown", "pressure", Ok(0.75))]
#[case::unknown_memory("unknown", "memory_pressure", Err(503))]
#[case::loading("loading", "pressure", Err(503))]
fn a_pod_has_metrics_of_its_own(#[case] pod: &str, #[case] metric: &str, #[case] expected: Result<f64, u16>) {
    let workers = vec![
        ready("serving", busy(0.5, 0.0)),
        silent(ready("unknown", busy(0.1, 0.0))),
        standing("loading", Standing::Starting, Duration::ZERO, None),
    ];
    let found = read(&[fleet("turbo", workers)], &query("pods", pod, metric));
    assert_eq!(found.map(|items| items[0].1), expected);
}

#[test]
fn a_star_asks_for_all_that_the_selector_wants() {
    let fleets = [
        fleet("turbo", vec![ready("a", busy(0.5, 0.0)), standing("b", Standing::Unscheduled, Duration::ZERO, None)]),
        fleet("base", vec![ready("c", idle())]),
    ];
    let names = |query: &Query| read(&fleets, query).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(&query("imagegens.imagegen.dev", "*", "pressure")), ["turbo", "base"]);
    assert_eq!(names(&query("pods", "*", "pressure")), ["a", "c"], "a pod that does not serve has no value");
    let labels = Expression::In("app".into(), ["base".to_owned()].into()).into();
    assert_eq!(names(&Query { labels, ..query("pods", "*", "pressure") }), ["c"]);
}

#[test]
fn both_forms_name_object_metric_and_value() {
    let items = select(&[fleet("turbo", vec![ready("p", busy(0.5, 0.0))])], &fleet_query("pressure_total")).unwrap();
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let expected = json!({
        "kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {},
        "items": [{
            "describedObject":
                {"kind": "ImageGen", "namespace": "studio", "name": "turbo", "apiVersion": "imagegen.dev/v1alpha1"},
            "metric": {"name": "pressure_total", "selector": null},
            "timestamp": "2027-01-15T08:00:00Z", "value": "500m",
        }],
    });
    assert_eq!(list(&items, now), expected);
    let table = table(&items, now);
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"], json!(["turbo", "pressure_total", "500m", "2027-01-15T08:00:00Z"]));
    assert_eq!(table["rows"][0]["object"]["metadata"]["namespace"], "studio");
    assert_eq!(table["columnDefinitions"].as_array().unwrap().len(), 4);
}
