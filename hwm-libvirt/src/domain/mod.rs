//! Domains, volumes and snapshots: the typed model, its XML, and what is read back. Pure.

mod element;
mod model;
mod read;
mod write;

pub(crate) use element::XmlError;
pub(crate) use model::{
    Adjustable, DomainSpec, Filter, HostDevice, Hypervisor, Interface, METADATA_NAMESPACE, PciAddress, Plug,
    Started, Tag, VolumeSpec, console_log_name, disk_name, domain_name, resource_of, seed_name,
};
pub(crate) use read::{
    DiskFiles, DomainSeen, HostCapabilities, PoolSeen, domain_files, host_capabilities, pool,
    snapshot_memory, volume_files,
};
pub(crate) use write::{
    disk_snapshot_record_xml, domain_xml, kvm_probe_xml, pool_xml, snapshot_xml, tag_xml, volume_xml,
};

#[cfg(test)]
pub(crate) mod tests;
