//! Slices on the fake, through the real nvml-wrapper.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use hwm_core::accelerator::{Accelerators, PlacementKind, PlacementRefusal};
use hwm_core::backend::BackendErrorKind;
use hwm_gpu::boards::BOARDS;
use hwm_gpu::{Adopt, NvmlAccelerators};
use hwm_gpu_fake::{FaultKind, Process};

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
                    reason: None,
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
    // Its first answer counts as much: 19 is that the card is in use.
    lab.fail("nvmlDeviceSetMigMode", None, FaultKind::Return(19));
    let refused = gpus.prepare(&call(1), resource(1), &place, CONTAINER).await;
    assert_eq!(refused.unwrap_err().kind, BackendErrorKind::Conflict);
    lab.heal();
    assert!(!gpus.inventory().cards[0].mig_enabled);
    gpus.prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    assert!(gpus.inventory().cards[0].mig_enabled);
}
