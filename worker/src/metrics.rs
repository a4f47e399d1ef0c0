//! What the worker counts and times. Every name begins with `imagegen_worker_`.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use imagegen_core::engine::{EngineError, ModelInfo, Stage};
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use tonic::Code;

use self::memory::MemoryMetrics;
use crate::{
    gpu::{metrics::GpuMetrics, sampler::Sampler},
    snapshot::{Phase, Snapshot},
    status::Refusal,
};

mod memory;

type Label = [(&'static str, &'static str); 1];
type FailureLabels = [(&'static str, &'static str); 2];
type Histograms = Family<Label, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// Handles of all metrics; clones share the numbers.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<Label, Counter>,
    pub(crate) refusals: Family<Label, Counter>,
    pub(crate) cancellations: Counter,
    pub(crate) images: Counter,
    pub(crate) queue_wait: Histogram,
    pub(crate) images_per_request: Histogram,
    pub(crate) connections: Family<Label, Gauge>,
    pub(crate) reloads: Family<Label, Counter>,
    pub(crate) memory: MemoryMetrics,
    pub(crate) admissions: Counter,
    /// Batches suspended for smaller work.
    pub(crate) suspensions: Counter,
    /// Images that went on alone after a failed allocation.
    pub(crate) retries: Counter,
    pub(crate) trims: Counter,
    pub(crate) pool_alerts: Counter,
    images_per_batch: Histogram,
    stages: Histograms,
    steps: Histogram,
    generations: Histogram,
    slow_in_a_row: Gauge,
    failures: Family<FailureLabels, Counter>,
    queued: Gauge,
    running: Gauge,
    states: Family<Label, Gauge>,
    loaded_bytes: Gauge,
    weight_bytes: Gauge,
    load_seconds: Seconds,
    load_ratio: Seconds,
}

/// From 5 ms, a small step on a GPU, to 20 minutes, a large one on a CPU.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 19))
}

/// What the alert on slow generations calls slow.
const SLOW_SECONDS: f64 = 30.0;

/// Names of the states, as [`state`] gives them.
const STATES: [&str; 5] = ["loading", "serving", "draining", "drained", "failed"];

/// Reasons of refusals, as [`Refusal::reason`] gives them.
const REASONS: [&str; 17] = [
    "invalid",
    "too_large",
    "request_id_reused",
    "loading",
    "draining",
    "failed",
    "queue_full",
    "never_fits",
    "no_memory",
    "wait_too_long",
    "deadline_too_short",
    "circuit_open",
    "queue_timeout",
    "drain_timeout",
    "out_of_memory",
    "internal",
    "unauthenticated",
];

/// Those of them that meet a request before it is admitted.
const AT_THE_DOOR: usize = 12;

/// Codes that an admitted request may end with.
const CODES: [Code; 5] = [Code::Ok, Code::Cancelled, Code::ResourceExhausted, Code::Internal, Code::Unavailable];

/// Kinds of engine failures.
const KINDS: [&str; 3] = ["out_of_memory", "failed", "fatal"];

/// The name of the state that a snapshot is in.
pub(crate) const fn state(snapshot: &Snapshot) -> &'static str {
    match snapshot.phase {
        Phase::Failed { .. } => "failed",
        _ if snapshot.is_drained() => "drained",
        _ if snapshot.is_draining() => "draining",
        Phase::Loading { .. } => "loading",
        Phase::Serving => "serving",
    }
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            refusals: Family::default(),
            cancellations: Counter::default(),
            images: Counter::default(),
            queue_wait: seconds(),
            images_per_request: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]),
            connections: Family::default(),
            reloads: Family::default(),
            memory: MemoryMetrics::default(),
            admissions: Counter::default(),
            suspensions: Counter::default(),
            retries: Counter::default(),
            trims: Counter::default(),
            pool_alerts: Counter::default(),
            images_per_batch: Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0]),
            stages: Family::new_with_constructor(seconds),
            steps: seconds(),
            generations: seconds(),
            slow_in_a_row: Gauge::default(),
            failures: Family::default(),
            queued: Gauge::default(),
            running: Gauge::default(),
            states: Family::default(),
            loaded_bytes: Gauge::default(),
            weight_bytes: Gauge::default(),
            load_seconds: Seconds::default(),
            load_ratio: Seconds::default(),
        };
        metrics.begin_at_0();
        metrics.memory.register(registry);
        let own = registry.sub_registry_with_prefix("imagegen_worker");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        own.register("build", "Version of the worker", build);
        own.register("requests", "Admitted requests that ended, by gRPC code", metrics.requests.clone());
        own.register("refusals", "Requests that got no pictures, by reason", metrics.refusals.clone());
        own.register(
            "cancellations",
            "Requests that were cancelled or passed their deadline",
            metrics.cancellations.clone(),
        );
        own.register("images", "Images sent", metrics.images.clone());
        for (name, help, counter) in [
            ("admissions", "Requests that got a place in the queue", &metrics.admissions),
            ("suspensions", "Batches suspended so that smaller work did not wait for them", &metrics.suspensions),
            ("retries", "Images that went on alone after a failed allocation", &metrics.retries),
            ("trims", "Times that cached blocks were given back", &metrics.trims),
            ("pool_alerts", "Times that the allocator's pool did not fit the work", &metrics.pool_alerts),
        ] {
            own.register(name, help, counter.clone());
        }
        own.register("images_per_batch", "Images that were made together, by batch", metrics.images_per_batch.clone());
        own.register_with_unit(
            "queue_wait",
            "Time from admission to the engine",
            Unit::Seconds,
            metrics.queue_wait.clone(),
        );
        own.register(
            "images_per_request",
            "Images of the requests that the engine took",
            metrics.images_per_request.clone(),
        );
        own.register("connections", "Open connections, by port", metrics.connections.clone());
        own.register("reloads", "Certificates and tokens read again, by result", metrics.reloads.clone());
        own.register_with_unit(
            "stage",
            "Time of one call of the engine (text_encoder a batch, transformer a step, vae an image), and to encode an image",
            Unit::Seconds,
            metrics.stages.clone(),
        );
        own.register_with_unit("step", "Time of one denoising step of a batch", Unit::Seconds, metrics.steps.clone());
        own.register_with_unit(
            "generation",
            "Time of a finished request from the engine's first work on it to its end",
            Unit::Seconds,
            metrics.generations.clone(),
        );
        own.register(
            "slow_generations_in_a_row",
            "Finished requests since the last one that took at most 30 s, from the engine's first work to the end",
            metrics.slow_in_a_row.clone(),
        );
        own.register("engine_failures", "Failed calls of the engine, by stage and kind", metrics.failures.clone());
        own.register("queued_requests", "Requests that wait for the engine", metrics.queued.clone());
        own.register("running_requests", "Requests on the engine", metrics.running.clone());
        own.register("state", "1 for the state that the worker is in", metrics.states.clone());
        own.register_with_unit(
            "loaded",
            "Bytes of the checkpoint that are read",
            Unit::Bytes,
            metrics.loaded_bytes.clone(),
        );
        own.register_with_unit("weight", "Resident bytes of all weights", Unit::Bytes, metrics.weight_bytes.clone());
        own.register_with_unit(
            "load",
            "Time from start until the model was loaded",
            Unit::Seconds,
            metrics.load_seconds.clone(),
        );
        own.register("load_ratio", "Share of the checkpoint that is read, 0 to 1", metrics.load_ratio.clone());
        metrics
    }

    /// A counter that is there from the start lets Prometheus see its first increase.
    fn begin_at_0(&self) {
        for reason in REASONS {
            drop(self.refusals.get_or_create(&[("reason", reason)]));
        }
        for code in CODES {
            drop(self.requests.get_or_create(&[("code", code_name(code))]));
        }
        for stage in [Stage::TextEncoder, Stage::Transformer, Stage::Vae] {
            for kind in KINDS {
                drop(self.failures.get_or_create(&[("stage", stage.into()), ("kind", kind)]));
            }
        }
        for result in ["ok", "error"] {
            drop(self.reloads.get_or_create(&[("result", result)]));
        }
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.refusals.get_or_create(&[("reason", refusal.reason())]).inc();
    }

    /// A request that was admitted and then got no pictures.
    pub(crate) fn refused_late(&self, refusal: &Refusal) {
        match refusal {
            Refusal::Cancelled | Refusal::Deadline => {
                self.cancellations.inc();
            }
            _ => self.refused(refusal),
        }
    }

    pub(crate) fn ended(&self, code: Code) {
        self.requests.get_or_create(&[("code", code_name(code))]).inc();
    }

    pub(crate) fn encoded(&self, seconds: f64) {
        self.images.inc();
        self.stages.get_or_create(&[("stage", "encode")]).observe(seconds);
    }

    pub(crate) fn stage(&self, stage: Stage, seconds: f64, error: Option<&EngineError>) {
        match error {
            None => {
                self.stages.get_or_create(&[("stage", stage.into())]).observe(seconds);
                if stage == Stage::Transformer {
                    self.steps.observe(seconds);
                }
            }
            Some(error) => {
                let kind = match error {
                    EngineError::OutOfMemory { .. } => "out_of_memory",
                    EngineError::Failed { .. } => "failed",
                    EngineError::Fatal { .. } => "fatal",
                };
                self.failures.get_or_create(&[("stage", error.stage().into()), ("kind", kind)]).inc();
            }
        }
    }

    /// A request has got all its pictures.
    pub(crate) fn generated(&self, seconds: f64) {
        self.generations.observe(seconds);
        if seconds > SLOW_SECONDS {
            self.slow_in_a_row.inc();
        } else {
            self.slow_in_a_row.set(0);
        }
    }

    /// A batch of so many images is on the device; `is_new` unless it goes on.
    pub(crate) fn batch(&self, images: usize, is_new: bool) {
        if is_new {
            self.images_per_batch.observe(images as f64);
        }
    }

    pub(crate) fn loading(&self, loaded_bytes: u64) {
        self.loaded_bytes.set(gauge(loaded_bytes));
    }

    pub(crate) fn loaded(&self, model: &ModelInfo, since_start: Duration) {
        self.weight_bytes.set(gauge(model.weight_bytes));
        self.load_seconds.set(since_start.as_secs_f64());
        self.load_ratio.set(1.0);
    }

    pub(crate) fn state(&self, snapshot: &Snapshot) {
        self.queued.set(gauge(snapshot.queued as u64));
        self.running.set(gauge(snapshot.running as u64));
        if let Phase::Loading { ratio } = snapshot.phase {
            self.load_ratio.set(ratio);
        }
        let current = state(snapshot);
        for name in STATES {
            self.states.get_or_create(&[("state", name)]).set(i64::from(name == current));
        }
    }

    /// Requests that ended with this code.
    pub(crate) fn ended_total(&self, code: Code) -> u64 {
        self.requests.get(&[("code", code_name(code))]).map_or(0, |counter| counter.get())
    }

    /// Requests that were never admitted.
    pub(crate) fn refused_total(&self) -> u64 {
        REASONS[..AT_THE_DOOR]
            .iter()
            .filter_map(|reason| self.refusals.get(&[("reason", reason)]).map(|counter| counter.get()))
            .sum()
    }
}

fn gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        _ => "OTHER",
    }
}

/// A registry with the worker's metrics and those of its device.
pub(crate) fn registry(device: &Sampler) -> (Arc<Registry>, Metrics) {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let own = registry.sub_registry_with_prefix("imagegen_worker");
    own.register_collector(Box::new(GpuMetrics(device.subscribe())));
    own.register("device_call_failures", "Failed calls when reading the device, by call", device.failures());
    (Arc::new(registry), metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_generations_are_counted_until_a_quick_one() {
        let metrics = Metrics::register(&mut Registry::default());
        let mut seen = Vec::new();
        for seconds in [1.0, 31.0, 30.5, 40.0, 30.0] {
            metrics.generated(seconds);
            seen.push(metrics.slow_in_a_row.get());
        }
        assert_eq!(seen, [0, 1, 2, 3, 0]);
    }
}
