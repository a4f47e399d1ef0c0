//! The operator's service: the worker's state as a stream, drain and resume.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use imagegen_core::engine::AllocatorStats;
use imagegen_proto::v1::{
    AllocatorSnapshotReply, AllocatorSnapshotRequest, DrainReply, DrainRequest, GpuReport, MemoryReport, RefusedWork,
    ResumeReply, ResumeRequest, TrimReply, TrimRequest, WatchReportRequest, WorkerReport, WorkerState,
    admin_service_server::AdminService,
};
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::{info, warn};

use crate::{
    dispatcher::{Dispatcher, Numbers},
    gpu::GpuSample,
    snapshot::{Phase, Snapshot},
};

/// An order to drain and then end the process.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) timeout: Duration,
}

/// Longest time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The service; clones share everything.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) drain_timeout: Duration,
    /// Timers of drains.
    pub(crate) timers: TaskTracker,
    /// Of drains that end the process; there is one at most.
    pub(crate) exits: mpsc::Sender<Exit>,
    pub(crate) stop: CancellationToken,
    /// The card, where the worker runs on one.
    pub(crate) gpu: Option<watch::Receiver<Arc<GpuSample>>>,
}

type ReportStream = Pin<Box<dyn Stream<Item = Result<WorkerReport, Status>> + Send>>;

#[tonic::async_trait]
impl AdminService for Admin {
    type WatchReportStream = ReportStream;

    async fn watch_report(&self, _request: Request<WatchReportRequest>) -> Result<Response<ReportStream>, Status> {
        let mut changes = self.dispatcher.subscribe();
        changes.mark_changed();
        let reports = stream::unfold((self.clone(), changes), |(admin, changes)| async {
            admin.next_report(changes).await.map(|(report, changes)| (Ok(report), (admin, changes)))
        });
        Ok(Response::new(Box::pin(reports)))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        let DrainRequest { id, timeout_seconds, exit } = request.into_inner();
        if id.is_empty() {
            return Err(invalid("id", "must not be empty: Resume needs it"));
        }
        let timeout = match timeout_seconds {
            0.0 => self.drain_timeout,
            seconds => Duration::try_from_secs_f64(seconds)
                .map_err(|_| invalid("timeout_seconds", "must be a number of at least 0"))?,
        };
        if exit {
            if self.dispatcher.begin_shutdown(&id) {
                info!(drain_id = id, "Draining before the process ends, because the operator asks.");
                // The end of life listens until the process ends, and only the first order gets here.
                let _ = self.exits.try_send(Exit { timeout });
            }
            return Ok(Response::new(self.left()));
        }
        let is_new = self.dispatcher.snapshot().drain_id.as_deref() != Some(id.as_str());
        self.dispatcher.drain(&id);
        if is_new {
            info!(drain_id = id, timeout_seconds = timeout.as_secs_f64(), "Draining, because the operator asks.");
            self.timers.spawn(end_in_time(Arc::clone(&self.dispatcher), id, timeout, self.stop.clone()));
        }
        Ok(Response::new(self.left()))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeReply>, Status> {
        let ResumeRequest { id } = request.into_inner();
        self.dispatcher.resume(&id).map_err(|error| {
            let details = ErrorDetails::with_precondition_failure_violation("DRAIN", &id, error.to_string());
            Status::with_error_details(Code::FailedPrecondition, error.to_string(), details)
        })?;
        info!(drain_id = id, "Serving again, because the operator asks.");
        Ok(Response::new(ResumeReply {}))
    }

    async fn trim(&self, _request: Request<TrimRequest>) -> Result<Response<TrimReply>, Status> {
        self.dispatcher.model()?;
        let trimmed = self.dispatcher.trim();
        let trimmed = tokio::select! {
            () = self.stop.cancelled() => return Err(Status::unavailable("the worker is ending")),
            trimmed = trimmed => trimmed.map_err(|_| Status::unavailable("the worker is ending"))?,
        };
        info!(
            before_bytes = trimmed.before_bytes,
            after_bytes = trimmed.after_bytes,
            "Trimmed, because the operator asks."
        );
        let (reserved_before_bytes, reserved_after_bytes) = (trimmed.before_bytes, trimmed.after_bytes);
        Ok(Response::new(TrimReply { reserved_before_bytes, reserved_after_bytes }))
    }

    async fn allocator_snapshot(
        &self,
        _request: Request<AllocatorSnapshotRequest>,
    ) -> Result<Response<AllocatorSnapshotReply>, Status> {
        self.dispatcher.model()?;
        let stats = self.dispatcher.numbers().allocator;
        if stats == AllocatorStats::default() {
            return Err(Status::unimplemented("this engine's allocator tells nothing about itself"));
        }
        Ok(Response::new(AllocatorSnapshotReply {
            allocated_bytes: stats.allocated_bytes,
            reserved_bytes: stats.reserved_bytes,
            active_bytes: stats.active_bytes,
            inactive_split_bytes: stats.inactive_split_bytes,
            peak_allocated_bytes: stats.peak_allocated_bytes,
            peak_reserved_bytes: stats.peak_reserved_bytes,
            alloc_retries: stats.alloc_retries,
            out_of_memory: stats.out_of_memory,
            device_allocations: stats.device_allocations,
            device_frees: stats.device_frees,
            largest_free_block_bytes: stats.largest_free_block_bytes,
        }))
    }
}

impl Admin {
    fn left(&self) -> DrainReply {
        let Snapshot { running, queued, .. } = self.dispatcher.snapshot();
        DrainReply { running: count(running), queued: count(queued) }
    }

    async fn next_report(
        &self,
        mut changes: watch::Receiver<Snapshot>,
    ) -> Option<(WorkerReport, watch::Receiver<Snapshot>)> {
        tokio::select! {
            () = self.stop.cancelled() => return None,
            changed = changes.changed() => changed.ok()?,
            () = time::sleep(REPORT_EVERY) => {}
        }
        let snapshot = changes.borrow_and_update().clone();
        Some((self.report(&snapshot), changes))
    }

    fn report(&self, snapshot: &Snapshot) -> WorkerReport {
        let metrics = &self.dispatcher.metrics;
        let state = match snapshot.phase {
            Phase::Failed { .. } => WorkerState::Failed,
            _ if snapshot.is_drained() => WorkerState::Drained,
            _ if snapshot.is_draining() => WorkerState::Draining,
            Phase::Loading { .. } => WorkerState::Loading,
            Phase::Serving => WorkerState::Serving,
        };
        let load_ratio = match snapshot.phase {
            Phase::Loading { ratio } => ratio,
            _ => 1.0,
        };
        let failed = [Code::Internal, Code::ResourceExhausted, Code::Unavailable];
        WorkerReport {
            state: state.into(),
            load_ratio,
            running: count(snapshot.running),
            queued: count(snapshot.queued),
            finished_total: metrics.ended_total(Code::Ok),
            cancelled_total: metrics.ended_total(Code::Cancelled),
            failed_total: failed.into_iter().map(|code| metrics.ended_total(code)).sum(),
            refused_total: metrics.refused_total(),
            drain_id: snapshot.drain_id.clone().unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").into(),
            gpu: self.gpu.as_ref().map(|gpu| gpu_report(&gpu.borrow())),
            ..numbers(&self.dispatcher.numbers())
        }
    }
}

/// The card as far as it tells; what it does not tell is empty.
fn gpu_report(sample: &GpuSample) -> GpuReport {
    GpuReport {
        uuid: sample.uuid.clone().unwrap_or_default(),
        name: sample.name.clone().unwrap_or_default(),
        temperature_celsius: sample.temperature_celsius.map_or(0.0, f64::from),
        utilization_ratio: sample.utilization.map_or(0.0, |utilization| utilization.gpu_ratio),
    }
}

/// The part of a report that is measured. What is not known is 0.
fn numbers(numbers: &Numbers) -> WorkerReport {
    let Numbers { memory, allocator, demand, no_capacity, .. } = numbers;
    let known = |bytes: u64| if memory.device.is_known() { bytes } else { 0 };
    let refused = numbers.refused.iter().map(|refused| RefusedWork {
        request_key: refused.key,
        seconds: refused.seconds,
        age_seconds: refused.age_seconds,
    });
    WorkerReport {
        memory: Some(MemoryReport {
            usable_total_bytes: known(memory.device.usable_total_bytes),
            used_bytes: known(memory.device.used_bytes),
            reserved_bytes: memory.reserved_bytes,
            allocated_bytes: memory.allocated_bytes,
            foreign_bytes: known(memory.foreign_bytes()),
            own_overhead_bytes: memory.own_overhead_bytes,
            weight_bytes: memory.weight_bytes,
            budget_bytes: known(memory.budget_bytes()),
            headroom_bytes: known(memory.headroom_bytes()),
            inactive_split_bytes: allocator.inactive_split_bytes,
            largest_free_block_bytes: allocator.largest_free_block_bytes.unwrap_or_default(),
        }),
        memory_pressure: demand.memory_pressure,
        busy_ratio: demand.busy_ratio,
        wait_seconds: demand.wait_seconds,
        backlog_seconds: demand.backlog_seconds,
        pressure: numbers.pressure,
        fragmentation_ratio: memory.fragmentation_ratio(),
        pool_overhead_ratio: numbers.pool_overhead_ratio,
        has_capacity: no_capacity.is_none(),
        no_capacity_reason: no_capacity.map(|reason| reason.to_string()).unwrap_or_default(),
        out_of_memory_total: numbers.out_of_memory,
        alloc_retries_total: allocator.alloc_retries,
        refused: refused.collect(),
        load_seconds: numbers.load_seconds,
        idle_seconds: numbers.idle_seconds,
        ..WorkerReport::default()
    }
}

/// Ends what is still admitted when the drain's time is over, unless it was taken back or replaced.
async fn end_in_time(dispatcher: Arc<Dispatcher>, id: String, timeout: Duration, stop: CancellationToken) {
    let mut changes = dispatcher.subscribe();
    let over = changes.wait_for(|snapshot| snapshot.is_drained() || snapshot.drain_id.as_deref() != Some(&id));
    tokio::select! {
        _ = over => return,
        () = stop.cancelled() => return,
        () = time::sleep(timeout) => {}
    }
    warn!(drain_id = id, "The drain's time is over; ending what still runs and waits.");
    dispatcher.abort();
}

fn invalid(field: &'static str, description: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, description);
    Status::with_error_details(Code::InvalidArgument, format!("{field} {description}"), details)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
