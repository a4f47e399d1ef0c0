//! What an ImageGen may ask of the node: no more than a pod that the `restricted` Pod Security Standard admits, unless
//! the operator's flags say otherwise. <https://kubernetes.io/docs/concepts/security/pod-security-standards/>

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, PodSecurityContext, Probe, SELinuxOptions, SeccompProfile,
    SecurityContext, Volume, WindowsSecurityContextOptions,
};

use super::refuse;
use crate::{
    crd::{ImageGenSpec, PodTemplate, Reason},
    reconcile::types::{OperatorSettings, Refusal},
};

const HOST_PATH_FLAG: &str = "--allow-host-path";
const PRIVILEGED_FLAG: &str = "--allow-privileged-pods";
const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
const SAFE_SYSCTLS: [&str; 11] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
];
const SELINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// Adds a refusal for everything that `operator` does not allow.
pub(super) fn check(spec: &ImageGenSpec, operator: &OperatorSettings, refusals: &mut Vec<Refusal>) {
    if spec.model.source.host_path.is_some() && !operator.allow_host_path {
        refusals.push(not_allowed(
            "model.source.hostPath".into(),
            "hostPath reads the node's own files",
            HOST_PATH_FLAG,
        ));
    }
    let Some(pod) = &spec.worker.pod_template else { return };
    for (index, volume) in pod.volumes.iter().flatten().enumerate() {
        refusals.extend(volume_refusal(volume, index, operator));
    }
    if operator.allow_privileged_pods {
        return;
    }
    let mut found = Vec::new();
    pod_findings(pod, &mut found);
    refusals.extend(
        found
            .into_iter()
            .map(|(field, what)| not_allowed(format!("worker.podTemplate.{field}"), &what, PRIVILEGED_FLAG)),
    );
}

fn not_allowed(field: String, what: &str, flag: &str) -> Refusal {
    let message = format!(
        "{what}, which the operator does not allow: leave it out, or ask the cluster's administrator to run the operator with {flag}"
    );
    refuse(Reason::NotAllowed, field, message)
}

fn volume_refusal(volume: &Volume, index: usize, operator: &OperatorSettings) -> Option<Refusal> {
    let field = |kind: &str| format!("worker.podTemplate.volumes[{index}].{kind}");
    if volume.host_path.is_some() {
        let refused = !operator.allow_host_path;
        return refused
            .then(|| not_allowed(field("hostPath"), "hostPath reaches the node's own files", HOST_PATH_FLAG));
    }
    // The types that the standard lists; whatever else a volume has is another type.
    let listed = Volume {
        name: volume.name.clone(),
        config_map: volume.config_map.clone(),
        csi: volume.csi.clone(),
        downward_api: volume.downward_api.clone(),
        empty_dir: volume.empty_dir.clone(),
        ephemeral: volume.ephemeral.clone(),
        image: volume.image.clone(),
        persistent_volume_claim: volume.persistent_volume_claim.clone(),
        projected: volume.projected.clone(),
        secret: volume.secret.clone(),
        ..Default::default()
    };
    let other = listed != *volume && !operator.allow_privileged_pods;
    other.then(|| not_allowed(field("*"), "a volume that is not configMap, csi, downwardAPI, emptyDir, ephemeral, image, persistentVolumeClaim, projected or secret mounts remote storage as the node", PRIVILEGED_FLAG))
}

type Findings = Vec<(String, String)>;

fn pod_findings(pod: &PodTemplate, found: &mut Findings) {
    for (key, value) in pod.annotations.iter().flatten() {
        let confined = value == "runtime/default" || value.starts_with("localhost/");
        if key.starts_with(APP_ARMOR_ANNOTATION) && !confined {
            found.push((format!("annotations[{key}]"), format!("{value} switches AppArmor off")));
        }
    }
    if let Some(context) = &pod.security_context {
        pod_context_findings(context, found);
    }
    for (index, container) in pod.init_containers.iter().flatten().enumerate() {
        container_findings(container, &format!("initContainers[{index}]"), found);
    }
}

fn pod_context_findings(context: &PodSecurityContext, found: &mut Findings) {
    let at = "securityContext";
    user_findings(at, context.run_as_user, context.run_as_non_root, found);
    profile_findings(at, context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), found);
    selinux_findings(at, context.se_linux_options.as_ref(), found);
    windows_findings(at, context.windows_options.as_ref(), found);
    for sysctl in context.sysctls.iter().flatten() {
        if !SAFE_SYSCTLS.contains(&sysctl.name.as_str()) {
            found.push((format!("{at}.sysctls"), format!("{} is a sysctl that reaches beyond the pod", sysctl.name)));
        }
    }
}

fn container_findings(container: &Container, at: &str, found: &mut Findings) {
    for port in container.ports.iter().flatten() {
        if port.host_port.is_some_and(|port| port != 0) {
            found.push((format!("{at}.ports"), "hostPort listens on the node".into()));
        }
    }
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    if probes.into_iter().flatten().any(probes_another_host) || lifecycle_calls_another_host(container) {
        found.push((at.to_owned(), "a probe or a lifecycle hook with a host makes the node call it".into()));
    }
    let Some(context) = &container.security_context else { return };
    let at = &format!("{at}.securityContext");
    user_findings(at, context.run_as_user, context.run_as_non_root, found);
    profile_findings(at, context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), found);
    selinux_findings(at, context.se_linux_options.as_ref(), found);
    windows_findings(at, context.windows_options.as_ref(), found);
    privilege_findings(at, context, found);
}

fn privilege_findings(at: &str, context: &SecurityContext, found: &mut Findings) {
    if context.privileged == Some(true) {
        found.push((format!("{at}.privileged"), "a privileged container is root on the node".into()));
    }
    if context.allow_privilege_escalation == Some(true) {
        found
            .push((format!("{at}.allowPrivilegeEscalation"), "privilege escalation lets a process become root".into()));
    }
    if context.proc_mount.as_deref().is_some_and(|mount| mount != "Default") {
        found.push((format!("{at}.procMount"), "an unmasked /proc shows the node's own".into()));
    }
    let added = |capabilities: &Capabilities| capabilities.add.clone().unwrap_or_default();
    let beyond: Vec<_> = context.capabilities.as_ref().map(added).unwrap_or_default();
    let beyond: Vec<_> = beyond.into_iter().filter(|name| name != "NET_BIND_SERVICE").collect();
    if !beyond.is_empty() {
        found.push((format!("{at}.capabilities.add"), format!("{} adds rights on the node", beyond.join(", "))));
    }
}

fn user_findings(at: &str, user: Option<i64>, non_root: Option<bool>, found: &mut Findings) {
    if user == Some(0) {
        found.push((format!("{at}.runAsUser"), "user 0 is root".into()));
    }
    if non_root == Some(false) {
        found.push((format!("{at}.runAsNonRoot"), "false allows root".into()));
    }
}

fn profile_findings(
    at: &str,
    seccomp: Option<&SeccompProfile>,
    app_armor: Option<&AppArmorProfile>,
    found: &mut Findings,
) {
    if seccomp.is_some_and(|profile| profile.type_ == "Unconfined") {
        found.push((format!("{at}.seccompProfile"), "Unconfined switches seccomp off".into()));
    }
    if app_armor.is_some_and(|profile| profile.type_ == "Unconfined") {
        found.push((format!("{at}.appArmorProfile"), "Unconfined switches AppArmor off".into()));
    }
}

fn selinux_findings(at: &str, options: Option<&SELinuxOptions>, found: &mut Findings) {
    let Some(options) = options else { return };
    let set = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let other_type = !SELINUX_TYPES.contains(&options.type_.as_deref().unwrap_or_default());
    if other_type || set(&options.user) || set(&options.role) {
        found.push((
            format!("{at}.seLinuxOptions"),
            "an SELinux user, role or type other than a container's widens its rights".into(),
        ));
    }
}

fn windows_findings(at: &str, options: Option<&WindowsSecurityContextOptions>, found: &mut Findings) {
    if options.is_some_and(|options| options.host_process == Some(true)) {
        found.push((format!("{at}.windowsOptions.hostProcess"), "a host process is no container".into()));
    }
}

fn probes_another_host(probe: &Probe) -> bool {
    let http = probe.http_get.as_ref().and_then(|action| action.host.as_ref());
    let tcp = probe.tcp_socket.as_ref().and_then(|action| action.host.as_ref());
    [http, tcp].into_iter().flatten().any(|host| !host.is_empty())
}

fn lifecycle_calls_another_host(container: &Container) -> bool {
    let Some(lifecycle) = &container.lifecycle else { return false };
    [&lifecycle.post_start, &lifecycle.pre_stop].into_iter().flatten().any(|handler| {
        let http = handler.http_get.as_ref().and_then(|action| action.host.as_ref());
        let tcp = handler.tcp_socket.as_ref().and_then(|action| action.host.as_ref());
        [http, tcp].into_iter().flatten().any(|host| !host.is_empty())
    })
}
