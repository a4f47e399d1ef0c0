//! What one worker takes and needs, from a measured table.

use serde::Deserialize;

use super::scenario::CLASSES;

/// A device with the model on it. The fields are those of the table, whose `sources` say where each number is from.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Card {
    pub(crate) card: String,
    pub(crate) usable_total_bytes: u64,
    pub(crate) memory_limit_ratio: f64,
    pub(crate) own_overhead_bytes: u64,
    pub(crate) weights_bytes: u64,
    pub(crate) load_seconds: f64,
    pub(crate) pending_seconds: f64,
    pub(crate) restart_seconds: f64,
    /// By size, the smallest first.
    pub(crate) classes: [Class; CLASSES],
}

/// One size of picture.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Class {
    pub(crate) seconds: f64,
    pub(crate) activation_bytes: u64,
}

impl Card {
    /// The table of `tests/simulator/h100.json`.
    pub(crate) fn h100() -> Self {
        let table = include_str!("../../../tests/simulator/h100.json");
        serde_json::from_str(table).expect("the table has the fields of this struct")
    }

    /// What activations may take while other processes hold `foreign_bytes`.
    pub(crate) fn headroom_bytes(&self, foreign_bytes: u64) -> u64 {
        let budget = self.usable_total_bytes as f64 * self.memory_limit_ratio;
        (budget as u64).saturating_sub(foreign_bytes + self.own_overhead_bytes + self.weights_bytes)
    }

    /// Mean seconds of a picture of this mix of sizes.
    pub(crate) fn mean_seconds(&self, mix: &[f64; CLASSES]) -> f64 {
        let total: f64 = mix.iter().sum();
        self.classes.iter().zip(mix).map(|(class, share)| class.seconds * share).sum::<f64>() / total
    }
}
