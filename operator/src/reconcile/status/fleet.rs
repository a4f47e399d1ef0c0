//! What a Deployment and its pods say about the fleet.

use std::fmt;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};

use super::trouble;
use crate::{
    autoscale::view::{Shown, ShownWorker},
    crd::{MAX_WORKERS, WorkerStatus},
};

const REVISION: &str = "deployment.kubernetes.io/revision";

/// How many workers there are, of which kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::reconcile) struct Counts {
    pub(in crate::reconcile) desired: i32,
    /// Workers beyond those wanted that drain.
    leaving: i32,
    pub(super) replicas: i32,
    pub(super) ready: i32,
    updated: i32,
    available: i32,
    /// The numbers speak about the Deployment's current spec.
    current: bool,
    pub(in crate::reconcile) deadline_exceeded: bool,
}

impl Counts {
    /// What `deployment` says, when `desired` workers are wanted.
    pub(in crate::reconcile) fn of(deployment: Option<&Deployment>, desired: i32) -> Self {
        let Some(status) = deployment.and_then(|deployment| deployment.status.as_ref()) else {
            return Self { desired, ..Self::default() };
        };
        let generation = deployment.and_then(|deployment| deployment.metadata.generation);
        let current = status.observed_generation >= generation;
        let exceeded = |condition: &_| {
            let condition: &k8s_openapi::api::apps::v1::DeploymentCondition = condition;
            condition.type_ == "Progressing" && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
        };
        Self {
            desired,
            leaving: 0,
            replicas: status.replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            updated: status.updated_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            current,
            deadline_exceeded: current && status.conditions.iter().flatten().any(exceeded),
        }
    }

    /// With workers that drain, and are there until they have finished.
    pub(super) fn with_leaving(self, leaving: i32) -> Self {
        Self { leaving, ..self }
    }

    /// Every wanted worker has the current spec and is ready, and there is no other but those that drain.
    pub(in crate::reconcile) fn complete(&self) -> bool {
        let all_current = self.updated == self.replicas;
        self.current && all_current && self.right_number() && self.available >= self.desired
    }

    /// There are as many workers as are wanted, and as drain.
    pub(super) fn right_number(&self) -> bool {
        (self.desired..=self.desired.saturating_add(self.leaving)).contains(&self.replicas)
    }

    /// Every worker that there is, is ready.
    pub(in crate::reconcile) fn all_ready(&self) -> bool {
        self.current && self.replicas > 0 && self.available == self.replicas
    }

    /// Some worker has an older spec. The generation also moves with the size: until the controller has seen it, its
    /// numbers say nothing new.
    pub(in crate::reconcile) fn any_outdated(&self) -> bool {
        self.current && self.replicas > self.updated
    }

    /// Some worker has an older spec, or may have one.
    pub(in crate::reconcile) fn rolling_out(&self) -> bool {
        !self.current || self.updated < self.replicas.min(self.desired) || self.replicas > self.updated
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} workers are ready", self.ready, self.desired)?;
        let outdated = self.replicas - self.updated;
        if outdated > 0 { write!(f, ", {outdated} have an older spec") } else { Ok(()) }
    }
}

/// The later of two views of the same Deployment: the answer to the last write, and the cache.
pub(super) fn newest<'a>(applied: Option<&'a Deployment>, cached: Option<&'a Deployment>) -> Option<&'a Deployment> {
    let generation = |deployment: &Deployment| deployment.metadata.generation;
    match (applied, cached) {
        (Some(applied), Some(cached)) if generation(cached) >= generation(applied) => Some(cached),
        (Some(applied), _) => Some(applied),
        (None, cached) => cached,
    }
}

/// The number that the Deployment controller gives a pod template.
pub(super) fn revision(deployment: &Deployment) -> Option<String> {
    deployment.metadata.annotations.as_ref()?.get(REVISION).cloned()
}

/// The workers, worst first: by what they do, then the one with the most pressure.
pub(super) fn workers(pods: &[Pod], shown: &Shown) -> Vec<WorkerStatus> {
    let mut ranked: Vec<_> = pods
        .iter()
        .filter(|pod| !is_finished(pod))
        .map(|pod| {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let ShownWorker { gpu, pressure, draining } = shown.workers.get(&name).cloned().unwrap_or_default();
            let state = state(pod, draining);
            (state, WorkerStatus { pod: name, gpu, pressure, state: state.to_string() })
        })
        .collect();
    ranked.sort_by(|(state_a, a), (state_b, b)| {
        let pressure = |worker: &WorkerStatus| worker.pressure.unwrap_or_default();
        state_a.cmp(state_b).then(pressure(b).total_cmp(&pressure(a))).then_with(|| a.pod.cmp(&b.pod))
    });
    ranked.into_iter().take(MAX_WORKERS).map(|(_, worker)| worker).collect()
}

/// What a worker does, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::Display)]
enum State {
    Failing,
    Pending,
    Starting,
    Draining,
    Terminating,
    Ready,
}

fn state(pod: &Pod, draining: bool) -> State {
    let status = pod.status.clone().unwrap_or_default();
    let condition = |kind: &str| {
        status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
    };
    if pod.metadata.deletion_timestamp.is_some() {
        State::Terminating
    } else if trouble::of_containers(pod).is_some() {
        State::Failing
    } else if draining {
        State::Draining
    } else if condition("Ready") {
        State::Ready
    } else if condition("PodScheduled") {
        State::Starting
    } else {
        State::Pending
    }
}

/// An evicted or ended pod: the Deployment has replaced it already.
pub(super) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}
