//! Snapshots of virtual machines.

use serde::{Deserialize, Serialize};

use crate::id::{ResourceId, SnapshotId};
use crate::units::{Bytes, Timestamp, gb};

/// How whole a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Consistency {
    /// Memory and disk at one moment: the guest goes on as if nothing had been.
    Memory,
    /// The guest's file systems were frozen.
    Filesystem,
    /// As after a power cut.
    Crash,
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SnapshotState {
    /// Being taken.
    Creating,
    /// There.
    Ready,
    /// Being removed.
    Deleting,
    /// It could not be taken or removed.
    Failed,
}

/// A snapshot, as the store keeps it and the contract shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The machine.
    pub resource_id: ResourceId,
    /// A label, 1..100 characters.
    pub name: String,
    /// For people, at most 500 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// What it takes on disk, in GB; null until known.
    #[serde(rename = "diskSizeGB", with = "gb::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub disk_size: Option<Bytes>,
    /// How far it is.
    pub state: SnapshotState,
    /// What it reached; null until known.
    pub consistency: Option<Consistency>,
    /// Whether memory was asked for; as the host can when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotRequest {
    /// A label, 1..100 characters.
    pub name: String,
    /// For people, at most 500 characters.
    pub description: Option<String>,
    /// Whether memory is wanted; as the host can when absent.
    pub memory: Option<bool>,
}
