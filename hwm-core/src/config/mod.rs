//! What a client wants of a workload: one of three configs, told apart by `type`.
//!
//! These types are read from clients only through [`crate::validate`], which names every violation at
//! once; their `Deserialize` reads back what hwm itself wrote.

pub mod container;
pub mod gpu;
pub mod machine;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use container::{
    ContainerConfig, HealthCheck, InferenceConfig, NetworkMode, PortRequest, Protocol, PullPolicy, Registry,
    RegistryAuth, RestartPolicy, Volume,
};
pub use gpu::{ContainerGpuConfig, ContainerGpuMode, GpuRequest, MachineGpuConfig, MachineGpuMode};
pub use machine::{CloudInit, IpMode, MachineConfig, NetworkConfig, NetworkKind};

use crate::secret::{REDACTED, Secret};
use crate::units::{Bytes, Cores};

/// The kinds of workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ResourceType {
    /// A virtual machine (libvirt/KVM).
    VirtualMachine,
    /// A container that runs an application.
    ApplicationContainer,
    /// A container that serves a model.
    InferenceContainer,
}

impl ResourceType {
    /// All of them, in the contract's order.
    pub const ALL: [Self; 3] = [
        Self::VirtualMachine,
        Self::ApplicationContainer,
        Self::InferenceContainer,
    ];

    /// The contract's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VirtualMachine => "virtual-machine",
            Self::ApplicationContainer => "application-container",
            Self::InferenceContainer => "inference-container",
        }
    }

    /// Reads the contract's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == text)
    }

    /// Whether it runs as a container.
    pub const fn is_container(self) -> bool {
        match self {
            Self::VirtualMachine => false,
            Self::ApplicationContainer | Self::InferenceContainer => true,
        }
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a client wants of a workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Config {
    /// A virtual machine.
    #[serde(rename = "virtual-machine")]
    Machine(MachineConfig),
    /// An application container.
    #[serde(rename = "application-container")]
    Container(ContainerConfig),
    /// An inference container.
    #[serde(rename = "inference-container")]
    Inference(InferenceConfig),
}

impl Config {
    /// The kind of workload this configures.
    pub const fn resource_type(&self) -> ResourceType {
        match self {
            Self::Machine(_) => ResourceType::VirtualMachine,
            Self::Container(_) => ResourceType::ApplicationContainer,
            Self::Inference(_) => ResourceType::InferenceContainer,
        }
    }

    /// CPU that the workload takes while it runs, if limited.
    pub fn cpu(&self) -> Option<Cores> {
        match self {
            Self::Machine(c) => Some(Cores::whole(c.vcpus)),
            Self::Container(c) => c.cpu_cores,
            Self::Inference(c) => c.cpu_cores,
        }
    }

    /// Memory that the workload takes while it runs, if limited.
    pub fn ram(&self) -> Option<Bytes> {
        match self {
            Self::Machine(c) => Some(c.ram),
            Self::Container(c) => c.ram_limit,
            Self::Inference(c) => c.ram_limit,
        }
    }

    /// Disk that the workload takes as long as it exists.
    pub fn disk(&self) -> Option<Bytes> {
        match self {
            Self::Machine(c) => Some(c.disk),
            Self::Container(_) | Self::Inference(_) => None,
        }
    }

    /// The GPUs that it wants.
    pub fn gpu_request(&self) -> GpuRequest {
        match self {
            Self::Machine(c) => c
                .gpu_config
                .as_ref()
                .map_or(GpuRequest::None, MachineGpuConfig::request),
            Self::Container(c) => gpu::container_request(&c.gpu_device_ids, c.gpu_config.as_ref()),
            Self::Inference(c) => gpu::container_request(&c.gpu_device_ids, c.gpu_config.as_ref()),
        }
    }

    /// The ports that it publishes on the node, before free ones are chosen.
    pub fn port_requests(&self) -> Vec<PortRequest> {
        match self {
            Self::Machine(_) => Vec::new(),
            Self::Container(c) if c.network_mode == NetworkMode::None => Vec::new(),
            Self::Container(c) => c.container_ports.clone(),
            Self::Inference(c) => {
                vec![PortRequest {
                    container_port: c.container_port,
                    host_port: None,
                    protocol: Protocol::Tcp,
                }]
            }
        }
    }

    /// What restarts it when it ends by itself. Machines are never restarted by that.
    pub fn restart_policy(&self) -> RestartPolicy {
        match self {
            Self::Machine(_) => RestartPolicy::No,
            Self::Container(c) => c.restart_policy,
            Self::Inference(c) => c.restart_policy,
        }
    }

    /// What must answer before it counts as running.
    pub fn health_check(&self) -> Option<HealthCheck> {
        match self {
            Self::Machine(_) | Self::Container(_) => None,
            Self::Inference(c) => Some(c.health_check()),
        }
    }

    /// Every secret inside, by field path.
    pub fn secrets(&self) -> BTreeMap<&'static str, &Secret> {
        let mut found = BTreeMap::new();
        match self {
            Self::Machine(c) => {
                let password = c.cloud_init.as_ref().and_then(|i| i.password.as_ref());
                found.extend(password.map(|s| ("cloudInit.password", s)));
            }
            Self::Container(ContainerConfig {
                registry_auth: Some(auth),
                ..
            })
            | Self::Inference(InferenceConfig {
                registry_auth: Some(auth),
                ..
            }) => {
                found.extend(auth.password.as_ref().map(|s| ("registryAuth.password", s)));
                found.extend(auth.token.as_ref().map(|s| ("registryAuth.token", s)));
            }
            Self::Container(_) | Self::Inference(_) => {}
        }
        found
    }

    /// Replaces every secret by its mark, for a config that is kept without them.
    pub fn forget_secrets(&mut self) {
        let marks = self
            .secrets()
            .into_keys()
            .map(|path| (path.to_owned(), Secret::new(REDACTED)))
            .collect();
        self.restore_secrets(marks);
    }

    /// Puts back the secrets that [`Config::secrets`] named, where the config has a place for them.
    pub fn restore_secrets(&mut self, mut from: BTreeMap<String, Secret>) {
        let mut put = |path: &str, place: &mut Option<Secret>| {
            if place.is_some()
                && let Some(secret) = from.remove(path)
            {
                *place = Some(secret);
            }
        };
        match self {
            Self::Machine(c) => {
                if let Some(init) = &mut c.cloud_init {
                    put("cloudInit.password", &mut init.password);
                }
            }
            Self::Container(ContainerConfig {
                registry_auth: Some(auth),
                ..
            })
            | Self::Inference(InferenceConfig {
                registry_auth: Some(auth),
                ..
            }) => {
                put("registryAuth.password", &mut auth.password);
                put("registryAuth.token", &mut auth.token);
            }
            Self::Container(_) | Self::Inference(_) => {}
        }
    }
}
