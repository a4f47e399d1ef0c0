use imagegen_proto::v1::WorkerReport;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::autoscale::{
    fleet::{Standing, Worker},
    samples::{TARGETS, busy, idle, ready, refusing, seconds, silent, spec, standing},
};

fn load(workers: &[Worker]) -> Load {
    Load::aggregate(workers, &TARGETS)
}

fn fleet(reports: &[WorkerReport]) -> Vec<Worker> {
    reports.iter().enumerate().map(|(index, report)| ready(&index.to_string(), report.clone())).collect()
}

fn full(report: WorkerReport) -> WorkerReport {
    WorkerReport { has_capacity: false, ..report }
}

/// A history in which `wanted` was wanted all the time, long enough for every window.
fn settled(load: &Load, spec: &ScalingSpec, current: u32) -> (History, Duration) {
    let mut history = History::default();
    for second in [0, 300, 600] {
        let now = seconds(second);
        let decision = Decision { replicas: current, ..decide(load, spec, current, &history, now) };
        history.note(&decision, current, spec, now);
    }
    (history, seconds(620))
}

#[rstest]
#[case::nobody_asks_at_the_minimum(&[idle()], 1, ReasonClass::AtMinimum)]
#[case::one_busy_worker_is_enough(&[busy(1.0, 0.0)], 1, ReasonClass::Steady)]
#[case::within_tolerance(&[busy(0.8, 1.0)], 1, ReasonClass::Steady)]
#[case::memory(&[busy(0.9, 1.0)], 2, ReasonClass::MemoryPressure)]
#[case::backlog(&[busy(0.2, 60.0)], 3, ReasonClass::Backlog)]
#[case::a_burst_is_answered_in_steps(&[busy(0.2, 200.0)], 5, ReasonClass::StepLimited)]
#[case::at_the_maximum(&vec![busy(1.0, 300.0); 8], 8, ReasonClass::AtMaximum)]
#[case::up_to_the_maximum(&vec![busy(1.0, 300.0); 7], 8, ReasonClass::Backlog)]
#[case::exactly_full(&[busy(0.2, 20.0), busy(0.2, 20.0), busy(0.2, 20.0)], 3, ReasonClass::Steady)]
#[case::one_less(&[idle(), busy(0.5, 0.0), idle()], 2, ReasonClass::StepLimited)]
#[case::without_room_and_no_demand(&[idle(), full(idle())], 1, ReasonClass::LowPressure)]
#[case::without_room_while_there_is_demand(&[busy(0.75, 1.0), full(idle())], 2, ReasonClass::Steady)]
#[case::only_workers_without_room(&[full(refusing(idle(), &[(1, 5.0)]))], 2, ReasonClass::NoCapacity)]
fn a_settled_fleet(#[case] reports: &[WorkerReport], #[case] replicas: u32, #[case] class: ReasonClass) {
    let load = load(&fleet(reports));
    let current = reports.len() as u32;
    let (history, now) = settled(&load, &spec(), current);
    let decision = decide(&load, &spec(), current, &history, now);
    assert_eq!((decision.replicas, decision.class), (replicas, class), "{}", decision.reason);
}

#[test]
fn the_reason_names_the_binding_signal_with_numbers() {
    let backlog = decide(&load(&fleet(&[busy(0.2, 60.0)])), &spec(), 1, &History::default(), seconds(1));
    assert_eq!(
        backlog.reason,
        "backlog 60.0 s over 1 workers, targetQueueWait 20 s each (pressure 2.25, target 0.75): 3 workers are needed, 1 were wanted"
    );
    let memory = decide(&load(&fleet(&[busy(0.95, 1.0)])), &spec(), 1, &History::default(), seconds(1));
    assert_eq!(
        memory.reason,
        "memory pressure 0.95 over 1 workers, target 0.75 each: 2 workers are needed, 1 were wanted"
    );
}

#[test]
fn scale_down_waits_for_a_full_window_and_goes_step_by_step() {
    let (spec, load) = (spec(), load(&fleet(&[idle(), idle(), idle()])));
    let (mut history, mut current, mut sizes) = (History::default(), 3, Vec::new());
    for second in 0..340 {
        let decision = decide(&load, &spec, current, &history, seconds(second));
        history.note(&decision, current, &spec, seconds(second));
        if decision.replicas != current {
            sizes.push((second, decision.replicas));
        }
        current = decision.replicas;
    }
    assert_eq!(sizes, [(300, 2), (315, 1)]);
}

#[test]
fn a_break_in_the_reports_begins_the_window_anew() {
    let spec = spec();
    let (whole, broken) = (fleet(&[idle(), idle()]), vec![ready("0", idle()), silent(ready("1", idle()))]);
    let mut history = History::default();
    for second in 0..500 {
        let load = load(if second == 250 { &broken } else { &whole });
        let decision = decide(&load, &spec, 2, &history, seconds(second));
        assert_eq!(decision.replicas, 2, "at {second} s: {}", decision.reason);
        history.note(&decision, 2, &spec, seconds(second));
    }
    assert_eq!(decide(&load(&whole), &spec, 2, &history, seconds(551)).replicas, 1);
}

#[test]
fn scale_up_waits_for_its_window() {
    let mut spec = spec();
    spec.up.window = seconds(30);
    let (calm, burst) = (load(&fleet(&[idle()])), load(&fleet(&[busy(0.2, 60.0)])));
    let mut history = History::default();
    history.note(&decide(&calm, &spec, 1, &history, seconds(0)), 1, &spec, seconds(0));
    for second in 1..=30 {
        let decision = decide(&burst, &spec, 1, &history, seconds(second));
        assert_eq!((decision.replicas, decision.class), (1, ReasonClass::Stabilizing), "at {second} s");
        history.note(&decision, 1, &spec, seconds(second));
    }
    assert_eq!(decide(&burst, &spec, 1, &history, seconds(31)).replicas, 3);
}

#[rstest]
#[case::not_late_yet(119, 10, ReasonClass::Steady)]
#[case::late(121, 6, ReasonClass::InsufficientGpu)]
fn workers_that_do_not_come_up_are_kept_waiting_at_most_max_step(
    #[case] age_seconds: u64,
    #[case] replicas: u32,
    #[case] class: ReasonClass,
) {
    let mut spec = spec();
    spec.max = 20;
    let mut workers = fleet(&[busy(0.2, 100.0), busy(0.2, 100.0)]);
    for index in 0..8 {
        workers.push(standing(&format!("p{index}"), Standing::Unscheduled, seconds(age_seconds), None));
    }
    let decision = decide(&load(&workers), &spec, 10, &History::default(), seconds(1));
    assert_eq!((decision.replicas, decision.class), (replicas, class), "{}", decision.reason);
}

#[test]
fn the_measured_load_time_replaces_the_assumed_one() {
    let slow = WorkerReport { load_seconds: 300.0, ..busy(0.2, 40.0) };
    let workers = [ready("a", slow), standing("b", Standing::Starting, seconds(500), None)];
    let decision = decide(&load(&workers), &spec(), 2, &History::default(), seconds(1));
    assert_eq!((decision.late, decision.class), (0, ReasonClass::Steady), "{}", decision.reason);
}

#[rstest]
#[case::above_the_maximum(12, 8)]
#[case::below_the_minimum(0, 1)]
fn a_changed_range_takes_effect_at_once(#[case] current: u32, #[case] replicas: u32) {
    let workers = vec![silent(ready("a", idle()))];
    assert_eq!(decide(&load(&workers), &spec(), current, &History::default(), seconds(1)).replicas, replicas);
}

/// Ten leaders, each of which hears of the workers one by one and is gone as soon as the next one is ready.
#[test]
fn a_leader_killed_ten_times_at_steady_load_changes_nothing() {
    // Uneven on purpose: the sum fits four workers, each alone does not.
    let reports = [busy(0.2, 50.0), busy(0.3, 0.0), idle(), busy(0.2, 20.0)];
    let mut now = Duration::ZERO;
    for leader in 0..10 {
        let mut history = History::default();
        for known in 0..=4 {
            let workers: Vec<_> = (0..4)
                .map(|index| {
                    let heard = (index + leader) % 4 < known;
                    standing(&index.to_string(), Standing::Ready, seconds(600), heard.then(|| reports[index].clone()))
                })
                .collect();
            now += seconds(1);
            let decision = decide(&load(&workers), &spec(), 4, &history, now);
            assert_eq!(decision.replicas, 4, "{}", decision.reason);
            history.note(&decision, 4, &spec(), now);
        }
    }
}

fn any_report() -> impl Strategy<Value = WorkerReport> {
    let refused = prop::collection::vec((0u64..6, 0.0f64..30.0), 0..4);
    (0.0f64..=1.0, prop_oneof![Just(0.0), 0.0f64..120.0], 0u32..3, any::<bool>(), refused).prop_map(
        |(memory, wait, running, room, refused)| {
            let report = WorkerReport { running, has_capacity: room, ..busy(memory, wait) };
            refusing(report, &refused)
        },
    )
}

/// A worker without anything to do, whatever else its device is used for.
fn any_idle_report() -> impl Strategy<Value = WorkerReport> {
    (any_report(), any::<u64>(), any::<u64>()).prop_map(|(report, used_bytes, headroom_bytes)| WorkerReport {
        running: 0,
        queued: 0,
        wait_seconds: 0.0,
        backlog_seconds: 0.0,
        refused: Vec::new(),
        memory: Some(imagegen_proto::v1::MemoryReport { used_bytes, headroom_bytes, ..Default::default() }),
        ..report
    })
}

fn any_worker(report: impl Strategy<Value = WorkerReport>) -> impl Strategy<Value = Worker> {
    (report, 0u8..6, 0u64..600).prop_map(|(report, kind, age)| match kind {
        0 => silent(ready("w", report)),
        1 => standing("w", Standing::Ready, seconds(age), None),
        2 => standing("w", Standing::Unscheduled, seconds(age), None),
        3 => standing("w", Standing::NotReady, seconds(age), Some(report)),
        _ => ready("w", report),
    })
}

fn any_workers(report: impl Strategy<Value = WorkerReport>) -> impl Strategy<Value = Vec<Worker>> {
    prop::collection::vec(any_worker(report), 0..12)
}

proptest! {
    #[test]
    fn no_demand_never_causes_scale_up(workers in any_workers(any_idle_report()), current in 1u32..=8) {
        let decision = decide(&load(&workers), &spec(), current, &History::default(), seconds(1));
        prop_assert!(decision.replicas <= current, "{}", decision.reason);
    }

    #[test]
    fn running_work_with_an_empty_queue_alone_never_causes_scale_up(
        memory in prop::collection::vec(0.0f64..=1.0, 1..9),
    ) {
        let reports: Vec<_> = memory.iter().map(|&memory| busy(memory, 0.0)).collect();
        let current = reports.len() as u32;
        let decision = decide(&load(&fleet(&reports)), &spec(), current, &History::default(), seconds(1));
        prop_assert!(decision.wanted <= current, "{}", decision.reason);
    }

    #[test]
    fn silence_never_lowers_what_is_wanted(
        waits in prop::collection::vec((0.0f64..=1.0, 0.0f64..120.0, any::<bool>()), 1..9),
        current in 1u32..=8,
    ) {
        let known: Vec<_> = waits.iter().map(|&(memory, wait, _)| ready("w", busy(memory, wait))).collect();
        let fading = known.iter().zip(&waits);
        let faded: Vec<_> =
            fading.map(|(worker, &(.., quiet))| if quiet { silent(worker.clone()) } else { worker.clone() }).collect();
        let wanted = |workers: &[Worker]| decide(&load(workers), &spec(), current, &History::default(), seconds(1)).wanted;
        prop_assert!(wanted(&faded) >= wanted(&known).min(current));
    }

    #[test]
    fn workers_that_are_all_unknown_never_cause_scale_down(
        count in 1usize..9, current in 1u32..=8, reports in prop::collection::vec(any_report(), 9),
    ) {
        let workers: Vec<_> = fleet(&reports[..count]).into_iter().map(silent).collect();
        let mut history = History::default();
        for second in 0..400 {
            let decision = decide(&load(&workers), &spec(), current, &history, seconds(second));
            prop_assert!(decision.replicas >= current, "{}", decision.reason);
            history.note(&decision, current, &spec(), seconds(second));
        }
    }

    #[test]
    fn ready_workers_without_capacity_are_replaced_while_there_is_demand(
        without in 1usize..12, wait in 1.0f64..20.0,
    ) {
        let mut spec = spec();
        spec.max = 100;
        let mut reports = vec![busy(0.1, wait)];
        reports.extend(std::iter::repeat_n(full(idle()), without));
        let need = decide(&load(&fleet(&reports)), &ScalingSpec { tolerance: 0.0, ..spec }, 1, &History::default(), seconds(1));
        let replacements = u32::try_from(without).unwrap().min(spec.up.max_step);
        prop_assert_eq!(need.wanted, 1 + replacements);
    }

    #[test]
    fn a_trace_respects_range_steps_and_directions(
        trace in prop::collection::vec((any_workers(any_report()), 1u64..40), 1..80),
        start in 1u32..=8,
        step_up in 1u32..5,
        step_down in 1u32..5,
    ) {
        let mut spec = spec();
        spec.up.max_step = step_up;
        spec.down.max_step = step_down;
        let (mut history, mut current, mut now) = (History::default(), start, Duration::ZERO);
        let mut changes: Vec<(Duration, u32, u32)> = Vec::new();
        for (workers, pause) in trace {
            // What no node takes ends by its own rule, tested above.
            let workers: Vec<_> =
                workers.into_iter().filter(|worker| worker.standing != Standing::Unscheduled).collect();
            now += seconds(pause);
            let decision = decide(&load(&workers), &spec, current, &history, now);
            history.note(&decision, current, &spec, now);
            prop_assert!((spec.min..=spec.max).contains(&decision.replicas));
            prop_assert!(decision.next_look >= SHORTEST_LOOK && decision.next_look <= LONGEST_LOOK);
            prop_assert!(decision.reason.len() <= 512, "{}", decision.reason);
            if decision.replicas != current {
                changes.push((now, current, decision.replicas));
            }
            current = decision.replicas;
        }
        for (index, &(at, ..)) in changes.iter().enumerate() {
            let period = changes[index..].iter().take_while(|(later, ..)| *later < at + STEP_PERIOD);
            let (up, down) = period.fold((0, 0), |(up, down), &(_, from, to)| {
                (up + to.saturating_sub(from), down + from.saturating_sub(to))
            });
            prop_assert!(up <= step_up && down <= step_down, "{up} up, {down} down from {at:?}");
            let window: Vec<_> =
                changes[index..].iter().take_while(|(later, ..)| *later < at + spec.down.window).collect();
            let turns = window.windows(2).filter(|pair| (pair[0].1 < pair[0].2) != (pair[1].1 < pair[1].2)).count();
            prop_assert!(turns <= 2, "{turns} changes of direction from {at:?}: {window:?}");
        }
    }
}
