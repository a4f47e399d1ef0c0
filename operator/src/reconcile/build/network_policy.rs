//! Who may reach which port: everybody the public and the HTTP port, the operator's pods alone the admin port.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::names::{self, ADMIN_PORT, GRPC_PORT, HTTP_PORT, OPERATOR_APP};
use crate::reconcile::types::Validated;

/// The policy of `spec`.
pub(super) fn build(spec: &Validated) -> NetworkPolicy {
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(select("kubernetes.io/metadata.name", &spec.operator_namespace)),
        pod_selector: Some(select("app.kubernetes.io/name", OPERATOR_APP)),
        ..Default::default()
    };
    NetworkPolicy {
        metadata: names::child(spec, spec.name.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(names::selector(&spec.name)),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { from: None, ports: Some(vec![port(GRPC_PORT.1), port(HTTP_PORT.1)]) },
                NetworkPolicyIngressRule { from: Some(vec![operator]), ports: Some(vec![port(ADMIN_PORT.1)]) },
            ]),
            ..Default::default()
        }),
    }
}

fn select(label: &str, value: &str) -> LabelSelector {
    let labels = [(label.to_owned(), value.to_owned())].into();
    LabelSelector { match_labels: Some(labels), ..Default::default() }
}

fn port(number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { port: Some(IntOrString::Int(number)), protocol: Some("TCP".into()), ..Default::default() }
}
