//! libvirt's calls on domains and their snapshots.

use std::os::fd::OwnedFd;

use hwm_core::id::ResourceId;
use uuid::Uuid;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::stream::Stream;
use virt_sys as sys;

use super::error::{Fault, FaultKind};
use super::ffi;
use super::host::{DomainState, DomainStats, Host, Result, optional, state_of, stats, uuid};
use super::stream::ConsoleStream;

impl Host {
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
}

impl Host {
    /// Takes a snapshot, or only keeps the record of one.
    ///
    /// libvirt does not check the XML against its schema: reading that takes it 40 ms, as long as a small snapshot. A
    /// test checks whatever can be written instead.
    pub(crate) fn create_snapshot(&self, id: ResourceId, xml: &str, record_only: bool) -> Result<()> {
        let flags = if record_only {
            sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        } else {
            0
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
}
