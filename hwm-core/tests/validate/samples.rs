//! Valid configs in which every field is set, written without `..`: a new field does not compile until it is
//! here, and then does not pass until `fields.rs` says what becomes of it.

use std::collections::BTreeMap;

use hwm_core::access::Owner;
use hwm_core::config::container::{HEALTH_DEADLINE_SECONDS, HEALTH_INTERVAL_SECONDS};
use hwm_core::config::{
    CloudInit, Config, ContainerConfig, ContainerGpuConfig, ContainerGpuMode, InferenceConfig, IpMode,
    MachineConfig, MachineGpuConfig, MachineGpuMode, NetworkConfig, NetworkKind, NetworkMode, PortRequest,
    Protocol, PullPolicy, Registry, RegistryAuth, ResourceType, RestartPolicy, Volume,
};
use hwm_core::id::{BackendName, NodeId, ResourceId};
use hwm_core::lifecycle::{Desired, Phase};
use hwm_core::resource::{Allocation, Record};
use hwm_core::secret::Secret;
use hwm_core::units::{Bytes, Cores, Timestamp};
use hwm_core::validate::{CreateRequest, Rules, create_request};
use serde_json::{Value, json};

pub(crate) const PUBLIC_KEY: &str = "ssh-ed25519 \
    AAAAC3NzaC1lZDI1NTE5AAAAIPGYtkRHGr4LK8M1BAZ8Dbs6WvoJh8aKvZcI7ehEf7yS someone@example.com";

pub(crate) fn rules() -> Rules {
    Rules {
        volume_roots: vec!["/srv/volumes".into()],
        model_roots: vec!["/srv/models".into()],
        ..Rules::default()
    }
}

pub(crate) fn machine() -> MachineConfig {
    MachineConfig {
        os_image: "debian-12".to_owned(),
        vcpus: 4,
        ram: Bytes::from_mb(8192),
        disk: Bytes::from_whole_gb(100),
        gpu_config: Some(MachineGpuConfig {
            enabled: true,
            mode: MachineGpuMode::Passthrough,
            device_ids: vec!["GPU-0".to_owned()],
            mig_profile: None,
        }),
        network_config: NetworkConfig {
            mode: NetworkKind::BridgeVlan,
            ip_mode: IpMode::Static,
            ip_address: Some([192, 168, 100, 10].into()),
            netmask: Some([255, 255, 255, 0].into()),
            gateway: Some([192, 168, 100, 1].into()),
            vlan_id: Some(100),
            dns: vec![[1, 1, 1, 1].into()],
        },
        cloud_init: Some(CloudInit {
            hostname: Some("db-1.example.com".to_owned()),
            ssh_public_key: Some(PUBLIC_KEY.to_owned()),
            username: Some("debian".to_owned()),
            password: Some(Secret::new("correct horse")),
        }),
    }
}

pub(crate) fn machine_with_slice() -> MachineConfig {
    MachineConfig {
        gpu_config: Some(MachineGpuConfig {
            enabled: true,
            mode: MachineGpuMode::Mig,
            device_ids: Vec::new(),
            mig_profile: Some("2g.10gb".to_owned()),
        }),
        ..machine()
    }
}

fn variables() -> BTreeMap<String, String> {
    [("GREETING".to_owned(), "hello, world".to_owned())].into()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) fn container() -> ContainerConfig {
    ContainerConfig {
        registry: Registry::Private,
        image_name: "registry.example.com:5000/team/app".to_owned(),
        image_tag: "1.2".to_owned(),
        registry_auth: Some(RegistryAuth {
            username: Some("robot".to_owned()),
            password: Some(Secret::new("hunter2")),
            token: None,
        }),
        container_ports: vec![PortRequest {
            container_port: 80,
            host_port: Some(8080),
            protocol: Protocol::Udp,
        }],
        cpu_cores: Some(Cores::from_f64(1.5)),
        ram_limit: Some(Bytes::from_gb(0.75)),
        gpu_device_ids: words(&["GPU-0", "1"]),
        volumes: vec![Volume {
            host_path: "/srv/volumes/data".to_owned(),
            container_path: "/data".to_owned(),
            read_only: true,
        }],
        environment: variables(),
        network_mode: NetworkMode::Bridge,
        gpu_config: None,
        pull_policy: PullPolicy::Always,
        command: Some(words(&["/bin/app"])),
        args: Some(words(&["--verbose", ""])),
        shm_size_mb: Some(64),
        restart_policy: RestartPolicy::OnFailure,
    }
}

pub(crate) fn container_with_chosen_gpus() -> ContainerConfig {
    ContainerConfig {
        registry: Registry::Ghcr,
        image_name: "owner/app".to_owned(),
        registry_auth: Some(RegistryAuth {
            username: None,
            password: None,
            token: Some(Secret::new("ghp_0123")),
        }),
        gpu_device_ids: Vec::new(),
        gpu_config: Some(ContainerGpuConfig {
            enabled: true,
            mode: ContainerGpuMode::Whole,
            count: Some(2),
            mig_profile: None,
        }),
        ..container()
    }
}

pub(crate) fn container_with_slice() -> ContainerConfig {
    ContainerConfig {
        network_mode: NetworkMode::None,
        container_ports: Vec::new(),
        gpu_config: Some(ContainerGpuConfig {
            enabled: true,
            mode: ContainerGpuMode::Mig,
            count: None,
            mig_profile: Some("1g.5gb+me".to_owned()),
        }),
        gpu_device_ids: Vec::new(),
        ..container()
    }
}

pub(crate) fn inference() -> InferenceConfig {
    InferenceConfig {
        model_id: "llama-3.1-8b".to_owned(),
        model_path: "/srv/models/llama".to_owned(),
        docker_image: "registry.example.com/vllm/vllm-openai:v0.8.0".to_owned(),
        container_port: 8000,
        gpu_device_ids: words(&["GPU-0"]),
        gpu_config: None,
        gpu_memory_limit: Some(16_000),
        cpu_cores: Some(Cores::from_f64(2.5)),
        ram_limit: Some(Bytes::from_gb(31.5)),
        environment: variables(),
        command: Some(words(&["vllm"])),
        args: Some(words(&["serve"])),
        shm_size_mb: Some(1024),
        restart_policy: RestartPolicy::Always,
        pull_policy: PullPolicy::Never,
        registry_auth: Some(RegistryAuth {
            username: None,
            password: None,
            token: Some(Secret::new("ghp_0123")),
        }),
        health_check_path: "/v1/health?full=1".to_owned(),
        health_check_interval_seconds: HEALTH_INTERVAL_SECONDS + 1,
        health_check_deadline_seconds: HEALTH_DEADLINE_SECONDS + 1,
    }
}

pub(crate) fn inference_with_chosen_gpus() -> InferenceConfig {
    let container = container_with_chosen_gpus();
    InferenceConfig {
        gpu_device_ids: Vec::new(),
        gpu_config: container.gpu_config,
        registry_auth: Some(RegistryAuth {
            username: Some("robot".to_owned()),
            password: Some(Secret::new("hunter2")),
            token: None,
        }),
        ..inference()
    }
}

pub(crate) fn inference_with_slice() -> InferenceConfig {
    InferenceConfig {
        gpu_device_ids: Vec::new(),
        gpu_config: container_with_slice().gpu_config,
        ..inference()
    }
}

/// Samples that together have every field of a kind.
pub(crate) fn of(kind: ResourceType) -> Vec<Config> {
    match kind {
        ResourceType::VirtualMachine => {
            vec![Config::Machine(machine()), Config::Machine(machine_with_slice())]
        }
        ResourceType::ApplicationContainer => vec![
            Config::Container(container()),
            Config::Container(container_with_chosen_gpus()),
            Config::Container(container_with_slice()),
        ],
        ResourceType::InferenceContainer => vec![
            Config::Inference(inference()),
            Config::Inference(inference_with_chosen_gpus()),
            Config::Inference(inference_with_slice()),
        ],
    }
}

/// A config as a client sends it: with its secrets.
pub(crate) fn sent(config: &Config) -> Value {
    let mut value = serde_json::to_value(config).unwrap();
    for (path, secret) in config.secrets() {
        let pointer = format!("/{}", path.replace('.', "/"));
        *value.pointer_mut(&pointer).unwrap() = secret.expose().into();
    }
    value
}

/// The body of a create with every field.
pub(crate) fn body(config: &Config) -> Value {
    json!({
        "name": "sample",
        "description": "what it is for",
        "resourceType": config.resource_type(),
        "nodeId": "node-1",
        "config": sent(config),
        "metadata": { "team": "blue" },
        "autoStart": false,
    })
}

/// What the same request is to be read as.
pub(crate) fn request(config: Config) -> CreateRequest {
    CreateRequest {
        name: "sample".to_owned(),
        description: Some("what it is for".to_owned()),
        node: Some(NodeId::new("node-1")),
        config,
        metadata: [("team".to_owned(), "blue".to_owned())].into(),
        auto_start: false,
    }
}

/// The violations of a create, as clients see them.
pub(crate) fn violations(body: &Value) -> Vec<String> {
    match create_request(body, &rules()) {
        Ok(_) => Vec::new(),
        Err(found) => found.iter().map(ToString::to_string).collect(),
    }
}

/// The record of a resource that runs.
pub(crate) fn record(config: Config) -> Record {
    let time = Timestamp::from_millis(1_767_323_045_678);
    Record {
        id: ResourceId::from_u128(1),
        name: "sample".to_owned(),
        description: Some("what it is for".to_owned()),
        metadata: [("team".to_owned(), "blue".to_owned())].into(),
        node: NodeId::new("node-1"),
        backend: BackendName::new("sim"),
        owner: Owner {
            org_id: "org".to_owned(),
            group_id: "group".to_owned(),
            user_id: "user".to_owned(),
            agent_id: "agent".to_owned(),
            app_id: "app".to_owned(),
        },
        created_by: "user".to_owned(),
        updated_by: "user".to_owned(),
        created_at: time,
        updated_at: time,
        deleted_at: None,
        config,
        applied: None,
        phase: Phase::Running,
        desired: Desired::Running,
        generation: 1,
        revision: 1,
        allocation: Allocation::default(),
        runtime: None,
        last_health_check: Some(time),
        missed_health_checks: 0,
        restarts: 0,
        error_message: None,
    }
}
