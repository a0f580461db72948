//! What the operator chooses.

use std::path::PathBuf;
use std::time::Duration;

use hwm_core::units::Bytes;

use crate::seed::ClearPassword;

/// How machines are run on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtOptions {
    /// Where libvirt is: `qemu:///system`, `qemu+ssh://host/system`.
    pub uri: String,
    /// The label that makes domains and volumes this manager's; the node's id.
    pub owner: String,
    /// The bridge that machines are plugged into.
    pub bridge: String,
    /// The name of the bridge of a VLAN, where there is one per VLAN: `{bridge}` and `{vlan}` are replaced.
    pub vlan_bridge: String,
    /// KVM, emulation, or whichever works.
    pub domain_type: DomainType,
    /// The image catalogue, in TOML; the built-in one when absent.
    pub image_catalog: Option<PathBuf>,
    /// The storage pool for images and disks; a folder, made where it is missing.
    pub pool: String,
    /// Where a pool that is missing is made, on libvirt's host.
    pub pool_path: String,
    /// Where downloads are kept until they are whole, on this host.
    pub cache_dir: PathBuf,
    /// Whether a clear-text password may be written for a guest that takes no other (Windows).
    pub clear_password: ClearPassword,
    /// Whether network cards are kept to their own addresses, where the host can filter.
    pub anti_spoofing: bool,
    /// How many CPUs a machine can be given while it runs; more than it has at its start take nothing until then.
    pub live_vcpus: u32,
    /// How much memory a machine can be given while it runs. A guest without a balloon driver takes all of it, so
    /// by default it is what the machine has at its start.
    pub live_memory: Option<Bytes>,
    /// How long a guest may take to shut down before it is switched off.
    pub stop_grace: Duration,
}

/// What domains run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DomainType {
    /// KVM where a trial shows that it works, else emulation.
    #[default]
    Auto,
    /// KVM.
    Kvm,
    /// Emulation: slow, and possible everywhere.
    Qemu,
}

impl DomainType {
    /// Reads `auto`, `kvm` or `qemu`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "kvm" => Some(Self::Kvm),
            "qemu" => Some(Self::Qemu),
            _ => None,
        }
    }
}

impl LibvirtOptions {
    /// The defaults, for a manager with this owner label.
    pub fn new(owner: impl Into<String>) -> Self {
        Self {
            uri: "qemu:///system".into(),
            owner: owner.into(),
            bridge: "br0".into(),
            vlan_bridge: "{bridge}.{vlan}".into(),
            domain_type: DomainType::Auto,
            image_catalog: None,
            pool: "hwm".into(),
            pool_path: "/var/lib/libvirt/images/hwm".into(),
            cache_dir: std::env::temp_dir().join("hwm-images"),
            clear_password: ClearPassword::Refuse,
            anti_spoofing: true,
            live_vcpus: 8,
            live_memory: None,
            stop_grace: Duration::from_secs(60),
        }
    }

    /// The bridge of a VLAN, where there is one per VLAN.
    pub(crate) fn bridge_of(&self, vlan: u16) -> String {
        self.vlan_bridge
            .replace("{bridge}", &self.bridge)
            .replace("{vlan}", &vlan.to_string())
    }

    /// Whether libvirt runs on this host, so that its host's files and sockets are ours to look at.
    pub(crate) fn is_local(&self) -> bool {
        let Some((scheme, rest)) = self.uri.split_once("://") else {
            return false;
        };
        let transport_is_local = scheme
            .split_once('+')
            .is_none_or(|(_, transport)| transport == "unix");
        transport_is_local && rest.starts_with('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uri_without_a_host_is_local() {
        let local = |uri: &str| {
            let mut options = LibvirtOptions::new("n");
            options.uri = uri.into();
            options.is_local()
        };
        assert!(local("qemu:///system"));
        assert!(local("qemu+unix:///system?socket=/run/x"));
        assert!(!local("qemu+ssh://root@host/system"));
        assert!(!local("qemu+tls://host/system"));
        assert!(!local("qemu://host/system"));
        assert!(!local("qemu+ssh:///system"));
    }

    #[test]
    fn the_bridge_of_a_vlan_is_named_by_pattern() {
        let mut options = LibvirtOptions::new("n");
        assert_eq!(options.bridge_of(100), "br0.100");
        options.vlan_bridge = "vlan{vlan}".into();
        assert_eq!(options.bridge_of(7), "vlan7");
    }
}
