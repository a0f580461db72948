use std::time::{Duration, Instant};

use hwm_core::backend::{Backend, BackendErrorKind, ObservedState, StopOptions};

use crate::lab::{Lab, call, config, virsh};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_lives_and_goes_without_a_trace() {
    let lab = Lab::new("life").await;
    let machine = lab.machine();
    let id = machine.id;
    let backend = &lab.backend;
    assert_eq!(backend.check(&machine).await.unwrap().violations, []);
    assert_eq!(lab.observed(id).await, None);

    for _ in 0..2 {
        backend.create(&call(1), &machine).await.unwrap();
    }
    assert_eq!(lab.state(id).await, Some(ObservedState::Created));

    let begun = Instant::now();
    for _ in 0..2 {
        backend.start(&call(1), &machine).await.unwrap();
    }
    println!("started in {:?}", begun.elapsed());
    let seen = lab.observed(id).await.unwrap();
    assert_eq!(seen.state, ObservedState::Running);
    assert!(seen.started_at.is_some());
    assert_eq!(seen.generation, Some(1));
    let log = lab.said(id, "guest ready", Duration::from_secs(120)).await;
    println!("ready in {:?}\n{log}", begun.elapsed());
    assert!(log.contains("host tiny"), "{log}");
    assert!(log.contains(&format!("disk {}", 10u64 << 30)), "{log}");
    assert!(log.contains(&format!("instance hwm-{id}")), "{log}");
    let address = seen.endpoint.unwrap();
    assert!(log.contains(address.trim_end_matches(":22")), "{log}");

    let begun = Instant::now();
    for _ in 0..2 {
        backend.stop(&call(1), id, StopOptions::default()).await.unwrap();
    }
    println!("shut down in {:?}", begun.elapsed());
    let state = lab.state(id).await.unwrap();
    assert!(state.ended_clean(), "{state:?}");

    let mut larger = machine.clone();
    larger.generation = 2;
    config(&mut larger).disk = hwm_core::units::Bytes::from_whole_gb(12);
    config(&mut larger).vcpus = 2;
    backend.start(&call(2), &larger).await.unwrap();
    assert!(virsh(&["vcpucount", "--live", "--current", &id.to_string()]).starts_with('2'));
    lab.said(id, &format!("disk {}", 12u64 << 30), Duration::from_secs(120))
        .await;

    let late = backend.create(&call(1), &machine).await.unwrap_err();
    assert_eq!(late.kind, BackendErrorKind::Superseded);

    for _ in 0..2 {
        backend.remove(&call(3), id).await.unwrap();
    }
    assert_eq!(lab.observed(id).await, None);
    let late = backend.create(&call(2), &larger).await.unwrap_err();
    assert_eq!(late.kind, BackendErrorKind::Superseded);
    lab.clean().await;
}
