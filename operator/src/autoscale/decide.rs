//! How many workers there should be. Pure.
//!
//! The need is the sum of pressure over the target, as `HorizontalPodAutoscaler` computes it from the same sum. What is
//! unknown makes an interval of it: reports that are missing count as nothing on the way up and as full workers on the
//! way down, so that the size stays where both would not move it.

use std::{cmp::Ordering, fmt, time::Duration};

use super::{
    history::History,
    load::{Class, Load, Signal},
    spec::ScalingSpec,
};

/// At most `maxStep` workers are added, and taken away, within this time.
pub const STEP_PERIOD: Duration = Duration::from_secs(15);
/// Share of the ready workers that must report before one is taken away.
pub const COVERAGE_RATIO: f64 = 0.9;
/// A worker that is on its way counts as capacity to come for this many times the measured load time.
const PATIENCE: u32 = 2;
/// A decision is looked at again after this time even when nothing speaks for it: reports age without saying so.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
const SHORTEST_LOOK: Duration = Duration::from_millis(100);
/// Sums of floats are not exact; a need of 3.0000000001 workers is one of 3.
const ROUNDING: f64 = 1e-6;

/// How many workers there should be, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The size from now on.
    pub replicas: u32,
    /// What decided, for metrics.
    pub class: ReasonClass,
    /// What decided, for people, with the numbers.
    pub reason: String,
    /// When to decide again, though nothing changed.
    pub next_look: Duration,
    /// The size that the load asks for, before windows and steps.
    pub wanted: u32,
    /// Nearly all ready workers report.
    pub covered: bool,
    /// Workers that have been on their way for too long; 0 when all is well.
    pub late: u32,
    /// How long a worker takes to load, as the reports have it.
    pub load_time: Option<Duration>,
}

/// What decided.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, strum::Display, strum::IntoStaticStr, strum::EnumIter,
)]
pub enum ReasonClass {
    /// The load fits the size.
    Steady,
    /// Memory pressure asks for more workers.
    MemoryPressure,
    /// Work that waits, or was refused, asks for more workers.
    Backlog,
    /// Workers without capacity are replaced.
    NoCapacity,
    /// Fewer workers carry the load.
    LowPressure,
    /// More or fewer are wanted, and not yet long enough.
    Stabilizing,
    /// More or fewer are wanted than one step may add or take.
    StepLimited,
    /// minReplicas.
    AtMinimum,
    /// maxReplicas.
    AtMaximum,
    /// Too few workers report.
    ReportsMissing,
    /// Workers that were asked for do not come up.
    InsufficientGpu,
}

impl ReasonClass {
    /// The name as it stands in conditions, Events and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InsufficientGpu => "InsufficientGPU",
            other => other.into(),
        }
    }
}

/// Decides how many workers there should be, when `current` are wanted so far.
///
/// `current` counts no worker that is being drained. `now` is a duration since the origin of `history`.
#[must_use]
pub fn decide(load: &Load, spec: &ScalingSpec, current: u32, history: &History, now: Duration) -> Decision {
    let case = Case::new(load, spec, current, history, now);
    let need = case.need();
    let wanted = need.wanted.clamp(spec.min, spec.max.max(spec.min));
    let step = case.step(wanted);
    let capped = case.capped(step.replicas);
    let replicas = capped.clamp(spec.min, spec.max.max(spec.min));
    let class = if case.late > 0 && wanted >= current {
        ReasonClass::InsufficientGpu
    } else if let Some(held) = step.held {
        held
    } else if replicas == current && need.wanted != wanted {
        if need.wanted > wanted { ReasonClass::AtMaximum } else { ReasonClass::AtMinimum }
    } else {
        need.class
    };
    Decision {
        replicas,
        class,
        reason: case.sentence(&need, wanted, replicas, class),
        next_look: case.next_look(step.until),
        wanted,
        covered: case.covered,
        late: case.late,
        load_time: load.load_time,
    }
}

/// What the load asks for.
struct Need {
    wanted: u32,
    class: ReasonClass,
}

/// What windows and steps leave of it.
struct Step {
    replicas: u32,
    held: Option<ReasonClass>,
    /// When that may change by itself.
    until: Option<Duration>,
}

struct Case<'a> {
    load: &'a Load,
    spec: &'a ScalingSpec,
    current: u32,
    history: &'a History,
    now: Duration,
    covered: bool,
    late: u32,
}

impl<'a> Case<'a> {
    fn new(load: &'a Load, spec: &'a ScalingSpec, current: u32, history: &'a History, now: Duration) -> Self {
        let patience = patience(load, spec, history);
        let late = load.count(|class| matches!(class, Class::Coming { for_, .. } if for_ > patience));
        let covered = f64::from(load.ready_known) >= COVERAGE_RATIO * f64::from(load.ready) && load.known() > 0;
        Self { load, spec, current, history, now, covered, late }
    }

    fn need(&self) -> Need {
        let Self { load, spec, current, .. } = self;
        let replacements = load.replacements(spec.up.max_step);
        // A worker that says nothing counts as what it said last on the way up, and at least as a full one on the way
        // down: neither its silence nor its return moves the size.
        let evident = load.pressure_known() + load.pressure_last_seen();
        let least = self.workers_for(evident, replacements);
        let most = self.workers_for(load.pressure_cautious(), replacements);
        let wanted = (*current).clamp(least, most.max(least));
        let class = if wanted < *current {
            ReasonClass::LowPressure
        } else if wanted == *current {
            ReasonClass::Steady
        } else if replacements > 0 && wanted - replacements <= *current {
            ReasonClass::NoCapacity
        } else {
            match load.binding() {
                Signal::Memory => ReasonClass::MemoryPressure,
                Signal::Backlog => ReasonClass::Backlog,
            }
        };
        Need { wanted, class }
    }

    /// Workers that carry `pressure`, each at the target; the current ones while they are about right.
    fn workers_for(&self, pressure: f64, replacements: u32) -> u32 {
        let target = self.spec.targets.memory_pressure;
        let workers = pressure / target + f64::from(replacements);
        if pressure > 0.0 && (workers / f64::from(self.current) - 1.0).abs() <= self.spec.tolerance {
            return self.current;
        }
        // Saturates: far beyond any maximum.
        (workers - ROUNDING).ceil().max(0.0) as u32
    }

    fn step(&self, wanted: u32) -> Step {
        let Self { spec, current, history, now, .. } = self;
        let (current, now) = (*current, *now);
        // A changed range takes effect at once: it is a person's decision.
        if current > spec.max || current < spec.min {
            return Step { replicas: current.clamp(spec.min, spec.max.max(spec.min)), held: None, until: None };
        }
        if wanted > current {
            let (lowest, until) = history.lowest(spec.up.window, now).unwrap_or((wanted, now));
            let stable = wanted.min(lowest);
            if stable <= current {
                return Step { replicas: current, held: Some(ReasonClass::Stabilizing), until: Some(until) };
            }
            let (added, until) = history.added(now);
            limited(current, stable, spec.up.max_step.saturating_sub(added), until)
        } else if wanted < current {
            self.step_down(wanted)
        } else {
            Step { replicas: current, held: None, until: None }
        }
    }

    fn step_down(&self, wanted: u32) -> Step {
        let Self { spec, current, history, now, .. } = self;
        let hold = |class, until| Step { replicas: *current, held: Some(class), until };
        if !self.covered {
            return hold(ReasonClass::ReportsMissing, None);
        }
        let full = history.covered_since().unwrap_or(*now) + spec.down.window;
        if full > *now {
            return hold(ReasonClass::Stabilizing, Some(full));
        }
        let (highest, until) = history.highest(spec.down.window, *now).unwrap_or((wanted, *now));
        let stable = wanted.max(highest);
        if stable >= *current {
            return hold(ReasonClass::Stabilizing, Some(until));
        }
        let (removed, until) = history.removed(*now);
        limited(*current, stable, spec.down.max_step.saturating_sub(removed), until)
    }

    /// Workers that do not come up are kept waiting, so that a cluster autoscaler sees them, but only a few.
    fn capped(&self, replicas: u32) -> u32 {
        if self.late == 0 {
            return replicas;
        }
        let arrived = self.current.saturating_sub(self.late);
        replicas.min(arrived.saturating_add(self.spec.up.max_step))
    }

    fn next_look(&self, until: Option<Duration>) -> Duration {
        let patience = patience(self.load, self.spec, self.history);
        let coming = self.load.workers.iter().filter_map(|worker| match worker.class {
            Class::Coming { for_, .. } => patience.checked_sub(for_),
            _ => None,
        });
        let step = until.map(|until| until.saturating_sub(self.now));
        let soonest = coming.chain(step).min().unwrap_or(LONGEST_LOOK);
        soonest.clamp(SHORTEST_LOOK, LONGEST_LOOK)
    }

    fn sentence(&self, need: &Need, wanted: u32, replicas: u32, class: ReasonClass) -> String {
        let Self { load, spec, current, late, .. } = self;
        let load = Described { load, spec };
        let asked = need.wanted;
        match class {
            ReasonClass::Steady => format!("{load}: {current} workers fit"),
            ReasonClass::MemoryPressure | ReasonClass::Backlog | ReasonClass::LowPressure => {
                let bound = match asked.cmp(&wanted) {
                    Ordering::Less => format!(", minReplicas is {}", spec.min),
                    Ordering::Equal => String::new(),
                    Ordering::Greater => format!(", maxReplicas is {}", spec.max),
                };
                format!("{load}: {asked} workers are needed, {current} were wanted{bound}")
            }
            ReasonClass::NoCapacity => {
                let without = self.load.count(|class| class == Class::NoCapacity);
                format!(
                    "{without} workers have no room for a batch and are replaced; {load}: {asked} workers are needed"
                )
            }
            ReasonClass::Stabilizing => {
                let window = if wanted > *current { spec.up.window } else { spec.down.window };
                format!(
                    "{load}: {wanted} workers are needed, not yet throughout the stabilization window of {} s, so {current} stay",
                    window.as_secs()
                )
            }
            ReasonClass::StepLimited => format!(
                "{load}: {wanted} workers are needed, a step of maxStep within {} s leads to {replicas}",
                STEP_PERIOD.as_secs()
            ),
            ReasonClass::AtMinimum => format!("{load}: {asked} workers are needed, minReplicas is {}", spec.min),
            ReasonClass::AtMaximum => format!("{load}: {asked} workers are needed, maxReplicas is {}", spec.max),
            ReasonClass::ReportsMissing => format!(
                "only {} of {} ready workers report, so {current} stay; {load}",
                self.load.ready_known, self.load.ready
            ),
            ReasonClass::InsufficientGpu => {
                let homeless = self.load.count(|class| matches!(class, Class::Coming { scheduled: false, .. }));
                format!(
                    "{late} workers have not come up within twice the load time ({} s), {homeless} of all have no node with a free GPU, so at most maxStep ({}) are kept waiting; {load}: {wanted} workers are needed",
                    patience(self.load, spec, self.history).as_secs(),
                    spec.up.max_step
                )
            }
        }
    }
}

/// `stable`, or as far towards it as `room` allows.
fn limited(current: u32, stable: u32, room: u32, until: Option<Duration>) -> Step {
    let distance = stable.abs_diff(current);
    if distance <= room {
        return Step { replicas: stable, held: None, until: None };
    }
    let replicas = if stable > current { current + room } else { current - room };
    Step { replicas, held: Some(ReasonClass::StepLimited), until }
}

/// How long a worker that is on its way counts as capacity to come.
fn patience(load: &Load, spec: &ScalingSpec, history: &History) -> Duration {
    load.load_time.max(history.load_time()).unwrap_or(spec.assumed_load_time) * PATIENCE
}

/// The signal that binds, with its numbers.
struct Described<'a> {
    load: &'a Load,
    spec: &'a ScalingSpec,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { load, spec } = self;
        let (known, target) = (load.known(), spec.targets.memory_pressure);
        let pressure = load.pressure_known();
        match load.binding() {
            _ if known == 0 => write!(f, "no worker reports its load"),
            _ if pressure <= 0.0 => write!(f, "no work on {known} workers"),
            Signal::Memory => write!(f, "memory pressure {pressure:.2} over {known} workers, target {target:.2} each"),
            Signal::Backlog => write!(
                f,
                "backlog {:.1} s over {known} workers, targetQueueWait {} s each (pressure {pressure:.2}, target {target:.2})",
                load.backlog_seconds(),
                spec.targets.queue_wait.as_secs_f64()
            ),
        }?;
        let unknown = load.count(|class| class == Class::Unknown);
        if unknown > 0 { write!(f, ", {unknown} unknown") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
