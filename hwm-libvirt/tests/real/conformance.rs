use std::sync::Arc;
use std::time::Duration;

use hwm_core::backend::Workload;
use hwm_core::testing::backend_suite::{self, Fixture};
use hwm_core::units::Bytes;
use hwm_libvirt::{Libvirt, LibvirtOptions};

use crate::lab::{Lab, config, workload};

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_of_a_backend_is_kept() {
    // Nothing boots, so nothing shuts down: what the suite looks at is done by libvirt and QEMU alone.
    let lab = Lab::with("suite", |options| options.stop_grace = Duration::from_secs(1)).await;
    let stranger = Libvirt::new(LibvirtOptions {
        owner: "test-stranger".into(),
        ..lab.options.clone()
    })
    .unwrap();
    let fixture = Fixture::new(Arc::new(lab.backend.clone()), |id| {
        let mut machine = Workload { id, ..workload() };
        config(&mut machine).os_image = "empty".into();
        machine
    })
    .refused(|id| {
        let mut refused = Workload { id, ..workload() };
        config(&mut refused).os_image = "no-such-image".into();
        refused
    })
    .changed(|machine| {
        let mut changed = machine.clone();
        config(&mut changed).ram = Bytes::from_mb(768);
        changed
    })
    .live(|machine| {
        let mut changed = machine.clone();
        config(&mut changed).vcpus = 2;
        changed
    })
    .stranger(Arc::new(stranger))
    .patience(Duration::from_secs(120));
    let report = backend_suite::run(&fixture).await;
    println!("{report}");
    // A machine is up when QEMU runs, long before its guest's agent answers, which exec needs, and which has no
    // terminals; `running.rs` looks at exec in a guest that is up.
    let exec = [
        "exec tells exit code, output and error output",
        "exec kills a command that outlives its timeout",
        "exec cuts output at the limit, and says so",
        "an exec session carries input, output and the exit code",
    ];
    let broken: Vec<_> = report
        .broken
        .iter()
        .filter(|(promise, _)| !exec.contains(promise))
        .collect();
    assert!(broken.is_empty(), "{broken:?}");
    let of_processes = [
        "inspect tells the exit code of what ended by itself",
        "what ended badly says why",
        "events hint at a death",
        "a log has every line, with stream and time",
        "a log can be cut by tail, since and until",
        "following a log brings what comes, and ends with the workload",
    ];
    assert_eq!(report.unchecked, of_processes);
    lab.clean().await;
}
