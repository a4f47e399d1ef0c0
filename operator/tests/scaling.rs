//! The simulator that the scaling comparison runs in, and the arithmetic of its rivals.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[allow(dead_code, reason = "shared with the bench, which uses all of it")]
mod simulator;

use proptest::prelude::*;
use rstest::rstest;
use simulator::{
    autoscaler::Kind,
    card::Card,
    outcome::Outcome,
    scenario::{self, Scenario},
    world::run,
};

/// A scenario, short enough for a test.
fn short(index: usize) -> Scenario {
    let scenario = scenario::all().swap_remove(index);
    Scenario { seconds: 1800.0, ..scenario }
}

fn middle_target(kind: Kind) -> f64 {
    kind.targets()[kind.targets().len() / 2]
}

fn holds(outcome: &Outcome, scenario: &Scenario) {
    let Outcome { arrived, finished, lost, in_flight, .. } = outcome;
    assert_eq!(arrived, &(finished + lost + in_flight), "every request ends once");
    assert_eq!(outcome.waits.len() as u64, *finished);
    assert!(outcome.waits.iter().all(|wait| *wait >= 0.0));
    // Some hundred wait at the very most when the last event is handled.
    let most = u64::from(scenario.max) * 65 + 100;
    assert!(*in_flight <= most, "{in_flight} requests are still there");
    assert!(outcome.fewest >= scenario.min, "{} workers were wanted", outcome.fewest);
    assert!(outcome.changes.iter().all(|(_, from, to)| from != to && *to <= scenario.max));
    let most = f64::from(scenario.gpus) * scenario.seconds;
    assert!(outcome.gpu_seconds > 0.0 && outcome.gpu_seconds <= most, "{} GPU seconds", outcome.gpu_seconds);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn no_request_is_lost_from_sight_and_sizes_stay_in_range(
        seed in any::<u64>(), kind in 0..Kind::ALL.len(), index in 0..8usize, target in 0..8usize,
    ) {
        let (card, scenario, kind) = (Card::h100(), short(index), Kind::ALL[kind]);
        holds(&run(&card, &scenario, kind, kind.targets()[target], seed), &scenario);
    }
}

#[rstest]
fn the_same_seed_gives_the_same_run(#[values(0, 2, 4)] index: usize) {
    let (card, scenario) = (Card::h100(), short(index));
    for kind in Kind::ALL {
        let target = middle_target(kind);
        let first = run(&card, &scenario, kind, target, 7);
        assert_eq!(first, run(&card, &scenario, kind, target, 7), "{}", kind.name());
        assert_ne!(first.waits, run(&card, &scenario, kind, target, 8).waits, "another seed, another run");
    }
}

#[test]
fn traffic_is_as_much_as_it_says() {
    let (card, scenario) = (Card::h100(), short(0));
    let outcome = run(&card, &scenario, Kind::QueueLength, 1.0, 1);
    let expected = scenario.rate(&card, 0.0) * scenario.seconds;
    assert!((outcome.arrived as f64 / expected - 1.0).abs() < 0.1, "{} of {expected}", outcome.arrived);
}

#[test]
fn a_fleet_that_is_large_enough_serves_everybody_at_once() {
    let (card, scenario) = (Card::h100(), Scenario { min: 16, start: 16, ..short(0) });
    let outcome = run(&card, &scenario, Kind::Operator, 2.0, 3);
    assert_eq!((outcome.lost, outcome.out_of_memory), (0, 0));
    assert!(outcome.wait_quantile(0.99) < 3.0, "{}", outcome.wait_quantile(0.99));
    let all = 16.0 * scenario.seconds;
    assert!((outcome.gpu_seconds - all).abs() < 1.0, "{} of {all}", outcome.gpu_seconds);
}

#[test]
fn a_burst_is_answered_with_more_workers_by_the_operator_and_by_the_queue_alike() {
    let (card, scenario) = (Card::h100(), short(2));
    for (kind, target) in [(Kind::Operator, 2.0), (Kind::QueueLength, 1.0)] {
        let outcome = run(&card, &scenario, kind, target, 5);
        assert!(outcome.changes.iter().any(|(_, from, to)| to > from), "{}", kind.name());
        assert_eq!(outcome.to_size_seconds.len(), 1, "{}", kind.name());
    }
}
