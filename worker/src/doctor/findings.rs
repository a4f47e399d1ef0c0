//! What the facts mean. Pure.

use super::{Facts, Finding, alloc_conf, facts::Model, gpu};
use crate::{
    device::{Device, Precision},
    gpu::DeviceMemory,
    profiles::memory::{GIB, LIMIT_RATIO},
};

/// Everything worth saying, errors and all.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    match facts.device {
        Device::Cuda(_) => found.extend(gpu::findings(facts)),
        Device::Cpu => found.push(Finding::note("device", "a CPU: for development and tests; a GPU is far faster")),
    }
    found.extend(facts.wrong_card.as_ref().map(|reason| Finding::error("card", reason.clone())));
    found.extend(memory(facts));
    found.extend(facts.model.as_ref().map(|model| fit(model, facts)));
    if let Device::Cuda(_) = facts.device {
        found.extend(allocator(facts));
        found.push(profile(facts));
    }
    found
}

fn memory(facts: &Facts) -> Vec<Finding> {
    let Some(memory) = facts.sample.memory else {
        return facts.sample.failures.iter().map(|failure| Finding::error("memory", failure.to_string())).collect();
    };
    let used = memory.used_bytes;
    let total = format!("{} GiB", gib(memory.usable_total_bytes()));
    if facts.device == Device::Cpu {
        return vec![Finding::ok("memory", format!("{total}: the limit of the container, or the machine's"))];
    }
    let others: Vec<_> = facts.sample.processes.iter().filter(|process| !process.own).collect();
    if others.is_empty() {
        // An idle driver holds some by itself.
        return vec![if used > 1 << 30 {
            Finding::warning("memory", format!("{} of {total} in use, and the driver lists no process here", gib(used)))
                .change("another container or a graphics session holds it; look on the node, and keep this GPU for one worker")
                .command("nvidia-smi   # on the node")
        } else {
            Finding::ok("memory", format!("{total}, nobody else uses it"))
        }];
    }
    let one = |process: &&crate::gpu::ProcessMemory| {
        let pid = process.pid;
        let name = facts.process_names.get(&pid).map_or(String::new(), |name| format!(" ({name})"));
        let bytes = process.used_bytes.map_or("an unknown amount".into(), |bytes| format!("{} GiB", gib(bytes)));
        // A worker that already runs in this pod is seen as such.
        if facts.process_names.get(&pid).is_some_and(|name| name.starts_with("imagegen-worke")) {
            return Finding::note("memory", format!("a worker runs here: process {pid}{name} has {bytes} of {total}"));
        }
        Finding::warning(
            "memory",
            format!("process {pid}{name} has {bytes} of {total}: it takes memory and time from the worker"),
        )
        .change("stop it, or move it to another GPU")
        .command(format!("ps -o pid,user,lstart,args -p {pid}"))
    };
    others.iter().map(one).collect()
}

/// Whether the weights find room.
fn fit(model: &Model, facts: &Facts) -> Finding {
    let parameters = match &model.parameters {
        Ok(parameters) => *parameters,
        Err(reason) => {
            return Finding::error("model", format!("{} cannot be read: {reason}", model.name))
                .change("--model must name a checkpoint in the folder layout of diffusers");
        }
    };
    let bytes_each = match model.precision {
        Precision::Float32 => 4,
        Precision::BFloat16 => 2,
        Precision::Float8 => 1,
    };
    let weights = parameters * bytes_each;
    let what = format!("{}: {} GiB of weights in {}", model.name, gib(weights), model.precision);
    let Some(memory) = facts.sample.memory else { return Finding::note("model", what) };
    let (limit, free) = room(memory, facts.device);
    if float(weights) > limit {
        let at_most = format!("{what}, and at most {:.1} GiB may be used here", limit / GIB);
        return match model.precision {
            Precision::Float32 => Finding::error("model", at_most)
                .change("use bfloat16, half the size")
                .command("imagegen-worker serve --precision bfloat16"),
            Precision::BFloat16 => Finding::error("model", at_most)
                .change("use float8, half the size, on a card with 8-bit products, or a card with more memory")
                .command("imagegen-worker serve --precision float8"),
            Precision::Float8 => Finding::error("model", at_most)
                .change("use a card with more memory; int4 weights are not served yet")
                .command("imagegen-worker profiles"),
        };
    }
    if float(weights) > free {
        return Finding::error("model", format!("{what}, and only {:.1} GiB are free now", free / GIB))
            .change("stop what else uses the memory");
    }
    Finding::ok("model", what)
}

/// Bytes that may be used, and those of them that nobody else has.
fn room(memory: DeviceMemory, device: Device) -> (f64, f64) {
    let limit = LIMIT_RATIO * float(memory.usable_total_bytes());
    let foreign = if device == Device::Cpu { 0.0 } else { float(memory.used_bytes) };
    (limit, limit - foreign)
}

fn allocator(facts: &Facts) -> Vec<Finding> {
    let text = facts.alloc_conf.as_deref().unwrap_or("");
    let mut found = alloc_conf::findings(text);
    let expandable = alloc_conf::parse(text).contains(&("expandable_segments".into(), "True".into()));
    if expandable && facts.sample.mig.is_some() {
        found.push(
            Finding::warning("allocator", "expandable_segments fails on MIG instances with some drivers")
                .change("use max_split_size_mb on MIG")
                .command("export PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:128"),
        );
    }
    if found.is_empty() {
        let set = if text.is_empty() { "PYTORCH_CUDA_ALLOC_CONF is not set" } else { text };
        found.push(Finding::ok("allocator", set));
    }
    found
}

fn profile(facts: &Facts) -> Finding {
    match &facts.profile {
        Ok(choice) => match &choice.profile {
            Some(profile) => Finding::ok("profile", format!("{}: {}", profile.name, choice.why)),
            None => Finding::note("profile", format!("none: {}", choice.why)).command("imagegen-worker profiles"),
        },
        Err(reason) => Finding::error("profile", reason.clone())
            .change("use a larger card, or --profile none")
            .command("imagegen-worker profiles"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "GiB for people need no more digits")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

/// GiB with one digit.
pub(super) fn gib(bytes: u64) -> String {
    format!("{:.1}", float(bytes) / GIB)
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
