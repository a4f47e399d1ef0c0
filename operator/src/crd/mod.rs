//! The ImageGen resource: group `imagegen.dev`, version `v1alpha1`.
//!
//! The schema checks what a schema can see, so that `kubectl apply` fails at once with a sentence a user can act on; what
//! needs the cluster or the operator's flags is checked by `reconcile::validate` and becomes a condition. Field
//! documentation here is the text of `kubectl explain`.
#![allow(
    rustdoc::invalid_html_tags,
    reason = "field descriptions are for `kubectl explain`, which shows them as they are"
)]
#![allow(unreachable_pub, reason = "KubeSchema derives a pub struct inside a function")]

mod condition;
mod duration;
mod model;
mod pod_template;
mod rollout;
mod scaling;
mod schema;
mod service;
mod status;
mod worker;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::{
    condition::{ConditionType, Reason},
    duration::{DURATION_PATTERN, Duration},
    model::{
        CacheClaim, ClaimSource, HostPathSource, HuggingFaceSource, ImageSource, ModelSource, ModelSpec, Precision,
        PullPolicy, RequestDefaults, SecretKeyRef,
    },
    pod_template::PodTemplate,
    rollout::{AfterOutOfMemory, DisruptionSpec, RecycleSpec, RolloutFailure, RolloutSpec},
    scaling::{AutoscalingMode, AutoscalingSpec, ScaleToZero, ScalingRule},
    service::{AuthSpec, ServiceSpec, ServiceType, TlsSpec},
    status::{
        DemandStatus, EffectiveSetting, GpuStatus, ImageGenStatus, MAX_SCALING_HISTORY, MAX_WORKERS, MemoryStatus,
        Origin, ScalingEvent, WorkerStatus,
    },
    worker::{
        AllocatorSpec, AllocatorStrategy, Bucket, Device, GpuClaim, GpuSpec, ImageUpdate, PoolOverheadSpec, QueueSpec,
        Residency, ResourcesSpec, SizePolicy, TextEncoderSpec, TextEncoderWeights, VaeTiling, WorkerSpec,
    },
};

/// A fleet of workers that serves one text-to-image model.
#[derive(Clone, Debug, PartialEq, CustomResource, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "imagegen.dev",
    version = "v1alpha1",
    kind = "ImageGen",
    namespaced,
    shortname = "ig",
    category = "all",
    doc = "A fleet of workers that serves one text-to-image model over gRPC.",
    status = "ImageGenStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the spec is rolled out and every wanted worker is ready"
    ),
    printcolumn(
        name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas",
        description = "Workers that are wanted"
    ),
    printcolumn(
        name = "Pressure", type_ = "number", json_path = ".status.memory.pressure",
        description = "The scaling signal: mean over the workers"
    ),
    printcolumn(
        name = "GPU", type_ = "string", json_path = ".status.gpu",
        description = "The GPU that each worker asks for"
    ),
    printcolumn(
        name = "Model", type_ = "string", json_path = ".status.model",
        description = "The model, in short"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be at most 40 characters: small letters, digits and '-', beginning with a letter and not ending with '-' (it becomes Service names and label values)")
)]
pub struct ImageGenSpec {
    /// The model that every worker serves.
    pub model: ModelSpec,
    /// The worker: image, device, memory and limits.
    #[serde(default)]
    pub worker: WorkerSpec,
    /// How clients reach the workers.
    #[serde(default)]
    pub service: ServiceSpec,
    /// Number of workers, 0 to 1000, unless autoscaling.mode is Operator. The scale subresource reads and writes it.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: u32,
    /// Drains all workers and keeps everything else, pausing autoscaling. In mode Operator the size begins again at minReplicas afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Who decides about the number of workers. Absent: spec.replicas does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingSpec>,
    /// Replacing workers whose memory has worn out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recycle: Option<RecycleSpec>,
    /// How a change reaches the workers.
    #[serde(default)]
    pub rollout: RolloutSpec,
    /// Voluntary disruptions, such as a node drain.
    #[serde(default)]
    pub disruption: DisruptionSpec,
    /// Time that a worker gets to finish what runs and waits before it is ended, 1s to 24h. The pods' grace period is 30 seconds longer.
    #[serde(default = "drain_timeout")]
    #[x_kube(validation = schema::duration_between("1s", "24h"))]
    pub drain_timeout: Duration,
}

/// The CustomResourceDefinition, as it is installed.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = ImageGen::crd();
    for version in &mut crd.spec.versions {
        let Some(props) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else { continue };
        let mut value = serde_json::to_value(&*props).expect("a schema is plain data");
        if let Value::Object(object) = &mut value {
            schema::finish(object);
        }
        *props = serde_json::from_value::<JSONSchemaProps>(value).expect("cleaning a schema keeps it a schema");
    }
    crd
}

/// The CustomResourceDefinition as YAML: the text of `deploy/crd.yaml`.
pub fn crd_yaml() -> String {
    serde_yaml::to_string(&crd()).expect("a CustomResourceDefinition is plain data")
}

fn one() -> u32 {
    1
}

fn drain_timeout() -> Duration {
    Duration::new("120s")
}
