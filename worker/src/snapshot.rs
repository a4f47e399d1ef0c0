//! The worker's state at one moment, for everyone who reports it.

/// Where the engine is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    Loading { ratio: f64 },
    Serving,
    Failed { reason: String },
}

/// The state at one moment, for everyone who reports it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) phase: Phase,
    /// Set while no new requests are admitted.
    pub(crate) drain_id: Option<String>,
    pub(crate) running: usize,
    pub(crate) queued: usize,
    /// Admitted requests whose streams have not got their end yet.
    pub(crate) open: usize,
}

impl Snapshot {
    pub(crate) const fn is_draining(&self) -> bool {
        self.drain_id.is_some()
    }

    /// Nothing is admitted, and nothing is left to do.
    pub(crate) const fn is_drained(&self) -> bool {
        self.is_draining() && self.running == 0 && self.queued == 0 && self.open == 0
    }

    /// `Ok` when requests should come, otherwise why not.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match &self.phase {
            Phase::Loading { ratio } => Err(format!("loading the model, {:.0} %", ratio * 100.0)),
            Phase::Failed { reason } => Err(reason.clone()),
            Phase::Serving if self.is_draining() => Err("draining".into()),
            Phase::Serving => Ok(()),
        }
    }
}
