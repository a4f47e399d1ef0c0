//! What the operator knows of the workers of one ImageGen at one moment. Plain values: nothing here asks anybody.

use std::time::Duration;

use imagegen_proto::v1::WorkerReport;

/// One worker pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// Name of the pod.
    pub pod: String,
    /// How far it is, as Kubernetes sees it.
    pub standing: Standing,
    /// Time since it came to that standing.
    pub standing_for: Duration,
    /// What it last said of itself; `None` when it has not said anything yet.
    pub seen: Option<Seen>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No node has room for it yet.
    Unscheduled,
    /// On a node; pulling, starting or loading the model.
    Starting,
    /// Ready.
    Ready,
    /// On a node and started once, but not ready.
    NotReady,
    /// Being deleted.
    Terminating,
}

/// A report and how old it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// What the worker said.
    pub report: WorkerReport,
    /// Time since it arrived.
    pub age: Duration,
}

/// Older reports say nothing: the worker counts as unknown, never as idle.
pub const STALE_AFTER: Duration = Duration::from_secs(5);

impl Worker {
    /// The newest report, unless it is stale.
    #[must_use]
    pub fn report(&self) -> Option<&WorkerReport> {
        self.seen.as_ref().filter(|seen| seen.age <= STALE_AFTER).map(|seen| &seen.report)
    }
}
