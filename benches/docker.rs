//! Containers through the API beside the same calls made raw with bollard: life cycles and following a log.
//!
//! Needs `HWM_TEST_DOCKER_HOST`, a unix socket whose engine has the lab's images. `HWM_BENCH_CYCLES`
//! (default 20) is how many containers are made each way.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use futures_util::StreamExt;
use hwm_benches::{Figure, admin_token, median};
use hwm_core::backend::{Backend, LogQuery};
use hwm_core::id::ResourceId;
use hwm_core::manager::Manager;
use hwm_docker::{DockerBackend, DockerOptions};
use hwm_http::Options;
use hwm_http::auth::Auth;
use hwm_store::{SealingKey, SqliteStore};
use reqwest::{Client, Method};
use serde_json::{Value, json};

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
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let options = DockerOptions {
        host: Some(host.clone()),
        ..DockerOptions::new(format!("hwm-bench-{}", std::process::id()), folder.path())
    };
    let backend = Arc::new(DockerBackend::new(options)?);
    let api = Api::serve(backend.clone(), folder.path()).await?;

    let (mut raw, mut ours) = (Lives::default(), Lives::default());
    // In turns, so that both meet the same machine; the first turn warms up.
    for n in 0..=cycles {
        if n == 1 {
            (raw, ours) = (Lives::default(), Lives::default());
        }
        raw_life(&docker, n, &mut raw).await?;
        our_life(&api, n, &mut ours).await?;
    }
    let mut figures: Vec<_> = [
        ("POST to running", &mut ours.up, &mut raw.up),
        ("stop at once", &mut ours.down, &mut raw.down),
        ("delete", &mut ours.gone, &mut raw.gone),
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
    figures.extend(follow(&docker, &backend, &api).await?);
    api.manager.shutdown(Duration::from_secs(5)).await;
    Ok(figures)
}

/// The whole of hwm on the engine, behind a socket, as a client meets it.
struct Api {
    manager: Manager,
    address: SocketAddr,
    client: Client,
    token: String,
}

impl Api {
    async fn serve(backend: Arc<DockerBackend>, folder: &Path) -> Result<Self, Error> {
        const SECRET: &[u8] = b"thirty-two random bytes are good";
        let key = SealingKey::load_or_create(&folder.join("key"))?;
        let store = Arc::new(SqliteStore::open(&folder.join("hwm.db"), key)?);
        let manager = Manager::builder(store, "node-0".into())
            .backend(backend)
            .build()
            .await?;
        let options = Options {
            caller_rate: None,
            address_rate: None,
            ..Options::new(Auth::hs256(SECRET)?)
        };
        let app = hwm_http::router(manager.clone(), options);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            let service = app.into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(listener, service).await
        });
        Ok(Self {
            manager,
            address,
            client: Client::builder().no_proxy().build()?,
            token: admin_token(SECRET)?,
        })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("http://{}{path}", self.address))
            .bearer_auth(&self.token)
            .header("prefer", "wait=60")
    }

    async fn act(&self, method: Method, path: &str, body: Value) -> Result<Value, Error> {
        let answer = self.request(method, path).json(&body).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        if status.is_success() {
            Ok(body)
        } else {
            Err(format!("{status}: {body}").into())
        }
    }

    /// Creates a container and answers its path once it runs.
    async fn run(&self, command: &[&str]) -> Result<String, Error> {
        let made = self.act(Method::POST, "/resources", container(command)).await?;
        match (made["status"].as_str(), made["_id"].as_str()) {
            (Some("running"), Some(id)) => Ok(format!("/resources/{id}")),
            _ => Err(format!("it does not run: {made}").into()),
        }
    }
}

fn container(command: &[&str]) -> Value {
    let mut config = json!({
        "type": "application-container", "registry": "docker-hub", "pullPolicy": "never",
        "imageName": "hwm-test/busybox", "imageTag": "1",
    });
    if !command.is_empty() {
        config["command"] = command.into();
    }
    json!({ "name": "bench", "resourceType": "application-container", "config": config })
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

async fn our_life(api: &Api, n: usize, lives: &mut Lives) -> Result<(), Error> {
    let begun = Instant::now();
    let path = api.run(&[]).await.map_err(|e| format!("life {n}: {e}"))?;
    lives.up.push(begun.elapsed());
    let begun = Instant::now();
    let at_once = json!({ "force": true });
    api.act(Method::POST, &format!("{path}/stop"), at_once).await?;
    lives.down.push(begun.elapsed());
    let begun = Instant::now();
    api.act(Method::DELETE, &path, json!({})).await?;
    lives.gone.push(begun.elapsed());
    Ok(())
}

/// Follows the log of a container that has ended, each way in turns.
async fn follow(docker: &Docker, backend: &DockerBackend, api: &Api) -> Result<Vec<Figure>, Error> {
    let script = format!(
        "awk 'BEGIN {{ for (i = 1; i <= {LINES}; i++) print \"line \" i \" of a container that writes a lot of lines\" }}'"
    );
    let path = api.run(&["/bin/sh", "-c", &script]).await?;
    let id: ResourceId = path.trim_start_matches("/resources/").parse()?;
    let name = format!("hwm-{id}");
    let mut left = Box::pin(docker.wait_container(&name, None));
    while left.next().await.transpose()?.is_some() {}
    let (mut raw, mut ours, mut http) = (Vec::new(), Vec::new(), Vec::new());
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
        let mut lines = backend.logs(id, query).await?;
        let mut ours_count = 0;
        while let Some(line) = lines.next().await {
            line?;
            ours_count += 1;
        }
        ours.push(begun.elapsed());
        let begun = Instant::now();
        let events = api.request(Method::GET, &format!("{path}/logs?follow=true"));
        let mut events = events.send().await?.error_for_status()?;
        let mut sent = 0;
        while let Some(chunk) = events.chunk().await? {
            sent += chunk.windows(7).filter(|w| w == b"\ndata: ").count();
        }
        http.push(begun.elapsed());
        // An event may lie across two chunks, and the last one says that it is the end.
        if ours_count != count || count < LINES / 2 || sent < count * 9 / 10 {
            return Err(format!("{ours_count} lines and {sent} events beside {count} lines").into());
        }
    }
    api.act(Method::DELETE, &path, json!({})).await?;
    let rate =
        |mut times: Vec<Duration>| bytes as f64 / 5.0 / median(&mut times).as_secs_f64() / f64::from(1 << 20);
    let raw = rate(raw);
    let figure = |name: String, times, target| Figure {
        name,
        value: rate(times),
        unit: "MB/s",
        beside: Some(("bollard", raw)),
        target,
    };
    Ok(vec![
        figure(
            format!("follow a log of {LINES} lines"),
            ours,
            Some("at least 0.8 ×"),
        ),
        figure("the same as server-sent events over HTTP".to_owned(), http, None),
    ])
}
