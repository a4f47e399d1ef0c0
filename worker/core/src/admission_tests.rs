use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::{memory::DeviceMemory, table::Cost};

const GIB: u64 = 1 << 30;

fn shape(side: u32) -> Shape {
    Shape { size: Size { width: side, height: side }, batch: 1, caption_tokens: 128, is_guided: false }
}

fn table() -> Table {
    [(512, 1), (1024, 3), (2048, 9)]
        .map(|(side, gib)| (shape(side), Cost { peak_reserved_bytes: gib * GIB, ..Cost::default() }))
        .into_iter()
        .collect()
}

/// A card of 16 GiB with 10 GiB of weights; the neighbour's bytes are given.
fn memory(foreign_gib: u64) -> Memory {
    Memory {
        device: DeviceMemory { usable_total_bytes: 16 * GIB, used_bytes: (10 + foreign_gib) * GIB },
        reserved_bytes: 10 * GIB,
        allocated_bytes: 10 * GIB,
        own_overhead_bytes: 0,
        weight_bytes: 10 * GIB,
        limit_ratio: 1.0,
    }
}

fn decide(side: u32, foreign_gib: u64, change: impl FnOnce(&mut Ask, &mut Worker<'_>)) -> Result<Permit, Refusal> {
    let (table, memory) = (table(), memory(foreign_gib));
    let buckets = "512x512,1024x1024,2048x2048".parse().unwrap();
    let mut ask = Ask { shape: shape(side), seconds: 4.0, left: None };
    let mut worker = Worker {
        table: &table,
        memory: &memory,
        buckets: &buckets,
        queued: 1,
        capacity: 2,
        wait_seconds: 6.0,
        max_wait: Duration::from_secs(20),
        running_seconds: 2.0,
    };
    change(&mut ask, &mut worker);
    admit(&ask, &worker)
}

#[test]
fn what_fits_is_admitted_with_its_numbers() {
    let permit = decide(1024, 0, |_, _| ()).unwrap();
    assert_eq!(permit, Permit { bytes: 3 * GIB, seconds: 4.0, wait_seconds: 6.0 });
    // To the last byte: a guard that is stricter than its table refuses what fits.
    assert!(decide(1024, 3, |_, _| ()).is_ok());
}

#[test]
fn without_a_table_memory_refuses_nothing() {
    let (table, memory, buckets) = (Table::default(), memory(9), "512x512".parse().unwrap());
    let worker = Worker {
        table: &table,
        memory: &memory,
        buckets: &buckets,
        queued: 0,
        capacity: 1,
        wait_seconds: 0.0,
        max_wait: Duration::from_secs(20),
        running_seconds: 0.0,
    };
    let ask = Ask { shape: shape(2048), seconds: 0.0, left: None };
    assert_eq!(admit(&ask, &worker), Ok(Permit { bytes: 0, seconds: 0.0, wait_seconds: 0.0 }));
}

#[rstest]
#[case::never(2048, 0, |_: &mut Ask, _: &mut Worker<'_>| (),
    "one image of 2048x2048 needs 9.00 GiB for activations, and this device has 6.00 GiB at most; 1024x1024 would fit")]
#[case::not_now(1024, 4, |_: &mut Ask, _: &mut Worker<'_>| (),
    "one image of 1024x1024 needs 3.00 GiB for activations, and 2.00 GiB are free: other processes hold 4.00 GiB of the device; 512x512 would fit")]
#[case::nothing_fits(512, 6, |_: &mut Ask, _: &mut Worker<'_>| (),
    "one image of 512x512 needs 1.00 GiB for activations, and 0 bytes are free: other processes hold 6.00 GiB of the device; no size class fits")]
#[case::not_measured(4096, 0, |_: &mut Ask, _: &mut Worker<'_>| (),
    "one image of 4096x4096 needs more memory than it was given at warm-up for activations, and this device has 6.00 GiB at most; 1024x1024 would fit")]
#[case::full(512, 0, |_: &mut Ask, worker: &mut Worker<'_>| worker.queued = 2, "the queue is full: all 2 places are taken")]
#[case::a_long_wait(512, 0, |_: &mut Ask, worker: &mut Worker<'_>| worker.wait_seconds = 20.5,
    "the wait is about 20 s, longer than a request may wait here (20 s)")]
#[case::a_near_deadline(512, 0, |ask: &mut Ask, _: &mut Worker<'_>| ask.left = Some(Duration::from_millis(9900)),
    "the deadline is in 9.9 s, and the request would be done in about 10.0 s: 6.0 s of waiting and 4.0 s of work")]
fn refusals_say_the_numbers(
    #[case] side: u32,
    #[case] foreign_gib: u64,
    #[case] change: fn(&mut Ask, &mut Worker<'_>),
    #[case] sentence: &str,
) {
    let refusal = decide(side, foreign_gib, change).unwrap_err();
    assert_eq!(refusal.to_string(), sentence);
}

#[test]
fn what_other_workers_could_do_is_demand() {
    let lacks_room = |refusal: Result<Permit, Refusal>| refusal.unwrap_err().is_for_lack_of_room();
    assert!(!lacks_room(decide(2048, 0, |_, _| ())));
    assert!(lacks_room(decide(1024, 4, |_, _| ())));
    assert!(lacks_room(decide(512, 0, |_, worker| worker.queued = 2)));
    assert!(lacks_room(decide(512, 0, |ask, _| ask.left = Some(Duration::from_secs(5)))));
    assert!(!lacks_room(decide(512, 0, |ask, _| ask.left = Some(Duration::from_secs(3)))));
}

#[test]
fn hints_are_bounded() {
    for (seconds, expected) in [(f64::NAN, 1), (-1.0, 1), (0.2, 1), (7.0, 7), (1e30, 60), (f64::INFINITY, 60)] {
        assert_eq!(retry(seconds), Duration::from_secs(expected), "{seconds}");
    }
}

proptest! {
    #[test]
    fn nothing_is_admitted_that_does_not_fit(side in 1_u32..3000, foreign in 0_u64..17) {
        match decide(side, foreign, |_, _| ()) {
            Ok(permit) => prop_assert!(permit.bytes <= memory(foreign).headroom_bytes()),
            Err(Refusal::NoMemory { needed_bytes, free_bytes, .. }) => prop_assert!(needed_bytes > free_bytes),
            Err(Refusal::NeverFits { needed_bytes, most_bytes, .. }) => prop_assert!(needed_bytes.is_none_or(|needed| needed > most_bytes)),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn what_would_fit_is_admitted(side in 1_u32..3000, foreign in 0_u64..17) {
        if let Err(Refusal::NoMemory { fits: Some(size), .. } | Refusal::NeverFits { fits: Some(size), .. }) =
            decide(side, foreign, |_, _| ())
        {
            let now = decide(size.width, foreign, |_, _| ());
            let is_admitted = now.is_ok();
            prop_assert!(is_admitted || matches!(now, Err(Refusal::NoMemory { .. })), "{:?}", now);
        }
    }
}
