//! The cases that the documentation of the HorizontalPodAutoscaler describes, and those of its unit tests.

use rstest::rstest;

use super::*;

const RUN: PodPhase = PodPhase::Running;
const PEND: PodPhase = PodPhase::Pending;
const GONE: PodPhase = PodPhase::Ignored;

fn size(pods: &[(PodPhase, Option<i64>)], target: i64) -> Result<i64, NoMetrics> {
    let phases = pods.iter().enumerate().map(|(id, (phase, _))| (id as u64, *phase)).collect();
    let metrics = pods.iter().enumerate().filter_map(|(id, (_, metric))| Some((id as u64, (*metric)?))).collect();
    let current = pods.iter().filter(|(phase, _)| *phase != GONE).count() as i64;
    pods_metric(&phases, &metrics, target, current)
}

#[rstest]
#[case::twice_the_target_doubles(&[(RUN, Some(200)), (RUN, Some(200))], 100, Ok(4))]
#[case::half_the_target_halves(&[(RUN, Some(50)), (RUN, Some(50))], 100, Ok(1))]
#[case::the_size_is_rounded_up(&[(RUN, Some(20_000)), (RUN, Some(10_000)), (RUN, Some(30_000))], 15_000, Ok(4))]
#[case::within_the_tolerance_nothing_changes(&[(RUN, Some(109)), (RUN, Some(110))], 100, Ok(2))]
#[case::at_the_edge_of_the_tolerance_below(&[(RUN, Some(90)), (RUN, Some(90))], 100, Ok(2))]
#[case::beyond_the_tolerance(&[(RUN, Some(112)), (RUN, Some(112))], 100, Ok(3))]
#[case::pending_pods_take_the_edge_off_a_scale_up(
    &[(RUN, Some(300)), (RUN, Some(300)), (PEND, None)], 150, Ok(4))]
#[case::pending_pods_stop_a_scale_up_that_they_satisfy(
    &[(RUN, Some(50_000)), (PEND, None), (PEND, None)], 15_000, Ok(4))]
#[case::and_one_that_they_more_than_satisfy(&[(RUN, Some(200)), (PEND, None), (PEND, None)], 100, Ok(3))]
#[case::the_metric_of_a_pending_pod_is_left_out(
    &[(RUN, Some(20_000)), (PEND, Some(30_000))], 15_000, Ok(2))]
#[case::pending_pods_do_not_matter_on_the_way_down(
    &[(RUN, Some(50)), (RUN, Some(50)), (PEND, None)], 100, Ok(1))]
#[case::missing_pods_count_as_idle_on_the_way_up(
    &[(RUN, Some(300)), (RUN, Some(300)), (RUN, None)], 100, Ok(6))]
#[case::missing_pods_stop_a_scale_up(&[(RUN, Some(150)), (RUN, None)], 100, Ok(2))]
#[case::missing_pods_count_as_full_on_the_way_down(
    &[(RUN, Some(10)), (RUN, Some(10)), (RUN, Some(10)), (RUN, None)], 100, Ok(2))]
#[case::missing_pods_stop_a_scale_down(&[(RUN, Some(85)), (RUN, None)], 100, Ok(2))]
#[case::deleted_pods_are_left_out(&[(RUN, Some(200)), (GONE, Some(0))], 100, Ok(2))]
#[case::no_metric_at_all(&[(RUN, None), (PEND, None)], 100, Err(NoMetrics))]
fn a_pods_metric(
    #[case] pods: &[(PodPhase, Option<i64>)],
    #[case] target: i64,
    #[case] expected: Result<i64, NoMetrics>,
) {
    assert_eq!(size(pods, target), expected);
}

#[rstest]
#[case::more(8600, 2000, 3, 5)]
#[case::less(1000, 2000, 3, 1)]
#[case::within_the_tolerance(6500, 2000, 3, 3)]
#[case::nothing(0, 2000, 3, 0)]
fn an_average_value(#[case] usage: i64, #[case] target: i64, #[case] replicas: i64, #[case] expected: i64) {
    assert_eq!(average_value_metric(usage, target, replicas), expected);
}

fn run(behavior: &Behavior, start: i64, recommended: &[i64]) -> Vec<i64> {
    let mut memory = Memory::default();
    let mut size = start;
    let step = |(index, &wanted): (usize, &i64)| {
        size = memory.sync(behavior, size, Ok(wanted), index as f64 * 15.0);
        size
    };
    recommended.iter().enumerate().map(step).collect()
}

#[rstest]
#[case::up_at_once_by_four(1, &[5], &[5])]
#[case::up_at_most_by_four_or_double(1, &[100, 100, 100, 100], &[5, 10, 20, 40])]
#[case::never_above_the_maximum(40, &[100, 100], &[50, 50])]
#[case::down_after_the_window(4, &[[1].as_slice(), &[1; 21]].concat(), &[[4; 20].as_slice(), &[1, 1]].concat())]
#[case::a_peak_holds_the_size_for_a_window(
    1, &[[4].as_slice(), &[1; 21]].concat(), &[[4; 20].as_slice(), &[1, 1]].concat())]
#[case::never_below_the_minimum(3, &[0; 22], &[[3; 20].as_slice(), &[1, 1]].concat())]
fn the_default_behavior(#[case] start: i64, #[case] recommended: &[i64], #[case] expected: &[i64]) {
    assert_eq!(run(&Behavior::default_of(1, 50), start, recommended), expected);
}

fn down(window_seconds: f64, policies: &[(PolicyKind, i64, f64)], select: Select) -> Behavior {
    let policies = policies.iter().map(|&(kind, value, period_seconds)| Policy { kind, value, period_seconds });
    let down = Rules { window_seconds, policies: policies.collect(), select };
    Behavior { down, ..Behavior::default_of(1, 1000) }
}

#[rstest]
#[case::four_pods_a_minute(&[(PolicyKind::Pods, 4, 60.0)], Select::Max, &[76, 76, 76, 76, 72])]
#[case::ten_percent_a_minute(&[(PolicyKind::Percent, 10, 60.0)], Select::Max, &[72, 72, 72, 72, 64])]
#[case::the_larger_change_wins(
    &[(PolicyKind::Pods, 4, 60.0), (PolicyKind::Percent, 10, 60.0)], Select::Max, &[72, 72, 72, 72, 64])]
#[case::the_smaller_change_wins(
    &[(PolicyKind::Pods, 4, 60.0), (PolicyKind::Percent, 10, 60.0)], Select::Min, &[76, 76, 76, 76, 72])]
#[case::disabled(&[(PolicyKind::Pods, 4, 60.0)], Select::Disabled, &[80, 80, 80, 80, 80])]
fn policies_of_scaling_down(
    #[case] policies: &[(PolicyKind, i64, f64)],
    #[case] select: Select,
    #[case] expected: &[i64],
) {
    assert_eq!(run(&down(0.0, policies, select), 80, &[10; 5]), expected);
}

#[test]
fn without_a_metric_the_size_stays() {
    let mut memory = Memory::default();
    assert_eq!(memory.sync(&Behavior::default_of(1, 10), 7, Err(NoMetrics), 0.0), 7);
}

#[test]
fn a_size_out_of_the_range_is_brought_into_it_at_once() {
    let mut memory = Memory::default();
    assert_eq!(memory.sync(&Behavior::default_of(2, 10), 70, Err(NoMetrics), 0.0), 10);
    assert_eq!(memory.sync(&Behavior::default_of(2, 10), 1, Err(NoMetrics), 15.0), 2);
}
