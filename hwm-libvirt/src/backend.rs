//! The backend: what its parts share, and the trait's methods.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hwm_core::backend::{
    Backend, BackendError, BackendErrorKind, BackendEvent, BackendInfo, BackendReport, Call, CheckReport,
    Facets, LogLine, LogQuery, Observed, Result, StopOptions, Stream, Workload,
};
use hwm_core::config::{Config, IpMode, MachineConfig, ResourceType};
use hwm_core::id::{BackendName, ResourceId};
use hwm_core::ledger::Capacity;
use hwm_core::metrics::Metrics;
use hwm_core::units::{Bytes, Cores};
use tokio::sync::{broadcast, watch};

use crate::catalog::{Catalog, Image};
use crate::connection::{Connection, ConnectionEvent, Fault};
use crate::console::SerialHubs;
use crate::domain::{Hypervisor, PoolSeen, domain_name, domain_xml, pool, pool_xml};
use crate::images::{Images, StoredImage};
use crate::lifecycle::{Place, Start};
use crate::machine::{self, Parts, Surroundings};
use crate::network::HostNetwork;
use crate::observe::Observations;
use crate::options::LibvirtOptions;
use crate::turns::{Turns, hold};

/// How long a call may take that only asks.
pub(crate) const QUICK: Duration = Duration::from_secs(15);

/// Machines on libvirt; clones are the same backend.
#[derive(Clone)]
pub struct Libvirt {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: LibvirtOptions,
    pub(crate) connection: Connection,
    pub(crate) images: Images,
    pub(crate) observations: Observations,
    pub(crate) hubs: SerialHubs,
    pub(crate) journal: crate::logs::JournalCell,
    pub(crate) turns: Mutex<Turns>,
    pool: Mutex<Option<PoolSeen>>,
    hypervisor: tokio::sync::OnceCell<Hypervisor>,
    /// Hints of our own, beside libvirt's events.
    pub(crate) hints: broadcast::Sender<BackendEvent>,
    /// Changes when anything happens on the connection.
    pub(crate) happenings: watch::Sender<u64>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Libvirt {
    /// A backend that connects when it is first used. To be called within a tokio runtime.
    ///
    /// # Errors
    /// An image catalogue that cannot be read.
    pub fn new(options: LibvirtOptions) -> Result<Self> {
        let invalid = |e: String| BackendError::new(BackendErrorKind::Invalid, "preparing libvirt", e);
        let catalog = match &options.image_catalog {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|e| invalid(format!("{}: {e}", path.display())))?;
                Catalog::parse(&text)
            }
            None => Catalog::built_in(),
        }
        .map_err(|e| invalid(e.to_string()))?;
        if options.uri.contains('\0') || options.owner.chars().any(char::is_control) {
            return Err(invalid(
                "the URI or the owner label holds a control character".into(),
            ));
        }
        let connection = Connection::new(&options.uri);
        let images = Images::new(
            connection.clone(),
            catalog,
            &options.pool,
            &options.owner,
            &options.cache_dir,
        );
        let inner = Arc::new(Inner {
            observations: Observations::new(connection.events()),
            hubs: SerialHubs::default(),
            journal: Mutex::default(),
            turns: Mutex::default(),
            pool: Mutex::new(None),
            hypervisor: tokio::sync::OnceCell::new(),
            hints: broadcast::Sender::new(256),
            happenings: watch::Sender::new(0),
            options,
            connection,
            images,
        });
        tokio::spawn(note_happenings(inner.connection.events(), Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// The image catalogue.
    pub fn catalog(&self) -> &Catalog {
        self.inner.images.catalog()
    }

    /// Fetches an image ahead of its first use.
    ///
    /// # Errors
    /// An image that the catalogue does not have, and whatever keeps it from being fetched.
    pub async fn pull_image(&self, name: &str, progress: &hwm_core::backend::ProgressSink) -> Result<()> {
        self.inner.pool().await?;
        let image = self.catalog().find(name).ok_or_else(|| {
            BackendError::new(
                BackendErrorKind::NotFound,
                format!("fetching image {name}"),
                "the catalogue has no such image",
            )
        })?;
        self.inner.images.ensure(image, progress).await.map(|_| ())
    }

    /// The images that are stored whole in the pool, whichever manager fetched them.
    ///
    /// # Errors
    /// A libvirt or a pool that cannot be used.
    pub async fn stored_images(&self) -> Result<Vec<StoredImage>> {
        self.inner.pool().await?;
        self.inner.images.stored().await
    }

    /// Removes stored images that this manager fetched and no disk is made from, and answers them: those that are not
    /// current any more, or `all`.
    ///
    /// # Errors
    /// A libvirt or a pool that cannot be used. What was removed before that stays removed.
    pub async fn prune_images(&self, all: bool) -> Result<Vec<StoredImage>> {
        self.inner.pool().await?;
        self.inner.images.prune(all).await
    }
}

async fn note_happenings(mut events: broadcast::Receiver<ConnectionEvent>, inner: std::sync::Weak<Inner>) {
    while let Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) = events.recv().await {
        match inner.upgrade() {
            Some(inner) => inner.happenings.send_modify(|n| *n += 1),
            None => break,
        }
    }
}

impl Inner {
    pub(crate) fn place(&self, id: ResourceId) -> Place {
        Place {
            pool: self.options.pool.clone(),
            owner: self.options.owner.clone(),
            id,
        }
    }

    /// Runs a call that only asks.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce(&crate::connection::Host) -> std::result::Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        self.connection.run(doing, QUICK, None, work).await
    }

    /// The pool; made where it is missing, started where it is not active.
    pub(crate) async fn pool(&self) -> Result<PoolSeen> {
        if let Some(seen) = lock(&self.pool).clone() {
            return Ok(seen);
        }
        let (name, path) = (self.options.pool.clone(), self.options.pool_path.clone());
        let doing = format!("looking for pool {name}");
        let seen = self
            .ask(&doing, move |host| {
                if host.pool_xml(&name)?.is_none() {
                    let xml = pool_xml(&name, &path).map_err(|e| Fault::other(e.to_string()))?;
                    // Another call, or another server, may come first.
                    if let Err(fault) = host.define_pool(&xml)
                        && host.pool_xml(&name)?.is_none()
                    {
                        return Err(fault);
                    }
                }
                let seen = host.pool_xml(&name)?.as_deref().and_then(pool);
                host.activate_pool(&name)?;
                Ok(seen)
            })
            .await?
            .ok_or_else(|| {
                BackendError::new(BackendErrorKind::Failed, &doing, "its description cannot be read")
            })?;
        if !matches!(seen.kind.as_str(), "dir" | "fs" | "netfs") {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                doing,
                format!(
                    "it is of type {}; overlays on images need a pool in a folder",
                    seen.kind
                ),
            ));
        }
        *lock(&self.pool) = Some(seen.clone());
        Ok(seen)
    }

    /// The image of a machine.
    fn image(&self, config: &MachineConfig) -> Result<Image> {
        self.images
            .catalog()
            .find(&config.os_image)
            .cloned()
            .ok_or_else(|| {
                BackendError::new(
                    BackendErrorKind::Invalid,
                    format!("looking for image {}", config.os_image),
                    "the image catalogue has no such image",
                )
            })
    }

    pub(crate) async fn hypervisor(&self) -> Result<Hypervisor> {
        self.hypervisor
            .get_or_try_init(|| crate::kvm::choose(&self.connection, self.options.domain_type))
            .await
            .copied()
    }

    pub(crate) async fn network(&self) -> Result<HostNetwork> {
        let libvirt = self
            .ask("asking libvirt's version", |host| host.library_version())
            .await?;
        Ok(if self.options.is_local() {
            HostNetwork::look(Path::new("/sys/class/net"), libvirt)
        } else {
            HostNetwork {
                bridges: None,
                libvirt,
            }
        })
    }

    async fn surroundings(&self, config: &MachineConfig) -> Result<Surroundings> {
        let pool = self.pool().await?;
        let hypervisor = self.hypervisor().await?;
        let network = self.network().await?;
        let plug = network
            .plug(&self.options, config.network_config.vlan_id)
            .map_err(|e| {
                BackendError::new(
                    BackendErrorKind::Unsupported,
                    "connecting the machine",
                    e.to_string(),
                )
            })?;
        // Open vSwitch has ports that iptables and ebtables do not see.
        let wanted = self.options.anti_spoofing && !matches!(plug, crate::domain::Plug::OpenVSwitch { .. });
        let filter = wanted
            && self
                .ask("looking for filters", |host| host.has_filter("clean-traffic"))
                .await?;
        Ok(Surroundings {
            hypervisor,
            plug,
            filter,
            pool_path: pool.path,
        })
    }
}

#[async_trait]
impl Backend for Libvirt {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            name: BackendName::new("libvirt"),
            types: vec![ResourceType::VirtualMachine],
        }
    }

    fn facets(&self) -> Facets {
        Facets {
            exec: Some(Arc::new(self.clone())),
            console: Some(Arc::new(self.clone())),
            snapshots: Some(Arc::new(self.clone())),
            live_update: Some(Arc::new(self.clone())),
            health: None,
        }
    }

    async fn probe(&self) -> Result<BackendReport> {
        let inner = &self.inner;
        inner.pool().await?;
        let pool = inner.options.pool.clone();
        let (node, room) = inner
            .ask("asking libvirt what it has", move |host| {
                Ok((host.node()?, host.pool_facts(&pool)?))
            })
            .await
            .inspect_err(|_| *lock(&inner.pool) = None)?;
        let version = |v: u32| format!("{}.{}.{}", v / 1_000_000, v / 1000 % 1000, v % 1000);
        Ok(BackendReport {
            version: format!(
                "libvirt {}, QEMU {}",
                version(node.library_version),
                version(node.hypervisor_version)
            ),
            capacity: Capacity {
                cpu: Cores::whole(node.cpus),
                ram: Bytes(node.memory),
                disk: Bytes(room.capacity),
            },
            // Machines outlive libvirtd and go down with the host.
            epoch: if inner.options.is_local() {
                std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                    .ok()
                    .map(|id| id.trim().to_owned())
            } else {
                None
            },
            simulated: false,
        })
    }

    async fn check(&self, planned: &Workload) -> Result<CheckReport> {
        let mut violations = Vec::new();
        if let Config::Machine(config) = &planned.config {
            self.inner.check_machine(planned, config, &mut violations).await?;
        }
        Ok(CheckReport {
            violations,
            ..CheckReport::default()
        })
    }

    async fn create(&self, call: &Call, workload: &Workload) -> Result<()> {
        let inner = &self.inner;
        let doing = format!("making machine {}", domain_name(workload.id));
        let turn = inner.turn(call, workload.id, &doing).await?;
        let config = machine::machine(workload).map_err(|f| f.into_backend(&doing))?;
        let image = inner.image(config)?;
        let around = inner.surroundings(config).await?;
        let base = inner.images.ensure(&image, &call.progress).await?;
        if base.virtual_size > config.disk.0 {
            return Err(BackendError::new(
                BackendErrorKind::Invalid,
                doing,
                format!(
                    "image {} needs a disk of {} GB",
                    image.name,
                    base.virtual_size.div_ceil(1 << 30)
                ),
            ));
        }
        let prepared = machine::domain(workload, &image, &around, &inner.options).and_then(|spec| {
            let parts = Parts::new(&spec, config.disk.0, &base)?;
            Ok((parts, machine::seed_bytes(workload, &image, &inner.options)?))
        });
        let (parts, seed) = prepared.map_err(|f| f.into_backend(&doing))?;
        let (place, generation) = (inner.place(workload.id), workload.generation);
        inner
            .connection
            .run(&doing, call.timeout, hold(&turn), move |host| {
                place.make(host, &parts, &seed, generation)
            })
            .await?;
        inner.observations.forget(workload.id);
        Ok(())
    }

    async fn start(&self, call: &Call, workload: &Workload) -> Result<()> {
        let inner = &self.inner;
        let doing = format!("starting machine {}", domain_name(workload.id));
        let turn = inner.turn(call, workload.id, &doing).await?;
        let config = machine::machine(workload).map_err(|f| f.into_backend(&doing))?;
        let image = inner.image(config)?;
        let around = inner.surroundings(config).await?;
        let mut spec =
            machine::domain(workload, &image, &around, &inner.options).map_err(|f| f.into_backend(&doing))?;
        spec.tag.started = Some(crate::observe::now());
        let erased = machine::seed_without_password(workload, &image, &inner.options)
            .map_err(|f| f.into_backend(&doing))?
            .map(Arc::new);
        let start = Start {
            domain: domain_xml(&spec)
                .map_err(|e| BackendError::new(BackendErrorKind::Invalid, &doing, e.to_string()))?,
            tag: spec.tag,
            disk_bytes: config.disk.0,
            seed_without_password: erased.clone(),
        };
        let place = inner.place(workload.id);
        inner
            .connection
            .run(&doing, call.timeout, hold(&turn), move |host| {
                place.start(host, &start)
            })
            .await?;
        inner.observations.forget(workload.id);
        if let Some(seed) = erased {
            inner.erase_password_later(workload.id, seed);
        }
        if config.network_config.ip_mode == IpMode::Dhcp {
            crate::observe::find_address(inner, workload.id);
        }
        Ok(())
    }

    async fn stop(&self, call: &Call, id: ResourceId, options: StopOptions) -> Result<()> {
        let inner = &self.inner;
        let doing = format!("stopping machine {}", domain_name(id));
        let turn = inner.turn(call, id, &doing).await?;
        let place = inner.place(id);
        let is_up = {
            let place = place.clone();
            inner
                .connection
                .run(&doing, call.timeout, hold(&turn), move |host| place.is_up(host))
                .await?
        };
        if !is_up {
            return Ok(());
        }
        if !options.force {
            let grace = options.grace.unwrap_or(inner.options.stop_grace);
            // Some of the call's time is kept for switching it off.
            let grace = grace.min(call.timeout.saturating_sub(Duration::from_secs(10)));
            if inner.shut_down(&doing, &turn, id, grace).await? {
                return Ok(());
            }
            call.progress
                .report("the guest did not shut down in time: switching it off", None);
        }
        inner
            .connection
            .run(&doing, call.timeout, hold(&turn), move |host| {
                if place.is_up(host)? {
                    host.destroy(id)?;
                }
                Ok(())
            })
            .await
    }

    async fn remove(&self, call: &Call, id: ResourceId) -> Result<()> {
        let inner = &self.inner;
        let doing = format!("removing machine {}", domain_name(id));
        let turn = inner.turn(call, id, &doing).await?;
        inner.pool().await?;
        inner.hubs.close(id);
        let place = inner.place(id);
        inner
            .connection
            .run(&doing, call.timeout, hold(&turn), move |host| place.remove(host))
            .await?;
        inner.observations.forget(id);
        crate::logs::forget(inner, id);
        inner.forget_turn(id);
        Ok(())
    }

    async fn inspect(&self, ids: &[ResourceId]) -> Result<Vec<Observed>> {
        self.inner.inspect(ids).await
    }

    async fn owned(&self) -> Result<Vec<Observed>> {
        self.inner.owned().await
    }

    async fn events(&self) -> Result<Stream<BackendEvent>> {
        self.inner.events().await
    }

    async fn logs(&self, id: ResourceId, query: LogQuery) -> Result<Stream<Result<LogLine>>> {
        crate::logs::lines(self.inner.clone(), id, query).await
    }

    async fn metrics(&self, ids: &[ResourceId]) -> Result<Vec<(ResourceId, Metrics)>> {
        self.inner.metrics(ids).await
    }
}
