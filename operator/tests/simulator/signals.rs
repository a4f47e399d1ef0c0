//! What each autoscaler sees of the fleet.

use std::{collections::HashMap, time::Duration};

use imagegen_operator::autoscale::fleet::{self, Seen, Standing};
use imagegen_proto::v1::{GpuReport, MemoryReport, RefusedWork, WorkerReport, WorkerState};

use super::{
    card::Card,
    worker::{Phase, Worker},
};

/// Most entries of a report's list of refused work.
const MAX_REFUSED: usize = 256;

/// The workers as the operator sees them, with the reports that they would send.
pub(crate) fn fleet(workers: &[Worker], card: &Card, now: f64) -> Vec<fleet::Worker> {
    workers.iter().filter(|worker| worker.phase != Phase::Gone).map(|worker| seen(worker, card, now)).collect()
}

fn seen(worker: &Worker, card: &Card, now: f64) -> fleet::Worker {
    let standing = match worker.phase {
        Phase::Unscheduled => Standing::Unscheduled,
        Phase::Pending | Phase::Loading => Standing::Starting,
        Phase::Serving => Standing::Ready,
        Phase::Draining | Phase::Gone => Standing::Terminating,
    };
    let reports = !matches!(worker.phase, Phase::Unscheduled | Phase::Pending);
    fleet::Worker {
        pod: format!("worker-{}", worker.id),
        standing,
        standing_for: Duration::from_secs_f64((now - worker.since).max(0.0)),
        seen: reports.then(|| Seen { report: report(worker, card, now), age: Duration::ZERO }),
    }
}

/// By the formulas of docs/scaling.md.
fn report(worker: &Worker, card: &Card, now: f64) -> WorkerReport {
    let wait_seconds = worker.wait_seconds(now);
    let refused_seconds: f64 = worker.refused.iter().map(|(_, _, seconds)| seconds).sum();
    let refused = worker.refused.iter().rev().take(MAX_REFUSED).map(|(at, request, seconds)| RefusedWork {
        request_key: *request as u64,
        seconds: *seconds,
        age_seconds: now - at,
    });
    let activations = worker.running.map_or(0, |running| running.job.bytes);
    let memory = MemoryReport {
        usable_total_bytes: card.usable_total_bytes,
        used_bytes: worker.used_bytes(card),
        reserved_bytes: card.weights_bytes + worker.peak_activation_bytes,
        allocated_bytes: card.weights_bytes + activations,
        foreign_bytes: worker.foreign_bytes,
        own_overhead_bytes: card.own_overhead_bytes,
        weight_bytes: card.weights_bytes,
        headroom_bytes: card.headroom_bytes(worker.foreign_bytes),
        ..MemoryReport::default()
    };
    let state = match worker.phase {
        Phase::Unscheduled | Phase::Pending | Phase::Loading => WorkerState::Loading,
        Phase::Serving => WorkerState::Serving,
        Phase::Draining | Phase::Gone => WorkerState::Draining,
    };
    WorkerReport {
        state: state.into(),
        running: u32::from(worker.running.is_some()),
        queued: u32::try_from(worker.queue.len()).unwrap_or(u32::MAX),
        memory: Some(memory),
        memory_pressure: worker.memory_pressure(),
        busy_ratio: worker.busy_ratio(),
        wait_seconds,
        backlog_seconds: wait_seconds + refused_seconds,
        has_capacity: worker.has_capacity(card),
        out_of_memory_total: worker.out_of_memory_total,
        refused: refused.collect(),
        load_seconds: worker.load_seconds,
        gpu: Some(GpuReport { uuid: format!("GPU-{}", worker.gpu.unwrap_or(u32::MAX)), ..GpuReport::default() }),
        ..WorkerReport::default()
    }
}

/// What a monitoring system last scraped, by worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrape {
    /// Share of the time since the scrape before in which something ran, in thousandths.
    pub(crate) utilization: HashMap<u64, i64>,
    /// NVML's used bytes of the total, in thousandths.
    pub(crate) memory_used: HashMap<u64, i64>,
    /// Requests that run or wait, over all workers, in thousandths.
    pub(crate) requests: i64,
    busy: HashMap<u64, (f64, f64)>,
}

impl Scrape {
    /// Takes the numbers of this moment.
    pub(crate) fn take(&mut self, workers: &[Worker], card: &Card, now: f64) {
        self.utilization.clear();
        self.memory_used.clear();
        self.requests = 0;
        let mut busy = HashMap::new();
        for worker in workers {
            // Before its process runs, there is nothing to scrape.
            if !matches!(worker.phase, Phase::Loading | Phase::Serving | Phase::Draining) {
                continue;
            }
            let total = worker.busy_seconds(now);
            let (before, at) = self.busy.get(&worker.id).copied().unwrap_or((0.0, worker.created));
            let share = if now > at { (total - before) / (now - at) } else { 0.0 };
            self.utilization.insert(worker.id, thousandths(share));
            let used = worker.used_bytes(card) as f64 / card.usable_total_bytes as f64;
            self.memory_used.insert(worker.id, thousandths(used.min(1.0)));
            self.requests += 1000 * (worker.queue.len() as i64 + i64::from(worker.running.is_some()));
            busy.insert(worker.id, (total, now));
        }
        self.busy = busy;
    }
}

pub(crate) fn thousandths(value: f64) -> i64 {
    (value * 1000.0).round() as i64
}
