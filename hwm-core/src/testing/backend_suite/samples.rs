//! Workloads to start from.

use crate::backend::Workload;
use crate::config::{
    Config, ContainerConfig, IpMode, MachineConfig, NetworkConfig, NetworkKind, NetworkMode, PullPolicy,
    Registry, RestartPolicy,
};
use crate::id::ResourceId;
use crate::units::Bytes;

/// A container of `busybox:latest` that runs `command`.
pub fn container(id: ResourceId, command: &[&str]) -> Workload {
    container_of(id, "busybox", command)
}

/// A container of an image of Docker Hub, or one that the engine has under that name, that runs `command`.
pub fn container_of(id: ResourceId, image: &str, command: &[&str]) -> Workload {
    let config = ContainerConfig {
        registry: Registry::DockerHub,
        image_name: image.to_owned(),
        image_tag: "latest".to_owned(),
        registry_auth: None,
        container_ports: Vec::new(),
        cpu_cores: None,
        ram_limit: Some(Bytes::from_mb(64)),
        gpu_device_ids: Vec::new(),
        volumes: Vec::new(),
        environment: std::collections::BTreeMap::new(),
        network_mode: NetworkMode::Bridge,
        gpu_config: None,
        pull_policy: PullPolicy::Missing,
        command: Some(command.iter().map(|&c| c.to_owned()).collect()),
        args: None,
        shm_size_mb: None,
        restart_policy: RestartPolicy::No,
    };
    workload(id, Config::Container(config))
}

/// A machine with one CPU, 512 MB of memory and 10 GB of disk that asks its network for an address.
pub fn machine(id: ResourceId, os_image: &str) -> Workload {
    let config = MachineConfig {
        os_image: os_image.to_owned(),
        vcpus: 1,
        ram: Bytes::from_mb(512),
        disk: Bytes::from_whole_gb(10),
        gpu_config: None,
        network_config: NetworkConfig {
            mode: NetworkKind::BridgeVlan,
            ip_mode: IpMode::Dhcp,
            ip_address: None,
            netmask: None,
            gateway: None,
            vlan_id: None,
            dns: Vec::new(),
        },
        cloud_init: None,
    };
    workload(id, Config::Machine(config))
}

/// A workload of generation 1 without ports and devices.
pub fn workload(id: ResourceId, config: Config) -> Workload {
    Workload {
        id,
        name: format!("suite {}", &id.to_string()[24..]),
        generation: 1,
        config,
        ports: Vec::new(),
        grants: Vec::new(),
    }
}
