//! `spec.worker`: the process that serves the model, and the pod around it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::Display;

use super::{
    duration::Duration,
    pod_template::PodTemplate,
    schema::{bare, duration_between, keyed, plain},
};

/// The worker: image, device, memory and limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.device != 'Cpu' || !has(self.gpu)")
        .message("gpu has no meaning with device: Cpu; leave it out"),
    validation = Rule::new("self.device != 'Cpu' || !has(self.profile) || self.profile in ['auto', 'none']")
        .message("profiles are those of GPUs and have no meaning with device: Cpu; leave profile out"),
    validation = Rule::new("self.device != 'Cpu' || !has(self.allocator)")
        .message("allocator settings are those of CUDA and have no meaning with device: Cpu; leave them out"),
    validation = Rule::new("self.device == oldSelf.device")
        .message("device cannot be changed: make a second ImageGen with the other device and move the clients")
)]
pub struct WorkerSpec {
    /// Image of the worker. Absent: the worker image of the operator, pinned in status.workerImage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Whether an operator upgrade may roll this fleet to its new worker image: Pinned (no) or Auto (yes). Without effect when worker.image is set.
    #[serde(default)]
    pub image_update: ImageUpdate,
    /// GPU profile that fills in what the spec leaves open: auto (that of the card), none, or the name of one; imagegen-worker profiles lists them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub profile: Option<String>,
    /// What the model runs on: Cuda, or Cpu for development. It cannot be changed later.
    #[serde(default)]
    pub device: Device,
    /// Which GPU a worker gets; always exactly one. Absent: one nvidia.com/gpu.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSpec>,
    /// Requests and limits of the worker container. GPUs are added by the operator and need not be listed. Absent: a request of 2 CPUs and 8Gi with device Cuda, 500m and 1Gi with device Cpu, and no limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesSpec>,
    /// Settings of the CUDA caching allocator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocator: Option<AllocatorSpec>,
    /// Share of the device memory that a worker may use, 0.1 to 1; what other processes hold is taken off. Absent: 0.92.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.1, max = 1.0))]
    pub memory_limit_ratio: Option<f64>,
    /// Size classes for warm-up and accounting; a request is charged at the smallest that covers it. Absent: the worker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "buckets_schema")]
    pub buckets: Option<Vec<Bucket>>,
    /// The queue of a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueSpec>,
    /// Most pixels of one image (width times height), 256 to 268435456. Absent: the worker's own limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 268_435_456))]
    pub max_pixels: Option<u64>,
    /// Most denoising steps of one request, 1 to 1000. Absent: the worker's own limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_steps: Option<u32>,
    /// Most images of one request, 1 to 64. Absent: the worker's own limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub max_images_per_request: Option<u32>,
    /// How a size that is no bucket is generated: Exact (at its own size, so that a seed means the same picture as in diffusers) or Bucket (at the bucket's size, then cropped).
    #[serde(default)]
    pub size_policy: SizePolicy,
    /// Whether the VAE decodes in tiles, which bounds its memory and changes pictures a little: Auto (2048x2048 and larger), Always or Never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain::<VaeTiling>")]
    pub vae_tiling: Option<VaeTiling>,
    /// Where the text encoder lives and in which number format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<TextEncoderSpec>,
    /// When the allocator gives cached blocks back to the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_overhead: Option<PoolOverheadSpec>,
    /// Time that a worker may take to load the model before it is restarted, 10s to 24h.
    #[serde(default = "startup_timeout")]
    #[x_kube(validation = duration_between("10s", "24h"))]
    pub startup_timeout: Duration,
    /// What the worker pods get beside the operator's own settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

/// Whether an operator upgrade may roll a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum ImageUpdate {
    /// The fleet keeps the image it has.
    #[default]
    Pinned,
    /// The fleet follows the operator's worker image.
    Auto,
}

/// What the model runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum Device {
    /// One NVIDIA GPU.
    #[default]
    Cuda,
    /// The CPU, for development.
    Cpu,
}

/// Which GPU a worker gets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.resource) && has(self.claim))")
    .message("set either resource (a device plugin) or claim (dynamic resource allocation), not both"))]
pub struct GpuSpec {
    /// Extended resource of the device plugin, for example nvidia.com/gpu or nvidia.com/mig-3g.20gb. The worker gets exactly one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub resource: Option<String>,
    /// Claim of dynamic resource allocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<GpuClaim>,
}

/// A GPU by dynamic resource allocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuClaim {
    /// Name of a ResourceClaimTemplate in the namespace of the ImageGen that asks for one GPU.
    #[schemars(length(min = 1, max = 253))]
    pub resource_claim_template_name: String,
}

/// Requests and limits of the worker container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    /// What the scheduler sets aside, by resource name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<BTreeMap<String, Quantity>>")]
    pub requests: Option<BTreeMap<String, Quantity>>,
    /// What the container may use at most, by resource name. A memory limit also counts the page cache of the model file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bare::<BTreeMap<String, Quantity>>")]
    pub limits: Option<BTreeMap<String, Quantity>>,
}

/// Settings of the CUDA caching allocator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.strategy == 'MaxSplitSize' || !(has(self.maxSplitSizeMiB) || has(self.roundupPower2Divisions) || has(self.garbageCollectionThreshold))"
).message("maxSplitSizeMiB, roundupPower2Divisions and garbageCollectionThreshold work only with strategy: MaxSplitSize"))]
pub struct AllocatorSpec {
    /// How fragmentation is kept low: ExpandableSegments, MaxSplitSize or CudaMallocAsync.
    pub strategy: AllocatorStrategy,
    /// Largest block that is split, in MiB, 21 to 65536.
    #[serde(rename = "maxSplitSizeMiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 21, max = 65536))]
    pub max_split_size_mib: Option<u32>,
    /// Steps between powers of two that sizes are rounded up to: 1, 2, 4, 8, 16, 32 or 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self in [1, 2, 4, 8, 16, 32, 64]").message("must be a power of two from 1 to 64"))]
    pub roundup_power2_divisions: Option<u32>,
    /// Share of the limit above which cached blocks are collected, 0.1 to 0.99.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.1, max = 0.99))]
    pub garbage_collection_threshold: Option<f64>,
}

/// Strategies of the CUDA caching allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum AllocatorStrategy {
    /// Segments that grow in place.
    ExpandableSegments,
    /// Large blocks are never split.
    MaxSplitSize,
    /// The driver's own pool.
    CudaMallocAsync,
}

/// A size class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.width % 16 == 0 && self.height % 16 == 0")
    .message("width and height must be multiples of 16"))]
pub struct Bucket {
    /// Width in pixels, 16 to 16384, a multiple of 16.
    #[schemars(range(min = 16, max = 16384))]
    pub width: u32,
    /// Height in pixels, 16 to 16384, a multiple of 16.
    #[schemars(range(min = 16, max = 16384))]
    pub height: u32,
    /// Most images of this size in one batch, 1 to 64.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub max_batch: u32,
}

/// The queue of a worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxHoldup) || duration(self.maxHoldup) < duration(has(self.maxWait) ? self.maxWait : '120s')").message("maxHoldup must be shorter than maxWait: a request that was held up for so long would be refused before its turn"))]
pub struct QueueSpec {
    /// Most waiting requests, 1 to 10000. Absent: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub capacity: Option<u32>,
    /// Longest wait in the queue, 1s to 24h. Absent: 120s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between("1s", "24h"))]
    pub max_wait: Option<Duration>,
    /// How long a big image may hold up small ones, 100ms to 1h and shorter than maxWait. Absent: 5s, or half of maxWait where that is shorter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between("100ms", "1h"))]
    pub max_holdup: Option<Duration>,
}

/// How a size that is no bucket is generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum SizePolicy {
    /// At its own size.
    #[default]
    Exact,
    /// At the bucket's size, then cropped.
    Bucket,
}

/// Whether the VAE decodes in tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum VaeTiling {
    /// Pictures of 2048x2048 and larger.
    Auto,
    /// Every picture that is larger than a tile.
    Always,
    /// No picture.
    Never,
}

/// The text encoder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TextEncoderSpec {
    /// Where it lives between requests: Resident (on the device) or Offloaded (in host memory).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain::<Residency>")]
    pub residency: Option<Residency>,
    /// Number format of its weights: BFloat16, Float8 or Int4. Absent: that of model.precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain::<TextEncoderWeights>")]
    pub weights: Option<TextEncoderWeights>,
}

/// Where the text encoder lives between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum Residency {
    /// On the device.
    Resident,
    /// In host memory.
    Offloaded,
}

/// Number format of the text encoder's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum TextEncoderWeights {
    /// 16-bit brain floats.
    BFloat16,
    /// 8-bit floats.
    Float8,
    /// 4-bit integers.
    Int4,
}

/// When the allocator gives cached blocks back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolOverheadSpec {
    /// Time between two looks at the pool, 10s to 24h. Absent: 300s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between("10s", "24h"))]
    pub check_interval: Option<Duration>,
    /// Overhead above which the pool is trimmed, 0.05 to 0.95. Absent: 0.30.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.05, max = 0.95))]
    pub trim_above: Option<f64>,
}

impl Default for WorkerSpec {
    fn default() -> Self {
        Self {
            image: None,
            image_update: ImageUpdate::default(),
            profile: None,
            device: Device::default(),
            gpu: None,
            resources: None,
            allocator: None,
            memory_limit_ratio: None,
            buckets: None,
            queue: None,
            max_pixels: None,
            max_steps: None,
            max_images_per_request: None,
            size_policy: SizePolicy::default(),
            vae_tiling: None,
            text_encoder: None,
            pool_overhead: None,
            startup_timeout: startup_timeout(),
            pod_template: None,
        }
    }
}

fn one() -> u32 {
    1
}

fn startup_timeout() -> Duration {
    Duration::new("30m")
}

fn buckets_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = keyed(&generator.subschema_for::<Bucket>(), &["width", "height"], 32);
    schema.insert("minItems".into(), 1.into());
    schema
}
