//! What a user adds to the pods, laid over the operator's own settings: lists merge by key, tolerations append, our own
//! keys win.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, PodSecurityContext, SecurityContext, Toleration, TopologySpreadConstraint,
};

use crate::{crd::PodTemplate, reconcile::build::names};

/// `own`, then the entries of `user` whose key is not there yet.
pub(super) fn by_key<T: Clone>(own: Vec<T>, user: Option<&[T]>, key: impl Fn(&T) -> &String) -> Vec<T> {
    let mut seen: HashSet<String> = own.iter().map(|entry| key(entry).clone()).collect();
    let added: Vec<T> =
        user.unwrap_or_default().iter().filter(|entry| seen.insert(key(entry).clone())).cloned().collect();
    own.into_iter().chain(added).collect()
}

/// `own`, then what of `user` is not in it already.
pub(super) fn append(own: Vec<Toleration>, user: Option<&[Toleration]>) -> Option<Vec<Toleration>> {
    let mut all = own;
    for toleration in user.unwrap_or_default() {
        if !all.contains(toleration) {
            all.push(toleration.clone());
        }
    }
    (!all.is_empty()).then_some(all)
}

/// Field by field: what the user sets, else ours.
pub(super) fn pod_security(own: PodSecurityContext, user: Option<&PodSecurityContext>) -> PodSecurityContext {
    let Some(user) = user.cloned() else { return own };
    PodSecurityContext {
        run_as_non_root: user.run_as_non_root.or(own.run_as_non_root),
        run_as_user: user.run_as_user.or(own.run_as_user),
        run_as_group: user.run_as_group.or(own.run_as_group),
        seccomp_profile: user.seccomp_profile.or(own.seccomp_profile),
        ..user
    }
}

/// Constraints without a selector count the pods of this ImageGen, not all or none.
pub(super) fn spread(user: &PodTemplate, name: &str) -> Option<Vec<TopologySpreadConstraint>> {
    let selected = |constraint: &TopologySpreadConstraint| TopologySpreadConstraint {
        label_selector: constraint.label_selector.clone().or_else(|| Some(names::selector(name))),
        ..constraint.clone()
    };
    user.topology_spread_constraints.as_ref().map(|list| list.iter().map(selected).collect())
}

/// A user's container with what it leaves open filled in as the `restricted` Pod Security Standard asks.
pub(super) fn restricted(container: &Container) -> Container {
    let context = container.security_context.clone().unwrap_or_default();
    let capabilities = context.capabilities.unwrap_or_default();
    let mut drop = capabilities.drop.unwrap_or_default();
    if !drop.iter().any(|name| name == "ALL") {
        drop.push("ALL".into());
    }
    // A privileged container cannot give up escalation; validation has already asked whether it may be one.
    let escalation = context.allow_privilege_escalation.or((context.privileged != Some(true)).then_some(false));
    Container {
        security_context: Some(SecurityContext {
            allow_privilege_escalation: escalation,
            capabilities: Some(Capabilities { drop: Some(drop), ..capabilities }),
            ..context
        }),
        ..container.clone()
    }
}
