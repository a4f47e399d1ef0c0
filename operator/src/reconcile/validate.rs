//! From an ImageGen, what the cluster says and the operator's flags to a spec with everything decided, or to all the
//! reasons why not. Pure.

mod allowed;
pub mod scaling;
mod settings;
mod unsupported;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use kube::Resource;

use super::types::{
    ClaimFact, Facts, ModelVolume, OperatorSettings, Refusal, Rollout, ServiceSettings, Setting, Validated,
};
use crate::crd::{self, AutoscalingMode, Device, ImageGen, ImageGenSpec, ImageUpdate, Origin, Reason};

/// Resource that a worker gets one of when the spec names none.
pub const DEFAULT_GPU_RESOURCE: &str = "nvidia.com/gpu";
/// Where the checkpoint is mounted.
pub const MODEL_DIR: &str = "/model";
/// Vendor prefix of GPU resources: a worker never gets a second one under another name.
const GPU_VENDOR: &str = "nvidia.com/";

/// Decides everything, or says everything that is wrong at once.
///
/// # Errors
/// Every reason why this spec cannot be built, each with the field it speaks of.
pub fn validate(cr: &ImageGen, facts: &Facts, operator: &OperatorSettings) -> Result<Validated, Vec<Refusal>> {
    let spec = &cr.spec;
    let mut refusals = unsupported::check(spec);
    allowed::check(spec, operator, &mut refusals);
    check_claim(spec, &facts.claim, &mut refusals);
    refusals.extend(scaling::check_hpa(spec, operator));
    refusals.extend(scaling::check_external(spec));

    let mut duration = |field: &str, text: &crd::Duration| {
        text.parse().unwrap_or_else(|error| {
            refusals.push(refuse(Reason::InvalidSpec, field, error.to_string()));
            Duration::ZERO
        })
    };
    let startup_timeout = duration("worker.startupTimeout", &spec.worker.startup_timeout);
    let drain_timeout = duration("drainTimeout", &spec.drain_timeout);
    let progress_deadline = duration("rollout.progressDeadline", &spec.rollout.progress_deadline);

    let gpu_resource = gpu_resource(spec);
    let allocator = gpu_resource.as_deref().map(|resource| settings::allocator(spec, resource)).transpose();
    let allocator = allocator.unwrap_or_else(|message| {
        refusals.push(refuse(Reason::InvalidSpec, "worker.allocator", message));
        None
    });
    let model = model_volume(spec);
    if model.is_none() && spec.model.source.hugging_face.is_none() {
        let message = "set exactly one of persistentVolumeClaim, image and hostPath";
        refusals.push(refuse(Reason::InvalidSpec, "model.source", message));
    }
    let owner = cr.controller_owner_ref(&());
    if owner.is_none() || cr.metadata.namespace.is_none() {
        refusals.push(refuse(Reason::InvalidSpec, "metadata", "name, namespace and uid must be set by the API server"));
    }
    let (Some((model, model_path, model_name)), Some(owner), Some(namespace), true) =
        (model, owner, cr.metadata.namespace.clone(), refusals.is_empty())
    else {
        return Err(refusals);
    };

    let mut warnings = Vec::new();
    let resources = resources(spec, gpu_resource.as_deref(), &mut warnings);
    Ok(Validated {
        name: owner.name.clone(),
        namespace,
        owner,
        operator_namespace: operator.operator_namespace.clone(),
        worker_image: worker_image(cr, operator),
        device: spec.worker.device,
        gpu_resource,
        resources,
        model,
        model_path,
        model_name,
        settings: settings::resolve(spec, allocator.as_ref()),
        allocator: allocator.map(|setting| setting.value),
        replicas: i32::try_from(spec.replicas).unwrap_or(i32::MAX),
        autoscaling_mode: spec.autoscaling.as_ref().map_or(AutoscalingMode::Disabled, |a| a.mode),
        scaling: scaling::resolve(spec),
        startup_timeout,
        drain_timeout,
        rollout: Rollout {
            max_surge: i32::try_from(spec.rollout.max_surge).unwrap_or(i32::MAX),
            max_unavailable: i32::try_from(spec.rollout.max_unavailable).unwrap_or(i32::MAX),
            // A worker that is still allowed to load must not count as a failed rollout.
            progress_deadline: progress_deadline.max(startup_timeout),
            on_failure: spec.rollout.on_failure,
        },
        disruption_max_unavailable: i32::try_from(spec.disruption.max_unavailable).unwrap_or(i32::MAX),
        service: service(spec),
        pod: spec.worker.pod_template.clone().unwrap_or_default(),
        warnings,
    })
}

fn refuse(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Refusal {
    Refusal {
        reason,
        field: format!("spec.{}", field.into()).replace("spec.metadata", "metadata"),
        message: message.into(),
    }
}

/// The spec's image, else the one this fleet was pinned to, else the operator's.
fn worker_image(cr: &ImageGen, operator: &OperatorSettings) -> Setting {
    let pinned = || {
        let status = cr.status.as_ref()?;
        // An image that an earlier spec named is no pin: without it the fleet goes back to the operator's.
        let from_spec = status.effective.get("workerImage").is_some_and(|setting| setting.origin == Origin::Spec);
        let keep = cr.spec.worker.image_update == ImageUpdate::Pinned && !from_spec;
        status.worker_image.clone().filter(|_| keep)
    };
    let built_in = pinned().unwrap_or_else(|| operator.worker_image.clone());
    Setting::spec_or(cr.spec.worker.image.clone(), built_in)
}

/// The volume, the path of the checkpoint in the container, and the name of the model in short.
fn model_volume(spec: &ImageGenSpec) -> Option<(ModelVolume, String, String)> {
    let source = &spec.model.source;
    if let Some(claim) = &source.persistent_volume_claim {
        let path = claim.path.as_deref().map(|path| path.trim_matches('/')).filter(|path| !path.is_empty());
        let directory = path.map_or_else(|| MODEL_DIR.to_owned(), |path| format!("{MODEL_DIR}/{path}"));
        let name = last_part(path.unwrap_or(&claim.claim_name));
        let volume = ModelVolume::Claim { name: claim.claim_name.clone(), read_only: claim.read_only };
        return Some((volume, directory, name));
    }
    if let Some(image) = &source.image {
        let volume = ModelVolume::Image { reference: image.reference.clone(), pull_policy: image.pull_policy };
        let name = image.reference.split_once('@').map_or(image.reference.as_str(), |(name, _)| name);
        return Some((volume, MODEL_DIR.to_owned(), last_part(name)));
    }
    let path = &source.host_path.as_ref()?.path;
    Some((ModelVolume::HostPath { path: path.clone() }, MODEL_DIR.to_owned(), last_part(path)))
}

fn last_part(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path).to_owned()
}

/// What the claim can do, against how many workers are to read it.
fn check_claim(spec: &ImageGenSpec, claim: &ClaimFact, refusals: &mut Vec<Refusal>) {
    let Some(source) = &spec.model.source.persistent_volume_claim else { return };
    let field = "model.source.persistentVolumeClaim.claimName";
    let name = &source.claim_name;
    let access_modes = match claim {
        ClaimFact::NotAsked => return,
        ClaimFact::Missing => {
            let message =
                format!("there is no PersistentVolumeClaim {name} in this namespace: create it, or name another one");
            return refusals.push(refuse(Reason::ClaimNotFound, field, message));
        }
        ClaimFact::Found { access_modes } => access_modes,
    };
    let has = |mode: &str| access_modes.iter().any(|have| have == mode);
    let shared = has("ReadOnlyMany") || has("ReadWriteMany");
    let modes = access_modes.join(", ");
    if spec.replicas > 1 && !shared {
        refusals.push(refuse(
            Reason::ClaimNotShareable,
            field,
            format!(
                "the claim {name} offers {modes}, which one node at a time can use, but replicas is {}: use a claim with ReadOnlyMany or ReadWriteMany, an image volume (model.source.image), or replicas: 1",
                spec.replicas
            ),
        ));
    } else if spec.rollout.max_surge > 0 && !shared && spec.replicas > 0 {
        refusals.push(refuse(
            Reason::ClaimNotShareable,
            field,
            format!("the claim {name} offers {modes}, which one node at a time can use, so a rollout cannot start a second worker beside the first: set rollout.maxSurge: 0"),
        ));
    }
    if !source.read_only && has("ReadOnlyMany") && access_modes.len() == 1 {
        refusals.push(refuse(
            Reason::InvalidSpec,
            "model.source.persistentVolumeClaim.readOnly",
            format!("the claim {name} can only be read: set readOnly: true"),
        ));
    }
}

fn gpu_resource(spec: &ImageGenSpec) -> Option<String> {
    let named = spec.worker.gpu.as_ref().and_then(|gpu| gpu.resource.clone());
    (spec.worker.device == Device::Cuda).then(|| named.unwrap_or_else(|| DEFAULT_GPU_RESOURCE.to_owned()))
}

/// Requests and limits with exactly one GPU (or none), whatever the spec says about GPUs.
fn resources(spec: &ImageGenSpec, gpu_resource: Option<&str>, warnings: &mut Vec<String>) -> ResourceRequirements {
    let quantity = |text: &str| Quantity(text.to_owned());
    let built_in = match spec.worker.device {
        Device::Cuda => [("cpu", "2"), ("memory", "8Gi")],
        Device::Cpu => [("cpu", "500m"), ("memory", "1Gi")],
    };
    let given = spec.worker.resources.clone().unwrap_or_default();
    let mut limits = given.limits.unwrap_or_default();
    let mut requests = given.requests.unwrap_or_default();
    for (name, amount) in built_in {
        // Kubernetes takes a limit without a request as the request.
        if !limits.contains_key(name) {
            requests.entry(name.to_owned()).or_insert_with(|| quantity(amount));
        }
    }
    let mut drop_gpus = |list: &mut BTreeMap<String, Quantity>, of: &str| {
        list.retain(|name, amount| {
            let gpu = name.starts_with(GPU_VENDOR) || Some(name.as_str()) == gpu_resource;
            if gpu && (Some(name.as_str()) != gpu_resource || amount.0 != "1") {
                let count = if gpu_resource.is_some() { "exactly one GPU" } else { "no GPU (device: Cpu)" };
                warnings.push(format!(
                    "spec.worker.resources.{of} asks for {name}: {}, but a worker gets {count}.",
                    amount.0
                ));
            }
            !gpu
        });
    };
    drop_gpus(&mut limits, "limits");
    drop_gpus(&mut requests, "requests");
    if let Some(name) = gpu_resource {
        limits.insert(name.to_owned(), quantity("1"));
    }
    let some = |list: BTreeMap<String, Quantity>| (!list.is_empty()).then_some(list);
    ResourceRequirements { limits: some(limits), requests: some(requests), ..Default::default() }
}

fn service(spec: &ImageGenSpec) -> ServiceSettings {
    let service = &spec.service;
    let auth = service.auth.as_ref();
    ServiceSettings {
        service_type: service.service_type,
        port: service.port,
        annotations: service.annotations.clone().unwrap_or_default(),
        labels: service.labels.clone().unwrap_or_default(),
        tls_secret: service.tls.as_ref().map(|tls| tls.secret_name.clone()),
        token_secret: auth.and_then(|auth| auth.token_secret_ref.clone()),
        allow_insecure_token: auth.and_then(|auth| auth.allow_insecure_token).unwrap_or(false),
    }
}
