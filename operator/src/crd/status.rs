//! `status`: what an ImageGen looks like from the outside. For people and tools, not telemetry: numbers have two decimals.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use strum::Display;

use super::{
    scaling::AutoscalingMode,
    schema::{bare, keyed, plain},
};

/// Most entries of `status.scalingHistory`.
pub const MAX_SCALING_HISTORY: usize = 10;
/// Most entries of `status.workers`.
pub const MAX_WORKERS: usize = 20;

/// What is observed of an ImageGen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageGenStatus {
    /// Generation of the spec that this status speaks about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Worker pods there are. The scale subresource shows it.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// Worker pods that are ready.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready_replicas: i32,
    /// Worker pods that are wanted.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub desired_replicas: i32,
    /// Label selector of the worker pods. The scale subresource shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub selector: Option<String>,
    /// Worker image in force. With worker.imageUpdate Pinned it stays through operator upgrades.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub worker_image: Option<String>,
    /// Who owns the number of workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain::<AutoscalingMode>")]
    pub autoscaling_mode: Option<AutoscalingMode>,
    /// Last revision of the Deployment whose workers were all ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub ready_revision: Option<String>,
    /// The model, in short: the last part of where it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub model: Option<String>,
    /// The GPU, in short: the resource that each worker asks for, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub gpu: Option<String>,
    /// Conditions: Ready, Available, Progressing, Degraded, ScalingActive and ModelReady.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Settings in force, by name, each with its origin: Spec, Profile or BuiltIn. What is not listed is the worker's own choice.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub effective: BTreeMap<String, EffectiveSetting>,
    /// Device memory, over all workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
    /// Work, over all workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demand: Option<DemandStatus>,
    /// Seconds that the slowest worker took from the start of its process to its first serving. A worker that takes more than twice as long counts as one that does not come up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub load_seconds: Option<f64>,
    /// The last changes of the number of workers, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub scaling_history: Vec<ScalingEvent>,
    /// Workers, worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "workers_schema")]
    pub workers: Vec<WorkerStatus>,
}

/// A setting in force and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveSetting {
    /// The value, as text.
    #[schemars(length(max = 1024))]
    pub value: String,
    /// Who decided it: Spec, Profile or BuiltIn.
    pub origin: Origin,
}

/// Who decided a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum Origin {
    /// The spec of the ImageGen.
    Spec,
    /// The GPU profile.
    Profile,
    /// This version of the operator.
    BuiltIn,
}

/// Device memory, over all workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStatus {
    /// The scaling signal, 0 to 100: mean over the workers.
    pub pressure: f64,
    /// Bytes in use on the devices.
    pub used_bytes: i64,
    /// Bytes that the devices have.
    pub total_bytes: i64,
    /// Bytes that the allocators hold.
    pub reserved_bytes: i64,
    /// Bytes of live tensors.
    pub allocated_bytes: i64,
    /// Share of the reserved bytes that no tensor uses.
    pub fragmentation: f64,
    /// Out-of-memory errors since the workers started.
    pub out_of_memory_total: i64,
}

/// Work, over all workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DemandStatus {
    /// Requests on a device.
    pub running: i64,
    /// Requests that wait.
    pub queued: i64,
    /// Seconds of work that wait or were refused for lack of room.
    pub backlog_seconds: f64,
}

/// A change of the number of workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingEvent {
    /// When.
    #[schemars(schema_with = "bare::<Time>")]
    pub time: Time,
    /// Workers before.
    pub from: i32,
    /// Workers after.
    pub to: i32,
    /// Why.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// Name of its pod.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// Its GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuStatus>,
    /// Its scaling signal, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<f64>,
    /// What it does: Pending, Starting, Ready, Draining, Failing or Terminating.
    #[schemars(length(max = 32))]
    pub state: String,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuStatus {
    /// Its UUID, as NVML gives it.
    #[schemars(length(max = 96))]
    pub uuid: String,
    /// Its product name.
    #[schemars(length(max = 96))]
    pub name: String,
}

fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut item = bare::<Condition>(generator);
    if let Some(properties) = item.get_mut("properties").and_then(|p| p.as_object_mut()) {
        for (name, most) in [("message", 4096), ("reason", 128), ("type", 128), ("status", 16)] {
            if let Some(property) = properties.get_mut(name).and_then(|p| p.as_object_mut()) {
                property.insert("maxLength".into(), most.into());
            }
        }
    }
    keyed(&item, &["type"], 16)
}

fn workers_schema(generator: &mut SchemaGenerator) -> Schema {
    keyed(&generator.subschema_for::<WorkerStatus>(), &["pod"], MAX_WORKERS as u64)
}
