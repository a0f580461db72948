//! What cards are, what they do, and what happens to them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::*;
use futures_util::StreamExt;
use hwm_core::accelerator::{Accelerators, GpuHealth, NvLink, Placement, PlacementRefusal};
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
    assert_eq!(inventory.cuda.as_deref(), Some("12.8"));
    let place = &inventory.cards[0].place;
    assert_eq!(
        (place.driver.as_deref(), place.numa_node),
        (Some("nvidia"), Some(0))
    );
    assert_eq!(
        place.nvlinks,
        [NvLink {
            peer: "0000:11:00.0".to_owned(),
            links: 12
        }]
    );
    assert!(
        gpus.describe()[1].contains("12 NVLinks to 0000:11:00.0"),
        "{:?}",
        gpus.describe()
    );
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
async fn how_busy_a_slice_is_comes_from_samples_where_the_card_gives_such() {
    for (board, given) in [
        ("h100-80gb+mig", true),
        ("rtx-pro-6000+mig", true),
        ("a100-80gb+mig", false),
    ] {
        let lab = Lab::new(board);
        let gpus = lab.open().await;
        let mut slices = Vec::new();
        for n in 0..2 {
            let held = claims(
                resource(9),
                &slices.iter().map(|(p, _)| p).cloned().collect::<Vec<Placement>>(),
            );
            let place = gpus.plan(&slice("1g"), CONTAINER, &held).unwrap().remove(0);
            let grant = gpus
                .prepare(&call(1), resource(n), &place, CONTAINER)
                .await
                .unwrap();
            slices.push((place, grant.uuid));
        }
        let id = lab.world().cards[0].instances[0].id;
        let busy = lab.world().cards[0].instances[0].compute[0].uuid.clone();
        lab.edit(|w| {
            w.cards[0].processes.push(Process {
                pid: 7,
                mib: 100,
                instance: Some(id),
            })
        });
        let uuids: Vec<String> = slices.iter().map(|(_, uuid)| uuid.clone()).collect();
        // The first time over a moment, then since the time before.
        for _ in 0..3 {
            for figures in gpus.metrics(&uuids).await.unwrap() {
                let usage = figures.usage_percent;
                if !given {
                    assert_eq!(usage, None, "{board}");
                } else if figures.device_id.as_ref() == Some(&busy) {
                    assert!(
                        usage.is_some_and(|u| (20.0..=95.0).contains(&u)),
                        "{board}: {usage:?}"
                    );
                } else {
                    assert_eq!(usage, Some(0.0), "{board}");
                }
            }
        }
        // A session that is opened anew begins anew, and a slice that is gone has no figure.
        lab.fail("*", None, FaultKind::Return(9));
        gpus.refresh().await.unwrap();
        lab.heal();
        gpus.refresh().await.unwrap();
        let all = gpus
            .metrics(&[uuids[0].clone(), "MIG-none".to_owned()])
            .await
            .unwrap();
        assert_eq!(
            (all[0].usage_percent.is_some(), all[1].usage_percent),
            (given, None),
            "{board}"
        );
    }
}

#[tokio::test]
async fn samples_that_fail_cost_no_other_figure() {
    let lab = Lab::new("h100-80gb+mig");
    let gpus = lab.open().await;
    let place = plan(&gpus, &slice("1g"));
    let grant = gpus
        .prepare(&call(1), resource(1), &place, CONTAINER)
        .await
        .unwrap();
    for function in [
        "nvmlGpmQueryDeviceSupport",
        "nvmlGpmSampleAlloc",
        "nvmlGpmMigSampleGet",
        "nvmlGpmMetricsGet",
    ] {
        lab.fail(function, None, FaultKind::Return(999));
        let figures = gpus
            .metrics(std::slice::from_ref(&grant.uuid))
            .await
            .unwrap()
            .remove(0);
        assert_eq!(
            (figures.usage_percent, figures.memory_total_mb),
            (None, Some(9984)),
            "{function}"
        );
        lab.heal();
    }
    assert!(
        gpus.metrics(&[grant.uuid]).await.unwrap()[0]
            .usage_percent
            .is_some()
    );
}

#[tokio::test]
async fn heat_is_told_when_it_comes_and_goes_and_takes_no_card_out_of_use() {
    let lab = Lab::new("a30");
    let gpus = lab.open().await;
    let mut events = gpus.events().await.unwrap();
    for hot in [true, false] {
        lab.edit(|w| w.cards[0].hot = hot);
        gpus.refresh().await.unwrap();
        let event = events.next().await.unwrap();
        assert!(!event.fatal && event.message.contains("heat"), "{event:?}");
        let card = gpus.inventory().cards.remove(0);
        let health = if hot { GpuHealth::Degraded } else { GpuHealth::Ok };
        assert_eq!((card.health, card.reason.is_some()), (health, hot));
        assert!(gpus.plan(&named("0"), CONTAINER, &[]).is_ok());
    }
}
