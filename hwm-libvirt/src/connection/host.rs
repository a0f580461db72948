//! A connection to libvirt. Its calls, here and in `domains` and `volumes`, are one method each, in terms of names
//! and XML: nothing of `virt` leaves this folder.

use std::sync::Arc;

use hwm_core::id::ResourceId;
use uuid::Uuid;
use virt::connect::Connect;
use virt::nwfilter::NWFilter;
use virt_sys as sys;

use super::error::{Fault, FaultKind};
use super::ffi::{self, DomainEvent, DomainFigures, Figure, Registrations};
use super::{ConnectionEvent, Shared};

pub(super) type Result<T> = std::result::Result<T, Fault>;

/// An open connection.
pub(crate) struct Host {
    pub(super) connect: Connect,
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

pub(super) fn uuid(id: ResourceId) -> Uuid {
    Uuid::from_u128(id.as_u128())
}

/// Not found is none.
pub(super) fn optional<T>(result: std::result::Result<T, virt::error::Error>) -> Result<Option<T>> {
    match result.map_err(Fault::from) {
        Ok(found) => Ok(Some(found)),
        Err(fault) if fault.kind == FaultKind::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

pub(super) fn state_of(state: u32, reason: i64) -> DomainState {
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

    pub(crate) fn library_version(&self) -> Result<u32> {
        Ok(self.connect.get_lib_version()?)
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
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(registrations) = &self.registrations {
            ffi::unregister(&self.connect, registrations);
        }
        let _ = self.connect.close();
    }
}

pub(super) fn stats(domain: DomainFigures) -> Option<DomainStats> {
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
