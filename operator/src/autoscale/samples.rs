//! Workers and specs for tests, with only the numbers that matter.

use std::time::Duration;

use imagegen_proto::v1::{GpuReport, MemoryReport, RefusedWork, WorkerReport, WorkerState};

use super::{
    fleet::{STALE_AFTER, Seen, Standing, Worker},
    spec::{ScalingSpec, Speed, Targets},
};

pub(crate) const TARGETS: Targets = Targets { memory_pressure: 0.75, queue_wait: Duration::from_secs(20) };

pub(crate) fn spec() -> ScalingSpec {
    ScalingSpec {
        min: 1,
        max: 8,
        targets: TARGETS,
        tolerance: 0.1,
        up: Speed { window: Duration::ZERO, max_step: 4 },
        down: Speed { window: seconds(300), max_step: 1 },
        assumed_load_time: seconds(60),
    }
}

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A worker that serves and has nothing to do.
pub(crate) fn idle() -> WorkerReport {
    WorkerReport { state: WorkerState::Serving.into(), has_capacity: true, ..WorkerReport::default() }
}

/// A worker that runs a batch, with this memory pressure, and with `wait_seconds` of work if that is above 0.
pub(crate) fn busy(memory_pressure: f64, wait_seconds: f64) -> WorkerReport {
    let queued = u32::from(wait_seconds > 0.0);
    WorkerReport { running: 1, queued, memory_pressure, wait_seconds, backlog_seconds: wait_seconds, ..idle() }
}

pub(crate) fn refusing(mut report: WorkerReport, work: &[(u64, f64)]) -> WorkerReport {
    report.backlog_seconds += work.iter().map(|(_, seconds)| seconds).sum::<f64>();
    let refused = |&(request_key, seconds)| RefusedWork { request_key, seconds, age_seconds: 1.0 };
    report.refused = work.iter().map(refused).collect();
    report
}

pub(crate) fn on_gpu(mut report: WorkerReport, uuid: &str, memory: MemoryReport) -> WorkerReport {
    report.gpu = Some(GpuReport { uuid: uuid.into(), ..GpuReport::default() });
    report.memory = Some(memory);
    report
}

pub(crate) fn ready(pod: &str, report: WorkerReport) -> Worker {
    standing(pod, Standing::Ready, seconds(600), Some(report))
}

pub(crate) fn standing(pod: &str, standing: Standing, standing_for: Duration, report: Option<WorkerReport>) -> Worker {
    let seen = report.map(|report| Seen { report, age: Duration::from_millis(500) });
    Worker { pod: pod.into(), standing, standing_for, seen }
}

pub(crate) fn silent(mut worker: Worker) -> Worker {
    if let Some(seen) = &mut worker.seen {
        seen.age = STALE_AFTER + seconds(1);
    }
    worker
}
