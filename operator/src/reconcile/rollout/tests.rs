//! What becomes of a rollout, case by case.

use k8s_openapi::api::apps::v1::Deployment;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::{
    crd::ImageGen,
    reconcile::{
        build::build,
        types::{Facts, OperatorSettings},
        validate::validate,
    },
};

/// replicas, updated, available; `failing`: the progress deadline passed.
fn counts(wanted: i32, [replicas, updated, available]: [i32; 3], failing: bool) -> serde_json::Value {
    let reason = if failing { "ProgressDeadlineExceeded" } else { "ReplicaSetUpdated" };
    json!({
        "metadata": {"name": "turbo", "generation": 2}, "spec": {"replicas": wanted, "selector": {}, "template": {}},
        "status": {
            "observedGeneration": 2, "replicas": replicas, "updatedReplicas": updated, "readyReplicas": available,
            "availableReplicas": available,
            "conditions": [{"type": "Progressing", "status": "True", "reason": reason}],
        },
    })
}

fn seen(template: &str, ready: Option<&str>, failed: Option<&str>, status: [i32; 3], failing: bool) -> Seen {
    let deployment: Deployment = serde_json::from_value(counts(3, status, failing)).unwrap();
    let revision =
        |hash: &str| Revision { hash: hash.into(), template: PodTemplateSpec::default(), config: BTreeMap::new() };
    Seen {
        template: Some(template.into()),
        ready: ready.map(revision),
        failure: failed.map(|hash| Failure { hash: hash.into(), why: "w".into() }),
        ..Seen::of(Some(&deployment))
    }
}

const MIXED: [i32; 3] = [3, 1, 2];
const READY: [i32; 3] = [3, 3, 3];

use RolloutFailure::{Pause, RollBack};

#[rstest]
#[case::nothing_is_there_yet(Seen::default(), RollBack, Step::Apply)]
#[case::all_is_well(seen("new", Some("new"), None, READY, false), RollBack, Step::Apply)]
#[case::a_change_rolls(seen("old", Some("old"), None, READY, false), RollBack, Step::Apply)]
#[case::it_moves(seen("new", Some("old"), None, MIXED, false), RollBack, Step::Apply)]
#[case::it_stands(seen("new", Some("old"), None, MIXED, true), RollBack, Step::RollBack)]
#[case::it_stands_and_is_to_pause(seen("new", Some("old"), None, MIXED, true), Pause, Step::Pause)]
#[case::it_stays_paused(seen("new", Some("old"), Some("new"), MIXED, false), Pause, Step::Pause)]
#[case::it_stays_rolled_back(seen("old", Some("old"), Some("new"), READY, false), RollBack, Step::RollBack)]
#[case::while_it_rolls_back(seen("old", Some("old"), Some("new"), MIXED, false), RollBack, Step::RollBack)]
#[case::a_fix_resumes_a_pause(seen("bad", Some("old"), Some("bad"), MIXED, true), Pause, Step::Apply)]
#[case::a_fix_resumes_after_a_rollback(seen("old", Some("old"), Some("bad"), READY, false), RollBack, Step::Apply)]
#[case::the_workers_recovered_by_themselves(seen("new", Some("old"), Some("new"), READY, true), Pause, Step::Apply)]
#[case::the_first_one_has_nothing_to_go_back_to(seen("new", None, None, [3, 3, 0], true), RollBack, Step::Hold)]
#[case::what_was_ready_itself_fails_later(seen("new", Some("new"), None, [3, 3, 2], true), RollBack, Step::Hold)]
#[case::going_back_by_hand_is_a_fix(seen("bad", Some("new"), Some("bad"), MIXED, true), RollBack, Step::Apply)]
fn a_rollout(#[case] seen: Seen, #[case] on_failure: RolloutFailure, #[case] expected: Step) {
    assert_eq!(decide(&seen, "new", on_failure), expected);
}

use AutoscalingMode::{Disabled, Operator};

#[rstest]
#[case::a_failing_revision_never_grows(Step::Pause, Operator, MIXED, 5, 3)]
#[case::nor_one_with_nothing_to_go_back_to(Step::Hold, Disabled, MIXED, 5, 3)]
#[case::it_may_shrink(Step::Pause, Operator, MIXED, 2, 2)]
#[case::no_scale_down_while_it_rolls(Step::Apply, Operator, MIXED, 1, 3)]
#[case::nor_while_it_rolls_back(Step::RollBack, Operator, MIXED, 1, 3)]
#[case::but_up(Step::Apply, Operator, MIXED, 5, 5)]
#[case::a_person_may(Step::Apply, Disabled, MIXED, 1, 1)]
#[case::to_stop_all_is_always_possible(Step::Apply, Operator, MIXED, 0, 0)]
#[case::down_when_it_is_done(Step::Apply, Operator, READY, 1, 1)]
fn how_many_workers(
    #[case] step: Step,
    #[case] mode: AutoscalingMode,
    #[case] status: [i32; 3],
    #[case] wanted: i32,
    #[case] expected: i32,
) {
    assert_eq!(replicas(&seen("new", None, None, status, false), step, wanted, mode), expected);
}

fn desired(image: &str, steps: u32) -> Desired {
    let spec = json!({
        "model": {"source": {"image": {"reference": "r/z-image:1"}}, "defaults": {"steps": steps}},
        "worker": {"image": image}, "replicas": 3,
    });
    let mut object = ImageGen::new("turbo", serde_json::from_value(spec).unwrap());
    object.metadata.namespace = Some("studio".into());
    object.metadata.uid = Some("u".into());
    let operator = OperatorSettings {
        worker_image: "r/worker:1".into(),
        operator_namespace: "system".into(),
        allow_host_path: false,
        allow_privileged_pods: false,
        metrics_api: false,
    };
    build(&validate(&object, &Facts::default(), &operator).unwrap())
}

/// What the Deployment looks like after `desired` was applied and the controller came to these counts.
fn later(desired: &Desired, status: [i32; 3], failing: bool) -> Deployment {
    let mut deployment: Deployment = serde_json::from_value(counts(3, status, failing)).unwrap();
    deployment.metadata.annotations.clone_from(&desired.deployment.metadata.annotations);
    deployment
}

fn shaped(image: &str, steps: u32, found: Option<&Deployment>, on_failure: RolloutFailure) -> (Desired, Rollout) {
    let mut wanted = desired(image, steps);
    let rollout = shape(&mut wanted, found, on_failure, Disabled, Some("ImagePullFailed: no such image".into()));
    (wanted, rollout)
}

fn image(desired: &Desired) -> String {
    let template = &desired.deployment.spec.as_ref().unwrap().template;
    template.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

#[test]
fn template_and_configuration_come_back_and_a_fix_is_tried() {
    let (first, rollout) = shaped("r/w:good", 8, None, RollBack);
    assert_eq!(rollout, Rollout::default());
    let (ready, _) = shaped("r/w:good", 8, Some(&later(&first, READY, false)), RollBack);
    let ready = later(&ready, READY, false);
    let (bad, _) = shaped("r/w:bad", 4, Some(&ready), RollBack);
    assert_eq!(image(&bad), "r/w:bad");

    let (back, rollout) = shaped("r/w:bad", 4, Some(&later(&bad, MIXED, true)), RollBack);
    assert_eq!((rollout.step, image(&back).as_str()), (Step::RollBack, "r/w:good"));
    assert_eq!(rollout.failure.as_ref().unwrap().why, "ImagePullFailed: no such image");
    assert_eq!(back.config_map.data, desired("r/w:good", 8).config_map.data);
    assert_eq!(back.deployment.spec, desired("r/w:good", 8).deployment.spec);

    // It stays so, with the same words, when all is ready again, and after a restart of the operator.
    let (again, rollout) = shaped("r/w:bad", 4, Some(&later(&back, READY, false)), RollBack);
    assert_eq!((rollout.step, &again.deployment), (Step::RollBack, &back.deployment));
    let (fixed, rollout) = shaped("r/w:fixed", 4, Some(&later(&again, READY, false)), RollBack);
    assert_eq!((rollout.step, image(&fixed).as_str()), (Step::Apply, "r/w:fixed"));
    assert!(!fixed.deployment.metadata.annotations.as_ref().unwrap().contains_key(FAILED_ANNOTATION));
}

#[test]
fn a_pause_stops_the_deployment_until_the_spec_changes() {
    let (first, _) = shaped("r/w:good", 8, None, Pause);
    let (ready, _) = shaped("r/w:good", 8, Some(&later(&first, READY, false)), Pause);
    let (bad, _) = shaped("r/w:bad", 8, Some(&later(&ready, READY, false)), Pause);
    let paused = |desired: &Desired| desired.deployment.spec.as_ref().unwrap().paused;
    assert_eq!(paused(&bad), None);
    let (stopped, rollout) = shaped("r/w:bad", 8, Some(&later(&bad, MIXED, true)), Pause);
    assert_eq!((rollout.step, paused(&stopped), image(&stopped).as_str()), (Step::Pause, Some(true), "r/w:bad"));
    let (fixed, _) = shaped("r/w:fixed", 8, Some(&later(&stopped, MIXED, true)), Pause);
    assert_eq!((paused(&fixed), image(&fixed).as_str()), (None, "r/w:fixed"));
}

proptest! {
    #[test]
    fn a_failing_revision_never_gets_a_worker_more(
        replicas_ in 0i32..9, updated in 0i32..9, available in 0i32..9, wanted in 0i32..20, rolls_back in any::<bool>(),
        has_ready in any::<bool>(), automatic in any::<bool>(),
    ) {
        let status = [replicas_, updated.min(replicas_), available.min(replicas_)];
        let seen = seen("new", has_ready.then_some("old"), Some("new"), status, true);
        let step = decide(&seen, "new", if rolls_back { RollBack } else { Pause });
        let mode = if automatic { Operator } else { Disabled };
        if matches!(step, Step::Hold | Step::Pause) {
            prop_assert!(replicas(&seen, step, wanted, mode) <= 3);
        }
        prop_assert!(step != Step::Apply || seen.counts.all_ready());
    }
}
