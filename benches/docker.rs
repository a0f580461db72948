//! The Docker backend beside the same calls made raw with bollard: life cycles and following a log.
//!
//! Needs `HWM_TEST_DOCKER_HOST`, a unix socket whose engine has the lab's images. `HWM_BENCH_CYCLES`
//! (default 20) is how many containers are made each way.

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use futures_util::StreamExt;
use hwm_benches::{Figure, median};
use hwm_core::backend::{Backend, Call, LogQuery, StopOptions, Workload};
use hwm_core::id::ResourceId;
use hwm_docker::{DockerBackend, DockerOptions};

type Error = Box<dyn std::error::Error>;

const IMAGE: &str = "hwm-test/busybox:1";
const LINES: usize = 300_000;

/// How long each part of a life took.
#[derive(Default)]
struct Lives {
    up: Vec<Duration>,
    down: Vec<Duration>,
    gone: Vec<Duration>,
}

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let cycles = std::env::var("HWM_BENCH_CYCLES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    for figure in runtime.block_on(figures(cycles))? {
        figure.print("docker");
    }
    Ok(())
}

async fn figures(cycles: usize) -> Result<Vec<Figure>, Error> {
    let host = std::env::var("HWM_TEST_DOCKER_HOST")?;
    let socket = host
        .strip_prefix("unix://")
        .ok_or("HWM_TEST_DOCKER_HOST must be a unix socket")?;
    let docker = Docker::connect_with_unix(socket, 120, bollard::API_DEFAULT_VERSION)?;
    let folder = tempfile::tempdir()?;
    let options = DockerOptions {
        host: Some(host.clone()),
        ..DockerOptions::new(format!("hwm-bench-{}", std::process::id()), folder.path())
    };
    let backend = DockerBackend::new(options)?;
    backend.probe().await?;

    let (mut raw, mut ours) = (Lives::default(), Lives::default());
    // In turns, so that both meet the same machine.
    for n in 0..cycles {
        raw_life(&docker, n, &mut raw).await?;
        our_life(&backend, n, &mut ours).await?;
    }
    let mut figures: Vec<_> = [
        ("create and start", &mut ours.up, &mut raw.up),
        ("stop at once", &mut ours.down, &mut raw.down),
        ("remove", &mut ours.gone, &mut raw.gone),
    ]
    .into_iter()
    .map(|(name, ours, raw)| Figure {
        name: name.to_owned(),
        value: median(ours).as_secs_f64() * 1e3,
        unit: "ms",
        beside: Some(("bollard", median(raw).as_secs_f64() * 1e3)),
        target: Some("at most 1.10 × or + 10 ms"),
    })
    .collect();
    figures.push(follow(&docker, &backend).await?);
    Ok(figures)
}

async fn raw_life(docker: &Docker, n: usize, lives: &mut Lives) -> Result<(), Error> {
    let name = format!("hwm-bench-{}-{n}", std::process::id());
    let begun = Instant::now();
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        host_config: Some(HostConfig {
            init: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    docker.create_container(Some(options), body).await?;
    docker.start_container(&name, None).await?;
    lives.up.push(begun.elapsed());
    let begun = Instant::now();
    let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    docker.kill_container(&name, Some(kill)).await?;
    lives.down.push(begun.elapsed());
    let begun = Instant::now();
    let remove = RemoveContainerOptionsBuilder::default()
        .force(true)
        .v(true)
        .build();
    docker.remove_container(&name, Some(remove)).await?;
    lives.gone.push(begun.elapsed());
    Ok(())
}

async fn our_life(backend: &DockerBackend, n: usize, lives: &mut Lives) -> Result<(), Error> {
    let workload = workload(n, &[])?;
    let call = Call::new(1, Duration::from_secs(60));
    let begun = Instant::now();
    backend.create(&call, &workload).await?;
    backend.start(&call, &workload).await?;
    lives.up.push(begun.elapsed());
    let begun = Instant::now();
    let at_once = StopOptions {
        force: true,
        grace: None,
    };
    backend.stop(&call, workload.id, at_once).await?;
    lives.down.push(begun.elapsed());
    let begun = Instant::now();
    backend.remove(&call, workload.id).await?;
    lives.gone.push(begun.elapsed());
    Ok(())
}

/// Follows the log of a container that has ended, each way in turns.
async fn follow(docker: &Docker, backend: &DockerBackend) -> Result<Figure, Error> {
    let script = format!(
        "awk 'BEGIN {{ for (i = 1; i <= {LINES}; i++) print \"line \" i \" of a container that writes a lot of lines\" }}'"
    );
    let workload = workload(0, &["/bin/sh", "-c", &script])?;
    let call = Call::new(2, Duration::from_secs(60));
    backend.create(&call, &workload).await?;
    backend.start(&call, &workload).await?;
    let name = format!("hwm-{}", workload.id);
    let mut left = Box::pin(docker.wait_container(&name, None));
    while left.next().await.transpose()?.is_some() {}
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..5 {
        let begun = Instant::now();
        let options = LogsOptionsBuilder::default()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .build();
        let mut lines = Box::pin(docker.logs(&name, Some(options)));
        let mut count = 0;
        while let Some(line) = lines.next().await {
            bytes += line?.into_bytes().len();
            count += 1;
        }
        raw.push(begun.elapsed());
        let begun = Instant::now();
        let query = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let mut lines = backend.logs(workload.id, query).await?;
        let mut ours_count = 0;
        while let Some(line) = lines.next().await {
            line?;
            ours_count += 1;
        }
        ours.push(begun.elapsed());
        if ours_count != count || count < LINES / 2 {
            return Err(format!("{ours_count} lines beside {count}").into());
        }
    }
    backend.remove(&call, workload.id).await?;
    let rate =
        |mut times: Vec<Duration>| bytes as f64 / 5.0 / median(&mut times).as_secs_f64() / f64::from(1 << 20);
    Ok(Figure {
        name: format!("follow a log of {LINES} lines"),
        value: rate(ours),
        unit: "MB/s",
        beside: Some(("bollard", rate(raw))),
        target: Some("at least 0.8 ×"),
    })
}

fn workload(n: usize, command: &[&str]) -> Result<Workload, Error> {
    let mut config = serde_json::json!({
        "type": "application-container", "registry": "docker-hub", "pullPolicy": "never",
        "imageName": "hwm-test/busybox", "imageTag": "1",
    });
    if !command.is_empty() {
        config["command"] = command.into();
    }
    Ok(Workload {
        id: ResourceId::from_u128((u128::from(std::process::id()) << 64) | n as u128),
        name: "bench".to_owned(),
        generation: 1,
        config: serde_json::from_value(config)?,
        ports: Vec::new(),
        grants: Vec::new(),
    })
}
