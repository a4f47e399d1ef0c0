//! What the leader remembers of the size of each ImageGen, and the look that brings load, spec and cluster together.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{Timestamp, Unit};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt as _;
use tokio::time::Instant;

use super::{
    decide::{Decision, decide},
    drain::{Action, Candidate, Drain, Kind, Plan, Sizes, plan},
    fleet::Worker,
    history::History,
    load::{Class, Load},
    reports::{Key, Moment},
    spec::ScalingSpec,
    view::{Pause, Shown, View},
};
use crate::{
    crd::{AutoscalingMode, ImageGen, MAX_SCALING_HISTORY, ScalingEvent},
    reconcile::validate::scaling,
};

/// The annotation of a pod that is being drained, with the name of the drain.
pub const DRAIN_ANNOTATION: &str = "imagegen.dev/drain";
/// The annotation by which a ReplicaSet chooses among pods that are equally ready.
pub const DELETION_COST_ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";
/// The lowest cost there is: the pod is released.
pub const RELEASED_COST: &str = "-2147483648";
/// How long no worker may say anything before the condition does.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest reason in `status.scalingHistory`.
const MAX_REASON_BYTES: usize = 512;

/// Everything that a look at one ImageGen needs.
pub struct Seen<'a> {
    /// The ImageGen, with its newest status.
    pub imagegen: &'a ImageGen,
    /// Its Deployment, as the cache has it.
    pub deployment: Option<&'a Deployment>,
    /// Its workers.
    pub workers: &'a [Worker],
    /// Their pods.
    pub pods: &'a [Arc<Pod>],
}

/// What came of a look.
#[derive(Clone, Debug)]
pub struct Looked {
    /// For the reconcile.
    pub view: View,
    /// What to tell workers.
    pub actions: Vec<Action>,
    /// What was decided, in mode Operator.
    pub decision: Option<Decision>,
    /// When to look again, though nothing changed.
    pub next_look: Duration,
}

/// What the leader remembers of the sizes. Losing it costs a full window before the next scale-down.
#[derive(Default)]
pub struct Scaler(Mutex<HashMap<Key, Tracked>>);

struct Tracked {
    uid: Option<String>,
    /// From here `history` counts.
    origin: Instant,
    history: History,
    /// The size in force in mode Operator.
    desired: Option<u32>,
    /// The Deployment's size and resource version, as our own last write was answered.
    applied: Option<(u32, u128)>,
    conflict: Option<String>,
    /// spec.replicas when the mode began to ignore it.
    replicas_at_start: Option<u32>,
    silent_since: Option<Instant>,
    news: Vec<ScalingEvent>,
}

impl fmt::Debug for Scaler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scaler").field("tracked", &self.tracked().len()).finish()
    }
}

impl Scaler {
    /// Looks at one ImageGen: decides its size in mode Operator, and what of its workers has to drain.
    pub fn look(&self, key: &Key, seen: &Seen<'_>, now: Moment) -> Looked {
        let mut all = self.tracked();
        let uid = seen.imagegen.uid();
        let tracked = all.entry(key.clone()).or_insert_with(|| Tracked::new(uid.clone(), now));
        if tracked.uid != uid {
            *tracked = Tracked::new(uid, now);
        }
        tracked.look(seen, now)
    }

    /// Takes over what the API server answered to a write of the Deployment.
    pub fn applied(&self, key: &Key, deployment: &Deployment) {
        if let Some(tracked) = self.tracked().get_mut(key) {
            let version = version(deployment);
            let newest = tracked.applied.is_none_or(|(_, known)| version > known);
            if let Some(replicas) = replicas(deployment).filter(|_| newest) {
                tracked.applied = Some((replicas, version));
            }
        }
    }

    /// Takes over whether another autoscaler is in the way.
    pub fn contested(&self, key: &Key, conflict: Option<String>) {
        if let Some(tracked) = self.tracked().get_mut(key) {
            tracked.conflict = conflict;
        }
    }

    /// Drops what is remembered of an ImageGen that is gone.
    pub fn forget(&self, key: &Key) {
        self.tracked().remove(key);
    }

    fn tracked(&self) -> MutexGuard<'_, HashMap<Key, Tracked>> {
        // Whole at every step: what a panicking holder left is usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tracked {
    fn new(uid: Option<String>, now: Moment) -> Self {
        Self {
            uid,
            origin: now.monotonic,
            history: History::default(),
            desired: None,
            applied: None,
            conflict: None,
            replicas_at_start: None,
            silent_since: None,
            news: Vec::new(),
        }
    }

    fn look(&mut self, seen: &Seen<'_>, now: Moment) -> Looked {
        let ig = seen.imagegen;
        let spec = scaling::resolve(&ig.spec);
        let mode = ig.spec.autoscaling.as_ref().map_or(AutoscalingMode::Disabled, |scaling| scaling.mode);
        let load = Load::aggregate(seen.workers, &spec.targets);
        let candidates = candidates(seen, &load);
        let current = self.size_of(seen.deployment);
        let suspended = ig.spec.suspend == Some(true);
        let operator = mode == AutoscalingMode::Operator;

        let decision = (operator && !suspended).then(|| {
            let draining = candidates.iter().filter(|candidate| candidate.drain.is_some()).count();
            let in_force = current.map(|size| size.saturating_sub(u32::try_from(draining).unwrap_or(u32::MAX)));
            let start = || in_force.or(earlier(ig)).unwrap_or(spec.min);
            let current = *self.desired.get_or_insert_with(start);
            let rolling = seen.deployment.is_some_and(is_rolling);
            self.decide(&load, &spec, current, rolling, ig, now)
        });
        if decision.is_none() {
            (self.desired, self.history, self.replicas_at_start) = (None, History::default(), None);
        }
        let desired = if suspended { 0 } else { self.desired.unwrap_or(ig.spec.replicas) };
        let sizes = Sizes {
            desired,
            current: current.unwrap_or(desired),
            counted: counted(seen.deployment),
            rolling: seen.deployment.is_some_and(is_rolling),
        };
        let deadline = now.wall.checked_add(drain_timeout(ig)).unwrap_or(now.wall);
        let Plan { replicas, actions } = plan(sizes, &candidates, deadline, now.wall);
        let under_way = replicas != desired || !actions.is_empty();
        let next_look = decision.as_ref().map_or(Duration::from_secs(5), |decision| decision.next_look);
        let view = View {
            desired,
            replicas,
            pause: self.pause(suspended, mode),
            decision: decision.as_ref().map(|decision| (decision.class, decision.reason.clone())),
            ignores_replicas: operator && self.ignores_replicas(ig, desired),
            reports_missing: self.is_silent(&load, now),
            news: self.news.clone(),
            shown: Shown::new(seen.workers, &load),
        };
        let next_look = if under_way { next_look.min(Duration::from_secs(1)) } else { next_look };
        Looked { view, actions, decision, next_look }
    }

    fn decide(
        &mut self,
        load: &Load,
        spec: &ScalingSpec,
        current: u32,
        rolling: bool,
        ig: &ImageGen,
        now: Moment,
    ) -> Decision {
        if let Some(seconds) = ig.status.as_ref().and_then(|status| status.load_seconds) {
            self.history.learn_load_time(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        }
        let since = now.monotonic.saturating_duration_since(self.origin);
        let mut decision = decide(load, spec, current, &self.history, since);
        // A rollout takes workers away by itself, so what is left carries more than it looks; and an autoscaler that
        // fights with another helps nobody.
        let held = (rolling && decision.replicas < current) || self.conflict.is_some();
        if held {
            decision.replicas = current;
        }
        self.history.note(&decision, current, spec, since);
        if decision.replicas != current {
            self.desired = Some(decision.replicas);
            self.note_change(current, &decision, now.wall);
        }
        decision
    }

    fn note_change(&mut self, from: u32, decision: &Decision, now: Timestamp) {
        let mut reason = format!("{}: {}", decision.class.name(), decision.reason);
        if reason.len() > MAX_REASON_BYTES {
            let end = (0..=MAX_REASON_BYTES).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
            reason.truncate(end);
        }
        let size = |size: u32| i32::try_from(size).unwrap_or(i32::MAX);
        // As the API server keeps it.
        let time = Time(now.round(Unit::Second).unwrap_or(now));
        self.news.insert(0, ScalingEvent { time, from: size(from), to: size(decision.replicas), reason });
        self.news.truncate(MAX_SCALING_HISTORY);
    }

    /// The Deployment's size: our own last write is newer than a cache that has not caught up.
    fn size_of(&self, deployment: Option<&Deployment>) -> Option<u32> {
        let deployment = deployment?;
        let cached = replicas(deployment);
        match self.applied {
            Some((applied, at)) if version(deployment) < at => Some(applied),
            _ => cached,
        }
    }

    fn pause(&self, suspended: bool, mode: AutoscalingMode) -> Option<Pause> {
        if suspended {
            return Some(Pause::Suspended);
        }
        self.conflict.clone().filter(|_| mode != AutoscalingMode::Disabled).map(Pause::Conflict)
    }

    /// Whether spec.replicas was edited while nobody reads it. Setting it to the size in force ends that.
    fn ignores_replicas(&mut self, ig: &ImageGen, desired: u32) -> bool {
        let given = ig.spec.replicas;
        let said = || crate::reconcile::status::says_replicas_are_ignored(ig);
        // After a restart the condition tells; a number that cannot be meant makes the edit stand.
        let start = *self.replicas_at_start.get_or_insert_with(|| if said() { u32::MAX } else { given });
        if given == desired {
            self.replicas_at_start = Some(given);
            return false;
        }
        given != start
    }

    fn is_silent(&mut self, load: &Load, now: Moment) -> bool {
        if load.ready == 0 || load.ready_known > 0 {
            self.silent_since = None;
            return false;
        }
        let since = *self.silent_since.get_or_insert(now.monotonic);
        now.monotonic.saturating_duration_since(since) >= SILENCE
    }
}

fn candidates(seen: &Seen<'_>, load: &Load) -> Vec<Candidate> {
    let marks: HashMap<&str, _> = seen
        .pods
        .iter()
        .filter_map(|pod| Some((pod.metadata.name.as_deref()?, pod.metadata.annotations.as_ref()?)))
        .collect();
    let candidate = |(worker, carried): (&Worker, &super::load::WorkerLoad)| {
        let report = worker.report();
        let reported = report.map(|report| report.drain_id.clone()).filter(|id| Drain::is_ours(id));
        let mark = |annotation: &str| marks.get(worker.pod.as_str()).and_then(|marks| marks.get(annotation));
        let id = reported.clone().or_else(|| mark(DRAIN_ANNOTATION).cloned());
        let released = mark(DELETION_COST_ANNOTATION).is_some_and(|cost| cost == RELEASED_COST);
        let drained = report.is_some_and(|report| report.state() == imagegen_proto::v1::WorkerState::Drained);
        let drain = id.map(|id| {
            let accepted = reported.as_ref() == Some(&id);
            Drain { accepted, drained: accepted && drained, id }
        });
        let kind = match carried.class {
            Class::Leaving => return None,
            Class::Coming { .. } => Kind::Coming,
            Class::Serving | Class::NoCapacity => Kind::Working,
            Class::Draining if drain.is_some() => Kind::Working,
            Class::Draining => Kind::Busy,
            Class::Unknown | Class::Failed => Kind::Unreachable,
        };
        let pool_overhead_ratio = report.map_or(0.0, |report| report.pool_overhead_ratio);
        Some(Candidate {
            pod: worker.pod.clone(),
            kind,
            pressure: carried.pressure,
            pool_overhead_ratio,
            drain,
            released,
        })
    };
    seen.workers.iter().zip(&load.workers).filter_map(candidate).collect()
}

/// What the status says was wanted, when an earlier process decided.
fn earlier(ig: &ImageGen) -> Option<u32> {
    let status = ig.status.as_ref()?;
    let decided = status.autoscaling_mode == Some(AutoscalingMode::Operator);
    u32::try_from(status.desired_replicas).ok().filter(|_| decided)
}

fn replicas(deployment: &Deployment) -> Option<u32> {
    let replicas = deployment.spec.as_ref()?.replicas?;
    u32::try_from(replicas).ok()
}

/// Resource versions are ordered integers.
fn version(deployment: &Deployment) -> u128 {
    deployment.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Pods that the Deployment counts.
fn counted(deployment: Option<&Deployment>) -> u32 {
    let counted = deployment.and_then(|deployment| deployment.status.as_ref()).and_then(|status| status.replicas);
    counted.and_then(|counted| u32::try_from(counted).ok()).unwrap_or(0)
}

/// Some pod has an older template.
fn is_rolling(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let behind = status.observed_generation < deployment.metadata.generation;
    let outdated = status.updated_replicas.unwrap_or(0) < status.replicas.unwrap_or(0);
    // A generation also moves with the size. Until the controller has seen it, its numbers say nothing new.
    outdated && !behind
}

fn drain_timeout(ig: &ImageGen) -> Duration {
    ig.spec.drain_timeout.parse().unwrap_or(Duration::from_secs(120))
}

#[cfg(test)]
mod tests;
