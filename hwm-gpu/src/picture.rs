//! The picture of the node that plans and inventories are made from: what NVML saw, what the kernel knows, and
//! what the journal says, put together.

use std::sync::Arc;

use hwm_core::accelerator::{AcceleratorEvent, GpuHealth};
use hwm_core::id::GpuUuid;
use hwm_core::units::Bytes;

use crate::engine::Engine;
use crate::geometry::{Occupancy, Slot};
use crate::journal::{CardEntry, SliceEntry, SliceStage};
use crate::node::{self, CardState, InstanceState, Look, MigMode, Node, Owner, VgpuRoute};
use crate::nvml::read::{SeenCard, SeenSlice};
use crate::options::Adopt;
use crate::sysfs::Function;

impl Engine {
    /// Makes the picture that plans and inventories are made from, and tells which cards went and came.
    pub(crate) fn publish(&mut self) {
        for event in self.replace_picture() {
            self.tell(&event);
        }
    }

    /// The same, with an event that says why a card went in place of that it went.
    pub(crate) fn publish_because(&mut self, event: &AcceleratorEvent) {
        for other in self.replace_picture() {
            let same = other.card == event.card && other.fatal;
            self.tell(if same { event } else { &other });
        }
    }

    fn replace_picture(&mut self) -> Vec<AcceleratorEvent> {
        let functions = self.host.cards(&self.options.also);
        self.register(&functions);
        let mut node = Node {
            cards: Vec::new(),
            reason: self.reason(),
            driver: self.driver.clone(),
            cuda: self.cuda,
            iommu: self.host.has_iommu(),
            may_switch: self.options.switch_mig,
            look: Look::default(),
        };
        let entries: Vec<CardEntry> = self.cards.values().cloned().collect();
        for entry in entries {
            let function = functions.iter().find(|f| f.address == entry.address);
            node.cards.push(self.state(&entry, function));
        }
        node.cards.sort_by_key(|c| c.index);
        let old = self.shared.read().map(|n| n.clone()).unwrap_or_default();
        let mut events = Vec::new();
        for card in &node.cards {
            let Some(before) = old.cards.iter().find(|c| c.uuid == card.uuid) else {
                continue;
            };
            let mut tell = |fatal, message| {
                events.push(AcceleratorEvent {
                    card: GpuUuid::new(&*card.uuid),
                    instance: None,
                    fatal,
                    message,
                });
            };
            let well = |h| matches!(h, GpuHealth::Ok | GpuHealth::Degraded);
            if well(before.health) != well(card.health) {
                let back = || format!("{} is back", card.label());
                tell(!well(card.health), card.unusable().unwrap_or_else(back));
            }
            if before.hot != card.hot {
                let does = if card.hot { "slows" } else { "no longer slows" };
                tell(false, format!("heat {does} {} down", card.label()));
            }
        }
        if let Ok(mut shared) = self.shared.write() {
            *shared = Arc::new(node);
        }
        events
    }

    fn reason(&self) -> Option<String> {
        let mut reasons: Vec<String> = self.trouble.iter().cloned().collect();
        reasons.extend(self.troubles.iter().cloned());
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Gives every card an index and parts that it keeps.
    fn register(&mut self, functions: &[Function]) {
        let mut new: Vec<CardEntry> = Vec::new();
        for seen in self.seen.values() {
            if let Some(known) = self.cards.get(&seen.uuid) {
                let moved = known.address != seen.address || known.minor != seen.minor;
                // A card that was first seen with MIG off may have more parts than were known then.
                let parts = node::parts(seen.geometry.as_deref());
                let grown = seen.geometry.is_some() && known.parts != parts;
                if !moved && !grown {
                    continue;
                }
                let parts = if grown { parts } else { known.parts.clone() };
                new.push(CardEntry {
                    address: seen.address.clone(),
                    minor: seen.minor,
                    parts,
                    ..known.clone()
                });
            } else {
                new.push(CardEntry {
                    index: u32::MAX,
                    uuid: seen.uuid.clone(),
                    address: seen.address.clone(),
                    model: seen.model.clone(),
                    memory: seen.memory.map(|m| m.0),
                    minor: seen.minor,
                    parts: node::parts(seen.geometry.as_deref()),
                });
            }
        }
        for function in functions {
            let known = self
                .cards
                .values()
                .chain(&new)
                .any(|c| c.address == function.address);
            // While NVML does not answer, a card of the nvidia driver is not known by its UUID.
            if !known && function.driver.as_deref() != Some("nvidia") {
                new.push(CardEntry {
                    index: u32::MAX,
                    uuid: format!("PCI-{}", function.address),
                    address: function.address.clone(),
                    model: format!(
                        "PCI device {}:{}",
                        function.vendor.trim_start_matches("0x"),
                        function.device.trim_start_matches("0x")
                    ),
                    memory: None,
                    minor: None,
                    parts: node::parts(None),
                });
            }
        }
        new.sort_by(|a, b| a.address.cmp(&b.address));
        for mut entry in new {
            if entry.index == u32::MAX {
                // A card that was known by its address alone has shown its UUID.
                let alias = format!("PCI-{}", entry.address);
                let index = self.cards.get(&alias).map(|c| c.index);
                if let Some(alias) = self.cards.remove(&alias)
                    && let Err(error) = self.journal.remove(&alias)
                {
                    tracing::warn!(%error, card = alias.uuid, "its old name stays in the journal");
                }
                let next = self.cards.values().map(|c| c.index + 1).max().unwrap_or(0);
                entry.index = index.unwrap_or(next);
            }
            if let Err(error) = self.journal.put(&entry) {
                tracing::warn!(%error, card = entry.uuid, "its index may be another after a restart");
            }
            self.cards.insert(entry.uuid.clone(), entry);
        }
    }

    fn state(&self, entry: &CardEntry, function: Option<&Function>) -> CardState {
        let seen = self.seen.get(&entry.uuid);
        let mut doubtful = Vec::new();
        let mut instances = Vec::new();
        let geometry = seen.and_then(|s| s.geometry.clone());
        if let (Some(seen), Some(geometry)) = (seen, &geometry) {
            for slice in &seen.instances {
                let i = &slice.instance;
                let Some(profile) = geometry.profiles().iter().position(|p| p.id == i.profile) else {
                    continue;
                };
                let slot = Slot {
                    profile,
                    start: i.start as u8,
                };
                instances.push(InstanceState {
                    id: i.id,
                    slot,
                    uuid: slice.uuid.clone(),
                    owner: self.owner_of(&entry.uuid, slice),
                });
            }
            for slice in self.slices.values().filter(|s| s.card == entry.uuid) {
                if let SliceStage::Doubtful { reason } = &slice.stage {
                    let profile = geometry.profiles().iter().position(|p| p.id == slice.profile);
                    let taken = profile.map_or_else(Occupancy::default, |profile| {
                        geometry.with(
                            Occupancy::default(),
                            Slot {
                                profile,
                                start: slice.start as u8,
                            },
                        )
                    });
                    doubtful.push((taken, format!("{} at slot {}: {reason}", slice.name, slice.start)));
                }
            }
        }
        let (health, reason) = self.health(entry, seen, function, &doubtful);
        CardState {
            index: entry.index,
            uuid: entry.uuid.clone(),
            address: entry.address.clone(),
            model: entry.model.clone(),
            memory: entry.memory.map(Bytes),
            visible: seen.is_some(),
            mig: match seen.and_then(|s| s.mig.map(|on| (on, s.live))) {
                None => MigMode::None,
                Some((true, _)) => MigMode::On,
                Some((false, live)) => MigMode::Off { live },
            },
            geometry,
            parts: entry.parts.clone(),
            instances,
            doubtful,
            health,
            reason,
            hot: seen.and_then(|s| s.hot).unwrap_or(false),
            numa: function.and_then(|f| f.numa),
            path: function.map(|f| f.path.clone()).unwrap_or_default(),
            nvlinks: seen.map(|s| s.nvlinks.clone()).unwrap_or_default(),
            driver: function.and_then(|f| f.driver.clone()),
            vgpu: self.vgpu_route(&entry.address),
            no_passthrough: self.no_passthrough(entry, function),
            handed_to: self.handovers.get(&entry.uuid).map(|h| h.owner),
        }
    }

    fn owner_of(&self, card: &str, slice: &SeenSlice) -> Owner {
        let i = &slice.instance;
        let ours = self
            .slices
            .get(&(card.to_owned(), i.start))
            .filter(|e| self.is_ours(e, slice));
        match (ours, &self.options.adopt) {
            (Some(entry), _) => Owner::Ours(entry.owner),
            (None, Adopt::All) => Owner::Adopted,
            (None, Adopt::These(uuids)) if slice.uuid.as_ref().is_some_and(|u| uuids.contains(u)) => {
                Owner::Adopted
            }
            (None, Adopt::None | Adopt::These(_)) => Owner::Foreign,
        }
    }

    /// Whether an instance is the one that an entry says was made.
    pub(crate) fn is_ours(&self, entry: &SliceEntry, slice: &SeenSlice) -> bool {
        let i = &slice.instance;
        let place = (entry.profile, entry.start, entry.size) == (i.profile, i.start, i.size);
        match &entry.stage {
            SliceStage::Made { instance, uuid } => {
                // A UUID is new each time an instance is made, so another one is another instance.
                let same = uuid.is_none() || slice.uuid.is_none() || *uuid == slice.uuid;
                place && entry.boot == self.boot && *instance == i.id && same
            }
            SliceStage::Intended | SliceStage::Doubtful { .. } => false,
        }
    }

    fn health(
        &self,
        entry: &CardEntry,
        seen: Option<&SeenCard>,
        function: Option<&Function>,
        doubtful: &[(Occupancy, String)],
    ) -> (GpuHealth, Option<String>) {
        if let Some(quarantine) = self.quarantines.get(&entry.uuid) {
            return (GpuHealth::Quarantined, Some(quarantine.reason.clone()));
        }
        if let Some(reason) = self.unreadable.get(&entry.uuid) {
            return (GpuHealth::Quarantined, Some(reason.clone()));
        }
        if let Some(seen) = seen {
            let mut reasons: Vec<&str> = doubtful.iter().map(|(_, r)| r.as_str()).collect();
            reasons.extend((seen.hot == Some(true)).then_some("heat slows it down"));
            if reasons.is_empty() {
                return (GpuHealth::Ok, None);
            }
            return (GpuHealth::Degraded, Some(reasons.join("; ")));
        }
        let on_nvidia = function.is_some_and(|f| f.driver.as_deref() == Some("nvidia"));
        match function {
            // Without NVML nothing can be said of a card that only NVML was seen to know.
            None if self.trouble.is_some() => (GpuHealth::Degraded, self.trouble.clone()),
            None => (
                GpuHealth::Lost,
                Some("it is not on the PCI bus any more".to_owned()),
            ),
            Some(_) if on_nvidia && self.trouble.is_some() => (GpuHealth::Degraded, self.trouble.clone()),
            Some(_) if on_nvidia => (
                GpuHealth::Lost,
                Some(format!("NVML does not see it{}", self.lost_detail())),
            ),
            Some(_) => (GpuHealth::Ok, None),
        }
    }

    fn lost_detail(&self) -> String {
        self.troubles.iter().map(|t| format!("; {t}")).collect()
    }

    fn vgpu_route(&self, address: &str) -> Option<VgpuRoute> {
        let functions = self.host.virtual_functions(address);
        if functions
            .iter()
            .any(|f| self.host.device(f).join("nvidia/current_vgpu_type").exists())
        {
            return Some(VgpuRoute::VirtualFunction);
        }
        self.host
            .device(address)
            .join("mdev_supported_types")
            .is_dir()
            .then_some(VgpuRoute::Mdev)
    }
}
