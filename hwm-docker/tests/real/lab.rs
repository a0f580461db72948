//! A backend of its own for every test, and what looks at the engine past it.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, ContainerSummary};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use hwm_core::backend::{Backend, Call, Observed, ObservedState, StopOptions, Workload};
use hwm_core::config::Config;
use hwm_core::id::ResourceId;
use hwm_core::ledger::PortBinding;
use hwm_docker::{DockerBackend, DockerOptions};

/// A variable of the lab. Its absence is a failure, never a skip.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `scripts/lab up docker registry --dir DIR` and read DIR/env")
    })
}

/// The engine without the backend.
pub(crate) fn raw() -> Docker {
    let host = variable("HWM_TEST_DOCKER_HOST");
    let path = host
        .strip_prefix("unix://")
        .expect("the lab's engine listens on a unix socket");
    Docker::connect_with_unix(path, 120, bollard::API_DEFAULT_VERSION).expect("the lab's engine runs")
}

pub(crate) struct Lab {
    pub(crate) backend: DockerBackend,
    pub(crate) owner: String,
    dir: tempfile::TempDir,
}

pub(crate) fn lab() -> Lab {
    lab_with(|_| ())
}

pub(crate) fn lab_with(change: impl FnOnce(&mut DockerOptions)) -> Lab {
    let dir = tempfile::tempdir().expect("a folder");
    let owner = format!("hwm-docker-test-{}", uuid::Uuid::new_v4());
    for folder in ["volumes", "models"] {
        std::fs::create_dir(dir.path().join(folder)).expect("a folder");
    }
    let mut options = DockerOptions {
        host: Some(variable("HWM_TEST_DOCKER_HOST")),
        volume_roots: vec![dir.path().join("volumes")],
        model_roots: vec![dir.path().join("models")],
        stop_grace: Duration::from_secs(5),
        ..DockerOptions::new(owner.clone(), dir.path())
    };
    change(&mut options);
    Lab {
        backend: DockerBackend::new(options).expect("good options"),
        owner,
        dir,
    }
}

impl Lab {
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) async fn up(&self, workload: &Workload) {
        self.backend.create(&call(), workload).await.expect("create");
        self.backend.start(&call(), workload).await.expect("start");
    }

    /// The one that must exist.
    pub(crate) async fn seen(&self, id: ResourceId) -> Observed {
        self.backend
            .inspect(&[id])
            .await
            .expect("inspect")
            .pop()
            .expect("it exists")
    }

    /// Waits until it ended, and answers exit code and cause.
    pub(crate) async fn ended(&self, id: ResourceId) -> (Option<i64>, Option<String>) {
        for _ in 0..500 {
            if let ObservedState::Ended { exit_code, cause } = self.seen(id).await.state {
                return (exit_code, cause);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{id} does not end");
    }

    pub(crate) async fn gone(&self, id: ResourceId) {
        self.backend.remove(&call(), id).await.expect("remove");
        assert_eq!(self.backend.inspect(&[id]).await.expect("inspect"), []);
        assert_eq!(
            containers(&raw(), &format!("io.hwm.resource={id}")).await.len(),
            0
        );
    }
}

impl Drop for Lab {
    /// Removes what a failed test leaves.
    fn drop(&mut self) {
        let label = format!("io.hwm.owner={}", self.owner);
        let cleaner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let docker = raw();
                for left in containers(&docker, &label).await {
                    remove(&docker, &left.id.expect("an id")).await;
                }
            });
        });
        // A panic in here would hide the one that matters.
        let _ = cleaner.join();
    }
}

pub(crate) async fn containers(docker: &Docker, label: &str) -> Vec<ContainerSummary> {
    let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    docker.list_containers(Some(options)).await.expect("list")
}

pub(crate) async fn remove(docker: &Docker, name: &str) {
    let options = RemoveContainerOptionsBuilder::default()
        .force(true)
        .v(true)
        .build();
    // It may be gone already.
    let _ = docker.remove_container(name, Some(options)).await;
}

/// Makes and starts a container that is not ours.
pub(crate) async fn plant(docker: &Docker, name: &str, body: ContainerCreateBody) {
    let options = CreateContainerOptionsBuilder::default().name(name).build();
    docker
        .create_container(Some(options), body)
        .await
        .expect("create");
    docker.start_container(name, None).await.expect("start");
}

pub(crate) fn call() -> Call {
    Call::new(1, Duration::from_secs(120))
}

pub(crate) fn call_of(generation: u64) -> Call {
    Call::new(generation, Duration::from_secs(120))
}

pub(crate) fn at_once() -> StopOptions {
    StopOptions {
        force: true,
        grace: None,
    }
}

pub(crate) fn new_id() -> ResourceId {
    ResourceId::from_u128(uuid::Uuid::now_v7().as_u128())
}

/// A port that nothing listens on at present.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// An application container of a test image, changed by a merge of `change`.
pub(crate) fn application(image: &str, change: serde_json::Value) -> Workload {
    let mut config = serde_json::json!({
        "type": "application-container", "registry": "docker-hub",
        "imageName": format!("hwm-test/{image}"), "imageTag": "1", "pullPolicy": "never",
    });
    merge(&mut config, change);
    workload(config)
}

/// A shell script in the plain image.
pub(crate) fn script(text: &str) -> Workload {
    application("busybox", serde_json::json!({"command": ["/bin/sh", "-c", text]}))
}

pub(crate) fn merge(into: &mut serde_json::Value, change: serde_json::Value) {
    let into = into.as_object_mut().expect("an object");
    into.extend(change.as_object().expect("an object").clone());
}

pub(crate) fn workload(config: serde_json::Value) -> Workload {
    let config: Config = serde_json::from_value(config).expect("a config");
    let ports = config.port_requests();
    Workload {
        id: new_id(),
        name: "test".into(),
        generation: 1,
        ports: ports
            .iter()
            .map(|p| PortBinding::new(p, p.host_port.unwrap_or_else(free_port)))
            .collect(),
        config,
        grants: Vec::new(),
    }
}

/// Asks until there is an answer, or five seconds have passed.
pub(crate) async fn get(url: &str) -> String {
    let begun = Instant::now();
    loop {
        match reqwest::get(url).await {
            Ok(answer) => return answer.text().await.expect("a body"),
            Err(error) if begun.elapsed() > Duration::from_secs(5) => panic!("{url}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
