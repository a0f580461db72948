//! The machine that workloads run on, as the contract shows it.

use serde::{Deserialize, Serialize};

use crate::backend::BackendState;
use crate::device::{CardPlace, GpuHealth};
use crate::id::{BackendName, GpuUuid, NodeId, ResourceId};
use crate::ledger::Capacity;
use crate::metrics::GpuMetrics;
use crate::units::Cores;

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// What runs workloads on it.
    pub backends: Vec<NodeBackend>,
    /// What it has.
    pub capacity: NodeAmounts,
    /// What of it is claimed.
    pub claimed: NodeAmounts,
    /// What drives its GPUs; absent where the server was started without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_driver: Option<GpuDriver>,
    /// Its GPUs.
    pub gpus: Vec<NodeGpu>,
}

/// What drives the GPUs of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuDriver {
    /// Its version; null where it does not answer.
    pub version: Option<String>,
    /// The version of CUDA that it has.
    pub cuda_version: Option<String>,
    /// Why there are no GPUs, or why some may be missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A backend of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeBackend {
    /// Its name.
    pub name: BackendName,
    /// Whether it answers.
    pub state: BackendState,
    /// Its version; null until it answered.
    pub version: Option<String>,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// CPU, memory and disk of a node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeAmounts {
    /// CPU in cores.
    #[serde(rename = "cpuCores")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub cpu_cores: Cores,
    /// Memory in MB.
    #[serde(rename = "ramMB")]
    pub ram_mb: u64,
    /// Disk in GB.
    #[serde(rename = "diskGB")]
    pub disk_gb: f64,
}

impl From<Capacity> for NodeAmounts {
    fn from(capacity: Capacity) -> Self {
        Self {
            cpu_cores: capacity.cpu,
            ram_mb: capacity.ram.as_mb(),
            disk_gb: capacity.disk.as_gb(),
        }
    }
}

/// A GPU of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeGpu {
    /// Kept for the card's life on the node.
    pub index: u32,
    /// Its UUID.
    pub uuid: GpuUuid,
    /// Its model.
    pub model: String,
    /// Its PCI address, for example `0000:3b:00.0`.
    pub pci_address: String,
    /// Its memory, in MB.
    #[serde(rename = "memoryTotalMB")]
    pub memory_total_mb: Option<u64>,
    /// Whether it can be handed out.
    pub health: GpuHealth,
    /// Why it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_reason: Option<String>,
    /// Whether it is in MIG mode.
    pub mig_enabled: bool,
    /// Who has the whole of it; absent where the caller may not see the holder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<ResourceId>,
    /// Its MIG instances.
    pub instances: Vec<NodeGpuInstance>,
    /// Where it is in the host.
    pub place: CardPlace,
    /// What it does; null where nobody could be asked.
    pub metrics: Option<GpuMetrics>,
}

/// A MIG instance on a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeGpuInstance {
    /// Its profile.
    pub profile: String,
    /// Its first slot.
    pub start: u32,
    /// How many slots it takes.
    pub size: u32,
    /// Its UUID; null while it is planned and not made.
    pub uuid: Option<String>,
    /// Who has it; absent where the caller may not see the holder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<ResourceId>,
    /// Whether others made it: it counts as taken, is never removed, and is handed out once the operator lets it be adopted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adoptable: bool,
    /// What it does; null where nobody could be asked.
    pub metrics: Option<GpuMetrics>,
}
