//! Reads: what the cluster looks like around one ImageGen. From the caches, except for what no cache may hold.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Event, PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ListParams,
    runtime::reflector::{ObjectRef, Store},
};

use super::{
    build::names::NAME_LABEL,
    error::Error,
    types::{ClaimFact, Facts, Fleet},
};
use crate::{
    caches::{Caches, filtered},
    crd::ImageGen,
};

/// How old a pod that does not start is before its events are read: most start sooner.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Pods whose events are read at a time. The pods of an ImageGen are alike, and so are their troubles.
const MAX_STUCK_PODS: usize = 2;
/// Events read of one pod.
const MAX_EVENTS: u32 = 20;

/// What validation asks the cluster about.
///
/// # Errors
/// When the claim cannot be read.
pub async fn facts(client: &Client, ig: &ImageGen, namespace: &str) -> Result<Facts, Error> {
    let claim = match &ig.spec.model.source.persistent_volume_claim {
        None => ClaimFact::NotAsked,
        Some(source) => {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            let what = || format!("PersistentVolumeClaim {}", source.claim_name);
            claims.get_opt(&source.claim_name).await.map_err(|error| unread(what(), error))?.map_or(
                ClaimFact::Missing,
                |claim| {
                    let bound = claim.status.and_then(|status| status.access_modes);
                    let asked = claim.spec.and_then(|spec| spec.access_modes);
                    ClaimFact::Found { access_modes: bound.or(asked).unwrap_or_default() }
                },
            )
        }
    };
    Ok(Facts { claim })
}

/// The children that the status speaks of.
///
/// # Errors
/// When the events of a stuck pod cannot be read.
pub async fn fleet(client: &Client, caches: &Caches, ig: &ImageGen, namespace: &str) -> Result<Fleet, Error> {
    let name = ig.name_any();
    let belongs =
        |pod: &Pod| pod.metadata.namespace.as_deref() == Some(namespace) && pod.labels().get(NAME_LABEL) == Some(&name);
    let pods: Vec<Pod> = filtered(&caches.pods, belongs).iter().map(|pod| Pod::clone(pod)).collect();
    let mut events = Vec::new();
    let now = Timestamp::now();
    for pod in pods.iter().filter(|pod| is_stuck(pod, now)).take(MAX_STUCK_PODS) {
        let of_pod = format!("involvedObject.uid={},type=Warning", pod.uid().unwrap_or_default());
        let list = ListParams::default().fields(&of_pod).limit(MAX_EVENTS);
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let what = || format!("events of pod {}", pod.name_any());
        events.extend(api.list(&list).await.map_err(|error| unread(what(), error))?);
    }
    let deployment = ours(&caches.deployments, ig, &name, namespace);
    let hpa = ours(&caches.hpas, ig, &name, namespace);
    Ok(Fleet { deployment, hpa, pods, events, ..Fleet::default() })
}

/// The child of this name in its cache.
fn ours<K>(cache: &Store<K>, ig: &ImageGen, name: &str, namespace: &str) -> Option<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let found = cache.get(&ObjectRef::new(name).within(namespace))?;
    (owner(found.as_ref(), ig) == Owner::Us).then(|| Arc::unwrap_or_clone(found))
}

/// Whether some pod is on its way, so that its events are worth another look soon.
#[must_use]
pub fn waits_for_pods(fleet: &Fleet) -> bool {
    fleet.pods.iter().any(|pod| !has_started(pod))
}

fn is_stuck(pod: &Pod, now: Timestamp) -> bool {
    let age = pod.creation_timestamp().map(|created| now.duration_since(created.0));
    !has_started(pod) && age.is_some_and(|age| age.unsigned_abs() >= STUCK_AFTER)
}

/// Its containers were created once. What goes wrong later stands in the pod's own status.
fn has_started(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    !statuses.is_empty() && statuses.iter().all(|status| status.container_id.is_some())
}

/// Whom a found object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This ImageGen.
    Us,
    /// An ImageGen of the same name that was deleted; the garbage collector will take it.
    Predecessor,
    /// Someone else.
    Foreign,
}

/// Whom `object` belongs to, seen from `ig`.
pub fn owner<K: Resource>(object: &K, ig: &ImageGen) -> Owner {
    let group = format!("{}/", ImageGen::group(&()));
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    let ours = |uid: &str| ig.metadata.uid.as_deref() == Some(uid);
    if owners.iter().any(|owner| ours(&owner.uid)) {
        Owner::Us
    } else if owners.iter().any(|owner| {
        owner.kind == ImageGen::kind(&()) && owner.api_version.starts_with(&group) && owner.name == ig.name_any()
    }) {
        Owner::Predecessor
    } else {
        Owner::Foreign
    }
}

/// The Secret of the admin port's certificate. It is read by name: a right to list or watch Secrets would be a right to
/// read those of users.
///
/// # Errors
/// When it cannot be read.
pub async fn admin_secret(client: &Client, name: &str, namespace: &str) -> Result<Option<Secret>, Error> {
    by_name(client, name, namespace).await
}

/// An object that is not in its cache: it may be younger than the cache, or not carry our labels.
///
/// # Errors
/// When it cannot be read.
pub async fn by_name<K>(client: &Client, name: &str, namespace: &str) -> Result<Option<K>, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.get_opt(name).await.map_err(|error| unread(format!("{} {name}", K::kind(&())), error))
}

fn unread(what: String, error: kube::Error) -> Error {
    Error::Read { what, source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{ContainerStatus, PodStatus},
        apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    };
    use rstest::rstest;

    use super::*;

    fn imagegen() -> ImageGen {
        let spec = serde_json::from_value(serde_json::json!({"model": {"source": {"hostPath": {"path": "/m"}}}}));
        let mut ig = ImageGen::new("turbo", spec.unwrap());
        ig.metadata.uid = Some("u1".into());
        ig
    }

    #[rstest]
    #[case::ours("imagegen.dev/v1alpha1", "turbo", "u1", Owner::Us)]
    #[case::of_a_deleted_one("imagegen.dev/v1alpha1", "turbo", "u0", Owner::Predecessor)]
    #[case::of_another_imagegen("imagegen.dev/v1alpha1", "other", "u2", Owner::Foreign)]
    #[case::of_another_group("other.dev/v1", "turbo", "u0", Owner::Foreign)]
    fn a_child_is_ours_by_its_owner_reference(
        #[case] api_version: &str,
        #[case] name: &str,
        #[case] uid: &str,
        #[case] expected: Owner,
    ) {
        let mut pod = Pod::default();
        assert_eq!(owner(&pod, &imagegen()), Owner::Foreign);
        pod.metadata.owner_references = Some(vec![OwnerReference {
            api_version: api_version.into(),
            kind: "ImageGen".into(),
            name: name.into(),
            uid: uid.into(),
            ..OwnerReference::default()
        }]);
        assert_eq!(owner(&pod, &imagegen()), expected);
    }

    #[rstest]
    #[case::young(5, None, false)]
    #[case::waiting_long(20, None, true)]
    #[case::started(20, Some("containerd://1"), false)]
    fn a_pod_without_containers_is_stuck_after_a_while(
        #[case] age_seconds: i64,
        #[case] container: Option<&str>,
        #[case] stuck: bool,
    ) {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut pod = Pod::default();
        pod.metadata.creation_timestamp = Some(Time(now - Duration::from_secs(age_seconds.unsigned_abs())));
        pod.status = Some(PodStatus {
            container_statuses: Some(vec![ContainerStatus {
                container_id: container.map(str::to_owned),
                ..ContainerStatus::default()
            }]),
            ..PodStatus::default()
        });
        assert_eq!(is_stuck(&pod, now), stuck);
    }
}
