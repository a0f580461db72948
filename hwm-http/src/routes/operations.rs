//! `/operations`: what was accepted, and how far it is.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use hwm_core::id::{OperationId, ResourceId};
use hwm_core::operation::Operation;

use super::headers::WaitHeader;
use super::{ChangeRefused, ListRefused, ReadRefused};
use crate::auth::Caller;
use crate::body::{OperationList, Pagination};
use crate::error::ApiError;
use crate::extract::{Change, FromQuery, Id, NoQuery, Query, QueryReader};
use crate::prefer;

/// Which operations.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct OperationParameters {
    /// Of this resource.
    #[param(rename = "resourceId", value_type = Option<String>, format = "uuid")]
    resource: Option<ResourceId>,
    /// From 1.
    #[param(minimum = 1, maximum = 1_000_000, default = 1)]
    page: Option<u64>,
    /// How many a page holds.
    #[param(minimum = 1, maximum = 200, default = 10)]
    limit: Option<u32>,
}

impl FromQuery for OperationParameters {
    fn from_query(query: &mut QueryReader) -> Self {
        Self {
            resource: query.parsed("resourceId", "the id of a resource", |text| text.parse().ok()),
            page: query.integer("page", 1, 1_000_000),
            limit: query
                .integer("limit", 1, 200)
                .and_then(|limit| u32::try_from(limit).ok()),
        }
    }
}

/// Lists operations, newest first.
#[utoipa::path(
    get,
    path = "/operations",
    tag = "operations",
    operation_id = "listOperations",
    params(OperationParameters),
    responses((status = 200, description = "A page of operations", body = OperationList), ListRefused)
)]
pub(crate) async fn list(
    caller: Caller,
    Query(parameters): Query<OperationParameters>,
) -> Result<Json<OperationList>, ApiError> {
    let page = parameters.page.unwrap_or(1);
    let limit = parameters.limit.unwrap_or(10);
    let before = (page - 1) * u64::from(limit);
    let (data, total) = caller
        .scoped
        .operations(parameters.resource, before, limit)
        .await?;
    Ok(Json(OperationList {
        data,
        pagination: Pagination::new(page, limit, total),
    }))
}

/// Reads an operation, with its progress at this moment.
#[utoipa::path(
    get,
    path = "/operations/{id}",
    tag = "operations",
    operation_id = "getOperation",
    params(("id" = OperationId, Path, description = "The operation")),
    responses((status = 200, description = "The operation", body = Operation), ReadRefused)
)]
pub(crate) async fn get(
    caller: Caller,
    Id(id): Id<OperationId>,
    _: Query<NoQuery>,
) -> Result<Json<Operation>, ApiError> {
    Ok(Json(caller.scoped.operation(id).await?))
}

/// Cancels an operation. One that waits is cancelled at once; one that runs is undone where it can be.
#[utoipa::path(
    delete,
    path = "/operations/{id}",
    tag = "operations",
    operation_id = "cancelOperation",
    params(("id" = OperationId, Path, description = "The operation"), WaitHeader),
    responses((status = 200, description = "The operation as it then is", body = Operation), ChangeRefused)
)]
pub(crate) async fn cancel(
    caller: Caller,
    Id(id): Id<OperationId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let mut operation = caller.scoped.cancel(id).await?;
    if let Some(limit) = change.wait {
        operation = caller.scoped.wait(id, limit).await?;
    }
    let mut response = Json(operation).into_response();
    prefer::applied(&mut response, change.wait);
    Ok(response)
}
