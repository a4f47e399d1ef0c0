//! Findings about a GPU: driver, clocks, heat, power, errors.

use super::{Facts, Finding, facts::Libtorch};
use crate::gpu::{CudaVersion, GpuSample, Throttle};

/// Above this, cards soon lower their clocks.
const WARM_CELSIUS: u32 = 75;

/// All of them, in the order of the page.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let sample = &facts.sample;
    let Some(id) = sample.uuid.as_deref() else {
        return vec![unreadable(sample)];
    };
    // nvidia-smi takes cards, not instances.
    let card = sample.mig.as_ref().and_then(|mig| mig.parent_uuid.as_deref()).unwrap_or(id);
    let mut found: Vec<Finding> = Vec::new();
    found.extend(driver(sample, facts.libtorch.as_ref()));
    found.extend(throttle(sample, card));
    found.extend(temperature(sample, card));
    found.extend(power(sample, card));
    found.extend(persistence(sample, card));
    found.extend(errors(sample, card));
    found.extend(sample.mig.as_ref().map(|mig| {
        let profile = mig.profile.as_deref().unwrap_or("an instance");
        Finding::note("MIG", format!("{profile}: memory and compute units are this worker's own, clocks and power are shared with its neighbours"))
    }));
    found.extend(sample.failures.iter().map(|failure| {
        Finding::warning("NVML", failure.to_string())
            .change("the number is missing in metrics and decisions; look at the driver's messages on the node")
            .command("sudo dmesg | grep -i nvrm")
    }));
    found
}

fn unreadable(sample: &GpuSample) -> Finding {
    let reason = sample.failures.first().map_or_else(|| "nothing was read".into(), ToString::to_string);
    Finding::error("GPU", format!("it cannot be read: {reason}"))
        .change("the node needs the NVIDIA driver, and the pod a GPU (spec.worker.gpu) and where needed spec.worker.podTemplate.runtimeClassName: nvidia; or use --device cpu")
        .command("nvidia-smi")
}

/// Oldest driver branches. Source: CUDA Toolkit release notes, tables of minor-version compatibility and of the driver that
/// each toolkit ships with.
const fn branches(cuda: CudaVersion) -> (u32, u32) {
    match cuda {
        CudaVersion { major: 12, minor: 4 } => (550, 525),
        _ => (580, 580),
    }
}

fn driver(sample: &GpuSample, libtorch: Option<&Libtorch>) -> Option<Finding> {
    let (driver, newest) = (sample.driver_version.as_deref()?, sample.cuda_driver_version);
    let Some(Libtorch { version, cuda }) = libtorch else {
        return Some(Finding::note("driver", format!("{driver}; this build has no libtorch to compare it with")));
    };
    let (full, compatible) = branches(*cuda);
    let branch: u32 = driver.split('.').next().and_then(|branch| branch.parse().ok()).unwrap_or(0);
    let install =
        format!("sudo ubuntu-drivers install nvidia:{full}-server   # or your distribution's driver {full} or newer");
    Some(if branch >= full || newest.is_some_and(|newest| newest >= *cuda) {
        Finding::ok("driver", format!("{driver} runs CUDA {cuda}, which libtorch {version} needs"))
    } else if branch >= compatible {
        Finding::warning(
            "driver",
            format!("{driver} is older than CUDA {cuda} of libtorch {version}; it runs by minor-version compatibility"),
        )
        .change(format!("install driver {full} or newer: old ones lack fixes and compile kernels again"))
        .command(install)
    } else {
        Finding::error(
            "driver",
            format!("{driver} cannot run CUDA {cuda} of libtorch {version}, which needs {compatible} or newer"),
        )
        .change(format!("install driver {full} or newer"))
        .command(install)
    })
}

fn throttle(sample: &GpuSample, card: &str) -> Vec<Finding> {
    let Some(reasons) = &sample.throttle else { return Vec::new() };
    let clock = match (sample.sm_clock_mhz, sample.max_sm_clock_mhz) {
        (Some(now), Some(most)) => format!("SM at {now} of {most} MHz"),
        _ => "clocks".into(),
    };
    let lock = sample.max_sm_clock_mhz.map(|most| format!("sudo nvidia-smi -i {card} --lock-gpu-clocks={most}"));
    if reasons.is_empty() {
        let steady = Finding::ok("clocks", format!("{clock}, nothing holds them back"));
        return vec![match lock {
            Some(lock) => steady.change("locked clocks make step times steadier; choose less than the highest on a card that meets its power limit").command(lock),
            None => steady,
        }];
    }
    let one = |reason: &Throttle| match reason {
        Throttle::SwThermalSlowdown | Throttle::HwThermalSlowdown => {
            Finding::warning("clocks", format!("{clock}, held back by heat ({reason})"))
                .change("cool the card: air flow, fans, fewer neighbours, or a lower power limit")
                .command(format!("nvidia-smi -i {card} -q -d TEMPERATURE,PERFORMANCE"))
        }
        Throttle::HwSlowdown | Throttle::HwPowerBrake => {
            Finding::warning("clocks", format!("{clock}, at half or less by the hardware ({reason})"))
                .change("look at the power supply and its cables, and at the temperature")
                .command(format!("nvidia-smi -i {card} -q -d POWER,PERFORMANCE"))
        }
        Throttle::SwPowerCap => Finding::note("clocks", format!("{clock}, held back by the power limit ({reason})"))
            .change(
                "raise the limit where the card and its cooling allow it, or lock clocks that the limit can sustain",
            )
            .command(format!("nvidia-smi -i {card} -q -d POWER")),
        Throttle::ApplicationsClocks | Throttle::SyncBoost | Throttle::DisplayClocks => {
            Finding::note("clocks", format!("{clock}, set by someone ({reason})"))
                .change("take application clocks back where they are not meant")
                .command(format!("sudo nvidia-smi -i {card} --reset-applications-clocks"))
        }
    };
    reasons.iter().map(one).collect()
}

fn temperature(sample: &GpuSample, card: &str) -> Option<Finding> {
    let celsius = sample.temperature_celsius?;
    Some(if celsius > WARM_CELSIUS {
        Finding::warning(
            "temperature",
            format!("{celsius} °C, above {WARM_CELSIUS} °C: clocks fall soon, and step times spread"),
        )
        .change("cool the card: air flow, fans, fewer neighbours, or a lower power limit")
        .command(format!("nvidia-smi -i {card} -q -d TEMPERATURE"))
    } else {
        Finding::ok("temperature", format!("{celsius} °C"))
    })
}

fn power(sample: &GpuSample, card: &str) -> Option<Finding> {
    let (watts, limit) = (sample.power_watts?, sample.power_limit_watts?);
    let found = format!("{watts:.0} of {limit:.0} W");
    Some(if watts >= 0.97 * limit {
        Finding::note("power", format!("{found}: the limit decides the clocks"))
            .change("raise the limit where the card and its cooling allow it")
            .command(format!("nvidia-smi -i {card} -q -d POWER"))
    } else {
        Finding::ok("power", found)
    })
}

fn persistence(sample: &GpuSample, card: &str) -> Option<Finding> {
    Some(if sample.persistence_mode? {
        Finding::ok("persistence", "on")
    } else {
        Finding::warning(
            "persistence",
            "off: the driver unloads with the last process, the next start waits for it, and clock settings are lost",
        )
        .change("switch it on, on the node")
        .command(format!("sudo nvidia-smi -i {card} -pm 1"))
    })
}

fn errors(sample: &GpuSample, card: &str) -> Option<Finding> {
    let show = format!("nvidia-smi -i {card} -q -d ECC,ROW_REMAPPER");
    match (sample.ecc_corrected_errors, sample.ecc_uncorrected_errors) {
        (_, Some(errors @ 1..)) => Some(
            Finding::error("ECC", format!("{errors} uncorrected memory errors since the driver was loaded"))
                .change("drain the node and reset the card; replace it when they come back")
                .command(format!("{show}; sudo nvidia-smi -i {card} --gpu-reset")),
        ),
        (Some(errors @ 1..), _) => Some(
            Finding::note("ECC", format!("{errors} corrected memory errors since the driver was loaded")).command(show),
        ),
        (Some(0), Some(0)) => Some(Finding::ok("ECC", "no memory errors")),
        _ => None,
    }
}
