//! The same memory numbers on a CPU: the limit of the container or the memory of the machine, and what is resident.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    CallFailure, DeviceMemory, GpuProbe, GpuSample,
    cgroup::{Cgroup, parse_cgroup, parse_limit, parse_mem_total, parse_resident},
};

/// Reads this process's container or machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostProbe;

impl GpuProbe for HostProbe {
    fn sample(&mut self) -> GpuSample {
        let mut sample = GpuSample::default();
        let machine = read("/proc/meminfo", parse_mem_total);
        let resident = read("/proc/self/status", parse_resident);
        match (machine, resident) {
            (Ok(machine), Ok(used_bytes)) => {
                let total_bytes = limit().map_or(machine, |limit| limit.min(machine));
                sample.memory = Some(DeviceMemory { total_bytes, driver_reserved_bytes: 0, used_bytes });
            }
            (machine, resident) => sample.failures.extend([machine, resident].into_iter().filter_map(Result::err)),
        }
        sample
    }
}

fn read(path: &'static str, parse: fn(&str) -> Option<u64>) -> Result<u64, CallFailure> {
    let failure = |reason: String| CallFailure { call: path, reason };
    let text = fs::read_to_string(path).map_err(|error| failure(error.to_string()))?;
    parse(&text).ok_or_else(|| failure("the line that was expected is not there".into()))
}

/// The smallest limit on the way from the process's group to the root: each of them holds.
fn limit() -> Option<u64> {
    let group = parse_cgroup(&fs::read_to_string("/proc/self/cgroup").ok()?)?;
    let (root, path, file) = match &group {
        Cgroup::V2(path) => ("/sys/fs/cgroup", path, "memory.max"),
        Cgroup::V1(path) => ("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"),
    };
    folders(Path::new(root), path).filter_map(|folder| parse_limit(&fs::read_to_string(folder.join(file)).ok()?)).min()
}

/// The group's folder and those above it. Inside a container the path may be that of the host; the root is there anyway.
fn folders(root: &Path, group: &str) -> impl Iterator<Item = PathBuf> {
    let full = root.join(group.trim_start_matches('/'));
    full.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_owned).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_this_process_takes_some() {
        let sample = HostProbe.sample();
        assert_eq!(sample.failures, []);
        let memory = sample.memory.unwrap();
        assert!(memory.used_bytes > 1 << 20 && memory.used_bytes < memory.total_bytes, "{memory:?}");
        assert_eq!(memory.usable_total_bytes(), memory.total_bytes);
    }

    #[test]
    fn every_group_above_counts() {
        let found: Vec<_> = folders(Path::new("/sys/fs/cgroup"), "/pods/a").collect();
        assert_eq!(found, ["/sys/fs/cgroup/pods/a", "/sys/fs/cgroup/pods", "/sys/fs/cgroup"].map(PathBuf::from));
        assert_eq!(folders(Path::new("/sys/fs/cgroup"), "/").count(), 1);
    }
}
