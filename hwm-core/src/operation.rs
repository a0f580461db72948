//! Operations: what was accepted and is being carried out, durable and in steps.

use serde::{Deserialize, Serialize};

use crate::access::Owner;
use crate::id::{BackendName, OperationId, ResourceId, SnapshotId};
use crate::lifecycle::Action;
use crate::units::Timestamp;

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OperationStatus {
    /// Waits for those before it.
    Pending,
    /// Being carried out.
    Running,
    /// Done.
    Succeeded,
    /// Given up.
    Failed,
    /// Undone because someone asked.
    Cancelled,
}

impl OperationStatus {
    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// The steps that operations are made of. Each is idempotent and keyed by the resource id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Step {
    /// Nothing has begun.
    Accepted,
    /// GPUs are prepared.
    PrepareDevices,
    /// The backend makes the workload: image, disk, container or domain.
    Create,
    /// The backend brings it up.
    Start,
    /// It is waited for until it is healthy.
    AwaitHealthy,
    /// The backend changes what runs.
    Update,
    /// The backend brings it down.
    Stop,
    /// The backend removes it.
    Remove,
    /// GPUs are given back.
    ReleaseDevices,
    /// The backend works on a snapshot.
    Snapshot,
    /// What was half-made is taken back.
    Undo,
    /// Nothing is left to do.
    Done,
}

/// Where an operation is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// The step.
    pub step: Step,
    /// For people, for example `pulling nginx: 12 of 40 MB`.
    pub message: String,
    /// Of the step, 0..100, where it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
}

/// What an operation needs to know beyond the resource's record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Arguments {
    /// Stop: without grace.
    pub force: bool,
    /// Stop and restart: seconds of grace; the backend's default when absent.
    pub grace_seconds: Option<u32>,
    /// Snapshots: which one.
    pub snapshot: Option<SnapshotId>,
}

/// An operation as the store keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its id.
    pub id: OperationId,
    /// What it is about.
    pub resource: ResourceId,
    /// What carries it out.
    pub backend: BackendName,
    /// Whom the resource belongs to.
    pub owner: Owner,
    /// What it does.
    pub action: Action,
    /// Its arguments.
    pub arguments: Arguments,
    /// The generation of the resource that it carries out.
    pub generation: u64,
    /// How far it is.
    pub status: OperationStatus,
    /// Whether someone asked to give it up.
    pub cancel_requested: bool,
    /// Where it is.
    pub progress: Progress,
    /// Why it failed.
    pub error: Option<OperationError>,
    /// Who asked for it.
    pub requested_by: String,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When it is given up if its backend stays away.
    pub deadline: Timestamp,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OperationError {
    /// The contract's stable word.
    pub code: String,
    /// For people.
    pub message: String,
}

/// An operation as the contract shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it is about.
    pub resource_id: ResourceId,
    /// What it does.
    pub action: Action,
    /// How far it is.
    pub status: OperationStatus,
    /// Where it is.
    pub progress: Progress,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<OperationError>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

impl From<&OperationRecord> for Operation {
    fn from(record: &OperationRecord) -> Self {
        Self {
            id: record.id,
            resource_id: record.resource,
            action: record.action,
            status: record.status,
            progress: record.progress.clone(),
            error: record.error.clone(),
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
        }
    }
}
