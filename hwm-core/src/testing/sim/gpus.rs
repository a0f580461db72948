//! The GPUs of the simulated node.

use tokio::sync::broadcast;

use super::Holdings;
use super::boards::SimCard;
use super::cards::{SimGpu, SimInstance, make, seen, uuid_of};
use super::plan::Candidate;
use crate::accelerator::{
    AcceleratorEvent, Attachment, DeviceGrant, GpuHealth, Inventory, Placement, PlacementKind,
};
use crate::backend::{BackendError, BackendErrorKind, Result, Workload};
use crate::config::ResourceType;
use crate::id::{GpuUuid, ResourceId};
use crate::metrics::GpuMetrics;
use crate::units::Timestamp;

pub(super) struct Gpus {
    cards: Vec<SimGpu>,
    mig_on_demand: bool,
    pub(super) events: broadcast::Sender<AcceleratorEvent>,
    pub(super) reports: Vec<AcceleratorEvent>,
    made: u128,
}

impl Gpus {
    pub(super) fn new(cards: Vec<SimCard>, mig_on_demand: bool) -> Self {
        let cards = cards.into_iter().zip(0..).map(|(card, index)| SimGpu {
            index,
            uuid: GpuUuid::new(format!("GPU-{}", uuid_of(u128::from(index) + 1))),
            board: card.board,
            mig: card.mig,
            lost: false,
            sick: false,
            health: GpuHealth::Ok,
            reason: None,
            instances: Vec::new(),
            whole: None,
        });
        Self {
            cards: cards.collect(),
            mig_on_demand,
            events: broadcast::Sender::new(64),
            reports: Vec::new(),
            made: 1 << 32,
        }
    }

    pub(super) fn uuid(&self, index: u32) -> Option<GpuUuid> {
        self.cards
            .iter()
            .find(|c| c.index == index)
            .map(|c| c.uuid.clone())
    }

    pub(super) fn inventory(&self) -> Inventory {
        Inventory {
            cards: self.cards.iter().map(SimGpu::seen).collect(),
            reason: self
                .cards
                .is_empty()
                .then(|| "the simulated node has no GPUs".to_owned()),
            driver: (!self.cards.is_empty()).then(|| "sim".to_owned()),
            cuda: None,
        }
    }

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let candidate = |card: &SimGpu| Candidate {
            card: card.seen(),
            board: card.board.clone(),
            instances: card
                .instances
                .iter()
                .map(|i| (seen(i), i.parts(), i.memory))
                .collect(),
            switchable: self.mig_on_demand && card.board.live_mode_switch,
        };
        self.cards.iter().map(candidate).collect()
    }

    fn card(&mut self, uuid: &GpuUuid, doing: &str) -> Result<&mut SimGpu> {
        let card = self.cards.iter_mut().find(|c| c.uuid == *uuid);
        card.ok_or_else(|| {
            BackendError::new(
                BackendErrorKind::NotFound,
                doing,
                format!("there is no card {uuid}"),
            )
        })
    }

    pub(super) fn prepare(
        &mut self,
        owner: ResourceId,
        placement: &Placement,
        to: ResourceType,
        doing: &str,
    ) -> Result<DeviceGrant> {
        let failed = |message: String| Err(BackendError::new(BackendErrorKind::Failed, doing, message));
        self.made += 1;
        let (made, on_demand) = (self.made, self.mig_on_demand);
        let card = self.card(&placement.card, doing)?;
        if matches!(card.health, GpuHealth::Lost | GpuHealth::Quarantined) {
            return failed(format!("the card is {:?}", card.health).to_lowercase());
        }
        let switchable = on_demand && card.board.live_mode_switch;
        let pci = card.pci_address();
        let instance = match &placement.kind {
            PlacementKind::Whole => {
                if let Some((other, _)) = card.whole.filter(|(other, _)| *other != owner) {
                    return in_use(other, doing);
                }
                if let Some(other) = card.instances.first() {
                    return failed(format!("MIG instance {} is on the card", other.uuid));
                }
                if card.mig {
                    if !switchable {
                        return failed("the card is in MIG mode".to_owned());
                    }
                    card.mig = false;
                }
                card.whole = Some((owner, to));
                let stem = pci.trim_end_matches('0');
                return Ok(DeviceGrant {
                    card: card.uuid.clone(),
                    uuid: card.uuid.to_string(),
                    memory: Some(card.board.memory),
                    attachment: if to.is_container() {
                        Attachment::Runtime
                    } else {
                        Attachment::Vfio {
                            functions: vec![pci.clone(), format!("{stem}1")],
                        }
                    },
                });
            }
            PlacementKind::Existing { uuid } => {
                let Some(instance) = card.instances.iter_mut().find(|i| i.uuid == *uuid) else {
                    return Err(BackendError::new(
                        BackendErrorKind::NotFound,
                        doing,
                        format!("there is no MIG instance {uuid}"),
                    ));
                };
                if let Some(other) = instance.user().filter(|other| *other != owner) {
                    return in_use(other, doing);
                }
                if instance.made_for.is_none() {
                    instance.lent_to = Some(owner);
                }
                instance.clone()
            }
            PlacementKind::Slice { profile, start, size } => {
                if let Some((other, _)) = card.whole {
                    return in_use(other, doing);
                }
                if !card.mig {
                    if !switchable {
                        return failed(
                            "MIG mode is off, and switching it needs a reset of the card".to_owned(),
                        );
                    }
                    card.mig = true;
                }
                let at = |i: &&SimInstance| i.profile == *profile && i.start == *start && i.size == *size;
                match card.instances.iter().find(at) {
                    Some(there) if there.made_for == Some(owner) => there.clone(),
                    _ => make(card, profile, *start, Some(owner), made).ok_or_else(|| {
                        let message = format!("insufficient resources for {profile} at slot {start}");
                        BackendError::new(BackendErrorKind::Failed, doing, message)
                    })?,
                }
            }
        };
        let function = format!("{}1.{}", pci.trim_end_matches("0.0"), instance.start % 8);
        Ok(DeviceGrant {
            card: placement.card.clone(),
            uuid: instance.uuid,
            memory: Some(instance.memory),
            attachment: if to.is_container() {
                Attachment::Runtime
            } else {
                Attachment::VirtualFunction { function }
            },
        })
    }

    /// The device that `owner` has at a place.
    pub(super) fn device_at(&self, owner: ResourceId, placement: &Placement) -> Option<String> {
        let card = self.cards.iter().find(|c| c.uuid == placement.card)?;
        match &placement.kind {
            PlacementKind::Whole => card
                .whole
                .filter(|(o, _)| *o == owner)
                .map(|_| card.uuid.to_string()),
            PlacementKind::Existing { uuid } => {
                let is_its = |i: &&SimInstance| i.uuid == *uuid && i.user() == Some(owner);
                card.instances.iter().find(is_its).map(|i| i.uuid.clone())
            }
            PlacementKind::Slice { profile, start, .. } => {
                let is_its = |i: &&SimInstance| {
                    i.profile == *profile && i.start == *start && i.made_for == Some(owner)
                };
                card.instances.iter().find(is_its).map(|i| i.uuid.clone())
            }
        }
    }

    pub(super) fn release(&mut self, owner: ResourceId, placement: &Placement) {
        let Some(device) = self.device_at(owner, placement) else {
            return;
        };
        let Some(card) = self.cards.iter_mut().find(|c| c.uuid == placement.card) else {
            return;
        };
        match placement.kind {
            PlacementKind::Whole => card.whole = None,
            PlacementKind::Existing { .. } => {
                for instance in card.instances.iter_mut().filter(|i| i.uuid == device) {
                    instance.lent_to = None;
                }
            }
            PlacementKind::Slice { .. } => card.instances.retain(|i| i.uuid != device),
        }
    }

    /// Checks that a workload's grants are what was prepared for it. Cards of another node's inventory are
    /// not judged.
    pub(super) fn may_use(&self, owner: ResourceId, workload: &Workload, doing: &str) -> Result<()> {
        for grant in &workload.grants {
            let Some(card) = self.cards.iter().find(|c| c.uuid == grant.card) else {
                continue;
            };
            let is_whole = grant.uuid == card.uuid.as_str() && card.whole.is_some_and(|(o, _)| o == owner);
            let is_slice = |i: &SimInstance| i.uuid == grant.uuid && i.user() == Some(owner);
            if card.lost || !(is_whole || card.instances.iter().any(is_slice)) {
                let message = format!("device {} is not there or not prepared for it", grant.uuid);
                return Err(BackendError::new(BackendErrorKind::Failed, doing, message));
            }
        }
        Ok(())
    }

    pub(super) fn hold(&self, holdings: &mut Holdings) {
        for card in &self.cards {
            holdings
                .devices
                .extend(card.whole.map(|(owner, _)| (owner, card.uuid.to_string())));
            for instance in &card.instances {
                holdings
                    .devices
                    .extend(instance.user().map(|owner| (owner, instance.uuid.clone())));
                if instance.made_for.is_some() {
                    holdings.instances.insert(instance.uuid.clone());
                }
            }
        }
    }

    /// MIG mode outlives a reboot; instances and who had what do not.
    pub(super) fn reboot(&mut self) {
        for card in &mut self.cards {
            card.instances.clear();
            card.whole = None;
        }
    }

    pub(super) fn report(&mut self, index: u32, fatal: bool, message: &str) {
        let Some(card) = self.cards.iter_mut().find(|c| c.index == index) else {
            return;
        };
        if fatal {
            card.health = if card.lost {
                GpuHealth::Lost
            } else {
                GpuHealth::Quarantined
            };
            card.reason = Some(message.to_owned());
        }
        let event = AcceleratorEvent {
            card: card.uuid.clone(),
            instance: None,
            fatal,
            message: message.to_owned(),
        };
        self.reports.push(event.clone());
        // Without a listener nobody is told.
        let _ = self.events.send(event);
    }

    pub(super) fn set_lost(&mut self, index: u32, lost: bool) {
        if let Some(card) = self.cards.iter_mut().find(|c| c.index == index) {
            card.lost = lost;
        }
        let message = if lost {
            "XID 79: GPU has fallen off the bus"
        } else {
            "GPU is back: recover it"
        };
        self.report(index, true, message);
    }

    pub(super) fn set_sick(&mut self, index: u32, sick: bool) {
        if let Some(card) = self.cards.iter_mut().find(|c| c.index == index) {
            card.sick = sick;
        }
    }

    pub(super) fn plant(&mut self, index: u32, profile: &str, start: u32) -> Option<String> {
        self.made += 1;
        let made = self.made;
        let card = self.cards.iter_mut().find(|c| c.index == index && c.mig)?;
        make(card, profile, start, None, made).map(|i| i.uuid)
    }

    pub(super) fn recover(&mut self, uuid: &GpuUuid, doing: &str) -> Result<()> {
        let card = self.card(uuid, doing)?;
        if card.lost || card.sick {
            let message = if card.lost {
                "the card is still gone"
            } else {
                "the card is still sick"
            };
            return Err(BackendError::new(BackendErrorKind::Failed, doing, message));
        }
        card.health = GpuHealth::Ok;
        card.reason = None;
        Ok(())
    }

    pub(super) fn measure(&self, uuid: &str, now: Timestamp) -> Option<GpuMetrics> {
        let wave = (now.as_millis() as f64 / 9000.0).sin();
        for card in &self.cards {
            if card.uuid.as_str() == uuid {
                // The driver does not see a card that a machine has.
                let seen = card.whole.is_none_or(|(_, to)| to.is_container()) && !card.lost;
                let busy = if card.whole.is_some() {
                    60.0 + 30.0 * wave
                } else {
                    0.0
                };
                let used = card.board.memory.as_mb() as f64 * busy / 200.0;
                return Some(GpuMetrics {
                    enabled: true,
                    device_id: Some(uuid.to_owned()),
                    usage_percent: (seen && !card.mig).then(|| busy.round()),
                    memory_used_mb: seen.then_some(used as u64),
                    memory_total_mb: Some(card.board.memory.as_mb()),
                    temperature_c: seen.then(|| (45.0 + busy / 4.0).round()),
                    power_w: seen.then(|| (70.0 + busy * 3.0).round()),
                });
            }
            if let Some(instance) = card.instances.iter().find(|i| i.uuid == uuid) {
                let share = if instance.user().is_some() {
                    0.4 + 0.1 * wave
                } else {
                    0.0
                };
                return Some(GpuMetrics {
                    enabled: true,
                    device_id: Some(uuid.to_owned()),
                    usage_percent: None,
                    memory_used_mb: Some((instance.memory.as_mb() as f64 * share) as u64),
                    memory_total_mb: Some(instance.memory.as_mb()),
                    temperature_c: Some((50.0 + 5.0 * wave).round()),
                    power_w: Some((120.0 + 40.0 * wave).round()),
                });
            }
        }
        None
    }
}

pub(super) fn in_use<T>(other: ResourceId, doing: &str) -> Result<T> {
    Err(BackendError::new(
        BackendErrorKind::Conflict,
        doing,
        format!("it is in use by {other}"),
    ))
}
