//! The page that a person reads.

use std::fmt::Write as _;

use super::{Facts, Finding, Level, findings::gib};
use crate::gpu::GpuSample;

/// The card, what was found, and whether it is fit to serve.
pub(super) fn page(facts: &Facts, findings: &[Finding]) -> String {
    let mut text = String::new();
    for (name, value) in head(facts) {
        line(&mut text, &format!("{name:10}{value}"));
    }
    text.push('\n');
    for finding in findings {
        let level = match finding.level {
            Level::Ok | Level::Note => finding.level.to_string(),
            Level::Warning | Level::Error => finding.level.to_string().to_uppercase(),
        };
        line(&mut text, &format!("{level:10}{:14}{}", finding.about, finding.found));
        if let Some(change) = &finding.change {
            line(&mut text, &format!("{:24}{change}", ""));
        }
        if let Some(command) = &finding.command {
            line(&mut text, &format!("{:24}$ {command}", ""));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let fit = if errors == 0 { "fit to serve" } else { "not fit to serve" };
    text.push('\n');
    line(&mut text, &format!("{}, {}: {fit}", counted(errors, "error"), counted(warnings, "warning")));
    if findings.iter().any(|finding| finding.command.as_ref().is_some_and(|command| command.contains("nvidia-smi"))) {
        line(&mut text, "nvidia-smi runs on the node; the worker itself changes nothing.");
    }
    text
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn line(text: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{}", line.trim_end());
}

fn head(facts: &Facts) -> Vec<(&'static str, String)> {
    let sample = &facts.sample;
    let mut head = vec![("device", device(facts))];
    if let Some(driver) = &sample.driver_version {
        let cuda = sample.cuda_driver_version.map(|version| format!(", CUDA up to {version}")).unwrap_or_default();
        head.push(("driver", driver.clone() + &cuda));
    }
    if let Some(memory) = sample.memory {
        let kept = match memory.driver_reserved_bytes {
            0 => String::new(),
            bytes => format!(", {} kept by the driver", gib(bytes)),
        };
        head.push(("memory", format!("{} GiB, {} in use{kept}", gib(memory.total_bytes), gib(memory.used_bytes))));
    }
    head.extend(load(sample).map(|load| ("load", load)));
    if let Some(libtorch) = &facts.libtorch {
        head.push(("libtorch", format!("{} for CUDA {}", libtorch.version, libtorch.cuda)));
    }
    head
}

fn device(facts: &Facts) -> String {
    let sample = &facts.sample;
    let known = [sample.name.as_ref(), sample.uuid.as_ref(), sample.pci_bus_id.as_ref()];
    let known: Vec<_> = known.into_iter().flatten().map(String::as_str).collect();
    if known.is_empty() { facts.device.to_string() } else { format!("{}  {}", facts.device, known.join("  ")) }
}

fn load(sample: &GpuSample) -> Option<String> {
    let busy = sample.utilization.map(|utilization| format!("{:.0} % busy", utilization.gpu_ratio * 100.0));
    let clock = sample.sm_clock_mhz.map(|mhz| format!("SM {mhz} MHz"));
    let memory_clock = sample.memory_clock_mhz.map(|mhz| format!("memory {mhz} MHz"));
    let heat = sample.temperature_celsius.map(|celsius| format!("{celsius} °C"));
    let power = sample.power_watts.map(|watts| format!("{watts:.0} W"));
    let known: Vec<_> = [busy, clock, memory_clock, heat, power].into_iter().flatten().collect();
    (!known.is_empty()).then(|| known.join(", "))
}
