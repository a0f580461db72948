//! WebSockets: terminals and consoles, who gets in, and when they are cut.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::house::{ADMIN, Who, house};
use crate::listener::{Listener, Socket};

fn bearer(who: Who) -> String {
    format!("Bearer {}", who.token())
}

async fn terminal(listener: &Listener, id: &str, query: &str) -> Socket {
    let path = format!("/resources/{id}/exec?{query}");
    let headers = [
        ("authorization", &*bearer(ADMIN)),
        ("sec-websocket-protocol", "v4.channel.k8s.io"),
    ];
    let (socket, protocol) = Socket::open(listener, &path, &headers).await.unwrap();
    assert_eq!(protocol.as_deref(), Some("v4.channel.k8s.io"));
    socket
}

/// Reads until a channel has said this much, and answers all of it.
async fn until(socket: &mut Socket, channel: u8, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let frame = socket
            .next()
            .await
            .unwrap_or_else(|e| panic!("{e:?} after {text:?}"));
        if frame[0] == channel {
            text.push_str(&String::from_utf8_lossy(&frame[1..]));
        }
    }
    text
}

#[tokio::test]
async fn a_terminal_speaks_channels() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.container().await;
    let mut socket = terminal(&listener, &id, "command=/bin/sh&tty=false").await;
    socket.binary(b"\x00echo hello\n").await;
    until(&mut socket, 1, "hello\n").await;
    socket.binary(b"\x00echo oops >&2\n").await;
    until(&mut socket, 2, "oops\n").await;
    socket.binary(b"\x04{\"Width\":100,\"Height\":40}").await;
    socket.binary(b"\x00exit 7\n").await;
    let status: Value = loop {
        let frame = socket.next().await.unwrap();
        if frame[0] == 3 {
            break serde_json::from_slice(&frame[1..]).unwrap();
        }
    };
    assert_eq!(status["status"], "Failure");
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    assert_eq!(socket.closed().await.0, 1000);
}

#[tokio::test]
async fn a_caller_gets_in_by_header_ticket_or_first_message_and_never_by_a_token_in_the_url() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.container().await;
    let path = format!("/resources/{id}/exec?command=/bin/sh");

    let answer = house
        .post(&format!("/resources/{id}/tickets"), &json!({ "for": "exec" }))
        .await
        .expect(201)
        .json();
    let with_ticket = format!("{path}&ticket={}", answer["ticket"].as_str().unwrap());
    let (mut socket, _) = Socket::open(&listener, &with_ticket, &[]).await.unwrap();
    socket.binary(b"\x00echo ticket\n").await;
    until(&mut socket, 1, "ticket").await;
    let again = Socket::open(&listener, &with_ticket, &[]).await.err();
    assert_eq!(again, Some(401));

    let (mut socket, _) = Socket::open(&listener, &path, &[]).await.unwrap();
    socket.text(&json!({ "token": ADMIN.token() }).to_string()).await;
    socket.binary(b"\x00echo first\n").await;
    until(&mut socket, 1, "first").await;

    for name in ["ticket", "token", "access_token"] {
        let refused = Socket::open(&listener, &format!("{path}&{name}={}", ADMIN.token()), &[])
            .await
            .err();
        assert!(matches!(refused, Some(400 | 401)), "{name}: {refused:?}");
    }
}

#[tokio::test]
async fn what_is_no_good_first_message_closes_the_socket() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.container().await;
    let path = format!("/resources/{id}/exec");
    let viewer = Who::ann("organization.viewer");
    let stranger = Who {
        org: "evil",
        ..Who::ann("organization.owner")
    };
    for (message, code) in [
        (json!({ "token": "nonsense" }), "UNAUTHORIZED"),
        (json!({ "token": viewer.token() }), "FORBIDDEN"),
        (json!({ "token": stranger.token() }), "NOT_FOUND"),
        (json!({ "ticket": "x" }), "MALFORMED"),
        (json!("token"), "MALFORMED"),
    ] {
        let (mut socket, _) = Socket::open(&listener, &path, &[]).await.unwrap();
        socket.text(&message.to_string()).await;
        let (status, reason) = socket.closed().await;
        assert_eq!(status, 1008);
        assert!(reason.starts_with(code), "{reason}");
    }
    let (mut binary, _) = Socket::open(&listener, &path, &[]).await.unwrap();
    binary.binary(b"\x00id\n").await;
    assert_eq!(binary.closed().await.0, 1008);
    let started = Instant::now();
    let (mut silent, _) = Socket::open(&listener, &path, &[]).await.unwrap();
    assert_eq!(silent.closed().await.0, 1008);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn refusals_are_statuses_where_the_caller_is_known() {
    let house = house().await;
    let listener = house.listen().await;
    let (container, machine) = (house.container().await, house.machine().await);
    let stranger = Who {
        org: "evil",
        ..Who::ann("organization.owner")
    };
    for (who, path, status) in [
        (
            Who::ann("group.viewer"),
            format!("/resources/{container}/exec"),
            403,
        ),
        (stranger, format!("/resources/{container}/exec"), 404),
        (ADMIN, format!("/resources/{machine}/exec"), 422),
        (ADMIN, format!("/resources/{container}/console"), 422),
        (
            Who::ann("group.viewer"),
            format!("/resources/{machine}/console"),
            403,
        ),
        (stranger, format!("/resources/{machine}/console"), 404),
        (ADMIN, format!("/resources/{container}/exec?colour=red"), 400),
        (ADMIN, "/resources/nonsense/exec".to_owned(), 404),
    ] {
        let refused = Socket::open(&listener, &path, &[("authorization", &bearer(who))])
            .await
            .err();
        assert_eq!(refused, Some(status), "{path}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_are_refused() {
    let house = crate::house::house_with(|options| {
        options.origins = vec!["https://portal.example".to_owned()];
        options.public_url = Some("https://hwm.example/api".to_owned());
    })
    .await;
    let listener = house.listen().await;
    let id = house.container().await;
    let path = format!("/resources/{id}/exec");
    let own = format!("http://{}", listener.address);
    for (origin, allowed) in [
        (own.as_str(), true),
        ("https://portal.example", true),
        ("https://hwm.example", true),
        ("https://portal.example.evil.com", false),
        ("http://portal.example", false),
        ("https://portal.example:444", false),
        ("https://evil.com", false),
        ("null", false),
        ("file://", false),
        ("", false),
    ] {
        let bearer = bearer(ADMIN);
        let headers = [("authorization", bearer.as_str()), ("origin", origin)];
        let opened = Socket::open(&listener, &path, &headers).await;
        assert_eq!(opened.err(), (!allowed).then_some(403), "{origin:?}");
    }
}

#[tokio::test]
async fn a_session_is_cut_when_its_token_ends() {
    let house = house().await;
    let listener = house.listen().await;
    let (container, machine) = (house.container().await, house.machine().await);
    let mut terminal = terminal(&listener, &container, "command=/bin/sh").await;
    let path = format!("/resources/{machine}/console");
    let (mut console, _) = Socket::open(&listener, &path, &[("authorization", &bearer(ADMIN))])
        .await
        .unwrap();
    let (mut by_message, _) = Socket::open(&listener, &format!("/resources/{container}/exec"), &[])
        .await
        .unwrap();
    by_message
        .text(&json!({ "token": ADMIN.token() }).to_string())
        .await;
    by_message.binary(b"\x00echo in\n").await;
    until(&mut by_message, 1, "in").await;
    house.clock.advance(Duration::from_secs(3610));
    let cut = Instant::now();
    for socket in [&mut terminal, &mut console, &mut by_message] {
        let (code, reason) = socket.closed().await;
        assert_eq!(code, 1008);
        assert!(reason.contains("token"), "{reason}");
    }
    assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
}

#[tokio::test]
async fn a_session_is_cut_when_its_resource_goes() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.container().await;
    let mut socket = terminal(&listener, &id, "command=/bin/sh").await;
    house.remove(&id).await;
    let cut = Instant::now();
    socket.closed().await;
    assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
}

#[tokio::test]
async fn a_session_is_cut_when_the_key_of_its_token_is_removed() {
    use jsonwebtoken::jwk::{Jwk, JwkSet};
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    let pem = |text: &[u8]| EncodingKey::from_ec_pem(text).unwrap();
    let ours = pem(include_bytes!("../keys/ours-ec.pem"));
    let next = pem(include_bytes!("../keys/attacker-ec.pem"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let write = |key: &EncodingKey| {
        let keys = vec![Jwk::from_encoding_key(key, Algorithm::ES256).unwrap()];
        std::fs::write(&path, serde_json::to_vec(&JwkSet { keys }).unwrap()).unwrap();
    };
    write(&ours);
    let auth = hwm_http::auth::Auth::hs256(crate::house::SECRET)
        .unwrap()
        .or(hwm_http::auth::Auth::jwks_file(&path).unwrap());
    let house = crate::house::house_with(|options| options.auth = auth).await;
    let listener = house.listen().await;
    let id = house.container().await;
    let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &ADMIN.claims(), &ours).unwrap();
    let (mut socket, _) = Socket::open(
        &listener,
        &format!("/resources/{id}/exec"),
        &[("authorization", &format!("Bearer {token}"))],
    )
    .await
    .unwrap();
    socket.binary(b"\x00echo in\n").await;
    until(&mut socket, 1, "in").await;
    write(&next);
    let cut = Instant::now();
    assert_eq!(socket.closed().await.0, 1008);
    assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
}

#[tokio::test]
async fn shutdown_ends_sessions_at_once() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.container().await;
    let mut socket = terminal(&listener, &id, "command=/bin/sh").await;
    let (mut waiting, _) = Socket::open(&listener, &format!("/resources/{id}/exec"), &[])
        .await
        .unwrap();
    house.options.shutdown.cancel();
    let cut = Instant::now();
    assert_eq!(socket.closed().await.0, 1001);
    waiting.closed().await;
    assert!(cut.elapsed() < Duration::from_secs(2), "{:?}", cut.elapsed());
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_the_session() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.container().await;
    for frame in [&b"\x01x"[..], b"\x09", b"\x04not a size"] {
        let mut socket = terminal(&listener, &id, "command=/bin/sh").await;
        socket.binary(frame).await;
        assert_eq!(socket.closed().await.0, 1002);
    }
    let mut socket = terminal(&listener, &id, "command=/bin/sh").await;
    // The server may hang up before all of it is sent.
    if socket.try_binary(vec![0; 3 << 20]).await {
        while socket.next().await.is_ok() {}
    }
}

#[tokio::test]
async fn a_screen_speaks_rfb_by_the_address_that_was_given() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.machine().await;
    let answer = house
        .ask("GET", &format!("/resources/{id}/console"))
        .by(ADMIN)
        .header("host", &listener.address.to_string())
        .send()
        .await
        .expect(200)
        .json();
    let url = answer["url"].as_str().unwrap();
    let path = url.strip_prefix(&format!("ws://{}", listener.address)).unwrap();
    let headers = [("sec-websocket-protocol", "binary")];
    let (mut socket, protocol) = Socket::open(&listener, path, &headers).await.unwrap();
    assert_eq!(protocol.as_deref(), Some("binary"));
    let greeting = socket.next().await.unwrap();
    assert!(greeting.starts_with(b"RFB 003."), "{greeting:?}");
    assert_eq!(Socket::open(&listener, path, &headers).await.err(), Some(401));
}

#[tokio::test]
async fn a_serial_line_takes_typed_text() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.machine().await;
    let path = format!("/resources/{id}/console?type=serial");
    let (mut socket, _) = Socket::open(&listener, &path, &[("authorization", &bearer(ADMIN))])
        .await
        .unwrap();
    socket.text("\n").await;
    let output = socket.next().await.unwrap();
    assert!(!output.is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_nothing_and_holds_up_nobody() {
    let house = house().await;
    let listener = house.listen().await;
    let id = house.container().await;
    let mut stalled = terminal(&listener, &id, "command=/bin/sh&tty=false").await;
    stalled.binary(b"\x00seq 300000\n").await;
    let mut other = terminal(&listener, &id, "command=/bin/sh&tty=false").await;
    other.binary(b"\x00echo here\n").await;
    until(&mut other, 1, "here\n").await;
    house.get(&format!("/resources/{id}")).await.expect(200);
    // Who reads in the end gets all of it, in order.
    let text = until(&mut stalled, 1, "\n300000\n").await;
    let lines = text.lines().skip_while(|line| *line != "1");
    assert!(lines.eq((1..=300_000).map(|n| n.to_string())));
}

#[tokio::test]
async fn sockets_that_say_nothing_fill_a_waiting_room_and_no_more() {
    let house = crate::house::house_with(|options| {
        options.first_message_time = Duration::from_secs(3);
    })
    .await;
    let listener = house.listen().await;
    let id = house.container().await;
    let path = format!("/resources/{id}/exec");
    let (mut waiting, mut refused) = (Vec::new(), 0);
    for _ in 0..300 {
        match Socket::open(&listener, &path, &[]).await {
            Ok((socket, _)) => waiting.push(socket),
            Err(status) => {
                assert_eq!(status, 429);
                refused += 1;
            }
        }
    }
    assert_eq!((waiting.len(), refused), (256, 44));
    // Those who are known need no seat.
    let mut known = terminal(&listener, &id, "command=/bin/sh").await;
    known.binary(b"\x00echo in\n").await;
    until(&mut known, 1, "in").await;
    for mut socket in waiting {
        assert_eq!(socket.closed().await.0, 1008);
    }
    let (mut late, _) = Socket::open(&listener, &path, &[]).await.unwrap();
    late.text(&json!({ "token": ADMIN.token() }).to_string()).await;
    late.binary(b"\x00echo late\n").await;
    until(&mut late, 1, "late").await;
}
