//! The worker's state at one moment, for everyone who reports it.

/// Where the engine is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    Loading { ratio: f64 },
    Serving,
    Failed { reason: String },
}

/// Why a worker that serves can take no work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
pub(crate) enum NoCapacity {
    /// Others leave no memory for even the smallest batch.
    NoHeadroom,
    /// This process holds memory that only a new one gives back.
    CircuitOpen,
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
    /// Set while not even the smallest batch can start.
    pub(crate) no_capacity: Option<NoCapacity>,
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
            Phase::Serving => match self.no_capacity {
                None => Ok(()),
                Some(NoCapacity::NoHeadroom) => Err("NoHeadroom: other processes leave no memory for a batch".into()),
                Some(NoCapacity::CircuitOpen) => {
                    Err("CircuitOpen: this process holds memory that only a new one gives back".into())
                }
            },
        }
    }
}
