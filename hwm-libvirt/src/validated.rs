//! What is generated, judged by others' validators: libvirt's schema, cloud-init's, mtools.

use std::fs;
use std::path::Path;
use std::process::Command;

use hwm_core::accelerator::{Attachment, DeviceGrant};
use hwm_core::backend::Workload;
use hwm_core::config::{CloudInit, Config, IpMode, MachineConfig, NetworkConfig, NetworkKind};
use hwm_core::id::{GpuUuid, ResourceId, SnapshotId};
use hwm_core::secret::Secret;
use hwm_core::units::Bytes;

use crate::catalog::{Bus, Catalog, Guest, Image};
use crate::domain::{Hypervisor, Plug, domain_xml, snapshot_xml};
use crate::images::{BaseImage, Kept};
use crate::machine::{Parts, Surroundings, domain, seed, seed_bytes};
use crate::options::LibvirtOptions;
use crate::seed::ClearPassword;

fn options() -> LibvirtOptions {
    LibvirtOptions {
        clear_password: ClearPassword::EraseAfterBoot,
        ..LibvirtOptions::new("node-1")
    }
}

fn workload(image: &Image, ip_mode: IpMode, vlan_id: Option<u16>, grants: Vec<DeviceGrant>) -> Workload {
    let fixed = ip_mode == IpMode::Static;
    Workload {
        id: ResourceId::from_u128(0x0190_0000_0000_7000_8000_0010_1010_1010),
        name: "A <machine> & \"more\"".into(),
        generation: 1,
        config: Config::Machine(MachineConfig {
            os_image: image.name.to_string(),
            vcpus: 4,
            ram: Bytes::from_mb(2048),
            disk: Bytes::from_whole_gb(40),
            gpu_config: None,
            network_config: NetworkConfig {
                mode: NetworkKind::BridgeVlan,
                ip_mode,
                ip_address: fixed.then_some([192, 168, 100, 10].into()),
                netmask: fixed.then_some([255, 255, 255, 0].into()),
                gateway: fixed.then_some([192, 168, 100, 1].into()),
                vlan_id,
                dns: vec![[9, 9, 9, 9].into()],
            },
            cloud_init: Some(CloudInit {
                hostname: Some("web-1".into()),
                ssh_public_key: Some(
                    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFake me".into(),
                ),
                username: None,
                password: Some(Secret::new("p\u{e4}ss: 'word' #1")),
            }),
        }),
        ports: Vec::new(),
        grants,
    }
}

fn grant(attachment: Attachment) -> DeviceGrant {
    DeviceGrant {
        card: GpuUuid::new("GPU-1"),
        uuid: "GPU-1".into(),
        memory: None,
        attachment,
    }
}

fn run(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{command} cannot be run: {e}"));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command} {arguments:?}: {said}");
    said
}

fn put(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("a temporary folder can be written");
    path.to_str()
        .expect("a temporary folder has a plain name")
        .to_owned()
}

#[test]
fn every_domain_and_volume_passes_libvirts_schema() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [
        Vec::new(),
        vec![grant(Attachment::Vfio {
            functions: vec!["0000:3b:00.0".into(), "0000:3b:00.1".into()],
        })],
        vec![
            grant(Attachment::VirtualFunction {
                function: "0000:3b:00.4".into(),
            }),
            grant(Attachment::Mdev {
                uuid: "30820a6f-b1a5-4503-91ca-0c10ba58692a".into(),
            }),
        ],
    ];
    let bridge = String::from("br0");
    let plugs = [
        Plug::Bridge {
            bridge: "br0.100".into(),
        },
        Plug::FilteringBridge {
            bridge: bridge.clone(),
            vlan: 100,
        },
        Plug::OpenVSwitch {
            bridge,
            vlan: Some(100),
        },
    ];
    let mut count = 0;
    for image in Catalog::built_in().unwrap().images() {
        for hypervisor in [Hypervisor::Kvm, Hypervisor::Qemu] {
            for plug in &plugs {
                for grants in &devices {
                    let around = Surroundings {
                        hypervisor,
                        plug: plug.clone(),
                        filter: count % 2 == 0,
                        pool_path: "/var/lib/libvirt/images/hwm".into(),
                    };
                    let mode = if count % 3 == 0 {
                        IpMode::Dhcp
                    } else {
                        IpMode::Static
                    };
                    let workload = workload(image, mode, Some(100), grants.clone());
                    let spec = domain(&workload, image, &around, &options()).unwrap();
                    let xml = put(folder.path(), "domain.xml", domain_xml(&spec).unwrap());
                    run("virt-xml-validate", &[&xml, "domain"]);
                    let base = BaseImage {
                        kept: Kept {
                            volume: "base".into(),
                            record: "base.json".into(),
                        },
                        path: "/base".into(),
                        format: image.format,
                        virtual_size: 1,
                    };
                    let parts = Parts::new(&spec, 1 << 30, &base).unwrap();
                    if count % 18 == 0 {
                        for volume in [&parts.disk, &parts.seed, &parts.console_log] {
                            let xml = put(folder.path(), "volume.xml", volume);
                            run("virt-xml-validate", &[&xml, "storagevol"]);
                        }
                    }
                    count += 1;
                }
            }
        }
    }
    assert_eq!(count, 8 * 2 * 3 * 3);
}

/// libvirt is not asked to check these at each snapshot, which would take it longer than a small snapshot does.
#[test]
fn every_snapshot_is_one_for_libvirt() {
    let folder = tempfile::tempdir().unwrap();
    let id = SnapshotId::from_u128(5);
    for bus in [Bus::Virtio, Bus::Sata] {
        for memory in [true, false] {
            let document = snapshot_xml(id, bus, memory).unwrap();
            let xml = put(folder.path(), "snapshot.xml", document);
            run("virt-xml-validate", &[&xml, "domainsnapshot"]);
        }
    }
}

#[test]
fn every_seed_is_understood_by_cloud_init_and_read_by_mtools() {
    let folder = tempfile::tempdir().unwrap();
    let cloud_init =
        std::env::var("HWM_TEST_CLOUD_INIT").expect("scripts/lab up libvirt sets HWM_TEST_CLOUD_INIT");
    for image in Catalog::built_in().unwrap().images() {
        for mode in [IpMode::Static, IpMode::Dhcp] {
            let workload = workload(image, mode, None, Vec::new());
            let Config::Machine(config) = &workload.config else {
                unreachable!("it was made as a machine")
            };
            let made = seed(workload.id, &workload.name, config, image, &options()).unwrap();
            let network = put(folder.path(), "network-config", &made.network_config);
            let out = folder.path().join("net");
            let arguments = [
                "devel",
                "net-convert",
                "-p",
                &network,
                "-k",
                "yaml",
                "-D",
                "debian",
                "-O",
                "netplan",
            ];
            run(
                &cloud_init,
                &[&arguments[..], &["-d", out.to_str().unwrap()]].concat(),
            );
            if image.guest == Guest::Linux {
                let user_data = put(folder.path(), "user-data", made.user_data.as_bytes());
                let said = run(&cloud_init, &["schema", "-c", &user_data]);
                assert!(said.contains("Valid"), "{said}");
            }
            let bytes = seed_bytes(&workload, image, &options()).unwrap();
            let disk = put(folder.path(), "seed.img", &bytes[..]);
            for name in ["meta-data", "user-data", "network-config"] {
                let text = run("mtype", &["-i", &disk, &format!("::/{name}")]);
                assert!(!text.is_empty());
            }
            assert!(run("mlabel", &["-i", &disk, "-s", "::"]).contains("CIDATA"));
            let holds_password = bytes.windows(6).any(|w| w == b"'word'");
            assert_eq!(holds_password, image.guest == Guest::Windows);
        }
    }
}
