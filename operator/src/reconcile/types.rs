//! What passes between the steps of a reconcile.

use std::{collections::BTreeMap, fmt, time::Duration};

use imagegen_core::allocator::Allocator;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Event, Pod, ResourceRequirements, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

use super::api_service::MetricsApiState;
use crate::{
    autoscale::spec::ScalingSpec,
    crd::{
        AutoscalingMode, Device, Origin, PodTemplate, PullPolicy, Reason, RolloutFailure, SecretKeyRef, ServiceType,
    },
};

/// What the operator's flags say about every ImageGen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorSettings {
    /// Image of workers whose ImageGen names none.
    pub worker_image: String,
    /// Namespace of the operator's own pods, which alone may reach the workers' admin port.
    pub operator_namespace: String,
    /// `--allow-host-path`.
    pub allow_host_path: bool,
    /// `--allow-privileged-pods`.
    pub allow_privileged_pods: bool,
    /// Whether the operator may put its metrics API into the cluster: `--metrics-api-cluster-role`.
    pub metrics_api: bool,
}

/// What validation needs to know about the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The claim that `spec.model.source.persistentVolumeClaim` names.
    pub claim: ClaimFact,
}

/// A PersistentVolumeClaim, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClaimFact {
    /// Not looked at: the spec names none.
    #[default]
    NotAsked,
    /// There is none of that name.
    Missing,
    /// It is there.
    Found {
        /// `status.accessModes` of a bound claim, otherwise `spec.accessModes`.
        access_modes: Vec<String>,
    },
}

/// What the children look like now. Input of the status step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// The Deployment of the ImageGen, when it is there and ours.
    pub deployment: Option<Deployment>,
    /// Its autoscaler, when it is there and ours.
    pub hpa: Option<HorizontalPodAutoscaler>,
    /// How it stands with the metrics API that the autoscaler reads.
    pub metrics_api: MetricsApiState,
    /// Pods that match the ImageGen's selector.
    pub pods: Vec<Pod>,
    /// Warning events about these pods.
    pub events: Vec<Event>,
}

/// Why a spec cannot be built: a condition reason, the field, and a sentence with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Refusal {
    /// The reason of the condition.
    pub reason: Reason,
    /// Path of the field, from `spec`.
    pub field: String,
    /// What was found, what is expected, what to do.
    pub message: String,
}

/// A setting with who decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T = String> {
    /// The value.
    pub value: T,
    /// Who decided it.
    pub origin: Origin,
}

/// A setting that the worker reads from its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSetting {
    /// Name in `status.effective`.
    pub name: &'static str,
    /// Environment variable of the worker.
    pub variable: &'static str,
    /// The value, in the worker's notation.
    pub setting: Setting,
}

/// A spec with everything decided. Only [`super::validate`] makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// Name of the ImageGen.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Owner of every child.
    pub owner: OwnerReference,
    /// Namespace of the operator's own pods.
    pub operator_namespace: String,
    /// Image of the worker container.
    pub worker_image: Setting,
    /// What the model runs on.
    pub device: Device,
    /// Extended resource that a worker gets one of; only with [`Device::Cuda`].
    pub gpu_resource: Option<String>,
    /// Requests and limits of the worker container, GPU included.
    pub resources: ResourceRequirements,
    /// Where the checkpoint comes from.
    pub model: ModelVolume,
    /// Path of the checkpoint folder in the worker container.
    pub model_path: String,
    /// The model, in short, for `kubectl get`.
    pub model_name: String,
    /// The worker's configuration, sorted by variable.
    pub settings: Vec<WorkerSetting>,
    /// How the GPU's memory is handed out; only with [`Device::Cuda`].
    pub allocator: Option<Allocator>,
    /// Wanted number of workers. The one place that decides it.
    pub replicas: i32,
    /// Who owns that number.
    pub autoscaling_mode: AutoscalingMode,
    /// How it is found.
    pub scaling: ScalingSpec,
    /// How long a worker may take to load.
    pub startup_timeout: Duration,
    /// How long a worker may take to finish what it has.
    pub drain_timeout: Duration,
    /// How a change reaches the workers.
    pub rollout: Rollout,
    /// Workers that an eviction may take at a time.
    pub disruption_max_unavailable: i32,
    /// How clients reach the workers.
    pub service: ServiceSettings,
    /// What the user adds to the pods; checked against the operator's flags.
    pub pod: PodTemplate,
    /// What was accepted but left out, as sentences for the user.
    pub warnings: Vec<String>,
}

/// Where the checkpoint comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelVolume {
    /// A PersistentVolumeClaim of the same namespace.
    Claim {
        /// Its name.
        name: String,
        /// Whether it is attached read-only.
        read_only: bool,
    },
    /// An OCI image.
    Image {
        /// Its reference.
        reference: String,
        /// When it is pulled; none: Kubernetes decides by the tag.
        pull_policy: Option<PullPolicy>,
    },
    /// A folder of the node.
    HostPath {
        /// Its absolute path.
        path: String,
    },
}

/// How a change reaches the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Workers above the wanted number.
    pub max_surge: i32,
    /// Workers below the wanted number.
    pub max_unavailable: i32,
    /// Time without progress after which it failed.
    pub progress_deadline: Duration,
    /// What is done then.
    pub on_failure: RolloutFailure,
}

/// How clients reach the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSettings {
    /// Type of the Service.
    pub service_type: ServiceType,
    /// Its port.
    pub port: u16,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its labels, beside ours.
    pub labels: BTreeMap<String, String>,
    /// Secret of the public port's certificate.
    pub tls_secret: Option<String>,
    /// Secret key of the accepted tokens.
    pub token_secret: Option<SecretKeyRef>,
    /// Whether tokens are taken over clear text.
    pub allow_insecure_token: bool,
}

/// Every child as it should be, for the apply step. The admin port's Secret holds a private key and is made by an effect;
/// only its name is decided here.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The worker's configuration.
    pub config_map: ConfigMap,
    /// The workers.
    pub deployment: Deployment,
    /// The Service that clients use.
    pub service: Service,
    /// The Service of clients that balance by themselves.
    pub headless_service: Service,
    /// Protection from evictions.
    pub pod_disruption_budget: PodDisruptionBudget,
    /// Who may reach which port.
    pub network_policy: NetworkPolicy,
    /// The autoscaler, in its mode.
    pub hpa: Option<HorizontalPodAutoscaler>,
    /// Name of the Secret with the admin port's certificate.
    pub admin_tls_secret: String,
    /// Name in that certificate.
    pub admin_tls_server_name: String,
}

/// What came of applying.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// The Deployment as the API server answered it, or as it was when nothing had to be written.
    pub deployment: Option<Deployment>,
    /// Children that could not be applied.
    pub failures: Vec<ApplyFailure>,
    /// What was decided about the rollout.
    pub rollout: super::rollout::Rollout,
}

/// A child that could not be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyFailure {
    /// Its kind, such as Deployment.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub cause: ApplyFailureCause,
}

/// Why a child could not be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyFailureCause {
    /// An object of that name is there and not ours; it was left alone.
    NotOurs,
    /// The API server refused it, with this message.
    Refused(String),
}

impl<T> Setting<T> {
    /// What the spec says, else what this version does by itself.
    pub fn spec_or(spec: Option<T>, built_in: T) -> Self {
        match spec {
            Some(value) => Self { value, origin: Origin::Spec },
            None => Self { value: built_in, origin: Origin::BuiltIn },
        }
    }
}

impl fmt::Display for ApplyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, cause } = self;
        match cause {
            ApplyFailureCause::NotOurs => write!(
                f,
                "the {kind} {name} exists and does not belong to this ImageGen, so it was left alone: delete or rename it, or give the ImageGen another name"
            ),
            ApplyFailureCause::Refused(message) => write!(f, "the API server refused the {kind} {name}: {message}"),
        }
    }
}
