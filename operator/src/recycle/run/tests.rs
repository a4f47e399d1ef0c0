//! What the loop reads from pods and reports.

use imagegen_proto::v1::WorkerReport;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-05-01T03:30:00Z".parse().unwrap()
}

fn pod(state: &Value, last: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "turbo-1", "namespace": "art", "uid": "u"},
        "status": {"containerStatuses": [
            {"name": "sidecar", "image": "", "imageID": "", "ready": true, "restartCount": 0,
             "state": {"running": {"startedAt": "2020-01-01T00:00:00Z"}}},
            {"name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 1, "state": state, "lastState": last},
        ]},
    }))
    .unwrap()
}

fn running() -> Value {
    json!({"running": {"startedAt": "2026-05-01T01:00:00Z"}})
}

fn worker(standing: fleet::Standing, report: Option<WorkerReport>) -> fleet::Worker {
    let seen = report.map(|report| fleet::Seen { report, age: Duration::ZERO });
    fleet::Worker { pod: "turbo-1".into(), standing, standing_for: Duration::from_secs(60), seen }
}

fn serving() -> WorkerReport {
    WorkerReport {
        state: WorkerState::Serving.into(),
        has_capacity: true,
        pool_overhead_ratio: 0.3,
        ..WorkerReport::default()
    }
}

fn policy() -> Policy {
    Policy::of(&serde_json::from_value(json!({"afterOutOfMemory": {"count": 2, "within": "1h"}})).unwrap()).unwrap()
}

use fleet::Standing::{NotReady, Ready, Unscheduled};

#[rstest]
#[case::idle(Ready, Some(serving()), Some(Standing::Serving { idle: true }))]
#[case::at_work(Ready, Some(WorkerReport { running: 1, ..serving() }), Some(Standing::Serving { idle: false }))]
#[case::with_a_queue(Ready, Some(WorkerReport { queued: 1, ..serving() }), Some(Standing::Serving { idle: false }))]
#[case::draining(Ready, Some(WorkerReport { state: WorkerState::Draining.into(), ..serving() }), Some(Standing::Away))]
#[case::without_room(Ready, Some(WorkerReport { has_capacity: false, ..serving() }), Some(Standing::Away))]
#[case::not_ready(NotReady, Some(serving()), Some(Standing::Away))]
#[case::silent(Ready, None, Some(Standing::Away))]
#[case::without_a_node(Unscheduled, None, None)]
fn what_a_worker_does(
    #[case] standing: fleet::Standing,
    #[case] report: Option<WorkerReport>,
    #[case] expected: Option<Standing>,
) {
    let mut errors = OutOfMemories::default();
    let seen = see(&pod(&running(), &json!({})), &worker(standing, report), &policy(), &mut errors, now());
    assert_eq!(seen.map(|worker| worker.standing), expected);
}

#[test]
fn numbers_come_from_the_worker_s_own_container_and_report() {
    let mut errors = OutOfMemories::default();
    let mut look = |total| {
        let report = WorkerReport { out_of_memory_total: total, ..serving() };
        see(&pod(&running(), &json!({})), &worker(Ready, Some(report)), &policy(), &mut errors, now()).unwrap()
    };
    look(1);
    let seen = look(3);
    assert_eq!((seen.out_of_memory, seen.pool_overhead), (2, 0.3));
    assert_eq!(seen.started, Some("2026-05-01T01:00:00Z".parse().unwrap()));
}

#[test]
fn three_deaths_of_the_engine_in_a_quarter_of_an_hour_are_too_many() {
    let mut exits = FatalExits::default();
    let ended = |at: &str| json!({"terminated": {"exitCode": 4, "finishedAt": at}});
    let mut look = |state: &Value, last: &Value| is_killed_by_its_gpu(&pod(state, last), &mut exits);
    assert!(!look(&running(), &ended("2026-05-01T03:00:00Z")));
    assert!(!look(&running(), &ended("2026-05-01T03:05:00Z")));
    assert!(!look(&running(), &ended("2026-05-01T03:05:00Z")), "one end seen twice");
    assert!(look(&ended("2026-05-01T03:14:00Z"), &ended("2026-05-01T03:05:00Z")));
}

#[rstest]
#[case::nothing_is_known(&[], u32::MAX)]
#[case::no_work(&[serving(), serving()], 0)]
#[case::one_of_two_at_work(&[WorkerReport { running: 1, busy_ratio: 1.0, ..serving() }, serving()], 1)]
#[case::work_that_waits(
    &[WorkerReport { running: 1, queued: 3, wait_seconds: 50.0, backlog_seconds: 50.0, ..serving() }, serving()], 3)]
fn what_the_load_needs(#[case] reports: &[WorkerReport], #[case] expected: u32) {
    let spec = json!({"model": {"source": {"hostPath": {"path": "/m"}}}});
    let imagegen = ImageGen::new("turbo", serde_json::from_value(spec).unwrap());
    let workers: Vec<_> = reports.iter().map(|report| worker(Ready, Some(report.clone()))).collect();
    assert_eq!(needed(&imagegen, &workers), expected);
}
