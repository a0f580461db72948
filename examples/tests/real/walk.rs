//! The walk of the README, and kills.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::churn::{self, Storm};
use crate::common::daemons::{containers, variable};
use crate::common::{answer, data_dir, until};
use crate::lab::{Leftovers, free_port, new_node, start, web};

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

fn sleeper(number: usize, round: usize) -> Value {
    json!({
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
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_during_a_hundred_concurrent_creates_and_deletes_lose_and_leak_nothing() {
    let (_folder, data) = data_dir();
    let node = new_node();
    let _leftovers = Leftovers(node.clone());
    let storm = Storm {
        clients: 100,
        kills: 20,
        patience: Duration::from_secs(240),
    };
    let (_server, client, found) = storm.rage(&data, || start(&data, &node), sleeper).await;
    let names: BTreeSet<String> = found.iter().map(|id| format!("hwm-{id}")).collect();
    assert_eq!(
        containers(&node),
        names,
        "the engine has a container for each, and no other"
    );
    churn::delete_all(&client, &found).await;
    until("nothing of ours is left", Duration::from_secs(60), || async {
        containers(&node).is_empty()
    })
    .await;
}
