//! `spec.model`: where the checkpoint comes from and how it is read.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::Display;

use super::schema::plain;

/// The model that every worker of this ImageGen serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// Where the checkpoint folder (diffusers layout: model_index.json and its sub-folders) comes from: exactly one of persistentVolumeClaim, image, hostPath and huggingFace.
    #[x_kube(validation = Rule::new(
        "[has(self.persistentVolumeClaim), has(self.image), has(self.hostPath), has(self.huggingFace)].filter(x, x).size() == 1"
    ).message("set exactly one of persistentVolumeClaim, image, hostPath and huggingFace"))]
    pub source: ModelSource,
    /// The number format of the weights on the device: Float32, BFloat16 or Float8. Absent: BFloat16 with device Cuda, Float32 with device Cpu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain::<Precision>")]
    pub precision: Option<Precision>,
    /// What a request gets that does not say otherwise. Absent values come from the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defaults: Option<RequestDefaults>,
}

/// The places a checkpoint can come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// A folder of a PersistentVolumeClaim in the namespace of the ImageGen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimSource>,
    /// An OCI image whose root is the checkpoint folder, mounted as an image volume. Needs containerd 2.1 or CRI-O 1.33 on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// A folder of the node. Refused unless the operator runs with --allow-host-path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathSource>,
    /// A repository of the Hugging Face Hub, downloaded into a claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFaceSource>,
}

/// A checkpoint in a PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSource {
    /// Name of the PersistentVolumeClaim. With more than one replica its access modes must include ReadOnlyMany or ReadWriteMany.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Folder of the checkpoint inside the claim, without a leading slash. Absent: the root of the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !('/' + self + '/').contains('/../')")
        .message("must be a path inside the claim: without a leading slash and without '..'"))]
    pub path: Option<String>,
    /// Whether the claim is attached read-only. Workers only ever read it.
    #[serde(default = "yes")]
    pub read_only: bool,
}

/// A checkpoint in an OCI image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// Reference of the image, with a tag or a digest. Pull secrets: worker.podTemplate.imagePullSecrets.
    #[schemars(length(min = 1, max = 512))]
    pub reference: String,
    /// When the kubelet pulls the image: Always, IfNotPresent or Never. Absent: Always for the tag latest, IfNotPresent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain::<PullPolicy>")]
    pub pull_policy: Option<PullPolicy>,
}

/// A checkpoint in a folder of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPathSource {
    /// Absolute path of the checkpoint folder on every node that runs a worker.
    #[schemars(length(min = 2, max = 512))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !(self + '/').contains('/../')")
        .message("must be an absolute path without '..', for example /models/z-image"))]
    pub path: String,
}

/// A checkpoint from the Hugging Face Hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HuggingFaceSource {
    /// Repository, as owner/name.
    #[schemars(length(min = 3, max = 200), regex(pattern = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$"))]
    pub repo: String,
    /// Commit of the repository: 40 hexadecimal digits, so that every worker reads the same files.
    #[schemars(length(min = 40, max = 40), regex(pattern = "^[0-9a-f]{40}$"))]
    pub revision: String,
    /// Secret with the access token of a gated repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
    /// Claim that keeps the download.
    pub cache: CacheClaim,
}

/// The claim that keeps a download.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheClaim {
    /// Name of a PersistentVolumeClaim in the namespace of the ImageGen.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// One key of a Secret in the namespace of the ImageGen. The kubelet mounts it; the operator does not read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key inside the Secret.
    #[serde(default = "token_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// What a request gets that does not say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestDefaults {
    /// Denoising steps, 1 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub steps: Option<u32>,
    /// Guidance scale, 0 to 100. 0 switches classifier-free guidance off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub guidance_scale: Option<f64>,
    /// Width and height in pixels, as WIDTHxHEIGHT, for example 1024x1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 11), regex(pattern = "^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"))]
    pub size: Option<String>,
}

/// The number format of the weights on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum Precision {
    /// 32-bit floats: exact parity, twice the memory of BFloat16.
    Float32,
    /// 16-bit brain floats.
    BFloat16,
    /// 8-bit floats.
    Float8,
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum PullPolicy {
    /// Before every start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

fn yes() -> bool {
    true
}

fn token_key() -> String {
    "token".into()
}
