//! The id that ties a request, its answer and its log lines together.

use std::fmt;
use std::time::Instant;

use axum::extract::{MatchedPath, OriginalUri, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;

use crate::error;
use crate::state::Shared;

/// The header that carries the id both ways.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-correlation-id");

const LONGEST: usize = 128;

/// Names a request: taken from the client where it is printable ASCII of at most 128 characters, else made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CorrelationId(HeaderValue);

impl CorrelationId {
    fn take(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(HEADER)?;
        let text = value.to_str().ok()?;
        let printable = !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        (printable && text.len() <= LONGEST).then(|| Self(value.clone()))
    }

    fn make() -> Self {
        let text = uuid::Uuid::now_v7().to_string();
        Self(HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("none")))
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or_default())
    }
}

/// The outermost layer: names the request, opens its span, gives errors their body, and counts.
///
/// The span holds the path and never the query, which may hold a ticket.
pub(crate) async fn correlate(State(api): State<Shared>, request: Request, next: Next) -> Response {
    let id = CorrelationId::take(request.headers()).unwrap_or_else(CorrelationId::make);
    let path = request
        .extensions()
        .get::<OriginalUri>()
        .map_or_else(|| request.uri().path(), |uri| uri.path())
        .to_owned();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let span = tracing::info_span!(
        "request",
        correlation_id = %id,
        %method,
        path,
        caller = tracing::field::Empty,
    );
    let started = Instant::now();
    let response = next.run(request).instrument(span.clone()).await;
    let elapsed = started.elapsed();
    let status = response.status();
    span.in_scope(|| {
        tracing::debug!(
            status = status.as_u16(),
            elapsed_us = elapsed.as_micros(),
            "answered"
        );
    });
    api.metrics.observe(
        &method,
        route.as_ref().map_or("", MatchedPath::as_str),
        status,
        elapsed,
    );
    let mut response = span.in_scope(|| error::render(response, &path, &id, api.options.environment.now()));
    let headers = response.headers_mut();
    headers.insert(HEADER, id.0);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(value: &[u8]) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_bytes(value).unwrap());
        CorrelationId::take(&headers).map(|id| id.to_string())
    }

    #[test]
    fn a_printable_id_of_reasonable_length_is_taken() {
        assert_eq!(taken(b"order 66/a").as_deref(), Some("order 66/a"));
        assert_eq!(taken(&[b'x'; 128]), Some("x".repeat(128)));
    }

    #[test]
    fn other_ids_are_replaced() {
        for value in [&b""[..], &[b'x'; 129], b"a\tb", "é".as_bytes(), &[0x80]] {
            assert_eq!(taken(value), None, "{value:?}");
        }
        assert_eq!(CorrelationId::make().to_string().len(), 36);
    }
}
