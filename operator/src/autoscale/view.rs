//! What a reconcile needs to know of scaling, and what the status shows of the workers' reports.

use std::collections::BTreeMap;

use imagegen_proto::v1::WorkerState;

use super::{
    decide::ReasonClass,
    drain::Drain,
    fleet::Worker,
    load::{Class, Load},
};
use crate::crd::{DemandStatus, GpuStatus, MemoryStatus, ScalingEvent};

/// The size of one ImageGen and what stands behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Workers that are wanted.
    pub desired: u32,
    /// What `Deployment.spec.replicas` has to be: more than `desired` while workers drain.
    pub replicas: u32,
    /// Why the operator does not decide.
    pub pause: Option<Pause>,
    /// What the last decision in mode Operator said.
    pub decision: Option<(ReasonClass, String)>,
    /// Someone edited spec.replicas in mode Operator.
    pub ignores_replicas: bool,
    /// For too long no worker has said anything.
    pub reports_missing: bool,
    /// Changes of the size since this process leads, newest first.
    pub news: Vec<ScalingEvent>,
    /// What the reports say.
    pub shown: Shown,
}

/// Why the operator does not decide about the number of workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pause {
    /// spec.suspend.
    Suspended,
    /// Another autoscaler moves the same workers; the sentence names it.
    Conflict(String),
}

/// What the status shows of the workers' reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// Device memory.
    pub memory: Option<MemoryStatus>,
    /// Work.
    pub demand: Option<DemandStatus>,
    /// How long the slowest worker took to load.
    pub load_seconds: Option<f64>,
    /// By the name of its pod.
    pub workers: BTreeMap<String, ShownWorker>,
}

/// What the status shows of one worker's report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShownWorker {
    /// Its GPU.
    pub gpu: Option<GpuStatus>,
    /// Its scaling signal, when it is known.
    pub pressure: Option<f64>,
    /// It is being drained.
    pub draining: bool,
}

impl View {
    /// Workers that were asked for do not come up.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.decision.as_ref().is_some_and(|(class, _)| *class == ReasonClass::InsufficientGpu)
    }
}

impl Shown {
    /// What `workers` say, added up in `load`.
    #[must_use]
    pub fn new(workers: &[Worker], load: &Load) -> Self {
        let known = load.known() > 0;
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let memory = known.then(|| MemoryStatus {
            pressure: two_decimals(load.pressure_mean().unwrap_or_default()),
            used_bytes: bytes(load.memory.used_bytes),
            total_bytes: bytes(load.memory.usable_total_bytes),
            reserved_bytes: bytes(load.memory.reserved_bytes),
            allocated_bytes: bytes(load.memory.allocated_bytes),
            fragmentation: two_decimals(load.fragmentation_ratio()),
            out_of_memory_total: bytes(load.memory.out_of_memory_total),
        });
        let demand = known.then(|| DemandStatus {
            running: bytes(load.running_requests()),
            queued: bytes(load.queued_requests()),
            backlog_seconds: two_decimals(load.backlog_seconds()),
        });
        let shown = workers.iter().zip(&load.workers).map(|(worker, load)| {
            let report = worker.report();
            let gpu = report.and_then(|report| report.gpu.as_ref()).filter(|gpu| !gpu.uuid.is_empty());
            let pressure = matches!(load.class, Class::Serving | Class::NoCapacity).then_some(load.pressure);
            let draining = report.is_some_and(|report| {
                matches!(report.state(), WorkerState::Draining | WorkerState::Drained)
                    && Drain::is_ours(&report.drain_id)
            });
            let shown = ShownWorker {
                gpu: gpu.map(|gpu| GpuStatus { uuid: gpu.uuid.clone(), name: gpu.name.clone() }),
                pressure: pressure.map(two_decimals),
                draining,
            };
            (worker.pod.clone(), shown)
        });
        let load_seconds = load.load_time.map(|time| two_decimals(time.as_secs_f64()));
        Self { memory, demand, load_seconds, workers: shown.collect() }
    }
}

fn two_decimals(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
