//! GPUs, places on them, and devices made ready for a workload.

use serde::{Deserialize, Serialize};

use crate::id::GpuUuid;
use crate::ledger::ClaimKey;
use crate::units::Bytes;

/// The GPUs of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// The cards, by index.
    pub cards: Vec<Card>,
    /// Why there are none, or why some may be missing.
    pub reason: Option<String>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// Version of CUDA that the driver has, for example `12.8`.
    pub cuda: Option<String>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Kept for the card's life on the node.
    pub index: u32,
    /// Its UUID.
    pub uuid: GpuUuid,
    /// Its model.
    pub model: String,
    /// Its PCI address, for example `0000:3b:00.0`.
    pub pci_address: String,
    /// Its memory.
    pub memory: Option<Bytes>,
    /// Whether it is in MIG mode.
    pub mig_enabled: bool,
    /// The parts that a claim of the whole card names; at least one.
    pub parts: Vec<String>,
    /// Its MIG instances, ours and others'.
    pub instances: Vec<Instance>,
    /// Whether it can be handed out.
    pub health: GpuHealth,
    /// Why it is not well.
    pub reason: Option<String>,
    /// Where it is in the host.
    pub place: CardPlace,
}

/// Where a card is in its host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CardPlace {
    /// The kernel's driver that has it; null where none has.
    pub driver: Option<String>,
    /// Its NUMA node; null where the host has no such thing.
    pub numa_node: Option<i32>,
    /// The PCI address of the bridge above it; null on the root bus.
    pub pcie_parent: Option<String>,
    /// The cards that it has NVLinks to.
    pub nvlinks: Vec<NvLink>,
}

/// The NVLinks between a card and another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NvLink {
    /// The other card, by PCI address.
    pub peer: String,
    /// How many links lead to it.
    pub links: u32,
}

/// A MIG instance on a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its profile, for example `1g.5gb`.
    pub profile: String,
    /// Its first slot.
    pub start: u32,
    /// How many slots it takes.
    pub size: u32,
    /// Its UUID.
    pub uuid: String,
    /// Whether hwm made or adopted it.
    pub ours: bool,
}

/// Whether a card can be handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum GpuHealth {
    /// It can.
    Ok,
    /// It can, and something is not as it should be.
    Degraded,
    /// It cannot until it is recovered.
    Quarantined,
    /// It is gone.
    Lost,
}

/// A place on a card: the whole of it, or a slice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Placement {
    /// The card.
    pub card: GpuUuid,
    /// The parts that are claimed.
    pub parts: Vec<String>,
    /// The memory that the workload gets, where it is known before the slice is made.
    pub memory: Option<Bytes>,
    /// What is done there.
    pub kind: PlacementKind,
    /// Why this, where it is not by name what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is done at a place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PlacementKind {
    /// The whole card is handed out.
    Whole,
    /// A slice is made here, and removed with the workload.
    Slice {
        /// Its profile, as the card names it.
        profile: String,
        /// Its first slot.
        start: u32,
        /// How many slots it takes.
        size: u32,
    },
    /// A slice that exists is handed out, and stays.
    Existing {
        /// Its UUID.
        uuid: String,
    },
}

impl Placement {
    /// What is done, in words: `GPU-5c0f…: 1g.10gb at slot 6 (1g is 1g.10gb on this card: …)`.
    pub fn describe(&self) -> String {
        let what = match &self.kind {
            PlacementKind::Whole => "the whole card".to_owned(),
            PlacementKind::Slice { profile, start, .. } => format!("{profile} at slot {start}"),
            PlacementKind::Existing { uuid } => format!("the instance {uuid}"),
        };
        let why = self.reason.iter().map(|reason| format!(" ({reason})"));
        format!("{}: {what}{}", self.card, why.collect::<String>())
    }

    /// The claims that hold the place.
    pub fn keys(&self) -> impl Iterator<Item = ClaimKey> + '_ {
        self.parts
            .iter()
            .map(|part| ClaimKey::Gpu(self.card.clone(), part.clone()))
    }
}

/// A device made ready for one workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceGrant {
    /// The card.
    pub card: GpuUuid,
    /// UUID of the card, or of the MIG instance.
    pub uuid: String,
    /// Its memory.
    pub memory: Option<Bytes>,
    /// How it is attached.
    pub attachment: Attachment,
}

/// How a device is attached to a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Attachment {
    /// By UUID through the container runtime.
    Runtime,
    /// PCI functions by VFIO: the whole IOMMU group, bridges aside. libvirt rebinds the drivers.
    Vfio {
        /// PCI addresses, for example `0000:3b:00.0`.
        functions: Vec<String>,
    },
    /// A virtual function that stays on its driver.
    VirtualFunction {
        /// Its PCI address.
        function: String,
    },
    /// A mediated device.
    Mdev {
        /// Its UUID.
        uuid: String,
    },
}
