//! Who is recycled now.

use std::{fmt, time::Duration};

use jiff::Timestamp;

use super::Policy;

/// One worker of an ImageGen, as far as recycling asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// Name of its pod.
    pub pod: String,
    /// What it does.
    pub standing: Standing,
    /// When its container was started; `None` when it is not running.
    pub started: Option<Timestamp>,
    /// Pool overhead over the last interval with work.
    pub pool_overhead: f64,
    /// Out-of-memory errors within the time of the policy.
    pub out_of_memory: u64,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It takes work. Idle: nothing runs or waits.
    Serving {
        /// Nothing runs or waits.
        idle: bool,
    },
    /// It does not take work: starting, draining, failed, going, or silent.
    Away,
}

/// What is done now, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Workers to recycle now.
    pub now: Vec<Recycle>,
    /// When something becomes due by time alone.
    pub look_again: Option<Timestamp>,
}

/// An order to recycle one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Recycle {
    /// Name of the pod.
    pub pod: String,
    /// Names the drain: the same for every order to the same process.
    pub drain_id: String,
    /// Why.
    pub cause: Cause,
}

/// Why a worker is recycled. In the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cause {
    /// It ran out of memory too often.
    OutOfMemory {
        /// How often.
        count: u64,
        /// In which time.
        within: Duration,
    },
    /// Its pool wastes too much.
    PoolOverhead {
        /// Measured.
        ratio: f64,
        /// Allowed.
        above: f64,
    },
    /// It is time.
    Schedule {
        /// The scheduled start.
        start: Timestamp,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory { count, within } => {
                write!(f, "it ran out of memory {count} times within {} s", within.as_secs())
            }
            Self::PoolOverhead { ratio, above } => write!(f, "its pool overhead is {ratio:.2}, above {above:.2}"),
            Self::Schedule { start } => write!(f, "the schedule says so since {start}"),
        }
    }
}

impl Cause {
    const fn urgency(&self) -> u8 {
        match self {
            Self::OutOfMemory { .. } => 0,
            Self::PoolOverhead { .. } => 1,
            Self::Schedule { .. } => 2,
        }
    }
}

/// Decides who is recycled at `now`. `needed` is the number of serving workers that the load needs; as many stay, and of
/// all that serve at least one, unless the only one is idle.
#[must_use]
pub fn decide(workers: &[Worker], policy: &Policy, needed: u32, now: Timestamp) -> Plan {
    let open_since = policy.schedule.as_ref().and_then(|schedule| schedule.open_since(now, policy.window));
    let mut due: Vec<(&Worker, Timestamp, Cause)> = workers
        .iter()
        .filter(|worker| worker.standing != Standing::Away)
        .filter_map(|worker| {
            let started = worker.started.filter(|started| now.duration_since(*started) >= signed(policy.cooldown))?;
            Some((worker, started, cause(worker, started, policy, open_since)?))
        })
        .collect();
    due.sort_by(|(a, _, cause_a), (b, _, cause_b)| {
        let order = cause_a.urgency().cmp(&cause_b.urgency()).then(is_busy(a).cmp(&is_busy(b)));
        order.then(b.pool_overhead.total_cmp(&a.pool_overhead)).then_with(|| a.pod.cmp(&b.pod))
    });

    let serving = workers.iter().filter(|worker| worker.standing != Standing::Away).count();
    let away = workers.len() - serving;
    let mut left = serving;
    let mut room = (policy.max_unavailable as usize).saturating_sub(away);
    let mut plan = Plan { now: Vec::new(), look_again: look_again(workers, policy, now) };
    for (worker, started, cause) in due {
        let last = left == 1;
        if room == 0 || left <= needed as usize || (last && is_busy(worker)) {
            continue;
        }
        room -= 1;
        left -= 1;
        let drain_id = format!("recycle-{}", started.as_second());
        plan.now.push(Recycle { pod: worker.pod.clone(), drain_id, cause });
    }
    plan
}

fn is_busy(worker: &Worker) -> bool {
    worker.standing != Standing::Serving { idle: true }
}

fn cause(worker: &Worker, started: Timestamp, policy: &Policy, open_since: Option<Timestamp>) -> Option<Cause> {
    let out_of_memory = policy.after_out_of_memory.filter(|limit| worker.out_of_memory >= limit.count);
    let out_of_memory =
        out_of_memory.map(|limit| Cause::OutOfMemory { count: worker.out_of_memory, within: limit.within });
    let overhead = policy.pool_overhead_above.filter(|above| worker.pool_overhead > *above);
    let overhead = overhead.map(|above| Cause::PoolOverhead { ratio: worker.pool_overhead, above });
    let schedule = open_since.filter(|start| started < *start).map(|start| Cause::Schedule { start });
    out_of_memory.or(overhead).or(schedule)
}

/// The next start of the schedule, or the next end of a worker's cooldown.
fn look_again(workers: &[Worker], policy: &Policy, now: Timestamp) -> Option<Timestamp> {
    let cooled = |worker: &Worker| worker.started?.checked_add(policy.cooldown).ok();
    let cooled = workers.iter().filter_map(cooled).filter(|end| *end > now);
    cooled.chain(policy.schedule.as_ref().and_then(|schedule| schedule.next_after(now))).min()
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::recycle::{OutOfMemoryLimit, schedule::Schedule};

    const NOW: &str = "2026-05-01T03:30:00Z";
    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn policy() -> Policy {
        Policy {
            schedule: Some(Schedule::new("0 3 * * *", "Etc/UTC").unwrap()),
            window: 2 * HOUR,
            pool_overhead_above: Some(0.4),
            after_out_of_memory: Some(OutOfMemoryLimit { count: 3, within: HOUR }),
            max_unavailable: 1,
            cooldown: HOUR,
        }
    }

    /// Started yesterday, idle.
    fn worker(pod: &str) -> Worker {
        Worker {
            pod: pod.into(),
            standing: Standing::Serving { idle: true },
            started: Some("2026-04-30T03:30:00Z".parse().unwrap()),
            pool_overhead: 0.1,
            out_of_memory: 0,
        }
    }

    fn busy(pod: &str) -> Worker {
        Worker { standing: Standing::Serving { idle: false }, ..worker(pod) }
    }

    fn away(pod: &str) -> Worker {
        Worker { standing: Standing::Away, started: None, ..worker(pod) }
    }

    fn fresh(pod: &str) -> Worker {
        Worker { started: Some("2026-05-01T03:10:00Z".parse().unwrap()), ..worker(pod) }
    }

    #[rstest]
    #[case::one_at_a_time(vec![worker("a"), worker("b")], 0, &["a"])]
    #[case::an_idle_one_first(vec![busy("a"), worker("b")], 0, &["b"])]
    #[case::nobody_while_another_is_away(vec![worker("a"), away("b"), worker("c")], 0, &[])]
    #[case::those_started_since_are_done(vec![fresh("a"), worker("b")], 0, &["b"])]
    #[case::all_are_done(vec![fresh("a"), fresh("b")], 0, &[])]
    #[case::the_load_needs_all(vec![busy("a"), busy("b")], 2, &[])]
    #[case::the_load_needs_one_of_two(vec![busy("a"), busy("b")], 1, &["a"])]
    #[case::the_only_one_is_busy(vec![busy("a")], 0, &[])]
    #[case::the_only_one_is_idle(vec![worker("a")], 0, &["a"])]
    #[case::the_only_one_is_idle_but_needed(vec![worker("a")], 1, &[])]
    #[case::out_of_memory_goes_before_the_schedule(
        vec![worker("a"), Worker { out_of_memory: 3, ..busy("b") }], 0, &["b"])]
    #[case::pool_overhead_goes_before_the_schedule(
        vec![worker("a"), Worker { pool_overhead: 0.5, ..busy("b") }], 0, &["b"])]
    fn who_is_recycled(#[case] workers: Vec<Worker>, #[case] needed: u32, #[case] expected: &[&str]) {
        let plan = decide(&workers, &policy(), needed, now());
        assert_eq!(plan.now.iter().map(|order| order.pod.as_str()).collect::<Vec<_>>(), expected);
    }

    #[rstest]
    #[case::inside_the_window("2026-05-01T04:59:59Z", true)]
    #[case::a_missed_start_is_not_made_up_for_outside("2026-05-01T05:00:00Z", false)]
    #[case::before_the_window("2026-05-01T02:59:59Z", false)]
    fn a_schedule_acts_in_its_window_only(#[case] now: &str, #[case] acts: bool) {
        let plan = decide(&[worker("a")], &policy(), 0, now.parse().unwrap());
        assert_eq!(!plan.now.is_empty(), acts);
    }

    #[rstest]
    #[case::too_few(Worker { out_of_memory: 2, ..worker("a") }, None)]
    #[case::enough(
        Worker { out_of_memory: 3, ..worker("a") }, Some("it ran out of memory 3 times within 3600 s"))]
    #[case::little_overhead(Worker { pool_overhead: 0.4, ..worker("a") }, None)]
    #[case::much_overhead(
        Worker { pool_overhead: 0.41, ..worker("a") }, Some("its pool overhead is 0.41, above 0.40"))]
    #[case::not_again_so_soon(Worker { pool_overhead: 0.9, ..fresh("a") }, None)]
    fn other_causes_act_at_any_time(#[case] worker: Worker, #[case] cause: Option<&str>) {
        let policy = Policy { schedule: None, ..policy() };
        let plan = decide(&[worker], &policy, 0, now());
        assert_eq!(plan.now.first().map(|order| order.cause.to_string()).as_deref(), cause);
    }

    #[test]
    fn the_same_process_gets_the_same_order() {
        let one = decide(&[worker("a")], &policy(), 0, now());
        let later = decide(&[worker("a")], &policy(), 0, now() + Duration::from_secs(60));
        assert_eq!(one.now[0].drain_id, later.now[0].drain_id);
        assert!(one.now[0].drain_id.starts_with("recycle-"));
    }

    #[rstest]
    #[case::the_next_start(worker("a"), "2026-05-02T03:00:00Z")]
    #[case::the_end_of_a_cooldown(fresh("a"), "2026-05-01T04:10:00Z")]
    fn time_alone_makes_something_due(#[case] worker: Worker, #[case] expected: &str) {
        let plan = decide(&[worker], &policy(), 0, now());
        assert_eq!(plan.look_again, Some(expected.parse().unwrap()));
    }

    prop_compose! {
        fn any_worker()(idle in any::<bool>(), is_away in any::<bool>(), age in 0i64..200_000, pool_overhead in 0.0f64..1.0,
                        out_of_memory in 0u64..5, pod in "[a-z]{5}") -> Worker {
            let standing = if is_away { Standing::Away } else { Standing::Serving { idle } };
            let started = Timestamp::from_second(now().as_second() - age).unwrap();
            Worker { pod, standing, started: Some(started), pool_overhead, out_of_memory }
        }
    }

    proptest! {
        #[test]
        fn what_the_load_needs_stays_and_no_more_are_away_than_allowed(
            workers in prop::collection::vec(any_worker(), 0..12), needed in 0u32..12, max_unavailable in 1u32..4,
        ) {
            let plan = decide(&workers, &Policy { max_unavailable, ..policy() }, needed, now());
            let away = workers.iter().filter(|worker| worker.standing == Standing::Away).count();
            let left = workers.len() - away - plan.now.len();
            if !plan.now.is_empty() {
                prop_assert!(away + plan.now.len() <= max_unavailable as usize);
                prop_assert!(left >= needed as usize);
                let all_idle = plan.now.iter().all(|order| workers.iter().any(|w| w.pod == order.pod && !is_busy(w)));
                prop_assert!(left >= 1 || plan.now.len() > 1 || all_idle);
            }
            for order in &plan.now {
                let worker = workers.iter().find(|worker| worker.pod == order.pod).unwrap();
                prop_assert!(now().duration_since(worker.started.unwrap()) >= signed(HOUR) || workers.iter().filter(|w| w.pod == order.pod).count() > 1);
            }
        }
    }
}
