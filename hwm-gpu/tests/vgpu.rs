//! Slices for machines, on the fake NVML and a fake `/sys`: virtual functions and mediated devices.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::*;
use hwm_core::accelerator::{Accelerators, Attachment, PlacementRefusal};

#[tokio::test]
async fn a_slice_reaches_a_machine_through_a_virtual_function() {
    let lab = Lab::new("a100-40gb+mig");
    let gpus = lab.open().await;
    assert!(matches!(
        gpus.plan(&slice("1g.5gb"), MACHINE, &[]),
        Err(PlacementRefusal::Unsupported(_))
    ));
    for (n, vf) in ["0000:10:00.4", "0000:10:00.5"].into_iter().enumerate() {
        function_in_sysfs(lab.path(), vf, "0x030200", 40 + n as u32, Some("nvidia"));
        let folder = lab.path().join(format!("sys/devices/pci0000:00/{vf}"));
        let card = lab.path().join(format!("sys/devices/pci0000:00/{CARD}"));
        symlink(&card, folder.join("physfn")).unwrap();
        symlink(&folder, card.join(format!("virtfn{n}"))).unwrap();
        fs::create_dir_all(folder.join("nvidia")).unwrap();
        fs::write(
            folder.join("nvidia/current_vgpu_type"),
            if n == 0 { "700" } else { "0" },
        )
        .unwrap();
        let types = "ID    : vGPU Name\n557 : NVIDIA A100-1-5CME\n558 : NVIDIA A100-1-5C\n";
        fs::write(folder.join("nvidia/creatable_vgpu_types"), types).unwrap();
    }
    gpus.refresh().await.unwrap();
    let place = gpus.plan(&slice("1g.5gb"), MACHINE, &[]).unwrap().remove(0);
    let grant = gpus
        .prepare(&call(1), resource(1), &place, MACHINE)
        .await
        .unwrap();
    assert_eq!(
        grant.attachment,
        Attachment::VirtualFunction {
            function: "0000:10:00.5".into()
        }
    );
    let current = || {
        fs::read_to_string(
            lab.path()
                .join("sys/devices/pci0000:00/0000:10:00.5/nvidia/current_vgpu_type"),
        )
    };
    assert_eq!(current().unwrap(), "558");
    assert_eq!(
        gpus.prepare(&call(1), resource(1), &place, MACHINE)
            .await
            .unwrap(),
        grant,
        "again"
    );
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    assert!(current().unwrap().starts_with('0'));
    assert_eq!(made(&lab.world()), 0);
}

#[tokio::test]
async fn a_slice_reaches_a_machine_through_a_mediated_device() {
    let lab = Lab::new("a100-40gb+mig");
    let types = lab
        .path()
        .join(format!("sys/devices/pci0000:00/{CARD}/mdev_supported_types"));
    for (name, kind, free) in [
        ("nvidia-557", "NVIDIA A100-1-5CME", 1),
        ("nvidia-558", "NVIDIA A100-1-5C", 1),
        ("nvidia-559", "NVIDIA A100-2-10C", 0),
    ] {
        let folder = types.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("name"), format!("{kind}\n")).unwrap();
        fs::write(folder.join("available_instances"), format!("{free}\n")).unwrap();
        fs::write(folder.join("create"), "").unwrap();
    }
    let gpus = lab.open().await;
    let place = gpus.plan(&slice("1g.5gb"), MACHINE, &[]).unwrap().remove(0);
    let grant = gpus
        .prepare(&call(1), resource(1), &place, MACHINE)
        .await
        .unwrap();
    let uuid = resource(1).to_string();
    assert_eq!(grant.attachment, Attachment::Mdev { uuid: uuid.clone() });
    assert_eq!(fs::read_to_string(types.join("nvidia-558/create")).unwrap(), uuid);
    // The kernel shows it; given back, it is removed before its slice is.
    let device = lab.path().join(format!("sys/bus/mdev/devices/{uuid}"));
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join("remove"), "").unwrap();
    let again = gpus.prepare(&call(1), resource(1), &place, MACHINE).await;
    assert_eq!(again.unwrap(), grant);
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    assert_eq!(fs::read_to_string(device.join("remove")).unwrap(), "1");
    assert_eq!(made(&lab.world()), 0);
    // The type that is left for a larger one has no room, and the slice that was made for it is not kept.
    let place = gpus.plan(&slice("2g.10gb"), MACHINE, &[]).unwrap().remove(0);
    let error = gpus
        .prepare(&call(1), resource(2), &place, MACHINE)
        .await
        .unwrap_err();
    assert!(error.message.contains("takes a vGPU type"), "{error}");
    gpus.release(&call(2), resource(2), &place).await.unwrap();
    assert_eq!(made(&lab.world()), 0);
}
