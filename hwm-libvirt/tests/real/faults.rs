//! Bad days, on a libvirt of the test's own: dead, hung, ended in the middle of everything.

use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hwm_core::backend::{
    Backend, BackendError, BackendErrorKind, Call, Console, ConsoleKind, LogQuery, ObservedState, StopOptions,
};
use tokio::sync::Mutex;

use crate::lab::{Lab, call, virsh_at, workload};

/// A libvirt that may be stopped. One at a time: they share the machine.
struct Private {
    folder: tempfile::TempDir,
    uri: String,
    bridge: String,
}

static ONE: Mutex<()> = Mutex::const_new(());

fn lab_script(arguments: &[&str]) -> String {
    let script = crate::lab::variable("HWM_TEST_LAB");
    let output = Command::new(&script).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script} {arguments:?}: {said}");
    said
}

impl Private {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("hwmv")
            .tempdir_in("/tmp")
            .unwrap();
        let dir = folder.path().join("l");
        lab_script(&["up", "libvirt", "--dir", dir.to_str().unwrap()]);
        let env = std::fs::read_to_string(dir.join("env")).unwrap();
        let value = |name: &str| {
            let line = env.lines().find(|l| l.starts_with(&format!("{name}="))).unwrap();
            line.split_once('=').unwrap().1.trim_matches('\'').to_owned()
        };
        Self {
            uri: value("HWM_TEST_LIBVIRT_URI"),
            bridge: value("HWM_TEST_BRIDGE"),
            folder,
        }
    }

    fn dir(&self) -> String {
        self.folder.path().join("l").to_str().unwrap().to_owned()
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(format!("{}/libvirtd.pid", self.dir())).unwrap();
        let done = Command::new("kill")
            .args([&format!("-{signal}"), pid.trim()])
            .status()
            .unwrap();
        assert!(done.success());
    }

    fn start(&self) {
        lab_script(&["start", "libvirt", "--dir", &self.dir()]);
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // It may be dead, and a panic in a panic would leave everything as it is.
        let script = crate::lab::variable("HWM_TEST_LAB");
        let pid = std::fs::read_to_string(format!("{}/libvirtd.pid", self.dir())).unwrap_or_default();
        let _ = Command::new("kill").args(["-CONT", pid.trim()]).status();
        let _ = Command::new(script).args(["down", "--dir", &self.dir()]).status();
    }
}

async fn lab_on(private: &Private, name: &str) -> Lab {
    Lab::with(name, |options| {
        options.uri.clone_from(&private.uri);
        options.bridge.clone_from(&private.bridge);
        // Two libvirts in one network name their cards alike, and so would their filters.
        options.anti_spoofing = false;
    })
    .await
}

fn short() -> Call {
    Call::new(1, Duration::from_secs(4))
}

/// The call ends within its deadline, and its error says that trying again can help, or that it took too long.
async fn fails_in_time<T: std::fmt::Debug>(what: &str, call: impl Future<Output = Result<T, BackendError>>) {
    let begun = Instant::now();
    let result = tokio::time::timeout(Duration::from_secs(25), call).await;
    let error = result.unwrap_or_else(|_| panic!("{what} hangs")).expect_err(what);
    println!("{what}: {:?} after {:?}", error.kind, begun.elapsed());
    assert!(
        matches!(
            error.kind,
            BackendErrorKind::Unavailable | BackendErrorKind::Timeout
        ),
        "{what}: {error:?}"
    );
}

async fn every_method_fails_in_time(lab: &Lab, machine: &hwm_core::backend::Workload) {
    let (backend, id) = (&lab.backend, machine.id);
    let ids = [id];
    let spec = hwm_core::backend::SnapshotSpec {
        id: hwm_core::id::SnapshotId::from_u128(1),
        name: "x".into(),
        memory: None,
    };
    let (call, other) = (short(), workload());
    let opened = async { Console::open(backend, id, ConsoleKind::Serial).await.map(|_| ()) };
    let logs = async { backend.logs(id, LogQuery::default()).await.map(|_| ()) };
    let events = async { backend.events().await.map(|_| ()) };
    // At once, so that the whole takes as long as one.
    tokio::join!(
        fails_in_time("probe", backend.probe()),
        fails_in_time("create", backend.create(&call, &other)),
        fails_in_time("stop", backend.stop(&call, id, StopOptions::default())),
        fails_in_time("inspect", backend.inspect(&ids)),
        fails_in_time("owned", backend.owned()),
        fails_in_time("metrics", backend.metrics(&ids)),
        fails_in_time("logs", logs),
        fails_in_time("events", events),
        fails_in_time("open", opened),
        fails_in_time("password", backend.password(id, ConsoleKind::Vnc)),
        fails_in_time("list", hwm_core::backend::Snapshots::list(backend, id)),
    );
    fails_in_time(
        "snapshot",
        hwm_core::backend::Snapshots::create(backend, &call, machine, &spec),
    )
    .await;
    fails_in_time("remove", backend.remove(&call, other.id)).await;
}

/// The backend answers again without anyone's help.
async fn heals(lab: &Lab) -> Duration {
    let begun = Instant::now();
    while let Err(error) = lab.backend.probe().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_and_a_hung_libvirtd_are_told_and_survived() {
    let _one = ONE.lock().await;
    let private = Private::new();
    let lab = lab_on(&private, "faults").await;
    let machine = lab.machine();
    lab.up(&machine).await;
    let id = machine.id;
    let mut events = lab.backend.events().await.unwrap();

    private.signal("KILL");
    let ended = async { while events.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap();
    every_method_fails_in_time(&lab, &machine).await;
    private.start();
    println!("healed in {:?}", heals(&lab).await);
    assert_eq!(
        lab.state(id).await,
        Some(ObservedState::Running),
        "machines outlive libvirtd"
    );

    let mut events = lab.backend.events().await.unwrap();
    private.signal("STOP");
    every_method_fails_in_time(&lab, &machine).await;
    let ended = async { while events.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .unwrap();
    private.signal("CONT");
    println!("healed in {:?}", heals(&lab).await);
    assert_eq!(lab.state(id).await, Some(ObservedState::Running));
    let mut serial = Console::open(&lab.backend, id, ConsoleKind::Serial)
        .await
        .unwrap();
    assert!(serial.output.recv().await.unwrap().is_ok());
    drop(serial);
    lab.clean_at(&private.uri).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_is_completed_or_undone() {
    let _one = ONE.lock().await;
    let private = Private::new();
    let lab = lab_on(&private, "cut").await;
    lab.backend
        .pull_image("debian-12", &hwm_core::backend::ProgressSink::default())
        .await
        .unwrap();
    // Futures dropped at any moment, and then the same call again, or a removal.
    for i in 0..24u64 {
        let machine = lab.machine();
        let pause = Duration::from_micros(i * 1500);
        let limit = short();
        let create = lab.backend.create(&limit, &machine);
        let _ = tokio::time::timeout(pause, create).await;
        if i % 2 == 0 {
            lab.backend.create(&call(2), &machine).await.unwrap();
            assert_eq!(lab.state(machine.id).await, Some(ObservedState::Created));
        }
        lab.backend.remove(&call(3), machine.id).await.unwrap();
        assert_eq!(lab.observed(machine.id).await, None);
    }
    // libvirtd ended in the middle.
    for i in 0..4u64 {
        let machine = lab.machine();
        let backend = lab.backend.clone();
        let begun = {
            let machine = machine.clone();
            tokio::spawn(async move {
                let made = backend.create(&call(1), &machine).await;
                (made, backend.start(&call(1), &machine).await)
            })
        };
        tokio::time::sleep(Duration::from_millis(i * 30)).await;
        private.signal("KILL");
        println!("{:?}", begun.await.unwrap());
        private.start();
        heals(&lab).await;
        if i % 2 == 0 {
            lab.backend.create(&call(2), &machine).await.unwrap();
            lab.backend.start(&call(2), &machine).await.unwrap();
        }
        lab.backend.remove(&call(3), machine.id).await.unwrap();
    }
    let left = virsh_at(&private.uri, &["list", "--all", "--name"]);
    assert_eq!(left.trim(), "");
    lab.clean_at(&private.uri).await;
}
