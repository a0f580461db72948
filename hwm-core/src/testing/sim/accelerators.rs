//! The GPU driver of the simulated node: what the manager asks, and the simulated daemon answers.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use super::Inner;
use super::gpus::in_use;
use super::plan;
use super::world::{Daemon, Key, World};
use crate::accelerator::{
    AcceleratorEvent, Accelerators, DeviceGrant, Inventory, Placement, PlacementRefusal,
};
use crate::backend::{Call, Result, Stream, Workload};
use crate::config::{GpuRequest, ResourceType};
use crate::id::{GpuUuid, ResourceId};
use crate::ledger::Claim;
use crate::metrics::GpuMetrics;
use crate::units::Timestamp;

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
