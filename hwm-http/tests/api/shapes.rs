//! Every endpoint answers what the contract says. Shapes are checked against the document by every `send`.

use serde_json::{Value, json};

use crate::house::{ADMIN, House, Who, container, house, id, machine};

#[tokio::test]
async fn a_create_answers_the_resource_where_it_is_and_what_deploys_it() {
    let house = house().await;
    let answer = house.post("/resources", &container()).await.expect(201);
    let resource = answer.json();
    assert_eq!(
        answer.header("location"),
        Some(&*format!("/resources/{}", id(&resource)))
    );
    assert_eq!(resource["status"], "queued");
    assert_eq!(resource["runtime"], Value::Null);
    assert_eq!(resource["owner"]["orgId"], "acme");
    assert_eq!(resource["createdBy"], "ann");
    assert_eq!(resource["config"]["imageTag"], "latest");
    let etag = answer.header("etag").unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    let operation = answer.header("operation-id").unwrap();
    let operation = house
        .get(&format!("/operations/{operation}"))
        .await
        .expect(200)
        .json();
    assert_eq!(operation["action"], "create");
    assert_eq!(operation["resourceId"], resource["_id"]);
}

#[tokio::test]
async fn a_create_that_is_not_to_start_stays_queued_without_an_operation() {
    let house = house().await;
    let mut body = container();
    body["autoStart"] = json!(false);
    let answer = house.post("/resources", &body).await.expect(201);
    assert_eq!(answer.json()["status"], "queued");
    assert_eq!(answer.header("operation-id"), None);
}

#[tokio::test]
async fn a_dry_run_answers_the_plan_and_makes_nothing() {
    let house = house().await;
    let plan = house
        .post("/resources?dryRun=true", &container())
        .await
        .expect(200)
        .json();
    assert_eq!(plan["nodeId"], "node-1");
    assert!(plan["claims"].as_array().is_some_and(|c| !c.is_empty()), "{plan}");
    assert_eq!(house.get("/resources").await.json()["pagination"]["total"], 0);
}

#[tokio::test]
async fn a_list_pages_and_counts_all_that_the_filter_selects() {
    let house = house().await;
    for n in 0..5 {
        let mut body = container();
        body["name"] = json!(format!("c{n}"));
        body["autoStart"] = json!(false);
        house.post("/resources", &body).await.expect(201);
    }
    let mut body = machine();
    body["autoStart"] = json!(false);
    house.post("/resources", &body).await.expect(201);

    let list = house
        .get("/resources?resourceType=container&limit=2&sortBy=name&sortOrder=asc")
        .await
        .expect(200)
        .json();
    let names = |list: &Value| -> Vec<String> {
        list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&list), ["c0", "c1"]);
    let pagination = &list["pagination"];
    assert_eq!(pagination["page"], 1);
    assert_eq!(pagination["limit"], 2);
    assert_eq!(pagination["total"], 5);
    assert_eq!(pagination["totalPages"], 3);
    let cursor = pagination["nextCursor"].as_str().unwrap();
    let next = house
        .get(&format!(
            "/resources?resourceType=container&limit=2&sortBy=name&sortOrder=asc&cursor={cursor}"
        ))
        .await
        .expect(200)
        .json();
    assert_eq!(names(&next), ["c2", "c3"]);
    let statistics = &list["statistics"];
    assert_eq!(statistics["total"], 5);
    assert_eq!(
        statistics["byStatus"],
        json!({ "queued": 5, "deploying": 0, "running": 0, "stopping": 0, "stopped": 0, "failed": 0, "error": 0 })
    );
    assert_eq!(
        statistics["byType"],
        json!({ "virtual-machine": 0, "application-container": 5, "inference-container": 0 })
    );
    let found = house.get("/resources?search=C3").await.expect(200).json();
    assert_eq!(names(&found), ["c3"]);
    let page = house.get("/resources?page=2&limit=4").await.expect(200).json();
    assert_eq!(page["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_list_refuses_what_it_does_not_know_all_at_once() {
    let house = house().await;
    let answer = house
        .get("/resources?page=0&limit=500&sortBy=age&status=up&resourceType=vm&colour=red&search=a&search=b")
        .await
        .expect(400);
    let body = answer.json();
    assert_eq!(body["code"], "VALIDATION_FAILED");
    let errors = body["errors"].as_array().unwrap();
    for name in [
        "page",
        "limit",
        "sortBy",
        "status",
        "resourceType",
        "colour",
        "search",
    ] {
        assert!(
            errors
                .iter()
                .any(|e| e.as_str().unwrap().starts_with(&format!("{name}: "))),
            "{name}: {errors:?}"
        );
    }
    assert_eq!(errors.len(), 7);
}

#[tokio::test]
async fn a_change_answers_the_resource_and_moves_its_revision() {
    let house = house().await;
    let id = house.container().await;
    let path = format!("/resources/{id}");
    let before = house.get(&path).await.expect(200);
    let after = house
        .ask("PATCH", &path)
        .by(ADMIN)
        .header("content-type", "application/merge-patch+json")
        .body(json!({ "description": "shop", "metadata": { "a": "b" } }).to_string())
        .send()
        .await
        .expect(200);
    assert_eq!(after.json()["description"], "shop");
    assert_ne!(after.header("etag"), before.header("etag"));
    let refused = house
        .ask("PATCH", &path)
        .by(ADMIN)
        .json(&json!({ "owner": { "orgId": "evil" }, "nodeId": "elsewhere", "status": "failed" }))
        .send()
        .await
        .expect(400);
    assert_eq!(
        refused.json()["errors"].as_array().unwrap().len(),
        3,
        "{}",
        refused.text()
    );
    let stopped = house
        .ask("PATCH", &path)
        .by(ADMIN)
        .header("prefer", "wait=10")
        .json(&json!({ "status": "stopped" }))
        .send()
        .await
        .expect(200);
    assert_eq!(stopped.json()["status"], "stopped");
    assert_eq!(stopped.header("preference-applied"), Some("wait=10"));
    assert!(stopped.header("operation-id").is_some());
}

#[tokio::test]
async fn actions_answer_what_was_asked_for_and_by_which_operation() {
    let house = house().await;
    let id = house.container().await;
    for (action, message, status) in [
        ("stop", "Stop requested", "stopped"),
        ("start", "Start requested", "running"),
        ("restart", "Restart requested", "running"),
    ] {
        let answer = house
            .ask("POST", &format!("/resources/{id}/{action}"))
            .by(ADMIN)
            .header("prefer", "wait=10")
            .send()
            .await
            .expect(200);
        let body = answer.json();
        assert_eq!(body["success"], true);
        assert_eq!(body["message"], message);
        assert_eq!(body["action"], action);
        assert_eq!(body["resourceId"], id.as_str());
        assert_eq!(body["operationId"].as_str(), answer.header("operation-id"));
        let status_now = house
            .get(&format!("/resources/{id}/status"))
            .await
            .expect(200)
            .json();
        assert_eq!(status_now["status"], status);
    }
    let again = house
        .post(&format!("/resources/{id}/start"), &json!({}))
        .await
        .expect(200);
    assert_eq!(again.json()["success"], true);
    let refused = house
        .post(&format!("/resources/{id}/start"), &json!({ "force": true }))
        .await
        .expect(400);
    assert_eq!(refused.json()["errors"], json!(["force: is not a known field"]));
    let forced = house
        .post(
            &format!("/resources/{id}/stop"),
            &json!({ "force": true, "timeoutSeconds": 1 }),
        )
        .await;
    forced.expect(200);
}

#[tokio::test]
async fn a_deleted_resource_is_gone_but_for_an_owner_who_asks() {
    let house = house().await;
    let id = house.container().await;
    let path = format!("/resources/{id}");
    let answer = house
        .ask("DELETE", &path)
        .by(ADMIN)
        .header("prefer", "wait=10")
        .send()
        .await
        .expect(200);
    let body = answer.json();
    assert_eq!(body["_id"], id.as_str());
    assert_eq!(body["operationId"].as_str(), answer.header("operation-id"));
    assert!(body["deletedAt"].as_str().unwrap().ends_with('Z'));
    house.get(&path).await.expect(404);
    assert_eq!(house.get("/resources").await.json()["pagination"]["total"], 0);
    let deleted = house
        .get(&format!("{path}?includeDeleted=true"))
        .await
        .expect(200)
        .json();
    assert_eq!(deleted["deletedAt"], body["deletedAt"]);
    let list = house
        .get("/resources?includeDeleted=true")
        .await
        .expect(200)
        .json();
    assert_eq!(list["pagination"]["total"], 1);
    let editor = Who::ann("organization.editor");
    let refused = house
        .ask("GET", "/resources?includeDeleted=true")
        .by(editor)
        .send()
        .await;
    refused.expect(403);
    let refused = house
        .ask("GET", &format!("{path}?includeDeleted=true"))
        .by(editor)
        .send()
        .await;
    refused.expect(403);
}

#[tokio::test]
async fn what_runs_has_a_status_metrics_and_a_log() {
    let house = house().await;
    let id = house.container().await;
    let status = house
        .get(&format!("/resources/{id}/status"))
        .await
        .expect(200)
        .json();
    assert_eq!(status["status"], "running");
    assert!(status["runtime"]["id"].is_string());
    assert!(status["uptimeSeconds"].is_u64());
    let metrics = house
        .get(&format!("/resources/{id}/metrics"))
        .await
        .expect(200)
        .json();
    for part in ["cpu", "memory", "disk", "network"] {
        assert!(metrics["metrics"][part].is_object(), "{metrics}");
    }
    house.sim.write_log(
        id.parse().unwrap(),
        hwm_core::backend::LogStream::Stdout,
        "hello\nworld\n",
    );
    let logs = house
        .get(&format!("/resources/{id}/logs?tail=1"))
        .await
        .expect(200)
        .json();
    assert_eq!(logs["resourceId"], id.as_str());
    assert_eq!(logs["logs"].as_array().unwrap().len(), 1);
    assert_eq!(logs["logs"][0]["message"], "world");
    assert_eq!(logs["logs"][0]["stream"], "stdout");
    let text = house
        .ask("GET", &format!("/resources/{id}/logs"))
        .by(ADMIN)
        .header("accept", "text/plain")
        .send()
        .await
        .expect(200);
    assert!(text.text().contains(" hello\n"), "{}", text.text());
    assert_eq!(
        text.header("content-disposition"),
        Some(&*format!("attachment; filename=\"{id}.log\""))
    );
}

#[tokio::test]
async fn a_command_runs_and_its_exit_code_is_no_error() {
    let house = house().await;
    let id = house.container().await;
    let path = format!("/resources/{id}/exec");
    let answer = house
        .post(
            &path,
            &json!({ "command": "echo out; echo err >&2; exit 3", "workingDir": "/tmp" }),
        )
        .await
        .expect(200)
        .json();
    assert_eq!(answer["stdout"], "out\n");
    assert_eq!(answer["stderr"], "err\n");
    assert_eq!(answer["exitCode"], 3);
    assert_eq!(answer["workingDir"], "/tmp");
    let refused = house.post(&path, &json!({ "comand": "id" })).await.expect(400);
    assert_eq!(refused.json()["errors"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_machine_has_snapshots_and_a_console() {
    let house = house().await;
    let id = house.machine().await;
    let path = format!("/resources/{id}/snapshots");
    let made = house
        .ask("POST", &path)
        .by(ADMIN)
        .header("prefer", "wait=10")
        .json(&json!({ "name": "one", "description": "first" }))
        .send()
        .await
        .expect(201)
        .json();
    assert_eq!(made["success"], true);
    assert_eq!(made["snapshot"]["state"], "ready");
    let snapshot = made["snapshot"]["id"].as_str().unwrap();
    let list = house.get(&path).await.expect(200).json();
    assert_eq!(list["snapshots"][0]["name"], "one");
    let restored = house
        .ask("POST", &format!("{path}/{snapshot}/restore"))
        .by(ADMIN)
        .header("prefer", "wait=10")
        .send()
        .await
        .expect(200)
        .json();
    assert_eq!(restored["snapshotId"], snapshot);
    house
        .ask("DELETE", &format!("{path}/{snapshot}"))
        .by(ADMIN)
        .header("prefer", "wait=10")
        .send()
        .await
        .expect(200);
    let list = house.get(&path).await.expect(200).json();
    assert_eq!(list["snapshots"], json!([]));

    let console = house
        .ask("GET", &format!("/resources/{id}/console"))
        .by(ADMIN)
        .header("host", "hwm.example:3003")
        .send()
        .await
        .expect(200);
    assert_eq!(console.header("cache-control"), Some("no-store"));
    let body = console.json();
    let url = body["url"].as_str().unwrap();
    assert!(
        url.starts_with(&format!(
            "ws://hwm.example:3003/resources/{id}/console?type=vnc&token="
        )),
        "{url}"
    );
    let password = body["password"].as_str().unwrap();
    assert!((1..=8).contains(&password.len()));
    let serial = house
        .get(&format!("/resources/{id}/console?type=serial"))
        .await
        .expect(200)
        .json();
    assert_eq!(serial["type"], "serial");
    assert_eq!(serial["password"], Value::Null);
}

#[tokio::test]
async fn what_a_kind_of_resource_does_not_have_is_unsupported() {
    let house = house().await;
    let container = house.container().await;
    let machine = house.machine().await;
    for (method, path, body) in [
        ("GET", format!("/resources/{container}/console"), None),
        (
            "POST",
            format!("/resources/{container}/snapshots"),
            Some(json!({ "name": "x" })),
        ),
        (
            "POST",
            format!("/resources/{machine}/exec"),
            Some(json!({ "command": "id" })),
        ),
    ] {
        let ask = house.ask(method, &path).by(ADMIN);
        let ask = match &body {
            Some(body) => ask.json(body),
            None => ask,
        };
        let answer = ask.send().await.expect(422);
        assert_eq!(answer.code(), "UNSUPPORTED", "{path}");
    }
}

#[tokio::test]
async fn operations_are_listed_and_cancelled() {
    let house = house().await;
    let id = house.container().await;
    let list = house
        .get(&format!("/operations?resourceId={id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(list["pagination"]["total"], 1);
    let operation = list["data"][0]["id"].as_str().unwrap();
    let done = house
        .get(&format!("/operations/{operation}"))
        .await
        .expect(200)
        .json();
    assert_eq!(done["status"], "succeeded");
    assert_eq!(done["progress"]["step"], "done");
    house
        .ask("DELETE", &format!("/operations/{operation}"))
        .by(ADMIN)
        .send()
        .await
        .expect(200);
}

#[tokio::test]
async fn nodes_show_what_they_have_and_who_has_it() {
    let house = house().await;
    let mut body = container();
    body["config"]["gpuDeviceIds"] = json!(["0"]);
    let id = id(&house.make(&body).await);
    let nodes = house.get("/nodes").await.expect(200).json();
    let node = &nodes["data"][0];
    assert_eq!(node["id"], "node-1");
    assert_eq!(node["capacity"]["cpuCores"], 256);
    assert_eq!(node["claimed"]["cpuCores"], 0.5);
    assert_eq!(node["gpus"][0]["resourceId"], id.as_str());
    let same = house.get("/nodes/node-1").await.expect(200).json();
    // Readings move between two questions.
    let without_readings = |node: &Value| {
        let mut gpus = node["gpus"].clone();
        for gpu in gpus.as_array_mut().unwrap() {
            gpu.as_object_mut().unwrap().remove("metrics");
        }
        gpus
    };
    assert_eq!(without_readings(&same), without_readings(node));
    house.get("/nodes/node-2").await.expect(404);
    let stranger = Who {
        org: "other",
        ..Who::ann("organization.owner")
    };
    let seen = house
        .ask("GET", "/nodes")
        .by(stranger)
        .send()
        .await
        .expect(200)
        .json();
    assert_eq!(seen["data"][0]["gpus"][0].get("resourceId"), None);
    let conflict = house
        .ask("POST", "/resources")
        .by(stranger)
        .json(&body)
        .send()
        .await
        .expect(409);
    assert_eq!(conflict.code(), "GPU_CONFLICT");
    assert!(!conflict.text().contains(&id), "{}", conflict.text());
}

#[tokio::test]
async fn a_conflict_names_its_holder() {
    let house = house().await;
    let mut body = container();
    body["config"]["containerPorts"] = json!([{ "containerPort": 80, "hostPort": 8080 }]);
    let holder = id(&house.make(&body).await);
    let answer = house.post("/resources", &body).await.expect(409);
    let error = answer.json();
    assert_eq!(error["code"], "PORT_CONFLICT");
    assert_eq!(error["details"]["holders"][0]["resourceId"], holder.as_str());
    assert!(error["details"]["remedy"].is_string());
}

#[tokio::test]
async fn health_readiness_metrics_and_documentation() {
    let house = house().await;
    let health = house.ask("GET", "/health").send().await.expect(200).json();
    assert_eq!(health["status"], "ok");
    let ready = house.ask("GET", "/ready").send().await.expect(200).json();
    assert_eq!(ready["backends"].as_array().unwrap().len(), 2);
    house.container().await;
    let text = house.get("/metrics").await.expect(200).text();
    for line in [
        "hwm_http_requests_total{method=\"POST\",route=\"/resources\",status=\"201\"} 1",
        "hwm_operations_total{action=\"create\",status=\"succeeded\"} 1",
        "hwm_claims{kind=\"cpu\"} 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.contains("hwm_store_commits_total "));
    assert!(text.contains("hwm_backend_calls_total{"));
    let document = house.ask("GET", "/api-docs-json").send().await.expect(200).json();
    assert_eq!(&document, crate::schema::document());
    let page = house.ask("GET", "/api-docs").send().await.expect(200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(page.text().contains("<base href=\"api-docs/\">"));
    for file in [
        "",
        "swagger-ui.css",
        "swagger-ui-bundle.js",
        "swagger-initializer.js",
    ] {
        house
            .ask("GET", &format!("/api-docs/{file}"))
            .send()
            .await
            .expect(200);
    }
    house.ask("GET", "/api-docs/nothing.js").send().await.expect(404);
}

#[tokio::test]
async fn the_document_names_the_version_and_the_address_of_the_server() {
    let house = crate::house::house_with(|options| {
        options.version = "9.8.7".to_owned();
        options.public_url = Some("https://hwm.example/api".to_owned());
    })
    .await;
    let document = house.ask("GET", "/api-docs-json").send().await.expect(200).json();
    assert_eq!(document["info"]["version"], "9.8.7");
    assert_eq!(document["servers"], json!([{ "url": "https://hwm.example/api" }]));
    let machine = house.machine().await;
    let console = house
        .get(&format!("/resources/{machine}/console"))
        .await
        .expect(200)
        .json();
    let url = console["url"].as_str().unwrap();
    assert!(
        url.starts_with(&format!("wss://hwm.example/api/resources/{machine}/console?")),
        "{url}"
    );
}

#[tokio::test]
async fn a_backend_that_is_away_is_a_503_that_says_when_to_come_back() {
    let house = house().await;
    let id = house.container().await;
    house.sim.set_away(true);
    // The manager notices at its next look.
    let mut answer = house.get(&format!("/resources/{id}/status")).await;
    for _ in 0..50 {
        if answer.status == 503 && house.ask("GET", "/ready").send().await.status == 503 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        answer = house.get(&format!("/resources/{id}/status")).await;
    }
    let answer = answer.expect(503);
    assert_eq!(answer.code(), "BACKEND_UNAVAILABLE");
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    let refused = house.post("/resources", &container()).await.expect(503);
    assert_eq!(refused.code(), "BACKEND_UNAVAILABLE");
    let ready = house.ask("GET", "/ready").send().await.expect(503).json();
    assert_eq!(ready["errors"].as_array().unwrap().len(), 2, "{ready:#}");
    // What needs no backend goes on.
    house.get(&format!("/resources/{id}")).await.expect(200);
    house.get("/resources").await.expect(200);
}

#[tokio::test]
async fn head_and_options_are_answered() {
    let house = house().await;
    let id = house.container().await;
    let path = format!("/resources/{id}");
    let head = house.ask("HEAD", &path).by(ADMIN).send().await.expect(200);
    assert!(head.bytes.is_empty() && head.header("etag").is_some());
    let options = house.ask("OPTIONS", &path).send().await.expect(204);
    let allow = options.header("allow").unwrap();
    for method in ["GET", "PATCH", "DELETE"] {
        assert!(allow.contains(method), "{allow}");
    }
}

#[tokio::test]
async fn a_gpu_can_be_recovered_by_an_owner_of_everything() {
    let house: House = house().await;
    let answer = house
        .ask("POST", "/nodes/node-1/gpus/0/recover")
        .by(ADMIN)
        .send()
        .await
        .expect(200);
    assert_eq!(answer.json()["id"], "node-1");
    house
        .ask("POST", "/nodes/node-1/gpus/77/recover")
        .by(ADMIN)
        .send()
        .await
        .expect(404);
}
