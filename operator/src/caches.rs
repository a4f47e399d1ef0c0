//! What the operator watches: one set of caches for each served namespace, or one for all namespaces.

use std::{fmt, sync::Arc};

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
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

use crate::crd::ImageGen;

/// An ImageGen, or what is left of one that this version cannot read: such an object disturbs no other.
pub type Guarded = DeserializeGuard<ImageGen>;

/// Only children of ImageGens carry both.
const CHILD_SELECTOR: &str = "app.kubernetes.io/managed-by=imagegen-operator,imagegen.dev/name";
/// On every child: the ImageGen that it belongs to.
const NAME_LABEL: &str = "imagegen.dev/name";

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
    /// Worker pods, without their specs.
    pub pods: Store<Pod>,
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches").field("imagegens", &self.imagegens.len()).finish_non_exhaustive()
    }
}

/// A watch died for good, which its retries should prevent.
#[derive(Debug, thiserror::Error)]
#[error("a watch ended before its first answer")]
pub struct WatchEnded;

impl Caches {
    /// Completes when every cache holds what the API server had.
    ///
    /// # Errors
    /// When a watch ended before.
    pub async fn synced(&self) -> Result<(), WatchEnded> {
        let Self { imagegens, deployments, services, config_maps, disruption_budgets, network_policies, pods } = self;
        let all = futures::join!(
            imagegens.wait_until_ready(),
            deployments.wait_until_ready(),
            services.wait_until_ready(),
            config_maps.wait_until_ready(),
            disruption_budgets.wait_until_ready(),
            network_policies.wait_until_ready(),
            pods.wait_until_ready(),
        );
        let (a, b, c, d, e, f, g) = all;
        a.and(b).and(c).and(d).and(e).and(f).and(g).map_err(|_| WatchEnded)
    }
}

/// The caches of one namespace, or of all, and a controller that runs on them.
pub fn watch(client: &Client, namespace: Option<&str>) -> (Caches, Controller<Guarded>) {
    let (imagegens, writer) = reflector::store::<Guarded>();
    // The operator's own status writes leave the generation as it is, so they cause no reconcile.
    let specs = watcher(api::<Guarded>(client, namespace), watcher::Config::default())
        .default_backoff()
        .modify(|object| object.meta_mut().managed_fields = None)
        .reflect(writer)
        .applied_objects()
        .predicate_filter(predicates::generation, Default::default());
    let controller = Controller::for_stream(specs, imagegens.clone());

    let (deployments, controller) = owned(controller, client, namespace);
    let (services, controller) = owned(controller, client, namespace);
    let (config_maps, controller) = owned(controller, client, namespace);
    let (disruption_budgets, controller) = owned(controller, client, namespace);
    let (network_policies, controller) = owned(controller, client, namespace);
    let (pods, stream) = children::<Pod>(client, namespace, without_spec);
    let controller = controller.watches_stream(stream, |pod| owner_by_label(&pod));

    let caches = Caches { imagegens, deployments, services, config_maps, disruption_budgets, network_policies, pods };
    (caches, controller)
}

fn owned<K>(
    controller: Controller<Guarded>,
    client: &Client,
    namespace: Option<&str>,
) -> (Store<K>, Controller<Guarded>)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, stream) = children::<K>(client, namespace, |_| {});
    (store, controller.owns_stream(stream))
}

/// A cache of children, and the stream of those that changed or went away.
fn children<K>(
    client: &Client,
    namespace: Option<&str>,
    strip: fn(&mut K),
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + 'static)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store::<K>();
    let stream = watcher(api::<K>(client, namespace), watcher::Config::default().labels(CHILD_SELECTOR))
        .default_backoff()
        .modify(move |object| {
            object.meta_mut().managed_fields = None;
            strip(object);
        })
        .reflect(writer)
        .touched_objects()
        .boxed();
    (store, stream)
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
