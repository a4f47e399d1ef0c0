//! Traffic and what goes wrong.

use super::card::Card;

/// Sizes of pictures in the table of a card.
pub(crate) const CLASSES: usize = 3;
/// One picture in six is small, one in six large.
const MIXED: [f64; CLASSES] = [1.0, 4.0, 1.0];
const MEDIUM: [f64; CLASSES] = [0.0, 1.0, 0.0];

/// A run to compare autoscalers on.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
    /// Load in workers: how many would be busy all the time.
    pub(crate) load: Load,
    /// Weights of the sizes.
    pub(crate) mix: [f64; CLASSES],
    pub(crate) min: u32,
    pub(crate) max: u32,
    /// GPUs of the cluster.
    pub(crate) gpus: u32,
    /// Workers at the start, ready.
    pub(crate) start: u32,
    /// Loading takes this many times the table's time.
    pub(crate) load_time_factor: f64,
    pub(crate) trouble: Trouble,
}

/// Load over time, in workers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    Steady(f64),
    /// From `low` to `high` and back, once in `period_seconds`.
    Wave {
        low: f64,
        high: f64,
        period_seconds: f64,
    },
    /// `low`, and ten times that for `burst_seconds` in every `period_seconds`.
    Bursts {
        low: f64,
        period_seconds: f64,
        burst_seconds: f64,
    },
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Nothing,
    /// Another process takes this share of the card on every second GPU, in the middle third.
    Neighbour {
        share: f64,
    },
    /// Every so often the busiest worker dies.
    Crashes {
        every_seconds: f64,
    },
}

impl Load {
    /// Workers that would be busy all the time at `now`.
    pub(crate) fn at(self, now: f64) -> f64 {
        match self {
            Self::Steady(load) => load,
            Self::Wave { low, high, period_seconds } => {
                let turn = (now / period_seconds * std::f64::consts::TAU).cos();
                low + (high - low) * (1.0 - turn) / 2.0
            }
            Self::Bursts { low, period_seconds, burst_seconds } => {
                // The first burst comes after the quiet part of its period.
                let quiet = period_seconds - burst_seconds;
                if now % period_seconds >= quiet { low * 10.0 } else { low }
            }
        }
    }

    /// The most it ever is.
    pub(crate) fn peak(self) -> f64 {
        match self {
            Self::Steady(load) => load,
            Self::Wave { high, .. } => high,
            Self::Bursts { low, .. } => low * 10.0,
        }
    }

    /// When bursts begin and end, and how many workers each needs.
    pub(crate) fn bursts(self, until: f64) -> Vec<(f64, f64, u32)> {
        let Self::Bursts { low, period_seconds, burst_seconds } = self else { return Vec::new() };
        let needed = (low * 10.0).ceil() as u32;
        let starts = (1..).map(|turn| f64::from(turn) * period_seconds - burst_seconds);
        starts
            .take_while(|start| start + burst_seconds <= until)
            .map(|start| (start, start + burst_seconds, needed))
            .collect()
    }
}

impl Scenario {
    /// Requests a second at `now`.
    pub(crate) fn rate(&self, card: &Card, now: f64) -> f64 {
        self.load.at(now) / card.mean_seconds(&self.mix)
    }

    /// The most requests a second there ever are.
    pub(crate) fn peak_rate(&self, card: &Card) -> f64 {
        self.load.peak() / card.mean_seconds(&self.mix)
    }
}

/// Every scenario of the comparison.
pub(crate) fn all() -> Vec<Scenario> {
    let usual = Scenario {
        name: "steady",
        seconds: 7200.0,
        load: Load::Steady(4.0),
        mix: MEDIUM,
        min: 1,
        max: 16,
        gpus: 16,
        start: 4,
        load_time_factor: 1.0,
        trouble: Trouble::Nothing,
    };
    let bursts = Load::Bursts { low: 0.8, period_seconds: 1800.0, burst_seconds: 300.0 };
    vec![
        usual.clone(),
        Scenario {
            name: "diurnal",
            load: Load::Wave { low: 0.5, high: 8.0, period_seconds: 3600.0 },
            start: 1,
            ..usual.clone()
        },
        Scenario { name: "bursts x10", load: bursts, start: 1, ..usual.clone() },
        Scenario { name: "mixed sizes", mix: MIXED, ..usual.clone() },
        Scenario {
            name: "neighbour takes half of the card",
            mix: MIXED,
            trouble: Trouble::Neighbour { share: 0.5 },
            ..usual.clone()
        },
        Scenario {
            name: "neighbour takes three quarters",
            mix: MIXED,
            trouble: Trouble::Neighbour { share: 0.75 },
            ..usual.clone()
        },
        Scenario { name: "worker crashes", trouble: Trouble::Crashes { every_seconds: 600.0 }, ..usual.clone() },
        Scenario { name: "slow model load", load: bursts, start: 1, load_time_factor: 5.0, ..usual },
    ]
}

/// As large as fleets get.
pub(crate) fn large() -> Scenario {
    Scenario {
        name: "1,000 workers",
        seconds: 1800.0,
        load: Load::Wave { low: 100.0, high: 800.0, period_seconds: 1800.0 },
        mix: MEDIUM,
        min: 50,
        max: 1000,
        gpus: 1000,
        start: 150,
        load_time_factor: 1.0,
        trouble: Trouble::Nothing,
    }
}
