//! Whether another autoscaler moves the same workers. Pure.

use serde::Deserialize;

use crate::crd::AutoscalingMode;

/// A HorizontalPodAutoscaler, or a ScaledObject of KEDA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Autoscaler {
    /// `HorizontalPodAutoscaler` or `ScaledObject`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What it scales.
    pub target: TargetRef,
    /// The name of the ScaledObject that made it.
    pub made_by: Option<String>,
    /// Whether it belongs to this ImageGen.
    pub ours: bool,
}

/// `scaleTargetRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// Group and version.
    pub api_version: Option<String>,
    /// Kind. KEDA takes a missing one as Deployment.
    pub kind: Option<String>,
    /// Name.
    pub name: String,
}

impl TargetRef {
    fn is(&self, kind: &str, group: &str, name: &str) -> bool {
        let deployment_by_default = self.kind.as_deref().unwrap_or("Deployment");
        let own_group = self.api_version.as_deref().is_none_or(|version| version.starts_with(group));
        self.name == name && deployment_by_default == kind && own_group
    }
}

/// A sentence about the autoscaler that is in the way of the ImageGen `name`, with what to do.
#[must_use]
pub fn find(mode: AutoscalingMode, name: &str, all: &[Autoscaler]) -> Option<String> {
    let foreign = |autoscaler: &&Autoscaler| !autoscaler.ours;
    let on_deployment = all.iter().filter(foreign).find(|found| found.target.is("Deployment", "apps/", name));
    if let Some(Autoscaler { kind, name: other, .. }) = on_deployment {
        return Some(format!(
            "{kind} {other} scales Deployment {name}, which the operator owns: delete it, or let it scale ImageGen {name} with autoscaling.mode External"
        ));
    }
    let on_imagegen = |found: &&Autoscaler| found.target.is("ImageGen", "imagegen.dev/", name);
    // What a ScaledObject made is not another owner beside it.
    let mut owners = all.iter().filter(foreign).filter(on_imagegen).filter(|found| found.made_by.is_none());
    let first = owners.next()?;
    let Autoscaler { kind, name: other, .. } = first;
    match (mode, owners.next()) {
        (AutoscalingMode::Disabled, _) | (AutoscalingMode::External, None) => None,
        (AutoscalingMode::External, Some(second)) => Some(format!(
            "both {kind} {other} and {} {} scale ImageGen {name}: delete one of them",
            second.kind, second.name
        )),
        (AutoscalingMode::Operator | AutoscalingMode::HorizontalPodAutoscaler, _) => {
            Some(format!("{kind} {other} scales ImageGen {name} as well: delete it, or set autoscaling.mode: External"))
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn hpa(name: &str, kind: &str, target: &str) -> Autoscaler {
        let api_version = if kind == "ImageGen" { "imagegen.dev/v1alpha1" } else { "apps/v1" };
        let target = TargetRef {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind.to_owned()),
            name: target.to_owned(),
        };
        Autoscaler { kind: "HorizontalPodAutoscaler", name: name.into(), target, made_by: None, ours: false }
    }

    fn scaled_object(name: &str, target: TargetRef) -> Autoscaler {
        Autoscaler { kind: "ScaledObject", target, ..hpa(name, "ImageGen", "turbo") }
    }

    fn made(by: &str) -> Autoscaler {
        Autoscaler { made_by: Some(by.to_owned()), ..hpa("keda-hpa", "ImageGen", "turbo") }
    }

    use AutoscalingMode::{Disabled, External, HorizontalPodAutoscaler, Operator};

    #[rstest]
    #[case::nobody(Operator, vec![], None)]
    #[case::of_another_imagegen(Operator, vec![hpa("a", "ImageGen", "other")], None)]
    #[case::a_second_one(Operator, vec![hpa("a", "ImageGen", "turbo")], Some("a"))]
    #[case::our_own(HorizontalPodAutoscaler, vec![Autoscaler { ours: true, ..hpa("turbo", "ImageGen", "turbo") }], None)]
    #[case::beside_our_own(HorizontalPodAutoscaler,
        vec![Autoscaler { ours: true, ..hpa("turbo", "ImageGen", "turbo") }, hpa("a", "ImageGen", "turbo")], Some("a"))]
    #[case::on_the_deployment(Disabled, vec![hpa("a", "Deployment", "turbo")], Some("Deployment turbo"))]
    #[case::on_a_deployment_without_saying_so(
        External, vec![scaled_object("a", TargetRef { name: "turbo".into(), ..TargetRef::default() })], Some("Deployment turbo"))]
    #[case::spec_replicas_has_no_owner_but_users(Disabled, vec![hpa("a", "ImageGen", "turbo")], None)]
    #[case::keda_and_what_it_made(External, vec![scaled_object("k", hpa("", "ImageGen", "turbo").target), made("k")], None)]
    #[case::two_of_them(External, vec![hpa("a", "ImageGen", "turbo"), hpa("b", "ImageGen", "turbo")], Some("both"))]
    fn conflicts(#[case] mode: AutoscalingMode, #[case] all: Vec<Autoscaler>, #[case] says: Option<&str>) {
        let found = find(mode, "turbo", &all);
        assert_eq!(found.is_some(), says.is_some(), "{found:?}");
        assert!(found.unwrap_or_default().contains(says.unwrap_or_default()));
    }
}
