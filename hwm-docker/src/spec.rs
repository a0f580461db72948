//! From a workload to the body that creates its container. Pure.
//!
//! Containers get the least that common images run with: no new privileges, no added capabilities and
//! five of the engine's usual ones less, a bound on processes and on log files, an init that reaps, and
//! no restarts by the engine, since the manager restarts what should run.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use hwm_core::backend::{BackendError, BackendErrorKind, Result, Workload};
use hwm_core::config::{Config, NetworkMode, Protocol};
use hwm_core::device::Attachment;
use hwm_core::id::ResourceId;
use sha2::{Digest, Sha256};

/// Label: the owner, so that two managers on one engine stay apart.
pub(crate) const OWNER: &str = "io.hwm.owner";
/// Label: the resource.
pub(crate) const RESOURCE: &str = "io.hwm.resource";
/// Label: the generation that the container was made from.
pub(crate) const GENERATION: &str = "io.hwm.generation";
/// Label: digest of what the container was made from, limits aside.
pub(crate) const SPEC: &str = "io.hwm.spec";
/// Label: the resource's name, for people.
const NAME: &str = "io.hwm.name";
/// Label: the container's port that its endpoint is about, `8080/tcp`.
pub(crate) const PORT: &str = "io.hwm.port";

/// Of the engine's usual capabilities, those that servers do without.
const DROPPED_CAPABILITIES: [&str; 5] = ["AUDIT_WRITE", "MKNOD", "NET_RAW", "SETFCAP", "SETPCAP"];
/// Where a model is seen in the container.
pub(crate) const MODELS: &str = "/models";
/// Asks NVIDIA's runtime for GPUs. An image or a client that sets it would choose for itself.
const NVIDIA_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// The container's name.
pub(crate) fn container_name(id: ResourceId) -> String {
    format!("hwm-{id}")
}

/// How the engine attaches GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuAttachment {
    /// By NVIDIA's container runtime hook.
    Nvidia,
    /// By the Container Device Interface, with devices named by UUID.
    Cdi,
}

/// What the operator decided for every container.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) owner: String,
    pub(crate) pids_limit: u32,
    pub(crate) init: bool,
    pub(crate) publish: IpAddr,
    pub(crate) log_file_mb: u32,
    pub(crate) log_files: u32,
}

/// A path of the host, links resolved, that the container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BindMount {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

/// A workload with everything that only the node knows.
pub(crate) struct Plan<'a> {
    pub(crate) workload: &'a Workload,
    /// Full reference.
    pub(crate) image: &'a str,
    pub(crate) volumes: &'a [BindMount],
    /// Where the model is, for an inference container: mounted under [`MODELS`].
    pub(crate) model: Option<&'a ModelMount>,
    pub(crate) gpus: GpuAttachment,
}

/// A model on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelMount {
    pub(crate) mount: BindMount,
    /// `MODEL_PATH`.
    pub(crate) path: String,
}

/// What can change while the container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// CPU in billionths of a core.
    pub(crate) nano_cpus: Option<i64>,
    /// Memory in bytes.
    pub(crate) memory: Option<i64>,
}

impl Limits {
    pub(crate) fn of(config: &Config) -> Self {
        let positive = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            nano_cpus: config.cpu().map(|c| positive(c.0)),
            memory: config.ram().map(|b| positive(b.0)),
        }
    }
}

/// What the two container configs have in common.
struct Common<'a> {
    environment: &'a BTreeMap<String, String>,
    command: Option<&'a Vec<String>>,
    args: Option<&'a Vec<String>>,
    shm_size_mb: Option<u32>,
    network: NetworkMode,
}

impl<'a> Common<'a> {
    fn of(config: &'a Config) -> Result<Self> {
        match config {
            Config::Container(c) => Ok(Self {
                environment: &c.environment,
                command: c.command.as_ref(),
                args: c.args.as_ref(),
                shm_size_mb: c.shm_size_mb,
                network: c.network_mode,
            }),
            Config::Inference(c) => Ok(Self {
                environment: &c.environment,
                command: c.command.as_ref(),
                args: c.args.as_ref(),
                shm_size_mb: c.shm_size_mb,
                network: NetworkMode::Bridge,
            }),
            Config::Machine(_) => Err(BackendError::new(
                BackendErrorKind::Unsupported,
                "planning a container",
                "virtual machines do not run here",
            )),
        }
    }
}

/// The body that creates the container.
pub(crate) fn body(policy: &Policy, plan: &Plan<'_>) -> Result<ContainerCreateBody> {
    let workload = plan.workload;
    let common = Common::of(&workload.config)?;
    let limits = Limits::of(&workload.config);
    let published = common.network == NetworkMode::Bridge && !workload.ports.is_empty();
    let mut body = ContainerCreateBody {
        image: Some(plan.image.to_owned()),
        env: Some(environment(plan, common.environment)),
        entrypoint: common.command.cloned(),
        cmd: common.args.cloned(),
        exposed_ports: published.then(|| {
            let ports = workload.ports.iter();
            ports.map(|p| port_key(p.container_port, p.protocol)).collect()
        }),
        labels: Some(labels(policy, workload)),
        host_config: Some(HostConfig {
            nano_cpus: limits.nano_cpus,
            memory: limits.memory,
            // Swap would undo the limit.
            memory_swap: limits.memory,
            shm_size: common.shm_size_mb.map(|mb| i64::from(mb) << 20),
            pids_limit: Some(i64::from(policy.pids_limit)),
            init: policy.init.then_some(true),
            privileged: Some(false),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            cap_drop: Some(DROPPED_CAPABILITIES.map(str::to_owned).to_vec()),
            log_config: Some(log_config(policy)),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            network_mode: Some(
                match common.network {
                    NetworkMode::Bridge => "bridge",
                    NetworkMode::Host => "host",
                    NetworkMode::None => "none",
                }
                .to_owned(),
            ),
            port_bindings: published.then(|| port_bindings(policy, workload)),
            mounts: Some(mounts(plan)),
            device_requests: device_requests(plan)?,
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let digest = digest(&body)?;
    if let Some(labels) = &mut body.labels {
        labels.insert(SPEC.to_owned(), digest);
    }
    Ok(body)
}

/// Digest of what needs another container when it changes: all but limits, names and generation.
fn digest(body: &ContainerCreateBody) -> Result<String> {
    let mut body = body.clone();
    body.labels = None;
    if let Some(host) = &mut body.host_config {
        (host.nano_cpus, host.memory, host.memory_swap) = (None, None, None);
    }
    let value = serde_json::to_value(&body)
        .map_err(|e| BackendError::new(BackendErrorKind::Failed, "planning a container", e.to_string()))?;
    let mut text = String::new();
    canonical(&value, &mut text);
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text.as_bytes()) {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

/// JSON with sorted keys, whatever order a map happens to have.
fn canonical(value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            out.push('{');
            for (key, value) in sorted {
                out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        serde_json::Value::Array(items) => {
            out.push('[');
            for item in items {
                canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn labels(policy: &Policy, workload: &Workload) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (OWNER.to_owned(), policy.owner.clone()),
        (RESOURCE.to_owned(), workload.id.to_string()),
        (GENERATION.to_owned(), workload.generation.to_string()),
        (NAME.to_owned(), workload.name.clone()),
    ]);
    let first = workload.config.port_requests().into_iter().next();
    labels.extend(first.map(|p| (PORT.to_owned(), port_key(p.container_port, p.protocol))));
    labels
}

fn environment(plan: &Plan<'_>, wanted: &BTreeMap<String, String>) -> Vec<String> {
    let mut environment = wanted.clone();
    environment.remove(NVIDIA_DEVICES);
    if plan.workload.grants.is_empty() || plan.gpus == GpuAttachment::Cdi {
        environment.insert(NVIDIA_DEVICES.to_owned(), "void".to_owned());
    }
    if let Config::Inference(config) = &plan.workload.config {
        if let Some(model) = plan.model {
            // A client that names a part of the model, or a copy in its image, knows better.
            environment
                .entry("MODEL_PATH".to_owned())
                .or_insert_with(|| model.path.clone());
        }
        environment.extend(
            config
                .gpu_memory_limit
                .map(|mb| ("HWM_GPU_MEMORY_LIMIT_MB".to_owned(), mb.to_string())),
        );
    }
    environment
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

pub(crate) fn port_key(port: u16, protocol: Protocol) -> String {
    format!("{port}/{}", protocol.as_str())
}

fn port_bindings(policy: &Policy, workload: &Workload) -> HashMap<String, Option<Vec<PortBinding>>> {
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in &workload.ports {
        bindings
            .entry(port_key(port.container_port, port.protocol))
            .or_default()
            .get_or_insert_default()
            .push(PortBinding {
                // Without an address the engine takes IPv4 and IPv6.
                host_ip: (!policy.publish.is_unspecified()).then(|| policy.publish.to_string()),
                host_port: Some(port.host_port.to_string()),
            });
    }
    bindings
}

fn mounts(plan: &Plan<'_>) -> Vec<Mount> {
    let model = plan.model.map(|m| &m.mount);
    plan.volumes
        .iter()
        .chain(model)
        .map(|bind| Mount {
            typ: Some(MountType::BIND),
            source: Some(bind.source.to_string_lossy().into_owned()),
            target: Some(bind.target.clone()),
            read_only: Some(bind.read_only),
            ..Mount::default()
        })
        .collect()
}

fn log_config(policy: &Policy) -> HostConfigLogConfig {
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([
            ("max-size".to_owned(), format!("{}m", policy.log_file_mb)),
            ("max-file".to_owned(), policy.log_files.to_string()),
        ])),
    }
}

fn device_requests(plan: &Plan<'_>) -> Result<Option<Vec<DeviceRequest>>> {
    let mut ids = Vec::new();
    for grant in &plan.workload.grants {
        match &grant.attachment {
            Attachment::Runtime => ids.push(grant.uuid.clone()),
            Attachment::Vfio { .. } | Attachment::VirtualFunction { .. } | Attachment::Mdev { .. } => {
                return Err(BackendError::new(
                    BackendErrorKind::Unsupported,
                    "attaching GPUs",
                    format!("{} was prepared for a virtual machine", grant.uuid),
                ));
            }
        }
    }
    if ids.is_empty() {
        return Ok(None);
    }
    let request = match plan.gpus {
        GpuAttachment::Nvidia => DeviceRequest {
            driver: Some("nvidia".to_owned()),
            device_ids: Some(ids),
            capabilities: Some(vec![vec!["gpu".to_owned()]]),
            ..DeviceRequest::default()
        },
        GpuAttachment::Cdi => DeviceRequest {
            driver: Some("cdi".to_owned()),
            device_ids: Some(ids.iter().map(|id| format!("nvidia.com/gpu={id}")).collect()),
            ..DeviceRequest::default()
        },
    };
    Ok(Some(vec![request]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hwm_core::device::DeviceGrant;
    use hwm_core::id::GpuUuid;
    use hwm_core::ledger;
    use proptest::prelude::*;
    use serde_json::json;

    fn policy() -> Policy {
        Policy {
            owner: "node-1".into(),
            pids_limit: 4096,
            init: true,
            publish: IpAddr::from([0, 0, 0, 0]),
            log_file_mb: 16,
            log_files: 4,
        }
    }

    fn workload(config: serde_json::Value) -> Workload {
        let config: Config = serde_json::from_value(config).unwrap();
        let ports = config.port_requests();
        Workload {
            id: ResourceId::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
            name: "web \"one\"".into(),
            generation: 3,
            ports: ports
                .iter()
                .map(|p| ledger::PortBinding::new(p, p.host_port.unwrap_or(20_001)))
                .collect(),
            config,
            grants: Vec::new(),
        }
    }

    fn grant(uuid: &str) -> DeviceGrant {
        DeviceGrant {
            card: GpuUuid::new("GPU-1"),
            uuid: uuid.into(),
            memory: None,
            attachment: Attachment::Runtime,
        }
    }

    fn application() -> Workload {
        workload(json!({
            "type": "application-container", "registry": "docker-hub", "imageName": "nginx",
            "containerPorts": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "protocol": "udp"}],
            "cpuCores": 1.5, "ramLimit": 0.5, "shmSizeMB": 64,
            "environment": {"B": "two\nlines=\"x\"", "A": "", "NVIDIA_VISIBLE_DEVICES": "all"},
            "command": ["/bin/sh"], "args": ["-c", "exec sleep 9"],
        }))
    }

    fn inference() -> Workload {
        workload(json!({
            "type": "inference-container", "modelId": "m", "modelPath": "/models/llm",
            "dockerImage": "vllm/vllm:1", "containerPort": 8000, "gpuDeviceIds": ["0"], "gpuMemoryLimit": 8192,
        }))
    }

    fn golden(plan: &Plan<'_>) -> serde_json::Value {
        fn sorted(value: serde_json::Value) -> serde_json::Value {
            match value {
                serde_json::Value::Object(map) => {
                    let map: BTreeMap<_, _> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
                    map.into_iter().collect()
                }
                other => other,
            }
        }
        sorted(serde_json::to_value(body(&policy(), plan).unwrap()).unwrap())
    }

    #[test]
    fn an_application_container_is_made_with_the_least_privilege() {
        let workload = application();
        let volumes = [BindMount {
            source: "/srv/hwm/data".into(),
            target: "/data".into(),
            read_only: true,
        }];
        insta::assert_json_snapshot!(golden(&Plan {
            workload: &workload,
            image: "docker.io/library/nginx:latest",
            volumes: &volumes,
            model: None,
            gpus: GpuAttachment::Nvidia,
        }));
    }

    #[test]
    fn an_inference_container_gets_its_model_and_its_devices() {
        let mut workload = inference();
        workload.grants = vec![grant("GPU-1"), grant("MIG-2")];
        let model = ModelMount {
            mount: BindMount {
                source: "/srv/models/llm".into(),
                target: MODELS.into(),
                read_only: true,
            },
            path: MODELS.into(),
        };
        for gpus in [GpuAttachment::Nvidia, GpuAttachment::Cdi] {
            let plan = Plan {
                workload: &workload,
                image: "docker.io/vllm/vllm:1",
                volumes: &[],
                model: Some(&model),
                gpus,
            };
            insta::assert_json_snapshot!(format!("inference_{gpus:?}"), golden(&plan));
        }
    }

    #[test]
    fn a_client_that_names_its_model_path_gets_it() {
        let mut workload = inference();
        let model = ModelMount {
            mount: BindMount {
                source: "/srv/models/llm".into(),
                target: MODELS.into(),
                read_only: true,
            },
            path: MODELS.into(),
        };
        let path = |workload: &Workload| {
            let plan = Plan {
                workload,
                image: "i",
                volumes: &[],
                model: Some(&model),
                gpus: GpuAttachment::Nvidia,
            };
            let environment = body(&policy(), &plan).unwrap().env.unwrap();
            let paths: Vec<_> = environment
                .iter()
                .filter_map(|v| v.strip_prefix("MODEL_PATH="))
                .map(str::to_owned)
                .collect();
            paths
        };
        assert_eq!(path(&workload), [MODELS]);
        let Config::Inference(config) = &mut workload.config else {
            unreachable!()
        };
        config
            .environment
            .insert("MODEL_PATH".into(), "/models/part".into());
        assert_eq!(path(&workload), ["/models/part"]);
    }

    fn spec_label(workload: &Workload) -> String {
        let plan = Plan {
            workload,
            image: "i",
            volumes: &[],
            model: None,
            gpus: GpuAttachment::Nvidia,
        };
        body(&policy(), &plan)
            .unwrap()
            .labels
            .unwrap()
            .remove(SPEC)
            .unwrap()
    }

    #[test]
    fn the_spec_changes_with_what_needs_another_container_and_with_nothing_else() {
        let base = application();
        let of = |change: &dyn Fn(&mut Workload)| {
            let mut changed = base.clone();
            change(&mut changed);
            spec_label(&changed)
        };
        let same = spec_label(&base);
        assert_eq!(of(&|w| w.generation = 9), same);
        assert_eq!(of(&|w| w.name = "other".into()), same);
        let limits = |w: &mut Workload| {
            let Config::Container(c) = &mut w.config else {
                unreachable!()
            };
            c.cpu_cores = None;
            c.ram_limit = None;
        };
        assert_eq!(of(&limits), same);
        assert_ne!(of(&|w| w.ports[0].host_port = 9), same);
        assert_ne!(of(&|w| w.grants.push(grant("GPU-1"))), same);
        let args = |w: &mut Workload| {
            let Config::Container(c) = &mut w.config else {
                unreachable!()
            };
            c.args = None;
        };
        assert_ne!(of(&args), same);
    }

    #[test]
    fn a_device_for_a_machine_is_refused() {
        let mut workload = inference();
        let mut vfio = grant("GPU-1");
        vfio.attachment = Attachment::Vfio { functions: vec![] };
        workload.grants = vec![vfio];
        let plan = Plan {
            workload: &workload,
            image: "i",
            volumes: &[],
            model: None,
            gpus: GpuAttachment::Nvidia,
        };
        assert_eq!(
            body(&policy(), &plan).unwrap_err().kind,
            BackendErrorKind::Unsupported
        );
    }

    proptest! {
        #[test]
        fn no_value_leaves_its_variable(
            environment in prop::collection::btree_map("[A-Za-z_][A-Za-z0-9_]{0,8}", "\\PC{0,20}|[\\n=\"';$ ]{0,8}", 0..6)
        ) {
            let mut workload = application();
            let Config::Container(c) = &mut workload.config else { unreachable!() };
            c.environment = environment.clone();
            let plan = Plan { workload: &workload, image: "i", volumes: &[], model: None, gpus: GpuAttachment::Nvidia };
            let json = serde_json::to_string(&body(&policy(), &plan).unwrap()).unwrap();
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            let read: BTreeMap<String, String> = read["Env"].as_array().unwrap().iter()
                .map(|v| v.as_str().unwrap().split_once('=').unwrap())
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect();
            let mut expected = environment;
            expected.insert(NVIDIA_DEVICES.into(), "void".into());
            prop_assert_eq!(read, expected);
        }
    }
}
