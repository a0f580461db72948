//! What the NVML thread works on: the session, the journal, and the picture of the node that it keeps fresh.
//! Everything here blocks, and runs on that thread alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use hwm_core::accelerator::AcceleratorEvent;
use hwm_core::backend::{BackendError, BackendErrorKind};
use hwm_core::id::ResourceId;
use nvml_wrapper::Device;
use tokio::sync::mpsc;

use crate::journal::{CardEntry, Entry, HandoverEntry, Journal, QuarantineEntry, SliceEntry};
use crate::node::{Look, Node};
use crate::nvml::ffi::Session;
use crate::nvml::read::{self, Facts, SeenCard, SeenSlice};
use crate::nvml::{ends_session, failed};
use crate::options::Options;
use crate::sysfs::Host;

pub(crate) type Answer<T> = Result<T, BackendError>;

/// How long NVML stays closed after a card was granted to a machine, for libvirt to take it.
pub(crate) const YIELD: Duration = Duration::from_secs(120);

pub(crate) struct Engine {
    pub(crate) options: Options,
    pub(crate) host: Host,
    pub(crate) journal: Journal,
    pub(crate) session: Option<Session>,
    /// Why there is no session.
    pub(crate) trouble: Option<String>,
    facts: HashMap<String, Facts>,
    /// As NVML saw them last.
    pub(crate) seen: BTreeMap<String, SeenCard>,
    pub(crate) driver: Option<String>,
    pub(crate) cuda: Option<i32>,
    /// Cards that are expected and did not answer.
    pub(crate) troubles: Vec<String>,
    pub(crate) cards: BTreeMap<String, CardEntry>,
    pub(crate) slices: BTreeMap<(String, u32), SliceEntry>,
    pub(crate) handovers: BTreeMap<String, HandoverEntry>,
    pub(crate) quarantines: BTreeMap<String, QuarantineEntry>,
    /// Cards whose journal cannot be understood, and why.
    pub(crate) unreadable: BTreeMap<String, String>,
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
