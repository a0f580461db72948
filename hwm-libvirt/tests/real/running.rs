//! What can be asked of and done to a machine that runs.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hwm_core::backend::{
    Backend, BackendErrorKind, Exec, ExecRequest, LiveUpdate, LogQuery, ObservedState, StopOptions,
};
use hwm_core::config::IpMode;
use hwm_core::units::Bytes;

use crate::lab::{Lab, call, config, virsh};

fn request(command: &str, seconds: u64) -> ExecRequest {
    ExecRequest {
        command: command.into(),
        working_dir: Some("/tmp".into()),
        timeout: Duration::from_secs(seconds),
        output_limit: 100,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_figures_and_changes() {
    let lab = Lab::new("run").await;
    let mut machine = lab.machine();
    let id = machine.id;
    config(&mut machine).network_config.ip_mode = IpMode::Dhcp;
    config(&mut machine).network_config.ip_address = None;
    lab.up(&machine).await;
    let backend = &lab.backend;

    let output = backend
        .run(id, request("pwd; echo \"a'b\"; echo no >&2; exit 3", 10))
        .await
        .unwrap();
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str(), output.exit_code),
        ("/tmp\na'b\n", "no\n", 3)
    );
    let long = backend.run(id, request("seq 1 1000", 10)).await.unwrap();
    assert!(long.truncated && long.stdout.len() == 100);
    let late = backend.run(id, request("sleep 1000", 2)).await.unwrap_err();
    assert_eq!(late.kind, BackendErrorKind::Timeout);
    let left = backend
        .run(id, request("pgrep -f 'sleep 100[0]' || echo none", 10))
        .await
        .unwrap();
    assert_eq!(left.stdout, "none\n");

    backend.metrics(&[id]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let all = backend.metrics(&[id]).await.unwrap();
    let [(_, metrics)] = &all[..] else {
        panic!("{all:?}")
    };
    println!("{metrics:?}");
    assert!(metrics.cpu.usage_percent.is_some());
    assert_eq!(metrics.memory.total_mb, Some(512));
    assert!(metrics.memory.used_mb.is_some_and(|mb| mb > 10 && mb < 512));
    assert_eq!(metrics.disk.total_gb, Some(10.0));
    assert!(metrics.disk.used_gb.is_some_and(|gb| gb < 1.0));
    assert!(metrics.network.rx_bytes.is_some());

    let deadline = Instant::now() + Duration::from_secs(30);
    let endpoint = loop {
        if let Some(endpoint) = lab.observed(id).await.unwrap().endpoint {
            break endpoint;
        }
        assert!(Instant::now() < deadline, "no address was found");
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    assert!(endpoint.ends_with(":22"), "{endpoint}");
    let said = backend
        .run(id, request("ip -4 -o address show dev eth0", 10))
        .await
        .unwrap()
        .stdout;
    assert!(
        said.contains(endpoint.trim_end_matches(":22")),
        "{said} {endpoint}"
    );
    assert!(lab.log(id).await.contains("address"));

    let mut more = machine.clone();
    more.generation = 2;
    config(&mut more).vcpus = 3;
    config(&mut more).disk = Bytes::from_whole_gb(11);
    assert!(backend.is_live(&machine.config, &more.config));
    backend.update(&call(2), &more).await.unwrap();
    let size = backend
        .run(id, request("blockdev --getsize64 /dev/vda", 10))
        .await
        .unwrap();
    assert_eq!(size.stdout.trim(), (11u64 << 30).to_string());
    assert!(virsh(&["vcpucount", "--live", "--current", &id.to_string()]).starts_with('3'));
    assert_eq!(lab.observed(id).await.unwrap().generation, Some(2));
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_logs_follow_what_happens() {
    let lab = Lab::new("events").await;
    let machine = lab.machine();
    let id = machine.id;
    let backend = &lab.backend;
    backend.create(&call(1), &machine).await.unwrap();
    let mut events = backend.events().await.unwrap();
    backend.start(&call(1), &machine).await.unwrap();
    let mut lines = backend
        .logs(
            id,
            LogQuery {
                follow: true,
                ..LogQuery::default()
            },
        )
        .await
        .unwrap();
    let ready = async {
        while let Some(line) = lines.next().await {
            if line.unwrap().message.contains("guest ready") {
                return;
            }
        }
        panic!("the log ended");
    };
    tokio::time::timeout(Duration::from_secs(120), ready)
        .await
        .unwrap();
    let tail = LogQuery {
        tail: Some(1),
        ..LogQuery::default()
    };
    assert_eq!(backend.logs(id, tail).await.unwrap().count().await, 1);

    // QEMU dies: told within a second of libvirt's knowing, which takes down the machine's network filter first, and
    // with its last words.
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(100), events.next()).await {}
    let killed = Instant::now();
    kill_qemu(id);
    let known = tokio::task::spawn_blocking(move || {
        while virsh(&["domstate", &id.to_string()]).trim() == "running" {
            std::thread::sleep(Duration::from_millis(20));
        }
        killed.elapsed()
    });
    // Other tests' machines are told of as well.
    let told = async {
        while events.next().await.unwrap().id != id {}
        killed.elapsed()
    };
    let told = tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
    let known = known.await.unwrap();
    println!("libvirt knew of a crash after {known:?}, and it was told after {told:?}");
    assert!(told < known + Duration::from_secs(1));
    let deadline = Instant::now() + Duration::from_secs(2);
    let cause = loop {
        match lab.state(id).await {
            Some(ObservedState::Ended {
                cause: Some(cause), ..
            }) => break cause,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    println!("{cause}");
    assert!(cause.contains("crashed"), "{cause}");

    backend.start(&call(1), &machine).await.unwrap();
    lab.said(id, "guest ready", Duration::from_secs(120)).await;
    virsh(&["destroy", &id.to_string()]);
    let state = lab.state(id).await.unwrap();
    assert!(!state.ended_clean(), "{state:?}");
    backend.stop(&call(1), id, StopOptions::default()).await.unwrap();
    lab.clean().await;
}

fn kill_qemu(id: hwm_core::id::ResourceId) {
    let process = crate::privilege::qemu(id);
    let pid = process.file_name().unwrap();
    let done = std::process::Command::new("kill")
        .arg("-KILL")
        .arg(pid)
        .status()
        .unwrap();
    assert!(done.success());
}
