//! What metrics API, KEDA and activator know of every fleet: the ImageGen, its pods and what they report.

use std::{collections::BTreeMap, fmt, sync::Arc};

use kube::{ResourceExt as _, runtime::reflector::ObjectRef};

use crate::{
    autoscale::{
        fleet::Worker,
        load::Load,
        reports::{Moment, Reports},
        spec::Targets,
    },
    caches::{Caches, Guarded, filtered},
    crd::{AutoscalingMode, ImageGen},
    reconcile::{build::names::NAME_LABEL, validate::scaling},
};

/// One ImageGen and its workers at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Fleet {
    /// Namespace of the ImageGen.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Who owns the number of workers.
    pub mode: AutoscalingMode,
    /// What is steered for.
    pub targets: Targets,
    /// Most workers that one step adds.
    pub max_step: u32,
    /// `spec.replicas`.
    pub replicas: u32,
    /// Its pods and what they say.
    pub workers: Vec<Worker>,
    /// The labels of these pods.
    pub pod_labels: BTreeMap<String, BTreeMap<String, String>>,
}

impl Fleet {
    /// What its workers carry.
    #[must_use]
    pub fn load(&self) -> Load {
        Load::aggregate(&self.workers, &self.targets)
    }
}

/// Every fleet that this operator serves. Cheap to clone.
#[derive(Clone)]
pub struct Fleets {
    scopes: Arc<[Caches]>,
    reports: Reports,
}

impl fmt::Debug for Fleets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleets").field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

impl Fleets {
    /// The fleets of these caches, with their workers' reports.
    #[must_use]
    pub fn new(scopes: Arc<[Caches]>, reports: Reports) -> Self {
        Self { scopes, reports }
    }

    /// Whether what is here is all there is.
    #[must_use]
    pub fn are_synced(&self) -> bool {
        self.scopes.iter().all(Caches::are_synced)
    }

    /// The fleet of one ImageGen.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Fleet> {
        let object = ObjectRef::<Guarded>::new(name).within(namespace);
        let found = self.scopes.iter().find_map(|caches| caches.imagegens.get(&object).map(|found| (caches, found)));
        found.and_then(|(caches, found)| self.fleet(caches, found.0.as_ref().ok()?))
    }

    /// All fleets of a namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Fleet> {
        let here = |object: &Guarded| object.0.as_ref().is_ok_and(|ig| ig.namespace().as_deref() == Some(namespace));
        let of_scope = |caches| {
            let found = filtered(&Caches::clone(caches).imagegens, here);
            found.into_iter().filter_map(move |object| self.fleet(caches, object.0.as_ref().ok()?))
        };
        self.scopes.iter().flat_map(of_scope).collect()
    }

    /// The fleet that a pod belongs to.
    #[must_use]
    pub fn of_pod(&self, namespace: &str, pod: &str) -> Option<Fleet> {
        let object = ObjectRef::new(pod).within(namespace);
        let found = self.scopes.iter().find_map(|caches| caches.pods.get(&object))?;
        self.get(namespace, found.labels().get(NAME_LABEL)?)
    }

    fn fleet(&self, caches: &Caches, ig: &ImageGen) -> Option<Fleet> {
        let (namespace, name) = (ig.namespace()?, ig.name_any());
        let ours = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.metadata.namespace.as_ref() == Some(&namespace) && pod.labels().get(NAME_LABEL) == Some(&name)
        };
        let pods = filtered(&caches.pods, ours);
        let (scaling, spec) = (ig.spec.autoscaling.as_ref(), scaling::resolve(&ig.spec));
        Some(Fleet {
            labels: ig.labels().clone(),
            mode: scaling.map_or(AutoscalingMode::Disabled, |scaling| scaling.mode),
            targets: spec.targets,
            max_step: spec.up.max_step,
            replicas: ig.spec.replicas,
            workers: self.reports.fleet(&namespace, &name, Moment::now()),
            pod_labels: pods.iter().map(|pod| (pod.name_any(), pod.labels().clone())).collect(),
            namespace,
            name,
        })
    }
}
