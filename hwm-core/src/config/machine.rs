//! The config of a virtual machine.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::gpu::MachineGpuConfig;
use crate::secret::Secret;
use crate::units::{Bytes, mb};

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineConfig {
    /// A name in the image catalogue, for example `debian-12`.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 253))]
    pub os_image: String,
    /// Virtual CPUs, 1..128.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 128))]
    pub vcpus: u32,
    /// Memory in MB, at least 512.
    #[serde(rename = "ramMB", with = "mb")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64, minimum = 512, maximum = 67_108_864))]
    pub ram: Bytes,
    /// Size of the disk in GB, at least 10.
    #[serde(rename = "diskGB", with = "whole_gb")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64, minimum = 10, maximum = 1_048_576))]
    pub disk: Bytes,
    /// The GPUs that it wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_config: Option<MachineGpuConfig>,
    /// How it is connected.
    pub network_config: NetworkConfig,
    /// What the guest sets up at its first boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
}

mod whole_gb {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::units::Bytes;

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(bytes.0 >> 30)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        u64::deserialize(deserializer).map(Bytes::from_whole_gb)
    }
}

/// The kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum NetworkKind {
    /// A bridge of the host, with or without a VLAN.
    BridgeVlan,
}

/// How the guest gets its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum IpMode {
    /// From this config.
    Static,
    /// From the network.
    Dhcp,
}

/// How a machine is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkConfig {
    /// The kind of network.
    pub mode: NetworkKind,
    /// How the guest gets its address.
    pub ip_mode: IpMode,
    /// The address, when static.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Ipv4))]
    pub ip_address: Option<Ipv4Addr>,
    /// The mask, when static.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Ipv4))]
    pub netmask: Option<Ipv4Addr>,
    /// The gateway, when static; inside the subnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Ipv4))]
    pub gateway: Option<Ipv4Addr>,
    /// The VLAN, 1..4094; untagged when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4094))]
    pub vlan_id: Option<u16>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, max_items = 8))]
    pub dns: Vec<Ipv4Addr>,
}

/// What the guest sets up at its first boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CloudInit {
    /// Host name, RFC 1123.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            min_length = 1,
            max_length = 253,
            pattern = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"
        )
    )]
    pub hostname: Option<String>,
    /// A public key in OpenSSH format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_public_key: Option<String>,
    /// The user; the image's usual one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 253))]
    pub username: Option<String>,
    /// The user's password; write-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, min_length = 1, max_length = 127))]
    pub password: Option<Secret>,
}
