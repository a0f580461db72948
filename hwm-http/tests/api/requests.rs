//! What comes with requests: If-Match, Idempotency-Key, Prefer, correlation ids; and requests that are wrong.

use std::time::{Duration, Instant};

use hwm_core::testing::sim::Fate;
use serde_json::{Value, json};

use crate::house::{ADMIN, Who, container, house, id};

#[tokio::test]
async fn if_match_lets_only_the_seen_revision_be_changed() {
    let house = house().await;
    let path = format!("/resources/{}", house.container().await);
    let etag = house.get(&path).await.header("etag").unwrap().to_owned();
    let change = |tag: &str, text: &str| {
        house
            .ask("PATCH", &path)
            .by(ADMIN)
            .header("if-match", tag)
            .json(&json!({ "description": text }))
            .send()
    };
    change(&format!("W/{etag}"), "weak").await.expect(412);
    change("\"999999\"", "stale").await.expect(412);
    change("\"abc\"", "foreign").await.expect(412);
    change("abc", "no tag").await.expect(400);
    change(&format!("\"1234567\", {etag}"), "list").await.expect(200);
    let stale = change(&etag, "stale now").await.expect(412);
    assert_eq!(stale.code(), "PRECONDITION_FAILED");
    change("*", "any").await.expect(200);
    for (method, path) in [
        ("DELETE", path.clone()),
        ("POST", format!("{path}/stop")),
        ("POST", format!("{path}/restart")),
    ] {
        let answer = house
            .ask(method, &path)
            .by(ADMIN)
            .header("if-match", &etag)
            .send()
            .await;
        answer.expect(412);
    }
    let now = house.get(&path).await;
    assert_eq!(now.json()["description"], "any");
    let fresh = house
        .ask("GET", &path)
        .by(ADMIN)
        .header("if-none-match", now.header("etag").unwrap())
        .send()
        .await
        .expect(304);
    assert_eq!(fresh.header("etag"), now.header("etag"));
}

#[tokio::test]
async fn a_repeated_key_answers_the_first_answer_again() {
    let house = house().await;
    let create = |key: &'static str, body: Value| async move { (key, body) };
    let send = |(key, body): (&'static str, Value)| {
        house
            .ask("POST", "/resources")
            .by(ADMIN)
            .header("idempotency-key", key)
            .json(&body)
            .send()
    };
    let first = send(create("k1", container()).await).await.expect(201);
    let second = send(create("k1", container()).await).await.expect(201);
    assert_eq!(id(&first.json()), id(&second.json()));
    assert_eq!(first.header("operation-id"), second.header("operation-id"));
    let mut other = container();
    other["name"] = json!("other");
    let refused = send(create("k1", other).await).await.expect(422);
    assert_eq!(refused.code(), "IDEMPOTENCY_MISMATCH");
    let third = send(create("k2", container()).await).await.expect(201);
    assert_ne!(id(&first.json()), id(&third.json()));
    assert_eq!(house.get("/resources").await.json()["pagination"]["total"], 2);

    // Another caller's key is another key.
    let bob = Who { user: "bob", ..ADMIN };
    let bobs = house
        .ask("POST", "/resources")
        .by(bob)
        .header("idempotency-key", "k1")
        .json(&container())
        .send()
        .await
        .expect(201);
    assert_ne!(id(&first.json()), id(&bobs.json()));
}

#[tokio::test]
async fn a_command_with_a_key_runs_once_even_when_asked_twice_at_once() {
    let house = house().await;
    let id = house.container().await;
    let path = format!("/resources/{id}/exec");
    let run = |command: &str| {
        let body = json!({ "command": command });
        house
            .ask("POST", &path)
            .by(ADMIN)
            .header("idempotency-key", "once")
            .json(&body)
            .send()
    };
    let (a, b) = tokio::join!(run("echo x"), run("echo x"));
    assert_eq!(a.expect(200).json(), b.expect(200).json());
    run("echo y").await.expect(422);
}

#[tokio::test]
async fn prefer_waits_as_long_as_it_says_and_answers_how_it_then_is() {
    let house = house().await;
    house.sim.set_fate(
        "slow",
        Some(Fate::Held {
            message: "pulling".to_owned(),
            percent: Some(12),
        }),
    );
    let mut body = container();
    body["name"] = json!("slow");
    let started = Instant::now();
    let answer = house
        .ask("POST", "/resources")
        .by(ADMIN)
        .header("prefer", "wait=1")
        .json(&body)
        .send()
        .await
        .expect(201);
    assert!(
        started.elapsed() >= Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(answer.header("preference-applied"), Some("wait=1"));
    assert_eq!(answer.json()["status"], "deploying");
    let operation = answer.header("operation-id").unwrap();
    let progress = house.get(&format!("/operations/{operation}")).await.json();
    assert_eq!(progress["status"], "running");
    assert_eq!(progress["progress"]["percent"], 12);
    // Cancelled, it goes back to where it began.
    let cancelled = house
        .ask("DELETE", &format!("/operations/{operation}"))
        .by(ADMIN)
        .header("prefer", "wait=10")
        .send()
        .await
        .expect(200);
    assert_eq!(cancelled.json()["status"], "cancelled");
    let resource = house.get(answer.header("location").unwrap()).await.json();
    assert_eq!(resource["status"], "queued");
    house.sim.set_fate("slow", None);
}

#[tokio::test]
async fn a_create_that_fails_within_the_wait_is_still_a_201() {
    let house = house().await;
    house.sim.break_image(
        "busybox:latest",
        hwm_core::backend::BackendErrorKind::NotFound,
        "no such image",
    );
    let answer = house
        .ask("POST", "/resources")
        .by(ADMIN)
        .header("prefer", "wait=10")
        .json(&container())
        .send()
        .await
        .expect(201);
    let resource = answer.json();
    assert_eq!(resource["status"], "failed", "{resource:#}");
    assert!(resource["errorMessage"].is_string());
}

#[tokio::test]
async fn the_correlation_id_is_taken_or_made_and_always_returned() {
    let house = house().await;
    let taken = house
        .ask("GET", "/resources")
        .by(ADMIN)
        .header("x-correlation-id", "order-66")
        .send()
        .await;
    assert_eq!(taken.header("x-correlation-id"), Some("order-66"));
    let made = house
        .ask("GET", "/nowhere")
        .header("x-correlation-id", &"x".repeat(129))
        .send()
        .await;
    let given = made.header("x-correlation-id").unwrap();
    assert_eq!(given.len(), 36);
    assert_eq!(made.json()["correlationId"], given);
}

/// Method, path, media type and body of a request; status and code of its refusal.
type Case<'a> = (&'a str, &'a str, &'a str, Vec<u8>, u16, &'a str);

#[tokio::test]
async fn every_error_has_the_one_shape() {
    let house = house().await;
    let id = house.container().await;
    let resources = "/resources".to_owned();
    let one = format!("/resources/{id}");
    let big = "x".repeat(1 << 20);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let json_type = "application/json";
    let cases: [Case<'_>; 15] = [
        ("GET", "/nowhere", "", vec![], 404, "NOT_FOUND"),
        ("GET", "/resources/", "", vec![], 404, "NOT_FOUND"),
        ("GET", "/resources/not-an-id", "", vec![], 404, "NOT_FOUND"),
        ("GET", "/resources/%FF", "", vec![], 404, "NOT_FOUND"),
        ("PUT", &one, json_type, b"{}".to_vec(), 405, "METHOD_NOT_ALLOWED"),
        ("BREW", &one, "", vec![], 405, "METHOD_NOT_ALLOWED"),
        (
            "POST",
            &resources,
            "",
            b"{}".to_vec(),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            "POST",
            &resources,
            "text/xml",
            b"<a/>".to_vec(),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        ("POST", &resources, json_type, vec![], 400, "MALFORMED"),
        (
            "POST",
            &resources,
            json_type,
            b"{\"name\": ".to_vec(),
            400,
            "MALFORMED",
        ),
        (
            "POST",
            &resources,
            json_type,
            b"{\"name\": \"\xff\"}".to_vec(),
            400,
            "MALFORMED",
        ),
        ("POST", &resources, json_type, deep.into_bytes(), 400, "MALFORMED"),
        (
            "POST",
            &resources,
            json_type,
            format!("{{\"name\": \"{big}\"}}").into_bytes(),
            413,
            "PAYLOAD_TOO_LARGE",
        ),
        (
            "POST",
            &resources,
            json_type,
            b"[]".to_vec(),
            400,
            "VALIDATION_FAILED",
        ),
        (
            "POST",
            &resources,
            json_type,
            b"{\"name\": 1e999}".to_vec(),
            400,
            "MALFORMED",
        ),
    ];
    for (method, path, media, body, status, code) in cases {
        let mut ask = house.ask(method, path).by(ADMIN);
        if !media.is_empty() {
            ask = ask.header("content-type", media);
        }
        let answer = ask.body(body).send().await;
        let name = format!("{method} {path} {code}");
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        let error = answer.json();
        assert_eq!(error["code"], code, "{name}");
        assert_eq!(error["statusCode"], status, "{name}");
        assert_eq!(error["path"], path, "{name}");
        assert!(error["timestamp"].as_str().unwrap().ends_with('Z'), "{name}");
        assert_eq!(
            error["correlationId"].as_str(),
            answer.header("x-correlation-id"),
            "{name}"
        );
    }
}

#[tokio::test]
async fn all_broken_rules_are_named_at_once() {
    let house = house().await;
    let body = json!({
        "name": "",
        "resourceType": "virtual-machine",
        "config": { "type": "virtual-machine", "osImage": "beos", "vcpus": 0, "ramMB": 1, "colour": "red" },
        "owner": { "orgId": "evil" },
    });
    let error = house.post("/resources", &body).await.expect(400).json();
    let errors: Vec<_> = error["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e.as_str().unwrap())
        .collect();
    for field in [
        "name",
        "owner",
        "config.osImage",
        "config.vcpus",
        "config.ramMB",
        "config.diskGB",
        "config.networkConfig",
        "config.colour",
    ] {
        assert!(
            errors.iter().any(|e| e.starts_with(&format!("{field}: "))),
            "{field}: {errors:#?}"
        );
    }
}
