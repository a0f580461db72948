//! The record of a resource, and the view of it that the contract promises.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::access::Owner;
use crate::config::{Config, ResourceType};
use crate::device::{DeviceGrant, Placement};
use crate::id::{BackendName, NodeId, ResourceId};
use crate::ledger::{ClaimKey, PortBinding};
use crate::lifecycle::{Desired, Phase, Status};
use crate::units::{Bytes, Cores, Timestamp, gb};

/// What the store keeps of a resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: ResourceId,
    /// A label; need not be unique.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Free for the client.
    pub metadata: BTreeMap<String, String>,
    /// Where it runs.
    pub node: NodeId,
    /// What runs it.
    pub backend: BackendName,
    /// Whom it belongs to.
    pub owner: Owner,
    /// Who made it.
    pub created_by: String,
    /// Who changed it last.
    pub updated_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// When its removal was accepted.
    pub deleted_at: Option<Timestamp>,
    /// What the client wants.
    pub config: Config,
    /// What the backend was last given, and when; none before the first deployment.
    pub applied: Option<Applied>,
    /// What it goes through.
    pub phase: Phase,
    /// What should be true in the end.
    pub desired: Desired,
    /// Moves with every accepted operation and config change; fences calls to the backend.
    pub generation: u64,
    /// Moves with every accepted change and every change of status; the contract's ETag.
    pub revision: u64,
    /// What was chosen for it on the node.
    pub allocation: Allocation,
    /// What runs, once deployed.
    pub runtime: Option<Runtime>,
    /// When its health was looked at last.
    pub last_health_check: Option<Timestamp>,
    /// Health checks missed in a row.
    pub missed_health_checks: u32,
    /// Restarts by policy since it last ran for long.
    pub restarts: u32,
    /// Why it is failed or in error.
    pub error_message: Option<String>,
}

/// What a backend was last given for a resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The config; its secrets are marks.
    pub config: Config,
    /// The generation that carried it.
    pub generation: u64,
}

/// What was chosen for a resource on its node, and what it was granted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Allocation {
    /// The node's ports that lead to it.
    pub ports: Vec<PortBinding>,
    /// Places on GPUs.
    pub gpus: Vec<Placement>,
    /// Devices prepared for it; empty before the first start.
    pub grants: Vec<DeviceGrant>,
    /// Places on GPUs that a changed config gave up and that are not yet taken back.
    pub retired: Vec<Placement>,
    /// Claims that a changed config gave up and that what runs still uses.
    pub obsolete: Vec<ClaimKey>,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Runtime {
    /// Container id or domain UUID.
    pub id: String,
    /// Where it answers, `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// UUIDs of its GPUs and MIG instances.
    #[serde(rename = "allocatedGPU")]
    pub allocated_gpu: Vec<String>,
    /// CPU in cores; 0 where it has no limit.
    #[serde(rename = "allocatedCPU")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub allocated_cpu: Cores,
    /// Memory in GB; 0 where it has no limit.
    #[serde(rename = "allocatedRAM", with = "gb")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub allocated_ram: Bytes,
    /// When it came up last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it went down last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
}

/// A resource as the contract shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resource {
    /// Its id: opaque, sortable by creation.
    #[serde(rename = "_id")]
    pub id: ResourceId,
    /// A label, 1..100 characters; need not be unique.
    pub name: String,
    /// For people, at most 500 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The kind of workload.
    pub resource_type: ResourceType,
    /// Where it runs.
    pub node_id: NodeId,
    /// The state.
    pub status: Status,
    /// What the client wants.
    pub config: Config,
    /// What runs; null until deployed.
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub runtime: Option<Runtime>,
    /// Whom it belongs to.
    pub owner: Owner,
    /// Who made it.
    pub created_by: String,
    /// Who changed it last.
    pub updated_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// When its removal was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
    /// When its health was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_health_check: Option<Timestamp>,
    /// Why it is failed or in error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Free for the client.
    pub metadata: BTreeMap<String, String>,
    /// Whether a config change waits for the next start.
    pub restart_required: bool,
}

impl Record {
    /// The contract's status.
    pub const fn status(&self) -> Status {
        self.phase.status()
    }

    /// Whether what runs was given another config than the one wanted now.
    pub fn restart_required(&self) -> bool {
        self.phase.takes_capacity()
            && self
                .applied
                .as_ref()
                .is_some_and(|a| !same(&a.config, &self.config))
    }
}

/// Whether two configs differ in nothing but the values of secrets, which `applied` does not hold.
fn same(applied: &Config, wanted: &Config) -> bool {
    serde_json::to_value(applied).ok() == serde_json::to_value(wanted).ok()
}

impl From<&Record> for Resource {
    fn from(record: &Record) -> Self {
        Self {
            id: record.id,
            name: record.name.clone(),
            description: record.description.clone(),
            resource_type: record.config.resource_type(),
            node_id: record.node.clone(),
            status: record.status(),
            config: record.config.clone(),
            runtime: record.runtime.clone(),
            owner: record.owner.clone(),
            created_by: record.created_by.clone(),
            updated_by: record.updated_by.clone(),
            created_at: record.created_at,
            updated_at: record.updated_at,
            deleted_at: record.deleted_at,
            last_health_check: record.last_health_check,
            error_message: record.error_message.clone(),
            metadata: record.metadata.clone(),
            restart_required: record.restart_required(),
        }
    }
}
