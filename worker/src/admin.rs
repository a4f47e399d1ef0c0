//! The operator's service: the worker's state as a stream, drain and resume.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use imagegen_proto::v1::{
    DrainReply, DrainRequest, ResumeReply, ResumeRequest, WatchReportRequest, WorkerReport, WorkerState,
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
    dispatcher::Dispatcher,
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
            ..WorkerReport::default()
        }
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
