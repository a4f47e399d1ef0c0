//! `spec.service`: how clients reach the workers.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::Display;

use super::{
    duration::Duration,
    model::SecretKeyRef,
    schema::{bare, duration_between},
};

/// The Service in front of the workers, and what a client needs to be let in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.auth) || !has(self.auth.tokenSecretRef) || has(self.tls) || (has(self.auth.allowInsecureToken) && self.auth.allowInsecureToken)"
).message("a token sent without TLS can be read on the way: set tls.secretName, or auth.allowInsecureToken: true to accept that"))]
pub struct ServiceSpec {
    /// Type of the Service: ClusterIP, NodePort or LoadBalancer. A headless Service <name>-headless stands beside it for clients that balance by themselves.
    #[serde(default, rename = "type")]
    pub service_type: ServiceType,
    /// Port of the Service. The workers listen on 8500 whatever it is.
    #[serde(default = "port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Annotations of both Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<BTreeMap<String, String>>")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Labels of both Services, beside the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<BTreeMap<String, String>>")]
    pub labels: Option<BTreeMap<String, String>>,
    /// TLS of the public port. Absent: clear text (h2c).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Who may call. Absent: everybody who reaches the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthSpec>,
    /// Age at which a worker ends a client's connection (with a grace for what runs on it), so that load moves to new workers; 10s to 24h. Each connection draws up to 10 % more or less.
    #[serde(default = "max_connection_age")]
    #[x_kube(validation = duration_between("10s", "24h"))]
    pub max_connection_age: Duration,
}

/// TLS of the public port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// Name of a Secret of type kubernetes.io/tls in the namespace of the ImageGen. A renewed certificate is taken without a restart.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// Who may call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthSpec {
    /// Secret key with the accepted bearer tokens, one a line. A change is taken without a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
    /// Accepts tokens over clear text. For networks that encrypt by themselves, such as a service mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_insecure_token: Option<bool>,
}

/// Types of Service that can stand in front of workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum ServiceType {
    /// Reachable inside the cluster.
    #[default]
    ClusterIP,
    /// Also on a port of every node.
    NodePort,
    /// Also through the cloud's load balancer.
    LoadBalancer,
}

impl Default for ServiceSpec {
    fn default() -> Self {
        Self {
            service_type: ServiceType::default(),
            port: port(),
            annotations: None,
            labels: None,
            tls: None,
            auth: None,
            max_connection_age: max_connection_age(),
        }
    }
}

fn port() -> u16 {
    8500
}

fn max_connection_age() -> Duration {
    Duration::new("60s")
}
