//! libvirt's calls, one method each, in terms of names and XML: nothing of `virt` leaves this folder.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hwm_core::id::ResourceId;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::nwfilter::NWFilter;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;
use virt_sys as sys;

use super::error::{Fault, FaultKind};
use super::ffi::{self, DomainEvent, DomainFigures, Figure, Registrations};
use super::stream::{ConsoleStream, Source, receive, send};
use super::{ConnectionEvent, Shared};

type Result<T> = std::result::Result<T, Fault>;

/// An open connection.
pub(crate) struct Host {
    connect: Connect,
    registrations: Option<Registrations>,
}

/// What a domain is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DomainState {
    /// It runs, also where it is paused or on its way down.
    Up,
    /// It does not run.
    Down(StateReason),
}

/// Why a domain does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateReason {
    /// The guest shut down.
    Shutdown,
    /// Someone switched it off.
    Destroyed,
    /// QEMU or the guest broke.
    Crashed,
    /// It could not start.
    Failed,
    /// libvirt does not know (any more), or it was saved, migrated or reverted.
    Other,
}

/// The figures of a domain. What QEMU does not say is absent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DomainStats {
    pub(crate) name: String,
    pub(crate) state: DomainState,
    pub(crate) cpu_time_ns: Option<u64>,
    pub(crate) vcpus: Option<u64>,
    pub(crate) balloon_kib: Option<u64>,
    pub(crate) unused_kib: Option<u64>,
    pub(crate) usable_kib: Option<u64>,
    pub(crate) resident_kib: Option<u64>,
    pub(crate) disk_capacity: Option<u64>,
    pub(crate) disk_allocation: Option<u64>,
    pub(crate) rx_bytes: Option<u64>,
    pub(crate) tx_bytes: Option<u64>,
}

/// What libvirt's host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    pub(crate) library_version: u32,
    pub(crate) hypervisor_version: u32,
}

/// How full a pool is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolFacts {
    pub(crate) capacity: u64,
    pub(crate) available: u64,
}

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeFacts {
    pub(crate) path: String,
    pub(crate) capacity: u64,
    pub(crate) allocation: u64,
}

fn uuid(id: ResourceId) -> Uuid {
    Uuid::from_u128(id.as_u128())
}

/// Not found is none.
fn optional<T>(result: std::result::Result<T, virt::error::Error>) -> Result<Option<T>> {
    match result.map_err(Fault::from) {
        Ok(found) => Ok(Some(found)),
        Err(fault) if fault.kind == FaultKind::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn state_of(state: u32, reason: i64) -> DomainState {
    if state != sys::VIR_DOMAIN_SHUTOFF && state != sys::VIR_DOMAIN_CRASHED {
        return DomainState::Up;
    }
    DomainState::Down(match u32::try_from(reason).unwrap_or(0) {
        sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => StateReason::Shutdown,
        sys::VIR_DOMAIN_SHUTOFF_DESTROYED => StateReason::Destroyed,
        sys::VIR_DOMAIN_SHUTOFF_CRASHED => StateReason::Crashed,
        sys::VIR_DOMAIN_SHUTOFF_FAILED => StateReason::Failed,
        _ => StateReason::Other,
    })
}

impl Host {
    /// Opens a connection for calls.
    pub(super) fn open(uri: &str) -> Result<Self> {
        Ok(Self {
            connect: Connect::open(Some(uri))?,
            registrations: None,
        })
    }

    /// Opens a connection with keep-alive and events.
    pub(super) fn listen(uri: &str, keepalive: (i32, u32), shared: Arc<Shared>) -> Result<Self> {
        let mut host = Self::open(uri)?;
        host.connect.set_keep_alive(keepalive.0, keepalive.1)?;
        let events = shared.events.clone();
        let on_event = move |event: DomainEvent| {
            let kind = event.lifecycle.map(|e| e as u32);
            let _ = events.send(ConnectionEvent::Domain {
                name: event.name,
                redefined: matches!(
                    kind,
                    Some(sys::VIR_DOMAIN_EVENT_DEFINED | sys::VIR_DOMAIN_EVENT_UNDEFINED)
                ),
            });
        };
        // What keeps a connection must not be kept by it.
        let shared = Arc::downgrade(&shared);
        let closed = move || {
            if let Some(shared) = shared.upgrade() {
                shared.ended();
            }
        };
        host.registrations = Some(ffi::register(&host.connect, on_event, closed)?);
        Ok(host)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connect.is_alive().unwrap_or(false)
    }

    pub(crate) fn node(&self) -> Result<NodeFacts> {
        let info = self.connect.get_node_info()?;
        Ok(NodeFacts {
            cpus: info.cpus,
            memory: info.memory << 10,
            library_version: self.connect.get_lib_version()?,
            hypervisor_version: self.connect.get_hyp_version()?,
        })
    }

    /// What domains of this type can be; none where the host has no such type.
    pub(crate) fn domain_capabilities(&self, hypervisor: &str) -> Result<Option<String>> {
        let asked =
            self.connect
                .get_domain_capabilities(None, Some("x86_64"), Some("q35"), Some(hypervisor), 0);
        match asked.map_err(Fault::from) {
            Ok(xml) => Ok(Some(xml)),
            Err(fault) if matches!(fault.kind, FaultKind::Gone | FaultKind::Denied) => Err(fault),
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn has_filter(&self, name: &str) -> Result<bool> {
        Ok(NWFilter::lookup_by_name(&self.connect, name).is_ok())
    }

    // Domains

    fn find(&self, id: ResourceId) -> Result<Option<Domain>> {
        optional(Domain::lookup_by_uuid(&self.connect, uuid(id)))
    }

    fn domain(&self, id: ResourceId) -> Result<Domain> {
        Ok(Domain::lookup_by_uuid(&self.connect, uuid(id))?)
    }

    /// A domain's XML as defined, or as it runs; with secrets.
    pub(crate) fn domain_xml(&self, id: ResourceId, running: bool) -> Result<Option<String>> {
        let flags = sys::VIR_DOMAIN_XML_SECURE | if running { 0 } else { sys::VIR_DOMAIN_XML_INACTIVE };
        match self.find(id)? {
            Some(domain) => optional(domain.get_xml_desc(flags)),
            None => Ok(None),
        }
    }

    /// The XML of the domain of this name, whoever's it is.
    pub(crate) fn named_domain_xml(&self, name: &str) -> Result<Option<String>> {
        match optional(Domain::lookup_by_name(&self.connect, name))? {
            Some(domain) => optional(domain.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)),
            None => Ok(None),
        }
    }

    pub(crate) fn define(&self, xml: &str) -> Result<()> {
        Domain::define_xml_flags(&self.connect, xml, sys::VIR_DOMAIN_DEFINE_VALIDATE)?;
        Ok(())
    }

    /// Starts a domain that goes away with the connection.
    pub(crate) fn start_transient(&self, xml: &str) -> Result<Uuid> {
        Ok(Domain::create_xml(&self.connect, xml, sys::VIR_DOMAIN_START_AUTODESTROY)?.get_uuid()?)
    }

    pub(crate) fn destroy_transient(&self, uuid: Uuid) -> Result<()> {
        Ok(Domain::lookup_by_uuid(&self.connect, uuid)?.destroy()?)
    }

    pub(crate) fn start(&self, id: ResourceId) -> Result<()> {
        self.domain(id)?.create_with_flags(0)?;
        Ok(())
    }

    /// Asks the guest to shut down: the agent where it answers, else the power button.
    pub(crate) fn press_power(&self, id: ResourceId) -> Result<()> {
        self.domain(id)?
            .shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)?;
        Ok(())
    }

    pub(crate) fn destroy(&self, id: ResourceId) -> Result<()> {
        match self.find(id)? {
            Some(domain) => match domain.destroy().map_err(Fault::from) {
                // It was down already.
                Err(fault) if fault.kind == FaultKind::State => Ok(()),
                Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
                result => result,
            },
            None => Ok(()),
        }
    }

    /// Forgets a domain with its snapshots' records, its saved state, NVRAM and TPM.
    pub(crate) fn undefine(&self, id: ResourceId) -> Result<()> {
        let all = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
        match self.find(id)? {
            Some(domain) => {
                optional(domain.undefine_flags(all))?;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What a domain is doing; none where there is none.
    pub(crate) fn state(&self, id: ResourceId) -> Result<Option<DomainState>> {
        match self.find(id)? {
            Some(domain) => {
                let seen = optional(domain.get_state())?;
                Ok(seen.map(|(state, reason)| state_of(state, reason.into())))
            }
            None => Ok(None),
        }
    }

    /// Replaces our metadata, in the definition and in what runs.
    pub(crate) fn set_tag(&self, id: ResourceId, xml: &str, namespace: &str, running: bool) -> Result<()> {
        let live = if running { sys::VIR_DOMAIN_AFFECT_LIVE } else { 0 };
        self.domain(id)?.set_metadata(
            sys::VIR_DOMAIN_METADATA_ELEMENT as i32,
            Some(xml),
            Some("hwm"),
            Some(namespace),
            sys::VIR_DOMAIN_AFFECT_CONFIG | live,
        )?;
        Ok(())
    }

    pub(crate) fn set_vcpus(&self, id: ResourceId, vcpus: u32) -> Result<()> {
        let both = sys::VIR_DOMAIN_VCPU_LIVE | sys::VIR_DOMAIN_VCPU_CONFIG;
        self.domain(id)?.set_vcpus_flags(vcpus, both)?;
        Ok(())
    }

    pub(crate) fn set_memory(&self, id: ResourceId, kib: u64) -> Result<()> {
        let both = sys::VIR_DOMAIN_MEM_LIVE | sys::VIR_DOMAIN_MEM_CONFIG;
        self.domain(id)?.set_memory_flags(kib, both)?;
        Ok(())
    }

    pub(crate) fn resize_disk(&self, id: ResourceId, target: &str, bytes: u64) -> Result<()> {
        self.domain(id)?
            .block_resize(target, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES)?;
        Ok(())
    }

    /// One command to the guest agent, with a limit in seconds.
    pub(crate) fn agent(&self, id: ResourceId, command: &str, seconds: i32) -> Result<String> {
        let domain = self.domain(id)?;
        // Also bounds the handshake that comes before every command.
        let _ = ffi::set_agent_timeout(&domain, seconds);
        Ok(domain.qemu_agent_command(command, seconds, 0)?)
    }

    /// One command to QEMU's monitor.
    pub(crate) fn monitor(&self, id: ResourceId, command: &str) -> Result<String> {
        Ok(self.domain(id)?.qemu_monitor_command(command, 0)?)
    }

    pub(crate) fn open_graphics(&self, id: ResourceId) -> Result<OwnedFd> {
        Ok(ffi::open_graphics(&self.domain(id)?, false)?)
    }

    /// Opens the serial console, and takes it from who else has it. The connection goes with it.
    pub(crate) fn open_console(self, id: ResourceId) -> Result<ConsoleStream> {
        let domain = self.domain(id)?;
        let stream = self.console(&domain)?;
        drop(domain);
        Ok(ConsoleStream::new(stream, Some(self)))
    }

    pub(crate) fn open_transient_console(&self, uuid: Uuid) -> Result<ConsoleStream> {
        let domain = Domain::lookup_by_uuid(&self.connect, uuid)?;
        Ok(ConsoleStream::new(self.console(&domain)?, None))
    }

    fn console(&self, domain: &Domain) -> Result<Stream> {
        let stream = Stream::new(&self.connect, sys::VIR_STREAM_NONBLOCK)?;
        domain.open_console(None, &stream, sys::VIR_DOMAIN_CONSOLE_FORCE)?;
        Ok(stream)
    }

    /// Addresses that the host's ARP table has for a machine's network cards.
    pub(crate) fn arp_addresses(&self, id: ResourceId) -> Result<Vec<String>> {
        let found = self
            .domain(id)?
            .interface_addresses(sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP, 0)?;
        Ok(found
            .into_iter()
            .flat_map(|interface| interface.addrs)
            .map(|address| address.addr)
            .collect())
    }

    /// The figures of all domains in one call.
    pub(crate) fn all_stats(&self, figures: bool) -> Result<Vec<DomainStats>> {
        let groups = if figures {
            sys::VIR_DOMAIN_STATS_STATE
                | sys::VIR_DOMAIN_STATS_CPU_TOTAL
                | sys::VIR_DOMAIN_STATS_BALLOON
                | sys::VIR_DOMAIN_STATS_VCPU
                | sys::VIR_DOMAIN_STATS_INTERFACE
                | sys::VIR_DOMAIN_STATS_BLOCK
        } else {
            sys::VIR_DOMAIN_STATS_STATE
        };
        // A domain that is busy does not hold up the others.
        let flags = sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
        let all = ffi::all_domain_figures(&self.connect, groups, flags)?;
        Ok(all.into_iter().filter_map(stats).collect())
    }

    // Snapshots

    pub(crate) fn create_snapshot(&self, id: ResourceId, xml: &str, record_only: bool) -> Result<()> {
        let flags = if record_only {
            sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        } else {
            sys::VIR_DOMAIN_SNAPSHOT_CREATE_VALIDATE
        };
        DomainSnapshot::create_xml(&self.domain(id)?, xml, flags)?;
        Ok(())
    }

    pub(crate) fn snapshots(&self, id: ResourceId) -> Result<Vec<String>> {
        let Some(domain) = self.find(id)? else {
            return Ok(Vec::new());
        };
        let all = domain.list_all_snapshots(0)?;
        all.iter().map(|snapshot| Ok(snapshot.get_name()?)).collect()
    }

    pub(crate) fn snapshot_xml(&self, id: ResourceId, name: &str) -> Result<Option<String>> {
        let Some(domain) = self.find(id)? else {
            return Ok(None);
        };
        match optional(DomainSnapshot::lookup_by_name(&domain, name, 0))? {
            Some(snapshot) => Ok(Some(snapshot.get_xml_desc(0)?)),
            None => Ok(None),
        }
    }

    pub(crate) fn revert(&self, id: ResourceId, name: &str) -> Result<()> {
        let snapshot = DomainSnapshot::lookup_by_name(&self.domain(id)?, name, 0)?;
        Ok(snapshot.revert(sys::VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)?)
    }

    pub(crate) fn delete_snapshot(&self, id: ResourceId, name: &str, record_only: bool) -> Result<()> {
        let Some(domain) = self.find(id)? else {
            return Ok(());
        };
        let flags = if record_only {
            sys::VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
        } else {
            0
        };
        match optional(DomainSnapshot::lookup_by_name(&domain, name, 0))? {
            Some(snapshot) => {
                optional(snapshot.delete(flags))?;
                Ok(())
            }
            None => Ok(()),
        }
    }

    // Pools and volumes

    fn pool(&self, name: &str) -> Result<StoragePool> {
        Ok(StoragePool::lookup_by_name(&self.connect, name)?)
    }

    fn find_volume(&self, pool: &str, name: &str) -> Result<Option<StorageVol>> {
        let pool = self.pool(pool)?;
        optional(StorageVol::lookup_by_name(&pool, name))
    }

    fn volume(&self, pool: &str, name: &str) -> Result<StorageVol> {
        Ok(StorageVol::lookup_by_name(&self.pool(pool)?, name)?)
    }

    /// A pool's XML, active or not; none where there is none.
    pub(crate) fn pool_xml(&self, name: &str) -> Result<Option<String>> {
        match optional(StoragePool::lookup_by_name(&self.connect, name))? {
            Some(pool) => Ok(Some(pool.get_xml_desc(0)?)),
            None => Ok(None),
        }
    }

    pub(crate) fn define_pool(&self, xml: &str) -> Result<()> {
        let pool = StoragePool::define_xml(&self.connect, xml, 0)?;
        pool.build(0)?;
        pool.set_autostart(true)?;
        Ok(())
    }

    /// Makes sure that a pool that is defined can be used.
    pub(crate) fn activate_pool(&self, name: &str) -> Result<()> {
        let pool = self.pool(name)?;
        if !pool.is_active()? {
            pool.create(0)?;
        }
        Ok(())
    }

    pub(crate) fn pool_facts(&self, name: &str) -> Result<PoolFacts> {
        let info = self.pool(name)?.get_info()?;
        Ok(PoolFacts {
            capacity: info.capacity,
            available: info.available,
        })
    }

    /// Looks at the pool's folder again: what others made or removed there is seen only then.
    pub(crate) fn refresh_pool(&self, name: &str) -> Result<()> {
        self.pool(name)?.refresh(0)?;
        Ok(())
    }

    pub(crate) fn volume_names(&self, pool: &str) -> Result<Vec<String>> {
        let all = self.pool(pool)?.list_all_volumes(0)?;
        all.iter().map(|volume| Ok(volume.get_name()?)).collect()
    }

    pub(crate) fn create_volume(&self, pool: &str, xml: &str) -> Result<()> {
        StorageVol::create_xml(&self.pool(pool)?, xml, 0)?;
        Ok(())
    }

    pub(crate) fn volume_facts(&self, pool: &str, name: &str) -> Result<Option<VolumeFacts>> {
        let Some(volume) = self.find_volume(pool, name)? else {
            return Ok(None);
        };
        let Some(info) = optional(volume.get_info())? else {
            return Ok(None);
        };
        Ok(Some(VolumeFacts {
            path: volume.get_path()?,
            capacity: info.capacity,
            allocation: info.allocation,
        }))
    }

    pub(crate) fn resize_volume(&self, pool: &str, name: &str, bytes: u64) -> Result<()> {
        self.volume(pool, name)?.resize(bytes, 0)?;
        Ok(())
    }

    /// Removes a volume. One that is gone succeeds.
    pub(crate) fn delete_volume(&self, pool: &str, name: &str) -> Result<()> {
        match self.find_volume(pool, name)? {
            Some(volume) => match volume.delete(0).map_err(Fault::from) {
                Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
                result => result,
            },
            None => Ok(()),
        }
    }

    /// Fills a volume from its beginning.
    pub(crate) fn upload(&self, pool: &str, name: &str, length: u64, source: &mut dyn Source) -> Result<()> {
        let volume = self.volume(pool, name)?;
        let stream = Stream::new(&self.connect, 0)?;
        volume.upload(&stream, 0, length, 0)?;
        send(stream, source)
    }

    /// Reads up to `length` bytes of a volume from `offset` on; fewer where it ends.
    pub(crate) fn download(&self, pool: &str, name: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        let volume = self.volume(pool, name)?;
        let stream = Stream::new(&self.connect, 0)?;
        volume.download(&stream, offset, length, 0)?;
        receive(stream, length)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(registrations) = &self.registrations {
            ffi::unregister(&self.connect, registrations);
        }
        let _ = self.connect.close();
    }
}

fn stats(domain: DomainFigures) -> Option<DomainStats> {
    let get = |key: &str| match domain.figures.get(key) {
        Some(Figure::Uint(n)) => Some(*n),
        Some(Figure::Int(n)) => u64::try_from(*n).ok(),
        None => None,
    };
    let sum = |group: &str, figure: &str| {
        let count = get(&format!("{group}.count"))?;
        (0..count)
            .filter_map(|i| get(&format!("{group}.{i}.{figure}")))
            .reduce(|a, b| a + b)
    };
    Some(DomainStats {
        state: state_of(
            get("state.state")? as u32,
            get("state.reason").unwrap_or(0) as i64,
        ),
        cpu_time_ns: get("cpu.time"),
        vcpus: get("vcpu.current"),
        balloon_kib: get("balloon.current"),
        unused_kib: get("balloon.unused"),
        usable_kib: get("balloon.usable"),
        resident_kib: get("balloon.rss"),
        disk_capacity: get("block.0.capacity"),
        disk_allocation: get("block.0.physical").or_else(|| get("block.0.allocation")),
        rx_bytes: sum("net", "rx.bytes"),
        tx_bytes: sum("net", "tx.bytes"),
        name: domain.name,
    })
}
