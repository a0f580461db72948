//! A libvirt that is reached as over SSH. A program stands in for `ssh` and runs what it is asked to on this host, so
//! all of libvirt's remote transport is used but the network.

use std::os::unix::fs::PermissionsExt;

use hwm_core::backend::{
    Backend, BackendErrorKind, Console, ConsoleKind, Input, ObservedState, Output, SnapshotSpec, Snapshots,
    StopOptions,
};
use hwm_core::id::SnapshotId;
use hwm_core::snapshot::Consistency;

use crate::lab::{Lab, call, new_id, variable};

/// Passes over ssh's options and the host, and runs the command as sshd does.
const SSH: &str = "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift 2\nexec /bin/sh -c \"$*\"\n";

/// Stands in for the remote host's `nc -U SOCKET`.
const NETCAT: &str = r#"#!/usr/bin/python3
import os, socket, sys, threading
if "-U" not in sys.argv:
    sys.exit("usage: nc -U SOCKET")
remote = socket.socket(socket.AF_UNIX)
remote.connect(sys.argv[-1])
def there():
    while data := os.read(0, 65536):
        remote.sendall(data)
    os._exit(0)
threading.Thread(target=there, daemon=True).start()
while data := remote.recv(65536):
    while data:
        data = data[os.write(1, data):]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_on_another_host_lives_its_life() {
    let folder = tempfile::tempdir().unwrap();
    let program = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let (ssh, netcat) = (program("ssh", SSH), program("nc", NETCAT));
    let local = variable("HWM_TEST_LIBVIRT_URI");
    let socket = local.split_once("socket=").unwrap().1;
    let uri = format!(
        "qemu+ssh://root@elsewhere.invalid/system?command={}&proxy=netcat&netcat={}&socket={socket}",
        ssh.display(),
        netcat.display()
    );
    let lab = Lab::with("remote", |options| options.uri = uri).await;
    let machine = lab.machine();
    let id = machine.id;
    assert_eq!(lab.backend.check(&machine).await.unwrap().violations, []);
    let mut events = lab.backend.events().await.unwrap();
    lab.up(&machine).await;
    let told = async { futures_util::StreamExt::next(&mut events).await.unwrap() };
    tokio::time::timeout(std::time::Duration::from_secs(5), told)
        .await
        .unwrap();
    assert!(lab.run(id, "hostname").await.contains("tiny"));

    // What the connection does not carry is refused, with the way out.
    for refused in [
        lab.backend
            .open(id, ConsoleKind::Vnc)
            .await
            .map(drop)
            .unwrap_err(),
        lab.backend
            .password(id, ConsoleKind::Vnc)
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(refused.kind, BackendErrorKind::Unsupported);
        assert!(refused.message.contains("type=serial"), "{refused}");
    }
    let mut line = lab.backend.open(id, ConsoleKind::Serial).await.unwrap();
    line.input.send(Input::Data(b"\n".to_vec())).await.unwrap();
    let mut said = String::new();
    while !said.contains("login:") {
        match line.output.recv().await.unwrap().unwrap() {
            Output::Stdout(bytes) => said.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?}"),
        }
    }
    drop(line);

    let snapshot = SnapshotSpec {
        id: SnapshotId::from_u128(new_id().as_u128()),
        name: "there".into(),
        memory: None,
    };
    let report = Snapshots::create(&lab.backend, &call(1), &machine, &snapshot)
        .await
        .unwrap();
    assert_eq!(report.consistency, Consistency::Memory);
    assert_eq!(lab.backend.metrics(&[id]).await.unwrap().len(), 1);
    lab.backend
        .stop(&call(1), id, StopOptions::default())
        .await
        .unwrap();
    let state = lab.state(id).await.unwrap();
    assert!(state.ended_clean(), "{state:?}");
    lab.backend.start(&call(1), &machine).await.unwrap();
    crate::lab::virsh(&["destroy", &id.to_string()]);
    let Some(ObservedState::Ended {
        cause: Some(cause), ..
    }) = lab.state(id).await
    else {
        panic!("it was switched off");
    };
    assert!(cause.contains("switched off"), "{cause}");
    lab.clean().await;
}
