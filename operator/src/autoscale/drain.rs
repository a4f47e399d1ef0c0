//! Which workers go when fewer are wanted: Active -> Draining -> Drained -> removed. Pure, and without memory: a drain is
//! written on its pod and reported by its worker, so that the next leader goes on where the last one stopped.
//!
//! The ReplicaSet removes pods, not the operator: first those that are not ready, then the lowest deletion cost. Workers
//! that drain are not ready, too, so each that may go is released first, by the lowest cost there is, and the size goes
//! down by exactly the number of released ones. Where the ReplicaSet takes another, the released one goes back to work.

use jiff::Timestamp;

/// Every drain for scaling down is called this and the second of its deadline.
const ID_PREFIX: &str = "scale-";

/// A pod that counts: not one that is being deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Name of the pod.
    pub pod: String,
    /// What can be done with it.
    pub kind: Kind,
    /// Its scaling signal.
    pub pressure: f64,
    /// (peak reserved - peak allocated) / peak reserved.
    pub pool_overhead_ratio: f64,
    /// The drain that it is in.
    pub drain: Option<Drain>,
    /// Its pod has the lowest deletion cost.
    pub released: bool,
}

/// What can be done with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has not served yet, so nothing is lost with it.
    Coming,
    /// It serves, and can be told to drain.
    Working,
    /// It cannot be told anything. The kubelet's SIGTERM drains it, if there is anything to drain.
    Unreachable,
    /// It is being drained for another purpose, and comes back.
    Busy,
}

/// A drain for scaling down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Its name.
    pub id: String,
    /// The worker reports it.
    pub accepted: bool,
    /// The worker reports that nothing runs and nothing waits.
    pub drained: bool,
}

/// The sizes that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Workers that are wanted.
    pub desired: u32,
    /// `Deployment.spec.replicas` now.
    pub current: u32,
    /// Pods that the Deployment counts; more than the candidates when some of them have not been seen yet.
    pub counted: u32,
    /// A new pod template is being rolled out, which creates and removes pods by its own rules.
    pub rolling: bool,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What `Deployment.spec.replicas` has to be.
    pub replicas: u32,
    /// What to tell workers.
    pub actions: Vec<Action>,
}

/// What to tell a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To take nothing new, and to finish what it has.
    Drain {
        /// Name of its pod.
        pod: String,
        /// Names the drain.
        id: String,
    },
    /// Nothing: its pod gets the lowest deletion cost.
    Release {
        /// Name of the pod.
        pod: String,
    },
    /// To go back to work. Its pod is no longer released.
    Resume {
        /// Name of its pod.
        pod: String,
        /// Names the drain that ends, if there is one.
        id: Option<String>,
    },
}

impl Drain {
    /// The name of a drain that ends at `deadline` at the latest.
    #[must_use]
    pub fn id(deadline: Timestamp) -> String {
        format!("{ID_PREFIX}{}", deadline.as_second())
    }

    /// Whether a drain of this name is one for scaling down.
    #[must_use]
    pub fn is_ours(id: &str) -> bool {
        id.starts_with(ID_PREFIX)
    }

    /// When it ends at the latest; the beginning of time for a name that does not say.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        let seconds = self.id.strip_prefix(ID_PREFIX).and_then(|second| second.parse().ok());
        seconds.and_then(|second| Timestamp::from_second(second).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.drained || self.deadline() <= now
    }
}

/// What to do so that `sizes.desired` workers are left, when a drain that begins now ends at `deadline`.
#[must_use]
pub fn plan(sizes: Sizes, candidates: &[Candidate], deadline: Timestamp, now: Timestamp) -> Plan {
    let mut fleet = Sorted::new(candidates, now);
    let Sizes { desired, current, counted, rolling } = sizes;
    let mut plan = Plan { replicas: current.max(desired), actions: Vec::new() };
    // Released while it was starting, and serving by now: it would have to drain first.
    plan.resume(fleet.active.iter().filter(|candidate| candidate.released));
    if rolling {
        plan.replicas = desired;
        plan.resume(fleet.released.iter().chain(&fleet.over).chain(&fleet.draining));
        return plan;
    }
    // Pods that the ReplicaSet is about to remove for an earlier step.
    let there = len(candidates).max(counted);
    let mut leaving = there.saturating_sub(plan.replicas);
    for group in [&mut fleet.released, &mut fleet.coming, &mut fleet.over, &mut fleet.draining] {
        let taken = leaving.min(len(group));
        group.drain(..taken as usize);
        leaving -= taken;
    }

    let mut rest = current.saturating_sub(desired);
    // Sizes that no pod stands for yet, then what is released.
    let absent = rest.min(current.saturating_sub(there));
    rest -= absent;
    let removed = take(&mut rest, &fleet.released);
    plan.replicas -= absent + len(removed);
    plan.resume(&fleet.released[removed.len()..]);
    // Next to be released: what has not served, then what has finished.
    for group in [&fleet.coming, &fleet.over] {
        let next = take(&mut rest, group);
        plan.actions.extend(next.iter().map(|candidate| Action::Release { pod: candidate.pod.clone() }));
        plan.resume(&group[next.len()..]);
    }
    // Those that drain go on, the least loaded first; those too many go back to work.
    let going_on = take(&mut rest, &fleet.draining);
    for candidate in going_on {
        if let Some(drain) = candidate.drain.as_ref().filter(|drain| !drain.accepted) {
            plan.actions.push(Action::Drain { pod: candidate.pod.clone(), id: drain.id.clone() });
        }
    }
    plan.resume(&fleet.draining[going_on.len()..]);
    // The rest begins to drain. One that cannot be told is ready as far as the ReplicaSet knows, which takes those that
    // drain before it: so the two never go at the same time.
    let chosen = take(&mut rest, &fleet.active);
    let unreachable = |candidate: &&Candidate| candidate.kind == Kind::Unreachable;
    let going = fleet.released.iter().chain(&fleet.over).any(unreachable);
    let alone = going || (going_on.is_empty() && chosen.iter().any(unreachable));
    for candidate in chosen.iter().filter(|candidate| unreachable(candidate) == alone) {
        plan.actions.push(Action::Drain { pod: candidate.pod.clone(), id: Drain::id(deadline) });
    }
    plan
}

/// As many of `group` as `rest` asks for, which then asks for so many less.
fn take<'a, T>(rest: &mut u32, group: &'a [T]) -> &'a [T] {
    let taken = (*rest).min(len(group));
    *rest -= taken;
    &group[..taken as usize]
}

impl Plan {
    fn resume<'a>(&mut self, candidates: impl IntoIterator<Item = &'a &'a Candidate>) {
        let marked = candidates.into_iter().filter(|candidate| candidate.released || candidate.drain.is_some());
        self.actions.extend(marked.map(|candidate| Action::Resume {
            pod: candidate.pod.clone(),
            id: candidate.drain.as_ref().map(|drain| drain.id.clone()),
        }));
    }
}

/// Pods by what they are, each group in the order in which they go.
#[derive(Default)]
struct Sorted<'a> {
    released: Vec<&'a Candidate>,
    coming: Vec<&'a Candidate>,
    /// Drained, out of time, or out of reach.
    over: Vec<&'a Candidate>,
    draining: Vec<&'a Candidate>,
    /// Those that can be chosen.
    active: Vec<&'a Candidate>,
}

impl<'a> Sorted<'a> {
    fn new(candidates: &'a [Candidate], now: Timestamp) -> Self {
        let mut sorted = Self::default();
        for candidate in candidates {
            let may_go = match (&candidate.drain, candidate.kind) {
                (_, Kind::Coming) | (Some(_), Kind::Unreachable) => true,
                (Some(drain), _) => drain.is_over(now),
                (None, _) => false,
            };
            match (&candidate.drain, candidate.kind) {
                _ if candidate.released && may_go => sorted.released.push(candidate),
                (_, Kind::Coming) => sorted.coming.push(candidate),
                (Some(_), _) if may_go => sorted.over.push(candidate),
                (Some(_), _) => sorted.draining.push(candidate),
                (None, Kind::Working | Kind::Unreachable) => sorted.active.push(candidate),
                (None, Kind::Busy) => {}
            }
        }
        for group in [&mut sorted.released, &mut sorted.over, &mut sorted.draining, &mut sorted.active] {
            // What serves nobody goes before what does; then the least loaded, then the one with the most worn-out pool.
            let serves = |candidate: &Candidate| candidate.kind == Kind::Working && candidate.drain.is_none();
            group.sort_by(|a, b| {
                let by_load = a.pressure.total_cmp(&b.pressure);
                let by_pool = b.pool_overhead_ratio.total_cmp(&a.pool_overhead_ratio);
                serves(a).cmp(&serves(b)).then(by_load).then(by_pool).then_with(|| a.pod.cmp(&b.pod))
            });
        }
        sorted
    }
}

fn len<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
