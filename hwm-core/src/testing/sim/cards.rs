//! The cards of the simulated node, and the instances on them.

use super::boards::{SimBoard, slot};
use crate::accelerator::{Card, CardPlace, GpuHealth, Instance};
use crate::config::ResourceType;
use crate::id::{GpuUuid, ResourceId};

pub(super) struct SimGpu {
    pub(super) index: u32,
    pub(super) uuid: GpuUuid,
    pub(super) board: SimBoard,
    pub(super) mig: bool,
    pub(super) lost: bool,
    pub(super) sick: bool,
    pub(super) health: GpuHealth,
    pub(super) reason: Option<String>,
    pub(super) instances: Vec<SimInstance>,
    /// Who has the whole of it, and what it is for.
    pub(super) whole: Option<(ResourceId, ResourceType)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SimInstance {
    pub(super) profile: String,
    pub(super) start: u32,
    pub(super) size: u32,
    /// What it has beside its slots, as it is claimed.
    pub(super) units: Vec<String>,
    pub(super) memory: crate::units::Bytes,
    pub(super) uuid: String,
    /// Whom it was made for; none for somebody else's.
    pub(super) made_for: Option<ResourceId>,
    /// Who uses one that was there before.
    pub(super) lent_to: Option<ResourceId>,
}

impl SimInstance {
    pub(super) fn parts(&self) -> Vec<String> {
        let slots = (self.start..self.start + self.size).map(slot);
        slots.chain(self.units.iter().cloned()).collect()
    }

    pub(super) fn user(&self) -> Option<ResourceId> {
        self.made_for.or(self.lent_to)
    }
}

impl SimGpu {
    pub(super) fn pci_address(&self) -> String {
        format!("0000:{:02x}:00.0", 0x3b + self.index)
    }

    pub(super) fn is_free(&self, start: u32, size: u32) -> bool {
        self.instances
            .iter()
            .all(|i| start + size <= i.start || i.start + i.size <= start)
    }

    pub(super) fn seen(&self) -> Card {
        Card {
            index: self.index,
            uuid: self.uuid.clone(),
            model: self.board.model.to_owned(),
            pci_address: self.pci_address(),
            memory: Some(self.board.memory),
            mig_enabled: self.mig,
            parts: self.board.parts(),
            instances: self.instances.iter().map(seen).collect(),
            health: self.health,
            reason: self.reason.clone(),
            place: CardPlace {
                driver: Some("sim".to_owned()),
                numa_node: Some(0),
                ..CardPlace::default()
            },
        }
    }
}

pub(super) fn seen(instance: &SimInstance) -> Instance {
    Instance {
        profile: instance.profile.clone(),
        start: instance.start,
        size: instance.size,
        uuid: instance.uuid.clone(),
        ours: instance.made_for.is_some(),
    }
}

/// The same number always gives the same UUID, so that a simulated node has its cards again when it is
/// made again.
pub(super) fn uuid_of(number: u128) -> uuid::Uuid {
    let mixed =
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) ^ 0x5c0f_1de5_0000_0000_a11c_e000;
    uuid::Builder::from_random_bytes(mixed.to_be_bytes()).into_uuid()
}

pub(super) fn make(
    card: &mut SimGpu,
    profile: &str,
    start: u32,
    made_for: Option<ResourceId>,
    made: u128,
) -> Option<SimInstance> {
    let profile = card.board.profile(profile)?.clone();
    let taken: Vec<&String> = card.instances.iter().flat_map(|i| &i.units).collect();
    let units = card
        .board
        .units_for(&profile, |part| taken.iter().any(|t| *t == part))?;
    let of_its_kind = card
        .instances
        .iter()
        .filter(|i| i.profile == profile.name)
        .count();
    let fits = profile.starts.contains(&start)
        && card.is_free(start, profile.size)
        && of_its_kind < profile.max as usize;
    if !fits {
        return None;
    }
    let instance = SimInstance {
        profile: profile.name,
        start,
        size: profile.size,
        units,
        memory: profile.memory,
        uuid: format!("MIG-{}", uuid_of(made)),
        made_for,
        lent_to: None,
    };
    card.instances.push(instance.clone());
    Some(instance)
}
