//! The two container configs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::gpu::ContainerGpuConfig;
use crate::secret::Secret;
use crate::units::{Bytes, Cores, gb};

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Registry {
    /// Docker Hub.
    DockerHub,
    /// GitHub's registry; the image is `owner/name`, with or without `ghcr.io/` in front.
    Ghcr,
    /// Any other; the image is `host[:port]/path`.
    Private,
}

/// Credentials for a registry. The user name is no secret; the rest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegistryAuth {
    /// The user name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256))]
    pub username: Option<String>,
    /// The password; write-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, min_length = 1, max_length = 16_384))]
    pub password: Option<Secret>,
    /// A token in place of a password; write-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, min_length = 1, max_length = 16_384))]
    pub token: Option<Secret>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The contract's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the container that the node publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PortRequest {
    /// The port inside, 1..65535.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65_535))]
    pub container_port: u16,
    /// The port on the node, 1..65535; the node chooses when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65_535))]
    pub host_port: Option<u16>,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A folder of the host that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Volume {
    /// Absolute path on the host, under a volume root.
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 4095, pattern = "^/")
    )]
    pub host_path: String,
    /// Absolute path in the container.
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 4095, pattern = "^/")
    )]
    pub container_path: String,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// How a container is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum NetworkMode {
    /// Its own network namespace behind the engine's bridge.
    #[default]
    Bridge,
    /// The host's network; only where the operator's policy allows it.
    Host,
    /// No network.
    None,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PullPolicy {
    /// At every deployment.
    Always,
    /// When the engine does not have it.
    #[default]
    Missing,
    /// Never; a missing image is a failure.
    Never,
}

/// What happens when a container ends by itself. Restarts back off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RestartPolicy {
    /// Nothing: non-zero is `error`, zero is `stopped`.
    #[default]
    No,
    /// It is started again when it ended non-zero.
    OnFailure,
    /// It is started again however it ended.
    Always,
}

/// A container that runs an application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ContainerConfig {
    /// Where the image comes from.
    pub registry: Registry,
    /// The image without tag.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 700))]
    pub image_name: String,
    /// A tag, or a digest `sha256:…`.
    #[serde(default = "latest")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128))]
    pub image_tag: String,
    /// Credentials for the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
    /// The ports that the node publishes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container_ports: Vec<PortRequest>,
    /// CPU limit in cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>, minimum = 0.001, maximum = 4096))]
    pub cpu_cores: Option<Cores>,
    /// Memory limit in GB.
    #[serde(default, with = "gb::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>, minimum = 0.001, maximum = 65_536))]
    pub ram_limit: Option<Bytes>,
    /// GPUs by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_device_ids: Vec<String>,
    /// Folders of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// How it is connected.
    #[serde(default)]
    pub network_mode: NetworkMode,
    /// GPUs that the node chooses, in place of names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_config: Option<ContainerGpuConfig>,
    /// When the image is pulled.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// The entrypoint, in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The arguments, in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Size of /dev/shm in MB.
    #[serde(rename = "shmSizeMB", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 67_108_864))]
    pub shm_size_mb: Option<u32>,
    /// What happens when it ends by itself.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
}

fn latest() -> String {
    "latest".to_owned()
}

/// A container that serves a model over HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InferenceConfig {
    /// The client's name of the model.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 253))]
    pub model_id: String,
    /// Where the model is: a path, `file://`, `http(s)://` or `s3://`.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 4096))]
    pub model_path: String,
    /// Full image reference.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 700))]
    pub docker_image: String,
    /// The port that serves, inside.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65_535))]
    pub container_port: u16,
    /// GPUs by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_device_ids: Vec<String>,
    /// GPUs that the node chooses, in place of names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_config: Option<ContainerGpuConfig>,
    /// GPU memory that the server should keep to, in MB; handed over as HWM_GPU_MEMORY_LIMIT_MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 16_777_216))]
    pub gpu_memory_limit: Option<u64>,
    /// CPU limit in cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>, minimum = 0.001, maximum = 4096))]
    pub cpu_cores: Option<Cores>,
    /// Memory limit in GB.
    #[serde(default, with = "gb::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>, minimum = 0.001, maximum = 65_536))]
    pub ram_limit: Option<Bytes>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The entrypoint, in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The arguments, in place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Size of /dev/shm in MB.
    #[serde(rename = "shmSizeMB", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 67_108_864))]
    pub shm_size_mb: Option<u32>,
    /// What happens when it ends by itself.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// When the image is pulled.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// Credentials for the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
    /// What must answer 2xx.
    #[serde(default = "health_path")]
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 4096, pattern = "^/")
    )]
    pub health_check_path: String,
    /// Seconds between two checks.
    #[serde(default = "health_interval")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 3600))]
    pub health_check_interval_seconds: u32,
    /// Seconds after the start within which the first 2xx must come.
    #[serde(default = "health_deadline")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
    pub health_check_deadline_seconds: u32,
}

/// The default of `healthCheckPath`.
pub const HEALTH_PATH: &str = "/health";
/// The default of `healthCheckIntervalSeconds`.
pub const HEALTH_INTERVAL_SECONDS: u32 = 10;
/// The default of `healthCheckDeadlineSeconds`.
pub const HEALTH_DEADLINE_SECONDS: u32 = 600;

fn health_path() -> String {
    HEALTH_PATH.to_owned()
}

fn health_interval() -> u32 {
    HEALTH_INTERVAL_SECONDS
}

fn health_deadline() -> u32 {
    HEALTH_DEADLINE_SECONDS
}

/// An HTTP request that a workload must answer with 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The port inside the container.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Time between two checks.
    pub interval: Duration,
    /// Time from the start to the first success.
    pub deadline: Duration,
}

impl InferenceConfig {
    /// The health check that this config asks for.
    pub fn health_check(&self) -> HealthCheck {
        HealthCheck {
            port: self.container_port,
            path: self.health_check_path.clone(),
            interval: Duration::from_secs(self.health_check_interval_seconds.into()),
            deadline: Duration::from_secs(self.health_check_deadline_seconds.into()),
        }
    }
}
