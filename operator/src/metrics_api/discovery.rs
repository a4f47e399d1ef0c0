//! What the API server and `kubectl` ask first: groups, versions and resources. Pure.

use serde_json::{Value, json};
use strum::IntoEnumIterator as _;

use super::{API_VERSION, GROUP, Metric, Subject, VERSION};

/// `/apis`.
#[must_use]
pub fn groups() -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [described_group()]})
}

/// `/apis/custom.metrics.k8s.io`.
#[must_use]
pub fn group() -> Value {
    let mut group = described_group();
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    group
}

fn described_group() -> Value {
    let version = json!({"groupVersion": API_VERSION, "version": VERSION});
    json!({"name": GROUP, "versions": [version], "preferredVersion": version})
}

/// `/apis/custom.metrics.k8s.io/v1beta2`: one resource for each metric of each subject.
#[must_use]
pub fn resources() -> Value {
    let of_subject = |subject: Subject| {
        Metric::iter().filter(move |&metric| subject.has(metric)).map(move |metric| {
            json!({
                "name": format!("{}/{metric}", subject.resource()), "singularName": "", "namespaced": true,
                "kind": "MetricValueList", "verbs": ["get"],
            })
        })
    };
    let resources: Vec<Value> = [Subject::ImageGen, Subject::Pod].into_iter().flat_map(of_subject).collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION, "resources": resources})
}

/// The media type of [`aggregated`].
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `/apis` as one document with everything. The API server asks for it first; the older documents it reads as a user
/// without any group, who usually may not.
#[must_use]
pub fn aggregated() -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let resource = |subject: Subject| {
        let metrics = Metric::iter().filter(|&metric| subject.has(metric));
        let of_metric = |metric: Metric| {
            let values = kind(GROUP, VERSION, "MetricValueList");
            json!({"subresource": metric.to_string(), "responseKind": values, "verbs": ["get"]})
        };
        json!({
            "resource": subject.resource(), "responseKind": kind("", "", ""), "scope": "Namespaced",
            "singularResource": "", "verbs": [], "subresources": metrics.map(of_metric).collect::<Vec<_>>(),
        })
    };
    let resources = [Subject::ImageGen, Subject::Pod].map(resource);
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": [{
            "metadata": {"name": GROUP, "creationTimestamp": null},
            "versions": [{"version": VERSION, "freshness": "Current", "resources": resources}],
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_document_lists_the_same() {
        let version = &aggregated()["items"][0]["versions"][0];
        let mut names = Vec::new();
        for resource in version["resources"].as_array().unwrap() {
            for metric in resource["subresources"].as_array().unwrap() {
                let (resource, metric) = (&resource["resource"], &metric["subresource"]);
                names.push(format!("{}/{}", resource.as_str().unwrap(), metric.as_str().unwrap()));
            }
        }
        let resources = resources();
        let listed = resources["resources"].as_array().unwrap().iter();
        assert_eq!(names, listed.map(|resource| resource["name"].as_str().unwrap()).collect::<Vec<_>>());
        assert_eq!(version["version"], "v1beta2");
    }

    #[test]
    fn every_metric_is_listed_for_each_subject() {
        let resources = resources();
        let names: Vec<&str> =
            resources["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        let of_fleets = [
            "imagegens.imagegen.dev/pressure_total",
            "imagegens.imagegen.dev/pressure",
            "imagegens.imagegen.dev/memory_pressure",
            "imagegens.imagegen.dev/backlog_seconds",
            "imagegens.imagegen.dev/queued_requests",
            "imagegens.imagegen.dev/headroom_bytes",
            "imagegens.imagegen.dev/fragmentation_ratio",
        ];
        assert_eq!(names[..of_fleets.len()], of_fleets);
        assert!(names.contains(&"pods/headroom_bytes") && !names.contains(&"pods/pressure_total"), "{names:?}");
    }

    #[test]
    fn the_group_has_one_version() {
        assert_eq!(group()["preferredVersion"]["groupVersion"], "custom.metrics.k8s.io/v1beta2");
        assert_eq!(groups()["groups"][0]["versions"].as_array().unwrap().len(), 1);
    }
}
