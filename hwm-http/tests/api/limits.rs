//! What is too much: rates, sizes, time.

use std::time::Duration;

use axum::body::Body;
use hwm_http::{Cors, Rate};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::house::{ADMIN, Who, container, house, house_with};

#[tokio::test]
async fn a_caller_that_asks_too_fast_waits_and_others_do_not() {
    let rate = Rate {
        per_second: 1,
        burst: 3,
    };
    let house = house_with(|options| options.caller_rate = Some(rate)).await;
    for _ in 0..3 {
        house.get("/resources").await.expect(200);
    }
    let refused = house.get("/resources").await.expect(429);
    assert_eq!(refused.code(), "RATE_LIMITED");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let bob = Who { user: "bob", ..ADMIN };
    house.ask("GET", "/resources").by(bob).send().await.expect(200);
    house.ask("GET", "/health").send().await.expect(200);
}

#[tokio::test]
async fn an_address_that_guesses_tokens_is_slowed_down() {
    let rate = Rate {
        per_second: 1,
        burst: 5,
    };
    let house = house_with(|options| options.address_rate = Some(rate)).await;
    let listener = house.listen().await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        let mut stream = tokio::net::TcpStream::connect(listener.address).await.unwrap();
        stream
            .write_all(b"GET /resources HTTP/1.1\r\nhost: x\r\nauthorization: Bearer guess\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        statuses.push(answer[9..12].to_owned());
    }
    assert_eq!(statuses.iter().filter(|s| *s == "401").count(), 5, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|s| *s == "429").count(), 3, "{statuses:?}");
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let house = house_with(|options| options.body_time = Duration::from_millis(100)).await;
    let drip = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let answer = house
        .ask("POST", "/resources")
        .by(ADMIN)
        .header("content-type", "application/json")
        .body(Body::from_stream(drip))
        .send()
        .await
        .expect(504);
    assert_eq!(answer.code(), "TIMEOUT");
}

#[tokio::test]
async fn a_body_of_unknown_length_is_stopped_at_the_limit() {
    let house = house().await;
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 64 << 10]));
    let answer = house
        .ask("POST", "/resources")
        .by(ADMIN)
        .header("content-type", "application/json")
        .body(Body::from_stream(endless))
        .send()
        .await
        .expect(413);
    assert_eq!(answer.code(), "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn a_body_without_a_token_is_not_even_read() {
    let house = house().await;
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let ask = house
        .ask("POST", "/resources")
        .header("content-type", "application/json")
        .body(Body::from_stream(never));
    let answer = tokio::time::timeout(Duration::from_secs(1), ask.send())
        .await
        .unwrap();
    answer.expect(401);
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_a_504() {
    let house = house_with(|options| options.answer_time = Duration::from_millis(200)).await;
    house.sim.set_fate(
        "slow",
        Some(hwm_core::testing::sim::Fate::Held {
            message: "held".to_owned(),
            percent: None,
        }),
    );
    let mut body = container();
    body["name"] = json!("slow");
    let answer = house
        .ask("POST", "/resources")
        .by(ADMIN)
        .header("prefer", "wait=30")
        .json(&body)
        .send()
        .await
        .expect(504);
    assert_eq!(answer.code(), "TIMEOUT");
    house.sim.set_fate("slow", None);
}

#[tokio::test]
async fn other_origins_are_let_in_as_configured() {
    let ask = async |cors: Cors, origin: &str| {
        let house = house_with(|options| options.cors = cors).await;
        let preflight = house
            .ask("OPTIONS", "/resources")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,if-match")
            .send_unchecked()
            .await;
        let allowed = preflight.header("access-control-allow-origin").map(str::to_owned);
        // Errors are for the page to read too.
        let error = house
            .ask("GET", "/resources")
            .header("origin", origin)
            .send()
            .await
            .expect(401);
        assert_eq!(
            error.header("access-control-allow-origin").map(str::to_owned),
            allowed
        );
        allowed
    };
    let portal = "https://portal.example";
    let listed = || Cors::Origins(vec![portal.to_owned()]);
    assert_eq!(ask(Cors::Off, portal).await, None);
    assert_eq!(ask(listed(), portal).await.as_deref(), Some(portal));
    assert_eq!(ask(listed(), "https://evil.com").await, None);
    assert_eq!(ask(Cors::Any, "https://evil.com").await.as_deref(), Some("*"));
}
