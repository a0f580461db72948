//! A secret is nowhere but sealed in the store: one canary for each, looked for in everything that hwm writes or answers.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::daemons::{containers, docker, variable};
use crate::common::{Client, data_dir};
use crate::lab::{Leftovers, new_node, start};

const CANARIES: [&str; 3] = ["canary-password-4f1d", "canary-token-b2c7", "canary-late-90ae"];

fn with_password(name: &str, user: &str, password: &str) -> Value {
    json!({
        "name": name,
        "resourceType": "application-container",
        "config": {
            "type": "application-container", "registry": "private", "pullPolicy": "always",
            "imageName": format!("{}/hwm-test/busybox", variable("HWM_TEST_REGISTRY")), "imageTag": "1",
            "command": ["sleep", "100000"], "networkMode": "none",
            "registryAuth": { "username": user, "password": password },
        },
    })
}

fn look(place: &str, bytes: &[u8], secrets: &[String], found: &mut Vec<String>) {
    for secret in secrets {
        if bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes())
        {
            found.push(format!("{secret} in {place}"));
        }
    }
}

fn look_into(folder: &Path, secrets: &[String], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            look_into(&path, secrets, found);
        } else if let Ok(bytes) = std::fs::read(&path) {
            look(&path.display().to_string(), &bytes, secrets, found);
        }
    }
}

/// The events so far.
async fn events(client: &Client) -> String {
    let mut stream = client
        .request(Method::GET, "/events?lastEventId=0")
        .send()
        .await
        .unwrap();
    let mut text = String::new();
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(Duration::from_secs(1), stream.chunk()).await {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_nowhere_but_where_it_must_be() {
    let (_folder, data) = data_dir();
    let node = new_node();
    let _leftovers = Leftovers(node.clone());
    let server = start(&data, &node);
    let client = server.client(&data);
    let (user, password) = (
        variable("HWM_TEST_REGISTRY_USER"),
        variable("HWM_TEST_REGISTRY_PASSWORD"),
    );
    let mut secrets: Vec<String> = CANARIES.map(str::to_owned).to_vec();
    secrets.push(password.clone());
    let mut answers = Vec::new();

    // One that works, and one that the registry refuses.
    let (status, good) = client
        .act(
            Method::POST,
            "/resources",
            Some(&with_password("good", &user, &password)),
        )
        .await;
    assert_eq!(
        (status, &good["status"]),
        (StatusCode::CREATED, &json!("running")),
        "{good}"
    );
    assert_eq!(good["config"]["registryAuth"]["password"], "***");
    let (status, bad) = client
        .act(
            Method::POST,
            "/resources",
            Some(&with_password("bad", &user, CANARIES[0])),
        )
        .await;
    assert_eq!(
        (status, &bad["status"]),
        (StatusCode::CREATED, &json!("failed")),
        "{bad}"
    );
    let path = format!("/resources/{}", good["_id"].as_str().unwrap());
    let patch = json!({ "config": { "registryAuth": { "username": user, "password": CANARIES[2], "token": CANARIES[1] } } });
    let (_, patched) = client.act(Method::PATCH, &path, Some(&patch)).await;
    // Wrong in another place, so that the whole body is judged and told about.
    let mut wrong = with_password("wrong", &user, CANARIES[0]);
    wrong["config"]["nonsense"] = json!(CANARIES[0]);
    let (status, refused) = client.act(Method::POST, "/resources", Some(&wrong)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
    answers.extend([good, bad, patched, refused]);
    for path in [
        "/resources?includeDeleted=true",
        "/operations?limit=200",
        "/nodes",
        &path,
        &format!("{path}/logs"),
    ] {
        answers.push(client.get(path).await);
    }

    let mut found = Vec::new();
    for answer in &answers {
        look("an answer", answer.to_string().as_bytes(), &secrets, &mut found);
    }
    look(
        "the events",
        events(&client).await.as_bytes(),
        &secrets,
        &mut found,
    );
    look(
        "what it printed",
        (server.stdout() + &server.stderr()).as_bytes(),
        &secrets,
        &mut found,
    );
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{}/{file}", server.pid())).unwrap();
        look(file, &bytes, &secrets, &mut found);
    }
    for name in containers(&node) {
        look(
            "the engine",
            docker(&["inspect", &name]).as_bytes(),
            &secrets,
            &mut found,
        );
    }
    look_into(&data, &secrets, &mut found);
    assert_eq!(found, [""; 0]);
    assert!(data.join("hwm.db").exists(), "there was something to look into");

    for resource in client.resources().await {
        let path = format!("/resources/{}", resource["_id"].as_str().unwrap());
        client.act(Method::DELETE, &path, None).await;
    }
    look_into(&data, &secrets, &mut found);
    assert_eq!(found, [""; 0]);
}
