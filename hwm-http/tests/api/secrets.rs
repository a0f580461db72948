//! One canary for each secret: it is in no answer, event, log line, error or `Debug` output.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::house::{ADMIN, container, house, id, machine};
use crate::listener::Sse;

const PASSWORD: &str = "canary-registry-password";
const TOKEN: &str = "canary-registry-token";
const GUEST: &str = "canary-guest-password";

/// Everything that is logged while a test runs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn canaries_are_nowhere() {
    let log = Log::default();
    let writer = log.clone();
    // For the whole process: it is not known on which thread something would be logged.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();

    let house = house().await;
    let listener = house.listen().await;
    let bearer = format!("Bearer {}", ADMIN.token());
    let mut events = Sse::open(&listener, "/events?lastEventId=0", &[("authorization", &bearer)]).await;
    let mut seen = String::new();

    let mut with_auth = container();
    with_auth["config"]["registryAuth"] = json!({ "username": "u", "password": PASSWORD });
    let mut with_token = container();
    with_token["config"]["registryAuth"] = json!({ "username": "u", "token": TOKEN });
    let mut with_guest = machine();
    with_guest["config"]["cloudInit"] = json!({ "hostname": "h", "username": "ann", "password": GUEST });
    for body in [&with_auth, &with_token, &with_guest] {
        let refused: Value = {
            let mut bad = body.clone();
            bad["config"]["colour"] = json!("red");
            house.post("/resources", &bad).await.expect(400).json()
        };
        seen.push_str(&refused.to_string());
        seen.push_str(
            &house
                .post("/resources?dryRun=true", body)
                .await
                .expect(200)
                .text(),
        );
        let made = house
            .ask("POST", "/resources")
            .by(ADMIN)
            .header("prefer", "wait=10")
            .json(body)
            .send()
            .await
            .expect(201);
        seen.push_str(&made.text());
        let id = id(&made.json());
        let path = format!("/resources/{id}");
        assert!(made.text().contains("\"***\""));
        // What was read back and sent again keeps the secret.
        let kept = house
            .ask("PATCH", &path)
            .by(ADMIN)
            .json(&json!({ "config": made.json()["config"], "description": "kept" }))
            .send()
            .await
            .expect(200);
        seen.push_str(&kept.text());
        for part in ["", "/status", "/logs", "/metrics"] {
            seen.push_str(&house.get(&format!("{path}{part}")).await.expect(200).text());
        }
        let ticket = house
            .post(&format!("{path}/tickets"), &json!({ "for": "logs" }))
            .await
            .expect(201);
        let ticket = ticket.json()["ticket"].as_str().unwrap().to_owned();
        let opened = house
            .ask("GET", &format!("{path}/logs?ticket={ticket}"))
            .send()
            .await;
        seen.push_str(&opened.expect(200).text());
        let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
        assert!(!logged.contains(&ticket), "a ticket was logged");
    }
    seen.push_str(&house.get("/resources").await.text());
    seen.push_str(&house.get("/operations?limit=200").await.text());
    seen.push_str(&house.get("/nodes").await.text());
    seen.push_str(&house.get("/metrics").await.text());
    for _ in 0..4 {
        seen.push_str(&events.event().await.unwrap().data);
    }
    seen.push_str(&format!("{:?}", house.options.auth));

    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(logged.contains("correlation_id"), "{logged}");
    for canary in [PASSWORD, TOKEN, GUEST] {
        assert!(!seen.contains(canary), "{canary} was answered");
        assert!(!logged.contains(canary), "{canary} was logged");
    }
    let token = ADMIN.token();
    let signature = token.rsplit('.').next().unwrap();
    assert!(!logged.contains(signature) && !seen.contains(signature));
    let secret = String::from_utf8_lossy(crate::house::SECRET).into_owned();
    assert!(!logged.contains(&secret) && !seen.contains(&secret));
}
