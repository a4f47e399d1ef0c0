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

#[cfg(test)]
mod tests {
    use super::*;

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
