//! `/metrics`, `/livez` and `/readyz` over plain HTTP, for Prometheus and the kubelet.

use std::{future::Future, io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

/// `Ok`, or the sentence that says what is missing.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the page shows.
#[derive(Clone)]
pub struct Page {
    /// Everything under `/metrics`.
    pub registry: Arc<Registry>,
    /// Fails when only a restart helps.
    pub live: Check,
    /// Fails while no traffic should come.
    pub ready: Check,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

/// The three routes.
pub fn router(page: Page) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async |State(page): State<Page>| answer((page.live)())))
        .route("/readyz", get(async |State(page): State<Page>| answer((page.ready)())))
        .with_state(page)
}

/// Serves the page until `shutdown` completes.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    page: Page,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(page)).with_graceful_shutdown(shutdown).await
}

async fn metrics(State(page): State<Page>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &page.registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn answer(check: Result<(), String>) -> Response {
    match check {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt as _;

    use super::*;

    async fn get(path: &str) -> (StatusCode, String) {
        let mut registry = Registry::default();
        registry.register("sample", "A sample", Counter::<u64>::default());
        let page = Page {
            registry: Arc::new(registry),
            live: Arc::new(|| Ok(())),
            ready: Arc::new(|| Err("loading the model".into())),
        };
        let response = router(page).oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn probes_answer_with_the_reason() {
        assert_eq!(get("/livez").await, (StatusCode::OK, "ok\n".into()));
        assert_eq!(get("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "loading the model\n".into()));
    }

    #[tokio::test]
    async fn metrics_are_in_the_text_format() {
        let (status, text) = get("/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("sample_total 0\n"), "{text}");
    }
}
