use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn working(pod: &str, pressure: f64, pool_overhead_ratio: f64) -> Candidate {
    Candidate { pod: pod.into(), kind: Kind::Working, pressure, pool_overhead_ratio, drain: None, released: false }
}

fn of_kind(pod: &str, kind: Kind) -> Candidate {
    Candidate { kind, ..working(pod, 0.0, 0.0) }
}

fn draining(pod: &str, deadline: i64, drained: bool) -> Candidate {
    let drain = Drain { id: Drain::id(at(deadline)), accepted: true, drained };
    Candidate { drain: Some(drain), ..working(pod, 0.0, 0.0) }
}

fn released(candidate: Candidate) -> Candidate {
    Candidate { released: true, ..candidate }
}

fn sizes(desired: u32, current: u32) -> Sizes {
    Sizes { desired, current, counted: 0, rolling: false }
}

/// Actions in short: `-pod` drains, `!pod` is released, `+pod` resumes.
fn told(plan: &Plan) -> Vec<String> {
    let short = |action: &Action| match action {
        Action::Drain { pod, .. } => format!("-{pod}"),
        Action::Release { pod } => format!("!{pod}"),
        Action::Resume { pod, .. } => format!("+{pod}"),
    };
    plan.actions.iter().map(short).collect()
}

#[rstest]
#[case::nothing_to_do(sizes(2, 2), vec![working("a", 0.5, 0.0), working("b", 0.5, 0.0)], 2, &[])]
#[case::more(sizes(5, 2), vec![working("a", 0.5, 0.0), working("b", 0.5, 0.0)], 5, &[])]
#[case::the_least_loaded_drains(sizes(1, 2), vec![working("a", 0.5, 0.0), working("b", 0.4, 0.0)], 2, &["-b"])]
#[case::of_equals_the_most_worn_out_drains(sizes(1, 2), vec![working("a", 0.0, 0.1), working("b", 0.0, 0.3)], 2, &["-b"])]
#[case::what_has_not_served_is_released(sizes(1, 2), vec![working("a", 0.0, 0.0), of_kind("b", Kind::Coming)], 2, &["!b"])]
#[case::what_is_released_is_removed(sizes(1, 2), vec![working("a", 0.0, 0.0), released(of_kind("b", Kind::Coming))], 1, &[])]
#[case::what_is_not_there_yet_goes_at_once(sizes(1, 3), vec![working("a", 0.0, 0.0)], 1, &[])]
#[case::what_was_not_seen_yet_stays(Sizes { counted: 3, ..sizes(1, 3) }, vec![working("a", 0.0, 0.0)], 3, &["-a"])]
#[case::what_is_recycled_is_not_chosen(sizes(1, 2), vec![working("a", 0.9, 0.0), of_kind("b", Kind::Busy)], 2, &["-a"])]
#[case::a_drain_goes_on(sizes(1, 2), vec![working("a", 0.0, 0.0), draining("b", 60, false)], 2, &[])]
#[case::a_drained_one_is_released(sizes(1, 2), vec![working("a", 0.0, 0.0), draining("b", 60, true)], 2, &["!b"])]
#[case::one_out_of_time_is_released(sizes(1, 2), vec![working("a", 0.0, 0.0), draining("b", -1, false)], 2, &["!b"])]
#[case::a_released_one_is_removed(sizes(1, 2), vec![working("a", 0.0, 0.0), released(draining("b", 60, true))], 1, &[])]
#[case::a_removed_one_is_awaited(sizes(1, 1), vec![working("a", 0.0, 0.0), released(draining("b", 60, true))], 1, &[])]
#[case::one_drains_longer_than_the_other(
    sizes(0, 2), vec![draining("a", 60, false), released(draining("b", 60, true))], 1, &[])]
#[case::load_returned(sizes(2, 2), vec![working("a", 0.0, 0.0), draining("b", 60, false)], 2, &["+b"])]
#[case::load_returned_after_it_had_finished(sizes(2, 2), vec![working("a", 0.0, 0.0), released(draining("b", 60, true))], 2, &["+b"])]
#[case::another_pod_was_removed(sizes(1, 1), vec![released(draining("b", 60, true))], 1, &["+b"])]
#[case::first_what_has_not_served_then_what_has_finished(
    sizes(1, 4), vec![working("a", 0.9, 0.0), working("b", 0.1, 0.0), of_kind("c", Kind::Coming), draining("d", 60, true)],
    4, &["!c", "!d", "-b"])]
#[case::what_cannot_be_told_goes_alone(
    sizes(1, 3), vec![working("a", 0.0, 0.0), working("b", 0.0, 0.0), of_kind("c", Kind::Unreachable)], 3, &["-c"])]
#[case::what_cannot_be_told_waits_for_those_that_drain(
    sizes(1, 3), vec![working("a", 0.0, 0.0), draining("b", 60, false), of_kind("c", Kind::Unreachable)], 3, &[])]
#[case::what_could_not_be_told_is_released(
    sizes(1, 2), vec![working("a", 0.0, 0.0), Candidate { kind: Kind::Unreachable, ..draining("c", 60, false) }], 2, &["!c"])]
#[case::a_rollout_removes_pods_by_itself(
    Sizes { rolling: true, ..sizes(1, 2) }, vec![working("a", 0.0, 0.0), draining("b", 60, false)], 1, &["+b"])]
#[case::a_surge_of_a_finished_rollout_drains_nobody(
    sizes(2, 2), vec![working("a", 0.0, 0.0), working("b", 0.0, 0.0), working("c", 0.0, 0.0)], 2, &[])]
#[case::all_of_them(sizes(0, 2), vec![working("a", 0.2, 0.0), working("b", 0.1, 0.0)], 2, &["-b", "-a"])]
fn plans(#[case] sizes: Sizes, #[case] candidates: Vec<Candidate>, #[case] replicas: u32, #[case] actions: &[&str]) {
    let plan = plan(sizes, &candidates, at(120), at(0));
    assert_eq!((plan.replicas, told(&plan)), (replicas, actions.iter().map(|a| (*a).to_owned()).collect()));
}

#[test]
fn a_drain_that_the_worker_did_not_hear_of_is_told_again_by_its_own_name() {
    let mut candidate = draining("b", 60, false);
    candidate.drain.as_mut().unwrap().accepted = false;
    let plan = plan(sizes(1, 2), &[working("a", 0.0, 0.0), candidate], at(120), at(0));
    assert_eq!(plan.actions, [Action::Drain { pod: "b".into(), id: Drain::id(at(60)) }]);
}

/// A ReplicaSet with its workers, which the operator sees and tells.
#[derive(Debug, Default)]
struct Model {
    now: i64,
    replicas: u32,
    desired: u32,
    created: u32,
    pods: Vec<Pod>,
    lost: u32,
}

#[derive(Clone, Debug)]
struct Pod {
    name: String,
    started: bool,
    reachable: bool,
    work: u32,
    /// The name of the drain: as the operator wrote it on the pod, and as the worker knows it.
    written: Option<String>,
    known: Option<String>,
    released: bool,
}

impl Pod {
    fn drained(&self) -> bool {
        self.known.is_some() && self.work == 0
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Someone wants another size.
    Want(u32),
    /// The operator looks; a call to a worker may get lost after its pod was marked.
    Operate {
        call_lost: bool,
    },
    /// The ReplicaSet acts; at a wrong pod when it has not seen the marks.
    Reconcile {
        blind: bool,
    },
    /// A pod starts, work comes and goes.
    Start,
    Work(usize, u32),
    Finish,
    /// A worker stops answering, or answers again.
    Silence(usize, bool),
    Wait(i64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u32..6).prop_map(Step::Want),
        6 => prop::bool::weighted(0.2).prop_map(|call_lost| Step::Operate { call_lost }),
        4 => prop::bool::weighted(0.1).prop_map(|blind| Step::Reconcile { blind }),
        3 => Just(Step::Start),
        3 => (0usize..6, 1u32..4).prop_map(|(pod, work)| Step::Work(pod, work)),
        3 => Just(Step::Finish),
        1 => (0usize..6, any::<bool>()).prop_map(|(pod, silent)| Step::Silence(pod, silent)),
        2 => (1i64..40).prop_map(Step::Wait),
    ]
}

impl Model {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Want(desired) => self.desired = desired,
            Step::Operate { call_lost } => self.operate(call_lost),
            Step::Reconcile { blind } => self.reconcile(blind),
            Step::Start => self.pods.iter_mut().for_each(|pod| pod.started = true),
            Step::Work(index, work) => {
                if let Some(pod) = self.pods.get_mut(index).filter(|pod| pod.started && pod.known.is_none()) {
                    pod.work += work;
                }
            }
            Step::Finish => self.pods.iter_mut().for_each(|pod| pod.work = pod.work.saturating_sub(1)),
            Step::Silence(index, silent) => {
                if let Some(pod) = self.pods.get_mut(index) {
                    pod.reachable = !silent;
                }
            }
            Step::Wait(seconds) => self.now += seconds,
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |pod: &Pod| {
            let reported = pod.known.clone().filter(|_| pod.reachable);
            let id = pod.written.clone().or(reported.clone());
            Candidate {
                pod: pod.name.clone(),
                kind: match (pod.started, pod.reachable) {
                    (false, _) => Kind::Coming,
                    (true, true) => Kind::Working,
                    (true, false) => Kind::Unreachable,
                },
                pressure: f64::from(pod.work),
                pool_overhead_ratio: 0.0,
                drain: id.map(|id| Drain {
                    accepted: reported.as_ref() == Some(&id),
                    drained: pod.reachable && pod.drained(),
                    id,
                }),
                released: pod.released,
            }
        };
        self.pods.iter().map(candidate).collect()
    }

    fn operate(&mut self, call_lost: bool) {
        let sizes = Sizes { desired: self.desired, current: self.replicas, counted: 0, rolling: false };
        let plan = plan(sizes, &self.candidates(), at(self.now + 60), at(self.now));
        self.replicas = plan.replicas;
        for action in plan.actions {
            let (Action::Drain { pod, .. } | Action::Release { pod } | Action::Resume { pod, .. }) = &action;
            let pod = self.pods.iter_mut().find(|found| found.name == *pod).unwrap();
            let heard = pod.reachable && !call_lost;
            match action {
                Action::Drain { id, .. } => {
                    pod.written = Some(id.clone());
                    pod.known = if heard { Some(id) } else { pod.known.take() };
                }
                Action::Release { .. } => pod.released = true,
                Action::Resume { id: Some(_), .. } if !heard => {}
                Action::Resume { .. } => (pod.known, pod.written, pod.released) = (None, None, false),
            }
        }
    }

    fn reconcile(&mut self, blind: bool) {
        while (self.pods.len() as u32) < self.replicas {
            self.created += 1;
            let name = format!("p{}", self.created);
            self.pods.push(Pod {
                name,
                started: false,
                reachable: true,
                work: 0,
                written: None,
                known: None,
                released: false,
            });
        }
        while self.pods.len() as u32 > self.replicas {
            // Not ready, which is also what drains, then the lowest deletion cost, then any.
            let rank = |pod: &Pod| (pod.started && pod.known.is_none(), !pod.released);
            let order = |(_, a): &(usize, &Pod), (_, b): &(usize, &Pod)| rank(a).cmp(&rank(b));
            let first = self.pods.iter().enumerate().min_by(order).map_or(0, |(index, _)| index);
            let removed = self.pods.remove(if blind { self.pods.len() - 1 } else { first });
            let out_of_time = removed
                .written
                .as_ref()
                .is_some_and(|id| Drain { id: id.clone(), accepted: false, drained: false }.deadline() <= at(self.now));
            if removed.work > 0 && removed.reachable && !out_of_time && !blind {
                self.lost += 1;
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_size_becomes_right_and_nobody_is_left_drained(
        steps in prop::collection::vec(any_step(), 0..60), desired in 0u32..6,
    ) {
        let mut model = Model::default();
        for step in &steps {
            model.take(step);
        }
        model.desired = desired;
        model.pods.iter_mut().for_each(|pod| pod.reachable = true);
        for _ in 0..40 {
            for step in [
                Step::Operate { call_lost: false }, Step::Reconcile { blind: false }, Step::Start, Step::Finish, Step::Wait(5),
            ] {
                model.take(&step);
            }
        }
        prop_assert_eq!(model.replicas, desired);
        prop_assert_eq!(model.pods.len(), desired as usize);
        let marked = |pod: &Pod| pod.known.is_some() || pod.written.is_some() || pod.released;
        prop_assert!(!model.pods.iter().any(marked), "{:?}", model);
    }

    #[test]
    fn no_worker_with_work_goes_before_its_drain_is_over(steps in prop::collection::vec(any_step(), 0..80)) {
        // A ReplicaSet that sees the marks and acts before a pod that was still starting gets its first work, and workers
        // that answer: then nothing is lost. Whoever loses such a race has the kubelet's grace period to finish.
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Reconcile { .. } => model.take(&Step::Reconcile { blind: false }),
                Step::Operate { .. } => {
                    model.take(&Step::Operate { call_lost: false });
                    model.take(&Step::Reconcile { blind: false });
                }
                Step::Silence(..) => {}
                step => model.take(&step),
            }
            prop_assert_eq!(model.lost, 0, "{:?}", model);
        }
    }

    #[test]
    fn the_size_never_goes_below_what_is_wanted(
        desired in 0u32..8, current in 0u32..8, counted in 0u32..8, rolling in any::<bool>(),
        kinds in prop::collection::vec((0u8..4, any::<bool>(), prop::option::of((any::<bool>(), -50i64..50))), 0..8),
    ) {
        let candidates: Vec<_> = kinds.iter().enumerate().map(|(index, (kind, released, drain))| {
            let kind = [Kind::Coming, Kind::Working, Kind::Unreachable, Kind::Busy][usize::from(*kind)];
            let drain = drain.map(|(drained, deadline)| Drain { id: Drain::id(at(deadline)), accepted: true, drained });
            Candidate { drain, released: *released, ..of_kind(&index.to_string(), kind) }
        }).collect();
        let plan = plan(Sizes { desired, current, counted, rolling }, &candidates, at(120), at(0));
        prop_assert!(plan.replicas >= desired && plan.replicas <= current.max(desired));
    }
}
