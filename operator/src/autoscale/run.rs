//! The leader's loop: looks when reports change and when a look is due, wakes the reconcile that applies the size, and
//! tells workers to drain and to go back to work.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use imagegen_proto::v1::{DrainRequest, ResumeRequest};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::reflector::ObjectRef,
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{debug, info, warn};

use super::{
    drain::{Action, Drain},
    reports::{Key, Moment, Reports},
    scaler::{DELETION_COST_ANNOTATION, DRAIN_ANNOTATION, Looked, RELEASED_COST},
    view::View,
};
use crate::{FIELD_MANAGER, caches::Guarded, reconcile::Context};

/// Reports that come together are one look.
const GATHER: Duration = Duration::from_millis(100);
/// How often ImageGens are asked whether a look is due.
const TICK: Duration = Duration::from_secs(1);
/// The least time between two reconciles for the sake of numbers in the status.
const NUMBERS_PAUSE: Duration = Duration::from_secs(30);
/// The longest word with a worker, or write of its pod.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs until `stop`, from the moment on that this process leads. One context for each scope.
///
/// # Errors
/// Never: what fails is tried again.
pub async fn run(contexts: Vec<Arc<Context>>, reports: Reports, stop: CancellationToken) -> Result<(), Infallible> {
    for context in &contexts {
        let mut leadership = context.leadership.clone();
        tokio::select! {
            () = leadership.gained() => {}
            () = stop.cancelled() => return Ok(()),
        }
        tokio::select! {
            () = context.caches.synced() => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
    let mut scaling = Loop {
        contexts,
        reports: reports.clone(),
        watched: HashMap::new(),
        told: JoinSet::new(),
        busy: HashSet::new(),
    };
    let mut tick = time::interval(TICK);
    loop {
        tokio::select! {
            changed = reports.changed() => {
                for key in changed {
                    scaling.look(&key);
                }
                time::sleep(GATHER).await;
            }
            _ = tick.tick() => scaling.look_where_due(),
            Some(done) = scaling.told.join_next() => if let Ok(pod) = done { scaling.busy.remove(&pod); },
            () = stop.cancelled() => break,
        }
    }
    scaling.told.shutdown().await;
    Ok(())
}

/// Namespace and name.
type PodKey = (String, String);

struct Loop {
    contexts: Vec<Arc<Context>>,
    reports: Reports,
    watched: HashMap<Key, Watched>,
    /// Workers that are being spoken to.
    told: JoinSet<PodKey>,
    busy: HashSet<PodKey>,
}

struct Watched {
    due: Instant,
    /// As it was when a reconcile was woken last.
    view: View,
    woken: Instant,
}

impl Loop {
    fn look_where_due(&mut self) {
        let now = Instant::now();
        let all: HashSet<Key> = self.contexts.iter().flat_map(|context| context.imagegens()).collect();
        self.watched.retain(|key, _| all.contains(key));
        for key in all {
            if self.watched.get(&key).is_none_or(|watched| watched.due <= now) {
                self.look(&key);
            }
        }
    }

    fn look(&mut self, key: &Key) {
        let found = self.contexts.iter().find_map(|context| Some((context.clone(), context.look(key, Moment::now())?)));
        let Some((context, looked)) = found else { return };
        let Looked { view, actions, next_look, .. } = looked;
        if !context.leadership.holds() {
            return;
        }
        let now = Instant::now();
        let wakes = self.watched.get(key).is_none_or(|watched| is_worth_a_reconcile(watched, &view, now));
        if wakes {
            context.wake(ObjectRef::<Guarded>::new(&key.1).within(&key.0));
            self.watched.insert(key.clone(), Watched { due: now + next_look, view, woken: now });
        } else if let Some(watched) = self.watched.get_mut(key) {
            watched.due = now + next_look;
        }
        for action in actions {
            self.tell(&context, key, action);
        }
    }

    /// Speaks to a worker beside the loop, unless somebody does already.
    fn tell(&mut self, context: &Arc<Context>, key: &Key, action: Action) {
        let (Action::Drain { pod, .. } | Action::Release { pod } | Action::Resume { pod, .. }) = &action;
        let about = (key.0.clone(), pod.clone());
        if !self.busy.insert(about.clone()) {
            return;
        }
        let (context, reports) = (context.clone(), self.reports.clone());
        self.told.spawn(async move {
            let told = match &action {
                Action::Drain { id, .. } => drain(&context, &reports, &about, id).await,
                Action::Release { .. } => {
                    annotate(&context, &about, json!({DELETION_COST_ANNOTATION: RELEASED_COST})).await
                }
                Action::Resume { id, .. } => resume(&context, &reports, &about, id.as_deref()).await,
            };
            match told {
                Ok(()) => info!(namespace = about.0, ?action, "Told a worker."),
                Err(error) => warn!(namespace = about.0, ?action, error, "A worker could not be told; trying again."),
            }
            about
        });
    }
}

fn is_worth_a_reconcile(watched: &Watched, view: &View, now: Instant) -> bool {
    let size = |view: &View| (view.desired, view.replicas, view.pause.clone(), view.news.len());
    let says = |view: &View| (view.ignores_replicas, view.reports_missing, view.is_starved());
    let old = &watched.view;
    let draining = |view: &View| view.shown.workers.values().filter(|worker| worker.draining).count();
    if size(old) != size(view) || says(old) != says(view) || draining(old) != draining(view) {
        return true;
    }
    let pressure = |view: &View| view.shown.memory.as_ref().map(|memory| memory.pressure);
    let moved = match (pressure(old), pressure(view)) {
        (Some(old), Some(new)) => (old - new).abs() >= 0.05,
        (old, new) => old.is_some() != new.is_some(),
    };
    moved && now.duration_since(watched.woken) >= NUMBERS_PAUSE
}

/// Marks the pod, then tells its worker: a mark without a drain is told again, a drain without a mark would be found in
/// the report only.
async fn drain(context: &Context, reports: &Reports, pod: &PodKey, id: &str) -> Result<(), String> {
    annotate(context, pod, json!({DRAIN_ANNOTATION: id})).await?;
    let drain = Drain { id: id.to_owned(), accepted: false, drained: false };
    let left = Duration::try_from(drain.deadline().duration_since(Timestamp::now())).unwrap_or_default();
    // 0 would be the worker's own timeout.
    let timeout_seconds = left.as_secs_f64().max(1.0);
    let mut admin = reports.admin(&pod.0, &pod.1).ok_or("no connection to it")?;
    let request = DrainRequest { id: id.to_owned(), timeout_seconds, exit: false };
    let answer = time::timeout(LIMIT, admin.drain(request)).await.map_err(|_| "no answer in time")?;
    answer.map(|_| ()).map_err(|status| status.message().to_owned())
}

/// Takes the drain back at the worker, then the marks from its pod.
async fn resume(context: &Context, reports: &Reports, pod: &PodKey, id: Option<&str>) -> Result<(), String> {
    if let (Some(id), Some(mut admin)) = (id, reports.admin(&pod.0, &pod.1)) {
        let request = ResumeRequest { id: id.to_owned() };
        match time::timeout(LIMIT, admin.resume(request)).await.map_err(|_| "no answer in time")? {
            Ok(_) => {}
            // It knows of no such drain, or ends already: nothing is left to take back.
            Err(status) if status.code() == Code::FailedPrecondition => {
                debug!(pod = pod.1, namespace = pod.0, reason = status.message(), "Nothing to take back.");
            }
            Err(status) => return Err(status.message().to_owned()),
        }
    }
    annotate(context, pod, json!({DRAIN_ANNOTATION: null, DELETION_COST_ANNOTATION: null})).await
}

async fn annotate(context: &Context, (namespace, name): &PodKey, annotations: Value) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let written = time::timeout(LIMIT, api.patch_metadata(name, &params, &patch)).await;
    match written.map_err(|_| "the API server did not answer in time")? {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
