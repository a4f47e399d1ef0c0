//! `spec.worker.podTemplate`: what a user may add to the worker pods. A struct of its own, so that what is not in it
//! (host namespaces, privileges of the worker container, commands) cannot be asked for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, EnvVar, LocalObjectReference, PodSecurityContext, Toleration, TopologySpreadConstraint,
    Volume, VolumeMount,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::schema::{bare, keyed};

/// What the worker pods get beside the operator's own settings. env, volumes and volumeMounts merge by name (or mount path), tolerations append, the operator's own keys win.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels of the pods, beside the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<BTreeMap<String, String>>")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<BTreeMap<String, String>>")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<BTreeMap<String, String>>")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that the pods tolerate, beside that of the GPU resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<Vec<Toleration>>")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Rules about nodes and neighbours, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<Affinity>")]
    pub affinity: Option<Affinity>,
    /// How the pods spread over zones and nodes, as in a pod. A constraint without a labelSelector counts the pods of this ImageGen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "spread_schema")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// RuntimeClass of the pods, for example nvidia.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Service account of the pods. Its token is not mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Secrets for pulling the worker image and a model image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pull_secrets_schema")]
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,
    /// Containers that run before the worker, as in a pod. What their securityContext leaves open is filled in as the restricted Pod Security Standard asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "init_containers_schema")]
    pub init_containers: Option<Vec<Container>>,
    /// Environment of the worker container. Variables that the operator sets itself (those of fields of this spec) are left out, and the Ready condition names them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "env_schema")]
    pub env: Option<Vec<EnvVar>>,
    /// Volumes of the pods. hostPath is refused unless the operator runs with --allow-host-path, and types that the restricted Pod Security Standard does not list need --allow-privileged-pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "volumes_schema")]
    pub volumes: Option<Vec<Volume>>,
    /// Mounts of the worker container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "volume_mounts_schema")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// Security context of the pods. Root and what the restricted Pod Security Standard forbids are refused unless the operator runs with --allow-privileged-pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<PodSecurityContext>")]
    pub security_context: Option<PodSecurityContext>,
}

fn spread_schema(generator: &mut SchemaGenerator) -> Schema {
    keyed(&bare::<TopologySpreadConstraint>(generator), &["topologyKey", "whenUnsatisfiable"], 16)
}

fn pull_secrets_schema(generator: &mut SchemaGenerator) -> Schema {
    keyed(&bare::<LocalObjectReference>(generator), &["name"], 16)
}

fn init_containers_schema(generator: &mut SchemaGenerator) -> Schema {
    keyed(&bare::<Container>(generator), &["name"], 8)
}

fn env_schema(generator: &mut SchemaGenerator) -> Schema {
    keyed(&bare::<EnvVar>(generator), &["name"], 64)
}

fn volumes_schema(generator: &mut SchemaGenerator) -> Schema {
    keyed(&bare::<Volume>(generator), &["name"], 32)
}

fn volume_mounts_schema(generator: &mut SchemaGenerator) -> Schema {
    keyed(&bare::<VolumeMount>(generator), &["mountPath"], 64)
}
