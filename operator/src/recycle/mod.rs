//! Recycling: a worker whose memory has worn out drains, ends, and is started again in the same pod, so that GPU, node
//! and page cache are kept.
//!
//! ```text
//! reports -memory(pure)-> Worker* -decide(pure: workers, policy, needed, now)-> Plan -effects-> AdminService.Drain{exit}
//! ```
//!
//! What was done is read from the cluster (when a container started), never remembered: an operator that starts anew
//! recycles nobody twice.

pub mod decide;
pub mod fatal;
pub mod out_of_memory;
pub mod schedule;

use std::time::Duration;

use self::schedule::Schedule;

/// `spec.recycle` with everything decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// When every worker is recycled.
    pub schedule: Option<Schedule>,
    /// How long after a scheduled start recycling may begin.
    pub window: Duration,
    /// Pool overhead above which a worker is recycled.
    pub pool_overhead_above: Option<f64>,
    /// Out-of-memory errors after which a worker is recycled.
    pub after_out_of_memory: Option<OutOfMemoryLimit>,
    /// Workers away at a time, for whatever reason.
    pub max_unavailable: u32,
    /// Least time between the start of a worker and its next recycle.
    pub cooldown: Duration,
}

/// How often is too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemoryLimit {
    /// This many errors,
    pub count: u64,
    /// in this time.
    pub within: Duration,
}

impl Policy {
    /// [`Policy::window`] of a spec that names none.
    pub const WINDOW: Duration = Duration::from_secs(2 * 3600);
    /// [`Policy::cooldown`] of a spec that names none.
    pub const COOLDOWN: Duration = Duration::from_secs(3600);
}
