//! The model as XML.

use hwm_core::id::SnapshotId;

use super::element::{Document, XmlError};
use super::model::{
    DomainSpec, HostDevice, Hypervisor, Interface, METADATA_NAMESPACE, PciAddress, Plug, Tag, VolumeSpec,
    domain_name,
};
use crate::catalog::{Bus, Firmware, Guest};

type Xml = Result<String, XmlError>;
type Written = Result<(), XmlError>;

/// A domain.
pub(crate) fn domain_xml(spec: &DomainSpec) -> Xml {
    Document::build(|d| {
        d.nest("domain", &[("type", spec.hypervisor.as_str())], |d| {
            domain(d, spec)
        })
    })
}

fn domain(d: &mut Document, spec: &DomainSpec) -> Written {
    d.text("name", &[], &domain_name(spec.tag.resource))?;
    d.text("uuid", &[], &spec.tag.resource.to_string())?;
    let title: String = spec
        .title
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if !title.trim().is_empty() {
        d.text("title", &[], &title)?;
    }
    d.nest("metadata", &[], |d| {
        tag(d, "hwm:machine", Some(METADATA_NAMESPACE), &spec.tag)
    })?;
    let bytes = [("unit", "b")];
    d.text("memory", &bytes, &spec.memory.maximum.0.to_string())?;
    d.text("currentMemory", &bytes, &spec.memory.current.0.to_string())?;
    let current = spec.vcpus.current.to_string();
    d.text(
        "vcpu",
        &[("placement", "static"), ("current", &current)],
        &spec.vcpus.maximum.to_string(),
    )?;
    let firmware: &[_] = match spec.firmware {
        Firmware::Bios => &[],
        Firmware::Uefi => &[("firmware", "efi")],
    };
    d.nest("os", firmware, |d| {
        d.text("type", &[("arch", "x86_64"), ("machine", "q35")], "hvm")?;
        d.empty("boot", &[("dev", "hd")])
    })?;
    d.nest("features", &[], |d| features(d, spec))?;
    match spec.hypervisor {
        Hypervisor::Kvm => d.empty(
            "cpu",
            &[
                ("mode", "host-passthrough"),
                ("check", "none"),
                ("migratable", "on"),
            ],
        )?,
        Hypervisor::Qemu => d.empty("cpu", &[("mode", "maximum"), ("check", "none")])?,
    }
    d.nest("clock", &[("offset", clock(spec.guest))], |d| {
        d.empty("timer", &[("name", "rtc"), ("tickpolicy", "catchup")])?;
        d.empty("timer", &[("name", "pit"), ("tickpolicy", "delay")])?;
        d.empty("timer", &[("name", "hpet"), ("present", "no")])?;
        if enlightened(spec) {
            d.empty("timer", &[("name", "hypervclock"), ("present", "yes")])?;
        }
        Ok(())
    })?;
    d.text("on_poweroff", &[], "destroy")?;
    d.text("on_reboot", &[], "restart")?;
    d.text("on_crash", &[], "destroy")?;
    d.nest("pm", &[], |d| {
        d.empty("suspend-to-mem", &[("enabled", "no")])?;
        d.empty("suspend-to-disk", &[("enabled", "no")])
    })?;
    d.nest("devices", &[], |d| devices(d, spec))
}

const fn clock(guest: Guest) -> &'static str {
    match guest {
        Guest::Linux => "utc",
        Guest::Windows => "localtime",
    }
}

/// Whether Windows is told that it runs on a hypervisor; only KVM can.
fn enlightened(spec: &DomainSpec) -> bool {
    spec.guest == Guest::Windows && spec.hypervisor == Hypervisor::Kvm
}

fn features(d: &mut Document, spec: &DomainSpec) -> Written {
    d.empty("acpi", &[])?;
    d.empty("apic", &[])?;
    if enlightened(spec) {
        d.nest("hyperv", &[("mode", "custom")], |d| {
            for name in [
                "relaxed",
                "vapic",
                "vpindex",
                "runtime",
                "synic",
                "stimer",
                "reset",
                "frequencies",
            ] {
                d.empty(name, &[("state", "on")])?;
            }
            d.empty("spinlocks", &[("state", "on"), ("retries", "8191")])
        })?;
    }
    Ok(())
}

fn devices(d: &mut Document, spec: &DomainSpec) -> Written {
    let (disk, seed, bus, card) = match spec.bus {
        Bus::Virtio => ("vda", "vdb", "virtio", "virtio"),
        Bus::Sata => ("sda", "sdb", "sata", "e1000e"),
    };
    d.nest("disk", &[("type", "file"), ("device", "disk")], |d| {
        d.empty(
            "driver",
            &[("name", "qemu"), ("type", "qcow2"), ("discard", "unmap")],
        )?;
        d.empty("source", &[("file", &spec.disk)])?;
        d.empty("target", &[("dev", disk), ("bus", bus)])
    })?;
    d.nest(
        "disk",
        &[("type", "file"), ("device", "disk"), ("snapshot", "no")],
        |d| {
            d.empty("driver", &[("name", "qemu"), ("type", "raw")])?;
            d.empty("source", &[("file", &spec.seed)])?;
            d.empty("target", &[("dev", seed), ("bus", bus)])?;
            d.empty("readonly", &[])
        },
    )?;
    d.empty("controller", &[("type", "usb"), ("model", "qemu-xhci")])?;
    interface(d, &spec.interface, card)?;
    d.nest("serial", &[("type", "pty")], |d| {
        d.empty("log", &[("file", &spec.console_log), ("append", "on")])?;
        d.empty("target", &[("type", "isa-serial"), ("port", "0")])
    })?;
    d.nest("channel", &[("type", "unix")], |d| {
        d.empty(
            "target",
            &[("type", "virtio"), ("name", "org.qemu.guest_agent.0")],
        )
    })?;
    d.empty("input", &[("type", "tablet"), ("bus", "usb")])?;
    graphics(d, spec.screen_password.as_ref().map(|p| p.expose()))?;
    d.nest("video", &[], |d| d.empty("model", &[("type", "vga")]))?;
    d.nest("memballoon", &[("model", "virtio")], |d| {
        d.empty("stats", &[("period", "5")])
    })?;
    d.nest("rng", &[("model", "virtio")], |d| {
        d.text("backend", &[("model", "random")], "/dev/urandom")
    })?;
    d.empty("watchdog", &[("model", "i6300esb"), ("action", "reset")])?;
    if spec.tpm {
        d.nest("tpm", &[("model", "tpm-crb")], |d| {
            d.empty("backend", &[("type", "emulator"), ("version", "2.0")])
        })?;
    }
    spec.devices.iter().try_for_each(|device| host_device(d, device))
}

fn interface(d: &mut Document, interface: &Interface, model: &str) -> Written {
    let (bridge, vlan, open_vswitch) = match &interface.plug {
        Plug::Bridge { bridge } => (bridge, None, false),
        Plug::FilteringBridge { bridge, vlan } => (bridge, Some(*vlan), false),
        Plug::OpenVSwitch { bridge, vlan } => (bridge, *vlan, true),
    };
    d.nest("interface", &[("type", "bridge")], |d| {
        d.empty("mac", &[("address", &interface.mac.to_string())])?;
        d.empty("source", &[("bridge", bridge)])?;
        if open_vswitch {
            d.empty("virtualport", &[("type", "openvswitch")])?;
        }
        if let Some(vlan) = vlan {
            d.nest("vlan", &[], |d| d.empty("tag", &[("id", &vlan.to_string())]))?;
        }
        d.empty("model", &[("type", model)])?;
        if let Some(filter) = interface.filter {
            d.nest("filterref", &[("filter", "clean-traffic")], |d| {
                match filter.address {
                    Some(address) => d.empty("parameter", &[("name", "IP"), ("value", &address.to_string())]),
                    None => Ok(()),
                }
            })?;
        }
        Ok(())
    })
}

fn graphics(d: &mut Document, password: Option<&str>) -> Written {
    let mut attributes = vec![("type", "vnc"), ("sharePolicy", "force-shared")];
    attributes.extend(password.map(|p| ("passwd", p)));
    d.nest("graphics", &attributes, |d| {
        d.empty("listen", &[("type", "none")])
    })
}

fn host_device(d: &mut Document, device: &HostDevice) -> Written {
    let pci = |d: &mut Document, address: &PciAddress, managed: &str| {
        let attributes = [("mode", "subsystem"), ("type", "pci"), ("managed", managed)];
        d.nest("hostdev", &attributes, |d| {
            d.nest("source", &[], |d| {
                d.empty(
                    "address",
                    &[
                        ("domain", &format!("0x{:04x}", address.domain)),
                        ("bus", &format!("0x{:02x}", address.bus)),
                        ("slot", &format!("0x{:02x}", address.slot)),
                        ("function", &format!("0x{:x}", address.function)),
                    ],
                )
            })
        })
    };
    match device {
        HostDevice::Vfio(address) => pci(d, address, "yes"),
        HostDevice::VirtualFunction(address) => pci(d, address, "no"),
        HostDevice::Mdev(uuid) => {
            let attributes = [("mode", "subsystem"), ("type", "mdev"), ("model", "vfio-pci")];
            d.nest("hostdev", &attributes, |d| {
                d.nest("source", &[], |d| {
                    d.empty("address", &[("uuid", &uuid.to_string())])
                })
            })
        }
    }
}

fn tag(d: &mut Document, name: &str, namespace: Option<&str>, tag: &Tag) -> Written {
    let resource = tag.resource.to_string();
    let generation = tag.generation.to_string();
    let port = tag.port.to_string();
    let address = tag.address.map(|a| a.to_string());
    let started = tag.started.map(|s| s.millis.to_string());
    let mut attributes = Vec::new();
    attributes.extend(namespace.map(|uri| ("xmlns:hwm", uri)));
    attributes.extend([
        ("owner", tag.owner.as_str()),
        ("resource", &resource),
        ("generation", &generation),
        ("port", &port),
    ]);
    attributes.extend(address.as_deref().map(|a| ("address", a)));
    attributes.extend(started.as_deref().map(|s| ("started", s)));
    d.empty(name, &attributes)
}

/// Our metadata alone, as `virDomainSetMetadata` takes it: libvirt itself puts it into our namespace.
pub(crate) fn tag_xml(t: &Tag) -> Xml {
    Document::build(|d| tag(d, "machine", None, t))
}

/// A storage pool in a folder.
pub(crate) fn pool_xml(name: &str, path: &str) -> Xml {
    Document::build(|d| {
        d.nest("pool", &[("type", "dir")], |d| {
            d.text("name", &[], name)?;
            d.nest("target", &[], |d| {
                d.text("path", &[], path)?;
                d.nest("permissions", &[], |d| d.text("mode", &[], "0711"))
            })
        })
    })
}

/// A volume.
pub(crate) fn volume_xml(volume: &VolumeSpec) -> Xml {
    let bytes = [("unit", "bytes")];
    Document::build(|d| {
        d.nest("volume", &[("type", "file")], |d| {
            d.text("name", &[], &volume.name)?;
            d.text("capacity", &bytes, &volume.capacity.to_string())?;
            d.text("allocation", &bytes, "0")?;
            d.nest("target", &[], |d| {
                d.empty("format", &[("type", volume.format.as_str())])?;
                let mode = if volume.read_only { "0444" } else { "0600" };
                d.nest("permissions", &[], |d| d.text("mode", &[], mode))
            })?;
            if let Some((path, format)) = &volume.backing {
                d.nest("backingStore", &[], |d| {
                    d.text("path", &[], path)?;
                    d.empty("format", &[("type", format.as_str())])
                })?;
            }
            Ok(())
        })
    })
}

fn snapshot_disks(d: &mut Document, bus: Bus) -> Written {
    let (disk, seed) = match bus {
        Bus::Virtio => ("vda", "vdb"),
        Bus::Sata => ("sda", "sdb"),
    };
    d.nest("disks", &[], |d| {
        d.empty("disk", &[("name", disk), ("snapshot", "internal")])?;
        d.empty("disk", &[("name", seed), ("snapshot", "no")])
    })
}

/// A snapshot inside the disk, with memory where the machine runs.
pub(crate) fn snapshot_xml(id: SnapshotId, bus: Bus, memory: bool) -> Xml {
    Document::build(|d| {
        d.nest("domainsnapshot", &[], |d| {
            d.text("name", &[], &id.to_string())?;
            d.empty("memory", &[("snapshot", if memory { "internal" } else { "no" })])?;
            snapshot_disks(d, bus)
        })
    })
}

/// The record of a snapshot that QEMU already took inside the disk of a machine that runs, without its memory.
/// `remark` says so; `domain` is the domain's own XML.
pub(crate) fn disk_snapshot_record_xml(
    id: SnapshotId,
    bus: Bus,
    seconds: i64,
    remark: &str,
    domain: &str,
) -> Xml {
    Document::build(|d| {
        d.nest("domainsnapshot", &[], |d| {
            d.text("name", &[], &id.to_string())?;
            d.text("description", &[], remark)?;
            d.text("state", &[], "shutoff")?;
            d.text("creationTime", &[], &seconds.to_string())?;
            d.empty("memory", &[("snapshot", "no")])?;
            snapshot_disks(d, bus)?;
            d.embed(domain)
        })
    })
}

/// A machine that does nothing but let its firmware speak on the serial line: proof that KVM works.
pub(crate) fn kvm_probe_xml(name: &str) -> Xml {
    Document::build(|d| {
        d.nest("domain", &[("type", Hypervisor::Kvm.as_str())], |d| {
            d.text("name", &[], name)?;
            d.text("memory", &[("unit", "MiB")], "32")?;
            d.text("vcpu", &[], "1")?;
            d.nest("os", &[], |d| {
                d.text("type", &[("arch", "x86_64"), ("machine", "q35")], "hvm")?;
                d.empty("bios", &[("useserial", "yes")])
            })?;
            d.nest("devices", &[], |d| {
                d.nest("serial", &[("type", "pty")], |d| {
                    d.empty("target", &[("port", "0")])
                })?;
                d.empty("memballoon", &[("model", "none")])
            })
        })
    })
}
