//! The contract between the manager and what hands out GPUs.
//!
//! The manager asks for a [`plan`](Accelerators::plan), commits its claims, and only then has the devices
//! [`prepare`](Accelerators::prepare)d; what is prepared reaches a backend as a [`DeviceGrant`] and in no
//! other form. The promises of [`crate::backend`] on idempotence, cancellation and truth hold here too:
//! a placement names a slice by (card, profile, start), so preparing it again finds the same slice, and a
//! slice that may be somebody else's is reported, never used and never destroyed.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::backend::{Call, Result, Stream};
use crate::config::{GpuRequest, ResourceType};
pub use crate::device::{
    Attachment, Card, CardPlace, DeviceGrant, GpuHealth, Instance, Inventory, NvLink, Placement,
    PlacementKind,
};
use crate::id::{GpuUuid, ResourceId};
use crate::ledger::Claim;
use crate::metrics::GpuMetrics;
use crate::refusal::Violation;

/// Knows the node's GPUs and hands them out. See the [module's contract](self).
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Accelerators: Send + Sync + 'static {
    /// The GPUs as they were seen last. Never blocks on a device.
    fn inventory(&self) -> Inventory;

    /// Chooses places for a request, given what is claimed on the node. Pure: the same arguments and the
    /// same inventory choose the same places.
    fn plan(
        &self,
        request: &GpuRequest,
        workload: ResourceType,
        held: &[Claim],
    ) -> std::result::Result<Vec<Placement>, PlacementRefusal>;

    /// Makes one placement ready for a workload: creates the slice, or proves that the card can be passed
    /// through.
    async fn prepare(
        &self,
        call: &Call,
        owner: ResourceId,
        placement: &Placement,
        to: ResourceType,
    ) -> Result<DeviceGrant>;

    /// Takes one placement back, and returns when that is proved.
    async fn release(&self, call: &Call, owner: ResourceId, placement: &Placement) -> Result<()>;

    /// What happens to the devices. The stream ends when the driver is lost.
    async fn events(&self) -> Result<Stream<AcceleratorEvent>>;

    /// What these devices do, by UUID of card or instance, in one pass.
    async fn metrics(&self, uuids: &[String]) -> Result<Vec<GpuMetrics>>;

    /// Looks at a quarantined card again, and puts it back into use if it is well.
    async fn recover(&self, card: &GpuUuid) -> Result<()>;
}

/// Why a request has no place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacementRefusal {
    /// The request breaks a rule of this node: an unknown name, a profile that no card has. The field is
    /// relative to the config.
    Invalid(Vec<Violation>),
    /// This node cannot do it, and why.
    Unsupported(String),
    /// Others hold what it would need.
    Taken {
        /// What was asked for.
        wanted: String,
        /// The smallest set of resources whose end would make room.
        holders: Vec<ResourceId>,
        /// What would do instead.
        remedy: String,
    },
}

/// Something that happened to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceleratorEvent {
    /// The card.
    pub card: GpuUuid,
    /// The MIG instance, where it is about one.
    pub instance: Option<String>,
    /// Whether what runs on it is lost.
    pub fatal: bool,
    /// What happened, for people, for example `XID 79: GPU has fallen off the bus`.
    pub message: String,
}
