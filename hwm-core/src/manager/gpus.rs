//! The node's GPUs as the manager sees them: what is shown of them, what happens to them, and what a resource that is stopped keeps.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;

use super::draft::{Draft, about};
use super::monitor::restarts;
use super::{Core, Result};
use crate::accelerator::{AcceleratorEvent, Card, Placement, PlacementKind};
use crate::access::{Permission, Principal};
use crate::backend::BackendErrorKind;
use crate::config::GpuRequest;
use crate::error::{Conflict, ConflictKind, Error};
use crate::event::EventType;
use crate::id::{GpuUuid, ResourceId};
use crate::ledger::{Claim, ClaimKey};
use crate::lifecycle::{Action, Phase};
use crate::metrics::GpuMetrics;
use crate::node::{GpuDriver, NodeGpu, NodeGpuInstance};
use crate::resource::Record;
use crate::store::{ClaimFilter, Release, StoreError, Transaction};
use crate::units::Bytes;

/// The most that a look at the node waits for the figures of its GPUs.
const FIGURES: Duration = Duration::from_secs(2);

impl Core {
    /// Figures of the GPUs that the resource has; those that cannot be had are null.
    pub(super) async fn gpu_metrics(&self, record: &Record) -> Vec<GpuMetrics> {
        let uuids: Vec<String> = record.allocation.grants.iter().map(|g| g.uuid.clone()).collect();
        if uuids.is_empty() {
            return Vec::new();
        }
        let mut figures = self.figures(&uuids, self.settings.read_timeout).await;
        let nothing = |uuid: &String| GpuMetrics {
            enabled: true,
            device_id: Some(uuid.clone()),
            ..Default::default()
        };
        uuids
            .iter()
            .map(|uuid| figures.remove(uuid).unwrap_or_else(|| nothing(uuid)))
            .collect()
    }

    /// What these devices do, by UUID; nothing of those that cannot be asked within the limit.
    async fn figures(&self, uuids: &[String], limit: Duration) -> BTreeMap<String, GpuMetrics> {
        let Some(accelerators) = self.accelerators.as_ref().filter(|_| !uuids.is_empty()) else {
            return BTreeMap::new();
        };
        let asked = tokio::select! {
            biased;
            asked = accelerators.metrics(uuids) => asked.unwrap_or_default(),
            () = self.env.sleep(limit) => Vec::new(),
        };
        let named = asked.into_iter().filter_map(|m| Some((m.device_id.clone()?, m)));
        named.collect()
    }

    pub(super) fn gpu_driver(&self) -> Option<GpuDriver> {
        let inventory = self.accelerators.as_ref()?.inventory();
        Some(GpuDriver {
            version: inventory.driver,
            cuda_version: inventory.cuda,
            reason: inventory.reason,
        })
    }

    /// The GPUs, with the holders that the caller may see; without a caller no holder is shown.
    pub(super) async fn gpu_views(&self, caller: Option<&Principal>) -> Result<Vec<NodeGpu>> {
        let Some(accelerators) = &self.accelerators else {
            return Ok(Vec::new());
        };
        let claims = self
            .store
            .claims(&self.node, ClaimFilter::Prefix("gpu/".into()))
            .await?;
        let mut holders: Vec<ResourceId> = claims.iter().map(|c| c.holder).collect();
        holders.sort_unstable();
        holders.dedup();
        let mut records = Vec::new();
        for id in holders {
            records.extend(self.store.record(id).await?);
        }
        let cards = accelerators.inventory().cards;
        let devices = cards.iter().flat_map(|card| {
            let instances = card.instances.iter().map(|i| i.uuid.clone());
            instances.chain([card.uuid.to_string()])
        });
        let devices: Vec<String> = devices.filter(|uuid| !uuid.is_empty()).collect();
        let mut figures = self.figures(&devices, FIGURES).await;
        Ok(cards
            .iter()
            .map(|card| gpu_view(card, &claims, &records, caller, &mut figures))
            .collect())
    }

    pub(super) async fn recover_gpu(&self, gpu: &GpuUuid) -> Result<()> {
        let not_found = || Error::NotFound {
            what: format!("GPU {gpu}"),
        };
        let accelerators = self.accelerators.as_ref().ok_or_else(not_found)?;
        let inventory = accelerators.inventory();
        let card = inventory
            .cards
            .iter()
            .find(|c| c.uuid == *gpu || c.index.to_string() == gpu.as_str())
            .ok_or_else(not_found)?;
        let Err(error) = accelerators.recover(&card.uuid).await else {
            return Ok(());
        };
        Err(match error.kind {
            // Why it is not well is what the operator asks.
            BackendErrorKind::Failed | BackendErrorKind::Conflict => Error::Conflict(Box::new(Conflict {
                kind: ConflictKind::Gpu,
                wanted: format!("GPU {}", card.uuid),
                holders: Vec::new(),
                remedy: error.message,
            })),
            BackendErrorKind::Unavailable
            | BackendErrorKind::Unsupported
            | BackendErrorKind::NotFound
            | BackendErrorKind::NotRunning
            | BackendErrorKind::Invalid
            | BackendErrorKind::Denied
            | BackendErrorKind::NoSpace
            | BackendErrorKind::Timeout
            | BackendErrorKind::Superseded => Error::from_backend(&"gpus".into(), error),
        })
    }

    /// Hears what happens to GPUs, tells those who have them, and marks those who lost theirs.
    pub(super) async fn follow_devices(self: &Arc<Self>) {
        let Some(accelerators) = self.accelerators.clone() else {
            return;
        };
        loop {
            if let Ok(mut events) = accelerators.events().await {
                while let Some(event) = events.next().await {
                    let data = json!({
                        "gpu": event.card, "instance": event.instance, "fatal": event.fatal, "message": event.message,
                    });
                    self.announce(EventType::NodeGpu, data.clone()).await;
                    if let Err(error) = self.tell_holders(&event, &data).await {
                        tracing::error!(gpu = %event.card, %error, "what happened to a GPU cannot be recorded");
                    }
                }
            }
            self.env.sleep(self.settings.probe_interval).await;
        }
    }

    async fn tell_holders(
        self: &Arc<Self>,
        event: &AcceleratorEvent,
        data: &serde_json::Value,
    ) -> std::result::Result<(), StoreError> {
        let prefix = format!("gpu/{}/", event.card);
        let claims = self.store.claims(&self.node, ClaimFilter::Prefix(prefix)).await?;
        let holders: HashSet<ResourceId> = claims.into_iter().map(|c| c.holder).collect();
        for id in holders {
            let Some(record) = self.store.record(id).await? else {
                continue;
            };
            let hit = event
                .instance
                .as_ref()
                .is_none_or(|instance| record.allocation.grants.iter().any(|g| g.uuid == *instance));
            if !hit {
                continue;
            }
            let told = about(&record, EventType::NodeGpu, self.env.now(), data.clone());
            let told = self.commit(Transaction {
                events: vec![told],
                ..Transaction::default()
            });
            if let Err(error) = told.await {
                tracing::error!(resource = %id, %error, "what happened to its GPU cannot be told");
            }
            if event.fatal && record.phase == Phase::Running {
                let message = format!("GPU {}: {}", event.card, event.message);
                self.becomes(id, Phase::Error, Some(message), None).await?;
            }
        }
        Ok(())
    }

    /// How long a resource that is stopped still keeps its GPUs: none where it keeps them for good or has none, zero where
    /// they are due.
    pub(super) fn gpus_due_in(&self, record: &Record) -> Option<Duration> {
        let hold = self.settings.hold_gpus?;
        let holds = !record.allocation.gpus.is_empty() || !record.allocation.retired.is_empty();
        if !holds {
            return None;
        }
        let stopped = record.runtime.as_ref().and_then(|r| r.stopped_at);
        let since = stopped.map_or(Duration::ZERO, |at| self.env.now().since(at));
        Some(hold.saturating_sub(since))
    }

    /// Gives the GPUs of a stopped resource back, once they are due.
    pub(super) async fn give_up_gpus(self: Arc<Self>, id: ResourceId) {
        let still = |record: &Record| {
            record.phase == Phase::Stopped
                && !restarts(record)
                && self.gpus_due_in(record).is_some_and(|due| due.is_zero())
        };
        if let Err(error) = self.submit_own(id, Action::Stop, still).await {
            tracing::error!(resource = %id, %error, "its GPUs cannot be given back");
        }
    }

    /// Records that the GPUs of what is down were taken back, unless an operation that waits brings it up.
    pub(super) fn without_gpus(&self, draft: &mut Draft) {
        if draft.comes_up() {
            return;
        }
        let record = &mut draft.record;
        let allocation = &mut record.allocation;
        let gone = allocation.gpus.drain(..).chain(allocation.retired.drain(..));
        let keys = gone.flat_map(|p| p.keys().collect::<Vec<_>>()).collect();
        allocation.grants.clear();
        if let Some(runtime) = &mut record.runtime {
            runtime.allocated_gpu.clear();
        }
        draft.tx.release.push(Release {
            holder: record.id,
            keys: Some(keys),
        });
    }

    /// The places of a resource that comes up and gave its GPUs back while it was stopped; none where it needs none.
    pub(super) async fn regained(&self, record: &Record) -> Result<Option<Vec<Placement>>> {
        if !record.allocation.gpus.is_empty() || record.config.gpu_request() == GpuRequest::None {
            return Ok(None);
        }
        Ok(Some(self.choose_gpus(record.id, &record.config).await?))
    }

    /// Puts regained places into a change, unless it has some already.
    pub(super) fn regain(&self, draft: &mut Draft, places: &[Placement]) {
        if !draft.record.allocation.gpus.is_empty() {
            return;
        }
        draft.record.allocation.gpus = places.to_vec();
        let holder = draft.record.id;
        draft
            .tx
            .claim
            .extend(places.iter().flat_map(Placement::keys).map(|key| Claim {
                node: self.node.clone(),
                key,
                holder,
                amount: 1,
            }));
    }
}

fn gpu_view(
    card: &Card,
    claims: &[Claim],
    records: &[Record],
    caller: Option<&Principal>,
    figures: &mut BTreeMap<String, GpuMetrics>,
) -> NodeGpu {
    let on_card = |record: &&Record| record.allocation.gpus.iter().any(|p| p.card == card.uuid);
    let shown = |id: ResourceId| {
        records
            .iter()
            .find(|r| r.id == id && caller.is_some_and(|c| c.may(Permission::Read, &r.owner)))
            .map(|r| r.id)
    };
    let holder_of_part = |part: &String| {
        let key = ClaimKey::Gpu(card.uuid.clone(), part.clone());
        claims.iter().find(|c| c.key == key).map(|c| c.holder)
    };
    let whole = records.iter().find(|r| {
        r.allocation
            .gpus
            .iter()
            .any(|p| p.card == card.uuid && p.kind == PlacementKind::Whole)
            && card.parts.iter().any(|part| holder_of_part(part) == Some(r.id))
    });
    let mut instances: Vec<NodeGpuInstance> = card
        .instances
        .iter()
        .map(|instance| {
            let holder = records.iter().filter(on_card).find(|r| {
                r.allocation.gpus.iter().any(|p| match &p.kind {
                    PlacementKind::Slice { start, size, .. } => {
                        p.card == card.uuid && *start == instance.start && *size == instance.size
                    }
                    PlacementKind::Existing { uuid } => *uuid == instance.uuid,
                    PlacementKind::Whole => false,
                })
            });
            NodeGpuInstance {
                profile: instance.profile.clone(),
                start: instance.start,
                size: instance.size,
                // One without a compute instance has none.
                uuid: Some(instance.uuid.clone()).filter(|uuid| !uuid.is_empty()),
                resource_id: holder.and_then(|r| shown(r.id)),
                adoptable: !instance.ours,
                metrics: figures.remove(&instance.uuid),
            }
        })
        .collect();
    // Slices that are claimed and not made yet.
    for record in records {
        for placement in record.allocation.gpus.iter().filter(|p| p.card == card.uuid) {
            if let PlacementKind::Slice { profile, start, size } = &placement.kind
                && !instances.iter().any(|i| i.start == *start && i.size == *size)
            {
                instances.push(NodeGpuInstance {
                    profile: profile.clone(),
                    start: *start,
                    size: *size,
                    uuid: None,
                    resource_id: shown(record.id),
                    adoptable: false,
                    metrics: None,
                });
            }
        }
    }
    instances.sort_by_key(|i| i.start);
    NodeGpu {
        index: card.index,
        uuid: card.uuid.clone(),
        model: card.model.clone(),
        pci_address: card.pci_address.clone(),
        memory_total_mb: card.memory.map(Bytes::as_mb),
        health: card.health,
        mig_enabled: card.mig_enabled,
        resource_id: whole.and_then(|r| shown(r.id)),
        instances,
        health_reason: card.reason.clone(),
        place: card.place.clone(),
        metrics: figures.remove(card.uuid.as_str()),
    }
}
