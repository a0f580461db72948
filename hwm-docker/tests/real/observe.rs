use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hwm_core::backend::{Backend, ObservedState};
use serde_json::json;

use crate::lab::*;

#[tokio::test]
async fn a_container_that_dies_is_known_with_its_last_words_within_a_second() {
    let lab = lab();
    let mut events = lab.backend.events().await.unwrap();
    let workload = script("echo working; sleep 1; echo 'cannot open the database' >&2; exit 3");
    lab.up(&workload).await;
    let died = loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(event.id, workload.id);
        let seen = lab.seen(workload.id).await;
        if let ObservedState::Ended { exit_code, cause } = seen.state {
            assert_eq!(exit_code, Some(3));
            assert!(cause.unwrap().ends_with("cannot open the database"));
            break seen.ended_at.unwrap();
        }
    };
    let now = hwm_core::units::Timestamp::from_millis(
        i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap(),
    );
    assert!(now.since(died) < Duration::from_secs(1), "{:?}", now.since(died));
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn how_it_ended_is_told() {
    let lab = lab();
    for (text, code, words) in [
        ("exit 0", 0, None),
        ("echo bye; exit 7", 7, Some("bye")),
        ("kill -SEGV $$", 139, None),
    ] {
        let workload = script(text);
        lab.up(&workload).await;
        let (exit_code, cause) = lab.ended(workload.id).await;
        assert_eq!((exit_code, cause.as_deref()), (Some(code), words), "{text}");
        lab.gone(workload.id).await;
    }
}

#[tokio::test]
async fn running_out_of_memory_is_the_cause() {
    let lab = lab();
    let hungry =
        json!({"command": ["/bin/sh", "-c", "echo eating; exec tail /dev/zero"], "ramLimit": 0.03125});
    let workload = application("busybox", hungry);
    lab.up(&workload).await;
    let (exit_code, cause) = lab.ended(workload.id).await;
    assert_eq!(exit_code, Some(137));
    let cause = cause.unwrap();
    assert!(cause.starts_with("out of memory"), "{cause}");
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn events_name_what_happens_behind_our_back() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.up(&workload).await;
    let mut events = lab.backend.events().await.unwrap();
    let other = super::lab::lab();
    let noise = application("busybox", json!({}));
    other.up(&noise).await;
    remove(&raw(), &format!("hwm-{}", workload.id)).await;
    let event = tokio::time::timeout(Duration::from_secs(5), events.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(event.id, workload.id);
    assert_eq!(lab.backend.inspect(&[workload.id]).await.unwrap(), []);
    other.gone(noise.id).await;
}

#[tokio::test]
async fn many_are_looked_at_in_one_pass() {
    let lab = lab();
    let workloads: Vec<_> = (0..20).map(|_| application("busybox", json!({}))).collect();
    for workload in &workloads {
        lab.backend.create(&call(), workload).await.unwrap();
    }
    let begun = Instant::now();
    let mut owned: Vec<_> = lab
        .backend
        .owned()
        .await
        .unwrap()
        .into_iter()
        .map(|o| o.id)
        .collect();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    owned.sort();
    let mut ids: Vec<_> = workloads.iter().map(|w| w.id).collect();
    ids.sort();
    assert_eq!(owned, ids);
    ids.push(new_id());
    assert_eq!(lab.backend.inspect(&ids).await.unwrap().len(), 20);
    for workload in &workloads {
        lab.gone(workload.id).await;
    }
}

#[tokio::test]
async fn figures_come_quickly_and_move() {
    let lab = lab();
    let busy =
        json!({"command": ["/bin/sh", "-c", "while :; do :; done"], "cpuCores": 0.5, "ramLimit": 0.125});
    let workload = application("busybox", busy);
    let idle = application("busybox", json!({}));
    let stopped = application("busybox", json!({}));
    lab.up(&workload).await;
    lab.up(&idle).await;
    lab.backend.create(&call(), &stopped).await.unwrap();
    let ids = [workload.id, idle.id, stopped.id, new_id()];
    let begun = Instant::now();
    let first = lab.backend.metrics(&ids).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(first.len(), 2);
    assert!(
        first
            .iter()
            .all(|(_, m)| m.cpu.usage_percent.is_some() && m.memory.used_mb.is_some()),
        "{first:?}"
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    let second = lab.backend.metrics(&ids).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let of = |id| &second.iter().find(|(i, _)| *i == id).unwrap().1;
    let busy = of(workload.id);
    assert_eq!(busy.cpu.cores.unwrap().as_f64(), 0.5);
    // How much of its share it gets is up to what else the machine does.
    let idle_percent = of(idle.id).cpu.usage_percent.unwrap();
    assert!(busy.cpu.usage_percent.unwrap() > idle_percent, "{busy:?}");
    assert_eq!(busy.memory.total_mb, Some(128));
    assert!(busy.network.rx_bytes.is_some());
    for id in [workload.id, idle.id, stopped.id] {
        lab.gone(id).await;
    }
}
