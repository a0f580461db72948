//! A domain as hwm makes it: typed, so that nothing but these values reaches libvirt.

use std::net::Ipv4Addr;

use hwm_core::id::ResourceId;
use hwm_core::secret::Secret;
use hwm_core::units::Bytes;

use crate::catalog::{Bus, Firmware, Guest, ImageFormat};
use crate::mac::MacAddress;

/// The namespace of our metadata in a domain.
pub(crate) const METADATA_NAMESPACE: &str = "https://hwm.rs/libvirt/domain/1";

/// A machine as a libvirt domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainSpec {
    /// What makes the domain ours.
    pub tag: Tag,
    /// The resource's label, for people.
    pub title: String,
    /// KVM or emulation.
    pub hypervisor: Hypervisor,
    /// Virtual CPUs.
    pub vcpus: Adjustable<u32>,
    /// Memory.
    pub memory: Adjustable<Bytes>,
    /// The family of guests.
    pub guest: Guest,
    /// What starts it.
    pub firmware: Firmware,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// How disk and network are attached.
    pub bus: Bus,
    /// Path of the disk's volume on libvirt's host.
    pub disk: String,
    /// Path of the seed's volume.
    pub seed: String,
    /// Path of the serial console's log.
    pub console_log: String,
    /// The network card.
    pub interface: Interface,
    /// Host devices that it gets.
    pub devices: Vec<HostDevice>,
    /// The screen's password.
    pub screen_password: Option<Secret>,
}

/// What makes a domain ours, kept in its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag {
    /// The manager's owner label.
    pub owner: String,
    /// The machine.
    pub resource: ResourceId,
    /// The generation of the resource that the domain was made from.
    pub generation: u64,
    /// Its static address.
    pub address: Option<Ipv4Addr>,
    /// The port that people reach it on.
    pub port: u16,
    /// When and as which run of the domain it was started last.
    pub started: Option<Started>,
}

/// A start of a domain by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Started {
    /// When, in milliseconds since 1970.
    pub millis: i64,
}

/// What the domain runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Hypervisor {
    /// The host's CPU.
    Kvm,
    /// Emulation.
    Qemu,
}

impl Hypervisor {
    /// libvirt's word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// An amount that can be changed while the machine runs, up to a maximum that cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Adjustable<T> {
    /// The amount at present.
    pub current: T,
    /// The most it can become until the next start.
    pub maximum: T,
}

/// The network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its hardware address.
    pub mac: MacAddress,
    /// Where it is plugged in.
    pub plug: Plug,
    /// Whether a filter keeps it to its own addresses; the static one where it has one.
    pub filter: Option<Filter>,
}

/// Where a network card is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plug {
    /// A Linux bridge, untagged or one that exists per VLAN.
    Bridge {
        /// The bridge.
        bridge: String,
    },
    /// A VLAN-filtering Linux bridge whose port libvirt sets up.
    FilteringBridge {
        /// The bridge.
        bridge: String,
        /// The VLAN.
        vlan: u16,
    },
    /// An Open vSwitch bridge.
    OpenVSwitch {
        /// The bridge.
        bridge: String,
        /// The VLAN; untagged when absent.
        vlan: Option<u16>,
    },
}

/// Keeps a network card to its own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The only address it may use; the first that it is seen to get when absent.
    pub address: Option<Ipv4Addr>,
}

/// A host device that a machine gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostDevice {
    /// A PCI function by VFIO; libvirt rebinds its driver and gives it back.
    Vfio(PciAddress),
    /// A virtual function that stays on its driver.
    VirtualFunction(PciAddress),
    /// A mediated device.
    Mdev(uuid::Uuid),
}

/// The address of a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PciAddress {
    /// Domain.
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Slot.
    pub slot: u8,
    /// Function.
    pub function: u8,
}

impl PciAddress {
    /// Reads `0000:3b:00.0`; none where the text is something else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (rest, function) = text.split_once('.')?;
        let mut parts = rest.split(':');
        let hex = |text: &str, digits: usize| {
            let digits = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u16::from_str_radix(text, 16).ok()).flatten()
        };
        let domain = hex(parts.next()?, 4)?;
        let bus = hex(parts.next()?, 2)?;
        let slot = hex(parts.next()?, 2)?;
        let function = hex(function, 1)?;
        (parts.next().is_none() && slot < 32 && function < 8).then_some(Self {
            domain,
            bus: bus as u8,
            slot: slot as u8,
            function: function as u8,
        })
    }
}

/// A volume as hwm makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeSpec {
    /// Its name in the pool.
    pub name: String,
    /// Its size, as who uses it sees it.
    pub capacity: u64,
    /// Its layout.
    pub format: ImageFormat,
    /// What it is an overlay of: path and layout.
    pub backing: Option<(String, ImageFormat)>,
    /// Whether only its owner may read and nobody write it.
    pub read_only: bool,
}

/// The name of a machine's domain.
pub(crate) fn domain_name(id: ResourceId) -> String {
    format!("hwm-{id}")
}

/// The machine whose domain or volume has this name; none for other names.
pub(crate) fn resource_of(name: &str) -> Option<ResourceId> {
    let rest = name.strip_prefix("hwm-")?;
    let id = rest.get(..36)?;
    let tail = &rest[36..];
    (tail.is_empty() || tail.starts_with(['-', '.']))
        .then(|| id.parse().ok())
        .flatten()
}

/// The name of a machine's disk.
pub(crate) fn disk_name(id: ResourceId) -> String {
    format!("hwm-{id}.qcow2")
}

/// The name of a machine's seed.
pub(crate) fn seed_name(id: ResourceId) -> String {
    format!("hwm-{id}-seed.img")
}

/// The name of the log of a machine's serial console.
pub(crate) fn console_log_name(id: ResourceId) -> String {
    format!("hwm-{id}-console.log")
}
