use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hwm_core::backend::{Backend, BackendErrorKind, Call, ObservedState, Workload};
use hwm_core::config::{Config, Protocol, PullPolicy, RegistryAuth};
use hwm_core::env::Environment;
use hwm_core::id::ResourceId;
use hwm_core::ledger::PortBinding;
use hwm_core::secret::Secret;
use hwm_core::testing::backend_suite::samples;
use hwm_core::testing::env::SimEnvironment;
use hwm_core::testing::sim::{Daemon, Presence, Sim, SimOptions};

fn node() -> Sim {
    Sim::new(Arc::new(SimEnvironment::new(1)), SimOptions::default())
}

fn id(n: u128) -> ResourceId {
    ResourceId::from_u128(n)
}

fn call(generation: u64) -> Call {
    Call::new(generation, Duration::from_secs(60))
}

async fn up(backend: &dyn Backend, workload: &Workload) {
    backend.create(&call(1), workload).await.unwrap();
    backend.start(&call(1), workload).await.unwrap();
}

async fn epoch(backend: &dyn Backend) -> Option<String> {
    backend.probe().await.unwrap().epoch
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_away_refuses_and_one_that_hangs_waits() {
    let sim = node();
    let containers = sim.containers();
    sim.set_away(true);
    let error = containers.probe().await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Unavailable);
    sim.set_presence(Daemon::Containers, Presence::Hung);
    let asked = tokio::spawn(async move { containers.probe().await });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!asked.is_finished());
    sim.set_presence(Daemon::Containers, Presence::Up);
    asked.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn containers_end_with_their_engine_and_machines_live_on() {
    let sim = node();
    let (containers, machines) = (sim.containers(), sim.machines());
    up(containers.as_ref(), &samples::container(id(1), &[])).await;
    up(machines.as_ref(), &samples::machine(id(2), "debian-12")).await;
    let before = (epoch(containers.as_ref()).await, epoch(machines.as_ref()).await);
    let mut events = containers.events().await.unwrap();
    sim.restart_daemon(Daemon::Containers);
    sim.restart_daemon(Daemon::Machines);
    assert_eq!(events.next().await, None);
    let after = (epoch(containers.as_ref()).await, epoch(machines.as_ref()).await);
    assert_ne!(before.0, after.0);
    assert_eq!(before.1, after.1);
    assert_ne!(sim.look(id(1)).unwrap().state, ObservedState::Running);
    assert_eq!(sim.look(id(2)).unwrap().state, ObservedState::Running);
    sim.reboot_host();
    assert_ne!(epoch(machines.as_ref()).await, after.1);
    assert_ne!(sim.look(id(2)).unwrap().state, ObservedState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_port_of_the_node_has_one_listener() {
    let sim = node();
    let containers = sim.containers();
    let with_port = |n| {
        let mut workload = samples::container(id(n), &[]);
        workload.ports = vec![PortBinding {
            container_port: 80,
            host_port: 8080,
            protocol: Protocol::Tcp,
        }];
        workload
    };
    up(containers.as_ref(), &with_port(1)).await;
    assert_eq!(
        sim.look(id(1)).unwrap().endpoint.as_deref(),
        Some("127.0.0.1:8080")
    );
    containers.create(&call(1), &with_port(2)).await.unwrap();
    let error = containers.start(&call(1), &with_port(2)).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Conflict);
    sim.kill_workload(id(1), 1);
    sim.occupy_port(Protocol::Tcp, 8080, true);
    let error = containers.start(&call(1), &with_port(2)).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Conflict);
    assert_eq!(containers.check(&with_port(3)).await.unwrap().violations.len(), 1);
    sim.occupy_port(Protocol::Tcp, 8080, false);
    containers.start(&call(1), &with_port(2)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_as_policy_and_registry_say() {
    let sim = node();
    let containers = sim.containers();
    let with = |n, policy, password: Option<&str>| {
        let mut workload = samples::container_of(id(n), "app", &[]);
        if let Config::Container(c) = &mut workload.config {
            c.pull_policy = policy;
            c.registry_auth = password.map(|p| RegistryAuth {
                username: Some("me".into()),
                password: Some(Secret::new(p)),
                token: None,
            });
        }
        workload
    };
    let create = async |workload: Workload| containers.create(&call(1), &workload).await.map_err(|e| e.kind);
    assert_eq!(
        create(with(1, PullPolicy::Never, None)).await,
        Err(BackendErrorKind::NotFound)
    );
    sim.protect_registry("docker.io", "me", "right");
    for password in [None, Some("wrong")] {
        assert_eq!(
            create(with(1, PullPolicy::Missing, password)).await,
            Err(BackendErrorKind::Denied)
        );
    }
    assert_eq!(create(with(1, PullPolicy::Missing, Some("right"))).await, Ok(()));
    assert_eq!(create(with(2, PullPolicy::Never, None)).await, Ok(()));
    assert_eq!(create(with(3, PullPolicy::Missing, None)).await, Ok(()));
    assert_eq!(
        create(with(4, PullPolicy::Always, None)).await,
        Err(BackendErrorKind::Denied)
    );
    sim.set_full(true);
    assert_eq!(
        create(with(5, PullPolicy::Always, Some("right"))).await,
        Err(BackendErrorKind::NoSpace)
    );
    assert!(sim.images().contains("app:latest"));
}

#[tokio::test(start_paused = true)]
async fn paths_are_resolved_and_folders_of_the_system_refused() {
    let sim = node();
    sim.link("/data/link", "/etc");
    let mut workload = samples::container(id(1), &[]);
    let volume = |path: &str| hwm_core::config::Volume {
        host_path: path.into(),
        container_path: "/x".into(),
        read_only: false,
    };
    if let Config::Container(c) = &mut workload.config {
        c.volumes = ["/data/a/../b", "/data/link/ssh", "/data/../proc"]
            .map(volume)
            .into();
    }
    let report = sim.containers().check(&workload).await.unwrap();
    let resolved: Vec<&str> = report.resolved_paths.values().map(String::as_str).collect();
    assert_eq!(resolved, ["/proc", "/data/b", "/etc/ssh"]);
    let fields: Vec<&str> = report.violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(
        fields,
        ["config.volumes[1].hostPath", "config.volumes[2].hostPath"]
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_planted_tells_when_it_is_changed() {
    let sim = node();
    sim.plant_foreign("somebody", Daemon::Containers, &samples::container(id(1), &[]));
    assert_eq!(sim.changed_foreign(), [""; 0]);
    assert!(sim.containers().owned().await.unwrap().is_empty());
    let theirs = sim.containers_of("somebody");
    theirs.stop(&call(1), id(1), Default::default()).await.unwrap();
    assert_eq!(sim.changed_foreign().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_done_behind_the_back_is_seen_and_hinted_at() {
    let sim = node();
    let containers = sim.containers();
    up(containers.as_ref(), &samples::container(id(1), &[])).await;
    let mut events = containers.events().await.unwrap();
    sim.kill_workload(id(1), 9);
    assert_eq!(events.next().await.unwrap().id, id(1));
    assert!(!sim.look(id(1)).unwrap().state.ended_clean());
    sim.start_behind_back(id(1));
    assert_eq!(sim.look(id(1)).unwrap().state, ObservedState::Running);
    sim.remove_behind_back(id(1));
    assert_eq!(sim.look(id(1)), None);
    assert!(containers.inspect(&[id(1)]).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn two_changes_of_one_workload_at_once_are_a_breach() {
    let sim = node();
    sim.set_latency(hwm_core::testing::sim::Latency {
        call: Duration::from_millis(10),
        ..Default::default()
    });
    let (containers, workload) = (sim.containers(), samples::container(id(1), &[]));
    let first = call(1);
    let (a, b) = tokio::join!(
        containers.create(&first, &workload),
        containers.create(&first, &workload)
    );
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(sim.breaches().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restored_machine_has_the_files_of_its_snapshot() {
    let sim = node();
    let machines = sim.machines();
    let workload = samples::machine(id(1), "debian-12");
    up(machines.as_ref(), &workload).await;
    let snapshots = machines.facets().snapshots.unwrap();
    let spec = hwm_core::backend::SnapshotSpec {
        id: hwm_core::id::SnapshotId::from_u128(1),
        name: "s".into(),
        memory: None,
    };
    sim.write_file(id(1), "/f", "old");
    snapshots.create(&call(1), &workload, &spec).await.unwrap();
    sim.write_file(id(1), "/f", "new");
    assert!(snapshots.restore(&call(1), &workload, spec.id).await.unwrap());
    assert_eq!(sim.read_file(id(1), "/f").as_deref(), Some("old"));
    machines.stop(&call(1), id(1), Default::default()).await.unwrap();
    assert!(snapshots.restore(&call(1), &workload, spec.id).await.unwrap());
    assert_eq!(sim.look(id(1)).unwrap().state, ObservedState::Running);
}

#[tokio::test(start_paused = true)]
async fn figures_move_with_the_clock() {
    let env = Arc::new(SimEnvironment::new(1));
    let sim = Sim::new(env.clone(), SimOptions::default());
    let containers = sim.containers();
    up(containers.as_ref(), &samples::container(id(1), &[])).await;
    let first = containers.metrics(&[id(1)]).await.unwrap();
    env.sleep(Duration::from_secs(3)).await;
    let second = containers.metrics(&[id(1)]).await.unwrap();
    assert_ne!(first[0].1.cpu, second[0].1.cpu);
    assert!(first[0].1.network.rx_bytes < second[0].1.network.rx_bytes);
}
