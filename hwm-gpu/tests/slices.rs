//! Slices on the fake, through the real nvml-wrapper.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use futures_util::StreamExt;
use hwm_core::accelerator::{Accelerators, GpuHealth, PlacementKind, PlacementRefusal};
use hwm_core::backend::BackendErrorKind;
use hwm_gpu::boards::BOARDS;
use hwm_gpu::{Adopt, NvmlAccelerators};
use hwm_gpu_fake::{Event, FaultKind, Process};

#[tokio::test]
async fn the_inventory_tells_what_the_cards_are() {
    let lab = Lab::new("a100-40gb+mig*2,a30,h200");
    let gpus = lab.open().await;
    let inventory = gpus.inventory();
    assert_eq!(
        (inventory.reason, inventory.driver.as_deref()),
        (None, Some("570.133.20"))
    );
    let seen: Vec<_> = inventory
        .cards
        .iter()
        .map(|c| (c.index, c.mig_enabled, c.health, c.pci_address.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (0, true, GpuHealth::Ok, "0000:10:00.0"),
            (1, true, GpuHealth::Ok, "0000:11:00.0"),
            (2, false, GpuHealth::Ok, "0000:12:00.0"),
            (3, false, GpuHealth::Ok, "0000:13:00.0"),
        ]
    );
    assert_eq!(inventory.cards[0].model, "NVIDIA A100-SXM4-40GB");
    assert_eq!(inventory.cards[0].memory.map(|m| m.as_mb()), Some(40960));
    assert!(
        gpus.describe()[1].contains("12 NVLinks to 0000:11:00.0"),
        "{:?}",
        gpus.describe()
    );
}

#[tokio::test]
async fn a_slice_is_made_with_its_compute_instance_and_unmade() {
    let lab = Lab::new("a100-40gb+mig");
    let gpus = lab.open().await;
    let place = plan(&gpus, &slice("1g.5gb"));
    let grant = gpus
        .prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    assert!(grant.uuid.starts_with("MIG-"));
    assert_eq!(grant.memory.map(|m| m.as_mb()), Some(4864));
    let world = lab.world();
    assert_eq!(
        (
            world.cards[0].instances.len(),
            world.cards[0].instances[0].compute.len()
        ),
        (1, 1)
    );
    let inventory = gpus.inventory();
    assert_eq!(inventory.cards[0].instances[0].uuid, grant.uuid);
    assert!(inventory.cards[0].instances[0].ours);
    // Again: the same slice, not another.
    assert_eq!(
        gpus.prepare(&call(1), resource(1), &place, CONTAINER)
            .await
            .unwrap(),
        grant
    );
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    assert_eq!((made(&lab.world()), instances(&gpus.inventory())), (0, 0));
    // Made again it has another UUID.
    assert_ne!(
        gpus.prepare(&call(3), resource(1), &place, CONTAINER)
            .await
            .unwrap()
            .uuid,
        grant.uuid
    );
}

#[tokio::test]
async fn every_maximal_layout_of_every_board_is_made_and_unmade_without_loss() {
    for board in BOARDS {
        let lab = Lab::new(&format!("{}+mig", board.name));
        let gpus = lab.open().await;
        let geometry = board.geometry().unwrap();
        let all: Vec<usize> = (0..geometry.profiles().len()).collect();
        // Boards of one geometry differ in names: one with all 78 of its plain layouts, the others with the 19.
        let plain = |p: &usize| geometry.profiles()[*p].attributes().is_empty();
        let wanted: Vec<usize> = match board.name {
            "a30" => all,
            "a100-40gb" | "rtx-pro-6000" => all.into_iter().filter(plain).collect(),
            _ => all
                .into_iter()
                .filter(plain)
                .filter(|p| geometry.profiles()[*p].id != 15)
                .collect(),
        };
        let card = gpus.inventory().cards[0].uuid.clone();
        let mut generation = 0;
        for layout in geometry.maximal_layouts(&wanted) {
            generation += 1;
            let places: Vec<_> = layout
                .iter()
                .map(|slot| hwm_core::accelerator::Placement {
                    card: card.clone(),
                    parts: Vec::new(),
                    memory: None,
                    kind: PlacementKind::Slice {
                        profile: geometry.profiles()[slot.profile].name.clone(),
                        start: slot.start.into(),
                        size: geometry.profiles()[slot.profile].size.into(),
                    },
                })
                .collect();
            for (i, place) in places.iter().enumerate() {
                gpus.prepare(&call(generation), resource(i as u128), place, CONTAINER)
                    .await
                    .unwrap();
            }
            let world = lab.world();
            let mut slots = 0u64;
            for i in &world.cards[0].instances {
                let mask = ((1u64 << i.size) - 1) << i.start;
                assert_eq!(slots & mask, 0, "{} {layout:?}", board.name);
                slots |= mask;
            }
            assert_eq!(world.cards[0].instances.len(), layout.len());
            for (i, place) in places.iter().enumerate() {
                gpus.release(&call(generation), resource(i as u128), place)
                    .await
                    .unwrap();
            }
            assert_eq!(made(&lab.world()), 0);
        }
        assert!(generation > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_callers_for_7_slices_exactly_7_win() {
    let lab = Lab::new("a100-40gb+mig");
    let gpus = Arc::new(lab.open().await);
    let ledger = Arc::new(tokio::sync::Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64u128 {
        let (gpus, ledger) = (gpus.clone(), ledger.clone());
        tasks.spawn(async move {
            loop {
                let held: Vec<hwm_core::ledger::Claim> = ledger.lock().await.clone();
                let place = match gpus.plan(&slice("1g.5gb"), CONTAINER, &held) {
                    Ok(mut places) => places.remove(0),
                    Err(PlacementRefusal::Taken { holders, .. }) => {
                        assert_eq!(holders.len(), 1);
                        return false;
                    }
                    Err(other) => panic!("{other:?}"),
                };
                tokio::task::yield_now().await;
                // The store's part: a key that was taken meanwhile is a lost race, and it is planned again.
                let mut now = ledger.lock().await;
                let mine = claims(resource(n), std::slice::from_ref(&place));
                if mine.iter().any(|m| now.iter().any(|h| h.key == m.key)) {
                    continue;
                }
                now.extend(mine);
                drop(now);
                gpus.prepare(&call(1), resource(n), &place, CONTAINER)
                    .await
                    .unwrap();
                return true;
            }
        });
    }
    let won = tasks.join_all().await.into_iter().filter(|w| *w).count();
    assert_eq!((won, made(&lab.world())), (7, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_callers_for_one_place_without_a_ledger_one_wins_and_the_others_are_told() {
    let lab = Lab::new("a100-40gb+mig");
    let gpus = Arc::new(lab.open().await);
    let place = plan(&gpus, &slice("7g.40gb"));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64u128 {
        let (gpus, place) = (gpus.clone(), place.clone());
        tasks.spawn(async move { gpus.prepare(&call(1), resource(n), &place, CONTAINER).await });
    }
    let results = tasks.join_all().await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(
        results
            .iter()
            .filter_map(|r| r.as_ref().err())
            .all(|e| e.kind == BackendErrorKind::Conflict)
    );
    assert_eq!(made(&lab.world()), 1);
}

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
async fn a_lost_card_is_told_and_comes_back() {
    let lab = Lab::new("a100-40gb*2");
    let gpus = lab.open().await;
    let mut events = gpus.events().await.unwrap();
    lab.edit(|w| w.cards[1].lost = true);
    let event = tokio::time::timeout(Duration::from_secs(5), events.next())
        .await
        .unwrap()
        .unwrap();
    let card = gpus.inventory().cards[1].clone();
    assert_eq!((event.card, event.fatal), (card.uuid.clone(), true));
    assert_eq!((card.health, card.index), (GpuHealth::Lost, 1));
    assert!(
        matches!(gpus.plan(&named("1"), CONTAINER, &[]), Err(PlacementRefusal::Unsupported(why)) if why.contains("is gone"))
    );
    assert!(gpus.plan(&named("0"), CONTAINER, &[]).is_ok());
    assert!(gpus.recover(&card.uuid).await.is_err());
    lab.edit(|w| w.cards[1].lost = false);
    gpus.recover(&card.uuid).await.unwrap();
    assert!(!events.next().await.unwrap().fatal);
    assert!(gpus.plan(&named("1"), CONTAINER, &[]).is_ok());
}

#[tokio::test]
async fn a_fatal_xid_puts_the_card_out_of_use_and_names_the_slice() {
    let lab = Lab::new("a100-40gb+mig");
    let gpus = lab.open().await;
    let place = plan(&gpus, &slice("1g.5gb"));
    let grant = gpus
        .prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    let mut events = gpus.events().await.unwrap();
    let id = lab.world().cards[0].instances[0].id;
    lab.edit(|w| {
        w.events.push(Event {
            card: 0,
            kind: 8,
            data: 31,
            instance: Some(id),
        });
        w.events.push(Event {
            card: 0,
            kind: 8,
            data: 94,
            instance: Some(id),
        });
        w.events.push(Event {
            card: 0,
            kind: 8,
            data: 95,
            instance: None,
        });
    });
    let begun = std::time::Instant::now();
    let note = events.next().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(
        (note.fatal, note.instance.as_deref()),
        (false, Some(grant.uuid.as_str()))
    );
    let contained = events.next().await.unwrap();
    assert_eq!(
        (contained.fatal, contained.instance.as_deref()),
        (true, Some(grant.uuid.as_str()))
    );
    let fatal = events.next().await.unwrap();
    assert_eq!((fatal.fatal, fatal.instance.as_deref()), (true, None));
    assert!(fatal.message.starts_with("XID 95"));
    let card = gpus.inventory().cards[0].clone();
    assert_eq!(card.health, GpuHealth::Quarantined);
    assert!(
        gpus.prepare(&call(2), resource(2), &place, CONTAINER)
            .await
            .is_err()
    );
    // Out of use also after a restart; removal goes on.
    drop((gpus, events));
    let gpus = lab.open().await;
    assert_eq!(gpus.inventory().cards[0].health, GpuHealth::Quarantined);
    gpus.release(&call(3), resource(1), &place).await.unwrap();
    gpus.recover(&card.uuid).await.unwrap();
    assert_eq!(gpus.inventory().cards[0].health, GpuHealth::Ok);
}

#[tokio::test]
async fn a_driver_that_goes_and_comes_is_noticed() {
    let lab = Lab::new("a100-40gb*2");
    let gpus = lab.open().await;
    let mut events = gpus.events().await.unwrap();
    lab.fail("*", None, FaultKind::Return(9));
    gpus.refresh().await.unwrap();
    let inventory = gpus.inventory();
    assert!(inventory.reason.is_some());
    assert_eq!(inventory.cards.len(), 2, "the cards keep their places");
    assert!(
        events.next().await.is_none(),
        "the stream ends when the driver is lost"
    );
    lab.heal();
    gpus.refresh().await.unwrap();
    assert_eq!(gpus.inventory().reason, None);
    assert!(gpus.plan(&named("1"), CONTAINER, &[]).is_ok());
}

#[tokio::test]
async fn figures_are_told_and_what_there_is_none_of_is_null() {
    let lab = Lab::new("a100-40gb+mig,a100-40gb");
    let gpus = lab.open().await;
    let place = plan(&gpus, &slice("1g.5gb"));
    let grant = gpus
        .prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    let whole = gpus.inventory().cards[1].uuid.to_string();
    let all = gpus
        .metrics(&[grant.uuid.clone(), whole, "GPU-none".to_owned()])
        .await
        .unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!((all[0].usage_percent, all[0].memory_total_mb), (None, Some(4864)));
    assert!(
        all[0].temperature_c.is_some() && all[0].power_w.is_some(),
        "the card's own"
    );
    assert!(all[1].usage_percent.is_some_and(|u| u <= 100.0));
    assert_eq!((all[2].temperature_c, all[2].memory_used_mb), (None, None));
}

#[tokio::test]
async fn a_slice_in_use_is_not_removed_and_who_uses_it_is_named() {
    let lab = Lab::new("a30+mig");
    let gpus = lab.open().await;
    let place = plan(&gpus, &slice("1g.6gb"));
    gpus.prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    let id = lab.world().cards[0].instances[0].id;
    lab.edit(|w| {
        w.cards[0].processes.push(Process {
            pid: 4242,
            mib: 100,
            instance: Some(id),
        })
    });
    let error = gpus.release(&quick(2), resource(1), &place).await.unwrap_err();
    assert!(error.message.contains("held by pid 4242"), "{error}");
    lab.edit(|w| w.cards[0].processes.clear());
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    assert_eq!(made(&lab.world()), 0);
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

#[tokio::test]
async fn what_the_operator_lets_hwm_adopt_is_handed_out_and_stays() {
    let lab = Lab::new("a100-40gb+mig");
    lab.foreign(0, 14, 2);
    let mut options = lab.options();
    options.adopt = Adopt::All;
    let gpus = NvmlAccelerators::open(options).await.unwrap();
    lab.heal();
    gpus.refresh().await.unwrap();
    let uuid = gpus.inventory().cards[0].instances[0].uuid.clone();
    let place = plan(&gpus, &named(&uuid));
    let grant = gpus
        .prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    assert_eq!(grant.uuid, uuid);
    gpus.release(&call(2), resource(1), &place).await.unwrap();
    assert_eq!(made(&lab.world()), 1);
}

#[tokio::test]
async fn mig_is_switched_on_where_that_is_live_and_allowed() {
    let lab = Lab::new("h100-80gb");
    let mut options = lab.options();
    options.switch_mig = true;
    let gpus = NvmlAccelerators::open(options).await.unwrap();
    let place = plan(&gpus, &slice("1g.10gb"));
    lab.edit(|w| {
        w.cards[0].processes.push(Process {
            pid: 7,
            mib: 1,
            instance: None,
        })
    });
    // NVML answers success, and in its second answer that it did not happen.
    assert_eq!(
        gpus.prepare(&call(1), resource(1), &place, CONTAINER)
            .await
            .unwrap_err()
            .kind,
        BackendErrorKind::Conflict
    );
    lab.edit(|w| w.cards[0].processes.clear());
    gpus.prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    assert!(gpus.inventory().cards[0].mig_enabled);
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
