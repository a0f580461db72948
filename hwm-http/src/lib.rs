//! The REST API of hwm: [`router`] turns a [`Manager`] into an [`axum::Router`].
//!
//! ```no_run
//! use hwm_http::{Options, auth::Auth};
//!
//! # async fn serve(manager: hwm_core::manager::Manager) -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::new(Auth::hs256(b"thirty-two random bytes are good")?);
//! let stop = options.shutdown.clone();
//! let app = hwm_http::router(manager, options);
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3003").await?;
//! let service = app.into_make_service_with_connect_info::<std::net::SocketAddr>();
//! // Whoever is to end the server cancels `stop`, which ends streams and WebSockets too.
//! axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # A request on its way
//!
//! ```text
//! correlate ─ CORS ─ catch panics ─ limit (rate by address, time) ─▶ handler
//! (id, span,                                                          │ Caller: token, rate by caller
//!  metrics,                                                           │ Id, Query, Change: ids, query, body
//!  error bodies)                                                      ▼
//!                                                      Scoped: the manager as this caller may use it
//! ```
//!
//! Each file of `routes` is one resource of the API, and all of them look the same: parameters, handlers, and
//! above each handler what the document says of it.
#![forbid(unsafe_code)]

pub mod auth;
pub mod body;
mod conditional;
mod correlation;
mod error;
mod extract;
mod idempotency;
mod log_position;
mod metrics;
mod openapi;
mod options;
mod prefer;
mod ratelimit;
mod routes;
mod sse;
mod state;
mod tickets;
mod watch;
mod ws;

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use hwm_core::manager::Manager;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

pub use error::{ErrorBody, ErrorCode};
pub use openapi::document;
pub use options::{Cors, Options, Rate};
pub use tickets::TicketPurpose;

use error::ApiError;
use state::{Api, Shared};

/// The API of a manager. Serve it with `into_make_service_with_connect_info::<SocketAddr>()`, so that
/// addresses have their limit.
pub fn router(manager: Manager, options: Options) -> Router {
    let document = openapi::served(&options);
    let cors = cors(&options.cors);
    let body_limit = options.body_limit;
    let api = Api::new(manager, options);
    // One stack of layers: a router boxes what each call of `layer` gives it.
    let layers = ServiceBuilder::new()
        .layer(middleware::from_fn_with_state(
            api.clone(),
            correlation::correlate,
        ))
        .option_layer(cors)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(api.clone(), limit))
        .layer(DefaultBodyLimit::max(body_limit));
    Router::from(routes::all())
        .merge(routes::docs::router(&document))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(layers)
        .with_state(api)
}

async fn unknown_path() -> ApiError {
    ApiError::not_found("path")
}

/// The router adds `Allow`.
async fn unknown_method(method: Method) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::MethodNotAllowed,
        "the path has no such method; Allow names those it has",
    )
    .into_response()
}

/// One address asks only so fast, and every answer must begin in time. A command that runs in a container has a
/// time limit of its own.
async fn limit(State(api): State<Shared>, request: Request, next: Next) -> Response {
    if let Err(refused) = ratelimit::by_address(&api, &request) {
        return refused.into_response();
    }
    let is_exec = request.method() == Method::POST
        && request
            .extensions()
            .get::<MatchedPath>()
            .is_some_and(|path| path.as_str().ends_with("/exec"));
    if is_exec {
        return next.run(request).await;
    }
    let limit = api.options.answer_time;
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::timeout("the request", limit).into_response(),
    }
}

fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    ApiError::internal(format!("a panic: {}", text.unwrap_or("of no text"))).into_response()
}

fn cors(cors: &Cors) -> Option<CorsLayer> {
    let origin = match cors {
        Cors::Off => return None,
        Cors::Any => AllowOrigin::any(),
        Cors::Origins(origins) => {
            AllowOrigin::list(origins.iter().filter_map(|o| HeaderValue::from_str(o).ok()))
        }
    };
    let named = HeaderName::from_static;
    Some(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
            .allow_headers([
                header::AUTHORIZATION,
                header::CONTENT_TYPE,
                header::ACCEPT,
                header::IF_MATCH,
                header::IF_NONE_MATCH,
                named("idempotency-key"),
                named("last-event-id"),
                named("prefer"),
                correlation::HEADER,
            ])
            .expose_headers([
                header::ETAG,
                header::LOCATION,
                header::RETRY_AFTER,
                header::CONTENT_DISPOSITION,
                named("operation-id"),
                named("preference-applied"),
                correlation::HEADER,
            ])
            .max_age(Duration::from_secs(600)),
    )
}
