//! `spec.autoscaling` with everything decided.

use std::time::Duration;

/// What is steered for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Targets {
    /// Pressure of one worker, above 0 and at most 1.
    pub memory_pressure: f64,
    /// Waiting work of one worker that weighs as much as memory at its target.
    pub queue_wait: Duration,
}

/// The speed of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// Time over which the most careful recommendation counts.
    pub window: Duration,
    /// Most workers within [`super::decide::STEP_PERIOD`].
    pub max_step: u32,
}

/// How an ImageGen is scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScalingSpec {
    /// Fewest workers.
    pub min: u32,
    /// Most workers.
    pub max: u32,
    /// What is steered for.
    pub targets: Targets,
    /// Relative distance from the target below which nothing changes.
    pub tolerance: f64,
    /// Adding workers.
    pub up: Speed,
    /// Taking workers away.
    pub down: Speed,
    /// How long a worker may take to load while none has been measured yet.
    pub assumed_load_time: Duration,
}
