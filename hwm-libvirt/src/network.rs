//! Where a machine's network card is plugged in: what the host can do decides, or a refusal says what is missing.

use std::collections::BTreeMap;
use std::path::Path;

use crate::domain::Plug;
use crate::options::LibvirtOptions;

/// The first libvirt that sets VLANs on the ports of a Linux bridge.
const LIBVIRT_WITH_BRIDGE_VLANS: u32 = 11_000_000;

/// The bridges of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HostNetwork {
    /// The bridges by name; none where this host cannot look, because libvirt is elsewhere.
    pub bridges: Option<BTreeMap<String, BridgeKind>>,
    /// libvirt's version: major × 1,000,000 + minor × 1,000 + release.
    pub libvirt: u32,
}

/// A kind of bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BridgeKind {
    /// A Linux bridge.
    Linux {
        /// Whether it keeps VLANs apart.
        vlan_filtering: bool,
    },
    /// An Open vSwitch bridge.
    OpenVSwitch,
}

/// Why a machine cannot be connected, and what would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The bridge is missing.
    #[error("the host has no bridge {0}: make it, or name another one with --bridge")]
    NoBridge(String),
    /// No way to this VLAN.
    #[error(
        "VLAN {vlan} cannot be reached: the host has no bridge {wanted}, and {bridge} is neither an Open vSwitch nor \
         a VLAN-filtering bridge under libvirt 11 or newer; make the bridge {wanted}, or leave vlanId out"
    )]
    NoVlan {
        /// The VLAN.
        vlan: u16,
        /// The bridge that would do.
        wanted: String,
        /// The bridge that there is.
        bridge: String,
    },
}

impl HostNetwork {
    /// Looks at this host's bridges, below `/sys/class/net`.
    pub(crate) fn look(sys: &Path, libvirt: u32) -> Self {
        let open_vswitch = sys.join("ovs-system").exists();
        let mut bridges = BTreeMap::new();
        for entry in std::fs::read_dir(sys).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let folder = entry.path();
            if folder.join("bridge").is_dir() {
                let filtering = std::fs::read_to_string(folder.join("bridge/vlan_filtering"));
                let kind = BridgeKind::Linux {
                    vlan_filtering: filtering.is_ok_and(|text| text.trim() == "1"),
                };
                bridges.insert(name, kind);
            } else if open_vswitch && is_open_vswitch(&folder) {
                bridges.insert(name, BridgeKind::OpenVSwitch);
            }
        }
        Self {
            bridges: Some(bridges),
            libvirt,
        }
    }

    /// Where a card on this VLAN is plugged in. Where the host's bridges cannot be seen, a bridge per VLAN is taken
    /// to be there; libvirt says at the start if it is not.
    ///
    /// # Errors
    /// What the host lacks.
    pub(crate) fn plug(&self, options: &LibvirtOptions, vlan: Option<u16>) -> Result<Plug, Refusal> {
        let bridge = options.bridge.clone();
        let kind = |name: &str| self.bridges.as_ref().and_then(|b| b.get(name)).copied();
        let Some(vlan) = vlan else {
            return match (kind(&bridge), &self.bridges) {
                (Some(BridgeKind::OpenVSwitch), _) => Ok(Plug::OpenVSwitch { bridge, vlan: None }),
                (Some(BridgeKind::Linux { .. }), _) | (None, None) => Ok(Plug::Bridge { bridge }),
                (None, Some(_)) => Err(Refusal::NoBridge(bridge)),
            };
        };
        let own = options.bridge_of(vlan);
        if self.bridges.is_none() || matches!(kind(&own), Some(BridgeKind::Linux { .. })) {
            return Ok(Plug::Bridge { bridge: own });
        }
        match kind(&bridge) {
            Some(BridgeKind::OpenVSwitch) => Ok(Plug::OpenVSwitch {
                bridge,
                vlan: Some(vlan),
            }),
            Some(BridgeKind::Linux { vlan_filtering: true }) if self.libvirt >= LIBVIRT_WITH_BRIDGE_VLANS => {
                Ok(Plug::FilteringBridge { bridge, vlan })
            }
            Some(BridgeKind::Linux { .. }) | None => Err(Refusal::NoVlan {
                vlan,
                wanted: own,
                bridge,
            }),
        }
    }
}

/// The port by which an Open vSwitch bridge shows itself is a device of the driver `openvswitch`.
fn is_open_vswitch(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("uevent"))
        .is_ok_and(|text| text.lines().any(|l| l == "DEVTYPE=openvswitch"))
        || std::fs::read_link(folder.join("master")).is_ok_and(|to| to.ends_with("ovs-system"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(bridges: &[(&str, BridgeKind)], libvirt: u32) -> HostNetwork {
        HostNetwork {
            bridges: Some(
                bridges
                    .iter()
                    .map(|(name, kind)| ((*name).to_owned(), *kind))
                    .collect(),
            ),
            libvirt,
        }
    }

    const PLAIN: BridgeKind = BridgeKind::Linux {
        vlan_filtering: false,
    };
    const FILTERING: BridgeKind = BridgeKind::Linux { vlan_filtering: true };

    #[test]
    fn a_bridge_per_vlan_is_taken_first() {
        let host = host(&[("br0", FILTERING), ("br0.100", PLAIN)], 11_003_000);
        let options = LibvirtOptions::new("n");
        let plug = |vlan| host.plug(&options, vlan).unwrap();
        assert_eq!(plug(None), Plug::Bridge { bridge: "br0".into() });
        assert_eq!(
            plug(Some(100)),
            Plug::Bridge {
                bridge: "br0.100".into()
            }
        );
        assert_eq!(
            plug(Some(200)),
            Plug::FilteringBridge {
                bridge: "br0".into(),
                vlan: 200
            }
        );
    }

    #[test]
    fn what_libvirt_would_refuse_is_refused_before() {
        let options = LibvirtOptions::new("n");
        for host in [
            host(&[("br0", FILTERING)], 9_000_000),
            host(&[("br0", PLAIN)], 11_003_000),
        ] {
            let refusal = host.plug(&options, Some(100)).unwrap_err().to_string();
            assert!(refusal.contains("make the bridge br0.100"), "{refusal}");
        }
        assert_eq!(
            host(&[], 0).plug(&options, None),
            Err(Refusal::NoBridge("br0".into()))
        );
    }

    #[test]
    fn open_vswitch_takes_any_vlan() {
        let host = host(&[("br0", BridgeKind::OpenVSwitch)], 9_000_000);
        let plug = host.plug(&LibvirtOptions::new("n"), Some(5)).unwrap();
        assert_eq!(
            plug,
            Plug::OpenVSwitch {
                bridge: "br0".into(),
                vlan: Some(5)
            }
        );
    }

    #[test]
    fn a_host_that_cannot_be_seen_is_trusted() {
        let plug = HostNetwork::default()
            .plug(&LibvirtOptions::new("n"), Some(5))
            .unwrap();
        assert_eq!(
            plug,
            Plug::Bridge {
                bridge: "br0.5".into()
            }
        );
    }

    #[test]
    fn bridges_are_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("br0/bridge/vlan_filtering", "1\n"),
            ("br1/bridge/vlan_filtering", "0\n"),
            ("eth0/uevent", "INTERFACE=eth0\n"),
            ("ovs-system/uevent", "DEVTYPE=openvswitch\n"),
            ("ovs0/uevent", "DEVTYPE=openvswitch\n"),
        ] {
            let path = sys.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let seen = HostNetwork::look(sys.path(), 1).bridges.unwrap();
        assert_eq!(seen["br0"], FILTERING);
        assert_eq!(seen["br1"], PLAIN);
        assert_eq!(seen["ovs0"], BridgeKind::OpenVSwitch);
        assert!(!seen.contains_key("eth0"));
    }
}
