//! Simulated cards that are planned for as real ones are: the same boards, the same places, the same refusals.

use std::sync::Arc;

use async_trait::async_trait;
use hwm_core::accelerator::{
    AcceleratorEvent, Accelerators, Card, DeviceGrant, Inventory, Placement, PlacementRefusal,
};
use hwm_core::backend::{Call, Result, Stream};
use hwm_core::config::{GpuRequest, ResourceType};
use hwm_core::id::{GpuUuid, ResourceId};
use hwm_core::ledger::Claim;
use hwm_core::metrics::GpuMetrics;

use crate::boards::Board;
use crate::geometry::Slot;
use crate::node::{CardState, InstanceState, Look, MigMode, Node, Owner, VgpuRoute};
use crate::plan;

/// Accelerators that somebody else simulates, with this crate's plans.
pub struct Simulated {
    inner: Arc<dyn Accelerators>,
    boards: Vec<&'static Board>,
    may_switch: bool,
}

impl Simulated {
    /// Plans for the cards of `inner`, which are these boards, in the order of their indexes. Every card can be passed
    /// through, and has virtual functions. MIG is switched on where that is live, if `may_switch`.
    pub fn new(inner: Arc<dyn Accelerators>, boards: Vec<&'static Board>, may_switch: bool) -> Self {
        Self {
            inner,
            boards,
            may_switch,
        }
    }

    fn state(&self, card: Card, board: &Board) -> CardState {
        let geometry = board.geometry().ok().map(Arc::new);
        let seen = card.instances.iter().enumerate().filter_map(|(id, instance)| {
            let profile = geometry.as_ref()?.named(&instance.profile)?;
            Some(InstanceState {
                id: id as u32,
                slot: Slot {
                    profile,
                    start: instance.start as u8,
                },
                uuid: Some(instance.uuid.clone()),
                owner: if instance.ours {
                    Owner::Adopted
                } else {
                    Owner::Foreign
                },
            })
        });
        let instances = seen.collect();
        CardState {
            index: card.index,
            uuid: card.uuid.to_string(),
            address: card.pci_address,
            model: card.model,
            memory: card.memory,
            visible: true,
            mig: if card.mig_enabled {
                MigMode::On
            } else {
                MigMode::Off {
                    live: board.architecture.switches_live(),
                }
            },
            geometry,
            parts: card.parts,
            instances,
            doubtful: Vec::new(),
            health: card.health,
            reason: card.reason,
            hot: false,
            numa: card.place.numa_node,
            path: card.place.pcie_parent.into_iter().collect(),
            nvlinks: card
                .place
                .nvlinks
                .into_iter()
                .map(|l| (l.peer, l.links))
                .collect(),
            driver: card.place.driver,
            vgpu: Some(VgpuRoute::VirtualFunction),
            no_passthrough: None,
            handed_to: None,
        }
    }
}

#[async_trait]
impl Accelerators for Simulated {
    fn inventory(&self) -> Inventory {
        self.inner.inventory()
    }

    fn plan(
        &self,
        request: &GpuRequest,
        workload: ResourceType,
        held: &[Claim],
    ) -> std::result::Result<Vec<Placement>, PlacementRefusal> {
        let inventory = self.inner.inventory();
        let cards = inventory.cards.into_iter().zip(&self.boards);
        let node = Node {
            cards: cards.map(|(card, board)| self.state(card, board)).collect(),
            reason: inventory.reason,
            driver: inventory.driver,
            cuda: None,
            iommu: true,
            may_switch: self.may_switch,
            look: Look::default(),
        };
        plan::plan(&node, request, workload, held)
    }

    async fn prepare(
        &self,
        call: &Call,
        owner: ResourceId,
        placement: &Placement,
        to: ResourceType,
    ) -> Result<DeviceGrant> {
        self.inner.prepare(call, owner, placement, to).await
    }

    async fn release(&self, call: &Call, owner: ResourceId, placement: &Placement) -> Result<()> {
        self.inner.release(call, owner, placement).await
    }

    async fn events(&self) -> Result<Stream<AcceleratorEvent>> {
        self.inner.events().await
    }

    async fn metrics(&self, uuids: &[String]) -> Result<Vec<GpuMetrics>> {
        self.inner.metrics(uuids).await
    }

    async fn recover(&self, card: &GpuUuid) -> Result<()> {
        self.inner.recover(card).await
    }
}
