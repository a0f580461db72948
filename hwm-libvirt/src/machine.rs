//! What a workload comes down to on this host: a domain and its volumes. Pure, but for the salt and the password.

use hwm_core::accelerator::{Attachment, DeviceGrant};
use hwm_core::backend::Workload;
use hwm_core::config::{Config, IpMode, MachineConfig};
use hwm_core::error::Violation;
use hwm_core::id::ResourceId;
use hwm_core::secret::Secret;
use zeroize::Zeroizing;

use crate::catalog::ImageFormat;
use crate::catalog::{Guest, Image};
use crate::connection::{Fault, FaultKind};
use crate::domain::{
    Adjustable, DomainSpec, Filter, HostDevice, Hypervisor, Interface, PciAddress, Plug, Tag, VolumeSpec,
    console_log_name, disk_name, domain_xml, seed_name, volume_xml,
};
use crate::images::{BaseImage, Kept};
use crate::mac::MacAddress;
use crate::options::LibvirtOptions;
use crate::seed::{Marker, SEED_BYTES, Seed, SeedError, seed_image};

/// What the host adds to a workload.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) plug: Plug,
    pub(crate) filter: bool,
    pub(crate) pool_path: String,
}

/// The machine's config; other configs are not for this backend.
pub(crate) fn machine(workload: &Workload) -> Result<&MachineConfig, Fault> {
    match &workload.config {
        Config::Machine(config) => Ok(config),
        Config::Container(_) | Config::Inference(_) => Err(Fault::new(
            FaultKind::Invalid,
            "libvirt runs virtual machines only",
        )),
    }
}

/// The domain of a workload.
pub(crate) fn domain(
    workload: &Workload,
    image: &Image,
    around: &Surroundings,
    options: &LibvirtOptions,
) -> Result<DomainSpec, Fault> {
    let config = machine(workload)?;
    let id = workload.id;
    let network = &config.network_config;
    let address = network.ip_address.filter(|_| network.ip_mode == IpMode::Static);
    let volume = |name: String| format!("{}/{name}", around.pool_path.trim_end_matches('/'));
    Ok(DomainSpec {
        tag: Tag {
            owner: options.owner.clone(),
            resource: id,
            generation: workload.generation,
            address,
            port: port(image.guest),
            started: None,
        },
        title: workload.name.clone(),
        hypervisor: around.hypervisor,
        vcpus: Adjustable {
            current: config.vcpus,
            maximum: config.vcpus.max(options.live_vcpus),
        },
        memory: Adjustable {
            current: config.ram,
            maximum: options
                .live_memory
                .map_or(config.ram, |most| most.max(config.ram)),
        },
        guest: image.guest,
        firmware: image.firmware,
        tpm: image.tpm,
        bus: image.bus,
        disk: volume(disk_name(id)),
        seed: volume(seed_name(id)),
        console_log: volume(console_log_name(id)),
        interface: Interface {
            mac: MacAddress::of(id),
            plug: around.plug.clone(),
            filter: around.filter.then_some(Filter { address }),
        },
        devices: devices(&workload.grants)?,
        screen_password: Some(screen_password()),
    })
}

/// The port that people reach a guest on: SSH, or Windows' remote desktop.
const fn port(guest: Guest) -> u16 {
    match guest {
        Guest::Linux => 22,
        Guest::Windows => 3389,
    }
}

fn devices(grants: &[DeviceGrant]) -> Result<Vec<HostDevice>, Fault> {
    let unknown = |text: &str| Fault::new(FaultKind::Invalid, format!("{text:?} is no device of a host"));
    let pci = |text: &str| PciAddress::parse(text).ok_or_else(|| unknown(text));
    let mut devices = Vec::new();
    for grant in grants {
        match &grant.attachment {
            Attachment::Vfio { functions } => {
                for function in functions {
                    devices.push(HostDevice::Vfio(pci(function)?));
                }
            }
            Attachment::VirtualFunction { function } => {
                devices.push(HostDevice::VirtualFunction(pci(function)?))
            }
            Attachment::Mdev { uuid } => {
                devices.push(HostDevice::Mdev(uuid.parse().map_err(|_| unknown(uuid))?));
            }
            Attachment::Runtime => {
                return Err(Fault::new(
                    FaultKind::Invalid,
                    "a device of the container runtime cannot be given to a machine",
                ));
            }
        }
    }
    Ok(devices)
}

/// Eight characters, the most that VNC looks at.
fn screen_password() -> Secret {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let random = uuid::Uuid::new_v4();
    // The first six bytes of a v4 UUID are random.
    let mut bits = random.as_bytes()[..5]
        .iter()
        .fold(0u64, |n, b| n << 8 | u64::from(*b));
    let mut text = Zeroizing::new(String::new());
    for _ in 0..8 {
        text.push(LETTERS[(bits & 31) as usize].into());
        bits >>= 5;
    }
    Secret::new(text.as_str())
}

/// Why a machine cannot have a seed, as a broken rule of its config.
pub(crate) fn seed_violation(config: &MachineConfig, error: &SeedError) -> Violation {
    let field = match error {
        SeedError::ClearPassword | SeedError::Hash => "config.cloudInit.password",
        SeedError::ControlCharacter(field) => {
            return Violation::new(format!("config.{field}"), error.to_string());
        }
        SeedError::Address => "config.networkConfig.ipAddress",
        SeedError::Write if config.cloud_init.is_some() => "config.cloudInit",
        SeedError::Write => "config",
    };
    Violation::new(field, error.to_string())
}

/// The seed of a workload, as the bytes of its volume.
pub(crate) fn seed_bytes(
    workload: &Workload,
    image: &Image,
    options: &LibvirtOptions,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let seed = seed(workload.id, &workload.name, machine(workload)?, image, options)
        .map_err(|e| Fault::new(FaultKind::Invalid, e.to_string()))?;
    let marker = Marker {
        owner: options.owner.clone(),
        resource: workload.id,
    };
    seed_image(&seed, &marker).map_err(|e| Fault::new(FaultKind::Invalid, format!("the seed: {e}")))
}

/// The seed without the password, where the one that is written holds it in clear.
pub(crate) fn seed_without_password(
    workload: &Workload,
    image: &Image,
    options: &LibvirtOptions,
) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
    let mut without = workload.clone();
    let Config::Machine(config) = &mut without.config else {
        return Ok(None);
    };
    let password = config.cloud_init.as_mut().and_then(|init| init.password.take());
    match (image.guest, password) {
        (Guest::Windows, Some(_)) => seed_bytes(&without, image, options).map(Some),
        (Guest::Windows | Guest::Linux, _) => Ok(None),
    }
}

/// The seed of a machine, with a fresh salt.
pub(crate) fn seed(
    id: ResourceId,
    name: &str,
    config: &MachineConfig,
    image: &Image,
    options: &LibvirtOptions,
) -> Result<Seed, SeedError> {
    let mut salt = [0; 12];
    let (a, b) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    // The first six bytes of a v4 UUID are random.
    salt[..6].copy_from_slice(&a.as_bytes()[..6]);
    salt[6..].copy_from_slice(&b.as_bytes()[..6]);
    Seed::new(id, name, config, image, options.clear_password, salt)
}

/// The XML of everything that a workload is made of.
pub(crate) struct Parts {
    pub(crate) domain: String,
    pub(crate) disk: String,
    pub(crate) seed: String,
    pub(crate) console_log: String,
    /// What the disk is made on.
    pub(crate) base: Kept,
}

impl Parts {
    pub(crate) fn new(spec: &DomainSpec, disk_bytes: u64, base: &BaseImage) -> Result<Self, Fault> {
        let id = spec.tag.resource;
        let invalid = |e: crate::domain::XmlError| Fault::new(FaultKind::Invalid, e.to_string());
        let raw = |name: String, capacity: u64| VolumeSpec {
            name,
            capacity,
            format: ImageFormat::Raw,
            backing: None,
            read_only: false,
        };
        Ok(Self {
            domain: domain_xml(spec).map_err(invalid)?,
            disk: volume_xml(&VolumeSpec {
                name: disk_name(id),
                capacity: disk_bytes.max(base.virtual_size),
                format: ImageFormat::Qcow2,
                backing: Some((base.path.clone(), base.format)),
                read_only: false,
            })
            .map_err(invalid)?,
            seed: volume_xml(&raw(seed_name(id), SEED_BYTES)).map_err(invalid)?,
            console_log: volume_xml(&raw(console_log_name(id), 0)).map_err(invalid)?,
            base: base.kept.clone(),
        })
    }
}
