//! What the workers of one ImageGen carry, added up.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use imagegen_proto::v1::{WorkerReport, WorkerState};

use super::{
    fleet::{Standing, Worker},
    spec::Targets,
};

/// The largest pressure that counts.
pub const MAX_PRESSURE: f64 = 100.0;
/// How long the last value of a worker that says nothing any more counts. One that crashes again and again would
/// otherwise ask for others for ever.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(120);

/// What the workers of one ImageGen carry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// Every worker, in the order given.
    pub workers: Vec<WorkerLoad>,
    /// Device memory, each device counted once.
    pub memory: MemoryLoad,
    /// The longest time that a worker took from the start of its process to its first serving.
    pub load_time: Option<Duration>,
    /// Pods that Kubernetes calls ready.
    pub ready: u32,
    /// Those of them with a report that is not stale.
    pub ready_known: u32,
    /// What one worker is steered for.
    target: f64,
}

/// One worker.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerLoad {
    /// Name of its pod.
    pub pod: String,
    /// What it counts as.
    pub class: Class,
    /// Its scaling signal, 0 to 100. Of an unknown worker the last one; 0 when there is none.
    pub pressure: f64,
    /// 0 to 1.
    pub memory_pressure: f64,
    /// Work that waits, and that was refused by it and by no worker before it in the list.
    pub backlog_seconds: f64,
    /// Requests on the device.
    pub running: u32,
    /// Requests that wait.
    pub queued: u32,
    /// What activations may take.
    pub headroom_bytes: u64,
    /// (reserved - allocated) / reserved.
    pub fragmentation_ratio: f64,
}

/// What a worker counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It takes work, and says how much it has.
    Serving,
    /// It serves, but not even the smallest batch fits.
    NoCapacity,
    /// It should say something and does not.
    Unknown,
    /// It is on its way: pending, starting or loading for this long.
    Coming {
        /// Whether a node has room for it.
        scheduled: bool,
        /// Time since it was created, or scheduled.
        for_: Duration,
    },
    /// It finishes what it has and takes nothing new.
    Draining,
    /// It says that it cannot serve.
    Failed,
    /// Its pod is being deleted.
    Leaving,
}

/// Device memory. A device that several workers share counts once, and none of them as foreign to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryLoad {
    /// What the devices have, less what the driver keeps.
    pub usable_total_bytes: u64,
    /// In use by all processes.
    pub used_bytes: u64,
    /// Held by the workers' allocators.
    pub reserved_bytes: u64,
    /// Live tensors.
    pub allocated_bytes: u64,
    /// In use by processes that are none of these workers.
    pub foreign_bytes: u64,
    /// Out-of-memory errors since the workers started.
    pub out_of_memory_total: u64,
}

/// Which of the two signals is the larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Bytes of the running batches against the headroom.
    Memory,
    /// Work that waits or was refused, against targetQueueWait.
    Backlog,
}

impl Load {
    /// Adds up what `workers` say. Work that several of them refused counts once, at the first of them.
    #[must_use]
    pub fn aggregate(workers: &[Worker], targets: &Targets) -> Self {
        let mut counted = HashSet::new();
        let mut load = Self { target: targets.memory_pressure, ..Self::default() };
        let mut devices: HashMap<&str, Device> = HashMap::new();
        for worker in workers {
            load.workers.push(WorkerLoad::of(worker, targets, &mut counted));
            let report = worker.report();
            load.ready += u32::from(worker.standing == Standing::Ready);
            load.ready_known += u32::from(worker.standing == Standing::Ready && report.is_some());
            let Some(report) = report.filter(|_| worker.standing != Standing::Terminating) else { continue };
            let load_seconds = Duration::try_from_secs_f64(report.load_seconds).unwrap_or_default();
            load.load_time = load.load_time.max(Some(load_seconds).filter(|time| !time.is_zero()));
            // Without a GPU every worker has its own memory.
            let uuid = report.gpu.as_ref().map(|gpu| gpu.uuid.as_str()).filter(|uuid| !uuid.is_empty());
            devices.entry(uuid.unwrap_or(&worker.pod)).or_default().add(report);
        }
        load.memory = devices.into_values().fold(MemoryLoad::default(), |sum, device| device.added_to(sum));
        load
    }

    /// How many workers count as what `class` selects.
    #[must_use]
    pub fn count(&self, class: impl Fn(Class) -> bool) -> u32 {
        u32::try_from(self.workers.iter().filter(|worker| class(worker.class)).count()).unwrap_or(u32::MAX)
    }

    /// Workers whose signals are known: those that serve, with capacity or without.
    #[must_use]
    pub fn known(&self) -> u32 {
        self.count(|class| matches!(class, Class::Serving | Class::NoCapacity))
    }

    /// Sum of the known workers' pressure.
    #[must_use]
    pub fn pressure_known(&self) -> f64 {
        self.known_workers().map(|worker| worker.pressure).sum()
    }

    /// Sum of the last pressure of the workers that no longer say anything.
    #[must_use]
    pub fn pressure_last_seen(&self) -> f64 {
        self.unknown_workers().map(|worker| worker.pressure).sum()
    }

    /// The signal for HPA and KEDA, which divide it by the target to get the number of workers: the sum of the known workers' pressure, of
    /// the larger of last value and target for each unknown one, and the target for each ready worker of capacity 0
    /// (at most `max_step`) while there is demand. `None` when nothing is known.
    #[must_use]
    pub fn pressure_total(&self, max_step: u32) -> Option<f64> {
        (self.known() > 0).then(|| self.pressure_cautious() + self.target * f64::from(self.replacements(max_step)))
    }

    /// Mean pressure of the known workers; `None` when nothing is known.
    #[must_use]
    pub fn pressure_mean(&self) -> Option<f64> {
        self.mean(|worker| worker.pressure)
    }

    /// Mean memory pressure of the known workers; `None` when nothing is known.
    #[must_use]
    pub fn memory_pressure_mean(&self) -> Option<f64> {
        self.mean(|worker| worker.memory_pressure)
    }

    /// Work that waits or was refused, over the known workers.
    #[must_use]
    pub fn backlog_seconds(&self) -> f64 {
        self.known_workers().map(|worker| worker.backlog_seconds).sum()
    }

    /// Requests on the devices, over the known workers.
    #[must_use]
    pub fn running_requests(&self) -> u64 {
        self.known_workers().map(|worker| u64::from(worker.running)).sum()
    }

    /// Requests that wait, over the known workers.
    #[must_use]
    pub fn queued_requests(&self) -> u64 {
        self.known_workers().map(|worker| u64::from(worker.queued)).sum()
    }

    /// What activations may take, over the known workers.
    #[must_use]
    pub fn headroom_bytes(&self) -> u64 {
        self.known_workers().map(|worker| worker.headroom_bytes).fold(0, u64::saturating_add)
    }

    /// (reserved - allocated) / reserved, over all devices.
    #[must_use]
    pub fn fragmentation_ratio(&self) -> f64 {
        let MemoryLoad { reserved_bytes, allocated_bytes, .. } = self.memory;
        if reserved_bytes == 0 {
            return 0.0;
        }
        reserved_bytes.saturating_sub(allocated_bytes) as f64 / reserved_bytes as f64
    }

    /// The signal that makes most of the pressure.
    #[must_use]
    pub fn binding(&self) -> Signal {
        let by_memory =
            |worker: &&WorkerLoad| worker.class == Class::Serving && worker.memory_pressure >= worker.pressure;
        let memory: f64 = self.known_workers().filter(by_memory).map(|worker| worker.pressure).sum();
        if memory * 2.0 >= self.pressure_known() { Signal::Memory } else { Signal::Backlog }
    }

    /// The known pressure, and for each unknown worker the larger of its last value and the target: what is not known
    /// never looks idle.
    pub(super) fn pressure_cautious(&self) -> f64 {
        let unknown: f64 = self.unknown_workers().map(|worker| worker.pressure.max(self.target)).sum();
        self.pressure_known() + unknown
    }

    /// Workers of capacity 0 that are to be replaced: none without demand, at most `max_step`.
    pub(super) fn replacements(&self, max_step: u32) -> u32 {
        let demand = self.pressure_known() > 0.0;
        if demand { self.count(|class| class == Class::NoCapacity).min(max_step) } else { 0 }
    }

    fn mean(&self, value: impl Fn(&WorkerLoad) -> f64) -> Option<f64> {
        let known = self.known();
        (known > 0).then(|| self.known_workers().map(value).sum::<f64>() / f64::from(known))
    }

    fn known_workers(&self) -> impl Iterator<Item = &WorkerLoad> {
        self.workers.iter().filter(|worker| matches!(worker.class, Class::Serving | Class::NoCapacity))
    }

    fn unknown_workers(&self) -> impl Iterator<Item = &WorkerLoad> {
        self.workers.iter().filter(|worker| worker.class == Class::Unknown)
    }
}

impl WorkerLoad {
    fn of(worker: &Worker, targets: &Targets, counted: &mut HashSet<u64>) -> Self {
        let class = classify(worker);
        let last = worker.seen.as_ref().filter(|seen| seen.age <= REMEMBERED_FOR).map(|seen| &seen.report);
        let idle = WorkerReport::default();
        let report = last.unwrap_or(&idle);
        let serves = matches!(class, Class::Serving | Class::NoCapacity);
        // Only a worker that counts may take the place of another that refused the same work.
        let refused = if serves { refused_seconds(report, counted) } else { 0.0 };
        let backlog_seconds = sane(report.wait_seconds) + refused;
        let memory_pressure = sane(report.memory_pressure).min(1.0);
        let pressure = match class {
            Class::Serving => pressure(report, memory_pressure, backlog_seconds, targets),
            // Without room it makes no demand by itself; work that waits at it, or that it refused, is demand.
            Class::NoCapacity => pressure(report, 0.0, backlog_seconds, targets),
            Class::Unknown => pressure(report, memory_pressure, sane(report.backlog_seconds), targets),
            Class::Coming { .. } | Class::Draining | Class::Failed | Class::Leaving => 0.0,
        };
        Self {
            pod: worker.pod.clone(),
            class,
            pressure,
            memory_pressure,
            backlog_seconds,
            running: report.running,
            queued: report.queued,
            headroom_bytes: report.memory.as_ref().map_or(0, |memory| memory.headroom_bytes),
            fragmentation_ratio: sane(report.fragmentation_ratio).min(1.0),
        }
    }
}

fn classify(worker: &Worker) -> Class {
    let scheduled = worker.standing != Standing::Unscheduled;
    let coming = Class::Coming { scheduled, for_: worker.standing_for };
    match worker.standing {
        Standing::Terminating => Class::Leaving,
        Standing::Unscheduled => coming,
        standing => match worker.report() {
            None if standing == Standing::Starting => coming,
            None => Class::Unknown,
            Some(report) => match report.state() {
                WorkerState::Unspecified => Class::Unknown,
                WorkerState::Loading => coming,
                // The worker serves before the kubelet's next probe says so.
                WorkerState::Serving if report.has_capacity => Class::Serving,
                WorkerState::Serving => Class::NoCapacity,
                WorkerState::Draining | WorkerState::Drained => Class::Draining,
                WorkerState::Failed => Class::Failed,
            },
        },
    }
}

/// The largest of memory, backlog and time at work, each against its target: 0 when nothing runs, waits or was refused, and at most the target while
/// nothing waits or was refused, so that a full worker alone is no reason for a second one.
fn pressure(report: &WorkerReport, memory_pressure: f64, backlog_seconds: f64, targets: &Targets) -> f64 {
    let refused = sane(report.backlog_seconds) > sane(report.wait_seconds) || !report.refused.is_empty();
    let waits = report.queued > 0 || refused;
    if report.running == 0 && !waits {
        return 0.0;
    }
    let by_wait = targets.memory_pressure * backlog_seconds / targets.queue_wait.as_secs_f64().max(1e-3);
    // A worker that is at work all the time counts as one worker: without this, a fleet without a queue would look as if
    // hardly anything were needed, be taken away, grow a queue, and come back.
    let by_work = targets.memory_pressure * sane(report.busy_ratio).min(1.0);
    let most = if waits { MAX_PRESSURE } else { targets.memory_pressure };
    memory_pressure.max(by_wait).max(by_work).min(most)
}

/// Seconds of refused work that no other worker has counted yet. What does not fit into the list of a report has no
/// names, and counts.
fn refused_seconds(report: &WorkerReport, counted: &mut HashSet<u64>) -> f64 {
    let mut listed = 0.0;
    let mut fresh = 0.0;
    for work in &report.refused {
        let seconds = sane(work.seconds);
        listed += seconds;
        if counted.insert(work.request_key) {
            fresh += seconds;
        }
    }
    let all = sane(report.backlog_seconds) - sane(report.wait_seconds);
    // What the list holds and the total lacks is rounding, or a list that is a moment younger.
    let unlisted = if report.refused.len() < MAX_LISTED { 0.0 } else { (all - listed).max(0.0) };
    fresh + unlisted
}

/// Most entries of [`WorkerReport::refused`].
const MAX_LISTED: usize = 256;

/// A number that can be added up, whatever a worker sent.
fn sane(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

/// One device, seen by one or more workers.
#[derive(Default)]
struct Device {
    /// What each worker sees of the whole device; the largest counts, since reports are not taken at the same moment.
    usable_total_bytes: u64,
    used_bytes: u64,
    reserved_bytes: u64,
    allocated_bytes: u64,
    own_overhead_bytes: u64,
    out_of_memory_total: u64,
}

impl Device {
    fn add(&mut self, report: &WorkerReport) {
        self.out_of_memory_total = self.out_of_memory_total.saturating_add(report.out_of_memory_total);
        let Some(memory) = &report.memory else { return };
        self.usable_total_bytes = self.usable_total_bytes.max(memory.usable_total_bytes);
        self.used_bytes = self.used_bytes.max(memory.used_bytes);
        self.reserved_bytes = self.reserved_bytes.saturating_add(memory.reserved_bytes);
        self.allocated_bytes = self.allocated_bytes.saturating_add(memory.allocated_bytes);
        self.own_overhead_bytes = self.own_overhead_bytes.saturating_add(memory.own_overhead_bytes);
    }

    fn added_to(self, sum: MemoryLoad) -> MemoryLoad {
        let ours = self.reserved_bytes.saturating_add(self.own_overhead_bytes);
        MemoryLoad {
            usable_total_bytes: sum.usable_total_bytes.saturating_add(self.usable_total_bytes),
            used_bytes: sum.used_bytes.saturating_add(self.used_bytes),
            reserved_bytes: sum.reserved_bytes.saturating_add(self.reserved_bytes),
            allocated_bytes: sum.allocated_bytes.saturating_add(self.allocated_bytes),
            foreign_bytes: sum.foreign_bytes.saturating_add(self.used_bytes.saturating_sub(ours)),
            out_of_memory_total: sum.out_of_memory_total.saturating_add(self.out_of_memory_total),
        }
    }
}

#[cfg(test)]
mod tests;
