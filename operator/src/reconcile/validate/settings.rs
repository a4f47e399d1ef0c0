//! The worker's configuration: what each field becomes in the worker's environment, and who decided it.

use imagegen_core::allocator::{Allocator, AllocatorChoice, Strategy};

use crate::{
    crd::{AllocatorStrategy, Bucket, Device, Duration, ImageGenSpec, Origin, Precision, SizePolicy, VaeTiling},
    reconcile::types::{Setting, WorkerSetting},
};

const QUEUE_CAPACITY: u32 = 64;
const QUEUE_MAX_WAIT: &str = "120s";

/// The number format in force.
pub(super) fn precision(spec: &ImageGenSpec) -> Setting<Precision> {
    let built_in = match spec.worker.device {
        Device::Cuda => Precision::BFloat16,
        Device::Cpu => Precision::Float32,
    };
    Setting::spec_or(spec.model.precision, built_in)
}

/// The allocator in force on workers with a GPU of `gpu_resource`.
///
/// # Errors
/// The sentence for the user, where the schema did not stop settings that make no sense.
pub(super) fn allocator(spec: &ImageGenSpec, gpu_resource: &str) -> Result<Setting<Allocator>, String> {
    let Some(given) = &spec.worker.allocator else {
        return Ok(Setting { value: Allocator::built_in(gpu_resource), origin: Origin::BuiltIn });
    };
    let choice = AllocatorChoice {
        strategy: match given.strategy {
            AllocatorStrategy::ExpandableSegments => Strategy::ExpandableSegments,
            AllocatorStrategy::MaxSplitSize => Strategy::MaxSplitSize,
            AllocatorStrategy::CudaMallocAsync => Strategy::CudaMallocAsync,
        },
        max_split_size_mib: given.max_split_size_mib,
        roundup_power2_divisions: given.roundup_power2_divisions,
        garbage_collection_threshold: given.garbage_collection_threshold,
    };
    Ok(Setting { value: choice.resolve()?, origin: Origin::Spec })
}

/// The allocator as the worker's flags have it, so that the worker can check what the environment says.
fn allocator_rows(allocator: &Setting<Allocator>) -> Vec<WorkerSetting> {
    let origin = allocator.origin;
    let of = |name, variable, value: String| row(name, variable, Setting { value, origin });
    let mut rows = vec![of("allocator", "IMAGEGEN_ALLOCATOR", allocator.value.strategy().to_string())];
    if let Allocator::MaxSplitSize(settings) = allocator.value {
        let size = settings.max_split_size_mib.to_string();
        rows.push(of("allocatorMaxSplitSizeMiB", "IMAGEGEN_ALLOCATOR_MAX_SPLIT_SIZE_MIB", size));
        rows.push(of(
            "allocatorGarbageCollectionThreshold",
            "IMAGEGEN_ALLOCATOR_GARBAGE_COLLECTION_THRESHOLD",
            settings.garbage_collection_threshold.to_string(),
        ));
        rows.extend(settings.roundup_power2_divisions.map(|divisions| {
            let variable = "IMAGEGEN_ALLOCATOR_ROUNDUP_POWER2_DIVISIONS";
            of("allocatorRoundupPower2Divisions", variable, divisions.to_string())
        }));
    }
    rows
}

/// All settings that the operator decides, sorted by variable. What is absent here is the worker's own choice.
pub(super) fn resolve(spec: &ImageGenSpec, allocator: Option<&Setting<Allocator>>) -> Vec<WorkerSetting> {
    let worker = &spec.worker;
    let defaults = spec.model.defaults.clone().unwrap_or_default();
    let queue = worker.queue.clone().unwrap_or_default();
    let precision = precision(spec);
    let queue_max_wait = Setting::spec_or(queue.max_wait, Duration::new(QUEUE_MAX_WAIT));
    let from_spec = |value: String| Setting { value, origin: Origin::Spec };
    let text = |setting: Setting<u32>| Setting { value: setting.value.to_string(), origin: setting.origin };

    let mut settings = vec![
        row("device", "IMAGEGEN_DEVICE", from_spec(device(worker.device).to_owned())),
        row(
            "precision",
            "IMAGEGEN_PRECISION",
            Setting { value: precision_text(precision.value).to_owned(), origin: precision.origin },
        ),
        row("queueCapacity", "IMAGEGEN_QUEUE_CAPACITY", text(Setting::spec_or(queue.capacity, QUEUE_CAPACITY))),
        row(
            "queueMaxWait",
            "IMAGEGEN_QUEUE_MAX_WAIT",
            Setting { value: queue_max_wait.value.to_string(), origin: queue_max_wait.origin },
        ),
        row("sizePolicy", "IMAGEGEN_SIZE_POLICY", from_spec(size_policy(worker.size_policy).to_owned())),
        row("drainTimeout", "IMAGEGEN_DRAIN_TIMEOUT", from_spec(spec.drain_timeout.to_string())),
        row("maxConnectionAge", "IMAGEGEN_MAX_CONNECTION_AGE", from_spec(spec.service.max_connection_age.to_string())),
    ];
    let optional = [
        ("defaultSize", "IMAGEGEN_DEFAULT_SIZE", defaults.size),
        ("defaultSteps", "IMAGEGEN_DEFAULT_STEPS", defaults.steps.map(|n| n.to_string())),
        (
            "defaultGuidanceScale",
            "IMAGEGEN_DEFAULT_GUIDANCE_SCALE",
            defaults.guidance_scale.map(|scale| scale.to_string()),
        ),
        // auto is what the worker does by itself.
        ("profile", "IMAGEGEN_PROFILE", worker.profile.clone().filter(|profile| profile != "auto")),
        ("buckets", "IMAGEGEN_BUCKETS", worker.buckets.as_deref().map(buckets)),
        ("vaeTiling", "IMAGEGEN_VAE_TILING", worker.vae_tiling.map(|tiling| vae_tiling(tiling).to_owned())),
        ("maxPixels", "IMAGEGEN_MAX_PIXELS", worker.max_pixels.map(|n| n.to_string())),
        ("maxSteps", "IMAGEGEN_MAX_STEPS", worker.max_steps.map(|n| n.to_string())),
        (
            "maxImagesPerRequest",
            "IMAGEGEN_MAX_IMAGES_PER_REQUEST",
            worker.max_images_per_request.map(|n| n.to_string()),
        ),
    ];
    settings.extend(
        optional.into_iter().filter_map(|(name, variable, value)| Some(row(name, variable, from_spec(value?)))),
    );
    settings.extend(allocator.into_iter().flat_map(allocator_rows));
    settings.sort_by_key(|setting| setting.variable);
    settings
}

fn row(name: &'static str, variable: &'static str, setting: Setting) -> WorkerSetting {
    WorkerSetting { name, variable, setting }
}

/// In the worker's notation, sorted so that the order of the list rolls no pods.
fn buckets(buckets: &[Bucket]) -> String {
    let mut sorted: Vec<_> = buckets.iter().map(|b| (b.width * b.height, b.width, b.height, b.max_batch)).collect();
    sorted.sort_unstable();
    let texts: Vec<_> = sorted.iter().map(|(_, width, height, batch)| format!("{width}x{height}@{batch}")).collect();
    texts.join(",")
}

fn device(device: Device) -> &'static str {
    match device {
        Device::Cuda => "cuda",
        Device::Cpu => "cpu",
    }
}

fn precision_text(precision: Precision) -> &'static str {
    match precision {
        Precision::Float32 => "float32",
        Precision::BFloat16 => "bfloat16",
        Precision::Float8 => "float8",
    }
}

fn vae_tiling(tiling: VaeTiling) -> &'static str {
    match tiling {
        VaeTiling::Auto => "auto",
        VaeTiling::Always => "always",
        VaeTiling::Never => "never",
    }
}

fn size_policy(policy: SizePolicy) -> &'static str {
    match policy {
        SizePolicy::Exact => "exact",
        SizePolicy::Bucket => "bucket",
    }
}
