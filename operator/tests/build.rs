//! From the YAML of a user through the real validation and the real builders to every child.

#![allow(clippy::panic, reason = "helpers of tests")]

use std::time::Duration;

use imagegen_operator::{
    crd::{ImageGen, ImageGenSpec, Origin, Reason},
    reconcile::{
        build::{self, build},
        types::{ClaimFact, Desired, Facts, OperatorSettings, Refusal, Validated},
        validate::validate,
    },
};
use insta::{assert_yaml_snapshot, glob};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

fn operator() -> OperatorSettings {
    OperatorSettings {
        worker_image: "registry.example/imagegen-worker:1".into(),
        operator_namespace: "imagegen-system".into(),
        allow_host_path: false,
        allow_privileged_pods: false,
        metrics_api: true,
    }
}

fn shared_claim() -> Facts {
    Facts { claim: ClaimFact::Found { access_modes: vec!["ReadWriteMany".into()] }, ..Facts::default() }
}

/// The ImageGen that the API server would store. Its name is not that of anything else here, so that swapped names show.
fn imagegen(spec: &str) -> ImageGen {
    let spec: ImageGenSpec = serde_yaml::from_str(spec).expect("the spec is readable");
    let mut object = ImageGen::new("fleet", spec);
    object.metadata.namespace = Some("studio".into());
    object.metadata.uid = Some("0a1b2c3d".into());
    object.metadata.generation = Some(1);
    object
}

fn with(extra: &str) -> String {
    format!("model: {{source: {{image: {{reference: \"registry.example/z-image:1\"}}}}}}\n{extra}")
}

fn accepted(spec: &str) -> Validated {
    validate(&imagegen(spec), &shared_claim(), &operator()).unwrap_or_else(|refusals| panic!("{refusals:#?}\n{spec}"))
}

fn refusals(spec: &str, facts: &Facts, operator: &OperatorSettings) -> Vec<Refusal> {
    validate(&imagegen(spec), facts, operator).expect_err("the spec is refused")
}

fn children(desired: &Desired) -> Value {
    let mut children = json!({
        "configMap": desired.config_map, "deployment": desired.deployment, "service": desired.service,
        "headlessService": desired.headless_service, "podDisruptionBudget": desired.pod_disruption_budget,
        "networkPolicy": desired.network_policy, "adminTlsSecret": desired.admin_tls_secret,
        "adminTlsServerName": desired.admin_tls_server_name,
    });
    if let Some(hpa) = &desired.hpa {
        children["hpa"] = json!(hpa);
    }
    children
}

#[test]
fn every_case_builds_the_children_of_its_snapshot() {
    let allowed = OperatorSettings { allow_host_path: true, ..operator() };
    glob!("build_cases/*.yaml", |path| {
        let spec = std::fs::read_to_string(path).expect("a case is readable");
        let validated = validate(&imagegen(&spec), &shared_claim(), &allowed)
            .unwrap_or_else(|refusals| panic!("{}: {refusals:#?}", path.display()));
        let mut left_out = validated.warnings.clone();
        left_out.extend(build::left_out(&validated));
        assert_yaml_snapshot!(json!({"leftOut": left_out, "children": children(&build(&validated))}));
    });
}

#[rstest]
#[case::a_whole_card("{}", "expandable_segments:True", Origin::BuiltIn)]
#[case::a_mig_instance(
    "{gpu: {resource: nvidia.com/mig-3g.20gb}}",
    "max_split_size_mb:256,garbage_collection_threshold:0.8",
    Origin::BuiltIn
)]
#[case::the_users_choice_on_a_mig_instance(
    "{gpu: {resource: nvidia.com/mig-3g.20gb}, allocator: {strategy: CudaMallocAsync}}",
    "backend:cudaMallocAsync",
    Origin::Spec
)]
#[case::all_settings(
    "{allocator: {strategy: MaxSplitSize, maxSplitSizeMiB: 128, roundupPower2Divisions: 8, garbageCollectionThreshold: 0.7}}",
    "max_split_size_mb:128,roundup_power2_divisions:8,garbage_collection_threshold:0.7",
    Origin::Spec
)]
fn the_pod_and_the_workers_flags_name_one_allocator(#[case] worker: &str, #[case] text: &str, #[case] origin: Origin) {
    let validated = accepted(&with(&format!("worker: {worker}")));
    assert_eq!(validated.allocator.map(|allocator| allocator.to_string()).as_deref(), Some(text));
    let desired = build(&validated);
    let template = desired.deployment.spec.expect("a spec").template.spec.expect("a pod");
    let env = template.containers[0].env.as_deref().unwrap_or_default();
    let variable = env.iter().find(|env| env.name == "PYTORCH_CUDA_ALLOC_CONF").and_then(|env| env.value.as_deref());
    assert_eq!(variable, Some(text));
    let flag =
        validated.settings.iter().find(|row| row.variable == "IMAGEGEN_ALLOCATOR").expect("the strategy is told");
    assert_eq!(flag.setting.origin, origin);
}

#[test]
fn allocator_settings_that_only_the_schema_stops_are_refused_all_the_same() {
    let refused = refusals(
        &with("worker: {allocator: {strategy: ExpandableSegments, maxSplitSizeMiB: 128}}"),
        &Facts::default(),
        &operator(),
    );
    let [refusal] = refused.as_slice() else { panic!("one refusal: {refused:#?}") };
    assert_eq!((refusal.reason, refusal.field.as_str()), (Reason::InvalidSpec, "spec.worker.allocator"));
}

#[rstest]
#[case::hugging_face(
    "model: {source: {huggingFace: {repo: a/b, revision: x, cache: {claimName: c}}}}",
    "spec.model.source.huggingFace"
)]
#[case::a_dra_claim(&with("worker: {gpu: {claim: {resourceClaimTemplateName: g}}}"), "spec.worker.gpu.claim")]
#[case::offloading(&with("worker: {textEncoder: {residency: Offloaded}}"), "spec.worker.textEncoder.residency")]
#[case::small_weights(&with("worker: {textEncoder: {weights: Int4}}"), "spec.worker.textEncoder.weights")]
#[case::mixed_eight_bits(
    "model: {source: {hostPath: {path: /m}}, precision: Float8}\nworker: {textEncoder: {weights: BFloat16}}",
    "spec.worker.textEncoder.weights"
)]
#[case::mixed_weights(&with("worker: {device: Cpu, textEncoder: {weights: BFloat16}}"), "spec.worker.textEncoder.weights")]
#[case::the_operators_way_to_zero(&with("autoscaling: {mode: Operator, minReplicas: 0, maxReplicas: 3}"), "spec.autoscaling.minReplicas")]
#[case::scale_to_zero(&with("autoscaling: {mode: Disabled, minReplicas: 0, scaleToZero: {maxHeld: 3}}"), "spec.autoscaling.scaleToZero")]
fn what_is_not_served_yet_is_refused_by_name(#[case] spec: &str, #[case] field: &str) {
    let allowed = OperatorSettings { allow_host_path: true, ..operator() };
    let refused = refusals(spec, &Facts::default(), &allowed);
    let [refusal] = refused.as_slice() else { panic!("one refusal: {refused:#?}") };
    assert_eq!((refusal.reason, refusal.field.as_str()), (Reason::NotYetSupported, field));
    assert!(refusal.message.contains("not there yet") && refusal.message.contains(": "), "{refusal}");
}

#[rstest]
#[case::automatic("worker: {profile: auto}", None)]
#[case::none("worker: {profile: none}", Some("none"))]
#[case::named("worker: {profile: l4-24gb}", Some("l4-24gb"))]
fn a_profile_reaches_the_worker(#[case] worker: &str, #[case] expected: Option<&str>) {
    let data = build(&accepted(&with(worker))).config_map.data.unwrap_or_default();
    assert_eq!(data.get("IMAGEGEN_PROFILE").map(String::as_str), expected);
}

const HOST_PATH: &str = "--allow-host-path";
const PRIVILEGED: &str = "--allow-privileged-pods";

fn pod(template: &str) -> String {
    with(&format!("worker: {{podTemplate: {{{template}}}}}"))
}

fn init(rest: &str) -> String {
    pod(&format!("initContainers: [{{name: i, image: i, {rest}}}]"))
}

#[rstest]
#[case::a_model_of_the_node("model: {source: {hostPath: {path: /etc}}}", "spec.model.source.hostPath", HOST_PATH)]
#[case::a_host_path_volume(&pod("volumes: [{name: v, hostPath: {path: /}}]"), "spec.worker.podTemplate.volumes[0].hostPath", HOST_PATH)]
#[case::remote_storage(&pod("volumes: [{name: v, nfs: {server: s, path: /}}]"), "spec.worker.podTemplate.volumes[0].*", PRIVILEGED)]
#[case::root_in_the_pod(&pod("securityContext: {runAsUser: 0}"), "spec.worker.podTemplate.securityContext.runAsUser", PRIVILEGED)]
#[case::maybe_root(&pod("securityContext: {runAsNonRoot: false}"), "spec.worker.podTemplate.securityContext.runAsNonRoot", PRIVILEGED)]
#[case::no_seccomp(&pod("securityContext: {seccompProfile: {type: Unconfined}}"), "spec.worker.podTemplate.securityContext.seccompProfile", PRIVILEGED)]
#[case::a_sysctl(&pod("securityContext: {sysctls: [{name: kernel.msgmax, value: \"1\"}]}"), "spec.worker.podTemplate.securityContext.sysctls", PRIVILEGED)]
#[case::an_selinux_type(&pod("securityContext: {seLinuxOptions: {type: spc_t}}"), "spec.worker.podTemplate.securityContext.seLinuxOptions", PRIVILEGED)]
#[case::a_privileged_container(&init("securityContext: {privileged: true}"), "spec.worker.podTemplate.initContainers[0].securityContext.privileged", PRIVILEGED)]
#[case::escalation(&init("securityContext: {allowPrivilegeEscalation: true}"), "spec.worker.podTemplate.initContainers[0].securityContext.allowPrivilegeEscalation", PRIVILEGED)]
#[case::a_capability(&init("securityContext: {capabilities: {add: [SYS_ADMIN]}}"), "spec.worker.podTemplate.initContainers[0].securityContext.capabilities.add", PRIVILEGED)]
#[case::root_in_a_container(&init("securityContext: {runAsUser: 0}"), "spec.worker.podTemplate.initContainers[0].securityContext.runAsUser", PRIVILEGED)]
#[case::an_unmasked_proc(&init("securityContext: {procMount: Unmasked}"), "spec.worker.podTemplate.initContainers[0].securityContext.procMount", PRIVILEGED)]
#[case::a_host_port(&init("ports: [{containerPort: 1, hostPort: 1}]"), "spec.worker.podTemplate.initContainers[0].ports", PRIVILEGED)]
#[case::a_probe_of_another_host(&init("restartPolicy: Always, startupProbe: {httpGet: {host: 10.0.0.1, port: 1}}"), "spec.worker.podTemplate.initContainers[0]", PRIVILEGED)]
#[case::no_app_armor(&pod("annotations: {container.apparmor.security.beta.kubernetes.io/worker: unconfined}"), "spec.worker.podTemplate.annotations[container.apparmor.security.beta.kubernetes.io/worker]", PRIVILEGED)]
fn more_rights_than_a_restricted_pod_has_need_a_flag(#[case] spec: &str, #[case] field: &str, #[case] flag: &str) {
    let refused = refusals(spec, &Facts::default(), &operator());
    let [refusal] = refused.as_slice() else { panic!("one refusal: {refused:#?}") };
    assert_eq!((refusal.reason, refusal.field.as_str()), (Reason::NotAllowed, field));
    assert!(refusal.message.contains(flag), "{refusal}");

    let allowed = OperatorSettings { allow_host_path: true, allow_privileged_pods: true, ..operator() };
    let validated = validate(&imagegen(spec), &Facts::default(), &allowed);
    assert!(validated.is_ok(), "the flag {flag} allows it: {validated:?}");
}

#[test]
fn a_refusal_tells_everything_that_is_wrong_at_once() {
    let spec = with(
        "worker: {textEncoder: {residency: Offloaded}, podTemplate: {securityContext: {runAsUser: 0}}}\ndrainTimeout: soon",
    );
    let fields: Vec<_> =
        refusals(&spec, &Facts::default(), &operator()).into_iter().map(|refusal| refusal.field).collect();
    let podded = "spec.worker.podTemplate.securityContext.runAsUser";
    assert_eq!(fields, ["spec.worker.textEncoder.residency", podded, "spec.drainTimeout"]);
}

#[rstest]
#[case::one_worker(&["ReadWriteOnce"], "replicas: 1", None)]
#[case::two_workers(&["ReadWriteOnce"], "replicas: 2", Some(Reason::ClaimNotShareable))]
#[case::one_pod_only(&["ReadWriteOncePod"], "replicas: 2", Some(Reason::ClaimNotShareable))]
#[case::a_surge(&["ReadWriteOncePod"], "rollout: {maxSurge: 1}", Some(Reason::ClaimNotShareable))]
#[case::no_worker(&["ReadWriteOnce"], "replicas: 0", None)]
#[case::many_readers(&["ReadOnlyMany"], "replicas: 9", None)]
#[case::many_writers(&["ReadWriteOnce", "ReadWriteMany"], "replicas: 9", None)]
fn a_claim_serves_as_many_workers_as_its_access_modes_allow(
    #[case] modes: &[&str],
    #[case] extra: &str,
    #[case] reason: Option<Reason>,
) {
    let spec = format!("model: {{source: {{persistentVolumeClaim: {{claimName: z}}}}}}\n{extra}");
    let facts = Facts {
        claim: ClaimFact::Found { access_modes: modes.iter().map(|mode| (*mode).to_owned()).collect() },
        ..Facts::default()
    };
    let found = validate(&imagegen(&spec), &facts, &operator()).err();
    assert_eq!(found.map(|refusals| refusals[0].reason), reason);
}

#[test]
fn a_missing_claim_is_named() {
    let spec = "model: {source: {persistentVolumeClaim: {claimName: z}}}";
    let refused = refusals(spec, &Facts { claim: ClaimFact::Missing, ..Facts::default() }, &operator());
    assert_eq!(refused[0].reason, Reason::ClaimNotFound);
    assert!(refused[0].message.contains("PersistentVolumeClaim z"), "{}", refused[0]);
}

#[rstest]
#[case::pinned_keeps_what_it_has("", Some((Origin::BuiltIn, "old:1")), "old:1")]
#[case::auto_follows_the_operator("worker: {imageUpdate: Auto}", Some((Origin::BuiltIn, "old:1")), "registry.example/imagegen-worker:1")]
#[case::a_new_fleet_takes_the_operators("", None, "registry.example/imagegen-worker:1")]
#[case::the_spec_wins("worker: {image: \"mine:2\"}", Some((Origin::BuiltIn, "old:1")), "mine:2")]
#[case::a_former_spec_is_no_pin("", Some((Origin::Spec, "mine:2")), "registry.example/imagegen-worker:1")]
fn the_worker_image_stays_through_an_operator_upgrade(
    #[case] extra: &str,
    #[case] before: Option<(Origin, &str)>,
    #[case] image: &str,
) {
    let mut object = imagegen(&with(extra));
    object.status = before.map(|(origin, value)| {
        let status = json!({"workerImage": value, "effective": {"workerImage": {"value": value, "origin": origin}}});
        serde_json::from_value(status).expect("a status")
    });
    let validated = validate(&object, &Facts::default(), &operator()).expect("accepted");
    assert_eq!(validated.worker_image.value, image);
}

#[test]
fn a_slow_model_gets_its_time_from_every_deadline() {
    let validated =
        accepted(&with("worker: {startupTimeout: 2h}\nrollout: {progressDeadline: 30m}\ndrainTimeout: 90s"));
    assert_eq!(validated.rollout.progress_deadline, Duration::from_secs(7200));
    let deployment = build(&validated).deployment.spec.expect("a spec");
    assert_eq!(deployment.progress_deadline_seconds, Some(7200));
    let pod = deployment.template.spec.expect("a pod");
    assert_eq!(pod.termination_grace_period_seconds, Some(120));
    let startup = pod.containers[0].startup_probe.clone().expect("a probe");
    assert_eq!(startup.period_seconds.zip(startup.failure_threshold).map(|(a, b)| a * b), Some(7200));
}

/// What the `restricted` Pod Security Standard asks of a pod, on the built pod itself.
fn assert_restricted(pod: &k8s_openapi::api::core::v1::PodSpec) {
    let context = pod.security_context.clone().expect("a security context");
    assert_eq!(context.run_as_non_root, Some(true));
    assert_ne!(context.run_as_user, Some(0));
    assert_eq!(context.seccomp_profile.expect("seccomp").type_, "RuntimeDefault");
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
    for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
        let context = container.security_context.clone().expect("a security context");
        assert_eq!(context.allow_privilege_escalation, Some(false), "{}", container.name);
        let capabilities = context.capabilities.expect("capabilities");
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]), "{}", container.name);
        assert!(context.privileged != Some(true));
    }
}

fn arbitrary_template() -> impl Strategy<Value = String> {
    let env = prop::collection::btree_set(
        prop::sample::select(vec!["A", "B", "IMAGEGEN_DEVICE", "IMAGEGEN_ENGINE", "PYTORCH_CUDA_ALLOC_CONF"]),
        0..4,
    );
    let volumes = prop::collection::btree_set(prop::sample::select(vec!["model", "tmp", "mine", "other"]), 0..4);
    let tolerations = prop::collection::vec(prop::sample::select(vec!["nvidia.com/gpu", "spot"]), 0..3);
    let containers = prop::collection::btree_set(prop::sample::select(vec!["one", "two"]), 0..3);
    (env, volumes, tolerations, containers).prop_map(|(env, volumes, tolerations, containers)| {
        json!({
            "env": env.iter().map(|name| json!({"name": name, "value": "x"})).collect::<Vec<_>>(),
            "volumes": volumes.iter().map(|name| json!({"name": name, "emptyDir": {}})).collect::<Vec<_>>(),
            "volumeMounts": volumes.iter().map(|name| json!({"name": name, "mountPath": format!("/{name}")})).collect::<Vec<_>>(),
            "tolerations": tolerations.iter().map(|key| json!({"key": key, "operator": "Exists", "effect": "NoSchedule"})).collect::<Vec<_>>(),
            "initContainers": containers.iter().map(|name| json!({"name": name, "image": "i"})).collect::<Vec<_>>(),
        })
        .to_string()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_user_adds_the_pod_is_restricted_and_our_keys_win(template in arbitrary_template(), cpu in any::<bool>()) {
        let device = if cpu { "Cpu" } else { "Cuda" };
        let spec = with(&format!("worker: {{device: {device}, podTemplate: {template}}}"));
        let validated = accepted(&spec);
        let desired = build(&validated);
        prop_assert_eq!(children(&desired), children(&build(&accepted(&spec))), "building is deterministic");

        let pod = desired.deployment.spec.expect("a spec").template.spec.expect("a pod");
        assert_restricted(&pod);
        let worker = &pod.containers[0];
        let names: Vec<_> = worker.env.iter().flatten().map(|env| &env.name).collect();
        let config = desired.config_map.data.expect("data");
        prop_assert!(names.iter().all(|name| !config.contains_key(*name)), "env overrides the ConfigMap: {names:?}");
        let values: Vec<_> = worker.env.iter().flatten().filter(|env| env.name == "PYTORCH_CUDA_ALLOC_CONF").map(|env| env.value.as_deref()).collect();
        if !cpu {
            prop_assert_eq!(values, vec![Some("expandable_segments:True")]);
        }
        for unique in [
            pod.volumes.iter().flatten().map(|volume| volume.name.clone()).collect::<Vec<_>>(),
            worker.volume_mounts.iter().flatten().map(|mount| mount.mount_path.clone()).collect(),
            names.into_iter().cloned().collect(),
        ] {
            let mut sorted = unique.clone();
            sorted.sort();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), unique.len(), "duplicates in {:?}", unique);
        }
        let gpus: Vec<_> = worker.resources.iter().flat_map(|r| r.limits.iter().flatten()).filter(|(name, _)| name.starts_with("nvidia.com/")).map(|(_, amount)| amount.0.clone()).collect();
        prop_assert_eq!(gpus, if cpu { vec![] } else { vec!["1".to_owned()] });
    }
}

#[test]
fn the_order_of_buckets_rolls_no_pods_and_a_new_value_does() {
    let hash = |buckets: &str| {
        let built = build(&accepted(&with(&format!("worker: {{buckets: [{buckets}]}}"))));
        let template = built.deployment.spec.expect("a spec").template;
        template.metadata.expect("metadata").annotations.expect("annotations")["imagegen.dev/config-hash"].clone()
    };
    let (small, large) = ("{width: 512, height: 512}", "{width: 1024, height: 1024}");
    assert_eq!(hash(&format!("{small}, {large}")), hash(&format!("{large}, {small}")));
    assert_ne!(hash(small), hash(large));
}
