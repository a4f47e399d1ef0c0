//! Conditions by the conventions of Kubernetes: a transition time moves only when the status does.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{MAX_MESSAGE, fleet::Counts};
use crate::crd::{ConditionType, ImageGen, Reason};

/// A reason and the sentence that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Verdict {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The conditions of one ImageGen while they are being decided.
pub(super) struct Conditions {
    list: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

/// What the conditions of a healthy ImageGen say beside their reasons.
#[derive(Clone, Copy)]
pub(super) struct Notes<'a> {
    /// The model, in short.
    pub(super) model: &'a str,
    /// What a replacement means for clients.
    pub(super) gap: Option<&'a str>,
    /// What of the spec has no effect.
    pub(super) left_out: &'a [String],
}

impl Conditions {
    /// Begins with those that `cr` has.
    pub(super) fn new(cr: &ImageGen, now: Timestamp) -> Self {
        let list = cr.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        Self { list, generation: cr.metadata.generation, now }
    }

    /// Sets a condition to true or false.
    pub(super) fn set(&mut self, kind: ConditionType, holds: bool, verdict: Verdict) {
        let status = if holds { "True" } else { "False" };
        let type_ = kind.to_string();
        let old = self.list.iter().position(|condition| condition.type_ == type_);
        let since = old.map(|index| &self.list[index]).filter(|condition| condition.status == status);
        let condition = Condition {
            last_transition_time: since.map_or(Time(self.now), |condition| condition.last_transition_time.clone()),
            message: shortened(verdict.message),
            observed_generation: self.generation,
            reason: verdict.reason.to_string(),
            status: status.to_owned(),
            type_,
        };
        match old {
            Some(index) => self.list[index] = condition,
            None => self.list.push(condition),
        }
    }

    /// Sets a condition that has never been set.
    pub(super) fn set_if_absent(&mut self, kind: ConditionType, holds: bool, verdict: Verdict) {
        let type_ = kind.to_string();
        if !self.list.iter().any(|condition| condition.type_ == type_) {
            self.set(kind, holds, verdict);
        }
    }

    /// All conditions of a spec that was applied. `failure` is what could not be applied or rolled out, `trouble` why pods
    /// do not come up.
    pub(super) fn set_all(
        &mut self,
        counts: &Counts,
        failure: Option<Verdict>,
        trouble: Option<Verdict>,
        notes: Notes<'_>,
        (active, scaling): (bool, Verdict),
    ) {
        let Notes { model, gap, left_out } = notes;
        let mut progress = progress(counts);
        if let Some(gap) = gap.filter(|_| progress.reason == Reason::RollingOut) {
            progress.message = format!("{}; {gap}", progress.message);
        }
        if let Some(stopped) = failure.clone().filter(|failure| STOPPED.contains(&failure.reason)) {
            progress = stopped;
        }
        let paused = progress.reason == Reason::RolloutPaused;
        let moving = !counts.complete() && !counts.deadline_exceeded && !paused;
        let wrong = failure.or(trouble).or_else(|| counts.deadline_exceeded.then(|| progress.clone()));
        let why_not = wrong.clone().unwrap_or_else(|| progress.clone());

        self.set_answering(counts, &why_not, model);
        self.set(ConditionType::Progressing, moving, progress);
        let as_expected = || Verdict::new(Reason::AsExpected, "nothing needs attention");
        self.set(ConditionType::Degraded, wrong.is_some(), wrong.clone().unwrap_or_else(as_expected));
        self.set(ConditionType::ScalingActive, active, scaling);
        let ready = counts.complete() && wrong.is_none();
        let mut verdict = match (ready, counts.desired) {
            (true, 0) => Verdict::new(Reason::ScaledToZero, "no worker is wanted, and none is there"),
            (true, _) => Verdict::new(Reason::AllWorkersReady, counts.to_string()),
            (false, _) => why_not,
        };
        for sentence in left_out {
            verdict.message = format!("{}; {sentence}", verdict.message);
        }
        self.set(ConditionType::Ready, ready, verdict);
    }

    /// Available and ModelReady: whether somebody answers, `why_not` if nobody does.
    pub(super) fn set_answering(&mut self, counts: &Counts, why_not: &Verdict, model: &str) {
        let (answers, available, loaded) = if counts.ready > 0 {
            let loaded = Verdict::new(Reason::Loaded, format!("{model} is loaded"));
            (true, Verdict::new(Reason::WorkersReady, counts.to_string()), loaded)
        } else if counts.desired == 0 {
            let nobody = Verdict::new(Reason::ScaledToZero, "no worker is wanted: set replicas to have one");
            (false, nobody.clone(), nobody)
        } else {
            (false, why_not.clone(), why_not.clone())
        };
        self.set(ConditionType::Available, answers, available);
        self.set(ConditionType::ModelReady, answers, loaded);
    }

    /// The conditions, in a fixed order.
    pub(super) fn finish(mut self) -> Vec<Condition> {
        let rank = |condition: &Condition| condition.type_.parse::<ConditionType>().ok();
        self.list.sort_by_key(|condition| (rank(condition).is_none(), rank(condition)));
        self.list
    }
}

/// Reasons of a rollout that was stopped.
const STOPPED: [Reason; 2] = [Reason::RolloutPaused, Reason::RolledBack];

/// How far the fleet is from what is wanted.
fn progress(counts: &Counts) -> Verdict {
    if counts.complete() {
        Verdict::new(Reason::UpToDate, "every worker has the current spec")
    } else if counts.deadline_exceeded {
        Verdict::new(
            Reason::ProgressDeadlineExceeded,
            format!("the rollout stopped making progress for longer than spec.rollout.progressDeadline: {counts}"),
        )
    } else if counts.replicas == 0 && counts.desired > 0 {
        Verdict::new(Reason::Starting, format!("workers are being created: {counts}"))
    } else if counts.rolling_out() {
        Verdict::new(Reason::RollingOut, format!("workers are being replaced: {counts}"))
    } else if counts.replicas != counts.desired {
        Verdict::new(Reason::Scaling, format!("the number of workers is changing: {counts}"))
    } else {
        Verdict::new(Reason::Starting, format!("workers start and load the model: {counts}"))
    }
}

fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE - "...".len();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}
