//! Hands whole cards to machines, and takes them back.
//!
//! libvirt rebinds the drivers (managed host devices). Before: nothing may stand in the way. After: the
//! functions are back on their drivers, nobody holds them, and NVML answers, or the card is out of use.

use std::thread;
use std::time::{Duration, Instant};

use hwm_core::accelerator::{Attachment, DeviceGrant};
use hwm_core::backend::{BackendError, BackendErrorKind};
use hwm_core::id::{GpuUuid, ResourceId};

use crate::engine::{Answer, Engine, YIELD, unwritten};
use crate::journal::{CardEntry, HandoverEntry};
use crate::sysfs::{Function, Holder};

impl Engine {
    /// Why a card cannot be passed through, as far as that can be told without touching it.
    pub(crate) fn no_passthrough(&self, entry: &CardEntry, function: Option<&Function>) -> Option<String> {
        let label = format!("{} (index {})", entry.uuid, entry.index);
        let Some(function) = function else {
            return Some(format!("{label} is not on the PCI bus"));
        };
        let Some(group) = function.group else {
            return Some(format!(
                "{label} is in no IOMMU group, so it cannot be passed through"
            ));
        };
        if function.virtual_functions > 0 {
            return Some(format!(
                "{label} has {} virtual functions switched on: switch them off (`sriov-manage -d {}`) to pass the whole \
                 card through",
                function.virtual_functions, function.address
            ));
        }
        match self.members(function, group) {
            Ok(_) => None,
            Err(why) => Some(format!("{label}: {why}")),
        }
    }

    /// The functions that go with a card: its own, all of them. Others of the group must be out of the way.
    fn members(&self, function: &Function, group: u32) -> Result<Vec<Function>, String> {
        let all = self
            .host
            .group(group)
            .ok_or_else(|| format!("IOMMU group {group} cannot be read"))?;
        let slot = |address: &str| address.rsplit_once('.').map(|(s, _)| s.to_owned());
        let (own, others): (Vec<Function>, Vec<Function>) = all
            .into_iter()
            .filter(|f| !f.is_bridge())
            .partition(|f| slot(&f.address) == slot(&function.address));
        let bound: Vec<String> = others
            .iter()
            .filter(|f| !f.on_vfio())
            .filter_map(|f| Some(format!("{} (driver {})", f.address, f.driver.as_deref()?)))
            .collect();
        if bound.is_empty() {
            return Ok(own);
        }
        Err(format!(
            "IOMMU group {group} also holds {}, which the host uses: a group goes to a machine as a whole, so bind them to \
             vfio-pci or put the card into a slot with a group of its own",
            bound.join(", ")
        ))
    }

    /// Makes a card ready for a machine. From now until libvirt has it, NVML stays closed.
    pub(crate) fn hand_over(
        &mut self,
        owner: ResourceId,
        generation: u64,
        card: &str,
    ) -> Answer<DeviceGrant> {
        let doing = format!("handing {card} to a machine");
        let conflict =
            |message: String| BackendError::new(BackendErrorKind::Conflict, doing.clone(), message);
        self.fence(owner, generation)?;
        let Some(entry) = self.card(card).cloned() else {
            return Err(BackendError::new(
                BackendErrorKind::NotFound,
                doing,
                "the card is not on this node",
            ));
        };
        if let Some(quarantine) = self.quarantines.get(card) {
            return Err(conflict(format!("the card is out of use: {}", quarantine.reason)));
        }
        let function = self.host.function(&entry.address);
        if let Some(known) = self.handovers.get(card).cloned() {
            if known.owner != owner {
                return Err(conflict(format!("{} has it", known.owner)));
            }
            let functions: Vec<String> = known.functions.into_iter().map(|(f, _)| f).collect();
            if function.as_ref().is_some_and(Function::on_vfio) {
                return Ok(grant(&entry, functions));
            }
            // Granted a moment ago and not taken yet: NVML is closed for it.
            if self.yielding.contains_key(card) && self.session.is_none() {
                self.is_let_go(&entry, &functions).map_err(conflict)?;
                self.yielding.insert(card.to_owned(), Instant::now() + YIELD);
                return Ok(grant(&entry, functions));
            }
        }
        if let Some(why) = self.no_passthrough(&entry, function.as_ref()) {
            return Err(BackendError::new(BackendErrorKind::Unsupported, doing, why));
        }
        let (Some(function), true) = (function, self.host.has_iommu()) else {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                doing,
                "this host has no IOMMU that is on",
            ));
        };
        let group = function.group.unwrap_or_default();
        let members = self.members(&function, group).map_err(conflict)?;
        self.is_idle(&entry, &doing)?;
        let handover = HandoverEntry {
            card: card.to_owned(),
            owner,
            generation,
            boot: self.boot.clone(),
            managed: self.seen(card).is_some(),
            functions: members
                .iter()
                .map(|f| (f.address.clone(), f.driver.clone()))
                .collect(),
        };
        self.journal.put(&handover).map_err(|e| unwritten(&doing, &e))?;
        self.handovers.insert(card.to_owned(), handover);
        self.yielding.insert(card.to_owned(), Instant::now() + YIELD);
        self.close();
        let functions: Vec<String> = members.into_iter().map(|f| f.address).collect();
        if let Err(why) = self.is_let_go(&entry, &functions) {
            self.yielding.remove(card);
            self.drop_handover(card, &doing)?;
            self.refresh();
            return Err(conflict(why));
        }
        self.publish();
        Ok(grant(&entry, functions))
    }

    /// What NVML knows against it: instances, processes, persistence mode.
    fn is_idle(&mut self, entry: &CardEntry, doing: &str) -> Answer<()> {
        if self.seen(&entry.uuid).is_none() {
            return Ok(());
        }
        let slices = self.reread(&entry.uuid)?;
        let conflict = |message: String| Err(BackendError::new(BackendErrorKind::Conflict, doing, message));
        if let Some(slice) = slices.first() {
            return conflict(format!("MIG instance {} is on the card", slice.instance.id));
        }
        if self.seen(&entry.uuid).is_some_and(|s| s.mig == Some(true)) {
            return conflict(
                "the card is in MIG mode: the machine would find it so; switch MIG off first".to_owned(),
            );
        }
        let persistent = self.with_device(&entry.uuid, "asking", |_, d| {
            crate::nvml::read::optional(d.is_in_persistent_mode())
        })?;
        if persistent == Some(true) {
            return conflict(format!(
                "persistence mode holds the card: switch it off (`nvidia-smi -i {} -pm 0`, or stop nvidia-persistenced)",
                entry.index
            ));
        }
        let running = self.with_device(&entry.uuid, "asking who uses", |_, d| {
            let mut pids: Vec<u32> = d
                .running_compute_processes()?
                .into_iter()
                .map(|p| p.pid)
                .collect();
            pids.extend(
                crate::nvml::read::optional(d.running_graphics_processes())?
                    .into_iter()
                    .flatten()
                    .map(|p| p.pid),
            );
            Ok(pids)
        })?;
        if running.is_empty() {
            return Ok(());
        }
        let pids: Vec<String> = running.iter().map(u32::to_string).collect();
        conflict(format!("pid {} uses the card", pids.join(", ")))
    }

    /// Whether nobody has a device file of the card or of a function that goes with it open, this process included.
    fn is_let_go(&self, entry: &CardEntry, functions: &[String]) -> Result<(), String> {
        let mut nodes: Vec<String> = entry.minor.iter().map(|m| format!("nvidia{m}")).collect();
        for function in functions {
            nodes.extend(self.host.nodes(function));
            let group = self.host.function(function).and_then(|f| f.group);
            nodes.extend(group.map(|g| format!("vfio/{g}")));
        }
        let holders = self.host.holders(&nodes);
        if !holders.is_empty() {
            return Err(list(&holders));
        }
        match self.host.held_by_us(&nodes) {
            None => Ok(()),
            Some(node) => Err(format!(
                "/dev/{node} is open in hwm itself, outside the session that it closed"
            )),
        }
    }

    /// Takes a card back from a machine, and proves it.
    pub(crate) fn take_back(
        &mut self,
        owner: ResourceId,
        generation: u64,
        card: &str,
        limit: Duration,
    ) -> Answer<()> {
        self.fence(owner, generation)?;
        let Some(handover) = self.handovers.get(card).filter(|h| h.owner == owner).cloned() else {
            return Ok(());
        };
        let doing = format!("taking {card} back");
        let deadline = Instant::now() + limit;
        self.yielding.remove(card);
        loop {
            match self.is_back(&handover) {
                Ok(()) => {
                    self.drop_handover(card, &doing)?;
                    self.refresh();
                    return Ok(());
                }
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
                Err(why) => {
                    self.quarantine(card, why.clone());
                    self.refresh();
                    return Err(BackendError::new(BackendErrorKind::Failed, doing, why));
                }
            }
        }
    }

    /// Whether a card is as it was before it was handed over; else why not.
    fn is_back(&mut self, handover: &HandoverEntry) -> Result<(), String> {
        // A boot puts every function back; what it is on now is what the host wants.
        let same_boot = handover.boot == self.boot;
        for (address, driver) in &handover.functions {
            let Some(function) = self.host.function(address) else {
                return Err(format!("{address} is not on the PCI bus any more"));
            };
            if let Some(group) = function.group {
                let holders = self.host.holders(&[format!("vfio/{group}")]);
                if !holders.is_empty() {
                    return Err(format!("{address} is still held: {}", list(&holders)));
                }
            }
            if same_boot && function.driver != *driver {
                if function.driver.is_none() && driver.is_some() {
                    self.host.probe_driver(address);
                }
                return Err(format!(
                    "{address} is on {} and not back on {}",
                    function.driver.as_deref().unwrap_or("no driver"),
                    driver.as_deref().unwrap_or("none")
                ));
            }
        }
        if handover.managed {
            if self.seen(&handover.card).is_none() {
                // A session knows the cards that there were when it was opened.
                self.close();
            }
            self.refresh();
            if self.seen(&handover.card).is_none() {
                return Err("its driver has it, and NVML does not see it".to_owned());
            }
        }
        Ok(())
    }

    fn drop_handover(&mut self, card: &str, doing: &str) -> Answer<()> {
        if let Some(handover) = self.handovers.get(card).cloned() {
            self.journal.remove(&handover).map_err(|e| unwritten(doing, &e))?;
            self.handovers.remove(card);
        }
        Ok(())
    }

    /// Looks at a quarantined card again.
    pub(crate) fn recover(&mut self, card: &str) -> Answer<()> {
        let doing = format!("recovering {card}");
        let failed = |message: String| BackendError::new(BackendErrorKind::Failed, doing.clone(), message);
        let Some(entry) = self.card(card).cloned() else {
            return Err(BackendError::new(
                BackendErrorKind::NotFound,
                doing,
                "the card is not on this node",
            ));
        };
        self.refresh();
        if let Some(handover) = self.handovers.get(card).cloned()
            && self.quarantines.contains_key(card)
        {
            self.is_back(&handover).map_err(failed)?;
            self.drop_handover(card, &doing)?;
        }
        let Some(function) = self.host.function(&entry.address) else {
            return Err(failed(format!("{} is not on the PCI bus", entry.address)));
        };
        if function.driver.as_deref() == Some("nvidia") {
            if self.seen(card).is_none() {
                return Err(failed("NVML does not see it".to_owned()));
            }
            self.recover_slices(card)?;
        }
        if let Some(quarantine) = self.quarantines.get(card).cloned() {
            self.journal
                .remove(&quarantine)
                .map_err(|e| unwritten(&doing, &e))?;
            self.quarantines.remove(card);
        }
        self.refresh();
        let shared = self.shared.read().map(|n| n.clone()).unwrap_or_default();
        match shared
            .cards
            .iter()
            .find(|c| c.uuid == card)
            .and_then(crate::node::CardState::unusable)
        {
            None => Ok(()),
            Some(why) => Err(failed(why)),
        }
    }
}

fn grant(entry: &CardEntry, functions: Vec<String>) -> DeviceGrant {
    DeviceGrant {
        card: GpuUuid::new(&*entry.uuid),
        uuid: entry.uuid.clone(),
        memory: entry.memory.map(hwm_core::units::Bytes),
        attachment: Attachment::Vfio { functions },
    }
}

/// Names files and who has them open: `/dev/nvidia0 is open in pid 12 (python3)`.
fn list(holders: &[Holder]) -> String {
    let files = holders.chunk_by(|a, b| a.node == b.node).map(|same| {
        let each: Vec<String> = same
            .iter()
            .map(|h| format!("pid {} ({})", h.pid, h.command))
            .collect();
        format!("/dev/{} is open in {}", same[0].node, each.join(", "))
    });
    files.collect::<Vec<_>>().join("; ")
}
