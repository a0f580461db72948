//! GPUs through the API, on simulated boards that are planned for as real ones are.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without ends it")]

mod common;

use std::time::Duration;

use common::{Client, Server, data_dir, token, until};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Two A100s in MIG mode (0 and 1), an A30 (2) and an H100 (3) that are not.
const NODE: [&str; 6] = [
    "--containers",
    "sim",
    "--machines",
    "sim",
    "--gpus",
    "sim:a100-40gb+mig*2,a30,h100-80gb",
];

fn container(name: &str, gpus: Value) -> Value {
    let mut config =
        json!({ "type": "application-container", "registry": "docker-hub", "imageName": "nginx" });
    config
        .as_object_mut()
        .unwrap()
        .extend(gpus.as_object().unwrap().clone());
    json!({ "name": name, "resourceType": "application-container", "config": config })
}

fn whole(name: &str, card: &str) -> Value {
    container(name, json!({ "gpuDeviceIds": [card] }))
}

fn slice(name: &str, profile: &str) -> Value {
    let wanted = json!({ "enabled": true, "mode": "mig", "migProfile": profile });
    container(name, json!({ "gpuConfig": wanted }))
}

fn machine(name: &str, card: &str) -> Value {
    json!({
        "name": name,
        "resourceType": "virtual-machine",
        "config": {
            "type": "virtual-machine", "osImage": "debian-12", "vcpus": 2, "ramMB": 2048, "diskGB": 20,
            "gpuConfig": { "enabled": true, "mode": "passthrough", "deviceIds": [card] },
            "networkConfig": { "mode": "bridge-vlan", "ipMode": "dhcp" },
        },
    })
}

/// Makes a resource, waits until it runs, and answers its id.
async fn run(client: &Client, body: &Value) -> String {
    let (status, made) = client.act(Method::POST, "/resources", Some(body)).await;
    assert_eq!(
        (status, &made["status"]),
        (StatusCode::CREATED, &json!("running")),
        "{made}"
    );
    made["_id"].as_str().unwrap().to_owned()
}

async fn refused(client: &Client, body: &Value) -> (StatusCode, Value) {
    let (status, answer) = client.act(Method::POST, "/resources", Some(body)).await;
    assert!(status.is_client_error(), "{status} {answer}");
    (status, answer)
}

async fn end(client: &Client, id: &str) {
    let path = format!("/resources/{id}");
    let (status, answer) = client.act(Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    until("it is gone", Duration::from_secs(20), || async {
        client.act(Method::GET, &path, None).await.0 == StatusCode::NOT_FOUND
    })
    .await;
}

async fn gpus(client: &Client) -> Vec<Value> {
    client.get("/nodes").await["data"][0]["gpus"]
        .as_array()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn whole_cards_and_slices_share_a_node_and_the_layout_is_shown() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &NODE);
    let client = server.client(&data);
    let card = run(&client, &whole("card", "2")).await;
    let vm = run(&client, &machine("vm", "GPU-3")).await;
    let small = run(&client, &slice("small", "1g.5gb")).await;
    let half = run(&client, &slice("half", "3g.20gb")).await;

    let seen = gpus(&client).await;
    let models: Vec<&str> = seen.iter().map(|g| g["model"].as_str().unwrap()).collect();
    assert_eq!(
        models,
        [
            "NVIDIA A100-SXM4-40GB",
            "NVIDIA A100-SXM4-40GB",
            "NVIDIA A30",
            "NVIDIA H100 80GB HBM3"
        ]
    );
    assert_eq!(
        (&seen[2]["resourceId"], &seen[3]["resourceId"]),
        (&json!(card), &json!(vm))
    );
    assert_eq!(seen[0]["migEnabled"], true);
    // A small slice goes where no larger one could be, and a half beside it.
    let layout: Vec<Value> = seen[0]["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| json!([i["profile"], i["start"], i["size"], i["resourceId"]]))
        .collect();
    assert_eq!(
        layout,
        [json!(["3g.20gb", 0, 4, half]), json!(["1g.5gb", 6, 1, small])]
    );
    for instance in seen[0]["instances"].as_array().unwrap() {
        assert!(
            instance["uuid"].as_str().unwrap().starts_with("MIG-"),
            "{instance}"
        );
        assert!(
            instance["metrics"]["memoryTotalMB"].as_u64().unwrap() > 0,
            "{instance}"
        );
    }
    assert_eq!(seen[1]["instances"], json!([]));
    assert!(seen[2]["metrics"]["temperatureC"].is_number(), "{}", seen[2]);
    assert_eq!(
        seen[0]["metrics"]["usagePercent"],
        Value::Null,
        "a card in MIG mode has no such figure"
    );
    assert_eq!(seen[0]["place"]["numaNode"], 0);

    let figures = client
        .request(Method::GET, "/metrics")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for line in [
        r#"hwm_gpu_temperature_celsius{gpu="2","#,
        r#"profile="3g.20gb"} "#,
        r#"hwm_gpu_usable{gpu="3","#,
    ] {
        assert!(figures.contains(line), "{line} is not in {figures}");
    }

    for id in [card, vm, small, half] {
        end(&client, &id).await;
    }
    let seen = gpus(&client).await;
    assert!(
        seen.iter()
            .all(|g| g["instances"] == json!([]) && g["resourceId"].is_null()),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_conflict_names_the_holder_and_the_way_out() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &NODE);
    let client = server.client(&data);
    let holder = run(&client, &whole("the-holder", "2")).await;
    for body in [whole("second", "GPU-2"), machine("vm", "2")] {
        let (status, answer) = refused(&client, &body).await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::CONFLICT, &json!("GPU_CONFLICT"))
        );
        assert!(
            answer["message"].as_str().unwrap().contains("\"the-holder\""),
            "{answer}"
        );
        assert_eq!(answer["details"]["holders"][0]["resourceId"], json!(holder));
        assert!(
            answer["details"]["remedy"]
                .as_str()
                .unwrap()
                .contains("delete the holder"),
            "{answer}"
        );
    }

    // The least that would have to end for a slice, and what would fit instead.
    let seven = run(&client, &slice("seven", "7g.40gb")).await;
    let half = run(&client, &slice("half", "4g.20gb")).await;
    let quarter = run(&client, &slice("quarter", "2g.10gb")).await;
    let (_, answer) = refused(&client, &slice("late", "4g.20gb")).await;
    assert_eq!(answer["code"], "GPU_CONFLICT");
    let holders = answer["details"]["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 1, "{answer}");
    assert_eq!(
        holders[0]["resourceId"],
        json!(half),
        "a half gives up less than all seven: {answer}"
    );
    let remedy = answer["details"]["remedy"].as_str().unwrap();
    assert!(
        remedy.contains("makes room at slot 0 of GPU-") && remedy.contains("fits now"),
        "{remedy}"
    );

    // Who may not see the holder is not told who it is, and is told that there is one.
    let other = token(
        &data,
        &["--role", "organization.owner", "--org", "other", "--user", "eve"],
    );
    let (_, answer) = refused(&Client::new(&server.url, &other), &whole("second", "2")).await;
    assert_eq!(
        (&answer["code"], &answer["details"]["holders"]),
        (&json!("GPU_CONFLICT"), &json!([]))
    );
    assert!(!answer.to_string().contains("the-holder"), "{answer}");

    end(&client, &half).await;
    run(&client, &slice("late", "4g.20gb")).await;
    for id in [holder, seven, quarter] {
        end(&client, &id).await;
    }
}

#[tokio::test]
async fn what_a_card_cannot_do_is_refused_with_what_the_operator_must_do() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &NODE);
    let client = server.client(&data);
    for (body, code, parts) in [
        (
            slice("huge", "4g.24gb"),
            "UNSUPPORTED",
            &[
                "needs a reset of the card",
                "lets hwm do it",
                "nvidia-smi -i 2 -mig 1",
            ][..],
        ),
        (
            slice("odd", "5g.1gb"),
            "VALIDATION_FAILED",
            &["NVIDIA A30 has 1g.6gb"],
        ),
        (
            whole("mig", "0"),
            "UNSUPPORTED",
            &["in MIG mode, so it is handed out in slices"],
        ),
        (
            whole("none", "9"),
            "VALIDATION_FAILED",
            &["config.gpuDeviceIds[0]: this node has no GPU 9"],
        ),
    ] {
        let (_, answer) = refused(&client, &body).await;
        assert_eq!(answer["code"], code, "{answer}");
        for part in parts {
            assert!(answer.to_string().contains(part), "{part} is not in {answer}");
        }
    }
}

#[tokio::test]
async fn a_dry_run_shows_the_plan_and_explains_what_was_chosen() {
    let (_folder, data) = data_dir();
    let server = Server::start(&data, &NODE);
    let client = server.client(&data);
    let plan = async |body: &Value| {
        let (status, plan) = client
            .act(Method::POST, "/resources?dryRun=true", Some(body))
            .await;
        assert_eq!(status, StatusCode::OK, "{plan}");
        plan["gpus"][0].as_str().unwrap().to_owned()
    };
    let uuid = gpus(&client).await[0]["uuid"].as_str().unwrap().to_owned();
    for (asked, told) in [
        ("1g.5gb", "1g.5gb at slot 6".to_owned()),
        ("1g", "1g.5gb at slot 6 (1g is 1g.5gb on this card: as many slices, and the least memory that is no less)".to_owned()),
        ("1g.6gb", "1g.10gb at slot 6 (1g.6gb is 1g.10gb on this card: as many slices, and the least memory that is no less)".to_owned()),
    ] {
        assert_eq!(plan(&slice("dry", asked)).await, format!("{uuid}: {told}"));
    }
    assert!(plan(&whole("dry", "2")).await.ends_with(": the whole card"));
    let (_, all) = client
        .act(Method::POST, "/resources?dryRun=true", Some(&slice("dry", "1g")))
        .await;
    assert!(all["claims"].to_string().contains("slot-6"), "{all}");
    assert_eq!(all["steps"][0], "prepare-devices", "{all}");
    assert!(client.resources().await.is_empty());
    assert!(gpus(&client).await.iter().all(|g| g["instances"] == json!([])));
}

#[tokio::test]
async fn what_a_stopped_resource_keeps_is_the_operators_choice() {
    for (hold, kept) in [("keep", true), ("release", false), ("1", false)] {
        let (_folder, data) = data_dir();
        let server = Server::start(&data, &[&NODE[..], &["--gpu-hold", hold]].concat());
        let client = server.client(&data);
        let first = run(&client, &whole("first", "2")).await;
        let act = async |id: &str, action: &str| {
            let path = format!("/resources/{id}/{action}");
            client.act(Method::POST, &path, Some(&json!({}))).await
        };
        assert_eq!(act(&first, "stop").await.0, StatusCode::OK);
        let holder = async || gpus(&client).await[2]["resourceId"].clone();
        if kept {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(holder().await, json!(first));
            let (_, answer) = refused(&client, &whole("second", "2")).await;
            assert_eq!(answer["code"], "GPU_CONFLICT");
            continue;
        }
        until("it gave its card back", Duration::from_secs(20), || async {
            holder().await.is_null()
        })
        .await;
        let stopped = client.get(&format!("/resources/{first}")).await;
        assert_eq!(
            (&stopped["status"], &stopped["runtime"]["allocatedGPU"]),
            (&json!("stopped"), &json!([]))
        );
        let second = run(&client, &whole("second", "2")).await;
        let (status, answer) = act(&first, "start").await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::CONFLICT, &json!("GPU_CONFLICT"))
        );
        assert!(
            answer["message"].as_str().unwrap().contains("\"second\""),
            "{answer}"
        );
        end(&client, &second).await;
        assert_eq!(act(&first, "start").await.0, StatusCode::OK);
        assert_eq!(holder().await, json!(first));
        assert_eq!(
            client.get(&format!("/resources/{first}")).await["status"],
            "running"
        );
    }
}
