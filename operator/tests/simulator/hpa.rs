//! The arithmetic of the HorizontalPodAutoscaler (autoscaling/v2), as far as these rivals use it. Pure.
//!
//! Source: kubernetes 1.33, pkg/controller/podautoscaler/{horizontal.go, replica_calculator.go, metrics/utilization.go}.
//! Metric values are in thousandths, as there. Times are seconds since an origin that the caller keeps.

use std::collections::{BTreeMap, HashMap};

/// Relative distance from the target below which nothing changes.
const TOLERANCE: f64 = 0.1;

/// A pod, as the replica calculator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodPhase {
    /// Being deleted, or failed: left out.
    Ignored,
    /// Not started: no metric of it counts.
    Pending,
    /// Started, ready or not: for a metric that is not CPU, readiness is not asked.
    Running,
}

/// Why no size was computed. The size then stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMetrics;

/// Size for a Pods metric: `metrics` of the pods that have one, against the wanted average.
pub(crate) fn pods_metric(
    pods: &BTreeMap<u64, PodPhase>,
    metrics: &HashMap<u64, i64>,
    target: i64,
    current: i64,
) -> Result<i64, NoMetrics> {
    let of_phase = |wanted: PodPhase| pods.iter().filter(move |(_, phase)| **phase == wanted).map(|(id, _)| *id);
    let measured: Vec<i64> = of_phase(PodPhase::Running).filter_map(|id| metrics.get(&id).copied()).collect();
    let missing = of_phase(PodPhase::Running).filter(|id| !metrics.contains_key(id)).count();
    let unready = of_phase(PodPhase::Pending).count();
    if measured.is_empty() {
        return Err(NoMetrics);
    }
    let ready = measured.len();
    let ratio = usage_ratio(&measured, target);
    let up_with_unready = unready > 0 && ratio > 1.0;
    if !up_with_unready && missing == 0 {
        return Ok(if within_tolerance(ratio) { current } else { (ratio * ready as f64).ceil() as i64 });
    }
    // What is missing speaks against the direction of the change.
    let mut assumed = measured;
    assumed.extend(std::iter::repeat_n(if ratio < 1.0 { target } else { 0 }, missing));
    if up_with_unready {
        assumed.extend(std::iter::repeat_n(0, unready));
    }
    let careful = usage_ratio(&assumed, target);
    let turned = (ratio < 1.0 && careful > 1.0) || (ratio > 1.0 && careful < 1.0);
    if within_tolerance(careful) || turned {
        return Ok(current);
    }
    let size = (careful * assumed.len() as f64).ceil() as i64;
    let against = (careful < 1.0 && size > current) || (careful > 1.0 && size < current);
    Ok(if against { current } else { size })
}

/// Size for an Object or External metric with an AverageValue: `usage` over all, against the wanted share of each replica.
pub(crate) fn average_value_metric(usage: i64, target: i64, replicas: i64) -> i64 {
    let ratio = usage as f64 / (target as f64 * replicas as f64);
    if within_tolerance(ratio) { replicas } else { (usage as f64 / target as f64).ceil() as i64 }
}

fn usage_ratio(metrics: &[i64], target: i64) -> f64 {
    // The mean is an integer division, as there.
    let mean = metrics.iter().sum::<i64>() / metrics.len() as i64;
    mean as f64 / target as f64
}

fn within_tolerance(ratio: f64) -> bool {
    (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio)
}

/// `spec.behavior` of one direction.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) window_seconds: f64,
    pub(crate) policies: Vec<Policy>,
    pub(crate) select: Select,
}

/// One policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) kind: PolicyKind,
    pub(crate) value: i64,
    pub(crate) period_seconds: f64,
}

/// What its value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolicyKind {
    Pods,
    Percent,
}

/// Which of several policies counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "the rivals use the default; the table of cases uses all")]
pub(crate) enum Select {
    Max,
    Min,
    Disabled,
}

/// Sizes between which an HPA moves, and how fast.
#[derive(Clone, Debug)]
pub(crate) struct Behavior {
    pub(crate) min: i64,
    pub(crate) max: i64,
    pub(crate) up: Rules,
    pub(crate) down: Rules,
}

impl Behavior {
    /// What an HPA does that names no behavior.
    pub(crate) fn default_of(min: i64, max: i64) -> Self {
        let policy = |kind, value| Policy { kind, value, period_seconds: 15.0 };
        Self {
            min,
            max,
            up: Rules {
                window_seconds: 0.0,
                policies: vec![policy(PolicyKind::Pods, 4), policy(PolicyKind::Percent, 100)],
                select: Select::Max,
            },
            down: Rules {
                window_seconds: 300.0,
                policies: vec![policy(PolicyKind::Percent, 100)],
                select: Select::Max,
            },
        }
    }
}

/// What the controller remembers of one HPA.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    recommendations: Vec<(f64, i64)>,
    ups: Vec<(f64, i64)>,
    downs: Vec<(f64, i64)>,
}

impl Memory {
    /// One sync: the new size when a metric recommends `recommended`, or `current` when it has none.
    pub(crate) fn sync(
        &mut self,
        behavior: &Behavior,
        current: i64,
        recommended: Result<i64, NoMetrics>,
        now: f64,
    ) -> i64 {
        let size = if current > behavior.max {
            behavior.max
        } else if current < behavior.min {
            behavior.min
        } else {
            let Ok(recommended) = recommended else { return current };
            if self.recommendations.is_empty() {
                self.recommendations.push((now, current));
            }
            let stable = self.stabilized(behavior, current, recommended, now);
            self.limited(behavior, current, stable, now)
        };
        self.remember(behavior, current, size, now);
        size
    }

    fn stabilized(&mut self, behavior: &Behavior, current: i64, recommended: i64, now: f64) -> i64 {
        let (up_since, down_since) = (now - behavior.up.window_seconds, now - behavior.down.window_seconds);
        let (mut lowest, mut highest) = (recommended, recommended);
        for &(at, size) in &self.recommendations {
            if at > up_since {
                lowest = lowest.min(size);
            }
            if at > down_since {
                highest = highest.max(size);
            }
        }
        self.recommendations.retain(|(at, _)| *at >= up_since.min(down_since));
        self.recommendations.push((now, recommended));
        current.max(lowest).min(highest)
    }

    fn limited(&self, behavior: &Behavior, current: i64, wanted: i64, now: f64) -> i64 {
        if wanted > current {
            let limit = self.up_limit(&behavior.up, current, now).max(current);
            wanted.min(limit.min(behavior.max))
        } else if wanted < current {
            let limit = self.down_limit(&behavior.down, current, now).min(current);
            wanted.max(limit.max(behavior.min))
        } else {
            current
        }
    }

    fn up_limit(&self, rules: &Rules, current: i64, now: f64) -> i64 {
        let limits = rules.policies.iter().map(|policy| {
            let start = self.period_start(policy, current, now);
            match policy.kind {
                PolicyKind::Pods => start + policy.value,
                PolicyKind::Percent => (start as f64 * (1.0 + policy.value as f64 / 100.0)).ceil() as i64,
            }
        });
        selected(rules.select, limits.clone().max(), limits.min(), current)
    }

    fn down_limit(&self, rules: &Rules, current: i64, now: f64) -> i64 {
        let limits = rules.policies.iter().map(|policy| {
            let start = self.period_start(policy, current, now);
            match policy.kind {
                PolicyKind::Pods => start - policy.value,
                PolicyKind::Percent => (start as f64 * (1.0 - policy.value as f64 / 100.0)) as i64,
            }
        });
        selected(rules.select, limits.clone().min(), limits.max(), current)
    }

    /// The size at the beginning of the policy's period.
    fn period_start(&self, policy: &Policy, current: i64, now: f64) -> i64 {
        let since = now - policy.period_seconds;
        let moved = |events: &[(f64, i64)]| -> i64 {
            events.iter().filter(|(at, _)| *at > since).map(|(_, change)| change).sum()
        };
        current - moved(&self.ups) + moved(&self.downs)
    }

    fn remember(&mut self, behavior: &Behavior, from: i64, to: i64, now: f64) {
        let longest = |rules: &Rules| rules.policies.iter().map(|policy| policy.period_seconds).fold(0.0, f64::max);
        if to > from {
            self.ups.push((now, to - from));
        } else if to < from {
            self.downs.push((now, from - to));
        }
        self.ups.retain(|(at, _)| *at > now - longest(&behavior.up));
        self.downs.retain(|(at, _)| *at > now - longest(&behavior.down));
    }
}

fn selected(select: Select, most: Option<i64>, least: Option<i64>, current: i64) -> i64 {
    match select {
        Select::Max => most,
        Select::Min => least,
        Select::Disabled => None,
    }
    .unwrap_or(current)
}

#[cfg(test)]
#[path = "hpa_cases.rs"]
mod cases;
