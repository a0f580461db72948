//! The server on a real engine, with nothing but an HTTP client: the walk of the README, and kills.
//!
//! Reads `HWM_TEST_DOCKER_HOST` and `HWM_TEST_REGISTRY_OPEN`; `scripts/lab up docker registry` makes both.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without ends it")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Client, Server, answer, data_dir, program, until};
use hwm_core::env::{Environment, SystemEnvironment};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `scripts/lab up docker registry --dir DIR` and read DIR/env")
    })
}

fn start(data: &Path, node: &str) -> Server {
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

/// The names of the containers that carry our label, whatever they do.
fn containers(node: &str) -> BTreeSet<String> {
    let label = format!("label=io.hwm.owner={node}");
    let output = Command::new("docker")
        .args([
            "-H",
            &variable("HWM_TEST_DOCKER_HOST"),
            "ps",
            "-a",
            "--format",
            "{{.Names}}",
        ])
        .args(["--filter", &label])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// A node id of this test run's own, and so an owner label.
fn new_node() -> String {
    format!("test-{:016x}", SystemEnvironment.random() as u64)
}

/// Removes what a test that failed left, and nothing else.
struct Leftovers(String);

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

fn web(name: &str, host_port: u16) -> Value {
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

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_server_lives_its_life_over_http() {
    let (_folder, data) = data_dir();
    let node = new_node();
    // Before the server, so that it ends after it.
    let _leftovers = Leftovers(node.clone());
    let server = start(&data, &node);
    let client = server.client(&data);
    let port = free_port();

    let (status, made) = client
        .act(Method::POST, "/resources", Some(&web("web", port)))
        .await;
    assert_eq!(
        (status, &made["status"]),
        (StatusCode::CREATED, &json!("running")),
        "{made}"
    );
    let id = made["_id"].as_str().unwrap();
    let path = format!("/resources/{id}");
    assert_eq!(made["runtime"]["endpoint"], format!("127.0.0.1:{port}"));
    assert_eq!(containers(&node).len(), 1);

    let mut log = client
        .request(Method::GET, &format!("{path}/logs?follow=true"))
        .send()
        .await
        .unwrap();
    let page = format!("http://127.0.0.1:{port}/");
    until("the page is served", Duration::from_secs(5), || async {
        let page = reqwest::get(&page).await.ok();
        match page {
            Some(page) => page.text().await.is_ok_and(|text| text.contains("hello from")),
            None => false,
        }
    })
    .await;
    let mut seen = String::new();
    while !seen.contains("response:200") {
        let chunk = tokio::time::timeout(Duration::from_secs(10), log.chunk()).await;
        seen.push_str(&String::from_utf8_lossy(
            &chunk.expect("the log is followed").unwrap().unwrap(),
        ));
    }
    drop(log);

    let command = json!({ "command": "echo out; echo err >&2; exit 3" });
    let (status, done) = client
        .act(Method::POST, &format!("{path}/exec"), Some(&command))
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&done["stdout"], &done["stderr"], &done["exitCode"]),
        (&json!("out\n"), &json!("err\n"), &json!(3))
    );

    let received =
        || async { client.get(&format!("{path}/metrics")).await["metrics"]["network"]["rxBytes"].as_u64() };
    let before = received().await.unwrap();
    assert!(reqwest::get(&page).await.unwrap().status().is_success());
    until("the metrics move", Duration::from_secs(10), || async {
        received().await.unwrap() > before
    })
    .await;

    let started = client.get(&path).await["runtime"]["startedAt"].clone();
    let (status, done) = client.act(Method::POST, &format!("{path}/restart"), None).await;
    assert_eq!((status, &done["success"]), (StatusCode::OK, &json!(true)));
    let again = client.get(&path).await;
    assert_ne!(again["runtime"]["startedAt"], started);
    assert_eq!(again["status"], "running");

    let (status, refused) = client
        .act(Method::POST, "/resources", Some(&web("other", port)))
        .await;
    assert_eq!(
        (status, &refused["code"]),
        (StatusCode::CONFLICT, &json!("PORT_CONFLICT"))
    );
    assert_eq!(refused["details"]["holders"][0]["name"], "web", "{refused}");
    assert_eq!(refused["details"]["holders"][0]["resourceId"], id);

    let more = json!({ "config": { "ramLimit": 0.25 } });
    let (status, changed) = client.act(Method::PATCH, &path, Some(&more)).await;
    assert_eq!(
        (status, &changed["restartRequired"]),
        (StatusCode::OK, &json!(false)),
        "{changed}"
    );
    let limit =
        json!({ "command": "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max" });
    let (_, inside) = client
        .act(Method::POST, &format!("{path}/exec"), Some(&limit))
        .await;
    assert!(
        inside["stdout"].as_str().unwrap().contains("268435456"),
        "{inside}"
    );
    assert_eq!(
        client.get(&path).await["runtime"]["startedAt"],
        again["runtime"]["startedAt"]
    );

    let (status, _) = client.act(Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = answer(client.request(Method::GET, &path)).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(containers(&node), BTreeSet::new());
}

/// Which server is up at present, for clients that outlive servers.
type Address = Arc<std::sync::Mutex<String>>;

/// What one client made that it did not delete.
#[derive(Default)]
struct Kept {
    acknowledged: BTreeSet<String>,
    deleted: BTreeSet<String>,
}

/// Sends until a server answers.
async fn persist(
    client: &Client,
    address: &Address,
    send: impl Fn(&Client) -> reqwest::RequestBuilder,
) -> (StatusCode, Value) {
    loop {
        let now = client.at(&address.lock().unwrap().clone());
        match answer(send(&now)).await {
            Ok((StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, _)) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(answered) => return answered,
        }
    }
}

async fn churn(
    number: usize,
    client: Client,
    address: Address,
    over: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> Kept {
    let mut kept = Kept::default();
    for round in 0.. {
        let body = json!({
            "name": format!("churn-{number}-{round}"),
            "resourceType": "application-container",
            "config": {
                "type": "application-container",
                "registry": "private",
                "imageName": format!("{}/hwm-test/busybox", variable("HWM_TEST_REGISTRY_OPEN")),
                "imageTag": "1",
                "command": ["sleep", "100000"],
                "networkMode": "none",
            },
        });
        let key = format!("churn-{number}-{round}");
        // Half of them wait, so that deletes meet what runs and what is being made.
        let wait = if (number + round).is_multiple_of(2) {
            "wait=1"
        } else {
            "respond-async"
        };
        let (status, made) = persist(&client, &address, |c| {
            c.request(Method::POST, "/resources")
                .header("idempotency-key", &key)
                .header("prefer", wait)
                .json(&body)
        })
        .await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let id = made["_id"].as_str().unwrap().to_owned();
        kept.acknowledged.insert(id.clone());
        if over.load(Ordering::SeqCst) {
            return kept;
        }
        let path = format!("/resources/{id}");
        let (status, gone) = persist(&client, &address, |c| {
            c.request(Method::DELETE, &path).header("prefer", wait)
        })
        .await;
        assert!(
            [StatusCode::OK, StatusCode::NOT_FOUND].contains(&status),
            "{gone}"
        );
        kept.deleted.insert(id);
        done.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_during_a_hundred_concurrent_creates_and_deletes_lose_and_leak_nothing() {
    const CLIENTS: usize = 100;
    const KILLS: usize = 20;
    let (_folder, data) = data_dir();
    let node = new_node();
    let _leftovers = Leftovers(node.clone());
    let mut server = start(&data, &node);
    let client = server.client(&data);
    let address: Address = Arc::new(std::sync::Mutex::new(server.url.clone()));
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            tokio::spawn(churn(
                n,
                client.clone(),
                address.clone(),
                over.clone(),
                done.clone(),
            ))
        })
        .collect();

    for _ in 0..KILLS {
        let pause = 300 + SystemEnvironment.random() as u64 % 2400;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        server.kill();
        server = start(&data, &node);
        address.lock().unwrap().clone_from(&server.url);
    }
    over.store(true, Ordering::SeqCst);
    let mut kept = BTreeSet::new();
    for client in clients {
        let of_client = client.await.unwrap();
        kept.extend(of_client.acknowledged.difference(&of_client.deleted).cloned());
    }

    let client = client.at(&server.url);
    until("every operation has ended", Duration::from_secs(240), || async {
        let operations = client.get("/operations?limit=200").await;
        let all = client.resources().await;
        let busy = ["queued", "deploying", "stopping"];
        operations["data"]
            .as_array()
            .unwrap()
            .iter()
            .all(|o| o["finishedAt"].is_string())
            && all.iter().all(|r| !busy.contains(&r["status"].as_str().unwrap()))
    })
    .await;
    let all = client.resources().await;
    let found: BTreeSet<String> = all
        .iter()
        .map(|r| r["_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(found, kept, "what was acknowledged is there, and nothing else");
    for resource in &all {
        assert_eq!(resource["status"], "running", "{resource}");
    }
    let names: BTreeSet<String> = found.iter().map(|id| format!("hwm-{id}")).collect();
    assert_eq!(
        containers(&node),
        names,
        "the engine has a container for each, and no other"
    );
    assert!(
        done.load(Ordering::SeqCst) > 0,
        "nothing was made and deleted between the kills"
    );

    for id in &found {
        let (status, _) = client
            .act(Method::DELETE, &format!("/resources/{id}"), None)
            .await;
        assert_eq!(status, StatusCode::OK);
    }
    until("nothing of ours is left", Duration::from_secs(60), || async {
        containers(&node).is_empty()
    })
    .await;
    let claimed = &client.get("/nodes").await["data"][0]["claimed"];
    assert_eq!(
        claimed["cpuCores"].as_f64().unwrap() + claimed["ramMB"].as_f64().unwrap(),
        0.0,
        "{claimed}"
    );
}
