//! `/health`, `/ready`, `/metrics`: for whoever watches the server.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hwm_core::access::{Permission, Visibility};
use serde_json::json;
use std::time::Duration;

use super::ListRefused;
use crate::auth::Caller;
use crate::body::{Answered, HealthAnswer, ReadyAnswer, ReadyWord};
use crate::error::{ApiError, ErrorCode};
use crate::extract::{NoQuery, Query};
use crate::metrics as figures;
use crate::state::Shared;

/// Whether the server lives.
#[utoipa::path(
    get,
    path = "/health",
    tag = "server",
    operation_id = "getHealth",
    security(()),
    responses((status = 200, description = "It lives", body = HealthAnswer), super::refusals::OpenRefused)
)]
pub(crate) async fn health(State(api): State<Shared>) -> Json<HealthAnswer> {
    Json(HealthAnswer {
        status: Answered::Ok,
        version: api.options.version.clone(),
        timestamp: api.options.environment.now(),
    })
}

/// Whether the server can serve: its store and every backend answer. When not, `errors` has a line for each
/// backend and `details.backends` their states.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "server",
    operation_id = "getReadiness",
    security(()),
    responses((status = 200, description = "It can serve", body = ReadyAnswer), super::refusals::OpenRefused)
)]
pub(crate) async fn ready(State(api): State<Shared>) -> Response {
    let readiness = api.manager.readiness().await;
    if readiness.ready {
        return Json(ReadyAnswer {
            status: ReadyWord::Ready,
            backends: readiness.backends,
            timestamp: api.options.environment.now(),
        })
        .into_response();
    }
    let mut error = ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::BackendUnavailable,
        "not everything that is needed answers",
    )
    .retry_after(Duration::from_secs(5));
    error.errors = readiness
        .backends
        .iter()
        .map(|backend| {
            let state = match backend.state {
                hwm_core::backend::BackendState::Ready => "ready",
                hwm_core::backend::BackendState::Away => "away",
                hwm_core::backend::BackendState::Unknown => "unknown",
            };
            match &backend.reason {
                Some(reason) => format!("{}: {state}: {reason}", backend.name),
                None => format!("{}: {state}", backend.name),
            }
        })
        .collect();
    error.details = Some(json!({ "status": "not-ready", "backends": readiness.backends }));
    error.into_response()
}

/// Figures of the whole node for Prometheus. Needs a role of scope universe.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    operation_id = "getMetrics",
    responses(
        (status = 200, description = "OpenMetrics text", body = String,
            content_type = "application/openmetrics-text"),
        ListRefused
    )
)]
pub(crate) async fn metrics(
    State(api): State<Shared>,
    caller: Caller,
    _: Query<NoQuery>,
) -> Result<Response, ApiError> {
    if caller.principal().visibility(Permission::Read) != Some(Visibility::All) {
        return Err(ApiError::forbidden(
            "figures of the whole node are not allowed: it needs a role such as universe.viewer",
        ));
    }
    let text = api.metrics.text(&api.manager).await?;
    let media = [(
        header::CONTENT_TYPE,
        HeaderValue::from_static(figures::CONTENT_TYPE),
    )];
    Ok((media, text).into_response())
}
