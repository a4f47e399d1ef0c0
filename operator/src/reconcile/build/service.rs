//! The Service that clients use, and the headless one for clients that balance by themselves.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::names::{self, GRPC_PORT};
use crate::reconcile::types::Validated;

/// The Service of `spec`, under its own name.
pub(super) fn build(spec: &Validated) -> Service {
    let service_type = spec.service.service_type.to_string();
    service(
        spec,
        spec.name.clone(),
        i32::from(spec.service.port),
        ServiceSpec { type_: Some(service_type), ..Default::default() },
    )
}

/// The headless Service of `spec`. Its port is the workers' own: clients reach the pods directly.
pub(super) fn build_headless(spec: &Validated) -> Service {
    let headless =
        ServiceSpec { type_: Some("ClusterIP".into()), cluster_ip: Some("None".into()), ..Default::default() };
    service(spec, names::headless_service(&spec.name), GRPC_PORT.1, headless)
}

fn service(spec: &Validated, name: String, port: i32, rest: ServiceSpec) -> Service {
    let mut metadata = names::child(spec, name);
    let mut labels = spec.service.labels.clone();
    labels.extend(metadata.labels.take().unwrap_or_default());
    metadata.labels = Some(labels);
    metadata.annotations = Some(spec.service.annotations.clone()).filter(|annotations| !annotations.is_empty());
    let clear_text = spec.service.tls_secret.is_none();
    Service {
        metadata,
        spec: Some(ServiceSpec {
            selector: names::selector(&spec.name).match_labels,
            ports: Some(vec![ServicePort {
                name: Some(GRPC_PORT.0.into()),
                port,
                protocol: Some("TCP".into()),
                target_port: Some(IntOrString::String(GRPC_PORT.0.into())),
                app_protocol: clear_text.then(|| "kubernetes.io/h2c".into()),
                ..Default::default()
            }]),
            ..rest
        }),
        ..Default::default()
    }
}
