//! The GPUs of the simulated node.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::boards::{SimBoard, SimCard, media, slot};
use super::plan::{self, Candidate};
use super::world::{Daemon, Key, World};
use super::{Holdings, Inner};
use crate::accelerator::{
    AcceleratorEvent, Accelerators, Attachment, Card, DeviceGrant, GpuHealth, Instance, Inventory, Placement,
    PlacementKind, PlacementRefusal,
};
use crate::backend::{BackendError, BackendErrorKind, Call, Result, Stream, Workload};
use crate::config::{GpuRequest, ResourceType};
use crate::id::{GpuUuid, ResourceId};
use crate::ledger::Claim;
use crate::metrics::GpuMetrics;
use crate::units::Timestamp;

pub(super) struct Gpus {
    cards: Vec<SimGpu>,
    mig_on_demand: bool,
    events: broadcast::Sender<AcceleratorEvent>,
    pub(super) reports: Vec<AcceleratorEvent>,
    made: u128,
}

struct SimGpu {
    index: u32,
    uuid: GpuUuid,
    board: SimBoard,
    mig: bool,
    lost: bool,
    sick: bool,
    health: GpuHealth,
    reason: Option<String>,
    instances: Vec<SimInstance>,
    /// Who has the whole of it, and what it is for.
    whole: Option<(ResourceId, ResourceType)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SimInstance {
    profile: String,
    start: u32,
    size: u32,
    /// The media engines that it has, by number.
    media: Vec<u32>,
    memory: crate::units::Bytes,
    uuid: String,
    /// Whom it was made for; none for somebody else's.
    made_for: Option<ResourceId>,
    /// Who uses one that was there before.
    lent_to: Option<ResourceId>,
}

impl SimInstance {
    fn parts(&self) -> Vec<String> {
        let slots = (self.start..self.start + self.size).map(slot);
        slots.chain(self.media.iter().copied().map(media)).collect()
    }

    fn user(&self) -> Option<ResourceId> {
        self.made_for.or(self.lent_to)
    }
}

impl SimGpu {
    fn pci_address(&self) -> String {
        format!("0000:{:02x}:00.0", 0x3b + self.index)
    }

    fn is_free(&self, start: u32, size: u32) -> bool {
        self.instances
            .iter()
            .all(|i| start + size <= i.start || i.start + i.size <= start)
    }

    fn free_media(&self) -> Vec<u32> {
        let taken: Vec<u32> = self.instances.iter().flat_map(|i| i.media.clone()).collect();
        (0..self.board.media).filter(|m| !taken.contains(m)).collect()
    }

    fn seen(&self) -> Card {
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
        }
    }
}

fn seen(instance: &SimInstance) -> Instance {
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
fn uuid_of(number: u128) -> uuid::Uuid {
    let mixed =
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) ^ 0x5c0f_1de5_0000_0000_a11c_e000;
    uuid::Builder::from_random_bytes(mixed.to_be_bytes()).into_uuid()
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
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
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

    fn prepare(
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
    fn device_at(&self, owner: ResourceId, placement: &Placement) -> Option<String> {
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

    fn release(&mut self, owner: ResourceId, placement: &Placement) {
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

    fn recover(&mut self, uuid: &GpuUuid, doing: &str) -> Result<()> {
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

    fn measure(&self, uuid: &str, now: Timestamp) -> Option<GpuMetrics> {
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

fn make(
    card: &mut SimGpu,
    profile: &str,
    start: u32,
    made_for: Option<ResourceId>,
    made: u128,
) -> Option<SimInstance> {
    let profile = card.board.profile(profile)?.clone();
    let engines = card.free_media();
    let of_its_kind = card
        .instances
        .iter()
        .filter(|i| i.profile == profile.name)
        .count();
    let fits = profile.starts.contains(&start)
        && card.is_free(start, profile.size)
        && engines.len() >= profile.media as usize
        && of_its_kind < profile.max as usize;
    if !fits {
        return None;
    }
    let instance = SimInstance {
        profile: profile.name.to_owned(),
        start,
        size: profile.size,
        media: engines.into_iter().take(profile.media as usize).collect(),
        memory: profile.memory,
        uuid: format!("MIG-{}", uuid_of(made)),
        made_for,
        lent_to: None,
    };
    card.instances.push(instance.clone());
    Some(instance)
}

fn in_use<T>(other: ResourceId, doing: &str) -> Result<T> {
    Err(BackendError::new(
        BackendErrorKind::Conflict,
        doing,
        format!("it is in use by {other}"),
    ))
}

/// The GPU driver of the simulated node.
pub(super) struct SimAccelerators {
    inner: Arc<Inner>,
}

impl SimAccelerators {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    async fn ask<T: Send + 'static>(
        &self,
        doing: String,
        answer: impl FnOnce(&mut World, Timestamp) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        self.inner
            .serve(Daemon::Gpus, doing, async move { inner.at(answer) })
            .await
    }
}

fn fence_key(owner: ResourceId) -> Key {
    Key {
        daemon: Daemon::Gpus,
        owner: Arc::from(""),
        id: owner,
    }
}

#[async_trait]
impl Accelerators for SimAccelerators {
    fn inventory(&self) -> Inventory {
        self.inner.lock().gpus.inventory()
    }

    fn plan(
        &self,
        request: &GpuRequest,
        workload: ResourceType,
        held: &[Claim],
    ) -> std::result::Result<Vec<Placement>, PlacementRefusal> {
        let candidates = self.inner.lock().gpus.candidates();
        plan::plan(&candidates, request, workload, held)
    }

    async fn prepare(
        &self,
        call: &Call,
        owner: ResourceId,
        placement: &Placement,
        to: ResourceType,
    ) -> Result<DeviceGrant> {
        let doing = format!("preparing a place on {} for {owner}", placement.card);
        let _busy = self.inner.begin(&fence_key(owner), &doing);
        let (generation, placement) = (call.generation, placement.clone());
        self.ask(doing.clone(), move |world, _| {
            world.fence(&fence_key(owner), generation, &doing)?;
            world.gpus.prepare(owner, &placement, to, &doing)
        })
        .await
    }

    async fn release(&self, call: &Call, owner: ResourceId, placement: &Placement) -> Result<()> {
        let doing = format!("taking back a place on {} from {owner}", placement.card);
        let _busy = self.inner.begin(&fence_key(owner), &doing);
        let (generation, placement) = (call.generation, placement.clone());
        self.ask(doing.clone(), move |world, _| {
            world.fence(&fence_key(owner), generation, &doing)?;
            if let Some(device) = world.gpus.device_at(owner, &placement) {
                let uses = |w: &Workload| w.grants.iter().any(|g| g.uuid == device);
                if world.guests.values().any(|g| g.is_up() && uses(&g.workload)) {
                    world.breaches.push(format!(
                        "device {device} was taken back while {owner} runs with it"
                    ));
                    return in_use(owner, &doing);
                }
            }
            world.gpus.release(owner, &placement);
            Ok(())
        })
        .await
    }

    async fn events(&self) -> Result<Stream<AcceleratorEvent>> {
        let receiver = self
            .ask("listening to the GPUs".to_owned(), |world, _| {
                Ok(world.gpus.events.subscribe())
            })
            .await?;
        Ok(Box::pin(stream::unfold(receiver, |mut receiver| async {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(RecvError::Lagged(_) | RecvError::Closed) => None,
            }
        })))
    }

    async fn metrics(&self, uuids: &[String]) -> Result<Vec<GpuMetrics>> {
        let uuids = uuids.to_vec();
        self.ask("measuring GPUs".to_owned(), move |world, now| {
            Ok(uuids
                .iter()
                .filter_map(|uuid| world.gpus.measure(uuid, now))
                .collect())
        })
        .await
    }

    async fn recover(&self, card: &GpuUuid) -> Result<()> {
        let (card, doing) = (card.clone(), format!("recovering {card}"));
        self.ask(doing.clone(), move |world, _| world.gpus.recover(&card, &doing))
            .await
    }
}
