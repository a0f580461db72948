//! The cards of the node as they were seen last. Plans are made on this, and the inventory is told from it.

use std::sync::Arc;
use std::time::Duration;

use hwm_core::accelerator::{Card, CardPlace, GpuHealth, Instance, Inventory, NvLink};
use hwm_core::id::{GpuUuid, ResourceId};
use hwm_core::units::Bytes;

use crate::geometry::{Geometry, Occupancy, Profile, Slot};

/// How long a look at all cards took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// Asking NVML.
    pub nvml: Duration,
    /// The rest: the kernel, the journal, and making the picture.
    pub own: Duration,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    pub(crate) cards: Vec<CardState>,
    /// Why there are none, or why some may be missing.
    pub(crate) reason: Option<String>,
    pub(crate) driver: Option<String>,
    /// CUDA version of the driver, times 1000.
    pub(crate) cuda: Option<i32>,
    /// Whether the IOMMU is on.
    pub(crate) iommu: bool,
    /// Whether MIG may be switched on where that is live.
    pub(crate) may_switch: bool,
    /// How long the last look at everything took.
    pub(crate) look: Look,
}

/// MIG mode of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MigMode {
    /// The card has no MIG.
    None,
    /// It is off, and can be switched on without a reset or not.
    Off {
        /// Whether it can.
        live: bool,
    },
    /// It is on.
    On,
}

/// How a slice reaches a machine on this card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VgpuRoute {
    /// Virtual functions that take a type.
    VirtualFunction,
    /// Mediated devices.
    Mdev,
}

/// A card.
#[derive(Debug, Clone)]
pub(crate) struct CardState {
    pub(crate) index: u32,
    pub(crate) uuid: String,
    pub(crate) address: String,
    pub(crate) model: String,
    pub(crate) memory: Option<Bytes>,
    /// Whether NVML sees it now.
    pub(crate) visible: bool,
    pub(crate) mig: MigMode,
    pub(crate) geometry: Option<Arc<Geometry>>,
    pub(crate) parts: Vec<String>,
    pub(crate) instances: Vec<InstanceState>,
    /// Slots that nobody may use, and why.
    pub(crate) doubtful: Vec<(Occupancy, String)>,
    pub(crate) health: GpuHealth,
    pub(crate) reason: Option<String>,
    /// Whether heat slows it down.
    pub(crate) hot: bool,
    pub(crate) numa: Option<i32>,
    /// PCI bridges above it, from the root.
    pub(crate) path: Vec<String>,
    /// Cards that it has NVLinks to, by address, and how many.
    pub(crate) nvlinks: Vec<(String, u32)>,
    pub(crate) driver: Option<String>,
    pub(crate) vgpu: Option<VgpuRoute>,
    /// Why it cannot be passed through, where that is known without trying.
    pub(crate) no_passthrough: Option<String>,
    /// The machine that it was handed to.
    pub(crate) handed_to: Option<ResourceId>,
}

/// A MIG instance on a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstanceState {
    pub(crate) id: u32,
    /// Place of its profile in the geometry.
    pub(crate) slot: Slot,
    /// UUID of its first compute instance.
    pub(crate) uuid: Option<String>,
    pub(crate) owner: Owner,
}

/// Whose a MIG instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Made for this resource.
    Ours(ResourceId),
    /// Somebody else's, who lets hwm hand it out.
    Adopted,
    /// Somebody else's.
    Foreign,
}

impl CardState {
    /// For people: `GPU-5c0f… (index 0)`.
    pub(crate) fn label(&self) -> String {
        format!("{} (index {})", self.uuid, self.index)
    }

    pub(crate) fn profile(&self, slot: Slot) -> Option<&Profile> {
        self.geometry.as_ref()?.profiles().get(slot.profile)
    }

    /// Why nothing may be put on it, if so.
    pub(crate) fn unusable(&self) -> Option<String> {
        let why = || {
            self.reason
                .clone()
                .unwrap_or_else(|| "no reason is known".to_owned())
        };
        match self.health {
            GpuHealth::Ok | GpuHealth::Degraded => None,
            GpuHealth::Quarantined => Some(format!("{} is out of use: {}", self.label(), why())),
            GpuHealth::Lost => Some(format!("{} is gone: {}", self.label(), why())),
        }
    }
}

impl Node {
    pub(crate) fn cuda_version(&self) -> Option<String> {
        self.cuda.map(|v| format!("{}.{}", v / 1000, v % 1000 / 10))
    }

    /// As core shows it.
    pub(crate) fn inventory(&self) -> Inventory {
        let cards = self.cards.iter().map(|c| Card {
            index: c.index,
            uuid: GpuUuid::new(&*c.uuid),
            model: c.model.clone(),
            pci_address: c.address.clone(),
            memory: c.memory,
            mig_enabled: c.mig == MigMode::On,
            parts: c.parts.clone(),
            instances: c
                .instances
                .iter()
                .filter_map(|i| {
                    let profile = c.profile(i.slot)?;
                    Some(Instance {
                        profile: profile.name.clone(),
                        start: i.slot.start.into(),
                        size: profile.size.into(),
                        uuid: i.uuid.clone().unwrap_or_default(),
                        ours: i.owner != Owner::Foreign,
                    })
                })
                .collect(),
            health: c.health,
            reason: c.reason.clone(),
            place: CardPlace {
                driver: c.driver.clone(),
                numa_node: c.numa,
                // The first is the host bridge.
                pcie_parent: c.path.get(1..).and_then(<[String]>::last).cloned(),
                nvlinks: c
                    .nvlinks
                    .iter()
                    .map(|(peer, links)| NvLink {
                        peer: peer.clone(),
                        links: *links,
                    })
                    .collect(),
            },
        });
        Inventory {
            cards: cards.collect(),
            reason: self.reason.clone(),
            driver: self.driver.clone(),
            cuda: self.cuda_version(),
        }
    }
}

/// The parts that a claim of a whole card names: every slot and every unit of what else is limited, so that it
/// meets the claims of slices; one part where the card has no slices.
pub(crate) fn parts(geometry: Option<&Geometry>) -> Vec<String> {
    let Some(geometry) = geometry else {
        return vec!["whole".to_owned()];
    };
    let slots = (0..geometry.slots()).map(|s| format!("slot-{s}"));
    let units = geometry
        .limits()
        .iter()
        .flat_map(|l| (0..l.total).map(move |u| format!("{}-{u}", l.name)));
    slots.chain(units).collect()
}
