use std::time::{Duration, Instant};

use hwm_core::backend::{Backend, BackendErrorKind, LiveUpdate, ObservedState, StopOptions};
use serde_json::json;

use crate::lab::*;

#[tokio::test]
async fn a_container_answers_http_through_its_whole_life() {
    let lab = lab();
    let workload = application("httpd", json!({"containerPorts": [{"containerPort": 8080}]}));
    let id = workload.id;
    lab.backend.create(&call(), &workload).await.unwrap();
    lab.backend.create(&call(), &workload).await.unwrap();
    assert_eq!(lab.seen(id).await.state, ObservedState::Created);
    for _ in 0..2 {
        lab.backend.start(&call(), &workload).await.unwrap();
    }
    let seen = lab.seen(id).await;
    assert_eq!(seen.state, ObservedState::Running);
    assert_eq!(seen.generation, Some(1));
    assert!(seen.started_at.is_some() && seen.ended_at.is_none());
    let endpoint = seen.endpoint.unwrap();
    assert_eq!(endpoint, format!("127.0.0.1:{}", workload.ports[0].host_port));
    assert!(
        get(&format!("http://{endpoint}/"))
            .await
            .contains("hello from hwm-test/httpd")
    );
    for _ in 0..2 {
        lab.backend
            .stop(&call(), id, StopOptions::default())
            .await
            .unwrap();
    }
    let seen = lab.seen(id).await;
    assert!(
        matches!(
            seen.state,
            ObservedState::Ended {
                exit_code: Some(0),
                ..
            }
        ),
        "{seen:?}"
    );
    assert!(seen.ended_at.is_some() && seen.endpoint.is_none());
    lab.backend.start(&call(), &workload).await.unwrap();
    assert!(get(&format!("http://{endpoint}/")).await.contains("hello"));
    for _ in 0..2 {
        lab.gone(id).await;
    }
}

#[tokio::test]
async fn what_ignores_the_request_to_end_is_killed_after_its_grace_or_at_once() {
    let lab = lab();
    let workload = application("stubborn", json!({}));
    lab.up(&workload).await;
    let begun = Instant::now();
    let grace = StopOptions {
        force: false,
        grace: Some(Duration::from_secs(2)),
    };
    lab.backend.stop(&call(), workload.id, grace).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(matches!(
        lab.seen(workload.id).await.state,
        ObservedState::Ended {
            exit_code: Some(137),
            ..
        }
    ));
    lab.backend.start(&call(), &workload).await.unwrap();
    let begun = Instant::now();
    lab.backend.stop(&call(), workload.id, at_once()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn a_paused_container_runs_and_can_be_stopped_started_and_removed() {
    let lab = lab();
    for force in [false, true] {
        let workload = application("busybox", json!({}));
        lab.up(&workload).await;
        let name = format!("hwm-{}", workload.id);
        raw().pause_container(&name).await.unwrap();
        assert_eq!(lab.seen(workload.id).await.state, ObservedState::Running);
        lab.backend.start(&call(), &workload).await.unwrap();
        raw().pause_container(&name).await.unwrap();
        let options = StopOptions { force, grace: None };
        lab.backend.stop(&call(), workload.id, options).await.unwrap();
        assert!(matches!(
            lab.seen(workload.id).await.state,
            ObservedState::Ended { .. }
        ));
        lab.backend.start(&call(), &workload).await.unwrap();
        raw().pause_container(&name).await.unwrap();
        lab.gone(workload.id).await;
    }
}

#[tokio::test]
async fn a_changed_config_is_applied_at_the_next_start_and_not_before() {
    let lab = lab();
    let mut workload = script("echo $A; sleep 60");
    lab.up(&workload).await;
    let before = lab.seen(workload.id).await.runtime_id;
    let mut config = serde_json::to_value(&workload.config).unwrap();
    merge(&mut config, json!({"environment": {"A": "changed"}}));
    workload.config = serde_json::from_value(config).unwrap();
    workload.generation = 2;
    lab.backend.create(&call_of(2), &workload).await.unwrap();
    lab.backend.start(&call_of(2), &workload).await.unwrap();
    assert_eq!(lab.seen(workload.id).await.runtime_id, before);
    lab.backend
        .stop(&call_of(2), workload.id, at_once())
        .await
        .unwrap();
    lab.backend.start(&call_of(2), &workload).await.unwrap();
    let after = lab.seen(workload.id).await;
    assert_ne!(after.runtime_id, before);
    assert_eq!(after.generation, Some(2));
    lab.backend.remove(&call_of(3), workload.id).await.unwrap();
}

#[tokio::test]
async fn a_restart_without_a_change_keeps_what_the_container_wrote() {
    let lab = lab();
    let workload = script("cat /mark; echo kept >/mark; exec sleep 60");
    lab.up(&workload).await;
    let before = lab.seen(workload.id).await.runtime_id;
    tokio::time::sleep(Duration::from_millis(300)).await;
    lab.backend.stop(&call(), workload.id, at_once()).await.unwrap();
    lab.backend.start(&call(), &workload).await.unwrap();
    assert_eq!(lab.seen(workload.id).await.runtime_id, before);
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn an_older_generation_changes_nothing() {
    let lab = lab();
    let workload = application("busybox", json!({}));
    lab.backend.create(&call_of(5), &workload).await.unwrap();
    lab.backend.remove(&call_of(6), workload.id).await.unwrap();
    let late = lab.backend.create(&call_of(5), &workload).await.unwrap_err();
    assert_eq!(late.kind, BackendErrorKind::Superseded);
    let late = lab.backend.start(&call_of(5), &workload).await.unwrap_err();
    assert_eq!(late.kind, BackendErrorKind::Superseded);
    assert_eq!(lab.backend.inspect(&[workload.id]).await.unwrap(), []);
}

#[tokio::test]
async fn a_generation_is_remembered_by_the_container_across_managers() {
    let lab = lab();
    let mut workload = application("busybox", json!({}));
    workload.generation = 7;
    lab.backend.create(&call_of(7), &workload).await.unwrap();
    let owner = lab.owner.clone();
    let restarted = lab_with(|o| o.owner = owner);
    let late = restarted.backend.start(&call_of(6), &workload).await.unwrap_err();
    assert_eq!(late.kind, BackendErrorKind::Superseded);
    lab.backend.remove(&call_of(8), workload.id).await.unwrap();
}

#[tokio::test]
async fn a_create_that_is_dropped_anywhere_is_undone_by_remove() {
    let lab = lab();
    for micros in (0..40_000).step_by(2_000) {
        let workload = application("busybox", json!({}));
        let first = call();
        let create = lab.backend.create(&first, &workload);
        let _ = tokio::time::timeout(Duration::from_micros(micros), create).await;
        lab.gone(workload.id).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        containers(&raw(), &format!("io.hwm.owner={}", lab.owner))
            .await
            .len(),
        0
    );
}

#[tokio::test]
async fn cpu_and_memory_change_while_it_runs_and_the_container_stays_the_same() {
    let lab = lab();
    let mut workload = application("busybox", json!({"cpuCores": 1, "ramLimit": 0.0625}));
    lab.up(&workload).await;
    let before = lab.seen(workload.id).await;
    let from = workload.config.clone();
    let mut config = serde_json::to_value(&from).unwrap();
    merge(&mut config, json!({"cpuCores": 0.5, "ramLimit": 0.125}));
    workload.config = serde_json::from_value(config).unwrap();
    assert!(lab.backend.is_live(&from, &workload.config));
    lab.backend.update(&call_of(2), &workload).await.unwrap();
    let found = raw()
        .inspect_container(&format!("hwm-{}", workload.id), None)
        .await
        .unwrap();
    let host = found.host_config.unwrap();
    assert_eq!(
        (host.nano_cpus, host.memory),
        (Some(500_000_000), Some(128 << 20))
    );
    lab.backend
        .stop(&call_of(3), workload.id, at_once())
        .await
        .unwrap();
    lab.backend.start(&call_of(3), &workload).await.unwrap();
    assert_eq!(lab.seen(workload.id).await.runtime_id, before.runtime_id);
    // What is changed while it is down is applied at the start.
    lab.backend
        .stop(&call_of(4), workload.id, at_once())
        .await
        .unwrap();
    lab.backend
        .start(&call_of(4), &{
            let mut w = workload.clone();
            w.config = from;
            w
        })
        .await
        .unwrap();
    let found = raw()
        .inspect_container(&format!("hwm-{}", workload.id), None)
        .await
        .unwrap();
    assert_eq!(found.host_config.unwrap().memory, Some(64 << 20));
    assert_eq!(lab.seen(workload.id).await.runtime_id, before.runtime_id);
    lab.backend.remove(&call_of(5), workload.id).await.unwrap();
}

#[tokio::test]
async fn a_port_that_something_else_holds_is_named_before_and_is_a_conflict_at_start() {
    let lab = lab();
    let listener = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let ports = json!({"containerPorts": [{"containerPort": 1, "hostPort": free_port()}, {"containerPort": 8080, "hostPort": port}]});
    let workload = application("httpd", ports);
    let report = lab.backend.check(&workload).await.unwrap();
    assert_eq!(report.violations.len(), 1, "{report:?}");
    assert_eq!(report.violations[0].field, "config.containerPorts[1].hostPort");
    lab.backend.create(&call(), &workload).await.unwrap();
    let error = lab.backend.start(&call(), &workload).await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Conflict, "{error}");
    drop(listener);
    assert_eq!(lab.backend.check(&workload).await.unwrap().violations, []);
    lab.backend.start(&call(), &workload).await.unwrap();
    // It is ours now: that is the manager's to judge.
    assert_eq!(lab.backend.check(&workload).await.unwrap().violations, []);
    lab.gone(workload.id).await;
}

#[tokio::test]
async fn what_the_node_cannot_do_is_refused_before() {
    let lab = lab();
    let fields = |workload| {
        let backend = lab.backend.clone();
        async move {
            let report = backend.check(&workload).await.unwrap();
            report.violations.into_iter().map(|v| v.field).collect::<Vec<_>>()
        }
    };
    assert_eq!(
        fields(application(
            "httpd",
            json!({"networkMode": "host", "cpuCores": 4096, "ramLimit": 0.001})
        ))
        .await,
        ["config.networkMode", "config.cpuCores", "config.ramLimit"]
    );
    assert_eq!(
        fields(application("httpd", json!({"gpuDeviceIds": ["0"]}))).await,
        ["config.gpuDeviceIds"]
    );
    let allowed = lab_with(|o| o.allow_host_network = true);
    let host = application(
        "busybox",
        json!({"networkMode": "host", "containerPorts": [{"containerPort": 7777}]}),
    );
    assert_eq!(allowed.backend.check(&host).await.unwrap().violations, []);
    allowed.up(&host).await;
    assert_eq!(
        allowed.seen(host.id).await.endpoint.as_deref(),
        Some("127.0.0.1:7777")
    );
    allowed.gone(host.id).await;
}

#[tokio::test]
async fn many_life_cycles_in_parallel_leave_nothing() {
    let lab = lab();
    let one = || async {
        let workload = application("busybox", json!({}));
        lab.up(&workload).await;
        lab.backend.stop(&call(), workload.id, at_once()).await.unwrap();
        lab.gone(workload.id).await;
    };
    futures_util::future::join_all((0..12).map(|_| one())).await;
    assert_eq!(lab.backend.owned().await.unwrap(), []);
}

#[tokio::test]
async fn the_engine_says_what_the_node_has() {
    let lab = lab();
    let first = lab.backend.probe().await.unwrap();
    assert!(first.version.contains("API 1."), "{first:?}");
    assert!(first.capacity.cpu.0 > 0 && first.capacity.ram.0 > 0 && first.capacity.disk.0 > 0);
    assert!(!first.simulated);
    assert!(first.epoch.is_some());
    assert_eq!(first.epoch, lab.backend.probe().await.unwrap().epoch);
}
