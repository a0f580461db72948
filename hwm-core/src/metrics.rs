//! What a workload uses. A figure that cannot be had is null, never invented.

use serde::{Deserialize, Serialize};

use crate::id::ResourceId;
use crate::units::{Cores, Timestamp};

/// What a workload uses, at a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResourceMetrics {
    /// The workload.
    pub resource_id: ResourceId,
    /// The moment.
    pub timestamp: Timestamp,
    /// The figures.
    pub metrics: Metrics,
}

/// The figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Metrics {
    /// CPU.
    pub cpu: CpuMetrics,
    /// Memory.
    pub memory: MemoryMetrics,
    /// Disk.
    pub disk: DiskMetrics,
    /// Network.
    pub network: NetworkMetrics,
    /// The first GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuMetrics>,
    /// Every GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Vec<GpuMetrics>>,
}

/// CPU.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuMetrics {
    /// Cores that it may use.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub cores: Option<Cores>,
    /// Use of those, in percent: 100 is all of them.
    pub usage_percent: Option<f64>,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MemoryMetrics {
    /// What it may use, in MB.
    #[serde(rename = "totalMB")]
    pub total_mb: Option<u64>,
    /// What it uses, in MB, caches aside.
    #[serde(rename = "usedMB")]
    pub used_mb: Option<u64>,
    /// The one of the other, in percent.
    #[serde(rename = "usagePercent")]
    pub usage_percent: Option<f64>,
}

/// Disk.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskMetrics {
    /// What it may use, in GB.
    #[serde(rename = "totalGB")]
    pub total_gb: Option<f64>,
    /// What it uses, in GB.
    #[serde(rename = "usedGB")]
    pub used_gb: Option<f64>,
    /// The one of the other, in percent.
    #[serde(rename = "usagePercent")]
    pub usage_percent: Option<f64>,
}

/// Network, since the last start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkMetrics {
    /// Bytes received.
    pub rx_bytes: Option<u64>,
    /// Bytes sent.
    pub tx_bytes: Option<u64>,
}

/// A GPU or a slice of one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuMetrics {
    /// Whether it is attached.
    pub enabled: bool,
    /// UUID of the card or the MIG instance.
    pub device_id: Option<String>,
    /// Use in percent; null for a slice, where NVML has no such figure.
    pub usage_percent: Option<f64>,
    /// Memory used, in MB.
    #[serde(rename = "memoryUsedMB")]
    pub memory_used_mb: Option<u64>,
    /// Memory there is, in MB.
    #[serde(rename = "memoryTotalMB")]
    pub memory_total_mb: Option<u64>,
    /// Temperature of the card, in °C.
    pub temperature_c: Option<f64>,
    /// Power drawn by the card, in W.
    pub power_w: Option<f64>,
}
