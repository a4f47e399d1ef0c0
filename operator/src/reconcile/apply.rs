//! Writes: brings the children to what is desired, by server-side apply, and removes those no longer wanted.
//!
//! A child is written only when [`super::drift`] gives a reason. Nothing is written over, or removed, that lacks our
//! owner reference; one such object holds back all writes, since half a fleet helps nobody.

use std::{
    collections::HashMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::reflector::{ObjectRef, Store},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tracing::{info, warn};

use super::{
    drift::{self, LastApplied, Why},
    error::{Error, is_refusal},
    observe::{self, Owner, owner},
    types::{Applied, ApplyFailure, ApplyFailureCause, Desired},
};
use crate::{
    FIELD_MANAGER,
    caches::{Caches, filtered},
    crd::ImageGen,
    pki::{
        cert::{Authority, Usage},
        store::renewed_leaf,
    },
};

/// The least time between two writes of one child against the same opponent: two writers that disagree do not spin.
pub const DRIFT_PAUSE: Duration = Duration::from_secs(1);

/// What is remembered between reconciles of one ImageGen. Losing it costs writes that change nothing.
#[derive(Debug, Default)]
pub struct Memory {
    children: HashMap<(String, String), Remembered>,
    /// Another writer changed a child right after us. It is written again after [`DRIFT_PAUSE`].
    pub contested: bool,
}

#[derive(Debug)]
struct Remembered {
    last: LastApplied,
    written: Instant,
    /// The answer to the write, until the cache has caught up with it.
    answer: Option<Value>,
}

/// Where children are applied.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// To the API server.
    pub client: &'a Client,
    /// What is watched.
    pub caches: &'a Caches,
    /// The owner.
    pub imagegen: &'a ImageGen,
    /// Its namespace.
    pub namespace: &'a str,
}

/// What is there under a child's name.
enum Found<K> {
    Nothing,
    Ours(K),
    NotOurs,
}

/// Applies every child.
///
/// The order matters: the Deployment comes last, since its pods mount the others.
///
/// # Errors
/// When the API server cannot be reached, or answers in a way that may pass. What it refuses for good is in
/// [`Applied::failures`].
pub async fn apply(
    target: Target<'_>,
    desired: &Desired,
    authority: &Authority,
    memory: &mut Memory,
) -> Result<Applied, Error> {
    // Without `..`: a child that is forgotten here does not compile.
    let Desired {
        config_map,
        deployment,
        service,
        headless_service,
        pod_disruption_budget,
        network_policy,
        hpa,
        admin_tls_secret,
        admin_tls_server_name,
    } = desired;
    let caches = target.caches;
    let (
        found_config,
        found_secret,
        found_service,
        found_headless,
        found_policy,
        found_budget,
        found_deployment,
        found_hpa,
    ) = futures::try_join!(
        target.locate(config_map, &caches.config_maps),
        target.locate_secret(admin_tls_secret),
        target.locate(service, &caches.services),
        target.locate(headless_service, &caches.services),
        target.locate(network_policy, &caches.network_policies),
        target.locate(pod_disruption_budget, &caches.disruption_budgets),
        target.locate(deployment, &caches.deployments),
        target.locate_optional(hpa.as_ref(), &caches.hpas),
    )?;
    let secret = admin_secret(&config_map.metadata, admin_tls_secret, admin_tls_server_name, &found_secret, authority)?;

    memory.contested = false;
    let mut applier = Applier { target, memory, failures: Vec::new() };
    applier.check(config_map, &found_config);
    applier.check(&secret, &found_secret);
    applier.check(service, &found_service);
    applier.check(headless_service, &found_headless);
    applier.check(network_policy, &found_policy);
    applier.check(pod_disruption_budget, &found_budget);
    applier.check(deployment, &found_deployment);
    if let Some(hpa) = hpa {
        applier.check(hpa, &found_hpa);
    }
    if !applier.failures.is_empty() {
        let deployment = found_deployment.ours();
        return Ok(Applied { deployment, failures: applier.failures, ..Applied::default() });
    }

    let existing = found_deployment.clone_ours();
    applier.write(config_map, found_config).await?;
    applier.write(&secret, found_secret).await?;
    applier.write(service, found_service).await?;
    applier.write(headless_service, found_headless).await?;
    applier.write(network_policy, found_policy).await?;
    applier.write(pod_disruption_budget, found_budget).await?;
    if !applier.failures.is_empty() {
        return Ok(Applied { deployment: existing, failures: applier.failures, ..Applied::default() });
    }
    let deployment = applier.write(deployment, found_deployment).await?.or(existing);
    if let Some(hpa) = hpa {
        applier.write(hpa, found_hpa).await?;
    }
    let failures = applier.failures;

    target.prune(&caches.config_maps, &[config_map.name_any()]).await?;
    target.prune(&caches.services, &[service.name_any(), headless_service.name_any()]).await?;
    target.prune(&caches.network_policies, &[network_policy.name_any()]).await?;
    target.prune(&caches.disruption_budgets, &[pod_disruption_budget.name_any()]).await?;
    target.prune(&caches.hpas, &hpa.iter().map(|hpa| hpa.name_any()).collect::<Vec<_>>()).await?;
    if let Some(deployment) = &deployment {
        target.prune(&caches.deployments, &[deployment.name_any()]).await?;
    }
    Ok(Applied { deployment, failures, ..Applied::default() })
}

/// The admin port's Secret: what is there while it is good, else with a new certificate.
fn admin_secret(
    like: &ObjectMeta,
    name: &str,
    dns_name: &str,
    found: &Found<Secret>,
    authority: &Authority,
) -> Result<Secret, Error> {
    let found = match found {
        Found::Ours(secret) => Some(secret),
        Found::Nothing | Found::NotOurs => None,
    };
    let (data, reason) = renewed_leaf(authority, found, dns_name, Usage::Server, Timestamp::now())?;
    if let Some(reason) = reason {
        info!(secret = name, namespace = like.namespace, reason, "A new certificate for the admin port of workers.");
    }
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: like.namespace.clone(),
            labels: like.labels.clone(),
            owner_references: like.owner_references.clone(),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    })
}

impl Target<'_> {
    async fn locate<K>(&self, wanted: &K, cache: &Store<K>) -> Result<Found<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let name = wanted.name_any();
        let cached = cache.get(&ObjectRef::new(&name).within(self.namespace));
        match cached {
            Some(cached) => self.whose(K::clone(&cached)),
            None => match observe::by_name::<K>(self.client, &name, self.namespace).await? {
                Some(found) => self.whose(found),
                None => Ok(Found::Nothing),
            },
        }
    }

    async fn locate_optional<K>(&self, wanted: Option<&K>, cache: &Store<K>) -> Result<Found<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        match wanted {
            Some(wanted) => self.locate(wanted, cache).await,
            None => Ok(Found::Nothing),
        }
    }

    async fn locate_secret(&self, name: &str) -> Result<Found<Secret>, Error> {
        match observe::admin_secret(self.client, name, self.namespace).await? {
            Some(found) => self.whose(found),
            None => Ok(Found::Nothing),
        }
    }

    fn whose<K: Resource<DynamicType = ()>>(&self, found: K) -> Result<Found<K>, Error> {
        match owner(&found, self.imagegen) {
            Owner::Us => Ok(Found::Ours(found)),
            Owner::Foreign => Ok(Found::NotOurs),
            Owner::Predecessor => Err(Error::Leftover { what: described(&found) }),
        }
    }

    async fn prune<K>(&self, cache: &Store<K>, wanted: &[String]) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let unwanted = |child: &K| {
            child.meta().namespace.as_deref() == Some(self.namespace)
                && owner(child, self.imagegen) == Owner::Us
                && child.meta().deletion_timestamp.is_none()
                && !wanted.contains(&child.name_any())
        };
        for child in filtered(cache, unwanted) {
            let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
            let exactly = Preconditions { uid: child.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::background() };
            match api.delete(&child.name_any(), &params).await {
                Ok(_) => info!(child = described(child.as_ref()), "Removed a child that is no longer wanted."),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(source) => return Err(Error::Write { what: described(child.as_ref()), source: Box::new(source) }),
            }
        }
        Ok(())
    }
}

struct Applier<'a> {
    target: Target<'a>,
    memory: &'a mut Memory,
    failures: Vec<ApplyFailure>,
}

impl Applier<'_> {
    fn check<K: Resource<DynamicType = ()>>(&mut self, wanted: &K, found: &Found<K>) {
        if matches!(found, Found::NotOurs) {
            self.fail(wanted, ApplyFailureCause::NotOurs);
        }
    }

    fn fail<K: Resource<DynamicType = ()>>(&mut self, wanted: &K, cause: ApplyFailureCause) {
        let failure = ApplyFailure { kind: K::kind(&()).into_owned(), name: wanted.name_any(), cause };
        self.failures.push(failure);
    }

    /// Writes a child if there is a reason to, and returns its newest state unless it was refused.
    async fn write<K>(&mut self, wanted: &K, found: Found<K>) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + Serialize + DeserializeOwned,
    {
        if !self.failures.is_empty() {
            return Ok(found.ours());
        }
        let serialise = |source| Error::Serialise { what: described(wanted), source };
        let (body, sent) = drift::stamped(serde_json::to_value(wanted).map_err(serialise)?);
        let key = (K::kind(&()).into_owned(), wanted.name_any());
        let mut found = found.ours().map(|found| serde_json::to_value(found).map_err(serialise)).transpose()?;
        let remembered = self.memory.children.get_mut(&key);
        if let (Some(found), Some(remembered)) = (&mut found, remembered) {
            match remembered.answer.take() {
                Some(answer) if is_older(found, &answer) => {
                    found.clone_from(&answer);
                    remembered.answer = Some(answer);
                }
                _ => {}
            }
        }
        let remembered = self.memory.children.get(&key);
        let last = remembered.map(|remembered| &remembered.last);
        let why = drift::why_write(&body, &sent, found.as_ref(), last);
        let fought = why == Some(Why::Drifted) && remembered.is_some_and(|last| last.written.elapsed() < DRIFT_PAUSE);
        self.memory.contested |= fought;
        let Some(why) = why.filter(|_| !fought) else {
            if let (Some(found), None) = (&found, last) {
                // After a restart: from here on the memory decides.
                let last = drift::remember(&body, &sent, found);
                self.memory.children.insert(key, Remembered { last, written: Instant::now(), answer: None });
            }
            return found.map(|found| serde_json::from_value(found).map_err(serialise)).transpose();
        };

        let mut request = body.clone();
        if let (Some(found), Some(metadata)) = (&found, request.get_mut("metadata").and_then(Value::as_object_mut)) {
            // A child that was replaced since it was read is a conflict, not ours to write over.
            metadata.insert("uid".to_owned(), found["metadata"]["uid"].clone());
        }
        let api: Api<K> = Api::namespaced(self.target.client.clone(), self.target.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch(&wanted.name_any(), &params, &Patch::Apply(&request)).await {
            Ok(answer) => {
                log_write(wanted, why);
                let value = serde_json::to_value(&answer).map_err(serialise)?;
                let last = drift::remember(&body, &sent, &value);
                self.memory.children.insert(key, Remembered { last, written: Instant::now(), answer: Some(value) });
                Ok(Some(answer))
            }
            Err(error) => {
                let refusal = is_refusal(&error).map(str::to_owned);
                let Some(message) = refusal else {
                    return Err(Error::Write { what: described(wanted), source: Box::new(error) });
                };
                self.fail(wanted, ApplyFailureCause::Refused(message));
                Ok(None)
            }
        }
    }
}

impl<K> Found<K> {
    fn ours(self) -> Option<K> {
        match self {
            Self::Ours(found) => Some(found),
            Self::Nothing | Self::NotOurs => None,
        }
    }
}

impl Found<Deployment> {
    fn clone_ours(&self) -> Option<Deployment> {
        match self {
            Self::Ours(found) => Some(found.clone()),
            Self::Nothing | Self::NotOurs => None,
        }
    }
}

fn log_write<K: Resource<DynamicType = ()>>(child: &K, why: Why) {
    let namespace = child.namespace().unwrap_or_default();
    match why {
        Why::Missing | Why::Changed => info!(namespace, child = described(child), ?why, "Applied a child."),
        Why::Drifted => warn!(namespace, child = described(child), "Someone changed a child; applied it again."),
    }
}

fn described<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{} {}", K::kind(&()), object.name_any())
}

/// Whether `found` is an earlier state than `answer`. Resource versions are ordered integers.
fn is_older(found: &Value, answer: &Value) -> bool {
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str()?.parse::<u128>().ok();
    let same_object = found["metadata"]["uid"] == answer["metadata"]["uid"];
    same_object && version(found).zip(version(answer)).is_some_and(|(found, answer)| found < answer)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::cache_is_behind("a", "9", "a", "10", true)]
    #[case::cache_caught_up("a", "10", "a", "10", false)]
    #[case::someone_wrote_later("a", "11", "a", "10", false)]
    #[case::replaced("b", "9", "a", "10", false)]
    fn our_own_write_is_seen_before_the_cache_has_it(
        #[case] found_uid: &str,
        #[case] found: &str,
        #[case] answer_uid: &str,
        #[case] answer: &str,
        #[case] older: bool,
    ) {
        let object = |uid, version| json!({"metadata": {"uid": uid, "resourceVersion": version}});
        assert_eq!(is_older(&object(found_uid, found), &object(answer_uid, answer)), older);
    }
}
