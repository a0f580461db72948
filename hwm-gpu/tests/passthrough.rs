//! Whole cards for machines, on the fake NVML and a fake `/sys` and `/proc`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::*;
use hwm_core::accelerator::{Accelerators, Attachment, GpuHealth, PlacementRefusal};
use hwm_core::backend::BackendErrorKind;
use hwm_gpu::NvmlAccelerators;
use hwm_gpu_fake::Process;

/// A process that has a file open.
fn process(lab: &Lab, pid: u32, name: &str, file: &str) {
    let folder = lab.path().join(format!("proc/{pid}/fd"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(lab.path().join(format!("proc/{pid}/comm")), format!("{name}\n")).unwrap();
    let link = folder.join("3");
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link).unwrap();
    }
    symlink(lab.path().join("dev").join(file), link).unwrap();
}

fn end(lab: &Lab, pid: u32) {
    fs::remove_dir_all(lab.path().join(format!("proc/{pid}"))).unwrap();
}

/// The card's own files that this process has open.
fn open_here(lab: &Lab) -> usize {
    let fds = fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    fds.filter_map(|f| fs::read_link(f.path()).ok())
        .filter(|l| l.starts_with(lab.path().join("dev")))
        .count()
}

#[tokio::test]
async fn a_card_goes_to_a_machine_with_all_its_functions_and_comes_back() {
    let lab = Lab::new("a100-40gb,a30");
    let gpus = lab.open().await;
    assert_eq!(open_here(&lab), 2, "the fake holds what NVML holds");
    let place = gpus.plan(&named("0"), MACHINE, &[]).unwrap().remove(0);
    let grant = gpus
        .prepare(&call(1), resource(1), &place, MACHINE)
        .await
        .unwrap();
    assert_eq!(
        grant.attachment,
        Attachment::Vfio {
            functions: vec![CARD.into(), AUDIO.into()]
        }
    );
    assert_eq!(open_here(&lab), 0, "our own session is in the way of the driver");
    // Until libvirt has the card, NVML stays closed, and what needs it is told to come again.
    gpus.refresh().await.unwrap();
    assert_eq!(open_here(&lab), 0);
    let other = gpus.inventory().cards[1].uuid.to_string();
    assert_eq!(
        gpus.metrics(std::slice::from_ref(&other)).await.unwrap_err().kind,
        BackendErrorKind::Unavailable
    );
    assert_eq!(
        gpus.prepare(&call(1), resource(1), &place, MACHINE)
            .await
            .unwrap(),
        grant,
        "again"
    );
    lab.machine_takes();
    gpus.refresh().await.unwrap();
    assert_eq!(open_here(&lab), 1);
    let cards = gpus.inventory().cards;
    assert_eq!(
        (cards[0].index, cards[0].health),
        (0, GpuHealth::Ok),
        "a card keeps its place while it is away"
    );
    assert_eq!(
        (cards[1].index, cards[1].uuid.as_str()),
        (1, other.as_str()),
        "though NVML's indexes moved"
    );
    assert!(gpus.metrics(&[other]).await.unwrap()[0].temperature_c.is_some());
    let held = claims(resource(1), std::slice::from_ref(&place));
    match gpus.plan(&named("0"), MACHINE, &held) {
        Err(PlacementRefusal::Taken { holders, .. }) => assert_eq!(holders, [resource(1)]),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        gpus.prepare(&call(1), resource(2), &place, MACHINE)
            .await
            .unwrap_err()
            .kind,
        BackendErrorKind::Conflict
    );
    lab.machine_gives_back();
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    assert!(gpus.plan(&named("0"), CONTAINER, &[]).is_ok());
}

#[tokio::test]
async fn after_a_restart_a_card_that_is_away_is_still_known_and_released() {
    let lab = Lab::new("a100-40gb,a30");
    let uuid = lab.world().cards[0].uuid.clone();
    let place = {
        let gpus = lab.open().await;
        let place = gpus.plan(&named("0"), MACHINE, &[]).unwrap().remove(0);
        gpus.prepare(&call(1), resource(1), &place, MACHINE)
            .await
            .unwrap();
        lab.machine_takes();
        place
    };
    let gpus = lab.open().await;
    let card = gpus.inventory().cards[0].clone();
    assert_eq!(
        (card.uuid.as_str(), card.index, card.health),
        (uuid.as_str(), 0, GpuHealth::Ok)
    );
    assert_eq!(card.model, "NVIDIA A100-SXM4-40GB");
    assert!(gpus.prepare(&call(2), resource(1), &place, MACHINE).await.is_ok());
    lab.machine_gives_back();
    gpus.release(&call(3), resource(1), &place).await.unwrap();
    assert!(gpus.plan(&named(&uuid), CONTAINER, &[]).is_ok());
}

#[tokio::test]
async fn a_machine_that_does_not_let_go_leaves_the_card_out_of_use_until_it_does() {
    let lab = Lab::new("a100-40gb");
    let gpus = lab.open().await;
    let place = gpus.plan(&named("0"), MACHINE, &[]).unwrap().remove(0);
    gpus.prepare(&call(1), resource(1), &place, MACHINE)
        .await
        .unwrap();
    lab.machine_takes();
    process(&lab, 777, "qemu-system-x86", "vfio/10");
    let error = gpus.release(&quick(2), resource(1), &place).await.unwrap_err();
    assert!(error.message.contains("pid 777 (qemu-system-x86)"), "{error}");
    let card = gpus.inventory().cards[0].clone();
    assert_eq!(card.health, GpuHealth::Quarantined);
    assert!(card.reason.unwrap().contains("777"));
    assert!(matches!(
        gpus.plan(&named("0"), MACHINE, &[]),
        Err(PlacementRefusal::Unsupported(_))
    ));
    assert!(gpus.recover(&card.uuid).await.is_err());
    end(&lab, 777);
    assert!(
        gpus.recover(&card.uuid)
            .await
            .unwrap_err()
            .message
            .contains("not back on nvidia")
    );
    lab.bind(CARD, Some("nvidia"));
    assert!(
        gpus.recover(&card.uuid)
            .await
            .unwrap_err()
            .message
            .contains(AUDIO)
    );
    lab.machine_gives_back();
    gpus.recover(&card.uuid).await.unwrap();
    gpus.release(&call(3), resource(1), &place).await.unwrap();
    assert!(gpus.plan(&named("0"), CONTAINER, &[]).is_ok());
}

#[tokio::test]
async fn a_card_whose_driver_came_back_and_that_nvml_does_not_see_is_out_of_use() {
    let lab = Lab::new("a100-40gb");
    let gpus = lab.open().await;
    let place = gpus.plan(&named("0"), MACHINE, &[]).unwrap().remove(0);
    gpus.prepare(&call(1), resource(1), &place, MACHINE)
        .await
        .unwrap();
    lab.machine_takes();
    lab.edit(|w| w.cards[0].lost = true);
    lab.machine_gives_back();
    let error = gpus.release(&quick(2), resource(1), &place).await.unwrap_err();
    assert!(error.message.contains("NVML does not see it"), "{error}");
    assert_eq!(gpus.inventory().cards[0].health, GpuHealth::Quarantined);
}

#[tokio::test]
async fn what_stands_in_the_way_is_named_before_anything_is_touched() {
    let lab = Lab::new("a100-40gb");
    let gpus = lab.open().await;
    let place = gpus.plan(&named("0"), MACHINE, &[]).unwrap().remove(0);
    let refused = async |part: &str| {
        let error = gpus
            .prepare(&call(1), resource(1), &place, MACHINE)
            .await
            .unwrap_err();
        assert!(error.message.contains(part), "{error} lacks {part}");
        assert!(
            gpus.plan(&named("0"), CONTAINER, &[]).is_ok(),
            "a refusal leaves no trace"
        );
    };
    process(&lab, 555, "nvidia-persiste", "nvidia0");
    refused("/dev/nvidia0 is open in pid 555 (nvidia-persiste)").await;
    end(&lab, 555);
    // Other drivers made files too, of the card and of its audio function.
    for (function, folder, file) in [
        (CARD, "drm/card0", "dri/card0"),
        (AUDIO, "sound/card1/controlC1", "snd/controlC1"),
    ] {
        let folder = lab
            .path()
            .join(format!("sys/devices/pci0000:00/{function}/{folder}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("uevent"), format!("MAJOR=1\nDEVNAME={file}\n")).unwrap();
        process(&lab, 556, "Xorg", file);
        refused(&format!("/dev/{file} is open in pid 556 (Xorg)")).await;
        end(&lab, 556);
    }
    // A machine that somebody else started may have the group.
    process(&lab, 557, "qemu-system-x86", "vfio/10");
    refused("/dev/vfio/10 is open in pid 557 (qemu-system-x86)").await;
    end(&lab, 557);
    lab.edit(|w| w.cards[0].persistence = true);
    refused("persistence mode").await;
    lab.edit(|w| w.cards[0].persistence = false);
    lab.edit(|w| {
        w.cards[0].processes.push(Process {
            pid: 99,
            mib: 1,
            instance: None,
        })
    });
    refused("pid 99 uses the card").await;
    lab.edit(|w| w.cards[0].processes.clear());
    assert!(gpus.prepare(&call(1), resource(1), &place, MACHINE).await.is_ok());
}

#[tokio::test]
async fn a_group_that_the_host_uses_is_refused_when_it_is_planned() {
    let lab = Lab::new("a100-40gb");
    function_in_sysfs(lab.path(), "0000:10:01.0", "0x020000", 10, Some("e1000e"));
    function_in_sysfs(lab.path(), "0000:0f:00.0", "0x060400", 10, Some("pcieport"));
    let gpus = lab.open().await;
    match gpus.plan(&named("0"), MACHINE, &[]) {
        Err(PlacementRefusal::Unsupported(why)) => {
            assert!(
                why.contains("0000:10:01.0 (driver e1000e)") && !why.contains("pcieport"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    // Out of the host's hands it does no harm, and does not go along.
    lab.bind("0000:10:01.0", Some("vfio-pci"));
    gpus.refresh().await.unwrap();
    let place = gpus.plan(&named("0"), MACHINE, &[]).unwrap().remove(0);
    let grant = gpus
        .prepare(&call(1), resource(1), &place, MACHINE)
        .await
        .unwrap();
    assert_eq!(
        grant.attachment,
        Attachment::Vfio {
            functions: vec![CARD.into(), AUDIO.into()]
        }
    );
}

#[tokio::test]
async fn a_host_without_iommu_and_a_card_with_virtual_functions_are_refused_when_planned() {
    let lab = Lab::new("a100-40gb");
    fs::write(
        lab.path()
            .join(format!("sys/devices/pci0000:00/{CARD}/sriov_numvfs")),
        "4\n",
    )
    .unwrap();
    let gpus = lab.open().await;
    let refused = |part: &str| match gpus.plan(&named("0"), MACHINE, &[]) {
        Err(PlacementRefusal::Unsupported(why)) => assert!(why.contains(part), "{why}"),
        other => panic!("{other:?}"),
    };
    refused("4 virtual functions");
    fs::remove_dir_all(lab.path().join("sys/kernel/iommu_groups")).unwrap();
    gpus.refresh().await.unwrap();
    refused("no IOMMU");
}

#[tokio::test]
async fn a_device_that_nvml_never_sees_is_passed_through_when_it_is_named() {
    let lab = Lab::new("a30");
    function_in_sysfs(lab.path(), "0000:21:00.0", "0x030000", 33, Some("bochs-drm"));
    fs::write(
        lab.path().join("sys/devices/pci0000:00/0000:21:00.0/vendor"),
        "0x1234\n",
    )
    .unwrap();
    let mut options = lab.options();
    options.also = vec!["21:00.0".to_owned()];
    let gpus = NvmlAccelerators::open(options).await.unwrap();
    let cards = gpus.inventory().cards;
    assert_eq!((cards.len(), cards[1].uuid.as_str()), (2, "PCI-0000:21:00.0"));
    let place = gpus.plan(&named("1"), MACHINE, &[]).unwrap().remove(0);
    let grant = gpus
        .prepare(&call(1), resource(1), &place, MACHINE)
        .await
        .unwrap();
    assert_eq!(
        grant.attachment,
        Attachment::Vfio {
            functions: vec!["0000:21:00.0".into()]
        }
    );
    lab.bind("0000:21:00.0", Some("vfio-pci"));
    assert!(gpus.release(&quick(2), resource(1), &place).await.is_err());
    lab.bind("0000:21:00.0", Some("bochs-drm"));
    gpus.recover(&place.card).await.unwrap();
}
