//! The leader's loop: looks at every ImageGen every few seconds, tells workers to drain and end, and deletes pods whose
//! GPU kills them.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    time::Duration,
};

use imagegen_proto::v1::{DrainRequest, WorkerState};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Preconditions},
    runtime::events::Recorder,
};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Policy,
    decide::{Plan, Recycle, Standing, Worker, decide},
    fatal::FatalExits,
    out_of_memory::OutOfMemories,
};
use crate::{
    autoscale::{
        fleet,
        load::Load,
        reports::{Moment, Reports},
    },
    caches::Caches,
    crd::{Device, ImageGen, Reason},
    events::{self, Notice},
    lease::Leadership,
    reconcile::{build::names::WORKER_CONTAINER, validate::scaling},
};

/// How often workers are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// The longest word with a worker, or write to the API server.
const LIMIT: Duration = Duration::from_secs(5);
/// Sums of floats are not exact; a need of 3.0000000001 workers is one of 3.
const ROUNDING: f64 = 1e-6;

/// What the loop works with.
pub struct Recycler {
    /// To the API server.
    pub client: Client,
    /// What is watched, for each served namespace.
    pub scopes: Vec<Caches>,
    /// What the workers say.
    pub reports: Reports,
    /// Whether this pod acts.
    pub leadership: Leadership,
    /// Writes Kubernetes Events.
    pub recorder: Recorder,
}

/// What is remembered of one pod, by namespace, name and uid.
#[derive(Default)]
struct Remembered {
    out_of_memories: OutOfMemories,
    exits: FatalExits,
}

type PodKey = (String, String, String);

impl Recycler {
    /// Runs until `stop`, from the moment on that this process leads.
    ///
    /// # Errors
    /// Never: what fails is tried again.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let ready = async {
            self.leadership.gained().await;
            for caches in &self.scopes {
                caches.synced().await;
            }
        };
        tokio::select! {
            () = ready => {}
            () = stop.cancelled() => return Ok(()),
        }
        let mut remembered = HashMap::new();
        let mut tick = time::interval(EVERY);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.cancelled() => return Ok(()),
            }
            if self.leadership.holds() {
                self.look(&mut remembered).await;
            }
        }
    }

    async fn look(&self, remembered: &mut HashMap<PodKey, Remembered>) {
        let mut there = HashSet::new();
        for object in self.scopes.iter().flat_map(|caches| caches.imagegens.state()) {
            let Ok(imagegen) = &object.0 else { continue };
            if imagegen.metadata.deletion_timestamp.is_none() {
                self.look_at(imagegen, remembered, &mut there).await;
            }
        }
        remembered.retain(|key, _| there.contains(key));
    }

    async fn look_at(
        &self,
        imagegen: &ImageGen,
        remembered: &mut HashMap<PodKey, Remembered>,
        there: &mut HashSet<PodKey>,
    ) {
        let (namespace, name) = (imagegen.namespace().unwrap_or_default(), imagegen.name_any());
        let now = Moment::now();
        let workers = self.reports.fleet(&namespace, &name, now);
        let policy = imagegen.spec.recycle.as_ref().and_then(|spec| Policy::of(spec).ok());
        let mut seen = Vec::new();
        for pod in self.reports.pods(&namespace, &name) {
            let key = (namespace.clone(), pod.name_any(), pod.uid().unwrap_or_default());
            let of_pod = remembered.entry(key.clone()).or_default();
            there.insert(key);
            let Some(worker) = workers.iter().find(|worker| worker.pod == pod.name_any()) else { continue };
            if imagegen.spec.worker.device == Device::Cuda && is_killed_by_its_gpu(&pod, &mut of_pod.exits) {
                self.delete(imagegen, &pod, worker).await;
            } else if let Some(policy) = &policy {
                seen.extend(see(&pod, worker, policy, &mut of_pod.out_of_memories, now.wall));
            }
        }
        let Some(policy) = policy else { return };
        let Plan { now: orders, .. } = decide(&seen, &policy, needed(imagegen, &workers), now.wall);
        for order in orders {
            self.recycle(imagegen, &namespace, &order).await;
        }
    }

    async fn recycle(&self, imagegen: &ImageGen, namespace: &str, Recycle { pod, drain_id, cause }: &Recycle) {
        let Some(mut admin) = self.reports.admin(namespace, pod) else { return };
        // The worker's own timeout: the one that a deleted pod gets.
        let order = DrainRequest { id: drain_id.clone(), timeout_seconds: 0.0, exit: true };
        let failed = match time::timeout(LIMIT, admin.drain(order)).await {
            Ok(Ok(_)) => None,
            Ok(Err(status)) => Some(status.message().to_owned()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        if let Some(error) = failed {
            return warn!(namespace, pod, error, "A worker could not be told to recycle; trying again.");
        }
        info!(namespace, pod, drain_id, %cause, "Recycling a worker.");
        let note = format!("worker {pod} drains and starts again in its pod: {cause}");
        let notice = Notice { warning: false, reason: Reason::Recycling.to_string(), note };
        events::publish(&self.recorder, imagegen, vec![notice]).await;
    }

    async fn delete(&self, imagegen: &ImageGen, pod: &Pod, worker: &fleet::Worker) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| "unknown".into());
        let gpu = worker.seen.as_ref().and_then(|seen| seen.report.gpu.as_ref()).map(|gpu| gpu.uuid.as_str());
        let gpu = gpu.filter(|uuid| !uuid.is_empty()).unwrap_or("unknown");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let preconditions = Preconditions { uid: pod.uid(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted = time::timeout(LIMIT, api.delete(&name, &params)).await;
        match deleted {
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => return,
            Ok(Err(error)) => return warn!(namespace, pod = name, %error, "A pod could not be deleted; trying again."),
            Err(_) => return warn!(namespace, pod = name, "A pod could not be deleted in time; trying again."),
        }
        warn!(namespace, pod = name, node, gpu, "The engine died three times within 15 minutes; the pod is deleted.");
        let note = format!(
            "the engine of worker {name} died three times within 15 minutes on node {node}, GPU {gpu}: the pod is deleted. Look at that GPU (nvidia-smi -q, dmesg) and cordon the node if it is broken"
        );
        let notice = Notice { warning: true, reason: Reason::GpuFailed.to_string(), note };
        events::publish(&self.recorder, imagegen, vec![notice]).await;
    }
}

/// Serving workers that the load needs; all of them when nothing is known.
fn needed(imagegen: &ImageGen, workers: &[fleet::Worker]) -> u32 {
    let targets = scaling::resolve(&imagegen.spec).targets;
    let total = Load::aggregate(workers, &targets).pressure_total(0);
    // Saturates: far beyond any number of workers.
    total.map_or(u32::MAX, |total| (total / targets.memory_pressure - ROUNDING).ceil().max(0.0) as u32)
}

/// Whether the last ends of the pod's worker are too many.
fn is_killed_by_its_gpu(pod: &Pod, exits: &mut FatalExits) -> bool {
    let ended = container(pod).and_then(|status| {
        let state = [status.state.as_ref(), status.last_state.as_ref()];
        state.into_iter().flatten().find_map(|state| state.terminated.as_ref())
    });
    if let Some(ended) = ended
        && let Some(finished) = &ended.finished_at
    {
        exits.note(ended.exit_code, finished.0);
    }
    exits.too_many() && pod.metadata.deletion_timestamp.is_none()
}

/// The worker as recycling sees it; `None` when no node has room for it yet, so that nobody misses it.
fn see(
    pod: &Pod,
    worker: &fleet::Worker,
    policy: &Policy,
    out_of_memories: &mut OutOfMemories,
    now: Timestamp,
) -> Option<Worker> {
    if worker.standing == fleet::Standing::Unscheduled {
        return None;
    }
    let report = worker.report();
    let within = policy.after_out_of_memory.map_or(Duration::ZERO, |limit| limit.within);
    if let Some(report) = report {
        out_of_memories.note(report.out_of_memory_total, now, within);
    }
    let serving = report.filter(|report| {
        worker.standing == fleet::Standing::Ready && report.state() == WorkerState::Serving && report.has_capacity
    });
    let running = container(pod).and_then(|status| status.state.as_ref()?.running.as_ref()?.started_at.clone());
    Some(Worker {
        pod: worker.pod.clone(),
        standing: serving
            .map_or(Standing::Away, |report| Standing::Serving { idle: report.running == 0 && report.queued == 0 }),
        started: running.map(|started| started.0),
        pool_overhead: report.map_or(0.0, |report| report.pool_overhead_ratio),
        out_of_memory: out_of_memories.within(within, now),
    })
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == WORKER_CONTAINER)
}

#[cfg(test)]
mod tests;
