//! Server-sent events: scoped, replayable, alive, and cut when they must be.

use std::time::{Duration, Instant};

use hwm_core::backend::LogStream;
use serde_json::json;

use crate::house::{ADMIN, House, Who, container, house, house_with, id};
use crate::listener::{Listener, Sse};

async fn events(listener: &Listener, who: Who, query: &str, last: Option<&str>) -> Sse {
    let bearer = format!("Bearer {}", who.token());
    let mut headers = vec![("authorization", bearer.as_str())];
    if let Some(last) = last {
        headers.push(("last-event-id", last));
    }
    let sse = Sse::open(listener, &format!("/events{query}"), &headers).await;
    assert_eq!(sse.status, 200);
    sse
}

/// Makes a resource that stays queued, which is one event.
async fn queued(house: &House, name: &str) -> String {
    let mut body = container();
    body["name"] = json!(name);
    body["autoStart"] = json!(false);
    id(&house.post("/resources", &body).await.expect(201).json())
}

#[tokio::test]
async fn events_come_as_they_happen_with_growing_ids() {
    let house = house().await;
    let listener = house.listen().await;
    let mut sse = events(&listener, ADMIN, "", None).await;
    assert!(
        sse.headers
            .contains(&"content-type: text/event-stream".to_owned())
    );
    let first = sse.next().await.unwrap();
    assert_eq!(first.retry, "3000");
    let made = queued(&house, "one").await;
    let frame = sse.event().await.unwrap();
    let data = frame.json();
    assert_eq!(frame.event, "resource.created");
    assert_eq!(data["type"], "resource.created");
    assert_eq!(data["id"].to_string(), frame.id);
    assert_eq!(data["resourceId"], made.as_str());
    queued(&house, "two").await;
    let second = sse.event().await.unwrap();
    assert!(second.id.parse::<u64>().unwrap() > frame.id.parse::<u64>().unwrap());
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed() {
    let house = house().await;
    let listener = house.listen().await;
    let mut sse = events(&listener, ADMIN, "?lastEventId=0", None).await;
    queued(&house, "one").await;
    let seen = sse.event().await.unwrap();
    drop(sse);
    let missed = queued(&house, "two").await;
    let mut sse = events(&listener, ADMIN, "", Some(&seen.id)).await;
    assert_eq!(sse.event().await.unwrap().json()["resourceId"], missed.as_str());
    let mut filtered = events(
        &listener,
        ADMIN,
        &format!("?resourceId={missed}&lastEventId=0"),
        None,
    )
    .await;
    assert_eq!(
        filtered.event().await.unwrap().json()["resourceId"],
        missed.as_str()
    );
}

#[tokio::test]
async fn a_client_from_the_future_must_list_again() {
    let house = house().await;
    let listener = house.listen().await;
    queued(&house, "one").await;
    let mut sse = events(&listener, ADMIN, "", Some("999999")).await;
    let frame = sse.event().await.unwrap();
    assert_eq!(frame.event, "reset");
    assert_eq!(frame.json()["type"], "reset");
    for last in ["-1", "x", "1e3", "99999999999999999999"] {
        let answer = house
            .ask("GET", "/events")
            .by(ADMIN)
            .header("last-event-id", last)
            .send()
            .await;
        answer.expect(400);
    }
}

#[tokio::test]
async fn other_tenants_see_none_of_it() {
    let house = house().await;
    let listener = house.listen().await;
    let stranger = Who {
        org: "evil",
        ..Who::ann("organization.owner")
    };
    let mut theirs = events(&listener, stranger, "?lastEventId=0", None).await;
    queued(&house, "secret plan").await;
    let own = Who {
        role: "member.owner",
        ..stranger
    };
    let mut body = container();
    body["autoStart"] = json!(false);
    let made = house
        .ask("POST", "/resources")
        .by(own)
        .json(&body)
        .send()
        .await
        .expect(201);
    let first = theirs.event().await.unwrap();
    assert_eq!(first.json()["resourceId"], made.json()["_id"]);
}

#[tokio::test]
async fn an_idle_stream_shows_signs_of_life() {
    let house = house_with(|options| options.heartbeat = Duration::from_millis(100)).await;
    let listener = house.listen().await;
    let mut sse = events(&listener, ADMIN, "", None).await;
    sse.next().await.unwrap();
    for _ in 0..3 {
        let frame = sse.next().await.unwrap();
        assert!(frame.event.is_empty() && frame.data.is_empty(), "{frame:?}");
    }
}

#[tokio::test]
async fn a_stream_ends_when_its_token_does() {
    let house = house().await;
    let listener = house.listen().await;
    let made = house.container().await;
    let bearer = format!("Bearer {}", ADMIN.token());
    let mut sse = events(&listener, ADMIN, "", None).await;
    let mut logs = Sse::open(
        &listener,
        &format!("/resources/{made}/logs"),
        &[("authorization", &bearer)],
    )
    .await;
    assert_eq!(logs.status, 200);
    sse.next().await.unwrap();
    logs.next().await.unwrap();
    house.clock.advance(Duration::from_secs(3600));
    let cut = Instant::now();
    while sse.next().await.is_some() {}
    while logs.next().await.is_some() {}
    assert!(cut.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_log_stream_follows_replays_and_ends_with_its_resource() {
    let house = house().await;
    let listener = house.listen().await;
    let made = house.container().await;
    let write = |text: &str| {
        house
            .sim
            .write_log(made.parse().unwrap(), LogStream::Stdout, text)
    };
    write("one\ntwo\n");
    let bearer = format!("Bearer {}", ADMIN.token());
    let path = format!("/resources/{made}/logs?follow=true&tail=2");
    let mut logs = Sse::open(&listener, &path, &[("authorization", &bearer)]).await;
    let one = logs.event().await.unwrap();
    assert_eq!(one.event, "log");
    assert_eq!(one.json()["message"], "one");
    assert_eq!(logs.event().await.unwrap().json()["message"], "two");
    write("three\n");
    assert_eq!(logs.event().await.unwrap().json()["message"], "three");
    // Whoever has seen `one` gets the rest and nothing twice.
    let headers = [
        ("authorization", bearer.as_str()),
        ("last-event-id", one.id.as_str()),
    ];
    let mut again = Sse::open(&listener, &path, &headers).await;
    assert_eq!(again.event().await.unwrap().json()["message"], "two");
    assert_eq!(again.event().await.unwrap().json()["message"], "three");
    house.remove(&made).await;
    let cut = Instant::now();
    while logs.next().await.is_some() {}
    while again.next().await.is_some() {}
    assert!(cut.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn shutdown_ends_every_stream() {
    let house = house().await;
    let listener = house.listen().await;
    let made = house.container().await;
    let bearer = format!("Bearer {}", ADMIN.token());
    let mut sse = events(&listener, ADMIN, "", None).await;
    let path = format!("/resources/{made}/logs?follow=true");
    let mut logs = Sse::open(&listener, &path, &[("authorization", &bearer)]).await;
    sse.next().await.unwrap();
    logs.next().await.unwrap();
    house.options.shutdown.cancel();
    while sse.next().await.is_some() {}
    while logs.next().await.is_some() {}
    tokio::time::timeout(Duration::from_secs(5), listener.server)
        .await
        .expect("the server ends")
        .unwrap();
}
