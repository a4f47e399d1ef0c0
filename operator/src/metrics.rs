//! What the operator tells Prometheus about itself. Every label has a closed set of values.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tonic::Code;

/// From a reconcile that finds nothing to do to one that waits for a slow API server.
const RECONCILE_SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// A call to the API server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiCall {
    /// The verb as RBAC calls it: get, list, watch, create, update, patch, delete.
    pub verb: &'static str,
    /// The resource in plural, with its subresource: `deployments`, `imagegens/status`; `other` for what is not known.
    pub resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    category: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Readiness {
    ready: &'static str,
}

/// How many ImageGens are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Condition Ready is True.
    pub ready: u32,
    /// Condition Ready is False.
    pub not_ready: u32,
    /// There is no condition Ready, or it is Unknown.
    pub unknown: u32,
}

/// The operator's own numbers.
#[derive(Debug, Clone)]
pub struct Metrics {
    reconcile_seconds: Histogram,
    reconcile_errors: Family<Failure, Counter>,
    reconciling: Gauge,
    leader: Gauge,
    metrics_api_answers: Family<[(&'static str, String); 1], Counter>,
    keda_answers: Family<[(&'static str, &'static str); 1], Counter>,
    /// Calls to the API server, watches and the leader election included.
    pub api_requests: Family<ApiCall, Counter>,
}

impl Metrics {
    /// Registers everything under the prefix `imagegen_operator`.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("imagegen_operator");
        let metrics = Self {
            reconcile_seconds: Histogram::new(RECONCILE_SECONDS),
            reconcile_errors: Family::default(),
            reconciling: Gauge::default(),
            leader: Gauge::default(),
            metrics_api_answers: Family::default(),
            keda_answers: Family::default(),
            api_requests: Family::default(),
        };
        let seconds = metrics.reconcile_seconds.clone();
        registry.register_with_unit("reconcile", "Time of one reconcile of one ImageGen", Unit::Seconds, seconds);
        let errors = metrics.reconcile_errors.clone();
        registry.register("reconcile_errors", "Reconciles that failed, by category", errors);
        registry.register("reconciling", "Reconciles that run now", metrics.reconciling.clone());
        registry.register("leader", "1 on the pod that writes, 0 on the others", metrics.leader.clone());
        let help = "Answers of the custom metrics API, by HTTP status";
        registry.register("metrics_api_answers", help, metrics.metrics_api_answers.clone());
        registry.register("keda_answers", "Answers to KEDA, by gRPC status", metrics.keda_answers.clone());
        let requests = metrics.api_requests.clone();
        registry.register("api_requests", "Calls to the API server, by verb and resource", requests);
        metrics
    }

    /// Adds the count of ImageGens, read from `count` at every scrape.
    pub fn register_counts(registry: &mut Registry, count: impl Fn() -> Counts + Send + Sync + 'static) {
        registry.register_collector(Box::new(CountCollector(Arc::new(count))));
    }

    /// Notes one finished reconcile; `failure` is the category of its error.
    pub fn reconciled(&self, took: Duration, failure: Option<&'static str>) {
        self.reconcile_seconds.observe(took.as_secs_f64());
        if let Some(category) = failure {
            self.reconcile_errors.get_or_create(&Failure { category }).inc();
        }
    }

    /// Counts a reconcile as running for as long as the guard lives.
    #[must_use]
    pub fn reconciling(&self) -> Reconciling {
        self.reconciling.inc();
        Reconciling(self.reconciling.clone())
    }

    /// Notes an answer of the custom metrics API.
    pub fn metrics_api_answered(&self, code: u16) {
        self.metrics_api_answers.get_or_create(&[("code", code.to_string())]).inc();
    }

    /// Notes an answer to KEDA.
    pub fn keda_answered(&self, code: Code) {
        let code = match code {
            Code::Ok => "Ok",
            Code::InvalidArgument => "InvalidArgument",
            Code::NotFound => "NotFound",
            Code::Unavailable => "Unavailable",
            _ => "Other",
        };
        self.keda_answers.get_or_create(&[("code", code)]).inc();
    }

    /// Notes whether this pod writes.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }
}

/// One running reconcile.
#[derive(Debug)]
pub struct Reconciling(Gauge);

impl Drop for Reconciling {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct CountCollector(Arc<dyn Fn() -> Counts + Send + Sync>);

impl std::fmt::Debug for CountCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CountCollector").finish_non_exhaustive()
    }
}

impl Collector for CountCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = (self.0)();
        let gauge = ConstGauge::new(0i64);
        let help = "ImageGens by their condition Ready";
        let mut family = encoder.encode_descriptor("imagegen_operator_imagegens", help, None, gauge.metric_type())?;
        for (ready, count) in [("true", counts.ready), ("false", counts.not_ready), ("unknown", counts.unknown)] {
            let labels = Readiness { ready };
            ConstGauge::new(i64::from(count)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn every_metric_is_on_the_page() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        Metrics::register_counts(&mut registry, || Counts { ready: 3, not_ready: 1, unknown: 0 });
        metrics.reconciled(Duration::from_millis(20), Some("Transient"));
        metrics.leads(true);
        metrics.api_requests.get_or_create(&ApiCall { verb: "patch", resource: "deployments" }).inc();
        metrics.metrics_api_answered(503);
        metrics.keda_answered(Code::Unavailable);
        let running = metrics.reconciling();
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        for line in [
            "imagegen_operator_reconcile_seconds_count 1",
            "imagegen_operator_reconcile_errors_total{category=\"Transient\"} 1",
            "imagegen_operator_reconciling 1",
            "imagegen_operator_leader 1",
            "imagegen_operator_api_requests_total{verb=\"patch\",resource=\"deployments\"} 1",
            "imagegen_operator_metrics_api_answers_total{code=\"503\"} 1",
            "imagegen_operator_keda_answers_total{code=\"Unavailable\"} 1",
            "imagegen_operator_imagegens{ready=\"true\"} 3",
            "imagegen_operator_imagegens{ready=\"unknown\"} 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
        }
        drop(running);
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        assert!(page.contains("imagegen_operator_reconciling 0\n"), "{page}");
    }
}
