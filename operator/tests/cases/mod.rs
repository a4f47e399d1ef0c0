//! The cases of `tests/api.rs`, and what they share.

mod children;
mod hpa;
mod leadership;
mod limits;
mod rollout;
mod scaling;
mod scripted;
mod status;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use imagegen_operator::crd::ImageGen;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Secret, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    Case,
    support::{
        apiserver::{ADMIN, ApiServer, OPERATOR},
        eventually,
    },
};

macro_rules! case {
    ($module:ident :: $name:ident) => {
        Case { name: stringify!($name), run: |server| Box::pin($module::$name(server)), alone: false }
    };
    ($module:ident :: $name:ident, alone) => {
        Case { alone: true, ..case!($module::$name) }
    };
}

pub(crate) fn all() -> Vec<Case> {
    vec![
        case!(children::an_imagegen_gets_its_children_and_a_restart_writes_nothing),
        case!(children::deleted_and_edited_children_come_back),
        case!(children::a_foreign_deployment_is_left_alone),
        case!(children::the_scale_subresource_reaches_the_deployment),
        case!(children::removed_fields_and_children_go_away),
        case!(limits::a_tenant_cannot_get_more_than_a_restricted_pod),
        case!(limits::an_unreadable_imagegen_disturbs_no_other, alone),
        case!(status::the_status_follows_the_deployment_sparingly),
        case!(status::a_missing_claim_is_named_and_found_later),
        case!(hpa::an_hpa_scales_a_fleet_through_the_metrics_api, alone),
        case!(scaling::load_adds_workers_and_a_drained_one_goes),
        case!(scaling::who_owns_the_size),
        case!(scaling::a_leader_that_is_killed_changes_nothing),
        case!(rollout::a_failed_rollout_is_rolled_back_and_a_fix_is_tried),
        case!(rollout::a_failed_rollout_is_paused_and_does_not_grow),
        case!(rollout::a_recycle_policy_that_cannot_work_is_a_condition),
        case!(leadership::of_two_operators_one_leads_and_the_other_takes_over),
        case!(leadership::a_leader_that_lost_its_lease_ends),
        case!(leadership::a_lost_authority_comes_back),
    ]
}

/// Access to one namespace.
pub(crate) struct World {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl World {
    /// A fresh namespace in which the operator's user has the operator's rights.
    pub(crate) async fn new(server: Arc<ApiServer>, namespace: &str) -> Self {
        let client = server.client(ADMIN).await;
        let namespace = server.namespace(namespace).await;
        grant_operator(&client, &namespace).await;
        Self { server, client, namespace }
    }

    pub(crate) fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) async fn create_imagegen(&self, name: &str, spec: Value) -> ImageGen {
        self.api::<ImageGen>().create(&PostParams::default(), &imagegen(name, &spec)).await.unwrap()
    }

    pub(crate) async fn edit_imagegen(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api::<ImageGen>().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until an object is there and as it should be.
    pub(crate) async fn until<K>(&self, name: &str, what: &str, check: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let api = self.api::<K>();
        eventually(&format!("{} {name}: {what}", K::kind(&())), async || {
            let found = api.get_opt(name).await.map_err(|error| error.to_string())?;
            let mut found = found.ok_or("there is none")?;
            found.meta_mut().managed_fields = None;
            if check(&found) { Ok(found) } else { Err(format!("{found:?}")) }
        })
        .await
    }

    /// Waits for a condition with this status and reason.
    pub(crate) async fn until_condition(&self, name: &str, kind: &str, status: &str, reason: &str) -> Condition {
        let found = self
            .until::<ImageGen>(name, &format!("{kind}={status} ({reason})"), |ig| {
                condition(ig, kind).is_some_and(|found| found.status == status && found.reason == reason)
            })
            .await;
        condition(&found, kind).cloned().unwrap()
    }

    /// Waits until all children of an ImageGen are there.
    pub(crate) async fn until_children(&self, name: &str) {
        let there = |_: &_| true;
        self.until::<ConfigMap>(&format!("{name}-worker"), "there", there).await;
        self.until::<Secret>(&format!("{name}-admin-tls"), "there", |_| true).await;
        self.until::<Service>(name, "there", |_| true).await;
        self.until::<Service>(&format!("{name}-headless"), "there", |_| true).await;
        self.until::<NetworkPolicy>(name, "there", |_| true).await;
        self.until::<PodDisruptionBudget>(name, "there", |_| true).await;
        self.until::<Deployment>(name, "there", |_| true).await;
    }

    /// Resource versions of all children: equal before and after means that nothing was written.
    pub(crate) async fn versions(&self) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        self.add_versions::<ConfigMap>(&mut versions).await;
        self.add_versions::<Secret>(&mut versions).await;
        self.add_versions::<Service>(&mut versions).await;
        self.add_versions::<NetworkPolicy>(&mut versions).await;
        self.add_versions::<PodDisruptionBudget>(&mut versions).await;
        self.add_versions::<Deployment>(&mut versions).await;
        versions
    }

    async fn add_versions<K>(&self, versions: &mut BTreeMap<String, String>)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        for object in self.api::<K>().list(&Default::default()).await.unwrap() {
            let name = format!("{} {}", K::kind(&()), object.name_any());
            versions.insert(name, object.resource_version().unwrap());
        }
    }
}

pub(crate) fn imagegen(name: &str, spec: &Value) -> ImageGen {
    let object = json!({
        "apiVersion": "imagegen.dev/v1alpha1", "kind": "ImageGen", "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// A spec that every operator accepts.
pub(crate) fn good_spec() -> Value {
    json!({"model": {"source": {"image": {"reference": "registry.invalid/model:1"}}}, "worker": {"device": "Cpu"}})
}

pub(crate) fn condition<'a>(ig: &'a ImageGen, kind: &str) -> Option<&'a Condition> {
    ig.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
}

/// Gives the operator's user, in one namespace, exactly the rights that the manifests give the operator.
async fn grant_operator(client: &Client, namespace: &str) {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/operator.yaml");
    let manifests = std::fs::read_to_string(manifests).unwrap();
    let mut granted = 0;
    for document in serde_yaml::Deserializer::from_str(&manifests) {
        let document = Value::deserialize(document).unwrap();
        let name = document["metadata"]["name"].as_str().unwrap_or_default();
        let wanted = [("ClusterRole", "imagegen-operator"), ("Role", "imagegen-operator-own")];
        if !wanted.contains(&(document["kind"].as_str().unwrap_or_default(), name)) {
            continue;
        }
        let role: Role =
            serde_json::from_value(json!({"metadata": {"name": name}, "rules": document["rules"]})).unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OPERATOR}],
        }))
        .unwrap();
        let created = PostParams::default();
        Api::<Role>::namespaced(client.clone(), namespace).create(&created, &role).await.unwrap();
        Api::<RoleBinding>::namespaced(client.clone(), namespace).create(&created, &binding).await.unwrap();
        granted += 1;
    }
    assert_eq!(granted, 2, "deploy/operator.yaml has the operator's two roles");
}
