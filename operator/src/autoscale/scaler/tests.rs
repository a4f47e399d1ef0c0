use imagegen_proto::v1::{WorkerReport, WorkerState};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::autoscale::{
    decide::ReasonClass,
    fleet::Standing,
    samples::{busy, idle, ready, seconds, silent, standing},
};

fn imagegen(spec: &Value) -> ImageGen {
    let mut whole = json!({"model": {"source": {"image": {"reference": "r/m:1"}}}, "replicas": 2});
    whole.as_object_mut().unwrap().append(&mut spec.as_object().unwrap().clone());
    let mut ig = ImageGen::new("turbo", serde_json::from_value(whole).unwrap());
    ig.metadata.namespace = Some("images".into());
    ig.metadata.uid = Some("u1".into());
    ig
}

fn operated() -> ImageGen {
    imagegen(
        &json!({"autoscaling": {"mode": "Operator", "maxReplicas": 8, "scaleDown": {"stabilizationWindow": "60s"}}}),
    )
}

fn deployment(replicas: u32, version: &str) -> Deployment {
    let deployment = json!({"metadata": {"name": "turbo", "resourceVersion": version}, "spec": {
        "replicas": replicas, "selector": {}, "template": {}}, "status": {"replicas": replicas, "updatedReplicas": replicas}});
    serde_json::from_value(deployment).unwrap()
}

/// A scaler, the clock, and what there is to see.
struct World {
    scaler: Scaler,
    imagegen: ImageGen,
    deployment: Option<Deployment>,
    workers: Vec<Worker>,
    pods: Vec<Arc<Pod>>,
    now: Moment,
}

impl World {
    fn new(imagegen: ImageGen, replicas: u32, workers: Vec<Worker>) -> Self {
        let now = Moment { monotonic: Instant::now(), wall: Timestamp::from_second(1_800_000_000).unwrap() };
        let deployment = Some(deployment(replicas, "10"));
        Self { scaler: Scaler::default(), imagegen, deployment, workers, pods: Vec::new(), now }
    }

    fn key() -> Key {
        ("images".into(), "turbo".into())
    }

    fn look(&self) -> Looked {
        let Self { imagegen, deployment, workers, pods, now, .. } = self;
        let seen = Seen { imagegen, deployment: deployment.as_ref(), workers, pods };
        self.scaler.look(&Self::key(), &seen, *now)
    }

    fn wait(&mut self, time: Duration) {
        self.now = Moment { monotonic: self.now.monotonic + time, wall: self.now.wall.checked_add(time).unwrap() };
    }

    /// Looks every second, and returns the last one.
    fn looks_for(&mut self, seconds_long: u64) -> Looked {
        let mut looked = self.look();
        for _ in 0..seconds_long {
            self.wait(seconds(1));
            looked = self.look();
        }
        looked
    }

    /// A new leader.
    fn restart(&mut self) {
        self.scaler = Scaler::default();
    }
}

fn names(actions: &[Action]) -> Vec<&str> {
    actions
        .iter()
        .map(|action| match action {
            Action::Drain { pod, .. } | Action::Release { pod } | Action::Resume { pod, .. } => pod.as_str(),
        })
        .collect()
}

fn drained(id: &str) -> WorkerReport {
    WorkerReport { state: WorkerState::Drained.into(), drain_id: id.into(), ..idle() }
}

#[test]
fn in_mode_operator_the_load_decides_at_once_and_says_why() {
    let world = World::new(operated(), 1, vec![ready("a", busy(0.2, 60.0))]);
    let view = world.look().view;
    assert_eq!((view.desired, view.replicas), (3, 3));
    let news = &view.news[0];
    assert_eq!((news.from, news.to), (1, 3));
    assert!(news.reason.starts_with("Backlog: backlog 60.0 s"), "{}", news.reason);
    assert_eq!(view.shown.demand.unwrap().backlog_seconds, 60.0);
}

#[test]
fn without_a_deployment_the_size_begins_at_the_minimum_or_where_it_was() {
    let mut world = World::new(operated(), 0, Vec::new());
    world.deployment = None;
    assert_eq!(world.look().view.replicas, 1);
    world.restart();
    let earlier = json!({"autoscalingMode": "Operator", "desiredReplicas": 4});
    world.imagegen.status = Some(serde_json::from_value(earlier).unwrap());
    assert_eq!(world.look().view.replicas, 4);
}

#[test]
fn a_scale_down_drains_first_and_outlives_the_leader() {
    let mut world = World::new(operated(), 2, vec![ready("a", busy(0.5, 0.0)), ready("b", idle())]);
    let looked = world.looks_for(61);
    assert_eq!((looked.view.desired, looked.view.replicas), (1, 2));
    assert_eq!(names(&looked.actions), ["b"]);
    let Action::Drain { id, .. } = looked.actions[0].clone() else { panic!("{:?}", looked.actions) };

    // The worker drains; a new leader takes over, and finds the drain in its report.
    world.restart();
    world.workers[1] = ready("b", WorkerReport { state: WorkerState::Draining.into(), ..drained(&id) });
    let looked = world.look();
    assert_eq!((looked.view.desired, looked.view.replicas, names(&looked.actions)), (1, 2, vec![]));
    world.workers[1] = ready("b", drained(&id));
    let looked = world.look();
    assert_eq!((looked.view.replicas, looked.actions), (2, vec![Action::Release { pod: "b".into() }]));
    let marks = json!({DRAIN_ANNOTATION: id, DELETION_COST_ANNOTATION: RELEASED_COST});
    let pod = json!({"metadata": {"name": "b", "annotations": marks}});
    world.pods = vec![Arc::new(serde_json::from_value(pod).unwrap())];
    let looked = world.look();
    assert_eq!((looked.view.desired, looked.view.replicas, names(&looked.actions)), (1, 1, vec![]));

    // The cache of Deployments is behind our own write: nobody else is drained.
    world.scaler.applied(&World::key(), &deployment(1, "11"));
    world.workers.pop();
    let looked = world.look();
    assert_eq!((looked.view.replicas, names(&looked.actions)), (1, vec![]));
}

#[test]
fn load_that_returns_takes_the_drain_back() {
    let mut world = World::new(operated(), 2, vec![ready("a", busy(0.5, 0.0)), ready("b", idle())]);
    let looked = world.looks_for(61);
    let Action::Drain { id, .. } = looked.actions[0].clone() else { panic!("{:?}", looked.actions) };
    world.workers = vec![
        ready("a", busy(0.5, 40.0)),
        ready("b", WorkerReport { state: WorkerState::Draining.into(), ..drained(&id) }),
    ];
    let looked = world.look();
    assert_eq!((looked.view.desired, looked.view.replicas), (2, 2));
    assert_eq!(looked.actions, [Action::Resume { pod: "b".into(), id: Some(id) }]);
}

#[test]
fn a_new_leader_takes_nobody_away_before_a_full_window_of_reports() {
    let mut world = World::new(operated(), 3, vec![ready("a", idle()), ready("b", idle()), ready("c", idle())]);
    world.workers[2] = silent(world.workers[2].clone());
    assert_eq!(world.looks_for(300).view.desired, 3, "a third of the workers is unknown");
    world.workers[2] = ready("c", idle());
    assert_eq!(world.looks_for(59).view.desired, 3);
    assert_eq!(world.looks_for(3).view.desired, 2);
}

#[test]
fn a_rollout_holds_the_size() {
    let mut world = World::new(operated(), 2, vec![ready("a", idle()), ready("b", idle())]);
    world.deployment.as_mut().unwrap().status.as_mut().unwrap().updated_replicas = Some(1);
    assert_eq!(world.looks_for(300).view.desired, 2);
    world.deployment = Some(deployment(2, "12"));
    assert_eq!(world.looks_for(1).view.desired, 1);
}

#[test]
fn another_autoscaler_holds_the_size() {
    let world = World::new(operated(), 1, vec![ready("a", busy(0.2, 60.0))]);
    world.look();
    let world = World { scaler: Scaler::default(), ..world };
    world.scaler.look(
        &World::key(),
        &Seen { imagegen: &world.imagegen, deployment: world.deployment.as_ref(), workers: &[], pods: &[] },
        world.now,
    );
    world.scaler.contested(&World::key(), Some("HorizontalPodAutoscaler a scales it".into()));
    let view = world.look().view;
    assert_eq!((view.desired, view.pause.is_some()), (1, true));
}

#[rstest]
#[case::disabled(json!({"replicas": 1}))]
#[case::external(json!({"replicas": 1, "autoscaling": {"mode": "External"}}))]
fn the_owner_of_spec_replicas_decides_and_workers_drain(#[case] spec: Value) {
    let world = World::new(imagegen(&spec), 2, vec![ready("a", busy(0.5, 40.0)), ready("b", busy(0.4, 0.0))]);
    let looked = world.look();
    assert_eq!((looked.view.desired, looked.view.replicas, names(&looked.actions)), (1, 2, vec!["b"]));
    assert!(looked.decision.is_none());
}

#[test]
fn a_suspended_one_drains_all_its_workers_and_begins_again_at_its_minimum() {
    let mut world = World::new(operated(), 2, vec![ready("a", busy(0.5, 40.0)), ready("b", idle())]);
    world.imagegen.spec.suspend = Some(true);
    let looked = world.look();
    assert_eq!((looked.view.desired, looked.view.replicas, names(&looked.actions)), (0, 2, vec!["b", "a"]));
    assert_eq!(looked.view.pause, Some(Pause::Suspended));

    world.imagegen.spec.suspend = None;
    (world.workers, world.deployment) = (Vec::new(), Some(deployment(0, "12")));
    assert_eq!(world.look().view.replicas, 1);
}

#[test]
fn an_edit_of_spec_replicas_is_told_until_it_is_undone_or_meant() {
    let mut world = World::new(operated(), 1, vec![ready("a", busy(0.7, 0.0))]);
    assert!(!world.look().view.ignores_replicas, "what was there before the mode is no edit");
    world.imagegen.spec.replicas = 5;
    assert!(world.look().view.ignores_replicas);
    world.imagegen.spec.replicas = 2;
    assert!(!world.look().view.ignores_replicas);

    world.imagegen.spec.replicas = 5;
    world.restart();
    let condition = json!({"conditions": [{"type": "ScalingActive", "status": "True", "reason": "ReplicasIgnored",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    world.imagegen.status = Some(serde_json::from_value(condition).unwrap());
    assert!(world.look().view.ignores_replicas, "a new leader knows it from the condition");
    world.imagegen.spec.replicas = 1;
    assert!(!world.look().view.ignores_replicas);
}

#[test]
fn the_load_time_of_the_status_counts_until_one_is_measured() {
    let pending = standing("b", Standing::Unscheduled, seconds(100), None);
    let mut world = World::new(operated(), 2, vec![ready("a", busy(0.5, 30.0)), pending]);
    assert_eq!(world.look().decision.unwrap().late, 0, "a start may take half an hour as long as none was measured");
    world.restart();
    world.imagegen.status = Some(serde_json::from_value(json!({"loadSeconds": 20.0})).unwrap());
    let decision = world.look().decision.unwrap();
    assert_eq!((decision.late, decision.class), (1, ReasonClass::InsufficientGpu));
}

#[test]
fn missing_reports_are_told_after_a_while() {
    let mut world = World::new(operated(), 1, vec![silent(ready("a", idle()))]);
    assert!(!world.looks_for(29).view.reports_missing);
    assert!(world.looks_for(1).view.reports_missing);
    world.workers = vec![ready("a", idle())];
    assert!(!world.look().view.reports_missing);
}
