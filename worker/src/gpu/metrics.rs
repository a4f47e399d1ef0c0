//! The latest reading as metrics. A number that the device does not give is not on the page, instead of being 0.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use strum::VariantArray as _;
use tokio::sync::watch;

use super::{GpuSample, Throttle};

/// Encodes what the sampler last published.
#[derive(Debug)]
pub(crate) struct GpuMetrics(pub(crate) watch::Receiver<Arc<GpuSample>>);

/// One value with its labels.
type Value = (Vec<(&'static str, String)>, f64);

struct Row {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    values: fn(&GpuSample) -> Vec<Value>,
}

fn row(name: &'static str, help: &'static str, unit: Option<Unit>, values: fn(&GpuSample) -> Vec<Value>) -> Row {
    Row { name, help, unit, values }
}

fn one(value: Option<f64>) -> Vec<Value> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn labelled<const N: usize>(label: &'static str, values: [(&str, Option<f64>); N]) -> Vec<Value> {
    let known = values.into_iter().filter_map(|(name, value)| Some((vec![(label, name.to_owned())], value?)));
    known.collect()
}

#[expect(clippy::cast_precision_loss, reason = "a metric is a float; 2^53 bytes are 8 PiB")]
fn float(number: u64) -> f64 {
    number as f64
}

fn hertz(mhz: Option<u32>) -> Option<f64> {
    Some(f64::from(mhz?) * 1e6)
}

fn switch(on: Option<bool>) -> Vec<Value> {
    one(on.map(f64::from))
}

fn rows() -> Vec<Row> {
    let bytes = || Some(Unit::Bytes);
    let other = |unit: &str| Some(Unit::Other(unit.to_owned()));
    vec![
        row(
            "device_memory_total",
            "Memory of the GPU or MIG instance, or on a CPU the container's limit or the machine's memory",
            bytes(),
            |s| one(s.memory.map(|memory| float(memory.total_bytes))),
        ),
        row(
            "device_memory_used",
            "Memory of the device in use by all processes; on a CPU what is resident of this one",
            bytes(),
            |s| one(s.memory.map(|memory| float(memory.used_bytes))),
        ),
        row("device_memory_driver_reserved", "Memory of the device that the driver keeps for itself", bytes(), |s| {
            one(s.memory.map(|memory| float(memory.driver_reserved_bytes)))
        }),
        row("gpu_process_memory", "GPU memory of this process and of the others that the driver lists", bytes(), |s| {
            let own = s.own_bytes().map(float);
            // Where this process is not told apart, it may be one of the others.
            let others = (own.is_some() || s.processes.is_empty()) && s.memory.is_some() && s.uuid.is_some();
            labelled("process", [("own", own), ("other", others.then(|| float(s.other_processes_bytes())))])
        }),
        row("gpu_clock", "Clock of the GPU now", other("hertz"), |s| {
            labelled("clock", [("sm", hertz(s.sm_clock_mhz)), ("memory", hertz(s.memory_clock_mhz))])
        }),
        row("gpu_max_clock", "Highest clock of the GPU", other("hertz"), |s| {
            labelled("clock", [("sm", hertz(s.max_sm_clock_mhz)), ("memory", hertz(s.max_memory_clock_mhz))])
        }),
        row("gpu_throttle", "1 while clocks are held back for the reason", None, |s| {
            let active = s.throttle.iter().flat_map(|active| {
                Throttle::VARIANTS
                    .iter()
                    .map(|reason| (vec![("reason", reason.to_string())], f64::from(active.contains(reason))))
            });
            active.collect()
        }),
        row("gpu_temperature", "Temperature of the GPU", Some(Unit::Celsius), |s| {
            one(s.temperature_celsius.map(f64::from))
        }),
        row("gpu_power", "Power that the GPU draws", other("watts"), |s| one(s.power_watts)),
        row("gpu_power_limit", "Power that the GPU may draw", other("watts"), |s| one(s.power_limit_watts)),
        row("gpu_utilization_ratio", "Share of the time in which a kernel ran, 0 to 1", None, |s| {
            one(s.utilization.map(|utilization| utilization.gpu_ratio))
        }),
        row(
            "gpu_memory_utilization_ratio",
            "Share of the time in which GPU memory was read or written, 0 to 1",
            None,
            |s| one(s.utilization.map(|utilization| utilization.memory_ratio)),
        ),
        row("gpu_persistence_mode", "1 when the driver stays loaded without a process", None, |s| {
            switch(s.persistence_mode)
        }),
        row("gpu_ecc_errors", "Memory errors since the driver was loaded", None, |s| {
            let errors = [("corrected", s.ecc_corrected_errors), ("uncorrected", s.ecc_uncorrected_errors)];
            labelled("kind", errors.map(|(kind, count)| (kind, count.map(float))))
        }),
        row("gpu_info", "The GPU or MIG instance that this worker is bound to", None, |s| {
            let Some(uuid) = &s.uuid else { return Vec::new() };
            let mig = s.mig.as_ref();
            let text = |text: Option<&String>| text.cloned().unwrap_or_default();
            let labels = vec![
                ("uuid", uuid.clone()),
                ("name", text(s.name.as_ref())),
                ("pci_bus_id", text(s.pci_bus_id.as_ref())),
                ("driver_version", text(s.driver_version.as_ref())),
                ("cuda_driver_version", s.cuda_driver_version.map(|version| version.to_string()).unwrap_or_default()),
                ("mig_profile", text(mig.and_then(|mig| mig.profile.as_ref()))),
                ("mig_parent_uuid", text(mig.and_then(|mig| mig.parent_uuid.as_ref()))),
            ];
            vec![(labels, 1.0)]
        }),
        row(
            "device_probe_up",
            "1 while the device can be read: NVML for a GPU, the kernel's files for a CPU",
            None,
            |s| one(Some(f64::from(s.memory.is_some() && s.failures.is_empty()))),
        ),
    ]
}

impl Collector for GpuMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sample = Arc::clone(&self.0.borrow());
        for Row { name, help, unit, values } in rows() {
            let values = values(&sample);
            if values.is_empty() {
                continue;
            }
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            if let [(labels, value)] = values.as_slice()
                && labels.is_empty()
            {
                ConstGauge::new(*value).encode(metric)?;
                continue;
            }
            for (labels, value) in values {
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;
    use crate::gpu::{DeviceMemory, ProcessMemory};

    fn page(sample: GpuSample) -> String {
        let (_sender, receiver) = watch::channel(Arc::new(sample));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(GpuMetrics(receiver)));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        page
    }

    #[test]
    fn what_is_not_known_is_not_on_the_page() {
        let page = page(GpuSample::failed("nvmlInit_v2", "not there"));
        let lines: Vec<_> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["device_probe_up 0.0"]);
    }

    #[test]
    fn others_are_told_only_when_this_process_is_told_apart() {
        let memory = Some(DeviceMemory { total_bytes: 10, driver_reserved_bytes: 1, used_bytes: 5 });
        let other = ProcessMemory { pid: 7, own: false, used_bytes: Some(3) };
        let own = ProcessMemory { pid: 8, own: true, used_bytes: Some(2) };
        let sample = |processes| GpuSample { uuid: Some("GPU-a".into()), memory, processes, ..GpuSample::default() };
        let line = "gpu_process_memory_bytes{process=\"other\"} 3.0";
        assert!(page(sample(vec![other, own])).contains(line));
        assert!(!page(sample(vec![other])).contains("gpu_process_memory_bytes{"));
    }
}
