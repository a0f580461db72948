//! What is read back from libvirt's XML. Unknown elements are passed over.

use std::collections::BTreeSet;

use hwm_core::secret::Secret;
use roxmltree::{Document, Node};

use super::model::{METADATA_NAMESPACE, Started, Tag};
use crate::catalog::Bus;

/// What matters of a domain that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainSeen {
    /// What makes it ours; none where it is not.
    pub tag: Option<Tag>,
    /// The screen's password, where the XML was asked for with secrets.
    pub screen_password: Option<Secret>,
    /// How its disk is attached.
    pub bus: Bus,
    /// Whether it starts through a pflash firmware.
    pub uefi: bool,
    /// Whether it has host devices.
    pub host_devices: bool,
    /// The hardware addresses of its network cards.
    pub macs: Vec<String>,
    /// The most CPUs it can have until it starts again.
    pub max_vcpus: Option<u32>,
    /// The most memory in bytes it can have until it starts again.
    pub max_memory: Option<u64>,
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|n| n.tag_name().name() == name)
}

fn path<'a, 'i>(node: Node<'a, 'i>, names: &[&str]) -> Option<Node<'a, 'i>> {
    names.iter().try_fold(node, |node, name| child(node, name))
}

fn text(node: Node<'_, '_>, names: &[&str]) -> Option<String> {
    path(node, names)?.text().map(|t| t.trim().to_owned())
}

fn bytes(node: Node<'_, '_>) -> Option<u64> {
    let amount: u64 = node.text()?.trim().parse().ok()?;
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KiB" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return None,
    };
    amount.checked_mul(unit)
}

fn read_tag(domain: Node<'_, '_>) -> Option<Tag> {
    let machine = child(domain, "metadata")?
        .children()
        .find(|n| n.has_tag_name((METADATA_NAMESPACE, "machine")))?;
    Some(Tag {
        owner: machine.attribute("owner")?.to_owned(),
        resource: machine.attribute("resource")?.parse().ok()?,
        generation: machine.attribute("generation")?.parse().ok()?,
        address: machine.attribute("address").and_then(|a| a.parse().ok()),
        port: machine
            .attribute("port")
            .and_then(|p| p.parse().ok())
            .unwrap_or(22),
        started: machine
            .attribute("started")
            .and_then(|s| s.parse().ok())
            .map(|millis| Started { millis }),
    })
}

impl DomainSeen {
    /// Reads a domain's XML; none where it is not XML of a domain.
    pub(crate) fn parse(xml: &str) -> Option<Self> {
        let document = Document::parse(xml).ok()?;
        let domain = document.root_element();
        let devices = child(domain, "devices")?;
        let all = |name: &'static str| devices.children().filter(move |n| n.has_tag_name(name));
        let disk_bus = all("disk")
            .filter_map(|disk| child(disk, "target"))
            .find_map(|target| target.attribute("bus"));
        let os = child(domain, "os")?;
        Some(Self {
            tag: read_tag(domain),
            screen_password: all("graphics")
                .find_map(|g| g.attribute("passwd"))
                .map(Secret::new),
            bus: if disk_bus == Some("sata") {
                Bus::Sata
            } else {
                Bus::Virtio
            },
            uefi: os.attribute("firmware") == Some("efi")
                || child(os, "loader").is_some_and(|l| l.attribute("type") == Some("pflash")),
            host_devices: all("hostdev").next().is_some(),
            macs: all("interface")
                .filter_map(|i| child(i, "mac")?.attribute("address"))
                .map(str::to_ascii_lowercase)
                .collect(),
            max_vcpus: text(domain, &["vcpu"]).and_then(|t| t.parse().ok()),
            max_memory: child(domain, "memory").and_then(bytes),
        })
    }
}

/// What matters of a storage pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolSeen {
    /// Its kind, for example `dir`.
    pub kind: String,
    /// Its folder.
    pub path: String,
}

/// Reads a storage pool's XML.
pub(crate) fn pool(xml: &str) -> Option<PoolSeen> {
    let document = Document::parse(xml).ok()?;
    let pool = document.root_element();
    Some(PoolSeen {
        kind: pool.attribute("type")?.to_owned(),
        path: text(pool, &["target", "path"])?,
    })
}

/// A disk, and the files that reading it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskFiles {
    /// The disk's own file.
    pub disk: String,
    /// The files under it. A domain's disk reads itself, too: it may be an image, used as it is.
    pub reads: Vec<String>,
}

/// What a volume is made on; none where it stands alone.
pub(crate) fn volume_files(xml: &str) -> Option<DiskFiles> {
    let document = Document::parse(xml).ok()?;
    let volume = document.root_element();
    Some(DiskFiles {
        disk: text(volume, &["target", "path"])?,
        reads: vec![text(volume, &["backingStore", "path"])?],
    })
}

/// The disks of a domain.
pub(crate) fn domain_files(xml: &str) -> Vec<DiskFiles> {
    let Ok(document) = Document::parse(xml) else {
        return Vec::new();
    };
    let disks = document.descendants().filter(|n| n.has_tag_name("disk"));
    disks
        .filter_map(|disk| {
            let mut reads = disk
                .descendants()
                .filter(|n| n.has_tag_name("source"))
                .filter_map(|source| source.attribute("file"))
                .map(str::to_owned)
                .peekable();
            Some(DiskFiles {
                disk: reads.peek()?.clone(),
                reads: reads.collect(),
            })
        })
        .collect()
}

/// Whether a snapshot holds memory.
pub(crate) fn snapshot_memory(xml: &str) -> Option<bool> {
    let document = Document::parse(xml).ok()?;
    let memory = child(document.root_element(), "memory")?;
    Some(memory.attribute("snapshot") != Some("no"))
}

/// What QEMU on a host can do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HostCapabilities {
    /// Kinds of firmware that can be chosen by name.
    pub firmware: BTreeSet<String>,
    /// Whether it emulates a TPM.
    pub tpm: bool,
    /// The most CPUs of a machine.
    pub max_vcpus: Option<u32>,
}

/// Reads the capabilities of domains.
pub(crate) fn host_capabilities(xml: &str) -> Option<HostCapabilities> {
    let document = Document::parse(xml).ok()?;
    let root = document.root_element();
    let values = |node: Node<'_, '_>, name: &str| -> BTreeSet<String> {
        node.children()
            .filter(|n| n.has_tag_name("enum") && n.attribute("name") == Some(name))
            .flat_map(|n| n.children().filter_map(|v| v.text()))
            .map(str::to_owned)
            .collect()
    };
    let tpm = path(root, &["devices", "tpm"]);
    Some(HostCapabilities {
        firmware: child(root, "os")
            .map(|os| values(os, "firmware"))
            .unwrap_or_default(),
        tpm: tpm.is_some_and(|t| {
            t.attribute("supported") == Some("yes") && values(t, "backendModel").contains("emulator")
        }),
        max_vcpus: child(root, "vcpu").and_then(|v| v.attribute("max")?.parse().ok()),
    })
}
