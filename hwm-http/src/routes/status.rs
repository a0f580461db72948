//! `/resources/{id}/status`: what is of a resource now.

use axum::Json;
use hwm_core::id::ResourceId;
use hwm_core::manager::ResourceStatus;

use super::BackendReadRefused;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Id, NoQuery, Query};

/// Asks the backend what is of a resource now, rather than what is remembered.
#[utoipa::path(
    get,
    path = "/resources/{id}/status",
    tag = "observe",
    operation_id = "getResourceStatus",
    params(("id" = ResourceId, Path, description = "The resource")),
    responses((status = 200, description = "Its state now", body = ResourceStatus), BackendReadRefused)
)]
pub(crate) async fn get(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
) -> Result<Json<ResourceStatus>, ApiError> {
    Ok(Json(caller.scoped.status(id).await?))
}
