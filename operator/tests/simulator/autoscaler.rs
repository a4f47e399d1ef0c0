//! The autoscalers that are compared. All but ours go through the arithmetic of the HorizontalPodAutoscaler.

use std::{collections::BTreeMap, time::Duration};

use imagegen_operator::autoscale::{
    decide::decide,
    history::History,
    load::Load,
    spec::{ScalingSpec, Speed, Targets},
};
use rand::Rng;

use super::{
    card::Card,
    hpa::{self, Behavior, NoMetrics, PodPhase, average_value_metric, pods_metric},
    scenario::Scenario,
    signals::{self, Scrape, thousandths},
    worker::{Phase, Worker},
};

/// Between two syncs of the kube-controller-manager, by default.
const SYNC_SECONDS: f64 = 15.0;
/// Between two scrapes of a monitoring system, as usual.
const SCRAPE_SECONDS: f64 = 15.0;
/// Between two polls of KEDA, by default, with its cached metrics.
const POLL_SECONDS: f64 = 30.0;

/// Who decides, from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The operator's decision, every second.
    Operator,
    /// The operator's signal, through an HPA.
    OperatorThroughHpa,
    /// HPA on the mean GPU utilisation, from a monitoring system.
    GpuUtilization,
    /// HPA on the mean of NVML's used memory, from a monitoring system.
    NvmlMemory,
    /// HPA on the requests that run or wait, from a monitoring system.
    QueueLength,
    /// The same by way of KEDA with cached metrics.
    Keda,
}

impl Kind {
    /// Everyone.
    pub(crate) const ALL: [Self; 6] = [
        Self::Operator,
        Self::OperatorThroughHpa,
        Self::GpuUtilization,
        Self::NvmlMemory,
        Self::QueueLength,
        Self::Keda,
    ];

    /// As it stands in the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Operator => "ImageGen, Operator mode",
            Self::OperatorThroughHpa => "ImageGen's signal, HPA",
            Self::GpuUtilization => "HPA on GPU utilisation",
            Self::NvmlMemory => "HPA on NVML used %",
            Self::QueueLength => "HPA on queue length",
            Self::Keda => "KEDA on queue length, 30 s",
        }
    }

    /// What its target means.
    pub(crate) const fn target_unit(self) -> &'static str {
        match self {
            Self::Operator | Self::OperatorThroughHpa => "s of targetQueueWait",
            Self::GpuUtilization => "mean utilisation",
            Self::NvmlMemory => "mean share of memory",
            Self::QueueLength | Self::Keda => "requests a worker",
        }
    }

    /// Targets among which its own is searched.
    pub(crate) const fn targets(self) -> &'static [f64] {
        match self {
            Self::Operator | Self::OperatorThroughHpa => &[0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0],
            Self::GpuUtilization => &[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
            Self::NvmlMemory => &[0.1, 0.15, 0.2, 0.24, 0.26, 0.28, 0.3, 0.35, 0.4],
            Self::QueueLength | Self::Keda => &[0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
        }
    }

    /// Whether a drained worker can be taken back, and the least loaded one goes first.
    pub(crate) const fn drains(self) -> bool {
        matches!(self, Self::Operator)
    }
}

/// One autoscaler on one run.
pub(crate) struct Autoscaler {
    pub(crate) kind: Kind,
    target: f64,
    spec: ScalingSpec,
    history: History,
    behavior: Behavior,
    memory: hpa::Memory,
    scrape: Scrape,
    /// Requests as KEDA saw them last, in thousandths.
    polled: i64,
    next_scrape: f64,
    next_sync: f64,
    next_poll: f64,
}

impl Autoscaler {
    /// Fresh, with clocks of its own.
    pub(crate) fn new(kind: Kind, target: f64, scenario: &Scenario, rng: &mut impl Rng) -> Self {
        let queue_wait = if matches!(kind, Kind::Operator | Kind::OperatorThroughHpa) { target } else { 20.0 };
        let spec = ScalingSpec {
            min: scenario.min,
            max: scenario.max,
            targets: Targets { memory_pressure: 0.75, queue_wait: Duration::from_secs_f64(queue_wait) },
            tolerance: 0.1,
            up: Speed { window: Duration::ZERO, max_step: max_step(scenario) },
            down: Speed { window: Duration::from_secs(300), max_step: max_step(scenario) / 4 },
            assumed_load_time: Duration::from_secs(60),
        };
        Self {
            kind,
            target,
            spec,
            history: History::default(),
            behavior: Behavior::default_of(i64::from(scenario.min), i64::from(scenario.max)),
            memory: hpa::Memory::default(),
            scrape: Scrape::default(),
            polled: 0,
            next_scrape: rng.random_range(0.0..SCRAPE_SECONDS),
            next_sync: rng.random_range(0.0..SYNC_SECONDS),
            next_poll: rng.random_range(0.0..POLL_SECONDS),
        }
    }

    /// The wanted size at `now`; `current` counts no worker that drains. Called every second.
    pub(crate) fn tick(&mut self, workers: &[Worker], card: &Card, current: u32, now: f64) -> u32 {
        if self.kind == Kind::Operator {
            let load = Load::aggregate(&signals::fleet(workers, card, now), &self.spec.targets);
            let at = Duration::from_secs_f64(now);
            let decision = decide(&load, &self.spec, current, &self.history, at);
            self.history.note(&decision, current, &self.spec, at);
            return decision.replicas;
        }
        if due(&mut self.next_scrape, SCRAPE_SECONDS, now) {
            self.scrape.take(workers, card, now);
        }
        if due(&mut self.next_poll, POLL_SECONDS, now) {
            self.polled = self.scrape.requests;
        }
        if !due(&mut self.next_sync, SYNC_SECONDS, now) {
            return current;
        }
        let size = i64::from(current);
        let target = thousandths(self.target);
        let recommended = match self.kind {
            Kind::GpuUtilization => pods_metric(&phases(workers), &self.scrape.utilization, target, size),
            Kind::NvmlMemory => pods_metric(&phases(workers), &self.scrape.memory_used, target, size),
            Kind::QueueLength => Ok(average_value_metric(self.scrape.requests, target, size)),
            Kind::Keda => Ok(average_value_metric(self.polled, target, size)),
            Kind::Operator | Kind::OperatorThroughHpa => {
                let load = Load::aggregate(&signals::fleet(workers, card, now), &self.spec.targets);
                let total = load.pressure_total(self.spec.up.max_step).ok_or(NoMetrics);
                let target = thousandths(self.spec.targets.memory_pressure);
                total.map(|total| average_value_metric(thousandths(total), target, size))
            }
        };
        let size = self.memory.sync(&self.behavior, size, recommended, now);
        u32::try_from(size).unwrap_or(0)
    }
}

/// maxStep: 4, as built in; a fleet of hundreds is given more, as HPA's 100 % of it are.
fn max_step(scenario: &Scenario) -> u32 {
    4.max(scenario.max / 10)
}

fn due(next: &mut f64, every: f64, now: f64) -> bool {
    let is_due = now >= *next;
    if is_due {
        *next += every;
    }
    is_due
}

fn phases(workers: &[Worker]) -> BTreeMap<u64, PodPhase> {
    let phase = |worker: &Worker| match worker.phase {
        Phase::Unscheduled | Phase::Pending => PodPhase::Pending,
        Phase::Loading | Phase::Serving => PodPhase::Running,
        Phase::Draining | Phase::Gone => PodPhase::Ignored,
    };
    workers.iter().map(|worker| (worker.id, phase(worker))).collect()
}
