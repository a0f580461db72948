//! What somebody does to containers behind the server's back is seen, and repaired or told; what is not ours stays as it is.

use std::collections::BTreeSet;
use std::time::Duration;

use hwm_core::env::{Environment, SystemEnvironment};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::daemons::{containers, docker};
use crate::common::{Client, data_dir, until};
use crate::lab::{Leftovers, new_node, start};

const RESOURCES: usize = 4;
/// Lookalikes: the names and labels of hwm, and another owner or none.
const FOREIGN: usize = 50;
const PATIENCE: Duration = Duration::from_secs(30);

fn random(below: usize) -> usize {
    (SystemEnvironment.random() % below as u128) as usize
}

/// How often something is done.
fn scripts() -> usize {
    if std::env::var_os("HWM_TEST_FULL").is_some() {
        200
    } else {
        20
    }
}

fn sleeper(name: &str) -> Value {
    json!({
        "name": name,
        "resourceType": "application-container",
        "config": {
            "type": "application-container", "registry": "docker-hub", "pullPolicy": "never",
            "imageName": "hwm-test/busybox", "imageTag": "1", "command": ["sleep", "100000"], "networkMode": "none",
        },
    })
}

/// Somebody else's containers, removed when dropped.
struct Foreign(Vec<String>);

impl Foreign {
    fn plant(ours: &str) -> Self {
        let names = (0..FOREIGN).map(|n| {
            let id = uuid(n);
            let name = format!("hwm-{id}");
            let labels = match n % 3 {
                0 => vec![],
                1 => vec![format!("io.hwm.owner={ours}-2"), format!("io.hwm.resource={id}")],
                _ => vec![format!("io.hwm.resource={id}"), format!("io.hwm.name={ours}")],
            };
            let mut words = vec!["create".to_owned(), "--name".to_owned(), name.clone()];
            for label in labels {
                words.extend(["--label".to_owned(), label]);
            }
            words.extend(["--network", "none", "hwm-test/busybox:1", "sleep", "1000"].map(str::to_owned));
            docker(&words.iter().map(String::as_str).collect::<Vec<_>>());
            if n % 2 == 0 {
                docker(&["start", &name]);
            }
            name
        });
        Self(names.collect())
    }

    /// All that the engine knows of them.
    fn seen(&self) -> Value {
        let mut words = vec!["inspect"];
        words.extend(self.0.iter().map(String::as_str));
        serde_json::from_str(&docker(&words)).unwrap()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let mut words = vec!["rm", "-f"];
        words.extend(self.0.iter().map(String::as_str));
        docker(&words);
    }
}

/// An id like those of resources.
fn uuid(n: usize) -> String {
    let random = format!("{:032x}", SystemEnvironment.random());
    format!(
        "0190{:04x}-{}-7{}-8{}-{}",
        n,
        &random[..4],
        &random[4..7],
        &random[7..10],
        &random[10..22]
    )
}

/// Does something to a container, and says what.
fn meddle(name: &str) -> &'static str {
    match random(5) {
        0 => {
            docker(&["rm", "-f", name]);
            "removed"
        }
        1 => {
            docker(&["kill", name]);
            "killed"
        }
        2 => {
            docker(&["stop", "-t", "0", name]);
            "stopped"
        }
        3 => {
            docker(&["restart", "-t", "0", name]);
            "restarted"
        }
        _ => {
            docker(&["pause", name]);
            docker(&["unpause", name]);
            "paused"
        }
    }
}

/// The ids of what is ours on the engine, and runs.
fn running(node: &str) -> BTreeSet<String> {
    let runs = |name: &String| docker(&["inspect", "-f", "{{.State.Running}}", name]).trim() == "true";
    let running = containers(node).into_iter().filter(runs);
    running
        .map(|name| name.trim_start_matches("hwm-").to_owned())
        .collect()
}

/// Waits until what the server says is what the engine has.
async fn agree(client: &Client, node: &str, after: &str) {
    until(&format!("agreement after {after}"), PATIENCE, || async {
        let said = client.resources().await;
        let of = |statuses: &[&str]| -> BTreeSet<String> {
            let those = said
                .iter()
                .filter(|r| statuses.contains(&r["status"].as_str().unwrap()));
            those.map(|r| r["_id"].as_str().unwrap().to_owned()).collect()
        };
        let settled = of(&["running", "stopped", "error"]).len() == said.len();
        settled && tokio::task::block_in_place(|| running(node)) == of(&["running"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_behind_our_back_is_repaired_or_told_and_nothing_foreign_is_touched() {
    let (_folder, data) = data_dir();
    let node = new_node();
    let _leftovers = Leftovers(node.clone());
    let foreign = Foreign::plant(&node);
    let before = foreign.seen();
    let server = start(&data, &node);
    let client = server.client(&data);
    let mut ids = Vec::new();
    for n in 0..RESOURCES {
        let (status, made) = client
            .act(Method::POST, "/resources", Some(&sleeper(&format!("drift-{n}"))))
            .await;
        assert_eq!(
            (status, &made["status"]),
            (StatusCode::CREATED, &json!("running")),
            "{made}"
        );
        ids.push(made["_id"].as_str().unwrap().to_owned());
    }

    for _ in 0..scripts() {
        let id = &ids[random(RESOURCES)];
        let path = format!("/resources/{id}");
        let done = tokio::task::block_in_place(|| meddle(&format!("hwm-{id}")));
        agree(&client, &node, done).await;
        let now = client.get(&path).await;
        match done {
            // What ended with another code than zero is told as that; nobody starts it unasked.
            "killed" | "stopped" => {
                until("the error", PATIENCE, || async {
                    client.get(&path).await["status"] == "error"
                })
                .await;
                let told = client.get(&path).await["errorMessage"].to_string();
                // By SIGTERM, or by SIGKILL.
                assert!(told.contains("143") || told.contains("137"), "{done}: {told}");
            }
            "paused" => assert_eq!(now["status"], "running", "{now}"),
            // It is made again, unless its death was seen before its removal.
            "removed" => assert!(
                ["running", "error"].contains(&now["status"].as_str().unwrap()),
                "{now}"
            ),
            _ => {}
        }
        let (status, started) = client.act(Method::POST, &format!("{path}/start"), None).await;
        assert_eq!(status, StatusCode::OK, "{started}");
        until("it runs again", PATIENCE, || async {
            client.get(&path).await["status"] == "running"
        })
        .await;
    }

    // What is to be down is put down again.
    let id = &ids[0];
    let path = format!("/resources/{id}");
    let force = json!({ "force": true });
    client
        .act(Method::POST, &format!("{path}/stop"), Some(&force))
        .await;
    docker(&["start", &format!("hwm-{id}")]);
    until("it is stopped again", PATIENCE, || async {
        !tokio::task::block_in_place(|| running(&node)).contains(id)
            && client.get(&path).await["status"] == "stopped"
    })
    .await;

    for id in &ids {
        let (status, _) = client
            .act(Method::DELETE, &format!("/resources/{id}"), None)
            .await;
        assert_eq!(status, StatusCode::OK);
    }
    assert!(containers(&node).is_empty());
    assert_eq!(
        foreign.seen(),
        before,
        "{FOREIGN} containers that are not ours are as they were"
    );
}
