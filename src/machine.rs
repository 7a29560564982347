//! What the machine has that this process may use, or the container that it is in.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// So much memory there is, in bytes: of the machine's, of its control groups' and of this process' own limit the least. As
/// much as can be where none of them is known.
pub fn memory_bytes() -> usize {
    static KNOWN: OnceLock<usize> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let read = |path: &Path| fs::read_to_string(path).ok();
        least_of(&read)
    })
}

/// One part of so many of the memory that there is, within bounds.
pub fn part_of_memory(parts: usize, bytes_min: usize, bytes_max: usize) -> usize {
    (memory_bytes() / parts).clamp(bytes_min, bytes_max)
}

/// What this process may have by its own limit, of which its threads' stacks take part as a whole, however little of them is
/// used. As much as can be where there is none.
pub fn process_limit_bytes() -> usize {
    static KNOWN: OnceLock<usize> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        of_process(&limits).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX)
    })
}

fn least_of(read: &dyn Fn(&Path) -> Option<String>) -> usize {
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let of_machine = of_machine(&text("/proc/meminfo"));
    let of_process = of_process(&text("/proc/self/limits"));
    let of_groups = of_groups(&text("/proc/self/cgroup"), read);
    let known = [of_machine, of_process, of_groups].into_iter().flatten().min();
    known.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// `MemTotal:       16384 kB`
fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// `Max data size             unlimited            unlimited            bytes`, and the same of the address space.
fn of_process(limits: &str) -> Option<u64> {
    let of = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    ["Max data size", "Max address space"].into_iter().filter_map(of).min()
}

/// The least of the limits of the groups that this process is in, up to the root. A line of the second version is `0::/path`, one
/// of the first `5:memory:/path`.
fn of_groups(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (kinds, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, names): (&str, &[&str]) = match kinds {
            "" => ("/sys/fs/cgroup", &["memory.max", "memory.high"]),
            _ if kinds.split(',').any(|kind| kind == "memory") => {
                ("/sys/fs/cgroup/memory", &["memory.limit_in_bytes"])
            }
            _ => return None,
        };
        let above = Path::new(path.trim_start_matches('/')).ancestors();
        let of_group = |group: &Path| {
            names
                .iter()
                .filter_map(|name| read(&Path::new(root).join(group).join(name))?.trim().parse::<u64>().ok())
                .min()
        };
        above.filter_map(of_group).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(files: &[(&str, &str)]) -> usize {
        least_of(&|path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn of_all_that_bounds_the_memory_the_least_counts() {
        let meminfo = ("/proc/meminfo", "MemTotal:         524288 kB\nMemFree:           1 kB\n");
        assert_eq!(known(&[meminfo]), 512 << 20);
        let limits = "Limit  Soft Limit  Hard Limit  Units\n\
            Max data size             134217728            unlimited            bytes\n\
            Max address space         unlimited            unlimited            bytes\n";
        assert_eq!(known(&[meminfo, ("/proc/self/limits", limits)]), 128 << 20);
        let second = [
            meminfo,
            ("/proc/self/cgroup", "0::/system.slice/doorstep.service\n"),
            ("/sys/fs/cgroup/system.slice/doorstep.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/doorstep.service/memory.high", "max\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "268435456\n"),
        ];
        assert_eq!(known(&second), 256 << 20);
        let in_container =
            [meminfo, ("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "67108864\n")];
        assert_eq!(known(&in_container), 64 << 20);
        let first = [
            ("/proc/self/cgroup", "11:cpu,cpuacct:/x\n5:memory:/docker/a\n"),
            ("/sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "33554432\n"),
        ];
        assert_eq!(known(&first), 32 << 20);
    }

    #[test]
    fn where_nothing_is_known_there_is_enough() {
        assert_eq!(known(&[]), usize::MAX);
        assert_eq!(known(&[("/proc/meminfo", "nonsense"), ("/proc/self/cgroup", "x\n:\n0::\n")]), usize::MAX);
    }
}
