//! What every reconcile shares, and what is remembered of each ImageGen between two of them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Client, Resource as _,
    api::DynamicObject,
    runtime::{events::Recorder, reflector::ObjectRef},
};
use tokio::sync::{mpsc, watch};

use super::{
    api_service::MetricsApiState,
    apply::Memory,
    error::Error,
    observe::{Owner, owner},
    types::OperatorSettings,
    write_status::Written,
};
use crate::{
    autoscale::{
        reports::{Key, Moment, Reports},
        scaler::{Looked, Scaler, Seen},
    },
    backoff::Backoff,
    caches::{Caches, Guarded, filtered},
    crd::ImageGen,
    lease::Leadership,
    metrics::Metrics,
    pki::{cert::Authority, store::CurrentAuthority},
};

/// Shared by all reconciles of one set of caches.
pub struct Context {
    /// To the API server.
    pub client: Client,
    /// What is watched.
    pub caches: Caches,
    /// The operator's flags.
    pub settings: OperatorSettings,
    /// Whether this pod may write.
    pub leadership: Leadership,
    /// Signs the certificates of the admin port.
    pub authority: CurrentAuthority,
    /// How it stands with the metrics API.
    pub metrics_api: watch::Receiver<MetricsApiState>,
    /// The operator's numbers.
    pub metrics: Metrics,
    /// Writes Kubernetes Events.
    pub recorder: Recorder,
    /// What the workers report.
    pub reports: Reports,
    /// The sizes.
    pub(super) scaler: Scaler,
    wake: mpsc::UnboundedSender<ObjectRef<Guarded>>,
    objects: Mutex<HashMap<Key, Tracked>>,
    authority_missed: OnceLock<Instant>,
}

/// How long a new leader gets to read or make the certificate authority before its absence is an error.
const AUTHORITY_GRACE: Duration = Duration::from_secs(15);

/// What is remembered of one ImageGen.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    uid: Option<String>,
    /// The children as they were applied last.
    pub(super) memory: Memory,
    /// The status as it was written last.
    pub(super) status: Option<Written>,
    /// What was said of an object that cannot be read.
    pub(super) unreadable: Option<String>,
    /// Failures in a row.
    pub(super) backoff: Backoff,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("caches", &self.caches)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// A context that remembers nothing yet.
    #[must_use]
    pub fn new(
        client: Client,
        caches: Caches,
        settings: OperatorSettings,
        leadership: Leadership,
        authority: CurrentAuthority,
        metrics: Metrics,
        recorder: Recorder,
    ) -> Self {
        Self {
            client,
            caches,
            settings,
            leadership,
            authority,
            metrics_api: watch::channel(MetricsApiState::NotWanted).1,
            metrics,
            recorder,
            reports: Reports::default(),
            scaler: Scaler::default(),
            wake: mpsc::unbounded_channel().0,
            objects: Mutex::default(),
            authority_missed: OnceLock::new(),
        }
    }

    /// The same, in an operator that serves the metrics API.
    #[must_use]
    pub fn with_metrics_api(self, metrics_api: watch::Receiver<MetricsApiState>) -> Self {
        Self { metrics_api, ..self }
    }

    /// With the reports of workers to decide on, and a way to wake the controller.
    #[must_use]
    pub fn with_scaling(self, reports: Reports, wake: mpsc::UnboundedSender<ObjectRef<Guarded>>) -> Self {
        Self { reports, wake, ..self }
    }

    /// What is remembered of an object, out of the map: one object is never reconciled twice at a time.
    pub(super) fn take(&self, meta: &ObjectMeta) -> Tracked {
        let found = self.objects().remove(&key(meta));
        found.filter(|tracked| tracked.uid == meta.uid).unwrap_or_default()
    }

    pub(super) fn put(&self, meta: &ObjectMeta, tracked: Tracked) {
        self.objects().insert(key(meta), Tracked { uid: meta.uid.clone(), ..tracked });
    }

    /// Counts a failure and returns the wait until the next try.
    pub(super) fn failed(&self, meta: &ObjectMeta) -> Duration {
        let mut objects = self.objects();
        let tracked = objects.entry(key(meta)).or_default();
        tracked.backoff.failed(Instant::now(), rand::random())
    }

    /// The certificate authority; `None` while a new leader is about to have it, which reconciles everything.
    pub(super) fn authority(&self) -> Result<Option<Arc<Authority>>, Error> {
        let authority = self.authority.borrow().clone();
        let late = authority.is_none() && self.authority_missed.get_or_init(Instant::now).elapsed() > AUTHORITY_GRACE;
        if late { Err(Error::NoAuthority) } else { Ok(authority) }
    }

    /// Drops what is remembered of an object that is gone.
    pub fn forget(&self, object: &ObjectRef<DynamicObject>) {
        let namespace = object.namespace.clone().unwrap_or_default();
        let key = (namespace, object.name.clone());
        self.objects().remove(&key);
        self.scaler.forget(&key);
    }

    /// Reconciles an ImageGen soon.
    pub fn wake(&self, object: ObjectRef<Guarded>) {
        // Without a controller to wake the process is ending.
        let _ = self.wake.send(object);
    }

    /// Namespace and name of every ImageGen that can be read and is not being deleted.
    pub fn imagegens(&self) -> Vec<Key> {
        let readable =
            filtered(&self.caches.imagegens, |found| found.0.is_ok() && found.meta().deletion_timestamp.is_none());
        readable.iter().map(|found| key(found.meta())).collect()
    }

    /// Looks at one ImageGen, as the caches have it; `None` when it is not there, or cannot be read.
    pub fn look(&self, key: &Key, now: Moment) -> Option<Looked> {
        let found = self.caches.imagegens.get(&ObjectRef::new(&key.1).within(&key.0))?;
        let imagegen = found.0.as_ref().ok().filter(|ig| ig.metadata.deletion_timestamp.is_none())?;
        Some(self.look_at(imagegen, key, now))
    }

    /// Looks at `imagegen`.
    pub(super) fn look_at(&self, imagegen: &ImageGen, key: &Key, now: Moment) -> Looked {
        let deployment = self.caches.deployments.get(&ObjectRef::new(&key.1).within(&key.0));
        let ours = deployment.as_deref().filter(|deployment| owner(*deployment, imagegen) == Owner::Us);
        let (workers, pods) = (self.reports.fleet(&key.0, &key.1, now), self.reports.pods(&key.0, &key.1));
        let seen = Seen { imagegen, deployment: ours, workers: &workers, pods: &pods };
        let looked = self.scaler.look(key, &seen, now);
        // Here, since a reconcile and the loop beside it both decide.
        if let Some(decision) = looked.decision.as_ref().filter(|_| self.leadership.holds()) {
            self.metrics.decided(decision.class.name(), decision.replicas.cmp(&decision.before));
        }
        looked
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Tracked>> {
        // The map is whole at every step: what a panicking holder left is usable.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
