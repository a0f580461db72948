//! What the backends see against what is recorded; and taking up, at the start, what was left unfinished.
//!
//! Only what carries our owner label is looked at. Of that, what the store does not know is reported and
//! left alone: an older store than the one that made it must not cost anybody a workload.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use futures_util::StreamExt;
use serde_json::json;

use super::draft::node_event;
use super::monitor::{FALLEN_WITH_DAEMON, StoreOnly, restarts};
use super::run::ended_message;
use super::slot::Slot;
use super::{Core, Result};
use crate::access::Visibility;
use crate::backend::{BackendState, Call, Observed, ObservedState};
use crate::event::EventType;
use crate::id::ResourceId;
use crate::lifecycle::{Action, Phase, Reaction, Seen, observe};
use crate::resource::Record;
use crate::store::{ClaimFilter, OperationQuery, PruneLimits, StoreError, Transaction};
use crate::units::Timestamp;

/// How many records are looked at, and operations taken up, at once.
const PAGE: u32 = 500;

impl Core {
    /// Takes up the operations that nobody carries out, as an earlier manager left them.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        let mut unfinished = BTreeSet::new();
        let mut offset = 0;
        loop {
            let query = OperationQuery {
                visibility: Visibility::All,
                resource: None,
                unfinished: true,
                offset,
                limit: PAGE,
            };
            let page = self.store.operations(query).await?;
            // What another server's backend carries out is that server's.
            let ours = page.operations.iter().filter(|o| self.slot(&o.backend).is_some());
            unfinished.extend(ours.map(|o| o.resource));
            offset += u64::from(PAGE);
            if offset >= page.total {
                break;
            }
        }
        for id in unfinished {
            self.kick(id);
        }
        Ok(())
    }

    /// Begins to watch every backend, the GPUs, and the age of what is kept.
    pub(super) fn watch_backends(self: &Arc<Self>) {
        for slot in &self.slots {
            let (core, slot) = (self.clone(), slot.clone());
            self.spawn(async move {
                let stopping = core.stopping.clone();
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => {}
                    () = async { futures_util::join!(core.probe(&slot), core.follow(&slot)); } => {}
                }
            });
        }
        let core = self.clone();
        self.spawn(async move {
            let stopping = core.stopping.clone();
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                () = async { futures_util::join!(core.prune(), core.follow_devices()); } => {}
            }
        });
    }

    /// Asks a backend again and again whether it is there.
    async fn probe(&self, slot: &Slot) {
        let mut announced = BackendState::Unknown;
        loop {
            slot.probe().await;
            let view = slot.view();
            if view.state != announced {
                announced = view.state;
                let level = view.state == BackendState::Ready;
                tracing::info!(backend = %view.name, ready = level, reason = view.reason.as_deref(), "backend");
                let data = json!({ "backend": view.name, "state": view.state, "reason": view.reason });
                self.announce(EventType::NodeBackend, data).await;
            }
            self.env.sleep(self.settings.probe_interval).await;
        }
    }

    /// Compares everything whenever a backend comes, then listens to it until it goes.
    async fn follow(self: &Arc<Self>, slot: &Arc<Slot>) {
        loop {
            slot.wait_ready(self.settings.resync_interval).await;
            if !slot.is_ready() {
                continue;
            }
            let limit = self.settings.read_timeout;
            // Listen first, so that nothing happens between the comparison and the listening.
            let events = slot.call("events", limit, slot.backend.events()).await;
            self.resync(slot).await;
            let Ok(mut events) = events else {
                self.env.sleep(self.settings.probe_interval).await;
                continue;
            };
            loop {
                tokio::select! {
                    biased;
                    event = events.next() => match event {
                        Some(event) => self.look(event.id).await,
                        None => break,
                    },
                    () = slot.wait_away() => break,
                    () = self.env.sleep(self.settings.resync_interval) => self.resync(slot).await,
                }
            }
            // The stream ended: the backend may be going. Ask before listening again.
            slot.probe().await;
            self.env.sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    /// Compares everything that a backend has with everything that is recorded of it.
    pub(super) async fn resync(self: &Arc<Self>, slot: &Arc<Slot>) {
        // A commit that failed may have happened: what it accepted has nobody yet who carries it out.
        if let Err(error) = self.recover().await {
            tracing::error!(%error, "operations cannot be read");
        }
        let owned = match slot
            .call("owned", self.settings.change_timeout, slot.backend.owned())
            .await
        {
            Ok(owned) => owned,
            Err(error) => {
                tracing::warn!(backend = %slot.name(), %error, "what it has cannot be read");
                return;
            }
        };
        if let Err(error) = self.compare(slot, owned).await {
            tracing::error!(backend = %slot.name(), %error, "what it has cannot be compared");
        }
    }

    async fn compare(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        owned: Vec<Observed>,
    ) -> std::result::Result<(), StoreError> {
        let went_down = self.went_down(slot).await?;
        let mut seen = HashSet::with_capacity(owned.len());
        let mut unknown = Vec::new();
        let mut all_judged = true;
        for observed in &owned {
            seen.insert(observed.id);
            match self.store.record(observed.id).await? {
                Some(record) => {
                    all_judged &= self.consider(slot, &record, Some(observed), went_down).await?;
                }
                None => unknown.push(observed.id),
            }
        }
        if !unknown.is_empty() {
            tracing::warn!(backend = %slot.name(), ?unknown, "workloads carry our label and are not in the store; left alone");
        }
        let mut after = None;
        loop {
            let phases = [Phase::Running, Phase::Error, Phase::Failed];
            let ids = self
                .store
                .ids_in_phases(slot.name(), &phases, after, PAGE as usize)
                .await?;
            for id in ids.iter().filter(|id| !seen.contains(id)) {
                if let Some(record) = self.store.record(*id).await? {
                    all_judged &= self.consider(slot, &record, None, went_down).await?;
                }
            }
            after = ids.last().copied();
            if ids.len() < PAGE as usize {
                break;
            }
        }
        if went_down {
            self.raise_fallen(slot).await?;
        }
        if went_down && !all_judged {
            // What is busy now must still be told from what ended by itself.
            return Ok(());
        }
        self.note_epoch(slot).await
    }

    /// Whether the daemon or the host is another than the one that was compared with last, so that what
    /// ended did so with it.
    async fn went_down(&self, slot: &Slot) -> std::result::Result<bool, StoreError> {
        let Some(epoch) = slot.report().and_then(|r| r.epoch) else {
            return Ok(false);
        };
        Ok(self
            .store
            .note(&epoch_note(slot))
            .await?
            .is_some_and(|before| before != epoch))
    }

    async fn note_epoch(&self, slot: &Slot) -> std::result::Result<(), StoreError> {
        let Some(epoch) = slot.report().and_then(|r| r.epoch) else {
            return Ok(());
        };
        let note = epoch_note(slot);
        if self.store.note(&note).await?.as_ref() == Some(&epoch) {
            return Ok(());
        }
        let transaction = Transaction {
            notes: vec![(note, epoch)],
            ..Transaction::default()
        };
        self.commit(transaction)
            .await
            .map_err(|e| StoreError::new("noting the epoch", e.to_string()))
    }

    /// Brings up again what ended just before its daemon went away: it was the daemon that ended it.
    async fn raise_fallen(self: &Arc<Self>, slot: &Slot) -> std::result::Result<(), StoreError> {
        let Some(gone) = slot.away_since() else {
            return Ok(());
        };
        let fallen: Vec<_> = self.fallen().drain().collect();
        for (id, (at, revision)) in fallen {
            if gone.since(at) < FALLEN_WITH_DAEMON {
                self.submit_own(id, Action::Start, |now| {
                    now.revision == revision && now.backend == *slot.name()
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Judges one of many that were seen, and answers whether that could be done. What was seen may be older
    /// than the record: before anything is done about it, it is looked at anew.
    async fn consider(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        record: &Record,
        observed: Option<&Observed>,
        went_down: bool,
    ) -> std::result::Result<bool, StoreError> {
        if self.is_busy(record.id) {
            return Ok(false);
        }
        match observe(record.phase, record.desired, seen(observed, went_down)) {
            Reaction::Keep => self.react(slot, record, observed, went_down).await?,
            Reaction::Becomes(_) | Reaction::BringUp | Reaction::TakeDown | Reaction::Remove => {
                return Ok(self.try_look(record.id).await);
            }
        }
        Ok(true)
    }

    /// Looks at one workload that is said to have changed.
    pub(super) async fn look(self: &Arc<Self>, id: ResourceId) {
        self.try_look(id).await;
    }

    /// Answers whether it could be judged; if not, it is busy or the backend went away.
    async fn try_look(self: &Arc<Self>, id: ResourceId) -> bool {
        if self.is_busy(id) {
            return false;
        }
        let looked = async {
            let Some(record) = self.store.record(id).await? else {
                return Ok(true);
            };
            let Some(slot) = self.slot(&record.backend).cloned() else {
                return Ok(true);
            };
            let seen = match slot
                .call("inspect", self.settings.read_timeout, slot.backend.inspect(&[id]))
                .await
            {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::warn!(resource = %id, %error, "it cannot be looked at");
                    return Ok(false);
                }
            };
            let seen = seen.iter().find(|o| o.id == id);
            let mut went_down = false;
            if record.phase == Phase::Running
                && seen.is_some_and(|o| matches!(o.state, ObservedState::Ended { .. }))
            {
                slot.probe().await;
                if !slot.is_ready() {
                    return Ok(false);
                }
                went_down = self.went_down(&slot).await?;
            }
            self.react(&slot, &record, seen, went_down).await?;
            Ok::<_, StoreError>(true)
        };
        match looked.await {
            Ok(judged) => judged,
            Err(error) => {
                tracing::error!(resource = %id, %error, "what was seen cannot be recorded");
                false
            }
        }
    }

    /// Looks at a workload beside whatever else goes on.
    pub(super) fn look_again(self: &Arc<Self>, id: ResourceId) {
        let core = self.clone();
        self.spawn(async move { core.look(id).await });
    }

    async fn react(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        record: &Record,
        observed: Option<&Observed>,
        went_down: bool,
    ) -> std::result::Result<(), StoreError> {
        let id = record.id;
        if self.is_busy(id) {
            return Ok(());
        }
        match observe(record.phase, record.desired, seen(observed, went_down)) {
            Reaction::Keep => {
                if !self.monitors().contains_key(&id) {
                    self.follow_up(record);
                }
                if record.phase == Phase::Failed {
                    self.give_back_running(record).await?;
                }
                Ok(())
            }
            Reaction::Becomes(Phase::Running) if record.config.health_check().is_some() => {
                // It runs, and is in error for want of health: only its health check brings it back.
                let watched = Record {
                    phase: Phase::Running,
                    ..record.clone()
                };
                if !self.monitors().contains_key(&id) && !restarts(record) {
                    self.follow_up(&watched);
                }
                Ok(())
            }
            Reaction::Becomes(phase) => {
                let message = match observed.map(|o| &o.state) {
                    Some(ObservedState::Ended { exit_code, cause }) if phase == Phase::Error => {
                        Some(ended_message(*exit_code, cause.as_deref()))
                    }
                    _ => None,
                };
                self.becomes(id, phase, message, Some(record.revision)).await
            }
            Reaction::BringUp => {
                tracing::warn!(resource = %id, "it should run and does not; starting it");
                let started = |r: &Record| r.runtime.as_ref().and_then(|runtime| runtime.started_at);
                self.submit_own(id, Action::Start, |now| {
                    now.phase == Phase::Running && started(now) == started(record)
                })
                .await
            }
            Reaction::TakeDown => {
                tracing::warn!(resource = %id, "it runs and should not; stopping it");
                self.submit_own(id, Action::Stop, |now| now.revision == record.revision)
                    .await
            }
            Reaction::Remove => {
                tracing::warn!(resource = %id, "it was deleted and is there; removing it");
                let limit = self.settings.change_timeout;
                let (slot, call) = (slot.clone(), Call::new(record.generation, limit));
                self.between(id, async move {
                    let removal = slot.backend.remove(&call, id);
                    if let Err(error) = slot.change("remove", limit, removal).await {
                        tracing::warn!(resource = %id, %error, "it cannot be removed; trying again later");
                    }
                });
                Ok(())
            }
        }
    }

    /// Gives back CPU and memory of what is seen to be down after its stop or its removal failed.
    async fn give_back_running(&self, seen: &Record) -> std::result::Result<(), StoreError> {
        let held = self
            .store
            .claims(&self.node, ClaimFilter::Holder(seen.id))
            .await?;
        if !held.iter().any(|claim| claim.key.is_for_running_only()) {
            return Ok(());
        }
        self.amend::<_, StoreOnly>(seen.id, |draft| {
            // Whatever was accepted meanwhile claims for itself.
            if draft.record.revision != seen.revision || !draft.operations.is_empty() {
                return Ok(None);
            }
            draft.quiet = true;
            self.release_running(draft);
            Ok(Some(()))
        })
        .await
        .map_err(|StoreOnly(error)| error)?;
        Ok(())
    }

    async fn prune(&self) {
        loop {
            self.env.sleep(self.settings.prune_interval).await;
            let now = self.env.now().as_millis();
            let before = |keep: std::time::Duration| {
                Timestamp::from_millis(
                    now.saturating_sub(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX)),
                )
            };
            let limits = PruneLimits {
                operations: before(self.settings.keep_operations),
                events: before(self.settings.keep_events),
                remembered: before(self.settings.keep_answers),
                deleted: before(self.settings.keep_deleted),
            };
            match self.store.prune(limits).await {
                Ok(rows) => tracing::debug!(rows, "pruned"),
                Err(error) => tracing::error!(%error, "nothing could be pruned"),
            }
        }
    }

    pub(super) async fn announce(&self, kind: EventType, data: serde_json::Value) {
        let event = node_event(kind, self.env.now(), data);
        if let Err(error) = self
            .commit(Transaction {
                events: vec![event],
                ..Transaction::default()
            })
            .await
        {
            tracing::error!(%error, "an event of the node cannot be recorded");
        }
    }
}

fn epoch_note(slot: &Slot) -> String {
    format!("epoch/{}", slot.name())
}

fn seen(observed: Option<&Observed>, went_down: bool) -> Seen {
    match observed.map(|o| &o.state) {
        None => Seen::Absent,
        Some(ObservedState::Created) => Seen::Created,
        Some(ObservedState::Running) => Seen::Up,
        Some(ObservedState::Ended { .. }) if went_down => Seen::WentDownWithHost,
        Some(state @ ObservedState::Ended { .. }) => Seen::Ended {
            clean: state.ended_clean(),
        },
    }
}
