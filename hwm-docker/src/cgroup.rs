//! What a process on this machine uses, read from the kernel: at once, and without the engine.

use std::fs;
use std::path::{Path, PathBuf};

/// What a container has used so far and uses now. What could not be read is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reading {
    /// CPU time since the start, in nanoseconds.
    pub(crate) cpu: Option<u64>,
    /// Memory in bytes, without what the kernel would give back.
    pub(crate) memory: Option<u64>,
    pub(crate) rx: Option<u64>,
    pub(crate) tx: Option<u64>,
}

/// Where the kernel's files are; elsewhere in tests.
pub(crate) struct Kernel {
    proc: PathBuf,
    cgroup: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            cgroup: "/sys/fs/cgroup".into(),
        }
    }
}

impl Kernel {
    /// Reads what the container with that first process uses; none where the process is not the
    /// container's, or its control groups are not to be seen from here.
    pub(crate) fn read(&self, pid: u32, container: &str) -> Option<Reading> {
        let process = self.proc.join(pid.to_string());
        let groups = fs::read_to_string(process.join("cgroup")).ok()?;
        let (rx, tx) = network(&process.join("net/dev")).unzip();
        let mut reading = Reading {
            rx,
            tx,
            ..Reading::default()
        };
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            // A process id may have been given to another process meanwhile.
            if !path.contains(container) {
                continue;
            }
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                let dir = self.cgroup.join(path);
                let cpu = keyed(&dir.join("cpu.stat"), "usage_usec").map(|us| us.saturating_mul(1000));
                reading.cpu = reading.cpu.or(cpu);
                let current = number(&dir.join("memory.current"));
                reading.memory = reading.memory.or(without(current, &dir, "inactive_file"));
            }
            for controller in controllers.split(',') {
                let dir = self.cgroup.join(controller).join(path);
                match controller {
                    "cpuacct" => reading.cpu = number(&dir.join("cpuacct.usage")),
                    "memory" => {
                        let usage = number(&dir.join("memory.usage_in_bytes"));
                        reading.memory = without(usage, &dir, "total_inactive_file");
                    }
                    _ => {}
                }
            }
        }
        (reading.cpu.is_some() && reading.memory.is_some()).then_some(reading)
    }
}

fn without(usage: Option<u64>, dir: &Path, cache: &str) -> Option<u64> {
    let cache = keyed(&dir.join("memory.stat"), cache).unwrap_or(0);
    usage.map(|usage| usage.saturating_sub(cache))
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number behind a key, one pair per line.
fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// Bytes received and sent by all interfaces but loopback; none where there is no other.
fn network(file: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(file).ok()?;
    let interfaces = text.lines().filter_map(|line| {
        let (name, figures) = line.split_once(':')?;
        let figures: Vec<u64> = figures
            .split_whitespace()
            .filter_map(|f| f.parse().ok())
            .collect();
        (name.trim() != "lo").then_some((*figures.first()?, *figures.get(8)?))
    });
    interfaces.reduce(|sum, next| (sum.0.saturating_add(next.0), sum.1.saturating_add(next.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: &str = "Inter-|   Receive                          |  Transmit\n face |bytes packets errs drop fifo frame \
        compressed multicast|bytes\n    lo:  9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 100 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0\n  \
        eth1:   5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n";

    fn kernel(files: &[(&str, &str)]) -> (tempfile::TempDir, Kernel) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let kernel = Kernel {
            proc: dir.path().join("proc"),
            cgroup: dir.path().join("cgroup"),
        };
        (dir, kernel)
    }

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let expected = Reading {
            cpu: Some(5_000),
            memory: Some(70),
            rx: Some(105),
            tx: Some(206),
        };
        let (_dir, v2) = kernel(&[
            ("proc/7/cgroup", "0::/system.slice/docker-abc.scope\n"),
            ("proc/7/net/dev", NET),
            (
                "cgroup/system.slice/docker-abc.scope/cpu.stat",
                "usage_usec 5\nuser_usec 3\n",
            ),
            ("cgroup/system.slice/docker-abc.scope/memory.current", "100\n"),
            (
                "cgroup/system.slice/docker-abc.scope/memory.stat",
                "file 50\ninactive_file 30\n",
            ),
        ]);
        assert_eq!(v2.read(7, "abc"), Some(expected));
        let (_dir, v1) = kernel(&[
            (
                "proc/7/cgroup",
                "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
            ),
            ("proc/7/net/dev", NET),
            ("cgroup/cpuacct/docker/abc/cpuacct.usage", "5000\n"),
            ("cgroup/memory/docker/abc/memory.usage_in_bytes", "100\n"),
            (
                "cgroup/memory/docker/abc/memory.stat",
                "inactive_file 1\ntotal_inactive_file 30\n",
            ),
        ]);
        assert_eq!(v1.read(7, "abc"), Some(expected));
    }

    #[test]
    fn a_process_of_somebody_else_is_not_read() {
        let (_dir, kernel) = kernel(&[
            ("proc/7/cgroup", "0::/docker/other\n"),
            ("cgroup/docker/other/cpu.stat", "usage_usec 5\n"),
            ("cgroup/docker/other/memory.current", "100\n"),
        ]);
        assert_eq!(kernel.read(7, "abc"), None);
        assert_eq!(kernel.read(8, "abc"), None);
    }

    #[test]
    fn a_container_without_a_network_has_no_such_figures() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dev");
        fs::write(&file, "lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n").unwrap();
        assert_eq!(network(&file), None);
    }
}
