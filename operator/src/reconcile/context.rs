//! What every reconcile shares, and what is remembered of each ImageGen between two of them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Client,
    api::DynamicObject,
    runtime::{events::Recorder, reflector::ObjectRef},
};
use tokio::sync::watch;

use super::{
    api_service::MetricsApiState, apply::Memory, error::Error, types::OperatorSettings, write_status::Written,
};
use crate::{
    backoff::Backoff,
    caches::Caches,
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
    objects: Mutex<HashMap<Key, Tracked>>,
    authority_missed: OnceLock<Instant>,
}

/// How long a new leader gets to read or make the certificate authority before its absence is an error.
const AUTHORITY_GRACE: Duration = Duration::from_secs(15);

type Key = (String, String);

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
            objects: Mutex::default(),
            authority_missed: OnceLock::new(),
        }
    }

    /// The same, in an operator that serves the metrics API.
    #[must_use]
    pub fn with_metrics_api(self, metrics_api: watch::Receiver<MetricsApiState>) -> Self {
        Self { metrics_api, ..self }
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
        self.objects().remove(&(namespace, object.name.clone()));
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Tracked>> {
        // The map is whole at every step: what a panicking holder left is usable.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
