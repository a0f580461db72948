//! `/resources/{id}/logs`: as JSON, as a stream of events, or as a text to download.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, TryStreamExt as _};
use hwm_core::backend::{LogLine, LogQuery, Stream};
use hwm_core::id::ResourceId;
use hwm_core::units::Timestamp;

use super::BackendReadRefused;
use crate::auth::{Caller, Visitor};
use crate::body::{LogList, StreamEvent};
use crate::error::ApiError;
use crate::extract::{FromQuery, Id, Query, QueryReader};
use crate::log_position::LogPosition;
use crate::sse;
use crate::state::Shared;
use crate::tickets::TicketPurpose;
use crate::watch;

/// Lines of a JSON answer when the client does not say.
const LINES: u32 = 1000;
/// The most lines of a JSON answer; more are streamed or downloaded.
const MOST_LINES: u64 = 10_000;
/// The most bytes of the messages of a JSON answer: the newest lines that fit.
const MOST_BYTES: usize = 8 << 20;

/// Which lines.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogParameters {
    /// Only the last so many lines; 1000 for JSON when absent, else all.
    #[param(minimum = 0, maximum = 10_000)]
    tail: Option<u32>,
    /// Only from this moment on (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only before this moment (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// Goes on with what comes, as a stream of events.
    follow: Option<bool>,
}

impl FromQuery for LogParameters {
    fn from_query(query: &mut QueryReader) -> Self {
        // It is the visitor's.
        query.text("ticket");
        let time = "a time such as 2026-01-02T03:04:05Z";
        Self {
            tail: query
                .integer("tail", 0, MOST_LINES)
                .and_then(|n| u32::try_from(n).ok()),
            since: query.parsed("since", time, Timestamp::parse),
            until: query.parsed("until", time, Timestamp::parse),
            follow: query.flag("follow"),
        }
    }
}

/// How the client wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Events,
    Text,
}

impl Form {
    fn wanted(headers: &HeaderMap, follow: Option<bool>) -> Self {
        let accepts = |media: &str| {
            headers
                .get_all(header::ACCEPT)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|text| text.split(','))
                .any(|range| {
                    let named = range.split(';').next().unwrap_or_default();
                    named.trim().eq_ignore_ascii_case(media)
                })
        };
        if accepts("text/event-stream") {
            Self::Events
        } else if accepts("text/plain") {
            Self::Text
        } else if follow == Some(true) {
            Self::Events
        } else {
            Self::Json
        }
    }
}

/// Reads a log: JSON, or with `Accept: text/event-stream` or `follow=true` a stream of `log` events that
/// ends with `end`, or with `Accept: text/plain` a text to download.
#[utoipa::path(
    get,
    path = "/resources/{id}/logs",
    tag = "observe",
    operation_id = "getResourceLogs",
    params(
        ("id" = ResourceId, Path, description = "The resource"),
        LogParameters,
        ("ticket" = Option<String>, Query, description = "One for `logs`, in place of the Authorization header"),
        ("Last-Event-ID" = Option<String>, Header, description = "Goes on after this event of an earlier stream")
    ),
    responses(
        (status = 200, description = "The lines, oldest first", content(
            (LogList = "application/json"),
            (StreamEvent = "text/event-stream"),
            (String = "text/plain")
        )),
        BackendReadRefused
    )
)]
pub(crate) async fn get(
    State(api): State<Shared>,
    visitor: Visitor,
    Id(id): Id<ResourceId>,
    Query(parameters): Query<LogParameters>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (caller, _) = visitor.may_watch(Some(id), TicketPurpose::Logs)?;
    let form = Form::wanted(&headers, parameters.follow);
    let mut query = LogQuery {
        tail: parameters.tail,
        since: parameters.since,
        until: parameters.until,
        follow: parameters.follow.unwrap_or(form == Form::Events),
    };
    match form {
        Form::Json => {
            query.follow = false;
            let tail = *query.tail.get_or_insert(LINES);
            let lines = caller.scoped.logs(id, query).await?;
            let logs = newest(lines, tail).await?;
            Ok(Json(LogList {
                resource_id: id,
                logs,
            })
            .into_response())
        }
        Form::Events => {
            let after = match sse::last_event_id(&headers)? {
                None => None,
                Some(text) => Some(
                    LogPosition::parse(&text)
                        .ok_or_else(|| ApiError::malformed("Last-Event-ID is none that this stream sent"))?,
                ),
            };
            if let Some(after) = after {
                query.since = Some(after.time);
                query.tail = None;
            }
            let lines = caller.scoped.logs(id, query).await?;
            Ok(sse::logs(&api, caller, id, lines, after))
        }
        Form::Text => {
            let lines = caller.scoped.logs(id, query).await?;
            Ok(download(&api, caller, id, lines))
        }
    }
}

/// The last lines of a log that are not too many bytes.
async fn newest(
    mut lines: Stream<hwm_core::manager::Result<LogLine>>,
    tail: u32,
) -> Result<Vec<LogLine>, ApiError> {
    let mut kept = std::collections::VecDeque::new();
    let mut bytes = 0;
    while let Some(line) = lines.try_next().await? {
        bytes += line.message.len();
        kept.push_back(line);
        while kept.len() > tail as usize || bytes > MOST_BYTES {
            let Some(dropped) = kept.pop_front() else { break };
            bytes -= dropped.message.len();
        }
    }
    Ok(kept.into())
}

fn download(
    api: &Shared,
    caller: Caller,
    id: ResourceId,
    lines: Stream<hwm_core::manager::Result<LogLine>>,
) -> Response {
    let lost = watch::lost(api.clone(), caller, Some(id));
    let text = lines
        .map_ok(|line| Bytes::from(format!("{} {}\n", line.timestamp, line.message)))
        .inspect_err(|error| tracing::debug!(%error, "a log ended early"))
        .map_err(std::io::Error::other)
        .take_until(lost);
    let mut response = Body::from_stream(text.boxed()).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{id}.log\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: Option<&str>, follow: Option<bool>) -> Form {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        Form::wanted(&headers, follow)
    }

    #[test]
    fn the_form_is_what_accept_and_follow_say() {
        assert_eq!(form(None, None), Form::Json);
        assert_eq!(form(Some("*/*"), None), Form::Json);
        assert_eq!(form(Some("application/json"), Some(true)), Form::Events);
        assert_eq!(form(Some("text/event-stream"), None), Form::Events);
        assert_eq!(form(Some("text/plain;q=0.9, */*"), None), Form::Text);
        assert_eq!(form(Some("text/plain"), Some(true)), Form::Text);
    }

    #[tokio::test]
    async fn the_newest_lines_are_kept() {
        let line = |n: i64| LogLine {
            timestamp: Timestamp::from_millis(n),
            stream: hwm_core::backend::LogStream::Stdout,
            level: hwm_core::backend::LogLevel::Info,
            message: "x".repeat(3 << 20),
        };
        let lines = futures_util::stream::iter((0..5).map(move |n| Ok(line(n)))).boxed();
        let kept = newest(lines, 10).await.unwrap();
        let times: Vec<_> = kept.iter().map(|l| l.timestamp.as_millis()).collect();
        assert_eq!(times, [3, 4]);
    }
}
