//! The private engine, the server on it, and what looks at the engine past it.

use std::path::Path;
use std::process::Command;

use hwm_core::env::{Environment, SystemEnvironment};
use serde_json::{Value, json};

use crate::common::daemons::{containers, variable};
use crate::common::{Server, program};

pub(crate) fn start(data: &Path, node: &str) -> Server {
    let mut command = program();
    command.args(["--node-id", node]);
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--containers",
        "docker",
        "--caller-rate",
        "0",
    ]);
    command.arg("--docker-host").arg(variable("HWM_TEST_DOCKER_HOST"));
    command.arg("--data-dir").arg(data);
    Server::spawn(&mut command)
}

/// A node id of this test run's own, and so an owner label.
pub(crate) fn new_node() -> String {
    format!("test-{:016x}", SystemEnvironment.random() as u64)
}

/// Removes what a test that failed left, and nothing else.
pub(crate) struct Leftovers(pub(crate) String);

impl Drop for Leftovers {
    fn drop(&mut self) {
        let host = variable("HWM_TEST_DOCKER_HOST");
        for name in containers(&self.0) {
            // What is still there then, `scripts/lab leaks` reports.
            let _ = Command::new("docker")
                .args(["-H", &host, "rm", "-f", &name])
                .output();
        }
    }
}

pub(crate) fn web(name: &str, host_port: u16) -> Value {
    json!({
        "name": name,
        "resourceType": "application-container",
        "config": {
            "type": "application-container",
            "registry": "private",
            "imageName": format!("{}/hwm-test/httpd", variable("HWM_TEST_REGISTRY_OPEN")),
            "imageTag": "1",
            "containerPorts": [{ "containerPort": 8080, "hostPort": host_port }],
            "cpuCores": 0.5,
            "ramLimit": 0.125,
        },
    })
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
