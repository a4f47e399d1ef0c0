//! The newest report of every worker, from one stream each. Every operator pod holds all streams.

pub mod identity;
mod standing;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use imagegen_proto::v1::{WorkerReport, admin_service_client::AdminServiceClient};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{Notify, watch},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use self::identity::Identity;
use super::fleet::{Seen, Worker};
use crate::{
    caches::{Caches, filtered},
    reconcile::build::names::{ADMIN_PORT, NAME_LABEL},
};

/// One moment, on the two clocks that ages are measured with.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For the age of reports.
    pub monotonic: Instant,
    /// For what Kubernetes says of pods.
    pub wall: Timestamp,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall: Timestamp::now() }
    }
}

/// Namespace and name of an ImageGen.
pub type Key = (String, String);

/// The newest report of every worker. Cheap to clone.
#[derive(Clone, Default)]
pub struct Reports(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    open: Gauge,
}

#[derive(Default)]
struct State {
    /// The pods of each ImageGen.
    fleets: HashMap<Key, Vec<Arc<Pod>>>,
    /// By namespace and name of the pod.
    links: HashMap<(String, String), Link>,
    /// ImageGens of which something changed since the last look.
    changed: HashSet<Key>,
}

/// What is known of one pod.
struct Link {
    target: Target,
    report: Option<(WorkerReport, Instant)>,
    channel: Option<Channel>,
    stop: CancellationToken,
}

/// Where a worker is reached, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    imagegen: Key,
    pod: String,
    uid: Option<String>,
    address: SocketAddr,
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").field("links", &self.state().links.len()).finish_non_exhaustive()
    }
}

impl Reports {
    /// The workers of an ImageGen, each with its newest report. Empty for an ImageGen that has none, or is not there.
    #[must_use]
    pub fn fleet(&self, namespace: &str, name: &str, now: Moment) -> Vec<Worker> {
        let state = self.state();
        let Some(pods) = state.fleets.get(&(namespace.to_owned(), name.to_owned())) else { return Vec::new() };
        let worker = |pod: &Arc<Pod>| {
            let (standing, standing_for) = standing::of(pod, now.wall)?;
            let link = state.links.get(&(namespace.to_owned(), pod.name_any()));
            let seen = link.and_then(|link| link.report.as_ref()).map(|(report, arrived)| Seen {
                report: report.clone(),
                age: now.monotonic.saturating_duration_since(*arrived),
            });
            Some(Worker { pod: pod.name_any(), standing, standing_for, seen })
        };
        pods.iter().filter_map(worker).collect()
    }

    /// The pods of an ImageGen, as the reports see them.
    #[must_use]
    pub fn pods(&self, namespace: &str, name: &str) -> Vec<Arc<Pod>> {
        self.state().fleets.get(&(namespace.to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    /// Speaks to one worker, while its stream is open.
    #[must_use]
    pub fn admin(&self, namespace: &str, pod: &str) -> Option<AdminServiceClient<Channel>> {
        let state = self.state();
        let link = state.links.get(&(namespace.to_owned(), pod.to_owned()))?;
        link.channel.clone().map(AdminServiceClient::new)
    }

    /// Waits until something changed that a decision may depend on, and returns of which ImageGens. For one caller.
    pub async fn changed(&self) -> HashSet<Key> {
        loop {
            let notified = self.0.changed.notified();
            let changed = std::mem::take(&mut self.state().changed);
            if !changed.is_empty() {
                return changed;
            }
            notified.await;
        }
    }

    /// Streams that are open now.
    #[must_use]
    pub fn open_streams(&self) -> Gauge {
        self.0.open.clone()
    }

    /// Holds one stream for each worker pod in `caches`, until `stop`.
    ///
    /// # Errors
    /// When a stream's task panics.
    pub async fn run(
        self,
        caches: Caches,
        identity: watch::Receiver<Option<Arc<Identity>>>,
        stop: CancellationToken,
    ) -> Result<(), JoinError> {
        let mut pods_changed = caches.pods_changed.clone();
        let mut ours = HashSet::new();
        let mut tasks = JoinSet::new();
        loop {
            pods_changed.mark_unchanged();
            let pods = filtered(&caches.pods, |pod| pod.labels().contains_key(NAME_LABEL));
            for target in self.update(pods, &mut ours, &stop) {
                tasks.spawn(stream::hold(self.clone(), target.0, identity.clone(), target.1));
            }
            tokio::select! {
                changed = pods_changed.changed() => if changed.is_err() { break },
                () = stop.cancelled() => break,
                Some(ended) = tasks.join_next() => ended?,
            }
        }
        stop.cancelled().await;
        tasks.shutdown().await;
        Ok(())
    }

    /// Takes over the pods of one scope, and returns the targets that need a stream. `ours` are the ImageGens that this
    /// scope had before.
    fn update(
        &self,
        pods: Vec<Arc<Pod>>,
        ours: &mut HashSet<Key>,
        stop: &CancellationToken,
    ) -> Vec<(Target, CancellationToken)> {
        let mut fleets: HashMap<Key, Vec<Arc<Pod>>> = HashMap::new();
        for pod in pods {
            let Some(name) = pod.labels().get(NAME_LABEL) else { continue };
            let key = (pod.namespace().unwrap_or_default(), name.clone());
            fleets.entry(key).or_default().push(pod);
        }
        let mut state = self.state();
        let State { fleets: known, links, changed } = &mut *state;
        let wanted: HashMap<(String, String), Target> = fleets
            .iter()
            .flat_map(|(key, pods)| pods.iter().filter_map(|pod| target(key, pod)))
            .map(|target| ((target.imagegen.0.clone(), target.pod.clone()), target))
            .collect();
        links.retain(|id, link| {
            let kept = !ours.contains(&link.target.imagegen) || wanted.get(id) == Some(&link.target);
            if !kept {
                link.stop.cancel();
            }
            kept
        });
        let mut fresh = Vec::new();
        for (id, target) in wanted {
            links.entry(id).or_insert_with(|| {
                let stop = stop.child_token();
                fresh.push((target.clone(), stop.clone()));
                Link { target, report: None, channel: None, stop }
            });
        }
        for key in ours.drain().filter(|key| !fleets.contains_key(key)) {
            known.remove(&key);
            changed.insert(key);
        }
        for (key, mut pods) in fleets {
            pods.sort_by_key(|pod| pod.name_any());
            let same = known.get(&key).is_some_and(|known| is_same(known, &pods));
            if !same {
                changed.insert(key.clone());
                known.insert(key.clone(), pods);
            }
            ours.insert(key);
        }
        drop(state);
        self.0.changed.notify_one();
        fresh
    }

    fn opened(&self, target: &Target, channel: Channel) {
        self.link(target, |link| link.channel = Some(channel));
        self.0.open.inc();
    }

    fn closed(&self, target: &Target) {
        self.link(target, |link| link.channel = None);
        self.0.open.dec();
    }

    fn arrived(&self, target: &Target, report: WorkerReport, at: Instant) {
        let mut news = false;
        self.link(target, |link| {
            news = link.report.as_ref().is_none_or(|(old, _)| tells_more(old, &report));
            link.report = Some((report, at));
        });
        if news {
            self.state().changed.insert(target.imagegen.clone());
            self.0.changed.notify_one();
        }
    }

    /// Changes what is known of a pod, unless another one took its name.
    fn link(&self, target: &Target, change: impl FnOnce(&mut Link)) {
        let id = (target.imagegen.0.clone(), target.pod.clone());
        if let Some(link) = self.state().links.get_mut(&id).filter(|link| link.target == *target) {
            change(link);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole at every step: what a panicking holder left is usable.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the admin port of a pod that runs is reached.
fn target(imagegen: &Key, pod: &Pod) -> Option<Target> {
    let status = pod.status.as_ref()?;
    let runs = status.phase.as_deref() == Some("Running");
    let ip = status.pod_ip.as_ref().filter(|_| runs)?.parse().ok()?;
    let port = u16::try_from(ADMIN_PORT.1).ok()?;
    Some(Target { imagegen: imagegen.clone(), pod: pod.name_any(), uid: pod.uid(), address: SocketAddr::new(ip, port) })
}

fn is_same(known: &[Arc<Pod>], now: &[Arc<Pod>]) -> bool {
    let version = |pod: &Arc<Pod>| (pod.uid(), pod.resource_version());
    known.len() == now.len() && known.iter().zip(now).all(|(known, now)| version(known) == version(now))
}

/// A change of pressure below this can wait for the next regular look.
const PRESSURE_STEP: f64 = 0.02;

/// Whether a decision may depend on what changed between two reports of a worker.
fn tells_more(old: &WorkerReport, new: &WorkerReport) -> bool {
    let apart = |a: f64, b: f64| (a - b).abs() > PRESSURE_STEP;
    old.state != new.state
        || old.has_capacity != new.has_capacity
        || old.drain_id != new.drain_id
        || old.out_of_memory_total != new.out_of_memory_total
        || (old.running == 0) != (new.running == 0)
        || (old.queued == 0) != (new.queued == 0)
        || apart(old.pressure, new.pressure)
        || apart(old.memory_pressure, new.memory_pressure)
        || (old.backlog_seconds - new.backlog_seconds).abs() > 1.0
}
