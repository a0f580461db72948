use std::time::{Duration, Instant};

use hwm_core::backend::{Backend, BackendErrorKind, ObservedState, SnapshotSpec, Snapshots, StopOptions};
use hwm_core::id::SnapshotId;
use hwm_core::snapshot::Consistency;

use crate::lab::{Lab, call, new_id, virsh};

fn spec(memory: Option<bool>) -> SnapshotSpec {
    SnapshotSpec {
        id: SnapshotId::from_u128(new_id().as_u128()),
        name: "a snapshot".into(),
        memory,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_back_to_what_it_was() {
    let lab = Lab::new("snap").await;
    let machine = lab.machine();
    let id = machine.id;
    lab.up(&machine).await;
    let backend = &lab.backend;
    lab.run(id, "echo old >/disk/file; echo old >/tmp/file; sync")
        .await;

    let with_memory = spec(None);
    for _ in 0..2 {
        let begun = Instant::now();
        let report = Snapshots::create(backend, &call(1), &machine, &with_memory)
            .await
            .unwrap();
        assert_eq!(report.consistency, Consistency::Memory);
        println!("memory and disk: {report:?} in {:?}", begun.elapsed());
    }
    lab.run(id, "echo new >/disk/file; echo new >/tmp/file; sync")
        .await;
    let disk_only = spec(Some(false));
    let begun = Instant::now();
    let report = Snapshots::create(backend, &call(1), &machine, &disk_only)
        .await
        .unwrap();
    println!("disk: {report:?} in {:?}", begun.elapsed());
    assert_eq!(report.consistency, Consistency::Filesystem);
    // Nothing stays frozen.
    lab.run(id, "echo newer >/disk/file; sync").await;
    let mut listed = backend.list(id).await.unwrap();
    listed.sort();
    assert_eq!(listed, [with_memory.id, disk_only.id]);

    let begun = Instant::now();
    assert!(backend.restore(&call(1), &machine, with_memory.id).await.unwrap());
    println!("went back in {:?}", begun.elapsed());
    assert_eq!(lab.state(id).await, Some(ObservedState::Running));
    assert_eq!(lab.run(id, "cat /disk/file /tmp/file").await, "old\nold");

    assert!(backend.restore(&call(1), &machine, disk_only.id).await.unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    while lab.sh(id, "true").await.is_none() {
        assert!(
            Instant::now() < deadline,
            "the guest never came up: {}",
            lab.log(id).await
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(lab.run(id, "cat /disk/file").await, "new");

    for _ in 0..2 {
        backend.delete(&call(1), id, with_memory.id).await.unwrap();
    }
    assert_eq!(backend.list(id).await.unwrap(), [disk_only.id]);
    let stop = StopOptions {
        force: true,
        grace: None,
    };
    backend.stop(&call(1), id, stop).await.unwrap();
    let cold = spec(None);
    let report = Snapshots::create(backend, &call(1), &machine, &cold)
        .await
        .unwrap();
    assert_eq!(report.consistency, Consistency::Filesystem);
    let refused = Snapshots::create(backend, &call(1), &machine, &spec(Some(true)))
        .await
        .unwrap_err();
    assert_eq!(refused.kind, BackendErrorKind::Invalid);
    assert!(!backend.restore(&call(1), &machine, cold.id).await.unwrap());
    assert!(matches!(lab.state(id).await, Some(ObservedState::Ended { .. })));
    backend.delete(&call(1), id, disk_only.id).await.unwrap();
    backend.delete(&call(1), id, cold.id).await.unwrap();
    assert_eq!(backend.list(id).await.unwrap(), []);
    let missing = backend.restore(&call(1), &machine, cold.id).await.unwrap_err();
    assert_eq!(missing.kind, BackendErrorKind::NotFound);
    let disk = virsh(&[
        "vol-path",
        "--pool",
        &lab.options.pool,
        &format!("hwm-{id}.qcow2"),
    ]);
    println!("{disk}");
    lab.clean().await;
}
