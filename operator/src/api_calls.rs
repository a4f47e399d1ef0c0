//! Counts every call to the API server, so that "nothing changed, nothing written" can be seen from outside.

use std::task::{Context, Poll};

use http::{Method, Request};
use tower::{Layer, Service};

use crate::metrics::{ApiCall, Metrics};

/// The resources that the operator speaks of. Anything else counts as `other`, which keeps the label closed.
const RESOURCES: [&str; 18] = [
    "apiservices",
    "clusterroles",
    "configmaps",
    "deployments",
    "events",
    "horizontalpodautoscalers",
    "imagegens",
    "imagegens/scale",
    "imagegens/status",
    "leases",
    "networkpolicies",
    "persistentvolumeclaims",
    "poddisruptionbudgets",
    "pods",
    "secrets",
    "services",
    "subjectaccessreviews",
    "customresourcedefinitions",
];

/// A layer for the client.
#[derive(Debug, Clone)]
pub struct CountCalls(pub Metrics);

/// A client that counts.
#[derive(Debug, Clone)]
pub struct Counting<S> {
    inner: S,
    metrics: Metrics,
}

impl<S> Layer<S> for CountCalls {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counting { inner, metrics: self.0.clone() }
    }
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Counting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = classify(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
        self.metrics.api_requests.get_or_create(&call).inc();
        self.inner.call(request)
    }
}

fn classify(method: &Method, path: &str, query: &str) -> ApiCall {
    let mut parts = path.trim_matches('/').split('/');
    let prefix = parts.next();
    // The core group has only a version, the others a name and a version.
    parts.nth(usize::from(prefix == Some("apis")));
    let mut rest: Vec<&str> = parts.collect();
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    let (kind, named) = (rest.first().copied().unwrap_or_default(), rest.len() > 1);
    let wanted = rest.get(2).map_or_else(|| kind.to_owned(), |subresource| format!("{kind}/{subresource}"));
    let resource = RESOURCES.into_iter().find(|resource| *resource == wanted).unwrap_or("other");
    let watches = query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1");
    let verb = match *method {
        Method::GET if watches => "watch",
        Method::GET if named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    ApiCall { verb, resource }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("GET", "/api/v1/namespaces/a/pods", "", "list", "pods")]
    #[case("GET", "/api/v1/pods", "labelSelector=x&watch=true", "watch", "pods")]
    #[case("GET", "/api/v1/namespaces/a/secrets/s", "", "get", "secrets")]
    #[case("PATCH", "/apis/apps/v1/namespaces/a/deployments/d", "fieldManager=x", "patch", "deployments")]
    #[case("PATCH", "/apis/imagegen.dev/v1alpha1/namespaces/a/imagegens/i/status", "", "patch", "imagegens/status")]
    #[case("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/l", "", "update", "leases")]
    #[case("DELETE", "/apis/policy/v1/namespaces/a/poddisruptionbudgets/p", "", "delete", "poddisruptionbudgets")]
    #[case("POST", "/apis/events.k8s.io/v1/namespaces/a/events", "", "create", "events")]
    #[case("GET", "/api/v1/namespaces/a", "", "get", "other")]
    #[case("GET", "/version", "", "list", "other")]
    fn calls_are_named_as_rbac_names_them(
        #[case] method: Method,
        #[case] path: &str,
        #[case] query: &str,
        #[case] verb: &'static str,
        #[case] resource: &'static str,
    ) {
        assert_eq!(classify(&method, path, query), ApiCall { verb, resource });
    }
}
