//! Memory of a machine or a container, from the kernel's text files. Pure.

/// The control group of this process, from `/proc/self/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cgroup {
    /// Its path below `/sys/fs/cgroup`.
    V2(String),
    /// Its path below `/sys/fs/cgroup/memory`.
    V1(String),
}

/// The group that limits memory: that of version 1 where the controller lives there, otherwise that of version 2.
pub(crate) fn parse_cgroup(text: &str) -> Option<Cgroup> {
    let mut v2 = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.split(',').any(|controller| controller == "memory") {
            return Some(Cgroup::V1(path.to_owned()));
        }
        if hierarchy == "0" && controllers.is_empty() {
            v2 = Some(Cgroup::V2(path.to_owned()));
        }
    }
    v2
}

/// Bytes of `memory.max` (version 2) or `memory.limit_in_bytes` (version 1); absent where nothing is limited.
pub(crate) fn parse_limit(text: &str) -> Option<u64> {
    // Version 1 says "no limit" as the largest multiple of a page below 2^63.
    text.trim().parse().ok().filter(|&bytes: &u64| bytes < 1 << 62)
}

/// Bytes of `MemTotal` in `/proc/meminfo`.
pub(crate) fn parse_mem_total(text: &str) -> Option<u64> {
    parse_kib(text, "MemTotal:")
}

/// Bytes of `VmRSS` in `/proc/self/status`: what is resident of this process.
pub(crate) fn parse_resident(text: &str) -> Option<u64> {
    parse_kib(text, "VmRSS:")
}

fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix("kB")?;
    value.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::a_pod("0::/kubepods.slice/pod1/c1\n", Some(Cgroup::V2("/kubepods.slice/pod1/c1".into())))]
    #[case::the_root("0::/\n", Some(Cgroup::V2("/".into())))]
    #[case::version_1("11:cpu,cpuacct:/a\n9:memory:/docker/c1\n0::/system.slice\n", Some(Cgroup::V1("/docker/c1".into())))]
    #[case::both_with_memory_in_2("3:cpu:/a\n0::/b\n", Some(Cgroup::V2("/b".into())))]
    #[case::colons_in_the_path("0::/a:b\n", Some(Cgroup::V2("/a:b".into())))]
    #[case::nothing("", None)]
    #[case::not_such_a_file("hello", None)]
    fn groups(#[case] text: &str, #[case] expected: Option<Cgroup>) {
        assert_eq!(parse_cgroup(text), expected);
    }

    #[rstest]
    #[case::a_limit("17179869184\n", Some(1 << 34))]
    #[case::none_in_version_2("max\n", None)]
    #[case::none_in_version_1("9223372036854771712\n", None)]
    #[case::damaged("12 GiB", None)]
    fn limits(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(parse_limit(text), expected);
    }

    #[rstest]
    #[case::the_first_line("MemTotal:       24603968 kB\nMemFree:         1 kB\n", Some(24_603_968 * 1024))]
    #[case::not_there("MemFree: 1 kB\n", None)]
    #[case::another_unit("MemTotal: 1 MB\n", None)]
    #[case::too_large("MemTotal: 18446744073709551615 kB\n", None)]
    fn totals(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(parse_mem_total(text), expected);
    }

    #[test]
    fn resident() {
        assert_eq!(parse_resident("Name:\tworker\nVmHWM:\t  300 kB\nVmRSS:\t  205 kB\n"), Some(205 * 1024));
    }
}
