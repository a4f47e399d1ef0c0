//! The pod template: the operator's own settings, then what the user adds.

mod merge;
mod volumes;

use imagegen_core::allocator;
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapEnvSource, Container, ContainerPort, EnvFromSource, EnvVar, HTTPGetAction, Lifecycle,
        LifecycleHandler, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile, SecurityContext,
        SleepAction, Toleration,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::names::{self, ADMIN_PORT, CONFIG_HASH_ANNOTATION, GRPC_PORT, HTTP_PORT, WORKER_CONTAINER};
use crate::reconcile::types::Validated;

/// User and group of the worker image.
const USER: i64 = 65532;
/// What the kubelet waits beyond the worker's own drain before it kills.
const KILL_GRACE_SECONDS: u64 = 30;
const STARTUP_PERIOD_SECONDS: i32 = 2;
/// Between the end of a pod's place in its Services and its SIGTERM, so that no new call is sent to it any more.
const LEAVE_SECONDS: i64 = 5;

/// The template of the pods of `spec`.
pub(super) fn template(spec: &Validated, config_hash: &str) -> PodTemplateSpec {
    let user = &spec.pod;
    let mut labels = user.labels.clone().unwrap_or_default();
    labels.extend(names::labels(&spec.name));
    let mut annotations = user.annotations.clone().unwrap_or_default();
    annotations.insert(CONFIG_HASH_ANNOTATION.into(), config_hash.to_owned());
    let own_volumes = volumes::volumes(spec);
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..Default::default() }),
        spec: Some(PodSpec {
            containers: vec![worker(spec)],
            init_containers: user.init_containers.as_ref().map(|list| list.iter().map(merge::restricted).collect()),
            volumes: Some(merge::by_key(own_volumes, user.volumes.as_deref(), |volume| &volume.name)),
            security_context: Some(merge::pod_security(pod_security(), user.security_context.as_ref())),
            tolerations: merge::append(tolerations(spec), user.tolerations.as_deref()),
            affinity: user.affinity.clone(),
            node_selector: user.node_selector.clone(),
            topology_spread_constraints: merge::spread(user, &spec.name),
            runtime_class_name: user.runtime_class_name.clone(),
            priority_class_name: user.priority_class_name.clone(),
            service_account_name: user.service_account_name.clone(),
            image_pull_secrets: user.image_pull_secrets.clone(),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(grace_seconds(spec)),
            ..Default::default()
        }),
    }
}

fn worker(spec: &Validated) -> Container {
    let port = |(name, number): (&str, i32)| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".into()),
        ..Default::default()
    };
    Container {
        name: WORKER_CONTAINER.into(),
        image: Some(spec.worker_image.value.clone()),
        args: Some(vec!["serve".into()]),
        env_from: Some(vec![EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource { name: names::config_map(&spec.name), ..Default::default() }),
            ..Default::default()
        }]),
        env: Some(environment(spec)).filter(|env| !env.is_empty()),
        // So that the end of the log says in the status why a worker ended.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ports: Some([GRPC_PORT, ADMIN_PORT, HTTP_PORT].map(port).into()),
        resources: Some(spec.resources.clone()),
        volume_mounts: Some(merge::by_key(volumes::mounts(spec), spec.pod.volume_mounts.as_deref(), |mount| {
            &mount.mount_path
        })),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: LEAVE_SECONDS }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        // Loading takes as long as it takes: readiness is what ends the start, and only then liveness begins.
        startup_probe: Some(probe("/readyz", STARTUP_PERIOD_SECONDS, startup_failures(spec))),
        readiness_probe: Some(probe("/readyz", 2, 3)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Default::default() }),
            read_only_root_filesystem: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Variables that are the operator's to set. The rest of the worker's configuration comes from the ConfigMap, which an
/// `env` entry of the same name would override: those entries are left out.
fn environment(spec: &Validated) -> Vec<EnvVar> {
    let allocator = spec.allocator.map(|allocator| EnvVar {
        // libtorch reads it when it is loaded, so the process cannot set it for itself.
        name: allocator::VARIABLE.into(),
        value: Some(allocator.to_string()),
        ..Default::default()
    });
    let user = spec.pod.env.iter().flatten().filter(|env| !is_reserved(&env.name, spec)).cloned();
    allocator.into_iter().chain(user).collect()
}

/// What of the user's pod template has no effect because the operator's own keys win, as sentences.
pub(super) fn left_out(spec: &Validated) -> Vec<String> {
    let sentence = |field: &str, what: &str| {
        format!("spec.worker.podTemplate.{field} {what} is left out: the operator sets it itself")
    };
    let user = &spec.pod;
    let env = user.env.iter().flatten().filter(|env| is_reserved(&env.name, spec));
    let own_volumes = volumes::volumes(spec);
    let own_mounts = volumes::mounts(spec);
    let volumes = user.volumes.iter().flatten().filter(|volume| own_volumes.iter().any(|own| own.name == volume.name));
    let mounts = user
        .volume_mounts
        .iter()
        .flatten()
        .filter(|mount| own_mounts.iter().any(|own| own.mount_path == mount.mount_path));
    let own_labels = names::labels(&spec.name);
    let labels = user.labels.iter().flatten().filter(|(key, _)| own_labels.contains_key(*key));
    env.map(|env| sentence("env", &env.name))
        .chain(volumes.map(|volume| sentence("volumes", &volume.name)))
        .chain(mounts.map(|mount| sentence("volumeMounts", &mount.mount_path)))
        .chain(labels.map(|(key, _)| sentence("labels", key)))
        .collect()
}

/// Whether the environment variable `name` follows from a field of the spec, so that a user's own entry is left out.
fn is_reserved(name: &str, spec: &Validated) -> bool {
    let own = spec.allocator.is_some() && name == allocator::VARIABLE;
    own || super::config_map::data(spec).contains_key(name)
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..Default::default() }),
        ..Default::default()
    }
}

/// The taint that GPU nodes carry by convention has the name of the resource.
fn tolerations(spec: &Validated) -> Vec<Toleration> {
    let of_gpu = spec.gpu_resource.as_ref().map(|resource| Toleration {
        key: Some(resource.clone()),
        operator: Some("Exists".into()),
        effect: Some("NoSchedule".into()),
        ..Default::default()
    });
    of_gpu.into_iter().collect()
}

fn grace_seconds(spec: &Validated) -> i64 {
    i64::try_from(spec.drain_timeout.as_secs() + KILL_GRACE_SECONDS).unwrap_or(i64::MAX)
}

fn startup_failures(spec: &Validated) -> i32 {
    let period = u64::try_from(STARTUP_PERIOD_SECONDS).unwrap_or(1);
    i32::try_from(spec.startup_timeout.as_secs().div_ceil(period)).unwrap_or(i32::MAX).max(1)
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String(HTTP_PORT.0.into()),
            scheme: Some("HTTP".into()),
            ..Default::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failure_threshold),
        ..Default::default()
    }
}
