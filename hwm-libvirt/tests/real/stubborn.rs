//! Guests and hosts that do not do what they should: no shutdown, an agent that hangs, no space.

use std::process::Command;
use std::time::{Duration, Instant};

use hwm_core::backend::{
    Backend, BackendErrorKind, Exec, ExecRequest, ObservedState, ProgressSink, SnapshotSpec, Snapshots,
    StopOptions,
};
use hwm_core::id::SnapshotId;
use hwm_core::snapshot::Consistency;

use crate::lab::{Lab, call, config, new_id, variable, virsh};

fn without_memory() -> SnapshotSpec {
    SnapshotSpec {
        id: SnapshotId::from_u128(new_id().as_u128()),
        name: "disk only".into(),
        memory: Some(false),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_listen_holds_up_nothing() {
    let lab = Lab::new("deaf").await;
    let machine = lab.machine();
    let id = machine.id;
    lab.up(&machine).await;
    let backend = &lab.backend;

    // Frozen by a process that was killed: the next snapshot thaws it.
    virsh(&["domfsfreeze", &id.to_string()]);
    let report = Snapshots::create(backend, &call(1), &machine, &without_memory())
        .await
        .unwrap();
    assert_eq!(report.consistency, Consistency::Filesystem);
    assert_eq!(
        lab.run(id, "echo thawed >/disk/file; cat /disk/file").await,
        "thawed"
    );

    // A figure of the guest's own, once its agent was asked.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let all = backend.metrics(&[id]).await.unwrap();
        // The file system on the disk is small, and so is what it holds; the disk has 10 GB.
        if all[0].1.disk.used_gb.is_some_and(|gb| gb > 0.0 && gb < 0.02) {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", all[0].1.disk);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    // The agent is there and does not answer.
    lab.run(id, "sh -c 'sleep 1; killall -STOP qemu-ga' >/dev/null 2>&1 &")
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let begun = Instant::now();
    let request = ExecRequest {
        command: "true".into(),
        working_dir: None,
        timeout: Duration::from_secs(60),
        output_limit: 10,
    };
    let refused = backend.run(id, request).await.unwrap_err();
    assert_eq!(refused.kind, BackendErrorKind::Unsupported, "{refused}");
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(10), "exec took {taken:?}");
    let begun = Instant::now();
    let report = Snapshots::create(backend, &call(1), &machine, &without_memory())
        .await
        .unwrap();
    assert_eq!(report.consistency, Consistency::Crash);
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(20), "the snapshot took {taken:?}");
    let begun = Instant::now();
    assert_eq!(backend.metrics(&[id]).await.unwrap().len(), 1);
    assert_eq!(lab.state(id).await, Some(ObservedState::Running));
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(1), "looking took {taken:?}");
    println!("with an agent that hangs: looking took {taken:?}");

    // The power button does nothing.
    let line = hwm_core::backend::Console::open(backend, id, hwm_core::backend::ConsoleKind::Serial)
        .await
        .unwrap();
    for typed in ["\nroot\n", "killall acpid; echo deaf=$((1+1))\n"] {
        let typed = hwm_core::backend::Input::Data(typed.as_bytes().to_vec());
        line.input.send(typed).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    lab.said(id, "deaf=2", Duration::from_secs(20)).await;
    let begun = Instant::now();
    let patient = StopOptions {
        force: false,
        grace: Some(Duration::from_secs(5)),
    };
    backend.stop(&call(1), id, patient).await.unwrap();
    let taken = begun.elapsed();
    println!("switched off after {taken:?}");
    assert!(
        taken >= Duration::from_secs(5) && taken < Duration::from_secs(12),
        "{taken:?}"
    );
    assert!(matches!(lab.state(id).await, Some(ObservedState::Ended { .. })));
    lab.clean().await;
}

/// Runs a command where libvirtd lives, whose mounts are its own.
fn beside_libvirtd(arguments: &[&str]) {
    let pid = std::fs::read_to_string(variable("HWM_TEST_LIBVIRT_PIDFILE")).unwrap();
    let output = Command::new("nsenter")
        .args(["--mount", "--target", pid.trim()])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_told_before_anything_is_made() {
    let name = format!("hwm-full-{}", std::process::id());
    let path = format!("/var/lib/libvirt/images/{name}");
    beside_libvirtd(&["mkdir", "-p", &path]);
    beside_libvirtd(&["mount", "-t", "tmpfs", "-o", "size=160m,mode=711", "full", &path]);
    let lab = Lab::with("full", |options| options.pool_path.clone_from(&path)).await;
    let backend = &lab.backend;
    backend
        .pull_image("empty", &ProgressSink::default())
        .await
        .unwrap();
    let mut machine = lab.machine();
    config(&mut machine).os_image = "empty".into();
    lab.begin(&machine).await;

    // Its memory would not fit.
    let whole = SnapshotSpec {
        memory: None,
        ..without_memory()
    };
    let refused = Snapshots::create(backend, &call(1), &machine, &whole)
        .await
        .unwrap_err();
    assert_eq!(refused.kind, BackendErrorKind::NoSpace, "{refused}");
    assert_eq!(backend.list(machine.id).await.unwrap(), []);

    beside_libvirtd(&[
        "sh",
        "-c",
        &format!("head -c 200m /dev/zero >{path}/filler || true"),
    ]);
    virsh(&["pool-refresh", &lab.options.pool]);
    let refused = backend
        .pull_image("debian-12", &ProgressSink::default())
        .await
        .unwrap_err();
    assert_eq!(refused.kind, BackendErrorKind::NoSpace, "{refused}");
    let mut other = lab.machine();
    config(&mut other).os_image = "empty".into();
    let refused = Backend::create(backend, &call(1), &other).await.unwrap_err();
    assert_eq!(refused.kind, BackendErrorKind::NoSpace, "{refused}");
    let refused = Snapshots::create(backend, &call(1), &machine, &without_memory())
        .await
        .unwrap_err();
    assert_eq!(refused.kind, BackendErrorKind::NoSpace, "{refused}");

    // Once there is room, the same calls succeed, and what failed left nothing in the way.
    beside_libvirtd(&["rm", &format!("{path}/filler")]);
    Backend::create(backend, &call(1), &other).await.unwrap();
    backend
        .pull_image("debian-12", &ProgressSink::default())
        .await
        .unwrap();
    Snapshots::create(backend, &call(1), &machine, &without_memory())
        .await
        .unwrap();
    for id in [machine.id, other.id] {
        backend.remove(&call(2), id).await.unwrap();
    }
    beside_libvirtd(&["umount", "-l", &path]);
    // The lab's virtlogd has mounts of its own, without this one: its logs lie under it.
    beside_libvirtd(&["sh", "-c", &format!("rm -f {path}/*-console.log")]);
    lab.clean().await;
}
