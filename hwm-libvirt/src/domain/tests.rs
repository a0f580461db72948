use hwm_core::id::ResourceId;
use hwm_core::secret::Secret;
use hwm_core::units::Bytes;
use proptest::prelude::*;
use roxmltree::Document;

use super::*;
use crate::catalog::{Bus, Firmware, Guest, ImageFormat};
use crate::mac::MacAddress;

pub(crate) const ID: ResourceId = ResourceId::from_u128(0x0190_0000_0000_7000_8000_00aa_bbcc_ddee);

pub(crate) fn spec() -> DomainSpec {
    DomainSpec {
        tag: Tag {
            owner: "node-1".into(),
            resource: ID,
            generation: 7,
            address: Some([192, 168, 100, 10].into()),
            port: 22,
            started: None,
        },
        title: "Demo <VM> & more".into(),
        hypervisor: Hypervisor::Kvm,
        vcpus: Adjustable {
            current: 2,
            maximum: 8,
        },
        memory: Adjustable {
            current: Bytes::from_mb(1024),
            maximum: Bytes::from_mb(1024),
        },
        guest: Guest::Linux,
        firmware: Firmware::Bios,
        tpm: false,
        bus: Bus::Virtio,
        disk: format!("/pool/{}", disk_name(ID)),
        seed: format!("/pool/{}", seed_name(ID)),
        console_log: format!("/pool/{}", console_log_name(ID)),
        interface: Interface {
            mac: MacAddress::of(ID),
            plug: Plug::Bridge { bridge: "br0".into() },
            filter: Some(Filter {
                address: Some([192, 168, 100, 10].into()),
            }),
        },
        devices: Vec::new(),
        screen_password: Some(Secret::new("abcdefgh")),
    }
}

pub(crate) fn windows() -> DomainSpec {
    let address = PciAddress::parse("0000:3b:00.1").unwrap();
    DomainSpec {
        guest: Guest::Windows,
        firmware: Firmware::Uefi,
        tpm: true,
        bus: Bus::Sata,
        devices: vec![
            HostDevice::Vfio(address),
            HostDevice::VirtualFunction(PciAddress { slot: 31, ..address }),
            HostDevice::Mdev(uuid::Uuid::from_u128(0x1234)),
        ],
        interface: Interface {
            plug: Plug::OpenVSwitch {
                bridge: "ovs0".into(),
                vlan: Some(100),
            },
            filter: Some(Filter { address: None }),
            mac: MacAddress::of(ID),
        },
        ..spec()
    }
}

#[test]
fn a_linux_machine_on_a_bridge() {
    insta::assert_snapshot!(domain_xml(&spec()).unwrap());
}

#[test]
fn a_windows_machine_with_devices_on_a_vlan() {
    insta::assert_snapshot!(domain_xml(&windows()).unwrap());
}

#[test]
fn an_emulated_machine_on_a_filtering_bridge() {
    let mut spec = spec();
    spec.hypervisor = Hypervisor::Qemu;
    spec.interface.plug = Plug::FilteringBridge {
        bridge: "br0".into(),
        vlan: 4094,
    };
    spec.interface.filter = None;
    insta::assert_snapshot!(domain_xml(&spec).unwrap());
}

#[test]
fn volumes_pools_and_snapshots() {
    let volume = VolumeSpec {
        name: disk_name(ID),
        capacity: 10 << 30,
        format: ImageFormat::Qcow2,
        backing: Some(("/pool/base.img".into(), ImageFormat::Raw)),
        read_only: false,
    };
    let id = hwm_core::id::SnapshotId::from_u128(5);
    insta::assert_snapshot!(
        [
            volume_xml(&volume).unwrap(),
            pool_xml("hwm", "/var/lib/libvirt/images/hwm").unwrap(),
            snapshot_xml(id, Bus::Virtio, true).unwrap(),
            disk_snapshot_record_xml(id, Bus::Sata, 12, "remark", "<domain/>").unwrap(),
            kvm_probe_xml("hwm-kvm-probe").unwrap(),
        ]
        .join("\n")
    );
}

#[test]
fn what_was_written_is_read_back() {
    for spec in [spec(), windows()] {
        let seen = DomainSeen::parse(&domain_xml(&spec).unwrap()).unwrap();
        assert_eq!(seen.tag.as_ref(), Some(&spec.tag));
        assert_eq!(seen.screen_password, spec.screen_password);
        assert_eq!((seen.bus, seen.uefi), (spec.bus, spec.firmware == Firmware::Uefi));
        assert_eq!(seen.host_devices, !spec.devices.is_empty());
        assert_eq!(seen.macs, [spec.interface.mac.to_string()]);
        assert_eq!(seen.max_vcpus, Some(8));
        assert_eq!(seen.max_memory, Some(1 << 30));
    }
}

#[test]
fn a_lookalike_without_our_metadata_has_no_tag() {
    let xml = domain_xml(&spec())
        .unwrap()
        .replace(METADATA_NAMESPACE, "https://example.org/");
    assert_eq!(DomainSeen::parse(&xml).unwrap().tag, None);
    assert_eq!(DomainSeen::parse("<domain/>"), None);
    assert_eq!(DomainSeen::parse("no xml"), None);
}

#[test]
fn only_whole_pci_addresses_are_read() {
    for text in [
        "",
        "3b:00.0",
        "0000:3b:00",
        "0000:3b:20.0",
        "0000:3b:00.8",
        "0000:3b:00.0:1",
        "+000:3b:00.0",
    ] {
        assert_eq!(PciAddress::parse(text), None, "{text}");
    }
}

#[test]
fn names_tell_their_machine() {
    for name in [
        domain_name(ID),
        disk_name(ID),
        seed_name(ID),
        console_log_name(ID),
    ] {
        assert_eq!(resource_of(&name), Some(ID), "{name}");
    }
    for name in [
        "hwm-",
        "hwm-x",
        "web",
        "hwm-image-debian-12",
        "hwm-01900000-0000-7000-8000-00aabbccddeef",
    ] {
        assert_eq!(resource_of(name), None, "{name}");
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,30}",
        any::<String>(),
        proptest::sample::select(vec![
            "]]>",
            "</title>",
            "\" x=\"",
            "' x='",
            "<!--",
            "&amp;",
            "&#x0;",
            "<?xml?>",
            "<![CDATA[x]]>",
            "&lt;",
            "a\nb",
            "\0",
        ])
        .prop_map(str::to_owned),
    ]
}

fn values(xml: &str) -> Vec<String> {
    let document = Document::parse(xml).unwrap();
    document
        .descendants()
        .flat_map(|n| {
            let text = n.is_text().then(|| n.text().unwrap_or_default().to_owned());
            let attributes = n.attributes().map(|a| a.value().to_owned()).collect::<Vec<_>>();
            text.into_iter().chain(attributes)
        })
        .filter(|t| !t.trim().is_empty())
        .collect()
}

proptest! {
    // Eight times what PROPTEST_CASES says, so 2048 where it says nothing.
    #![proptest_config(ProptestConfig::with_cases(8 * ProptestConfig::default().cases))]
    #[test]
    fn no_value_leaves_its_place(title in text(), owner in text(), bridge in text(), disk in text()) {
        let plain = values(&domain_xml(&spec()).unwrap()).len();
        let mut spec = spec();
        let mark = |t: &str| format!("x{t}y");
        spec.title = mark(&title);
        spec.tag.owner = mark(&owner);
        spec.interface.plug = Plug::Bridge { bridge: mark(&bridge) };
        spec.disk = mark(&disk);
        match domain_xml(&spec) {
            Ok(xml) => {
                let found = values(&xml);
                prop_assert_eq!(found.len(), plain);
                for value in [&owner, &bridge, &disk] {
                    prop_assert!(found.contains(&mark(value)), "{:?}", value);
                }
                prop_assert_eq!(DomainSeen::parse(&xml).unwrap().tag.unwrap().owner, mark(&owner));
            }
            Err(XmlError::Character(c)) => {
                prop_assert!([&owner, &bridge, &disk, &title].iter().any(|v| v.contains(c)));
            }
            Err(XmlError::Write) => prop_assert!(false),
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(xml in "\\PC{0,200}", cut in 0usize..2000) {
        let whole = domain_xml(&spec()).unwrap();
        let _ = DomainSeen::parse(&xml);
        let _ = DomainSeen::parse(whole.get(..cut).unwrap_or(&whole));
    }
}
