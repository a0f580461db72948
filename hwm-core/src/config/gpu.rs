//! How the configs ask for GPUs, and the one request that all of them come down to.

use serde::{Deserialize, Serialize};

/// How a machine gets GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MachineGpuMode {
    /// Whole cards, by VFIO.
    Passthrough,
    /// A MIG slice, as a MIG-backed vGPU.
    Mig,
}

/// The GPUs of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineGpuConfig {
    /// Whether it gets any.
    pub enabled: bool,
    /// How.
    pub mode: MachineGpuMode,
    /// The cards, when passed through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_ids: Vec<String>,
    /// The profile, when a slice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig_profile: Option<String>,
}

impl MachineGpuConfig {
    /// What it comes down to.
    pub fn request(&self) -> GpuRequest {
        match (self.enabled, self.mode) {
            (false, _) => GpuRequest::None,
            (true, MachineGpuMode::Passthrough) => GpuRequest::Named(self.device_ids.clone()),
            (true, MachineGpuMode::Mig) => slice(self.mig_profile.as_deref()),
        }
    }
}

/// How a container gets GPUs that the node chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ContainerGpuMode {
    /// Whole cards.
    Whole,
    /// A MIG slice, made for the container and removed with it.
    Mig,
}

/// GPUs of a container that the node chooses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ContainerGpuConfig {
    /// Whether it gets any.
    pub enabled: bool,
    /// How.
    pub mode: ContainerGpuMode,
    /// How many whole cards; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// The profile, when a slice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig_profile: Option<String>,
}

/// What a workload wants of the node's GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GpuRequest {
    /// Nothing.
    None,
    /// These cards or existing MIG instances, by index, UUID or PCI address.
    Named(Vec<String>),
    /// So many whole cards, chosen by the node.
    Whole(u32),
    /// A new MIG slice of this profile, placed by the node.
    Slice(String),
}

fn slice(profile: Option<&str>) -> GpuRequest {
    profile.map_or(GpuRequest::None, |p| GpuRequest::Slice(p.to_owned()))
}

pub(super) fn container_request(names: &[String], config: Option<&ContainerGpuConfig>) -> GpuRequest {
    match config {
        Some(c) if c.enabled => match c.mode {
            ContainerGpuMode::Whole => GpuRequest::Whole(c.count.unwrap_or(1)),
            ContainerGpuMode::Mig => slice(c.mig_profile.as_deref()),
        },
        _ if names.is_empty() => GpuRequest::None,
        _ => GpuRequest::Named(names.to_vec()),
    }
}
