//! Names and labels of the children. The names are API: clients, dashboards and NetworkPolicies use them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::reconcile::types::Validated;

/// The label that tells the pods of one ImageGen from those of another.
pub const NAME_LABEL: &str = "imagegen.dev/name";
/// The annotation that rolls the pods when the worker's configuration changes.
pub const CONFIG_HASH_ANNOTATION: &str = "imagegen.dev/config-hash";
/// Label value of the operator's own pods.
pub const OPERATOR_APP: &str = "imagegen-operator";
/// Name of the container that serves the model.
pub const WORKER_CONTAINER: &str = "worker";

/// The ports of a worker: name and number.
pub const GRPC_PORT: (&str, i32) = ("grpc", 8500);
/// Of the admin port.
pub const ADMIN_PORT: (&str, i32) = ("admin", 8501);
/// Of metrics and probes.
pub const HTTP_PORT: (&str, i32) = ("http", 9102);

const APP: &str = "imagegen-worker";

/// Name of the ConfigMap.
pub fn config_map(name: &str) -> String {
    format!("{name}-worker")
}

/// Name of the Service for clients that balance by themselves.
pub fn headless_service(name: &str) -> String {
    format!("{name}-headless")
}

/// Name of the Secret with the admin port's certificate.
pub fn admin_tls_secret(name: &str) -> String {
    format!("{name}-admin-tls")
}

/// Name in the admin port's certificate, verified instead of a pod's address.
pub fn admin_tls_server_name(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.imagegen.internal")
}

/// Labels of every child of the ImageGen `name`.
pub fn labels(name: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", APP),
        ("app.kubernetes.io/instance", name),
        ("app.kubernetes.io/managed-by", "imagegen-operator"),
        ("app.kubernetes.io/part-of", "imagegen"),
        (NAME_LABEL, name),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Selects the pods of the ImageGen `name`.
pub fn selector(name: &str) -> LabelSelector {
    let labels = [(NAME_LABEL.to_owned(), name.to_owned())].into();
    LabelSelector { match_labels: Some(labels), ..Default::default() }
}

/// The same as text, for the scale subresource.
pub fn selector_text(name: &str) -> String {
    format!("{NAME_LABEL}={name}")
}

/// Metadata of a child called `name`.
pub(super) fn child(spec: &Validated, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(spec.namespace.clone()),
        labels: Some(labels(&spec.name)),
        owner_references: Some(vec![spec.owner.clone()]),
        ..Default::default()
    }
}
