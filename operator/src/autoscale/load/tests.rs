use imagegen_proto::v1::MemoryReport;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::autoscale::samples::{TARGETS, busy, idle, on_gpu, ready, refusing, seconds, silent, standing};

fn of(workers: &[Worker]) -> Load {
    Load::aggregate(workers, &TARGETS)
}

fn without_capacity(mut report: WorkerReport) -> WorkerReport {
    report.has_capacity = false;
    report.no_capacity_reason = "NoHeadroom".into();
    report
}

#[rstest]
#[case::nothing_to_do(idle(), 0.0)]
#[case::memory_that_is_still_averaged_out_after_work(WorkerReport { memory_pressure: 0.4, ..idle() }, 0.0)]
#[case::a_small_batch(busy(0.3, 0.0), 0.3)]
#[case::a_full_batch_and_nothing_waits(busy(1.0, 0.0), 0.75)]
#[case::the_rest_of_a_long_batch_and_nothing_waits(
    WorkerReport { wait_seconds: 90.0, backlog_seconds: 90.0, queued: 0, ..busy(0.2, 90.0) }, 0.75)]
#[case::a_full_batch_and_something_waits(busy(1.0, 2.0), 1.0)]
#[case::backlog_at_its_target(busy(0.2, 20.0), 0.75)]
#[case::backlog_at_twice_its_target(busy(0.2, 40.0), 1.5)]
#[case::a_backlog_beyond_all_bounds(busy(0.2, 1e9), MAX_PRESSURE)]
#[case::refused_work_counts_though_nothing_runs(refusing(idle(), &[(1, 20.0)]), 0.75)]
#[case::no_room_and_no_work(without_capacity(WorkerReport { memory_pressure: 1.0, ..idle() }), 0.0)]
#[case::no_room_and_refused_work(without_capacity(refusing(WorkerReport { memory_pressure: 1.0, ..idle() }, &[(1, 20.0)])), 0.75)]
#[case::at_work_all_the_time_and_nothing_waits(WorkerReport { busy_ratio: 1.0, ..busy(0.1, 0.0) }, 0.75)]
#[case::at_work_half_of_the_time(WorkerReport { busy_ratio: 0.5, ..busy(0.1, 0.0) }, 0.375)]
#[case::at_work_until_just_now(WorkerReport { busy_ratio: 0.5, ..idle() }, 0.0)]
#[case::at_work_and_a_backlog_beyond_it(WorkerReport { busy_ratio: 1.0, ..busy(0.1, 40.0) }, 1.5)]
#[case::not_a_number(WorkerReport { memory_pressure: f64::NAN, ..busy(0.0, 20.0) }, 0.75)]
#[case::without_end(WorkerReport { wait_seconds: f64::INFINITY, backlog_seconds: f64::INFINITY, ..busy(0.25, 1.0) }, 0.25)]
fn the_pressure_of_a_worker(#[case] report: WorkerReport, #[case] pressure: f64) {
    let load = of(&[ready("a", report)]);
    let found = load.workers[0].pressure;
    assert!((found - pressure).abs() < 1e-9, "{found}");
}

#[test]
fn work_that_several_workers_refused_counts_once() {
    let load = of(&[
        ready("a", refusing(idle(), &[(1, 10.0), (2, 10.0)])),
        ready("b", refusing(idle(), &[(1, 10.0), (3, 5.0)])),
    ]);
    assert!((load.backlog_seconds() - 25.0).abs() < 1e-9, "{}", load.backlog_seconds());
    assert!((load.pressure_known() - 25.0 * 0.75 / 20.0).abs() < 1e-9);
}

#[test]
fn refused_work_that_did_not_fit_into_the_list_counts() {
    let listed: Vec<_> = (0..256).map(|key| (key, 1.0)).collect();
    let mut report = refusing(idle(), &listed);
    report.backlog_seconds += 44.0;
    let load = of(&[ready("a", report.clone()), ready("b", report)]);
    assert!((load.backlog_seconds() - (256.0 + 2.0 * 44.0)).abs() < 1e-9, "{}", load.backlog_seconds());
}

#[rstest]
#[case::unscheduled(standing("a", Standing::Unscheduled, seconds(7), None), Class::Coming { scheduled: false, for_: seconds(7) })]
#[case::pulling(standing("a", Standing::Starting, seconds(7), None), Class::Coming { scheduled: true, for_: seconds(7) })]
#[case::loading_again_after_a_crash(
    standing("a", Standing::NotReady, seconds(7), Some(WorkerReport { state: WorkerState::Loading.into(), ..idle() })),
    Class::Coming { scheduled: true, for_: seconds(7) })]
#[case::serving_before_the_probe_says_so(standing("a", Standing::Starting, seconds(7), Some(idle())), Class::Serving)]
#[case::stale(silent(ready("a", idle())), Class::Unknown)]
#[case::ready_and_never_heard_of(standing("a", Standing::Ready, seconds(7), None), Class::Unknown)]
#[case::no_room(ready("a", without_capacity(idle())), Class::NoCapacity)]
#[case::drained(ready("a", WorkerReport { state: WorkerState::Drained.into(), ..idle() }), Class::Draining)]
#[case::failed(ready("a", WorkerReport { state: WorkerState::Failed.into(), ..idle() }), Class::Failed)]
#[case::being_deleted(standing("a", Standing::Terminating, seconds(7), Some(idle())), Class::Leaving)]
fn what_a_worker_counts_as(#[case] worker: Worker, #[case] class: Class) {
    assert_eq!(of(&[worker]).workers[0].class, class);
}

#[test]
fn the_total_for_hpa_and_keda() {
    let workers = [
        ready("busy", busy(0.2, 40.0)),
        silent(ready("silent and busy", busy(0.2, 80.0))),
        silent(ready("silent and idle", idle())),
        standing("never heard of", Standing::Ready, seconds(1), None),
        ready("full", without_capacity(idle())),
        ready("full, too", without_capacity(idle())),
    ];
    let total = of(&workers).pressure_total(1).unwrap();
    // 1.5 known, 3.0 last seen, the target for two unknown ones, the target for one of two replacements.
    assert!((total - (1.5 + 3.0 + 0.75 + 0.75 + 0.75)).abs() < 1e-9, "{total}");
    assert_eq!(of(&workers[1..4]).pressure_total(1), None, "nothing is known");
    let nobody_asks = [ready("idle", idle()), ready("full", without_capacity(idle()))];
    assert_eq!(of(&nobody_asks).pressure_total(4), Some(0.0));
}

#[test]
fn the_last_word_of_a_worker_is_forgotten_after_a_while() {
    let mut worker = ready("a", busy(0.2, 200.0));
    worker.seen.as_mut().unwrap().age = REMEMBERED_FOR + seconds(1);
    assert!(of(&[worker]).pressure_last_seen() <= 0.0);
}

proptest! {
    #[test]
    fn workers_on_one_gpu_are_not_foreign_to_each_other(
        own in prop::collection::vec((0u64..20 << 30, 0u64..1 << 30), 1..5),
        neighbour in 0u64..40 << 30,
    ) {
        let used = own.iter().map(|(reserved, overhead)| reserved + overhead).sum::<u64>() + neighbour;
        let workers: Vec<_> = own.iter().enumerate().map(|(index, &(reserved_bytes, own_overhead_bytes))| {
            let foreign_bytes = used - reserved_bytes - own_overhead_bytes;
            let memory = MemoryReport {
                usable_total_bytes: 80 << 30, used_bytes: used, reserved_bytes, own_overhead_bytes, foreign_bytes,
                ..MemoryReport::default()
            };
            ready(&index.to_string(), on_gpu(idle(), "GPU-1", memory))
        }).collect();
        let memory = of(&workers).memory;
        prop_assert_eq!(memory.foreign_bytes, neighbour);
        prop_assert_eq!(memory.usable_total_bytes, 80 << 30);
    }

    #[test]
    fn refused_work_never_counts_more_than_each_request_once(
        lists in prop::collection::vec(prop::collection::vec((0u64..8, Just(2.0)), 0..6), 1..6),
    ) {
        let workers: Vec<_> = lists.iter().enumerate()
            .map(|(index, list)| ready(&index.to_string(), refusing(idle(), list))).collect();
        let distinct: HashSet<_> = lists.iter().flatten().map(|(key, _)| key).collect();
        prop_assert!((of(&workers).backlog_seconds() - 2.0 * distinct.len() as f64).abs() < 1e-9);
    }
}
