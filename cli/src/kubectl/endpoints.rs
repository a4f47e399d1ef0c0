//! Which pod a call goes to: decided from the EndpointSlices of the ImageGen's Service.

use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Name of the Service's port for clients.
const PORT_NAME: &str = "grpc";

/// A pod behind the Service, and the port it serves clients on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Namespace of the pod, where it is not the Service's.
    pub namespace: Option<String>,
    /// Name of the pod.
    pub pod: String,
    /// Container port.
    pub port: u16,
}

/// Why there is no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTarget {
    /// No endpoint is ready.
    NotReady,
    /// Endpoints are ready, but the port for clients is not among their ports.
    NoPort,
}

/// The ready pods of `slices`, in a fixed order.
///
/// # Errors
/// [`NoTarget`] when there is none.
pub fn targets(slices: &[EndpointSlice]) -> Result<Vec<Target>, NoTarget> {
    let mut without_port = false;
    let mut found = Vec::new();
    for slice in slices {
        let port = client_port(slice);
        let ready = slice
            .endpoints
            .iter()
            // An absent value counts as ready, by the API's definition.
            .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false))
            .filter_map(|endpoint| endpoint.target_ref.as_ref())
            .filter(|target| target.kind.as_deref() == Some("Pod"));
        for target in ready {
            match (port, target.name.clone()) {
                (Some(port), Some(pod)) => found.push(Target { namespace: target.namespace.clone(), pod, port }),
                _ => without_port = true,
            }
        }
    }
    found.sort();
    found.dedup();
    match (found.is_empty(), without_port) {
        (false, _) => Ok(found),
        (true, true) => Err(NoTarget::NoPort),
        (true, false) => Err(NoTarget::NotReady),
    }
}

fn client_port(slice: &EndpointSlice) -> Option<u16> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME));
    let only = if let [port] = ports { Some(port) } else { None };
    named.or(only)?.port.and_then(|port| u16::try_from(port).ok())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn slice(ports: &Value, endpoints: &[(&str, Option<bool>)]) -> EndpointSlice {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(pod, ready)| {
                json!({
                    "addresses": ["10.0.0.1"],
                    "conditions": { "ready": ready },
                    "targetRef": { "kind": "Pod", "name": pod, "namespace": "art" },
                })
            })
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": { "name": "turbo-x" },
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn pods(slices: &[EndpointSlice]) -> Result<Vec<(String, u16)>, NoTarget> {
        targets(slices).map(|targets| targets.into_iter().map(|target| (target.pod, target.port)).collect())
    }

    #[test]
    fn only_ready_pods_count_each_once() {
        let ports = json!([{ "name": "grpc", "port": 8500 }]);
        let first = slice(&ports, &[("b", Some(true)), ("loading", Some(false))]);
        let second = slice(&ports, &[("a", None), ("b", Some(true))]);
        assert_eq!(pods(&[first, second]), Ok(vec![("a".to_owned(), 8500), ("b".to_owned(), 8500)]));
    }

    #[rstest]
    #[case::named(json!([{ "name": "http", "port": 9102 }, { "name": "grpc", "port": 8500 }]), Ok(8500))]
    #[case::only_one(json!([{ "name": "", "port": 8600 }]), Ok(8600))]
    #[case::ambiguous(json!([{ "name": "a", "port": 1 }, { "name": "b", "port": 2 }]), Err(NoTarget::NoPort))]
    fn the_port_is_the_one_for_clients(#[case] ports: Value, #[case] port: Result<u16, NoTarget>) {
        assert_eq!(pods(&[slice(&ports, &[("a", Some(true))])]).map(|pods| pods[0].1), port);
    }

    #[test]
    fn nothing_ready_is_told_apart_from_no_port() {
        let ports = json!([{ "name": "grpc", "port": 8500 }]);
        assert_eq!(pods(&[slice(&ports, &[("loading", Some(false))])]), Err(NoTarget::NotReady));
        assert_eq!(pods(&[]), Err(NoTarget::NotReady));
    }
}
