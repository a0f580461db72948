//! What the kernel knows of the cards: drivers, IOMMU groups, who has a device open. Reads only, but for vGPU.
//!
//! The roots of `/sys`, `/proc` and `/dev` are given, so that tests bring their own.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const NVIDIA: &str = "0x10de";

/// Where the kernel is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoots {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for HostRoots {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
        }
    }
}

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Function {
    /// `0000:3b:00.0`.
    pub(crate) address: String,
    pub(crate) vendor: String,
    pub(crate) device: String,
    pub(crate) class: u32,
    pub(crate) driver: Option<String>,
    pub(crate) group: Option<u32>,
    pub(crate) numa: Option<i32>,
    /// The PCI bridges above it, from the root.
    pub(crate) path: Vec<String>,
    /// Virtual functions that are switched on.
    pub(crate) virtual_functions: u32,
}

impl Function {
    pub(crate) const fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }

    /// Whether a driver that hands devices to machines has it.
    pub(crate) fn on_vfio(&self) -> bool {
        matches!(
            self.driver.as_deref(),
            Some("vfio-pci" | "nvgrace_gpu_vfio_pci" | "nvidia_vgpu_vfio")
        )
    }
}

/// A process that has a file of `/dev` open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    /// The file, such as `nvidia0`.
    pub(crate) node: String,
    pub(crate) pid: u32,
    pub(crate) command: String,
}

/// A kernel to ask.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    roots: HostRoots,
}

impl Host {
    pub(crate) const fn new(roots: HostRoots) -> Self {
        Self { roots }
    }

    /// NVIDIA's display and 3D controllers, physical ones, and whatever else is named.
    pub(crate) fn cards(&self, also: &[String]) -> Vec<Function> {
        let entries = fs::read_dir(self.devices())
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        // A host has hundreds of functions: the cheapest question comes first.
        let wanted = |address: &String| {
            let dir = self.device(address);
            also.iter().any(|a| same_address(a, address))
                || text(&dir.join("vendor")).as_deref() == Some(NVIDIA)
                    && text(&dir.join("class")).is_some_and(|c| is_display(class(&c)))
                    && !dir.join("physfn").exists()
        };
        let mut cards: Vec<Function> = names.filter(wanted).filter_map(|a| self.function(&a)).collect();
        cards.sort_by(|a, b| a.address.cmp(&b.address));
        cards
    }

    /// A function, if there is one at this address.
    pub(crate) fn function(&self, address: &str) -> Option<Function> {
        let dir = self.device(address);
        let vendor = text(&dir.join("vendor"))?;
        let class = class(&text(&dir.join("class"))?);
        let real = fs::canonicalize(&dir).unwrap_or_default();
        Some(Function {
            address: address.to_owned(),
            vendor,
            device: text(&dir.join("device")).unwrap_or_default(),
            class,
            driver: link_name(&dir.join("driver")),
            group: link_name(&dir.join("iommu_group")).and_then(|g| g.parse().ok()),
            numa: text(&dir.join("numa_node"))
                .and_then(|n| n.parse().ok())
                .filter(|n| *n >= 0),
            path: real
                .parent()
                .into_iter()
                .flat_map(Path::components)
                .filter_map(|c| c.as_os_str().to_str())
                .filter(|c| c.contains(':') && c.contains('.') || c.starts_with("pci"))
                .map(str::to_owned)
                .collect(),
            virtual_functions: text(&dir.join("sriov_numvfs"))
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
        })
    }

    /// Whether the host has an IOMMU that is on.
    pub(crate) fn has_iommu(&self) -> bool {
        fs::read_dir(self.roots.sys.join("kernel/iommu_groups")).is_ok_and(|mut d| d.next().is_some())
    }

    /// Every function of a group; none where one of them cannot be read.
    pub(crate) fn group(&self, group: u32) -> Option<Vec<Function>> {
        let dir = self
            .roots
            .sys
            .join(format!("kernel/iommu_groups/{group}/devices"));
        let mut addresses = Vec::new();
        for entry in fs::read_dir(dir).ok()? {
            addresses.push(entry.ok()?.file_name().into_string().ok()?);
        }
        addresses.sort();
        addresses.iter().map(|a| self.function(a)).collect()
    }

    /// The files of `/dev` that the drivers of a function made, such as `dri/card0` or `snd/controlC1`.
    pub(crate) fn nodes(&self, address: &str) -> Vec<String> {
        let mut nodes = Vec::new();
        add_nodes(&self.device(address), 4, &mut nodes);
        nodes.sort();
        nodes
    }

    /// Processes other than this one that have one of these files of `/dev` open. What cannot be looked into, as
    /// another user's process without privileges, is not among them.
    pub(crate) fn holders(&self, nodes: &[String]) -> Vec<Holder> {
        let own = std::process::id();
        let mut holders = BTreeSet::new();
        for entry in fs::read_dir(&self.roots.proc)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            if pid == own {
                continue;
            }
            for node in self.open_in(&entry.path(), nodes) {
                let command = text(&entry.path().join("comm")).unwrap_or_default();
                holders.insert(Holder { node, pid, command });
            }
        }
        holders.into_iter().collect()
    }

    /// Which of these files this process itself has open.
    pub(crate) fn held_by_us(&self, nodes: &[String]) -> Option<String> {
        self.open_in(&self.roots.proc.join("self"), nodes)
            .into_iter()
            .next()
    }

    fn open_in(&self, process: &Path, nodes: &[String]) -> Vec<String> {
        let fds = fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let files = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        let names =
            files.filter_map(|file| Some(file.strip_prefix(&self.roots.dev).ok()?.to_str()?.to_owned()));
        names.filter(|name| nodes.contains(name)).collect()
    }

    /// Changes with every boot of the host.
    pub(crate) fn boot_id(&self) -> String {
        text(&self.roots.proc.join("sys/kernel/random/boot_id")).unwrap_or_default()
    }

    /// The virtual functions of a card that are switched on.
    pub(crate) fn virtual_functions(&self, address: &str) -> Vec<String> {
        let entries = fs::read_dir(self.device(address))
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let links = entries.filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with("virtfn")));
        let mut functions: Vec<String> = links.filter_map(|e| link_name(&e.path())).collect();
        functions.sort();
        functions
    }

    /// Asks the kernel to find a driver for a function that has none. Whether it did is seen at the next look.
    pub(crate) fn probe_driver(&self, address: &str) {
        if let Err(error) = write(&self.roots.sys.join("bus/pci/drivers_probe"), address) {
            tracing::warn!(%error, address, "the kernel was not asked for a driver");
        }
    }

    /// Where a function's files are.
    pub(crate) fn device(&self, address: &str) -> PathBuf {
        self.devices().join(address)
    }

    /// Where the mediated devices are.
    pub(crate) fn mdev(&self, uuid: &str) -> PathBuf {
        self.roots.sys.join("bus/mdev/devices").join(uuid)
    }

    fn devices(&self) -> PathBuf {
        self.roots.sys.join("bus/pci/devices")
    }
}

/// Whether two spellings name the same PCI function: `0000:3b:00.0`, `00000000:3B:00.0`, `3b:00.0`.
pub(crate) fn same_address(a: &str, b: &str) -> bool {
    matches!((parse_address(a), parse_address(b)), (Some(a), Some(b)) if a == b)
}

/// An address as the kernel writes it.
pub(crate) fn kernel_address(text: &str) -> Option<String> {
    let (domain, bus, device, function) = parse_address(text)?;
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

fn parse_address(text: &str) -> Option<(u32, u32, u32, u32)> {
    let (rest, function) = text.rsplit_once('.').unwrap_or((text, "0"));
    let mut parts = rest.rsplit(':');
    let hex = |t: &str| u32::from_str_radix(t, 16).ok();
    let device = hex(parts.next()?)?;
    let bus = hex(parts.next()?)?;
    let domain = parts.next().map_or(Some(0), hex)?;
    let address = (domain, bus, device, hex(function)?);
    (parts.next().is_none() && bus <= 0xff && device <= 0x1f && address.3 <= 7).then_some(address)
}

fn class(text: &str) -> u32 {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
}

const fn is_display(class: u32) -> bool {
    matches!(class >> 8, 0x0300 | 0x0302)
}

pub(crate) fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned())
}

/// Writes a kernel attribute.
pub(crate) fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()))
}

/// Adds what a folder of a device and the folders in it say that their files are called.
fn add_nodes(folder: &Path, depth: u32, nodes: &mut Vec<String>) {
    let uevent = text(&folder.join("uevent")).unwrap_or_default();
    nodes.extend(
        uevent
            .lines()
            .filter_map(|l| l.strip_prefix("DEVNAME="))
            .map(str::to_owned),
    );
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    // Links lead to other devices.
    let folders = entries.filter(|e| depth > 0 && e.file_type().is_ok_and(|t| t.is_dir()));
    for inner in folders {
        add_nodes(&inner.path(), depth - 1, nodes);
    }
}

fn link_name(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.file_name()?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_many_spellings_and_one_meaning() {
        for spelling in ["0000:3b:00.0", "00000000:3B:00.0", "3b:00.0", "0000:3b:00"] {
            assert_eq!(
                kernel_address(spelling).as_deref(),
                Some("0000:3b:00.0"),
                "{spelling}"
            );
        }
        for wrong in ["", "GPU-0", "0", "0000:3b:00.8", "1:0000:3b:00.0", "3b:zz.0"] {
            assert_eq!(kernel_address(wrong), None, "{wrong}");
        }
    }
}
