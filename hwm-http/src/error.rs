//! The one shape of every error, whoever refuses: a handler, the manager or the framework.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hwm_core::backend::BackendErrorKind;
use hwm_core::error::Violation;
use hwm_core::units::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::correlation::CorrelationId;

/// The stable words that name what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// 400: the request breaks rules; `errors` names every one.
    ValidationFailed,
    /// 400: the body is no JSON, or the request cannot be read.
    Malformed,
    /// 401: no token, or one that is not accepted.
    Unauthorized,
    /// 403: no role of the caller grants it.
    Forbidden,
    /// 404: there is no such thing, or the caller may not see it.
    NotFound,
    /// 405: the path has no such method.
    MethodNotAllowed,
    /// 409: the resource's state does not allow it.
    InvalidState,
    /// 409: a GPU has another holder.
    GpuConflict,
    /// 409: a host port has another holder.
    PortConflict,
    /// 409: an address has another holder.
    AddressConflict,
    /// 409: a folder has another writer.
    VolumeConflict,
    /// 409: not enough CPU, memory or disk is free.
    InsufficientCapacity,
    /// 409: too many operations wait on the resource.
    TooManyOperations,
    /// 412: the resource is not at the revision of If-Match.
    PreconditionFailed,
    /// 413: the body is too large.
    PayloadTooLarge,
    /// 415: the body is not `application/json`.
    UnsupportedMediaType,
    /// 422: the Idempotency-Key was used with another request.
    IdempotencyMismatch,
    /// 422: this node, or this kind of resource, cannot do that.
    Unsupported,
    /// 426: the path answers WebSocket handshakes only.
    UpgradeRequired,
    /// 429: too many requests; see Retry-After.
    RateLimited,
    /// 500: a failure of the server; the log has the rest under the correlation id.
    Internal,
    /// 409, 422 or 502: the backend tried and failed.
    BackendFailed,
    /// 503: the backend is away; see Retry-After.
    BackendUnavailable,
    /// 504: it took longer than it may.
    Timeout,
}

impl ErrorCode {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::ValidationFailed,
        Self::Malformed,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::InvalidState,
        Self::GpuConflict,
        Self::PortConflict,
        Self::AddressConflict,
        Self::VolumeConflict,
        Self::InsufficientCapacity,
        Self::TooManyOperations,
        Self::PreconditionFailed,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::IdempotencyMismatch,
        Self::Unsupported,
        Self::UpgradeRequired,
        Self::RateLimited,
        Self::Internal,
        Self::BackendFailed,
        Self::BackendUnavailable,
        Self::Timeout,
    ];

    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ValidationFailed => "VALIDATION_FAILED",
            Self::Malformed => "MALFORMED",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::InvalidState => "INVALID_STATE",
            Self::GpuConflict => "GPU_CONFLICT",
            Self::PortConflict => "PORT_CONFLICT",
            Self::AddressConflict => "ADDRESS_CONFLICT",
            Self::VolumeConflict => "VOLUME_CONFLICT",
            Self::InsufficientCapacity => "INSUFFICIENT_CAPACITY",
            Self::TooManyOperations => "TOO_MANY_OPERATIONS",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
            Self::IdempotencyMismatch => "IDEMPOTENCY_MISMATCH",
            Self::Unsupported => "UNSUPPORTED",
            Self::UpgradeRequired => "UPGRADE_REQUIRED",
            Self::RateLimited => "RATE_LIMITED",
            Self::Internal => "INTERNAL",
            Self::BackendFailed => "BACKEND_FAILED",
            Self::BackendUnavailable => "BACKEND_UNAVAILABLE",
            Self::Timeout => "TIMEOUT",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == word)
    }
}

/// The body of every error.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ErrorBody {
    /// The status code of the answer.
    pub status_code: u16,
    /// The stable word.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// Every broken rule, with its field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// What stands in the way: for conflicts who holds what, and what would free it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub details: Option<Value>,
    /// When it was answered.
    pub timestamp: Timestamp,
    /// The path of the request.
    pub path: String,
    /// The id under which the log has the request.
    pub correlation_id: String,
}

/// An error on its way out. It travels as an extension of the response until [`render`] gives it its body.
#[derive(Debug, Clone)]
pub(crate) struct ApiError(Box<Failure>);

#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) errors: Vec<String>,
    pub(crate) details: Option<Value>,
    pub(crate) headers: HeaderMap,
    /// For the log only.
    cause: Option<String>,
}

impl Deref for ApiError {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.0
    }
}

impl DerefMut for ApiError {
    fn deref_mut(&mut self) -> &mut Failure {
        &mut self.0
    }
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(Failure {
            status,
            code,
            message: message.into(),
            errors: Vec::new(),
            details: None,
            headers: HeaderMap::new(),
            cause: None,
        }))
    }

    pub(crate) fn validation(violations: &[Violation]) -> Self {
        let mut error = Self::new(
            StatusCode::BAD_REQUEST,
            ErrorCode::ValidationFailed,
            hwm_core::Error::Validation(violations.to_vec()).to_string(),
        );
        error.errors = violations.iter().map(ToString::to_string).collect();
        error
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::Malformed, message)
    }

    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            ErrorCode::NotFound,
            format!("{what} not found"),
        )
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message)
    }

    /// A 401; `problem` describes a token that was given and not accepted.
    pub(crate) fn unauthorized(problem: Option<&'static str>) -> Self {
        let (message, challenge) = match problem {
            None => (
                "a bearer token is needed".to_owned(),
                "Bearer realm=\"hwm\"".to_owned(),
            ),
            Some(problem) => (
                format!("the token is not accepted: {problem}"),
                format!("Bearer realm=\"hwm\", error=\"invalid_token\", error_description=\"{problem}\""),
            ),
        };
        let mut error = Self::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
        if let Ok(value) = HeaderValue::from_str(&challenge) {
            error.headers.insert(header::WWW_AUTHENTICATE, value);
        }
        error
    }

    pub(crate) fn rate_limited(retry_after: Duration) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::RateLimited,
            "too many requests: slow down",
        )
        .retry_after(retry_after)
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::PayloadTooLarge,
            format!("the body is larger than {limit} bytes"),
        )
    }

    pub(crate) fn timeout(what: &str, limit: Duration) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Timeout,
            format!("{what} took longer than {} s", limit.as_secs_f64()),
        )
    }

    /// A 500 that says nothing; the log gets the cause.
    pub(crate) fn internal(cause: impl Into<String>) -> Self {
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Internal,
            "the server failed; its log has the rest under this correlation id",
        );
        error.cause = Some(cause.into());
        error
    }

    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.headers
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        self
    }

    fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    fn with_cause(mut self, error: &dyn std::error::Error) -> Self {
        self.cause = Some(chain(error));
        self
    }

    /// What a response without our extension means: the framework refused on its own.
    fn from_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::not_found("path"),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(status, ErrorCode::MethodNotAllowed, "the path has no such method")
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(status, ErrorCode::PayloadTooLarge, "the body is too large")
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::new(
                status,
                ErrorCode::UnsupportedMediaType,
                "the media type is not supported",
            ),
            StatusCode::UPGRADE_REQUIRED => Self::new(
                status,
                ErrorCode::UpgradeRequired,
                "the path answers WebSocket handshakes only",
            ),
            status if status.is_server_error() => Self::internal(format!("the framework answered {status}")),
            status => Self::new(status, ErrorCode::Malformed, "the request cannot be read"),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl From<hwm_core::Error> for ApiError {
    fn from(error: hwm_core::Error) -> Self {
        use hwm_core::Error as E;
        let code = ErrorCode::parse(error.code()).unwrap_or(ErrorCode::Internal);
        let plain = |status| Self::new(status, code, error.to_string());
        match &error {
            E::Validation(violations) => Self::validation(violations),
            E::NotFound { .. } => plain(StatusCode::NOT_FOUND),
            E::Forbidden { .. } => plain(StatusCode::FORBIDDEN),
            E::InvalidState {
                action,
                phase,
                reason,
            } => plain(StatusCode::CONFLICT)
                .with_details(json!({ "action": action, "phase": phase, "reason": reason })),
            E::Conflict(conflict) => {
                plain(StatusCode::CONFLICT).with_details(serde_json::to_value(conflict).unwrap_or_default())
            }
            E::TooManyOperations { resource, limit } => {
                plain(StatusCode::CONFLICT).with_details(json!({ "resourceId": resource, "limit": limit }))
            }
            E::PreconditionFailed { .. } => plain(StatusCode::PRECONDITION_FAILED),
            E::IdempotencyMismatch | E::Unsupported { .. } => plain(StatusCode::UNPROCESSABLE_ENTITY),
            E::BackendUnavailable {
                backend, retry_after, ..
            } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code,
                format!("backend {backend} is away: try again later"),
            )
            .retry_after(*retry_after)
            .with_cause(&error),
            E::ShuttingDown => plain(StatusCode::SERVICE_UNAVAILABLE).retry_after(Duration::from_secs(5)),
            E::Backend { source, .. } => match source.kind {
                // The caller can do something about these, so it is told what the backend said.
                BackendErrorKind::Conflict | BackendErrorKind::NotRunning => {
                    Self::new(StatusCode::CONFLICT, code, source.to_string()).with_cause(&error)
                }
                BackendErrorKind::Invalid | BackendErrorKind::NotFound => {
                    Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, source.to_string()).with_cause(&error)
                }
                BackendErrorKind::Timeout => Self::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    ErrorCode::Timeout,
                    "the backend took too long",
                )
                .with_cause(&error),
                BackendErrorKind::Unavailable
                | BackendErrorKind::Denied
                | BackendErrorKind::Unsupported
                | BackendErrorKind::NoSpace
                | BackendErrorKind::Superseded
                | BackendErrorKind::Failed => plain(StatusCode::BAD_GATEWAY).with_cause(&error),
            },
            E::Timeout { .. } => plain(StatusCode::GATEWAY_TIMEOUT),
            _ => Self::internal(chain(&error)),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.headers.clone()).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives an error its body; anything else passes.
pub(crate) fn render(response: Response, path: &str, id: &CorrelationId, now: Timestamp) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    let ApiError(error) = parts
        .extensions
        .remove::<ApiError>()
        .unwrap_or_else(|| ApiError::from_status(status));
    if status.is_server_error() {
        let cause = error.cause.as_deref().unwrap_or(&error.message);
        tracing::error!(
            status = status.as_u16(),
            code = error.code.as_str(),
            cause,
            "request failed"
        );
    }
    let body = ErrorBody {
        status_code: status.as_u16(),
        code: error.code,
        message: error.message,
        errors: error.errors,
        details: error.details,
        timestamp: now,
        path: path.to_owned(),
        correlation_id: id.to_string(),
    };
    let bytes = serde_json::to_vec(&body).unwrap_or_default();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts
        .headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_written_as_it_is_named() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert_eq!(ErrorCode::parse(code.as_str()), Some(code));
        }
    }

    #[test]
    fn failures_of_the_server_show_no_internals() {
        let store = hwm_core::store::StoreError::new("reading /secret/path.db", "disk I/O error");
        let error = ApiError::from(hwm_core::Error::Store(store));
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!error.message.contains("secret"));
        assert!(error.cause.as_deref().unwrap().contains("disk I/O error"));
    }

    #[test]
    fn a_challenge_names_the_problem_of_a_token_only_where_one_was_given() {
        let header = |problem| {
            ApiError::unauthorized(problem).headers[header::WWW_AUTHENTICATE]
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(header(None), "Bearer realm=\"hwm\"");
        assert!(header(Some("it has expired")).contains("invalid_token"));
    }
}
