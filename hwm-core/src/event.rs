//! Events: what happened, numbered and replayable.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::Owner;
use crate::config::ResourceType;
use crate::id::{OperationId, ResourceId};
use crate::units::Timestamp;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventType {
    /// A resource was accepted.
    #[serde(rename = "resource.created")]
    ResourceCreated,
    /// A resource was changed by a client.
    #[serde(rename = "resource.updated")]
    ResourceUpdated,
    /// A resource's status changed.
    #[serde(rename = "resource.status")]
    ResourceStatus,
    /// A resource is gone.
    #[serde(rename = "resource.deleted")]
    ResourceDeleted,
    /// An operation went a step further.
    #[serde(rename = "operation.progress")]
    OperationProgress,
    /// An operation ended.
    #[serde(rename = "operation.finished")]
    OperationFinished,
    /// A GPU of the node changed.
    #[serde(rename = "node.gpu")]
    NodeGpu,
    /// A backend of the node came or went, or reports something that is not ours to repair.
    #[serde(rename = "node.backend")]
    NodeBackend,
}

impl EventType {
    /// The contract's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ResourceCreated => "resource.created",
            Self::ResourceUpdated => "resource.updated",
            Self::ResourceStatus => "resource.status",
            Self::ResourceDeleted => "resource.deleted",
            Self::OperationProgress => "operation.progress",
            Self::OperationFinished => "operation.finished",
            Self::NodeGpu => "node.gpu",
            Self::NodeBackend => "node.backend",
        }
    }
}

/// An event before the store has numbered it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewEvent {
    /// What kind.
    pub kind: EventType,
    /// When.
    pub time: Timestamp,
    /// The resource it is about; none for events of the node.
    pub resource: Option<ResourceId>,
    /// That resource's type.
    pub resource_type: Option<ResourceType>,
    /// That resource's owner: who may see the event.
    pub owner: Option<Owner>,
    /// The operation it is about.
    pub operation: Option<OperationId>,
    /// More, by kind. Never a secret.
    pub data: Value,
}

/// A numbered event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Ever growing, without reuse; gaps are possible.
    pub id: u64,
    /// What happened.
    pub event: NewEvent,
}

/// An event as the contract shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Ever growing.
    pub id: u64,
    /// What kind.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// When.
    pub time: Timestamp,
    /// The resource it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<ResourceId>,
    /// That resource's type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_type: Option<ResourceType>,
    /// The operation it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<OperationId>,
    /// More, by kind.
    pub data: Value,
}

impl From<&StoredEvent> for Event {
    fn from(stored: &StoredEvent) -> Self {
        let event = &stored.event;
        Self {
            id: stored.id,
            kind: event.kind,
            time: event.time,
            resource_id: event.resource,
            resource_type: event.resource_type,
            operation_id: event.operation,
            data: event.data.clone(),
        }
    }
}
