//! Bad days, on a libvirt of the test's own: dead, hung, ended in the middle of everything.

use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hwm_core::backend::{
    Backend, BackendError, BackendErrorKind, Call, Console, ConsoleKind, LiveUpdate, LogQuery, ObservedState,
    SnapshotSpec, Snapshots, StopOptions, Workload,
};
use hwm_core::id::SnapshotId;
use hwm_libvirt::Libvirt;
use tokio::sync::Mutex;

use crate::lab::{Lab, call, config, virsh_at};
use crate::proxy::{Mode, Proxy};

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

async fn lab_on(private: &Private, name: &str, uri: &str) -> Lab {
    Lab::with(name, |options| {
        options.uri = uri.to_owned();
        options.bridge.clone_from(&private.bridge);
        // Two libvirts in one network name their cards alike, and so would their filters.
        options.anti_spoofing = false;
    })
    .await
}

fn short() -> Call {
    Call::new(2, Duration::from_secs(4))
}

/// A call that ends within its deadline, with an error that says that trying again can help, or that it took too long.
async fn fails_in_time<T: std::fmt::Debug>(
    what: &'static str,
    call: impl Future<Output = Result<T, BackendError>>,
) {
    let result = tokio::time::timeout(Duration::from_secs(40), call).await;
    let error = result.unwrap_or_else(|_| panic!("{what} hangs")).expect_err(what);
    println!("{what}: {:?}", error.kind);
    assert!(
        matches!(
            error.kind,
            BackendErrorKind::Unavailable | BackendErrorKind::Timeout
        ),
        "{what}: {error:?}"
    );
}

/// Machines in the states that the methods need.
struct Cast {
    new: Workload,
    made: Workload,
    up: [Workload; 3],
    snapshot: SnapshotSpec,
}

impl Cast {
    async fn new(lab: &Lab) -> Self {
        let mut machines = Vec::new();
        for _ in 0..5 {
            let mut machine = lab.machine();
            config(&mut machine).os_image = "empty".into();
            machines.push(machine);
        }
        let [new, made, a, b, c] = machines.try_into().unwrap();
        Backend::create(&lab.backend, &call(1), &made).await.unwrap();
        for machine in [&a, &b, &c] {
            lab.begin(machine).await;
        }
        let snapshot = SnapshotSpec {
            id: SnapshotId::from_u128(1),
            name: "x".into(),
            memory: None,
        };
        Snapshots::create(&lab.backend, &call(1), &c, &snapshot)
            .await
            .unwrap();
        Self {
            new,
            made,
            up: [a, b, c],
            snapshot,
        }
    }

    /// Every method that reads, at once.
    async fn reads(&self, backend: &Libvirt) {
        let id = self.up[2].id;
        let opened = async { Console::open(backend, id, ConsoleKind::Serial).await.map(drop) };
        let screen = async { Console::open(backend, id, ConsoleKind::Vnc).await.map(drop) };
        let logs = async { backend.logs(id, LogQuery::default()).await.map(drop) };
        let events = async { backend.events().await.map(drop) };
        let ids = [id];
        tokio::join!(
            fails_in_time("probe", backend.probe()),
            fails_in_time("check", backend.check(&self.new)),
            fails_in_time("inspect", backend.inspect(&ids)),
            fails_in_time("owned", backend.owned()),
            fails_in_time("metrics", backend.metrics(&ids)),
            fails_in_time("logs", logs),
            fails_in_time("events", events),
            fails_in_time("open serial", opened),
            fails_in_time("open screen", screen),
            fails_in_time("password", backend.password(id, ConsoleKind::Vnc)),
            fails_in_time("list", Snapshots::list(backend, id)),
        );
    }

    /// Every method that changes something, at once, each on a machine of its own or after another.
    async fn changes(&self, backend: &Libvirt) {
        let call = short();
        let [a, b, c] = &self.up;
        let later = SnapshotSpec {
            id: SnapshotId::from_u128(2),
            ..self.snapshot.clone()
        };
        let more = Workload {
            generation: 2,
            ..a.clone()
        };
        let at_once = StopOptions {
            force: true,
            grace: None,
        };
        tokio::join!(
            fails_in_time("create", Backend::create(backend, &call, &self.new)),
            fails_in_time("start", backend.start(&call, &self.made)),
            fails_in_time("update", backend.update(&call, &more)),
            fails_in_time("snapshot", Snapshots::create(backend, &call, b, &later)),
            fails_in_time("restore", backend.restore(&call, c, self.snapshot.id)),
        );
        tokio::join!(
            fails_in_time("stop", backend.stop(&call, a.id, at_once)),
            fails_in_time("forget", backend.delete(&call, c.id, self.snapshot.id)),
            fails_in_time("remove", backend.remove(&call, b.id)),
        );
    }

    /// What was cut off is done again, all of it.
    async fn goes_on(&self, lab: &Lab) {
        let backend = &lab.backend;
        for machine in [&self.new, &self.made] {
            let again = Workload {
                generation: 3,
                ..machine.clone()
            };
            Backend::create(backend, &call(3), &again).await.unwrap();
            backend.start(&call(3), &again).await.unwrap();
            assert_eq!(lab.state(machine.id).await, Some(ObservedState::Running));
        }
        for machine in [&self.new, &self.made].into_iter().chain(&self.up) {
            backend.remove(&call(4), machine.id).await.unwrap();
            assert_eq!(lab.traces(&machine.id.to_string()), Vec::<String>::new());
        }
    }
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

/// A signal to libvirtd while the call of every method is on its way to it.
/// The other methods meet a libvirtd that is gone already.
async fn struck(private: &Private, lab: &Lab, proxy: &Proxy, name: &str) {
    let machine = lab.machine();
    lab.begin(&machine).await;
    let cast = Cast::new(lab).await;
    let mut events = lab.backend.events().await.unwrap();
    let backend = &lab.backend;
    // Signals when so many calls are on their way.
    let during = async |calls: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>, wanted: usize| {
        proxy.set(Mode::Hold);
        let strike = async {
            while proxy.held() < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            private.signal(name);
            proxy.set(Mode::Open);
        };
        tokio::join!(calls, strike);
    };
    during(Box::pin(cast.reads(backend)), 8).await;
    cast.changes(backend).await;
    let ended = async { while events.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .unwrap();
    if name == "KILL" {
        private.start();
    } else {
        private.signal("CONT");
    }
    println!("{name}: healed in {:?}", heals(lab).await);
    assert_eq!(
        lab.state(machine.id).await,
        Some(ObservedState::Running),
        "machines outlive libvirtd"
    );
    // The other way round: changes in the middle of it, and reads where it is gone.
    during(Box::pin(cast.changes(backend)), 5).await;
    cast.reads(backend).await;
    if name == "KILL" {
        private.start();
    } else {
        private.signal("CONT");
    }
    println!("{name}: healed in {:?}", heals(lab).await);
    cast.goes_on(lab).await;
    let mut serial = Console::open(backend, machine.id, ConsoleKind::Serial)
        .await
        .unwrap();
    assert!(serial.output.recv().await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_dies_or_hangs_during_any_method_is_told_and_survived() {
    let _one = ONE.lock().await;
    let private = Private::new();
    let proxy = Proxy::new(private.folder.path(), &private.uri);
    let lab = lab_on(&private, "faults", &proxy.uri()).await;
    for name in ["KILL", "STOP"] {
        struck(&private, &lab, &proxy, name).await;
    }
    lab.clean_at(&private.uri).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_is_completed_or_undone() {
    let _one = ONE.lock().await;
    let private = Private::new();
    let lab = lab_on(&private, "cut", &private.uri).await;
    lab.backend
        .pull_image("debian-12", &hwm_core::backend::ProgressSink::default())
        .await
        .unwrap();
    // Futures dropped at any moment, and then the same call again, or a removal.
    for i in 0..24u64 {
        let machine = lab.machine();
        let pause = Duration::from_micros(i * 1500);
        let limit = short();
        let create = Backend::create(&lab.backend, &limit, &machine);
        let _ = tokio::time::timeout(pause, create).await;
        if i % 2 == 0 {
            Backend::create(&lab.backend, &call(2), &machine).await.unwrap();
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
                let made = Backend::create(&backend, &call(1), &machine).await;
                (made, backend.start(&call(1), &machine).await)
            })
        };
        tokio::time::sleep(Duration::from_millis(i * 30)).await;
        private.signal("KILL");
        println!("{:?}", begun.await.unwrap());
        private.start();
        heals(&lab).await;
        if i % 2 == 0 {
            Backend::create(&lab.backend, &call(2), &machine).await.unwrap();
            lab.backend.start(&call(2), &machine).await.unwrap();
        }
        lab.backend.remove(&call(3), machine.id).await.unwrap();
    }
    let left = virsh_at(&private.uri, &["list", "--all", "--name"]);
    assert_eq!(left.trim(), "");
    lab.clean_at(&private.uri).await;
}
