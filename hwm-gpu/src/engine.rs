//! What the NVML thread works on: the session, the journal, and the picture of the node that it keeps fresh.
//! Everything here blocks, and runs on that thread alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use hwm_core::accelerator::{AcceleratorEvent, GpuHealth};
use hwm_core::backend::{BackendError, BackendErrorKind};
use hwm_core::id::{GpuUuid, ResourceId};
use hwm_core::units::Bytes;
use nvml_wrapper::Device;
use tokio::sync::mpsc;

use crate::geometry::{Occupancy, Slot};
use crate::journal::{CardEntry, Entry, HandoverEntry, Journal, QuarantineEntry, SliceEntry, SliceStage};
use crate::node::{self, CardState, InstanceState, Look, MigMode, Node, Owner, VgpuRoute};
use crate::nvml::ffi::Session;
use crate::nvml::read::{self, Facts, SeenCard, SeenSlice};
use crate::nvml::{ends_session, failed};
use crate::options::{Adopt, Options};
use crate::sysfs::{Function, Host};

pub(crate) type Answer<T> = Result<T, BackendError>;

/// How long NVML stays closed after a card was granted to a machine, for libvirt to take it.
pub(crate) const YIELD: Duration = Duration::from_secs(120);

pub(crate) struct Engine {
    pub(crate) options: Options,
    pub(crate) host: Host,
    pub(crate) journal: Journal,
    pub(crate) session: Option<Session>,
    /// Why there is no session.
    trouble: Option<String>,
    facts: HashMap<String, Facts>,
    /// As NVML saw them last.
    seen: BTreeMap<String, SeenCard>,
    driver: Option<String>,
    cuda: Option<i32>,
    /// Cards that are expected and did not answer.
    troubles: Vec<String>,
    cards: BTreeMap<String, CardEntry>,
    pub(crate) slices: BTreeMap<(String, u32), SliceEntry>,
    pub(crate) handovers: BTreeMap<String, HandoverEntry>,
    pub(crate) quarantines: BTreeMap<String, QuarantineEntry>,
    /// Cards whose journal cannot be understood, and why.
    unreadable: BTreeMap<String, String>,
    /// Cards that a machine is about to take, and until when that is waited for.
    pub(crate) yielding: BTreeMap<String, Instant>,
    pub(crate) boot: String,
    /// How long the present look has asked NVML.
    asked: Duration,
    /// The newest generation seen of a resource.
    generations: HashMap<ResourceId, u64>,
    pub(crate) shared: Arc<RwLock<Arc<Node>>>,
    listeners: Vec<mpsc::Sender<AcceleratorEvent>>,
}

impl Engine {
    /// Reads the journal. Touches no card.
    pub(crate) fn open(options: Options, shared: Arc<RwLock<Arc<Node>>>) -> std::io::Result<Self> {
        let journal = Journal::open(&options.state)?;
        let host = Host::new(options.roots.clone());
        let mut unreadable = BTreeMap::new();
        fn load<E: Entry>(journal: &Journal, bad: &mut BTreeMap<String, String>) -> std::io::Result<Vec<E>> {
            let (entries, unreadable) = journal.all()?;
            bad.extend(unreadable.into_iter().map(|u| (u.card, u.reason)));
            Ok(entries)
        }
        let slices: Vec<SliceEntry> = load(&journal, &mut unreadable)?;
        let handovers: Vec<HandoverEntry> = load(&journal, &mut unreadable)?;
        let quarantines: Vec<QuarantineEntry> = load(&journal, &mut unreadable)?;
        let cards: Vec<CardEntry> = load(&journal, &mut unreadable)?;
        let boot = host.boot_id();
        let mut generations = HashMap::new();
        let owners = slices.iter().map(|s| (s.owner, s.generation));
        for (owner, generation) in owners.chain(handovers.iter().map(|h| (h.owner, h.generation))) {
            let newest = generations.entry(owner).or_insert(generation);
            *newest = generation.max(*newest);
        }
        Ok(Self {
            host,
            journal,
            session: None,
            trouble: None,
            facts: HashMap::new(),
            seen: BTreeMap::new(),
            driver: None,
            cuda: None,
            troubles: Vec::new(),
            cards: cards.into_iter().map(|c| (c.uuid.clone(), c)).collect(),
            slices: slices
                .into_iter()
                .map(|s| ((s.card.clone(), s.start), s))
                .collect(),
            handovers: handovers.into_iter().map(|h| (h.card.clone(), h)).collect(),
            quarantines: quarantines.into_iter().map(|q| (q.card.clone(), q)).collect(),
            unreadable,
            yielding: BTreeMap::new(),
            boot,
            asked: Duration::ZERO,
            generations,
            shared,
            listeners: Vec::new(),
            options,
        })
    }

    /// Refuses what is older than what was seen of a resource.
    pub(crate) fn fence(&mut self, owner: ResourceId, generation: u64) -> Answer<()> {
        let newest = self.generations.entry(owner).or_insert(generation);
        if generation < *newest {
            let message = format!("generation {generation} is older than {newest}");
            return Err(BackendError::new(
                BackendErrorKind::Superseded,
                format!("devices of {owner}"),
                message,
            ));
        }
        *newest = generation;
        Ok(())
    }

    /// The session, opened where there is none. Not while a machine is about to take a card.
    pub(crate) fn session(&mut self) -> Answer<&Session> {
        self.settle_yields();
        if let Some((card, _)) = self.yielding.first_key_value() {
            let message = format!("NVML is closed while a machine takes {card}");
            return Err(BackendError::new(
                BackendErrorKind::Unavailable,
                "opening NVML",
                message,
            ));
        }
        if self.session.is_none() {
            match Session::open(self.options.library.as_deref()) {
                Ok(session) => {
                    self.session = Some(session);
                    self.trouble = None;
                }
                Err(error) => {
                    let error = failed("opening NVML", &error);
                    self.trouble = Some(error.message.clone());
                    return Err(error);
                }
            }
        }
        self.session
            .as_ref()
            .ok_or_else(|| BackendError::new(BackendErrorKind::Unavailable, "opening NVML", "closed"))
    }

    /// Closes the session, so that this process has no card open.
    pub(crate) fn close(&mut self) {
        self.session = None;
    }

    fn settle_yields(&mut self) {
        let now = Instant::now();
        let host = &self.host;
        let cards = &self.cards;
        self.yielding.retain(|card, until| {
            let taken = cards
                .get(card)
                .and_then(|c| host.function(&c.address))
                .is_some_and(|f| f.on_vfio());
            !taken && now < *until
        });
    }

    /// A card's device, with what to call it in errors.
    pub(crate) fn with_device<T>(
        &mut self,
        uuid: &str,
        doing: &str,
        body: impl FnOnce(&Session, &Device<'_>) -> Result<T, nvml_wrapper::error::NvmlError>,
    ) -> Answer<T> {
        let session = self.session()?;
        let answer = session
            .nvml()
            .device_by_uuid(uuid)
            .and_then(|device| body(session, &device));
        answer.map_err(|error| {
            if ends_session(&error) {
                self.trouble = Some(error.to_string());
                self.close();
            }
            failed(format!("{doing} {uuid}"), &error)
        })
    }

    /// Looks at everything again and publishes the picture.
    pub(crate) fn refresh(&mut self) {
        let begun = Instant::now();
        self.asked = Duration::ZERO;
        self.look();
        if self.session.is_some() && self.is_behind() {
            // A session knows the cards that there were when it was opened.
            self.close();
            self.look();
        }
        self.settle_intents();
        self.publish();
        let look = Look {
            nvml: self.asked,
            own: begun.elapsed().saturating_sub(self.asked),
        };
        if let Ok(mut shared) = self.shared.write() {
            Arc::make_mut(&mut shared).look = look;
        }
    }

    /// Whether the driver has a card that is known and that the session does not show.
    fn is_behind(&self) -> bool {
        let unseen = self.cards.values().filter(|c| !self.seen.contains_key(&c.uuid));
        unseen
            .filter_map(|c| self.host.function(&c.address))
            .any(|f| f.driver.as_deref() == Some("nvidia"))
    }

    fn look(&mut self) {
        let had = self.session.is_some();
        let begun = Instant::now();
        let opened = self.session().is_ok();
        let seen = match &self.session {
            Some(session) if opened => read::all(session.nvml(), &mut self.facts).map(Some),
            // Closed on purpose: what was seen last still holds.
            Some(_) | None if !self.yielding.is_empty() => Ok(None),
            Some(_) | None => {
                self.seen.clear();
                Ok(None)
            }
        };
        self.asked += begun.elapsed();
        match seen {
            Ok(None) => {}
            Ok(Some(seen)) => {
                self.driver = seen.driver;
                self.cuda = seen.cuda;
                self.troubles = seen.troubles;
                let before: Vec<String> = self.seen.keys().cloned().collect();
                self.seen = seen.cards.into_iter().map(|c| (c.uuid.clone(), c)).collect();
                let now: Vec<String> = self.seen.keys().cloned().collect();
                if !had || before != now {
                    self.rewatch();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "NVML was lost");
                self.trouble = Some(error.to_string());
                self.seen.clear();
                self.close();
                // The streams end, so that who listens looks again.
                self.listeners.clear();
            }
        }
    }

    /// Watches the cards that are seen.
    pub(crate) fn rewatch(&mut self) {
        let cards: Vec<String> = self.seen.keys().cloned().collect();
        if let Some(Err(error)) = self.session.as_mut().map(|s| s.watch(&cards)) {
            tracing::warn!(%error, "NVML gives no events");
        }
    }

    /// The slices of one card, read anew.
    pub(crate) fn reread(&mut self, uuid: &str) -> Answer<Vec<SeenSlice>> {
        let mut facts = std::mem::take(&mut self.facts);
        let card = self.with_device(uuid, "looking at", |s, d| read::card(s.nvml(), d, &mut facts));
        self.facts = facts;
        let card = card?;
        let slices = card.instances.clone();
        self.seen.insert(uuid.to_owned(), card);
        Ok(slices)
    }

    pub(crate) fn seen(&self, uuid: &str) -> Option<&SeenCard> {
        self.seen.get(uuid)
    }

    pub(crate) fn card(&self, uuid: &str) -> Option<&CardEntry> {
        self.cards.get(uuid)
    }

    /// Forgets how a card is cut, after its mode changed.
    pub(crate) fn forget_facts(&mut self, uuid: &str) {
        self.facts.remove(uuid);
    }

    /// Makes the picture that plans and inventories are made from, and tells which cards went and came.
    pub(crate) fn publish(&mut self) {
        for event in self.replace_picture() {
            self.tell(&event);
        }
    }

    /// The same, with an event that says why a card went in place of that it went.
    pub(crate) fn publish_because(&mut self, event: &AcceleratorEvent) {
        for other in self.replace_picture() {
            self.tell(if other.card == event.card { event } else { &other });
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
            let before = old.cards.iter().find(|c| c.uuid == card.uuid).map(|c| c.health);
            let well = |h| matches!(h, GpuHealth::Ok | GpuHealth::Degraded);
            if before.is_some_and(|b| well(b) != well(card.health)) {
                events.push(AcceleratorEvent {
                    card: GpuUuid::new(&*card.uuid),
                    instance: None,
                    fatal: !well(card.health),
                    message: card
                        .unusable()
                        .unwrap_or_else(|| format!("{} is back", card.label())),
                });
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
        if seen.is_some() {
            if doubtful.is_empty() {
                return (GpuHealth::Ok, None);
            }
            let reasons: Vec<&str> = doubtful.iter().map(|(_, r)| r.as_str()).collect();
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

    /// Puts a card out of use.
    pub(crate) fn quarantine(&mut self, card: &str, reason: String) {
        tracing::warn!(card, reason, "a GPU is out of use");
        let entry = QuarantineEntry {
            card: card.to_owned(),
            reason,
        };
        if let Err(error) = self.journal.put(&entry) {
            tracing::warn!(%error, card, "a restart will forget that it is out of use");
        }
        self.quarantines.insert(card.to_owned(), entry);
    }

    /// A stream of what happens from now on.
    pub(crate) fn listen(&mut self) -> mpsc::Receiver<AcceleratorEvent> {
        let (to, from) = mpsc::channel(256);
        self.listeners.push(to);
        from
    }

    /// Tells who listens. One that does not keep up is let go: its stream ends, and it looks again.
    pub(crate) fn tell(&mut self, event: &AcceleratorEvent) {
        self.listeners.retain(|l| l.try_send(event.clone()).is_ok());
    }
}

/// A failure to write the journal: nothing is done to a card that could be forgotten.
pub(crate) fn unwritten(doing: impl Into<String>, error: &std::io::Error) -> BackendError {
    let kind = if error.kind() == std::io::ErrorKind::StorageFull {
        BackendErrorKind::NoSpace
    } else {
        BackendErrorKind::Failed
    };
    BackendError::new(kind, doing, format!("the journal cannot be written: {error}"))
}
