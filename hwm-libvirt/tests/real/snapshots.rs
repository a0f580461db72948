use std::time::{Duration, Instant};

use hwm_core::backend::{
    Backend, BackendErrorKind, Exec, ExecRequest, ObservedState, SnapshotSpec, Snapshots, StopOptions,
};
use hwm_core::id::{ResourceId, SnapshotId};
use hwm_core::snapshot::Consistency;

use crate::lab::{Lab, call, new_id, virsh};

fn spec(memory: Option<bool>) -> SnapshotSpec {
    SnapshotSpec {
        id: SnapshotId::from_u128(new_id().as_u128()),
        name: "a snapshot".into(),
        memory,
    }
}

async fn run(lab: &Lab, id: ResourceId, command: &str) -> String {
    let request = ExecRequest {
        command: command.into(),
        working_dir: None,
        timeout: Duration::from_secs(20),
        output_limit: 4096,
    };
    let output = lab.backend.run(id, request).await.unwrap();
    assert_eq!(output.exit_code, 0, "{command}: {output:?}");
    output.stdout.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_back_to_what_it_was() {
    let lab = Lab::new("snap").await;
    let machine = lab.machine();
    let id = machine.id;
    lab.up(&machine).await;
    let backend = &lab.backend;
    run(&lab, id, "echo old >/disk/file; echo old >/tmp/file; sync").await;

    let with_memory = spec(None);
    for _ in 0..2 {
        let begun = Instant::now();
        let report = Snapshots::create(backend, &call(1), &machine, &with_memory)
            .await
            .unwrap();
        assert_eq!(report.consistency, Consistency::Memory);
        println!("memory and disk: {report:?} in {:?}", begun.elapsed());
    }
    run(&lab, id, "echo new >/disk/file; echo new >/tmp/file; sync").await;
    let disk_only = spec(Some(false));
    let begun = Instant::now();
    let report = Snapshots::create(backend, &call(1), &machine, &disk_only)
        .await
        .unwrap();
    println!("disk: {report:?} in {:?}", begun.elapsed());
    assert_eq!(report.consistency, Consistency::Filesystem);
    // Nothing stays frozen.
    run(&lab, id, "echo newer >/disk/file; sync").await;
    let mut listed = backend.list(id).await.unwrap();
    listed.sort();
    assert_eq!(listed, [with_memory.id, disk_only.id]);

    let begun = Instant::now();
    assert!(backend.restore(&call(1), &machine, with_memory.id).await.unwrap());
    println!("went back in {:?}", begun.elapsed());
    assert_eq!(lab.state(id).await, Some(ObservedState::Running));
    assert_eq!(run(&lab, id, "cat /disk/file /tmp/file").await, "old\nold");

    assert!(backend.restore(&call(1), &machine, disk_only.id).await.unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    while backend
        .run(
            id,
            ExecRequest {
                command: "true".into(),
                working_dir: None,
                timeout: Duration::from_secs(5),
                output_limit: 10,
            },
        )
        .await
        .is_err()
    {
        assert!(
            Instant::now() < deadline,
            "the guest never came up: {}",
            lab.log(id).await
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(run(&lab, id, "cat /disk/file").await, "new");

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
