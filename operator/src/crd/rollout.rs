//! `spec.rollout`, `spec.disruption` and `spec.recycle`: how workers are replaced.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::Display;

use super::{
    duration::Duration,
    schema::{duration_between, plain},
};

/// How a change reaches the workers. GPUs are scarce: the default replaces in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.maxSurge > 0 || self.maxUnavailable > 0")
    .message("maxSurge and maxUnavailable must not both be 0: no worker could ever be replaced"))]
pub struct RolloutSpec {
    /// Workers above the wanted number during a rollout, 0 to 100. Each needs a free GPU.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub max_surge: u32,
    /// Workers below the wanted number during a rollout, 0 to 100.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub max_unavailable: u32,
    /// Time without progress after which a rollout counts as failed, 1m to 24h.
    #[serde(default = "progress_deadline")]
    #[x_kube(validation = duration_between("1m", "24h"))]
    pub progress_deadline: Duration,
    /// What a failed rollout does: RollBack (to the last revision that was ready) or Pause.
    #[serde(default = "roll_back")]
    #[schemars(schema_with = "plain::<RolloutFailure>")]
    pub on_failure: RolloutFailure,
}

/// What a failed rollout does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum RolloutFailure {
    /// Goes back to the last revision that was ready.
    RollBack,
    /// Stops where it is.
    Pause,
}

/// Voluntary disruptions, such as a node drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionSpec {
    /// Workers that an eviction may take at a time, 0 to 100. 0 blocks node drains.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub max_unavailable: u32,
}

/// Replacing workers whose memory has worn out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecycleSpec {
    /// When workers are recycled, as a cron expression of five fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 9, max = 100))]
    #[x_kube(validation = Rule::new(r"self.matches('^\\S+( \\S+){4}$')")
        .message("must be a cron expression of five fields: minute, hour, day of month, month, day of week; for example 0 3 * * *"))]
    pub schedule: Option<String>,
    /// How long after the scheduled time recycling may go on, 1m to 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between("1m", "24h"))]
    pub window: Option<Duration>,
    /// Time zone of the schedule, as an IANA name, for example Europe/Berlin.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_+/-]+$"))]
    pub time_zone: Option<String>,
    /// Pool overhead above which a worker is recycled, 0.05 to 0.95.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.05, max = 0.95))]
    pub pool_overhead_above: Option<f64>,
    /// Recycles a worker that ran out of memory too often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_out_of_memory: Option<AfterOutOfMemory>,
    /// Workers recycled at a time, 1 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_unavailable: Option<u32>,
    /// Least time between two recycles of one worker, 1m to 168h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between("1m", "168h"))]
    pub cooldown: Option<Duration>,
}

/// How often is too often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AfterOutOfMemory {
    /// Number of out-of-memory errors, 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    pub count: u32,
    /// Time in which they happen, 1m to 24h.
    #[x_kube(validation = duration_between("1m", "24h"))]
    pub within: Duration,
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self { max_surge: 0, max_unavailable: one(), progress_deadline: progress_deadline(), on_failure: roll_back() }
    }
}

impl Default for DisruptionSpec {
    fn default() -> Self {
        Self { max_unavailable: one() }
    }
}

fn one() -> u32 {
    1
}

fn roll_back() -> RolloutFailure {
    RolloutFailure::RollBack
}

fn progress_deadline() -> Duration {
    Duration::new("30m")
}
