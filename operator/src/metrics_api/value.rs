//! From fleets to values. Pure.

use std::{collections::BTreeMap, fmt::Display};

use jiff::Timestamp;
use kube::core::SelectorExt as _;
use serde_json::{Value, json};
use strum::IntoEnumIterator as _;

use super::{API_VERSION, Metric, Subject, failure::Failure, quantity::quantity, request::Query};
use crate::{
    autoscale::load::{Class, Load, WorkerLoad},
    fleets::Fleet,
};

/// Every object that the selector wants.
pub const ALL: &str = "*";

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What kind of object it speaks about.
    pub subject: Subject,
    /// The object's namespace.
    pub namespace: String,
    /// The object.
    pub name: String,
    /// Which metric.
    pub metric: Metric,
    /// The number.
    pub value: f64,
}

/// Subject and metric of a query.
///
/// # Errors
/// [`Failure::NotFound`] when there are no such metrics.
pub fn meaning(query: &Query) -> Result<(Subject, Metric), Failure> {
    let subject = Subject::of_resource(&query.resource).ok_or_else(|| {
        let [fleets, workers] = [Subject::ImageGen, Subject::Pod].map(Subject::resource);
        Failure::NotFound(format!("there are no metrics of {}: only of {fleets} and {workers}", query.resource))
    })?;
    let metric = query.metric.parse().ok().filter(|metric| subject.has(*metric)).ok_or_else(|| {
        let names = joined(Metric::iter().filter(|metric| subject.has(*metric)));
        Failure::NotFound(format!("{} have no metric {:?}: there are {names}", query.resource, query.metric))
    })?;
    if !query.metric_labels.matches(&BTreeMap::new()) {
        let message = format!("{} has no labels of its own, so metricLabelSelector finds nothing", query.metric);
        return Err(Failure::NotFound(message));
    }
    Ok((subject, metric))
}

/// The values that a query asks for, out of `fleets` (all of its namespace, or at least those that it names).
///
/// # Errors
/// [`Failure::NotFound`] when there is no such object or metric, and [`Failure::Unavailable`] when there are objects and
/// no value of them is known: what is not known never reads as 0.
pub fn select(fleets: &[Fleet], query: &Query) -> Result<Vec<Item>, Failure> {
    let (subject, metric) = meaning(query)?;
    let fleets = fleets.iter().filter(|fleet| fleet.namespace == query.namespace);
    let found: Vec<(String, Known)> = match subject {
        Subject::ImageGen => fleets
            .filter(|fleet| named(query, &fleet.name) && query.labels.matches(&fleet.labels))
            .map(|fleet| (fleet.name.clone(), of_fleet(&fleet.load(), metric, fleet.max_step)))
            .collect(),
        Subject::Pod => fleets.flat_map(|fleet| pods_of(fleet, query, metric)).collect(),
    };
    let Query { namespace, resource, name, .. } = query;
    if found.is_empty() {
        let what = if name == ALL { "match the selector".to_owned() } else { format!("are called {name:?}") };
        return Err(Failure::NotFound(format!("no {resource} of this operator {what} in namespace {namespace:?}")));
    }
    let silent = found.iter().find_map(|(name, known)| known.as_ref().err().map(|why| format!("{name}: {why}")));
    let item = |(name, known): (String, Known)| {
        let value = known.ok()?;
        Some(Item { subject, namespace: namespace.clone(), name, metric, value })
    };
    let items: Vec<Item> = found.into_iter().filter_map(item).collect();
    match silent {
        Some(why) if items.is_empty() => Err(Failure::Unavailable(why)),
        _ => Ok(items),
    }
}

/// A number, or why it is not known.
type Known = Result<f64, &'static str>;

const NOBODY_REPORTS: &str = "no worker serves and reports, so the value is not known";

fn of_fleet(load: &Load, metric: Metric, max_step: u32) -> Known {
    let value = match metric {
        Metric::PressureTotal => load.pressure_total(max_step),
        Metric::Pressure => load.pressure_mean(),
        Metric::MemoryPressure => load.memory_pressure_mean(),
        _ if load.known() == 0 => None,
        Metric::BacklogSeconds => Some(load.backlog_seconds()),
        Metric::QueuedRequests => Some(load.queued_requests() as f64),
        Metric::HeadroomBytes => Some(load.headroom_bytes() as f64),
        Metric::FragmentationRatio => Some(load.fragmentation_ratio()),
    };
    value.ok_or(NOBODY_REPORTS)
}

fn pods_of(fleet: &Fleet, query: &Query, metric: Metric) -> Vec<(String, Known)> {
    let none = BTreeMap::new();
    let wanted = |worker: &&WorkerLoad| {
        named(query, &worker.pod) && query.labels.matches(fleet.pod_labels.get(&worker.pod).unwrap_or(&none))
    };
    let target = fleet.targets.memory_pressure;
    let workers = fleet.load().workers;
    workers.iter().filter(wanted).map(|worker| (worker.pod.clone(), of_worker(worker, metric, target))).collect()
}

fn of_worker(worker: &WorkerLoad, metric: Metric, target: f64) -> Known {
    match (worker.class, metric) {
        (Class::Serving | Class::NoCapacity, Metric::PressureTotal | Metric::Pressure) => Ok(worker.pressure),
        (Class::Serving | Class::NoCapacity, Metric::MemoryPressure) => Ok(worker.memory_pressure),
        (Class::Serving | Class::NoCapacity, Metric::BacklogSeconds) => Ok(worker.backlog_seconds),
        (Class::Serving | Class::NoCapacity, Metric::QueuedRequests) => Ok(f64::from(worker.queued)),
        (Class::Serving | Class::NoCapacity, Metric::HeadroomBytes) => Ok(worker.headroom_bytes as f64),
        (Class::Serving | Class::NoCapacity, Metric::FragmentationRatio) => Ok(worker.fragmentation_ratio),
        (Class::Unknown, Metric::PressureTotal | Metric::Pressure) => Ok(worker.pressure.max(target)),
        (Class::Unknown, _) => Err("the worker does not report, so the value is not known"),
        (Class::Coming { .. }, _) => Err("the worker does not serve yet"),
        (Class::Draining | Class::Failed | Class::Leaving, _) => Err("the worker takes no work"),
    }
}

fn named(query: &Query, name: &str) -> bool {
    query.name == ALL || query.name == name
}

fn joined(names: impl Iterator<Item = impl Display>) -> String {
    names.map(|name| name.to_string()).collect::<Vec<_>>().join(", ")
}

/// A `MetricValueList`.
#[must_use]
pub fn list(items: &[Item], now: Timestamp) -> Value {
    let item = |item: &Item| {
        json!({
            "describedObject": described(item), "metric": {"name": item.metric.to_string(), "selector": null},
            "timestamp": seconds(now), "value": quantity(item.value),
        })
    };
    let items: Vec<Value> = items.iter().map(item).collect();
    json!({"kind": "MetricValueList", "apiVersion": API_VERSION, "metadata": {}, "items": items})
}

/// The same as a `Table`.
#[must_use]
pub fn table(items: &[Item], now: Timestamp) -> Value {
    let column = |name: &str, kind: &str, description: &str| {
        let format = if name == "Name" { "name" } else { "" };
        json!({"name": name, "type": kind, "format": format, "description": description, "priority": 0})
    };
    let row = |item: &Item| {
        let cells = json!([item.name, item.metric.to_string(), quantity(item.value), seconds(now)]);
        json!({"cells": cells, "object": {
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"name": item.name, "namespace": item.namespace, "creationTimestamp": null},
        }})
    };
    let columns = [
        column("Name", "string", "The object that the value speaks about"),
        column("Metric", "string", "Which metric"),
        column("Value", "string", "As a Kubernetes quantity"),
        column("Timestamp", "date", "When it was read"),
    ];
    let rows: Vec<Value> = items.iter().map(row).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns, "rows": rows,
    })
}

fn described(item: &Item) -> Value {
    let (kind, api_version) = match item.subject {
        Subject::ImageGen => ("ImageGen", "imagegen.dev/v1alpha1"),
        Subject::Pod => ("Pod", "v1"),
    };
    json!({"kind": kind, "namespace": item.namespace, "name": item.name, "apiVersion": api_version})
}

fn seconds(now: Timestamp) -> String {
    now.strftime("%FT%TZ").to_string()
}

#[cfg(test)]
mod tests;
