//! What came of a run.

/// Waiting up to this long costs nothing.
const FREE_WAIT_SECONDS: f64 = 5.0;
/// A lost request counts as one that waited this long.
const LOST_SECONDS: f64 = 120.0;
/// An hour of waiting, in GPU hours.
const WAIT_PRICE: f64 = 0.5;
/// Two changes of direction within this time are a flap.
const FLAP_SECONDS: f64 = 600.0;

/// Numbers of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) arrived: u64,
    pub(crate) finished: u64,
    /// Ended without a picture, after all retries.
    pub(crate) lost: u64,
    /// Not ended when the run was.
    pub(crate) in_flight: u64,
    pub(crate) gpu_seconds: f64,
    /// From arrival to the start on a device, of requests that finished.
    pub(crate) waits: Vec<f32>,
    pub(crate) out_of_memory: u64,
    /// When the wanted size changed, and from what to what.
    pub(crate) changes: Vec<(f64, u32, u32)>,
    /// From the start of each burst until as many workers serve as it needs; its length when that never happened.
    pub(crate) to_size_seconds: Vec<f64>,
    /// Fewest workers that were ever wanted.
    pub(crate) fewest: u32,
    /// Every ten seconds: when, load in workers, wanted, serving.
    pub(crate) trace: Vec<(f64, f64, u32, u32)>,
}

impl Outcome {
    pub(crate) fn gpu_hours(&self) -> f64 {
        self.gpu_seconds / 3600.0
    }

    /// The wait that `share` of the requests do not exceed, seconds.
    pub(crate) fn wait_quantile(&self, share: f64) -> f64 {
        let mut waits = self.waits.clone();
        if waits.is_empty() {
            return 0.0;
        }
        let index = ((waits.len() - 1) as f64 * share).round() as usize;
        f64::from(*waits.select_nth_unstable_by(index, f32::total_cmp).1)
    }

    /// Changes of direction that come too soon after the change before.
    pub(crate) fn flaps(&self) -> u64 {
        let turns = |pair: &&[(f64, u32, u32)]| {
            let ((at, from, to), (later, from_later, to_later)) = (pair[0], pair[1]);
            (to > from) != (to_later > from_later) && later - at < FLAP_SECONDS
        };
        self.changes.windows(2).filter(turns).count() as u64
    }

    /// Median over the bursts; `None` without bursts.
    pub(crate) fn to_size(&self) -> Option<f64> {
        let mut all = self.to_size_seconds.clone();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }

    /// What a run costs, in GPU hours: the GPUs, and the time of those who wait longer than a moment.
    pub(crate) fn cost(&self) -> f64 {
        let waited: f64 = self.waits.iter().map(|wait| (f64::from(*wait) - FREE_WAIT_SECONDS).max(0.0)).sum();
        self.gpu_hours() + WAIT_PRICE * (waited + self.lost as f64 * LOST_SECONDS) / 3600.0
    }
}
