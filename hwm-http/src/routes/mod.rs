//! The routes, a file for each resource of the API.

pub(crate) mod actions;
pub(crate) mod console;
pub(crate) mod docs;
pub(crate) mod events;
pub(crate) mod exec;
mod headers;
pub(crate) mod health;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod nodes;
pub(crate) mod operations;
mod refusals;
pub(crate) mod resources;
pub(crate) mod snapshots;
pub(crate) mod status;
pub(crate) mod tickets;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use hwm_core::id::OperationId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::Shared;
pub(crate) use refusals::{BackendReadRefused, ChangeRefused, ListRefused, ReadRefused};

const OPERATION_ID: HeaderName = HeaderName::from_static("operation-id");

/// Every route of the document.
pub(crate) fn all() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(resources::create, list::list))
        .routes(routes!(resources::get, resources::update, resources::delete))
        .routes(routes!(actions::start))
        .routes(routes!(actions::stop))
        .routes(routes!(actions::restart))
        .routes(routes!(status::get))
        .routes(routes!(logs::get))
        .routes(routes!(metrics::get))
        .routes(routes!(console::get))
        .routes(routes!(snapshots::create, snapshots::list))
        .routes(routes!(snapshots::restore))
        .routes(routes!(snapshots::delete))
        .routes(routes!(exec::run, exec::attach))
        .routes(routes!(tickets::create))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get, operations::cancel))
        .routes(routes!(events::stream))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get))
        .routes(routes!(nodes::recover_gpu))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
}

/// Names the operation that an answer started.
fn name_operation(response: &mut Response, operation: Option<OperationId>) {
    if let Some(operation) = operation
        && let Ok(value) = HeaderValue::from_str(&operation.to_string())
    {
        response.headers_mut().insert(OPERATION_ID, value);
    }
}
