//! Server-sent events: events of the node, and lines of a log.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, StreamExt as _};
use hwm_core::backend::{LogLine, Stream};
use hwm_core::manager::EventItem;
use serde::Serialize;
use serde_json::json;

use crate::auth::Caller;
use crate::body::LogStreamEnd;
use crate::error::ApiError;
use crate::log_position::{LogPosition, Resume};
use crate::state::Shared;
use crate::watch;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How long a client is to wait before it connects again.
const RETRY: Duration = Duration::from_secs(3);

/// Where a client left off: the header that browsers send by themselves when they connect again.
pub(crate) fn last_event_id(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    match headers.get(LAST_EVENT_ID).map(HeaderValue::to_str) {
        None => Ok(None),
        Some(Ok("")) => Ok(None),
        Some(Ok(id)) => Ok(Some(id.to_owned())),
        Some(Err(_)) => Err(ApiError::malformed("Last-Event-ID is no text")),
    }
}

/// Answers events until the caller loses its access or the server stops.
pub(crate) fn events(api: &Shared, caller: Caller, events: Stream<EventItem>) -> Response {
    let clock = api.options.environment.clone();
    let lost = watch::lost(api.clone(), caller, None);
    let events = events.map(move |item| match item {
        EventItem::Reset(newest) => {
            let data = json!({ "id": newest, "type": "reset", "time": clock.now(), "data": {} });
            frame("reset", Some(newest.to_string()), &data)
        }
        EventItem::Event(event) => frame(event.kind.as_str(), Some(event.id.to_string()), &event),
    });
    respond(api, events.take_until(lost))
}

/// Answers lines of a log; those up to and with `after` the client has. The last event is `end`, or `error`.
pub(crate) fn logs(
    api: &Shared,
    caller: Caller,
    resource: hwm_core::id::ResourceId,
    lines: Stream<hwm_core::manager::Result<LogLine>>,
    after: Option<LogPosition>,
) -> Response {
    let lost = watch::lost(api.clone(), caller, Some(resource));
    let resume = Arc::new(Mutex::new(Resume::after(after)));
    let frames = |lines: Vec<(LogPosition, LogLine)>| {
        let frames = lines
            .into_iter()
            .map(|(position, line)| frame("log", Some(position.text()), &line));
        stream::iter(frames.collect::<Vec<_>>())
    };
    let held = resume.clone();
    let rest =
        stream::once(async move { held.lock().unwrap_or_else(|e| e.into_inner()).rest() }).flat_map(frames);
    let lines = lines.flat_map(move |line| match line {
        Ok(line) => frames(resume.lock().unwrap_or_else(|e| e.into_inner()).pass(line)),
        Err(error) => {
            let error = ApiError::from(error);
            let data = json!({ "code": error.code, "message": error.message });
            stream::iter(vec![frame("error", None, &data)])
        }
    });
    let end = stream::once(async {
        let reason = "the log has ended".to_owned();
        frame("end", None, &LogStreamEnd { reason })
    });
    respond(api, lines.chain(rest).chain(end).take_until(lost))
}

fn frame(name: &str, id: Option<String>, data: &impl Serialize) -> SseEvent {
    let data = serde_json::to_string(data).unwrap_or_default();
    let event = SseEvent::default().event(name).data(data);
    match id {
        Some(id) => event.id(id),
        None => event,
    }
}

fn respond(api: &Shared, events: impl futures_util::Stream<Item = SseEvent> + Send + 'static) -> Response {
    let first = stream::once(async { SseEvent::default().retry(RETRY).comment("hwm") });
    let events = first.chain(events).map(Ok::<_, Infallible>);
    let alive = KeepAlive::new().interval(api.options.heartbeat);
    let mut response = Sse::new(events).keep_alive(alive).into_response();
    // Proxies such as nginx hold answers back unless told otherwise.
    response.headers_mut().insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}
