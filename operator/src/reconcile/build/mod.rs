//! From a validated spec to every child as it should be. Pure and deterministic: the same spec gives the same bytes.
//!
//! A change here that alters the pod template rolls every fleet at the next operator upgrade, whatever
//! `worker.imageUpdate` says: it needs an entry in CHANGELOG.md.

mod config_map;
mod deployment;
mod hpa;
pub mod names;
mod network_policy;
mod pod;
mod pod_disruption_budget;
mod service;

use super::types::{Desired, Validated};

/// Every child of `spec`.
pub fn build(spec: &Validated) -> Desired {
    let config_map = config_map::build(spec);
    Desired {
        deployment: deployment::build(spec, &config_map),
        config_map,
        service: service::build(spec),
        headless_service: service::build_headless(spec),
        pod_disruption_budget: pod_disruption_budget::build(spec),
        network_policy: network_policy::build(spec),
        hpa: hpa::build(spec),
        admin_tls_secret: names::admin_tls_secret(&spec.name),
        admin_tls_server_name: names::admin_tls_server_name(&spec.name, &spec.namespace),
    }
}

/// What of the user's pod template has no effect because the operator's own keys win, as sentences for the user.
pub fn left_out(spec: &Validated) -> Vec<String> {
    pod::left_out(spec)
}
