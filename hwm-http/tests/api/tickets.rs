//! Tickets: good once, for a minute, for one caller's one stream of one resource.

use std::time::Duration;

use serde_json::json;

use crate::house::{ADMIN, House, Who, house};

async fn ticket(house: &House, id: &str, purpose: &str) -> String {
    let answer = house
        .post(&format!("/resources/{id}/tickets"), &json!({ "for": purpose }))
        .await
        .expect(201);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer.json()["ticket"].as_str().unwrap().to_owned()
}

async fn logs(house: &House, id: &str, ticket: &str) -> u16 {
    let path = format!("/resources/{id}/logs?ticket={ticket}");
    house.ask("GET", &path).send().await.status.as_u16()
}

#[tokio::test]
async fn a_ticket_opens_its_stream_once() {
    let house = house().await;
    let id = house.container().await;
    let first = ticket(&house, &id, "logs").await;
    assert_eq!(logs(&house, &id, &first).await, 200);
    assert_eq!(logs(&house, &id, &first).await, 401);
    let events = ticket(&house, &id, "events").await;
    let path = format!("/events?ticket={events}");
    house.ask("GET", &path).send().await.expect(200);
    house.ask("GET", &path).send().await.expect(401);
}

#[tokio::test]
async fn a_ticket_is_for_one_purpose_and_one_resource_and_any_try_uses_it_up() {
    let house = house().await;
    let (one, other) = (house.container().await, house.container().await);
    for purpose in ["exec", "console", "events"] {
        let wrong = ticket(&house, &one, purpose).await;
        assert_eq!(logs(&house, &one, &wrong).await, 401, "{purpose}");
    }
    let elsewhere = ticket(&house, &one, "logs").await;
    assert_eq!(logs(&house, &other, &elsewhere).await, 401);
    assert_eq!(logs(&house, &one, &elsewhere).await, 401);
    let events = ticket(&house, &one, "events").await;
    let path = format!("/events?resourceId={other}&ticket={events}");
    house.ask("GET", &path).send().await.expect(401);
    for path in ["status", "metrics"] {
        let stray = ticket(&house, &one, "logs").await;
        let path = format!("/resources/{one}/{path}?ticket={stray}");
        house.ask("GET", &path).send().await.expect(401);
    }
}

#[tokio::test]
async fn a_ticket_is_good_for_a_minute_and_no_longer_than_its_token() {
    let house = house().await;
    let id = house.container().await;
    let old = ticket(&house, &id, "logs").await;
    house.clock.advance(Duration::from_secs(59));
    let young = ticket(&house, &id, "logs").await;
    house.clock.advance(Duration::from_secs(2));
    assert_eq!(logs(&house, &id, &old).await, 401);
    assert_eq!(logs(&house, &id, &young).await, 200);
    // A token that ends in ten seconds gives a ticket that ends with it (and the leeway of five).
    house.clock.advance(Duration::from_secs(3600 - 61 - 10));
    let token = crate::house::Who::token(ADMIN);
    let last = house
        .ask("POST", &format!("/resources/{id}/tickets"))
        .token(&token)
        .json(&json!({ "for": "logs" }))
        .send()
        .await
        .expect(201);
    house.clock.advance(Duration::from_secs(16));
    let last = last.json()["ticket"].as_str().unwrap().to_owned();
    assert_eq!(logs(&house, &id, &last).await, 401);
}

#[tokio::test]
async fn a_thousand_guesses_and_reuses_open_nothing() {
    let house = house().await;
    let id = house.container().await;
    let used = ticket(&house, &id, "logs").await;
    assert_eq!(logs(&house, &id, &used).await, 200);
    let live = ticket(&house, &id, "logs").await;
    let mut opened = 0;
    for n in 0..1000_usize {
        let guess = match n % 4 {
            0 => used.clone(),
            1 => live[..live.len() - 1].to_owned(),
            2 => {
                let mut guess = live.clone().into_bytes();
                let at = n % guess.len();
                guess[at] = if guess[at] == b'A' { b'B' } else { b'A' };
                String::from_utf8(guess).unwrap()
            }
            _ => format!("{n:043}"),
        };
        opened += usize::from(guess != live && logs(&house, &id, &guess).await != 401);
    }
    assert_eq!(opened, 0);
    assert_eq!(logs(&house, &id, &live).await, 200);
}

#[tokio::test]
async fn a_viewer_gets_tickets_for_what_a_viewer_may() {
    let house = house().await;
    let id = house.container().await;
    let viewer = Who::ann("group.viewer");
    for (purpose, status) in [("logs", 201), ("events", 201), ("exec", 403), ("console", 403)] {
        let answer = house
            .ask("POST", &format!("/resources/{id}/tickets"))
            .by(viewer)
            .json(&json!({ "for": purpose }))
            .send()
            .await;
        answer.expect(status);
    }
}

#[tokio::test]
async fn the_same_key_gets_the_same_ticket() {
    let house = house().await;
    let id = house.container().await;
    let ask = |body: serde_json::Value| {
        house
            .ask("POST", &format!("/resources/{id}/tickets"))
            .by(ADMIN)
            .header("idempotency-key", "t")
            .json(&body)
            .send()
    };
    let first = ask(json!({ "for": "logs" })).await.expect(201).json();
    let second = ask(json!({ "for": "logs" })).await.expect(201).json();
    assert_eq!(first, second);
    ask(json!({ "for": "events" })).await.expect(422);
}
