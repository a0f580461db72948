//! Bad days with slices: strangers, failures, boots, garbage, late calls.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::*;
use hwm_core::accelerator::{Accelerators, GpuHealth, PlacementKind};
use hwm_core::backend::BackendErrorKind;
use hwm_gpu::NvmlAccelerators;
use hwm_gpu_fake::FaultKind;

#[tokio::test]
async fn a_foreign_instance_between_look_and_create_is_not_taken_for_ours() {
    let lab = Lab::new("a100-40gb+mig");
    let gpus = lab.open().await;
    let place = plan(&gpus, &slice("1g.5gb"));
    let PlacementKind::Slice { start, .. } = place.kind else {
        panic!("a slice")
    };
    lab.fail(
        "nvmlDeviceCreateGpuInstanceWithPlacement",
        Some(1),
        FaultKind::Foreign {
            card: 0,
            profile: 19,
            start,
        },
    );
    let error = gpus
        .prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Conflict, "{error}");
    lab.heal();
    gpus.release(&call(1), resource(1), &place).await.unwrap();
    gpus.refresh().await.unwrap();
    let inventory = gpus.inventory();
    assert_eq!(
        inventory.cards[0].instances.len(),
        1,
        "the foreign instance was destroyed"
    );
    assert!(!inventory.cards[0].instances[0].ours);
    assert_eq!(inventory.cards[0].health, GpuHealth::Ok);
}

#[tokio::test]
async fn an_instance_after_a_failure_that_says_nothing_is_in_doubt_until_it_is_gone() {
    let lab = Lab::new("a100-40gb+mig");
    let gpus = lab.open().await;
    let place = plan(&gpus, &slice("2g.10gb"));
    lab.fail(
        "nvmlDeviceCreateGpuInstanceWithPlacement",
        Some(1),
        FaultKind::ReturnAfter(999),
    );
    let error = gpus
        .prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap_err();
    assert!(error.message.contains("nobody can tell"), "{error}");
    lab.heal();
    let card = gpus.inventory().cards[0].clone();
    assert_eq!(
        (card.health, card.instances[0].ours),
        (GpuHealth::Degraded, false)
    );
    // It keeps its claims: the release fails, and the instance stays.
    assert!(gpus.release(&call(1), resource(1), &place).await.is_err());
    assert!(
        gpus.recover(&card.uuid)
            .await
            .unwrap_err()
            .message
            .contains("is still at slot")
    );
    assert_eq!(made(&lab.world()), 1);
    let again = gpus.plan(&slice("2g.10gb"), CONTAINER, &[]).unwrap();
    assert_ne!(again[0].kind, place.kind, "slots in doubt were planned");
    lab.edit(|w| w.cards[0].instances.clear());
    gpus.recover(&card.uuid).await.unwrap();
    gpus.release(&call(1), resource(1), &place).await.unwrap();
    assert_eq!(gpus.inventory().cards[0].health, GpuHealth::Ok);
}

#[tokio::test]
async fn a_slice_whose_place_somebody_else_took_meanwhile_is_let_go_and_not_destroyed() {
    let lab = Lab::new("a100-40gb+mig");
    let gpus = lab.open().await;
    let place = plan(&gpus, &slice("3g.20gb"));
    gpus.prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    // Removed and made again behind our back: the same place and id, another UUID.
    lab.edit(|w| {
        w.cards[0].instances[0].compute[0].uuid = "MIG-00000000-1111-4222-8333-444444444444".to_owned()
    });
    gpus.refresh().await.unwrap();
    assert!(!gpus.inventory().cards[0].instances[0].ours);
    let error = gpus
        .prepare(&call(2), resource(1), &place, CONTAINER)
        .await
        .unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Conflict);
    gpus.release(&call(3), resource(1), &place).await.unwrap();
    assert_eq!(made(&lab.world()), 1);
}

#[tokio::test]
async fn after_a_boot_a_slice_is_made_again_and_what_stands_there_is_not_ours() {
    let lab = Lab::new("a100-40gb+mig");
    let place;
    {
        let gpus = lab.open().await;
        place = plan(&gpus, &slice("3g.20gb"));
        gpus.prepare(&call(1), resource(1), &place, CONTAINER)
            .await
            .unwrap();
    }
    lab.reboot("boot-2");
    {
        let gpus = lab.open().await;
        gpus.prepare(&call(2), resource(1), &place, CONTAINER)
            .await
            .unwrap();
        assert_eq!(made(&lab.world()), 1);
    }
    lab.reboot("boot-3");
    let PlacementKind::Slice { start, .. } = place.kind else {
        panic!("a slice")
    };
    lab.foreign(0, 9, start);
    let gpus = lab.open().await;
    lab.heal();
    gpus.release(&call(3), resource(1), &place).await.unwrap();
    assert_eq!(
        made(&lab.world()),
        1,
        "another boot's entry destroyed a foreign instance"
    );
}

#[tokio::test]
async fn nvml_failing_at_any_call_leaves_nothing_behind_once_it_is_released() {
    // Opening and making take some 300 calls, of which making alone, counted from here, is fewer than these.
    let every = (1..=230).map(|n| (999, n));
    let some = [23, 15, 10, 4]
        .into_iter()
        .flat_map(|code| (1..=230).step_by(9).map(move |n| (code, n)));
    let mut hit = 0;
    for (code, n) in every.chain(some) {
        let lab = Lab::new("a100-40gb+mig");
        let gpus = lab.open().await;
        let place = plan(&gpus, &slice("3g.20gb"));
        lab.fail("*", Some(n), FaultKind::Return(code));
        hit += usize::from(
            gpus.prepare(&call(1), resource(1), &place, CONTAINER)
                .await
                .is_err(),
        );
        lab.heal();
        gpus.release(&call(2), resource(1), &place).await.unwrap();
        assert_eq!(made(&lab.world()), 0, "code {code} at call {n}");
        let again = gpus.prepare(&call(3), resource(1), &place, CONTAINER).await;
        assert!(again.is_ok(), "code {code} at call {n}: {again:?}");
    }
    assert!(hit > 50, "only {hit} faults were met");
}

#[tokio::test]
async fn a_call_that_hangs_costs_its_caller_the_deadline_and_nobody_else_anything() {
    let lab = Lab::new("a100-40gb+mig");
    let mut options = lab.options();
    options.patience = Duration::from_millis(300);
    let gpus = NvmlAccelerators::open(options).await.unwrap();
    let place = plan(&gpus, &slice("1g.5gb"));
    lab.fail(
        "nvmlDeviceCreateGpuInstanceWithPlacement",
        None,
        FaultKind::Hang(2000),
    );
    let begun = std::time::Instant::now();
    let error = gpus
        .prepare(&quick(1), resource(1), &place, CONTAINER)
        .await
        .unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Timeout);
    // While it hangs: at once.
    let error = gpus
        .prepare(&quick(1), resource(2), &place, CONTAINER)
        .await
        .unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Unavailable);
    assert!(
        begun.elapsed() < Duration::from_millis(1400),
        "{:?}",
        begun.elapsed()
    );
    assert!(gpus.inventory().reason.unwrap().contains("has not answered"));
    lab.heal();
    tokio::time::sleep(Duration::from_millis(2000)).await;
    // The hung call ended late, and its slice is found and removed.
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    assert_eq!(made(&lab.world()), 0);
}

#[tokio::test]
async fn garbage_in_names_does_no_harm() {
    for kind in [FaultKind::Garbage, FaultKind::Hostile] {
        for function in [
            "nvmlDeviceGetName",
            "nvmlDeviceGetUUID",
            "nvmlDeviceGetGpuInstanceProfileInfoV",
            "nvmlSystemGetDriverVersion",
        ] {
            let lab = Lab::new("a100-40gb+mig");
            lab.fail(function, None, kind.clone());
            let gpus = lab.open().await;
            let inventory = gpus.inventory();
            let text = format!("{inventory:?}");
            assert!(
                !text.contains("\\u{1b}") && !text.contains("\\n"),
                "{function}: {text}"
            );
            if function == "nvmlDeviceGetUUID" {
                assert!(inventory.reason.unwrap().contains("does not answer"));
            }
            lab.heal();
            gpus.refresh().await.unwrap();
            assert_eq!(
                gpus.inventory()
                    .cards
                    .iter()
                    .filter(|c| c.health == GpuHealth::Ok)
                    .count(),
                1,
                "{function}"
            );
        }
    }
}

#[tokio::test]
async fn two_daemons_do_not_share_a_folder() {
    let lab = Lab::new("a30");
    let _first = lab.open().await;
    assert!(matches!(
        NvmlAccelerators::open(lab.options()).await,
        Err(hwm_gpu::OpenError::Locked { .. })
    ));
}

#[tokio::test]
async fn a_damaged_journal_puts_its_card_out_of_use_and_is_kept() {
    let lab = Lab::new("a100-40gb+mig");
    let uuid = lab.world().cards[0].uuid.clone();
    let file = lab.path().join(format!("state/slice.{uuid}.3.json"));
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "{\"card\":").unwrap();
    let gpus = lab.open().await;
    let card = gpus.inventory().cards[0].clone();
    assert_eq!(card.health, GpuHealth::Quarantined);
    assert!(card.reason.unwrap().contains("cannot be understood"));
    assert!(gpus.plan(&slice("1g"), CONTAINER, &[]).is_err());
    assert!(file.exists());
}
#[tokio::test]
async fn an_older_generation_changes_nothing() {
    let lab = Lab::new("a100-40gb+mig");
    let place;
    {
        let gpus = lab.open().await;
        place = plan(&gpus, &slice("1g.5gb"));
        gpus.release(&call(5), resource(1), &place).await.unwrap();
        let error = gpus
            .prepare(&call(4), resource(1), &place, CONTAINER)
            .await
            .unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Superseded);
        gpus.prepare(&call(6), resource(1), &place, CONTAINER)
            .await
            .unwrap();
    }
    let gpus = lab.open().await;
    assert_eq!(
        gpus.release(&call(5), resource(1), &place)
            .await
            .unwrap_err()
            .kind,
        BackendErrorKind::Superseded
    );
    assert_eq!(made(&lab.world()), 1);
}
