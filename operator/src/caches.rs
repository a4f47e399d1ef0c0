//! What the operator watches: one set of caches for each served namespace, or one for all namespaces.

use std::{fmt, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Pod, PodSpec, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        Controller, WatchStreamExt as _, predicates,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{crd::ImageGen, reconcile::build::names::NAME_LABEL};

/// An ImageGen, or what is left of one that this version cannot read: such an object disturbs no other.
pub type Guarded = DeserializeGuard<ImageGen>;

/// Only children of ImageGens carry both.
const CHILD_SELECTOR: &str = "app.kubernetes.io/managed-by=imagegen-operator,imagegen.dev/name";

/// Read access to everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// All ImageGens.
    pub imagegens: Store<Guarded>,
    /// Children.
    pub deployments: Store<Deployment>,
    /// Children.
    pub services: Store<Service>,
    /// Children.
    pub config_maps: Store<ConfigMap>,
    /// Children.
    pub disruption_budgets: Store<PodDisruptionBudget>,
    /// Children.
    pub network_policies: Store<NetworkPolicy>,
    /// Children.
    pub hpas: Store<HorizontalPodAutoscaler>,
    /// Worker pods, without their specs.
    pub pods: Store<Pod>,
    /// Marked at every change of a pod.
    pub pods_changed: watch::Receiver<()>,
    /// One latch a cache. `Store::wait_until_ready` wakes only one of several waiters, and the controller is one.
    synced: Vec<CancellationToken>,
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches").field("imagegens", &self.imagegens.len()).finish_non_exhaustive()
    }
}

impl Caches {
    /// Whether every cache holds what the API server had when its watch began.
    #[must_use]
    pub fn are_synced(&self) -> bool {
        self.synced.iter().all(CancellationToken::is_cancelled)
    }

    /// Completes when every cache holds what the API server had.
    pub async fn synced(&self) {
        for latch in &self.synced {
            latch.cancelled().await;
        }
    }
}

/// The caches of one namespace, or of all, and a controller that runs on them.
pub fn watch(client: &Client, namespace: Option<&str>) -> (Caches, Controller<Guarded>) {
    let mut watches = Watches { client, namespace, synced: Vec::new() };
    let (imagegens, events) = watches.cache::<Guarded>(watcher::Config::default(), |_| {});
    // The operator's own status writes leave the generation as it is, so they cause no reconcile.
    let specs = events.applied_objects().predicate_filter(predicates::generation, Default::default());
    let controller = Controller::for_stream(specs, imagegens.clone());

    let (deployments, controller) = watches.owned(controller);
    let (services, controller) = watches.owned(controller);
    let (config_maps, controller) = watches.owned(controller);
    let (disruption_budgets, controller) = watches.owned(controller);
    let (network_policies, controller) = watches.owned(controller);
    let (hpas, controller) = watches.owned(controller);
    let (pods, events) = watches.cache::<Pod>(children(), without_spec);
    let (changed, pods_changed) = watch::channel(());
    let events = events.inspect_ok(move |_| {
        changed.send_replace(());
    });
    let controller = controller.watches_stream(events.touched_objects(), |pod| owner_by_label(&pod));

    let synced = watches.synced;
    let caches = Caches {
        imagegens,
        deployments,
        services,
        config_maps,
        disruption_budgets,
        network_policies,
        hpas,
        pods,
        pods_changed,
        synced,
    };
    (caches, controller)
}

struct Watches<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    synced: Vec<CancellationToken>,
}

impl Watches<'_> {
    /// A cache of children, and the controller woken by those that change or go away.
    fn owned<K>(&mut self, controller: Controller<Guarded>) -> (Store<K>, Controller<Guarded>)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (store, events) = self.cache::<K>(children(), |_| {});
        (store, controller.owns_stream(events.touched_objects()))
    }

    /// A cache, and the events that fill it while they are polled.
    fn cache<K>(&mut self, config: watcher::Config, strip: fn(&mut K)) -> (Store<K>, Events<K>)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (store, writer) = reflector::store::<K>();
        let latch = CancellationToken::new();
        self.synced.push(latch.clone());
        let events = watcher(api::<K>(self.client, self.namespace), config)
            .default_backoff()
            .modify(move |object| {
                object.meta_mut().managed_fields = None;
                strip(object);
            })
            .reflect(writer)
            .inspect_ok(move |event| {
                if matches!(event, watcher::Event::InitDone) {
                    latch.cancel();
                }
            });
        (store, events.boxed())
    }
}

type Events<K> = BoxStream<'static, Result<watcher::Event<K>, watcher::Error>>;

fn children() -> watcher::Config {
    watcher::Config::default().labels(CHILD_SELECTOR)
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Of a pod only metadata and status matter, and where it runs.
fn without_spec(pod: &mut Pod) {
    pod.spec = pod.spec.take().map(|spec| PodSpec { node_name: spec.node_name, ..PodSpec::default() });
}

fn owner_by_label(pod: &Pod) -> Option<ObjectRef<Guarded>> {
    let name = pod.labels().get(NAME_LABEL)?;
    Some(ObjectRef::new(name).within(pod.namespace()?.as_str()))
}

/// The objects of `store` that `keep` wants.
pub fn filtered<K>(store: &Store<K>, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state_filter(keep)
}
