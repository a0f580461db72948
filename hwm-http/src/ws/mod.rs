//! WebSockets: who may open one, and the pump between a socket and a session.

pub(crate) mod console;
pub(crate) mod exec;
mod pump;

use std::future::Future;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use hwm_core::backend::Session;
use hwm_core::id::ResourceId;
use serde::Deserialize;

use crate::auth::{Caller, Identity};
use crate::error::{ApiError, ErrorCode};
use crate::state::{Api, Shared};
pub(crate) use pump::Framing;

/// The largest message that a client may send.
const LARGEST_MESSAGE: usize = 1 << 20;

/// Refuses a plain GET to a path that speaks WebSocket only.
pub(crate) fn upgrade_required() -> ApiError {
    let mut error = ApiError::new(
        StatusCode::UPGRADE_REQUIRED,
        ErrorCode::UpgradeRequired,
        "this path answers WebSocket handshakes only",
    );
    error
        .headers
        .insert(header::UPGRADE, axum::http::HeaderValue::from_static("websocket"));
    error.headers.insert(
        header::CONNECTION,
        axum::http::HeaderValue::from_static("upgrade"),
    );
    error
}

/// Refuses handshakes from web pages of other origins. What is no browser sends no Origin.
pub(crate) fn check_origin(api: &Api, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return Ok(());
    };
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let public = api.options.public_url.as_deref().and_then(authority);
    let allowed = origins.next().is_none()
        && origin.to_str().is_ok_and(|origin| {
            let same = authority(origin)
                .is_some_and(|a| [host, public].iter().flatten().any(|h| h.eq_ignore_ascii_case(a)));
            same || api
                .options
                .origins
                .iter()
                .any(|listed| listed.eq_ignore_ascii_case(origin))
        });
    if allowed {
        Ok(())
    } else {
        Err(ApiError::forbidden(
            "pages of this origin may not open WebSockets here",
        ))
    }
}

/// `host[:port]` of a URL.
fn authority(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    http.then(|| rest.split('/').next().unwrap_or_default())
        .filter(|authority| !authority.is_empty())
}

/// The first message of a client that could set no header and has no ticket.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstMessage {
    token: String,
}

/// Accepts the handshake and connects the socket with a session.
///
/// A caller that is known gets its session before the handshake is answered, so that what refuses it is an
/// HTTP status. One that is not known must send `{"token": "…"}` first; what refuses it then is the reason
/// of the close frame.
pub(crate) async fn connect<F, O, Fut>(
    api: Shared,
    upgrade: WebSocketUpgrade,
    caller: Option<Caller>,
    resource: ResourceId,
    framing: F,
    open: O,
) -> Result<Response, ApiError>
where
    F: Framing,
    O: FnOnce(Caller) -> Fut + Send + 'static,
    Fut: Future<Output = hwm_core::manager::Result<Session>> + Send,
{
    let upgrade = upgrade
        .max_message_size(LARGEST_MESSAGE)
        .max_frame_size(LARGEST_MESSAGE);
    match caller {
        Some(caller) => {
            let session = open(caller.clone()).await?;
            Ok(upgrade.on_upgrade(move |socket| pump::run(api, caller, resource, socket, session, framing)))
        }
        None => {
            let seat = api
                .waiting_room
                .clone()
                .try_acquire_owned()
                .map_err(|_| ApiError::rate_limited(api.options.first_message_time))?;
            Ok(upgrade.on_upgrade(move |mut socket| async move {
                let welcomed = welcome(&api, &mut socket, open).await;
                drop(seat);
                match welcomed {
                    Ok((caller, session)) => {
                        pump::run(api, caller, resource, socket, session, framing).await;
                    }
                    Err(error) => close(socket, close_code::POLICY, &refusal(&error)).await,
                }
            }))
        }
    }
}

async fn welcome<O, Fut>(api: &Shared, socket: &mut WebSocket, open: O) -> Result<(Caller, Session), ApiError>
where
    O: FnOnce(Caller) -> Fut,
    Fut: Future<Output = hwm_core::manager::Result<Session>>,
{
    let limit = api.options.first_message_time;
    let first = tokio::select! {
        () = api.options.shutdown.cancelled() => return Err(hwm_core::Error::ShuttingDown.into()),
        first = tokio::time::timeout(limit, socket.recv()) => first,
    };
    let text = match first {
        Ok(Some(Ok(Message::Text(text)))) => text,
        Ok(_) => return Err(ApiError::unauthorized(None)),
        Err(_) => return Err(ApiError::timeout("waiting for the token", limit)),
    };
    let FirstMessage { token } =
        serde_json::from_str(&text).map_err(|_| ApiError::malformed("expected {\"token\": \"…\"}"))?;
    let caller = Caller::admit(api, Identity::from_token(api, &token)?)?;
    let session = open(caller.clone()).await?;
    Ok((caller, session))
}

fn refusal(error: &ApiError) -> String {
    format!("{}: {}", error.code.as_str(), error.message)
}

/// Closes politely, and not for long.
async fn close(mut socket: WebSocket, code: u16, reason: &str) {
    let frame = Message::Close(Some(CloseFrame {
        code,
        reason: short(reason).into(),
    }));
    let polite = async {
        if socket.send(frame).await.is_ok() {
            // The client's own close frame ends the handshake.
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    drop(tokio::time::timeout(std::time::Duration::from_secs(1), polite).await);
}

/// A control frame has room for 123 bytes of reason.
fn short(reason: &str) -> &str {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_into_a_control_frame() {
        assert_eq!(short("fine"), "fine");
        let long = "é".repeat(100);
        assert!(short(&long).len() <= 123 && short(&long).ends_with('é'));
    }

    #[test]
    fn the_authority_of_an_origin_is_its_host_and_port() {
        assert_eq!(authority("https://a.example:8443"), Some("a.example:8443"));
        assert_eq!(authority("http://a.example/x"), Some("a.example"));
        assert_eq!(authority("null"), None);
        assert_eq!(authority("file://"), None);
    }
}
