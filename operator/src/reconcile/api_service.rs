//! The APIService through which the API server, and so every HPA, reaches the operator's metrics API.
//!
//! It is one for the whole cluster. The leader makes it when the first ImageGen wants an HPA, and removes it with the last
//! one; every kind of uninstall removes it too, since the chart's ClusterRole owns it. Kubernetes asks one version of the
//! group for all metrics of the cluster, so beside an adapter of someone else ours is never made.

use std::{convert::Infallible, time::Duration};

use k8s_openapi::{
    ByteString,
    api::rbac::v1::ClusterRole,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec, ServiceReference},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    FIELD_MANAGER,
    caches::{Caches, Guarded},
    crd::AutoscalingMode,
    lease::Leadership,
    metrics_api::{GROUP, VERSION},
    pki::store::CurrentAuthority,
};

/// The port of the operator's Service.
pub const PORT: i32 = 9443;

/// How often the caches are asked whether an ImageGen wants an HPA.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the cluster is asked while one does, or the last try failed: nothing tells us of foreign APIServices.
const CHECK_EVERY: Duration = Duration::from_secs(15);
/// The longest check.
const LIMIT: Duration = Duration::from_secs(10);

/// How it stands with the metrics API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MetricsApiState {
    /// No ImageGen wants it.
    #[default]
    NotWanted,
    /// It is there.
    Ours,
    /// The group is served by someone else.
    OwnedByOther {
        /// The other APIService.
        api_service: String,
        /// The Service behind it, or what is known instead.
        service: String,
    },
    /// It could not be put into the cluster.
    Failed(String),
}

/// What the APIService refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The operator's namespace.
    pub namespace: String,
    /// The operator's Service.
    pub service: String,
    /// The ClusterRole that owns the APIService.
    pub cluster_role: String,
}

/// What to do with the APIService.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// It is as it should be.
    Keep,
    /// Apply this one.
    Apply(Box<APIService>),
    /// Leave the group to its owner.
    Leave { api_service: String, service: String },
}

fn name() -> String {
    format!("{VERSION}.{GROUP}")
}

/// The APIService as it should be.
fn wanted(place: &Place, owner: OwnerReference, bundle: &str) -> APIService {
    APIService {
        metadata: ObjectMeta {
            name: Some(name()),
            labels: Some(
                [("app.kubernetes.io/managed-by", FIELD_MANAGER), ("app.kubernetes.io/part-of", "imagegen")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(APIServiceSpec {
            group: Some(GROUP.to_owned()),
            version: Some(VERSION.to_owned()),
            // As other metrics adapters have them.
            group_priority_minimum: 100,
            version_priority: 100,
            service: Some(ServiceReference {
                namespace: Some(place.namespace.clone()),
                name: Some(place.service.clone()),
                port: Some(PORT),
            }),
            ca_bundle: Some(ByteString(bundle.as_bytes().to_vec())),
            ..APIServiceSpec::default()
        }),
        ..APIService::default()
    }
}

fn is_ours(found: &APIService, place: &Place) -> bool {
    let service = found.spec.as_ref().and_then(|spec| spec.service.as_ref());
    service.is_some_and(|service| {
        service.namespace.as_ref() == Some(&place.namespace) && service.name.as_ref() == Some(&place.service)
    })
}

/// Decides from all APIServices of the cluster. Pure.
fn step(found: &[APIService], place: &Place, wanted: APIService) -> Step {
    let of_group = |found: &&APIService| found.spec.as_ref().and_then(|spec| spec.group.as_deref()) == Some(GROUP);
    let (ours, foreign): (Vec<_>, Vec<_>) =
        found.iter().filter(of_group).partition(|found| is_ours(found, place) && found.name_any() == name());
    if let Some(foreign) = foreign.first() {
        let service = foreign.spec.as_ref().and_then(|spec| spec.service.clone());
        let service = service.map_or_else(
            || "the API server itself".to_owned(),
            |service| format!("Service {}/{}", service.namespace.unwrap_or_default(), service.name.unwrap_or_default()),
        );
        return Step::Leave { api_service: foreign.name_any(), service };
    }
    let fits = |found: &&&APIService| {
        let owners = found.metadata.owner_references.as_deref().unwrap_or_default();
        let ours = wanted.metadata.owner_references.as_deref().unwrap_or_default();
        found.spec == wanted.spec && ours.iter().all(|owner| owners.contains(owner))
    };
    if ours.iter().any(|found| fits(&found)) { Step::Keep } else { Step::Apply(Box::new(wanted)) }
}

/// Whether some ImageGen wants an HPA.
fn is_wanted(scopes: &[Caches]) -> bool {
    let wants = |object: &Guarded| {
        let Ok(ig) = &object.0 else { return false };
        let mode = ig.spec.autoscaling.as_ref().map(|scaling| scaling.mode);
        ig.metadata.deletion_timestamp.is_none() && mode == Some(AutoscalingMode::HorizontalPodAutoscaler)
    };
    scopes.iter().any(|caches| caches.imagegens.find(|object| wants(object)).is_some())
}

/// Keeps the APIService right while this process leads, until `stop`. What stands is published.
///
/// # Errors
/// Never: what fails is published, logged and tried again.
pub async fn run(
    client: Client,
    scopes: Vec<Caches>,
    place: Place,
    authority: CurrentAuthority,
    mut leadership: Leadership,
    publish: watch::Sender<MetricsApiState>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let ready = async {
        leadership.gained().await;
        futures::future::join_all(scopes.iter().map(Caches::synced)).await;
    };
    if stop.run_until_cancelled(ready).await.is_none() {
        return Ok(());
    }
    let tender = Tender { client, place, authority };
    let mut last: Option<(bool, String, Instant)> = None;
    loop {
        let wanted = is_wanted(&scopes);
        let bundle = tender.authority.borrow().as_ref().map(|authority| authority.bundle().to_owned());
        let due = last.as_ref().is_none_or(|(was_wanted, with, at)| {
            let settled = !wanted && *publish.borrow() == MetricsApiState::NotWanted;
            *was_wanted != wanted
                || (wanted && bundle.as_ref().is_some_and(|bundle| bundle != with))
                || (!settled && at.elapsed() >= CHECK_EVERY)
        });
        if due && (!wanted || bundle.is_some()) {
            let bundle = bundle.unwrap_or_default();
            let state = tender.look(wanted, &bundle).await;
            if let MetricsApiState::Failed(error) = &state {
                warn!(error, "The APIService of the metrics API could not be tended.");
            }
            last = Some((wanted, bundle, Instant::now()));
            publish.send_if_modified(|before| {
                let changed = *before != state;
                *before = state;
                changed
            });
        }
        if stop.run_until_cancelled(time::sleep(LOOK_EVERY)).await.is_none() {
            return Ok(());
        }
    }
}

struct Tender {
    client: Client,
    place: Place,
    authority: CurrentAuthority,
}

impl Tender {
    async fn look(&self, wanted: bool, bundle: &str) -> MetricsApiState {
        let looked = async { if wanted { self.tend(bundle).await } else { self.remove().await } };
        match time::timeout(LIMIT, looked).await {
            Ok(Ok(state)) => state,
            Ok(Err(error)) => MetricsApiState::Failed(error.to_string()),
            Err(_) => MetricsApiState::Failed(format!("no answer within {} s", LIMIT.as_secs())),
        }
    }

    async fn tend(&self, bundle: &str) -> Result<MetricsApiState, kube::Error> {
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        let Some(role) = roles.get_opt(&self.place.cluster_role).await? else {
            let message = format!(
                "the ClusterRole {} that has to own the APIService does not exist: name the chart's in \
                 --metrics-api-cluster-role",
                self.place.cluster_role
            );
            return Ok(MetricsApiState::Failed(message));
        };
        let owner = OwnerReference {
            api_version: ClusterRole::api_version(&()).into_owned(),
            kind: ClusterRole::kind(&()).into_owned(),
            name: role.name_any(),
            uid: role.uid().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let api: Api<APIService> = Api::all(self.client.clone());
        let found = api.list(&ListParams::default()).await?.items;
        match step(&found, &self.place, wanted(&self.place, owner, bundle)) {
            Step::Keep => Ok(MetricsApiState::Ours),
            Step::Apply(wanted) => {
                api.patch(&name(), &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&wanted)).await?;
                info!(api_service = name(), "Applied the APIService of the metrics API.");
                Ok(MetricsApiState::Ours)
            }
            Step::Leave { api_service, service } => {
                self.remove().await?;
                Ok(MetricsApiState::OwnedByOther { api_service, service })
            }
        }
    }

    async fn remove(&self) -> Result<MetricsApiState, kube::Error> {
        let api: Api<APIService> = Api::all(self.client.clone());
        if let Some(found) = api.get_opt(&name()).await?.filter(|found| is_ours(found, &self.place)) {
            let exactly = Preconditions { uid: found.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
            match api.delete(&name(), &params).await {
                Ok(_) => info!(api_service = name(), "Removed the APIService of the metrics API: nobody needs it."),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(MetricsApiState::NotWanted)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn place() -> Place {
        Place { namespace: "system".into(), service: "operator".into(), cluster_role: "role".into() }
    }

    fn owner() -> OwnerReference {
        OwnerReference { kind: "ClusterRole".into(), uid: "u".into(), ..OwnerReference::default() }
    }

    fn ours(bundle: &str) -> APIService {
        wanted(&place(), owner(), bundle)
    }

    fn other(version: &str, group: &str) -> APIService {
        serde_json::from_value(json!({
            "metadata": {"name": format!("{version}.{group}")},
            "spec": {
                "group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"namespace": "monitoring", "name": "adapter"},
            },
        }))
        .unwrap()
    }

    fn leave(name: &str) -> Step {
        Step::Leave { api_service: name.into(), service: "Service monitoring/adapter".into() }
    }

    #[rstest]
    #[case::none_of_the_group(vec![other("v1", "apps"), other("v1beta1", "external.metrics.k8s.io")], Step::Apply(Box::new(ours("new"))))]
    #[case::as_it_should_be(vec![ours("new")], Step::Keep)]
    #[case::with_an_older_authority(vec![ours("old")], Step::Apply(Box::new(ours("new"))))]
    #[case::an_adapter_in_another_version(vec![other("v1beta1", GROUP)], leave("v1beta1.custom.metrics.k8s.io"))]
    #[case::an_adapter_in_our_version(vec![other(VERSION, GROUP)], leave("v1beta2.custom.metrics.k8s.io"))]
    #[case::an_adapter_beside_ours(vec![ours("new"), other("v1beta1", GROUP)], leave("v1beta1.custom.metrics.k8s.io"))]
    fn the_group_is_taken_only_when_free(#[case] found: Vec<APIService>, #[case] expected: Step) {
        assert_eq!(step(&found, &place(), ours("new")), expected);
    }

    #[test]
    fn a_new_owner_is_written() {
        let mut orphan = ours("new");
        orphan.metadata.owner_references = None;
        assert_eq!(step(&[orphan], &place(), ours("new")), Step::Apply(Box::new(ours("new"))));
    }
}
