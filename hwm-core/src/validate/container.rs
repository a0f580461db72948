//! The rules of both kinds of container.

use std::collections::BTreeMap;

use super::object::Object;
use super::reader::Field;
use super::{gpu, image, limits, model, path, secret, text};
use crate::config::container::{HEALTH_DEADLINE_SECONDS, HEALTH_INTERVAL_SECONDS, HEALTH_PATH};
use crate::config::{
    ContainerConfig, InferenceConfig, NetworkMode, PortRequest, Protocol, PullPolicy, Registry, RegistryAuth,
    RestartPolicy, Volume,
};
use crate::units::{Bytes, Cores};

const REGISTRIES: [(&str, Registry); 3] = [
    ("docker-hub", Registry::DockerHub),
    ("ghcr", Registry::Ghcr),
    ("private", Registry::Private),
];
const PROTOCOLS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
const NETWORK_MODES: [(&str, NetworkMode); 3] = [
    ("bridge", NetworkMode::Bridge),
    ("host", NetworkMode::Host),
    ("none", NetworkMode::None),
];
const PULL_POLICIES: [(&str, PullPolicy); 3] = [
    ("missing", PullPolicy::Missing),
    ("always", PullPolicy::Always),
    ("never", PullPolicy::Never),
];
const RESTART_POLICIES: [(&str, RestartPolicy); 3] = [
    ("no", RestartPolicy::No),
    ("on-failure", RestartPolicy::OnFailure),
    ("always", RestartPolicy::Always),
];

/// Variables by which NVIDIA's runtime hands out GPUs: set by a client, they would go round the claims.
const GPU_VARIABLES: [&str; 4] = [
    "NVIDIA_IMEX_CHANNELS",
    "NVIDIA_MIG_CONFIG_DEVICES",
    "NVIDIA_MIG_MONITOR_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
];

pub(super) fn application(fields: &Object<'_>) -> Option<ContainerConfig> {
    let registry = fields.required("registry", |f| f.word(&REGISTRIES));
    let image_name = fields.required("imageName", |f| image::name(f, registry));
    let image_tag = fields.optional("imageTag", image::tag);
    let host = registry
        .zip(image_name.as_deref())
        .map(|(r, n)| image::registry_host(r, n));
    let registry_auth = fields.optional("registryAuth", |f| auth(f, host));
    let network_mode = fields.optional("networkMode", network_mode).unwrap_or_default();
    let container_ports = fields.optional("containerPorts", |f| ports(f, network_mode));
    let cpu_cores = fields.optional("cpuCores", cores);
    let ram_limit = fields.optional("ramLimit", gigabytes);
    let (gpu_device_ids, gpu_config) = gpu::container(fields);
    let volumes = fields.optional("volumes", volumes);
    let common = Common::read(fields);
    Some(ContainerConfig {
        registry: registry?,
        image_name: image_name?,
        image_tag: image_tag.unwrap_or_else(|| "latest".to_owned()),
        registry_auth,
        container_ports: container_ports.unwrap_or_default(),
        cpu_cores,
        ram_limit,
        gpu_device_ids,
        volumes: volumes.unwrap_or_default(),
        environment: common.environment,
        network_mode,
        gpu_config,
        pull_policy: common.pull_policy,
        command: common.command,
        args: common.args,
        shm_size_mb: common.shm_size_mb,
        restart_policy: common.restart_policy,
    })
}

pub(super) fn inference(fields: &Object<'_>) -> Option<InferenceConfig> {
    let model_id = fields.required("modelId", |f| text::line(f, limits::LABEL));
    let model_path = fields.required("modelPath", model::source);
    let docker_image = fields.required("dockerImage", image::reference);
    let host = docker_image.as_deref().map(image::reference_host);
    let registry_auth = fields.optional("registryAuth", |f| auth(f, host));
    let container_port = fields.required("containerPort", |f| f.integer(1..=u16::MAX));
    let (gpu_device_ids, gpu_config) = gpu::inference(fields);
    let gpu_memory_limit = fields.optional("gpuMemoryLimit", |f| f.integer(limits::GPU_MEMORY_MB));
    let cpu_cores = fields.optional("cpuCores", cores);
    let ram_limit = fields.optional("ramLimit", gigabytes);
    let health_check_path = fields.optional("healthCheckPath", text::http_path);
    let interval = fields.optional("healthCheckIntervalSeconds", |f| {
        f.integer(limits::HEALTH_INTERVAL)
    });
    let deadline = fields.optional("healthCheckDeadlineSeconds", |f| {
        f.integer(limits::HEALTH_DEADLINE)
    });
    let common = Common::read(fields);
    Some(InferenceConfig {
        model_id: model_id?,
        model_path: model_path?,
        docker_image: docker_image?,
        container_port: container_port?,
        gpu_device_ids,
        gpu_config,
        gpu_memory_limit,
        cpu_cores,
        ram_limit,
        environment: common.environment,
        command: common.command,
        args: common.args,
        shm_size_mb: common.shm_size_mb,
        restart_policy: common.restart_policy,
        pull_policy: common.pull_policy,
        registry_auth,
        health_check_path: health_check_path.unwrap_or_else(|| HEALTH_PATH.to_owned()),
        health_check_interval_seconds: interval.unwrap_or(HEALTH_INTERVAL_SECONDS),
        health_check_deadline_seconds: deadline.unwrap_or(HEALTH_DEADLINE_SECONDS),
    })
}

/// What both kinds say in the same words.
struct Common {
    environment: BTreeMap<String, String>,
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
    shm_size_mb: Option<u32>,
    restart_policy: RestartPolicy,
    pull_policy: PullPolicy,
}

impl Common {
    fn read(fields: &Object<'_>) -> Self {
        let command = fields.optional("command", |f| {
            let command = arguments(f)?;
            if command.first().is_some_and(String::is_empty) {
                f.cx.add(&format!("{}[0]", f.path), "must name a program");
            }
            Some(command)
        });
        // Every engine takes an empty list as none.
        let some = |list: Option<Vec<String>>| list.filter(|list| !list.is_empty());
        Self {
            environment: fields.optional("environment", environment).unwrap_or_default(),
            command: some(command),
            args: some(fields.optional("args", arguments)),
            shm_size_mb: fields.optional("shmSizeMB", |f| f.integer(limits::SHM_MB)),
            restart_policy: fields
                .optional("restartPolicy", |f| f.word(&RESTART_POLICIES))
                .unwrap_or_default(),
            pull_policy: fields
                .optional("pullPolicy", |f| f.word(&PULL_POLICIES))
                .unwrap_or_default(),
        }
    }
}

fn cores(field: &Field<'_>) -> Option<Cores> {
    field.number(limits::CPU_CORES).map(Cores::from_f64)
}

/// An amount in GB, rounded to the six decimals that it reads back with.
fn gigabytes(field: &Field<'_>) -> Option<Bytes> {
    let gb = field.number(limits::RAM_GB)?;
    Some(Bytes::from_gb((gb * 1e6).round() / 1e6))
}

fn network_mode(field: &Field<'_>) -> Option<NetworkMode> {
    match field.word(&NETWORK_MODES)? {
        NetworkMode::Host if !field.cx.rules.host_network => field.refuse(
            "\"host\" is refused by this node's policy on host networking: use \"bridge\", or have the \
             operator allow it",
        ),
        mode => Some(mode),
    }
}

fn ports(field: &Field<'_>, mode: NetworkMode) -> Option<Vec<PortRequest>> {
    let ports = field.items(limits::PORTS, |f| port(f, mode))?;
    if mode == NetworkMode::None && !ports.is_empty() {
        return field.refuse("has no meaning with networkMode \"none\": remove it, or use \"bridge\"");
    }
    field.distinct(&ports, "containerPort", |p| Some((p.container_port, p.protocol)));
    field.distinct(&ports, "hostPort", |p| Some((p.host_port?, p.protocol)));
    Some(ports.into_iter().flatten().collect())
}

fn port(field: &Field<'_>, mode: NetworkMode) -> Option<PortRequest> {
    let fields = field.object()?;
    let container_port = fields.required("containerPort", |f| f.integer(1..=u16::MAX));
    let host_port = fields.optional("hostPort", |f| f.integer(1..=u16::MAX));
    let protocol = fields.optional("protocol", |f| f.word(&PROTOCOLS));
    fields.finish();
    if mode == NetworkMode::Host
        && host_port.is_some()
        && container_port.is_some()
        && host_port != container_port
    {
        fields.broken(
            "hostPort",
            "must be the containerPort with networkMode \"host\", where nothing is mapped: remove it",
        );
    }
    Some(PortRequest {
        container_port: container_port?,
        host_port,
        protocol: protocol.unwrap_or_default(),
    })
}

fn volumes(field: &Field<'_>) -> Option<Vec<Volume>> {
    let volumes = field.items(limits::VOLUMES, |f| {
        let fields = f.object()?;
        let host_path = fields.required("hostPath", path::volume);
        let container_path = fields.required("containerPath", path::mount_point);
        let read_only = fields.optional("readOnly", Field::boolean);
        fields.finish();
        Some(Volume {
            host_path: host_path?,
            container_path: container_path?,
            read_only: read_only.unwrap_or_default(),
        })
    })?;
    field.distinct(&volumes, "containerPath", |v| Some(v.container_path.clone()));
    Some(volumes.into_iter().flatten().collect())
}

fn environment(field: &Field<'_>) -> Option<BTreeMap<String, String>> {
    let variables = field.entries(limits::VARIABLES, variable)?;
    total(
        field,
        variables.iter().map(|(name, value)| name.len() + value.len() + 2),
    )?;
    Some(variables)
}

/// One environment variable. `HWM_…` is hwm's own; `MODEL_PATH` is not, so a client's takes effect.
fn variable(name: &str, field: &Field<'_>) -> Option<String> {
    let length = name.len();
    if !limits::VARIABLE_NAME.contains(&length) || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'=') {
        return field.refuse(format!(
            "must have a name of 1 to {} printable ASCII characters without '=' and spaces",
            limits::VARIABLE_NAME.end()
        ));
    }
    if name.starts_with("HWM_") {
        return field.refuse("must have another name: HWM_ is reserved for what hwm itself sets");
    }
    if GPU_VARIABLES.contains(&name) {
        return field.refuse("must not be set, as it hands out GPUs: use gpuDeviceIds or gpuConfig");
    }
    text::raw(field, 0..=limits::ARGUMENT - 1 - length)
}

fn arguments(field: &Field<'_>) -> Option<Vec<String>> {
    let items = field.items(limits::ARGUMENTS, |f| text::raw(f, 0..=limits::ARGUMENT))?;
    let items: Vec<String> = items.into_iter().flatten().collect();
    total(field, items.iter().map(|item| item.len() + 1))?;
    Some(items)
}

fn total(field: &Field<'_>, sizes: impl Iterator<Item = usize>) -> Option<()> {
    if sizes.sum::<usize>() > limits::ARGUMENTS_TOTAL {
        return field.refuse(format!(
            "must have at most {} bytes in all",
            limits::ARGUMENTS_TOTAL
        ));
    }
    Some(())
}

/// Credentials for the registry `host`. Stored ones never follow an image to another registry, which would
/// show them to it.
fn auth(field: &Field<'_>, host: Option<String>) -> Option<RegistryAuth> {
    let fields = field.object()?;
    let before = field.cx.previous.and_then(image::config_host);
    let moved = host.is_some() && before.is_some() && host != before;
    let rule = |f: &Field<'_>| text::credential(f, limits::REGISTRY_SECRET);
    let given = |f: &Field<'_>, name| {
        let secret = secret(f, name, rule)?;
        if moved && f.value.as_str() == Some(crate::secret::REDACTED) {
            return f.refuse(
                "must be given again, as the image now comes from another registry; or remove it with null",
            );
        }
        Some(secret)
    };
    let username = fields.optional("username", |f| {
        let name = text::line(f, limits::REGISTRY_USER)?;
        // HTTP's basic authentication ends the name there.
        if name.contains(':') {
            return f.refuse("must not contain ':'");
        }
        Some(name)
    });
    let password = fields.optional("password", |f| given(f, "registryAuth.password"));
    let token = fields.optional("token", |f| given(f, "registryAuth.token"));
    fields.finish();
    if fields.has("password") && fields.has("token") {
        fields.broken(
            "token",
            "must not be given beside password: remove one of the two (in a PATCH with null)",
        );
    }
    if fields.has("password") && !fields.has("username") {
        fields.broken("username", "is required with password");
    }
    if fields.has("username") && !fields.has("password") && !fields.has("token") {
        fields.broken("password", "is required with username: give it, or a token");
    }
    Some(RegistryAuth {
        username,
        password,
        token,
    })
}
